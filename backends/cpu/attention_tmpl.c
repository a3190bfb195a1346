/* ATTENTION; formulas in runtime/op.h, method and scratch in attention.h. Items are (sequence,
 * head, block of queries). Template, see cpu.h. */
#include "backends/cpu/attention_lanes.h"
#include "backends/cpu/kernels.h"

typedef struct attention_job {
  const bk_attention_args *a;
  bk_attention_sizes sizes;
  int64_t past, block, blocks; /* queries of a block, number of blocks */
  char *workspace;
} attention_job;

#include "backends/cpu/attention_few.h"

/* One block of queries. */
typedef struct attention_block {
  float *k, *v, *q, *s, *out, *max, *sum;
  int64_t rows, first; /* queries, absolute position of the first */
} attention_block;

/* Scores of `keys` keys from `begin` on become exp(score - max), zero where a key lies after its
 * query. max and sum go on; what `out` holds is made relative to the new maximum. */
static void softmax_lanes(float *s, int64_t keys, int64_t begin, int64_t first, float *max,
                          float *sum, float *out, int64_t width) {
  for (int v = 0; v < LANE_VECTORS; v++) {
    bk_vf before = bk_v_ld(max, v * BK_VW, false), best = before, total = bk_v_zero();
    float *at = s + v * BK_VW;
    int64_t open = first - begin + 1; /* keys that every lane may see */
    if (open > keys) open = keys;
    if (open < 0) open = 0;
    for (int64_t r = 0; r < open; r++) best = bk_v_max(best, bk_v_ld(at, r * NR, false));
    for (int64_t r = open; r < keys; r++) {
      bk_vf x = bk_v_select(lanes_allowed(v, begin + r - first), bk_v_ld(at, r * NR, false),
                            bk_v_set(-INFINITY));
      bk_v_st(at, r * NR, false, x);
      best = bk_v_max(best, x);
    }
    for (int64_t r = 0; r < keys; r++) {
      bk_vf p = bk_v_exp(bk_v_ld(at, r * NR, false) - best);
      total = total + p;
      bk_v_st(at, r * NR, false, p);
    }
    bk_vf factor = bk_v_exp(before - best);
    bk_v_st(max, v * BK_VW, false, best);
    bk_v_st(sum, v * BK_VW, false, bk_v_ld(sum, v * BK_VW, false) * factor + total);
    for (int64_t d = 0; begin > 0 && d < width; d++)
      bk_v_st(out, d * NR + v * BK_VW, false, bk_v_ld(out, d * NR + v * BK_VW, false) * factor);
  }
}
/* Adds the keys [begin, begin + width), of head matrices k and v. */
static void attend_keys(const attention_job *job, attention_block *block, bk_gemm_mat k,
                        bk_gemm_mat v, int64_t begin, int64_t width) {
  int64_t dk = job->a->q.shape[3], dv = job->a->v.shape[3];
  pack_a(bk_cpu_gemm_sub(k, begin, 0), width, dk, block->k);
  pack_a(bk_cpu_gemm_transposed(bk_cpu_gemm_sub(v, begin, 0)), dv, width, block->v);
  for (int64_t j = 0; j < block->rows; j += NR) {
    int64_t keys = keys_seen(block->first + j, begin, width);
    float *out = block->out + j * dv;
    if (keys == 0) continue;
    micro_panels(block->k, dk * MR, BK_ALIGN_UP(keys, MR), block->q + j * dk, NR, dk, block->s, NR,
                 (float)job->a->scale, false, NULL);
    softmax_lanes(block->s, keys, begin, block->first + j, block->max + j, block->sum + j, out, dv);
    micro_panels(block->v, width * MR, dv, block->s, NR, keys, out, NR, 1.f, begin > 0, NULL);
  }
}
static void attention_store(const attention_job *job, attention_block *block, int64_t b, int64_t h,
                            int64_t t) {
  const bk_attention_args *a = job->a;
  int64_t dv = a->v.shape[3];
  bk_gemm_mat o = bk_cpu_gemm_sub(bk_cpu_attention_head(&a->o, b, h), t, 0);
  for (int64_t j = 0; j < block->rows; j += NR) {
    float *out = block->out + j * dv;
    for (int64_t v = 0; v < NR; v += BK_VW) {
      bk_vf inverse = 1.f / bk_v_ld(block->sum, j + v, false);
      for (int64_t d = 0; d < dv; d++)
        bk_v_st(out, d * NR + v, false, bk_v_ld(out, d * NR + v, false) * inverse);
    }
    store_turned(out, dv, block->rows - j < NR ? block->rows - j : NR, bk_cpu_gemm_sub(o, j, 0),
                 block->v);
  }
  if (!bk_tensor_present(&a->lse)) return;
  float *lse = (float *)(void *)bk_cpu_at2(&a->lse, b, h);
  for (int64_t i = 0; i < block->rows; i++)
    lse[(t + i) * a->lse.stride[2]] = (float)(block->max[i] + log(block->sum[i]));
}
static void attention_item(const attention_job *job, int64_t b, int64_t h, int64_t t,
                           char *scratch) {
  const bk_attention_args *a = job->a;
  const bk_attention_sizes *z = &job->sizes;
  int64_t left = a->q.shape[1] - t, rows = left < job->block ? left : job->block,
          dk = a->q.shape[3];
  attention_block block = {.k = (float *)(void *)scratch, .rows = rows, .first = job->past + t};
  block.v = block.k + z->k, block.q = block.v + z->v, block.s = block.q + z->q,
  block.out = block.s + z->s;
  block.max = block.out + z->out, block.sum = block.max + z->rows;
  for (int64_t i = 0; i < BK_ALIGN_UP(rows, NR); i++) block.max[i] = -INFINITY, block.sum[i] = 0;
  int64_t end = job->past + t + rows;
  if (end > a->k.shape[1]) end = a->k.shape[1];
  bk_gemm_mat q = bk_cpu_gemm_sub(bk_cpu_attention_head(&a->q, b, h), t, 0);
  bk_gemm_mat k = bk_cpu_attention_head(&a->k, b, h), v = bk_cpu_attention_head(&a->v, b, h);
  pack_b(bk_cpu_gemm_transposed(q), rows, dk, block.q);
  for (int64_t begin = 0; begin < end; begin += BK_ATT_BK)
    attend_keys(job, &block, k, v, begin, end - begin < BK_ATT_BK ? end - begin : BK_ATT_BK);
  attention_store(job, &block, b, h, t);
}
/* Long rows of keys first, so that the workers end together. */
static void attention_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const attention_job *job = arg;
  int64_t heads = job->a->q.shape[2], batch = job->a->q.shape[0];
  for (int64_t item = begin; item < end; item++) {
    int64_t block = job->blocks - 1 - item / (heads * batch), head = item % heads,
            b = item / heads % batch;
    char *scratch = job->workspace + (size_t)worker * job->sizes.worker;
    if (job->block == BK_GEMM_FEW) few_item(job, b, head, block * job->block, scratch);
    else attention_item(job, b, head, block * job->block, scratch);
  }
}
bk_status BK_ISA_NAME(bk_cpu_attention)(bk_stream *stream, const bk_plan *plan, const void *args,
                                        bk_place workspace) {
  const bk_attention_args *a = args;
  int64_t queries = a->q.shape[1];
  attention_job job = {
      .a = a,
      .sizes = bk_cpu_attention_sizes(a),
      .block = queries <= BK_GEMM_FEW ? BK_GEMM_FEW : BK_ATT_BQ,
      .past = bk_tensor_present(&a->past) ? *(const int32_t *)bk_tensor_data(&a->past) : 0,
      .workspace = bk_place_data(workspace),
  };
  job.blocks = (queries + job.block - 1) / job.block;
  (void)plan;
  bk_cpu_run(stream, job.blocks * a->q.shape[0] * a->q.shape[2], 1, attention_piece, &job);
  return BK_OK;
}

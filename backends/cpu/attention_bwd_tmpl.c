/* ATTENTION_BWD; formulas in runtime/op.h, blocks in attention.h. Items are (sequence, head): within one, keys outside,
 * queries inside, always in the same order. With p = exp(score - lse) and delta[t] = o[t] . dout[t]:
 *   dv += p^T dout;  dp = dout v^T;  ds = p (dp - delta);  dq += scale ds k;  dk += scale ds^T q.
 * Template, see cpu.h. */
#include "backends/cpu/attention.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"

#define TILE BK_ISA_NAME(bk_cpu_gemm_tile)

typedef struct attention_bwd_job {
  const bk_attention_bwd_args *a;
  bk_attention_sizes sizes;
  bk_gemm_engine engine;
  char *workspace;
} attention_bwd_job;

typedef struct attention_bwd_head {
  bk_gemm_mat q, k, v, o, dout, dq, dk, dv; /* of one sequence and head */
  const float *lse;
  int64_t lse_stride, t, width_k, width_v;
  float *p, *dp, *delta, *gemm;
  bk_gemm_mat sum_dq, sum_dk, sum_dv; /* fp32: the outputs themselves, or scratch for bf16 */
} attention_bwd_head;

BK_INLINE float dot_row(const char *x, const char *y, int64_t n, const bool bf) {
  bk_vf s = bk_v_zero();
  for (int64_t i = 0; i < n; i += BK_VW) s = s + bk_v_get(x, i, bf, n - i) * bk_v_get(y, i, bf, n - i);
  return bk_v_hsum(s);
}
static void deltas(const attention_bwd_head *head) {
  for (int64_t i = 0; i < head->t; i++) {
    const char *o = bk_cpu_gemm_sub(head->o, i, 0).data, *d = bk_cpu_gemm_sub(head->dout, i, 0).data;
    head->delta[i] = head->o.bf16 ? dot_row(o, d, head->width_v, true) : dot_row(o, d, head->width_v, false);
  }
}
/* Rows of scores become p, rows of dp become ds; zero where a key lies after its query. */
static void softmax_bwd_row(float *p, float *dp, int64_t allowed, int64_t width, float lse, float delta) {
  int64_t padded = BK_ALIGN_UP(width, BK_VW);
  for (int64_t j = allowed; j < padded; j++) p[j] = -INFINITY, dp[j] = 0;
  for (int64_t j = 0; j < padded; j += BK_VW) {
    bk_vf e = bk_v_exp(bk_v_ld(p, j, false) - lse);
    bk_v_st(p, j, false, e);
    bk_v_st(dp, j, false, e * (bk_v_ld(dp, j, false) - delta));
  }
}
/* The queries [i, i + m) against the keys [j, j + n). */
static void attend_bwd(const attention_bwd_job *job, const attention_bwd_head *head, int64_t i, int64_t m, int64_t j, int64_t n) {
  float scale = (float)job->a->scale;
  bk_gemm_mat p = {(char *)head->p, BK_ATT_BWD_BK, 1, false}, dp = {(char *)head->dp, BK_ATT_BWD_BK, 1, false};
  bk_gemm_mat q = bk_cpu_gemm_sub(head->q, i, 0), k = bk_cpu_gemm_sub(head->k, j, 0), v = bk_cpu_gemm_sub(head->v, j, 0);
  bk_gemm_mat dout = bk_cpu_gemm_sub(head->dout, i, 0), dq = bk_cpu_gemm_sub(head->sum_dq, i, 0);
  bk_gemm_mat pt = bk_cpu_gemm_transposed(p), dst = bk_cpu_gemm_transposed(dp);
  bool more = i > j; /* the block of queries at i = j is the first that these keys meet */
  TILE(job->engine, q, bk_cpu_gemm_transposed(k), p, (bk_gemm_shape){m, n, head->width_k}, scale, false, head->gemm);
  TILE(job->engine, dout, bk_cpu_gemm_transposed(v), dp, (bk_gemm_shape){m, n, head->width_v}, 1.f, false, head->gemm);
  for (int64_t r = 0; r < m; r++) {
    int64_t allowed = i + r - j + 1 < n ? i + r - j + 1 : n;
    softmax_bwd_row(head->p + r * BK_ATT_BWD_BK, head->dp + r * BK_ATT_BWD_BK, allowed, n,
                    head->lse[(i + r) * head->lse_stride], head->delta[i + r]);
  }
  TILE(job->engine, pt, dout, head->sum_dv, (bk_gemm_shape){n, head->width_v, m}, 1.f, more, head->gemm);
  TILE(job->engine, dst, q, head->sum_dk, (bk_gemm_shape){n, head->width_k, m}, scale, more, head->gemm);
  TILE(job->engine, dp, k, dq, (bk_gemm_shape){m, head->width_k, n}, scale, j > 0, head->gemm);
}
/* Rounds rows of an fp32 sum into a bf16 output; nothing to do where the sum is the output. */
static void round_rows(bk_gemm_mat sum, bk_gemm_mat out, int64_t rows, int64_t n) {
  if (!out.bf16) return;
  for (int64_t r = 0; r < rows; r++) {
    const char *from = bk_cpu_gemm_sub(sum, r, 0).data;
    char *to = bk_cpu_gemm_sub(out, r, 0).data;
    for (int64_t i = 0; i < n; i += BK_VW) bk_v_put(to, i, true, n - i, bk_v_get(from, i, false, n - i));
  }
}
static void attention_bwd_walk(const attention_bwd_job *job, attention_bwd_head *head) {
  deltas(head);
  for (int64_t j = 0; j < head->t; j += BK_ATT_BWD_BK) {
    int64_t n = head->t - j < BK_ATT_BWD_BK ? head->t - j : BK_ATT_BWD_BK;
    bk_gemm_mat dk = bk_cpu_gemm_sub(head->dk, j, 0), dv = bk_cpu_gemm_sub(head->dv, j, 0);
    if (!dk.bf16) head->sum_dk = dk, head->sum_dv = dv;
    for (int64_t i = j; i < head->t; i += BK_ATT_BWD_BQ)
      attend_bwd(job, head, i, head->t - i < BK_ATT_BWD_BQ ? head->t - i : BK_ATT_BWD_BQ, j, n);
    round_rows(head->sum_dk, dk, n, head->width_k);
    round_rows(head->sum_dv, dv, n, head->width_v);
  }
  round_rows(head->sum_dq, head->dq, head->t, head->width_k);
}
static void attention_bwd_scratch(const attention_bwd_job *job, attention_bwd_head *head, char *scratch) {
  const bk_attention_sizes *z = &job->sizes;
  head->p = (float *)(void *)scratch;
  head->dp = head->p + z->scores;
  head->delta = head->dp + z->scores;
  float *dk = head->delta + z->rows, *dv = dk + z->dk, *dq = dv + z->dv;
  head->gemm = dq + z->dq;
  head->sum_dq = head->dq;
  if (!head->dq.bf16) return;
  head->sum_dk = (bk_gemm_mat){(char *)dk, head->width_k, 1, false};
  head->sum_dv = (bk_gemm_mat){(char *)dv, head->width_v, 1, false};
  head->sum_dq = (bk_gemm_mat){(char *)dq, head->width_k, 1, false};
}
static void attention_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const attention_bwd_job *job = arg;
  const bk_attention_bwd_args *a = job->a;
  for (int64_t item = begin; item < end; item++) {
    int64_t b = item / a->q.shape[2], h = item % a->q.shape[2];
    attention_bwd_head head = {
      .q = bk_cpu_attention_head(&a->q, b, h), .k = bk_cpu_attention_head(&a->k, b, h),
      .v = bk_cpu_attention_head(&a->v, b, h), .o = bk_cpu_attention_head(&a->o, b, h),
      .dout = bk_cpu_attention_head(&a->dout, b, h), .dq = bk_cpu_attention_head(&a->dq, b, h),
      .dk = bk_cpu_attention_head(&a->dk, b, h), .dv = bk_cpu_attention_head(&a->dv, b, h),
      .lse = (const float *)(const void *)bk_cpu_at2(&a->lse, b, h), .lse_stride = a->lse.stride[2],
      .t = a->q.shape[1], .width_k = a->q.shape[3], .width_v = a->v.shape[3],
    };
    attention_bwd_scratch(job, &head, job->workspace + (size_t)worker * job->sizes.worker);
    attention_bwd_walk(job, &head);
  }
}
bk_status BK_ISA_NAME(bk_cpu_attention_bwd)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_attention_bwd_args *a = args;
  attention_bwd_job job = {a, bk_cpu_attention_bwd_sizes(a), bk_cpu_gemm_engine(bk_cpu_of(stream->device)->blas, a->q.shape[1]),
                           bk_place_data(workspace)};
  (void)plan;
  bk_cpu_run(stream, a->q.shape[0] * a->q.shape[2], 1, attention_bwd_piece, &job);
  return BK_OK;
}

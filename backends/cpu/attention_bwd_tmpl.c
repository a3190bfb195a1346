/* ATTENTION_BWD; formulas in runtime/op.h, method and scratch in attention.h. Items are
 * (sequence, head): within one, blocks of keys outside, blocks of queries inside, always in the
 * same order. With p = exp(score - lse) and delta[t] = o[t] . dout[t]:
 *   dv += p^T dout;  dp = dout v^T;  ds = p (dp - delta);  dq += scale ds k;  dk += scale ds^T q.
 * Template, see cpu.h. */
#include "backends/cpu/attention_lanes.h"
#include "backends/cpu/kernels.h"

typedef struct attention_bwd_job {
  const bk_attention_bwd_args *a;
  bk_attention_sizes sizes;
  char *workspace;
} attention_bwd_job;

typedef struct attention_bwd_head {
  bk_gemm_mat q, k, v, o, dout, dq, dk, dv; /* of one sequence and head */
  const float *lse;
  int64_t lse_stride, t, width_k, width_v;
  float scale;
  float *pk, *pkt, *pv, *pq, *pqt, *pg, *pgt; /* packed, see attention.h */
  float *p, *ds, *pp, *pds, *delta, *sum_dq, *sum_dk, *sum_dv;
  int64_t begin, keys; /* the block of keys */
} attention_bwd_head;

BK_INLINE float dot_row(const char *x, const char *y, int64_t n, const bool bf) {
  bk_vf s = bk_v_zero();
  for (int64_t i = 0; i < n; i += BK_VW)
    s = s + bk_v_get(x, i, bf, n - i) * bk_v_get(y, i, bf, n - i);
  return bk_v_hsum(s);
}
static void deltas(const attention_bwd_head *head) {
  for (int64_t i = 0; i < head->t; i++) {
    const char *o = bk_cpu_gemm_sub(head->o, i, 0).data,
               *d = bk_cpu_gemm_sub(head->dout, i, 0).data;
    head->delta[i] =
        head->o.bf16 ? dot_row(o, d, head->width_v, true) : dot_row(o, d, head->width_v, false);
  }
}
/* lse or delta of a sliver of queries; lanes past the end read as 0. */
static bk_vf lanes_of(const float *x, int64_t stride, int64_t i, int64_t end) {
  float lane[BK_VW];
  bk_vf v;
  for (int l = 0; l < BK_VW; l++) lane[l] = i + l < end ? x[(i + l) * stride] : 0.f;
  memcpy(&v, lane, sizeof v);
  return v;
}
/* Scores of a sliver become p, dp becomes ds, `keys` rows; the rows up to `all` and the keys
 * that lie after their query are zero. */
static void softmax_bwd_lanes(const attention_bwd_head *head, float *p, float *ds, int64_t i,
                              int64_t keys, int64_t all) {
  for (int v = 0; v < LANE_VECTORS; v++) {
    bk_vf lse = lanes_of(head->lse, head->lse_stride, i + v * BK_VW, head->t);
    bk_vf delta = lanes_of(head->delta, 1, i + v * BK_VW, head->t);
    for (int64_t r = 0; r < keys; r++) {
      int64_t at = r * NR + v * BK_VW;
      bk_vf e = bk_v_exp(bk_v_ld(p, at, false) - lse), d = e * (bk_v_ld(ds, at, false) - delta);
      if (head->begin + r > i) {
        bk_vi allowed = lanes_allowed(v, head->begin + r - i);
        e = bk_v_select(allowed, e, bk_v_zero()), d = bk_v_select(allowed, d, bk_v_zero());
      }
      bk_v_st(p, at, false, e);
      bk_v_st(ds, at, false, d);
    }
  }
  memset(p + keys * NR, 0, (size_t)((all - keys) * NR) * sizeof *p);
  memset(ds + keys * NR, 0, (size_t)((all - keys) * NR) * sizeof *ds);
}
/* [slivers][keys, lanes] as panels of a: rows are keys, the depth is `count` queries. `step`
 * floats lie between slivers of lanes. */
static void pack_keys(const float *x, int64_t step, int64_t keys, int64_t count, float *dst) {
  for (int64_t i = 0; i < keys; i += MR)
    for (int64_t j = 0; j < count; j += NR)
      pack_turned((const char *)(x + j / NR * step + i * NR), NR, MR,
                  count - j < NR ? count - j : NR, dst + i * count + j * MR, MR, false);
}
/* One sliver of queries against the block of keys: p, ds and what it adds to dq. */
static void attend_bwd_sliver(const attention_bwd_head *head, int64_t i, int64_t j, int64_t all,
                              int64_t step) {
  float *p = head->p + j / NR * step, *ds = head->ds + j / NR * step;
  int64_t keys = keys_seen(i + j, head->begin, head->keys), rows = BK_ALIGN_UP(keys, MR),
          dk = head->width_k, dv = head->width_v;
  micro_panels(head->pk, dk * MR, rows, head->pq + j * dk, NR, dk, p, NR, head->scale, false, NULL);
  micro_panels(head->pv, dv * MR, rows, head->pg + j * dv, NR, dv, ds, NR, 1.f, false, NULL);
  softmax_bwd_lanes(head, p, ds, i + j, keys, all);
  micro_panels(head->pkt, head->keys * MR, dk, ds, NR, keys, head->sum_dq + (i + j) * dk, NR,
               head->scale, head->begin > 0, NULL);
}
/* The queries [i, i + m) against the block of keys. */
static void attend_bwd(const attention_bwd_head *head, int64_t i, int64_t m) {
  int64_t dk = head->width_k, dv = head->width_v, last = (m - 1) / NR * NR;
  int64_t all = keys_seen(i + last, head->begin, head->keys), step = BK_ALIGN_UP(all, MR) * NR;
  bk_gemm_mat q = bk_cpu_gemm_sub(head->q, i, 0), dout = bk_cpu_gemm_sub(head->dout, i, 0);
  pack_b(bk_cpu_gemm_transposed(q), m, dk, head->pq);
  pack_b(bk_cpu_gemm_transposed(dout), m, dv, head->pg);
  pack_b(q, dk, m, head->pqt);
  pack_b(dout, dv, m, head->pgt);
  for (int64_t j = 0; j < m; j += NR) attend_bwd_sliver(head, i, j, all, step);
  pack_keys(head->p, step, all, m, head->pp);
  pack_keys(head->ds, step, all, m, head->pds);
  micro_panels(head->pp, m * MR, all, head->pgt, dv, m, head->sum_dv,
               head->dv.bf16 ? dv : head->dv.rs, 1.f, true, NULL);
  micro_panels(head->pds, m * MR, all, head->pqt, dk, m, head->sum_dk,
               head->dk.bf16 ? dk : head->dk.rs, head->scale, true, NULL);
}
/* The sums of a block of keys: in the outputs themselves, or in scratch for bf16. */
static float *sums_begin(bk_gemm_mat out, int64_t rows, int64_t n, float *scratch) {
  float *sum = out.bf16 ? scratch : (float *)(void *)out.data;
  for (int64_t r = 0; r < rows; r++)
    memset(sum + r * (out.bf16 ? n : out.rs), 0, (size_t)n * sizeof *sum);
  return sum;
}
static void sums_end(const float *sum, bk_gemm_mat out, int64_t rows, int64_t n) {
  for (int64_t r = 0; out.bf16 && r < rows; r++) {
    char *to = bk_cpu_gemm_sub(out, r, 0).data;
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(to, i, true, n - i, bk_v_get(sum + r * n, i, false, n - i));
  }
}
static void attention_bwd_keys(attention_bwd_head *head, float *scratch_dk, float *scratch_dv) {
  int64_t dk = head->width_k, dv = head->width_v;
  bk_gemm_mat k = bk_cpu_gemm_sub(head->k, head->begin, 0),
              v = bk_cpu_gemm_sub(head->v, head->begin, 0);
  bk_gemm_mat out_dk = bk_cpu_gemm_sub(head->dk, head->begin, 0),
              out_dv = bk_cpu_gemm_sub(head->dv, head->begin, 0);
  pack_a(k, head->keys, dk, head->pk);
  pack_a(bk_cpu_gemm_transposed(k), dk, head->keys, head->pkt);
  pack_a(v, head->keys, dv, head->pv);
  head->sum_dk = sums_begin(out_dk, head->keys, dk, scratch_dk);
  head->sum_dv = sums_begin(out_dv, head->keys, dv, scratch_dv);
  for (int64_t i = head->begin; i < head->t; i += BK_ATT_BWD_BQ)
    attend_bwd(head, i, head->t - i < BK_ATT_BWD_BQ ? head->t - i : BK_ATT_BWD_BQ);
  sums_end(head->sum_dk, out_dk, head->keys, dk);
  sums_end(head->sum_dv, out_dv, head->keys, dv);
}
static void attention_bwd_item(const attention_bwd_job *job, attention_bwd_head *head, float *at) {
  const bk_attention_sizes *z = &job->sizes;
  head->pk = at, head->pkt = head->pk + z->k, head->pv = head->pkt + z->kt,
  head->pq = head->pv + z->v;
  head->pqt = head->pq + z->q, head->pg = head->pqt + z->qt, head->pgt = head->pg + z->g,
  head->p = head->pgt + z->gt;
  head->ds = head->p + z->p, head->pp = head->ds + z->p, head->pds = head->pp + z->p,
  head->delta = head->pds + z->p;
  head->sum_dq = head->delta + z->rows;
  float *dk = head->sum_dq + z->dq, *dv = dk + z->dk;
  deltas(head);
  for (head->begin = 0; head->begin < head->t; head->begin += BK_ATT_BK) {
    head->keys = head->t - head->begin < BK_ATT_BK ? head->t - head->begin : BK_ATT_BK;
    attention_bwd_keys(head, dk, dv);
  }
  for (int64_t j = 0; j < head->t; j += NR)
    store_turned(head->sum_dq + j * head->width_k, head->width_k,
                 head->t - j < NR ? head->t - j : NR, bk_cpu_gemm_sub(head->dq, j, 0), head->pq);
}
static void attention_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const attention_bwd_job *job = arg;
  const bk_attention_bwd_args *a = job->a;
  for (int64_t item = begin; item < end; item++) {
    int64_t b = item / a->q.shape[2], h = item % a->q.shape[2];
    attention_bwd_head head = {
        .q = bk_cpu_attention_head(&a->q, b, h),
        .k = bk_cpu_attention_head(&a->k, b, h),
        .v = bk_cpu_attention_head(&a->v, b, h),
        .o = bk_cpu_attention_head(&a->o, b, h),
        .dout = bk_cpu_attention_head(&a->dout, b, h),
        .dq = bk_cpu_attention_head(&a->dq, b, h),
        .dk = bk_cpu_attention_head(&a->dk, b, h),
        .dv = bk_cpu_attention_head(&a->dv, b, h),
        .lse = (const float *)(const void *)bk_cpu_at2(&a->lse, b, h),
        .lse_stride = a->lse.stride[2],
        .t = a->q.shape[1],
        .width_k = a->q.shape[3],
        .width_v = a->v.shape[3],
        .scale = (float)a->scale,
    };
    attention_bwd_item(job, &head,
                       (float *)(void *)(job->workspace + (size_t)worker * job->sizes.worker));
  }
}
bk_status BK_ISA_NAME(bk_cpu_attention_bwd)(bk_stream *stream, const bk_plan *plan,
                                            const void *args, bk_place workspace) {
  const bk_attention_bwd_args *a = args;
  attention_bwd_job job = {a, bk_cpu_attention_bwd_sizes(a), bk_place_data(workspace)};
  (void)plan;
  bk_cpu_run(stream, a->q.shape[0] * a->q.shape[2], 1, attention_bwd_piece, &job);
  return BK_OK;
}

/* EMBED, EMBED_BWD, PERMUTE, UNPERMUTE, UNPERMUTE_BWD: rows moved by index; formulas in
 * runtime/op.h. Template, see cpu.h. */
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"

BK_INLINE const int32_t *int_row(const bk_tensor *t, int64_t i) {
  return (const int32_t *)(const void *)bk_cpu_at(t, i);
}

/* ---- embed ---- */
static void embed_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_embed_args *a = arg;
  size_t bytes = (size_t)a->y.shape[1] * bk_dtype_size(a->y.dtype);
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    memcpy(bk_cpu_at(&a->y, i), bk_cpu_at(&a->table, *int_row(&a->ids, i)), bytes);
}
bk_status BK_ISA_NAME(bk_cpu_embed)(bk_stream *stream, const bk_plan *plan, const void *args,
                                    bk_place workspace) {
  const bk_embed_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->y.shape[0], bk_cpu_grain(8 * a->y.shape[1]), embed_piece, a);
  return BK_OK;
}

/* ---- embed_bwd: items are slices of 64 columns; within one, tokens in order ---- */
#define EMBED_SLICE 64
BK_INLINE void embed_bwd_slice(const bk_embed_bwd_args *a, int64_t first, int64_t n,
                               const bool bf) {
  for (int64_t r = 0; r < a->dy.shape[0]; r++) {
    const char *dy = bk_cpu_at(&a->dy, r) + (size_t)first * (bf ? 2 : 4);
    float *dw = (float *)(void *)bk_cpu_at(&a->dtable, *int_row(&a->ids, r)) + first;
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(dw, i, false, n - i, bk_v_get(dw, i, false, n - i) + bk_v_get(dy, i, bf, n - i));
  }
}
static void embed_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_embed_bwd_args *a = arg;
  (void)worker;
  for (int64_t s = begin; s < end; s++) {
    int64_t first = s * EMBED_SLICE, left = a->dy.shape[1] - first;
    int64_t n = left < EMBED_SLICE ? left : EMBED_SLICE;
    if (bk_cpu_is_bf16(&a->dy)) embed_bwd_slice(a, first, n, true);
    else embed_bwd_slice(a, first, n, false);
  }
}
bk_status BK_ISA_NAME(bk_cpu_embed_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                        bk_place workspace) {
  const bk_embed_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, bk_cpu_pieces(a->dy.shape[1], EMBED_SLICE), 1, embed_bwd_piece, a);
  return BK_OK;
}

/* ---- permute ---- */
static void permute_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_permute_args *a = arg;
  size_t bytes = (size_t)a->y.shape[1] * bk_dtype_size(a->y.dtype);
  (void)worker;
  for (int64_t r = begin; r < end; r++)
    memcpy(bk_cpu_at(&a->y, r), bk_cpu_at(&a->x, *int_row(&a->order, r) / a->k), bytes);
}
bk_status BK_ISA_NAME(bk_cpu_permute)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_permute_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->y.shape[0], bk_cpu_grain(8 * a->y.shape[1]), permute_piece, a);
  return BK_OK;
}

/* ---- unpermute: blocks of four vectors ---- */
#define UNPERMUTE_BLOCK (4 * BK_VW)
BK_INLINE void unpermute_block(const bk_unpermute_args *a, const int32_t *row_of, const float *w,
                               char *y, int64_t first, const int64_t n, int64_t k, const bool bf) {
  bk_vf s[4];
  for (int q = 0; q < 4; q++)
    s[q] = a->accumulate && q * BK_VW < n ? bk_v_get(y, first + q * BK_VW, bf, n - q * BK_VW)
                                          : bk_v_zero();
  for (int64_t j = 0; j < k; j++) {
    const char *x = bk_cpu_at(&a->x, row_of[j]);
    bk_vf factor = bk_v_set(w ? w[j] : 1.f);
    for (int q = 0; q < 4; q++)
      if (q * BK_VW < n)
        s[q] = bk_v_fma(bk_v_get(x, first + q * BK_VW, bf, n - q * BK_VW), factor, s[q]);
  }
  for (int q = 0; q < 4; q++)
    if (q * BK_VW < n) bk_v_put(y, first + q * BK_VW, bf, n - q * BK_VW, s[q]);
}
BK_INLINE void unpermute_rows(const bk_unpermute_args *a, int64_t begin, int64_t end,
                              const bool bf) {
  int64_t n = a->y.shape[1], k = a->row_of.shape[1];
  for (int64_t r = begin; r < end; r++) {
    const int32_t *row_of = int_row(&a->row_of, r);
    const float *w = bk_tensor_present(&a->weights)
                         ? (const float *)(const void *)bk_cpu_at(&a->weights, r)
                         : NULL;
    char *y = bk_cpu_at(&a->y, r);
    for (int64_t i = 0; i < n; i += UNPERMUTE_BLOCK) {
      if (n - i >= UNPERMUTE_BLOCK) unpermute_block(a, row_of, w, y, i, UNPERMUTE_BLOCK, k, bf);
      else unpermute_block(a, row_of, w, y, i, n - i, k, bf);
    }
  }
}
static void unpermute_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_unpermute_args *a = arg;
  (void)worker;
  if (bk_cpu_is_bf16(&a->y)) unpermute_rows(a, begin, end, true);
  else unpermute_rows(a, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_unpermute)(bk_stream *stream, const bk_plan *plan, const void *args,
                                        bk_place workspace) {
  const bk_unpermute_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->y.shape[0], bk_cpu_grain(4 * a->y.shape[1] * (a->row_of.shape[1] + 1)),
             unpermute_piece, a);
  return BK_OK;
}

/* ---- unpermute_bwd: dx may alias x, so each vector of x is read before dx is written ---- */
BK_INLINE float unpermute_bwd_row(const char *x, const char *dy, float w, char *dx, int64_t n,
                                  const bool bf) {
  bk_vf s = bk_v_zero();
  for (int64_t i = 0; i < n; i += BK_VW) {
    bk_vf g = bk_v_get(dy, i, bf, n - i);
    s = bk_v_fma(bk_v_get(x, i, bf, n - i), g, s);
    bk_v_put(dx, i, bf, n - i, g * w);
  }
  return bk_v_hsum(s);
}
BK_INLINE void unpermute_bwd_rows(const bk_unpermute_bwd_args *a, int64_t begin, int64_t end,
                                  const bool bf) {
  for (int64_t r = begin; r < end; r++) {
    const int32_t *row_of = int_row(&a->row_of, r);
    const float *w = (const float *)(const void *)bk_cpu_at(&a->weights, r);
    float *dw = (float *)(void *)bk_cpu_at(&a->dweights, r);
    for (int64_t j = 0; j < a->row_of.shape[1]; j++)
      dw[j] = unpermute_bwd_row(bk_cpu_at(&a->x, row_of[j]), bk_cpu_at(&a->dy, r), w[j],
                                bk_cpu_at(&a->dx, row_of[j]), a->dy.shape[1], bf);
  }
}
static void unpermute_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_unpermute_bwd_args *a = arg;
  (void)worker;
  if (bk_cpu_is_bf16(&a->dy)) unpermute_bwd_rows(a, begin, end, true);
  else unpermute_bwd_rows(a, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_unpermute_bwd)(bk_stream *stream, const bk_plan *plan,
                                            const void *args, bk_place workspace) {
  const bk_unpermute_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->dy.shape[0], bk_cpu_grain(8 * a->dy.shape[1] * a->row_of.shape[1]),
             unpermute_bwd_piece, a);
  return BK_OK;
}

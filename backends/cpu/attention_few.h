/* Attention of at most BK_GEMM_FEW queries, as in decoding: every key and value is read once and
 * not packed. Included by attention_tmpl.c. */
#ifndef BK_CPU_ATTENTION_FEW_H
#define BK_CPU_ATTENTION_FEW_H

#define TILE BK_ISA_NAME(bk_cpu_gemm_tile)

/* The running softmax of one block of queries. */
typedef struct few_block {
  float *scores, *out, *max, *sum, *gemm;
  int64_t rows, first; /* queries, absolute position of the first */
} few_block;

/* One row of scores, `keys` of them allowed, `width` in all: scores become exp(score - max),
 * zero where not allowed. Returns the factor that makes earlier sums relative to the new
 * maximum. */
static float few_softmax(float *s, int64_t keys, int64_t width, float *max, float *sum) {
  int64_t padded = BK_ALIGN_UP(width, BK_VW);
  bk_vf best = bk_v_set(*max), total = bk_v_zero();
  for (int64_t j = keys; j < padded; j++) s[j] = -INFINITY;
  for (int64_t j = 0; j < keys; j += BK_VW) best = bk_v_max(best, bk_v_ld(s, j, false));
  float m = bk_v_hmax(best), factor = expf(*max - m);
  for (int64_t j = 0; j < padded; j += BK_VW) {
    bk_vf p = bk_v_exp(bk_v_ld(s, j, false) - m);
    total = total + p;
    bk_v_st(s, j, false, p);
  }
  *max = m;
  *sum = *sum * factor + bk_v_hsum(total);
  return factor;
}
static void scale_row(float *x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += BK_VW)
    bk_v_put(x, i, false, n - i, bk_v_get(x, i, false, n - i) * factor);
}
/* Adds the keys [begin, begin + width). */
static void few_keys(const attention_job *job, few_block *block, bk_gemm_mat q, bk_gemm_mat k,
                     bk_gemm_mat v, int64_t begin, int64_t width) {
  const bk_attention_args *a = job->a;
  int64_t dk = a->q.shape[3], dv = a->v.shape[3];
  bk_gemm_mat scores = {(char *)block->scores, BK_ATT_FEW_BK, 1, false},
              out = {(char *)block->out, dv, 1, false};
  bk_gemm_mat keys = bk_cpu_gemm_transposed(bk_cpu_gemm_sub(k, begin, 0));
  TILE(BK_GEMM_DIRECT, q, keys, scores, (bk_gemm_shape){block->rows, width, dk}, (float)a->scale,
       false, block->gemm);
  for (int64_t i = 0; i < block->rows; i++) {
    int64_t allowed = block->first + i - begin + 1;
    if (allowed > width) allowed = width;
    if (allowed < 0) allowed = 0;
    float factor = few_softmax(block->scores + i * BK_ATT_FEW_BK, allowed, width, block->max + i,
                               block->sum + i);
    if (begin > 0 && factor != 1.f) scale_row(block->out + i * dv, dv, factor);
  }
  TILE(BK_GEMM_DIRECT, scores, bk_cpu_gemm_sub(v, begin, 0), out,
       (bk_gemm_shape){block->rows, dv, width}, 1.f, begin > 0, block->gemm);
}
BK_INLINE void store_row(const float *x, float factor, char *o, int64_t n, const bool bf) {
  for (int64_t i = 0; i < n; i += BK_VW)
    bk_v_put(o, i, bf, n - i, bk_v_get(x, i, false, n - i) * factor);
}
static void few_store(const attention_job *job, const few_block *block, int64_t b, int64_t h,
                      int64_t t) {
  const bk_attention_args *a = job->a;
  int64_t dv = a->v.shape[3];
  bk_gemm_mat o = bk_cpu_gemm_sub(bk_cpu_attention_head(&a->o, b, h), t, 0);
  for (int64_t i = 0; i < block->rows; i++) {
    const float *x = block->out + i * dv;
    char *row = bk_cpu_gemm_sub(o, i, 0).data;
    if (o.bf16) store_row(x, 1.f / block->sum[i], row, dv, true);
    else store_row(x, 1.f / block->sum[i], row, dv, false);
    if (bk_tensor_present(&a->lse))
      ((float *)(void *)bk_cpu_at2(&a->lse, b, h))[(t + i) * a->lse.stride[2]] =
          (float)(block->max[i] + log(block->sum[i]));
  }
}
static void few_item(const attention_job *job, int64_t b, int64_t h, int64_t t, char *scratch) {
  const bk_attention_args *a = job->a;
  const bk_attention_sizes *z = &job->sizes;
  int64_t left = a->q.shape[1] - t, rows = left < BK_GEMM_FEW ? left : BK_GEMM_FEW;
  few_block block = {.scores = (float *)(void *)scratch, .rows = rows, .first = job->past + t};
  block.out = block.scores + z->scores;
  block.max = block.out + z->out;
  block.sum = block.max + z->rows;
  block.gemm = block.sum + z->rows;
  for (int64_t i = 0; i < rows; i++) block.max[i] = -INFINITY, block.sum[i] = 0;
  int64_t end = job->past + t + rows;
  if (end > a->k.shape[1]) end = a->k.shape[1];
  bk_gemm_mat q = bk_cpu_gemm_sub(bk_cpu_attention_head(&a->q, b, h), t, 0);
  bk_gemm_mat k = bk_cpu_attention_head(&a->k, b, h), v = bk_cpu_attention_head(&a->v, b, h);
  for (int64_t begin = 0; begin < end; begin += BK_ATT_FEW_BK)
    few_keys(job, &block, q, k, v, begin,
             end - begin < BK_ATT_FEW_BK ? end - begin : BK_ATT_FEW_BK);
  few_store(job, &block, b, h, t);
}

#endif

/* What the attention kernels share: views of [B,T,H,D] tensors, the order in which blocks take
 * their tiles, the first pass of the backward.
 *
 * Scores live in the exponent of 2: p = exp2(scale log2(e) q.k - m). `exponent` is scale
 * log2(e). */
#ifndef BK_CUDA_ATTENTION_CUH
#define BK_CUDA_ATTENTION_CUH

#include "backends/cuda/kernels/attention.h"
#include "backends/cuda/kernels/ptx.cuh"

#define BK_ATT_LOG2E 1.4426950408889634
#define BK_ATT_PAD 64 /* rows of the backward's workspace are padded to a multiple of it */

/* Choices by shapes alone (reckoned, not measured), which the tests move so that the harness'
 * small cases come to all kernels. */
#ifdef BK_CUDA_ON_HOST /* where so many blocks would take minutes */
#define BK_ATT_LARGE_FROM (getenv("BK_CUDA_LARGE_TILES") ? 1 : 256)
#else
#define BK_ATT_LARGE_FROM 256 /* blocks of 128 rows that make tiles of 128 worth it; else 64 */
#endif
#ifndef BK_ATT_FEW
#define BK_ATT_FEW 8 /* queries that attention_decode.cu takes */
#endif

/* Rows of one head of one sequence. */
template <class T>
struct bk_att_rows {
  T *at;
  int64_t stride; /* elements from one position to the next */
  int width;
};

/* A [B,T,H,D] tensor with dense rows. */
template <class T>
struct bk_att_view {
  T *data;
  int64_t b, t, h; /* strides in elements */
  int width;
  __device__ __forceinline__ bk_att_rows<T> head(int sequence, int head) const {
    return {data + sequence * b + head * h, t, width};
  }
};
template <class T>
static inline bk_att_view<T> bk_att_view_of(const bk_tensor *t) {
  return {(T *)bk_cuda_data(t), t->stride[0], t->stride[1], t->stride[2], (int)t->shape[3]};
}

/* lse [B,H,T]; data is NULL where it is not wanted. */
struct bk_att_lse {
  float *data;
  int64_t b, h;
  __device__ __forceinline__ float *row(int sequence, int head) const {
    return data + sequence * b + head * h;
  }
};
static inline bk_att_lse bk_att_lse_of(const bk_tensor *t) {
  return {(float *)bk_cuda_data(t), t->stride[0], t->stride[1]};
}

/* ---- which tile a block takes ---- The grid is one-dimensional. `group` heads are taken
 * together, and within a group the longest tiles of all its heads come first: the keys and
 * values of a group stay in the second cache, and short tiles fill the end. */
struct bk_att_order {
  int tiles, heads, pairs, group; /* tiles of a head; H; B H; heads taken together */
  /* the last tile is the longest one (tiles of queries), or the first (of keys) */
  bool last_first;
};
struct bk_att_tile {
  int b, h, pair, tile;
};
#define BK_ATT_GROUP_BYTES (12 << 20)
static inline bk_att_order bk_att_order_of(const bk_tensor *q, int64_t tiles, int64_t head_bytes,
                                           bool last_first) {
  const int64_t fits = head_bytes > 0 ? BK_ATT_GROUP_BYTES / head_bytes : 1;
  return {(int)tiles, (int)q->shape[2], (int)(q->shape[0] * q->shape[2]),
          (int)(fits < 1    ? 1
                : fits < 64 ? fits
                            : 64),
          last_first};
}
static inline unsigned bk_att_blocks(bk_att_order o) {
  return (unsigned)o.tiles * (unsigned)o.pairs;
}
BK_DEVICE bk_att_tile bk_att_find(bk_att_order o) {
  const unsigned per_group = (unsigned)o.tiles * (unsigned)o.group, group = blockIdx.x / per_group,
                 at = blockIdx.x % per_group;
  const int first = (int)group * o.group, heads = min(o.group, o.pairs - first),
            turn = (int)at / heads;
  const int pair = first + (int)at % heads;
  return {pair / o.heads, pair % o.heads, pair, o.last_first ? o.tiles - 1 - turn : turn};
}

/* Host: sizes that the kernels' 32-bit counts hold. */
static inline bool bk_att_counts_fit(const bk_tensor *q, const bk_tensor *k) {
  return k->shape[1] < (1 << 30) && q->shape[1] < (1 << 30) &&
         /* the smallest tile is 16 rows */
         q->shape[0] * q->shape[2] * (bk_ceil_div(q->shape[1], 16) + 4) < (int64_t)1 << 31;
}

/* ---- keys that a query sees ---- */
struct bk_att_span {
  int past, keys; /* query t sees keys 0 .. min(past + t, keys - 1) */
};
BK_DEVICE bk_att_span bk_att_span_of(const int *past, int queries, int positions) {
  const int before = past ? *past : 0;
  return {before, min(before + queries, positions)};
}

/* ---- workspace of the backward: two rows of floats a head, padded with zeros to BK_ATT_PAD
 * positions. lse2 = lse log2(e), delta = o . dout. A padded query has zeros for q and dout too,
 * so that it adds zeros. ---- */
static inline int64_t bk_att_padded(int64_t t) { return bk_ceil_div(t, BK_ATT_PAD) * BK_ATT_PAD; }
static inline size_t bk_att_bwd_bytes(const bk_attention_bwd_args *a) {
  return (size_t)(2 * a->q.shape[0] * a->q.shape[2] * bk_att_padded(a->q.shape[1])) * sizeof(float);
}
/* attention_simt.cu: fills them. Floor: o and dout once. */
extern "C" void bk_cuda_attention_delta(bk_stream *stream, const bk_attention_bwd_args *a,
                                        float *lse2, float *delta);

#endif

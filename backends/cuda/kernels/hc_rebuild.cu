/* The fused slot HC_REBUILD: the streams and the sublayer inputs of a block of sublayers, from its first x, the kept f and maps.
 *
 * A block a token, through all layers. A thread has the channels that it has in HC_PRE_NORM, of all n streams, in registers as they are
 * stored (bk_hc_kept accesses; what a row has beyond that is read back, each thread what it wrote itself), so the streams are read once.
 * The token's maps of all layers are read at the start, into shared memory; f of a layer is asked for before the layer's norm, whose
 * barrier it crosses, and is there for the merge behind it. The arithmetic is hc_token.cuh's: every bit is that of HC_PRE_NORM and
 * HC_POST_RES, as long as all operands are aligned or none is.
 *
 * Floor, in rows of C elements a token: n read, then a layer 2 written (y, h), and between two layers 1 read (f) and n written. With n = 4
 * and 4 layers 27, where the ops one by one move 51. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_token.cuh"

namespace {

constexpr int kept = bk_hc_kept, most_threads = bk_hc_norm_threads, most_layers = BK_HC_REBUILD_MAX;

template <class T> struct layer_operands {
  bk_wide<T> x;
  bk_rows<T> f, y, h;
  bk_rows<float> pre, post, comb; /* comb: [N, n*n] */
  const float *w;
  float *rstd;
};
template <class T> struct operands {
  layer_operands<T> layer[most_layers];
  int64_t width;
  int layers, n;
  float eps;
};

/* A layer's maps; rows of comb are M long. */
template <int M> struct layer_maps {
  float pre[M], post[M], comb[M * M];
};

template <class T, int M, bool MIX> BK_DEVICE void load_maps(const operands<T> &o, int n, int64_t token, layer_maps<M> *maps) {
  for (int l = 0; l < o.layers; l++) {
    const layer_operands<T> &at = o.layer[l];
    const int i = (int)threadIdx.x;
    if (i < n) maps[l].pre[i] = at.pre.row(token)[i];
    if (l + 1 == o.layers) break;
    if (i < n) maps[l].post[i] = at.post.row(token)[i];
    for (int j = i; MIX && j < n * n; j += (int)blockDim.x) maps[l].comb[j / n * M + j % n] = at.comb.row(token)[j];
  }
}

/* y of the streams x at channel c, stored and returned as it is stored. */
template <class T, int V, int M>
BK_DEVICE bk_raw<T, V> collapse(const layer_operands<T> &at, const bk_raw<T, V> (&x)[M], int n, int64_t token, int64_t c, const float (&pre)[M]) {
  const bk_raw<T, V> y = bk_hc_collapse(x, n, pre);
  bk_raw_store<T, V>(at.y.row(token) + c, y);
  return y;
}

template <class T, int V>
BK_DEVICE void store_normed(const layer_operands<T> &at, int64_t token, int64_t c, const bk_raw<T, V> &y, float rstd) {
  bk_raw_store<T, V>(at.h.row(token) + c, bk_hc_normed(y, rstd, at.w + c));
}

/* The streams x at channel c become those of the layer to come, and are stored. Channel by channel: in place with few registers. */
template <class T, int V, int M, bool MIX>
BK_DEVICE void merge(const layer_operands<T> &to, bk_raw<T, V> (&x)[M], const bk_raw<T, V> &f, int n, int64_t token, int64_t c, const float *comb,
                     const float *post) {
  constexpr int words = sizeof(x[0].w) / sizeof(x[0].w[0]), per_word = V / words;
#pragma unroll
  for (int j = 0; j < words; j++) {
    float out[M][per_word];
#pragma unroll
    for (int p = 0; p < per_word; p++) {
      float at[M];
#pragma unroll
      for (int m = 0; m < M; m++) at[m] = m < n ? bk_raw_get(x[m], j * per_word + p) : 0.f;
#pragma unroll
      for (int k = 0; k < M; k++)
        if (k < n) out[k][p] = bk_hc_merge<MIX, true>(at, bk_raw_get(f, j * per_word + p), n, k, comb, post);
    }
#pragma unroll
    for (int k = 0; k < M; k++)
      if (k < n) x[k].w[j] = bk_raw_of<T, per_word>(out[k]).w[0];
  }
#pragma unroll
  for (int k = 0; k < M; k++)
    if (k < n) bk_raw_store<T, V>(to.x.row(token, k) + c, x[k]);
}

/* Norm and merge of what a row has beyond the registers. */
template <class T, int V, int M, bool MIX>
BK_DEVICE void finish_beyond(const operands<T> &o, int l, int n, int64_t token, int64_t begin, float rstd, const layer_maps<M> &maps) {
  for (int64_t c = begin; c < o.width; c += (int64_t)blockDim.x * V) {
    bk_raw<T, V> x[M];
    store_normed(o.layer[l], token, c, bk_raw_load<T, V>(o.layer[l].y.row(token) + c), rstd);
    if (l + 1 == o.layers) continue;
    bk_hc_load_streams(o.layer[l].x, n, token, c, x);
    merge<T, V, M, MIX>(o.layer[l + 1], x, bk_raw_load<T, V>(o.layer[l].f.row(token) + c), n, token, c, maps.comb, maps.post);
  }
}

/* ---- the kernel ---- */

template <class T, int V, int N, bool MIX> __global__ void __launch_bounds__(most_threads, 1) rebuild_kernel(operands<T> o) {
  constexpr int M = BK_HC_STREAMS(N);
  __shared__ float shared[BK_WARP];
  __shared__ layer_maps<M> maps[most_layers];
  const int n = N > 0 ? N : o.n;
  const int64_t token = blockIdx.x, step = (int64_t)blockDim.x * V, first = (int64_t)threadIdx.x * V;
  bk_raw<T, V> x[kept][M];
#pragma unroll
  for (int i = 0; i < kept; i++)
    if (first + i * step < o.width) bk_hc_load_streams(o.layer[0].x, n, token, first + i * step, x[i]);
  load_maps<T, M, MIX>(o, n, token, maps);
  __syncthreads();
  for (int l = 0; l < o.layers; l++) {
    const layer_operands<T> &at = o.layer[l];
    bk_raw<T, V> y[kept], f[kept];
    float pre[M], sum = 0;
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (l + 1 < o.layers && first + i * step < o.width) f[i] = bk_raw_load<T, V>(at.f.row(token) + first + i * step);
#pragma unroll
    for (int m = 0; m < M; m++) pre[m] = m < n ? maps[l].pre[m] : 0.f;
#pragma unroll
    for (int i = 0; i < kept; i++) {
      if (first + i * step >= o.width) continue;
      y[i] = collapse(at, x[i], n, token, first + i * step, pre);
      sum += bk_hc_squares(y[i]);
    }
    for (int64_t c = first + kept * step; c < o.width; c += step) {
      bk_raw<T, V> in[M];
      bk_hc_load_streams(at.x, n, token, c, in);
      sum += bk_hc_squares(collapse(at, in, n, token, c, pre));
    }
    const float rstd = bk_hc_rstd(sum, o.width, o.eps, shared);
    if (threadIdx.x == 0) at.rstd[token] = rstd;
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (first + i * step < o.width) store_normed(at, token, first + i * step, y[i], rstd);
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (l + 1 < o.layers && first + i * step < o.width)
        merge<T, V, M, MIX>(o.layer[l + 1], x[i], f[i], n, token, first + i * step, maps[l].comb, maps[l].post);
    finish_beyond<T, V, M, MIX>(o, l, n, token, first + kept * step, rstd, maps[l]);
  }
}

/* ---- launches ---- */

template <class T, int N, int PACKED, bool MIX> void start(bk_stream *stream, const operands<T> &o, int64_t tokens) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  BK_LAUNCH((rebuild_kernel<T, V, N, MIX>), (unsigned)tokens, bk_hc_token_threads(o.width / V, most_threads), 0, bk_cuda_raw(stream), o);
}

/* Whether all rows can be read by packs; fills in the layer. */
template <class T> bool set_layer(const bk_hc_rebuild_layer *l, bool last, layer_operands<T> *at) {
  at->x = bk_wide_of<T>(&l->x), at->y = bk_rows_of<T>(&l->y), at->h = bk_rows_of<T>(&l->h), at->pre = bk_rows_of<float>(&l->pre);
  at->w = (const float *)bk_cuda_data(&l->w), at->rstd = (float *)bk_cuda_data(&l->rstd);
  const bool packed = bk_packs_fit(&l->x) && bk_packs_fit(&l->y) && bk_packs_fit(&l->h) && l->w.offset % 16 == 0;
  if (last) return packed;
  at->f = bk_rows_of<T>(&l->f), at->post = bk_rows_of<float>(&l->post);
  if (bk_tensor_present(&l->comb)) at->comb = bk_rows_of<float>(&l->comb);
  return packed && bk_packs_fit(&l->f);
}

template <class T> void launch(bk_stream *stream, const bk_hc_rebuild_args *a) {
  const bk_tensor *x = &a->layer[0].x;
  const bool mix = bk_tensor_present(&a->layer[0].comb);
  operands<T> o = {};
  bool packed = true;
  for (int i = 0; i < a->layers; i++) packed = set_layer(&a->layer[i], i + 1 == a->layers, &o.layer[i]) && packed;
  o.width = x->shape[2], o.layers = a->layers, o.n = (int)x->shape[1], o.eps = (float)a->eps;
  if (x->shape[0] == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    if (mix) start<T, decltype(n)::value, decltype(by_packs)::value, true>(stream, o, x->shape[0]);
    else start<T, decltype(n)::value, decltype(by_packs)::value, false>(stream, o, x->shape[0]);
  });
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_rebuild) {
  const bk_hc_rebuild_args *a = (const bk_hc_rebuild_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->layer[0].x.dtype, launch, (stream, a));
  return bk_cuda_end(stream);
}

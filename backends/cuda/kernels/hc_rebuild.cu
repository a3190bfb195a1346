/* The fused op HC_REBUILD: the streams and the sublayer inputs of a block of sublayers, from
 * its first x, the kept f and maps.
 *
 * A block a token, through all layers. A thread has the channels that it has in HC_PRE_NORM, of
 * all n streams, in registers as they are stored, so the streams are read once. The token's maps
 * of all layers are read at the start, into shared memory. f of a layer is fetched into shared
 * memory while the layer is collapsed and normed, and is there for the merge behind that; y
 * waits there for its norm, which leaves the registers to the streams (64 of the 128 with which
 * two blocks of a row of 7168 in bf16 are on a multiprocessor at a time). The arithmetic is
 * hc_token.cuh's: every bit is that of HC_PRE_NORM and HC_POST_RES, as long as all operands are
 * aligned or none is.
 *
 * Floor, in rows of C elements a token: n read, then a layer 2 written (y, h), and between two
 * layers 1 read (f) and n written. With n = 4 and 4 layers 27, where the ops one by one move 51.
 * Rows that the registers do not hold go one by one. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_token.cuh"
#include "backends/cuda/kernels/ptx.cuh"

namespace {

constexpr int kept = bk_hc_kept, most_threads = bk_hc_norm_threads, most_layers = BK_HC_REBUILD_MAX;

template <class T>
struct layer_operands {
  bk_wide<T> x;
  bk_rows<T> f, y, h;
  bk_rows<float> pre, post, comb; /* comb: [N, n*n] */
  const float *w;
  float *rstd;
};
template <class T>
struct operands {
  layer_operands<T> layer[most_layers];
  int width, layers, n;
  float eps;
};

/* A layer's maps; comb by columns. */
template <int M>
struct layer_maps {
  float comb[M][M], pre[M], post[M];
};

template <class T, int M, bool MIX>
BK_DEVICE void load_maps(const operands<T> &o, int n, int64_t token, layer_maps<M> *maps) {
  for (int l = 0; l < o.layers; l++) {
    const layer_operands<T> &at = o.layer[l];
    const int i = (int)threadIdx.x;
    if (i < n) maps[l].pre[i] = at.pre.row(token)[i];
    if (l + 1 == o.layers) break;
    if (i < n) maps[l].post[i] = at.post.row(token)[i];
    for (int j = i; MIX && j < n * n; j += (int)blockDim.x)
      maps[l].comb[j % n][j / n] = at.comb.row(token)[j];
  }
}

/* Nothing is known of x any more: what the compiler took apart before, it takes apart again
 * instead of keeping it. */
BK_DEVICE void unknown(uint32_t &x) { x = (uint32_t)bk_fresh((int)x); }

/* The streams at some channels become those of the next layer, word by word: in place with few
 * registers. */
template <class T, int V, int M, bool MIX>
BK_DEVICE void merge(bk_raw<T, V> (&x)[M], const bk_raw<T, V> &f, int n,
                     const layer_maps<M> &maps) {
  constexpr int words = sizeof(x[0].w) / sizeof(x[0].w[0]), per_word = V / words;
#pragma unroll
  for (int j = 0; j < words; j++) {
    float at[per_word][M], out[per_word];
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (m < n) unknown(x[m].w[j]);
#pragma unroll
      for (int p = 0; p < per_word; p++)
        at[p][m] = m < n ? bk_raw_get(x[m], j * per_word + p) : 0.f;
    }
#pragma unroll
    for (int k = 0; k < M; k++) {
      if (k >= n) continue;
#pragma unroll
      for (int p = 0; p < per_word; p++)
        out[p] = bk_hc_merge<MIX, true>(at[p], bk_raw_get(f, j * per_word + p), n, k, maps.comb[k],
                                        maps.post[k]);
      x[k].w[j] = bk_raw_of<T, per_word>(out).w[0];
    }
  }
}

/* Into shared memory. */
template <class T, int V>
BK_DEVICE void put(T *to, const bk_raw<T, V> &r) {
  if constexpr (sizeof(T) * V == 16)
    *reinterpret_cast<uint4 *>(to) = make_uint4(r.w[0], r.w[1], r.w[2], r.w[3]);
  else bk_raw_store<T, V>(to, r);
}
/* f on its way there. */
template <class T, int V>
BK_DEVICE void fetch(T *to, const T *from) {
  if constexpr (sizeof(T) * V == 16) bk_cp_async_16(to, from);
  else put<T, V>(to, bk_raw_load<T, V>(from));
}

/* ---- the kernel ---- */

template <class T, int V, int N, bool MIX>
__global__ void __launch_bounds__(most_threads, 1) rebuild_kernel(operands<T> o) {
  constexpr int M = BK_HC_STREAMS(N);
  /* f of the layer and its y, [kept][threads][V] each: a thread reads what it wrote itself */
  BK_SHARED_DYNAMIC(T, fs);
  __shared__ float shared[BK_WARP];
  __shared__ __align__(16) layer_maps<M> maps[most_layers];
  const int n = N > 0 ? N : o.n, step = (int)blockDim.x * V, start = (int)threadIdx.x * V;
  const int64_t token = blockIdx.x;
  T *ys = fs + kept * step;
  bk_raw<T, V> x[kept][M];
#pragma unroll
  for (int i = 0; i < kept; i++)
    if (start + i * step < o.width)
      bk_hc_load_streams(o.layer[0].x, n, token, start + i * step, x[i]);
  load_maps<T, M, MIX>(o, n, token, maps);
  __syncthreads();
  for (int l = 0; l < o.layers; l++) {
    const layer_operands<T> &at = o.layer[l];
    const bool last = l + 1 == o.layers;
    float pre[M], sum = 0;
    int first = bk_fresh(start);
#pragma unroll
    for (int i = 0; i < kept; i++)
      if (!last && first + i * step < o.width)
        fetch<T, V>(fs + first + i * step, at.f.row(token) + first + i * step);
    bk_cp_async_commit();
#pragma unroll
    for (int m = 0; m < M; m++) pre[m] = m < n ? maps[l].pre[m] : 0.f;
#pragma unroll
    for (int i = 0; i < kept; i++) {
      if (first + i * step >= o.width) continue;
      const bk_raw<T, V> y = bk_hc_collapse(x[i], n, pre);
      put<T, V>(ys + first + i * step, y);
      bk_raw_store<T, V>(at.y.row(token) + first + i * step, y);
      sum += bk_hc_squares(y);
    }
    const float rstd = bk_hc_rstd(sum, o.width, o.eps, shared);
    if (threadIdx.x == 0) at.rstd[token] = rstd;
    first = bk_fresh(start);
#pragma unroll
    for (int i = 0; i < kept; i++) {
      if (first + i * step >= o.width) continue;
      bk_raw_store<T, V>(
          at.h.row(token) + first + i * step,
          bk_hc_normed(bk_raw_load<T, V>(ys + first + i * step), rstd, at.w + first + i * step));
    }
    if (last) break;
    bk_cp_async_wait<0>();
    first = bk_fresh(start);
#pragma unroll
    for (int i = 0; i < kept; i++) {
      if (first + i * step >= o.width) continue;
      if constexpr (M <= 4) {
        const layer_maps<M> own = maps[l];
        merge<T, V, M, MIX>(x[i], bk_raw_load<T, V>(fs + first + i * step), n, own);
      } else {
        merge<T, V, M, MIX>(x[i], bk_raw_load<T, V>(fs + first + i * step), n, maps[l]);
      }
#pragma unroll
      for (int k = 0; k < M; k++)
        if (k < n) bk_raw_store<T, V>(o.layer[l + 1].x.row(token, k) + first + i * step, x[i][k]);
    }
  }
}

/* ---- launches ---- */

template <class T, int N, int PACKED, bool MIX>
void start(bk_stream *stream, const operands<T> &o, int64_t tokens) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  const unsigned threads = bk_hc_token_threads(o.width / V, most_threads),
                 bytes = 2 * kept * threads * V * (unsigned)sizeof(T);
  /* one limit for all widths */
  bk_allow_shared(rebuild_kernel<T, V, N, MIX>, (int)(2 * kept * most_threads * V * sizeof(T)));
  BK_LAUNCH((rebuild_kernel<T, V, N, MIX>), (unsigned)tokens, threads, bytes, bk_cuda_raw(stream),
            o);
}

template <class T>
void set_layer(const bk_hc_rebuild_layer *l, bool last, layer_operands<T> *at) {
  at->x = bk_wide_of<T>(&l->x), at->y = bk_rows_of<T>(&l->y), at->h = bk_rows_of<T>(&l->h),
  at->pre = bk_rows_of<float>(&l->pre);
  at->w = (const float *)bk_cuda_data(&l->w), at->rstd = (float *)bk_cuda_data(&l->rstd);
  if (last) return;
  at->f = bk_rows_of<T>(&l->f), at->post = bk_rows_of<float>(&l->post);
  if (bk_tensor_present(&l->comb)) at->comb = bk_rows_of<float>(&l->comb);
}

template <class T>
void launch(bk_stream *stream, const bk_hc_rebuild_args *a, bool packed) {
  const bk_tensor *x = &a->layer[0].x;
  const bool mix = bk_tensor_present(&a->layer[0].comb);
  operands<T> o = {};
  for (int i = 0; i < a->layers; i++) set_layer(&a->layer[i], i + 1 == a->layers, &o.layer[i]);
  o.width = (int)x->shape[2], o.layers = a->layers, o.n = (int)x->shape[1], o.eps = (float)a->eps;
  if (x->shape[0] == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    if (mix) start<T, decltype(n)::value, decltype(by_packs)::value, true>(stream, o, x->shape[0]);
    else start<T, decltype(n)::value, decltype(by_packs)::value, false>(stream, o, x->shape[0]);
  });
}

bool all_packs_fit(const bk_hc_rebuild_args *a) {
  bool fit = true;
  for (int i = 0; i < a->layers; i++) {
    const bk_hc_rebuild_layer *l = &a->layer[i];
    fit = fit && bk_packs_fit(&l->x) && bk_packs_fit(&l->y) && bk_packs_fit(&l->h) &&
          l->w.offset % 16 == 0;
    fit = fit && (i + 1 == a->layers || bk_packs_fit(&l->f));
  }
  return fit;
}

/* Whether a block's registers hold rows of this many channels. */
bool rows_fit(const bk_tensor *x, bool packed) {
  const int64_t bytes = !packed ? (int64_t)bk_dtype_size(x->dtype) : x->shape[1] <= 4 ? 16 : 8;
  return x->shape[2] * (int64_t)bk_dtype_size(x->dtype) <= bytes * kept * most_threads;
}

bk_status one_by_one(bk_stream *stream, const bk_plan *plan, const bk_hc_rebuild_args *a,
                     bk_place workspace) {
  for (int i = 0; i < a->layers; i++) {
    const bk_hc_rebuild_layer *l = &a->layer[i];
    const bk_hc_pre_norm_args mix = {l->x, l->pre, l->w, l->y, l->h, l->rstd, a->eps};
    BK_TRY(bk_cuda_hc_pre_norm(stream, plan, &mix, workspace));
    if (i + 1 == a->layers) break;
    const bk_hc_post_res_args merge = {l->x, l->f, l->post, l->comb, l[1].x};
    BK_TRY(bk_cuda_hc_post_res(stream, plan, &merge, workspace));
  }
  return BK_OK;
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_rebuild) {
  const bk_hc_rebuild_args *a = (const bk_hc_rebuild_args *)args;
  const bool packed = all_packs_fit(a);
  if (!rows_fit(&a->layer[0].x, packed)) return one_by_one(stream, plan, a, workspace);
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->layer[0].x.dtype, launch, (stream, a, packed));
  return bk_cuda_end(stream);
}

/* The fused op HC_MERGE_MIX for bf16 streams, n = 4 or 2: HC_POST_RES and HC_PROJECT in one
 * kernel, which so reads the merged streams from registers; then the op's maps and pre + norm,
 * the launches of HC_MAPS and HC_PRE_NORM. Products: hc_project_mma.cuh.
 *
 * A block has 64 tokens, 16 a warp, and a slice of the channels, of all streams, in steps of 32.
 * A lane has eight channels of two tokens of all streams and of f (16 bytes each), loaded a step
 * ahead; what it stores, rounded, is at once its operand of the products: block c of stream k is
 * column kC + c of fn. fn comes by pairs of streams, the next pair while this one is multiplied.
 * The coefficients of the tokens are in shared memory.
 *
 * Floor: 2n + 1 rows of C elements a token, as HC_POST_RES alone; fn once a block through the
 * second cache. */
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_project_mma.cuh"
#include "backends/cuda/kernels/hc_token.cuh"

namespace {

constexpr int threads = BK_PROJECT_THREADS, n_tiles = 2, warp_tokens = 8 * n_tiles,
              tile_tokens = threads / BK_WARP * warp_tokens;
constexpr int step = BK_PROJECT_COLUMNS, at_once = 3 * BK_PROJECT_MULTIPROCESSORS;

struct operands {
  bk_wide<bk_bf16> x, out;
  bk_rows<bk_bf16> f;
  bk_rows<float> post, comb; /* comb: [N, n*n] */
  const float *fn;
  int fn_stride, width, slice; /* channels of a stream */
  bk_project_end end;
};

/* Of a token in shared memory: comb where it is, then post; whole packs. */
template <int N, bool MIX>
constexpr int coefficients = ((MIX ? N * N : 0) + N + 3) / 4 * 4;
template <int N, bool MIX>
struct block_coefficients {
  float4 at[tile_tokens][coefficients<N, MIX> / 4];
};
template <int N, bool MIX>
BK_DEVICE void load_coefficients(const operands &o, int64_t first, float *to) {
  constexpr int all = coefficients<N, MIX>, mix = MIX ? N * N : 0;
  for (int i = (int)threadIdx.x; i < tile_tokens * all; i += threads) {
    const int64_t token = first + i / all;
    const int j = i % all;
    if (token < o.end.tokens && j < mix + N)
      to[i] = j < mix ? o.comb.row(token)[j] : o.post.row(token)[j - mix];
    else to[i] = 0;
  }
}

/* The lane's channels of tokens g and g + 8: streams, then f. */
template <int N>
struct inputs {
  uint4 at[N + 1][n_tiles];
};

/* What a lane knows of its work. */
struct place {
  int64_t token[n_tiles]; /* those past the last are the last here */
  bool live[n_tiles];
  int channel, end;
};

/* The streams at channels c .. c + 31; those from the end on are 0. */
template <int N>
BK_DEVICE void load_inputs(const operands &o, const place &p, int c, inputs<N> &in) {
  const bool inside = c + p.channel < p.end;
#pragma unroll
  for (int i = 0; i < n_tiles; i++)
#pragma unroll
    for (int m = 0; m <= N; m++) {
      const bk_bf16 *from = (m < N ? o.x.row(p.token[i], m) : o.f.row(p.token[i])) + p.channel + c;
      in.at[m][i] = inside ? bk_load_line(from) : make_uint4(0, 0, 0, 0);
    }
}

BK_DEVICE uint32_t &word_of(uint4 &x, int w) {
  return w == 0 ? x.x : w == 1 ? x.y : w == 2 ? x.z : x.w;
}

/* Two channels of a token: streams -> merged streams, in the order of HC_POST_RES, rounded as
 * they are stored. */
template <int N, bool MIX>
BK_DEVICE void merge_word(inputs<N> &x, int i, int w, const float (&coef)[coefficients<N, MIX>]) {
  constexpr int mix = MIX ? N * N : 0;
  const uint32_t f = word_of(x.at[N][i], w);
  const float feed[2] = {__uint_as_float(f << 16), __uint_as_float(f & 0xffff0000u)};
  float in[2][N], out[2];
#pragma unroll
  for (int m = 0; m < N; m++) {
    const uint32_t both = word_of(x.at[m][i], w);
    in[0][m] = __uint_as_float(both << 16), in[1][m] = __uint_as_float(both & 0xffff0000u);
  }
#pragma unroll
  for (int k = 0; k < N; k++) {
    float column[N];
#pragma unroll
    for (int m = 0; m < N; m++) column[m] = MIX ? coef[m * N + k] : 0.f;
#pragma unroll
    for (int v = 0; v < 2; v++)
      out[v] = bk_hc_merge<MIX, true>(in[v], feed[v], N, k, column, coef[mix + k]);
    word_of(x.at[k][i], w) = bk_bf16x2(out[0], out[1]);
  }
}

/* The streams of x become the merged ones, which are stored too. */
template <int N, bool MIX>
BK_DEVICE void merge(const operands &o, const place &p, int c, const float4 *coefficients_at,
                     inputs<N> &x) {
  constexpr int all = coefficients<N, MIX>;
#pragma unroll
  for (int i = 0; i < n_tiles; i++) {
    float coef[all];
#pragma unroll
    for (int j = 0; j < all / 4; j++) {
      const float4 four = coefficients_at[8 * i * (all / 4) + j];
      coef[4 * j] = four.x, coef[4 * j + 1] = four.y, coef[4 * j + 2] = four.z,
               coef[4 * j + 3] = four.w;
    }
#pragma unroll
    for (int w = 0; w < 4; w++) merge_word<N, MIX>(x, i, w, coef);
    if (p.live[i] && c + p.channel < p.end) {
#pragma unroll
      for (int k = 0; k < N; k++)
        __stwb(reinterpret_cast<uint4 *>(o.out.row(p.token[i], k) + p.channel + c), x.at[k][i]);
    }
  }
}

/* The thread's four columns of fn in the pair of streams 2 pair, 2 pair + 1 at channel c; past a
 * stream's end its last: x is 0 there. */
BK_DEVICE int column_of(const operands &o, const bk_project_share &mine, int pair, int c) {
  const int channel = c + mine.column;
  return (2 * pair + mine.half) * o.width + (channel < o.width - 4 ? channel : o.width - 4);
}

template <int ROWS>
struct sums_of {
  float sums[bk_project_results<ROWS>][n_tiles][4], squares[n_tiles];
};

template <int N, int ROWS>
BK_DEVICE void multiply(const inputs<N> &x, int pair, const bk_project_pair<ROWS> *fn,
                        sums_of<ROWS> &total) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    bk_project_multiply<ROWS, n_tiles>(x.at[2 * pair + h], fn, h, total.sums);
#pragma unroll
    for (int i = 0; i < n_tiles; i++)
      total.squares[i] = bk_project_squares(x.at[2 * pair + h][i], total.squares[i]);
  }
}

BK_DEVICE place place_of(const operands &o, int64_t first, int end) {
  const int lane = (int)threadIdx.x % BK_WARP;
  place p;
#pragma unroll
  for (int i = 0; i < n_tiles; i++) {
    const int64_t token = first + 8 * i + lane / 4;
    p.live[i] = token < o.end.tokens, p.token[i] = p.live[i] ? token : o.end.tokens - 1;
  }
  p.channel = 8 * (lane % 4), p.end = end;
  return p;
}

template <int N, bool MIX, int ROWS>
__global__ void __launch_bounds__(threads, 3) merge_project_kernel(operands o) {
  __shared__ bk_project_pair<ROWS> pairs[2];
  __shared__ block_coefficients<N, MIX> coef;
  __shared__ bk_project_totals<ROWS, n_tiles> totals;
  constexpr int run = BK_PROJECT_RUN / N;
  const int warp = (int)threadIdx.x / BK_WARP, lane = (int)threadIdx.x % BK_WARP;
  const int64_t block_first = (int64_t)blockIdx.x * tile_tokens,
                first = block_first + warp * warp_tokens;
  const int begin = (int)blockIdx.y * o.slice,
            end = begin + o.slice < o.width ? begin + o.slice : o.width;
  const bk_project_rows fn = {o.fn, o.fn_stride, 0, o.end.rows};
  const bk_project_share mine = bk_project_share_of((int)threadIdx.x);
  const place p = place_of(o, first, end);
  sums_of<ROWS> total = {};
  inputs<N> next, x;
  float4 w[ROWS / 8] = {};
  load_inputs<N>(o, p, begin, next);
  load_coefficients<N, MIX>(o, block_first, &coef.at[0][0].x);
  bk_project_load<ROWS>(fn, mine, column_of(o, mine, 0, begin), w);
  bk_project_store<ROWS>(w, mine, pairs);
  __syncthreads();
  int which = 0;
  for (int c = begin; c < end; c += step) {
    x = next;
    merge<N, MIX>(o, p, c, coef.at[warp * warp_tokens + lane / 4], x);
    if (c + step < end) load_inputs<N>(o, p, c + step, next);
#pragma unroll
    for (int pair = 0; pair < N / 2; pair++, which ^= 1) {
      const bool last = pair + 1 == N / 2, more = !last || c + step < end;
      if (more)
        bk_project_load<ROWS>(fn, mine,
                              column_of(o, mine, last ? 0 : pair + 1, last ? c + step : c), w);
      multiply<N, ROWS>(x, pair, pairs + which, total);
      if (more) bk_project_store<ROWS>(w, mine, pairs + (which ^ 1));
      __syncthreads();
    }
    const int done = c + step - begin;
    if (done % run == 0 && c + step < end)
      bk_project_bank<ROWS, n_tiles>(total.sums, totals, done == run);
  }
  if (end - begin > run) bk_project_fetch<ROWS, n_tiles>(total.sums, totals);
  bk_project_keep<ROWS, n_tiles>(o.end, blockIdx.y, first, 0, total.sums, total.squares);
}

/* ---- launches ---- */

int64_t slice_of(const bk_hc_merge_mix_args *a) {
  return bk_project_slice(bk_ceil_div(a->merge.x.shape[0], tile_tokens),
                          bk_ceil_div(a->merge.x.shape[2], step), at_once) *
         step;
}

template <int N, bool MIX, int ROWS>
void start(bk_stream *stream, const operands &o) {
  const dim3 grid((unsigned)bk_ceil_div(o.end.tokens, tile_tokens), (unsigned)o.end.slices);
  BK_LAUNCH((merge_project_kernel<N, MIX, ROWS>), grid, threads, 0, bk_cuda_raw(stream), o);
}

template <int N>
void by_rows(bk_stream *stream, const operands &o, bool mix) {
  if (!mix) start<N, false, 8>(stream, o);
  else if (o.end.rows <= 8) start<N, true, 8>(stream, o);
  else if (o.end.rows <= 24) start<N, true, 24>(stream, o);
  else start<N, true, 32>(stream, o);
}

void launch_merge_project(bk_stream *stream, const bk_hc_merge_mix_args *a, bk_place workspace) {
  const bk_hc_post_res_args *m = &a->merge;
  const bool mix = bk_tensor_present(&m->comb);
  operands o = {};
  o.x = bk_wide_of<bk_bf16>(&m->x), o.out = bk_wide_of<bk_bf16>(&m->out),
  o.f = bk_rows_of<bk_bf16>(&m->f);
  o.post = bk_rows_of<float>(&m->post), o.fn = (const float *)bk_cuda_data(&a->project.fn),
  o.fn_stride = (int)a->project.fn.stride[0];
  if (mix) o.comb = bk_rows_of<float>(&m->comb);
  o.width = (int)m->x.shape[2], o.slice = (int)slice_of(a);
  o.end = bk_project_end_of(&a->project, bk_ceil_div(o.width, o.slice), workspace);
  if (o.end.tokens == 0) return;
  if (m->x.shape[1] == 4) by_rows<4>(stream, o, mix);
  else by_rows<2>(stream, o, mix);
  bk_project_end_start(stream, o.end);
}

} // namespace

/* The projection's rows are those of the merged streams, side by side; not so for the kind hc,
 * where every stream is a row. */
extern "C" BK_CUDA_ACCEPTS(hc_merge_mix) {
  const bk_hc_merge_mix_args *a = (const bk_hc_merge_mix_args *)args;
  const bk_tensor *x = &a->merge.x, *out = &a->merge.out, *fn = &a->project.fn;
  const int64_t n = x->shape[1], width = x->shape[2];
  (void)device;
  if ((n != 4 && n != 2) || width == 0 || a->project.x.shape[0] != x->shape[0] ||
      a->project.x.shape[1] != n * width)
    return false;
  if (x->shape[0] > 1 && a->project.x.stride[0] != out->stride[0]) return false;
  if (out->stride[1] != width || fn->shape[0] > (bk_tensor_present(&a->merge.comb) ? 32 : 8))
    return false;
  if (fn->shape[0] * fn->stride[0] >= (int64_t)1 << 31) return false;
  return bk_packs_fit(x) && bk_packs_fit(out) && bk_packs_fit(&a->merge.f) && bk_packs_fit(fn);
}

extern "C" BK_CUDA_PREPARE(hc_merge_mix) {
  const bk_hc_merge_mix_args *a = (const bk_hc_merge_mix_args *)args;
  (void)device, (void)state;
  *workspace_bytes =
      bk_project_partials_bytes(&a->project, bk_ceil_div(a->merge.x.shape[2], slice_of(a)));
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_merge_mix) {
  const bk_hc_merge_mix_args *a = (const bk_hc_merge_mix_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch_merge_project(stream, a, workspace);
  bk_cuda_maps_start(stream, &a->maps);
  bk_cuda_pre_norm_start(stream, &a->pre_norm);
  return bk_cuda_end(stream);
}

/* The fused op HC_PROJECT_BWD for bf16 streams on tensor cores: dx (+)= dproj fn - drinv
 * rinv^3 x / K and dfn += dproj^T x in one pass over x, at most 32 rows of fn. Floor: x read, dx
 * written (and read to accumulate), 6 bytes an element.
 *
 * fp32 operands are split into bf16 terms: hi, what is left of it rounded (mid), what is left
 * then (lo). dfn: x is bf16 as it is, dproj has three terms, exact to 2^-24; three products,
 * whose sums over a chunk tensor cores cut off as in any gradient of weights. dx, rounded to
 * bf16 on its store: hi hi, hi mid and mid hi, exact to about 2^-16. An operand that is not
 * finite, or rounds to infinity in bf16, makes not-a-number where ref may have an infinity.
 *
 * A block has 256 channels and a chunk of tokens, 16 a step. x and old dx come through a ring in
 * shared memory, two steps ahead, a warp copies whole rows of the block, 512 bytes at once; one
 * barrier a step. Each warp multiplies 32 channels. Lane (g, t), g = lane / 4 and t = lane % 4,
 * has channels 8t .. 8t + 7 of tokens g and g + 8, 16 bytes each, to read from the ring and to
 * store. In the products of dx, column n of column tile j stands for channel 8 (n / 2) + 2j + n
 * % 2; so the sums of a lane are of the very elements that it has, words j of both packs. For
 * dfn, x comes from the ring transposed by ldmatrix: rows are channels, columns are rows of fn,
 * depth is tokens.
 *
 * The block splits dproj 64 tokens at a time, row by row into shared memory, [token][term][8-row
 * block of fn], one tile ahead. The same places serve both products, transposed for dfn. fn's
 * terms and the sums of dfn are registers. With 24 rows of fn, instructions and products take
 * less than half of the time that the bytes take (reckoned); two blocks a multiprocessor have 64
 * KB on the way.
 *
 * With PRE what HC_PRE_NORM_BWD left of dx is added in the same pass, pre[m] rstd (dh w - y
 * mean) (hc_merge_mix_bwd.cu): y and dh come through the ring too, which then is one step ahead,
 * so that two blocks fit a multiprocessor. They serve n streams: read once from memory, the
 * other times from the second cache, since the blocks of all streams go through the tokens side
 * by side. */
#include "backends/cuda/kernels/hc_project_bwd.cuh"
#include "backends/cuda/kernels/ptx.cuh"
#include "backends/cuda/kernels/streams.h"

namespace {

constexpr int threads = 256, warps = threads / BK_WARP, warp_channels = 32,
              block_channels = warps * warp_channels;
constexpr int step_tokens = 16, tile_tokens = 64, least_chunk = 2 * tile_tokens,
              wanted_blocks = 264, most_rows = 32;
/* of each operand of a stage */
constexpr int block_packs = block_channels / 8, stage_packs = step_tokens * block_packs;
constexpr int most_streams = 4; /* with PRE */
template <bool PRE>
constexpr int stages = PRE ? 2 : 3;
enum { X, OLD, Y, DH }; /* operands of a stage; the last two with PRE */
template <bool PRE>
constexpr int brought_operands = PRE ? 4 : 2;
static_assert(threads == 4 * tile_tokens && block_packs == BK_WARP && step_tokens == 2 * warps,
              "how threads split and bring");

struct operands {
  bk_rows<bk_bf16> x, dx; /* dx.at NULL: not wanted */
  bk_rows<float> fn, dproj;
  const float *rinv, *drinv;
  float *partials; /* [chunks][rows][width], NULL: dfn is not wanted */
  int64_t tokens, chunk;
  int width, rows, add;
  bk_rows<bk_bf16> y, dh; /* with PRE */
  bk_rows<float> pre;
  const float *w, *rstd, *mean;
  int streams, stream_width;
};

/* What a tile has with PRE. */
template <bool PRE>
struct norm_tile {};
template <>
struct norm_tile<true> {
  float mean[tile_tokens], pre[tile_tokens][most_streams]; /* of the norm; pre rstd */
};
/* Shared memory: a tile of dproj for B blocks of 8 rows of fn. An odd number of packs from token
 * to token: ldmatrix meets no bank twice. */
template <int B, bool PRE>
struct tile : norm_tile<PRE> {
  static constexpr int pitch = (3 * B | 1) * 8;
  /* reads go in pairs of blocks, the last one may pass the end by one */
  __align__(16) bk_bf16 dproj[tile_tokens * pitch + 8];
  float factors[tile_tokens];
};
template <bool PRE>
using stage_of = uint4[brought_operands<PRE>][stage_packs];
template <int B, bool PRE>
struct block_memory {
  stage_of<PRE> ring[stages<PRE>];
  tile<B, PRE> tiles[2];
  __align__(16) float w[PRE ? block_channels : 1]; /* of the norm */
};

/* ---- splitting ---- */

BK_DEVICE float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
BK_DEVICE float high_of(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
/* Two numbers, rounded to bf16; they keep what is left. */
BK_DEVICE uint32_t take_term(float &low, float &high) {
  const uint32_t pair = bk_bf16x2(low, high);
  low -= low_of(pair), high -= high_of(pair);
  return pair;
}

/* Of the tokens from `token` on, `count` of which are there: the others and the rows of fn past
 * the last are zeros. */
template <int B, bool PRE>
BK_DEVICE void split_tile(const operands &o, int64_t token, int count, tile<B, PRE> &to) {
  const int t = (int)threadIdx.x / 4, first = (int)threadIdx.x % 4 * 2;
  const int64_t there = token + (t < count ? t : 0);
  const int rows = t < count ? o.rows - first : 0;
  const float *p = o.dproj.row(there) + first;
  const float factor = bk_project_factor(o.rinv[there], o.drinv[there], o.width);
  float pairs[B][2];
  bk_bf16 *place = to.dproj + t * tile<B, PRE>::pitch + first;
#pragma unroll
  for (int b = 0; b < B; b++)
#pragma unroll
    for (int i = 0; i < 2; i++) pairs[b][i] = 8 * b + i < rows ? p[8 * b + i] : 0.f;
#pragma unroll
  for (int q = 0; q < 3 * B; q++)
    *reinterpret_cast<uint32_t *>(place + 8 * q) = take_term(pairs[q % B][0], pairs[q % B][1]);
  if (first == 0) to.factors[t] = t < count ? factor : 0.f;
  if constexpr (PRE) {
    const int m = first / 2;
    if (m == 0) to.mean[t] = o.mean[there];
    to.pre[t][m] = m < o.streams ? o.pre.row(there)[m] * o.rstd[there] : 0.f;
  }
}

/* fn as the right side of dx: of block b and column tile j, rows 8b + 2t and 8b + 2t + 1 at this
 * lane's channel, hi and mid. Blocks go in pairs to depth 16; an odd last one meets its own two
 * terms there, (hi, mid) (mid, hi), and is left with hi hi, depth 8. */
template <int B>
struct columns {
  /* of the odd last block: hi[..][0] = mid, hi[..][1] = hi */
  uint32_t hi[4][B / 2 + 1][2], mid[4][B / 2 + 1][2];
};
template <int B>
BK_DEVICE void load_columns(const operands &o, int c, int g, int t, columns<B> &w) {
  const int rows = o.dx.at ? o.rows : 0;
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int b = 0; b < B; b++) {
      const int channel = c + 8 * (g / 2) + 2 * j + g % 2;
      const int row = 8 * b + 2 * t;
      const float *p = o.fn.row(row) + channel;
      float low = channel < o.width && row < rows ? p[0] : 0.f,
            high = channel < o.width && row + 1 < rows ? p[o.fn.stride] : 0.f;
      const uint32_t hi = take_term(low, high), mid = bk_bf16x2(low, high);
      if (b == B - 1 && B % 2) w.hi[j][b / 2][0] = mid, w.hi[j][b / 2][1] = hi;
      else w.hi[j][b / 2][b % 2] = hi, w.mid[j][b / 2][b % 2] = mid;
    }
}

/* ---- a step: 16 tokens of 32 channels ---- */

/* Place of a pack in a stage: neither the lanes of ldmatrix, which have tokens 0 .. 7 of one
 * pack, nor those that read their own, two tokens of four packs at a time, meet a bank twice. */
BK_DEVICE int place_of(int token, int pack) {
  return token * block_packs + (pack ^ (token % 2 * 4 + token / 2 % 4));
}

/* What a thread brings: a pack of the row `warp` and of the row `warp` + 8 of each step.
 * Addresses are made anew each time: pointers for all operands would cost the registers that the
 * products want. */
struct feed {
  int token, left; /* the next step's row `warp`, tokens from there to the end of the chunk */
  int c, channel;  /* flat, and of its stream */
  bool in;         /* its channels are there */
};
template <bool PRE>
BK_DEVICE void bring(const operands &o, feed &from, stage_of<PRE> &stage, int own) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const bool there = from.in && from.left > 8 * half;
    const int place = own + half * 8 * block_packs, bytes = there ? 16 : 0,
              token = there ? from.token + 8 * half : 0, c = there ? from.c : 0;
    bk_cp_async_16_zfill(stage[X] + place, o.x.row(token) + c, bytes);
    if (o.add) bk_cp_async_16_zfill(stage[OLD] + place, o.dx.row(token) + c, bytes);
    if constexpr (PRE) {
      const int channel = there ? from.channel : 0;
      bk_cp_async_16_zfill(stage[Y] + place, o.y.row(token) + channel, bytes);
      bk_cp_async_16_zfill(stage[DH] + place, o.dh.row(token) + channel, bytes);
    }
  }
  from.token += step_tokens, from.left -= step_tokens;
}
/* The stream of the flat channel c. */
BK_DEVICE int stream_of(const operands &o, int c) { return c / o.stream_width; }

/* Adds to dfn; x is a stage, `pack` the warp's first, dproj the step's first token in the tile. */
template <int B, bool PRE>
BK_DEVICE void step_dfn(const uint4 *x, int pack, const bk_bf16 *dproj, int lane,
                        float (&dfn)[2][B][4]) {
  const int token = lane % 8 + lane / 16 * 8;
  const bk_bf16 *right = dproj + lane % 16 * tile<B, PRE>::pitch + lane / 16 * 8;
  uint32_t left[2][4];
#pragma unroll
  for (int m = 0; m < 2; m++)
    bk_ldmatrix_x4_trans(left[m], x + place_of(token, pack + 2 * m + lane / 8 % 2));
#pragma unroll
  for (int q = 0; q < 3 * B; q += 2) {
    uint32_t two[4];
    bk_ldmatrix_x4_trans(two, right + q * 8);
#pragma unroll
    for (int i = 0; i < 2 && q + i < 3 * B; i++) {
      const uint32_t one[2] = {two[2 * i], two[2 * i + 1]};
#pragma unroll
      for (int m = 0; m < 2; m++) bk_mma_m16n8k16_bf16(dfn[m][(q + i) % B], left[m], one);
    }
  }
}

/* sums[j] += dproj fn of column tile j. */
template <int B, bool PRE>
BK_DEVICE void step_dx(const bk_bf16 *dproj, int lane, const columns<B> &w, float (&sums)[4][4]) {
  const bk_bf16 *row = dproj + lane % 16 * tile<B, PRE>::pitch;
#pragma unroll
  for (int p = 0; p < B / 2; p++) {
    uint32_t hi[4], mid[4];
    bk_ldmatrix_x4(hi, row + lane / 16 * 8 + p * 16);
    bk_ldmatrix_x4(mid, row + lane / 16 * 8 + p * 16 + B * 8);
#pragma unroll
    for (int j = 0; j < 4; j++) bk_mma_m16n8k16_bf16(sums[j], mid, w.hi[j][p]);
#pragma unroll
    for (int j = 0; j < 4; j++) bk_mma_m16n8k16_bf16(sums[j], hi, w.mid[j][p]);
#pragma unroll
    for (int j = 0; j < 4; j++) bk_mma_m16n8k16_bf16(sums[j], hi, w.hi[j][p]);
  }
  if constexpr (B % 2) {
    uint32_t both[4];
    bk_ldmatrix_x4(both, row + (B - 1) * 8 + lane / 16 * (B * 8));
    const uint32_t hi[2] = {both[0], both[1]};
#pragma unroll
    for (int j = 0; j < 4; j++) bk_mma_m16n8k16_bf16(sums[j], both, w.hi[j][B / 2]);
#pragma unroll
    for (int j = 0; j < 4; j++) bk_mma_m16n8k8_bf16(sums[j], hi, w.hi[j][B / 2][1]);
  }
}

/* What the sums of dx start from: factor x + old, of token g and token g + 8. */
template <bool PRE>
BK_DEVICE void start_dx(const stage_of<PRE> &stage, int own, bool add, const float (&factors)[2],
                        float (&sums)[4][4]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float x[8], old[8] = {};
    bk_unpack(stage[X][own + half * 8 * block_packs], x);
    if (add) bk_unpack(stage[OLD][own + half * 8 * block_packs], old);
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i / 2][2 * half + i % 2] = factors[half] * x[i] + old[i];
  }
}
/* Adds pre rstd (dh w - y mean) of the lane's stream; `t` is token g in the tile. */
template <int B>
BK_DEVICE void add_pre(const stage_of<true> &stage, int own, const tile<B, true> &of, int t,
                       int stream, const float *weights, float (&sums)[4][4]) {
  const float4 low = *reinterpret_cast<const float4 *>(weights),
               high = *reinterpret_cast<const float4 *>(weights + 4);
  const float w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float pre = of.pre[t + 8 * half][stream], mean = of.mean[t + 8 * half];
    float y[8], dh[8];
    bk_unpack(stage[Y][own + half * 8 * block_packs], y);
    bk_unpack(stage[DH][own + half * 8 * block_packs], dh);
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i / 2][2 * half + i % 2] += pre * (dh[i] * w[i] - y[i] * mean);
  }
}
/* `left` tokens are there from token g on. */
BK_DEVICE void store_dx(bk_bf16 *dx, int64_t stride, int left, const float (&sums)[4][4]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float run[8];
#pragma unroll
    for (int i = 0; i < 8; i++) run[i] = sums[i / 2][2 * half + i % 2];
    if (left > 8 * half) bk_store_pack_global(dx + half * 8 * stride, run);
  }
}

/* The norm's weights at the block's channels. */
BK_DEVICE void keep_weights(const operands &o, int c, float *w) {
  const int channel = c + (int)threadIdx.x;
  w[threadIdx.x] = channel < o.width ? o.w[channel - stream_of(o, channel) * o.stream_width] : 0.f;
}

/* ---- the kernel ---- */

template <int B>
BK_DEVICE void store_partials(const operands &o, int c, int g, int t, const float (&dfn)[2][B][4]) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int b = 0; b < B; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = 8 * b + 2 * t + i % 2;
        const int channel = c + 16 * m + 8 * (i / 2) + g;
        if (row < o.rows && channel < o.width)
          o.partials[((int64_t)blockIdx.y * o.rows + row) * o.width + channel] = dfn[m][b][i];
      }
}

/* Two blocks a multiprocessor; 32 rows with PRE want more registers than that leaves. */
template <int B, bool PRE>
__global__ void __launch_bounds__(threads, PRE &&B == 4 ? 1 : 2)
    project_bwd_mma_kernel(operands o) {
  typedef block_memory<B, PRE> memory_type;
  constexpr int ring = stages<PRE>;
  BK_SHARED_DYNAMIC(memory_type, memory);
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP, g = lane / 4,
            t = lane % 4;
  const int begin = (int)blockIdx.y * (int)o.chunk, block_c = (int)blockIdx.x * block_channels,
            c = block_c + warp * warp_channels, mine = c + 8 * t;
  const int count = (int)(begin + o.chunk < o.tokens ? o.chunk : o.tokens - begin),
            brought = place_of(warp, lane), own = place_of(g, warp * 4 + t);
  feed from = {begin + warp, count - warp, block_c + 8 * lane, 0, block_c + 8 * lane < o.width};
  if constexpr (PRE) from.channel = from.c - stream_of(o, from.c) * o.stream_width;
  const int stream = PRE && mine < o.width ? stream_of(o, mine) : 0;
  columns<B> w;
  float dfn[2][B][4] = {};
#pragma unroll
  for (int s = 0; s < ring - 1; s++) {
    if (s * step_tokens < count) bring<PRE>(o, from, memory->ring[s], brought);
    bk_cp_async_commit();
  }
  split_tile<B, PRE>(o, begin, count, memory->tiles[0]);
  if constexpr (PRE) keep_weights(o, block_c, memory->w);
  load_columns<B>(o, c, g, t, w);
  for (int first = 0, stage = 0; first < count;
       first += step_tokens, stage = stage == ring - 1 ? 0 : stage + 1) {
    const int turn = first / tile_tokens % 2, step = first % tile_tokens;
    const bk_bf16 *dproj = memory->tiles[turn].dproj + step * tile<B, PRE>::pitch;
    bk_cp_async_wait<ring - 2>();
    /* the stage and the tile are there for all, and all have read the stage and the tile before */
    __syncthreads();
    if (first + (ring - 1) * step_tokens < count)
      bring<PRE>(o, from, memory->ring[stage == 0 ? ring - 1 : stage - 1], brought);
    bk_cp_async_commit();
    if (step == 0 && first + tile_tokens < count)
      split_tile<B, PRE>(o, begin + first + tile_tokens, count - first - tile_tokens,
                         memory->tiles[turn ^ 1]);
    if (c >= o.width) continue;
    if (o.partials) step_dfn<B, PRE>(memory->ring[stage][X], warp * 4, dproj, lane, dfn);
    if (!o.dx.at) continue;
    const float factors[2] = {memory->tiles[turn].factors[step + g],
                              memory->tiles[turn].factors[step + g + 8]};
    float sums[4][4];
    start_dx<PRE>(memory->ring[stage], own, o.add, factors, sums);
    if constexpr (PRE)
      add_pre<B>(memory->ring[stage], own, memory->tiles[turn], step + g, stream,
                 memory->w + warp * warp_channels + 8 * t, sums);
    step_dx<B, PRE>(dproj, lane, w, sums);
    store_dx(o.dx.row(begin + first + g) + mine, o.dx.stride,
             mine < o.width ? count - first - g : 0, sums);
  }
  if (o.partials) store_partials<B>(o, c, g, t, dfn);
}

/* ---- launches ---- */

/* Tokens of a chunk: as many chunks as fill `wanted_blocks` blocks, two on each of 132
 * multiprocessors (PRE with 32 rows: two rounds), and no more, so that they run at once; not so
 * short that fn and the partials cost more than x. */
int64_t chunk_of(const bk_hc_project_bwd_args *a) {
  const int64_t columns = bk_ceil_div(a->x.shape[1], block_channels),
                chunks = wanted_blocks / (columns < 1 ? 1 : columns);
  const int64_t chunk = bk_hc_chunk(a->x.shape[0], step_tokens, chunks < 1 ? 1 : chunks);
  return chunk < least_chunk ? least_chunk : chunk;
}

template <int B, bool PRE>
void start(bk_stream *stream, const operands &o) {
  const dim3 grid((unsigned)bk_ceil_div(o.width, block_channels),
                  (unsigned)bk_ceil_div(o.tokens, o.chunk));
  bk_allow_shared(project_bwd_mma_kernel<B, PRE>, (int)sizeof(block_memory<B, PRE>));
  BK_LAUNCH((project_bwd_mma_kernel<B, PRE>), grid, threads, sizeof(block_memory<B, PRE>),
            bk_cuda_raw(stream), o);
}
template <bool PRE>
void by_rows(bk_stream *stream, const operands &o) {
  if (o.rows <= 8) start<1, PRE>(stream, o);
  else if (o.rows <= 24) start<3, PRE>(stream, o);
  else start<4, PRE>(stream, o);
}

operands operands_of(const bk_hc_project_bwd_args *a, bk_place workspace) {
  operands o = {};
  o.x = bk_rows_of<bk_bf16>(&a->x), o.fn = bk_rows_of<float>(&a->fn),
  o.dproj = bk_rows_of<float>(&a->dproj);
  o.rinv = (const float *)bk_cuda_data(&a->rinv), o.drinv = (const float *)bk_cuda_data(&a->drinv);
  o.tokens = a->x.shape[0], o.width = (int)a->x.shape[1], o.rows = (int)a->fn.shape[0],
  o.chunk = chunk_of(a);
  if (bk_tensor_present(&a->dx)) o.dx = bk_rows_of<bk_bf16>(&a->dx), o.add = a->accumulate;
  if (bk_tensor_present(&a->dfn)) o.partials = (float *)bk_cuda_place(workspace);
  return o;
}

} // namespace

extern "C" void bk_cuda_project_bwd_mma_start(bk_stream *stream, const bk_hc_project_bwd_args *a,
                                              const bk_hc_pre_norm_bwd_args *pre, const float *mean,
                                              bk_place workspace) {
  operands o = operands_of(a, workspace);
  if (o.tokens == 0 || (!o.dx.at && !o.partials)) return;
  if (pre) {
    o.y = bk_rows_of<bk_bf16>(&pre->y), o.dh = bk_rows_of<bk_bf16>(&pre->dh),
    o.pre = bk_rows_of<float>(&pre->pre), o.add = pre->accumulate;
    o.w = (const float *)bk_cuda_data(&pre->w), o.rstd = (const float *)bk_cuda_data(&pre->rstd),
    o.mean = mean;
    o.streams = (int)pre->x.shape[1], o.stream_width = (int)pre->x.shape[2];
    by_rows<true>(stream, o);
  } else {
    by_rows<false>(stream, o);
  }
  if (o.partials) bk_project_dfn(stream, o.partials, bk_ceil_div(o.tokens, o.chunk), &a->dfn);
}

extern "C" BK_CUDA_ACCEPTS(hc_project_bwd_mma) {
  const bk_hc_project_bwd_args *a = (const bk_hc_project_bwd_args *)args;
  (void)device;
  if (a->fn.shape[0] > most_rows || a->x.shape[0] >= INT32_MAX ||
      a->x.shape[1] >= INT32_MAX - block_channels)
    return false;
  return bk_packs_fit(&a->x) && (!bk_tensor_present(&a->dx) || bk_packs_fit(&a->dx));
}

extern "C" BK_CUDA_PREPARE(hc_project_bwd_mma) {
  const bk_hc_project_bwd_args *a = (const bk_hc_project_bwd_args *)args;
  (void)device, (void)state;
  *workspace_bytes = bk_project_dfn_bytes(a, chunk_of(a));
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_project_bwd_mma) {
  BK_TRY(bk_cuda_begin(stream, plan));
  bk_cuda_project_bwd_mma_start(stream, (const bk_hc_project_bwd_args *)args, nullptr, nullptr,
                                workspace);
  return bk_cuda_end(stream);
}

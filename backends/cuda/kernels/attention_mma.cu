/* ATTENTION in bf16 on tensor cores: FlashAttention-2 (Dao, arXiv 2307.08691), mma.sync
 * m16n8k16, for rows on 16 bytes.
 *
 * A block of 4 warps has 64 M queries of one head, a warp 16 M of them (M = 2; 1 where that
 * gives too few blocks), and goes through the keys 64 (32) at a time. Scores, weights and the
 * output stay in registers: the scores' fragments are, rounded to bf16, the left side of the
 * product with v. k and v have one place each in shared memory; v arrives while the scores are
 * computed, the next k while the weights and the output are, and a block's two barriers a tile
 * are covered by the other block of the processor. Tiles that no query of a warp sees are
 * skipped. Weights are exp2(s - m), where m follows the greatest score of the row only when it
 * has grown by more than 2^8 (weights then stay within 2^8, which fp32 sums and bf16 both hold),
 * so that the output is hardly ever rescaled.
 *
 * Floors: 2 (Dk + Dv) flops for each query and key it sees over the bf16 rate (192/128, T =
 * 4096, a head: 5.4 GFLOP); bytes of q, k, v, o once over the bandwidth, which is the smaller
 * one from T of about 600 (A100) or 1200 (H100) on. Reckoned, not measured: of Hopper's rate
 * mma.sync reaches about 0.6. Registers (sm_90a, 192/128): 255 for M = 2, 165 for M = 1; shared
 * memory 92 and 67 KB. */
#include "backends/cuda/kernels/attention_tiles.cuh"

namespace {

constexpr int warps = 4, threads = warps * BK_WARP;
/* Keys of a step; 32 where 64 do not fit the registers of every processor. */
template <int DK, int M>
constexpr int keys_of = DK == 128 && M == 2 ? 32 : 64;
constexpr float grown = 8; /* in powers of 2 */

struct forward_args {
  bk_att_view<const bk_bf16> q, k, v;
  bk_att_view<bk_bf16> o;
  bk_att_lse lse;
  const int *past;
  int queries, positions;
  float exponent;
  bk_att_order order;
};

template <int DK, int DV, int M>
constexpr int shared_bytes = (64 * M * bk_att_pitch<DK> +
                              keys_of<DK, M> * (bk_att_pitch<DK> + bk_att_pitch<DV>)) *
                             (int)sizeof(bk_bf16);

BK_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(BK_FULL_MASK, x, 1));
  return fmaxf(x, __shfl_xor_sync(BK_FULL_MASK, x, 2));
}
BK_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(BK_FULL_MASK, x, 1);
  return x + __shfl_xor_sync(BK_FULL_MASK, x, 2);
}

/* The running state of a warp's rows: row 16 m + 8 r + lane / 4. */
template <int DV, int M>
struct rows_state {
  float o[M][DV / 8][4], most[M][2], sum[M][2]; /* most in the scores' own units */
};

/* Scores of keys that a row does not see are -inf; `seen` is the number of keys of this tile
 * that the warp's first row sees. */
template <int N, int M>
BK_DEVICE void mask(float (&s)[M][N][4], int seen, int count) {
  const int lane = bk_fresh((int)threadIdx.x) % BK_WARP, own = seen + lane / 4 - lane % 4 * 2;
  count -= lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (8 * n + e % 2 >= min(own + 16 * m + e / 2 * 8, count)) s[m][n][e] = -INFINITY;
}

/* Moves m to the greatest scores, if a row of the warp needs it. */
template <int N, int DV, int M>
BK_DEVICE void follow(rows_state<DV, M> &w, const float (&s)[M][N][4], float exponent) {
  float top[M][2];
  bool needed = false;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float x = w.most[m][r];
#pragma unroll
      for (int n = 0; n < N; n++) x = fmaxf(x, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
      top[m][r] = quad_max(x);
      needed = needed || (top[m][r] - w.most[m][r]) * exponent > grown;
    }
  if (!__any_sync(BK_FULL_MASK, needed)) return;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float shrink =
          top[m][r] == w.most[m][r] ? 1.0f : bk_ex2((w.most[m][r] - top[m][r]) * exponent);
      w.most[m][r] = top[m][r];
      w.sum[m][r] *= shrink;
#pragma unroll
      for (int c = 0; c < DV / 8; c++) w.o[m][c][2 * r] *= shrink, w.o[m][c][2 * r + 1] *= shrink;
    }
}

template <int N, int DV, int M>
BK_DEVICE void soften(rows_state<DV, M> &w, float (&s)[M][N][4], float exponent) {
  follow(w, s, exponent);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float base = w.most[m][r] == -INFINITY ? 0.0f : w.most[m][r] * exponent;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++)
          w.sum[m][r] += s[m][n][e] = bk_ex2(fmaf(s[m][n][e], exponent, -base));
    }
}

/* As bk_att_scores and bk_att_combine, with the right side fetched once for M row tiles. */
template <int N, int D, int M>
BK_DEVICE void scores(float (&s)[M][N][4], const bk_bf16 *q, int row, const bk_bf16 *k) {
#pragma unroll
  for (int i = 0; i < M * N * 4; i++) s[i / (4 * N)][i / 4 % N][i % 4] = 0;
#pragma unroll 4
  for (int d = 0; d < D; d += 16) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) bk_att_left<D>(left[m], q, row + 16 * m, d);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      bk_att_right_turned<D>(right, k, 8 * n, d);
#pragma unroll
      for (int m = 0; m < M; m++) bk_att_mma(s[m][n], s[m][n + 1], left[m], right);
    }
  }
}
template <int N, int D, int M>
BK_DEVICE void combine(float (&o)[M][D / 8][4], const float (&p)[M][N][4], const bk_bf16 *v) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) bk_att_relay(left[m], p[m][n], p[m][n + 1]);
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
      uint32_t right[4];
      bk_att_right<D>(right, v, 8 * n, 8 * c);
#pragma unroll
      for (int m = 0; m < M; m++) bk_att_mma(o[m][c], o[m][c + 1], left[m], right);
    }
  }
}

/* The warp's rows, from `first` of the tensor; `own` is their place among the queries in shared
 * memory. */
template <int DK, int DV, int M>
BK_DEVICE void finish(const forward_args &a, bk_att_tile at, rows_state<DV, M> &w, int first,
                      bk_bf16 *own) {
  const int lane = (int)threadIdx.x % BK_WARP, g = lane / 4;
#pragma unroll
  for (int m = 0; m < M; m++) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = quad_sum(w.sum[m][r]);
      const int t = first + 16 * m + 8 * r + g;
      factor[r] = 1.0f / sum;
      if (a.lse.data && lane % 4 == 0 && t < a.queries)
        a.lse.row(at.b, at.h)[t] =
            (float)(1 / BK_ATT_LOG2E) * (w.most[m][r] * a.exponent) + logf(sum);
    }
    bk_att_store<DV, bk_att_pitch<DK>>(a.o.head(at.b, at.h), first + 16 * m,
                                       a.queries - first - 16 * m, own + 16 * m * bk_att_pitch<DK>,
                                       w.o[m], factor[0], factor[1]);
  }
}

/* Computed where it is used: registers are short. */
BK_DEVICE bk_att_rows<const bk_bf16> head_of(const bk_att_view<const bk_bf16> &x, bk_att_tile at) {
  return x.head(bk_fresh(at.b), bk_fresh(at.h));
}

template <int DK, int DV, int M>
__global__ void __launch_bounds__(threads, M == 1 ? 3 : 2) forward_kernel(forward_args a) {
  static_assert(DV <= DK, "the output takes the queries' place");
  constexpr int block_rows = 64 * M, warp_rows = 16 * M, keys_at_once = keys_of<DK, M>,
                n = keys_at_once / 8;
  BK_SHARED_DYNAMIC(bk_bf16, sq);
  bk_bf16 *sk = sq + block_rows * bk_att_pitch<DK>, *sv = sk + keys_at_once * bk_att_pitch<DK>;
  const bk_att_tile at = bk_att_find(a.order);
  const bk_att_span span = bk_att_span_of(a.past, a.queries, a.positions);
  const int row = (int)threadIdx.x / BK_WARP * warp_rows, block_first = at.tile * block_rows,
            first = block_first + row;
  /* keys that the block sees */
  const int end = min(span.past + min(block_first + block_rows, a.queries), span.keys);
  /* keys that the warp's first row sees; the next row one more */
  const int sees = first < a.queries ? span.past + first + 1 : -warp_rows;
  rows_state<DV, M> w;
#pragma unroll
  for (int i = 0; i < M * DV / 2; i++) w.o[i / (DV / 2)][i / 4 % (DV / 8)][i % 4] = 0;
#pragma unroll
  for (int i = 0; i < M * 2; i++) w.most[i / 2][i % 2] = -INFINITY, w.sum[i / 2][i % 2] = 0;
  bk_att_fetch<block_rows, DK, threads, false>(sq, a.q.head(at.b, at.h), block_first, a.queries);
  bk_att_fetch<keys_at_once, DK, threads, false>(sk, head_of(a.k, at), 0, end);
  bk_cp_async_commit();
  for (int key = 0; key < end; key += keys_at_once) {
    float s[M][n][4];
    const bool seen = key < sees + warp_rows - 1;
    bk_cp_async_wait<0>(); /* k is there */
    __syncthreads();       /* and nobody needs the last v any more */
    bk_att_fetch<keys_at_once, DV, threads, false>(sv, head_of(a.v, at), key, end);
    bk_cp_async_commit();
    if (seen) scores<n, DK, M>(s, sq, row, sk);
    bk_cp_async_wait<0>();
    __syncthreads();
    if (key + keys_at_once < end) {
      bk_att_fetch<keys_at_once, DK, threads, false>(sk, head_of(a.k, at), key + keys_at_once, end);
      bk_cp_async_commit();
    }
    if (seen) {
      if (min(sees, end) < key + keys_at_once) mask(s, sees - key, end - key);
      soften(w, s, a.exponent);
      combine<n, DV, M>(w.o, s, sv);
    }
  }
  if (first < a.queries) finish<DK, DV, M>(a, at, w, first, sq + row * bk_att_pitch<DK>);
}

template <int DK, int DV, int M>
void launch_rows(bk_stream *stream, forward_args f, const bk_tensor *q, int64_t head_bytes) {
  f.order = bk_att_order_of(q, bk_ceil_div(q->shape[1], 64 * M), head_bytes, true);
  const unsigned blocks = bk_att_blocks(f.order);
  if (blocks == 0) return;
  bk_allow_shared(forward_kernel<DK, DV, M>, shared_bytes<DK, DV, M>);
  BK_LAUNCH((forward_kernel<DK, DV, M>), blocks, threads, (shared_bytes<DK, DV, M>),
            bk_cuda_raw(stream), f);
}

template <int DK, int DV>
void launch(bk_stream *stream, const bk_attention_args *a) {
  const forward_args f = {bk_att_view_of<const bk_bf16>(&a->q),
                          bk_att_view_of<const bk_bf16>(&a->k),
                          bk_att_view_of<const bk_bf16>(&a->v),
                          bk_att_view_of<bk_bf16>(&a->o),
                          bk_att_lse_of(&a->lse),
                          (const int *)bk_cuda_data(&a->past),
                          (int)a->q.shape[1],
                          (int)a->k.shape[1],
                          (float)(a->scale * BK_ATT_LOG2E),
                          {}};
  const int64_t head_bytes = a->k.shape[1] * (a->q.shape[3] + a->v.shape[3]) * 2;
  if (bk_ceil_div(a->q.shape[1], 128) * a->q.shape[0] * a->q.shape[2] >= BK_ATT_LARGE_FROM)
    launch_rows<DK, DV, 2>(stream, f, &a->q, head_bytes);
  else launch_rows<DK, DV, 1>(stream, f, &a->q, head_bytes);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(attention_mma) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  return a->q.shape[3] <= 192 && a->v.shape[3] <= 128 && a->scale > 0 &&
         bk_cuda_of(device)->smem_optin >= shared_bytes<192, 128, 2> && bk_att_tile_fits(&a->q) &&
         bk_att_tile_fits(&a->k) && bk_att_tile_fits(&a->v) && bk_att_tile_fits(&a->o) &&
         bk_att_counts_fit(&a->q, &a->k);
}

extern "C" BK_CUDA_LAUNCH(attention_mma) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  const int64_t dk = a->q.shape[3], dv = a->v.shape[3];
  /* Operands can lie worse than those that were accepted. */
  if (!bk_cuda_attention_mma_accepts(plan->kernel, stream->device, args))
    return bk_cuda_attention_simt(stream, plan, args, workspace);
  BK_TRY(bk_cuda_begin(stream, plan));
  if (dk <= 32 && dv <= 32) launch<32, 32>(stream, a);
  else if (dk <= 64 && dv <= 64) launch<64, 64>(stream, a);
  else if (dk <= 96 && dv <= 64) launch<96, 64>(stream, a);
  else if (dk <= 128 && dv <= 128) launch<128, 128>(stream, a);
  else launch<192, 128>(stream, a);
  return bk_cuda_end(stream);
}

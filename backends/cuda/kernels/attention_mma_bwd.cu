/* ATTENTION_BWD in bf16 on tensor cores, for rows on 16 bytes; formulas in runtime/op.h. Three
 * kernels, so that nothing is added by atomics and the same inputs give the same bits: delta and
 * lse (attention_simt.cu); dk and dv, a block for a tile of keys over the queries that see them;
 * dq, a block for a tile of queries over the keys that they see. Scores and dout v^T are
 * computed twice.
 *
 * A warp has 16 rows of the block's tile and computes its products with 32 positions of the
 * other kind at a time: key_kernel has keys as rows (s^T = k q^T, dp^T = v dout^T), so that p^T
 * and ds^T, rounded to bf16, are in registers what dv += p^T dout and dk += ds^T q need on the
 * left; query_kernel likewise for dq += ds k. The other kind's rows come through two places in
 * shared memory, one being filled while the other is used: one barrier a step. A block has 8
 * warps where shared memory and the number of blocks allow, else 4; the bits are the same.
 *
 * Floor: 8 Dk + 6 Dv flops for each query and key it sees (6 Dk + 4 Dv without computing twice)
 * over the bf16 rate: 192/128, T = 4096, a head: 19.3 GFLOP. Bytes: q, k, v, dout in and dq, dk,
 * dv out, the smaller part from T of some hundred on. Registers (sm_90a, 192/128): key_kernel
 * 255, query_kernel 234; shared memory 127 KB for 8 warps, 85 KB for 4. */
#include "backends/cuda/kernels/attention_tiles.cuh"

namespace {

constexpr int step = 32, n_tiles = step / 8; /* positions at a time */

struct backward_args {
  bk_att_view<const bk_bf16> q, k, v, dout;
  bk_att_view<bk_bf16> dq, dk, dv;
  const float *lse2, *delta; /* [B H, padded] */
  int queries, padded;
  float exponent, scale;
  bk_att_order order;
};

/* Elements of shared memory for rows of both widths. */
template <int DK, int DV>
constexpr int row_pair = bk_att_pitch<DK> + bk_att_pitch<DV>;
template <int DK, int DV, int W>
constexpr int query_bytes = (16 * W + 2 * step) * row_pair<DK, DV> *(int)sizeof(bk_bf16);
template <int DK, int DV, int W>
constexpr int key_bytes = query_bytes<DK, DV, W> + 4 * step *(int)sizeof(float);

template <int D>
BK_DEVICE void clear(float (&acc)[D / 8][4]) {
#pragma unroll
  for (int c = 0; c < D / 8; c++) acc[c][0] = acc[c][1] = acc[c][2] = acc[c][3] = 0;
}

/* ---- dk, dv ---- */

/* What key_kernel needs of 32 queries, one piece of shared memory: q, dout, lse2, delta. */
/* in elements of bf16 */
template <int DK, int DV>
constexpr int stage_size = step *row_pair<DK, DV> + 4 * step;
template <int DK, int DV>
BK_DEVICE bk_bf16 *dout_of(bk_bf16 *stage) {
  return stage + step * bk_att_pitch<DK>;
}
template <int DK, int DV>
BK_DEVICE float *numbers_of(bk_bf16 *stage) {
  return reinterpret_cast<float *>(stage + step * row_pair<DK, DV>);
}

template <int DK, int DV, int THREADS>
BK_DEVICE void fetch_queries(bk_bf16 *stage, const backward_args &a, bk_att_tile at, int query) {
  at.b = bk_fresh(at.b), at.h = bk_fresh(at.h), at.pair = bk_fresh(at.pair);
  bk_att_fetch<step, DK, THREADS>(stage, a.q.head(at.b, at.h), query, a.queries);
  bk_att_fetch<step, DV, THREADS>(dout_of<DK, DV>(stage), a.dout.head(at.b, at.h), query,
                                  a.queries);
  const int i = bk_fresh((int)threadIdx.x), in_row = i % (step / 4) * 4;
  const float *from = i < step / 4 ? a.lse2 : a.delta;
  if (i < step / 2)
    bk_cp_async_16(numbers_of<DK, DV>(stage) + 4 * i,
                   from + ((int64_t)at.pair * a.padded + query + in_row));
  bk_cp_async_commit();
}

/* Scores become p: rows are keys (`ahead` = key of row 0 - query of column 0), columns queries. */
BK_DEVICE void weigh_keys(float (&s)[n_tiles][4], const float *lse2, int ahead, float exponent) {
  const int lane = (int)threadIdx.x % BK_WARP, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < n_tiles; n++) {
    const float2 l = *reinterpret_cast<const float2 *>(lse2 + 8 * n + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float p = bk_ex2(fmaf(s[n][e], exponent, e % 2 ? -l.y : -l.x));
      s[n][e] = ahead + g + e / 2 * 8 <= 8 * n + 2 * t + e % 2 ? p : 0.0f;
    }
  }
}
/* dp becomes ds. */
BK_DEVICE void slope_keys(float (&dp)[n_tiles][4], const float (&p)[n_tiles][4],
                          const float *delta) {
  const int t = (int)threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < n_tiles; n++) {
    const float2 d = *reinterpret_cast<const float2 *>(delta + 8 * n + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; e++) dp[n][e] = p[n][e] * (dp[n][e] - (e % 2 ? d.y : d.x));
  }
}

template <int DK, int DV, int W>
__global__ void __launch_bounds__(W *BK_WARP, 8 / W) key_kernel(backward_args a) {
  constexpr int rows = 16 * W, threads = W * BK_WARP;
  BK_SHARED_DYNAMIC(bk_bf16, sk);
  bk_bf16 *sv = sk + rows * bk_att_pitch<DK>, *sq = sv + rows * bk_att_pitch<DV>;
  const bk_att_tile at = bk_att_find(a.order);
  const int row = (int)threadIdx.x / BK_WARP * 16, block_first = at.tile * rows,
            first = block_first + row;
  float dk[DK / 8][4], dv[DV / 8][4];
  clear<DK>(dk);
  clear<DV>(dv);
  bk_att_fetch<rows, DK, threads>(sk, a.k.head(at.b, at.h), block_first, a.queries);
  bk_att_fetch<rows, DV, threads>(sv, a.v.head(at.b, at.h), block_first, a.queries);
  fetch_queries<DK, DV, threads>(sq, a, at, block_first);
  for (int query = block_first, i = 0; query < a.queries; query += step, i ^= 1) {
    bk_cp_async_wait<0>();
    __syncthreads(); /* this stage is there, nobody uses the other one */
    if (query + step < a.queries)
      fetch_queries<DK, DV, threads>(sq + (i ^ 1) * stage_size<DK, DV>, a, at, query + step);
    /* none of these queries sees the warp's keys */
    if (query + step <= first || first >= a.queries) continue;
    bk_bf16 *now = sq + i * stage_size<DK, DV>;
    float s[n_tiles][4], dp[n_tiles][4];
    bk_att_scores<n_tiles, DK>(s, sk, row, now, 0);
    weigh_keys(s, numbers_of<DK, DV>(now), first - query, a.exponent);
    bk_att_combine<n_tiles, DV>(dv, s, dout_of<DK, DV>(now));
    bk_att_scores<n_tiles, DV>(dp, sv, row, dout_of<DK, DV>(now), 0);
    slope_keys(dp, s, numbers_of<DK, DV>(now) + step);
    bk_att_combine<n_tiles, DK>(dk, dp, now);
  }
  bk_att_store<DK, bk_att_pitch<DK>>(a.dk.head(at.b, at.h), first, a.queries - first,
                                     sk + row * bk_att_pitch<DK>, dk, a.scale, a.scale);
  bk_att_store<DV, bk_att_pitch<DV>>(a.dv.head(at.b, at.h), first, a.queries - first,
                                     sv + row * bk_att_pitch<DV>, dv, 1, 1);
}

/* ---- dq ---- */

/* Rows are queries (`ahead` = query of row 0 - key of column 0), columns keys. l of rows g and g
 * + 8. */
BK_DEVICE void weigh_queries(float (&s)[n_tiles][4], const float (&l)[2], int ahead,
                             float exponent) {
  const int lane = (int)threadIdx.x % BK_WARP, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < n_tiles; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float p = bk_ex2(fmaf(s[n][e], exponent, -l[e / 2]));
      s[n][e] = 8 * n + 2 * t + e % 2 <= ahead + g + e / 2 * 8 ? p : 0.0f;
    }
}

template <int DK, int DV, int W>
__global__ void __launch_bounds__(W *BK_WARP, 8 / W) query_kernel(backward_args a) {
  constexpr int rows = 16 * W, threads = W * BK_WARP;
  BK_SHARED_DYNAMIC(bk_bf16, sq);
  bk_bf16 *sdout = sq + rows * bk_att_pitch<DK>, *stages = sdout + rows * bk_att_pitch<DV>;
  const bk_att_tile at = bk_att_find(a.order);
  const int row = (int)threadIdx.x / BK_WARP * 16, block_first = at.tile * rows,
            first = block_first + row;
  const int end = min(block_first + rows, a.queries),
            warp_end = first < a.queries ? min(first + 16, a.queries) : 0;
  const bk_att_rows<const bk_bf16> k = a.k.head(at.b, at.h), v = a.v.head(at.b, at.h);
  float dq[DK / 8][4], l[2] = {}, delta[2] = {};
  clear<DK>(dq);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int query = first + 8 * r + (int)threadIdx.x % BK_WARP / 4;
    const int64_t from = (int64_t)at.pair * a.padded + query;
    if (query < a.queries) l[r] = a.lse2[from], delta[r] = a.delta[from];
  }
  bk_att_fetch<rows, DK, threads>(sq, a.q.head(at.b, at.h), block_first, a.queries);
  bk_att_fetch<rows, DV, threads>(sdout, a.dout.head(at.b, at.h), block_first, a.queries);
  bk_att_fetch<step, DK, threads>(stages, k, 0, end);
  bk_att_fetch<step, DV, threads>(stages + step * bk_att_pitch<DK>, v, 0, end);
  bk_cp_async_commit();
  for (int key = 0, i = 0; key < end; key += step, i ^= 1) {
    bk_cp_async_wait<0>();
    __syncthreads(); /* this stage is there, nobody uses the other one */
    if (key + step < end) {
      bk_bf16 *next = stages + (i ^ 1) * step * row_pair<DK, DV>;
      bk_att_fetch<step, DK, threads>(next, k, key + step, end);
      bk_att_fetch<step, DV, threads>(next + step * bk_att_pitch<DK>, v, key + step, end);
      bk_cp_async_commit();
    }
    if (key >= warp_end) continue;
    const bk_bf16 *sk = stages + i * step * row_pair<DK, DV>, *sv = sk + step * bk_att_pitch<DK>;
    float s[n_tiles][4], dp[n_tiles][4];
    bk_att_scores<n_tiles, DK>(s, sq, row, sk, 0);
    weigh_queries(s, l, first - key, a.exponent);
    bk_att_scores<n_tiles, DV>(dp, sdout, row, sv, 0);
#pragma unroll
    for (int n = 0; n < n_tiles; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[n][e] *= dp[n][e] - delta[e / 2];
    bk_att_combine<n_tiles, DK>(dq, s, sk);
  }
  bk_att_store<DK, bk_att_pitch<DK>>(a.dq.head(at.b, at.h), first, a.queries - first,
                                     sq + row * bk_att_pitch<DK>, dq, a.scale, a.scale);
}

/* ---- launches ---- */

template <int DK, int DV, int W>
void launch_warps(bk_stream *stream, backward_args f) {
  f.order.tiles = (int)bk_ceil_div(f.queries, 16 * W);
  f.order.last_first = false;
  bk_allow_shared(key_kernel<DK, DV, W>, key_bytes<DK, DV, W>);
  BK_LAUNCH((key_kernel<DK, DV, W>), bk_att_blocks(f.order), W * BK_WARP, (key_bytes<DK, DV, W>),
            bk_cuda_raw(stream), f);
  f.order.last_first = true;
  bk_allow_shared(query_kernel<DK, DV, W>, query_bytes<DK, DV, W>);
  BK_LAUNCH((query_kernel<DK, DV, W>), bk_att_blocks(f.order), W * BK_WARP,
            (query_bytes<DK, DV, W>), bk_cuda_raw(stream), f);
}

template <int DK, int DV>
void launch(bk_stream *stream, const backward_args &f) {
  /* and the bits are the same */
  const bool many = bk_ceil_div(f.queries, 128) * f.order.pairs >= BK_ATT_LARGE_FROM;
  if (many && bk_cuda_of(stream->device)->smem_optin >= key_bytes<DK, DV, 8>)
    launch_warps<DK, DV, 8>(stream, f);
  else launch_warps<DK, DV, 4>(stream, f);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(attention_bwd_mma) {
  const bk_attention_bwd_args *a = (const bk_attention_bwd_args *)args;
  const bk_tensor *const tiles[] = {&a->q, &a->k, &a->v, &a->dout, &a->dq, &a->dk, &a->dv};
  bool fit = a->q.shape[3] <= 192 && a->v.shape[3] <= 128 && bk_att_counts_fit(&a->q, &a->k);
  for (const bk_tensor *t : tiles) fit = fit && bk_att_tile_fits(t);
  return fit && bk_cuda_of(device)->smem_optin >= key_bytes<192, 128, 4>;
}

extern "C" BK_CUDA_PREPARE(attention_bwd_mma) {
  (void)device;
  *state = nullptr;
  *workspace_bytes = bk_att_bwd_bytes((const bk_attention_bwd_args *)args);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(attention_bwd_mma) {
  const bk_attention_bwd_args *a = (const bk_attention_bwd_args *)args;
  const int64_t t = a->q.shape[1], dk = a->q.shape[3], dv = a->v.shape[3],
                padded = bk_att_padded(t);
  float *lse2 = (float *)bk_cuda_place(workspace),
        *delta = lse2 + a->q.shape[0] * a->q.shape[2] * padded;
  if (!bk_cuda_attention_bwd_mma_accepts(plan->kernel, stream->device, args))
    return bk_cuda_attention_bwd_simt(stream, plan, args, workspace);
  BK_TRY(bk_cuda_begin(stream, plan));
  const backward_args f = {bk_att_view_of<const bk_bf16>(&a->q),
                           bk_att_view_of<const bk_bf16>(&a->k),
                           bk_att_view_of<const bk_bf16>(&a->v),
                           bk_att_view_of<const bk_bf16>(&a->dout),
                           bk_att_view_of<bk_bf16>(&a->dq),
                           bk_att_view_of<bk_bf16>(&a->dk),
                           bk_att_view_of<bk_bf16>(&a->dv),
                           lse2,
                           delta,
                           (int)t,
                           (int)padded,
                           (float)(a->scale * BK_ATT_LOG2E),
                           (float)a->scale,
                           bk_att_order_of(&a->q, 0, t * (dk + dv) * 2, true)};
  if (f.order.pairs == 0 || t == 0) return bk_cuda_end(stream);
  bk_cuda_attention_delta(stream, a, lse2, delta);
  if (dk <= 32 && dv <= 32) launch<32, 32>(stream, f);
  else if (dk <= 64 && dv <= 64) launch<64, 64>(stream, f);
  else if (dk <= 96 && dv <= 64) launch<96, 64>(stream, f);
  else if (dk <= 128 && dv <= 128) launch<128, 128>(stream, f);
  else launch<192, 128>(stream, f);
  return bk_cuda_end(stream);
}

/* ATTENTION of few queries over many keys (generation with a cache): at most 8 queries, any
 * widths up to 256, fp32 and bf16.
 *
 * The keys that a query sees are cut into equal pieces, so that one query keeps the whole device
 * busy; a block has one piece of one query. In it 16 groups of 8 threads take a key each: a
 * group reads the key and value rows by packs of 16 bytes (single elements where rows are not on
 * 16 bytes), three exchanges make the score, and each group has its own running maximum, sum and
 * output in registers. The block joins its groups in order, a second kernel joins the pieces in
 * order. The number of pieces comes from the shapes alone, their length from the positions in
 * use. Queries of one head are neighbours in the grid: what the first one reads the others find
 * in the cache.
 *
 * Floor: bytes of the keys and values in use, once, over the bandwidth (192/128 in bf16: 640
 * bytes a key and head). In flight on a processor: 16 groups a block, 640 bytes each, some 5
 * blocks: 50 KB. */
#include "backends/cuda/kernels/attention.cuh"

namespace {

constexpr int lanes = 8, groups = 16, threads = lanes * groups;
constexpr int wanted_blocks = 1024, most_pieces = 64, least_keys = 64;

template <class T>
struct decode_args {
  bk_att_view<const T> q, k, v;
  const int *past;
  /* of every piece of every query: maximum and sum; the output not yet divided [.., Dv] */
  float *numbers, *o;
  int queries, positions, heads, pieces;
  float exponent;
};

/* P elements, converted; zeros where it is not `inside`. */
template <int P, class T>
BK_DEVICE void load(const T *p, float (&v)[P], bool inside) {
  if (inside) {
    if constexpr (P == 1) v[0] = bk_to_float(*p);
    else bk_load_pack(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < P; i++) v[i] = 0;
  }
}
/* This thread's packs of a row, lane, lane + 8, ... */
template <int P, int N, class T>
BK_DEVICE void load_row(const T *row, int width, float (&v)[N][P], bool inside) {
  const int lane = (int)threadIdx.x % lanes;
#pragma unroll
  for (int i = 0; i < N; i++)
    load<P>(row + (lane + lanes * i) * P, v[i], inside && (lane + lanes * i) * P < width);
}

/* Running softmax of a group, scores in the exponent of 2. */
template <int P, int N>
struct running {
  float o[N][P], most, sum;
};
template <int P, int N>
BK_DEVICE void take(running<P, N> &w, float score, const float (&v)[N][P]) {
  const float top = fmaxf(w.most, score), base = top == -INFINITY ? 0.0f : top;
  const float shrink = exp2f(w.most - base), p = exp2f(score - base);
  w.most = top;
  w.sum = w.sum * shrink + p;
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int e = 0; e < P; e++) w.o[i][e] = fmaf(w.o[i][e], shrink, p * v[i][e]);
}

/* The groups of the block, in order, to piece `to`. */
template <int P, int N>
BK_DEVICE void join_groups(const running<P, N> &w, float *numbers, float *o, int width) {
  __shared__ float most[groups], sum[groups], part[groups][lanes * N * P];
  const int group = (int)threadIdx.x / lanes, lane = (int)threadIdx.x % lanes;
  if (lane == 0) most[group] = w.most, sum[group] = w.sum;
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int e = 0; e < P; e++) part[group][(lane + lanes * i) * P + e] = w.o[i][e];
  __syncthreads();
  float top = -INFINITY, total = 0;
  for (int g = 0; g < groups; g++) top = fmaxf(top, most[g]);
  const float base = top == -INFINITY ? 0.0f : top;
  for (int g = 0; g < groups; g++) total += sum[g] * exp2f(most[g] - base);
  if (threadIdx.x == 0) numbers[0] = top, numbers[1] = total;
  for (int c = (int)threadIdx.x; c < width; c += threads) {
    float x = 0;
    for (int g = 0; g < groups; g++) x += part[g][c] * exp2f(most[g] - base);
    o[c] = x;
  }
}

template <class T, int P, int DK, int DV>
__global__ void __launch_bounds__(threads) piece_kernel(decode_args<T> a) {
  constexpr int nk = DK / (lanes * P), nv = DV / (lanes * P);
  const int t = (int)(blockIdx.x % (unsigned)a.queries),
            rest = (int)(blockIdx.x / (unsigned)a.queries);
  const int piece = rest % a.pieces, pair = rest / a.pieces, b = pair / a.heads, h = pair % a.heads;
  const bk_att_span span = bk_att_span_of(a.past, a.queries, a.positions);
  const int seen = min(span.past + t + 1, span.keys);
  const int length = ((seen + a.pieces - 1) / a.pieces + groups - 1) / groups * groups,
            begin = piece * length, end = min(begin + length, seen);
  const bk_att_rows<const T> k = a.k.head(b, h), v = a.v.head(b, h);
  float q[nk][P];
  running<P, nv> w;
  load_row<P>(a.q.head(b, h).at + t * a.q.t, a.q.width, q, true);
  w.most = -INFINITY, w.sum = 0;
#pragma unroll
  for (int i = 0; i < nv * P; i++) w.o[i / P][i % P] = 0;
  for (int from = begin; from < end; from += groups) {
    const int key = from + (int)threadIdx.x / lanes;
    float x[nk][P], y[nv][P], score = 0;
    load_row<P>(k.at + key * k.stride, k.width, x, key < end);
    load_row<P>(v.at + key * v.stride, v.width, y, key < end);
#pragma unroll
    for (int i = 0; i < nk; i++)
#pragma unroll
      for (int e = 0; e < P; e++) score = fmaf(q[i][e], x[i][e], score);
#pragma unroll
    for (int d = lanes / 2; d > 0; d >>= 1) score += __shfl_xor_sync(BK_FULL_MASK, score, d);
    take(w, key < end ? score * a.exponent : -INFINITY, y);
  }
  const int64_t to = ((int64_t)pair * a.queries + t) * a.pieces + piece;
  join_groups(w, a.numbers + 2 * to, a.o + to * v.width, v.width);
}

/* A block joins the pieces of one query. */
template <class T>
__global__ void __launch_bounds__(threads)
    join_kernel(const float *numbers, const float *parts, bk_att_view<T> o, bk_att_lse lse,
                int queries, int heads, int pieces) {
  const int t = (int)(blockIdx.x % (unsigned)queries), pair = (int)(blockIdx.x / (unsigned)queries),
            b = pair / heads, h = pair % heads;
  const int64_t from = (int64_t)blockIdx.x * pieces;
  float top = -INFINITY, sum = 0;
  for (int i = 0; i < pieces; i++) top = fmaxf(top, numbers[2 * (from + i)]);
  const float base = top == -INFINITY ? 0.0f : top;
  for (int i = 0; i < pieces; i++)
    sum += numbers[2 * (from + i) + 1] * exp2f(numbers[2 * (from + i)] - base);
  T *to = o.head(b, h).at + t * o.t;
  for (int c = (int)threadIdx.x; c < o.width; c += threads) {
    float x = 0;
    for (int i = 0; i < pieces; i++)
      x += parts[(from + i) * o.width + c] * exp2f(numbers[2 * (from + i)] - base);
    to[c] = bk_from_float<T>(x / sum);
  }
  if (lse.data && threadIdx.x == 0) lse.row(b, h)[t] = (float)(1 / BK_ATT_LOG2E) * top + logf(sum);
}

int pieces_of(const bk_attention_args *a) {
  const int64_t items = a->q.shape[0] * a->q.shape[1] * a->q.shape[2];
  int64_t pieces = items > 0 ? bk_ceil_div(wanted_blocks, items) : 1;
  if (pieces > bk_ceil_div(a->k.shape[1], least_keys))
    pieces = bk_ceil_div(a->k.shape[1], least_keys);
  return (int)(pieces < 1 ? 1 : pieces < most_pieces ? pieces : most_pieces);
}

template <class T, int P>
void launch_pieces(bk_stream *stream, const decode_args<T> &f, unsigned blocks) {
  const int dk = f.k.width, dv = f.v.width;
  if (dk <= 64 && dv <= 64)
    BK_LAUNCH((piece_kernel<T, P, 64, 64>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else if (dk <= 128 && dv <= 128)
    BK_LAUNCH((piece_kernel<T, P, 128, 128>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else if (dk <= 192 && dv <= 128)
    BK_LAUNCH((piece_kernel<T, P, 192, 128>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else BK_LAUNCH((piece_kernel<T, P, 256, 256>), blocks, threads, 0, bk_cuda_raw(stream), f);
}

template <class T>
void launch(bk_stream *stream, const bk_attention_args *a, float *numbers) {
  const int pieces = pieces_of(a);
  const int64_t items = a->q.shape[0] * a->q.shape[1] * a->q.shape[2];
  const decode_args<T> f = {bk_att_view_of<const T>(&a->q),
                            bk_att_view_of<const T>(&a->k),
                            bk_att_view_of<const T>(&a->v),
                            (const int *)bk_cuda_data(&a->past),
                            numbers,
                            numbers + 2 * items * pieces,
                            (int)a->q.shape[1],
                            (int)a->k.shape[1],
                            (int)a->q.shape[2],
                            pieces,
                            (float)(a->scale * BK_ATT_LOG2E)};
  if (items == 0) return;
  const unsigned blocks = (unsigned)(items * pieces);
  if (bk_packs_fit(&a->q) && bk_packs_fit(&a->k) && bk_packs_fit(&a->v))
    launch_pieces<T, bk_pack<T>::count>(stream, f, blocks);
  else launch_pieces<T, 1>(stream, f, blocks);
  BK_LAUNCH((join_kernel<T>), (unsigned)items, threads, 0, bk_cuda_raw(stream), f.numbers, f.o,
            bk_att_view_of<T>(&a->o), bk_att_lse_of(&a->lse), f.queries, f.heads, pieces);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(attention_decode) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  (void)device;
  return a->q.shape[1] <= BK_ATT_FEW && a->q.shape[3] <= 256 && a->v.shape[3] <= 256 &&
         bk_att_counts_fit(&a->q, &a->k) &&
         a->q.shape[0] * a->q.shape[1] * a->q.shape[2] < (int64_t)1 << 24;
}

extern "C" BK_CUDA_PREPARE(attention_decode) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  (void)device;
  *state = nullptr;
  *workspace_bytes =
      (size_t)(a->q.shape[0] * a->q.shape[1] * a->q.shape[2] * pieces_of(a) * (a->v.shape[3] + 2)) *
      sizeof(float);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(attention_decode) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->q.dtype, launch, (stream, a, (float *)bk_cuda_place(workspace)));
  return bk_cuda_end(stream);
}

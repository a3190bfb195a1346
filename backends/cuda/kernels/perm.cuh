/* mHC-lite (arXiv 2601.05732): comb is a mixture of the n! permutation matrices, in
 * lexicographic order; its backward. A group of L lanes has a token: lane m makes row m of comb,
 * and has the weights q = s L + m, s < Q. All lanes of a block call these functions together. */
#ifndef BK_CUDA_PERM_CUH
#define BK_CUDA_PERM_CUH

#include "backends/cuda/kernels/hc.cuh"

/* n <= 4 on 4 lanes: up to 24 weights; n = 5 on 8 lanes: 120. */
template <int L>
constexpr int bk_perm_slots = L == 4 ? 6 : 15;
template <int L>
constexpr int bk_perm_count = L == 4 ? 24 : 120;

/* Shared memory of a block with GROUPS groups. */
template <int L, int GROUPS>
struct bk_perm_room {
  float weights[GROUPS][bk_perm_count<L>]; /* forward: the weights; backward: dcomb [n*n] */
  uint8_t sigma[bk_perm_count<L>][L];      /* sigma[q][m]: where permutation q sends m */
};

BK_DEVICE int perm_factorial(int n) {
  int f = 1;
  for (int i = 2; i <= n; i++) f *= i;
  return f;
}

/* The digits of q in the factorial number system choose among the destinations that are left. */
template <int L, int GROUPS>
BK_DEVICE void bk_perm_table(int n, bk_perm_room<L, GROUPS> *room) {
  const int count = perm_factorial(n);
  for (int q = (int)threadIdx.x; q < count; q += (int)blockDim.x) {
    unsigned left = (1u << n) - 1;
    for (int m = 0, rest = q, f = count; m < n; m++) {
      f /= n - m;
      unsigned choice = left;
      for (int skip = rest / f; skip > 0; skip--) choice &= choice - 1;
      choice &= ~choice + 1u;
      rest %= f;
      left &= ~choice;
      room->sigma[q][m] = (uint8_t)(__ffs((int)choice) - 1);
    }
  }
  __syncthreads();
}

template <int L>
BK_DEVICE float perm_group_sum(float x) {
#pragma unroll
  for (int d = L / 2; d > 0; d >>= 1) x += __shfl_xor_sync(BK_FULL_MASK, x, d);
  return x;
}

/* Softmax over the token's weights, in place; those past the last one become 0. */
template <int L>
BK_DEVICE void perm_softmax(float (&w)[bk_perm_slots<L>], int count) {
  const int m = (int)threadIdx.x % L;
  float high = -INFINITY, sum = 0;
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++)
    if (s * L + m < count) high = fmaxf(high, w[s]);
#pragma unroll
  for (int d = L / 2; d > 0; d >>= 1) high = fmaxf(high, __shfl_xor_sync(BK_FULL_MASK, high, d));
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++) {
    w[s] = s * L + m < count ? expf(w[s] - high) : 0.f;
    sum += w[s];
  }
  sum = 1.f / perm_group_sum<L>(sum);
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++) w[s] *= sum;
}

/* Row m of comb from the lane's logits. */
template <int L, int GROUPS>
BK_DEVICE void bk_perm(float (&w)[bk_perm_slots<L>], float (&comb)[L], int n,
                       bk_perm_room<L, GROUPS> *room) {
  const int m = (int)threadIdx.x % L, count = perm_factorial(n);
  float *weights = room->weights[threadIdx.x / L];
  perm_softmax<L>(w, count);
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++)
    if (s * L + m < count) weights[s * L + m] = w[s];
  __syncwarp();
#pragma unroll
  for (int k = 0; k < L; k++) comb[k] = 0;
  for (int q = 0; q < count; q++) {
    const int to = m < n ? room->sigma[q][m] : L;
#pragma unroll
    for (int k = 0; k < L; k++) comb[k] += k == to ? weights[q] : 0.f;
  }
  __syncwarp();
}

/* dlogits[q] = w[q] (a[q] - sum w a), a[q] = sum_m dcomb[m][sigma_q(m)], in place of the logits.
 * The mean is taken off twice: the first time leaves small exact differences where one weight is
 * close to 1. dcomb: row m. */
template <int L, int GROUPS>
BK_DEVICE void bk_perm_bwd(float (&w)[bk_perm_slots<L>], const float (&dcomb)[L], int n,
                           bk_perm_room<L, GROUPS> *room) {
  const int m = (int)threadIdx.x % L, count = perm_factorial(n);
  float *given = room->weights[threadIdx.x / L], a[bk_perm_slots<L>];
  perm_softmax<L>(w, count);
#pragma unroll
  for (int k = 0; k < L; k++)
    if (m < n && k < n) given[m * n + k] = dcomb[k];
  __syncwarp();
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++) {
    a[s] = 0;
    for (int i = 0; i < n && s * L + m < count; i++)
      a[s] += given[i * n + room->sigma[s * L + m][i]];
  }
  for (int turn = 0; turn < 2; turn++) {
    float mean = 0;
#pragma unroll
    for (int s = 0; s < bk_perm_slots<L>; s++) mean += w[s] * a[s];
    mean = perm_group_sum<L>(mean);
#pragma unroll
    for (int s = 0; s < bk_perm_slots<L>; s++) a[s] -= mean;
  }
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++) w[s] *= a[s];
  __syncwarp();
}

#endif

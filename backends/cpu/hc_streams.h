/* hc_streams: column bodies shared by the primitive and the fused kernels of the residual
 * connections, so that both do the same operations in the same order, bit for bit in fp32. For
 * templates only.
 *
 * A body works on one token and `count` columns from column c on. Sums over streams start from
 * zero and go up in m, each step one bk_v_fma, so that there is one way only to compute them.
 * `n` and `bf` are constants after inlining (BK_HC_CALL); BK_HC_MAX_N bounds the arrays where n
 * is not. */
#ifndef BK_CPU_HC_STREAMS_H
#define BK_CPU_HC_STREAMS_H

#include "backends/cpu/hc.h"
#include "backends/cpu/simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#define BK_UNROLL _Pragma("GCC unroll 4")
#else
#define BK_UNROLL /* clang unrolls loops of constant length by itself */
#endif

/* Tells the compiler what the checks of core/ops have made sure of. */
#define BK_HC_ASSUME_N(n)                                      \
  do {                                                         \
    if ((n) < 1 || (n) > BK_HC_MAX_N) __builtin_unreachable(); \
  } while (0)

/* fn(..., bf, n) with constants for the tuned n = 4. */
#define BK_HC_CALL(fn, is_bf, streams, ...)                  \
  do {                                                       \
    if ((is_bf) && (streams) == 4) fn(__VA_ARGS__, true, 4); \
    else if (is_bf) fn(__VA_ARGS__, true, (streams));        \
    else if ((streams) == 4) fn(__VA_ARGS__, false, 4);      \
    else fn(__VA_ARGS__, false, (streams));                  \
  } while (0)

/* Runs body(c, count) over all columns: whole vectors, then the rest. */
#define BK_HC_COLUMNS(columns, body)                        \
  do {                                                      \
    int64_t c = 0;                                          \
    for (; c + BK_VW <= (columns); c += BK_VW) body(BK_VW); \
    if (c < (columns)) body((columns)-c);                   \
  } while (0)

/* The n streams of one token. */
typedef struct token_streams {
  char *row;
  int64_t stride; /* bytes from stream to stream */
} token_streams;

BK_INLINE token_streams streams_of(const bk_tensor *t, int64_t i) {
  return (token_streams){bk_cpu_at(t, i), t->stride[1] * (bk_cpu_is_bf16(t) ? 2 : 4)};
}
BK_INLINE void *stream_at(token_streams s, int m) { return s.row + m * s.stride; }

BK_INLINE void streams_load(token_streams s, bk_vf *x, int64_t c, int64_t count, const bool bf,
                            const int n) {
  BK_UNROLL
  for (int m = 0; m < n; m++) x[m] = bk_v_get(stream_at(s, m), c, bf, count);
}

/* Coefficients of one token, spread over vectors. */
BK_INLINE void spread_n(const bk_tensor *t, int64_t i, bk_vf *out, const int n) {
  const float *row = (const float *)bk_cpu_at(t, i);
  BK_UNROLL
  for (int m = 0; m < n; m++) out[m] = bk_v_set(row[m]);
}
/* comb[m][k] -> out[m * n + k]; the identity where comb is absent is the caller's. */
BK_INLINE void spread_nn(const bk_tensor *t, int64_t i, bk_vf *out, const int n) {
  BK_UNROLL
  for (int m = 0; m < n; m++) {
    const float *row = (const float *)bk_cpu_at2(t, i, m);
    BK_UNROLL
    for (int k = 0; k < n; k++) out[m * n + k] = bk_v_set(row[k]);
  }
}

/* sum_m w[m * step] x[m] */
BK_INLINE bk_vf streams_mix(const bk_vf *w, const int step, const bk_vf *x, const int n) {
  bk_vf sum = bk_v_zero();
  BK_UNROLL
  for (int m = 0; m < n; m++) sum = bk_v_fma(w[m * step], x[m], sum);
  return sum;
}

/* Stores the sums of `n` vectors. */
BK_INLINE void store_sums(float *row, const bk_vf *sums, const int n) {
  for (int m = 0; m < n; m++) row[m] = bk_v_hsum(sums[m]);
}

/* Tokens of a piece for ops that move `vectors` rows of C a token. */
BK_INLINE int64_t streams_grain(int64_t columns, int64_t vectors) {
  int64_t grain = 262144 / (columns * vectors * 4 + 1);
  return grain > 1 ? grain : 1;
}

/* ---- memory that is needed soon: asked for line by line while a product runs from cache ---- */
#define AHEAD_RANGES 6
typedef struct ahead {
  const char *at[AHEAD_RANGES];
  int64_t lines[AHEAD_RANGES];
  int n, now;
  int64_t per_step;
} ahead;

/* The rows of up to `count` tokens from `token` on, `end` at most, as one range: rows are as
 * good as dense. */
static inline void ahead_add(ahead *h, const bk_tensor *t, int64_t token, int64_t count,
                             int64_t end) {
  if (token >= end || !bk_tensor_present(t)) return;
  int64_t rows = end - token < count ? end - token : count;
  h->at[h->n] = bk_cpu_at(t, token);
  h->lines[h->n++] = (rows * t->stride[0] * (bk_cpu_is_bf16(t) ? 2 : 4) + 63) / 64;
}
static inline void ahead_share(ahead *h, int64_t steps) {
  int64_t lines = 0;
  for (int i = 0; i < h->n; i++) lines += h->lines[i];
  h->per_step = (lines + steps - 1) / (steps > 0 ? steps : 1);
}
BK_INLINE void ahead_step(ahead *h) {
  if (h->now >= h->n) return;
  const char *at = h->at[h->now];
  for (int64_t i = 0; i < h->per_step; i++) __builtin_prefetch(at + i * 64, 0, 2);
  h->at[h->now] += h->per_step * 64;
  h->lines[h->now] -= h->per_step;
  if (h->lines[h->now] <= 0) h->now++;
}
/* The next `lines` lines, for the caller to ask for; `idle` where nothing is left. */
static inline const char *ahead_take(ahead *h, int64_t lines, const void *idle) {
  if (h->now >= h->n) return idle;
  const char *at = h->at[h->now];
  h->at[h->now] += lines * 64;
  h->lines[h->now] -= lines;
  if (h->lines[h->now] <= 0) h->now++;
  return at;
}

#endif

/* hc_merge_n: what hc_merge_tmpl.c does with the tokens of a piece. Included twice by it, with
 *   MERGE_N(name)  the name for this inclusion: name_4, for n = 4, or name_any
 *   MERGE_UNROLL   before loops over streams: unrolled for n = 4, plain otherwise (they would
 *                  only swell). */

/* ---- res ---- */
BK_INLINE void MERGE_N(res_tokens)(const bk_hc_res_args *a, int64_t begin, int64_t end,
                                   const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i), y = streams_of(&a->y, i);
    bk_vf comb[BK_HC_MAX_N * BK_HC_MAX_N];
    spread_nn(&a->comb, i, comb, n);
#define BODY(count)                                                            \
  do {                                                                         \
    bk_vf v[BK_HC_MAX_N];                                                      \
    streams_load(x, v, c, count, bf, n);                                       \
    MERGE_UNROLL                                                               \
    for (int k = 0; k < n; k++)                                                \
      bk_v_put(stream_at(y, k), c, bf, count, streams_mix(comb + k, n, v, n)); \
  } while (0)
    BK_HC_COLUMNS(a->x.shape[2], BODY);
#undef BODY
  }
}

/* ---- post ---- */
BK_INLINE void MERGE_N(post_tokens)(const bk_hc_post_args *a, int64_t begin, int64_t end,
                                    const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams y = streams_of(&a->y, i);
    const char *f = bk_cpu_at(&a->f, i);
    bk_vf post[BK_HC_MAX_N];
    spread_n(&a->post, i, post, n);
#define BODY(count)                                                            \
  do {                                                                         \
    bk_vf v = bk_v_get(f, c, bf, count);                                       \
    MERGE_UNROLL                                                               \
    for (int k = 0; k < n; k++)                                                \
      bk_v_put(stream_at(y, k), c, bf, count,                                  \
               bk_v_fma(post[k], v, bk_v_get(stream_at(y, k), c, bf, count))); \
  } while (0)
    BK_HC_COLUMNS(a->f.shape[1], BODY);
#undef BODY
  }
}

/* ---- post and res ---- */
BK_INLINE void MERGE_N(merge_tokens)(const bk_hc_post_res_args *a, int64_t begin, int64_t end,
                                     const bool mix, const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i), out = streams_of(&a->out, i);
    const char *f = bk_cpu_at(&a->f, i);
    bk_vf comb[BK_HC_MAX_N * BK_HC_MAX_N], post[BK_HC_MAX_N];
    if (mix) spread_nn(&a->comb, i, comb, n);
    spread_n(&a->post, i, post, n);
#define BODY(count)                                                          \
  do {                                                                       \
    bk_vf v[BK_HC_MAX_N], vf = bk_v_get(f, c, bf, count);                    \
    streams_load(x, v, c, count, bf, n);                                     \
    MERGE_UNROLL                                                             \
    for (int k = 0; k < n; k++) {                                            \
      bk_vf sum = mix ? streams_mix(comb + k, n, v, n) : v[k];               \
      bk_v_put(stream_at(out, k), c, bf, count, bk_v_fma(post[k], vf, sum)); \
    }                                                                        \
  } while (0)
    BK_HC_COLUMNS(a->x.shape[2], BODY);
#undef BODY
  }
}

/* sums[r * n + k] += row r . d[k] over `columns` columns from `from` on, for `rows` (1 or 2)
 * rows. */
BK_INLINE void MERGE_N(dots)(char *const *row, const int rows, token_streams d, bk_vf *sums,
                             int64_t from, int64_t columns, const bool bf, const int n) {
  bk_vf acc[2 * BK_HC_MAX_N] = {{0}};
  MERGE_UNROLL
  for (int k = 0; k < n; k++) {
    acc[k] = sums[k];
    if (rows == 2) acc[n + k] = sums[n + k];
  }
#define BODY(count)                                             \
  do {                                                          \
    bk_vf v0 = bk_v_get(row[0], from + c, bf, count),           \
          v1 = bk_v_get(row[rows - 1], from + c, bf, count);    \
    MERGE_UNROLL                                                \
    for (int k = 0; k < n; k++) {                               \
      bk_vf g = bk_v_get(stream_at(d, k), from + c, bf, count); \
      acc[k] = v0 * g + acc[k];                                 \
      if (rows == 2) acc[n + k] = v1 * g + acc[n + k];          \
    }                                                           \
  } while (0)
  BK_HC_COLUMNS(columns, BODY);
#undef BODY
  MERGE_UNROLL
  for (int k = 0; k < n; k++) {
    sums[k] = acc[k];
    if (rows == 2) sums[n + k] = acc[n + k];
  }
}

/* dcomb[m][k] sums for all m: two sources at a time. */
BK_INLINE void MERGE_N(dcomb_block)(token_streams x, token_streams d, bk_vf *dcomb, int64_t from,
                                    int64_t columns, const bool bf, const int n) {
  int m = 0;
  MERGE_UNROLL
  for (; m + 2 <= n; m += 2) {
    char *const rows[2] = {stream_at(x, m), stream_at(x, m + 1)};
    MERGE_N(dots)(rows, 2, d, dcomb + m * n, from, columns, bf, n);
  }
  if (m < n) {
    char *const row[1] = {stream_at(x, m)};
    MERGE_N(dots)(row, 1, d, dcomb + m * n, from, columns, bf, n);
  }
}

/* dx[m] = sum_k comb[m][k] d[k] (d itself without comb), df = sum_k post[k] d[k], dpost[k] += f
 * . d[k]. dx may be d. */
BK_INLINE void MERGE_N(merge_bwd_block)(const merge_bwd_token *t, const bk_vf *comb,
                                        const bk_vf *post, bk_vf *dpost, int64_t from,
                                        int64_t columns, const bool with_x, const bool with_f,
                                        const bool mix, const bool bf, const int n) {
#define BODY(count)                                                     \
  do {                                                                  \
    bk_vf g[BK_HC_MAX_N] = {{0}};                                       \
    streams_load(t->d, g, from + c, count, bf, n);                      \
    if (with_f) {                                                       \
      bk_vf vf = bk_v_get(t->f, from + c, bf, count);                   \
      MERGE_UNROLL                                                      \
      for (int k = 0; k < n; k++) dpost[k] = vf * g[k] + dpost[k];      \
      bk_v_put(t->df, from + c, bf, count, streams_mix(post, 1, g, n)); \
    }                                                                   \
    if (with_x) {                                                       \
      MERGE_UNROLL                                                      \
      for (int m = 0; m < n; m++)                                       \
        bk_v_put(stream_at(t->dx, m), from + c, bf, count,              \
                 mix ? streams_mix(comb + m * n, 1, g, n) : g[m]);      \
    }                                                                   \
  } while (0)
  BK_HC_COLUMNS(columns, BODY);
#undef BODY
}

BK_INLINE void MERGE_N(store_dcomb)(const bk_tensor *t, int64_t i, const bk_vf *sums, const int n) {
  for (int m = 0; m < n; m++) store_sums((float *)bk_cpu_at2(t, i, m), sums + m * n, n);
}

BK_INLINE void MERGE_N(merge_bwd_tokens)(const bk_hc_post_res_bwd_args *a, int64_t begin,
                                         int64_t end, const bool mix, const bool bf, const int n) {
  int64_t columns = a->x.shape[2];
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i);
    merge_bwd_token t = {streams_of(&a->dout, i), streams_of(&a->dx, i), bk_cpu_at(&a->f, i),
                         bk_cpu_at(&a->df, i)};
    bk_vf comb[BK_HC_MAX_N * BK_HC_MAX_N], post[BK_HC_MAX_N];
    bk_vf dcomb[BK_HC_MAX_N * BK_HC_MAX_N], dpost[BK_HC_MAX_N];
    if (mix) spread_nn(&a->comb, i, comb, n);
    spread_n(&a->post, i, post, n);
    for (int j = 0; mix && j < n * n; j++) dcomb[j] = bk_v_zero();
    for (int k = 0; k < n; k++) dpost[k] = bk_v_zero();
    for (int64_t from = 0; from < columns; from += BLOCK) {
      int64_t width = columns - from < BLOCK ? columns - from : BLOCK;
      if (mix) MERGE_N(dcomb_block)(x, t.d, dcomb, from, width, bf, n);
      MERGE_N(merge_bwd_block)(&t, comb, post, dpost, from, width, true, true, mix, bf, n);
    }
    if (mix) MERGE_N(store_dcomb)(&a->dcomb, i, dcomb, n);
    store_sums((float *)bk_cpu_at(&a->dpost, i), dpost, n);
  }
}

BK_INLINE void MERGE_N(res_bwd_tokens)(const bk_hc_res_bwd_args *a, int64_t begin, int64_t end,
                                       const bool bf, const int n) {
  int64_t columns = a->x.shape[2];
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i);
    merge_bwd_token t = {.d = streams_of(&a->dy, i), .dx = streams_of(&a->dx, i)};
    bk_vf comb[BK_HC_MAX_N * BK_HC_MAX_N], dcomb[BK_HC_MAX_N * BK_HC_MAX_N];
    spread_nn(&a->comb, i, comb, n);
    for (int j = 0; j < n * n; j++) dcomb[j] = bk_v_zero();
    for (int64_t from = 0; from < columns; from += BLOCK) {
      int64_t width = columns - from < BLOCK ? columns - from : BLOCK;
      MERGE_N(dcomb_block)(x, t.d, dcomb, from, width, bf, n);
      MERGE_N(merge_bwd_block)(&t, comb, comb, dcomb, from, width, true, false, true, bf, n);
    }
    MERGE_N(store_dcomb)(&a->dcomb, i, dcomb, n);
  }
}

BK_INLINE void MERGE_N(post_bwd_tokens)(const bk_hc_post_bwd_args *a, int64_t begin, int64_t end,
                                        const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    merge_bwd_token t = {
        .d = streams_of(&a->dy, i), .f = bk_cpu_at(&a->f, i), .df = bk_cpu_at(&a->df, i)};
    bk_vf post[BK_HC_MAX_N], dpost[BK_HC_MAX_N] = {{0}};
    spread_n(&a->post, i, post, n);
    MERGE_N(merge_bwd_block)(&t, post, post, dpost, 0, a->f.shape[1], false, true, false, bf, n);
    store_sums((float *)bk_cpu_at(&a->dpost, i), dpost, n);
  }
}

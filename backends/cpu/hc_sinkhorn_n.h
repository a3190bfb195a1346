/* hc_sinkhorn_n: Sinkhorn on vectors, see hc_sinkhorn.h. Included twice by it, with
 *   SINKHORN_N(name)  the name for this inclusion: name_4, for n = 4, or name_any
 *   SINKHORN_UNROLL   before loops over streams: unrolled for n = 4, plain otherwise. */

/* Softmax of each row, plus eps, into p; lanes in which a row's range is too large get a
 * non-zero mask. */
BK_INLINE bk_vi SINKHORN_N(sinkhorn_softmax)(const float *logits, float eps, bk_vf *p,
                                             const int n) {
  bk_vi wide = {0};
  SINKHORN_UNROLL
  for (int m = 0; m < n; m++) {
    bk_vf high = bk_v_ld(logits, m * n * BK_VW, false), low = high, sum = bk_v_zero();
    SINKHORN_UNROLL
    for (int k = 1; k < n; k++) {
      bk_vf l = bk_v_ld(logits, (m * n + k) * BK_VW, false);
      high = bk_v_max(high, l);
      low = bk_v_min(low, l);
    }
    wide |= (bk_vi)(high - low > SINKHORN_RANGE);
    SINKHORN_UNROLL
    for (int k = 0; k < n; k++) {
      p[m * n + k] = bk_v_exp(bk_v_ld(logits, (m * n + k) * BK_VW, false) - high);
      sum = sum + p[m * n + k];
    }
    SINKHORN_UNROLL
    for (int k = 0; k < n; k++) p[m * n + k] = p[m * n + k] / sum + eps;
  }
  return wide;
}

/* A step along the lines i, entries p[i * line + j * step], scaled by other[j] and by the old
 * mine[i] = 1 / inverse[i]: the new inverse is sum_j p other[j] + eps * inverse. */
BK_INLINE void SINKHORN_N(sinkhorn_step)(const bk_vf *p, const int line, const int step, float eps,
                                         const bk_vf *other, bk_vf *mine, bk_vf *inverse,
                                         const int n) {
  SINKHORN_UNROLL
  for (int i = 0; i < n; i++) {
    bk_vf sum = inverse[i] * eps;
    SINKHORN_UNROLL
    for (int j = 0; j < n; j++) sum = p[i * line + j * step] * other[j] + sum;
    inverse[i] = sum;
    mine[i] = 1.f / sum;
  }
}

/* All steps after the softmax, 2 iters - 1 of them; history: NULL, or the n factors of every
 * step. Lanes whose factors went out of range get a non-zero mask. */
BK_INLINE bk_vi SINKHORN_N(sinkhorn_steps)(const bk_vf *p, int iters, float eps, bk_vf *r, bk_vf *c,
                                           bk_vf *history, const int n) {
  bk_vf r_inverse[BK_HC_MAX_N] = {{0}}, c_inverse[BK_HC_MAX_N] = {{0}};
  bk_vi wide = {0};
  SINKHORN_UNROLL
  for (int i = 0; i < n; i++) r[i] = c[i] = r_inverse[i] = c_inverse[i] = bk_v_set(1.f);
  for (int t = 0; t < iters; t++) {
    if (t > 0) SINKHORN_N(sinkhorn_step)(p, n, 1, eps, c, r, r_inverse, n);
    SINKHORN_N(sinkhorn_step)(p, 1, n, eps, r, c, c_inverse, n);
    if (!history) continue;
    SINKHORN_UNROLL
    for (int i = 0; i < n; i++) history[2 * t * n + i] = r[i], history[(2 * t + 1) * n + i] = c[i];
  }
  SINKHORN_UNROLL
  for (int i = 0; i < n; i++)
    wide |= ~((bk_vi)(r[i] < SINKHORN_LARGE) & (bk_vi)(c[i] < SINKHORN_LARGE));
  return wide;
}

/* d: D of the iterate p[m,k] r[m] c[k] -> D before the step along the lines that gave it; delta
 * as at the top. */
BK_INLINE void SINKHORN_N(sinkhorn_back)(const bk_vf *q, bk_vf *d, const int line, const int step,
                                         const bk_vf *delta, const int n) {
  SINKHORN_UNROLL
  for (int i = 0; i < n; i++) {
    bk_vf in[BK_HC_MAX_N] = {{0}};
    SINKHORN_UNROLL
    for (int j = 0; j < n; j++) in[j] = delta ? delta[i] * d[i * line + j * step] : bk_v_zero();
    SINKHORN_UNROLL
    for (int j = 0; j < n; j++) {
      SINKHORN_UNROLL
      for (int k = j + 1; k < n; k++) {
        bk_vf t = q[i * line + j * step] * d[i * line + k * step] -
                  q[i * line + k * step] * d[i * line + j * step];
        in[k] = in[k] + t;
        in[j] = in[j] - t;
      }
    }
    SINKHORN_UNROLL
    for (int j = 0; j < n; j++) d[i * line + j * step] = in[j];
  }
}

BK_INLINE void SINKHORN_N(sinkhorn_iterate)(const bk_vf *p, const bk_vf *r, const bk_vf *c,
                                            bk_vf *q, const int n) {
  SINKHORN_UNROLL
  for (int m = 0; m < n; m++) {
    SINKHORN_UNROLL
    for (int k = 0; k < n; k++) q[m * n + k] = p[m * n + k] * r[m] * c[k];
  }
}

/* Walks back a step that took the factors along the lines from `before` to `mine`. */
BK_INLINE void SINKHORN_N(sinkhorn_undo)(const bk_vf *q, bk_vf *d, const int line, const int step,
                                         float eps, const bk_vf *before, const bk_vf *mine,
                                         const int n) {
  bk_vf delta[BK_HC_MAX_N] = {{0}};
  if (eps > 0) {
    SINKHORN_UNROLL
    for (int i = 0; i < n; i++) delta[i] = eps * mine[i] / before[i];
    SINKHORN_N(sinkhorn_back)(q, d, line, step, delta, n);
  } else {
    SINKHORN_N(sinkhorn_back)(q, d, line, step, NULL, n);
  }
}

BK_INLINE bk_vi SINKHORN_N(sinkhorn_lanes)(const float *logits, float *comb, int iters, float eps,
                                           const int n) {
  bk_vf p[BK_HC_MAX_N * BK_HC_MAX_N], r[BK_HC_MAX_N], c[BK_HC_MAX_N];
  BK_HC_ASSUME_N(n);
  bk_vi wide = SINKHORN_N(sinkhorn_softmax)(logits, eps, p, n);
  wide |= SINKHORN_N(sinkhorn_steps)(p, iters, eps, r, c, NULL, n);
  SINKHORN_N(sinkhorn_iterate)(p, r, c, p, n);
  SINKHORN_UNROLL
  for (int j = 0; j < n * n; j++) bk_v_st(comb, j * BK_VW, false, p[j]);
  return wide;
}

BK_INLINE bk_vi SINKHORN_N(sinkhorn_bwd_lanes)(const float *logits, const float *dcomb,
                                               float *dlogits, int iters, float eps, const int n) {
  bk_vf p[BK_HC_MAX_N * BK_HC_MAX_N], q[BK_HC_MAX_N * BK_HC_MAX_N], d[BK_HC_MAX_N * BK_HC_MAX_N];
  bk_vf r[BK_HC_MAX_N], c[BK_HC_MAX_N], history[2 * BK_HC_MAX_ITERS * BK_HC_MAX_N],
      one[BK_HC_MAX_N];
  BK_HC_ASSUME_N(n);
  bk_vi wide = SINKHORN_N(sinkhorn_softmax)(logits, eps, p, n);
  wide |= SINKHORN_N(sinkhorn_steps)(p, iters, eps, r, c, history, n);
  SINKHORN_N(sinkhorn_iterate)(p, r, c, q, n);
  for (int j = 0; j < n * n; j++) d[j] = bk_v_ld(dcomb, j * BK_VW, false) * q[j];
  for (int i = 0; i < n; i++) one[i] = bk_v_set(1.f);
  for (int t = iters - 1; t >= 0; t--) {
    const bk_vf *rt = history + 2 * t * n, *ct = rt + n;
    const bk_vf *r_before = t > 0 ? rt - 2 * n : one, *c_before = t > 0 ? ct - 2 * n : one;
    SINKHORN_N(sinkhorn_iterate)(p, rt, ct, q, n);
    SINKHORN_N(sinkhorn_undo)(q, d, 1, n, eps, c_before, ct, n);
    if (t == 0) break;
    SINKHORN_N(sinkhorn_iterate)(p, rt, c_before, q, n);
    SINKHORN_N(sinkhorn_undo)(q, d, n, 1, eps, r_before, rt, n);
  }
  for (int j = 0; j < n * n; j++) {
    q[j] = p[j] - eps; /* the softmax itself */
    if (eps > 0) d[j] = d[j] * q[j] / p[j];
  }
  SINKHORN_N(sinkhorn_back)(q, d, n, 1, NULL, n);
  for (int j = 0; j < n * n; j++) bk_v_st(dlogits, j * BK_VW, false, d[j]);
  return wide;
}

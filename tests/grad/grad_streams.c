/* Gradients of the residual connections' primitives. */
#include "tests/grad/grad.h"

#define CHECK(...) grad_check(g, &(grad_case){__VA_ARGS__})
#define N 3

static void check_expand(grad_test *g, int n) {
  bk_tensor x = G(N, 5), y = G(N, n, 5), dx = G(N, 5), dy = G(N, n, 5);
  bk_hc_expand_args expand = {x, y}, back_to_streams = {dx, dy};
  bk_hc_collapse_args collapse = {y, x}, back_to_one = {dy, dx};
  CHECK("hc_expand", BK_OP_HC_EXPAND, BK_OP_HC_COLLAPSE, &expand, &back_to_one, {{&y, &dy, 0}},
        {{&x, &dx, 0}}, NULL);
  CHECK("hc_collapse", BK_OP_HC_COLLAPSE, BK_OP_HC_EXPAND, &collapse, &back_to_streams,
        {{&x, &dx, 0}}, {{&y, &dy, 0}}, NULL);
  grad_reset(g);
}

static void check_rms(grad_test *g, bool accumulate) {
  bk_tensor x = G(4, 11), rinv = G(4), drinv = G(4), dx = G(4, 11);
  bk_hc_rms_args forward = {x, rinv, 1e-2};
  bk_hc_rms_bwd_args backward = {x, rinv, drinv, dx, accumulate};
  CHECK("hc_rms", BK_OP_HC_RMS, BK_OP_HC_RMS_BWD, &forward, &backward, {{&rinv, &drinv, 0}},
        {{&x, &dx, accumulate}}, NULL);
  grad_reset(g);
}

static void check_logits(grad_test *g, bk_hc_kind kind, int n) {
  int64_t rows = bk_hc_rows(kind, n), scales = bk_hc_scale_count(kind);
  bk_tensor proj = G(N, rows), rinv = g_uniform(g, N, 0.5, 2), scale = G(scales), base = G(rows),
            logits = G(N, rows);
  bk_tensor dlogits = G(N, rows), dproj = G(N, rows), drinv = G(N), dscale = G(scales),
            dbase = G(rows);
  bk_hc_logits_args forward = {proj, rinv, scale, base, logits, n};
  bk_hc_logits_bwd_args backward = {proj, rinv, scale, dlogits, dproj, drinv, dscale, dbase, n};
  CHECK("hc_logits", BK_OP_HC_LOGITS, BK_OP_HC_LOGITS_BWD, &forward, &backward,
        {{&logits, &dlogits, 0}},
        {{&proj, &dproj, 0}, {&rinv, &drinv, 0}, {&scale, &dscale, 1}, {&base, &dbase, 1}}, NULL);
  grad_reset(g);
}

static void check_gates(grad_test *g, int n, bool has_post) {
  bk_tensor logits = G(N, 2 * n), dlogits = G(N, 2 * n), pre = G(N, n), post = G(N, n),
            dpre = G(N, n), dpost = G(N, n), none = {0};
  if (!has_post) {
    logits = G(N, n);
    dlogits = G(N, n);
  }
  bk_hc_gates_args forward = {logits, pre, has_post ? post : none, 1e-2};
  bk_hc_gates_bwd_args backward = {logits, dpre, has_post ? dpost : none, dlogits};
  CHECK("hc_gates", BK_OP_HC_GATES, BK_OP_HC_GATES_BWD, &forward, &backward,
        {{&pre, &dpre, 0}, {has_post ? &post : NULL, &dpost, 0}}, {{&logits, &dlogits, 0}}, NULL);
  grad_reset(g);
}

static void check_sinkhorn(grad_test *g, int n, int iters, double eps) {
  bk_tensor logits = G(N, n, n), comb = G(N, n, n), dcomb = G(N, n, n), dlogits = G(N, n, n);
  g_scale(&logits, 2);
  bk_sinkhorn_args forward = {logits, comb, iters, eps};
  bk_sinkhorn_bwd_args backward = {logits, dcomb, dlogits, iters, eps};
  CHECK("sinkhorn", BK_OP_SINKHORN, BK_OP_SINKHORN_BWD, &forward, &backward, {{&comb, &dcomb, 0}},
        {{&logits, &dlogits, 0}}, NULL);
  grad_reset(g);
}

static void check_perm(grad_test *g, int n) {
  int64_t weights = bk_factorial(n);
  bk_tensor logits = G(N, weights), comb = G(N, n, n), dcomb = G(N, n, n), dlogits = G(N, weights);
  bk_hc_perm_args forward = {logits, comb, n};
  bk_hc_perm_bwd_args backward = {logits, dcomb, dlogits, n};
  CHECK("hc_perm", BK_OP_HC_PERM, BK_OP_HC_PERM_BWD, &forward, &backward, {{&comb, &dcomb, 0}},
        {{&logits, &dlogits, 0}}, NULL);
  grad_reset(g);
}

static void check_kron(grad_test *g, int n, int factors) {
  bk_tensor logits = G(N, 2 * factors), comb = G(N, n, n), dcomb = G(N, n, n),
            dlogits = G(N, 2 * factors);
  bk_hc_kron_args forward = {logits, comb};
  bk_hc_kron_bwd_args backward = {logits, dcomb, dlogits};
  CHECK("hc_kron", BK_OP_HC_KRON, BK_OP_HC_KRON_BWD, &forward, &backward, {{&comb, &dcomb, 0}},
        {{&logits, &dlogits, 0}}, NULL);
  grad_reset(g);
}

static void check_tanh(grad_test *g, int n) {
  bk_tensor proj = G(N * n, n + 2), rinv = g_uniform(g, N * n, 0.5, 2), scale = G(3),
            base = G(n * (n + 2));
  bk_tensor pre = G(N, n), post = G(N, n), comb = G(N, n, n), dpre = G(N, n), dpost = G(N, n),
            dcomb = G(N, n, n);
  bk_tensor dproj = G(N * n, n + 2), drinv = G(N * n), dscale = G(3), dbase = G(n * (n + 2));
  bk_hc_tanh_args forward = {proj, rinv, scale, base, pre, post, comb, n};
  bk_hc_tanh_bwd_args backward = {proj,  rinv,  scale,  dpre,  dpost, dcomb,
                                  dproj, drinv, dscale, dbase, n};
  CHECK("hc_tanh", BK_OP_HC_TANH, BK_OP_HC_TANH_BWD, &forward, &backward,
        {{&pre, &dpre, 0}, {&post, &dpost, 0}, {&comb, &dcomb, 0}},
        {{&proj, &dproj, 0}, {&rinv, &drinv, 0}, {&scale, &dscale, 1}, {&base, &dbase, 1}}, NULL);
  grad_reset(g);
}

static void check_pre(grad_test *g, int n, bool accumulate) {
  bk_tensor x = G(N, n, 5), pre = G(N, n), y = G(N, 5), dy = G(N, 5), dx = G(N, n, 5),
            dpre = G(N, n);
  bk_hc_pre_args forward = {x, pre, y};
  bk_hc_pre_bwd_args backward = {x, pre, dy, dx, dpre, accumulate};
  CHECK("hc_pre", BK_OP_HC_PRE, BK_OP_HC_PRE_BWD, &forward, &backward, {{&y, &dy, 0}},
        {{&x, &dx, accumulate}, {&pre, &dpre, 0}}, NULL);
  grad_reset(g);
}

static void check_res(grad_test *g, int n) {
  bk_tensor x = G(N, n, 5), comb = G(N, n, n), y = G(N, n, 5), dy = G(N, n, 5), dx = G(N, n, 5),
            dcomb = G(N, n, n);
  bk_hc_res_args forward = {x, comb, y};
  bk_hc_res_bwd_args backward = {x, comb, dy, dx, dcomb};
  CHECK("hc_res", BK_OP_HC_RES, BK_OP_HC_RES_BWD, &forward, &backward, {{&y, &dy, 0}},
        {{&x, &dx, 0}, {&comb, &dcomb, 0}}, NULL);
  grad_reset(g);
}

static void check_post(grad_test *g, int n) {
  bk_tensor f = G(N, 5), post = G(N, n), y = G(N, n, 5), dy = G(N, n, 5), df = G(N, 5),
            dpost = G(N, n);
  bk_hc_post_args forward = {f, post, y};
  bk_hc_post_bwd_args backward = {f, post, dy, df, dpost};
  CHECK("hc_post", BK_OP_HC_POST, BK_OP_HC_POST_BWD, &forward, &backward, {{&y, &dy, 0}},
        {{&f, &df, 0}, {&post, &dpost, 0}}, &y);
  grad_reset(g);
}

void grad_streams(grad_test *g) {
  const bk_hc_kind kinds[] = {BK_HC_MHC, BK_HC_MHC_LITE, BK_HC_IHC, BK_HC_HEAD};
  check_rms(g, false);
  check_rms(g, true);
  for (int factors = 1; 1 << factors <= BK_HC_MAX_N; factors++)
    check_kron(g, 1 << factors, factors);
  for (int n = 1; n <= BK_HC_MAX_N; n++) {
    check_expand(g, n);
    for (int i = 0; i < 4; i++) {
      if (kinds[i] != BK_HC_MHC_LITE || n <= 4) check_logits(g, kinds[i], n);
    }
    check_gates(g, n, true);
    check_gates(g, n, false);
    check_sinkhorn(g, n, 20, 0);
    check_sinkhorn(g, n, 1 + n % 3, 0);
    check_sinkhorn(g, n, 20, 1e-2);
    check_sinkhorn(g, n, 1 + n % 3, 1e-6);
    if (n <= 5) check_perm(g, n);
    check_tanh(g, n);
    check_pre(g, n, false);
    check_pre(g, n, true);
    check_res(g, n);
    check_post(g, n);
  }
}

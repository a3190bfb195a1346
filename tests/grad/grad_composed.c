/* Gradients of the composed ops. */
#include "tests/grad/grad.h"

#define CHECK(...) grad_check(g, &(grad_case){__VA_ARGS__})
#define N 3
#define C 5

static void check_project(grad_test *g, bool accumulate) {
  bk_tensor x = G(4, 10), fn = G(6, 10), proj = G(4, 6), rinv = G(4), dproj = G(4, 6), drinv = G(4),
            dx = G(4, 10), dfn = G(6, 10);
  bk_hc_project_args forward = {x, fn, proj, rinv, 1e-2};
  bk_hc_project_bwd_args backward = {x, fn, rinv, dproj, drinv, dx, dfn, accumulate};
  CHECK("hc_project", BK_OP_HC_PROJECT, BK_OP_HC_PROJECT_BWD, &forward, &backward,
        {{&proj, &dproj, 0}, {&rinv, &drinv, 0}}, {{&x, &dx, accumulate}, {&fn, &dfn, 1}}, NULL);
  grad_reset(g);
}

static void check_maps(grad_test *g, bk_hc_kind kind, int n, double eps) {
  int64_t rows = kind == BK_HC_HC ? N * n : N, width = bk_hc_rows(kind, n);
  int64_t bases = bk_hc_base_count(kind, n), scales = bk_hc_scale_count(kind);
  bool has_post = kind != BK_HC_HEAD, has_comb = has_post && kind != BK_HC_IHC;
  bk_tensor proj = G(rows, width), rinv = g_uniform(g, rows, 0.5, 2), scale = G(scales),
            base = G(bases), none = {0};
  bk_tensor pre = G(N, n), post = G(N, n), comb = G(N, n, n), dpre = G(N, n), dpost = G(N, n),
            dcomb = G(N, n, n);
  bk_tensor dproj = G(rows, width), drinv = G(rows), dscale = G(scales), dbase = G(bases);
  bk_hc_maps_args forward = {
      proj, rinv, scale, base, pre, has_post ? post : none, has_comb ? comb : none,
      kind, n,    5,     eps};
  bk_hc_maps_bwd_args backward = {proj,
                                  rinv,
                                  scale,
                                  base,
                                  dpre,
                                  has_post ? dpost : none,
                                  has_comb ? dcomb : none,
                                  dproj,
                                  drinv,
                                  dscale,
                                  dbase,
                                  kind,
                                  n,
                                  5,
                                  eps};
  CHECK("hc_maps", BK_OP_HC_MAPS, BK_OP_HC_MAPS_BWD, &forward, &backward,
        {{&pre, &dpre, 0},
         {has_post ? &post : NULL, &dpost, 0},
         {has_comb ? &comb : NULL, &dcomb, 0}},
        {{&proj, &dproj, 0}, {&rinv, &drinv, 0}, {&scale, &dscale, 1}, {&base, &dbase, 1}}, NULL);
  grad_reset(g);
}

static void check_pre_norm(grad_test *g, int n, bool accumulate) {
  bk_tensor x = G(N, n, C), pre = G(N, n), w = G(C), y = G(N, C), h = G(N, C), rstd = G(N),
            dh = G(N, C);
  bk_tensor dx = G(N, n, C), dpre = G(N, n), dw = G(C);
  bk_hc_pre_norm_args forward = {x, pre, w, y, h, rstd, 1e-1};
  bk_hc_pre_norm_bwd_args backward = {x, pre, w, y, rstd, dh, dx, dpre, dw, accumulate};
  CHECK("hc_pre_norm", BK_OP_HC_PRE_NORM, BK_OP_HC_PRE_NORM_BWD, &forward, &backward,
        {{&h, &dh, 0}}, {{&x, &dx, accumulate}, {&pre, &dpre, 0}, {&w, &dw, 1}}, NULL);
  grad_reset(g);
}

/* inplace: dx in dout's memory. */
static void check_post_res(grad_test *g, int n, bool has_comb, bool inplace) {
  bk_tensor x = G(N, n, C), f = G(N, C), post = G(N, n), comb = G(N, n, n), out = G(N, n, C),
            dout = G(N, n, C), none = {0};
  bk_tensor dx = inplace ? dout : G(N, n, C), df = G(N, C), dpost = G(N, n), dcomb = G(N, n, n);
  bk_hc_post_res_args forward = {x, f, post, has_comb ? comb : none, out};
  bk_hc_post_res_bwd_args backward = {x,  f,  post,  has_comb ? comb : none, dout,
                                      dx, df, dpost, has_comb ? dcomb : none};
  CHECK("hc_post_res", BK_OP_HC_POST_RES, BK_OP_HC_POST_RES_BWD, &forward, &backward,
        {{&out, &dout, 0}},
        {{&x, &dx, 0}, {&f, &df, 0}, {&post, &dpost, 0}, {has_comb ? &comb : NULL, &dcomb, 0}},
        NULL);
  grad_reset(g);
}

/* x, f and the maps of one sublayer -> streams between -> maps and normed input of the next. */
static void check_merge_mix(grad_test *g, bk_hc_kind kind, int n, bool inplace) {
  int64_t rows = kind == BK_HC_HC ? N * n : N, columns = kind == BK_HC_HC ? C : n * C,
          width = bk_hc_rows(kind, n);
  bool has_comb = kind != BK_HC_IHC;
  bk_tensor none = {0}, x = G(N, n, C), f = G(N, C), post = G(N, n),
            comb = has_comb ? G(N, n, n) : none, out = G(N, n, C);
  bk_tensor flat = bk_tensor_reshape(out, 2, (int64_t[]){rows, columns}), fn = G(width, columns),
            proj = G(rows, width), rinv = G(rows);
  bk_tensor scale = G(bk_hc_scale_count(kind)), base = G(bk_hc_base_count(kind, n)), pre = G(N, n),
            next_post = G(N, n);
  bk_tensor next_comb = has_comb ? G(N, n, n) : none, w = G(C), y = G(N, C), h = G(N, C),
            rstd = G(N);
  bk_hc_merge_mix_args forward = {
      {x, f, post, comb, out},
      {flat, fn, proj, rinv, 1e-2},
      {proj, rinv, scale, base, pre, next_post, next_comb, kind, n, 4, 0},
      {out, pre, w, y, h, rstd, 1e-1}};
  bk_tensor dout = G(N, n, C), dh = G(N, C), dnext_post = G(N, n),
            dnext_comb = has_comb ? G(N, n, n) : none, dpre = G(N, n);
  bk_tensor dw = G(C), dproj = G(rows, width), drinv = G(rows), dscale = G(bk_hc_scale_count(kind));
  bk_tensor dbase = G(bk_hc_base_count(kind, n)), dfn = G(width, columns),
            dflat = bk_tensor_reshape(dout, 2, (int64_t[]){rows, columns});
  bk_tensor dx = inplace ? dout : G(N, n, C), df = G(N, C), dpost = G(N, n),
            dcomb = has_comb ? G(N, n, n) : none;
  g_scale(&fn, 0.3);
  bk_hc_merge_mix_bwd_args backward = {{out, pre, w, y, rstd, dh, dout, dpre, dw, true},
                                       {proj, rinv, scale, base, dpre, dnext_post, dnext_comb,
                                        dproj, drinv, dscale, dbase, kind, n, 4, 0},
                                       {flat, fn, rinv, dproj, drinv, dflat, dfn, true},
                                       {x, f, post, comb, dout, dx, df, dpost, dcomb}};
  CHECK("hc_merge_mix", BK_OP_HC_MERGE_MIX, BK_OP_HC_MERGE_MIX_BWD, &forward, &backward,
        {{&out, &dout, 0},
         {&h, &dh, 0},
         {&next_post, &dnext_post, 0},
         {has_comb ? &next_comb : NULL, &dnext_comb, 0}},
        {{&x, &dx, 0},
         {&f, &df, 0},
         {&post, &dpost, 0},
         {&fn, &dfn, 1},
         {&scale, &dscale, 1},
         {&base, &dbase, 1},
         {&w, &dw, 1},
         {has_comb ? &comb : NULL, &dcomb, 0}},
        NULL);
  grad_reset(g);
}

void grad_composed(grad_test *g) {
  const bk_hc_kind kinds[] = {BK_HC_MHC, BK_HC_MHC_LITE, BK_HC_IHC,
                              BK_HC_HC,  BK_HC_HEAD,     BK_HC_KROMHC};
  check_project(g, false);
  check_project(g, true);
  for (int n = 1; n <= 5; n++) {
    for (int i = 0; i < 6; i++) {
      if (kinds[i] == BK_HC_MHC_LITE && n > 4) continue;
      if (kinds[i] == BK_HC_KROMHC && n != 1 && n != 2 && n != 4) continue;
      check_maps(g, kinds[i], n, 0);
      if (kinds[i] != BK_HC_HC) check_maps(g, kinds[i], n, 1e-2);
      if (kinds[i] != BK_HC_HEAD) check_merge_mix(g, kinds[i], n, n % 2);
    }
    check_pre_norm(g, n, n % 2);
    check_pre_norm(g, n, !(n % 2));
    for (int i = 0; i < 4; i++) check_post_res(g, n, i & 1, i & 2);
  }
}

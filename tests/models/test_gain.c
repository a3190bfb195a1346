/* Amax gains: hand-made maps with known products, identities, and those of models. */
#include "models/gain.h"
#include "tests/models/models.h"

#define NEAR(a, b) ck_assert_double_eq_tol(a, b, 1e-14)

/* n = 2, two sublayers, two tokens; comb is [source][destination], so H is its transpose.
 * token 0: H1 = [1 2; 0 1], H2 = [1 0; -3 1]; H2 H1 = [1 2; -3 -5].   token 1: both the
 * identity. */
START_TEST(test_hand_made) {
  const double comb[2][2][4] = {{{1, 0, 2, 1}, {1, 0, 0, 1}}, {{1, -3, 0, 1}, {1, 0, 0, 1}}};
  bk_gain *g;
  OK(bk_gain_create(ctx, 2, 2, &g));
  bk_gain_add_maps(g, &comb[0][0][0], 2);
  bk_gain_finish(g);
  ck_assert_int_eq(g->tokens, 2);
  NEAR(g->sublayers[0].forward, (3 + 1) / 2.0); /* rows of H1: 3, 1 */
  NEAR(g->sublayers[0].forward_max, 3);
  NEAR(g->sublayers[0].backward, (3 + 1) / 2.0); /* columns of H1: 1, 3 */
  NEAR(g->sublayers[1].forward, (2 + 1) / 2.0);  /* rows of H2: 1, -2 */
  NEAR(g->sublayers[1].abs_forward, (4 + 1) / 2.0);
  NEAR(g->sublayers[1].backward, (2 + 1) / 2.0); /* columns of H2: -2, 1 */
  NEAR(g->composite[0].forward, (3 + 1) / 2.0);
  NEAR(g->composite[1].forward, (8 + 1) / 2.0); /* rows of H2 H1: 3, -8 */
  NEAR(g->composite[1].abs_forward, (8 + 1) / 2.0);
  NEAR(g->composite[1].backward, (2 + 1) / 2.0); /* H2 alone */
  NEAR(g->composite[0].backward, (3 + 1) / 2.0); /* columns of H2 H1: -2, -3 */
  NEAR(g->composite[0].backward_max, 3);
  NEAR(g->total_forward, 4.5);
  NEAR(g->total_backward, 2.0);
  const double mean[4] = {1, 1, -1.5, -2};
  for (int i = 0; i < 4; i++) NEAR(g->mean_composite[i], mean[i]);
  bk_gain_reset(g);
  bk_gain_add_maps(g, NULL, 3);
  bk_gain_finish(g);
  ck_assert_int_eq(g->tokens, 3);
  ck_assert_double_eq(g->composite[1].forward, 1.0);
  ck_assert_double_eq(g->composite[0].backward_max, 1.0);
  ck_assert_double_eq(g->mean_composite[1], 0.0);
  bk_gain_destroy(g);
}
END_TEST

static bk_gain *gain_of(int kind, int n) {
  enum { B = 2, T = 7 };
  int32_t ids[B * T], targets[B * T];
  bk_model_config c = small_config(kind);
  c.hc_mult = n;
  rig r = rig_open(fast_device(), 1, &c, BK_F32,
                   &(bk_runner_options){.batch = B, .seq_len = T, .slots = 1});
  make_tokens(c.vocab_size, B * T, 71, ids, targets);
  begin_step(r.model, 1);
  OK(bk_runner_forward(r.runner, 0, ids, NULL));
  bk_gain *g;
  OK(bk_gain_create(ctx, bk_runner_n_sublayers(r.runner), n, &g));
  OK(bk_gain_add(g, r.runner, 0));
  bk_gain_finish(g);
  ck_assert_int_eq(g->tokens, B * T);
  rig_close(&r);
  return g;
}

START_TEST(test_models) {
  bk_gain *plain = gain_of(BK_HC_PLAIN, 1), *ihc = gain_of(BK_HC_IHC, 3),
          *hc = gain_of(BK_HC_HC, 4);
  bk_gain *mhc = gain_of(BK_HC_MHC, 4), *lite = gain_of(BK_HC_MHC_LITE, 4);
  for (int s = 0; s < plain->n_sublayers; s++) {
    ck_assert_double_eq(plain->composite[s].forward, 1.0);
    ck_assert_double_eq(plain->composite[s].backward, 1.0);
    ck_assert_double_eq(ihc->composite[s].forward_max, 1.0);
    ck_assert_double_eq_tol(mhc->sublayers[s].forward, 1.0, 1e-6);
    ck_assert_double_eq_tol(mhc->composite[s].forward_max, 1.0, 1e-5);
    ck_assert_double_ge(mhc->sublayers[s].backward, 1.0 - 1e-6);
    ck_assert_double_lt(mhc->sublayers[s].backward, 1.05);
    ck_assert_double_eq_tol(lite->composite[s].forward, 1.0, 1e-5);
    ck_assert_double_eq_tol(lite->composite[s].backward, 1.0, 1e-5);
  }
  ck_assert_double_gt(hc->total_forward, 1.2); /* unconstrained */
  double off = 0.0;
  for (int i = 0; i < 16; i++) off = fmax(off, i % 5 ? mhc->mean_composite[i] : 0.0);
  ck_assert_double_gt(off, 0.05); /* it does mix */
  bk_gain *all[] = {plain, ihc, hc, mhc, lite};
  for (size_t i = 0; i < BK_COUNT(all); i++) bk_gain_destroy(all[i]);
}
END_TEST

UNIT_MAIN("gain", unit_open, unit_close, test_hand_made, test_models)

/* What stages need (birkhoff/parallel.h): against counts by hand, and against a model and a chunk
 * that are made the usual way. */
#include "tests/models/models.h"

#include "models/chunk.h"
#include "models/connections/connection.h"
#include "models/stage_costs.h"

/* Bytes cost nothing at such a rate, so that seconds are flops of products. */
#define NO_BYTES 1e300

static bk_stage_needs plan(bk_device *d, const bk_model_config *c, const bk_stage_options *o) {
  bk_stage_needs n;
  OK(bk_stage_plan(d, c, BK_F32, o, &n));
  return n;
}

/* One sublayer without streams has no products but those of F: one of each matrix forward, two
 * backward, one of these for the weights. */
START_TEST(test_products) {
  bk_device *d = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_PLAIN);
  double tokens = 2 * 9, dense = 3 * 12 * 14, sparse = 6 * 12 + (2 + 2) * 3 * 12 * 5;
  bk_stage_options o = {
      .begin = 1, .end = 2, .batch = 2, .seq_len = 9, .flops_per_s = 1, .bytes_per_s = NO_BYTES};
  bk_stage_needs n = plan(d, &c, &o);
  ck_assert_double_eq(n.seconds.f, 2 * dense * tokens);
  ck_assert_double_eq(n.seconds.b, 4 * dense * tokens);
  ck_assert_double_eq(n.seconds.w, 2 * dense * tokens);
  ck_assert_double_eq(n.parameters, dense + 12);
  ck_assert_int_eq(n.expert_sublayers, 0);
  o.begin = 3, o.end = 4, o.defer_wgrad = true;
  n = plan(d, &c, &o);
  ck_assert_double_eq(n.seconds.f, 2 * sparse * tokens);
  ck_assert_double_eq(n.seconds.b, 4 * sparse * tokens);
  ck_assert_double_eq(n.seconds.w, 2 * sparse * tokens);
  ck_assert_double_eq(n.expert_parameters, 6 * 3 * 12 * 5);
  ck_assert_int_eq(n.expert_sublayers, 1);
  bk_device_close(d);
}
END_TEST

/* The last stage makes both gradients of the head in its forward pass. */
START_TEST(test_ends) {
  bk_device *d = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_PLAIN);
  bk_stage_options o = {
      .begin = 5, .end = 6, .batch = 1, .seq_len = 8, .flops_per_s = 1, .bytes_per_s = NO_BYTES};
  bk_stage_needs last = plan(d, &c, &o);
  o.begin = 3, o.end = 4;
  bk_stage_needs middle = plan(d, &c, &o);
  ck_assert_double_eq(last.seconds.f - middle.seconds.f, 6.0 * 23 * 12 * 8);
  ck_assert_double_eq(last.seconds.b, middle.seconds.b);
  bk_device_close(d);
}
END_TEST

/* n streams cross an edge, one of a plain model; ihc hands on something beside them. */
START_TEST(test_edges) {
  bk_device *d = open_device("cpu", 1);
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    bk_model_config c = small_config(kinds[i]);
    bk_stage_options o = {
        .begin = 2, .end = 4, .batch = 2, .seq_len = 5, .flops_per_s = 1, .bytes_per_s = 1};
    double streams = kinds[i] == BK_HC_PLAIN ? 1 : 4;
    int64_t carry = bk_connection_carry(bk_connection_kind_of((bk_hc_kind)kinds[i]), 4);
    bk_stage_needs n = plan(d, &c, &o);
    ck_assert_double_eq(n.edge_bytes, 4 * (10 * streams * 12 + 10 * (double)carry));
  }
  bk_device_close(d);
}
END_TEST

/* By bytes alone nothing is free, and recompute adds its own part. */
START_TEST(test_recompute) {
  bk_device *d = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  bk_stage_options o = {
      .begin = 0, .end = 6, .batch = 2, .seq_len = 5, .flops_per_s = NO_BYTES, .bytes_per_s = 1};
  bk_stage_needs kept = plan(d, &c, &o);
  o.hc_recompute = 6;
  bk_stage_needs rebuilt = plan(d, &c, &o);
  ck_assert_double_eq(kept.rebuild, 0);
  ck_assert_double_gt(rebuilt.rebuild, 0);
  ck_assert_double_eq(rebuilt.seconds.f, kept.seconds.f);
  ck_assert_double_eq_tol(rebuilt.seconds.b - rebuilt.rebuild, kept.seconds.b,
                          1e-9 * kept.seconds.b);
  ck_assert_uint_lt(rebuilt.slot_bytes, kept.slot_bytes);
  bk_device_close(d);
}
END_TEST

/* The bytes of a chunk with five micro-batches in flight. */
START_TEST(test_bytes) {
  bk_device *d = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  bk_stage_options o = {.begin = 2,
                        .end = 6,
                        .batch = 2,
                        .seq_len = 16,
                        .hc_recompute = 4,
                        .defer_wgrad = true,
                        .flops_per_s = 1,
                        .bytes_per_s = 1};
  bk_stage_needs n = plan(d, &c, &o);
  bk_model_options parts = {.trainable = true, .n_chunks = 1, .chunks = {{2, 6}}};
  bk_model *m;
  bk_chunk *chunk;
  OK(bk_model_create(d, &c, BK_F32, &parts, &m));
  OK(bk_chunk_create(m, 0,
                     &(bk_chunk_options){.batch = 2,
                                         .seq_len = 16,
                                         .slots = 5,
                                         .backward = true,
                                         .defer_wgrad = true,
                                         .hc_recompute = 4},
                     NULL, &chunk));
  for (int k = 0; k < BK_MEM_CLASS_COUNT; k++) {
    size_t more = k == BK_MEM_ACTIVATIONS ? 4 * n.slot_bytes : 0;
    ck_assert_uint_eq(bk_model_bytes(m, k) + bk_chunk_bytes(chunk, k), n.bytes[k] + more);
  }
  bk_chunk_destroy(chunk);
  bk_model_destroy(m);
  bk_device_close(d);
}
END_TEST

/* Two ranks with half of the experts each: half of their weights, and the same products. */
START_TEST(test_expert_ranks) {
  bk_device *d = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_PLAIN);
  bk_stage_options o = {
      .begin = 3, .end = 4, .batch = 2, .seq_len = 9, .flops_per_s = 1, .bytes_per_s = NO_BYTES};
  bk_stage_needs whole = plan(d, &c, &o);
  o.expert_ranks = 2;
  bk_stage_needs half = plan(d, &c, &o);
  ck_assert_double_eq(half.expert_parameters, whole.expert_parameters / 2);
  ck_assert_double_lt(fabs(half.seconds.b - whole.seconds.b), 0.05 * whole.seconds.b);
  o.expert_ranks = 4;
  ck_assert_int_eq(bk_stage_plan(d, &c, BK_F32, &o, &half), BK_ERR_ARGUMENT);
  unit_expect("4 ranks cannot share 6 experts of which a token chooses 2");
  o.expert_ranks = 1;
  o.flops_per_s = 0;
  ck_assert_int_eq(bk_stage_plan(d, &c, BK_F32, &o, &half), BK_ERR_ARGUMENT);
  unit_expect("above 0");
  bk_device_close(d);
}
END_TEST

UNIT_MAIN("stage_costs", unit_open, unit_close, test_products, test_ends, test_edges,
          test_recompute, test_bytes, test_expert_ranks)

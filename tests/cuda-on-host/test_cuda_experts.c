/* The experts' kernels at sizes beyond those of the harness: many experts, many choices, several
 * tiles a chunk; and a router whose choice must be ref's, bit by bit of fp32 logits, however
 * close two scores are. */
#include "ops/plan.h"
#include "tests/cuda-on-host/cuda_unit.h"

#include <math.h>

static bool quick(void) { return getenv("BK_TEST_QUICK") != NULL; }

/* ---- moe_index against a plain stable sort ---- */

static void expect_sorted(const int32_t *index, int total, int experts, const int32_t *offsets,
                          const int32_t *order, const int32_t *row_of) {
  int32_t *next = calloc((size_t)experts + 1, sizeof *next);
  ck_assert_ptr_nonnull(next);
  for (int c = 0; c < total; c++) next[index[c] + 1]++;
  for (int e = 0; e < experts; e++) next[e + 1] += next[e];
  ck_assert_mem_eq(offsets, next, ((size_t)experts + 1) * sizeof *next);
  for (int c = 0; c < total; c++) {
    int32_t row = next[index[c]]++;
    ck_assert_msg(row_of[c] == row, "row_of[%d] is %d, it should be %d", c, (int)row_of[c],
                  (int)row);
    ck_assert_msg(order[row] == c, "order[%d] is %d, it should be %d", (int)row, (int)order[row],
                  c);
  }
  free(next);
}

/* spread: how unevenly the experts are chosen; 0: always the last. */
static void sort_case(int tokens, int k, int experts, int spread) {
  const int total = tokens * k;
  int32_t *index = malloc((size_t)total * sizeof *index),
          *order = malloc((size_t)total * sizeof *order);
  int32_t *row_of = malloc((size_t)total * sizeof *row_of);
  int32_t *offsets = malloc(((size_t)experts + 1) * sizeof *offsets),
          *load = calloc((size_t)experts, sizeof *load);
  bk_moe_index_args a = {
      gpu_tensor(bk_tensor_2d(BK_I32, tokens, k)), gpu_tensor(bk_tensor_1d(BK_I32, experts + 1)),
      gpu_tensor(bk_tensor_1d(BK_I32, total)), gpu_tensor(bk_tensor_2d(BK_I32, tokens, k)),
      gpu_tensor(bk_tensor_1d(BK_I32, experts))};
  for (int c = 0; c < total; c++)
    index[c] =
        spread ? (int32_t)(pow(bk_uniform(7, 0, (uint64_t)c), spread) * experts) : experts - 1;
  ck_assert_int_eq(bk_tensor_upload(stream, &a.index, index), BK_OK);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_MOE_INDEX, &a), BK_OK);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_MOE_INDEX, &a), BK_OK); /* load adds */
  ck_assert_int_eq(bk_tensor_download(stream, &a.offsets, offsets), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &a.order, order), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &a.row_of, row_of), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &a.load, load), BK_OK);
  expect_sorted(index, total, experts, offsets, order, row_of);
  for (int e = 0; e < experts; e++) ck_assert_int_eq(load[e], 2 * (offsets[e + 1] - offsets[e]));
  bk_tensor *const all[] = {&a.index, &a.offsets, &a.order, &a.row_of, &a.load};
  for (size_t i = 0; i < BK_COUNT(all); i++) bk_buffer_free(all[i]->buffer);
  free(index), free(order), free(row_of), free(offsets), free(load);
}

START_TEST(sorts_many_choices) {
  sort_case(quick() ? 700 : 32768, 8, 1024, 1);
  sort_case(43, 7, 1025, 2); /* from here on at the border of what one block does alone */
  sort_case(256, 8, 100, 1);
  sort_case(2049, 1, 100, 1);
  sort_case(256, 1, 6144, 1);
  sort_case(257, 1, 6144, 1);
  sort_case(5000, 1, 3000, 1);
  sort_case(3000, 3, 6144, 3);
  sort_case(3000, 2, 8, 0);
}
END_TEST

START_TEST(sorts_several_tiles_a_chunk) {
  if (!quick()) sort_case(150001, 7, 64, 2);
}
END_TEST

START_TEST(leaves_too_many_experts_to_others) {
  bk_moe_index_args a = {bk_tensor_2d(BK_I32, 4, 2),
                         bk_tensor_1d(BK_I32, 6146),
                         bk_tensor_1d(BK_I32, 8),
                         bk_tensor_2d(BK_I32, 4, 2),
                         {0}};
  ck_assert_ptr_null(bk_kernel_find(device, BK_OP_MOE_INDEX, &a));
  a.offsets = bk_tensor_1d(BK_I32, 6145);
  ck_assert_ptr_nonnull(bk_kernel_find(device, BK_OP_MOE_INDEX, &a));
}
END_TEST

/* ---- router against ref ---- */

typedef struct router_result {
  int32_t *index;
  float *weights;
} router_result;

static void route_on(bk_device *on, int tokens, int experts, int k, const int groups[2],
                     const float *logits, const float *bias, router_result *r) {
  bk_stream *s = NULL;
  bk_router_args a = {.n_group = groups[0],
                      .topk_group = groups[1],
                      .norm_topk_prob = true,
                      .routed_scaling_factor = 2.5};
  a.logits = gpu_tensor_on(on, bk_tensor_2d(BK_F32, tokens, experts));
  a.bias = gpu_tensor_on(on, bk_tensor_1d(BK_F32, experts));
  a.scores = gpu_tensor_on(on, bk_tensor_2d(BK_F32, tokens, experts));
  a.index = gpu_tensor_on(on, bk_tensor_2d(BK_I32, tokens, k));
  a.weights = gpu_tensor_on(on, bk_tensor_2d(BK_F32, tokens, k));
  ck_assert_int_eq(bk_stream_create(on, 0, &s), BK_OK);
  ck_assert_int_eq(bk_tensor_upload(s, &a.logits, logits), BK_OK);
  ck_assert_int_eq(bk_tensor_upload(s, &a.bias, bias), BK_OK);
  ck_assert_int_eq(bk_op_run(s, BK_OP_ROUTER, &a), BK_OK);
  r->index = malloc((size_t)tokens * (size_t)k * sizeof *r->index);
  r->weights = malloc((size_t)tokens * (size_t)k * sizeof *r->weights);
  ck_assert_int_eq(bk_tensor_download(s, &a.index, r->index), BK_OK);
  ck_assert_int_eq(bk_tensor_download(s, &a.weights, r->weights), BK_OK);
  bk_tensor *const all[] = {&a.logits, &a.bias, &a.scores, &a.index, &a.weights};
  for (size_t i = 0; i < BK_COUNT(all); i++) bk_buffer_free(all[i]->buffer);
  bk_stream_destroy(s);
}

/* Logits from `scale` on are so large that their scores differ by less than fp32 can tell, or
 * not at all. */
static void router_case(int tokens, int experts, int k, int n_group, int topk_group, double scale) {
  const int groups[2] = {n_group, topk_group};
  float *logits = malloc((size_t)tokens * (size_t)experts * sizeof *logits),
        *bias = malloc((size_t)experts * sizeof *bias);
  bk_device *ref = NULL;
  router_result want, got;
  for (int i = 0; i < tokens * experts; i++)
    logits[i] = (float)(scale * bk_normal(3, 1, (uint64_t)i));
  for (int e = 0; e < experts; e++)
    bias[e] = e % 3 ? 0.f : (float)(0.1 * bk_normal(3, 2, (uint64_t)e));
  ck_assert_int_eq(bk_device_open(ctx, "ref", NULL, &ref), BK_OK);
  route_on(ref, tokens, experts, k, groups, logits, bias, &want);
  route_on(device, tokens, experts, k, groups, logits, bias, &got);
  for (int i = 0; i < tokens * k; i++) {
    ck_assert_msg(want.index[i] == got.index[i], "choice %d of token %d: %d, it should be %d",
                  i % k, i / k, (int)got.index[i], (int)want.index[i]);
    ck_assert(fabsf(want.weights[i] - got.weights[i]) <= 1e-6f * want.weights[i]);
  }
  bk_device_close(ref);
  free(logits), free(bias), free(want.index), free(want.weights), free(got.index),
      free(got.weights);
}

START_TEST(routes_as_ref) {
  const int less = quick() ? 10 : 1;
  router_case(200 / less, 256, 8, 8, 4, 1);
  router_case(200 / less, 256, 8, 8, 4, 12);
  router_case(40 / less, 1024, 40, 32, 7, 3);
  router_case(20 / less, 2500, 6, quick() ? 50 : 1250, quick() ? 10 : 100, 3);
  router_case(10 / less, 9000, 6, 1, 1, 8);
  router_case(100, 3, 3, 1, 1, 30);
}
END_TEST

/* Whatever the logits are, the choices are different experts that exist. */
START_TEST(routes_what_is_not_finite) {
  enum { tokens = 12, experts = 40, k = 5 };
  const int groups[2] = {4, 2};
  float logits[tokens * experts], bias[experts] = {0};
  router_result r;
  for (int i = 0; i < tokens * experts; i++) {
    const float odd[] = {NAN, INFINITY, -INFINITY, (float)i};
    logits[i] = i / experts < 2 ? NAN : odd[(i * 7 + i / experts) % 4];
  }
  route_on(device, tokens, experts, k, groups, logits, bias, &r);
  for (int i = 0; i < tokens; i++)
    for (int j = 0; j < k; j++) {
      ck_assert(r.index[i * k + j] >= 0 && r.index[i * k + j] < experts);
      for (int o = 0; o < j; o++) ck_assert_int_ne(r.index[i * k + o], r.index[i * k + j]);
    }
  free(r.index), free(r.weights);
}
END_TEST

/* The table looks at the leading operand; what else may have another dtype is looked at by the
 * rows. */
START_TEST(leaves_fp64_to_others) {
  bk_copy_args copy = {bk_tensor_1d(BK_F32, 8), bk_tensor_1d(BK_F64, 8)};
  bk_embed_args embed = {bk_tensor_1d(BK_I32, 4), bk_tensor_2d(BK_F64, 5, 8),
                         bk_tensor_2d(BK_F64, 4, 8)};
  bk_embed_bwd_args back = {bk_tensor_1d(BK_I32, 4), bk_tensor_2d(BK_F64, 4, 8),
                            bk_tensor_2d(BK_F64, 5, 8)};
  bk_balance_args balance = {bk_tensor_1d(BK_I32, 4), bk_tensor_1d(BK_F64, BK_STEP_FIELDS),
                             bk_tensor_1d(BK_F64, 4)};
  ck_assert_ptr_null(bk_kernel_find(device, BK_OP_COPY, &copy));
  ck_assert_ptr_null(bk_kernel_find(device, BK_OP_EMBED, &embed));
  ck_assert_ptr_null(bk_kernel_find(device, BK_OP_EMBED_BWD, &back));
  ck_assert_ptr_null(bk_kernel_find(device, BK_OP_BALANCE, &balance));
  copy.y = bk_tensor_1d(BK_BF16, 8);
  ck_assert_ptr_nonnull(bk_kernel_find(device, BK_OP_COPY, &copy));
}
END_TEST

int main(void) {
  const TTest *const tests[] = {leaves_fp64_to_others,
                                sorts_many_choices,
                                sorts_several_tiles_a_chunk,
                                leaves_too_many_experts_to_others,
                                routes_as_ref,
                                routes_what_is_not_finite};
  if (!cuda_find_module()) return SKIPPED;
  Suite *suite = suite_create("cuda experts");
  unit_case(suite, "cuda experts", cuda_open, cuda_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}

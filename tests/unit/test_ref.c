/* The kernels of the reference backend against values worked out by hand, or by a formula of
 * their own; gradients that have no short closed form against central differences. Kernels are
 * found in the table, as dispatch does, but run without the checks of ops/, so that this program
 * depends on nothing above the backend. */
#include "backends/ref/ref.h"
#include <check.h>
#include <stdlib.h>

static const double LN3 = 1.0986122886681098;

/* ---- tensors over arrays of the test ---- */

static bk_buffer buffers[256];
static int buffer_count;

static void reset_buffers(void) { buffer_count = 0; }

static bk_tensor tensor_over(void *data, bk_dtype dtype, int ndim, const int64_t *shape) {
  ck_assert_int_lt(buffer_count, (int)BK_COUNT(buffers));
  bk_tensor t = bk_tensor_make(dtype, ndim, shape);
  bk_buffer *b = &buffers[buffer_count++];
  *b = (bk_buffer){.handle = data, .size = bk_tensor_bytes(&t)};
  t.buffer = b;
  return t;
}

#define DIMS(...) \
  (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]) { __VA_ARGS__ }
#define F64(data, ...) tensor_over(data, BK_F64, DIMS(__VA_ARGS__))
#define F32(data, ...) tensor_over(data, BK_F32, DIMS(__VA_ARGS__))
#define B16(data, ...) tensor_over(data, BK_BF16, DIMS(__VA_ARGS__))
#define I32(data, ...) tensor_over(data, BK_I32, DIMS(__VA_ARGS__))

/* ---- running a kernel ---- */

static const bk_kernel *kernel_of(bk_op op, bk_dtype dtype) {
  for (const bk_kernel *k = bk_backend_ref.kernels; k->op != BK_OP_NONE; k++)
    if (k->op == op && (k->dtypes & BK_DT(dtype))) return k;
  return NULL;
}

/* The first member of every argument struct is its leading tensor. */
static void run(bk_op op, const void *args) {
  bk_context ctx = {0};
  bk_device device = {.ctx = &ctx, .backend = &bk_backend_ref};
  bk_stream stream = {.device = &device};
  const bk_kernel *kernel = kernel_of(op, ((const bk_tensor *)args)->dtype);
  ck_assert_msg(kernel != NULL, "no kernel for op %d", op);
  ck_assert(kernel->accepts(kernel, &device, args));
  bk_plan plan = {.kernel = kernel, .device = &device};
  ck_assert_int_eq(kernel->prepare(kernel, &device, args, &plan.state, &plan.workspace_bytes),
                   BK_OK);
  bk_buffer space = {.handle = malloc(plan.workspace_bytes + 1), .size = plan.workspace_bytes};
  /* NaNs: a kernel may expect nothing of its workspace */
  memset(space.handle, 0xff, plan.workspace_bytes + 1);
  ck_assert_int_eq(kernel->launch(&stream, &plan, args, (bk_place){&space, 0}), BK_OK);
  kernel->release(&device, plan.state);
  free(space.handle);
}

#define RUN(ID, type, ...) run(BK_OP_##ID, &(type){__VA_ARGS__})

static void assert_near(const double *have, const double *want, int count, double tolerance) {
  for (int i = 0; i < count; i++)
    ck_assert_msg(fabs(have[i] - want[i]) <= tolerance, "element %d is %.17g, want %.17g", i,
                  have[i], want[i]);
}
#define NEAR(have, ...)                      \
  assert_near(have, (double[]){__VA_ARGS__}, \
              (int)(sizeof((double[]){__VA_ARGS__}) / sizeof(double)), 1e-14)
#define INTS(have, ...)                                                                        \
  do {                                                                                         \
    int32_t want_[] = {__VA_ARGS__};                                                           \
    for (int i_ = 0; i_ < (int)BK_COUNT(want_); i_++) ck_assert_int_eq((have)[i_], want_[i_]); \
  } while (0)

/* ---- the backend ---- */

START_TEST(table_covers_the_primitives) {
  for (int op = BK_OP_NONE + 1; op < BK_OP_COUNT; op++) {
    bool integer =
        op == BK_OP_EMBED || op == BK_OP_EMBED_BWD || op == BK_OP_MOE_INDEX || op == BK_OP_BALANCE;
    bool fused = op >= BK_OP_HC_PROJECT;
    for (bk_dtype d = BK_F32; d <= BK_F64; d++)
      ck_assert_msg((kernel_of(op, integer ? BK_I32 : d) == NULL) == fused, "%d", op);
  }
}
END_TEST

START_TEST(device_opens) {
  bk_context *ctx;
  bk_device *device;
  bk_device_props props;
  size_t bytes, free_bytes, total;
  char reason[32];
  void *memory;
  ck_assert_int_eq(bk_context_create(NULL, &ctx), BK_OK);
  ck_assert_int_eq(bk_backend_ref.probe(ctx, reason, sizeof reason), BK_OK);
  ck_assert_int_eq(bk_backend_ref.device_count(ctx), 1);
  ck_assert_int_eq(bk_backend_ref.describe(ctx, 0, &props, &bytes), BK_OK);
  ck_assert(props.host_memory && props.threads == 1 && props.isa[0] == '\0' && bytes > 0);
  ck_assert_uint_eq(props.storage_dtypes, BK_DT(BK_F32) | BK_DT(BK_BF16) | BK_DT(BK_F64));
  ck_assert_int_eq(bk_backend_ref.open(ctx, 0, NULL, &device), BK_OK);
  ck_assert_int_eq(device->ops->memory_info(device, &free_bytes, &total), BK_OK);
  ck_assert_int_eq(device->ops->buffer_alloc(device, 100, &memory), BK_OK);
  for (int i = 0; i < 100; i++) ck_assert_int_eq(((char *)memory)[i], 0);
  device->ops->buffer_free(device, memory, 100);
  device->ops->close(device);
  bk_context_destroy(ctx);
}
END_TEST

/* ---- rounding ---- */

static double through_bf16(double v) { return (double)bk_bf16_to_f32(bk_ref_bf16(v)); }

START_TEST(bf16_rounds_once) {
  /* around 1: a step of bf16, half of it */
  const double step = ldexp(1, -7), half = ldexp(1, -8), bit = ldexp(1, -40);
  ck_assert(through_bf16(1 + half) == 1);                   /* tie: to even, down */
  ck_assert(through_bf16(1 + step + half) == 1 + 2 * step); /* tie: to even, up */
  ck_assert(through_bf16(1 + half + bit) == 1 + step);      /* float would make this a tie */
  ck_assert(through_bf16(1 + step + half - bit) == 1 + step);
  ck_assert(through_bf16(-1 - half - bit) == -1 - step);
  ck_assert(through_bf16(1 + half - bit) == 1);
  ck_assert(through_bf16(1e300) == INFINITY && through_bf16(-1e300) == -INFINITY);
  /* tie between the largest and 2^128 */
  ck_assert(through_bf16(ldexp(2 - half, 127)) == INFINITY);
  ck_assert(through_bf16(ldexp(2 - half - bit, 127)) == ldexp(2 - step, 127));
  ck_assert(through_bf16(INFINITY) == INFINITY && isnan(through_bf16(NAN)));
  /* tie between 0 and the least denormal */
  ck_assert(through_bf16(ldexp(1, -134)) == 0);
  ck_assert(through_bf16(ldexp(1 + bit, -134)) == ldexp(1, -133));
  ck_assert(through_bf16(-1e-300) == 0 && signbit(through_bf16(-1e-300)));
}
END_TEST

/* ---- copies ---- */

START_TEST(copy_follows_strides_and_dtypes) {
  double x[] = {1, 2, 3, 4, 5, 6}, y[6];
  RUN(COPY, bk_copy_args, .x = bk_tensor_transpose(F64(x, 2, 3), 0, 1), .y = F64(y, 3, 2));
  NEAR(y, 1, 4, 2, 5, 3, 6);
  bk_tensor row = F64(x, 1, 3);
  row.shape[0] = 2;
  row.stride[0] = 0;
  RUN(COPY, bk_copy_args, .x = row, .y = F64(y, 2, 3));
  NEAR(y, 1, 2, 3, 1, 2, 3);
  uint16_t narrow[2];
  double wide[] = {1 + ldexp(1, -8) + ldexp(1, -40), -0.5};
  RUN(COPY, bk_copy_args, .x = F64(wide, 2), .y = B16(narrow, 2));
  ck_assert_uint_eq(narrow[0], 0x3f81);
  ck_assert_uint_eq(narrow[1], 0xbf00);
  int32_t from[] = {INT32_MIN, 7}, to[2];
  RUN(COPY, bk_copy_args, .x = I32(from, 2), .y = I32(to, 2));
  INTS(to, INT32_MIN, 7);
}
END_TEST

START_TEST(add_and_sum) {
  double a[] = {1, 2, 3, 4}, b[] = {10, 20, 30, 40}, total = 5;
  RUN(ADD, bk_add_args, .a = F64(a, 2, 2), .b = F64(b, 2, 2), .y = F64(a, 2, 2));
  NEAR(a, 11, 22, 33, 44);
  RUN(SUM, bk_sum_args, .x = F64(a, 4), .y = F64(&total, 1), .accumulate = true);
  NEAR(&total, 115);
  RUN(SUM, bk_sum_args, .x = F64(a, 4), .y = F64(&total, 1));
  NEAR(&total, 110);
}
END_TEST

/* ---- products ---- */

START_TEST(gemm_by_hand) {
  double a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 0, 2, 1, 0, 3}, c[] = {1, 1, 1, 1};
  RUN(GEMM, bk_gemm_args, .a = F64(a, 2, 3), .b = F64(b, 3, 2), .c = F64(c, 2, 2), .alpha = 2,
      .accumulate = true);
  NEAR(c, 1 + 2 * 5, 1 + 2 * 11, 1 + 2 * 14, 1 + 2 * 23);
  bk_tensor at = bk_tensor_transpose(F64(a, 3, 2), 0, 1); /* [[1,3,5],[2,4,6]] */
  RUN(GEMM, bk_gemm_args, .a = at, .b = F64(b, 3, 2), .c = bk_tensor_transpose(F64(c, 2, 2), 0, 1),
      .alpha = 1);
  NEAR(c, 7, 10, 18, 22);
  double batch[4];
  RUN(GEMM, bk_gemm_args, .a = F64(a, 2, 2, 1), .b = F64(b, 2, 1, 1), .c = F64(batch, 2, 2, 1),
      .alpha = 1);
  NEAR(batch, 1, 2, 0, 0);
  RUN(GEMM, bk_gemm_args, .a = F64(a, 2, 0), .b = F64(b, 0, 2), .c = F64(c, 2, 2), .alpha = 1);
  NEAR(c, 0, 0, 0, 0);
}
END_TEST

/* a[i,l] = i + l, b[l,j] = l - j: sum_l = sum l^2 + (i - j) sum l - K i j, in sizes that are no
 * multiple of a block. */
START_TEST(gemm_past_one_block) {
  enum { M = 33, K = 70, N = 41 };
  static float a[M * K];
  static uint16_t b[K * N];
  static float c[M * N];
  for (int i = 0; i < M; i++)
    for (int l = 0; l < K; l++) a[i * K + l] = (float)(i + l);
  for (int l = 0; l < K; l++)
    for (int j = 0; j < N; j++) b[l * N + j] = bk_ref_bf16(l - j);
  RUN(GEMM, bk_gemm_args, .a = F32(a, M, K), .b = B16(b, K, N), .c = F32(c, M, N), .alpha = 1);
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++)
      ck_assert_int_eq((int)c[i * N + j],
                       (K - 1) * K * (2 * K - 1) / 6 + (i - j) * (K - 1) * K / 2 - K * i * j);
}
END_TEST

START_TEST(grouped_products) {
  int32_t offsets[] = {0, 1, 1, 3}; /* expert 1 has no rows; row 3 belongs to none */
  double a[] = {1, 2, 3, 4, 5, 6, 7, 8}, b[] = {1, 10, 0, 0, 100, 1}, c[] = {9, 9, 9, 9};
  RUN(GROUPED_GEMM, bk_grouped_gemm_args, .a = F64(a, 4, 2), .b = F64(b, 3, 2, 1),
      .offsets = I32(offsets, 4), .c = F64(c, 4, 1));
  NEAR(c, 21, 304, 506, 9);
  double g[] = {1, 2, 3, 4}, dw[] = {1, 1, 1, 1, 1, 1};
  RUN(GROUPED_WGRAD, bk_grouped_wgrad_args, .a = F64(a, 4, 2), .b = F64(g, 4, 1),
      .offsets = I32(offsets, 4), .c = F64(dw, 3, 2, 1));
  NEAR(dw, 1 + 1, 1 + 2, 1, 1, 1 + 3 * 2 + 5 * 3, 1 + 4 * 2 + 6 * 3);
}
END_TEST

/* ---- norm, rope, cache ---- */

START_TEST(rmsnorm_by_hand) {
  double x[] = {3, 4}, w[] = {2, 1}, y[2], rstd, r = 1 / sqrt(12.5);
  RUN(RMSNORM, bk_rmsnorm_args, .x = F64(x, 1, 2), .w = F64(w, 2), .y = F64(y, 1, 2),
      .rstd = F64(&rstd, 1), .eps = 0);
  NEAR(y, 6 * r, 4 * r);
  NEAR(&rstd, r);
  RUN(RMSNORM, bk_rmsnorm_args, .x = F64(x, 1, 2), .w = F64(w, 2), .y = F64(y, 1, 2), .eps = 3.5);
  NEAR(y, 1.5, 1);
  /* dy w = (1, 0): mean(dy w xh) = 3r/2, dx = r (1 - 9r^2/2, -12r^2/2) = r (0.64, -0.48) */
  double dy[] = {0.5, 0}, dx[] = {1, 1}, dw[] = {1, 1};
  RUN(RMSNORM_BWD, bk_rmsnorm_bwd_args, .x = F64(x, 1, 2), .w = F64(w, 2), .rstd = F64(&rstd, 1),
      .dy = F64(dy, 1, 2), .dx = F64(dx, 1, 2), .dw = F64(dw, 2), .accumulate = true);
  NEAR(dx, 1 + 0.64 * r, 1 - 0.48 * r);
  NEAR(dw, 1 + 1.5 * r, 1);
  RUN(RMSNORM_BWD, bk_rmsnorm_bwd_args, .x = F64(x, 1, 2), .w = F64(w, 2), .rstd = F64(&rstd, 1),
      .dy = F64(dy, 1, 2), .dx = F64(dx, 1, 2));
  NEAR(dx, 0.64 * r, -0.48 * r);
}
END_TEST

START_TEST(rope_turns_pairs) {
  int32_t past = 2;
  /* position 1 of two, frequencies 1 and 100^-1/2 = 0.1 */
  double x[] = {7, 7, 7, 7, 1, 0, 0, 1}, y[8];
  RUN(ROPE, bk_rope_args, .x = F64(x, 1, 2, 1, 4), .past = I32(&past, 1), .y = F64(y, 1, 2, 1, 4),
      .theta = 100);
  NEAR(y + 4, cos(3), sin(3), -sin(0.3), cos(0.3));
  RUN(ROPE, bk_rope_args, .x = F64(y, 1, 2, 1, 4), .past = I32(&past, 1), .y = F64(y, 1, 2, 1, 4),
      .theta = 100, .inverse = true);
  NEAR(y, 7, 7, 7, 7, 1, 0, 0, 1);
  double one[] = {0, 0, 1, 0}, heads[8];
  RUN(ROPE, bk_rope_args, .x = F64(one, 1, 2, 1, 2), .y = F64(heads, 1, 2, 2, 2), .theta = 10);
  NEAR(heads, 0, 0, 0, 0, cos(1), sin(1), cos(1), sin(1));
  double summed[4];
  RUN(ROPE, bk_rope_args, .x = F64(heads, 1, 2, 2, 2), .y = F64(summed, 1, 2, 1, 2), .theta = 10,
      .inverse = true);
  NEAR(summed, 0, 0, 2, 0);
}
END_TEST

START_TEST(cache_write_drops_what_does_not_fit) {
  int32_t past = 2;
  double x[] = {1, 2, 3, 4}, y[] = {9, 9, 9, 9, 9, 9};
  RUN(CACHE_WRITE, bk_cache_write_args, .x = F64(x, 2, 2, 1, 1), .past = I32(&past, 1),
      .y = F64(y, 2, 3, 1, 1));
  NEAR(y, 9, 9, 1, 9, 9, 3);
}
END_TEST

/* ---- attention: scaled scores at t = 1 are 0 and ln 3, so the probabilities are 1/4 and 3/4
 * ---- */

START_TEST(attention_by_hand) {
  double q[] = {2, 2}, k[] = {0, LN3}, v[] = {1, 5}, o[2], lse[2];
  RUN(ATTENTION, bk_attention_args, .q = F64(q, 1, 2, 1, 1), .k = F64(k, 1, 2, 1, 1),
      .v = F64(v, 1, 2, 1, 1), .o = F64(o, 1, 2, 1, 1), .lse = F64(lse, 1, 1, 2), .scale = 0.5);
  NEAR(o, 1, 4);
  NEAR(lse, 0, log(4));
  double dout[] = {2, 1}, dq[2], dk[2], dv[2]; /* ds = p (v - 4) = (-3/4, 3/4) */
  RUN(ATTENTION_BWD, bk_attention_bwd_args, .q = F64(q, 1, 2, 1, 1), .k = F64(k, 1, 2, 1, 1),
      .v = F64(v, 1, 2, 1, 1), .o = F64(o, 1, 2, 1, 1), .lse = F64(lse, 1, 1, 2),
      .dout = F64(dout, 1, 2, 1, 1), .dq = F64(dq, 1, 2, 1, 1), .dk = F64(dk, 1, 2, 1, 1),
      .dv = F64(dv, 1, 2, 1, 1), .scale = 0.5);
  NEAR(dq, 0, 0.375 * LN3);
  NEAR(dk, -0.75, 0.75);
  NEAR(dv, 2.25, 0.75);
}
END_TEST

/* A cache of three rows, one token kept, two heads, values of width 2; the third row must not be
 * read as a key. */
START_TEST(attention_with_a_cache) {
  int32_t past = 1;
  double q[] = {1, 2}, k[] = {0, 0, LN3, LN3 / 2, NAN, NAN};
  double v[] = {1, 10, 1, 10, 5, 50, 5, 50, NAN, NAN, NAN, NAN}, o[4];
  RUN(ATTENTION, bk_attention_args, .q = F64(q, 1, 1, 2, 1), .k = F64(k, 1, 3, 2, 1),
      .v = F64(v, 1, 3, 2, 2), .past = I32(&past, 1), .o = F64(o, 1, 1, 2, 2), .scale = 1);
  NEAR(o, 4, 40, 4, 40);
}
END_TEST

START_TEST(attention_survives_large_scores) {
  double q[] = {1, 1000}, k[] = {1000, -1000}, v[] = {3, 5}, o[2];
  RUN(ATTENTION, bk_attention_args, .q = F64(q, 1, 2, 1, 1), .k = F64(k, 1, 2, 1, 1),
      .v = F64(v, 1, 2, 1, 1), .o = F64(o, 1, 2, 1, 1), .scale = 1);
  NEAR(o, 3, 3);
}
END_TEST

/* ---- swiglu, embedding, loss ---- */

START_TEST(swiglu_by_hand) {
  double gate[] = {LN3, -LN3}, up[] = {2, 4}, y[2], dy[] = {1, 1}; /* sigmoid 3/4, 1/4 */
  RUN(SWIGLU, bk_swiglu_args, .gate = F64(gate, 1, 2), .up = F64(up, 1, 2), .y = F64(y, 1, 2));
  NEAR(y, 1.5 * LN3, -LN3);
  bk_tensor g = F64(gate, 1, 2), u = F64(up, 1, 2);
  RUN(SWIGLU_BWD, bk_swiglu_bwd_args, .gate = g, .up = u, .dy = F64(dy, 1, 2), .dgate = g,
      .dup = u);
  NEAR(gate, 2 * 0.75 * (1 + LN3 / 4), 4 * 0.25 * (1 - LN3 * 0.75));
  NEAR(up, 0.75 * LN3, -0.25 * LN3);
}
END_TEST

START_TEST(embedding_and_its_gradient) {
  int32_t ids[] = {2, 0, 2};
  double table[] = {1, 2, 3, 4, 5, 6}, y[6], dtable[] = {1, 1, 1, 1, 1, 1};
  RUN(EMBED, bk_embed_args, .ids = I32(ids, 3), .table = F64(table, 3, 2), .y = F64(y, 3, 2));
  NEAR(y, 5, 6, 1, 2, 5, 6);
  RUN(EMBED_BWD, bk_embed_bwd_args, .ids = I32(ids, 3), .dy = F64(y, 3, 2),
      .dtable = F64(dtable, 3, 2));
  NEAR(dtable, 2, 3, 1, 1, 11, 13);
}
END_TEST

START_TEST(cross_entropy_by_hand) {
  int32_t targets[] = {1, -1, 0};
  double logits[] = {0, LN3, 5, 6, 1000, 0}, step[BK_STEP_FIELDS] = {0}, loss[3];
  step[BK_STEP_LOSS_SCALE] = 0.5;
  bk_tensor l = F64(logits, 3, 2);
  RUN(CROSS_ENTROPY, bk_cross_entropy_args, .logits = l, .targets = I32(targets, 3),
      .step = F64(step, BK_STEP_FIELDS), .loss = F64(loss, 3), .dlogits = l);
  NEAR(loss, -log(0.75), 0, 0);
  NEAR(logits, 0.125, -0.125, 0, 0, 0, 0);
}
END_TEST

/* ---- router and experts ---- */

static void route(double *logits, double *bias, int groups, int kept, bool norm, double *scores,
                  int32_t *index, double *weights) {
  RUN(ROUTER, bk_router_args, .logits = F64(logits, 1, 4), .bias = F64(bias, 4),
      .scores = F64(scores, 1, 4), .index = I32(index, 1, 2), .weights = F64(weights, 1, 2),
      .n_group = groups, .topk_group = kept, .norm_topk_prob = norm, .routed_scaling_factor = 2);
}

START_TEST(router_chooses) {
  double logits[] = {0, LN3, LN3, 0}, bias[4] = {0}, scores[4], weights[2];
  int32_t index[2];
  route(logits, bias, 2, 1, true, scores, index, weights); /* groups tie at 5/4: the first one */
  NEAR(scores, 0.5, 0.75, 0.75, 0.5);
  INTS(index, 1, 0);
  NEAR(weights, 1.2, 0.8);
  route(logits, bias, 1, 1, false, scores, index, weights); /* experts tie: the lower index first */
  INTS(index, 1, 2);
  NEAR(weights, 1.5, 1.5);
  bias[3] = 1;
  /* the bias moves the choice and not the weights */
  route(logits, bias, 2, 1, true, scores, index, weights);
  INTS(index, 3, 2);
  NEAR(weights, 0.8, 1.2);
  double mixed[] = {2 * LN3, -2 * LN3, LN3, LN3}, none[4] = {0}; /* 9/10 + 1/10 against 3/4 + 3/4 */
  route(mixed, none, 2, 1, true, scores, index, weights);
  INTS(index, 2, 3);
  /* left-out experts never win, though the kept ones have scores below zero */
  double negative[] = {-2, -2, -3, -3};
  route(logits, negative, 2, 1, true, scores, index, weights);
  INTS(index, 1, 0);
  double lost[] = {NAN, NAN, NAN, NAN};
  route(lost, bias, 2, 1, true, scores, index, weights);
  ck_assert(index[0] >= 0 && index[0] < 4 && index[1] >= 0 && index[1] < 4);
}
END_TEST

START_TEST(router_gradient_by_hand) {
  double scores[] = {0.5, 0.75, 0.1, 0.1}, dweights[] = {1, 0}, dlogits[] = {7, 7, 7, 7};
  int32_t index[] = {1, 0};
  bk_router_bwd_args a = {.scores = F64(scores, 1, 4),
                          .index = I32(index, 1, 2),
                          .dweights = F64(dweights, 1, 2),
                          .dlogits = F64(dlogits, 1, 4),
                          .norm_topk_prob = true,
                          .routed_scaling_factor = 2};
  run(BK_OP_ROUTER_BWD, &a); /* ds = 2 ((1, 0) - 3/5) / (5/4) */
  NEAR(dlogits, -0.96 * 0.25, 0.64 * 0.1875, 0, 0);
  a.norm_topk_prob = false;
  run(BK_OP_ROUTER_BWD, &a);
  NEAR(dlogits, 0, 2 * 0.1875, 0, 0);
}
END_TEST

START_TEST(moe_index_is_a_stable_sort) {
  int32_t index[] = {2, 0, 0, 2, 1, 0}, offsets[5], order[6], row_of[6], load[] = {10, 0, 0, 0};
  RUN(MOE_INDEX, bk_moe_index_args, .index = I32(index, 3, 2), .offsets = I32(offsets, 5),
      .order = I32(order, 6), .row_of = I32(row_of, 3, 2), .load = I32(load, 4));
  INTS(offsets, 0, 3, 4, 6, 6);
  INTS(order, 1, 2, 5, 4, 0, 3);
  INTS(row_of, 4, 0, 1, 5, 3, 2);
  INTS(load, 13, 1, 2, 0);
}
END_TEST

START_TEST(permute_and_back) {
  int32_t order[] = {1, 2, 3, 0}, row_of[] = {3, 0, 1, 2};
  double x[] = {1, 2, 3, 4}, y[8], weights[] = {0.5, 2, 1, 3}, z[] = {1, 1, 1, 1}, dweights[4];
  RUN(PERMUTE, bk_permute_args, .x = F64(x, 2, 2), .order = I32(order, 4), .y = F64(y, 4, 2),
      .k = 2);
  NEAR(y, 1, 2, 3, 4, 3, 4, 1, 2);
  bk_tensor rows = F64(y, 4, 2);
  RUN(UNPERMUTE, bk_unpermute_args, .x = rows, .row_of = I32(row_of, 2, 2),
      .weights = F64(weights, 2, 2), .y = F64(z, 2, 2), .accumulate = true);
  NEAR(z, 3.5, 6, 13, 17);
  RUN(UNPERMUTE, bk_unpermute_args, .x = rows, .row_of = I32(row_of, 2, 2), .y = F64(z, 2, 2));
  NEAR(z, 2, 4, 6, 8);
  double dy[] = {1, 10, 100, 1000};
  RUN(UNPERMUTE_BWD, bk_unpermute_bwd_args, .x = rows, .row_of = I32(row_of, 2, 2),
      .weights = F64(weights, 2, 2), .dy = F64(dy, 2, 2), .dx = rows,
      .dweights = F64(dweights, 2, 2));
  NEAR(y, 2, 20, 100, 1000, 300, 3000, 0.5, 5);
  NEAR(dweights, 21, 21, 4300, 4300);
}
END_TEST

START_TEST(balance_moves_towards_the_mean) {
  int32_t load[] = {4, 0, 2};
  double step[BK_STEP_FIELDS] = {0}, bias[] = {1, 1, 1};
  step[BK_STEP_BALANCE_RATE] = 0.25;
  bk_balance_args a = {
      .load = I32(load, 3), .step = F64(step, BK_STEP_FIELDS), .bias = F64(bias, 3)};
  run(BK_OP_BALANCE, &a);
  NEAR(bias, 1, 1, 1);
  step[BK_STEP_FINITE] = 1;
  run(BK_OP_BALANCE, &a);
  NEAR(bias, 0.75, 1.25, 1);
}
END_TEST

/* ---- optimiser ---- */

START_TEST(clip_writes_norm_factor_and_flag) {
  double g[] = {3, 4}, step[BK_STEP_FIELDS] = {0};
  step[BK_STEP_SUMSQ] = 11;
  bk_tensor block = F64(step, BK_STEP_FIELDS);
  RUN(SUMSQ, bk_sumsq_args, .x = F64(g, 2), .y = bk_tensor_slice(block, 0, BK_STEP_SUMSQ, 1),
      .accumulate = true);
  NEAR(&step[BK_STEP_SUMSQ], 36);
  step[BK_STEP_MAX_NORM] = 1.5;
  RUN(CLIP, bk_clip_args, .step = block);
  NEAR(&step[BK_STEP_NORM], 6, 0.25, 1);
  step[BK_STEP_MAX_NORM] = 0; /* off */
  RUN(CLIP, bk_clip_args, .step = block);
  NEAR(&step[BK_STEP_NORM], 6, 1, 1);
  step[BK_STEP_LOSS] = NAN;
  RUN(CLIP, bk_clip_args, .step = block);
  ck_assert(step[BK_STEP_FINITE] == 0);
  step[BK_STEP_LOSS] = 1;
  step[BK_STEP_SUMSQ] = INFINITY;
  RUN(CLIP, bk_clip_args, .step = block);
  ck_assert(step[BK_STEP_FINITE] == 0);
}
END_TEST

/* g' = 2, m = 1, v = 1, mhat = 2, sqrt(vhat) = 2: w = 1 - 0.5 (1 + 0.5) = 0.25. */
START_TEST(adamw_by_hand) {
  double g = 4, pmv[] = {1, 0, 0}, step[BK_STEP_FIELDS] = {0};
  step[BK_STEP_LR] = 0.5;
  step[BK_STEP_BC1] = 0.5;
  step[BK_STEP_BC2] = 0.25;
  step[BK_STEP_CLIP] = 0.5;
  bk_adamw_args a = {.grad = F64(&g, 1),
                     .step = F64(step, BK_STEP_FIELDS),
                     .p = F64(pmv, 1),
                     .m = F64(pmv + 1, 1),
                     .v = F64(pmv + 2, 1),
                     .beta1 = 0.5,
                     .beta2 = 0.75,
                     .weight_decay = 0.5};
  run(BK_OP_ADAMW, &a); /* not finite: nothing */
  NEAR(pmv, 1, 0, 0);
  step[BK_STEP_FINITE] = 1;
  run(BK_OP_ADAMW, &a);
  NEAR(pmv, 0.25, 1, 1);
  a.eps = 2;
  memcpy(pmv, (double[]){1, 0, 0}, sizeof pmv);
  run(BK_OP_ADAMW, &a);
  NEAR(pmv, 1 - 0.5 * (0.5 + 0.5));
}
END_TEST

START_TEST(adamw_with_a_master) {
  float g = 4, m = 0, v = 0, master = 1, step[BK_STEP_FIELDS] = {0};
  uint16_t p = 0;
  /* w = 1 - 2^-8 1.5: bf16 below 1 has steps of 2^-8, so p is a tie, to even */
  step[BK_STEP_LR] = 0.00390625f;
  step[BK_STEP_BC1] = 0.5f;
  step[BK_STEP_BC2] = 0.25f;
  step[BK_STEP_CLIP] = 0.5f;
  step[BK_STEP_FINITE] = 1;
  RUN(ADAMW, bk_adamw_args, .grad = F32(&g, 1), .step = F32(step, BK_STEP_FIELDS), .p = B16(&p, 1),
      .master = F32(&master, 1), .m = F32(&m, 1), .v = F32(&v, 1), .beta1 = 0.5, .beta2 = 0.75,
      .weight_decay = 0.5);
  ck_assert(master == 1 - 1.5f / 256);
  ck_assert(bk_bf16_to_f32(p) == 1 - 2.0f / 256);
}
END_TEST

/* ---- coefficients ---- */

START_TEST(hc_rms_by_hand) {
  double x[] = {3, 4, 0, 0}, rinv, drinv = 2, dx[] = {1, 1, 1, 1};
  bk_tensor t = F64(x, 1, 4), r = F64(&rinv, 1);
  RUN(HC_RMS, bk_hc_rms_args, .x = t, .rinv = r, .eps = 9.75); /* 25/4 + 39/4 = 16 */
  NEAR(&rinv, 0.25);
  RUN(HC_RMS_BWD, bk_hc_rms_bwd_args, .x = t, .rinv = r, .drinv = F64(&drinv, 1),
      .dx = F64(dx, 1, 4), .accumulate = true);
  NEAR(dx, 1 - 2 * 3 / 256.0, 1 - 2 * 4 / 256.0, 1, 1);
}
END_TEST

START_TEST(hc_logits_by_hand) {
  /* n = 1: pre, post, comb */
  double proj[] = {1, 2, 3}, rinv = 0.5, scale[] = {2, 4, 8}, base[] = {10, 20, 30}, logits[3];
  RUN(HC_LOGITS, bk_hc_logits_args, .proj = F64(proj, 1, 3), .rinv = F64(&rinv, 1),
      .scale = F64(scale, 3), .base = F64(base, 3), .logits = F64(logits, 1, 3), .n = 1);
  NEAR(logits, 11, 24, 42);
  double dlogits[] = {1, 10, 100}, dproj[3], drinv, dscale[] = {1, 1, 1}, dbase[] = {1, 1, 1};
  RUN(HC_LOGITS_BWD, bk_hc_logits_bwd_args, .proj = F64(proj, 1, 3), .rinv = F64(&rinv, 1),
      .scale = F64(scale, 3), .dlogits = F64(dlogits, 1, 3), .dproj = F64(dproj, 1, 3),
      .drinv = F64(&drinv, 1), .dscale = F64(dscale, 3), .dbase = F64(dbase, 3), .n = 1);
  NEAR(dproj, 1, 20, 400);
  NEAR(&drinv, 2 + 80 + 2400);
  NEAR(dscale, 1.5, 11, 151);
  NEAR(dbase, 2, 11, 101);
  double head_proj[] = {1, 2, 3, 4}, head_logits[4], head_scale = 2, two[] = {1, 10};
  RUN(HC_LOGITS, bk_hc_logits_args, .proj = F64(head_proj, 2, 2), .rinv = F64(two, 2),
      .scale = F64(&head_scale, 1), .base = F64(base, 2), .logits = F64(head_logits, 2, 2), .n = 2);
  NEAR(head_logits, 12, 24, 70, 100);
}
END_TEST

START_TEST(hc_gates_by_hand) {
  double logits[] = {LN3, -LN3, 0, LN3, 99}, pre[2], post[2], dpre[] = {1, 2}, dpost[] = {4, 8};
  double dlogits[] = {7, 7, 7, 7, 7};
  bk_tensor l = F64(logits, 1, 5), d = F64(dlogits, 1, 5);
  RUN(HC_GATES, bk_hc_gates_args, .logits = l, .pre = F64(pre, 1, 2), .post = F64(post, 1, 2),
      .hc_eps = 0.125);
  NEAR(pre, 0.875, 0.375);
  NEAR(post, 1, 1.5);
  RUN(HC_GATES_BWD, bk_hc_gates_bwd_args, .logits = l, .dpre = F64(dpre, 1, 2),
      .dpost = F64(dpost, 1, 2), .dlogits = d);
  NEAR(dlogits, 0.1875, 0.375, 4 * 0.5, 8 * 0.375, 7);
}
END_TEST

/* n = 2, one token: tanh(u) = (1/2, 1/3, 1/4, 1/5) for stream 0, their negatives for stream 1. */
START_TEST(hc_tanh_by_hand) {
  double t[8], proj[8], rinv[] = {0.5, 0.25}, scale[] = {2, 3, 4},
                        base[] = {1, 2, 3, 4, 5, 6, 7, 8}, pre[2], post[2], comb[4];
  for (int j = 0; j < 8; j++) {
    t[j] = (j < 4 ? 1.0 : -1.0) / (2 + j % 4);
    proj[j] = atanh(t[j]) / rinv[j / 4];
  }
  bk_tensor p = F64(proj, 2, 4), r = F64(rinv, 2), s = F64(scale, 3);
  RUN(HC_TANH, bk_hc_tanh_args, .proj = p, .rinv = r, .scale = s, .base = F64(base, 8),
      .pre = F64(pre, 1, 2), .post = F64(post, 1, 2), .comb = F64(comb, 1, 2, 2), .n = 2);
  NEAR(pre, 2, 1);
  NEAR(post, 4, 3);
  NEAR(comb, 6, 6.8, 6, 7.2);
  double dpre[] = {1, 0}, dpost[] = {0, 1}, dcomb[] = {0, 1, 2, 0}, dproj[8], drinv[2],
         dscale[3] = {0}, dbase[8] = {0};
  RUN(HC_TANH_BWD, bk_hc_tanh_bwd_args, .proj = p, .rinv = r, .scale = s, .dpre = F64(dpre, 1, 2),
      .dpost = F64(dpost, 1, 2), .dcomb = F64(dcomb, 1, 2, 2), .dproj = F64(dproj, 2, 4),
      .drinv = F64(drinv, 2), .dscale = F64(dscale, 3), .dbase = F64(dbase, 8), .n = 2);
  double slope[] = {3.0 / 4, 8.0 / 9, 15.0 / 16, 24.0 / 25};
  NEAR(dproj, 2 * slope[0] / 2, 0, 0, 4 * slope[3] / 2, 0, 3 * slope[1] / 4, 2 * 4 * slope[2] / 4,
       0);
  NEAR(drinv, 2 * slope[0] * proj[0] + 4 * slope[3] * proj[3],
       3 * slope[1] * proj[5] + 2 * 4 * slope[2] * proj[6]);
  NEAR(dscale, 0.5, -1.0 / 3, 0.2 - 2 * 0.25);
  NEAR(dbase, 1, 0, 0, 1, 0, 1, 2, 0);
}
END_TEST

/* ---- Sinkhorn ---- */

static void sinkhorn(const double *logits, double *comb, int n, int iters, double eps) {
  RUN(SINKHORN, bk_sinkhorn_args, .logits = F64((double *)logits, 1, n, n),
      .comb = F64(comb, 1, n, n), .iters = iters, .hc_eps = eps);
}

static void sinkhorn_bwd(const double *logits, const double *dcomb, double *dlogits, int n,
                         int iters, double eps) {
  RUN(SINKHORN_BWD, bk_sinkhorn_bwd_args, .logits = F64((double *)logits, 1, n, n),
      .dcomb = F64((double *)dcomb, 1, n, n), .dlogits = F64(dlogits, 1, n, n), .iters = iters,
      .hc_eps = eps);
}

START_TEST(sinkhorn_by_hand) {
  double logits[] = {0, LN3, 0, 0}, comb[4]; /* rows: 1/4 3/4, 1/2 1/2; column sums 3/4, 5/4 */
  sinkhorn(logits, comb, 2, 1, 0);
  NEAR(comb, 1 / 3.0, 0.6, 2 / 3.0, 0.4);
  sinkhorn(logits, comb, 2, 1, 0.25); /* 1/2 1, 3/4 3/4; divisors 3/2, 2 */
  NEAR(comb, 1 / 3.0, 0.5, 0.5, 0.375);
  sinkhorn(logits, comb, 2, 2, 0.25); /* row divisors 13/12, 9/8, then columns 469/468, 163/156 */
  NEAR(comb, 144 / 469.0, 72 / 163.0, 208 / 469.0, 52 / 163.0);
}
END_TEST

/* The 2x2 limit [[p, 1-p], [1-p, p]] keeps the cross ratio: p / (1-p) = exp((a + d - b - c) /
 * 2). */
START_TEST(sinkhorn_reaches_the_limit) {
  double logits[] = {1, -0.5, 0.25, 2}, comb[4], p = 1 / (1 + exp(-(1 + 2 + 0.5 - 0.25) / 2));
  sinkhorn(logits, comb, 2, 64, 0);
  assert_near(comb, (double[]){p, 1 - p, 1 - p, p}, 4, 1e-12);
  double one = -300, unit = 0, gradient = 5, kept = 3;
  sinkhorn(&one, &unit, 1, 20, 0);
  ck_assert(unit == 1);
  sinkhorn_bwd(&one, &kept, &gradient, 1, 20, 0);
  ck_assert(gradient == 0);
}
END_TEST

/* Destinations' sums are 1 to rounding after any number of iterations, and all is finite, gaps
 * of 800 and far more. */
START_TEST(sinkhorn_of_large_gaps) {
  static const double spreads[] = {1, 30, 800, 1e6, 1e308};
  for (size_t s = 0; s < BK_COUNT(spreads); s++)
    for (uint64_t trial = 0; trial < 50; trial++) {
      int n = 1 + (int)(trial % BK_HC_MAX_N);
      double logits[64], comb[64], dcomb[64], dlogits[64];
      for (int i = 0; i < n * n; i++) {
        logits[i] = spreads[s] * (2 * bk_uniform(1, trial, (uint64_t)i) - 1);
        dcomb[i] = 2 * bk_uniform(2, trial, (uint64_t)i) - 1;
      }
      sinkhorn(logits, comb, n, 20, 0);
      sinkhorn_bwd(logits, dcomb, dlogits, n, 20, 0);
      for (int k = 0; k < n; k++) {
        double sum = 0;
        for (int m = 0; m < n; m++) sum += comb[m * n + k];
        ck_assert_double_eq_tol(sum, 1, 1e-14);
      }
      for (int i = 0; i < n * n; i++) ck_assert(isfinite(comb[i]) && isfinite(dlogits[i]));
      reset_buffers();
    }
}
END_TEST

START_TEST(sinkhorn_of_gap_800_by_hand) {
  /* rows: 1 e^-800, 1/2 1/2; columns: 2/3 2e^-800, 1/3 1 */
  double logits[] = {800, 0, 0, 0}, comb[4];
  sinkhorn(logits, comb, 2, 1, 0);
  NEAR(comb, 2 / 3.0, 0, 1 / 3.0, 1);
  /* column 0: q (1 - q) = 2/9 on the log of its entries; row 1 then halves it */
  double dcomb[] = {1, 0, 0, 0}, dlogits[4];
  sinkhorn_bwd(logits, dcomb, dlogits, 2, 1, 0);
  NEAR(dlogits, 0, 0, -1 / 9.0, 1 / 9.0);
  double extreme[] = {1.7e308, -1.7e308, 1.7e308, -1.7e308}; /* their differences overflow */
  sinkhorn(extreme, comb, 2, 20, 0);
  NEAR(comb, 0.5, 0.5, 0.5, 0.5);
  double lost[] = {NAN, 0, 0, 0};
  sinkhorn(lost, comb, 2, 20, 0);
  ck_assert(isnan(comb[0]) && isnan(comb[3]));
}
END_TEST

static double weighted_sinkhorn(const double *logits, const double *dcomb, int n, int iters,
                                double eps) {
  double comb[64], sum = 0;
  sinkhorn(logits, comb, n, iters, eps);
  for (int i = 0; i < n * n; i++) sum += comb[i] * dcomb[i];
  return sum;
}

START_TEST(sinkhorn_gradient_by_differences) {
  static const double eps[] = {0, 1e-6, 0.1};
  static const int iters[] = {1, 2, 20};
  for (int c = 0; c < 9; c++) {
    enum { N = 4 };
    double logits[N * N], dcomb[N * N], dlogits[N * N], h = 1e-4;
    for (int i = 0; i < N * N; i++) {
      logits[i] = bk_normal(3, (uint64_t)c, (uint64_t)i);
      dcomb[i] = bk_normal(4, (uint64_t)c, (uint64_t)i);
    }
    sinkhorn_bwd(logits, dcomb, dlogits, N, iters[c / 3], eps[c % 3]);
    for (int i = 0; i < N * N; i++) {
      double kept = logits[i];
      reset_buffers();
      logits[i] = kept + h;
      double above = weighted_sinkhorn(logits, dcomb, N, iters[c / 3], eps[c % 3]);
      logits[i] = kept - h;
      double below = weighted_sinkhorn(logits, dcomb, N, iters[c / 3], eps[c % 3]);
      logits[i] = kept;
      ck_assert_double_eq_tol(dlogits[i], (above - below) / (2 * h), 1e-7);
    }
  }
}
END_TEST

/* ---- permutations: 012 021 102 120 201 210 ---- */

START_TEST(perm_is_lexicographic) {
  static const int sigma[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (int p = 0; p < 6; p++) {
    double logits[6] = {0}, comb[9], want[9] = {0};
    logits[p] = 2000;
    for (int m = 0; m < 3; m++) want[m * 3 + sigma[p][m]] = 1;
    RUN(HC_PERM, bk_hc_perm_args, .logits = F64(logits, 1, 6), .comb = F64(comb, 1, 3, 3), .n = 3);
    assert_near(comb, want, 9, 1e-15);
  }
  double logits[] = {0, LN3}, comb[4], dcomb[] = {1, 0, 0, 0}, dlogits[2];
  RUN(HC_PERM, bk_hc_perm_args, .logits = F64(logits, 1, 2), .comb = F64(comb, 1, 2, 2), .n = 2);
  NEAR(comb, 0.25, 0.75, 0.75, 0.25);
  RUN(HC_PERM_BWD, bk_hc_perm_bwd_args, .logits = F64(logits, 1, 2), .dcomb = F64(dcomb, 1, 2, 2),
      .dlogits = F64(dlogits, 1, 2), .n = 2);
  NEAR(dlogits, 0.1875, -0.1875);
}
END_TEST

/* ---- Kronecker products ---- */

/* Two factors, p = 3/4 and 1/4; the first one's bit is the upper one of the stream's number. */
START_TEST(kron_by_hand) {
  double logits[] = {LN3, 0, 0, LN3}, comb[16], dcomb[16] = {0}, dlogits[4];
  RUN(HC_KRON, bk_hc_kron_args, .logits = F64(logits, 1, 4), .comb = F64(comb, 1, 4, 4));
  NEAR(comb, 0.1875, 0.5625, 0.0625, 0.1875, 0.5625, 0.1875, 0.1875, 0.0625, 0.0625, 0.1875, 0.1875,
       0.5625, 0.1875, 0.0625, 0.5625, 0.1875);
  for (int m = 0; m < 4; m++) {
    double sum = 0;
    for (int k = 0; k < 4; k++) {
      ck_assert_double_eq(comb[m * 4 + k], comb[k * 4 + m]);
      sum += comb[m * 4 + k];
    }
    ck_assert_double_eq_tol(sum, 1, 1e-15);
  }
  dcomb[0 * 4 + 1] = 1; /* p0 (1 - p1): dp0 = 3/4, dp1 = -3/4; both slopes are 3/16 */
  RUN(HC_KRON_BWD, bk_hc_kron_bwd_args, .logits = F64(logits, 1, 4), .dcomb = F64(dcomb, 1, 4, 4),
      .dlogits = F64(dlogits, 1, 4));
  NEAR(dlogits, 0.140625, -0.140625, -0.140625, 0.140625);
}
END_TEST

/* What 1 - p would make 0. */
START_TEST(kron_of_large_gaps) {
  double logits[] = {100, 0}, comb[4], dcomb[] = {1, 0, 0, 0}, dlogits[2];
  RUN(HC_KRON, bk_hc_kron_args, .logits = F64(logits, 1, 2), .comb = F64(comb, 1, 2, 2));
  ck_assert_double_eq_tol(comb[1] / exp(-100), 1, 1e-14);
  RUN(HC_KRON_BWD, bk_hc_kron_bwd_args, .logits = F64(logits, 1, 2), .dcomb = F64(dcomb, 1, 2, 2),
      .dlogits = F64(dlogits, 1, 2));
  ck_assert_double_eq_tol(dlogits[0] / exp(-100), 1, 1e-14);
}
END_TEST

/* One stream: no factors, a view without columns at the end of a wider tensor. */
START_TEST(kron_of_one_stream) {
  double wide[] = {1, 2, 3, 4}, comb[2] = {0}, dcomb[] = {5, 6};
  bk_tensor none = bk_tensor_slice(F64(wide, 2, 2), 1, 2, 0);
  RUN(HC_KRON, bk_hc_kron_args, .logits = none, .comb = F64(comb, 2, 1, 1));
  NEAR(comb, 1, 1);
  RUN(HC_KRON_BWD, bk_hc_kron_bwd_args, .logits = none, .dcomb = F64(dcomb, 2, 1, 1),
      .dlogits = none);
  NEAR(wide, 1, 2, 3, 4);
}
END_TEST

/* ---- streams: one token, n = 2, C = 2 ---- */

START_TEST(expand_and_collapse) {
  double x[] = {1, 2, 3, 4}, y[8], z[4];
  RUN(HC_EXPAND, bk_hc_expand_args, .x = F64(x, 2, 2), .y = F64(y, 2, 2, 2));
  NEAR(y, 1, 2, 1, 2, 3, 4, 3, 4);
  RUN(HC_COLLAPSE, bk_hc_collapse_args, .x = F64(y, 2, 2, 2), .y = F64(z, 2, 2));
  NEAR(z, 2, 4, 6, 8);
}
END_TEST

START_TEST(pre_by_hand) {
  double x[] = {1, 2, 3, 4}, pre[] = {10, 100}, y[2], dy[] = {1, 2}, dx[] = {1, 1, 1, 1}, dpre[2];
  RUN(HC_PRE, bk_hc_pre_args, .x = F64(x, 1, 2, 2), .pre = F64(pre, 1, 2), .y = F64(y, 1, 2));
  NEAR(y, 310, 420);
  RUN(HC_PRE_BWD, bk_hc_pre_bwd_args, .x = F64(x, 1, 2, 2), .pre = F64(pre, 1, 2),
      .dy = F64(dy, 1, 2), .dx = F64(dx, 1, 2, 2), .dpre = F64(dpre, 1, 2), .accumulate = true);
  NEAR(dx, 11, 21, 101, 201);
  NEAR(dpre, 5, 11);
}
END_TEST

START_TEST(res_by_hand) {
  /* source 0 goes with 1 and 10 */
  double x[] = {1, 2, 3, 4}, comb[] = {1, 10, 100, 1000}, y[4], dy[] = {1, 2, 3, 4}, dcomb[4];
  RUN(HC_RES, bk_hc_res_args, .x = F64(x, 1, 2, 2), .comb = F64(comb, 1, 2, 2),
      .y = F64(y, 1, 2, 2));
  NEAR(y, 301, 402, 3010, 4020);
  RUN(HC_RES_BWD, bk_hc_res_bwd_args, .x = F64(x, 1, 2, 2), .comb = F64(comb, 1, 2, 2),
      .dy = F64(dy, 1, 2, 2), .dx = F64(y, 1, 2, 2), .dcomb = F64(dcomb, 1, 2, 2));
  NEAR(y, 31, 42, 3100, 4200);
  NEAR(dcomb, 5, 11, 11, 25);
}
END_TEST

START_TEST(post_by_hand) {
  double f[] = {1, 2}, post[] = {10, 100}, y[] = {1, 1, 1, 1}, dy[] = {1, 2, 3, 4}, df[2], dpost[2];
  RUN(HC_POST, bk_hc_post_args, .f = F64(f, 1, 2), .post = F64(post, 1, 2), .y = F64(y, 1, 2, 2));
  NEAR(y, 11, 21, 101, 201);
  RUN(HC_POST_BWD, bk_hc_post_bwd_args, .f = F64(f, 1, 2), .post = F64(post, 1, 2),
      .dy = F64(dy, 1, 2, 2), .df = F64(df, 1, 2), .dpost = F64(dpost, 1, 2));
  NEAR(df, 310, 420);
  NEAR(dpost, 5, 11);
}
END_TEST

static void add_case(Suite *suite, const char *name, const TTest *const *tests, size_t count) {
  TCase *c = tcase_create(name);
  tcase_add_checked_fixture(c, reset_buffers, NULL);
  for (size_t i = 0; i < count; i++) tcase_add_test(c, tests[i]);
  suite_add_tcase(suite, c);
}
#define CASE(name, ...)                                 \
  add_case(suite, name, (const TTest *[]){__VA_ARGS__}, \
           sizeof((const TTest *[]){__VA_ARGS__}) / sizeof(TTest *))

int main(void) {
  Suite *suite = suite_create("ref");
  CASE("backend", table_covers_the_primitives, device_opens, bf16_rounds_once);
  CASE("copies and products", copy_follows_strides_and_dtypes, add_and_sum, gemm_by_hand,
       gemm_past_one_block, grouped_products);
  CASE("layers", rmsnorm_by_hand, rope_turns_pairs, cache_write_drops_what_does_not_fit,
       attention_by_hand, attention_with_a_cache, attention_survives_large_scores, swiglu_by_hand,
       embedding_and_its_gradient, cross_entropy_by_hand);
  CASE("experts", router_chooses, router_gradient_by_hand, moe_index_is_a_stable_sort,
       permute_and_back, balance_moves_towards_the_mean);
  CASE("optimiser", clip_writes_norm_factor_and_flag, adamw_by_hand, adamw_with_a_master);
  CASE("maps", hc_rms_by_hand, hc_logits_by_hand, hc_gates_by_hand, hc_tanh_by_hand,
       sinkhorn_by_hand, sinkhorn_reaches_the_limit, sinkhorn_of_large_gaps,
       sinkhorn_of_gap_800_by_hand, sinkhorn_gradient_by_differences, perm_is_lexicographic,
       kron_by_hand, kron_of_large_gaps, kron_of_one_stream);
  CASE("streams", expand_and_collapse, pre_by_hand, res_by_hand, post_by_hand);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}

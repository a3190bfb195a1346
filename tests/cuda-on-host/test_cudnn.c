/* Which row serves attention, and cuDNN's backward in pieces: what it computes, the workspace, a
 * piece that fails. On the host, where a stand-in keeps ds of at most 600 KiB: four heads of 256
 * tokens. */
#include "ops/plan.h"
#include "tests/cuda-on-host/cuda_unit.h"

#include <math.h>

enum { DK = 16, DV = 8, TENSORS = 9 };

static bk_attention_bwd_args args;

static bk_tensor *tensor_at(bk_attention_bwd_args *a, int i) {
  bk_tensor *const all[TENSORS] = {&a->q,   &a->k,  &a->v,  &a->dout, &a->o,
                                   &a->lse, &a->dq, &a->dk, &a->dv};
  return all[i];
}

static bk_attention_bwd_args shapes(int64_t b, int64_t t, int64_t h) {
  const bk_tensor keys = bk_tensor_4d(BK_BF16, b, t, h, DK),
                  values = bk_tensor_4d(BK_BF16, b, t, h, DV);
  return (bk_attention_bwd_args){.q = keys,
                                 .k = keys,
                                 .v = values,
                                 .o = values,
                                 .lse = bk_tensor_3d(BK_F32, b, h, t),
                                 .dout = values,
                                 .dq = keys,
                                 .dk = keys,
                                 .dv = values,
                                 .scale = 0.25};
}

static bk_attention_args forward_of(const bk_attention_bwd_args *a) {
  return (bk_attention_args){
      .q = a->q, .k = a->k, .v = a->v, .o = a->o, .lse = a->lse, .scale = a->scale};
}

static void open_here(void) {
  setenv("BK_CUDA_CUDNN", "1", 1);
  unsetenv("BK_CUDA_CUDNN_FAILS");
  unsetenv("BIRKHOFF_CUDA_CUDNN");
  cuda_open();
}

static void expect_rows(int64_t b, int64_t t, int64_t h, bool forward_here, bool backward_here) {
  const bk_attention_bwd_args a = shapes(b, t, h);
  const bk_attention_args f = forward_of(&a);
  const bool forward =
      strcmp(bk_kernel_find(device, BK_OP_ATTENTION, &f)->name, "cuda_attention_cudnn") == 0;
  const bool backward = strcmp(bk_kernel_find(device, BK_OP_ATTENTION_BWD, &a)->name,
                               "cuda_attention_bwd_cudnn") == 0;
  ck_assert_msg(forward == forward_here, "forward of %d x %d tokens, %d heads: %d", (int)b, (int)t,
                (int)h, forward);
  ck_assert_msg(backward == backward_here, "backward of %d x %d tokens, %d heads: %d", (int)b,
                (int)t, (int)h, backward);
}

START_TEST(rows) {
  open_here();
  expect_rows(1, 255, 1, false, false);
  expect_rows(1, 256, 1, true, true);
  expect_rows(3, 256, 5, true, true);
  expect_rows(1, 512, 1, true, true);
  expect_rows(1, 640, 1, true, false); /* one head is above the limit */
  expect_rows(1, 258, 2, true, true);  /* whole */
  expect_rows(1, 258, 5, true, false); /* the lse of the second piece would begin at 8 bytes */
  cuda_close();
}
END_TEST

START_TEST(without) {
  if (_i) setenv("BIRKHOFF_CUDA_CUDNN", "0", 1);
  setenv("BK_CUDA_CUDNN", _i ? "1" : "no", 1);
  cuda_open();
  expect_rows(1, 256, 1, false, false);
  cuda_close();
}
END_TEST

/* Random q, k, v and dout, what the forward makes of them, and gradients that are not a number
 * yet. */
static void make(int64_t b, int64_t t, int64_t h) {
  args = shapes(b, t, h);
  for (int i = 0; i < TENSORS; i++) {
    bk_tensor *x = tensor_at(&args, i);
    const int64_t count = bk_tensor_count(x);
    *x = gpu_tensor(*x);
    double *values = bk_alloc_array(ctx, (size_t)count, sizeof *values);
    for (int64_t n = 0; n < count; n++)
      values[n] = i < 4 ? bk_normal(7, (uint64_t)i, (uint64_t)n) : (double)NAN;
    ck_assert_int_eq(bk_tensor_write_f64(stream, x, values), BK_OK);
    bk_free(ctx, values);
  }
  const bk_attention_args f = forward_of(&args);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ATTENTION, &f), BK_OK);
}

static void unmake(void) {
  for (int i = 0; i < TENSORS; i++) bk_buffer_free(tensor_at(&args, i)->buffer);
}

/* dq, dk and dv, which are not a number afterwards. */
static double *take(void) {
  const bk_tensor *const all[] = {&args.dq, &args.dk, &args.dv};
  const int64_t pairs = args.q.shape[0] * args.q.shape[1] * args.q.shape[2];
  double *values = bk_alloc_array(ctx, (size_t)(pairs * (2 * DK + DV)), sizeof *values),
         *at = values;
  double *spoil = bk_alloc_array(ctx, (size_t)(pairs * DK), sizeof *spoil);
  for (int64_t i = 0; i < pairs * DK; i++) spoil[i] = (double)NAN;
  for (int i = 0; i < 3; i++) {
    ck_assert_int_eq(bk_tensor_read_f64(stream, all[i], at), BK_OK);
    ck_assert_int_eq(bk_tensor_write_f64(stream, all[i], spoil), BK_OK);
    at += bk_tensor_count(all[i]);
  }
  bk_free(ctx, spoil);
  return values;
}

static void expect_same(double *a, double *b, int64_t pairs) {
  for (int64_t i = 0; i < pairs * (2 * DK + DV); i++)
    ck_assert_msg(a[i] == b[i], "value %d: %g and %g", (int)i, a[i], b[i]);
  bk_free(ctx, a);
  bk_free(ctx, b);
}

static void run_alone(int64_t b, int64_t h) {
  bk_attention_bwd_args a = args;
  for (int i = 0; i < TENSORS; i++) {
    bk_tensor *x = tensor_at(&a, i);
    *x = bk_tensor_slice(bk_tensor_slice(*x, 0, b, 1), x == &a.lse ? 1 : 2, h, 1);
  }
  ck_assert_str_eq(bk_kernel_find(device, BK_OP_ATTENTION_BWD, &a)->name,
                   "cuda_attention_bwd_cudnn");
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ATTENTION_BWD, &a), BK_OK);
}

/* Pieces of heads, of two shapes; pieces of sequences; the whole. The same bits as head by head. */
START_TEST(pieces) {
  static const int64_t sizes[][3] = {{2, 256, 5}, {3, 256, 2}, {1, 320, 2}};
  const int64_t b = sizes[_i][0], t = sizes[_i][1], h = sizes[_i][2];
  bk_plan plan = {0};
  open_here();
  make(b, t, h);
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_ATTENTION_BWD, &args, &plan), BK_OK);
  ck_assert_str_eq(plan.kernel->name, "cuda_attention_bwd_cudnn");
  ck_assert_uint_lt(plan.workspace_bytes, (600 << 10) + 16384);
  bk_plan_release(&plan);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ATTENTION_BWD, &args), BK_OK);
  double *together = take();
  for (int64_t i = 0; i < b * h; i++) run_alone(i / h, i % h);
  expect_same(together, take(), b * t * h);
  unmake();
  cuda_close();
}
END_TEST

/* Whichever of the four pieces fails, our own kernel does all of it, as it does alone from then
 * on; a fifth there is not. */
START_TEST(failing) {
  char number[8];
  snprintf(number, sizeof number, "%d", _i);
  open_here();
  make(2, 256, 5);
  setenv("BK_CUDA_CUDNN_FAILS", number, 1);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ATTENTION_BWD, &args), BK_OK);
  unit_expect(_i <= 4 ? "cuDNN: attention backward (plain sums) failed: "
                        "CUDNN_STATUS_EXECUTION_FAILED (5000); our own kernel serves from now on"
                      : NULL);
  double *first = take();
  unsetenv("BK_CUDA_CUDNN_FAILS");
  ck_assert_str_eq(bk_kernel_find(device, BK_OP_ATTENTION_BWD, &args)->name,
                   _i <= 4 ? "cuda_attention_bwd_mma" : "cuda_attention_bwd_cudnn");
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ATTENTION_BWD, &args), BK_OK);
  expect_same(first, take(), 2 * 256 * 5);
  unmake();
  cuda_close();
}
END_TEST

int main(void) {
  if (!cuda_find_module()) return SKIPPED;
  Suite *suite = suite_create("cudnn");
  TCase *tests = tcase_create("cudnn");
  tcase_set_timeout(tests, 120);
  tcase_add_test(tests, rows);
  tcase_add_loop_test(tests, without, 0, 2);
  tcase_add_loop_test(tests, pieces, 0, 3);
  tcase_add_loop_test(tests, failing, 1, 6);
  suite_add_tcase(suite, tests);
  return unit_run(suite);
}

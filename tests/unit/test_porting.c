/* The example of doc/porting-a-backend.md does what the guide says: it registers, opens, runs its one op, leaves an op it
 * does not have to another device when it is asked to, and is told apart from it when it is not. */
#include "runtime/backend.h"
#include <check.h>
#include <math.h>
#include <string.h>

const bk_backend *bk_backend_module(void); /* doc/examples/first_backend.c */

static char messages[4096];

static void keep_message(void *user, bk_log_level level, const char *message) {
  (void)user, (void)level;
  strncat(messages, message, sizeof messages - strlen(messages) - 1);
}

static bk_context *ctx;
static bk_device *device;
static bk_stream *stream;
static bk_buffer *buffer;
static bk_swiglu_args args;

static void open_device(bool allow_fallback) {
  bk_context_options options = {.log = keep_message, .log_level = BK_LOG_INFO};
  bk_device_options device_options = {.allow_fallback = allow_fallback};
  messages[0] = '\0';
  ck_assert_int_eq(bk_context_create(&options, &ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, bk_backend_module()), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, "first", &device_options, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(device, 3 * 256, BK_MEM_ACTIVATIONS, &buffer), BK_OK);
  bk_tensor *t[] = {&args.gate, &args.up, &args.y};
  for (size_t i = 0; i < BK_COUNT(t); i++) {
    *t[i] = bk_tensor_2d(BK_F32, 1, 2);
    t[i]->buffer = buffer;
    t[i]->offset = i * 256;
  }
  const double log3 = log(3);
  ck_assert_int_eq(bk_tensor_write_f64(stream, &args.gate, (double[]){log3, -log3}), BK_OK);
  ck_assert_int_eq(bk_tensor_write_f64(stream, &args.up, (double[]){4, 8}), BK_OK);
}

static void close_device(void) {
  bk_buffer_free(buffer);
  bk_stream_destroy(stream);
  bk_device_close(device);
  bk_context_destroy(ctx);
}

START_TEST(example_runs_its_op) {
  double y[2];
  open_device(false);
  ck_assert_str_eq(bk_kernel_find(device, BK_OP_SWIGLU, &args)->name, "first_swiglu");
  ck_assert_int_eq(bk_op_run(stream, BK_OP_SWIGLU, &args), BK_OK);
  ck_assert_int_eq(bk_tensor_read_f64(stream, &args.y, y), BK_OK);
  ck_assert_double_eq_tol(y[0], 3 * log(3), 1e-6);
  ck_assert_double_eq_tol(y[1], -2 * log(3), 1e-6);
  ck_assert_str_eq(messages, "");
  close_device();
}
END_TEST

START_TEST(example_refuses_what_it_does_not_have) {
  open_device(false);
  bk_add_args add = {.a = args.gate, .b = args.up, .y = args.y};
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ADD, &add), BK_ERR_UNSUPPORTED);
  ck_assert_ptr_nonnull(strstr(messages, "add"));
  close_device();
}
END_TEST

START_TEST(example_falls_back_when_allowed) {
  double y[2];
  open_device(true);
  bk_add_args add = {.a = args.gate, .b = args.up, .y = args.y};
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ADD, &add), BK_OK);
  ck_assert_int_eq(bk_tensor_read_f64(stream, &args.y, y), BK_OK);
  ck_assert_double_eq_tol(y[0], log(3) + 4, 1e-6);
  ck_assert_double_eq_tol(y[1], 8 - log(3), 1e-6);
  ck_assert_ptr_nonnull(strstr(messages, "add")); /* said once, not silently */
  close_device();
}
END_TEST

int main(void) {
  Suite *suite = suite_create("porting");
  TCase *c = tcase_create("example");
  tcase_add_test(c, example_runs_its_op);
  tcase_add_test(c, example_refuses_what_it_does_not_have);
  tcase_add_test(c, example_falls_back_when_allowed);
  suite_add_tcase(suite, c);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}

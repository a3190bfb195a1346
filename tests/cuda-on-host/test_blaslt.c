/* Which row serves a dense product, and the ways around cuBLASLt: off, missing, broken, no
 * algorithm, operands that lie worse than planned, a product that fails. On the host, through
 * the stand-ins. */
#include "ops/plan.h"
#include "tests/cuda-on-host/cuda_unit.h"

enum { M = 9, K = 24, N = 16, PLACE = 4096, BUFFER = 4 * PLACE };

static bk_buffer *buffer;

static void open_device(void) {
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, "cuda:0", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(device, BUFFER, BK_MEM_ACTIVATIONS, &buffer), BK_OK);
}

static void close_device(void) {
  bk_buffer_free(buffer);
  bk_stream_destroy(stream);
  bk_device_close(device);
}

static bk_tensor matrix(bk_dtype dtype, int place, int64_t rows, int64_t columns) {
  bk_tensor t = bk_tensor_2d(dtype, rows, columns);
  t.buffer = buffer;
  t.offset = (size_t)place * PLACE;
  return t;
}

static bk_gemm_args product(bk_dtype a, bk_dtype b, bk_dtype c) {
  return (bk_gemm_args){matrix(a, 0, M, K), matrix(b, 1, K, N), matrix(c, 2, M, N), 1.0, false};
}

static void expect_row(bk_gemm_args g, const char *name) {
  ck_assert_str_eq(bk_kernel_find(device, BK_OP_GEMM, &g)->name, name);
}

/* Small whole numbers, so that every dtype has exact results. */
static double value_at(int64_t i) { return (double)(i * 7 % 5) - 2; }

static void fill(const bk_tensor *t) {
  double values[K * N];
  for (int64_t i = 0; i < bk_tensor_count(t); i++) values[i] = value_at(i);
  ck_assert_int_eq(bk_tensor_write_f64(stream, t, values), BK_OK);
}

static void expect_sums(const bk_gemm_args *g) {
  double got[M * N];
  ck_assert_int_eq(bk_tensor_read_f64(stream, &g->c, got), BK_OK);
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) {
      double sum = 0;
      for (int l = 0; l < K; l++) sum += value_at(i * K + l) * value_at(l * N + j);
      ck_assert_double_eq(got[i * N + j], sum);
    }
}

START_TEST(rows) {
  open_device();
  bk_gemm_args odd = product(BK_BF16, BK_BF16, BK_BF16), empty = product(BK_F32, BK_F32, BK_F32);
  odd.a.offset += 2;
  empty.a.shape[1] = empty.b.shape[0] = 0;
  expect_row(product(BK_BF16, BK_BF16, BK_BF16), "cuda_gemm_cublaslt");
  expect_row(product(BK_BF16, BK_BF16, BK_F32), "cuda_gemm_cublaslt");
  expect_row(product(BK_F32, BK_F32, BK_F32), "cuda_gemm_cublaslt");
  expect_row(product(BK_BF16, BK_F32, BK_BF16), "cuda_gemm_fp32");
  expect_row(product(BK_F32, BK_F32, BK_BF16), "cuda_gemm_fp32");
  expect_row(odd, "cuda_gemm_mma"); /* the stand-in has no algorithm for it */
  expect_row(empty, "cuda_gemm_fp32");
  close_device();
}
END_TEST

START_TEST(without) {
  static const struct {
    const char *variable, *value;
  } ways[] = {
      {"BIRKHOFF_CUDA_BLASLT", "0"}, {"BK_CUDA_BLASLT", "no"}, {"BK_CUDA_BLASLT", "broken"}};
  setenv(ways[_i].variable, ways[_i].value, 1);
  open_device();
  expect_row(product(BK_BF16, BK_BF16, BK_BF16), "cuda_gemm_mma");
  expect_row(product(BK_F32, BK_F32, BK_F32), "cuda_gemm_fp32");
  close_device();
}
END_TEST

/* A library that opens and cannot start is not the end of the search. */
START_TEST(stale_library_first) {
  setenv("BK_CUDA_BLASLT", "stale", 1);
  open_device();
  expect_row(product(BK_BF16, BK_BF16, BK_BF16), "cuda_gemm_cublaslt");
  close_device();
}
END_TEST

/* Planned for aligned operands; at launch one of them lies an element further. */
START_TEST(misplaced) {
  const bk_dtype dtype = _i / 3 ? BK_F32 : BK_BF16;
  bk_plan plan = {0};
  open_device();
  bk_gemm_args g = product(dtype, dtype, dtype);
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_GEMM, &g, &plan), BK_OK);
  ck_assert_str_eq(plan.kernel->name, "cuda_gemm_cublaslt");
  bk_tensor *moved[] = {&g.a, &g.b, &g.c};
  moved[_i % 3]->offset += bk_dtype_size(dtype);
  fill(&g.a);
  fill(&g.b);
  ck_assert_int_eq(bk_plan_launch(stream, &plan, &g, (bk_place){buffer, 3 * PLACE}), BK_OK);
  expect_sums(&g);
  bk_plan_release(&plan);
  close_device();
}
END_TEST

START_TEST(failing) {
  bk_plan plan = {0};
  open_device();
  bk_gemm_args g = product(BK_F32, BK_F32, BK_F32);
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_GEMM, &g, &plan), BK_OK);
  setenv("BK_CUDA_BLASLT", "failing", 1);
  ck_assert_int_eq(bk_plan_launch(stream, &plan, &g, (bk_place){buffer, 3 * PLACE}), BK_ERR_DEVICE);
  unit_expect("cuBLASLt: a product: CUBLAS_STATUS_EXECUTION_FAILED (13)");
  unsetenv("BK_CUDA_BLASLT");
  fill(&g.a);
  fill(&g.b);
  /* and goes on */
  ck_assert_int_eq(bk_plan_launch(stream, &plan, &g, (bk_place){buffer, 3 * PLACE}), BK_OK);
  expect_sums(&g);
  bk_plan_release(&plan);
  close_device();
}
END_TEST

int main(void) {
  if (!cuda_find_module()) return SKIPPED;
  Suite *suite = suite_create("blaslt");
  TCase *tests = tcase_create("blaslt");
  tcase_add_checked_fixture(tests, unit_open, unit_close);
  tcase_add_test(tests, rows);
  tcase_add_loop_test(tests, without, 0, 3);
  tcase_add_test(tests, stale_library_first);
  tcase_add_loop_test(tests, misplaced, 0, 6);
  tcase_add_test(tests, failing);
  suite_add_tcase(suite, tests);
  return unit_run(suite);
}

/* The projection on tensor cores keeps all 24 bits of its fp32 operands: where each sum has one
 * term, the result is that number exactly, which the harness's bounds are too wide to see. x has
 * a single 1 in every row (forward) and in every column (dfn). */
#include "ops/plan.h"
#include "tests/cuda-on-host/cuda_unit.h"

static void upload(const bk_tensor *t, double (*value)(int64_t i, int64_t columns)) {
  int64_t count = bk_tensor_count(t), columns = t->shape[t->ndim - 1];
  double *values = bk_alloc_array(ctx, (size_t)count, sizeof *values);
  for (int64_t i = 0; i < count; i++) values[i] = value(i, columns);
  ck_assert_int_eq(bk_tensor_write_f64(stream, t, values), BK_OK);
  bk_free(ctx, values);
}

static float *download(const bk_tensor *t) {
  float *values = bk_alloc_array(ctx, (size_t)bk_tensor_count(t), sizeof *values);
  ck_assert_int_eq(bk_tensor_download(stream, t, values), BK_OK);
  return values;
}

/* The one place of row i is 7 i modulo the columns: rows and columns meet once, if the columns
 * are no multiple of 7 and no fewer. */
static double one_a_row(int64_t i, int64_t columns) {
  return i % columns == i / columns * 7 % columns;
}
static double all_bits(int64_t i, int64_t columns) {
  return (void)columns, (float)bk_normal(3, 1, (uint64_t)i);
}
static double zero(int64_t i, int64_t columns) { return (void)i, (void)columns, 0; }
static double one(int64_t i, int64_t columns) { return (void)i, (void)columns, 1; }

static void served_by(bk_op op, const void *args, const char *kernel) {
  const bk_kernel *found = bk_kernel_find(device, op, args);
  ck_assert_ptr_nonnull(found);
  ck_assert_str_eq(found->name, kernel);
}

static void free_all(bk_tensor *const *tensors, size_t count) {
  for (size_t i = 0; i < count; i++) bk_buffer_free(tensors[i]->buffer);
}

static void check_forward(int64_t rows) {
  const int64_t tokens = 35, width = 296;
  bk_hc_project_args a = {gpu_tensor(bk_tensor_2d(BK_BF16, tokens, width)),
                          gpu_tensor(bk_tensor_2d(BK_F32, rows, width)),
                          gpu_tensor(bk_tensor_2d(BK_F32, tokens, rows)),
                          gpu_tensor(bk_tensor_1d(BK_F32, tokens)), 1e-6};
  bk_tensor *const all[] = {&a.x, &a.fn, &a.proj, &a.rinv};
  served_by(BK_OP_HC_PROJECT, &a, "cuda_hc_project_mma");
  upload(&a.x, one_a_row);
  upload(&a.fn, all_bits);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_HC_PROJECT, &a), BK_OK);
  float *fn = download(&a.fn), *proj = download(&a.proj);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t j = 0; j < rows; j++)
      ck_assert_msg(proj[t * rows + j] == fn[j * width + t * 7 % width], "token %d, row %d of %d",
                    (int)t, (int)j, (int)rows);
  bk_free(ctx, fn);
  bk_free(ctx, proj);
  free_all(all, BK_COUNT(all));
}

START_TEST(forward) {
  check_forward(8);
  check_forward(24);
  check_forward(32);
}
END_TEST

static void check_backward(int64_t rows) {
  const int64_t tokens = 40, width = 296;
  bk_hc_project_bwd_args a = {.x = gpu_tensor(bk_tensor_2d(BK_BF16, tokens, width)),
                              .fn = gpu_tensor(bk_tensor_2d(BK_F32, rows, width)),
                              .rinv = gpu_tensor(bk_tensor_1d(BK_F32, tokens)),
                              .dproj = gpu_tensor(bk_tensor_2d(BK_F32, tokens, rows)),
                              .drinv = gpu_tensor(bk_tensor_1d(BK_F32, tokens)),
                              .dx = gpu_tensor(bk_tensor_2d(BK_BF16, tokens, width)),
                              .dfn = gpu_tensor(bk_tensor_2d(BK_F32, rows, width))};
  bk_tensor *const all[] = {&a.x, &a.fn, &a.rinv, &a.dproj, &a.drinv, &a.dx, &a.dfn};
  served_by(BK_OP_HC_PROJECT_BWD, &a, "cuda_hc_project_bwd_mma");
  upload(&a.x, one_a_row);
  upload(&a.dproj, all_bits);
  upload(&a.fn, all_bits);
  upload(&a.rinv, one);
  upload(&a.drinv, zero);
  upload(&a.dfn, zero);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_HC_PROJECT_BWD, &a), BK_OK);
  float *dproj = download(&a.dproj), *dfn = download(&a.dfn);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t j = 0; j < rows; j++)
      ck_assert_msg(dfn[j * width + t * 7 % width] == dproj[t * rows + j], "token %d, row %d of %d",
                    (int)t, (int)j, (int)rows);
  bk_free(ctx, dproj);
  bk_free(ctx, dfn);
  free_all(all, BK_COUNT(all));
}

START_TEST(backward) {
  check_backward(8);
  check_backward(24);
  check_backward(32);
}
END_TEST

int main(void) {
  const TTest *const tests[] = {forward, backward};
  if (!cuda_find_module()) return SKIPPED;
  Suite *suite = suite_create("cuda terms");
  unit_case(suite, "cuda terms", cuda_open, cuda_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}

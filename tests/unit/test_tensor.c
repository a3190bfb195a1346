/* dtypes, bf16 rounding, shapes, views. */
#include "tests/unit/unit.h"

#include "tensor/tensor.h"

#include <math.h>

START_TEST(dtypes) {
  static const struct {
    bk_dtype dtype;
    size_t size;
    const char *name;
  } all[] = {{BK_NONE, 0, "none"}, {BK_F32, 4, "fp32"}, {BK_BF16, 2, "bf16"}, {BK_F64, 8, "fp64"},
             {BK_I32, 4, "i32"},   {BK_I64, 8, "i64"},  {BK_U8, 1, "u8"}};
  ck_assert_uint_eq(BK_COUNT(all), BK_DTYPE_COUNT);
  for (size_t i = 0; i < BK_COUNT(all); i++) {
    ck_assert_uint_eq(bk_dtype_size(all[i].dtype), all[i].size);
    ck_assert_str_eq(bk_dtype_name(all[i].dtype), all[i].name);
  }
  bk_dtype d = BK_NONE;
  ck_assert(bk_dtype_parse("bf16", &d) == BK_OK && d == BK_BF16);
  ck_assert(bk_dtype_parse("fp64", &d) == BK_OK && d == BK_F64);
  ck_assert_int_eq(bk_dtype_parse("i32", &d), BK_ERR_ARGUMENT);
  ck_assert_int_eq(bk_dtype_parse(NULL, &d), BK_ERR_ARGUMENT);
}
END_TEST

/* Every bf16 comes back; ties go to the even neighbour. */
START_TEST(bf16_rounding) {
  for (uint32_t h = 0; h < 0x10000; h++) {
    float f = bk_bf16_to_f32((uint16_t)h);
    if (isnan(f)) ck_assert(isnan(bk_bf16_to_f32(bk_f32_to_bf16(f))));
    else ck_assert_uint_eq(bk_f32_to_bf16(f), h);
  }
  /* tie between 1 and 1.0078125: even is 1 */
  ck_assert_uint_eq(bk_f32_to_bf16(0x1.01p0f), 0x3f80);
  ck_assert_uint_eq(bk_f32_to_bf16(0x1.03p0f), 0x3f82);     /* tie, even is above */
  ck_assert_uint_eq(bk_f32_to_bf16(0x1.010002p0f), 0x3f81); /* just past the tie */
  ck_assert_uint_eq(bk_f32_to_bf16(-0x1.0ffffep0f), 0xbf88);
  ck_assert_uint_eq(bk_f32_to_bf16(3.4028235e38f), 0x7f80); /* overflow rounds to infinity */
  ck_assert(isnan(bk_bf16_to_f32(bk_f32_to_bf16(NAN))));
}
END_TEST

static void expect_shape(const bk_tensor *t, int ndim, const int64_t *shape,
                         const int64_t *stride) {
  ck_assert_int_eq(t->ndim, ndim);
  for (int i = 0; i < BK_MAX_DIMS; i++) {
    ck_assert_int_eq(t->shape[i], i < ndim ? shape[i] : 1);
    ck_assert_int_eq(t->stride[i], i < ndim ? stride[i] : 0);
  }
}

START_TEST(making) {
  bk_tensor t = bk_tensor_3d(BK_BF16, 2, 3, 4);
  expect_shape(&t, 3, (int64_t[]){2, 3, 4}, (int64_t[]){12, 4, 1});
  ck_assert_int_eq(bk_tensor_count(&t), 24);
  ck_assert_uint_eq(bk_tensor_bytes(&t), 48);
  ck_assert_uint_eq(bk_tensor_span(&t), 48);
  ck_assert(bk_tensor_contiguous(&t) && bk_tensor_rows_dense(&t));
  bk_tensor s = bk_tensor_make(BK_F64, 0, NULL), none = {0}, empty = bk_tensor_2d(BK_F32, 0, 5);
  ck_assert_int_eq(bk_tensor_count(&s), 1);
  ck_assert_int_eq(bk_tensor_count(&none), 0);
  ck_assert_int_eq(bk_tensor_count(&empty), 0);
  ck_assert_uint_eq(bk_tensor_span(&empty), 0);
  ck_assert(bk_tensor_contiguous(&empty));
  ck_assert(!bk_tensor_present(&none) && bk_tensor_present(&s));
  bk_tensor one = bk_tensor_1d(BK_I32, 6), four = bk_tensor_4d(BK_U8, 2, 1, 3, 1);
  ck_assert(!bk_tensor_same_shape(&one, &four));
  bk_tensor six = bk_tensor_1d(BK_F32, 6);
  ck_assert(bk_tensor_same_shape(&one, &six));
}
END_TEST

START_TEST(views) {
  bk_tensor t = bk_tensor_3d(BK_F32, 4, 6, 8);
  t.offset = 1024;
  bk_tensor s = bk_tensor_slice(t, 1, 2, 3);
  expect_shape(&s, 3, (int64_t[]){4, 3, 8}, (int64_t[]){48, 8, 1});
  ck_assert_uint_eq(s.offset, 1024 + 2 * 8 * 4);
  ck_assert(!bk_tensor_contiguous(&s) && bk_tensor_rows_dense(&s));
  ck_assert_uint_eq(bk_tensor_span(&s), (3 * 48 + 2 * 8 + 7 + 1) * 4);
  bk_tensor x = bk_tensor_transpose(t, 0, 2);
  expect_shape(&x, 3, (int64_t[]){8, 6, 4}, (int64_t[]){1, 8, 48});
  ck_assert(!bk_tensor_rows_dense(&x) && !bk_tensor_contiguous(&x));
  bk_tensor split = bk_tensor_split(s, 2, 2);
  expect_shape(&split, 4, (int64_t[]){4, 3, 4, 2}, (int64_t[]){48, 8, 2, 1});
  bk_tensor back = bk_tensor_merge(split, 2);
  expect_shape(&back, 3, (int64_t[]){4, 3, 8}, (int64_t[]){48, 8, 1});
  bk_tensor head = bk_tensor_split(t, 0, 2);
  expect_shape(&head, 4, (int64_t[]){2, 2, 6, 8}, (int64_t[]){96, 48, 8, 1});
  bk_tensor flat = bk_tensor_reshape(t, 2, (int64_t[]){24, 8});
  expect_shape(&flat, 2, (int64_t[]){24, 8}, (int64_t[]){8, 1});
  ck_assert_uint_eq(flat.offset, 1024);
}
END_TEST

START_TEST(size_one_dimensions) {
  bk_tensor t = bk_tensor_3d(BK_F32, 4, 1, 8);
  bk_tensor s = bk_tensor_slice(bk_tensor_3d(BK_F32, 4, 6, 8), 1, 0, 1); /* strides 48, 8, 1 */
  ck_assert(bk_tensor_contiguous(&t) && !bk_tensor_contiguous(&s));
  bk_tensor row = bk_tensor_slice(s, 0, 1, 1);
  ck_assert(bk_tensor_contiguous(&row));
  bk_tensor merged = bk_tensor_merge(s, 0); /* [4,1] -> [4] keeps the stride that is used */
  expect_shape(&merged, 2, (int64_t[]){4, 8}, (int64_t[]){48, 1});
  bk_tensor other = bk_tensor_merge(row, 0);
  expect_shape(&other, 2, (int64_t[]){1, 8}, (int64_t[]){48, 1});
  bk_tensor column = bk_tensor_transpose(bk_tensor_2d(BK_F32, 1, 5), 0, 1);
  ck_assert(bk_tensor_rows_dense(&column) && bk_tensor_contiguous(&column));
}
END_TEST

START_TEST(describing) {
  char text[80], tiny[8];
  bk_tensor t = bk_tensor_3d(BK_F32, 2, 3, 4), none = {0};
  ck_assert_str_eq(bk_tensor_describe(&t, text, sizeof text), "[2,3,4] fp32");
  t = bk_tensor_slice(t, 1, 0, 2);
  ck_assert_str_eq(bk_tensor_describe(&t, text, sizeof text), "[2,2,4] fp32 strides [12,4,1]");
  ck_assert_str_eq(bk_tensor_describe(&t, tiny, sizeof tiny), "[2,2,4]");
  ck_assert_str_eq(bk_tensor_describe(&none, text, sizeof text), "absent");
  bk_tensor scalar = bk_tensor_make(BK_I64, 0, NULL);
  ck_assert_str_eq(bk_tensor_describe(&scalar, text, sizeof text), "[] i64");
}
END_TEST

UNIT_MAIN("tensor", unit_open, unit_close, dtypes, bf16_rounding, making, views,
          size_one_dimensions, describing)

/* backends/cuda/cudnn_pieces.c: whatever the shape, every element of every operand is in exactly
 * one piece, pieces stay within the limit, are of two shapes at most, and have a packed lse. */
#include "backends/cuda/cudnn_pieces.h"
#include "tests/unit/unit.h"

typedef struct sizes {
  int64_t b, t, h, dk, dv;
} sizes;

enum { OPERANDS = 9 };

/* Rows with a gap behind each token and each sequence, as slices of wider tensors have; lse is
 * packed. */
static bk_tensor rows(sizes s, int64_t width) {
  bk_tensor t = bk_tensor_4d(BK_BF16, s.b, s.t, s.h, width);
  t.stride[1] += 8;
  t.stride[0] = s.t * t.stride[1] + 16;
  t.offset = 64;
  return t;
}

static bk_attention_bwd_args args_of(sizes s) {
  const bk_tensor keys = rows(s, s.dk), values = rows(s, s.dv);
  bk_attention_bwd_args a = {.q = keys,
                             .k = keys,
                             .v = values,
                             .o = values,
                             .lse = bk_tensor_3d(BK_F32, s.b, s.h, s.t),
                             .dout = values,
                             .dq = keys,
                             .dk = keys,
                             .dv = values,
                             .scale = 0.5};
  a.lse.offset = 16;
  return a;
}

static const bk_tensor *operand(const bk_attention_bwd_args *a, int i) {
  const bk_tensor *const all[OPERANDS] = {&a->q,    &a->k,  &a->v,  &a->o, &a->lse,
                                          &a->dout, &a->dq, &a->dk, &a->dv};
  return all[i];
}

/* Counts the elements of t, each at its place in memory. */
static void mark(const bk_tensor *t, uint8_t *seen, size_t elements) {
  for (int64_t a = 0; a < t->shape[0]; a++)
    for (int64_t b = 0; b < t->shape[1]; b++)
      for (int64_t c = 0; c < t->shape[2]; c++)
        for (int64_t d = 0; d < t->shape[3]; d++) {
          const size_t at =
              t->offset / bk_dtype_size(t->dtype) +
              (size_t)(a * t->stride[0] + b * t->stride[1] + c * t->stride[2] + d * t->stride[3]);
          if (at >= elements || ++seen[at] == 255)
            ck_abort_msg("element %d of %d", (int)at, (int)elements);
        }
}

static void expect_covered(const bk_attention_bwd_args *a, bk_cudnn_cut cut, int n) {
  const bk_tensor *whole = operand(a, n);
  const size_t elements = (whole->offset + bk_tensor_span(whole)) / bk_dtype_size(whole->dtype);
  uint8_t *wanted = bk_alloc(ctx, elements), *found = bk_alloc(ctx, elements);
  mark(whole, wanted, elements);
  for (int64_t i = 0; i < bk_cudnn_count(cut); i++) {
    const bk_attention_bwd_args piece = bk_cudnn_piece(a, cut, i);
    mark(operand(&piece, n), found, elements);
  }
  ck_assert_msg(memcmp(wanted, found, elements) == 0, "operand %d is not covered once", n);
  bk_free(ctx, wanted);
  bk_free(ctx, found);
}

static double matrix_bytes(const bk_tensor *q) {
  const double side = (double)((q->shape[1] + 127) / 128 * 128);
  return 2 * side * side * (double)q->shape[0] * (double)q->shape[2];
}

static void expect_pieces(const bk_attention_bwd_args *a, bk_cudnn_cut cut, size_t limit) {
  const bk_attention_bwd_args first = bk_cudnn_piece(a, cut, 0),
                              last = bk_cudnn_piece(a, cut, bk_cudnn_count(cut) - 1);
  for (int64_t i = 0; i < bk_cudnn_count(cut); i++) {
    const bk_attention_bwd_args piece = bk_cudnn_piece(a, cut, i);
    const bk_tensor *q = &piece.q;
    ck_assert(matrix_bytes(q) <= (double)limit);
    ck_assert(bk_tensor_same_shape(q, &first.q) || bk_tensor_same_shape(q, &last.q));
    ck_assert(bk_tensor_contiguous(&piece.lse) && piece.lse.stride[0] == q->shape[1] * q->shape[2]);
    ck_assert_double_eq(piece.scale, a->scale);
    for (int n = 0; n < OPERANDS; n++) {
      const bk_tensor *t = operand(&piece, n), *whole = operand(a, n);
      ck_assert_int_eq(t->shape[0], q->shape[0]);
      ck_assert_int_eq(t->shape[n == 4 ? 1 : 2], q->shape[2]);
      ck_assert_int_eq(t->shape[n == 4 ? 2 : 1], whole->shape[n == 4 ? 2 : 1]);
      ck_assert_int_eq(t->shape[3], whole->shape[3]);
    }
  }
}

static void expect_cut(sizes s, size_t limit, int64_t sequences, int64_t heads) {
  const bk_attention_bwd_args a = args_of(s);
  const bk_cudnn_cut cut = bk_cudnn_cut_of(&a, limit);
  ck_assert_msg(cut.sequences == sequences && cut.heads == heads,
                "%d x %d tokens, %d heads: cut into %d x %d, not %d x %d", (int)s.b, (int)s.t,
                (int)s.h, (int)cut.sequences, (int)cut.heads, (int)sequences, (int)heads);
  if (bk_cudnn_count(cut) > 0) expect_pieces(&a, cut, limit);
}

/* At 256 tokens a head takes 128 KiB. */
START_TEST(cuts) {
  const size_t head = 128 << 10;
  expect_cut((sizes){3, 256, 5, 8, 8}, 15 * head, 1, 1);
  expect_cut((sizes){3, 256, 5, 8, 8}, 15 * head - 1, 2, 1);
  expect_cut((sizes){3, 256, 5, 8, 8}, 9 * head, 3, 1);
  expect_cut((sizes){3, 256, 5, 8, 8}, 5 * head, 3, 1);
  expect_cut((sizes){3, 256, 5, 8, 8}, 5 * head - 1, 3, 2);
  expect_cut((sizes){3, 256, 5, 8, 8}, head, 3, 5);
  expect_cut((sizes){3, 256, 5, 8, 8}, head - 1, 0, 0);
  expect_cut((sizes){3, 129, 5, 8, 8}, head, 3, 5); /* whole tiles */
  expect_cut((sizes){0, 256, 5, 8, 8}, head, 0, 0);
  expect_cut((sizes){1, 256, 0, 8, 8}, head, 0, 0);
}
END_TEST

/* The limit of the backend. */
START_TEST(working_sizes) {
  const size_t limit = (size_t)256 << 20;
  expect_cut((sizes){2, 4096, 32, 192, 128}, limit, 2, 4);
  expect_cut((sizes){1, 2048, 8, 192, 128}, limit, 1, 1);
  expect_cut((sizes){8, 2048, 32, 192, 128}, limit, 8, 1);
  expect_cut((sizes){8, 1024, 32, 96, 64}, limit, 2, 1);
  expect_cut((sizes){1, 4096, 20, 192, 128}, limit, 1, 3); /* 6, 7 and 7 heads */
  expect_cut((sizes){1, 11520, 3, 64, 64}, limit, 1, 3);
  expect_cut((sizes){1, 11521, 3, 64, 64}, limit, 0, 0);
  expect_cut((sizes){1, INT64_C(1) << 40, 1, 64, 64}, limit, 0, 0); /* beyond 64 bits */
}
END_TEST

START_TEST(coverage) {
  for (int64_t b = 1; b <= 3; b++)
    for (int64_t h = 1; h <= 7; h++)
      for (size_t most = 1; most <= 22; most += 1 + most / 8) {
        const sizes s = {b, 3, h, 8, 16};
        const bk_attention_bwd_args a = args_of(s);
        const size_t limit = most * 2 * BK_CUDNN_TILE * BK_CUDNN_TILE;
        const bk_cudnn_cut cut = bk_cudnn_cut_of(&a, limit);
        ck_assert_int_ge(bk_cudnn_count(cut), 1);
        expect_pieces(&a, cut, limit);
        for (int n = 0; n < OPERANDS; n++) expect_covered(&a, cut, n);
      }
}
END_TEST

int main(void) {
  Suite *suite = suite_create("cudnn pieces");
  TCase *tests = tcase_create("pieces");
  tcase_add_checked_fixture(tests, unit_open, unit_close);
  tcase_add_test(tests, cuts);
  tcase_add_test(tests, working_sizes);
  tcase_add_test(tests, coverage);
  suite_add_tcase(suite, tests);
  return unit_run(suite);
}

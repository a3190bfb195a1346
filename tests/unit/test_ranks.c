/* Ranks that are threads: every operation against a plain loop, what ranks disagree on, time-outs,
 * failures, and memory that is not the host's. */
#include "tests/unit/ranks.h"
#include "tests/unit/unit.h"

#include <math.h>

#define BYTES ((size_t)512 << 10)

/* ---- tensors and values ---- */

typedef struct block {
  bk_buffer *buffer;
  char *bytes; /* what the test has put into it, or looks for; stays valid for uploads */
} block;

static block block_make(rank *r) {
  block b = {0};
  EXPECT_OK(r, bk_buffer_alloc(r->device, BYTES, BK_MEM_COMM, &b.buffer));
  b.bytes = bk_alloc(r->ctx, BYTES);
  return b;
}

static void block_free(rank *r, block *b) {
  EXPECT_OK(r, r->stream->ops->sync(r->stream));
  bk_buffer_free(b->buffer);
  bk_free(r->ctx, b->bytes);
}

/* Elements [from, from + count) of a block. */
static bk_tensor part(const block *b, bk_dtype dtype, int64_t from, int64_t count) {
  bk_tensor t = bk_tensor_1d(dtype, count);
  t.buffer = b->buffer;
  t.offset = (size_t)from * bk_dtype_size(dtype);
  return t;
}

/* Element i of rank r: large and small values of both signs, so that the order of a sum shows. */
static double value_of(int r, int64_t i, int turn) {
  uint64_t h = bk_hash64(&(int64_t[]){r, i, turn}, 24);
  return ((double)(h >> 40) - 8388608.0) * ((h & 7) == 0 ? 1024.0 : 1.0 / 256);
}

static void store(bk_dtype dtype, void *at, double x) {
  if (dtype == BK_I32) *(int32_t *)at = (int32_t)(uint32_t)(int64_t)(x * 262144);
  else if (dtype == BK_I64) *(int64_t *)at = (int64_t)(x * 1048576);
  else bk_dtype_store(dtype, at, x);
}

static void fill(rank *r, block *b, bk_dtype dtype, int64_t from, int64_t count, int turn) {
  size_t size = bk_dtype_size(dtype);
  for (int64_t i = from; i < from + count; i++)
    store(dtype, b->bytes + (size_t)i * size, value_of(r->rank, i, turn));
  bk_place to = {b->buffer, (size_t)from * size};
  EXPECT_OK(r, r->stream->ops->upload(r->stream, to, b->bytes + to.offset, (size_t)count * size));
}

/* The tensor as the stream sees it, byte for byte. */
static bool holds(rank *r, const bk_tensor *t, const void *bytes) {
  static _Thread_local char seen[BYTES];
  size_t n = bk_tensor_bytes(t);
  if (n == 0) return true;
  EXPECT_OK(r, r->stream->ops->download(r->stream, seen, (bk_place){t->buffer, t->offset}, n));
  EXPECT_OK(r, r->stream->ops->sync(r->stream));
  return memcmp(seen, bytes, n) == 0;
}

/* ---- the reduction, as plainly as possible ---- */

typedef union number {
  float f;
  double d;
  uint32_t i;
  uint64_t l;
} number;

static number leaf(bk_dtype dtype, int r, int64_t i, int turn) {
  number x = {.l = 0};
  uint16_t half;
  double v = value_of(r, i, turn);
  if (dtype == BK_BF16) {
    store(dtype, &half, v);
    x.f = bk_bf16_to_f32(half);
  } else store(dtype, &x, v);
  return x;
}

static number combine(bk_dtype dtype, bk_reduce op, number a, number b) {
  bool sum = op == BK_REDUCE_SUM;
  switch (dtype) {
    case BK_F64: return (number){.d = sum ? a.d + b.d : a.d > b.d ? a.d : b.d};
    case BK_I32: return (number){.i = sum ? a.i + b.i : (int32_t)a.i > (int32_t)b.i ? a.i : b.i};
    case BK_I64: return (number){.l = sum ? a.l + b.l : (int64_t)a.l > (int64_t)b.l ? a.l : b.l};
    default: return (number){.f = sum ? a.f + b.f : a.f > b.f ? a.f : b.f};
  }
}

static number tree(bk_dtype dtype, bk_reduce op, int lo, int hi, int64_t i, int turn) {
  if (hi - lo == 1) return leaf(dtype, lo, i, turn);
  int mid = (lo + hi) / 2;
  return combine(dtype, op, tree(dtype, op, lo, mid, i, turn), tree(dtype, op, mid, hi, i, turn));
}

static void reduced(bk_dtype dtype, bk_reduce op, int size, int64_t count, int turn, char *out) {
  for (int64_t i = 0; i < count; i++) {
    number x = tree(dtype, op, 0, size, i, turn);
    char *at = out + (size_t)i * bk_dtype_size(dtype);
    uint16_t half = bk_f32_to_bf16(x.f);
    memcpy(at, dtype == BK_BF16 ? (void *)&half : (void *)&x, bk_dtype_size(dtype));
  }
}

/* ---- every operation against a plain loop ---- */

static void wait_for(rank *r, bk_request *request) {
  EXPECT(r, request != NULL);
  if (request) EXPECT_OK(r, bk_comm_wait(r->comm, request, r->stream));
}

/* Apart and in place; the pieces and the whole have the same bits. */
static void check_reductions(rank *r, bk_dtype dtype, bk_reduce op, int64_t count) {
  block a = block_make(r), b = block_make(r), expected = block_make(r);
  bk_request *request = NULL;
  int64_t begin = bk_comm_cut(count, r->size, r->rank),
          own = bk_comm_cut(count, r->size, r->rank + 1) - begin;
  bk_tensor src = part(&a, dtype, 0, count), dst = part(&b, dtype, 0, count),
            piece = part(&b, dtype, begin, own), src_piece = part(&a, dtype, begin, own),
            none = {0};
  const char *piece_bytes;
  reduced(dtype, op, r->size, count, 1, expected.bytes);
  piece_bytes = expected.bytes + (size_t)begin * bk_dtype_size(dtype);
  fill(r, &a, dtype, 0, count, 1);
  EXPECT_OK(r, bk_comm_all_reduce(r->comm, r->stream, op, &src, &dst, &request));
  wait_for(r, request);
  EXPECT(r, holds(r, &dst, expected.bytes));
  EXPECT(r, holds(r, &src, a.bytes));
  EXPECT_OK(r,
            bk_comm_reduce_scatter(r->comm, r->stream, op, &src, own ? &piece : &none, &request));
  wait_for(r, request);
  EXPECT(r, holds(r, &piece, piece_bytes));
  EXPECT_OK(r, bk_comm_reduce_scatter(r->comm, r->stream, op, &src, &src_piece, &request));
  wait_for(r, request);
  EXPECT(r, holds(r, &src_piece, piece_bytes));
  EXPECT_OK(r, bk_comm_all_gather(r->comm, r->stream, own ? &src_piece : &none, &dst, &request));
  wait_for(r, request);
  EXPECT(r, holds(r, &dst, expected.bytes));
  EXPECT_OK(r, bk_comm_all_gather(r->comm, r->stream, &src_piece, &src, &request));
  wait_for(r, request);
  EXPECT(r, holds(r, &src, expected.bytes));
  fill(r, &a, dtype, 0, count, 1);
  EXPECT_OK(r, bk_comm_all_reduce(r->comm, r->stream, op, &src, &src, &request));
  wait_for(r, request);
  EXPECT(r, holds(r, &src, expected.bytes));
  block_free(r, &a);
  block_free(r, &b);
  block_free(r, &expected);
}

static void reductions_body(rank *r) {
  static const bk_dtype dtypes[] = {BK_F32, BK_BF16, BK_F64, BK_I32, BK_I64};
  static const int64_t counts[] = {1, 130, 1000, 2500, 20000};
  for (size_t d = 0; d < BK_COUNT(dtypes); d++)
    for (size_t c = 0; c < BK_COUNT(counts); c++)
      for (int op = BK_REDUCE_SUM; op <= BK_REDUCE_MAX; op++)
        check_reductions(r, dtypes[d], (bk_reduce)op, counts[c]);
}

static const int sizes[] = {1, 2, 3, 4, 8};

START_TEST(reductions) {
  ranks all = {.size = sizes[_i], .backend = &bk_backend_ref, .body = reductions_body};
  ranks_run(&all, ctx);
  for (int i = 0; i < all.size; i++) ck_assert_str_eq(all.rank[i].messages, "");
}
END_TEST

static void open_none(void) { unit_open(); }

int main(void) {
  Suite *suite = suite_create("ranks");
  TCase *tcase = tcase_create("ranks");
  tcase_set_timeout(tcase, 120);
  tcase_add_checked_fixture(tcase, open_none, unit_close);
  tcase_add_loop_test(tcase, reductions, 0, (int)BK_COUNT(sizes));
  suite_add_tcase(suite, tcase);
  return unit_run(suite);
}

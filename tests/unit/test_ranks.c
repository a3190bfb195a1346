/* Ranks that are threads: every operation against a plain loop, what ranks disagree on, time-outs,
 * failures, and memory that is not the host's. */
#include "tests/unit/ranks.h"
#include "tests/unit/unit.h"

#include <birkhoff/bench.h>
#include <math.h>
#include <time.h>

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
  /* staging does not know what it holds: two dtypes do */
  bool all = r->device->props.host_memory || getenv("BK_TEST_LONG");
  for (size_t d = 0; d < (all ? BK_COUNT(dtypes) : 2); d++)
    for (size_t c = 0; c < BK_COUNT(counts); c++)
      for (int op = BK_REDUCE_SUM; op <= BK_REDUCE_MAX; op++)
        check_reductions(r, dtypes[d], (bk_reduce)op, counts[c]);
}

/* ---- the operations that only move ---- */

static char element(int r, int64_t i) { return (char)(r * 31 + i * 7 + (i >> 8)); }

static void fill_bytes(rank *r, block *b, int64_t from, int64_t count) {
  for (int64_t i = from; i < from + count; i++) b->bytes[i] = element(r->rank, i);
  EXPECT_OK(r, r->stream->ops->upload(r->stream, (bk_place){b->buffer, (size_t)from},
                                      b->bytes + from, (size_t)count));
}

static void check_gathers(rank *r, block *a, block *b, int64_t count) {
  bk_request *request = NULL;
  bk_tensor whole = part(b, BK_U8, 0, count);
  int64_t begin = bk_comm_cut(count, r->size, r->rank),
          own = bk_comm_cut(count, r->size, r->rank + 1) - begin;
  bk_tensor mine = part(a, BK_U8, begin, own);
  fill_bytes(r, a, 0, count);
  EXPECT_OK(r, bk_comm_all_gather(r->comm, r->stream, &mine, &whole, &request));
  wait_for(r, request);
  for (int q = 0; q < r->size; q++)
    for (int64_t i = bk_comm_cut(count, r->size, q); i < bk_comm_cut(count, r->size, q + 1); i++)
      b->bytes[i] = element(q, i);
  EXPECT(r, holds(r, &whole, b->bytes));
  for (int root = 0; root < r->size; root++) {
    bk_tensor data = part(a, BK_U8, 0, count);
    fill_bytes(r, a, 0, count);
    EXPECT_OK(r, bk_comm_broadcast(r->comm, r->stream, root, &data, &request));
    wait_for(r, request);
    for (int64_t i = 0; i < count; i++) b->bytes[i] = element(root, i);
    EXPECT(r, holds(r, &data, b->bytes));
  }
}

static void check_all_to_all(rank *r, block *a, block *b, int64_t piece) {
  bk_request *request = NULL;
  int64_t count = piece * r->size;
  bk_tensor src = part(a, BK_U8, 0, count), dst = part(b, BK_U8, 0, count);
  fill_bytes(r, a, 0, count);
  EXPECT_OK(r, bk_comm_all_to_all(r->comm, r->stream, &src, &dst, &request));
  wait_for(r, request);
  for (int64_t i = 0; i < count; i++)
    b->bytes[i] = element((int)(i / piece), r->rank * piece + i % piece);
  EXPECT(r, holds(r, &dst, b->bytes));
}

/* Rank s sends rank t (s + 2 t) % 4 rows of 3, of which some are none. */
static int64_t rows_of(int s, int t) { return (s + 2 * t) % 4; }

static void check_counted(rank *r, block *a, block *b) {
  bk_request *request = NULL;
  int64_t send[RANKS_MAX], recv[RANKS_MAX], sent = 0, received = 0, at = 0;
  for (int q = 0; q < r->size; q++) {
    sent += send[q] = rows_of(r->rank, q);
    received += recv[q] = rows_of(q, r->rank);
  }
  bk_tensor src = bk_tensor_2d(BK_U8, sent + 1, 3), dst = bk_tensor_2d(BK_U8, received + 2, 3);
  src.buffer = a->buffer;
  dst.buffer = b->buffer;
  fill_bytes(r, a, 0, (sent + 1) * 3);
  EXPECT_OK(r, bk_comm_all_to_allv(r->comm, r->stream, &src, &(bk_comm_counts){.host = send}, &dst,
                                   &(bk_comm_counts){.host = recv}, &request));
  wait_for(r, request);
  for (int q = 0; q < r->size; q++) {
    int64_t before = 0;
    for (int t = 0; t < r->rank; t++) before += rows_of(q, t) * 3;
    for (int64_t i = 0; i < recv[q] * 3; i++) b->bytes[at++] = element(q, before + i);
  }
  bk_tensor seen = part(b, BK_U8, 0, received * 3);
  EXPECT(r, holds(r, &seen, b->bytes));
}

static void check_host_gather(rank *r) {
  int32_t mine[2] = {r->rank, 100 + r->rank}, all[2 * RANKS_MAX];
  EXPECT_OK(r, bk_comm_gather(r->comm, mine, sizeof mine, all));
  for (int q = 0; q < r->size; q++) EXPECT(r, all[2 * q] == q && all[2 * q + 1] == 100 + q);
  EXPECT_OK(r, bk_engine_gather(r->engine, mine, sizeof mine[0], all));
  for (int q = 0; q < r->size; q++) EXPECT(r, all[q] == q);
}

static void moves_body(rank *r) {
  block a = block_make(r), b = block_make(r);
  bk_request *request = NULL;
  for (int64_t count = 1; count < 100000; count = count * 7 + 60) check_gathers(r, &a, &b, count);
  check_all_to_all(r, &a, &b, 1);
  check_all_to_all(r, &a, &b, 5000);
  check_counted(r, &a, &b);
  check_host_gather(r);
  EXPECT_OK(r, bk_comm_barrier(r->comm, r->stream, &request));
  wait_for(r, request);
  block_free(r, &a);
  block_free(r, &b);
}

/* ---- exchanges ---- */

static bk_transfer transfer(bool send, int peer, int tag, const block *b, int64_t from,
                            int64_t count) {
  return (bk_transfer){send, peer, tag, part(b, BK_U8, from, count)};
}

/* Both neighbours, and itself, in one batch that begins with the sends. */
static void check_ring(rank *r, block *a, block *b) {
  int next = (r->rank + 1) % r->size, last = (r->rank + r->size - 1) % r->size;
  bk_request *request = NULL;
  fill_bytes(r, a, 0, 9000);
  bk_transfer batch[] = {
      transfer(true, next, 1, a, 0, 3000),     transfer(true, last, 2, a, 3000, 500),
      transfer(true, r->rank, 3, a, 8000, 10), transfer(false, last, 1, b, 0, 3000),
      transfer(false, next, 2, b, 3000, 500),  transfer(false, r->rank, 3, b, 8000, 10)};
  EXPECT_OK(r, bk_comm_exchange(r->comm, r->stream, batch, 6, &request));
  wait_for(r, request);
  for (int i = 0; i < 3000; i++) b->bytes[i] = element(last, i);
  for (int i = 3000; i < 3500; i++) b->bytes[i] = element(next, i);
  for (int i = 8000; i < 8010; i++) b->bytes[i] = element(r->rank, i);
  for (int i = 3; i < 6; i++) EXPECT(r, holds(r, &batch[i].data, b->bytes + batch[i].data.offset));
}

/* Receives are posted long before anything is sent, more than there is staging for collective
 * operations, and collective operations go past them; each rank then sends in its own order. */
static void check_early_receives(rank *r, block *a, block *b) {
  enum { N = 6 };
  bk_request *receives[N] = {NULL}, *sends[N] = {NULL}, *request = NULL;
  int next = (r->rank + 1) % r->size, last = (r->rank + r->size - 1) % r->size;
  if (r->size == 1) return;
  EXPECT_OK(r, bk_comm_reserve_exchange(r->comm, 2 * N, 16384));
  fill_bytes(r, a, 0, N * 100);
  for (int i = 0; i < N; i++) {
    bk_transfer t = transfer(false, last, i, b, i * 100, 100);
    EXPECT_OK(r, bk_comm_exchange(r->comm, r->stream, &t, 1, &receives[i]));
    if (i != r->rank % N) continue;
    EXPECT_OK(r, bk_comm_barrier(r->comm, r->stream, &request));
    wait_for(r, request);
  }
  for (int i = 0; i < N; i++) {
    bk_transfer t = transfer(true, next, i, a, i * 100, 100);
    EXPECT_OK(r, bk_comm_exchange(r->comm, r->stream, &t, 1, &sends[i]));
  }
  for (int i = N; i-- > 0;) wait_for(r, receives[i]);
  for (int i = 0; i < N; i++) wait_for(r, sends[i]);
  for (int i = 0; i < N * 100; i++) b->bytes[i] = element(last, i);
  bk_tensor all = part(b, BK_U8, 0, N * 100);
  EXPECT(r, holds(r, &all, b->bytes));
}

static void exchanges_body(rank *r) {
  block a = block_make(r), b = block_make(r);
  for (int i = 0; i < 3; i++) check_ring(r, &a, &b);
  check_early_receives(r, &a, &b);
  check_ring(r, &a, &b);
  block_free(r, &a);
  block_free(r, &b);
}

/* ---- many at once ---- */

enum { MANY = 12, MANY_COUNT = 5000 };

/* Large and small all_reduces, reduce_scatters and gathers of them are all under way together, and
 * are waited for in another order; what a stream has been given before a post is seen by it. */
static void check_many(rank *r, block *a, block *expected) {
  bk_request *requests[MANY] = {NULL};
  bk_tensor t[MANY];
  for (int k = 0; k < MANY; k++) {
    int64_t count = k % 3 == 0 ? 40 : MANY_COUNT;
    t[k] = part(a, BK_F32, k * MANY_COUNT, count);
    for (int64_t i = 0; i < count; i++)
      store(BK_F32, a->bytes + t[k].offset + 4 * i, value_of(r->rank, i, k));
    EXPECT_OK(r, r->stream->ops->upload(r->stream, (bk_place){t[k].buffer, t[k].offset},
                                        a->bytes + t[k].offset, (size_t)count * 4));
    EXPECT_OK(r, bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &t[k], &t[k], &requests[k]));
  }
  for (int k = 0; k < MANY; k++) wait_for(r, requests[(k * 5 + r->rank) % MANY]);
  for (int k = 0; k < MANY; k++) {
    reduced(BK_F32, BK_REDUCE_SUM, r->size, bk_tensor_count(&t[k]), k, expected->bytes);
    EXPECT(r, holds(r, &t[k], expected->bytes));
  }
}

static void many_body(rank *r) {
  block a = block_make(r), expected = block_make(r);
  bk_memory_stats before, after;
  uint64_t buffers = r->device->buffer_allocs;
  check_many(r, &a, &expected);
  bk_context_memory_stats(r->ctx, &before);
  check_many(r, &a, &expected);
  check_ring(r, &a, &expected);
  check_host_gather(r);
  bk_context_memory_stats(r->ctx, &after);
  EXPECT(r, before.allocations == after.allocations); /* posting and waiting allocate nothing */
  EXPECT(r, r->device->buffer_allocs == buffers);
  block_free(r, &a);
  block_free(r, &expected);
}

/* ---- groups ---- */

/* The ranks of odd and of even numbers, in the opposite order; the last is in neither. Groups that
 * share ranks with the whole have sums of their own, while one of the whole is under way. */
static void groups_body(rank *r) {
  block a = block_make(r);
  bk_comm *group = NULL;
  bk_request *whole = NULL, *request = NULL;
  bk_tensor one = part(&a, BK_I32, 0, 1), large = part(&a, BK_F32, 1000, 20000);
  bool out = r->rank == r->size - 1;
  EXPECT_OK(r, bk_comm_split(r->comm, out ? -1 : r->rank % 2, -r->rank, &group));
  EXPECT(r, (group == NULL) == out);
  EXPECT_OK(r, bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &large, &large, &whole));
  if (group) {
    int32_t sum = 0, own = 1 << r->rank, members = 0;
    for (int q = r->rank % 2; q < r->size - 1; q += 2) sum += 1 << q, members++;
    EXPECT(r, group->size == members && group->rank == members - 1 - r->rank / 2);
    EXPECT_OK(r, bk_tensor_upload(r->stream, &one, &own));
    EXPECT_OK(r, bk_comm_all_reduce(group, r->stream, BK_REDUCE_SUM, &one, &one, &request));
    EXPECT_OK(r, bk_comm_wait(group, request, r->stream));
    EXPECT(r, holds(r, &one, &sum));
  }
  wait_for(r, whole);
  bk_comm_destroy(group);
  block_free(r, &a);
}

/* ---- what is counted ---- */

static void statistics_body(rank *r) {
  block a = block_make(r);
  bk_comm_stats stats;
  bk_request *request = NULL;
  bk_tensor t = part(&a, BK_F32, 0, 100000);
  EXPECT_OK(r, bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &t, &t, &request));
  wait_for(r, request);
  bk_comm_statistics(r->comm, &stats);
  int64_t own = bk_comm_cut(100000, r->size, r->rank + 1) - bk_comm_cut(100000, r->size, r->rank);
  EXPECT(r, stats.bytes_sent == 4.0 * (double)(100000 - own + own * (r->size - 1)));
  EXPECT(r, stats.busy_s > 0 && stats.busy_s < 60 && stats.wait_s > 0 && stats.wait_s < 60);
  block_free(r, &a);
}

/* What a plan says that a room takes is what it takes of the context's memory; staging of a device
 * is the device's. */
static void room_bytes_body(rank *r) {
  static const struct {
    int requests;
    size_t bytes;
  } rooms[] = {{2, 4000}, {40, 1 << 20}, {3, (size_t)5 << 20}};
  bk_memory_stats stats;
  int64_t rest = 0;
  for (size_t i = 0; i < BK_COUNT(rooms); i++) {
    EXPECT_OK(r, bk_comm_reserve(r->comm, rooms[i].requests, rooms[i].bytes));
    bk_context_memory_stats(r->ctx, &stats);
    size_t planned = bk_comm_reserve_bytes(r->comm, rooms[i].requests, rooms[i].bytes);
    int64_t other = (int64_t)stats.current_bytes - (int64_t)planned;
    EXPECT(r, planned > rooms[i].bytes && (i == 0 || other == rest));
    rest = other;
  }
}

/* What a request tells of its operation, and that it begins anew with the next one. */
static void times_body(rank *r) {
  block a = block_make(r);
  bk_request *request = NULL;
  bk_tensor t = part(&a, BK_F32, 0, 100000);
  int64_t own = bk_comm_cut(100000, r->size, r->rank + 1) - bk_comm_cut(100000, r->size, r->rank);
  bk_tensor piece = part(&a, BK_F32, bk_comm_cut(100000, r->size, r->rank), own);
  double before = bk_context_seconds(r->ctx);
  for (int i = 0; i < 2; i++) {
    EXPECT_OK(r, bk_comm_reduce_scatter(r->comm, r->stream, BK_REDUCE_SUM, &t, &piece, &request));
    wait_for(r, request);
    const bk_comm_times *at = &request->times;
    EXPECT(r, at->sent == 4 * (size_t)(100000 - own));
    EXPECT(r, before <= at->begun && at->begun <= at->met && at->met <= at->ended);
    EXPECT(r, at->ended <= bk_context_seconds(r->ctx));
    EXPECT(r, at->waited > 0 && at->waited <= bk_context_seconds(r->ctx) - before);
    before = at->ended;
  }
  block_free(r, &a);
}

/* What was measured has the right names and sizes; how long anything takes is not asked. */
static void bench_body(rank *r) {
  static const char *const names[BK_BENCH_COMM_ROWS] = {"copy", "reduce_scatter", "all_gather",
                                                        "all_reduce"};
  bk_bench_comm_row rows[BK_BENCH_COMM_ROWS] = {{0}};
  EXPECT_OK(r, bk_bench_comm(r->comm, 40000, 0, rows));
  double least = 10000;
  for (int i = 0; i < r->size; i++)
    least =
        fmin(least, (double)(bk_comm_cut(10000, r->size, i + 1) - bk_comm_cut(10000, r->size, i)));
  for (int i = 0; i < BK_BENCH_COMM_ROWS; i++) {
    bool large = i < 3;
    EXPECT(r, rows[i].op && strcmp(rows[i].op, names[i]) == 0);
    EXPECT(r, rows[i].bytes == (large ? 40000 : 4));
    EXPECT(r, large ? rows[i].sent == 4 * (10000 - least) : isnan(rows[i].sent));
    EXPECT(r, rows[i].best > 0 && rows[i].best <= rows[i].seconds && rows[i].seconds < 60);
    EXPECT(r, large ? rows[i].share == rows[0].seconds / rows[i].seconds : isnan(rows[i].share));
  }
  bk_bench_comm_row all[RANKS_MAX][BK_BENCH_COMM_ROWS];
  EXPECT_OK(r, bk_comm_gather(r->comm, rows, sizeof rows, all));
  for (int i = 0; i < r->size; i++) EXPECT(r, all[i][1].seconds == rows[1].seconds);
  EXPECT(r, bk_bench_comm(r->comm, 3, 0, rows) == BK_ERR_ARGUMENT);
  EXPECT(r, bk_bench_comm(r->comm, 4, -1, rows) == BK_ERR_ARGUMENT);
  EXPECT_OK(r, bk_bench_comm(r->comm, 4, 0, rows));
}

static void room_body(rank *r) {
  block a = block_make(r);
  bk_request *requests[2] = {NULL}, *third = NULL;
  bk_tensor large = part(&a, BK_F32, 0, 1001), small = part(&a, BK_F32, 0, 1000);
  EXPECT_OK(r, bk_comm_reserve(r->comm, 2, 4000));
  EXPECT(r, bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &large, &large, &third) ==
                BK_ERR_ARGUMENT);
  EXPECT(r, strstr(r->messages, "4004 bytes, there is room for 4000 (bk_comm_reserve)") != NULL);
  for (int i = 0; i < 2; i++)
    EXPECT_OK(r, bk_comm_broadcast(r->comm, r->stream, 0, &small, &requests[i]));
  EXPECT(r, bk_comm_barrier(r->comm, r->stream, &third) == BK_ERR_ARGUMENT);
  EXPECT(r, strstr(r->messages, "all 2 requests are under way") != NULL);
  EXPECT(r, bk_comm_reserve(r->comm, 2, 4000) == BK_ERR_ARGUMENT);
  for (int i = 0; i < 2; i++) wait_for(r, requests[i]);
  EXPECT(r, bk_comm_wait(r->comm, requests[0], r->stream) == BK_ERR_ARGUMENT);
  bk_transfer t = transfer(true, r->rank, 0, &a, 0, (1 << 20) / 2);
  bk_transfer batch[] = {t, t, t};
  batch[1].send = false;
  batch[2] = batch[0];
  EXPECT(r, bk_comm_exchange(r->comm, r->stream, batch, 3, &third) == BK_ERR_COMM); /* no half */
  block_free(r, &a);
}

/* ---- what goes wrong ---- */

/* Posts and waits; what comes of it is BK_ERR_COMM, from whichever of the two. By then the engine
 * has closed its wire, and a rank may still give the group up, as the trainer does. */
static void expect_broken(rank *r, bk_status status, bk_request **request) {
  if (status == BK_OK) status = bk_comm_wait(r->comm, *request, r->stream);
  EXPECT(r, status == BK_ERR_COMM);
  EXPECT(r, bk_comm_barrier(r->comm, r->stream, request) == BK_ERR_COMM);
  bk_comm_abort(r->comm);
  r->abandon = true;
}

static bk_status post_variant(rank *r, int variant, const block *a, bk_request **request) {
  bk_tensor f = part(a, BK_F32, 0, 1024), g = part(a, BK_F32, 0, 1000),
            i = part(a, BK_I32, 0, 1024);
  int peer = 1 - r->rank;
  bk_transfer t = transfer(r->rank == 0, peer, 5, a, 0, 10);
  switch (variant) {
    case 0: return bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &f, &f, request);
    case 1: return bk_comm_barrier(r->comm, r->stream, request);
    case 2: return bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &g, &g, request);
    case 3: return bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_SUM, &i, &i, request);
    case 4: return bk_comm_all_reduce(r->comm, r->stream, BK_REDUCE_MAX, &f, &f, request);
    case 5: return bk_comm_broadcast(r->comm, r->stream, 0, &f, request);
    case 6: return bk_comm_broadcast(r->comm, r->stream, 1, &f, request);
    case 7: return bk_comm_exchange(r->comm, r->stream, &t, 1, request);
    case 8: t.tag = 6; return bk_comm_exchange(r->comm, r->stream, &t, 1, request);
    default: t.data = f; return bk_comm_exchange(r->comm, r->stream, &t, 1, request);
  }
}

/* What rank 0 and rank 1 do, and what both must say. */
static const struct {
  int variant[2];
  const char *view[2];
} disagreements[] = {
    {{0, 1}, {"rank 0 is at all_reduce 1: fp32 [1024], sum", "rank 1 is at barrier 1"}},
    {{0, 2},
     {"rank 0 is at all_reduce 1: fp32 [1024], sum", "rank 1 is at all_reduce 1: fp32 [1000]"}},
    {{0, 3}, {"all_reduce 1: fp32 [1024], sum", "all_reduce 1: i32 [1024], sum"}},
    {{0, 4}, {"all_reduce 1: fp32 [1024], sum", "all_reduce 1: fp32 [1024], max"}},
    {{5, 6}, {"broadcast 1: fp32 [1024], root 0", "broadcast 1: fp32 [1024], root 1"}},
    {{7, 8}, {"a send of exchange 1: u8 [10], tag 5", "a receive of exchange 1: u8 [10], tag 6"}},
    {{7, 9}, {"a send of exchange 1: u8 [10]", "a receive of exchange 1: fp32 [1024], tag 5"}},
};

static void disagreement_body(rank *r) {
  block a = block_make(r);
  bk_request *request = NULL;
  int variant = disagreements[r->all->detail].variant[r->rank];
  expect_broken(r, post_variant(r, variant, &a, &request), &request);
  block_free(r, &a);
}

START_TEST(disagreement) {
  ranks all = {.size = 2, .backend = &bk_backend_ref, .body = disagreement_body, .detail = _i};
  ranks_run(&all, ctx);
  for (int r = 0; r < 2; r++)
    for (int side = 0; side < 2; side++) rank_expect(&all, r, disagreements[_i].view[side]);
}
END_TEST

/* One rank of three is at another operation of a group that it has, the others are told. */
static void other_group_body(rank *r) {
  bk_comm *group = NULL;
  bk_request *request = NULL;
  EXPECT_OK(r, bk_comm_split(r->comm, 0, 0, &group));
  bk_comm *comm = r->rank == 2 ? group : r->comm;
  bk_status status = bk_comm_barrier(comm, r->stream, &request);
  if (status == BK_OK) status = bk_comm_wait(comm, request, r->stream);
  EXPECT(r, status == BK_ERR_COMM);
  bk_comm_destroy(group);
  r->abandon = true;
}

START_TEST(other_group) {
  ranks all = {.size = 3, .backend = &bk_backend_ref, .body = other_group_body};
  ranks_run(&all, ctx);
  rank_expect(&all, 2, "in another group");
}
END_TEST

/* Rank 2 does not come; rank 1 of the second round waits for a send. */
static void late_body(rank *r) {
  block a = block_make(r);
  bk_request *request = NULL;
  bk_tensor t = part(&a, BK_F32, 0, 1000), piece;
  piece = part(&a, BK_F32, bk_comm_cut(1000, r->size, r->rank),
               bk_comm_cut(1000, r->size, r->rank + 1) - bk_comm_cut(1000, r->size, r->rank));
  double begin = bk_seconds();
  if (r->rank != 2)
    expect_broken(r,
                  bk_comm_reduce_scatter(r->comm, r->stream, BK_REDUCE_SUM, &t, &piece, &request),
                  &request);
  EXPECT(r, bk_seconds() - begin < 10);
  r->abandon = true;
  block_free(r, &a);
}

START_TEST(one_does_not_come) {
  ranks all = {.size = 4, .backend = &bk_backend_ref, .body = late_body, .timeout_s = 1};
  ranks_run(&all, ctx);
  rank_expect(&all, 0, "rank 2 has not come to reduce_scatter 1 for 1 s");
  ck_assert_str_eq(all.rank[2].messages, "");
}
END_TEST

/* A receive that nobody answers, while its peer is at something else. */
static void no_send_body(rank *r) {
  block a = block_make(r);
  bk_request *request = NULL;
  bk_transfer t = transfer(false, 1, 7, &a, 0, 10);
  if (r->rank == 0)
    expect_broken(r, bk_comm_exchange(r->comm, r->stream, &t, 1, &request), &request);
  else expect_broken(r, bk_comm_barrier(r->comm, r->stream, &request), &request);
  block_free(r, &a);
}

START_TEST(no_send) {
  ranks all = {.size = 2, .backend = &bk_backend_ref, .body = no_send_body, .timeout_s = 1};
  ranks_run(&all, ctx);
  for (int r = 0; r < 2; r++)
    ck_assert(strstr(all.rank[r].messages,
                     "rank 1 has not come to exchange 1 for 1 s; it is at barrier 1") ||
              strstr(all.rank[r].messages,
                     "rank 0 has not come to barrier 1 for 1 s; it is at "
                     "a receive of exchange 1: u8 [10], tag 7"));
}
END_TEST

typedef struct told {
  int calls;
  char reason[512];
} told;

static void on_fail(void *user, const char *reason) {
  told *t = user;
  t->calls++;
  snprintf(t->reason, sizeof t->reason, "%s", reason);
}

static void *fail_later(void *arg) {
  nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
  bk_engine_fail(((rank *)arg)->engine, "told so from outside");
  bk_engine_fail(((rank *)arg)->engine, "a second reason");
  return NULL;
}

/* Rank 0 is told from another thread, rank 1 by rank 0. */
static void told_body(rank *r) {
  bk_request *request = NULL;
  told t = {0};
  pthread_t other;
  bk_engine_on_fail(r->engine, on_fail, &t);
  if (r->rank == 0) pthread_create(&other, NULL, fail_later, r);
  if (r->rank == 2) nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
  else expect_broken(r, bk_comm_barrier(r->comm, r->stream, &request), &request);
  if (r->rank == 0) pthread_join(other, NULL);
  r->abandon = true;
  bk_comm_destroy(r->comm);
  r->comm = NULL;
  bk_engine_close(r->engine, true);
  r->engine = NULL;
  EXPECT(r, t.calls == (r->rank == 1));
  if (r->rank == 1) EXPECT(r, strcmp(t.reason, "told so from outside") == 0);
}

START_TEST(told_from_outside) {
  ranks all = {.size = 3, .backend = &bk_backend_ref, .body = told_body};
  ranks_run(&all, ctx);
  for (int r = 0; r < 2; r++) ck_assert_str_eq(all.rank[r].messages, "told so from outside\n");
}
END_TEST

static void abort_body(rank *r) {
  bk_request *request = NULL;
  if (r->rank == 0) {
    bk_comm_abort(r->comm);
    EXPECT(r, bk_comm_barrier(r->comm, r->stream, &request) == BK_ERR_COMM);
    EXPECT(r, bk_comm_gather(r->comm, NULL, 0, NULL) == BK_ERR_COMM);
    r->abandon = true;
    return;
  }
  expect_broken(r, bk_comm_barrier(r->comm, r->stream, &request), &request);
}

START_TEST(aborted) {
  ranks all = {.size = 2, .backend = &bk_backend_ref, .body = abort_body};
  ranks_run(&all, ctx);
  rank_expect(&all, 1, "rank 0 has given up");
}
END_TEST

/* ---- the sizes, devices and disorders that they run with ---- */

static const int sizes[] = {1, 2, 3, 4, 8};

static void run_quietly(ranks *all) {
  ranks_run(all, ctx);
  for (int i = 0; i < all->size; i++) ck_assert_str_eq(all->rank[i].messages, "");
}

START_TEST(reductions) {
  run_quietly(&(ranks){.size = sizes[_i], .backend = &bk_backend_ref, .body = reductions_body});
}
END_TEST

START_TEST(reductions_of_a_device) {
  run_quietly(&(ranks){.size = sizes[_i], .backend = &late_backend, .body = reductions_body});
}
END_TEST

static void all_body(rank *r) {
  moves_body(r);
  exchanges_body(r);
  many_body(r);
}

START_TEST(moves) {
  run_quietly(&(ranks){.size = sizes[_i], .backend = &bk_backend_ref, .body = all_body});
}
END_TEST

START_TEST(moves_of_a_device) {
  run_quietly(&(ranks){.size = sizes[_i], .backend = &late_backend, .body = all_body});
}
END_TEST

/* Seeds of disorder: every second on the device that is late. */
START_TEST(disorder) {
  int seeds = getenv("BK_TEST_LONG") ? 200 : 4;
  for (int seed = 1; seed <= seeds; seed++)
    run_quietly(&(ranks){.size = 2 + seed % 3,
                         .seed = (uint64_t)seed,
                         .backend = seed % 2 ? &bk_backend_ref : &late_backend,
                         .body = all_body});
}
END_TEST

START_TEST(groups) {
  for (int seed = 0; seed < 3; seed++)
    run_quietly(&(ranks){.size = 5 + seed,
                         .seed = (uint64_t)seed,
                         .backend = seed % 2 ? &bk_backend_ref : &late_backend,
                         .body = groups_body});
}
END_TEST

START_TEST(statistics) {
  run_quietly(&(ranks){.size = 3, .backend = &bk_backend_ref, .body = statistics_body});
}
END_TEST

START_TEST(room_bytes) {
  static const bk_backend *const backends[] = {&bk_backend_ref, &bk_backend_cpu};
  for (size_t i = 0; i < BK_COUNT(backends); i++)
    run_quietly(&(ranks){.size = 3, .backend = backends[i], .body = room_bytes_body});
}
END_TEST

START_TEST(times) {
  run_quietly(&(ranks){.size = 3, .backend = &bk_backend_ref, .body = times_body});
  run_quietly(&(ranks){.size = 2, .backend = &late_backend, .body = times_body});
}
END_TEST

START_TEST(bench) {
  ranks host = {.size = 3, .backend = &bk_backend_ref, .body = bench_body},
        late = {.size = 2, .backend = &late_backend, .body = bench_body};
  ranks_run(&host, ctx);
  rank_expect(&host, 2, "3 bytes for 0 s");
  rank_expect(&host, 0, "4 bytes for -1 s");
  ranks_run(&late, ctx);
  bk_device *device = NULL;
  bk_comm *alone = NULL;
  bk_bench_comm_row rows[BK_BENCH_COMM_ROWS];
  ck_assert_int_eq(bk_device_open_backend(ctx, &bk_backend_ref, NULL, &device), BK_OK);
  ck_assert_int_eq(bk_comm_self(device, &alone), BK_OK);
  ck_assert_int_eq(bk_bench_comm(alone, 40000, 0, rows), BK_ERR_ARGUMENT);
  unit_expect("one rank");
  bk_comm_destroy(alone);
  bk_device_close(device);
}
END_TEST

START_TEST(room) {
  ranks all = {.size = 2, .backend = &bk_backend_ref, .body = room_body};
  ranks_run(&all, ctx);
}
END_TEST

/* Two ranks of one number, ranks that are not there, another size than the world's. */
START_TEST(worlds_are_checked) {
  bk_thread_world *world = NULL;
  bk_engine *engine = NULL, *second = NULL;
  ck_assert_int_eq(bk_thread_world_create(ctx, 0, &world), BK_ERR_ARGUMENT);
  unit_expect("0 ranks");
  ck_assert_int_eq(bk_thread_world_create(ctx, 1, &world), BK_OK);
  bk_job_options options = {.size = 2, .world = world};
  ck_assert_int_eq(bk_engine_open(ctx, &bk_transport_threads, &options, &engine), BK_ERR_ARGUMENT);
  unit_expect("the options say 2 ranks, the world has 1");
  options = (bk_job_options){.rank = 1, .world = world};
  ck_assert_int_eq(bk_engine_open(ctx, &bk_transport_threads, &options, &engine), BK_ERR_ARGUMENT);
  unit_expect("rank 1 is not in 0..0");
  options = (bk_job_options){0};
  ck_assert_int_eq(bk_engine_open(ctx, &bk_transport_threads, &options, &engine), BK_ERR_ARGUMENT);
  unit_expect("no world");
  options.world = world;
  ck_assert_int_eq(bk_engine_open(ctx, &bk_transport_threads, &options, &engine), BK_OK);
  ck_assert_int_eq(bk_engine_open(ctx, &bk_transport_threads, &options, &second), BK_ERR_ARGUMENT);
  unit_expect("rank 0 is there already");
  bk_engine_close(engine, false);
  bk_thread_world_destroy(world);
  bk_thread_world_destroy(NULL);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("ranks");
  TCase *tcase = tcase_create("ranks");
  tcase_set_timeout(tcase, 400);
  tcase_add_checked_fixture(tcase, unit_open, unit_close);
  const TTest *const by_size[] = {reductions, reductions_of_a_device, moves, moves_of_a_device};
  for (size_t i = 0; i < BK_COUNT(by_size); i++)
    tcase_add_loop_test(tcase, by_size[i], 0, (int)BK_COUNT(sizes));
  tcase_add_loop_test(tcase, disagreement, 0, (int)BK_COUNT(disagreements));
  const TTest *const once[] = {disorder,
                               groups,
                               statistics,
                               times,
                               bench,
                               room,
                               room_bytes,
                               other_group,
                               one_does_not_come,
                               no_send,
                               told_from_outside,
                               aborted,
                               worlds_are_checked};
  for (size_t i = 0; i < BK_COUNT(once); i++) tcase_add_test(tcase, once[i]);
  suite_add_tcase(suite, tcase);
  return unit_run(suite);
}

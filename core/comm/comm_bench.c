/* How fast a group of ranks is. See birkhoff/bench.h.
 *
 * The roof is a copy in memory of as many bytes as a rank sends in an operation, which all ranks
 * make at the same time: ranks of one machine share its memory, and a message between them is one
 * copy at least. */
#include <birkhoff/bench.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"

#define MAX_SAMPLES 4096

/* What it takes, on one rank. */
typedef struct bench {
  bk_comm *comm;
  bk_context *ctx;
  bk_stream *stream;
  bk_buffer *memory;      /* of the three tensors */
  bk_tensor whole, piece; /* the tensor, and this rank's piece of it */
  bk_tensor few;          /* one element */
  char *copy_from, *copy_to;
  size_t sent;      /* bytes that the rank that sends most sends of the tensor */
  double *times;    /* [MAX_SAMPLES] */
  double *gathered; /* [2 * size] */
} bench;

typedef bk_status (*sample_fn)(bench *b);

/* ---- what is timed ---- */

static bk_status copy(bench *b) {
  memcpy(b->copy_to, b->copy_from, b->sent);
  return BK_OK;
}

static bk_status reduce_scatter(bench *b) {
  bk_request *r = NULL;
  BK_TRY(bk_comm_reduce_scatter(b->comm, b->stream, BK_REDUCE_SUM, &b->whole, &b->piece, &r));
  return bk_comm_wait(b->comm, r, b->stream);
}

static bk_status all_gather(bench *b) {
  bk_request *r = NULL;
  BK_TRY(bk_comm_all_gather(b->comm, b->stream, &b->piece, &b->whole, &r));
  return bk_comm_wait(b->comm, r, b->stream);
}

static bk_status all_reduce(bench *b) {
  bk_request *r = NULL;
  BK_TRY(bk_comm_all_reduce(b->comm, b->stream, BK_REDUCE_SUM, &b->few, &b->few, &r));
  return bk_comm_wait(b->comm, r, b->stream);
}

/* ---- time ---- */

static bk_status meet(bench *b) {
  bk_request *r = NULL;
  BK_TRY(bk_comm_barrier(b->comm, b->stream, &r));
  return bk_comm_wait(b->comm, r, b->stream);
}

/* The ranks begin together, as far as a barrier lets them. */
static bk_status sample(bench *b, sample_fn run, double *seconds) {
  BK_TRY(meet(b));
  double begin = bk_context_seconds(b->ctx);
  BK_TRY(run(b));
  BK_TRY(b->stream->ops->sync(b->stream));
  *seconds = bk_context_seconds(b->ctx) - begin;
  return BK_OK;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The largest of what the ranks have, of each of two numbers. */
static bk_status largest(bench *b, double pair[2]) {
  BK_TRY(bk_comm_gather(b->comm, pair, 2 * sizeof *pair, b->gathered));
  for (int r = 0; r < b->comm->size; r++)
    for (int i = 0; i < 2; i++) pair[i] = fmax(pair[i], b->gathered[2 * r + i]);
  return BK_OK;
}

/* The first two are not counted: they touch memory for the first time, and tell how many are to
 * follow, which must be the same number on all ranks. */
static bk_status take_samples(bench *b, sample_fn run, double seconds, bk_bench_comm_row *row) {
  double pair[2] = {0, 0};
  BK_TRY(sample(b, run, &pair[0]));
  BK_TRY(sample(b, run, &pair[0]));
  BK_TRY(largest(b, pair));
  double wanted = seconds / fmax(pair[0], 1e-9);
  int n = wanted < 3 ? 3 : wanted > MAX_SAMPLES ? MAX_SAMPLES : (int)wanted;
  for (int i = 0; i < n; i++) BK_TRY(sample(b, run, &b->times[i]));
  qsort(b->times, (size_t)n, sizeof *b->times, ascending);
  pair[0] = fmax(b->times[n / 2], 1e-9);
  pair[1] = fmax(b->times[0], 1e-9);
  BK_TRY(largest(b, pair));
  row->seconds = pair[0];
  row->best = pair[1];
  return BK_OK;
}

static bk_status measure(bench *b, double seconds, bk_bench_comm_row *rows) {
  static const struct {
    const char *op;
    sample_fn run;
    bool large;
  } cases[BK_BENCH_COMM_ROWS] = {{"copy", copy, true},
                                 {"reduce_scatter", reduce_scatter, true},
                                 {"all_gather", all_gather, true},
                                 {"all_reduce", all_reduce, false}};
  for (int i = 0; i < BK_BENCH_COMM_ROWS; i++) {
    bool large = cases[i].large;
    const bk_tensor *t = large ? &b->whole : &b->few;
    rows[i] = (bk_bench_comm_row){.op = cases[i].op,
                                  .bytes = (double)bk_tensor_bytes(t),
                                  .sent = large ? (double)b->sent : NAN,
                                  .share = NAN};
    BK_TRY(take_samples(b, cases[i].run, seconds, &rows[i]));
    if (large) rows[i].share = rows[0].seconds / rows[i].seconds;
  }
  return BK_OK;
}

/* ---- memory ---- */

static bk_tensor at(const bench *b, int64_t begin, int64_t count) {
  bk_tensor t = bk_tensor_make(BK_F32, 1, &count);
  t.buffer = b->memory;
  t.offset = (size_t)begin * sizeof(float);
  return t;
}

/* The rank with the smallest piece sends the most. */
static size_t most_sent(const bk_comm *comm, int64_t count) {
  int64_t least = count;
  for (int r = 0; r < comm->size; r++) {
    int64_t n = bk_comm_cut(count, comm->size, r + 1) - bk_comm_cut(count, comm->size, r);
    if (n < least) least = n;
  }
  return (size_t)(count - least) * sizeof(float);
}

static bk_status fill(bench *b, int64_t count) {
  bk_comm *comm = b->comm;
  int64_t begin = bk_comm_cut(count, comm->size, comm->rank),
          end = bk_comm_cut(count, comm->size, comm->rank + 1);
  b->sent = most_sent(comm, count);
  b->times = bk_alloc_array(b->ctx, MAX_SAMPLES, sizeof *b->times);
  if (!b->times) return BK_ERR_MEMORY;
  b->copy_from = bk_alloc(b->ctx, b->sent + 1);
  if (!b->copy_from) return BK_ERR_MEMORY;
  b->copy_to = bk_alloc(b->ctx, b->sent + 1);
  if (!b->copy_to) return BK_ERR_MEMORY;
  memset(b->copy_from, 1, b->sent + 1);
  BK_TRY(bk_stream_create(comm->device, 0, &b->stream));
  BK_TRY(bk_buffer_alloc(comm->device, (size_t)(count + 128) * sizeof(float), BK_MEM_COMM,
                         &b->memory));
  b->whole = at(b, 0, count);
  b->piece = at(b, begin, end - begin);
  b->few = at(b, BK_ALIGN_UP(count, 16), 1);
  BK_TRY(bk_tensor_zero(b->stream, &b->whole));
  BK_TRY(bk_tensor_zero(b->stream, &b->few));
  return bk_comm_reserve(comm, 1, bk_tensor_bytes(&b->whole));
}

static void release(bench *b) {
  bk_buffer_free(b->memory);
  bk_stream_destroy(b->stream);
  bk_free(b->ctx, b->copy_to);
  bk_free(b->ctx, b->copy_from);
  bk_free(b->ctx, b->gathered);
  bk_free(b->ctx, b->times);
}

static bk_status check(const bk_comm *comm, int64_t bytes, double seconds) {
  bk_context *ctx = comm->ctx;
  if (comm->size < 2) return bk_fail(ctx, BK_ERR_ARGUMENT, "bench: one rank has nobody to send to");
  if (isnan(bk_context_seconds(ctx)))
    return bk_fail(ctx, BK_ERR_UNSUPPORTED, "bench: the context has no clock");
  if (bytes >= 4 && bytes <= (int64_t)1 << 32 && seconds >= 0 && seconds <= 3600) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT,
                 "bench: %lld bytes for %g s; 4 to 2^32 bytes and 0 to 3600 s are possible",
                 (long long)bytes, seconds);
}

/* Ranks learn of one another whether they have their memory, before any of them waits for the
 * others. Where a rank lacks what even that takes, it aborts the group. */
static bk_status prepare(bench *b, int64_t bytes) {
  double failed[2] = {0, 0};
  b->gathered = bk_alloc_array(b->ctx, 2 * (size_t)b->comm->size, sizeof *b->gathered);
  if (!b->gathered) {
    bk_comm_abort(b->comm);
    return BK_ERR_MEMORY;
  }
  bk_status status = fill(b, bytes / (int64_t)sizeof(float));
  failed[0] = status != BK_OK;
  BK_TRY(largest(b, failed));
  if (status != BK_OK || failed[0] == 0) return status;
  return bk_fail(b->ctx, BK_ERR_COMM, "bench: another rank has no memory for it");
}

bk_status bk_bench_comm(bk_comm *comm, int64_t bytes, double seconds, bk_bench_comm_row *rows) {
  BK_TRY(check(comm, bytes, seconds));
  bk_bench_comm_row made[BK_BENCH_COMM_ROWS];
  bench b = {.comm = comm, .ctx = comm->ctx};
  bk_status status = prepare(&b, bytes);
  if (status == BK_OK && (status = measure(&b, seconds, made)) != BK_OK) bk_comm_abort(comm);
  if (status == BK_OK) memcpy(rows, made, sizeof made);
  release(&b);
  return status;
}

/* A thread reads the sequences from `next` on into a buffer of its own, while the caller computes.
 * What a sequence is depends on its number alone, so that the caller gets the same tokens whether
 * they come from the buffer or not.
 *
 * The thread touches the buffer and `read` only, between start and wait; the caller touches them
 * only after it has waited. It uses nothing of the context but its file access. What fails there
 * is kept as numbers and becomes a message when somebody asks for that sequence. */
#include "io/readahead.h"

#include <string.h>

#include "base/worker.h"

struct bk_readahead {
  const bk_dataset *data;
  uint64_t seed;
  int64_t seq_len, room;
  bk_worker *worker;      /* NULL: all is read in the calling thread */
  int32_t *ids, *targets; /* [room][seq_len] */
  int64_t first, count;   /* sequences that the thread was to read */
  int64_t read;           /* of them it has, up to a fault */
  bk_data_fault fault;
};

static bool has_worker(const bk_context *ctx, const bk_dataset *data) {
  const bk_data_file *unused;
  return bk_context_reads_in_threads(ctx) && (!data || bk_dataset_files(data, &unused) > 0);
}

size_t bk_readahead_bytes(const bk_context *ctx, const bk_dataset *data, int64_t seq_len,
                          int64_t max_sequences) {
  return has_worker(ctx, data) ? 2 * (size_t)(max_sequences * seq_len) * sizeof(int32_t) : 0;
}

static bk_status make_worker(bk_readahead *r, bk_context *ctx) {
  size_t tokens = (size_t)(r->room * r->seq_len);
  r->ids = bk_alloc_array(ctx, tokens, sizeof *r->ids);
  r->targets = bk_alloc_array(ctx, tokens, sizeof *r->targets);
  if (!r->ids || !r->targets) return BK_ERR_MEMORY;
  return ctx->os->worker->create(ctx, "reads data ahead", &r->worker);
}

bk_status bk_readahead_create(const bk_dataset *data, uint64_t seed, int64_t seq_len,
                              int64_t max_sequences, bk_readahead **readahead) {
  bk_context *ctx = bk_dataset_context(data);
  bk_readahead *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_readahead){.data = data, .seed = seed, .seq_len = seq_len, .room = max_sequences};
  bk_status status = has_worker(ctx, data) ? make_worker(made, ctx) : BK_OK;
  if (status == BK_OK) *readahead = made;
  else bk_readahead_destroy(made);
  return status;
}

void bk_readahead_destroy(bk_readahead *r) {
  if (!r) return;
  bk_context *ctx = bk_dataset_context(r->data);
  if (r->worker) ctx->os->worker->destroy(r->worker);
  bk_free(ctx, r->targets);
  bk_free(ctx, r->ids);
  bk_free(ctx, r);
}

/* Runs in the thread. */
static void read_sequences(void *arg) {
  bk_readahead *r = arg;
  for (r->read = 0; r->read < r->count; r->read++) {
    int64_t at = r->read * r->seq_len;
    if (!bk_dataset_fetch(r->data, r->seed, r->seq_len, r->first + r->read, r->ids + at,
                          r->targets + at, &r->fault))
      return;
  }
}

/* Sequence s: from the buffer if the thread was to read it, else from the data. */
static bk_status get_one(bk_readahead *r, int64_t s, int32_t *ids, int32_t *targets) {
  int64_t i = s - r->first;
  if (i < 0 || i >= r->count || i > r->read)
    return bk_dataset_train_sequence(r->data, r->seed, r->seq_len, s, ids, targets);
  if (i == r->read) {
    r->count = r->read; /* who asks again has it tried again */
    return bk_dataset_fail(r->data, &r->fault);
  }
  size_t bytes = (size_t)r->seq_len * sizeof *ids;
  memcpy(ids, r->ids + i * r->seq_len, bytes);
  memcpy(targets, r->targets + i * r->seq_len, bytes);
  return BK_OK;
}

bk_status bk_readahead_get(bk_readahead *r, int64_t first, int64_t count, int64_t next,
                           int32_t *ids, int32_t *targets) {
  const bk_context *ctx = bk_dataset_context(r->data);
  if (r->worker) ctx->os->worker->wait(r->worker);
  for (int64_t i = 0; i < count; i++)
    BK_TRY(get_one(r, first + i, ids + i * r->seq_len, targets + i * r->seq_len));
  if (!r->worker || next < 0) return BK_OK;
  r->first = next;
  r->count = count < r->room ? count : r->room;
  ctx->os->worker->start(r->worker, read_sequences, r);
  return BK_OK;
}

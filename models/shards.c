/* Spans, buckets and pieces (shards.h), and what a rank keeps of a parameter.
 *
 * All of it is worked out when a model is built, from the places of its weights and gradients:
 * every rank has those in full and at the same places, so that all ranks cut alike. */
#include "models/shards.h"

#include "comm/comm.h"

enum { BUCKET_ALIGN = 128 };

/* A span: neighbouring blocks as one flat tensor of gradients and one of weights, where they lie
 * at the same distances in both (reserve_blocks in params.c). The gaps between the blocks are zero
 * in every part, and AdamW leaves zeros zero. On one rank a model in fp32 has two spans, whatever
 * its size, so that the update takes a few launches and not one for each tensor. */
typedef struct span {
  bk_tensor grad, weight;
  int group;
  bool decay;
  int sublayer; /* of its first block */
} span;

static bk_tensor flat(bk_tensor t) {
  return bk_tensor_reshape(t, 1, (int64_t[]){bk_tensor_count(&t)});
}

/* Elements from the beginning of `first` to that of `next`, or -1 where they are not a whole
 * number of elements apart in one buffer. */
static int64_t distance(const bk_tensor *first, const bk_tensor *next) {
  size_t size = bk_dtype_size(first->dtype);
  if (first->buffer != next->buffer || first->dtype != next->dtype || next->offset < first->offset)
    return -1;
  return (next->offset - first->offset) % size ? -1
                                               : (int64_t)((next->offset - first->offset) / size);
}

/* Adds the next block to a span, or returns false. The gap must be less than the arena's
 * alignment: anything larger is memory of something else. Of several ranks a span ends with its
 * sublayer, so that the pieces are the same wherever a pipeline cuts the model. */
static bool span_extend(span *s, const span *next, bool cut) {
  /* `apart` is from the span's beginning; behind its end there may be a gap of alignment */
  int64_t apart = distance(&s->grad, &next->grad), gap = apart - s->grad.shape[0];
  if (s->group != next->group || gap < 0 || (cut && s->sublayer != next->sublayer) ||
      (size_t)gap * bk_dtype_size(s->grad.dtype) >= BK_ARENA_ALIGN ||
      distance(&s->weight, &next->weight) != apart)
    return false;
  s->grad.shape[0] = s->weight.shape[0] = apart + next->grad.shape[0];
  return true;
}

/* In the order in which the blocks lie in memory, so that neighbours come one after the other. */
static int find_spans(const bk_model *m, span *spans) {
  int n = 0;
  bool cut = bk_model_replicas(m) > 1;
  for (int group = 0; group < BK_UPDATE_GROUPS; group++)
    for (int i = 0; i < m->n_blocks; i++) {
      const bk_param_block *b = &m->blocks[i];
      if (!b->trainable || bk_param_block_group(m, b) != group) continue;
      span next = {flat(b->grad), flat(b->weight), group, b->decay, b->sublayer};
      if (n == 0 || !span_extend(&spans[n - 1], &next, cut)) spans[n++] = next;
    }
  return n;
}

/* A multiple of BUCKET_ALIGN elements for each rank, so that the pieces of all buckets but a span's
 * last begin where kernels like it. */
int64_t bk_bucket_elements(int64_t count, size_t element, int ranks) {
  if (ranks <= 1) return count;
  int64_t unit = (int64_t)BUCKET_ALIGN * ranks, elements = (int64_t)(BK_BUCKET_BYTES / element);
  elements = (elements + unit - 1) / unit * unit;
  return elements < count ? elements : count;
}

/* Elements [begin, begin + count) of a flat tensor; absent where there are none. */
static bk_tensor part(bk_tensor t, int64_t begin, int64_t count) {
  if (!bk_tensor_present(&t) || count == 0) return (bk_tensor){0};
  return bk_tensor_slice(t, 0, begin, count);
}

/* Elements [at, at + count) of a span as a bucket, with this rank's piece. */
static bk_shard bucket(const bk_model *m, const span *s, int64_t at, int64_t count) {
  int size = bk_model_replicas(m), rank = bk_model_replica(m);
  bk_shard b = {.grad = part(s->grad, at, count),
                .weight = part(s->weight, at, count),
                .group = s->group,
                .decay = s->decay,
                .begin = bk_comm_cut(count, size, rank)};
  b.count = bk_comm_cut(count, size, rank + 1) - b.begin;
  b.own_grad = part(b.grad, b.begin, b.count);
  b.own_weight = part(b.weight, b.begin, b.count);
  return b;
}

/* With `shards` NULL they are only counted. */
static int make_buckets(const bk_model *m, const span *spans, int n_spans, bk_shard *shards) {
  int n = 0;
  for (int i = 0; i < n_spans; i++) {
    int64_t count = spans[i].grad.shape[0], most;
    most = bk_bucket_elements(count, bk_dtype_size(m->ct), bk_model_replicas(m));
    for (int64_t at = 0; at < count; at += most, n++)
      if (shards) shards[n] = bucket(m, &spans[i], at, count - at < most ? count - at : most);
  }
  return n;
}

/* Masters and moments: one part of all pieces after the other, so that with one rank they lie as
 * the gradients do. A weight in ct is its own master. */
static bk_status reserve_pieces(bk_model *m) {
  enum { MASTER, M, V, PARTS };
  for (int p = 0; p < PARTS; p++)
    for (int i = 0; i < m->n_shards; i++) {
      bk_shard *s = &m->shards[i];
      bk_tensor *t = p == MASTER ? &s->master : p == M ? &s->m : &s->v;
      if (s->count == 0 || (p == MASTER && s->weight.dtype == m->ct)) continue;
      BK_TRY(bk_memory_tensor(m->memory, p == MASTER ? BK_MEM_MASTERS : BK_MEM_OPTIMIZER, m->ct, 1,
                              &s->count, t));
    }
  return BK_OK;
}

/* A block's part of a tensor of its piece, shaped as its gradient. */
static bk_tensor block_view(const bk_shard *s, bk_tensor of, const bk_param_block *b) {
  if (!bk_tensor_present(&of)) return of;
  bk_tensor t = b->grad;
  t.buffer = of.buffer;
  t.offset = of.offset + (b->grad.offset - s->grad.offset);
  return t;
}

/* With one rank a piece is a whole span, and each block lies in one. */
static void give_views(bk_model *m) {
  for (int i = 0; i < m->n_blocks; i++) {
    bk_param_block *b = &m->blocks[i];
    for (int k = 0; bk_tensor_present(&b->grad) && k < m->n_shards; k++) {
      const bk_shard *s = &m->shards[k];
      int64_t at = distance(&s->grad, &b->grad);
      if (at < 0 || at >= s->count) continue;
      b->master = block_view(s, s->master, b);
      b->m = block_view(s, s->m, b);
      b->v = block_view(s, s->v, b);
    }
  }
}

static bk_status shards_fill(bk_model *m, span *spans) {
  int n_spans = find_spans(m, spans), n = make_buckets(m, spans, n_spans, NULL);
  m->shards = bk_alloc_array(m->ctx, (size_t)n, sizeof *m->shards);
  if (!m->shards) return BK_ERR_MEMORY;
  m->n_shards = make_buckets(m, spans, n_spans, m->shards);
  BK_TRY(reserve_pieces(m));
  if (bk_model_replicas(m) == 1) give_views(m);
  return BK_OK;
}

bk_status bk_model_make_shards(bk_model *m) {
  if (!m->options.trainable) return BK_OK;
  span *spans = bk_alloc_array(m->ctx, (size_t)m->n_blocks, sizeof *spans);
  if (!spans) return BK_ERR_MEMORY;
  bk_status status = shards_fill(m, spans);
  bk_free(m->ctx, spans);
  return status;
}

/* The pieces of one buffer ascend, so that the first that reaches beyond what is done is next. */
bool bk_param_next_slice(const bk_model *m, const bk_param *p, bk_slice *slice) {
  bk_tensor grad = bk_param_grad(m, p);
  int64_t done = slice->begin + slice->count, count = bk_tensor_count(&grad);
  size_t size = bk_dtype_size(grad.dtype), from = grad.offset + (size_t)done * size,
         to = grad.offset + (size_t)count * size;
  for (int i = 0; i < m->n_shards && from < to; i++) {
    const bk_shard *s = &m->shards[i];
    size_t begin = s->own_grad.offset, end = begin + (size_t)s->count * size;
    if (s->own_grad.buffer != grad.buffer || end <= from || begin >= to || s->count == 0) continue;
    size_t first = begin > from ? begin : from, last = end < to ? end : to;
    int64_t at = (int64_t)((first - begin) / size), n = (int64_t)((last - first) / size);
    *slice = (bk_slice){.begin = (int64_t)((first - grad.offset) / size),
                        .count = n,
                        .master = part(s->master, at, n),
                        .m = part(s->m, at, n),
                        .v = part(s->v, at, n)};
    return true;
  }
  return false;
}

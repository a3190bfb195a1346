/* Creation, ports and uploads of a chunk (chunk.h). Creation plans all tensors, records all
 * programs, and only then takes memory: a chunk that does not fit fails before any of it is
 * used. */
#include "models/chunk_priv.h"

/* ---- creation ---- */
/* Rows of tokens times streams, and of tokens times chosen experts, are counted in 32 bits by
 * kernels and index tensors: `widest` is the larger of the two factors. */
static bk_status check_options(const bk_model *m, int index, const bk_chunk_options *o,
                               const bk_chunk *of) {
  bk_context *ctx = m->ctx;
  int64_t widest = m->config.num_experts_per_tok > bk_model_streams(m)
                       ? m->config.num_experts_per_tok
                       : bk_model_streams(m);
  if (index < 0 || index >= m->options.n_chunks)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: no chunk %d of %d", index, m->options.n_chunks);
  if (o->batch < 1 || o->seq_len < 1 || o->slots < 1) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "runner: batch %lld, seq_len %lld and slots %d must be at least 1",
                   (long long)o->batch, (long long)o->seq_len, o->slots);
  }
  if (o->seq_len > INT32_MAX / o->batch / widest) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "runner: %lld sequences of %lld tokens are more than row indices can count",
                   (long long)o->batch, (long long)o->seq_len);
  }
  if (o->backward && !m->options.trainable)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: backward needs a trainable model");
  if (o->defer_wgrad && !o->backward)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: without backward there is no wgrad to defer");
  if (o->recompute < BK_RECOMPUTE_F_NONE || o->recompute > BK_RECOMPUTE_F_ALL)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: recompute %d is none of 0 to %d", o->recompute,
                   BK_RECOMPUTE_F_ALL);
  if (o->cache_len < 0 ||
      (o->cache_len && (o->backward || o->cache_len < o->seq_len || o->cache_len > INT32_MAX))) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "runner: a cache of %lld positions does not go with backward or with %lld "
                   "tokens at once",
                   (long long)o->cache_len, (long long)o->seq_len);
  }
  int first = bk_model_chunk_first(m, index);
  if (of && (of->model != m || of->sublayers != m->sublayers + first ||
             of->n != bk_model_chunk_count(m, index) || of->options.batch != o->batch ||
             of->options.cache_len != o->cache_len || !o->cache_len)) {
    return bk_fail(
        ctx, BK_ERR_ARGUMENT,
        "runner: a cache can be shared only by runners of one model, batch and cache_len");
  }
  return BK_OK;
}

/* These are arrays of descriptors; the tensors' memory is planned by places.c. */
static bk_status make_slot(bk_chunk *c, bk_slot *slot) {
  bk_context *ctx = c->model->ctx;
  size_t n = (size_t)c->n;
  slot->mix = bk_alloc_array(ctx, n, sizeof *slot->mix);
  slot->grads = bk_alloc_array(ctx, n, sizeof *slot->grads);
  slot->f = bk_alloc_array(ctx, n, sizeof *slot->f);
  slot->backward = bk_alloc_array(ctx, n, sizeof *slot->backward);
  slot->df = bk_alloc_array(ctx, n, sizeof *slot->df);
  bool ok = slot->mix && slot->grads && slot->f && slot->backward && slot->df;
  return ok ? BK_OK : BK_ERR_MEMORY;
}

/* bk_chunk_destroy frees what there is, also after a failure here. */
static bk_status make_arrays(bk_chunk *c) {
  bk_context *ctx = c->model->ctx;
  c->forward = bk_alloc_array(ctx, (size_t)c->n, sizeof *c->forward);
  c->slots = bk_alloc_array(ctx, (size_t)c->options.slots, sizeof *c->slots);
  if (!c->forward || !c->slots) return BK_ERR_MEMORY;
  for (int i = 0; i < c->options.slots; i++) BK_TRY(make_slot(c, &c->slots[i]));
  return BK_OK;
}

/* The host copy of ids and targets, from memory that the device can read directly where there is
 * any. */
static bk_status make_staging(bk_chunk *c) {
  bk_device *device = c->model->device;
  for (int i = 0; i < c->options.slots; i++) {
    BK_TRY(device->ops->host_alloc(device, 2 * (size_t)c->tokens * sizeof(int32_t),
                                   (void **)&c->slots[i].host));
    BK_TRY(device->ops->event_create(device, &c->slots[i].uploaded));
  }
  return BK_OK;
}

/* All slots share the plans. The workspaces of the lanes are enlarged once, when all wishes are
 * known. */
static bk_status record_all(bk_chunk *c) {
  bk_model *m = c->model;
  bk_recorder rec;
  bk_status status =
      bk_recorder_init(&rec, m->device, &m->lanes, &c->plans, m->blocks, m->n_blocks);
  for (int i = 0; status == BK_OK && i < c->options.slots; i++)
    status = bk_chunk_record(c, &rec, &c->slots[i]);
  bk_recorder_fini(&rec);
  bk_plans_close(&c->plans);
  return status == BK_OK ? bk_lanes_commit(&m->lanes) : status;
}

/* The lane must be open before the recording, which puts pieces on open lanes only. */
static bk_status chunk_fill(bk_chunk *c) {
  bk_model *m = c->model;
  BK_TRY(make_arrays(c));
  BK_TRY(bk_memory_create(m->device, &c->memory));
  BK_TRY(bk_chunk_plan(c));
  if (c->options.merge_stream) BK_TRY(bk_lanes_open(&m->lanes, BK_LANE_URGENT));
  BK_TRY(record_all(c));
  if (m->options.plan_only) return BK_OK;
  BK_TRY(bk_memory_commit(c->memory));
  return make_staging(c);
}

/* A block of recompute never crosses the edge of a chunk, and is no longer than the chunk. In a
 * pipeline the chunk is the block unless a number is asked for (arXiv 2512.24880 section 4.3.2):
 * then all of it can be rebuilt before the gradient of its output has arrived. */
static int64_t block_of(const bk_model *m, const bk_chunk_options *o, int n) {
  int64_t block = o->backward ? bk_recompute_block(&m->config, o->hc_recompute) : 0;
  bool whole = m->options.pipeline && o->hc_recompute == BK_RECOMPUTE_AUTO;
  return block && (whole || block > n) ? n : block;
}

bk_status bk_chunk_create(bk_model *m, int index, const bk_chunk_options *options,
                          const bk_chunk *cache_of, bk_chunk **chunk) {
  BK_TRY(check_options(m, index, options, cache_of));
  bk_chunk *c = bk_alloc(m->ctx, sizeof *c);
  if (!c) return BK_ERR_MEMORY;
  const bk_chunk_range *range = &m->options.chunks[index];
  *c = (bk_chunk){.model = m, .options = *options, .cache_of = cache_of};
  c->sublayers = m->sublayers + bk_model_chunk_first(m, index);
  c->n = bk_model_chunk_count(m, index);
  c->has_embed = range->begin == 0;
  c->has_head = range->end == 2 * m->config.num_hidden_layers;
  c->tokens = options->batch * options->seq_len;
  c->block = block_of(m, options, c->n);
  bk_status status = chunk_fill(c);
  if (status == BK_OK) *chunk = c;
  else bk_chunk_destroy(c);
  return status;
}

/* Programs end first, since they hold events and graphs that refer to the slot's memory. */
static void free_slot(bk_chunk *c, bk_slot *s) {
  bk_device *device = c->model->device;
  void *arrays[] = {s->mix, s->grads, s->f, s->backward, s->df};
  for (int i = 0; i < BK_PROGRAMS; i++) bk_program_fini(&s->programs[i]);
  if (s->uploaded) s->uploaded->ops->destroy(s->uploaded);
  if (s->host) device->ops->host_free(device, s->host, 2 * (size_t)c->tokens * sizeof(int32_t));
  for (size_t i = 0; i < BK_COUNT(arrays); i++) bk_free(device->ctx, arrays[i]);
}

/* Waits first: a program may still be running on this memory. Programs end before their plans. */
void bk_chunk_destroy(bk_chunk *c) {
  if (!c) return;
  bk_context *ctx = c->model->ctx;
  bk_lanes_sync(&c->model->lanes);
  for (int i = 0; c->slots && i < c->options.slots; i++) free_slot(c, &c->slots[i]);
  bk_plans_fini(&c->plans);
  bk_chunk_free_places(c);
  bk_memory_destroy(c->memory);
  bk_free(ctx, c->slots);
  bk_free(ctx, c->forward);
  bk_free(ctx, c);
}

/* The slots' staging, which is host memory, is not counted. */
size_t bk_chunk_bytes(const bk_chunk *c, bk_memory_class m) {
  return bk_memory_bytes(c->memory, m);
}

/* A program that was never recorded has no pieces. */
bk_program *bk_chunk_program(const bk_chunk *c, int slot, int program) {
  bk_program *p = &c->slots[slot].programs[program];
  return p->n_pieces ? p : NULL;
}

/* ---- ports ---- */
/* The streams come in where the first sublayer has its x. */
bk_port bk_chunk_input(const bk_chunk *c, int slot) {
  const bk_mix_acts *first = &c->slots[slot].mix[0];
  return c->has_embed ? (bk_port){0} : (bk_port){first->x, first->carry};
}

bk_port bk_chunk_output(const bk_chunk *c, int slot) {
  const bk_slot *s = &c->slots[slot];
  return c->has_head ? (bk_port){0} : (bk_port){s->last, s->last_carry};
}

/* Both edges use D, since the backward pass rewrites it in place. */
static bk_port gradient(const bk_chunk *c, int slot, bool crosses) {
  const bk_slot *s = &c->slots[slot];
  return crosses ? (bk_port){s->D, s->D_carry} : (bk_port){0};
}

bk_port bk_chunk_output_grad(const bk_chunk *c, int slot) {
  return gradient(c, slot, !c->has_head);
}

bk_port bk_chunk_input_grad(const bk_chunk *c, int slot) {
  return gradient(c, slot, !c->has_embed);
}

/* Two neighbours of one model always agree; an error means that ports were mixed up. */
static bk_status copy_tensor(bk_stream *stream, const bk_tensor *from, const bk_tensor *to) {
  if (!bk_tensor_present(from) && !bk_tensor_present(to)) return BK_OK;
  if (from->dtype != to->dtype || !bk_tensor_same_shape(from, to))
    return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                   "ports: what leaves one chunk is not what the next one takes");
  return stream->ops->copy(stream, (bk_place){to->buffer, to->offset},
                           (bk_place){from->buffer, from->offset}, bk_tensor_bytes(from));
}

bk_status bk_port_copy(bk_stream *stream, const bk_port *from, const bk_port *to) {
  BK_TRY(copy_tensor(stream, &from->streams, &to->streams));
  return copy_tensor(stream, &from->carry, &to->carry);
}

/* ---- uploads ---- */
/* The upload may still be under way on return: the staging must not change until it is done. */
static bk_status upload_rows(bk_chunk *c, const bk_tensor *t, int32_t *staging,
                             const int32_t *src) {
  bk_stream *stream = c->model->stream;
  for (int64_t i = 0; i < c->tokens; i++) staging[i] = src[i];
  return stream->ops->upload(stream, (bk_place){t->buffer, t->offset}, staging,
                             (size_t)c->tokens * sizeof *staging);
}

/* ids and targets are copied to the staging, so that the caller's arrays are free at once; an
 * event says when the staging itself may be written again. */
bk_status bk_chunk_upload(bk_chunk *c, int slot_index, const int32_t *ids, const int32_t *targets) {
  bk_slot *slot = &c->slots[slot_index];
  bk_stream *stream = c->model->stream;
  /* the upload of this slot's last micro-batch may still be reading the staging */
  if (slot->uploading) BK_TRY(slot->uploaded->ops->sync(slot->uploaded));
  slot->uploading = false;
  if (ids && c->has_embed) BK_TRY(upload_rows(c, &slot->ids, slot->host, ids));
  if (targets && c->has_head)
    BK_TRY(upload_rows(c, &slot->targets, slot->host + c->tokens, targets));
  BK_TRY(stream->ops->event_record(stream, slot->uploaded));
  slot->uploading = true;
  return BK_OK;
}

/* past_host is one number for the chunk, so that the upload before must have ended. Only decoders,
 * with a single slot in use, come here. */
bk_status bk_chunk_upload_past(bk_chunk *c, int64_t past) {
  bk_stream *stream = c->model->stream;
  bk_slot *slot = &c->slots[0];
  if (slot->uploading) BK_TRY(slot->uploaded->ops->sync(slot->uploaded));
  slot->uploading = false;
  c->past_host = (int32_t)past;
  return stream->ops->upload(stream, (bk_place){c->past.buffer, c->past.offset}, &c->past_host,
                             sizeof c->past_host);
}

/* The trivial schedule over a model's chunks (runner.h), and the checks that keep its callers to
 * an order that makes sense. A schedule over ranks is other code over the same chunks.
 *
 * Each slot has a state: a backward needs a forward with targets in the same slot before it, and a
 * slot whose wgrad is deferred cannot be used again until that is done, because it holds what the
 * wgrad reads. */
#include "models/runner.h"

#include "models/chunk_priv.h"
#include "models/profile.h"

/* What a slot holds: nothing that is needed, what a backward needs, what a wgrad needs. */
typedef enum slot_state { EMPTY, FORWARDED, WAITS_FOR_WGRAD } slot_state;

struct bk_runner {
  bk_model *model;
  bk_runner_options options;
  bk_chunk *chunks[BK_CHUNKS_MAX];
  int n;
  slot_state *states; /* [slots] */
  int *queue;         /* [slots]: the slots whose wgrad waits, the oldest first */
  int n_queue;
  uint64_t step; /* the step that the queue belongs to */
  bk_look_fn look, after;
  void *look_arg, *after_arg;
};

/* ---- creation ---- */
static bk_status check_chunks(const bk_model *m) {
  const bk_chunk_range *c = m->options.chunks;
  for (int i = 1; i < m->options.n_chunks; i++)
    if (c[i].begin != c[i - 1].end)
      return bk_fail(m->ctx, BK_ERR_ARGUMENT,
                     "runner: chunk [%lld, %lld) does not follow [%lld, %lld); chunks that do not "
                     "follow each other need a schedule over ranks",
                     (long long)c[i].begin, (long long)c[i].end, (long long)c[i - 1].begin,
                     (long long)c[i - 1].end);
  return BK_OK;
}

/* One chunk object for each of the model's ranges, in their order. */
static bk_status runner_fill(bk_runner *r, const bk_runner *cache_of) {
  bk_model *m = r->model;
  BK_TRY(check_chunks(m));
  for (; r->n < m->options.n_chunks; r->n++) {
    const bk_chunk *of = cache_of ? cache_of->chunks[r->n] : NULL;
    BK_TRY(bk_chunk_create(m, r->n, &r->options, of, &r->chunks[r->n]));
  }
  size_t slots = (size_t)r->options.slots;
  r->states = bk_alloc_array(m->ctx, slots, sizeof *r->states);
  r->queue = bk_alloc_array(m->ctx, slots, sizeof *r->queue);
  return r->states && r->queue ? BK_OK : BK_ERR_MEMORY;
}

bk_status bk_runner_create_sharing(bk_model *model, const bk_runner_options *options,
                                   const bk_runner *cache_of, bk_runner **runner) {
  if (cache_of && cache_of->model != model)
    return bk_fail(model->ctx, BK_ERR_ARGUMENT,
                   "runner: a cache can be shared only by runners of one model, batch and "
                   "cache_len");
  bk_runner *r = bk_alloc(model->ctx, sizeof *r);
  if (!r) return BK_ERR_MEMORY;
  *r = (bk_runner){.model = model, .options = *options};
  bk_status status = runner_fill(r, cache_of);
  if (status == BK_OK) *runner = r;
  else bk_runner_destroy(r);
  return status;
}

/* No cache is shared: a runner that decodes has its own, any other has none. */
bk_status bk_runner_create(bk_model *model, const bk_runner_options *options, bk_runner **runner) {
  return bk_runner_create_sharing(model, options, NULL, runner);
}

void bk_runner_destroy(bk_runner *r) {
  if (!r) return;
  bk_context *ctx = r->model->ctx;
  for (int i = r->n - 1; i >= 0; i--) bk_chunk_destroy(r->chunks[i]);
  bk_free(ctx, r->queue);
  bk_free(ctx, r->states);
  bk_free(ctx, r);
}

/* ---- checks ---- */
/* Kernels take ids and targets as they are, so that they are checked here, on the host. */
static bk_status check_tokens(const bk_runner *r, const int32_t *ids, const int32_t *targets) {
  int64_t V = r->model->config.vocab_size, tokens = bk_runner_tokens(r);
  for (int64_t i = 0; i < tokens; i++) {
    if (ids && (ids[i] < 0 || ids[i] >= V)) {
      return bk_fail(r->model->ctx, BK_ERR_DATA,
                     "token id %d at position %lld is not below vocab_size %lld", ids[i],
                     (long long)i, (long long)V);
    }
    if (targets && targets[i] >= V) {
      return bk_fail(r->model->ctx, BK_ERR_DATA,
                     "target %d at position %lld is not below vocab_size %lld", targets[i],
                     (long long)i, (long long)V);
    }
  }
  return BK_OK;
}

/* A runner with a cache only decodes, and one without cannot decode. */
static bk_status check_run(const bk_runner *r, int slot, bool decoding) {
  bk_context *ctx = r->model->ctx;
  if (r->model->options.plan_only)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "a runner of a model that was only planned cannot run");
  if (slot < 0 || slot >= r->options.slots) {
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: no slot %d of %d", slot, r->options.slots);
  }
  if (decoding != (r->options.cache_len > 0)) {
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: %s",
                   decoding ? "it has no cache to decode with" : "with a cache it only decodes");
  }
  return BK_OK;
}

/* ---- passes ---- */
/* A model that holds only the first part of the layers ends with streams. */
static bool has_head(const bk_runner *r) { return r->chunks[r->n - 1]->has_head; }

/* Which of the two programs of a kind is to be run now. A backward that does not defer writes the
 * gradients of the wgrad as well, so that a step must not mix the two ways: the first micro-batch
 * of one would overwrite what the other had written. */
static bk_status due(const bk_runner *r, int chunk, int program, bk_micro *micro) {
  *micro = bk_step_micro(r->model, chunk, program);
  if (program != BK_PROGRAM_BACKWARD || r->options.defer_wgrad) return BK_OK;
  if (bk_step_micro(r->model, chunk, BK_PROGRAM_WGRAD) == *micro) return BK_OK;
  return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                 "runner: backward with wgrad at once, in a step whose wgrads were deferred");
}

/* Runs one program of one chunk. A program that the chunk does not have does nothing, for example
 * the head's in a chunk without it. */
static bk_status run(const bk_runner *r, int chunk, int slot, int program) {
  bk_micro micro = BK_MICRO_FIRST;
  if (program >= BK_PROGRAM_LOSS) BK_TRY(due(r, chunk, program, &micro));
  bk_run how = {.profile = bk_profile_of(r->model),
                .look = r->look,
                .look_arg = r->look_arg,
                .after = r->after,
                .after_arg = r->after_arg};
  bk_program *p = bk_chunk_program(r->chunks[chunk], slot, program + (int)micro);
  return p ? bk_program_run(p, &how) : BK_OK;
}

/* A wgrad that was deferred and never done belongs to its step: the next step's gradients begin
 * anew. */
static void forget_earlier_steps(bk_runner *r) {
  if (r->step == r->model->parts->steps_begun) return;
  r->step = r->model->parts->steps_begun;
  for (int i = 0; i < r->n_queue; i++) r->states[r->queue[i]] = EMPTY;
  r->n_queue = 0;
}

/* Runs all chunks forward, then `head`, one of the head's programs. The slot is EMPTY until the
 * pass has been enqueued as a whole: a failure leaves nothing to go back from. */
static bk_status forward(bk_runner *r, int slot, const int32_t *ids, const int32_t *targets,
                         int head) {
  r->states[slot] = EMPTY;
  for (int i = 0; i < r->n; i++) {
    bk_chunk *c = r->chunks[i];
    BK_TRY(bk_chunk_upload(c, slot, ids, targets));
    if (i > 0) {
      bk_port from = bk_chunk_output(r->chunks[i - 1], slot), to = bk_chunk_input(c, slot);
      BK_TRY(bk_port_copy(r->model->stream, &from, &to));
    }
    BK_TRY(run(r, i, slot, BK_PROGRAM_FORWARD));
  }
  return run(r, r->n - 1, slot, head);
}

/* ids are needed where the model has the embedding; without it the streams come through a port. */
static bk_status check_forward(bk_runner *r, int slot, const int32_t *ids, const int32_t *targets) {
  bk_context *ctx = r->model->ctx;
  BK_TRY(check_run(r, slot, false));
  forget_earlier_steps(r);
  if (r->states[slot] == WAITS_FOR_WGRAD)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: slot %d waits for its wgrad", slot);
  if (!ids && r->chunks[0]->has_embed)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: forward needs token ids");
  return check_tokens(r, ids, targets);
}

/* Targets mean a loss. A runner for training then uses the program that makes the head's gradients
 * too. */
bk_status bk_runner_forward(bk_runner *r, int slot, const int32_t *ids, const int32_t *targets) {
  if (!has_head(r)) targets = NULL;
  BK_TRY(check_forward(r, slot, ids, targets));
  int with_loss = r->options.backward ? BK_PROGRAM_LOSS : BK_PROGRAM_EVALUATE;
  BK_TRY(forward(r, slot, ids, targets, targets ? with_loss : BK_PROGRAM_LOGITS));
  if (targets || !has_head(r)) r->states[slot] = FORWARDED;
  return BK_OK;
}

/* The slot stays EMPTY, so that a backward is refused. */
bk_status bk_runner_evaluate(bk_runner *r, int slot, const int32_t *ids, const int32_t *targets) {
  BK_TRY(check_forward(r, slot, ids, targets));
  return forward(r, slot, ids, targets, targets ? BK_PROGRAM_EVALUATE : BK_PROGRAM_LOGITS);
}

/* From the last chunk to the first. Between two chunks the gradient is copied from port to port. */
bk_status bk_runner_backward(bk_runner *r, int slot) {
  BK_TRY(check_run(r, slot, false));
  forget_earlier_steps(r);
  if (!r->options.backward || r->states[slot] != FORWARDED) {
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                   "runner: backward needs a runner made for it and a forward with targets");
  }
  for (int i = r->n - 1; i >= 0; i--) {
    bk_chunk *c = r->chunks[i];
    if (i + 1 < r->n) {
      bk_port from = bk_chunk_input_grad(r->chunks[i + 1], slot),
              to = bk_chunk_output_grad(c, slot);
      BK_TRY(bk_port_copy(r->model->stream, &from, &to));
    }
    BK_TRY(run(r, i, slot, BK_PROGRAM_BACKWARD));
  }
  if (!r->options.defer_wgrad) return BK_OK;
  r->queue[r->n_queue++] = slot;
  r->model->parts->waiting_wgrads++;
  r->states[slot] = WAITS_FOR_WGRAD;
  return BK_OK;
}

/* The oldest first: pipelines fill gaps with the wgrad that has waited longest. */
bk_status bk_runner_wgrad(bk_runner *r) {
  forget_earlier_steps(r);
  if (r->n_queue == 0) return bk_fail(r->model->ctx, BK_ERR_ARGUMENT, "runner: no wgrad waits");
  int slot = r->queue[0];
  for (int i = r->n - 1; i >= 0; i--) BK_TRY(run(r, i, slot, BK_PROGRAM_WGRAD));
  for (int i = 1; i < r->n_queue; i++) r->queue[i - 1] = r->queue[i];
  r->n_queue--;
  r->model->parts->waiting_wgrads--;
  r->states[slot] = EMPTY;
  return BK_OK;
}

/* The position is a tensor on the device, uploaded before each pass, since arguments never
 * change. */
bk_status bk_runner_decode(bk_runner *r, int64_t past, const int32_t *ids) {
  BK_TRY(check_run(r, 0, true));
  if (past < 0 || past + r->options.seq_len > r->options.cache_len) {
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                   "runner: %lld tokens after %lld do not fit a cache of %lld positions",
                   (long long)r->options.seq_len, (long long)past, (long long)r->options.cache_len);
  }
  if (!ids && r->chunks[0]->has_embed)
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT, "runner: decoding needs token ids");
  BK_TRY(check_tokens(r, ids, NULL));
  for (int i = 0; i < r->n; i++) BK_TRY(bk_chunk_upload_past(r->chunks[i], past));
  return forward(r, 0, ids, NULL, BK_PROGRAM_LOGITS);
}

/* Wgrads of an earlier step are still counted here until the next pass forgets them. */
int bk_runner_waiting(const bk_runner *r) { return r->n_queue; }

void bk_runner_look(bk_runner *r, bk_look_fn look, void *arg) {
  r->look = look;
  r->look_arg = arg;
}

void bk_runner_after(bk_runner *r, bk_look_fn after, void *arg) {
  r->after = after;
  r->after_arg = arg;
}

/* ---- results ---- */
size_t bk_runner_bytes(const bk_runner *r, bk_memory_class c) {
  size_t sum = 0;
  for (int i = 0; i < r->n; i++) sum += bk_chunk_bytes(r->chunks[i], c);
  return sum;
}

bk_tensor bk_runner_logits(const bk_runner *r) { return r->chunks[r->n - 1]->logits; }
bk_tensor bk_runner_row_losses(const bk_runner *r) { return r->chunks[r->n - 1]->row_losses; }
int bk_runner_n_sublayers(const bk_runner *r) { return r->model->n_sublayers; }
int64_t bk_runner_tokens(const bk_runner *r) { return r->options.batch * r->options.seq_len; }
bk_stream *bk_runner_stream(const bk_runner *r) { return r->model->stream; }
int bk_runner_n_moe(const bk_runner *r) { return r->model->parts->n_moe; }
int bk_runner_n_chunks(const bk_runner *r) { return r->n; }
bk_chunk *bk_runner_chunk(const bk_runner *r, int i) { return r->chunks[i]; }

bk_tensor bk_runner_last_streams(const bk_runner *r, int slot) {
  return r->chunks[r->n - 1]->slots[slot].last;
}

/* The chunk that has sublayer s of the model's list, and its number there; NULL: none has. */
static const bk_chunk *find_sublayer(const bk_runner *r, int s, int *at) {
  for (int i = 0; i < r->n; i++) {
    *at = s - (int)(r->chunks[i]->sublayers - r->model->sublayers);
    if (*at >= 0 && *at < r->chunks[i]->n) return r->chunks[i];
  }
  return NULL;
}

bk_status bk_runner_maps(const bk_runner *r, int slot, int sublayer, bk_tensor *pre,
                         bk_tensor *post, bk_tensor *comb) {
  int at;
  const bk_chunk *c = find_sublayer(r, sublayer, &at);
  if (slot < 0 || slot >= r->options.slots || !c) {
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT, "runner: no sublayer %d in slot %d", sublayer,
                   slot);
  }
  bk_connection_show(&c->sublayers[at].connection, &c->slots[slot].mix[at], pre, post, comb);
  return BK_OK;
}

/* Layers with experts are counted among themselves, in the order of the model. */
bk_status bk_runner_routing(const bk_runner *r, int slot, int moe_layer, bk_tensor *scores,
                            bk_tensor *index) {
  for (int s = 0; s < r->model->n_sublayers && slot >= 0 && slot < r->options.slots; s++) {
    const bk_sublayer *l = &r->model->sublayers[s];
    int at;
    if (l->ops != &bk_moe_ops || l->moe_layer != moe_layer) continue;
    const bk_moe_acts *a = &find_sublayer(r, s, &at)->slots[slot].f[at].moe;
    *scores = a->scores;
    *index = a->index;
    return BK_OK;
  }
  return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                 "runner: no mixture-of-experts layer %d in slot %d", moe_layer, slot);
}

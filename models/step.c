/* The step block and the optimiser (step.h, and op.h for the block's fields). Everything is
 * enqueued on the model's stream; only bk_step_end waits, once a step, for the results.
 *
 * Clipping and the test for finite numbers happen on the device: norm, clip factor and the flag
 * are fields of the step block, which the update reads. The host learns of them when all is
 * done. */
#include "models/model_priv.h"
#include "models/parallel.h"
#include "models/profile.h"
#include "models/shards.h"
#include "models/step.h"

#include <math.h>

/* ---- the step block: one field in the host's copy, in ct ---- */
static void put(bk_model *m, int field, double value) {
  if (m->ct == BK_F64) m->parts->step_host.f64[field] = value;
  else m->parts->step_host.f32[field] = (float)value;
}

static double get(const bk_model *m, int field) {
  return m->ct == BK_F64 ? m->parts->step_host.f64[field] : (double)m->parts->step_host.f32[field];
}

/* The fill lies on the stream in front of the step's first pass. */
static bk_status zero_loads(bk_model *m) {
  const bk_tensor *load = &m->parts->load;
  if (!bk_tensor_present(load)) return BK_OK;
  return m->stream->ops->fill(m->stream, (bk_place){load->buffer, load->offset}, 0,
                              bk_tensor_bytes(load));
}

/* All fields go over in one copy. Counters that say which micro-batch is the first begin anew. */
bk_status bk_step_begin(bk_model *m, const bk_step_values *values) {
  if (m->options.plan_only)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT, "a model that was only planned cannot run");
  /* An earlier step may never have been ended: its upload may be reading the staging still. */
  BK_TRY(bk_lanes_sync(&m->lanes));
  if (m->profile) BK_TRY(bk_profile_step_begin(m->profile));
  for (int i = 0; i < BK_CHUNKS_MAX; i++) m->parts->begun[i] = 0;
  m->parts->waiting_wgrads = 0;
  m->parts->steps_begun++;
  for (int i = 0; i < BK_STEP_FIELDS; i++) put(m, i, 0.0);
  put(m, BK_STEP_LR, values->lr);
  put(m, BK_STEP_BC1, values->bc1);
  put(m, BK_STEP_BC2, values->bc2);
  put(m, BK_STEP_MAX_NORM, values->max_norm);
  put(m, BK_STEP_LOSS_SCALE, values->loss_scale);
  put(m, BK_STEP_BALANCE_RATE, values->balance_rate);
  put(m, BK_STEP_FINITE, 1.0);
  bk_place place = {m->step.buffer, m->step.offset};
  BK_TRY(m->stream->ops->upload(m->stream, place, &m->parts->step_host, bk_tensor_bytes(&m->step)));
  return zero_loads(m);
}

/* `begun` has a bit for each kind of program, and there is one word for each chunk. */
bk_micro bk_step_micro(bk_model *m, int chunk, int kind) {
  uint32_t bit = 1u << kind, *begun = &m->parts->begun[chunk];
  bk_micro micro = *begun & bit ? BK_MICRO_NEXT : BK_MICRO_FIRST;
  *begun |= bit;
  return micro;
}

/* The wait at the end of a step. The loss is looked at here as well, because the flag is set by
 * the optimiser, and an evaluation has none. */
bk_status bk_step_end(bk_model *m, bk_step_results *results) {
  bk_place place = {m->step.buffer, m->step.offset};
  if (m->profile) BK_TRY(bk_profile_step_close(m->profile));
  BK_TRY(
      m->stream->ops->download(m->stream, &m->parts->step_host, place, bk_tensor_bytes(&m->step)));
  BK_TRY(m->stream->ops->sync(m->stream));
  if (m->profile) BK_TRY(bk_profile_step_read(m->profile));
  double loss = get(m, BK_STEP_LOSS);
  *results = (bk_step_results){.loss_sum = loss,
                               .grad_norm = get(m, BK_STEP_NORM),
                               .clip = get(m, BK_STEP_CLIP),
                               .finite = get(m, BK_STEP_FINITE) != 0.0 && isfinite(loss)};
  return BK_OK;
}

/* ---- the optimiser ---- */
/* Two programs, between which ranks add up what they have: the sums of squares of the gradients,
 * and the rest. The sums lie in vectors of one tensor: one element for each trained block, in
 * ct, then one for each micro-batch's loss. Of several ranks each writes to its elements of a
 * tensor of its own, whose others stay 0, so that adding the ranks' up changes no loss. */
struct bk_optimizer {
  bk_model *model;
  bk_optimizer_options options;
  bk_parallel *parallel; /* NULL: one rank */
  bk_memory *memory;     /* of the vectors */
  bk_tensor own, all;    /* the same with one rank */
  int64_t n_norms;       /* trained blocks of the whole model */
  int64_t *norm_at;      /* [n_blocks of this rank]: which of them a block is; -1: not trained */
  bk_plans plans;
  bk_program programs[BK_OPTIMIZER_PROGRAMS];
};

/* `whole` has all blocks of the model, in the order in which this rank has some of them. */
static void number_blocks(bk_optimizer *o, const bk_model *whole) {
  const bk_model *m = o->model;
  int own = 0;
  for (int i = 0; i < whole->n_blocks; i++) {
    bool trained = whole->blocks[i].trainable;
    if (own < m->n_blocks && m->blocks[own].sublayer == whole->blocks[i].sublayer)
      o->norm_at[own++] = trained ? o->n_norms : -1;
    o->n_norms += trained;
  }
}

/* Of a model that other ranks hold parts of, the blocks are those of the whole model, which is
 * planned for it. */
static bk_status find_blocks(bk_optimizer *o) {
  const bk_model *m = o->model;
  bk_model *whole = NULL;
  o->norm_at = bk_alloc_array(m->ctx, (size_t)m->n_blocks, sizeof *o->norm_at);
  if (!o->norm_at) return BK_ERR_MEMORY;
  if (m->options.pipeline)
    BK_TRY(bk_model_create(m->device, &m->config, m->dtype, &(bk_model_options){.plan_only = true},
                           &whole));
  number_blocks(o, whole ? whole : m);
  bk_model_destroy(whole);
  return BK_OK;
}

static bk_status reserve_sums(bk_optimizer *o) {
  const bk_model *m = o->model;
  BK_TRY(find_blocks(o));
  int64_t count = o->n_norms + o->options.micro_batches;
  BK_TRY(bk_memory_create(m->device, &o->memory));
  BK_TRY(bk_memory_tensor(o->memory, BK_MEM_WORKSPACE, m->ct, 1, &count, &o->all));
  o->own = o->all;
  if (bk_model_ranks(m) > 1)
    BK_TRY(bk_memory_tensor(o->memory, BK_MEM_WORKSPACE, m->ct, 1, &count, &o->own));
  if (m->options.plan_only) return BK_OK;
  BK_TRY(bk_memory_commit(o->memory));
  return bk_model_ranks(m) > 1 ? bk_parallel_create(o->model, count, &o->parallel) : BK_OK;
}

/* The squares of what this rank has of a block, into `sum`: of one rank, all of it. */
static bk_status block_norm(const bk_optimizer *o, bk_recorder *rec, const bk_tensor *grad,
                            bk_tensor sum) {
  const bk_model *m = o->model;
  size_t size = bk_dtype_size(grad->dtype), begin = grad->offset,
         end = begin + bk_tensor_bytes(grad);
  bool more = false;
  for (int i = 0; i < m->n_shards; i++) {
    bk_tensor g = m->shards[i].own_grad;
    size_t first = begin > g.offset ? begin : g.offset, last = g.offset + bk_tensor_bytes(&g);
    if (last > end) last = end;
    if (g.buffer != grad->buffer || first >= last) continue;
    g = bk_tensor_slice(g, 0, (int64_t)((first - g.offset) / size),
                        (int64_t)((last - first) / size));
    BK_TRY(bk_record(rec, BK_OP_SUMSQ, &(bk_sumsq_args){g, sum, more}));
    more = true;
  }
  return BK_OK;
}

/* The squares are summed for each block, and the sums of the blocks in their order: so the bits do
 * not depend on how the blocks lie in memory. */
static bk_status record_norm(bk_optimizer *o, bk_recorder *rec) {
  const bk_model *m = o->model;
  bk_record_begin(rec, &o->programs[BK_OPTIMIZER_NORM], false, NULL);
  BK_TRY(bk_record_piece(rec, BK_PART_OPTIMIZER, BK_PASS_F, -1, BK_LANE_COMPUTE));
  for (int i = 0; i < m->n_blocks; i++)
    if (o->norm_at[i] >= 0)
      BK_TRY(block_norm(o, rec, &m->blocks[i].grad, bk_tensor_slice(o->own, 0, o->norm_at[i], 1)));
  return bk_record_end(rec, "the gradients' norm", &o->model->parts->graph_warned);
}

static bk_status sum_and_clip(const bk_optimizer *o, bk_recorder *rec) {
  int64_t losses = o->options.micro_batches;
  bk_sum_args norm = {bk_tensor_slice(o->all, 0, 0, o->n_norms),
                      bk_step_field(o->model, BK_STEP_SUMSQ), false};
  BK_TRY(bk_record(rec, BK_OP_SUM, &norm));
  if (losses) {
    bk_sum_args loss = {bk_tensor_slice(o->all, 0, o->n_norms, losses),
                        bk_step_field(o->model, BK_STEP_LOSS), false};
    BK_TRY(bk_record(rec, BK_OP_SUM, &loss));
  }
  return bk_record(rec, BK_OP_CLIP, &(bk_clip_args){o->model->step});
}

/* One launch for each piece. Weight decay is decoupled (AdamW), and 0 where a piece does not
 * decay. */
static bk_status update(const bk_optimizer *o, bk_recorder *rec) {
  for (int i = 0; i < o->model->n_shards; i++) {
    const bk_shard *s = &o->model->shards[i];
    if (s->count == 0) continue;
    BK_TRY(bk_record(rec, BK_OP_ADAMW,
                     &(bk_adamw_args){.grad = s->own_grad,
                                      .step = o->model->step,
                                      .p = s->own_weight,
                                      .master = s->master,
                                      .m = s->m,
                                      .v = s->v,
                                      .beta1 = o->options.beta1,
                                      .beta2 = o->options.beta2,
                                      .eps = o->options.eps,
                                      .weight_decay = s->decay ? o->options.weight_decay : 0.0}));
  }
  return BK_OK;
}

/* Loss-free balancing of experts: it changes the biases of the router, which have no gradient. */
static bk_status balance(const bk_optimizer *o, bk_recorder *rec) {
  const bk_model *m = o->model;
  for (int i = 0; i < m->n_sublayers; i++) {
    const bk_sublayer *s = &m->sublayers[i];
    if (s->moe_layer < 0) continue;
    BK_TRY(bk_record(rec, BK_OP_BALANCE,
                     &(bk_balance_args){s->moe.load, m->step, s->moe.bias->weight}));
  }
  return BK_OK;
}

/* One piece, since nothing can be put in between: the norm must be known before the first weight
 * changes. */
static bk_status record_update(bk_optimizer *o, bk_recorder *rec) {
  bk_record_begin(rec, &o->programs[BK_OPTIMIZER_UPDATE], false, NULL);
  BK_TRY(bk_record_piece(rec, BK_PART_OPTIMIZER, BK_PASS_F, -1, BK_LANE_COMPUTE));
  BK_TRY(sum_and_clip(o, rec));
  BK_TRY(update(o, rec));
  BK_TRY(balance(o, rec));
  return bk_record_end(rec, "the optimiser's step", &o->model->parts->graph_warned);
}

/* The optimiser has no gradients of its own to tell apart, so that its recorder knows no blocks. */
static bk_status optimizer_fill(bk_optimizer *o) {
  bk_model *m = o->model;
  bk_recorder rec;
  BK_TRY(reserve_sums(o));
  BK_TRY(bk_recorder_init(&rec, m->device, &m->lanes, &o->plans, NULL, 0));
  bk_status status = record_norm(o, &rec);
  if (status == BK_OK) status = record_update(o, &rec);
  bk_recorder_fini(&rec);
  bk_plans_close(&o->plans);
  return status == BK_OK ? bk_lanes_commit(&m->lanes) : status;
}

/* Moments and masters are the model's: it takes memory on the device for a few sums alone. */
bk_status bk_optimizer_create(bk_model *model, const bk_optimizer_options *options,
                              bk_optimizer **optimizer) {
  if (!model->options.trainable)
    return bk_fail(model->ctx, BK_ERR_ARGUMENT, "an optimiser needs a trainable model");
  bk_optimizer *o = bk_alloc(model->ctx, sizeof *o);
  if (!o) return BK_ERR_MEMORY;
  o->model = model;
  o->options = *options;
  bk_status status = optimizer_fill(o);
  if (status != BK_OK) {
    bk_optimizer_destroy(o);
    return status;
  }
  *optimizer = o;
  return BK_OK;
}

/* The plans end after the programs that refer to them. */
void bk_optimizer_destroy(bk_optimizer *o) {
  if (!o) return;
  bk_context *ctx = o->model->ctx;
  bk_lanes_sync(&o->model->lanes);
  for (int i = 0; i < BK_OPTIMIZER_PROGRAMS; i++) bk_program_fini(&o->programs[i]);
  bk_plans_fini(&o->plans);
  bk_parallel_destroy(o->parallel);
  bk_memory_destroy(o->memory);
  bk_free(ctx, o->norm_at);
  bk_free(ctx, o);
}

const bk_program *bk_optimizer_program(const bk_optimizer *o, int program) {
  return &o->programs[program];
}

bk_parallel *bk_optimizer_parallel(const bk_optimizer *o) { return o->parallel; }

size_t bk_optimizer_bytes(const bk_optimizer *o, bk_memory_class c) {
  return bk_memory_bytes(o->memory, c);
}

bk_status bk_optimizer_keep_loss(bk_optimizer *o, int64_t micro) {
  const bk_stream_ops *ops = o->model->stream->ops;
  bk_tensor from = bk_step_field(o->model, BK_STEP_LOSS),
            to = bk_tensor_slice(o->own, 0, o->n_norms + micro, 1);
  bk_place field = {from.buffer, from.offset};
  BK_TRY(
      ops->copy(o->model->stream, (bk_place){to.buffer, to.offset}, field, bk_tensor_bytes(&from)));
  return ops->fill(o->model->stream, field, 0, bk_tensor_bytes(&from));
}

/* Gradients with a wgrad missing would train a part of the model on half a step. */
bk_status bk_optimizer_step(bk_optimizer *o) {
  if (o->model->options.plan_only)
    return bk_fail(o->model->ctx, BK_ERR_ARGUMENT, "a model that was only planned cannot run");
  if (o->model->parts->waiting_wgrads > 0)
    return bk_fail(o->model->ctx, BK_ERR_ARGUMENT,
                   "optimiser: the gradients are not whole, %d deferred wgrads wait",
                   o->model->parts->waiting_wgrads);
  bk_run how = {.profile = bk_profile_of(o->model)};
  if (o->parallel) BK_TRY(bk_parallel_gradients(o->parallel));
  BK_TRY(bk_program_run(&o->programs[BK_OPTIMIZER_NORM], &how));
  if (o->parallel) BK_TRY(bk_parallel_sum(o->parallel, &o->own, &o->all));
  BK_TRY(bk_program_run(&o->programs[BK_OPTIMIZER_UPDATE], &how));
  return bk_model_gather_weights(o->model);
}

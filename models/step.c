/* The step block and the optimiser: see runner.h and op.h. Everything is enqueued on the model's stream; only bk_step_end waits. */
#include "models/model_priv.h"

#include <math.h>

/* ---- the step block ---- */
static void put(bk_model *m, int slot, double value) {
  if (m->ct == BK_F64) m->parts->step_host.f64[slot] = value;
  else m->parts->step_host.f32[slot] = (float)value;
}

static double get(const bk_model *m, int slot) {
  return m->ct == BK_F64 ? m->parts->step_host.f64[slot] : (double)m->parts->step_host.f32[slot];
}

static bk_status zero_loads(bk_model *m) {
  const bk_tensor *load = &m->parts->load;
  if (!bk_tensor_present(load)) return BK_OK;
  return m->stream->ops->fill(m->stream, (bk_place){load->buffer, load->offset}, 0, bk_tensor_bytes(load));
}

bk_status bk_step_begin(bk_model *m, const bk_step_values *values) {
  if (m->options.plan_only) return bk_fail(m->ctx, BK_ERR_ARGUMENT, "a model that was only planned cannot run");
  BK_TRY(m->stream->ops->sync(m->stream)); /* the staging of an earlier step that was never ended */
  for (int i = 0; i < BK_STEP_SLOTS; i++) put(m, i, 0.0);
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

bk_status bk_step_end(bk_model *m, bk_step_results *results) {
  bk_place place = {m->step.buffer, m->step.offset};
  BK_TRY(m->stream->ops->download(m->stream, &m->parts->step_host, place, bk_tensor_bytes(&m->step)));
  BK_TRY(m->stream->ops->sync(m->stream));
  double loss = get(m, BK_STEP_LOSS);
  *results = (bk_step_results){.loss_sum = loss, .grad_norm = get(m, BK_STEP_NORM), .clip = get(m, BK_STEP_CLIP),
                               .finite = get(m, BK_STEP_FINITE) != 0.0 && isfinite(loss)};
  return BK_OK;
}

/* ---- the optimiser ---- */
struct bk_optimizer {
  bk_model *model;
  bk_optimizer_options options;
  bk_exec exec;
  bk_calls calls;
};

static bk_tensor flat(bk_tensor t) {
  return bk_tensor_present(&t) ? bk_tensor_reshape(t, 1, (int64_t[]){bk_tensor_count(&t)}) : t;
}

static bk_status norm_and_clip(bk_optimizer *o) {
  bk_model *m = o->model;
  bk_tensor sum = bk_step_slot(m, BK_STEP_SUMSQ);
  for (int i = 0; i < m->n_blocks; i++) {
    if (!m->blocks[i].trainable) continue;
    BK_TRY(bk_exec_call(&o->exec, BK_OP_SUMSQ, &(bk_sumsq_args){flat(m->blocks[i].grad), sum, true}));
  }
  return bk_exec_call(&o->exec, BK_OP_CLIP, &(bk_clip_args){m->step});
}

static bk_status update_blocks(bk_optimizer *o) {
  bk_model *m = o->model;
  for (int i = 0; i < m->n_blocks; i++) {
    const bk_param_block *b = &m->blocks[i];
    if (!b->trainable) continue;
    BK_TRY(bk_exec_call(&o->exec, BK_OP_ADAMW, &(bk_adamw_args){
        .grad = flat(b->grad), .step = m->step, .p = flat(b->weight), .master = flat(b->master), .m = flat(b->m),
        .v = flat(b->v), .beta1 = o->options.beta1, .beta2 = o->options.beta2, .eps = o->options.eps,
        .weight_decay = b->decay ? o->options.weight_decay : 0.0}));
  }
  return BK_OK;
}

static bk_status balance(bk_optimizer *o) {
  bk_model *m = o->model;
  for (int i = 0; i < bk_model_n_sublayers(m); i++) {
    const bk_sublayer *s = &m->sublayers[i];
    if (s->moe_layer < 0) continue;
    BK_TRY(bk_exec_call(&o->exec, BK_OP_BALANCE, &(bk_balance_args){s->moe.load, m->step, s->moe.bias->weight}));
  }
  return BK_OK;
}

static bk_status run(bk_optimizer *o) {
  bk_exec_begin(&o->exec, &o->calls);
  if (!o->exec.preparing) BK_TRY(bk_model_settle_grads(o->model));
  BK_TRY(norm_and_clip(o));
  BK_TRY(update_blocks(o));
  return balance(o);
}

static bk_status optimizer_fill(bk_optimizer *o) {
  bk_model *m = o->model;
  BK_TRY(bk_exec_init(&o->exec, m->device, m->stream, m->options.plan_only));
  BK_TRY(run(o));
  return bk_exec_commit(&o->exec);
}

bk_status bk_optimizer_create(bk_model *model, const bk_optimizer_options *options, bk_optimizer **optimizer) {
  if (!model->options.trainable) return bk_fail(model->ctx, BK_ERR_ARGUMENT, "an optimiser needs a trainable model");
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

void bk_optimizer_destroy(bk_optimizer *o) {
  if (!o) return;
  bk_context *ctx = o->model->ctx;
  if (o->model->stream) o->model->stream->ops->sync(o->model->stream);
  bk_calls_fini(ctx, &o->calls);
  bk_exec_fini(&o->exec);
  bk_free(ctx, o);
}

bk_status bk_optimizer_step(bk_optimizer *o) {
  if (o->model->options.plan_only) return bk_fail(o->model->ctx, BK_ERR_ARGUMENT, "a model that was only planned cannot run");
  return run(o);
}

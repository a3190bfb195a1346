/* See birkhoff/verify.h: one training step on two models from the same weights and tokens, compared
 * tensor by tensor (doc/numerics.md, "Comparing"): expert choices, loss, logits, every
 * gradient, every weight's step. birkhoff-verify(1) states the bounds.
 *
 * nmse = sum (a - b)^2 / sum b^2, b on the reference device; for a gradient the denominator is
 * at least (1e-6 x the global norm)^2. Both devices store in the same dtype. How much rounding
 * on store alone moves a result depends on the weights (attention that is nearly uniform has
 * gradients that cancel, for one), so where the reference can, it also runs in fp64 from the
 * same weights, and a bound is a fixed part plus NOISE_FACTOR times what storing in the dtype
 * moved the reference. Positions at and after a flipped expert choice, or where fp64 chooses
 * otherwise, are left out: their targets are ignored, and since attention is causal nothing else
 * depends on them. The optimisers are compared on the same gradients, the device's: Adam's first
 * step is in essence a sign, which noise in a gradient that is zero in theory decides. */
#include <math.h>
#include <string.h>

#include "models/verify_priv.h"

#define TRIES 8 /* batches tried for one without a flip */
/* nmse; the device's own rounding errors are independent of the reference's */
#define NOISE_FACTOR 16
/* elements; one sample of the noise says little: the same tensor of other layers is asked too */
#define SMALL_TENSOR 64

/* Bounds on nmse (choice: on a difference of scores) before the noise is added and the option
 * `bounds` multiplies them; from choose_bounds. */
typedef struct bounds {
  double choice; /* margin of an allowed flip */
  double loss, logits, grad, step;
} bounds;

typedef struct verify_run {
  const bk_verify_options *options;
  bk_verify_row_fn each;
  void *user;
  bk_verify_result *result;
  bk_context *ctx;
  bk_model *exact_model; /* the reference in fp64; NULL where its device cannot */
  /* the device under test, the reference, and the reference in fp64, which has no model where there
   * is no exact_model */
  bk_verify_side side, ref, exact;
  bk_verify_batch batch;
  int64_t *clean, *clean_exact; /* [B] positions before a flip */
  int64_t n_clean;
  bk_verify_flips flips;
  bounds bounds;
  double global_norm; /* of the reference's gradients */
  double *noise;      /* [n_params] nmse of the reference's gradients against fp64 */
} verify_run;

/* The fixed parts. They grow with the number of sublayers; a step is measured against lr, so
 * that one unit in the last place of a weight of 1 is (6e-8 / 1e-3)^2. */
static bounds choose_bounds(const bk_model *m) {
  double depth = 2.0 * (double)m->config.num_hidden_layers;
  if (m->dtype == BK_BF16)
    return (bounds){
        .choice = 8e-3, .loss = 1e-7 * depth, .logits = 5e-6, .grad = 5e-6, .step = 4e-9};
  return (bounds){.choice = 1e-6,
                  .loss = 1e-13 * depth,
                  .logits = 1e-11 * depth,
                  .grad = 1e-9 * depth,
                  .step = 4e-9};
}

/* ---- rows ---- */

/* Counts the result and hands it to the caller, whose status ends the comparison. */
static bk_status give_row(verify_run *r, bk_verify_row row) {
  r->result->rows++;
  r->result->failed += !row.pass;
  return r->each ? r->each(r->user, &row) : BK_OK;
}

/* The row is named prefix + name. `judged` is the share of the elements that was compared. */
static bk_status add_row(verify_run *r, const char *prefix, const char *name, double nmse,
                         double max_abs, double bound, double judged) {
  char *whole = bk_format(r->ctx, "%s%s", prefix, name);
  if (!whole) return BK_ERR_MEMORY;
  bound *= r->options->bounds;
  /* pass: false for NaN */
  bk_status status =
      give_row(r, (bk_verify_row){whole, nmse, max_abs, bound, judged, nmse <= bound});
  bk_free(r->ctx, whole);
  return status;
}

static double norm2(const double *x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
  return sum;
}

/* Two results that are equal agree, even if both are zero. */
static double ratio(double error, double size) { return error == 0 ? 0 : error / size; }

/* Sums over elements: squares of differences, squares of the reference's values, and the largest
 * difference. */
typedef struct error_sum {
  double error, size, max_abs;
} error_sum;

static void add_error(error_sum *e, double a, double b) {
  double d = fabs(a - b);
  e->error += d * d;
  e->size += b * b;
  if (!(d <= e->max_abs)) e->max_abs = d; /* NaN shows */
}

/* The row says the share of choices that flipped. A model without experts has no such row. */
static bk_status compare_choices_row(verify_run *r) {
  const bk_verify_flips *f = &r->flips;
  r->result->choices = f->choices;
  r->result->flips = f->flips;
  r->result->forbidden = f->forbidden;
  r->result->worst_margin = f->worst_margin;
  if (!f->choices) return BK_OK;
  return give_row(r, (bk_verify_row){"choices", (double)f->flips / (double)f->choices,
                                     f->worst_margin, r->bounds.choice, 1, f->forbidden == 0});
}

/* Only clean positions are compared, and all V logits of each. b is what a is measured by. */
static double logits_error(const verify_run *r, const bk_verify_side *a, const bk_verify_side *b,
                           double *max_abs) {
  int64_t V = r->ref.model->config.vocab_size, T = r->batch.seq_len;
  error_sum e = {0};
  for (int64_t n = 0; n < r->batch.batch; n++)
    for (int64_t i = n * T * V; i < (n * T + r->clean[n]) * V; i++)
      add_error(&e, a->logits[i], b->logits[i]);
  *max_abs = e.max_abs;
  return ratio(e.error, e.size);
}

/* The noise is measured in the same way: the reference in its dtype against itself in fp64. */
static bk_status compare_logits(verify_run *r) {
  double max_abs, unused, noise = r->exact.model ? logits_error(r, &r->ref, &r->exact, &unused) : 0;
  double nmse = logits_error(r, &r->side, &r->ref, &max_abs),
         tokens = (double)(r->batch.batch * r->batch.seq_len);
  return add_row(r, "", "logits", nmse, max_abs, r->bounds.logits + NOISE_FACTOR * noise,
                 (double)r->n_clean / tokens);
}

static int64_t count_of(const verify_run *r, int i) {
  bk_tensor w = bk_param_weight(r->ref.model, &r->ref.model->params[i]);
  return bk_tensor_count(&w);
}

/* A gradient that is zero in theory has no size of its own to be measured by, so that a millionth
 * of the global norm is the least. */
static double gradient_error(const verify_run *r, const bk_verify_side *a, const bk_verify_side *b,
                             int i, double *max_abs) {
  double size = fmax(sqrt(norm2(b->grad[i], count_of(r, i))), 1e-6 * r->global_norm);
  error_sum e = {0};
  for (int64_t j = 0; j < count_of(r, i); j++) add_error(&e, a->grad[i][j], b->grad[i][j]);
  *max_abs = e.max_abs;
  return ratio(e.error, size * size);
}

/* What follows "model.layers.N." */
static const char *leaf(const char *name) {
  static const char prefix[] = "model.layers.";
  if (strncmp(name, prefix, sizeof prefix - 1) != 0) return name;
  const char *dot = strchr(name + sizeof prefix - 1, '.');
  return dot ? dot + 1 : name;
}

/* Without an fp64 side all noise is 0, and the fixed bounds stand alone. */
static void measure_noise(verify_run *r) {
  double unused;
  for (int i = 0; i < r->ref.model->n_params && r->exact.model; i++)
    r->noise[i] = gradient_error(r, &r->ref, &r->exact, i, &unused);
}

/* A small tensor takes the largest noise of those with the same name in all layers. */
static double noise_of(const verify_run *r, int i) {
  const bk_model *m = r->ref.model;
  double noise = r->noise[i];
  for (int j = 0; j < m->n_params && count_of(r, i) <= SMALL_TENSOR; j++)
    if (strcmp(leaf(m->params[i].name), leaf(m->params[j].name)) == 0)
      noise = fmax(noise, r->noise[j]);
  return noise;
}

/* The bias of a router has no gradient and no row. */
static bk_status compare_gradient(verify_run *r, int i) {
  const bk_param *p = &r->ref.model->params[i];
  double max_abs, nmse;
  if (!bk_param_trainable(r->ref.model, p)) return BK_OK;
  nmse = gradient_error(r, &r->side, &r->ref, i, &max_abs);
  return add_row(r, "grad.", p->name, nmse, max_abs, r->bounds.grad + NOISE_FACTOR * noise_of(r, i),
                 1);
}

/* A step is the weight after the update less the weight before it, on each side. */
static bk_status compare_step(verify_run *r, int i) {
  const bk_param *p = &r->ref.model->params[i];
  error_sum e = {0};
  /* the balancing rule saw other loads */
  if (!bk_param_trainable(r->ref.model, p) && r->flips.flips) return BK_OK;
  for (int64_t j = 0; j < count_of(r, i); j++)
    add_error(&e, r->side.after[i][j] - r->side.before[i][j],
              r->ref.after[i][j] - r->ref.before[i][j]);
  return add_row(r, "step.", p->name, ratio(e.error, e.size), e.max_abs, r->bounds.step, 1);
}

/* Loss, then gradients, then steps. The loss is one number: its nmse is the square of its relative
 * error. */
static bk_status compare_training(verify_run *r) {
  double loss_error = (r->side.loss - r->ref.loss) / r->ref.loss, sum = 0;
  for (int i = 0; i < r->ref.model->n_params; i++) sum += norm2(r->ref.grad[i], count_of(r, i));
  r->global_norm = sqrt(sum);
  measure_noise(r);
  BK_TRY(add_row(r, "", "loss", loss_error * loss_error, fabs(r->side.loss - r->ref.loss),
                 r->bounds.loss, 1));
  for (int i = 0; i < r->ref.model->n_params; i++) BK_TRY(compare_gradient(r, i));
  for (int i = 0; i < r->ref.model->n_params; i++) BK_TRY(compare_step(r, i));
  return BK_OK;
}

/* ---- the batch ---- */

/* Of one configuration, key by key: what differs in no shape differs in results all the same. */
static bk_status check_alike(bk_context *ctx, const bk_model *a, const bk_model *b) {
  char x[64], y[64];
  if (a == b)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "verify: a model cannot be compared with itself");
  for (const bk_option *o = bk_model_keys; o->name; o++) {
    bk_option_value_text(o, &a->config, x, sizeof x);
    bk_option_value_text(o, &b->config, y, sizeof y);
    if (strcmp(x, y) != 0)
      return bk_fail(ctx, BK_ERR_ARGUMENT,
                     "verify: the two models are of different configurations: %s is %s and %s",
                     o->name, x, y);
  }
  if (a->dtype == b->dtype) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "verify: one model is in %s and the other in %s",
                 bk_dtype_name(a->dtype), bk_dtype_name(b->dtype));
}

/* seq_len 0 takes 48, or what the model can take. The first token of a sequence predicts the
 * second, so that there must be two. */
static bk_status check_batch(const bk_model *m, bk_verify_batch *b) {
  int64_t longest = m->config.max_position_embeddings;
  BK_TRY(bk_model_check_pass(m, "verify", b->seq_len));
  if (!b->seq_len) b->seq_len = longest < 48 ? longest : 48;
  if (b->seq_len < 2)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT,
                   "verify: sequences of %lld tokens: fewer than 2 predict nothing",
                   (long long)b->seq_len);
  if (b->batch >= 1 && b->batch <= INT32_MAX / b->seq_len) return BK_OK;
  return bk_fail(m->ctx, BK_ERR_ARGUMENT, "verify: %lld sequences of %lld tokens",
                 (long long)b->batch, (long long)b->seq_len);
}

void bk_verify_options_default(bk_verify_options *options) {
  *options = (bk_verify_options){.batch = 2, .seed = 1, .bounds = 1};
}

/* The batch's arrays are made here and filled later: bk_verify_batch_fill. */
bk_status bk_verify_begin(bk_model *model, bk_model *reference, const bk_verify_options *options,
                          bk_verify_setting *setting, bk_verify_batch *batch) {
  bk_context *ctx = reference->ctx;
  *batch = (bk_verify_batch){.batch = options->batch, .seq_len = options->seq_len};
  if (!(options->bounds >= 0) || options->seed < 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "verify: neither bounds nor seed may be negative");
  BK_TRY(check_alike(ctx, model, reference));
  BK_TRY(check_batch(model, batch));
  BK_TRY(check_batch(reference, batch));
  *setting = (bk_verify_setting){model->device->backend->name, reference->device->backend->name,
                                 reference->dtype, batch->batch, batch->seq_len};
  size_t n = (size_t)(batch->batch * batch->seq_len);
  batch->ids = bk_alloc_array(ctx, n, sizeof *batch->ids);
  batch->targets = bk_alloc_array(ctx, n, sizeof *batch->targets);
  return batch->ids && batch->targets ? BK_OK : BK_ERR_MEMORY;
}

/* The attempt is the random stream, so that another attempt has other tokens from the same seed. */
void bk_verify_batch_fill(bk_verify_batch *b, uint64_t seed, uint64_t attempt, int64_t vocab) {
  int64_t n = b->batch * b->seq_len;
  for (int64_t i = 0; i < n; i++)
    b->ids[i] = (int32_t)(bk_uniform(seed, attempt, (uint64_t)i) * (double)vocab);
  for (int64_t i = 0; i < n; i++) b->targets[i] = (i + 1) % b->seq_len ? b->ids[i + 1] : -100;
  b->kept = b->batch * (b->seq_len - 1);
}

void bk_verify_batch_free(bk_context *ctx, bk_verify_batch *b) {
  bk_free(ctx, b->targets);
  bk_free(ctx, b->ids);
}

/* ---- the sides ---- */

/* The reference in fp64, from the weights as they are stored. */
static bk_status make_exact(verify_run *r) {
  const bk_model *from = r->ref.model;
  bk_device *device = from->device;
  bk_model_options options = {.trainable = true};
  if (from->dtype == BK_F64 || !(device->props.storage_dtypes & BK_DT(BK_F64))) return BK_OK;
  BK_TRY(bk_model_create(device, &from->config, BK_F64, &options, &r->exact_model));
  for (int i = 0; i < from->n_params; i++) {
    bk_tensor src = bk_param_weight(from, &from->params[i]),
              dst = bk_param_weight(r->exact_model, &r->exact_model->params[i]);
    double *values = bk_alloc_array(r->ctx, (size_t)bk_tensor_count(&src), sizeof *values);
    bk_status status = values ? bk_tensor_read_f64(from->stream, &src, values) : BK_ERR_MEMORY;
    if (status == BK_OK) status = bk_tensor_write_f64(r->exact_model->stream, &dst, values);
    bk_free(r->ctx, values);
    BK_TRY(status);
  }
  BK_TRY(bk_verify_side_init(&r->exact, r->exact_model, &r->batch));
  return bk_verify_side_keep(&r->exact, &r->batch);
}

/* What is made here is freed by `finish`, also after a failure. */
static bk_status prepare(verify_run *r, bk_model *model, bk_model *reference) {
  BK_TRY(bk_verify_begin(model, reference, r->options, &r->result->setting, &r->batch));
  r->clean = bk_alloc_array(r->ctx, (size_t)r->batch.batch, sizeof *r->clean);
  r->clean_exact = bk_alloc_array(r->ctx, (size_t)r->batch.batch, sizeof *r->clean_exact);
  r->noise = bk_alloc_array(r->ctx, (size_t)reference->n_params, sizeof *r->noise);
  if (!r->clean || !r->clean_exact || !r->noise) return BK_ERR_MEMORY;
  BK_TRY(bk_verify_side_init(&r->side, model, &r->batch));
  BK_TRY(bk_verify_side_init(&r->ref, reference, &r->batch));
  BK_TRY(bk_verify_side_keep(&r->side, &r->batch));
  BK_TRY(bk_verify_side_keep(&r->ref, &r->batch));
  r->bounds = choose_bounds(reference);
  return make_exact(r);
}

/* All sides run the same batch, and each begins a step of its own. */
static bk_status forward_all(verify_run *r) {
  BK_TRY(bk_verify_side_forward(&r->ref, &r->batch));
  BK_TRY(bk_verify_side_forward(&r->side, &r->batch));
  return r->exact.model ? bk_verify_side_forward(&r->exact, &r->batch) : BK_OK;
}

/* One batch: flips of the device; clean positions, where fp64 agrees too. */
static bk_status attempt(verify_run *r, int number) {
  bk_verify_flips unused;
  bk_verify_batch_fill(&r->batch, (uint64_t)r->options->seed, (uint64_t)number,
                       r->ref.model->config.vocab_size);
  BK_TRY(forward_all(r));
  BK_TRY(bk_verify_choices(&r->side, &r->ref, &r->batch, r->bounds.choice, r->clean, &r->flips));
  if (r->exact.model)
    BK_TRY(bk_verify_choices(&r->exact, &r->ref, &r->batch, r->bounds.choice, r->clean_exact,
                             &unused));
  r->n_clean = 0;
  for (int64_t b = 0; b < r->batch.batch; b++) {
    if (r->exact.model && r->clean_exact[b] < r->clean[b]) r->clean[b] = r->clean_exact[b];
    r->n_clean += r->clean[b];
  }
  return BK_OK;
}

/* A batch without flips, or the best of TRIES; a forbidden flip is kept as the result. */
static bk_status find_batch(verify_run *r) {
  int64_t best_clean = -1;
  int best = 0, last = 0;
  for (int i = 0; i < TRIES; i++) {
    BK_TRY(attempt(r, last = i));
    if (r->n_clean > best_clean) best_clean = r->n_clean, best = i;
    if (r->n_clean == r->batch.batch * r->batch.seq_len || r->flips.forbidden) return BK_OK;
  }
  return best == last ? BK_OK : attempt(r, best);
}

/* Targets from the first flip on are ignored; the forward pass has to see that before the
 * backward does. */
static bk_status mask_targets(verify_run *r) {
  bk_verify_batch *b = &r->batch;
  if (r->n_clean == b->batch * b->seq_len) return BK_OK;
  for (int64_t i = 0; i < b->batch * b->seq_len; i++)
    if (i % b->seq_len >= r->clean[i / b->seq_len]) b->targets[i] = -100;
  b->kept = 0;
  for (int64_t i = 0; i < b->batch * b->seq_len; i++) b->kept += b->targets[i] >= 0;
  return b->kept ? forward_all(r) : BK_OK;
}

/* A forbidden flip ends the comparison after the logits: what follows would differ because of
 * it. */
static bk_status verify(verify_run *r) {
  BK_TRY(find_batch(r));
  BK_TRY(mask_targets(r));
  BK_TRY(compare_choices_row(r));
  BK_TRY(compare_logits(r));
  if (r->flips.forbidden) return BK_OK;
  if (!r->batch.kept)
    return bk_fail(
        r->ctx, BK_ERR_BOUNDS,
        "verify: expert choices differ at the first position of every sequence of %d batches",
        TRIES);
  BK_TRY(bk_verify_side_backward(&r->ref));
  BK_TRY(bk_verify_side_backward(&r->side));
  if (r->exact.model) BK_TRY(bk_verify_side_backward(&r->exact));
  BK_TRY(bk_verify_side_step(&r->side, &r->batch, NULL));
  BK_TRY(bk_verify_side_step(&r->ref, &r->batch, r->side.grad));
  return compare_training(r);
}

static void finish(verify_run *r) {
  bk_free(r->ctx, r->noise);
  bk_free(r->ctx, r->clean_exact);
  bk_free(r->ctx, r->clean);
  bk_verify_batch_free(r->ctx, &r->batch);
  bk_verify_side_fini(&r->side);
  bk_verify_side_fini(&r->ref);
  bk_verify_side_fini(&r->exact);
  bk_model_destroy(r->exact_model);
}

bk_status bk_verify(bk_model *model, bk_model *reference, const bk_verify_options *options,
                    bk_verify_row_fn each, void *user, bk_verify_result *result) {
  bk_verify_options defaults;
  bk_verify_result found = {0};
  bk_verify_options_default(&defaults);
  verify_run r = {.options = options ? options : &defaults,
                  .each = each,
                  .user = user,
                  .result = &found,
                  .ctx = reference->ctx};
  bk_status status = prepare(&r, model, reference);
  if (status == BK_OK) status = verify(&r);
  finish(&r);
  if (status == BK_OK && result) *result = found;
  return status;
}

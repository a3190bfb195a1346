/* birkhoff verify: one training step on two devices from the same weights and tokens, compared
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
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/verify.h"

#define TRIES 8 /* batches tried for one without a flip */
/* nmse; the device's own rounding errors are independent of the reference's */
#define NOISE_FACTOR 16
/* elements; one sample of the noise says little: the same tensor of other layers is asked too */
#define SMALL_TENSOR 64

typedef struct bounds {
  double choice; /* margin of an allowed flip */
  double loss, logits, grad, step;
} bounds;

typedef struct verify_row {
  char *name;
  double nmse, max_abs, bound;
  double judged; /* share of the elements */
  bool pass;
} verify_row;

typedef struct verify_run {
  cli_session *s;
  bk_device *ref_device;
  verify_side side, ref, exact; /* exact: the reference in fp64; no model where the device cannot */
  verify_batch batch;
  int64_t *clean, *clean_exact; /* [B] positions before a flip */
  int64_t n_clean;
  verify_flips flips;
  bounds bounds;
  double global_norm; /* of the reference's gradients */
  double scale;       /* --bounds */
  double *noise;      /* [n_params] nmse of the reference's gradients against fp64 */
  verify_row *rows;
  size_t n_rows, capacity, failed;
  int64_t seed;
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

static bk_status add_row(verify_run *r, const char *prefix, const char *name, double nmse,
                         double max_abs, double bound, double judged) {
  BK_TRY(bk_grow(r->s->ctx, (void **)&r->rows, &r->capacity, r->n_rows + 1, sizeof *r->rows));
  char *whole = bk_format(r->s->ctx, "%s%s", prefix, name);
  if (!whole) return BK_ERR_MEMORY;
  bound *= r->scale;
  bool pass = nmse <= bound; /* false for NaN */
  r->rows[r->n_rows++] = (verify_row){whole, nmse, max_abs, bound, judged, pass};
  r->failed += !pass;
  return BK_OK;
}

static double norm2(const double *x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
  return sum;
}

static double ratio(double error, double size) { return error == 0 ? 0 : error / size; }

typedef struct error_sum {
  double error, size, max_abs;
} error_sum;

static void add_error(error_sum *e, double a, double b) {
  double d = fabs(a - b);
  e->error += d * d;
  e->size += b * b;
  if (!(d <= e->max_abs)) e->max_abs = d; /* NaN shows */
}

static bk_status compare_choices_row(verify_run *r) {
  if (!r->flips.choices) return BK_OK;
  BK_TRY(bk_grow(r->s->ctx, (void **)&r->rows, &r->capacity, r->n_rows + 1, sizeof *r->rows));
  char *name = bk_strdup(r->s->ctx, "choices");
  if (!name) return BK_ERR_MEMORY;
  bool pass = r->flips.forbidden == 0;
  r->rows[r->n_rows++] = (verify_row){name,
                                      (double)r->flips.flips / (double)r->flips.choices,
                                      r->flips.worst_margin,
                                      r->bounds.choice,
                                      1,
                                      pass};
  r->failed += !pass;
  return BK_OK;
}

static double logits_error(const verify_run *r, const verify_side *a, const verify_side *b,
                           double *max_abs) {
  int64_t V = r->ref.model->config.vocab_size, T = r->batch.seq_len;
  error_sum e = {0};
  for (int64_t n = 0; n < r->batch.batch; n++)
    for (int64_t i = n * T * V; i < (n * T + r->clean[n]) * V; i++)
      add_error(&e, a->logits[i], b->logits[i]);
  *max_abs = e.max_abs;
  return ratio(e.error, e.size);
}

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

static double gradient_error(const verify_run *r, const verify_side *a, const verify_side *b, int i,
                             double *max_abs) {
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

static void measure_noise(verify_run *r) {
  double unused;
  for (int i = 0; i < r->ref.model->n_params && r->exact.model; i++)
    r->noise[i] = gradient_error(r, &r->ref, &r->exact, i, &unused);
}

static double noise_of(const verify_run *r, int i) {
  const bk_model *m = r->ref.model;
  double noise = r->noise[i];
  for (int j = 0; j < m->n_params && count_of(r, i) <= SMALL_TENSOR; j++)
    if (strcmp(leaf(m->params[i].name), leaf(m->params[j].name)) == 0)
      noise = fmax(noise, r->noise[j]);
  return noise;
}

static bk_status compare_gradient(verify_run *r, int i) {
  const bk_param *p = &r->ref.model->params[i];
  double max_abs, nmse;
  if (!bk_param_trainable(r->ref.model, p)) return BK_OK;
  nmse = gradient_error(r, &r->side, &r->ref, i, &max_abs);
  return add_row(r, "grad.", p->name, nmse, max_abs, r->bounds.grad + NOISE_FACTOR * noise_of(r, i),
                 1);
}

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

/* ---- the sides ---- */

static bk_status load(cli_session *s, bk_device *device, bk_model **model) {
  const char *name = s->args.words[0];
  bk_model_options options = {.trainable = true};
  bk_device *own = s->device;
  bk_status status;
  s->device = device; /* cli_load_model and cli_dtype look there */
  if (bk_path_is_dir(s->ctx, name)) {
    status = cli_load_model(s, name, &options, model, NULL);
  } else {
    bk_model_config config;
    bk_train_config recipe;
    bk_dtype dtype = BK_F32;
    bk_model *made = NULL;
    status = cli_dtype(s, &dtype);
    if (status == BK_OK) status = cli_model_config(s, name, &config, &recipe);
    if (status == BK_OK) status = bk_model_create(device, &config, dtype, &options, &made);
    if (status == BK_OK) status = bk_model_init(made, recipe.seed);
    if (status == BK_OK) *model = made;
    else bk_model_destroy(made);
  }
  s->device = own;
  return status;
}

static bk_status make_batch(verify_run *r, const bk_model_config *c) {
  verify_batch *b = &r->batch;
  if (b->seq_len > c->max_position_embeddings)
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                   "--seq-len %lld: the model takes at most %lld (max_position_embeddings)",
                   (long long)b->seq_len, (long long)c->max_position_embeddings);
  if (!b->seq_len) b->seq_len = c->max_position_embeddings < 48 ? c->max_position_embeddings : 48;
  if (b->seq_len < 2)
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT, "verify: a sequence of one token predicts nothing");
  size_t n = (size_t)(b->batch * b->seq_len);
  b->ids = bk_alloc_array(r->s->ctx, n, sizeof *b->ids);
  b->targets = bk_alloc_array(r->s->ctx, n, sizeof *b->targets);
  r->clean = bk_alloc_array(r->s->ctx, (size_t)b->batch, sizeof *r->clean);
  r->clean_exact = bk_alloc_array(r->s->ctx, (size_t)b->batch, sizeof *r->clean_exact);
  return b->ids && b->targets && r->clean && r->clean_exact ? BK_OK : BK_ERR_MEMORY;
}

static void fill_batch(verify_run *r, int attempt) {
  verify_batch *b = &r->batch;
  int64_t n = b->batch * b->seq_len, vocab = r->ref.model->config.vocab_size;
  for (int64_t i = 0; i < n; i++)
    b->ids[i] =
        (int32_t)(bk_uniform((uint64_t)r->seed, (uint64_t)attempt, (uint64_t)i) * (double)vocab);
  for (int64_t i = 0; i < n; i++) b->targets[i] = (i + 1) % b->seq_len ? b->ids[i + 1] : -100;
  b->kept = b->batch * (b->seq_len - 1);
}

/* The reference in fp64, from the weights as they are stored. */
static bk_status make_exact(verify_run *r) {
  const bk_model *from = r->ref.model;
  bk_model_options options = {.trainable = true};
  if (from->dtype == BK_F64 || !(r->ref_device->props.storage_dtypes & BK_DT(BK_F64))) return BK_OK;
  BK_TRY(bk_model_create(r->ref_device, &from->config, BK_F64, &options, &r->exact.model));
  for (int i = 0; i < from->n_params; i++) {
    bk_tensor src = bk_param_weight(from, &from->params[i]),
              dst = bk_param_weight(r->exact.model, &r->exact.model->params[i]);
    double *values = bk_alloc_array(r->s->ctx, (size_t)bk_tensor_count(&src), sizeof *values);
    bk_status status = values ? bk_tensor_read_f64(from->stream, &src, values) : BK_ERR_MEMORY;
    if (status == BK_OK) status = bk_tensor_write_f64(r->exact.model->stream, &dst, values);
    bk_free(r->s->ctx, values);
    BK_TRY(status);
  }
  return verify_side_init(&r->exact, r->exact.model, &r->batch);
}

static bk_status prepare(verify_run *r) {
  cli_session *s = r->s;
  const char *against = cli_value(&s->args, "against");
  BK_TRY(cli_open_device(s));
  BK_TRY(cli_open_named(s, against ? against : "ref", &r->ref_device));
  BK_TRY(load(s, s->device, &r->side.model));
  BK_TRY(load(s, r->ref_device, &r->ref.model));
  BK_TRY(make_batch(r, &r->ref.model->config));
  BK_TRY(verify_side_init(&r->side, r->side.model, &r->batch));
  BK_TRY(verify_side_init(&r->ref, r->ref.model, &r->batch));
  r->noise = bk_alloc_array(s->ctx, (size_t)r->ref.model->n_params, sizeof *r->noise);
  if (!r->noise) return BK_ERR_MEMORY;
  r->bounds = choose_bounds(r->ref.model);
  return make_exact(r);
}

static bk_status forward_all(verify_run *r) {
  BK_TRY(verify_side_forward(&r->ref, &r->batch));
  BK_TRY(verify_side_forward(&r->side, &r->batch));
  return r->exact.model ? verify_side_forward(&r->exact, &r->batch) : BK_OK;
}

/* One batch: flips of the device; clean positions, where fp64 agrees too. */
static bk_status attempt(verify_run *r, int number) {
  verify_flips unused;
  fill_batch(r, number);
  BK_TRY(forward_all(r));
  BK_TRY(
      verify_compare_choices(&r->side, &r->ref, &r->batch, r->bounds.choice, r->clean, &r->flips));
  if (r->exact.model)
    BK_TRY(verify_compare_choices(&r->exact, &r->ref, &r->batch, r->bounds.choice, r->clean_exact,
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
  verify_batch *b = &r->batch;
  if (r->n_clean == b->batch * b->seq_len) return BK_OK;
  for (int64_t i = 0; i < b->batch * b->seq_len; i++)
    if (i % b->seq_len >= r->clean[i / b->seq_len]) b->targets[i] = -100;
  b->kept = 0;
  for (int64_t i = 0; i < b->batch * b->seq_len; i++) b->kept += b->targets[i] >= 0;
  return b->kept ? forward_all(r) : BK_OK;
}

static bk_status verify(verify_run *r) {
  BK_TRY(find_batch(r));
  BK_TRY(mask_targets(r));
  BK_TRY(compare_choices_row(r));
  BK_TRY(compare_logits(r));
  if (r->flips.forbidden) return BK_OK;
  if (!r->batch.kept)
    return bk_fail(
        r->s->ctx, BK_ERR_BOUNDS,
        "verify: expert choices differ at the first position of every sequence of %d batches",
        TRIES);
  BK_TRY(verify_side_backward(&r->ref));
  BK_TRY(verify_side_backward(&r->side));
  if (r->exact.model) BK_TRY(verify_side_backward(&r->exact));
  BK_TRY(verify_side_step(&r->side, &r->batch, NULL));
  BK_TRY(verify_side_step(&r->ref, &r->batch, r->side.grad));
  return compare_training(r);
}

/* ---- results ---- */

static bk_status print_json(verify_run *r) {
  json_t *list = json_array();
  for (size_t i = 0; i < r->n_rows; i++) {
    const verify_row *row = &r->rows[i];
    json_array_append_new(
        list, json_pack("{s:s,s:o,s:o,s:o,s:b,s:f}", "tensor", row->name, "nmse",
                        cli_number(row->nmse), "max_abs", cli_number(row->max_abs), "bound",
                        cli_number(row->bound), "pass", row->pass, "judged", row->judged));
  }
  return cli_print_json(r->s, list);
}

static bk_status print_text(verify_run *r) {
  const char *against = cli_value(&r->s->args, "against");
  int width = 6;
  for (size_t i = 0; i < r->n_rows; i++)
    width = (int)strlen(r->rows[i].name) > width ? (int)strlen(r->rows[i].name) : width;
  printf("%s on %s against %s, %s, %lld sequences of %lld tokens\n", r->s->args.words[0],
         r->s->device->backend->name, against ? against : "ref", bk_dtype_name(r->ref.model->dtype),
         (long long)r->batch.batch, (long long)r->batch.seq_len);
  printf("%-*s %10s %10s %10s %7s\n", width, "tensor", "nmse", "max abs", "bound", "judged");
  for (size_t i = 0; i < r->n_rows; i++) {
    const verify_row *row = &r->rows[i];
    printf("%-*s %10.2e %10.2e %10.2e %6.1f%% %s\n", width, row->name, row->nmse, row->max_abs,
           row->bound, 100 * row->judged, row->pass ? "ok" : "FAIL");
  }
  printf("%zu of %zu within their bounds\n", r->n_rows - r->failed, r->n_rows);
  return cli_flush_stdout(r->s);
}

static void finish(verify_run *r) {
  bk_context *ctx = r->s->ctx;
  for (size_t i = 0; i < r->n_rows; i++) bk_free(ctx, r->rows[i].name);
  bk_free(ctx, r->rows);
  bk_free(ctx, r->noise);
  bk_free(ctx, r->clean_exact);
  bk_free(ctx, r->clean);
  bk_free(ctx, r->batch.targets);
  bk_free(ctx, r->batch.ids);
  verify_side_free(&r->side);
  verify_side_free(&r->ref);
  verify_side_free(&r->exact);
  bk_device_close(r->ref_device);
}

static bk_status run(cli_session *s) {
  verify_run r = {.s = s, .batch = {.batch = 2}, .seed = 1, .scale = 1};
  if (!cli_given(&s->args, "device"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "verify: --device NAME is needed");
  BK_TRY(cli_int(s, "batch-size", 1, 1 << 20, &r.batch.batch));
  BK_TRY(cli_int(s, "seq-len", 2, 1 << 24, &r.batch.seq_len));
  BK_TRY(cli_int(s, "seed", 0, INT64_MAX, &r.seed));
  BK_TRY(cli_double(s, "bounds", 0, 1e12, &r.scale));
  bk_status status = prepare(&r);
  if (status == BK_OK) status = verify(&r);
  if (status == BK_OK) status = s->json ? print_json(&r) : print_text(&r);
  if (status == BK_OK && r.failed)
    status = bk_fail(s->ctx, BK_ERR_BOUNDS, "verify: %zu of %zu results are past their bounds",
                     r.failed, r.n_rows);
  finish(&r);
  return status;
}

static const cli_option options[] = {
    {"against", CLI_ONE, "NAME", "the device to trust (default: ref)"},
    {"batch-size", CLI_ONE, "N", "sequences (default: 2)"},
    {"seq-len", CLI_ONE, "N", "tokens per sequence (default: 48)"},
    {"seed", CLI_ONE, "N", "of the tokens (default: 1)"},
    {"bounds", CLI_ONE, "X", "multiply the bounds by X (default: 1)"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_verify = {
    "verify",
    "CKPT|PRESET --device NAME [--against NAME] [OPTIONS]",
    "Compares a training step on a device with the same step on another.",
    options,
    1,
    1,
    run};

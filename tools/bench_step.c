/* birkhoff bench step: tokens per second of a training step (forward, backward, optimiser) on
 * made-up tokens, as a share of the measured GEMM rate, and its memory; with --compare the same
 * model with another residual connection, one step of each in turn, so that both see the same
 * machine, or with --apart one after the other, where two do not fit. */
#include <birkhoff/bench.h>
#include <birkhoff/profile.h>
#include <birkhoff/train.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"

#define MAX_STEPS 4096

enum { FORWARD, BACKWARD, OPTIMIZER, STEP, PHASES };

typedef struct contender {
  bk_model_config config;
  bk_model *model;
  bk_trainer *trainer;
  bk_model_counts counts;
  double *times[PHASES]; /* [MAX_STEPS] */
  double median[PHASES];
  int steps;
  bk_stage_costs *parts; /* bk_profile_part's; NULL: not asked for */
  /* by its arenas; by the device, or on a host by the context, from before to after the first
   * steps */
  double bytes_planned, bytes_used;
} contender;

typedef struct step_bench {
  cli_session *s;
  bk_train_config recipe; /* micro_batch_size and seq_len are those of --batch-size, --seq-len */
  bk_dtype dtype;
  double seconds;
  bool apart;
  uint32_t *tokens; /* of a batch and one more */
  bk_dataset *data; /* those */
  contender sides[2];
  int n_sides;
  double roof;         /* flops per second */
  bk_profile *profile; /* NULL: none asked for */
} step_bench;

/* ---- set-up ---- */

static bk_status parse_residual(cli_session *s, const char *text, int *kind) {
  bk_model_config c = {0};
  char *assignment = bk_format(s->ctx, "residual=%s", text);
  bk_status status = assignment ? bk_config_set(s->ctx, &c, NULL, assignment) : BK_ERR_MEMORY;
  bk_free(s->ctx, assignment);
  if (status == BK_OK) *kind = c.residual;
  return status;
}

/* A step that is timed is one micro-batch. One that is listed is the recipe's, where --batch-size
 * does not make a step of its own. */
static bk_status read_sizes(step_bench *b) {
  cli_session *s = b->s;
  bk_train_config *r = &b->recipe;
  int64_t longest = b->sides[0].config.max_position_embeddings, all;
  if (!r->micro_batch_size) r->micro_batch_size = r->batch_size;
  BK_TRY(cli_int(s, "batch-size", 1, 1 << 24, &r->micro_batch_size));
  BK_TRY(cli_int(s, "seq-len", 2, 1 << 24, &r->seq_len));
  if (r->seq_len > longest)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--seq-len %lld: the model takes at most %lld (max_position_embeddings)",
                   (long long)r->seq_len, (long long)longest);
  all = r->batch_size / r->micro_batch_size;
  if (all < 1 || cli_given(&s->args, "batch-size") || !cli_given(&s->args, "program")) all = 1;
  r->batch_size = all * r->micro_batch_size;
  /* Steps and nothing else, at a rate so small that the weights hardly move, however many steps
   * are taken. */
  r->gain_every = r->eval_every = 0;
  r->spike_factor = 0;
  r->lr *= 1e-3;
  return BK_OK;
}

static bk_status read_options(step_bench *b) {
  cli_session *s = b->s;
  const char *name = cli_value(&s->args, "model"), *compare = cli_value(&s->args, "compare");
  if (!name)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "bench step: --model PRESET|FILE|DIR is needed");
  b->apart = cli_given(&s->args, "apart");
  if (b->apart && !compare)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "bench step: --apart goes with --compare");
  if (compare && cli_given(&s->args, "profile"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "bench step: --profile slows a step down and does not go with --compare");
  const char *timing[] = {"compare", "profile", "seconds"};
  for (size_t i = 0; cli_given(&s->args, "program") && i < BK_COUNT(timing); i++)
    if (cli_given(&s->args, timing[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                     "bench step: --program times nothing and does not go with --%s", timing[i]);
  BK_TRY(cli_dtype(s, &b->dtype));
  BK_TRY(cli_model_config(s, name, &b->sides[0].config, &b->recipe));
  BK_TRY(read_sizes(b));
  BK_TRY(cli_double(s, "seconds", 0, 86400, &b->seconds));
  b->n_sides = compare ? 2 : 1;
  if (!compare) return BK_OK;
  b->sides[1].config = b->sides[0].config;
  BK_TRY(parse_residual(s, compare, &b->sides[1].config.residual));
  return bk_model_config_validate(s->ctx, &b->sides[1].config);
}

static int64_t batch_tokens(const step_bench *b) {
  return b->recipe.micro_batch_size * b->recipe.seq_len;
}

/* An xorshift generator: any tokens do, as long as they are the same in every run. */
static bk_status make_tokens(step_bench *b) {
  int64_t n = batch_tokens(b) + 1, vocabulary = b->sides[0].config.vocab_size;
  uint64_t state = 88172645463325252u;
  b->tokens = bk_alloc_array(b->s->ctx, (size_t)n, sizeof *b->tokens);
  if (!b->tokens) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    b->tokens[i] = (uint32_t)((state >> 32) % (uint64_t)vocabulary);
  }
  return bk_dataset_from_tokens(b->s->ctx, b->tokens, n, (int)sizeof *b->tokens, vocabulary,
                                &b->data);
}

static bk_status make_side(step_bench *b, contender *c) {
  bk_model_options model = {.trainable = true};
  bk_model_count(&c->config, b->recipe.seq_len, &c->counts);
  for (int p = 0; p < PHASES; p++)
    if (!(c->times[p] = bk_alloc_array(b->s->ctx, MAX_STEPS, sizeof *c->times[p])))
      return BK_ERR_MEMORY;
  BK_TRY(bk_model_create(b->s->device, &c->config, b->dtype, &model, &c->model));
  BK_TRY(bk_model_init_rough(c->model, b->recipe.seed));
  return bk_trainer_create(c->model, &b->recipe, b->data, NULL, &c->trainer);
}

static void free_side(step_bench *b, contender *c) {
  bk_trainer_destroy(c->trainer);
  bk_model_destroy(c->model);
  c->trainer = NULL, c->model = NULL;
  bk_free(b->s->ctx, c->parts);
  c->parts = NULL;
  for (int p = 0; p < PHASES; p++) {
    bk_free(b->s->ctx, c->times[p]);
    c->times[p] = NULL;
  }
}

static double planned_bytes(const contender *c) {
  double sum = 0;
  for (int k = 0; k < BK_MEM_CLASS_COUNT; k++)
    sum += (double)bk_model_bytes(c->model, k) + (double)bk_trainer_bytes(c->trainer, k);
  return sum;
}

static bk_status bytes_in_use(cli_session *s, double *bytes) {
  size_t used = 0;
  BK_TRY(bk_device_memory_used(s->device, &used));
  *bytes = (double)used;
  return BK_OK;
}

/* ---- timing ---- */

/* at < 0: to warm up. */
static bk_status one_step(contender *c, int at) {
  bk_metrics_row row;
  bk_step_times times;
  BK_TRY(bk_trainer_step_timed(c->trainer, &row, &times));
  if (at < 0) return BK_OK;
  c->times[FORWARD][at] = times.forward;
  c->times[BACKWARD][at] = times.backward;
  c->times[OPTIMIZER][at] = times.optimizer;
  c->times[STEP][at] = times.forward + times.backward + times.optimizer;
  return BK_OK;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Made, warmed up and measured. What other programs on the device take or give meanwhile is in
 * its memory too. */
static bk_status ready_side(step_bench *b, contender *c) {
  double before = 0, after = 0;
  BK_TRY(bytes_in_use(b->s, &before));
  BK_TRY(make_side(b, c));
  /* nothing where it was not asked for */
  if (c == b->sides) BK_TRY(cli_profile_begin(b->s, c->model, &b->profile));
  for (int i = 0; i < bk_trainer_warm_steps(c->trainer); i++) BK_TRY(one_step(c, -1));
  BK_TRY(bytes_in_use(b->s, &after));
  c->bytes_planned = planned_bytes(c);
  c->bytes_used = after - before;
  return BK_OK;
}

static bk_status take_medians(contender *c) {
  if (c->steps == 0) return BK_INTERRUPTED;
  for (int p = 0; p < PHASES; p++) {
    qsort(c->times[p], (size_t)c->steps, sizeof(double), ascending);
    c->median[p] = c->times[p][c->steps / 2];
  }
  return BK_OK;
}

/* `count` sides in turn, for as long as --seconds says. */
static bk_status time_steps(contender *sides, int count, double seconds) {
  double end = cli_seconds() + seconds;
  while (sides->steps < MAX_STEPS && (sides->steps < 3 || cli_seconds() < end) && !cli_signal)
    for (int i = 0; i < count; i++) {
      BK_TRY(one_step(&sides[i], sides[i].steps));
      sides[i].steps++;
    }
  for (int i = 0; i < count; i++) BK_TRY(take_medians(&sides[i]));
  return BK_OK;
}

/* ---- parts ---- */

enum { PART_STEPS_MIN = 3, PART_STEPS = 15 };

static int n_parts(const contender *c) { return 2 * (int)c->config.num_hidden_layers + 2; }

/* What lies between the ops is added to each part in proportion: in sum the parts take as long as
 * the passes that were measured without events around each op. */
static void spread_rest(contender *c) {
  double forward = 0, backward = 0;
  for (int i = 0; i < n_parts(c); i++) forward += c->parts[i].f, backward += c->parts[i].b;
  double f = forward > 0 ? c->median[FORWARD] / forward : 0;
  double b = backward > 0 ? c->median[BACKWARD] / backward : 0;
  for (int i = 0; i < n_parts(c); i++) {
    c->parts[i].f *= f;
    c->parts[i].b *= b;
    c->parts[i].w *= b;
  }
}

/* The median of each number, over the steps: costs [steps][n]. */
static void part_medians(const bk_stage_costs *costs, int steps, int n, bk_stage_costs *medians) {
  double x[3][PART_STEPS];
  for (int i = 0; i < n; i++) {
    for (int k = 0; k < steps; k++) {
      const bk_stage_costs *c = &costs[k * n + i];
      x[0][k] = c->f, x[1][k] = c->b - c->w, x[2][k] = c->w;
    }
    for (int v = 0; v < 3; v++) qsort(x[v], (size_t)steps, sizeof(double), ascending);
    double w = x[2][steps / 2];
    medians[i] = (bk_stage_costs){.f = x[0][steps / 2], .b = x[1][steps / 2] + w, .w = w};
  }
}

/* The first step warms the profile up. */
static bk_status profiled_steps(step_bench *b, contender *c, bk_stage_costs *costs, int *steps) {
  bk_profile *profile = NULL;
  BK_TRY(bk_profile_create(c->model, &profile));
  bk_status status = one_step(c, -1);
  double end = cli_seconds() + b->seconds / 2;
  int n = 0, parts = n_parts(c);
  while (status == BK_OK && !cli_signal && n < PART_STEPS &&
         (n < PART_STEPS_MIN || cli_seconds() < end)) {
    status = one_step(c, -1);
    for (int i = 0; i < parts; i++) bk_profile_part(profile, i, &costs[n * parts + i]);
    n++;
  }
  bk_profile_destroy(profile);
  *steps = n;
  return status != BK_OK ? status : n ? BK_OK : BK_INTERRUPTED;
}

/* Steps of their own, behind those that were timed, because a profiled step takes longer. */
static bk_status time_parts(step_bench *b, contender *c) {
  bk_context *ctx = b->s->ctx;
  size_t n = (size_t)n_parts(c);
  int steps;
  bk_stage_costs *costs = bk_alloc_array(ctx, n * PART_STEPS, sizeof *costs);
  c->parts = bk_alloc_array(ctx, n, sizeof *c->parts);
  bk_status status = costs && c->parts ? profiled_steps(b, c, costs, &steps) : BK_ERR_MEMORY;
  if (status == BK_OK) {
    part_medians(costs, steps, (int)n, c->parts);
    spread_rest(c);
  }
  bk_free(ctx, costs);
  return status;
}

static bk_status time_apart(step_bench *b) {
  for (int i = 0; i < b->n_sides; i++) {
    BK_TRY(ready_side(b, &b->sides[i]));
    BK_TRY(time_steps(&b->sides[i], 1, b->seconds / b->n_sides));
    free_side(b, &b->sides[i]);
  }
  return BK_OK;
}

static bk_status time_together(step_bench *b) {
  for (int i = 0; i < b->n_sides; i++) BK_TRY(ready_side(b, &b->sides[i]));
  BK_TRY(time_steps(b->sides, b->n_sides, b->seconds));
  if (b->s->json && b->n_sides == 1 && !b->profile) BK_TRY(time_parts(b, b->sides));
  return b->profile ? bk_profile_write_trace(b->profile, cli_value(&b->s->args, "profile")) : BK_OK;
}

/* ---- results ---- */

static double tokens_per_s(const step_bench *b, const contender *c) {
  return (double)batch_tokens(b) / c->median[STEP];
}
static double flops_per_s(const step_bench *b, const contender *c) {
  return tokens_per_s(b, c) * c->counts.flops_per_token;
}

static json_t *side_json(const step_bench *b, const contender *c) {
  return json_pack("{s:s,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:I,s:I}", "residual",
                   cli_residual_name(c->config.residual), "tokens_per_s", tokens_per_s(b, c),
                   "seconds", c->median[STEP], "forward_seconds", c->median[FORWARD],
                   "backward_seconds", c->median[BACKWARD], "optimizer_seconds",
                   c->median[OPTIMIZER], "gflop_per_s", flops_per_s(b, c) * 1e-9, "share",
                   flops_per_s(b, c) / b->roof, "flops_per_token", c->counts.flops_per_token,
                   "bytes_planned", (json_int_t)c->bytes_planned, "bytes_used",
                   (json_int_t)c->bytes_used);
}

/* The keys that describe the model, as config.json has them. */
static json_t *config_json(const bk_model_config *c) {
  json_t *object = json_pack("{s:s,s:I}", "model_type", "birkhoff", "num_key_value_heads",
                             (json_int_t)c->num_attention_heads);
  for (const bk_option *o = bk_model_keys; o->name; o++) {
    const void *at = (const char *)c + o->offset;
    json_t *value = NULL;
    switch (o->type) {
      case BK_OPT_DOUBLE: value = json_real(*(const double *)at); break;
      case BK_OPT_BOOL: value = json_boolean(*(const bool *)at); break;
      case BK_OPT_ENUM: value = json_string(o->choices[*(const int *)at]); break;
      default: {
        int64_t n = *(const int64_t *)at;
        value = o->type == BK_OPT_INT_OR_NULL && n == 0 ? json_null() : json_integer((json_int_t)n);
      }
    }
    json_object_set_new(object, o->name, value);
  }
  return object;
}

/* The embedding, the sublayers, head and loss. */
static json_t *parts_json(const contender *c) {
  json_t *list = json_array();
  for (int i = 0; i < n_parts(c); i++)
    json_array_append_new(list, json_pack("{s:f,s:f,s:f}", "F", c->parts[i].f, "B", c->parts[i].b,
                                          "W", c->parts[i].w));
  return list;
}

static bk_status print_json(step_bench *b) {
  json_t *result = side_json(b, &b->sides[0]);
  if (!result) return cli_print_json(b->s, NULL);
  json_object_set_new(result, "device", json_string(bk_device_backend_name(b->s->device)));
  json_object_set_new(result, "dtype", json_string(bk_dtype_name(b->dtype)));
  json_object_set_new(result, "batch_size", json_integer((json_int_t)b->recipe.micro_batch_size));
  json_object_set_new(result, "seq_len", json_integer((json_int_t)b->recipe.seq_len));
  json_object_set_new(result, "steps", json_integer(b->sides[0].steps));
  json_object_set_new(result, "roof_gflop_per_s", json_real(b->roof * 1e-9));
  if (b->sides[0].parts) {
    json_object_set_new(result, "parts", parts_json(&b->sides[0]));
    json_object_set_new(result, "config", config_json(&b->sides[0].config));
  }
  if (b->n_sides == 2) {
    json_object_set_new(result, "compare", side_json(b, &b->sides[1]));
    json_object_set_new(result, "ratio",
                        json_real(b->sides[0].median[STEP] / b->sides[1].median[STEP]));
  }
  if (b->profile)
    json_object_set_new(result, "profile",
                        cli_profile_json(b->profile, cli_value(&b->s->args, "profile")));
  return cli_print_json(b->s, result);
}

static bk_status print_text(step_bench *b) {
  printf("%s, %s: %lld sequences of %lld tokens, median of %d steps; roof: %.2f GFLOP/s (gemm)\n",
         bk_device_backend_name(b->s->device), bk_dtype_name(b->dtype),
         (long long)b->recipe.micro_batch_size, (long long)b->recipe.seq_len, b->sides[0].steps,
         b->roof * 1e-9);
  printf("%-9s %10s %10s %10s %10s %10s %9s %9s %11s %11s\n", "residual", "tokens/s", "step ms",
         "forward", "backward", "optimizer", "GFLOP/s", "of roof", "memory", "planned");
  for (int i = 0; i < b->n_sides; i++) {
    const contender *c = &b->sides[i];
    char used[32], planned[32];
    printf("%-9s %10.0f %10.2f %10.2f %10.2f %10.2f %9.2f %8.1f%% %11s %11s\n",
           cli_residual_name(c->config.residual), tokens_per_s(b, c), c->median[STEP] * 1e3,
           c->median[FORWARD] * 1e3, c->median[BACKWARD] * 1e3, c->median[OPTIMIZER] * 1e3,
           flops_per_s(b, c) * 1e-9, 100 * flops_per_s(b, c) / b->roof,
           cli_bytes_text(c->bytes_used, used, sizeof used),
           cli_bytes_text(c->bytes_planned, planned, sizeof planned));
  }
  if (b->n_sides == 2)
    printf("a step with %s takes %.3f times one with %s\n",
           cli_residual_name(b->sides[0].config.residual),
           b->sides[0].median[STEP] / b->sides[1].median[STEP],
           cli_residual_name(b->sides[1].config.residual));
  if (b->profile) BK_TRY(cli_profile_print(b->profile, cli_value(&b->s->args, "profile"), stdout));
  return cli_flush_stdout(b->s);
}

bk_status bench_step(cli_session *s) {
  step_bench b = {.s = s, .dtype = BK_F32, .seconds = 5};
  BK_TRY(cli_open_device(s));
  BK_TRY(read_options(&b));
  if (cli_given(&s->args, "program"))
    return bench_program(s, &b.sides[0].config, b.dtype, &b.recipe);
  cli_catch_signals(NULL);
  bk_status status = make_tokens(&b);
  if (status == BK_OK) status = bk_bench_product(s->device, b.dtype, 0.3, &b.roof);
  if (status == BK_OK) status = b.apart ? time_apart(&b) : time_together(&b);
  if (status == BK_OK) status = s->json ? print_json(&b) : print_text(&b);
  bk_profile_destroy(b.profile);
  for (int i = 0; i < b.n_sides; i++) free_side(&b, &b.sides[i]);
  bk_dataset_close(b.data);
  bk_free(s->ctx, b.tokens);
  return status;
}

/* The simulator against reality: steps of a pipeline, and what bk_schedule_simulate says of each
 * from the costs that were measured in that very step. For tests/cli/long_plan.sh.
 *
 *   simulate_step TEXT SCHEDULE RANKS MICRO STEPS
 *
 * Ranks are threads of one worker each, on cpu; the model is the preset demo. Each step is
 * profiled: the time of a stage's passes is that of its ops in this step, divided by the
 * micro-batches that it runs, with what lies between ops (copies, uploads, calls) added in
 * proportion. Waiting for messages, which is what is to be predicted, is in none of them. Prints a
 * line for each step but the first: what was predicted and what was taken, in seconds. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <birkhoff/birkhoff.h>

#include "models/pipeline.h"

enum { RANKS_MAX = 16, STAGES_MAX = 64 };

typedef struct own_costs {
  bk_stage_costs stages[STAGES_MAX]; /* of the stages of other ranks 0 */
  double optimizer, step;
} own_costs;

typedef struct step_rank {
  pthread_t thread;
  const char *text, *name;
  int rank, ranks, micro, steps;
  bk_thread_world *world;
  bk_status status;
  bk_context *ctx;
  bk_device *device;
  bk_job *job;
  bk_comm *comm;
  bk_schedule *schedule;
  bk_pipeline *pipeline;
  bk_model *model;
  bk_dataset *data;
  bk_trainer *trainer;
  bk_profile *profile;
  double optimizer; /* of all steps so far */
} step_rank;

static void print_log(void *user, bk_log_level level, const char *message) {
  (void)user;
  if (level <= BK_LOG_WARN) fprintf(stderr, "simulate_step: %s\n", message);
}

static bk_status open_rank(step_rank *r) {
  bk_model_config config;
  bk_train_config recipe;
  const char *files[] = {r->text};
  bk_device_options device = {.threads = 1};
  bk_job_options job = {.rank = r->rank, .size = r->ranks, .world = r->world};
  bk_dataset_options data = {.split = BK_SPLIT_ALL};
  BK_TRY(bk_context_create(&(bk_context_options){.log = print_log}, &r->ctx));
  BK_TRY(bk_model_preset(r->ctx, "demo", &config, &recipe));
  recipe.batch_size = r->micro;
  recipe.micro_batch_size = 1;
  recipe.warmup_steps = recipe.gain_every = recipe.eval_every = 0;
  data.vocab_size = config.vocab_size;
  BK_TRY(bk_device_open(r->ctx, "cpu", &device, &r->device));
  BK_TRY(bk_job_open(r->ctx, &job, &r->job));
  BK_TRY(bk_comm_open(r->job, r->device, &r->comm));
  BK_TRY(bk_schedule_create(r->ctx, r->name, r->ranks, r->micro, &r->schedule));
  bk_pipeline_options layout = {.schedule = r->schedule, .seq_len = recipe.seq_len};
  BK_TRY(bk_pipeline_create(r->ctx, r->comm, &config, &layout, &r->pipeline));
  bk_model_options model = {.trainable = true, .comm = r->comm, .pipeline = r->pipeline};
  BK_TRY(bk_model_create(r->device, &config, BK_F32, &model, &r->model));
  BK_TRY(bk_model_init(r->model, 1));
  BK_TRY(bk_dataset_open(r->ctx, files, 1, &data, &r->data));
  BK_TRY(bk_trainer_create(r->model, &recipe, r->data, NULL, &r->trainer));
  return bk_profile_create(r->model, &r->profile);
}

static double optimizer_seconds(const step_rank *r) {
  double sum = 0;
  for (int i = 0; i < bk_profile_count(r->profile, BK_PROFILE_PHASES); i++) {
    bk_profile_line line;
    bk_profile_get(r->profile, BK_PROFILE_PHASES, i, &line);
    if (strcmp(line.name, "optimizer") == 0) sum += line.seconds;
  }
  return sum;
}

/* The parts of a stage: its sublayers, and the ends that belong to it. */
static bk_stage_costs stage_seconds(const step_rank *r, int stage) {
  int64_t begin, end, last = 2 * bk_model_config_of(r->model)->num_hidden_layers;
  bk_stage_costs sum = {0, 0, 0}, one;
  bk_pipeline_stage(r->pipeline, stage, &begin, &end);
  for (int64_t k = begin + (begin > 0); k < end + 1 + (end == last); k++) {
    bk_profile_part(r->profile, (int)k, &one);
    sum.f += one.f;
    sum.b += one.b;
    sum.w += one.w;
  }
  return sum;
}

static own_costs measure(step_rank *r, double step, double waited) {
  own_costs own = {.step = step};
  double ops = 0, all = optimizer_seconds(r), micro = r->micro / r->schedule->streams;
  own.optimizer = all > r->optimizer ? all - r->optimizer : 0;
  r->optimizer = all;
  for (int c = 0; c < r->schedule->chunks; c++) {
    int stage = r->schedule->rank[r->rank].chunks[c].stage;
    own.stages[stage] = stage_seconds(r, stage);
    ops += own.stages[stage].f + own.stages[stage].b;
  }
  double between = (step - waited - own.optimizer) / ops;
  for (int s = 0; s < r->schedule->stages; s++) {
    own.stages[s].f *= between / micro;
    own.stages[s].b *= between / micro;
    own.stages[s].w *= between / micro;
  }
  return own;
}

/* Of a stage that two ranks hold, each runs one stream: the mean. */
static bk_status predict(const step_rank *r, const own_costs *all, double *seconds) {
  bk_stage_costs stages[STAGES_MAX];
  bk_timeline *t = NULL;
  double optimizer = 0;
  for (int s = 0; s < r->schedule->stages; s++) {
    int holders = 0;
    stages[s] = (bk_stage_costs){0, 0, 0};
    for (int k = 0; k < r->ranks; k++) {
      const bk_stage_costs *c = &all[k].stages[s];
      holders += c->f > 0;
      stages[s].f += c->f;
      stages[s].b += c->b;
      stages[s].w += c->w;
    }
    stages[s].f /= holders;
    stages[s].b /= holders;
    stages[s].w /= holders;
  }
  for (int k = 0; k < r->ranks; k++)
    if (all[k].optimizer > optimizer) optimizer = all[k].optimizer;
  bk_schedule_costs costs = {.stage = stages, .weights_last = true};
  BK_TRY(bk_schedule_simulate(r->ctx, r->schedule, &costs, &t));
  *seconds = t->time + optimizer;
  bk_timeline_destroy(r->ctx, t);
  return BK_OK;
}

static bk_status run_steps(step_rank *r) {
  for (int i = 0; i < r->steps; i++) {
    bk_metrics_row row;
    own_costs own, all[RANKS_MAX];
    double predicted = 0;
    BK_TRY(bk_trainer_step(r->trainer, &row));
    double step = (double)(row.tokens / (i + 1)) / row.tokens_per_s;
    own = measure(r, step, row.comm_wait_s);
    BK_TRY(bk_comm_gather(r->comm, &own, sizeof own, all));
    if (r->rank || i == 0) continue;
    BK_TRY(predict(r, all, &predicted));
    printf("%.6f %.6f\n", predicted, step);
  }
  return BK_OK;
}

static void *run_rank(void *arg) {
  step_rank *r = arg;
  r->status = open_rank(r);
  if (r->status == BK_OK) r->status = run_steps(r);
  bk_profile_destroy(r->profile);
  bk_trainer_destroy(r->trainer);
  bk_dataset_close(r->data);
  bk_model_destroy(r->model);
  bk_pipeline_destroy(r->pipeline);
  if (r->schedule) bk_schedule_destroy(r->ctx, r->schedule);
  bk_comm_destroy(r->comm);
  bk_job_close(r->job);
  bk_device_close(r->device);
  bk_context_destroy(r->ctx);
  return NULL;
}

int main(int argc, char **argv) {
  static step_rank ranks[RANKS_MAX];
  bk_context *ctx;
  bk_thread_world *world;
  int n = argc == 6 ? atoi(argv[3]) : 0, failed = 0;
  if (n < 1 || n > RANKS_MAX) {
    fprintf(stderr, "usage: simulate_step TEXT SCHEDULE RANKS MICRO STEPS\n");
    return 2;
  }
  if (bk_context_create(&(bk_context_options){.log = print_log}, &ctx) != BK_OK) return 1;
  if (bk_thread_world_create(ctx, n, &world) != BK_OK) return 1;
  for (int i = 0; i < n; i++) {
    ranks[i] = (step_rank){.text = argv[1], .name = argv[2], .rank = i, .ranks = n, .world = world};
    ranks[i].micro = atoi(argv[4]);
    ranks[i].steps = atoi(argv[5]);
    if (pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]) != 0) return 1;
  }
  for (int i = 0; i < n; i++) {
    pthread_join(ranks[i].thread, NULL);
    failed |= ranks[i].status != BK_OK;
  }
  bk_thread_world_destroy(world);
  bk_context_destroy(ctx);
  return failed;
}

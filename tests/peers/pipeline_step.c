/* One training step of a pipeline without the optimiser: what the executor leaves, for pipeline.py.
 *
 *   pipeline_step CKPT INPUT SCHEDULE RANKS STAGES OUT
 *
 * CKPT is a checkpoint; INPUT a safetensors file with input_ids and targets [M,T], of which each
 * row is a micro-batch. Ranks are threads, on the device ref in fp64. OUT-0, OUT-1, ... get of each
 * rank `loss.M` of the micro-batches whose loss it has, summed over their targets, and `grad.NAME`;
 * of two ranks that hold one stage each has its own part. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <birkhoff/safetensors.h>

#include "models/executor.h"
#include "models/model_priv.h"

typedef struct input {
  int64_t micro, seq_len, kept;
  int32_t *ids, *targets; /* [micro][seq_len] */
} input;

typedef struct step_rank {
  const char *ckpt, *schedule, *stages, *out;
  int rank, ranks;
  bk_thread_world *world;
  input in;
  bk_status status;
  /* what it has, to be taken down again in one place */
  bk_context *ctx;
  bk_device *device;
  bk_job *job;
  bk_comm *comm;
  bk_schedule *lists;
  bk_pipeline *pipeline;
  bk_model *model;
  bk_executor *executor;
  double *losses; /* [micro]; negative: of another rank */
  double before;
} step_rank;

static void print_log(void *user, bk_log_level level, const char *message) {
  (void)user;
  if (level <= BK_LOG_WARN) fprintf(stderr, "pipeline_step: %s\n", message);
}

static bk_status new_context(bk_context **ctx) {
  return bk_context_create(&(bk_context_options){.log = print_log}, ctx);
}

/* ---- what is run ---- */

static bk_status read_tokens(bk_context *ctx, bk_st_reader *file, const char *name, input *in,
                             int32_t **tokens) {
  const bk_st_entry *e = bk_st_find(file, name);
  if (!e || e->dtype != BK_I32 || e->ndim != 2)
    return bk_fail(ctx, BK_ERR_DATA, "no tensor %s of I32 with two dimensions", name);
  in->micro = e->shape[0];
  in->seq_len = e->shape[1];
  *tokens = bk_alloc_array(ctx, (size_t)(in->micro * in->seq_len), sizeof **tokens);
  if (!*tokens) return BK_ERR_MEMORY;
  return bk_st_read(file, e, *tokens, (size_t)(e->end - e->begin));
}

static bk_status read_input(bk_context *ctx, const char *path, input *in) {
  bk_st_reader *file = NULL;
  BK_TRY(bk_st_open(ctx, path, &file));
  bk_status status = read_tokens(ctx, file, "input_ids", in, &in->ids);
  if (status == BK_OK) status = read_tokens(ctx, file, "targets", in, &in->targets);
  bk_st_close(file);
  for (int64_t i = 0; status == BK_OK && i < in->micro * in->seq_len; i++)
    in->kept += in->targets[i] >= 0;
  return status;
}

/* ---- a rank ---- */

static bk_status feed(void *user, int64_t micro, const int32_t **ids, const int32_t **targets) {
  step_rank *r = user;
  *ids = r->in.ids + micro * r->in.seq_len;
  *targets = r->in.targets + micro * r->in.seq_len;
  return BK_OK;
}

/* The step block has the sum of all losses so far. */
static bk_status take_loss(void *user, int64_t micro) {
  step_rank *r = user;
  bk_tensor field = bk_step_field(r->model, BK_STEP_LOSS);
  double sum;
  BK_TRY(bk_tensor_read_f64(r->model->stream, &field, &sum));
  r->losses[micro] = sum - r->before;
  r->before = sum;
  return BK_OK;
}

static bk_status open_rank(step_rank *r) {
  bk_model_config config;
  char path[4096];
  bk_device_options device = {.threads = 1};
  bk_job_options job = {.rank = r->rank, .size = r->ranks, .timeout_s = 60, .world = r->world};
  bk_chunk_options chunk = {.batch = 1, .seq_len = r->in.seq_len};
  snprintf(path, sizeof path, "%s/config.json", r->ckpt);
  BK_TRY(bk_model_config_read(r->ctx, path, &config));
  BK_TRY(bk_device_open(r->ctx, "ref", &device, &r->device));
  BK_TRY(bk_job_open(r->ctx, &job, &r->job));
  BK_TRY(bk_comm_open(r->job, r->device, &r->comm));
  BK_TRY(bk_schedule_create(r->ctx, r->schedule, r->ranks, (int)r->in.micro, &r->lists));
  bk_pipeline_options layout = {
      .schedule = r->lists, .stages = r->stages, .seq_len = r->in.seq_len};
  BK_TRY(bk_pipeline_create(r->ctx, r->comm, &config, &layout, &r->pipeline));
  bk_model_options model = {.trainable = true, .comm = r->comm, .pipeline = r->pipeline};
  BK_TRY(bk_model_create(r->device, &config, BK_F64, &model, &r->model));
  BK_TRY(bk_checkpoint_load_weights(r->model, r->ckpt));
  r->losses = bk_alloc_array(r->ctx, (size_t)r->in.micro, sizeof *r->losses);
  if (!r->losses) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < r->in.micro; i++) r->losses[i] = -1;
  return bk_executor_create(r->model, &chunk, &r->executor);
}

static bk_status run_step(step_rank *r) {
  bk_step_values values = {.bc1 = 1, .bc2 = 1, .loss_scale = 1.0 / (double)r->in.kept};
  bk_executor_calls calls = {.feed = feed, .loss = take_loss, .user = r};
  bk_step_results results;
  BK_TRY(bk_step_begin(r->model, &values));
  BK_TRY(bk_executor_step(r->executor, &calls));
  return bk_step_end(r->model, &results);
}

static void close_rank(step_rank *r) {
  bk_executor_destroy(r->executor);
  bk_model_destroy(r->model);
  bk_pipeline_destroy(r->pipeline);
  if (r->lists) bk_schedule_destroy(r->ctx, r->lists);
  bk_comm_destroy(r->comm);
  bk_job_close(r->job);
  if (r->device) bk_device_close(r->device);
  if (r->ctx) bk_free(r->ctx, r->losses);
  if (r->ctx) bk_context_destroy(r->ctx);
}

/* ---- what a rank leaves ---- */

static bk_status declare(const step_rank *r, bk_st_writer *file) {
  const int64_t one = 1;
  char name[256];
  bk_param_info p;
  for (int64_t i = 0; i < r->in.micro; i++) {
    snprintf(name, sizeof name, "loss.%lld", (long long)i);
    if (r->losses[i] >= 0) BK_TRY(bk_st_add(file, name, BK_F64, 1, &one));
  }
  for (int i = 0; i < bk_model_param_count(r->model); i++) {
    BK_TRY(bk_model_param_info(r->model, i, &p));
    snprintf(name, sizeof name, "grad.%s", p.name);
    if (p.trainable) BK_TRY(bk_st_add(file, name, BK_F64, p.ndim, p.shape));
  }
  return BK_OK;
}

/* What this rank has added up, also where another holds the stage too. */
static bk_status write_gradient(const step_rank *r, bk_st_writer *file, int i, int64_t count) {
  bk_tensor grad = bk_param_grad(r->model, &r->model->params[i]);
  double *values = bk_alloc_array(r->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_status status = bk_tensor_read_f64(r->model->stream, &grad, values);
  if (status == BK_OK) status = bk_st_write(file, values, (size_t)count * sizeof *values);
  bk_free(r->ctx, values);
  return status;
}

static bk_status write_data(const step_rank *r, bk_st_writer *file) {
  bk_param_info p;
  for (int64_t i = 0; i < r->in.micro; i++)
    if (r->losses[i] >= 0) BK_TRY(bk_st_write(file, &r->losses[i], sizeof r->losses[i]));
  for (int i = 0; i < bk_model_param_count(r->model); i++) {
    BK_TRY(bk_model_param_info(r->model, i, &p));
    if (p.trainable) BK_TRY(write_gradient(r, file, i, p.count));
  }
  return BK_OK;
}

static bk_status write_out(const step_rank *r) {
  char path[4096];
  bk_st_writer *file = NULL;
  snprintf(path, sizeof path, "%s-%d", r->out, r->rank);
  BK_TRY(bk_st_create(r->ctx, path, &file));
  bk_status status = declare(r, file);
  if (status == BK_OK) status = write_data(r, file);
  if (status == BK_OK) status = bk_st_finish(file);
  if (status != BK_OK) bk_st_abandon(file);
  return status;
}

/* ---- all ranks ---- */

static void *rank_main(void *arg) {
  step_rank *r = arg;
  r->status = new_context(&r->ctx);
  if (r->status == BK_OK) r->status = open_rank(r);
  if (r->status == BK_OK) r->status = run_step(r);
  if (r->status == BK_OK) r->status = write_out(r);
  if (r->status != BK_OK && r->job) bk_job_abort(r->job, "a rank of pipeline_step has failed");
  close_rank(r);
  return NULL;
}

static int run_ranks(const step_rank *all, int ranks) {
  enum { MOST = 16 };
  step_rank r[MOST];
  pthread_t threads[MOST];
  int started = 0, failed = 0;
  for (; started < ranks; started++) {
    r[started] = *all;
    r[started].rank = started;
    if (pthread_create(&threads[started], NULL, rank_main, &r[started]) != 0) abort();
  }
  for (int i = 0; i < ranks; i++) {
    pthread_join(threads[i], NULL);
    failed += r[i].status != BK_OK;
  }
  return failed;
}

int main(int argc, char **argv) {
  bk_context *ctx = NULL;
  int ranks = argc == 7 ? atoi(argv[4]) : 0, failed = 1;
  if (ranks < 1 || ranks > 16)
    return fprintf(stderr, "usage: pipeline_step CKPT INPUT SCHEDULE RANKS STAGES OUT\n"), 2;
  step_rank all = {
      .ckpt = argv[1], .schedule = argv[3], .ranks = ranks, .stages = argv[5], .out = argv[6]};
  if (new_context(&ctx) != BK_OK) return 1;
  if (read_input(ctx, argv[2], &all.in) == BK_OK &&
      bk_thread_world_create(ctx, ranks, &all.world) == BK_OK) {
    failed = run_ranks(&all, ranks);
    bk_thread_world_destroy(all.world);
  }
  bk_free(ctx, all.in.ids);
  bk_free(ctx, all.in.targets);
  bk_context_destroy(ctx);
  return failed ? 1 : 0;
}

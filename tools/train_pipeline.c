/* A run whose ranks are pipelines: --pp, --schedule, --stages. */
#include <string.h>

#include "tools/plan_schedule.h"
#include "tools/train.h"

/* --schedule without --pp, or with --pp 1, is a pipeline of one rank. */
static bool in_pipeline(const train_run *r) {
  return cli_given(&r->s->args, "pp") || cli_given(&r->s->args, "schedule");
}

static bool is_known(const char *schedule) {
  for (const char *const *names = bk_schedule_names(); *names; names++)
    if (strcmp(*names, schedule) == 0) return true;
  return false;
}

static bool is_file(const char *schedule) {
  return !is_known(schedule) && (strchr(schedule, '/') || strchr(schedule, '.'));
}

/* --stages FILE: costs that bench step --json has measured. */
static bk_status read_costs(train_run *r, const char *path, double **costs) {
  cli_measured m;
  BK_TRY(cli_measured_read(r->s, path, &m));
  bk_status status = BK_OK;
  if (m.config.num_hidden_layers != r->config.num_hidden_layers)
    status =
        bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                "--stages %s: it was measured with a model of %lld layers, this one has %lld", path,
                (long long)m.config.num_hidden_layers, (long long)r->config.num_hidden_layers);
  if (status == BK_OK) status = cli_measured_cuts(r->s, &m, costs);
  bk_free(r->s->ctx, m.parts);
  return status;
}

/* A pipeline's micro-batches are all alike. With micro_batch_size 0 each is one sequence. */
static bk_status count_micro_batches(const train_run *r, int dp, int *count) {
  const bk_train_config *t = &r->recipe;
  int64_t micro = t->micro_batch_size ? t->micro_batch_size : 1, all = micro * dp;
  if (t->batch_size % all || t->batch_size / all > INT32_MAX)
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                   "--pp: batch_size %lld is to be cut into whole micro-batches: it must be a "
                   "multiple of %lld, which is dp %d times micro_batch_size %lld",
                   (long long)t->batch_size, (long long)all, dp, (long long)micro);
  *count = (int)(t->batch_size / all);
  return BK_OK;
}

static bk_status read_schedule(train_run *r, const char *path, int64_t pp) {
  bk_context *ctx = r->s->ctx;
  BK_TRY(bk_schedule_read(ctx, path, &r->schedule));
  if (pp && pp != r->schedule->ranks)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "--pp %lld: the schedule in %s is of %d ranks",
                   (long long)pp, path, r->schedule->ranks);
  if (r->team->size % r->schedule->ranks)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "--schedule %s: it is of %d ranks, and %d ranks are no multiple of it", path,
                   r->schedule->ranks, r->team->size);
  int made = r->schedule->micro_batches, dp = r->team->size / r->schedule->ranks, count = 0;
  BK_TRY(count_micro_batches(r, dp, &count));
  if (count == made) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT,
                 "--schedule %s: it is made for %d micro-batches; with batch_size %lld, dp %d and "
                 "micro_batch_size %lld there are %d",
                 path, made, (long long)r->recipe.batch_size, dp,
                 (long long)(r->recipe.micro_batch_size ? r->recipe.micro_batch_size : 1), count);
}

/* The ranks are counted by now: --pp divides them, as launch.c has checked. */
static bk_status make_schedule(train_run *r, const char *name) {
  int64_t pp = 0;
  int count = 0;
  BK_TRY(cli_int(r->s, "pp", 1, 4096, &pp));
  if (is_file(name)) return read_schedule(r, name, pp);
  if (!pp) pp = 1;
  BK_TRY(count_micro_batches(r, r->team->size / (int)pp, &count));
  bk_status status = bk_schedule_create(r->s->ctx, name, (int)pp, count, &r->schedule);
  if (status == BK_ERR_ARGUMENT && is_known(name))
    bk_warn(r->s->ctx,
            "--schedule %s: the number of micro-batches is batch_size / dp / micro_batch_size: "
            "%lld / %d / %lld",
            name, (long long)r->recipe.batch_size, r->team->size / (int)pp,
            (long long)(r->recipe.micro_batch_size ? r->recipe.micro_batch_size : 1));
  return status;
}

/* Collective. Each rank could be told something else; what differs would be refused later, in the
 * middle of things. */
bk_status train_open_pipeline(train_run *r) {
  const char *schedule = cli_value(&r->s->args, "schedule"),
             *stages = cli_value(&r->s->args, "stages");
  if (!in_pipeline(r)) {
    if (!stages) return BK_OK;
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT, "--stages is for pipelines: --pp P is missing");
  }
  if (!schedule) schedule = "1f1b";
  BK_TRY(cli_team_agree(r->team, make_schedule(r, schedule)));
  bool file = stages && (strchr(stages, '/') || strchr(stages, '.'));
  double *costs = NULL;
  bk_status status = file ? read_costs(r, stages, &costs) : BK_OK;
  bk_pipeline_options options = {.schedule = r->schedule,
                                 .stages = file ? NULL : stages,
                                 .seq_len = r->recipe.seq_len,
                                 .ranks = 1};
  status = cli_team_agree(r->team, status);
  options.costs = costs;
  if (status == BK_OK)
    status = cli_team_agree(
        r->team, bk_pipeline_create(r->s->ctx, r->team->comm, &r->config, &options, &r->pipeline));
  bk_free(r->s->ctx, costs);
  return status;
}

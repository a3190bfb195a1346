/* What a run of birkhoff train prints: its plan, its beginning, its result. Rank 0 alone prints.
 * See train.h. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/train.h"

/* ---- the plan ---- */

/* A rank's bytes by class. */
typedef struct rank_bytes {
  int64_t of[BK_MEM_CLASS_COUNT];
} rank_bytes;

/* What saving and loading need, and what a save needs while training goes on. */
static size_t staging_bytes(const train_run *r) {
  return bk_checkpoint_staging(r->model) +
         (r->recipe.save_async ? bk_checkpoint_save_bytes(r->model) : 0);
}

static rank_bytes own_bytes(const train_run *r) {
  rank_bytes own;
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++)
    own.of[c] = (int64_t)(bk_model_bytes(r->model, c) + bk_trainer_bytes(r->trainer, c) +
                          (c == BK_MEM_STAGING ? staging_bytes(r) : 0));
  return own;
}

static json_t *bytes_json(const rank_bytes *bytes) {
  json_t *object = json_object();
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++)
    json_object_set_new(object, bk_memory_class_name(c), json_integer((json_int_t)bytes->of[c]));
  return object;
}

static json_t *ranks_json(const rank_bytes *bytes, int ranks) {
  json_t *list = json_array();
  for (int i = 0; i < ranks; i++)
    json_array_append_new(list, json_pack("{s:i,s:o}", "rank", i, "bytes", bytes_json(&bytes[i])));
  return list;
}

static bk_status print_plan_json(train_run *r, const bk_model_counts *counts, double step_tokens,
                                 const rank_bytes *bytes) {
  json_t *plan = json_pack("{s:I,s:I,s:o,s:f,s:I,s:I}", "parameters_total",
                           (json_int_t)counts->parameters_total, "parameters_active",
                           (json_int_t)counts->parameters_active, "bytes", bytes_json(&bytes[0]),
                           "flops_per_token", counts->flops_per_token, "steps",
                           (json_int_t)r->recipe.steps, "step_tokens", (json_int_t)step_tokens);
  if (plan && r->team->size > 1)
    json_object_set_new(plan, "ranks", ranks_json(bytes, r->team->size));
  return cli_print_json(r->s, plan);
}

/* Of several ranks the largest number, class by class. */
static void print_bytes(const train_run *r, const rank_bytes *bytes) {
  char text[32];
  if (r->team->size > 1) printf("ranks       %d; each has at most:\n", r->team->size);
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++) {
    int64_t most = 0;
    for (int i = 0; i < r->team->size; i++)
      if (bytes[i].of[c] > most) most = bytes[i].of[c];
    if (most)
      printf("%-11s %s\n", bk_memory_class_name(c),
             cli_bytes_text((double)most, text, sizeof text));
  }
}

static bk_status print_plan(train_run *r, const bk_model_counts *counts, double step_tokens,
                            const rank_bytes *bytes) {
  char a[32], b[32];
  printf("parameters  %s, %s active\n",
         cli_count_text((double)counts->parameters_total, a, sizeof a),
         cli_count_text((double)counts->parameters_active, b, sizeof b));
  printf("data        %lld tokens for training, %lld for validation\n",
         (long long)bk_dataset_tokens(r->train),
         r->val ? (long long)bk_dataset_tokens(r->val) : 0LL);
  if (r->unsplit)
    printf(
        "            (the .bin files are too short to spare a tenth for validation: "
        "bin_validation=false)\n");
  printf("steps       %lld of %s tokens: %.2f epochs\n", (long long)r->recipe.steps,
         cli_count_text(step_tokens, a, sizeof a),
         (double)r->recipe.steps * step_tokens / (double)bk_dataset_tokens(r->train));
  print_bytes(r, bytes);
  return cli_flush_stdout(r->s);
}

bk_status train_report_plan(train_run *r) {
  bk_model_counts counts;
  rank_bytes own = own_bytes(r),
             *all = bk_alloc_array(r->s->ctx, (size_t)r->team->size, sizeof *all);
  BK_TRY(cli_team_agree(r->team, all ? BK_OK : BK_ERR_MEMORY));
  bk_status status = cli_team_gather(r->team, &own, sizeof own, all);
  bk_model_count(&r->config, r->recipe.seq_len, &counts);
  double step_tokens = (double)(r->recipe.batch_size * r->recipe.seq_len);
  if (status == BK_OK && cli_team_leads(r->team))
    status = r->s->json ? print_plan_json(r, &counts, step_tokens, all)
                        : print_plan(r, &counts, step_tokens, all);
  bk_free(r->s->ctx, all);
  return cli_team_agree(r->team, status);
}

/* ---- the beginning ---- */

/* Shares differ by one sequence at most. */
void train_say_start(const train_run *r) {
  const cli_team *team = r->team;
  if (!team->job || !cli_team_leads(team) || r->s->json) return;
  int pp = r->schedule ? r->schedule->ranks : 1,
      dp = r->pipeline ? bk_pipeline_count(r->pipeline) : team->size;
  long long batch = r->recipe.batch_size, least = batch / dp, more = batch % dp;
  char share[64];
  if (more) snprintf(share, sizeof share, "%lld or %lld", least, least + 1);
  else snprintf(share, sizeof share, "%lld", least);
  char pipelines[160] = "";
  if (r->schedule)
    snprintf(pipelines, sizeof pipelines, "pp %d (%s, %d micro-batches), ", pp, r->schedule->name,
             r->schedule->micro_batches);
  fprintf(stderr,
          "%d rank%s over %s%s%s%s, %sdp %d: each%s has %s of the %lld sequences of a step\n",
          team->size, team->size == 1 ? "" : "s", bk_job_transport(team->job),
          team->launcher ? " (" : "", team->launcher ? team->launcher : "",
          team->launcher ? ")" : "", pipelines, dp, r->schedule ? " pipeline" : "", share, batch);
}

/* ---- the result ---- */

static bk_status print_result(train_run *r, int64_t step, const char *path) {
  r->s->on_disk = r->out;
  if (r->s->json)
    return cli_print_json(r->s, json_pack("{s:I,s:I,s:o,s:o,s:s}", "step", (json_int_t)step,
                                          "tokens", (json_int_t)bk_trainer_tokens_done(r->trainer),
                                          "loss", cli_number(r->last.step ? r->last.loss : NAN),
                                          "val_loss", cli_number(r->last_val), "checkpoint", path));
  printf("%s\n", path);
  return BK_OK;
}

static bk_status report_first(train_run *r, int64_t step, bool stopped) {
  if (stopped) {
    char *command = train_resume_command(r, "");
    const char *launcher = r->team->launcher;
    fprintf(stderr, "birkhoff: stopped at step %lld of %lld, saved; to go on%s%s%s: %s\n",
            (long long)step, (long long)r->recipe.steps, launcher ? ", started by " : "",
            launcher ? launcher : "", launcher ? " as before" : "", command ? command : "--resume");
    bk_free(r->s->ctx, command);
    return BK_OK;
  }
  char *path = bk_checkpoint_step_path(r->s->ctx, r->out, step);
  if (!path) return BK_ERR_MEMORY;
  bk_status status = print_result(r, step, path);
  bk_free(r->s->ctx, path);
  return status;
}

bk_status train_report(train_run *r) {
  int64_t step = bk_trainer_step_done(r->trainer);
  bool stopped = r->team->signal && step < r->recipe.steps;
  bk_status status = cli_team_leads(r->team) ? report_first(r, step, stopped) : BK_OK;
  if (status == BK_OK && stopped) status = BK_INTERRUPTED;
  return cli_team_agree(r->team, status);
}

/* ---- help ---- */

void train_print_config_help(void) {
  bk_train_config t;
  char text[64];
  bk_train_config_default(&t);
  printf("Recipe keys (--set KEY=VALUE), with their defaults (a preset brings its own):\n");
  for (const bk_option *o = bk_train_keys; o->name; o++)
    printf("  %-20s %-10s %s\n", o->name, bk_option_value_text(o, &t, text, sizeof text), o->doc);
  printf("\nModel keys (config.json, --set KEY=VALUE):\n");
  for (const bk_option *o = bk_model_keys; o->name; o++) printf("  %-31s %s\n", o->name, o->doc);
  printf("\nResidual connections, and the streams (hc_mult) that they can have:\n");
  bk_connection_info kind;
  for (int i = 0; bk_connection_describe((bk_hc_kind)i, &kind); i++)
    printf("  residual=%-22s %s; %s\n", kind.name, kind.summary, kind.streams);
}

/* The loop around bk_trainer_step: metrics, progress, checkpoints, and what to do when one of
 * them fails. See train.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/train.h"

/* ---- progress ---- */

static void print_progress(train_run *r, const bk_metrics_row *row, bool live) {
  char rate[32], left[32], val[48] = "", gain[48] = "";
  double elapsed = cli_seconds() - r->begin;
  double per_step = elapsed / (double)(row->step - r->resumed_step);
  cli_count_text(row->tokens_per_s, rate, sizeof rate);
  cli_time_text(per_step * (double)(r->recipe.steps - row->step), left, sizeof left);
  if (row->has_val || (live && isfinite(r->last_val)))
    snprintf(val, sizeof val, "  val %.4f", r->last_val);
  if (row->has_gain && !live)
    snprintf(gain, sizeof gain, "  gain %.3g/%.3g", row->gain_forward, row->gain_backward);
  fprintf(stderr, "%sstep %lld/%lld  loss %.4f%s  lr %.3g  norm %.3g%s  %s tok/s  %s left%s",
          live ? "\r\033[K" : "", (long long)row->step, (long long)r->recipe.steps, row->loss, val,
          row->lr, row->grad_norm, gain, rate, left, live ? "" : "\n");
  fflush(stderr);
}

typedef struct progress {
  bool live;
  double last;
} progress;

static void show(train_run *r, progress *p, const bk_metrics_row *row) {
  double now = cli_seconds();
  bool milestone = row->has_val || row->step == r->recipe.steps;
  if (p->live && milestone) fprintf(stderr, "\r\033[K");
  if (milestone || (!p->live && (now - p->last > 10 || row->step == r->resumed_step + 1))) {
    print_progress(r, row, false);
    p->last = now;
  } else if (p->live && now - p->last > 0.2) {
    print_progress(r, row, true);
    p->last = now;
  }
}

/* ---- in words ---- */

char *train_resume_command(const train_run *r, const char *more) {
  char *end =
      bk_format(r->s->ctx, "%s%s", cli_given(&r->s->args, "resume") ? "" : " --resume", more);
  char *command = end ? cli_command_text(r->s, end) : NULL;
  bk_free(r->s->ctx, end);
  return command;
}

/* "run/step-000010", or that there is none. */
static const char *kept_text(const train_run *r, char *text, size_t size) {
  if (r->saved_step)
    snprintf(text, size, "the newest checkpoint is %s/step-%06lld", r->out,
             (long long)r->saved_step);
  else snprintf(text, size, "there is no checkpoint yet");
  return text;
}

/* ---- checkpoints ---- */

/* Weights that are not finite are never saved: they would push out the good ones. */
static bk_status check_stored(train_run *r, int64_t step) {
  char what[192];
  bk_status status = bk_model_check_finite(r->model, what, sizeof what);
  if (status != BK_ERR_NOT_FINITE) return status;
  return bk_fail(r->s->ctx, status, "step %lld left %s: not finite, not saved", (long long)step,
                 what);
}

/* A file or folder that lies where a step is to be saved (an unfinished checkpoint that was
 * passed over, a half-copied one) is not deleted: it moves to the first of NAME.aside,
 * NAME.aside.2, ... that is free. Links whose target is missing count as absent. */
static bk_status make_way(train_run *r, const char *path) {
  bk_context *ctx = r->s->ctx;
  int kind;
  BK_TRY(bk_path_kind(ctx, path, &kind));
  bk_status status = BK_OK;
  for (int i = 1; kind >= 0 && status == BK_OK; i++) {
    char *aside =
        i == 1 ? bk_format(ctx, "%s.aside", path) : bk_format(ctx, "%s.aside.%d", path, i);
    int taken = 0;
    status = aside ? bk_path_kind(ctx, aside, &taken) : BK_ERR_MEMORY;
    if (status == BK_OK && taken < 0) {
      int rc = bk_context_fs(ctx)->rename(bk_context_fs(ctx)->user, path, aside);
      if (rc < 0)
        status = bk_fail(ctx, BK_ERR_IO,
                         "%s lies where a checkpoint is to be saved and cannot be moved aside: %s",
                         path, strerror(-rc));
      else bk_warn(ctx, "%s lay where a checkpoint is to be saved; it is now %s", path, aside);
      kind = -1;
    }
    bk_free(ctx, aside);
  }
  return status;
}

/* With `beside` it has only begun when this returns: see follow_saving. */
static bk_status write_to(train_run *r, int64_t step, const char *path, bool beside) {
  bk_trainer_state state = {.recipe = r->recipe,
                            .step = step,
                            .tokens = bk_trainer_tokens_done(r->trainer),
                            .data_hash = bk_dataset_hash(r->train),
                            .dtype = r->dtype};
  state.n_files = bk_dataset_files(r->train, &state.files);
  return beside ? bk_checkpoint_save_begin(r->model, &state, path, &r->saving)
                : bk_checkpoint_save(r->model, &state, path);
}

static bk_status write_checkpoint(train_run *r, int64_t step, bool beside) {
  char *path = bk_checkpoint_step_path(r->s->ctx, r->out, step);
  bk_status status = path ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK && cli_team_leads(r->team)) status = make_way(r, path);
  status = cli_team_agree(r->team, status);
  if (status == BK_OK) status = cli_team_agree(r->team, write_to(r, step, path, beside));
  bk_free(r->s->ctx, path);
  return status;
}

static void prune(train_run *r) {
  r->unproven = false;
  if (!cli_team_leads(r->team)) return;
  if (bk_checkpoint_prune(r->s->ctx, r->out, r->recipe.keep) != BK_OK)
    bk_warn(r->s->ctx, "older checkpoints stay in %s", r->out);
}

/* The answer to SIGUSR1 or SIGUSR2, once what it asked for was tried; a save that failed has been
 * warned about. */
static void say_saved(train_run *r, int64_t step) {
  if (r->say_saved && r->saved_step == step && cli_team_leads(r->team))
    fprintf(stderr, "%sbirkhoff: a signal asked for it: step %lld is saved: %s/step-%06lld\n",
            isatty(2) ? "\r\033[K" : "", (long long)step, r->out, (long long)step);
  r->say_saved = false;
}

static void note_saved(train_run *r, int64_t step) {
  char kept[512];
  r->saved_step = step;
  cli_team_kept(r->team, kept_text(r, kept, sizeof kept));
  r->unproven = true;
  r->retry_step = r->retry_gap = 0;
}

/* What is being written beside the training comes to its end: with `wait` now, else if it has. */
static bk_status follow_saving(train_run *r, bool wait) {
  int64_t step = r->saving_step;
  bool done = true;
  if (!step) return BK_OK;
  bk_status status =
      wait ? bk_checkpoint_save_end(r->saving) : bk_checkpoint_save_done(r->saving, &done);
  if (wait) r->saving = NULL;
  if (status == BK_OK && !done) return BK_OK;
  r->saving_step = 0;
  if (status == BK_OK) note_saved(r, step);
  say_saved(r, step);
  return status;
}

/* Older checkpoints go once a step was taken from the new one. A save `beside` the training begins
 * when the one before has ended: its failure is that of this one. */
static bk_status save(train_run *r, bool beside) {
  int64_t step = bk_trainer_step_done(r->trainer);
  BK_TRY(follow_saving(r, true));
  if (step == r->saved_step || step == 0) return BK_OK;
  BK_TRY(cli_team_agree(r->team, check_stored(r, step)));
  BK_TRY(write_checkpoint(r, step, beside));
  if (beside) r->saving_step = step;
  else note_saved(r, step);
  return BK_OK;
}

/* The step after `step` that tries to save: a save point, one that tries again, or the last. */
static int64_t next_save(const train_run *r, int64_t step) {
  int64_t next = r->recipe.steps, every = r->recipe.save_every;
  if (every > 0 && step - step % every + every < next) next = step - step % every + every;
  return r->retry_step > step && r->retry_step < next ? r->retry_step : next;
}

/* A full disk, a lost mount: training goes on and tries again 1, 2, 4, ... steps later, and at
 * every save point. */
static bk_status or_retry(train_run *r, int64_t step, bk_status status) {
  char kept[512];
  int64_t now = bk_trainer_step_done(r->trainer);
  if (status == BK_OK || status == BK_ERR_NOT_FINITE || cli_team_lost(r->team, status))
    return status;
  r->retry_gap = r->retry_gap ? 2 * r->retry_gap : 1;
  r->retry_step = now + r->retry_gap;
  bk_warn(r->s->ctx, "step %lld is not saved; training goes on and tries again at step %lld; %s",
          (long long)step, (long long)next_save(r, now), kept_text(r, kept, sizeof kept));
  return BK_OK;
}

/* ---- metrics ---- */

/* Rows that cannot be written wait in memory; said at each attempt, which come ever more rarely. */
static void write_row(train_run *r, const bk_metrics_row *row) {
  int64_t first, last;
  if (!r->metrics) return;
  if (bk_metrics_write(r->metrics, row) == BK_OK) return;
  int64_t waiting = bk_metrics_pending(r->metrics, &first, &last);
  if (waiting)
    bk_warn(
        r->s->ctx,
        "the metrics of steps %lld to %lld wait in memory until %s/metrics.jsonl can be written",
        (long long)first, (long long)last, r->out);
}

static bk_status flush_rows(train_run *r) {
  int64_t first, last;
  if (!r->metrics) return BK_OK;
  bk_status status = bk_metrics_flush(r->metrics);
  if (status != BK_OK && bk_metrics_pending(r->metrics, &first, &last))
    fprintf(stderr, "birkhoff: the metrics of steps %lld to %lld are lost\n", (long long)first,
            (long long)last);
  return status;
}

/* ---- endings ---- */

/* A checkpoint that is no place to go on from makes way for the one before it. False: it could
 * not be moved. */
static bool set_aside(train_run *r, const char *why) {
  bk_context *ctx = r->s->ctx;
  char *path = bk_checkpoint_step_path(ctx, r->out, r->saved_step),
       *aside = path ? bk_format(ctx, "%s.refused", path) : NULL;
  bool moved = aside && bk_remove_tree(ctx, aside) == BK_OK &&
               bk_context_fs(ctx)->rename(bk_context_fs(ctx)->user, path, aside) == 0;
  if (moved) {
    fprintf(stderr, "birkhoff: %s %s; it is now %s\n", path, why, aside);
    if (bk_checkpoint_newest(ctx, r->out, BK_CHECKPOINT_RESUME, &r->saved_step) != BK_OK ||
        r->saved_step < 0)
      r->saved_step = 0;
  } else {
    bk_warn(ctx, "step %lld %s and could not be moved aside in %s", (long long)r->saved_step, why,
            r->out);
  }
  bk_free(ctx, aside);
  bk_free(ctx, path);
  return moved;
}

/* Reads the files of the newest checkpoint and says what is not finite in them. */
static bk_status check_saved(const train_run *r) {
  bk_context *ctx = r->s->ctx;
  char *what = NULL, *path = bk_checkpoint_step_path(ctx, r->out, r->saved_step);
  bk_status status = path ? bk_checkpoint_check_finite(ctx, path, &what) : BK_ERR_MEMORY;
  if (what) fprintf(stderr, "birkhoff: %s\n", what);
  bk_free(ctx, what);
  bk_free(ctx, path);
  return status;
}

/* Leaves saved_step at a checkpoint that was looked at and is good, or at none. */
static void find_good(train_run *r) {
  while (r->saved_step) {
    bk_status status = check_saved(r);
    if (status == BK_OK) return;
    bool bad = status == BK_ERR_NOT_FINITE || status == BK_ERR_DATA;
    if (!bad || !set_aside(r, status == BK_ERR_DATA ? "cannot be read" : "is not finite"))
      r->saved_step = 0;
  }
}

/* Without a checkpoint a run begins again from --init: whether that is of no use, because those
 * weights are at fault. */
static bool start_is_bad(const train_run *r, const bk_refusal *refusal) {
  if (r->saved_step || r->resumed_step || !r->from) return false;
  if (refusal && refusal->in_forward && refusal->row.step == 1) return true;
  char *what = NULL;
  bk_status status = bk_checkpoint_check_finite(r->s->ctx, r->from, &what);
  bk_free(r->s->ctx, what);
  return status != BK_OK;
}

static void end_not_finite(train_run *r) {
  const bk_refusal *refusal = bk_trainer_refusal(r->trainer);
  char more[64] = "", kept[512];
  if (!cli_team_leads(r->team)) return;
  if (refusal) write_row(r, &refusal->row);
  flush_rows(r);
  if (refusal && refusal->in_forward && r->saved_step && r->saved_step == refusal->row.step - 1)
    set_aside(r, "gives what is not finite");
  find_good(r);
  if (start_is_bad(r, refusal)) {
    fprintf(stderr,
            "birkhoff: there is no good checkpoint, and the weights that this run began with, %s, "
            "give what is not finite: begin with others\n",
            r->from);
    return;
  }
  if (!r->saved_step && r->resumed_step) {
    fprintf(stderr,
            "birkhoff: there is no good checkpoint left, what this run went on from was at fault: "
            "begin again with --model or --init and another --out\n");
    return;
  }
  if (!refusal || refusal->again) snprintf(more, sizeof more, " --lr %g", r->recipe.lr / 2);
  char *command = r->saved_step ? train_resume_command(r, more) : cli_command_text(r->s, more);
  if (r->saved_step)
    snprintf(kept, sizeof kept, "the last good checkpoint is %s/step-%06lld", r->out,
             (long long)r->saved_step);
  else snprintf(kept, sizeof kept, "there is no good checkpoint");
  fprintf(stderr, "birkhoff: %s; %s%s: %s\n", kept,
          r->saved_step ? "to go on from it" : "to begin again",
          *more ? " (the same recipe would come to the same step; another rate, for instance)" : "",
          command ? command : "--resume");
  bk_free(r->s->ctx, command);
}

static bk_status end_unsaved(train_run *r, bk_status status) {
  char kept[512];
  if (!cli_team_leads(r->team)) return status;
  char *command = train_resume_command(r, "");
  fprintf(stderr,
          "birkhoff: step %lld could not be saved and what was trained since the last save is "
          "lost; %s; when the cause is mended: %s\n",
          (long long)bk_trainer_step_done(r->trainer), kept_text(r, kept, sizeof kept),
          command ? command : "--resume");
  bk_free(r->s->ctx, command);
  return status;
}

/* What was being saved beside the training. If that has failed, the end is saved all the same. */
static bk_status end_saving(train_run *r) {
  int64_t step = r->saving_step;
  bk_status status = follow_saving(r, true);
  if (status == BK_OK || cli_team_lost(r->team, status)) return status;
  bk_warn(r->s->ctx, "step %lld is not saved; the last step is saved now", (long long)step);
  return BK_OK;
}

/* The last step, or the one at which a signal came, is saved whatever save_every says. */
static bk_status end_run(train_run *r) {
  BK_TRY(cli_team_step(r->team, BK_OK)); /* what was asked for since the step */
  cli_team_doing(r->team, "at its end");
  BK_TRY(end_saving(r));
  r->say_saved |= cli_team_take_save(r->team);
  bk_status status = save(r, false);
  if (cli_team_lost(r->team, status)) return status;
  if (status == BK_OK) prune(r);
  if (status == BK_OK) say_saved(r, bk_trainer_step_done(r->trainer));
  bk_status rows = cli_team_agree(r->team, flush_rows(r));
  if (status == BK_ERR_NOT_FINITE) end_not_finite(r);
  else if (status != BK_OK) return end_unsaved(r, status);
  return status != BK_OK ? status : rows;
}

/* ---- the loop ---- */

/* A step that is not finite is so on all ranks; one that fails otherwise may have failed on this
 * rank alone, while the others wait for it within the step. */
static bk_status take_step(train_run *r, bk_metrics_row *row) {
  char doing[48];
  snprintf(doing, sizeof doing, "in step %lld", (long long)bk_trainer_step_done(r->trainer) + 1);
  cli_team_doing(r->team, doing);
  bk_status status = bk_trainer_step(r->trainer, row);
  if (status != BK_OK && status != BK_ERR_NOT_FINITE) return cli_team_give_up(r->team, status);
  return cli_team_step(r->team, status);
}

/* What was being saved meanwhile; a checkpoint from which a step was taken lets older ones go. */
static bk_status after_step(train_run *r) {
  int64_t saving = r->saving_step;
  BK_TRY(or_retry(r, saving, follow_saving(r, false)));
  if (r->unproven && !r->saving_step) prune(r);
  return BK_OK;
}

static bk_status save_in_loop(train_run *r, int64_t step, bool asked) {
  char doing[64];
  snprintf(doing, sizeof doing, "while step %lld was being saved", (long long)step);
  cli_team_doing(r->team, doing);
  r->say_saved |= asked;
  BK_TRY(or_retry(r, step, save(r, r->recipe.save_async)));
  if (!r->saving_step) say_saved(r, step);
  return BK_OK;
}

static bk_status run_steps(train_run *r, progress *p) {
  BK_TRY(cli_team_step(r->team, BK_OK)); /* a signal may have come before the first step */
  while (bk_trainer_step_done(r->trainer) < r->recipe.steps && !r->team->signal) {
    bk_metrics_row row;
    int64_t due = next_save(r, bk_trainer_step_done(r->trainer));
    BK_TRY(take_step(r, &row));
    BK_TRY(after_step(r));
    if (row.has_val) r->last_val = row.val_loss;
    write_row(r, &row);
    if (!r->s->json && cli_team_leads(r->team)) show(r, p, &row);
    r->last = row;
    if (row.step == r->recipe.steps || r->team->signal) break; /* saved by end_run */
    bool asked = cli_team_take_save(r->team);
    if (row.step == due || asked) BK_TRY(save_in_loop(r, row.step, asked));
  }
  return BK_OK;
}

bk_status train_loop(train_run *r) {
  progress p = {.live = isatty(2) != 0};
  char kept[512];
  r->begin = cli_seconds();
  cli_team_kept(r->team, kept_text(r, kept, sizeof kept));
  bk_status status = run_steps(r, &p);
  if (status == BK_OK) {
    status = end_run(r);
  } else if (status != BK_ERR_NOT_FINITE) {
    flush_rows(r);
  } else if (!cli_team_lost(r->team, follow_saving(r, true))) {
    end_not_finite(r);
  }
  if (!cli_team_lost(r->team, status)) bk_checkpoint_save_end(r->saving);
  r->saving = NULL;
  return status;
}

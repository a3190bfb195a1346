/* birkhoff train in five files: cmd_train.c sets a run up, train_recipe.c knows its recipe,
 * train_pipeline.c lays its ranks out as pipelines, train_loop.c runs it, and train_report.c says
 * what comes of it.
 *
 * With several ranks all of them go through the same functions, in the same order. What one of
 * them does alone (rank 0: the lock, the folder, metrics, what is printed) is followed by an
 * agreement on its status, and so is what may fail on one rank and not on another. */
#ifndef BK_TOOLS_TRAIN_H
#define BK_TOOLS_TRAIN_H

#include "tools/team.h"

typedef struct train_run {
  cli_session *s;
  cli_team *team;
  const char *out;
  int lock; /* of DIR, see run_lock.h; -1: none; rank 0's */
  bk_model_config config;
  bk_train_config recipe;
  bk_dtype dtype;
  int64_t resumed_step; /* 0: from the beginning */
  char *from;           /* checkpoint whose weights are read; NULL: initial values */
  bk_trainer_state saved;
  bk_dataset *train, *val;
  bool unsplit;          /* bin_validation was turned off: the .bin files have no tenth to spare */
  bk_schedule *schedule; /* of pipelines; NULL: the model is whole on every rank */
  bk_pipeline *pipeline; /* the same */
  bk_model *model;
  bk_trainer *trainer;
  bk_metrics *metrics; /* rank 0's */
  int64_t saved_step;  /* newest checkpoint on disk, 0 = none */
  bool unproven;       /* no step has been taken from that checkpoint yet: older ones stay */
  bk_checkpoint_saving *saving;  /* with save_async */
  int64_t saving_step;           /* what is being written while training goes on; 0 = nothing */
  bool say_saved;                /* a signal asked for it */
  int64_t retry_step, retry_gap; /* after a save that failed: the step that tries again; 0 = none */
  double begin;
  bk_metrics_row last;
  double last_val; /* NaN until there is one */
} train_run;

/* train_pipeline.c: collective, after the comm was opened. */
bk_status train_open_pipeline(train_run *r);
/* --steps, --batch-size, ... on the recipe. */
bk_status train_recipe_options(cli_session *s, bk_train_config *t);
/* Reports every recipe key that differs from the checkpoint's. */
void train_log_changed_keys(bk_context *ctx, const bk_train_config *was,
                            const bk_train_config *now);
/* One warning each of what cannot come in so many steps: the full rate, a decay, a validation. */
void train_warn_recipe(const train_run *r);
/* Trains from where the trainer stands to the last step or a signal. Metrics, progress,
 * checkpoints; a save or a row of metrics that fails is warned about and tried again. BK_OK: all
 * that was asked for is done, or a signal came (team->signal), and the checkpoint and all metrics
 * are on disk. On failure what is left and how to go on has been said. */
bk_status train_loop(train_run *r);
/* What --dry-run prints; what a run prints at its end; the keys of --set; and, of a run on several
 * ranks, a line of how they work together. */
bk_status train_report_plan(train_run *r);
bk_status train_report(train_run *r);
void train_print_config_help(void);
void train_say_start(const train_run *r);
/* The command line that goes on with this run, with more words at its end; bk_free. NULL: out of
 * memory. */
char *train_resume_command(const train_run *r, const char *more);

#endif

/* The recipe of a run: what the command line says of it, what changed since a checkpoint, and
 * what will not do what it seems to. See train.h. */
#include <stdio.h>
#include <string.h>

#include "tools/train.h"

bk_status train_recipe_options(cli_session *s, bk_train_config *t) {
  static const struct {
    const char *option, *key;
  } options[] = {{"steps", "steps"},
                 {"batch-size", "batch_size"},
                 {"seq-len", "seq_len"},
                 {"seed", "seed"},
                 {"lr", "lr"}};
  for (size_t i = 0; i < BK_COUNT(options); i++)
    BK_TRY(cli_recipe_option(s, options[i].option, options[i].key, t));
  return BK_OK;
}

void train_log_changed_keys(bk_context *ctx, const bk_train_config *was,
                            const bk_train_config *now) {
  char a[64], b[64];
  for (const bk_option *o = bk_train_keys; o->name; o++) {
    bk_option_value_text(o, was, a, sizeof a);
    bk_option_value_text(o, now, b, sizeof b);
    if (strcmp(a, b) != 0) bk_warn(ctx, "resuming with %s = %s, it was %s", o->name, b, a);
  }
}

/* A warm-up that takes the whole run, or all of it but what the schedule needs. */
static void warn_rate(bk_context *ctx, const bk_train_config *t) {
  char schedule[64] = "";
  for (const bk_option *o = bk_train_keys; o->name; o++)
    if (strcmp(o->name, "lr_schedule") == 0) bk_option_value_text(o, t, schedule, sizeof schedule);
  long long warmup = t->warmup_steps, steps = t->steps;
  bool decays = t->lr_schedule != BK_LR_CONSTANT;
  if (warmup > steps)
    bk_warn(ctx,
            "warmup_steps %lld is longer than the run (steps %lld): the learning rate only rises, "
            "to %.3g of %g%s%s%s",
            warmup, steps, bk_learning_rate(t, t->steps), t->lr,
            decays ? ", and the decay of lr_schedule " : "", decays ? schedule : "",
            decays ? " never comes" : "");
  else if (decays && warmup == steps && warmup > 0)
    bk_warn(ctx,
            "the decay of lr_schedule %s never comes: warmup_steps %lld takes the whole run (steps "
            "%lld)",
            schedule, warmup, steps);
  else if (t->lr_schedule == BK_LR_COSINE && t->min_lr_ratio == 1 && t->lr > 0)
    bk_warn(
        ctx,
        "the decay of lr_schedule cosine never comes: min_lr_ratio is 1, so the rate stays at %g",
        t->lr);
}

/* What is done every N steps is done at the last step too. Only where N was asked for: short
 * runs of a preset need not say so. */
static void warn_interval(cli_session *s, const char *key, int64_t every, int64_t steps,
                          const char *what) {
  if (every > steps && cli_sets_key(s, key))
    bk_warn(s->ctx, "%s %lld is beyond the last step, %lld: %s", key, (long long)every,
            (long long)steps, what);
}

void train_warn_recipe(const train_run *r) {
  const bk_train_config *t = &r->recipe;
  warn_rate(r->s->ctx, t);
  if (r->val)
    warn_interval(r->s, "eval_every", t->eval_every, t->steps,
                  "the validation loss is measured once, at the end");
  warn_interval(r->s, "gain_every", t->gain_every, t->steps,
                "the gain is measured once, at the end");
}

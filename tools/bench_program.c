/* birkhoff bench step --program: what a step does, in order, without doing it: one line for each
 * call, with the lane, piece, phase and sublayer that it belongs to. The model is planned only, so
 * that one of any size can be looked at. */
#include <birkhoff/train.h>
#include <jansson.h>
#include <stdio.h>

#include "tools/bench.h"

typedef struct listing {
  json_t *rows; /* with --json */
  int n;
} listing;

static bk_status add_row(void *user, const bk_step_call *c) {
  listing *l = user;
  json_t *sublayer = c->sublayer < 0 ? json_null() : json_integer(c->sublayer);
  json_t *row = json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:o,s:s,s:s}", "call", l->n++, "program",
                          c->program, "lane", c->lane, "piece", c->part, "pass", c->pass, "phase",
                          c->phase, "sublayer", sublayer, "op", c->op, "kernel", c->kernel);
  return row && json_array_append_new(l->rows, row) == 0 ? BK_OK : BK_ERR_MEMORY;
}

static bk_status print_row(void *user, const bk_step_call *c) {
  listing *l = user;
  char piece[32], sublayer[16] = "-";
  snprintf(piece, sizeof piece, "%s.%s", c->part, c->pass);
  if (c->sublayer >= 0) snprintf(sublayer, sizeof sublayer, "%d", c->sublayer);
  printf("%5d  %-14s  %-7s  %-12s  %-9s  %8s  %-16s  %s\n", l->n++, c->program, c->lane, piece,
         c->phase, sublayer, c->op, c->kernel);
  return BK_OK;
}

static bk_status print_json(cli_session *s, const bk_trainer *t) {
  listing l = {.rows = json_array()};
  bk_status status = l.rows ? bk_trainer_program(t, add_row, &l) : BK_ERR_MEMORY;
  if (status == BK_OK) return cli_print_json(s, l.rows);
  json_decref(l.rows);
  return status;
}

static bk_status print_text(cli_session *s, const bk_trainer *t, int64_t micro_batches) {
  listing l = {0};
  printf("# micro-batches of a step: %lld%s\n", (long long)micro_batches,
         micro_batches > 2 ? "; those after the second are as the second" : "");
  printf("%5s  %-14s  %-7s  %-12s  %-9s  %8s  %-16s  %s\n", "call", "program", "lane", "piece",
         "phase", "sublayer", "op", "kernel");
  BK_TRY(bk_trainer_program(t, print_row, &l));
  return cli_flush_stdout(s);
}

bk_status bench_program(cli_session *s, const bk_model_config *config, bk_dtype dtype,
                        const bk_train_config *recipe) {
  bk_model *model = NULL;
  bk_trainer *trainer = NULL;
  bk_model_options planned = {.trainable = true, .plan_only = true};
  bk_status status = bk_model_create(s->device, config, dtype, &planned, &model);
  if (status == BK_OK) status = bk_trainer_create(model, recipe, NULL, NULL, &trainer);
  if (status == BK_OK)
    status = s->json ? print_json(s, trainer)
                     : print_text(s, trainer, recipe->batch_size / recipe->micro_batch_size);
  bk_trainer_destroy(trainer);
  bk_model_destroy(model);
  return status;
}

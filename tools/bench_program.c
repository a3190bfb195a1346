/* birkhoff bench step --program: what a step does, in order, without doing it: one line for each
 * call, with the lane, piece, phase and sublayer that it belongs to. The model is planned only, so
 * that one of any size can be looked at. */
#include <jansson.h>
#include <stdio.h>

#include "tools/bench.h"

typedef struct listing {
  json_t *rows; /* with --json */
  const char *what;
  int n;
} listing;

static const char *call_name(const bk_call *c) {
  static const char *const names[] = {
      [BK_CALL_ZERO] = "(zero)", [BK_CALL_SIGNAL] = "(signal)", [BK_CALL_WAIT] = "(wait)"};
  return c->kind == BK_CALL_OP ? bk_op_name(c->op) : names[c->kind];
}

/* The kernel of an op; the lane that is waited for. */
static const char *call_kernel(const bk_call *c) {
  if (c->kind == BK_CALL_OP) return c->of->plan.kernel->name;
  return c->kind == BK_CALL_WAIT ? bk_lane_name(c->from) : "";
}

static bk_status add_row(listing *l, const bk_piece *piece, const bk_call *c) {
  json_t *sublayer = piece->sublayer < 0 ? json_null() : json_integer(piece->sublayer);
  json_t *row = json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:o,s:s,s:s}", "call", l->n, "program", l->what,
                          "lane", bk_lane_name(c->lane), "piece", bk_part_name(piece->part), "pass",
                          bk_pass_name(piece->pass), "phase", bk_phase_name(piece->phase),
                          "sublayer", sublayer, "op", call_name(c), "kernel", call_kernel(c));
  return row && json_array_append_new(l->rows, row) == 0 ? BK_OK : BK_ERR_MEMORY;
}

static void print_row(const listing *l, const bk_piece *piece, const bk_call *c) {
  char piece_text[32], sublayer[16] = "-";
  snprintf(piece_text, sizeof piece_text, "%s.%s", bk_part_name(piece->part),
           bk_pass_name(piece->pass));
  if (piece->sublayer >= 0) snprintf(sublayer, sizeof sublayer, "%d", piece->sublayer);
  printf("%5d  %-14s  %-7s  %-12s  %-9s  %8s  %-16s  %s\n", l->n, l->what, bk_lane_name(c->lane),
         piece_text, bk_phase_name(piece->phase), sublayer, call_name(c), call_kernel(c));
}

static bk_status list_program(listing *l, const bk_program *p, const char *what) {
  l->what = what;
  for (int i = 0; p && i < p->n_calls; i++) {
    const bk_call *c = &p->calls[i];
    const bk_piece *piece = &p->pieces[c->piece];
    if (l->rows) BK_TRY(add_row(l, piece, c));
    else print_row(l, piece, c);
    l->n++;
  }
  return BK_OK;
}

static bk_status list_step(listing *l, const bk_runner *r, const bk_optimizer *o, bool several) {
  static const char *const loss[] = {"loss, first", "loss, next"}, *const backward[] = {
                                                                       "backward, first",
                                                                       "backward, next"};
  const bk_chunk *c = bk_runner_chunk(r, 0);
  for (int micro = BK_MICRO_FIRST; micro <= (several ? BK_MICRO_NEXT : BK_MICRO_FIRST); micro++) {
    BK_TRY(list_program(l, bk_chunk_program(c, 0, BK_PROGRAM_FORWARD), "forward"));
    BK_TRY(list_program(l, bk_chunk_program(c, 0, BK_PROGRAM_LOSS + micro), loss[micro]));
    BK_TRY(list_program(l, bk_chunk_program(c, 0, BK_PROGRAM_BACKWARD + micro), backward[micro]));
  }
  return list_program(l, bk_optimizer_program(o), "optimizer");
}

static bk_status print_step(cli_session *s, const bk_runner *r, const bk_optimizer *o,
                            int64_t micro_batches) {
  listing l = {.rows = s->json ? json_array() : NULL};
  if (s->json && !l.rows) return BK_ERR_MEMORY;
  if (!s->json) {
    printf("# micro-batches of a step: %lld%s\n", (long long)micro_batches,
           micro_batches > 2 ? "; those after the second are as the second" : "");
    printf("%5s  %-14s  %-7s  %-12s  %-9s  %8s  %-16s  %s\n", "call", "program", "lane", "piece",
           "phase", "sublayer", "op", "kernel");
  }
  bk_status status = list_step(&l, r, o, micro_batches > 1);
  if (status != BK_OK) {
    json_decref(l.rows);
    return status;
  }
  return s->json ? cli_print_json(s, l.rows) : cli_flush_stdout(s);
}

bk_status bench_program(cli_session *s, const bk_model_config *config, bk_dtype dtype,
                        const bk_runner_options *runner_options, const bk_optimizer_options *adam,
                        int64_t micro_batches) {
  bk_model *model = NULL;
  bk_runner *runner = NULL;
  bk_optimizer *optimizer = NULL;
  bk_model_options planned = {.trainable = true, .plan_only = true};
  bk_status status = bk_model_create(s->device, config, dtype, &planned, &model);
  if (status == BK_OK) status = bk_runner_create(model, runner_options, &runner);
  if (status == BK_OK) status = bk_optimizer_create(model, adam, &optimizer);
  if (status == BK_OK) status = print_step(s, runner, optimizer, micro_batches);
  bk_optimizer_destroy(optimizer);
  bk_runner_destroy(runner);
  bk_model_destroy(model);
  return status;
}

/* A step as a list of its calls, without running it. See birkhoff/train.h. The calls come in the
 * order in which they run; those on another lane run beside what follows. */
#include "models/trainer.h"

/* This is whom the calls are told to. */
typedef struct listing {
  bk_step_call_fn each;
  void *user;
} listing;

/* Of calls that are no ops the op's name is in parentheses, and the kernel is the lane that is
 * waited for, or nothing. All strings are static, or live as long as the runner. */
static bk_step_call describe(const char *program, const bk_piece *piece, const bk_call *c) {
  static const char *const others[] = {
      [BK_CALL_ZERO] = "(zero)", [BK_CALL_SIGNAL] = "(signal)", [BK_CALL_WAIT] = "(wait)"};
  return (bk_step_call){.program = program,
                        .lane = bk_lane_name(c->lane),
                        .part = bk_part_name(piece->part),
                        .pass = bk_pass_name(piece->pass),
                        .phase = bk_phase_name(piece->phase),
                        .sublayer = piece->sublayer,
                        .op = c->kind == BK_CALL_OP ? bk_op_name(c->op) : others[c->kind],
                        .kernel = c->kind == BK_CALL_OP     ? c->of->plan.kernel->name
                                  : c->kind == BK_CALL_WAIT ? bk_lane_name(c->from)
                                                            : ""};
}

/* A program that the chunk does not have is NULL and has no calls. */
static bk_status list_program(const listing *l, const char *name, const bk_program *p) {
  for (int i = 0; p && i < p->n_calls; i++) {
    bk_step_call call = describe(name, &p->pieces[p->calls[i].piece], &p->calls[i]);
    BK_TRY(l->each(l->user, &call));
  }
  return BK_OK;
}

/* Of one micro-batch, the programs in slot 0 of all chunks, as the runner runs them: forward in
 * their order, backward the other way round. */
static bk_status list_micro(const listing *l, const bk_runner *runner, bk_micro micro) {
  static const char *const loss[] = {"loss, first", "loss, next"};
  static const char *const backward[] = {"backward, first", "backward, next"};
  int n = bk_runner_n_chunks(runner);
  for (int i = 0; i < n; i++) {
    const bk_chunk *c = bk_runner_chunk(runner, i);
    BK_TRY(list_program(l, "forward", bk_chunk_program(c, 0, BK_PROGRAM_FORWARD)));
    BK_TRY(list_program(l, loss[micro], bk_chunk_program(c, 0, BK_PROGRAM_LOSS + (int)micro)));
  }
  for (int i = n - 1; i >= 0; i--) {
    const bk_program *p =
        bk_chunk_program(bk_runner_chunk(runner, i), 0, BK_PROGRAM_BACKWARD + (int)micro);
    BK_TRY(list_program(l, backward[micro], p));
  }
  return BK_OK;
}

/* With `several` micro-batches the programs that add are listed behind those that overwrite. */
bk_status bk_list_step(const bk_runner *runner, const bk_optimizer *optimizer, bool several,
                       bk_step_call_fn each, void *user) {
  const listing l = {each, user};
  BK_TRY(list_micro(&l, runner, BK_MICRO_FIRST));
  if (several) BK_TRY(list_micro(&l, runner, BK_MICRO_NEXT));
  for (int i = 0; i < BK_OPTIMIZER_PROGRAMS; i++)
    BK_TRY(list_program(&l, "optimizer", bk_optimizer_program(optimizer, i)));
  return BK_OK;
}

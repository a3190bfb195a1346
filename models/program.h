/* Programs: what a step launches, recorded once when a model is made ready; running one is a loop.
 *
 * A program is an array of calls. A call is an op with its arguments and the plan that was
 * prepared for them, the zeroing of a tensor, or one of the two that order lanes: a signal on one
 * lane, a wait for it on another. Calls lie in pieces. A piece is a range of calls that belong
 * together and run on one lane: a schedule may run the pieces of a program one by one, with pieces
 * of other chunks in between, as long as it keeps their order. Arguments never change; what a step
 * does differently is another program. There are therefore two of each program that writes
 * gradients: *first*, which overwrites them, for the first micro-batch of a step, and *next*,
 * which adds.
 *
 * Recording: bk_record_begin, then bk_record_piece and bk_record as the step goes, bk_record_end.
 * The recorder prepares plans (equal calls share one), asks for the lanes' workspaces, and finds
 * out from the ops' descriptors where a lane must wait for another: where a call touches what was
 * written, or writes what was touched, on another lane since the last wait. The first call on
 * another lane waits for the compute lane, and at its end a program has joined all lanes to it. */
#ifndef BK_PROGRAM_H
#define BK_PROGRAM_H

#include "models/graph.h"
#include "models/lanes.h"
#include "models/model.h"

/* What the calls of a piece are for, as profiles count them. `loss` includes the dgrad and wgrad
 * of lm_head, which are done with the loss; `merge` and `mix_bwd` include the mix of the next and
 * the merge of the previous sublayer where the two are one op. X(ID, name) */
#define BK_PHASE_LIST(X)    \
  X(EMBED, "embed")         \
  X(MIX, "mix")             \
  X(FORWARD, "forward")     \
  X(MERGE, "merge")         \
  X(HEAD, "head")           \
  X(LOSS, "loss")           \
  X(HEAD_BWD, "head_bwd")   \
  X(REBUILD, "rebuild")     \
  X(MERGE_BWD, "merge_bwd") \
  X(DGRAD, "dgrad")         \
  X(WGRAD, "wgrad")         \
  X(MIX_BWD, "mix_bwd")     \
  X(EMBED_BWD, "embed_bwd") \
  X(OPTIMIZER, "optimizer")
typedef enum bk_phase {
#define BK_PHASE_ENUM(id, name) BK_PHASE_##id,
  BK_PHASE_LIST(BK_PHASE_ENUM)
#undef BK_PHASE_ENUM
      BK_PHASE_COUNT
} bk_phase;
const char *bk_phase_name(bk_phase phase);

/* The kinds of pieces: a part of the model in one of three passes. F is the forward pass, D the
 * gradients of activations (with those of parameters that come in the same op), W the gradients of
 * parameters alone. REBUILD makes again, within D or W, what was not kept of the forward pass:
 * streams, or the inside of one F. X(PART, name, phase in F, in D, in W); a phase of COUNT: no such
 * piece. */
#define BK_PIECE_LIST(X)                           \
  X(EMBED, "embed", EMBED, EMBED_BWD, COUNT)       \
  X(MIX, "mix", MIX, MIX_BWD, COUNT)               \
  X(ATTENTION, "attention", FORWARD, DGRAD, WGRAD) \
  X(MLP, "mlp", FORWARD, DGRAD, WGRAD)             \
  X(ROUTE, "route", FORWARD, DGRAD, WGRAD)         \
  X(DISPATCH, "dispatch", FORWARD, DGRAD, COUNT)   \
  X(SHARED, "shared", FORWARD, DGRAD, WGRAD)       \
  X(EXPERTS, "experts", FORWARD, DGRAD, WGRAD)     \
  X(COMBINE, "combine", FORWARD, DGRAD, COUNT)     \
  X(MERGE, "merge", MERGE, MERGE_BWD, COUNT)       \
  X(REBUILD, "rebuild", COUNT, REBUILD, REBUILD)   \
  X(HEAD, "head", HEAD, HEAD_BWD, COUNT)           \
  X(LOSS, "loss", LOSS, COUNT, COUNT)              \
  X(LOSS_SUM, "loss_sum", LOSS, COUNT, COUNT)      \
  X(OPTIMIZER, "optimizer", OPTIMIZER, COUNT, COUNT)
typedef enum bk_part {
#define BK_PART_ENUM(id, name, f, d, w) BK_PART_##id,
  BK_PIECE_LIST(BK_PART_ENUM)
#undef BK_PART_ENUM
      BK_PARTS
} bk_part;
typedef enum bk_pass { BK_PASS_F, BK_PASS_D, BK_PASS_W, BK_PASSES } bk_pass;
const char *bk_part_name(bk_part part);
const char *bk_pass_name(bk_pass pass); /* "F" */

/* A piece is a range of calls of one program, on one lane, in the order in which they run. */
typedef struct bk_piece {
  bk_part part;
  bk_pass pass;
  bk_phase phase;
  bk_lane lane;
  int sublayer;   /* in the whole model; -1: none */
  int begin, end; /* its calls */
} bk_piece;

/* OP launches a kernel; ZERO fills a tensor with zeros; SIGNAL records the lane's event; WAIT makes
 * a lane wait for another's. */
typedef enum bk_call_kind { BK_CALL_OP, BK_CALL_ZERO, BK_CALL_SIGNAL, BK_CALL_WAIT } bk_call_kind;

/* The members that a kind of call has are said at each; the others are zero. */
typedef struct bk_call {
  bk_call_kind kind;
  bk_op op;     /* OP */
  bk_lane lane; /* the lane it runs on; SIGNAL: that signals; WAIT: that waits */
  bk_lane from; /* WAIT: the lane whose last signal is waited for */
  int piece;
  const void *args;            /* OP: the op's arguments, ZERO: a bk_tensor */
  const struct bk_plan_of *of; /* OP */
} bk_call;

/* A plan, shared by all calls with the same key (bk_op_plan_key) on the same lane. */
typedef struct bk_plan_of {
  bk_op op;
  bk_lane lane;
  uint64_t hash;
  void *key; /* NULL once recording has ended, except in debug builds */
  bk_plan plan;
} bk_plan_of;

/* The plans of one owner of programs, released after them. A chunk has one for all its slots, the
 * optimiser has one, and so has every connection that stands alone. */
typedef struct bk_plans {
  bk_context *ctx;
  bk_plan_of **list;
  int count;
  size_t capacity;
} bk_plans;
void bk_plans_fini(bk_plans *plans); /* safe on a zeroed one */
/* Ends recording: frees the keys by which equal calls find their plan. */
void bk_plans_close(bk_plans *plans);

/* A program is recorded once and then constant: running it changes its graph alone. It refers to
 * lanes, plans and the tensors' buffers, all of which must outlive it. */
typedef struct bk_program {
  bk_context *ctx;
  bk_lanes *lanes;
  bk_call *calls;
  bk_piece *pieces;
  char *args; /* arguments of its calls, except those that it shares with another program */
  int n_calls, n_pieces;
  size_t calls_capacity, pieces_capacity, args_used, args_capacity;
  bk_event *signals[BK_LANES]; /* one for each lane, used again and again; NULL: it never signals */
  bk_graph graph;
} bk_program;
void bk_program_fini(bk_program *program); /* safe on a zeroed one */

/* ---- recording ---- */
typedef struct bk_touch { /* bytes that a call reads or writes */
  const bk_buffer *buffer;
  size_t begin, end;
  bk_lane lane;
  bool writes;
} bk_touch;

/* This is the state of a recording. One recorder makes the programs of an owner one after the
 * other, so that they share plans; it is not needed to run them. */
typedef struct bk_recorder {
  bk_device *device;
  bk_lanes *lanes;
  bk_plans *plans;
  const bk_param_block *blocks; /* blocks whose gradients the programs write; NULL: none */
  int n_blocks;
  bk_program *program;
  const bk_program *like; /* a program whose arguments are shared where equal; NULL: none */
  int at_like;            /* its next call */
  size_t *args_at; /* by call: its offset in program->args, which may still move; SIZE_MAX: none */
  size_t args_at_capacity;
  bool first;       /* gradients are overwritten */
  uint8_t *written; /* [n_blocks]: this program has written the gradient */
  bk_touch *touches;
  size_t touches_capacity;
  /* seen[a][b]: how many touches there were when lane a last waited for lane b */
  int n_touches, seen[BK_LANES][BK_LANES];
  bool entered[BK_LANES]; /* the lane has waited for the compute lane */
  bool idle[BK_LANES];    /* the lane has done nothing since its last signal */
} bk_recorder;

bk_status bk_recorder_init(bk_recorder *rec, bk_device *device, bk_lanes *lanes, bk_plans *plans,
                           const bk_param_block *blocks, int n_blocks);
void bk_recorder_fini(bk_recorder *rec); /* safe on a zeroed one */
/* Begins to record into a zeroed program. `like` is a program that launches the same ops in the
 * same order and lives as long: arguments that are equal are then kept once. NULL: there is
 * none. */
void bk_record_begin(bk_recorder *rec, bk_program *program, bool first, const bk_program *like);
/* What follows belongs to this piece. If its lane is not open, it runs on compute. */
bk_status bk_record_piece(bk_recorder *rec, bk_part part, bk_pass pass, int sublayer, bk_lane lane);
/* The arguments are copied. Fails where the device has no kernel, with a message that names the
 * op. */
bk_status bk_record(bk_recorder *rec, bk_op op, const void *args);
/* To be called before a call that adds to this block's gradient: in a *first* program the gradient
 * is zeroed before, once. */
bk_status bk_record_adds_to(bk_recorder *rec, const bk_param_block *block);
/* Whether the product that comes next adds to this block's gradient or overwrites it. */
bool bk_record_accumulates(bk_recorder *rec, const bk_param_block *block);
/* graph_name: as in graph.h; NULL: it is never captured. `warned` is the model's. */
bk_status bk_record_end(bk_recorder *rec, const char *graph_name, bool *warned);

/* ---- running ---- */
/* Called after each piece. A status other than BK_OK ends the run and is returned. */
typedef bk_status (*bk_look_fn)(void *arg, const bk_piece *piece);

/* This says how a program is to be run; all zero is the plain way. */
typedef struct bk_run {
  struct bk_profile *profile; /* profile.h; NULL: launches are not timed */
  bk_look_fn look;            /* called after each piece; NULL: nothing is */
  void *look_arg;
  bk_look_fn after; /* the same for what does not read: lanes stay as they are; NULL: nothing is */
  void *after_arg;
} bk_run;

/* Runs all pieces. A run with a profile or a look uses the compute lane alone, so that its order
 * in time is that of the program; such a run, and one with an `after`, is not captured. After a
 * failure it waits for the lanes. */
bk_status bk_program_run(bk_program *program, const bk_run *run);
/* Runs one piece, call by call. This is for schedules; after a failure they must wait for the
 * lanes (bk_lanes_sync). */
bk_status bk_program_run_piece(const bk_program *program, const bk_piece *piece, const bk_run *run);

#endif

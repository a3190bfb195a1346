/* Programs: recording and running (program.h). Recording may allocate and may be slow; running
 * does neither. The order of the calls fixes the bits of a step, because every gradient is summed
 * in it.
 *
 * Three things are found out while recording: the plan of each call, the waits between lanes, and
 * whether a gradient is overwritten or added to. What a run does is then fixed. */
#include "models/program.h"

#include "models/profile.h"
#include "ops/ops.h"

#include <string.h>

#define ARGS_ALIGN 16

/* ---- names ---- */
const char *bk_phase_name(bk_phase phase) {
#define BK_PHASE_NAME(id, name) name,
  static const char *const names[] = {BK_PHASE_LIST(BK_PHASE_NAME)};
#undef BK_PHASE_NAME
  return (unsigned)phase < BK_COUNT(names) ? names[phase] : "?";
}

const char *bk_part_name(bk_part part) {
#define BK_PART_NAME(id, name, f, d, w) name,
  static const char *const names[] = {BK_PIECE_LIST(BK_PART_NAME)};
#undef BK_PART_NAME
  return (unsigned)part < BK_COUNT(names) ? names[part] : "?";
}

const char *bk_pass_name(bk_pass pass) {
  static const char *const names[BK_PASSES] = {"F", "D", "W"};
  return (unsigned)pass < BK_PASSES ? names[pass] : "?";
}

/* BK_PHASE_COUNT where the table has no such piece; nobody records one. */
static bk_phase phase_of(bk_part part, bk_pass pass) {
#define BK_PART_PHASES(id, name, f, d, w) {BK_PHASE_##f, BK_PHASE_##d, BK_PHASE_##w},
  static const bk_phase phases[BK_PARTS][BK_PASSES] = {BK_PIECE_LIST(BK_PART_PHASES)};
#undef BK_PART_PHASES
  return phases[part][pass];
}

/* ---- plans ---- */
/* Works after a recording that failed, too. */
void bk_plans_fini(bk_plans *plans) {
  for (int i = 0; i < plans->count; i++) {
    bk_plan_release(&plans->list[i]->plan);
    bk_free(plans->ctx, plans->list[i]->key);
    bk_free(plans->ctx, plans->list[i]);
  }
  bk_free(plans->ctx, plans->list);
  *plans = (bk_plans){0};
}

void bk_plans_close(bk_plans *plans) {
#ifdef BK_DEBUG
  (void)plans; /* launches are compared with them */
#else
  for (int i = 0; i < plans->count; i++) {
    bk_free(plans->ctx, plans->list[i]->key);
    plans->list[i]->key = NULL;
  }
#endif
}

/* `like` has op, lane, hash and key; the key becomes the new plan's on success only. */
static bk_status add_plan(bk_plans *plans, bk_device *device, const bk_plan_of *like,
                          const void *args, const bk_plan_of **of) {
  BK_TRY(bk_grow(plans->ctx, (void **)&plans->list, &plans->capacity, (size_t)plans->count + 1,
                 sizeof *plans->list));
  bk_plan_of *made = bk_alloc(plans->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  *made = *like;
  bk_status status = bk_plan_prepare(device, like->op, args, &made->plan);
  if (status == BK_OK) *of = plans->list[plans->count++] = made;
  else bk_free(plans->ctx, made);
  return status;
}

/* The plan for these arguments: an earlier one with the same key on the same lane, or a new one.
 * Lanes do not share plans, because a plan's state serves one stream at a time. The list is
 * searched from its beginning, hash first; this happens while recording only. */
static bk_status find_plan(bk_recorder *rec, bk_op op, bk_lane lane, const void *args,
                           const bk_plan_of **of) {
  bk_plans *plans = rec->plans;
  size_t size = bk_op_describe(op)->args_size;
  _Alignas(16) char key[BK_OP_MAX_ARGS];
  bk_op_plan_key(op, args, key);
  bk_plan_of like = {.op = op, .lane = lane, .hash = bk_hash64(key, size)};
  for (int i = 0; i < plans->count; i++) {
    const bk_plan_of *p = plans->list[i];
    if (p->hash != like.hash || p->op != op || p->lane != lane || memcmp(p->key, key, size) != 0)
      continue;
    *of = p;
    return BK_OK;
  }
  like.key = bk_alloc(plans->ctx, size);
  if (!like.key) return BK_ERR_MEMORY;
  memcpy(like.key, key, size);
  bk_status status = add_plan(plans, rec->device, &like, args, of);
  if (status != BK_OK) bk_free(plans->ctx, like.key);
  return status;
}

/* ---- recording: calls ---- */
/* `written` has a byte for each block whose gradients the programs write. */
bk_status bk_recorder_init(bk_recorder *rec, bk_device *device, bk_lanes *lanes, bk_plans *plans,
                           const bk_param_block *blocks, int n_blocks) {
  *rec = (bk_recorder){
      .device = device, .lanes = lanes, .plans = plans, .blocks = blocks, .n_blocks = n_blocks};
  plans->ctx = device->ctx;
  if (!blocks) return BK_OK;
  rec->written = bk_alloc(device->ctx, (size_t)n_blocks);
  return rec->written ? BK_OK : BK_ERR_MEMORY;
}

void bk_recorder_fini(bk_recorder *rec) {
  if (!rec->device) return;
  bk_free(rec->device->ctx, rec->written);
  bk_free(rec->device->ctx, rec->touches);
  bk_free(rec->device->ctx, rec->args_at);
  *rec = (bk_recorder){0};
}

/* All lanes but compute begin idle: none has work of this program, and none needs a signal. */
void bk_record_begin(bk_recorder *rec, bk_program *program, bool first, const bk_program *like) {
  *program = (bk_program){.ctx = rec->device->ctx, .lanes = rec->lanes};
  rec->program = program;
  rec->like = like;
  rec->at_like = 0;
  rec->first = first;
  rec->n_touches = 0;
  if (rec->written) memset(rec->written, 0, (size_t)rec->n_blocks);
  memset(rec->seen, 0, sizeof rec->seen);
  memset(rec->entered, 0, sizeof rec->entered);
  for (int i = 0; i < BK_LANES; i++) rec->idle[i] = i != BK_LANE_COMPUTE;
}

/* This is the piece that is being recorded. */
static bk_piece *last_piece(const bk_program *p) { return &p->pieces[p->n_pieces - 1]; }

/* Equal keys do not say where the operands are, so that this is compared here. */
static bool same_places(bk_op op, const void *a, const void *b) {
  const bk_op_desc *d = bk_op_describe(op);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *x = bk_op_field_get(a, &d->fields[i]), *y = bk_op_field_get(b, &d->fields[i]);
    if (x->buffer != y->buffer || x->offset != y->offset) return false;
  }
  return true;
}

/* The arguments of the next op of the program `like`, if they are these: equal plans mean equal
 * keys, and the places are compared. The two programs of a kind differ only where gradients are
 * written, so that most arguments are kept once. */
static const void *shared_args(bk_recorder *rec, const bk_call *call, const void *args) {
  const bk_program *like = rec->like;
  while (like && rec->at_like < like->n_calls) {
    const bk_call *c = &like->calls[rec->at_like++];
    if (c->kind != BK_CALL_OP) continue;
    return c->of == call->of && same_places(c->op, c->args, args) ? c->args : NULL;
  }
  return NULL;
}

/* Appends the arguments of the next call. Only the offset is noted: the array may move as it
 * grows. */
static bk_status add_args(bk_recorder *rec, const void *args, size_t size) {
  bk_program *p = rec->program;
  size_t begin = BK_ALIGN_UP(p->args_used, (size_t)ARGS_ALIGN);
  BK_TRY(bk_grow(p->ctx, (void **)&p->args, &p->args_capacity, begin + size, 1));
  memcpy(p->args + begin, args, size);
  p->args_used = begin + size;
  rec->args_at[p->n_calls] = begin;
  return BK_OK;
}

/* Grows everything before it writes anything: a failure leaves the program as it was. */
static bk_status add_call(bk_recorder *rec, bk_call call, const void *args, size_t size) {
  bk_program *p = rec->program;
  BK_TRY(bk_grow(p->ctx, (void **)&p->calls, &p->calls_capacity, (size_t)p->n_calls + 1,
                 sizeof *p->calls));
  BK_TRY(bk_grow(p->ctx, (void **)&rec->args_at, &rec->args_at_capacity, (size_t)p->n_calls + 1,
                 sizeof *rec->args_at));
  rec->args_at[p->n_calls] = SIZE_MAX;
  if (args) BK_TRY(add_args(rec, args, size));
  call.piece = p->n_pieces - 1;
  p->calls[p->n_calls++] = call;
  last_piece(p)->end = p->n_calls;
  return BK_OK;
}

/* Now that the array no longer moves, calls point into it. Arguments that are shared point into the
 * other program's. */
static void place_args(bk_recorder *rec) {
  bk_program *p = rec->program;
  for (int i = 0; i < p->n_calls; i++)
    if (rec->args_at[i] != SIZE_MAX) p->calls[i].args = p->args + rec->args_at[i];
}

/* ---- recording: lanes ---- */
/* A lane that has done nothing since its last signal needs no other. */
static bk_status signal_lane(bk_recorder *rec, bk_lane lane) {
  if (rec->idle[lane]) return BK_OK;
  rec->idle[lane] = true;
  return add_call(rec, (bk_call){.kind = BK_CALL_SIGNAL, .lane = lane}, NULL, 0);
}

/* Makes `lane` wait for everything that the other lane did up to its last signal. */
static bk_status wait_lane(bk_recorder *rec, bk_lane lane, bk_lane from) {
  rec->seen[lane][from] = rec->n_touches;
  return add_call(rec, (bk_call){.kind = BK_CALL_WAIT, .lane = lane, .from = from}, NULL, 0);
}

/* Most models have one lane only, and their programs no signals and waits. */
static bool one_lane(const bk_recorder *rec) {
  for (int i = 0; i < BK_LANES; i++)
    if (i != BK_LANE_COMPUTE && bk_lanes_has(rec->lanes, (bk_lane)i)) return false;
  return true;
}

/* Two touches conflict if they overlap and at least one of them writes. */
static bool conflicts(const bk_touch *a, const bk_touch *b) {
  return a->buffer == b->buffer && (a->writes || b->writes) && a->begin < b->end &&
         b->begin < a->end;
}

/* Before a call that touches these bytes: makes its lane wait for each other lane with a
 * conflicting touch that it has not waited for yet. The search goes back from the newest touch,
 * and ends where the lane has seen all others' touches. A wait covers everything before the
 * signal, so that more waits are rarely needed. */
static bk_status wait_for_others(bk_recorder *rec, const bk_touch *touch) {
  /* touches before `known` were waited for, whichever lane made them */
  int known = rec->n_touches;
  for (int i = 0; i < BK_LANES; i++) {
    int seen = rec->seen[touch->lane][i];
    if (i != (int)touch->lane && bk_lanes_has(rec->lanes, (bk_lane)i) && seen < known) known = seen;
  }
  for (int i = rec->n_touches - 1; i >= known; i--) {
    const bk_touch *other = &rec->touches[i];
    /* its own lane keeps its order, and an earlier wait may have covered the touch */
    if (other->lane == touch->lane || i < rec->seen[touch->lane][other->lane]) continue;
    if (conflicts(other, touch)) BK_TRY(wait_lane(rec, touch->lane, other->lane));
  }
  return BK_OK;
}

/* A touch is the span of a tensor with its gaps: views of one tensor that interleave count as
 * overlapping, which may make a lane wait without need, and never too little. */
static bk_touch touch_of(const bk_tensor *t, bk_lane lane, bool writes) {
  return (bk_touch){t->buffer, t->offset, t->offset + bk_tensor_span(t), lane, writes};
}

/* Touches are kept until the program is recorded. */
static bk_status touch(bk_recorder *rec, const bk_touch *one) {
  BK_TRY(bk_grow(rec->device->ctx, (void **)&rec->touches, &rec->touches_capacity,
                 (size_t)rec->n_touches + 1, sizeof *rec->touches));
  rec->touches[rec->n_touches++] = *one;
  return BK_OK;
}

/* What an op touches, from its descriptor. With `before` its lane waits where it must; without,
 * the touches are noted for later calls. The waits come first so that a call does not wait for
 * itself. */
static bk_status order_op(bk_recorder *rec, bk_op op, bk_lane lane, const void *args, bool before) {
  const bk_op_desc *d = bk_op_describe(op);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = bk_op_field_get(args, &d->fields[i]);
    if (!bk_tensor_present(t)) continue;
    bk_touch one = touch_of(t, lane, d->fields[i].role != BK_IN);
    BK_TRY(before ? wait_for_others(rec, &one) : touch(rec, &one));
  }
  return BK_OK;
}

/* ---- recording: what the models call ---- */
/* The lane of the piece before signals when it ends, and compute signals when another lane begins,
 * so that neither is held up by what comes later. */
bk_status bk_record_piece(bk_recorder *rec, bk_part part, bk_pass pass, int sublayer,
                          bk_lane lane) {
  bk_program *p = rec->program;
  if (!bk_lanes_has(rec->lanes, lane)) lane = BK_LANE_COMPUTE;
  if (p->n_pieces && last_piece(p)->lane != lane) BK_TRY(signal_lane(rec, last_piece(p)->lane));
  BK_TRY(bk_grow(p->ctx, (void **)&p->pieces, &p->pieces_capacity, (size_t)p->n_pieces + 1,
                 sizeof *p->pieces));
  p->pieces[p->n_pieces++] = (bk_piece){.part = part,
                                        .pass = pass,
                                        .phase = phase_of(part, pass),
                                        .lane = lane,
                                        .sublayer = sublayer,
                                        .begin = p->n_calls,
                                        .end = p->n_calls};
  return BK_OK;
}

/* Before the first call of a program on another lane: that lane waits for whatever was given to
 * compute before the program. */
static bk_status enter_lane(bk_recorder *rec, bk_lane lane) {
  if (lane == BK_LANE_COMPUTE || rec->entered[lane]) return BK_OK;
  rec->entered[lane] = true;
  BK_TRY(signal_lane(rec, BK_LANE_COMPUTE));
  return wait_lane(rec, lane, BK_LANE_COMPUTE);
}

/* Order matters: waits go in front of the call, its touches behind it. */
bk_status bk_record(bk_recorder *rec, bk_op op, const void *args) {
  bk_program *p = rec->program;
  bk_call call = {.kind = BK_CALL_OP, .op = op, .lane = last_piece(p)->lane};
  bool tracked = !one_lane(rec); /* with a single open lane there is nothing to order */
  BK_TRY(enter_lane(rec, call.lane));
  BK_TRY(find_plan(rec, op, call.lane, args, &call.of));
  bk_lanes_want(rec->lanes, call.lane, call.of->plan.workspace_bytes);
  if (tracked) BK_TRY(order_op(rec, op, call.lane, args, true));
  call.args = shared_args(rec, &call, args);
  BK_TRY(add_call(rec, call, call.args ? NULL : args, bk_op_describe(op)->args_size));
  rec->idle[call.lane] = false;
  return tracked ? order_op(rec, op, call.lane, args, false) : BK_OK;
}

/* This does the same as bk_record for the zeroing of a contiguous tensor, which has no plan. */
static bk_status record_zero(bk_recorder *rec, const bk_tensor *t) {
  bk_program *p = rec->program;
  bk_call call = {.kind = BK_CALL_ZERO, .lane = last_piece(p)->lane};
  bk_touch one = touch_of(t, call.lane, true);
  bool tracked = !one_lane(rec);
  BK_TRY(enter_lane(rec, call.lane));
  if (tracked) BK_TRY(wait_for_others(rec, &one));
  BK_TRY(add_call(rec, call, t, sizeof *t));
  rec->idle[call.lane] = false;
  return tracked ? touch(rec, &one) : BK_OK;
}

/* Asking counts as writing: a caller asks once for each product that it records. */
bool bk_record_accumulates(bk_recorder *rec, const bk_param_block *block) {
  uint8_t *written = &rec->written[block - rec->blocks];
  bool adds = !rec->first || *written;
  *written = 1;
  return adds;
}

/* This is for ops that can only add. The zeroing is a call of the program, in front of the op. */
bk_status bk_record_adds_to(bk_recorder *rec, const bk_param_block *block) {
  return bk_record_accumulates(rec, block) ? BK_OK : record_zero(rec, &block->grad);
}

/* One event for each lane that signals, used again for each of its signals: a wait is for the
 * last. */
static bk_status make_signals(bk_program *p, bk_device *device) {
  for (int i = 0; i < p->n_calls; i++) {
    bk_event **event = &p->signals[p->calls[i].lane];
    if (p->calls[i].kind == BK_CALL_SIGNAL && !*event)
      BK_TRY(device->ops->event_create(device, event));
  }
  return BK_OK;
}

/* Shrinks an array to what is used: a program lives as long as its owner, and doubling may have
 * left half of it empty. */
static bk_status shrink(bk_context *ctx, void **array, size_t *capacity, size_t used,
                        size_t element) {
  if (used == *capacity || used == 0) return BK_OK;
  void *exact = bk_alloc_array(ctx, used, element);
  if (!exact) return BK_ERR_MEMORY;
  memcpy(exact, *array, used * element);
  bk_free(ctx, *array);
  *array = exact;
  *capacity = used;
  return BK_OK;
}

static bk_status shrink_all(bk_program *p) {
  BK_TRY(
      shrink(p->ctx, (void **)&p->calls, &p->calls_capacity, (size_t)p->n_calls, sizeof *p->calls));
  BK_TRY(shrink(p->ctx, (void **)&p->pieces, &p->pieces_capacity, (size_t)p->n_pieces,
                sizeof *p->pieces));
  return shrink(p->ctx, (void **)&p->args, &p->args_capacity, p->args_used, 1);
}

/* Joins all lanes to compute: what follows the program may take it for done once compute is. */
bk_status bk_record_end(bk_recorder *rec, const char *graph_name, bool *warned) {
  bk_program *p = rec->program;
  for (int i = 0; i < BK_LANES; i++) {
    if (i == BK_LANE_COMPUTE || !rec->entered[i]) continue;
    BK_TRY(signal_lane(rec, (bk_lane)i));
    BK_TRY(wait_lane(rec, BK_LANE_COMPUTE, (bk_lane)i));
  }
  BK_TRY(make_signals(p, rec->device));
  BK_TRY(shrink_all(p));
  place_args(rec);
  const bk_device *d = rec->device;
  bool captures = d->props.captures && !d->options.no_graph && !rec->lanes->plan_only;
  if (captures && graph_name)
    p->graph = (bk_graph){
        .stream = rec->lanes->stream[BK_LANE_COMPUTE], .name = graph_name, .warned = warned};
  rec->program = NULL;
  return BK_OK;
}

void bk_program_fini(bk_program *p) {
  bk_graph_fini(&p->graph);
  for (int i = 0; i < BK_LANES; i++)
    if (p->signals[i]) p->signals[i]->ops->destroy(p->signals[i]);
  if (p->ctx) {
    bk_free(p->ctx, p->args);
    bk_free(p->ctx, p->pieces);
    bk_free(p->ctx, p->calls);
  }
  *p = (bk_program){0};
}

/* ---- running ---- */
#ifdef BK_DEBUG
/* Checks that the arguments of a call are still those that its plan was prepared for. */
static bk_status check_args(const bk_program *p, const bk_call *c) {
  _Alignas(16) char key[BK_OP_MAX_ARGS];
  bk_op_plan_key(c->op, c->args, key);
  bool same = memcmp(key, c->of->key, bk_op_describe(c->op)->args_size) == 0;
  if (same) return BK_OK;
  return bk_fail(p->ctx, BK_ERR_ARGUMENT,
                 "program: %s is launched with other arguments than it was prepared with",
                 bk_op_name(c->op));
}
#else
static inline bk_status check_args(const bk_program *p, const bk_call *c) {
  (void)p, (void)c;
  return BK_OK;
}
#endif

/* With a profile the launch is the profile's, which puts events around it. */
static bk_status launch(const bk_program *p, int at, bk_stream *stream, const bk_run *run) {
  const bk_call *c = &p->calls[at];
  BK_TRY(check_args(p, c));
  if (run->profile) return bk_profile_launch(run->profile, p, at);
  return bk_plan_launch(stream, &c->of->plan, c->args, p->lanes->workspace[c->lane]);
}

/* A profile times op by op, and a look reads what was just written. Both need everything in one
 * order, so that all lanes are then replaced by compute, and signals and waits are left out. */
static bool on_one_lane(const bk_run *run) { return run->profile || run->look; }

/* The workspace follows the lane of the call, even where a profile moves the call to compute: it
 * was sized for the kernels of that lane. */
static bk_status run_call(const bk_program *p, int at, const bk_run *run) {
  const bk_call *c = &p->calls[at];
  bool one = on_one_lane(run);
  bk_stream *stream = p->lanes->stream[one ? BK_LANE_COMPUTE : c->lane];
  switch (c->kind) {
    case BK_CALL_OP: return launch(p, at, stream, run);
    case BK_CALL_ZERO: return bk_tensor_zero(stream, c->args);
    case BK_CALL_SIGNAL:
      return one ? BK_OK : stream->ops->event_record(stream, p->signals[c->lane]);
    case BK_CALL_WAIT: return one ? BK_OK : stream->ops->event_wait(stream, p->signals[c->from]);
  }
  return BK_OK;
}

bk_status bk_program_run_piece(const bk_program *p, const bk_piece *piece, const bk_run *run) {
  for (int i = piece->begin; i < piece->end; i++) BK_TRY(run_call(p, i, run));
  if (run->look) BK_TRY(run->look(run->look_arg, piece));
  return run->after ? run->after(run->after_arg, piece) : BK_OK;
}

/* This is the argument of run_pieces, which the graph calls. */
typedef struct walk {
  const bk_program *program;
  const bk_run *run;
} walk;

static bk_status run_pieces(void *arg) {
  const walk *w = arg;
  for (int i = 0; i < w->program->n_pieces; i++)
    BK_TRY(bk_program_run_piece(w->program, &w->program->pieces[i], w->run));
  return BK_OK;
}

/* A run that ends early has not joined its lanes; they are waited for, so that what comes next
 * does not meet work that is still under way. */
bk_status bk_program_run(bk_program *p, const bk_run *run) {
  bool may = !on_one_lane(run) && !run->after;
  bk_status status = bk_graph_run(&p->graph, may, run_pieces, &(walk){p, run});
  if (status != BK_OK) bk_lanes_sync(p->lanes);
  return status;
}

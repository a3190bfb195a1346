/* Recording of a profile (profile.h). Events are recorded around each launch and read when the
 * step has ended, when no reading can hold the device up. A step enters the sums only when it is
 * whole. */
#include "ops/plan.h"
#include "models/pipeline.h"
#include "models/profile.h"

#include <math.h>
#include <string.h>

#define STEP_BEGIN (2 * BK_PROFILE_POOL)
#define STEP_END (STEP_BEGIN + 1)
#define N_EVENTS (STEP_END + 1)
#define OPS_RESERVED 128 /* rows of kernels; the array grows if a model uses more */

/* ---- creation ---- */

/* Everything that recording needs, so that a profiled step allocates nothing. */
static bk_status reserve(bk_profile *p) {
  bk_device *device = p->model->device;
  bk_context *ctx = device->ctx;
  p->events = bk_alloc_array(ctx, N_EVENTS, sizeof *p->events);
  p->pool = bk_alloc_array(ctx, BK_PROFILE_POOL, sizeof *p->pool);
  if (!p->events || !p->pool) return BK_ERR_MEMORY;
  for (int i = 0; i < N_EVENTS; i++) BK_TRY(device->ops->event_create(device, &p->events[i]));
  for (int i = 0; i < BK_PROFILE_STEPS; i++)
    if (!(p->steps[i].records = bk_alloc_array(ctx, BK_PROFILE_KEPT, sizeof *p->steps[i].records)))
      return BK_ERR_MEMORY;
  for (int i = 0; i < BK_PROFILE_STEPS && p->talks_capacity; i++)
    if (!(p->steps[i].talks =
              bk_alloc_array(ctx, (size_t)p->talks_capacity, sizeof *p->steps[i].talks)))
      return BK_ERR_MEMORY;
  return bk_grow(ctx, (void **)&p->ops, &p->ops_capacity, OPS_RESERVED, sizeof *p->ops);
}

/* Every bucket is summed and gathered once a step; beside them losses and norms are summed, and the
 * loads of experts; in a pipeline each record has up to four messages. */
static int talks_of(const bk_model *m) {
  enum { SUMS_AND_LOADS = 2, MESSAGES = 4 };
  const bk_pipeline *l = m->options.pipeline;
  int messages = l ? MESSAGES * l->schedule->rank[l->p].n_records : 0;
  return bk_model_ranks(m) > 1 ? 2 * m->n_shards + SUMS_AND_LOADS + messages : 0;
}

/* Attached to the model at once, because bk_step_begin looks there. */
bk_status bk_profile_create(bk_model *model, bk_profile **profile) {
  bk_context *ctx = model->ctx;
  if (isnan(bk_context_seconds(ctx)))
    return bk_fail(ctx, BK_ERR_UNSUPPORTED, "profile: the context has no clock");
  if (model->profile) return bk_fail(ctx, BK_ERR_ARGUMENT, "the model is being profiled already");
  bk_profile *p = bk_alloc(ctx, sizeof *p);
  if (!p) return BK_ERR_MEMORY;
  *p = (bk_profile){.model = model,
                    .shares = !model->device->props.host_memory,
                    .chain = -1,
                    .talks_capacity = talks_of(model),
                    .origin = bk_context_seconds(ctx)};
  for (int i = 0; i < BK_PHASE_COUNT; i++) p->phases[i].id = i;
  model->profile = p;
  bk_status status = reserve(p);
  if (status == BK_OK) *profile = p;
  else bk_profile_destroy(p);
  return status;
}

void bk_profile_destroy(bk_profile *p) {
  if (!p) return;
  bk_context *ctx = p->model->ctx;
  if (p->model->stream) p->model->stream->ops->sync(p->model->stream);
  p->model->profile = NULL;
  for (int i = 0; i < BK_PROFILE_STEPS; i++) {
    bk_free(ctx, p->steps[i].records);
    bk_free(ctx, p->steps[i].talks);
  }
  for (int i = 0; p->events && i < N_EVENTS && p->events[i]; i++)
    p->events[i]->ops->destroy(p->events[i]);
  bk_free(ctx, p->ops);
  bk_free(ctx, p->pool);
  bk_free(ctx, p->events);
  bk_free(ctx, p);
}

/* A step that is under way is given up: what it has recorded does not count. */
void bk_profile_pause(bk_profile *p, bool paused) {
  if (!p) return;
  p->paused = paused;
  p->open = false;
}

/* ---- sums ---- */

static void add(bk_profile_figures *to, const bk_profile_figures *more) {
  to->calls += more->calls;
  to->seconds += more->seconds;
  to->flops += more->flops;
  to->bytes += more->bytes;
}

/* Rows are told apart by the kernel's name too: one op may have several kernels in a step. */
static bk_status find_row(bk_profile *p, int op, const char *kernel, bk_profile_row **row) {
  for (size_t i = 0; i < p->n_ops; i++) {
    *row = &p->ops[i];
    if ((*row)->id == op && ((*row)->kernel == kernel || strcmp((*row)->kernel, kernel) == 0))
      return BK_OK;
  }
  BK_TRY(bk_grow(p->model->ctx, (void **)&p->ops, &p->ops_capacity, p->n_ops + 1, sizeof *p->ops));
  *row = &p->ops[p->n_ops++];
  **row = (bk_profile_row){.id = op, .kernel = kernel};
  return BK_OK;
}

/* Sets the figures of the step in progress to zero. With `keep` they are added to the sums before;
 * with `alone` the sums begin with them, which drops the first step, the one that warms up. */
static void settle(bk_profile_row *row, bool keep, bool alone) {
  if (keep && alone) row->sum = (bk_profile_figures){0};
  if (keep) add(&row->sum, &row->now);
  row->now = (bk_profile_figures){0};
}

static void settle_talk(bk_profile_talk_row *row, bool keep, bool alone) {
  if (keep && alone) row->sum = (bk_profile_exchange){0};
  if (keep) {
    row->sum.calls += row->now.calls;
    row->sum.bytes += row->now.bytes;
    row->sum.busy_s += row->now.busy_s;
    row->sum.wait_s += row->now.wait_s;
  }
  row->now = (bk_profile_exchange){0};
}

static void settle_all(bk_profile *p, bool keep, bool alone) {
  for (size_t i = 0; i < p->n_ops; i++) settle(&p->ops[i], keep, alone);
  for (int i = 0; i < BK_PHASE_COUNT; i++) settle(&p->phases[i], keep, alone);
  for (int i = 0; i < BK_TALK_COUNT; i++) settle_talk(&p->talks[i], keep, alone);
}

/* ---- reading ---- */

/* This is the place in the ring of the step in progress, or of the next one. */
static bk_profile_step *current(bk_profile *p) { return &p->steps[p->done % BK_PROFILE_STEPS]; }

/* *seconds is the time from the begin of the step to the event, both of which have passed. */
static bk_status since_begin(const bk_profile *p, int event, double *seconds) {
  bk_event *begin = p->events[STEP_BEGIN];
  return begin->ops->elapsed(begin, p->events[event], seconds);
}

/* Sums take every launch; the list for the trace has room for some, and counts the rest. */
static bk_status read_record(bk_profile *p, bk_profile_record *r) {
  bk_profile_step *step = current(p);
  bk_profile_row *row;
  double end;
  BK_TRY(since_begin(p, r->first, &r->begin));
  BK_TRY(since_begin(p, r->last, &end));
  r->seconds = end > r->begin ? end - r->begin : 0; /* times of a device are rounded */
  bk_profile_figures one = {1, r->seconds, r->flops, r->bytes};
  BK_TRY(find_row(p, r->op, r->kernel, &row));
  add(&row->now, &one);
  add(&p->phases[r->phase].now, &one);
  if (step->count < BK_PROFILE_KEPT) step->records[step->count++] = *r;
  else step->lost++;
  return BK_OK;
}

/* Reads the times of all launches in the pool, all of which have ended, and empties the pool. */
static bk_status drain(bk_profile *p) {
  for (int i = 0; i < p->n_pool; i++) BK_TRY(read_record(p, &p->pool[i]));
  p->n_pool = p->n_events = 0;
  p->chain = -1;
  return BK_OK;
}

/* ---- a step ---- */

/* Everything runs on the model's stream while there is a profile. */
static bk_status record(bk_profile *p, int event) {
  return p->model->stream->ops->event_record(p->model->stream, p->events[event]);
}

/* The events of the pool are used again from the first. */
bk_status bk_profile_step_begin(bk_profile *p) {
  bk_profile_step *step = current(p);
  p->open = false;
  if (p->paused) return BK_OK;
  settle_all(p, false, false); /* drops the figures of a step that was never ended */
  p->n_pool = p->n_events = 0;
  p->chain = -1;
  step->number = 0;
  step->count = 0;
  step->lost = 0;
  step->n_talks = 0;
  step->at = bk_context_seconds(p->model->ctx) - p->origin;
  BK_TRY(record(p, STEP_BEGIN));
  p->open = true;
  return BK_OK;
}

bk_status bk_profile_step_close(bk_profile *p) { return p->open ? record(p, STEP_END) : BK_OK; }

/* Called after the step's sync. Only now is the step whole and enters the sums. */
bk_status bk_profile_step_read(bk_profile *p) {
  bk_profile_step *step = current(p);
  if (!p->open) return BK_OK;
  p->open = false;
  BK_TRY(since_begin(p, STEP_END, &step->seconds));
  BK_TRY(drain(p));
  step->scatter = p->talks[BK_TALK_REDUCE_SCATTER].now;
  bool alone = p->done <= 1; /* the first, or the one that takes its place in the sums */
  settle_all(p, true, alone);
  p->step_seconds = alone ? step->seconds : p->step_seconds + step->seconds;
  step->number = ++p->done;
  return BK_OK;
}

/* ---- a launch ---- */

/* The event at which the next op begins: the one that ended its neighbour, or one recorded now. */
static bk_status begin_event(bk_profile *p, bool neighbour, int *event) {
  if (p->shares && neighbour && p->chain >= 0) {
    *event = p->chain;
    return BK_OK;
  }
  *event = p->n_events++;
  return record(p, *event);
}

/* An op is a neighbour of the one before it if they are in one piece with nothing in between; only
 * then may they share an event. A full pool is emptied after a sync. */
bk_status bk_profile_launch(bk_profile *p, const bk_program *program, int at) {
  const bk_call *call = &program->calls[at];
  const bk_piece *piece = &program->pieces[call->piece];
  const void *args = call->args;
  const bk_plan *plan = &call->of->plan;
  bk_stream *stream = p->model->stream;
  bool neighbour = at > piece->begin && call[-1].kind == BK_CALL_OP;
  if (p->n_pool == BK_PROFILE_POOL) {
    BK_TRY(stream->ops->sync(stream));
    BK_TRY(drain(p));
  }
  bk_profile_record *r = &p->pool[p->n_pool];
  *r = (bk_profile_record){.kernel = plan->kernel->name,
                           .sublayer = piece->sublayer,
                           .op = (uint16_t)call->op,
                           .phase = (uint16_t)piece->phase};
  bk_op_cost(call->op, args, &r->flops, &r->bytes);
  BK_TRY(begin_event(p, neighbour, &r->first));
  BK_TRY(bk_plan_launch(stream, plan, args, program->lanes->workspace[call->lane]));
  p->chain = r->last = p->n_events++;
  BK_TRY(record(p, r->last));
  p->n_pool++;
  return BK_OK;
}

/* ---- between ranks ---- */

/* An operation may end before one that was begun before it; it has no time of its own then. There
 * is room for all of a step; a caller that runs an optimiser twice in one loses some of the list
 * and nothing of the sums. */
void bk_profile_talk(bk_profile *p, bk_profile_talk_kind kind, int bucket,
                     const bk_comm_times *times) {
  bk_profile_step *step = current(p);
  bk_profile_exchange *now = &p->talks[kind].now;
  double begin = times->begun > p->talked ? times->begun : p->talked;
  double seconds = times->ended > begin ? times->ended - begin : 0;
  if (times->ended > p->talked) p->talked = times->ended;
  now->calls++;
  now->bytes += (double)times->sent;
  now->busy_s += seconds;
  now->wait_s += times->waited;
  if (step->n_talks < p->talks_capacity)
    step->talks[step->n_talks++] =
        (bk_profile_talk_record){kind, bucket, begin - p->origin, seconds, *times};
}

/* ---- what was measured ---- */

void bk_profile_get_total(const bk_profile *p, bk_profile_total *total) {
  *total = (bk_profile_total){p->done, bk_profile_counted(p), p->step_seconds, 0};
  for (int i = 0; i < BK_PHASE_COUNT; i++) total->op_seconds += p->phases[i].sum.seconds;
}

/* Ops outside of sublayers belong to the ends by their phase, and those of the optimiser to no
 * part. */
static int part_of(const bk_profile *p, const bk_profile_record *r) {
  switch (r->phase) {
    case BK_PHASE_EMBED:
    case BK_PHASE_EMBED_BWD: return 0;
    case BK_PHASE_HEAD:
    case BK_PHASE_LOSS:
    case BK_PHASE_HEAD_BWD: return 2 * (int)p->model->config.num_hidden_layers + 1;
    default: return r->sublayer < 0 ? -1 : r->sublayer + 1;
  }
}

static void add_to_pass(const bk_profile_record *r, bk_stage_costs *sum) {
  switch (r->phase) {
    case BK_PHASE_EMBED:
    case BK_PHASE_MIX:
    case BK_PHASE_FORWARD:
    case BK_PHASE_MERGE:
    case BK_PHASE_HEAD:
    case BK_PHASE_LOSS: sum->f += r->seconds; break;
    case BK_PHASE_WGRAD: sum->w += r->seconds; /* fallthrough */
    default: sum->b += r->seconds;
  }
}

void bk_profile_part(const bk_profile *p, int part, bk_stage_costs *seconds) {
  *seconds = (bk_stage_costs){0, 0, 0};
  if (p->done == 0) return;
  const bk_profile_step *s = &p->steps[(p->done - 1) % BK_PROFILE_STEPS];
  for (int k = 0; k < s->count; k++)
    if (part_of(p, &s->records[k]) == part) add_to_pass(&s->records[k], seconds);
}

int bk_profile_count(const bk_profile *p, bk_profile_table table) {
  return table == BK_PROFILE_OPS ? (int)p->n_ops : BK_PHASE_COUNT;
}

void bk_profile_get(const bk_profile *p, bk_profile_table table, int i, bk_profile_line *line) {
  bool ops = table == BK_PROFILE_OPS;
  const bk_profile_row *row = ops ? &p->ops[i] : &p->phases[i];
  const bk_profile_figures *sum = &row->sum;
  *line = (bk_profile_line){ops ? bk_op_name((bk_op)row->id) : bk_phase_name((bk_phase)row->id),
                            ops ? row->kernel : "",
                            sum->calls,
                            sum->seconds,
                            sum->bytes,
                            sum->flops};
}

static const char *const talk_names[BK_TALK_COUNT] = {"reduce_scatter", "all_reduce", "all_gather",
                                                      "exchange"};

const char *bk_profile_talk_name(bk_profile_talk_kind kind) { return talk_names[kind]; }

int bk_profile_exchange_count(const bk_profile *p) { return p->talks_capacity ? BK_TALK_COUNT : 0; }

void bk_profile_exchange_get(const bk_profile *p, int i, bk_profile_exchange *kind) {
  *kind = p->talks[i].sum;
  kind->name = talk_names[i];
}

double bk_profile_hidden(const bk_profile_exchange *kind) {
  if (!(kind->busy_s > 0)) return (double)NAN;
  return kind->wait_s < kind->busy_s ? (kind->busy_s - kind->wait_s) / kind->busy_s : 0;
}

/* bk_bisect: the first call of a step that is wrong on its own. See birkhoff/verify.h.
 *
 * The programs of the two models are the same calls in the same order. Nothing here runs in a
 * normal step: a call is run as a piece of its own, which somebody looks at, so that all is on the
 * compute lane.
 *
 * For each op: the operands of both calls are paired (find_operands); the device gets the
 * reference's values (take_inputs); both run (run_both); ref computes the exact outputs from the
 * same inputs (find_exact); the device's outputs are judged by them (judge_call), and its inputs
 * must be what they were (check_inputs). The device then has the reference's outputs, so that an
 * error does not travel on. */
#include "models/bisect.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/verify_priv.h"
#include "ops/judge.h"
#include "ops/plan.h"

/* Scores that are closer may be taken for equal: a sigmoid in fp32. */
#define CHOICE_MARGIN 1e-6

/* This is the whole comparison. `side` is the device under test, `reference` the one that is
 * trusted. */
typedef struct bisect {
  bk_context *ctx;
  const bk_bisect_options *options;
  bk_bisect_result *result;
  bk_verify_batch batch;
  bk_verify_side side, reference;
  bk_device *ref; /* for the exact results */
  bk_stream *stream;
  /* the call that is being compared */
  const bk_call *here, *there;
  bk_bisect_operand operands[BK_OP_MAX_FIELDS];
  int n;
  double *values; /* of all operands */
  bk_buffer *memory;
  _Alignas(16) char args[BK_OP_MAX_ARGS]; /* ref's */
} bisect;

/* An output is written by the call, whether or not it is read as well. */
static bool is_output(const bk_bisect_operand *o) { return o->field->role != BK_IN; }

/* ---- a call's operands ---- */

static bk_status differ(const bisect *b, const char *what) {
  return bk_fail(b->ctx, BK_ERR_ARGUMENT,
                 "bisect: the step is not made of the same calls on %s and on %s: call %lld, %s",
                 b->result->setting.device, b->result->setting.reference,
                 (long long)b->result->calls, what);
}

/* The same memory, as far as an op can have it: an output in the place of an input, or one part's
 * output that a later part reads. Places are compared on the device under test. The result is b->n
 * where no earlier operand is there. */
static int first_there(const bisect *b, const bk_tensor *t) {
  for (int i = 0; i < b->n; i++) {
    const bk_tensor *other = b->operands[i].here;
    if (other->buffer == t->buffer && other->offset == t->offset && other->dtype == t->dtype &&
        bk_tensor_count(other) == bk_tensor_count(t))
      return i;
  }
  return b->n;
}

/* Floats are computed in fp64 by ref, integers in their own dtype. Both models must have made the
 * same call: same dtypes, same shapes. */
static bk_status find_operands(bisect *b) {
  const bk_op_desc *desc = bk_op_describe(b->here->op);
  b->n = 0;
  for (int i = 0; i < desc->n_fields; i++) {
    const bk_tensor *here = bk_op_field_get(b->here->args, &desc->fields[i]),
                    *there = bk_op_field_get(b->there->args, &desc->fields[i]);
    if (here->dtype != there->dtype || !bk_tensor_same_shape(here, there))
      return differ(b, desc->fields[i].name);
    if (!bk_tensor_present(here)) continue;
    bk_dtype dtype = bk_dtype_is_float(here->dtype) ? BK_F64 : here->dtype;
    bk_bisect_operand *o = &b->operands[b->n];
    *o = (bk_bisect_operand){.field = &desc->fields[i],
                             .here = here,
                             .there = there,
                             .exact = bk_tensor_make(dtype, here->ndim, here->shape),
                             .same = first_there(b, here),
                             .count = bk_tensor_count(here)};
    b->n++;
  }
  return BK_OK;
}

/* One array of doubles for what is read of all operands, and one buffer on ref, in which operands
 * share a place where they do on the device. The arguments for ref are the device's with other
 * tensors. */
static bk_status make_room(bisect *b) {
  size_t values = 0, bytes = 0;
  for (int i = 0; i < b->n; i++)
    values += (size_t)b->operands[i].count * (is_output(&b->operands[i]) ? 4 : 2);
  b->values = bk_alloc_array(b->ctx, values, sizeof *b->values);
  if (!b->values) return BK_ERR_MEMORY;
  double *next = b->values;
  for (int i = 0; i < b->n; i++) {
    bk_bisect_operand *o = &b->operands[i];
    o->before = next, o->got = next + o->count, next += 2 * o->count;
    if (is_output(o)) o->after = next, o->want = next + o->count, next += 2 * o->count;
    if (o->same < i) {
      o->exact.offset = b->operands[o->same].exact.offset;
      continue;
    }
    o->exact.offset = bytes;
    bytes += BK_ALIGN_UP(bk_tensor_bytes(&o->exact), (size_t)64);
  }
  BK_TRY(bk_buffer_alloc(b->ref, bytes + 64, BK_MEM_WORKSPACE, &b->memory));
  memcpy(b->args, b->here->args, bk_op_describe(b->here->op)->args_size);
  for (int i = 0; i < b->n; i++) {
    b->operands[i].exact.buffer = b->memory;
    *bk_op_field_ref(b->args, b->operands[i].field) = b->operands[i].exact;
  }
  return BK_OK;
}

/* This is safe where make_room has failed. */
static void drop_operands(bisect *b) {
  bk_buffer_free(b->memory);
  bk_free(b->ctx, b->values);
  b->memory = NULL;
  b->values = NULL;
}

/* ---- what is said of it ---- */

/* The text says where in the step the call lies: "layers.1 feed-forward, experts, W". */
static void stage_text(const bk_piece *p, char *text, size_t size) {
  const char *part = bk_part_name(p->part), *pass = bk_pass_name(p->pass);
  if (p->part == BK_PART_OPTIMIZER) {
    snprintf(text, size, "%s", part);
  } else if (p->sublayer < 0) {
    snprintf(text, size, "%s, %s", part, pass);
  } else {
    bool whole = p->part == BK_PART_ATTENTION || p->part == BK_PART_MLP;
    snprintf(text, size, "layers.%d %s%s%s, %s", p->sublayer / 2,
             p->sublayer % 2 ? "feed-forward" : "attention", whole ? "" : ", ", whole ? "" : part,
             pass);
  }
}

/* The call is named before it is run, so that a failure of the call itself can be told of too. */
static void name_call(bisect *b, const bk_program *p, int micro) {
  bk_bisect_result *r = b->result;
  r->micro_batch = micro;
  stage_text(&p->pieces[b->here->piece], r->stage, sizeof r->stage);
  snprintf(r->op, sizeof r->op, "%s", bk_op_name(b->here->op));
  snprintf(r->kernel, sizeof r->kernel, "%s", b->here->of->plan.kernel->name);
}

/* The result gets the cause, and the element that decided, by its indices in the operand's
 * shape. */
static void name_element(bisect *b, bk_bisect_cause cause, const bk_bisect_operand *o,
                         const double *expected, const bk_judgement *j) {
  bk_bisect_result *r = b->result;
  int64_t left = j->element;
  r->cause = cause;
  memcpy(r->operand, o->field->name, sizeof r->operand);
  r->ndim = o->here->ndim;
  for (int d = o->here->ndim - 1; d >= 0; left /= o->here->shape[d--])
    r->element[d] = left % o->here->shape[d];
  r->got = o->got[j->element];
  r->expected = expected[j->element];
  r->nmse = j->nmse;
  r->max_abs = j->error;
  r->bound = j->bound;
}

/* ---- before the call: the same values on both ---- */

/* Where both devices place tensors alike, what differs has been written over. */
static bk_status take_input(bisect *b, bk_bisect_operand *o) {
  bk_stream *stream = b->side.model->stream;
  bk_judgement j;
  BK_TRY(bk_tensor_read_f64(stream, o->here, o->got));
  if (memcmp(o->got, o->before, (size_t)o->count * sizeof *o->got) == 0) return BK_OK;
  if (o->here->offset != o->there->offset) return bk_tensor_write_f64(stream, o->here, o->before);
  bk_judge(o->here->dtype, o->got, o->before, o->count, 0, 0, &j);
  if (!j.within) name_element(b, BK_BISECT_CHANGED, o, o->before, &j);
  return BK_OK;
}

/* `before` are the reference's values, of outputs as well: an op may add to what is there. */
static bk_status take_inputs(bisect *b) {
  for (int i = 0; i < b->n; i++)
    BK_TRY(bk_tensor_read_f64(b->reference.model->stream, b->operands[i].there,
                              b->operands[i].before));
  for (int i = 0; i < b->n && !b->result->cause; i++) {
    bk_bisect_operand *o = &b->operands[i];
    /* a later part's input is not there yet */
    if (o->field->role == BK_OUT || (o->same < i && is_output(&b->operands[o->same]))) continue;
    BK_TRY(take_input(b, o));
  }
  return BK_OK;
}

/* ---- the call ---- */

/* A look makes the program run on the compute lane alone (program.h). */
static bk_status nothing(void *arg, const bk_piece *piece) {
  (void)arg, (void)piece;
  return BK_OK;
}

/* Call `at` is run as a piece of its own, and waited for. */
static bk_status run_call(const bk_verify_side *side, const bk_program *p, int at) {
  bk_piece one = {.begin = at, .end = at + 1};
  BK_TRY(bk_program_run_piece(p, &one, &(bk_run){.look = nothing}));
  return side->model->stream->ops->sync(side->model->stream);
}

/* ref has host memory: its results can be read in place. */
static double *ref_values(const bk_bisect_operand *o) { return bk_tensor_data(&o->exact); }

/* On ref, inputs moved by about `rounding` of themselves. */
static bk_status run_exact(bisect *b, double rounding, int turn) {
  for (int i = 0; i < b->n; i++) {
    const bk_bisect_operand *o = &b->operands[i];
    if (o->same < i || o->field->role == BK_OUT) continue;
    bool moved = rounding > 0 && o->exact.dtype == BK_F64;
    for (int64_t j = 0; j < o->count; j++) {
      double x = o->before[j];
      if (moved) x = bk_judge_move(x, rounding, (uint64_t)(100 * turn + i), (uint64_t)j);
      bk_dtype_store(o->exact.dtype,
                     (char *)bk_tensor_data(&o->exact) + (size_t)j * bk_dtype_size(o->exact.dtype),
                     x);
    }
  }
  return bk_op_run(b->stream, b->here->op, b->args);
}

/* The exact outputs are not rounded to the device's dtype. */
static bk_status find_exact(bisect *b) {
  BK_TRY(run_exact(b, 0, 0));
  for (int i = 0; i < b->n; i++)
    if (is_output(&b->operands[i]))
      BK_TRY(bk_tensor_read_f64(b->stream, &b->operands[i].exact, b->operands[i].want));
  return BK_OK;
}

/* This is how far the exact outputs move when all inputs move by one rounding, the largest of a few
 * tries. It costs as many runs on ref, and is therefore done for outputs past their bound only. */
static bk_status measure_sensitivity(bisect *b) {
  double rounding = bk_op_rounding(b->side.model->device, b->here->op, b->here->args);
  for (int turn = 0; turn < BK_JUDGE_TRIES; turn++) {
    BK_TRY(run_exact(b, rounding, turn));
    for (int i = 0; i < b->n; i++) {
      bk_bisect_operand *o = &b->operands[i];
      if (is_output(o) && o->exact.dtype == BK_F64)
        o->sensitivity = fmax(o->sensitivity, bk_judge_distance(ref_values(o), o->want, o->count));
    }
  }
  return BK_OK;
}

/* ---- judging ---- */

/* The result is NULL where the operand is absent. */
static bk_bisect_operand *operand(bisect *b, const char *name) {
  for (int i = 0; i < b->n; i++)
    if (strcmp(b->operands[i].field->name, name) == 0) return &b->operands[i];
  return NULL;
}

/* Of the same experts in another order: how far apart those in the same place are. */
static double order_margin(const bk_router_view *v, const int32_t *chosen, const int32_t *wanted) {
  double margin = 0;
  for (int64_t j = 0; j < v->k; j++)
    margin = fmax(margin, fabs(v->scores[chosen[j]] + v->bias[chosen[j]] - v->scores[wanted[j]] -
                               v->bias[wanted[j]]));
  return margin;
}

/* A choice between scores that are as good as equal counts as the exact one. The device's choice
 * and weights of such a token are replaced by the exact ones before they are judged. */
static bk_status settle_choices(bisect *b) {
  if (b->here->op != BK_OP_ROUTER) return BK_OK;
  const bk_router_args *a = b->here->args;
  bk_bisect_operand *scores = operand(b, "scores"), *index = operand(b, "index"),
                    *weights = operand(b, "weights");
  int64_t E = a->scores.shape[1], k = a->index.shape[1];
  bk_router_view exact = {E, k, a->n_group, a->topk_group, NULL, operand(b, "bias")->before}, own;
  int32_t *chosen = bk_alloc_array(b->ctx, (size_t)(2 * k), sizeof *chosen), *wanted = chosen + k;
  if (!chosen) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < a->index.shape[0]; i++) {
    for (int64_t j = 0; j < k; j++) {
      chosen[j] = (int32_t)index->got[i * k + j];
      wanted[j] = (int32_t)index->want[i * k + j];
    }
    own = exact, own.scores = scores->got + i * E, exact.scores = scores->want + i * E;
    double margin = bk_router_margin(&own, &exact, chosen, wanted);
    if (margin < 0) margin = order_margin(&exact, chosen, wanted);
    if (!(margin < CHOICE_MARGIN)) continue;
    memcpy(index->got + i * k, index->want + i * k, (size_t)k * sizeof(double));
    if (memcmp(chosen, wanted, (size_t)k * sizeof *chosen) != 0)
      memcpy(weights->got + i * k, weights->want + i * k, (size_t)k * sizeof(double));
  }
  bk_free(b->ctx, chosen);
  return BK_OK;
}

/* The first output that is past its bound, or NULL. */
static const bk_bisect_operand *judge(const bisect *b, bk_judgement *j) {
  for (int i = 0; i < b->n; i++) {
    const bk_bisect_operand *o = &b->operands[i];
    if (!is_output(o)) continue;
    double bound = bk_op_bound(b->side.model->device, b->here->op, o->field, b->here->args);
    bk_judge(o->here->dtype, o->got, o->want, o->count, bound * b->options->verify.bounds,
             o->sensitivity, j);
    if (!j->within) return o;
  }
  return NULL;
}

/* An output past its bound gets a second hearing with its sensitivity, unless it must be exact or
 * is not finite. */
static bk_status judge_call(bisect *b) {
  bk_judgement j;
  BK_TRY(settle_choices(b));
  const bk_bisect_operand *o = judge(b, &j);
  if (o && !j.special) {
    BK_TRY(measure_sensitivity(b));
    o = judge(b, &j);
  }
  if (o) name_element(b, BK_BISECT_VALUE, o, o->want, &j);
  return BK_OK;
}

/* ---- programs ---- */

/* Both run; outputs are read, then the device gets the reference's. */
static bk_status run_both(bisect *b, const bk_program *here, const bk_program *there) {
  bk_status status = run_call(&b->side, here, (int)(b->here - here->calls));
  if (status != BK_OK) {
    bk_warn(b->ctx, "bisect: %s, kernel %s, fails in %s", b->result->op, b->result->kernel,
            b->result->stage);
    return status;
  }
  BK_TRY(run_call(&b->reference, there, (int)(b->there - there->calls)));
  for (int i = 0; i < b->n; i++) {
    bk_bisect_operand *o = &b->operands[i];
    if (!is_output(o)) continue;
    BK_TRY(bk_tensor_read_f64(b->side.model->stream, o->here, o->got));
    BK_TRY(bk_tensor_read_f64(b->reference.model->stream, o->there, o->after));
    BK_TRY(bk_tensor_write_f64(b->side.model->stream, o->here, o->after));
  }
  return BK_OK;
}

/* Inputs are what they were, but those that outputs share the memory of. */
static bk_status check_inputs(bisect *b) {
  bool written[BK_OP_MAX_FIELDS] = {false};
  bk_judgement j;
  for (int i = 0; i < b->n; i++) written[b->operands[i].same] |= is_output(&b->operands[i]);
  for (int i = 0; i < b->n && !b->result->cause; i++) {
    bk_bisect_operand *o = &b->operands[i];
    if (written[o->same]) continue;
    BK_TRY(bk_tensor_read_f64(b->side.model->stream, o->here, o->got));
    bk_judge(o->here->dtype, o->got, o->before, o->count, 0, 0, &j);
    if (!j.within) name_element(b, BK_BISECT_WROTE, o, o->before, &j);
  }
  return BK_OK;
}

/* This takes one call from its operands to the verdict, and writes the case file if it differs. */
static bk_status compare_op(bisect *b, const bk_program *here, const bk_program *there) {
  BK_TRY(find_operands(b));
  BK_TRY(make_room(b));
  BK_TRY(take_inputs(b));
  if (b->result->cause) return BK_OK;
  BK_TRY(run_both(b, here, there));
  BK_TRY(find_exact(b));
  BK_TRY(judge_call(b));
  if (!b->result->cause) BK_TRY(check_inputs(b));
  if (!b->result->cause || !b->options->case_file) return BK_OK;
  BK_TRY(bk_case_write(b->ctx, b->options->case_file, b->result->stage, b->here->op, b->here->args,
                       b->operands, b->n));
  b->result->wrote_case = true;
  return BK_OK;
}

/* The next call that does something; NULL: there is none. */
static const bk_call *next_call(const bk_program *p, int *at) {
  while (*at < p->n_calls) {
    const bk_call *c = &p->calls[(*at)++];
    if (c->kind == BK_CALL_OP || c->kind == BK_CALL_ZERO) return c;
  }
  return NULL;
}

/* `micro` is 1 or 2, and 0 for the optimiser. Signals and waits may differ: lanes are not
 * compared. */
static bk_status compare_programs(bisect *b, const bk_program *here, const bk_program *there,
                                  int micro) {
  int i = 0, j = 0;
  while (!b->result->cause) {
    b->here = next_call(here, &i), b->there = next_call(there, &j);
    if (!b->here && !b->there) return BK_OK;
    if (!b->here || !b->there || b->here->kind != b->there->kind || b->here->op != b->there->op)
      return differ(b, b->here ? bk_op_name(b->here->op) : "which is missing");
    if (b->here->kind == BK_CALL_ZERO) {
      BK_TRY(run_call(&b->side, here, i - 1));
      BK_TRY(run_call(&b->reference, there, j - 1));
      continue;
    }
    b->result->calls++;
    name_call(b, here, micro);
    bk_status status = compare_op(b, here, there);
    drop_operands(b);
    BK_TRY(status);
  }
  return BK_OK;
}

/* Two micro-batches of the same tokens are run: the second runs the programs that add to
 * gradients. */
static bk_status compare_chunks(bisect *b) {
  bk_chunk *here = bk_runner_chunk(b->side.runner, 0),
           *there = bk_runner_chunk(b->reference.runner, 0);
  static const int kinds[] = {BK_PROGRAM_FORWARD, BK_PROGRAM_LOSS, BK_PROGRAM_BACKWARD};
  for (int micro = 0; micro < BK_MICROS; micro++) {
    BK_TRY(bk_chunk_upload(here, 0, b->batch.ids, b->batch.targets));
    BK_TRY(bk_chunk_upload(there, 0, b->batch.ids, b->batch.targets));
    for (size_t i = 0; i < BK_COUNT(kinds) && !b->result->cause; i++) {
      int program = kinds[i] == BK_PROGRAM_FORWARD ? kinds[i] : kinds[i] + micro;
      BK_TRY(compare_programs(b, bk_chunk_program(here, 0, program),
                              bk_chunk_program(there, 0, program), micro + 1));
    }
  }
  for (int i = 0; i < BK_OPTIMIZER_PROGRAMS && !b->result->cause; i++)
    BK_TRY(compare_programs(b, bk_optimizer_program(b->side.optimizer, i),
                            bk_optimizer_program(b->reference.optimizer, i), 0));
  return BK_OK;
}

/* ---- all of it ---- */

/* Two models make the same calls only in the same dtype and as one chunk. */
static bk_status check_models(const bisect *b, const bk_model *model, const bk_model *reference) {
  if (model->options.n_chunks == 1 && reference->options.n_chunks == 1) return BK_OK;
  return bk_fail(b->ctx, BK_ERR_ARGUMENT, "bisect takes models of one chunk");
}

/* The first micro-batch overwrites the gradients, so that what earlier steps left in them is no
 * difference. */
static bk_status zero_gradients(const bk_model *m) {
  for (int i = 0; i < m->n_blocks; i++)
    if (bk_tensor_present(&m->blocks[i].grad))
      BK_TRY(bk_tensor_zero(m->stream, &m->blocks[i].grad));
  return BK_OK;
}

/* No fp64 model is made: each call is computed exactly by itself. */
static bk_status bisect_all(bisect *b, bk_model *model, bk_model *reference) {
  BK_TRY(bk_verify_begin(model, reference, &b->options->verify, &b->result->setting, &b->batch));
  BK_TRY(check_models(b, model, reference));
  BK_TRY(bk_device_open_backend(b->ctx, &bk_backend_ref, NULL, &b->ref));
  BK_TRY(bk_stream_create(b->ref, 0, &b->stream));
  BK_TRY(bk_verify_side_init(&b->side, model, &b->batch));
  BK_TRY(bk_verify_side_init(&b->reference, reference, &b->batch));
  BK_TRY(zero_gradients(model));
  BK_TRY(zero_gradients(reference));
  bk_verify_batch_fill(&b->batch, (uint64_t)b->options->verify.seed, 0,
                       reference->config.vocab_size);
  BK_TRY(bk_verify_step_begin(model, &b->batch, BK_MICROS));
  BK_TRY(bk_verify_step_begin(reference, &b->batch, BK_MICROS));
  return compare_chunks(b);
}

/* This is safe on whatever was made before a failure. */
static void finish(bisect *b) {
  bk_stream_destroy(b->stream);
  bk_device_close(b->ref);
  bk_verify_side_fini(&b->side);
  bk_verify_side_fini(&b->reference);
  bk_verify_batch_free(b->ctx, &b->batch);
  bk_free(b->ctx, b);
}

/* Of a call that does not differ, nothing is told. */
static bk_bisect_result told(const bk_bisect_result *r) {
  return r->cause ? *r : (bk_bisect_result){.setting = r->setting, .calls = r->calls};
}

bk_status bk_bisect(bk_model *model, bk_model *reference, const bk_bisect_options *options,
                    bk_bisect_result *result) {
  bk_bisect_options defaults = {.case_file = NULL};
  bk_bisect_result found = {.calls = 0};
  bk_verify_options_default(&defaults.verify);
  bisect *b = bk_alloc(reference->ctx, sizeof *b);
  if (!b) return BK_ERR_MEMORY;
  b->ctx = reference->ctx;
  b->options = options ? options : &defaults;
  b->result = &found;
  bk_status status = bisect_all(b, model, reference);
  finish(b);
  if (status == BK_OK && result) *result = told(&found);
  return status;
}

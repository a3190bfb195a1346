/* Profiles: every launch of a step is there, once, in order and under its name; times fit into
 * the step; sums leave the first step out; more launches than the pool holds; validation is not
 * counted; the trace; the same bits with and without. That a profiled step allocates nothing:
 * test_watch.c. */
#include "tests/models/models.h"

#include <jansson.h>

#include "io/json_in.h"
#include "models/profile.h"
#include "models/runner.h"
#include "models/trainer.h"

#define TOKENS 12

/* ---- one runner, one optimiser ---- */

typedef struct bench {
  rig r;
  bk_optimizer *optimizer;
  bk_profile *profile;
  int32_t ids[TOKENS], targets[TOKENS];
  int64_t kept;
} bench;

static bench bench_open(int residual, bk_dtype dtype, int64_t recompute) {
  bk_model_config c = small_config(residual);
  bk_runner_options o = {
      .batch = 1, .seq_len = TOKENS, .slots = 1, .backward = true, .hc_recompute = recompute};
  bench b = {.r = rig_open("cpu", 2, &c, dtype, &o)};
  b.kept = make_tokens(c.vocab_size, TOKENS, 5, b.ids, b.targets);
  OK(bk_optimizer_create(b.r.model, &(bk_optimizer_options){0.9, 0.95, 1e-8, 0.1, 0},
                         &b.optimizer));
  OK(bk_profile_create(b.r.model, &b.profile));
  return b;
}

static void bench_close(bench *b) {
  bk_profile_destroy(b->profile);
  bk_optimizer_destroy(b->optimizer);
  rig_close(&b->r);
}

static void bench_step(bench *b, int micro_batches) {
  begin_step(b->r.model, b->kept * micro_batches);
  for (int i = 0; i < micro_batches; i++) {
    OK(bk_runner_forward(b->r.runner, 0, b->ids, b->targets));
    OK(bk_runner_backward(b->r.runner, 0));
  }
  OK(bk_optimizer_step(b->optimizer));
  end_step(b->r.model, b->kept);
}

static const bk_profile_step *last_step(const bk_profile *p) {
  ck_assert_int_gt(p->done, 0);
  const bk_profile_step *step = &p->steps[(p->done - 1) % BK_PROFILE_STEPS];
  ck_assert_int_eq(step->number, p->done);
  return step;
}

/* ---- what is recorded ---- */

/* The launches of one program are next in the trace. */
static int expect_program(const bk_profile_step *step, int at, const bk_runner *r, int id) {
  const bk_program *p = bk_chunk_program(bk_runner_chunk(r, 0), 0, id);
  ck_assert_ptr_nonnull(p);
  for (int i = 0; i < p->n_calls; i++) {
    const bk_call *call = &p->calls[i];
    const bk_piece *piece = &p->pieces[call->piece];
    if (call->kind != BK_CALL_OP) continue;
    ck_assert_int_lt(at, step->count);
    const bk_profile_record *record = &step->records[at++];
    ck_assert_msg(record->op == call->op && record->phase == piece->phase &&
                      record->sublayer == piece->sublayer,
                  "launch %d: %s in %s of sublayer %d, expected %s in %s of %d", at,
                  bk_op_name(record->op), bk_phase_name(record->phase), record->sublayer,
                  bk_op_name(call->op), bk_phase_name(piece->phase), piece->sublayer);
    ck_assert_str_eq(record->kernel, call->of->plan.kernel->name);
  }
  return at;
}

static int expect_micro_batch(const bk_profile_step *step, int at, const bk_runner *r,
                              bk_micro micro) {
  at = expect_program(step, at, r, BK_PROGRAM_FORWARD);
  at = expect_program(step, at, r, BK_PROGRAM_LOSS + (int)micro);
  return expect_program(step, at, r, BK_PROGRAM_BACKWARD + (int)micro);
}

/* The rest is the optimiser's: a norm for each trained block and their sum, one clip, an update for
 * each shard, a balance per MoE layer. Returns the end. */
static int expect_optimizer(const bk_profile_step *step, int at, const bk_model *m, int n_moe) {
  int seen[BK_OP_COUNT] = {0}, begin = at;
  for (; at < step->count; at++) {
    ck_assert_int_eq(step->records[at].phase, BK_PHASE_OPTIMIZER);
    seen[step->records[at].op]++;
  }
  int blocks = 0;
  for (int i = 0; i < m->n_blocks; i++) blocks += m->blocks[i].trainable;
  ck_assert_int_eq(seen[BK_OP_SUMSQ], blocks);
  ck_assert_int_eq(seen[BK_OP_SUM], 1);
  ck_assert_int_gt(m->n_shards, 0);
  ck_assert_int_eq(seen[BK_OP_ADAMW], m->n_shards);
  ck_assert_int_eq(seen[BK_OP_CLIP], 1);
  ck_assert_int_eq(seen[BK_OP_BALANCE], n_moe);
  ck_assert_int_eq(at - begin, blocks + m->n_shards + 2 + n_moe);
  return at;
}

START_TEST(covers_every_launch) {
  static const int64_t recompute[] = {0, 2};
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_IHC; kind++)
    for (size_t k = 0; k < BK_COUNT(recompute); k++) {
      bench b =
          bench_open(kind, kind % 2 ? BK_BF16 : BK_F32, kind == BK_HC_PLAIN ? 0 : recompute[k]);
      for (int i = 0; i < 2; i++) bench_step(&b, 2);
      const bk_profile_step *step = last_step(b.profile);
      int at = 0;
      for (int i = 0; i < 2; i++)
        at = expect_micro_batch(step, at, b.r.runner, i ? BK_MICRO_NEXT : BK_MICRO_FIRST);
      ck_assert_int_gt(at, 100);
      ck_assert_int_eq(expect_optimizer(step, at, b.r.model, bk_runner_n_moe(b.r.runner)),
                       step->count);
      ck_assert_int_eq(step->lost, 0);
      bench_close(&b);
    }
}
END_TEST

/* One after the other, within the step. */
static void check_times(const bk_profile_step *step) {
  double end = 0;
  for (int i = 0; i < step->count; i++) {
    const bk_profile_record *r = &step->records[i];
    ck_assert_msg(r->begin >= end - 1e-12, "launch %d begins at %g, the one before it ended at %g",
                  i, r->begin, end);
    ck_assert(r->seconds >= 0);
    end = r->begin + r->seconds;
  }
  ck_assert(end <= step->seconds + 1e-12);
}

static bk_profile_figures total(const bk_profile_row *rows, size_t count) {
  bk_profile_figures sum = {0};
  for (size_t i = 0; i < count; i++) {
    sum.calls += rows[i].sum.calls;
    sum.seconds += rows[i].sum.seconds;
    sum.flops += rows[i].sum.flops;
    sum.bytes += rows[i].sum.bytes;
  }
  return sum;
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-9 * fabs(b); }

/* What a user of the library is told is what was recorded. */
static void check_lines(const bk_profile *p, const bk_profile_figures *whole, int64_t steps) {
  bk_profile_total total;
  bk_profile_line line;
  bk_profile_get_total(p, &total);
  ck_assert_int_eq(total.steps, p->done);
  ck_assert_int_eq(total.counted, steps);
  ck_assert(total.step_seconds == p->step_seconds && near(total.op_seconds, whole->seconds));
  ck_assert_int_eq(bk_profile_count(p, BK_PROFILE_PHASES), BK_PHASE_COUNT);
  ck_assert_uint_eq((size_t)bk_profile_count(p, BK_PROFILE_OPS), p->n_ops);
  for (int table = BK_PROFILE_OPS; table <= BK_PROFILE_PHASES; table++) {
    bk_profile_figures sum = {0};
    for (int i = 0; i < bk_profile_count(p, (bk_profile_table)table); i++) {
      bk_profile_get(p, (bk_profile_table)table, i, &line);
      sum.calls += line.calls, sum.seconds += line.seconds;
      sum.bytes += line.bytes, sum.flops += line.flops;
      ck_assert_str_eq(line.name, table == BK_PROFILE_OPS ? bk_op_name((bk_op)p->ops[i].id)
                                                          : bk_phase_name((bk_phase)i));
      ck_assert_str_eq(line.kernel, table == BK_PROFILE_OPS ? p->ops[i].kernel : "");
    }
    ck_assert(sum.calls == whole->calls && near(sum.seconds, whole->seconds) &&
              near(sum.bytes, whole->bytes) && near(sum.flops, whole->flops));
  }
}

/* `steps` of `launches` are in the sums, by op as by phase. */
static void check_sums(const bk_profile *p, int64_t steps, int64_t launches) {
  bk_profile_figures ops = total(p->ops, p->n_ops), phases = total(p->phases, BK_PHASE_COUNT);
  ck_assert_int_eq(bk_profile_counted(p), steps);
  ck_assert(ops.calls == (double)(steps * launches));
  ck_assert(phases.calls == ops.calls);
  ck_assert(near(ops.seconds, phases.seconds) && near(ops.flops, phases.flops) &&
            near(ops.bytes, phases.bytes));
  ck_assert(ops.seconds > 0 && ops.seconds <= p->step_seconds * (1 + 1e-9));
  for (size_t i = 0; i < p->n_ops; i++)
    for (size_t j = 0; j < i; j++)
      ck_assert(p->ops[i].id != p->ops[j].id || strcmp(p->ops[i].kernel, p->ops[j].kernel) != 0);
  check_lines(p, &ops, steps);
}

START_TEST(sums_without_the_first_step) {
  bench b = bench_open(BK_HC_MHC, BK_F32, 0);
  bench_step(&b, 1);
  int64_t launches = last_step(b.profile)->count;
  check_sums(b.profile, 1, launches);
  double first = last_step(b.profile)->seconds, others = 0;
  ck_assert(b.profile->step_seconds == first);
  for (int i = 2; i <= 6; i++) {
    bench_step(&b, 1);
    check_sums(b.profile, i - 1, launches);
    check_times(last_step(b.profile));
    others += last_step(b.profile)->seconds;
    ck_assert(near(b.profile->step_seconds, others));
  }
  bench_close(&b);
}
END_TEST

/* The cost is that of the op's own model. */
START_TEST(costs) {
  bench b = bench_open(BK_HC_MHC, BK_F32, 0);
  double elements = 0, padding = 0, flops = 0;
  bench_step(&b, 1);
  for (int i = 0; i < b.r.model->n_blocks; i++) {
    elements += (double)bk_tensor_count(&b.r.model->blocks[i].grad);
    padding += 64;
  }
  for (size_t i = 0; i < b.profile->n_ops; i++)
    if (b.profile->ops[i].id == BK_OP_ADAMW) flops += b.profile->ops[i].sum.flops;
  ck_assert(flops >= 16 * elements && flops <= 16 * (elements + padding));
  const bk_profile_record *embed = &last_step(b.profile)->records[0];
  ck_assert_int_eq(embed->op, BK_OP_EMBED);
  /* ids, and rows of 12 read and written */
  ck_assert(embed->flops == 0 && embed->bytes == TOKENS * (4 + 2 * 12 * 4));
  bench_close(&b);
}
END_TEST

/* Where the end of an op is the begin of the next: only within a phase, and nothing is lost
 * between. */
START_TEST(shared_events) {
  bench b = bench_open(BK_HC_MHC, BK_F32, 0);
  ck_assert(!b.profile->shares); /* host memory */
  b.profile->shares = true;
  int shared = 0, apart = 0;
  for (int i = 0; i < 3; i++) bench_step(&b, 1);
  const bk_profile_step *step = last_step(b.profile);
  check_times(step);
  for (int i = 1; i < step->count; i++) {
    const bk_profile_record *r = &step->records[i], *before = r - 1;
    bool same = r->phase == before->phase && r->sublayer == before->sublayer;
    if (r->first == before->last) ck_assert(same), shared++;
    else apart++;
  }
  ck_assert_int_gt(shared, step->count / 2);
  ck_assert_int_gt(apart, 12);
  bench_close(&b);
}
END_TEST

/* More launches than the pool and than the trace hold: all are summed, what the trace lacks is
 * counted. */
static void check_many(bool shares) {
  bench b = bench_open(BK_HC_PLAIN, BK_F32, 0);
  b.profile->shares = shares;
  bench_step(&b, 1);
  bench_step(&b, 2);
  int64_t one = b.profile->steps[0].count, two = b.profile->steps[1].count, each = two - one;
  int many = (int)(BK_PROFILE_KEPT / each) + 2;
  ck_assert_int_gt(BK_PROFILE_KEPT, 2 * BK_PROFILE_POOL);
  bench_step(&b, many);
  const bk_profile_step *step = last_step(b.profile);
  int64_t launches = one + (many - 1) * each;
  ck_assert_int_eq(step->count, BK_PROFILE_KEPT);
  ck_assert_int_eq(step->lost, launches - BK_PROFILE_KEPT);
  ck_assert(total(b.profile->ops, b.profile->n_ops).calls == (double)(two + launches));
  check_times(step);
  begin_step(b.r.model, b.kept); /* never ended, though some of it was read */
  for (int i = 0; i < many; i++) OK(bk_runner_forward(b.r.runner, 0, b.ids, b.targets));
  bench_step(&b, 1);
  ck_assert_int_eq(last_step(b.profile)->count, one);
  ck_assert(total(b.profile->ops, b.profile->n_ops).calls == (double)(two + launches + one));
  bench_close(&b);
}

START_TEST(more_than_the_pool) {
  check_many(false);
  check_many(true);
}
END_TEST

START_TEST(attached_once) {
  bench b = bench_open(BK_HC_PLAIN, BK_F32, 0);
  bk_profile *second = NULL;
  ck_assert_int_eq(bk_profile_create(b.r.model, &second), BK_ERR_ARGUMENT);
  unit_expect("already");
  ck_assert_ptr_eq(b.r.model->profile, b.profile);
  bk_profile_destroy(b.profile);
  ck_assert_ptr_null(b.r.model->profile);
  b.profile = NULL;
  bench_step(&b, 1); /* goes on without */
  OK(bk_profile_create(b.r.model, &b.profile));
  bk_profile_pause(b.profile, true);
  bench_step(&b, 1);
  ck_assert_int_eq(b.profile->done, 0);
  bk_profile_pause(b.profile, false);
  bench_step(&b, 1);
  ck_assert_int_eq(b.profile->done, 1);
  bench_close(&b);
}
END_TEST

/* ---- the trace ---- */

static json_t *read_trace(const bk_profile *p, const char *path) {
  char *text;
  size_t bytes;
  json_t *root = NULL;
  OK(bk_profile_write_trace(p, path));
  OK(bk_file_read_all(ctx, path, (size_t)1 << 26, &text, &bytes));
  OK(bk_json_load(ctx, path, text, bytes, &root));
  bk_free(ctx, text);
  return root;
}

/* The events with this ph: all, or those of the steps. */
static int count_events(const json_t *root, const char *ph, bool steps, const char *first_name) {
  const json_t *events = json_object_get(root, "traceEvents");
  int count = 0;
  for (size_t i = 0; i < json_array_size(events); i++) {
    const json_t *e = json_array_get(events, i);
    const char *category = json_string_value(json_object_get(e, "cat")),
               *name = json_string_value(json_object_get(e, "name"));
    if (strcmp(json_string_value(json_object_get(e, "ph")), ph) != 0 ||
        (category && (strcmp(category, "step") == 0) != steps))
      continue;
    if (count++ == 0 && first_name) ck_assert_str_eq(name, first_name);
  }
  return count;
}

START_TEST(trace) {
  const char *path = unit_path("trace.json");
  bench b = bench_open(BK_HC_MHC, BK_F32, 0);
  json_t *root = read_trace(b.profile, path);
  ck_assert_int_eq(count_events(root, "X", true, NULL) + count_events(root, "X", false, NULL), 0);
  ck_assert_int_eq(count_events(root, "M", false, "process_name"), 3);
  json_decref(root);
  for (int i = 0; i < 5; i++) bench_step(&b, 1);
  int launches = last_step(b.profile)->count;
  root = read_trace(b.profile, path);
  ck_assert_int_eq(count_events(root, "X", true, "step 3"), BK_PROFILE_STEPS);
  ck_assert_int_eq(count_events(root, "X", false, "embed"), BK_PROFILE_STEPS * launches);
  json_decref(root);
  begin_step(b.r.model, b.kept); /* a step that is never ended: the oldest of the three makes way */
  OK(bk_runner_forward(b.r.runner, 0, b.ids, b.targets));
  root = read_trace(b.profile, path);
  ck_assert_int_eq(count_events(root, "X", true, "step 4"), BK_PROFILE_STEPS - 1);
  ck_assert_int_eq(count_events(root, "X", false, "embed"), (BK_PROFILE_STEPS - 1) * launches);
  json_decref(root);
  bench_step(&b, 1);
  check_sums(b.profile, 5, launches); /* of the unended step nothing */
  ck_assert_int_eq(bk_profile_write_trace(b.profile, unit_path("none/trace.json")), BK_ERR_IO);
  unit_expect("cannot create");
  bench_close(&b);
}
END_TEST

/* The times and figures of the trace are those of the records. */
START_TEST(trace_figures) {
  bench b = bench_open(BK_HC_MHC, BK_F32, 0);
  bench_step(&b, 1);
  const bk_profile_step *step = last_step(b.profile);
  json_t *root = read_trace(b.profile, unit_path("trace.json")),
         *events = json_object_get(root, "traceEvents");
  ck_assert_uint_eq(json_array_size(events), (size_t)step->count + 4);
  for (int i = 0; i < step->count; i++) {
    const bk_profile_record *r = &step->records[i];
    const char *name, *category, *kernel, *ph;
    double ts, dur, bytes, flops;
    int pid, tid;
    json_t *sublayer;
    ck_assert_int_eq(
        json_unpack(json_array_get(events, (size_t)i + 4),
                    "{s:s,s:s,s:s,s:F,s:F,s:i,s:i,s:{s:s,s:o,s:F,s:F}}", "ph", &ph, "name", &name,
                    "cat", &category, "ts", &ts, "dur", &dur, "pid", &pid, "tid", &tid, "args",
                    "kernel", &kernel, "sublayer", &sublayer, "bytes", &bytes, "flops", &flops),
        0);
    ck_assert_str_eq(name, bk_op_name(r->op));
    ck_assert_str_eq(category, bk_phase_name(r->phase));
    ck_assert_str_eq(kernel, r->kernel);
    ck_assert(r->sublayer < 0 ? json_is_null(sublayer)
                              : json_integer_value(sublayer) == r->sublayer);
    ck_assert(bytes == r->bytes && flops == r->flops);
    ck_assert(fabs(ts - 1e6 * (step->at + r->begin)) < 1e-3 && fabs(dur - 1e6 * r->seconds) < 1e-3);
  }
  json_decref(root);
  bench_close(&b);
}
END_TEST

/* ---- training ---- */

typedef struct outcome {
  double losses[4];
  double val_loss;
  uint64_t weights;
} outcome;

static uint64_t hash_of(const bk_model *m) {
  static bk_tensor (*const views[])(const bk_model *, const bk_param *) = {
      bk_param_weight, bk_param_master, bk_param_m, bk_param_v};
  uint64_t hash = 0;
  for (int i = 0; i < m->n_params; i++)
    for (size_t k = 0; k < BK_COUNT(views); k++) {
      bk_tensor t = views[k](m, &m->params[i]);
      size_t bytes = bk_tensor_bytes(&t);
      char *raw = bytes ? bk_alloc(ctx, bytes + sizeof hash) : NULL;
      if (!raw) continue;
      OK(bk_tensor_download(m->stream, &t, raw));
      memcpy(raw + bytes, &hash, sizeof hash);
      hash = bk_hash64(raw, bytes + sizeof hash);
      bk_free(ctx, raw);
    }
  return hash;
}

/* Four steps of two micro-batches, each followed by a validation and a look at the gain. */
static outcome train(int residual, bk_dtype dtype, bool profiled) {
  bk_model_config c = small_config(residual);
  bk_train_config recipe;
  bk_metrics_row row;
  bk_device *device = open_device("cpu", 2);
  bk_dataset *data = NULL;
  bk_model *model = NULL;
  bk_trainer *trainer = NULL;
  bk_profile *profile = NULL;
  outcome o = {.val_loss = 0};
  uint8_t tokens[600];
  for (size_t i = 0; i < sizeof tokens; i++)
    tokens[i] = (uint8_t)(bk_uniform(3, 1, i) * (double)c.vocab_size);
  bk_train_config_default(&recipe);
  recipe.steps = 100;
  recipe.batch_size = 2, recipe.micro_batch_size = 1, recipe.seq_len = 16;
  recipe.eval_every = recipe.gain_every = 1;
  OK(bk_dataset_from_tokens(ctx, tokens, (int64_t)sizeof tokens, 1, c.vocab_size, &data));
  OK(bk_model_create(device, &c, dtype, &(bk_model_options){.trainable = true}, &model));
  OK(bk_model_init(model, 7));
  if (profiled) OK(bk_profile_create(model, &profile));
  OK(bk_trainer_create(model, &recipe, data, data, &trainer));
  for (int i = 0; i < 4; i++) {
    OK(bk_trainer_step(trainer, &row));
    ck_assert(row.has_val && row.has_gain);
    o.losses[i] = row.loss;
    o.val_loss = row.val_loss;
    if (!profile) continue;
    ck_assert_int_eq(profile->done, i + 1); /* validation is no step */
    check_times(last_step(profile));
  }
  if (profile) check_sums(profile, 3, last_step(profile)->count);
  o.weights = hash_of(model);
  bk_profile_destroy(profile);
  bk_trainer_destroy(trainer);
  bk_model_destroy(model);
  bk_dataset_close(data);
  bk_device_close(device);
  return o;
}

START_TEST(same_bits) {
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_IHC; kind++) {
    bk_dtype dtype = kind % 2 ? BK_BF16 : BK_F32;
    outcome plain = train(kind, dtype, false), profiled = train(kind, dtype, true);
    ck_assert_mem_eq(plain.losses, profiled.losses, sizeof plain.losses);
    ck_assert_mem_eq(&plain.val_loss, &profiled.val_loss, sizeof plain.val_loss);
    ck_assert_uint_eq(plain.weights, profiled.weights);
    ck_assert(plain.losses[3] != plain.losses[0]);
  }
}
END_TEST

/* ---- the listing of a step ---- */

typedef struct listed {
  const bk_profile_step *step; /* NULL: nothing is compared */
  int at, calls, limit;
  bool next; /* there is a micro-batch after the first */
} listed;

/* Of the calls those that are ops are what the profile has recorded, in that order. */
static bk_status compare_call(void *user, const bk_step_call *c) {
  listed *l = user;
  ck_assert(c->program[0] && c->lane[0] && c->part[0] && c->pass[0]);
  l->next |= strcmp(c->program, "backward, next") == 0;
  if (++l->calls == l->limit) return BK_INTERRUPTED;
  if (!l->step || c->op[0] == '(') return BK_OK;
  ck_assert_int_lt(l->at, l->step->count);
  const bk_profile_record *r = &l->step->records[l->at++];
  ck_assert_str_eq(c->op, bk_op_name((bk_op)r->op));
  ck_assert_str_eq(c->phase, bk_phase_name((bk_phase)r->phase));
  ck_assert_str_eq(c->kernel, r->kernel);
  ck_assert_int_eq(c->sublayer, r->sublayer);
  return BK_OK;
}

static void check_listing(int64_t batch) {
  static uint8_t tokens[600];
  bk_model_config c = small_config(BK_HC_MHC);
  bk_train_config recipe;
  bk_metrics_row row;
  bk_device *device = open_device("cpu", 1);
  bk_dataset *data = NULL;
  bk_model *model = NULL, *planned = NULL;
  bk_trainer *trainer = NULL, *of_planned = NULL;
  bk_profile *profile = NULL;
  bk_train_config_default(&recipe);
  recipe.batch_size = batch, recipe.micro_batch_size = 1, recipe.seq_len = 16;
  recipe.gain_every = recipe.eval_every = 0;
  OK(bk_dataset_from_tokens(ctx, tokens, (int64_t)sizeof tokens, 1, c.vocab_size, &data));
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){.trainable = true}, &model));
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){.trainable = true, .plan_only = true},
                     &planned));
  OK(bk_model_init(model, 7));
  OK(bk_profile_create(model, &profile));
  OK(bk_trainer_create(model, &recipe, data, NULL, &trainer));
  OK(bk_trainer_create(planned, &recipe, NULL, NULL, &of_planned));
  OK(bk_trainer_step(trainer, &row));
  listed real = {.step = last_step(profile)}, plan = {.step = last_step(profile)},
         cut = {.limit = 7};
  OK(bk_trainer_program(trainer, compare_call, &real));
  OK(bk_trainer_program(of_planned, compare_call, &plan));
  ck_assert_int_eq(real.at, real.step->count);
  ck_assert(real.at == plan.at && real.calls == plan.calls && real.calls > real.at);
  ck_assert(real.next == (batch > 1));
  ck_assert_int_eq(bk_trainer_program(trainer, compare_call, &cut), BK_INTERRUPTED);
  ck_assert_int_eq(cut.calls, 7);
  bk_profile_destroy(profile);
  bk_trainer_destroy(trainer);
  bk_trainer_destroy(of_planned);
  bk_model_destroy(model);
  bk_model_destroy(planned);
  bk_dataset_close(data);
  bk_device_close(device);
}

START_TEST(listing_is_what_runs) {
  check_listing(1);
  check_listing(2);
}
END_TEST

UNIT_MAIN("profile", unit_folder_open, unit_folder_close, covers_every_launch,
          sums_without_the_first_step, costs, shared_events, more_than_the_pool, attached_once,
          trace, trace_figures, same_bits, listing_is_what_runs)

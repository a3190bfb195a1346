/* Checkpoints of pipelines: what the ranks of any plan have saved, each its stages' part, comes
 * back to those of any other, and to one process, bit for bit; what a failing rank leaves; what is
 * refused; saves while training goes on. */
#include "tests/models/saved.h"

#include <birkhoff/forward.h>

#include "io/safetensors.h"
#include "models/checkpoint_priv.h"
#include "models/gain.h"
#include "models/generator.h"
#include "models/pipeline.h"

/* ---- plans ---- */

typedef struct plan {
  const char *schedule; /* NULL: every rank has the whole model */
  int pp, dp;
  const char *stages;
} plan;

static const plan plans[] = {
    {NULL, 1, 1, NULL},
    {NULL, 1, 2, NULL},
    {"1f1b", 2, 1, NULL},
    {"1f1b", 2, 2, "5,1"},
    {"1f1b", 4, 1, "1,2,1,2"},
    {"dualpipe", 2, 1, NULL},
    {"dualpipev", 2, 1, NULL},
    /* fewer tests have these, and none of a quick run */
    {NULL, 1, 3, NULL},
    {"zb1p", 3, 2, "3,1,2"},
    {"dualpipe", 2, 2, "3,3"},
    {"dualpipe", 4, 1, "1,1,1,3"},
    {"dualpipev", 1, 1, NULL},
    {"dualpipev", 2, 2, "2,1,1,2"},
    {"dualpipev", 3, 1, NULL},
};
enum { ALONE = 0, DP_2 = 1, PP_2_DP_2 = 3, PP_4 = 4, QUICK_PLANS = 7 };

/* Of the tests that go through plans one after the other. */
static int n_plans(void) { return thorough() ? (int)BK_COUNT(plans) : QUICK_PLANS; }
/* Of the one that has all to all. */
static int n_all(void) { return quick() ? QUICK_PLANS : (int)BK_COUNT(plans); }

static struct {
  char path[512];
  bk_dtype dtype;
  uint64_t seed;
  int residual;
  bool loads; /* what is done without memory */
  int failures[RANKS_MAX];
  bk_status status[RANKS_MAX];
  size_t bytes[RANKS_MAX];
  char other[480]; /* a path beside it; unit_path is the main thread's */
} now;

static void begin(const char *name, bk_dtype dtype, uint64_t seed) {
  memset(&now, 0, sizeof now);
  snprintf(now.path, sizeof now.path, "%s", unit_path(name));
  now.dtype = dtype;
  now.seed = seed;
  now.residual = BK_HC_MHC;
}

/* A rank with its part of a model. */
typedef struct part {
  bk_context *ctx;
  bk_schedule *schedule;
  bk_pipeline *pipeline;
  bk_model_options options;
  bk_model *model;
} part;

static part part_open(rank *r, int number) {
  const plan *p = &plans[number];
  bk_model_config c = small_config(now.residual);
  part x = {.ctx = r->ctx, .options = {.trainable = true, .comm = r->comm}};
  open_rank(r);
  if (!p->schedule) return x;
  bk_pipeline_options o = {.stages = p->stages, .seq_len = 16};
  EXPECT_OK(r, bk_schedule_create(r->ctx, p->schedule, p->pp, 4 * p->pp, &x.schedule));
  o.schedule = x.schedule;
  if (x.schedule) EXPECT_OK(r, bk_pipeline_create(r->ctx, r->comm, &c, &o, &x.pipeline));
  x.options.pipeline = x.pipeline;
  return x;
}

static void part_close(part *x) {
  bk_model_destroy(x->model);
  bk_pipeline_destroy(x->pipeline);
  bk_schedule_destroy(x->ctx, x->schedule);
}

static part part_make(rank *r) {
  bk_model_config c = small_config(now.residual);
  part x = part_open(r, r->all->detail);
  EXPECT_OK(r, bk_model_create(r->device, &c, now.dtype, &x.options, &x.model));
  EXPECT_OK(r, known_fill_all(x.model, now.seed));
  return x;
}

static ranks run(int plan_number, const bk_backend *backend, void (*body)(rank *)) {
  static ranks all;
  const plan *p = &plans[plan_number];
  all = (ranks){.size = p->pp * p->dp, .backend = backend, .timeout_s = 60, .body = body};
  all.detail = plan_number;
  ranks_run(&all, ctx);
  return all;
}

static void body_save(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  part x = part_make(r);
  now.bytes[r->rank] = bk_checkpoint_save_bytes(x.model);
  EXPECT_OK(r, bk_checkpoint_save(x.model, &state, now.path));
  EXPECT(r, r->messages[0] == '\0');
  part_close(&x);
}

/* This rank's part of what is at the path, in the plan of that number. */
static void load_path(rank *r, int number, const char *path, uint64_t seed) {
  part x = part_open(r, number);
  bk_status status = bk_checkpoint_load(r->device, path, BK_NONE, &x.options, &x.model);
  if (status == BK_OK) status = bk_checkpoint_load_optimizer(x.model, path);
  bool right = status == BK_OK && bk_model_dtype(x.model) == now.dtype &&
               known_holds_all(x.model, seed) && r->messages[0] == '\0';
  if (!right && !r->failure[0])
    snprintf(r->failure, sizeof r->failure, "rank %d of plan %d: %s is not what was saved", r->rank,
             number, path);
  part_close(&x);
}

static void body_load(rank *r) { load_path(r, r->all->detail, now.path, now.seed); }

/* ---- any plan to any other ---- */

/* What one process has of the same model. */
static bk_model *model_alone(bk_device *device) {
  bk_model_config c = small_config(now.residual);
  bk_model *m = NULL;
  OK(bk_model_create(device, &c, now.dtype, &(bk_model_options){.trainable = true}, &m));
  OK(known_fill_all(m, now.seed));
  return m;
}

/* The names are in the file in the order of the whole model, each once. */
static void check_order(const bk_model *m, const char *file, const char *prefix, int part) {
  char *text, *at;
  size_t bytes;
  read_file(now.path, file, &text, &bytes);
  at = text;
  for (int i = 0; i < m->n_params; i++) {
    if (*prefix && !bk_state_has(m, &m->params[i], part)) continue;
    char *name = bk_format(ctx, "\"%s%s\": ", prefix, m->params[i].name);
    char *next = strstr(at, name);
    ck_assert_msg(next && !strstr(next + 1, name), "%s: %s", file, name);
    at = next;
    bk_free(ctx, name);
  }
  bk_free(ctx, text);
}

static void check_total(const char *file, size_t *total) {
  char *text;
  size_t bytes;
  long long size = 0;
  read_file(now.path, file, &text, &bytes);
  ck_assert_int_eq(sscanf(text, "{ \"metadata\": { \"total_size\": %lld", &size), 1);
  *total += (size_t)size;
  bk_free(ctx, text);
}

/* The bytes of a plan without ranks are those of its ranks. */
static void check_planned(bk_device *device, int number) {
  const plan *p = &plans[number];
  bk_model_config c = small_config(now.residual);
  for (int r = 0; r < p->pp * p->dp && p->schedule; r++) {
    bk_schedule *schedule = NULL;
    bk_pipeline *pipeline = NULL;
    bk_model *m = NULL;
    OK(bk_schedule_create(ctx, p->schedule, p->pp, 4 * p->pp, &schedule));
    bk_pipeline_options o = {.schedule = schedule,
                             .stages = p->stages,
                             .seq_len = 16,
                             .rank = r,
                             .ranks = p->pp * p->dp};
    OK(bk_pipeline_create(ctx, NULL, &c, &o, &pipeline));
    OK(bk_model_create(
        device, &c, now.dtype,
        &(bk_model_options){.trainable = true, .plan_only = true, .pipeline = pipeline}, &m));
    ck_assert_uint_eq(bk_checkpoint_save_bytes(m), now.bytes[r]);
    bk_model_destroy(m);
    bk_pipeline_destroy(pipeline);
    bk_schedule_destroy(ctx, schedule);
  }
}

/* The tensors of two readers are the same ones, bit for bit. */
static void check_tensors(bk_st_reader *a, bk_st_reader *b) {
  ck_assert_int_eq(bk_st_count(a), bk_st_count(b));
  for (int i = 0; i < bk_st_count(a); i++) {
    const bk_st_entry *x = bk_st_get(a, i), *y = bk_st_find(b, x->name);
    ck_assert_msg(y && x->ndim == y->ndim && x->end - x->begin == y->end - y->begin, "%s", x->name);
    size_t bytes = (size_t)(x->end - x->begin);
    char *p = bk_alloc(ctx, bytes), *q = bk_alloc(ctx, bytes);
    OK(bk_st_read(a, x, p, bytes));
    OK(bk_st_read(b, y, q, bytes));
    ck_assert_msg(memcmp(p, q, bytes) == 0, "%s differs", x->name);
    bk_free(ctx, p);
    bk_free(ctx, q);
  }
  bk_st_close(a);
  bk_st_close(b);
}

/* What `birkhoff compare` looks at: the folder against one that one process has written. */
static void check_compares(bk_model *alone) {
  bk_st_reader *a = NULL, *b = NULL;
  bk_trainer_state state = known_state(now.dtype);
  OK(bk_checkpoint_save(alone, &state, unit_path("alone")));
  OK(bk_st_open_folder(ctx, now.path, &a));
  OK(bk_st_open_folder(ctx, unit_path("alone"), &b));
  check_tensors(a, b);
  OK(bk_st_open_state(ctx, now.path, &a));
  OK(bk_st_open_state(ctx, unit_path("alone"), &b));
  check_tensors(a, b);
}

static void check_files(int number) {
  static const char weights[] = BK_WEIGHTS_INDEX, slices[] = BK_OPTIMIZER_INDEX;
  const plan *p = &plans[number];
  bk_device *device = open_device("cpu", 1);
  bk_model *m = model_alone(device);
  size_t all = 0, total = 0;
  check_compares(m);
  check_planned(device, number);
  for (int r = 0; r < p->pp * p->dp; r++) all += now.bytes[r];
  ck_assert_uint_eq(all, bk_checkpoint_save_bytes(m));
  if (p->pp * p->dp > 1) {
    check_order(m, weights, "", 0);
    for (int k = 0; k < BK_STATE_PARTS; k++) check_order(m, slices, bk_state_prefixes[k], k);
    check_total(weights, &total);
    check_total(slices, &total);
    ck_assert_uint_eq(total, all);
  }
  bk_model_destroy(m);
  bk_device_close(device);
}

static void plan_path(int saved, char *path, size_t size) {
  snprintf(path, size, "%s/plan-%d/step-000001", now.other, saved);
}

static uint64_t plan_seed(int saved) { return 7 + (uint64_t)saved; }

static void save_plan(int saved, bk_dtype dtype) {
  char *what = NULL, *folder = NULL;
  int64_t step = -1;
  begin("plans", dtype, plan_seed(saved));
  snprintf(now.other, sizeof now.other, "%s", unit_path("plans"));
  plan_path(saved, now.path, sizeof now.path);
  run(saved, &bk_backend_cpu, body_save);
  check_files(saved);
  folder = bk_format(ctx, "%s/plan-%d", now.other, saved);
  OK(bk_checkpoint_newest(ctx, folder, BK_CHECKPOINT_RESUME, &step));
  ck_assert_int_eq(step, 1);
  OK(bk_checkpoint_check_finite(ctx, now.path, &what));
  bk_free(ctx, folder);
}

/* All plans of this number of ranks load what all plans have saved. */
static void body_load_plans(rank *r) {
  char path[600];
  for (int saved = 0; saved < n_all(); saved++) {
    plan_path(saved, path, sizeof path);
    for (int loaded = 0; loaded < n_all(); loaded++)
      if (plans[loaded].pp * plans[loaded].dp == r->size)
        load_path(r, loaded, path, plan_seed(saved));
  }
}

static void check_plans(bk_dtype dtype) {
  unsigned done = 0;
  for (int i = 0; i < n_all(); i++) save_plan(i, dtype);
  for (int i = 0; i < n_all(); i++) {
    unsigned bit = 1u << (plans[i].pp * plans[i].dp);
    if (!(done & bit)) run(i, &bk_backend_cpu, body_load_plans);
    done |= bit;
  }
}

START_TEST(test_plans) {
  check_plans(BK_BF16);
  if (thorough()) check_plans(BK_F32);
}
END_TEST

/* On a device whose memory the host does not see. */
START_TEST(test_late) {
  static const int some[] = {ALONE, DP_2, PP_2_DP_2};
  for (size_t i = 0; i < BK_COUNT(some); i++) {
    begin("late", BK_F32, 30 + (uint64_t)i);
    run(some[i], &late_backend, body_save);
    for (size_t k = 0; k < BK_COUNT(some); k++) run(some[k], &late_backend, body_load);
  }
}
END_TEST

/* The same ranks write the same bytes again; a folder of one plan is replaced by one of another. */
START_TEST(test_same_bytes) {
  char first[512];
  for (int i = 0; i < n_plans(); i++) {
    if (!plans[i].schedule) continue;
    begin("a", BK_BF16, 5);
    run(i, &bk_backend_cpu, body_save);
    snprintf(first, sizeof first, "%s", now.path);
    begin("b", BK_BF16, 5);
    run(i, &bk_backend_cpu, body_save);
    check_same_files(first, now.path);
  }
}
END_TEST

/* ---- weights alone ---- */

static void body_save_weights(rank *r) {
  part x = part_make(r);
  EXPECT_OK(r, bk_checkpoint_save(x.model, NULL, now.path));
  part_close(&x);
}

static void body_load_weights(rank *r) {
  part x = part_open(r, r->all->detail);
  x.options.trainable = false;
  EXPECT_OK(r, bk_checkpoint_load(r->device, now.path, BK_NONE, &x.options, &x.model));
  if (x.model) EXPECT(r, known_holds_all(x.model, now.seed));
  part_close(&x);
}

START_TEST(test_weights_alone) {
  for (int i = 0; i < n_plans(); i++) {
    begin("weights", BK_BF16, 50 + (uint64_t)i);
    run(i, &bk_backend_cpu, body_save_weights);
    ck_assert(!bk_path_exists(ctx, unit_path("weights/trainer_state.json")));
    run((i + 2) % n_plans(), &bk_backend_cpu, body_load_weights);
    run(ALONE, &bk_backend_cpu, body_load_weights);
  }
}
END_TEST

/* ---- one process uses it ---- */

enum { TOKENS = 12, NUMBERS = TOKENS * 23 + 4 };

/* A pass's logits, a token that is drawn, gains and an evaluation of the checkpoint in `path`. */
static void use(const char *path, double *numbers) {
  bk_device *device = open_device("cpu", 1);
  bk_model *m = NULL;
  bk_forward *pass = NULL;
  bk_generator *g = NULL;
  bk_gain *gain = NULL;
  bk_evaluator *evaluator = NULL;
  bk_eval_result result = {0};
  bk_dataset *data = NULL;
  int32_t ids[TOKENS];
  uint16_t tokens[64];
  for (int i = 0; i < TOKENS; i++) ids[i] = i * 7 % 23;
  for (int i = 0; i < 64; i++) tokens[i] = (uint16_t)(i * 5 % 23);
  OK(bk_checkpoint_load(device, path, BK_NONE, NULL, &m));
  OK(bk_forward_create(m, &(bk_forward_options){.batch = 1, .seq_len = TOKENS}, &pass));
  OK(bk_forward_run(pass, ids, NULL));
  OK(bk_forward_logits(pass, numbers));
  OK(bk_forward_finish(pass, NULL));
  bk_forward_destroy(pass);
  OK(bk_generator_create(m, TOKENS, &g));
  OK(bk_generator_feed(g, ids, TOKENS));
  OK(bk_generator_sample(g, 1, 1, 3, &ids[0]));
  numbers[TOKENS * 23] = ids[0];
  bk_generator_destroy(g);
  OK(bk_dataset_from_tokens(ctx, tokens, 64, 2, 23, &data));
  OK(bk_gain_measure(m, data, 16, 32, &gain));
  numbers[TOKENS * 23 + 1] = gain->total_forward;
  numbers[TOKENS * 23 + 2] = gain->total_backward;
  bk_gain_destroy(gain);
  OK(bk_evaluator_create(m, 2, 16, &evaluator));
  OK(bk_evaluator_run(evaluator, data, 0, &result));
  numbers[TOKENS * 23 + 3] = result.loss_sum;
  bk_evaluator_destroy(evaluator);
  bk_dataset_close(data);
  bk_model_destroy(m);
  bk_device_close(device);
}

static void body_save_initial(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  part x = part_make(r);
  EXPECT_OK(r, bk_model_init(x.model, 11));
  EXPECT_OK(r, bk_checkpoint_save(x.model, &state, now.path));
  part_close(&x);
}

START_TEST(test_use) {
  static double want[NUMBERS], got[NUMBERS];
  for (int i = 0; i < n_plans(); i++) {
    char *path = NULL;
    begin("use/step-000003", BK_F32, 5);
    run(i, &bk_backend_cpu, body_save_initial);
    OK(bk_checkpoint_resolve(ctx, unit_path("use"), &path));
    ck_assert_str_eq(path, now.path);
    use(path, i ? got : want);
    if (i) ck_assert_msg(memcmp(got, want, sizeof got) == 0, "plan %d", i);
    bk_free(ctx, path);
  }
}
END_TEST

/* ---- from a plain checkpoint ---- */

static void body_convert(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  part x = part_make(r);
  EXPECT_OK(r, bk_checkpoint_convert_plain(x.model, now.other));
  EXPECT_OK(r, bk_checkpoint_save(x.model, &state, now.path));
  part_close(&x);
}

START_TEST(test_convert) {
  bk_st_reader *a = NULL, *b = NULL;
  for (int saved = 0; saved < 4; saved += 3) {
    begin("plain", BK_F32, 5);
    now.residual = BK_HC_PLAIN;
    run(saved, &bk_backend_cpu, body_save);
    begin("mhc-alone", BK_BF16, 6);
    snprintf(now.other, sizeof now.other, "%s", unit_path("plain"));
    run(ALONE, &bk_backend_cpu, body_convert);
    for (int i = 1; i < n_plans(); i++) {
      begin("mhc", BK_BF16, 6);
      snprintf(now.other, sizeof now.other, "%s", unit_path("plain"));
      run(i, &bk_backend_cpu, body_convert);
      OK(bk_st_open_folder(ctx, now.path, &a));
      OK(bk_st_open_folder(ctx, unit_path("mhc-alone"), &b));
      check_tensors(a, b);
      OK(bk_st_open_state(ctx, now.path, &a));
      OK(bk_st_open_state(ctx, unit_path("mhc-alone"), &b));
      check_tensors(a, b);
    }
  }
}
END_TEST

/* ---- a rank whose disk or memory fails ---- */

/* What rank 2 could not do is said by it, and by rank 0; all return the same. */
static void expect_failure(rank *r, bk_status status, bk_status wanted, const char *why) {
  int32_t own = status, all[RANKS_MAX];
  if (status != wanted && !r->failure[0])
    snprintf(r->failure, sizeof r->failure, "rank %d: %s instead of %s: %.300s", r->rank,
             bk_status_name(status), bk_status_name(wanted), r->messages);
  EXPECT(r, r->rank != 2 || strstr(r->messages, why));
  EXPECT(r, r->rank != 0 || strstr(r->messages, "rank 2 could not"));
  EXPECT(r, r->rank % 2 == 0 || r->messages[0] == '\0');
  EXPECT_OK(r, bk_comm_gather(r->comm, &own, sizeof own, all));
  for (int i = 0; i < r->size; i++) EXPECT(r, all[i] == own);
  EXPECT(r, r->rank != 0 || !bk_path_exists(r->ctx, now.other)); /* by whom it is removed */
  r->messages[0] = '\0';
}

/* Each change of the disk fails once, until the save succeeds. */
static void body_fail(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  part x = part_make(r);
  for (int at = 1;; at++) {
    spoil_disk(r, r->rank == 2 ? at : 0);
    bk_status status = bk_checkpoint_save(x.model, &state, now.path);
    if (status == BK_OK) break;
    expect_failure(r, status, BK_ERR_IO, "-of-0000");
    load_path(r, r->all->detail, now.path, now.seed - 1); /* the older one is as it was */
    now.failures[r->rank] = at;
    if (r->failure[0]) break;
  }
  part_close(&x);
}

START_TEST(test_rank_fails) {
  static const int some[] = {PP_2_DP_2, PP_4};
  for (size_t i = 0; i < BK_COUNT(some); i++) {
    begin("run/step-000001", BK_BF16, 3);
    run(DP_2, &bk_backend_cpu, body_save);
    now.seed = 4;
    snprintf(now.other, sizeof now.other, "%s", unit_path("run/step-000001.tmp"));
    run(some[i], &bk_backend_cpu, body_fail);
    ck_assert_int_ge(now.failures[2], 8); /* two files: opened, written, synced, closed */
    run(DP_2, &bk_backend_cpu, body_load);
  }
}
END_TEST

static bk_status without_memory(rank *r, part *x, int at) {
  bk_trainer_state state = known_state(now.dtype);
  bk_status status;
  spoil_memory(r, r->rank == 2 ? at : 0);
  if (!now.loads) {
    status = bk_checkpoint_save(x->model, &state, now.path);
  } else {
    status = bk_checkpoint_load_weights(x->model, now.path);
    if (status == BK_OK) status = bk_checkpoint_load_optimizer(x->model, now.path);
  }
  mend_memory(r);
  return status;
}

static void body_memory(rank *r) {
  part x = part_make(r);
  size_t held = r->ctx->stats.current_bytes;
  for (int at = 1;; at += thorough() ? 1 : quick() ? 89 : 31) {
    bk_status status = without_memory(r, &x, at);
    EXPECT(r, r->ctx->stats.current_bytes == held);
    if (status == BK_OK) break;
    expect_failure(r, status, BK_ERR_MEMORY, "out of memory");
    now.failures[r->rank]++;
    if (r->failure[0]) break;
  }
  part_close(&x);
}

START_TEST(test_rank_memory) {
  for (int loads = 0; loads < 2; loads++) {
    begin("run/step-000001", BK_BF16, 3);
    run(DP_2, &bk_backend_cpu, body_save);
    now.loads = loads;
    now.seed += !loads;
    snprintf(now.other, sizeof now.other, "%s", unit_path("run/step-000001.tmp"));
    run(PP_2_DP_2, &bk_backend_cpu, body_memory);
    ck_assert_int_gt(now.failures[2], 2);
    run(PP_4, &bk_backend_cpu, body_load);
  }
}
END_TEST

/* ---- what is refused ---- */

/* One process's weights, of which `without` is left out and `more` is put in. */
static void put_weights(const char *folder, const char *without, const char *more) {
  bk_st_reader *from = NULL;
  bk_st_writer *to = NULL;
  static const float zeros[4];
  run(ALONE, &bk_backend_cpu, body_save);
  OK(bk_st_open_folder(ctx, now.path, &from));
  snprintf(now.path, sizeof now.path, "%s", folder);
  OK(bk_mkdirs(ctx, folder));
  char *file = bk_path_join(ctx, folder, "model.safetensors");
  OK(bk_st_create(ctx, file, &to));
  for (int i = 0; i < bk_st_count(from); i++) {
    const bk_st_entry *e = bk_st_get(from, i);
    if (!without || strcmp(e->name, without) != 0)
      OK(bk_st_add(to, e->name, e->dtype, e->ndim, e->shape));
  }
  if (more) OK(bk_st_add(to, more, BK_F32, 1, (int64_t[]){4}));
  for (int i = 0; i < bk_st_count(from); i++) {
    const bk_st_entry *e = bk_st_get(from, i);
    size_t bytes = (size_t)(e->end - e->begin);
    if (without && strcmp(e->name, without) == 0) continue;
    char *data = bk_alloc(ctx, bytes);
    OK(bk_st_read(from, e, data, bytes));
    OK(bk_st_write(to, data, bytes));
    bk_free(ctx, data);
  }
  if (more) OK(bk_st_write(to, zeros, sizeof zeros));
  OK(bk_st_finish(to));
  bk_st_close(from);
  bk_free(ctx, file);
}

static void body_refused(rank *r) {
  part x = part_make(r);
  now.status[r->rank] = bk_checkpoint_load_weights(x.model, now.path);
  part_close(&x);
}

/* A tensor of no layer, which all ranks see; one that is missing, which the ranks see that hold
 * it. */
START_TEST(test_refused) {
  static const char *const extra[] = {"model.layers.3.input_layernorm.weight",
                                      "model.layers.0.mlp.experts.0.up_proj.weight",
                                      "model.layers.1.mlp.experts.6.up_proj.weight", "other"};
  static const char *const missing[] = {"model.embed_tokens.weight",
                                        "model.layers.1.post_attention_layernorm.weight",
                                        "lm_head.weight"};
  static const int some[] = {2, PP_2_DP_2, PP_4, 6};
  for (size_t i = 0; i < BK_COUNT(extra) + BK_COUNT(missing); i++) {
    size_t k = i < BK_COUNT(extra) ? i : i - BK_COUNT(extra);
    bool more = i < BK_COUNT(extra);
    begin("whole", BK_F32, 3);
    put_weights(unit_path("refused"), more ? NULL : missing[k], more ? extra[k] : NULL);
    for (size_t p = 0; p < BK_COUNT(some); p++) {
      ranks all = run(some[p], &bk_backend_cpu, body_refused);
      bool said = false;
      for (int r = 0; r < all.size; r++) {
        ck_assert_int_eq(now.status[r], BK_ERR_DATA);
        if (more) rank_expect(&all, r, "does not belong to this configuration");
        else said |= strstr(all.rank[r].messages, " is missing") != NULL;
        said |= more;
      }
      ck_assert(said);
      if (!strstr(all.rank[0].messages, " is missing") && !more)
        rank_expect(&all, 0, "could not load the weights");
    }
  }
}
END_TEST

/* ---- while training goes on ---- */

static void body_async(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  part x = part_make(r);
  bk_checkpoint_saving *saving = NULL;
  bool done = false;
  EXPECT_OK(r, bk_checkpoint_save_begin(x.model, &state, now.path, &saving));
  EXPECT_OK(r, known_fill_all(x.model, now.seed + 1)); /* what is saved is what was there */
  while (!done) EXPECT_OK(r, bk_checkpoint_save_done(saving, &done));
  EXPECT_OK(r, bk_checkpoint_save_begin(x.model, &state, now.other, &saving));
  EXPECT_OK(r, bk_checkpoint_save_end(saving));
  EXPECT(r, r->messages[0] == '\0');
  part_close(&x);
}

START_TEST(test_async) {
  for (int i = 0; i < n_plans(); i++) {
    if (!plans[i].schedule) continue;
    begin("async", BK_BF16, 50 + 2 * (uint64_t)i);
    snprintf(now.other, sizeof now.other, "%s", unit_path("async-2"));
    run(i, i % 2 ? &bk_backend_cpu : &late_backend, body_async);
    run(DP_2, &bk_backend_cpu, body_load);
    snprintf(now.path, sizeof now.path, "%s", now.other);
    now.seed++;
    run(PP_4, &bk_backend_cpu, body_load);
  }
}
END_TEST

static void body_async_fail(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  part x = part_make(r);
  bk_checkpoint_saving *saving = NULL;
  bool done = false;
  spoil_disk(r, r->rank == 3 ? 4 : 0);
  bk_status status = bk_checkpoint_save_begin(x.model, &state, now.path, &saving);
  while (status == BK_OK && !done) status = bk_checkpoint_save_done(saving, &done);
  now.status[r->rank] = status;
  EXPECT_OK(r, bk_checkpoint_save_done(saving, &done)); /* said once */
  EXPECT_OK(r, bk_checkpoint_save_end(saving));
  part_close(&x);
}

START_TEST(test_async_fails) {
  begin("run/step-000001", BK_BF16, 3);
  run(PP_4, &bk_backend_cpu, body_save);
  now.seed = 4;
  ranks all = run(PP_2_DP_2, &bk_backend_cpu, body_async_fail);
  for (int r = 0; r < 4; r++) ck_assert_int_eq(now.status[r], BK_ERR_IO);
  rank_expect(&all, 0, "rank 3 could not");
  ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
  now.seed = 3;
  run(ALONE, &bk_backend_cpu, body_load);
}
END_TEST

/* ---- finite or not ---- */

/* detail is the plan; the last rank spoils the last element of what it holds. */
static void body_finite(rank *r) {
  char what[512];
  part x = part_make(r);
  EXPECT_OK(r, bk_model_check_finite(x.model, what, sizeof what));
  EXPECT(r, what[0] == '\0');
  const bk_param *p = &x.model->params[x.model->n_params - 1];
  for (bk_slice s = {0}; r->rank == r->size - 1 && bk_param_next_slice(x.model, p, &s);) {
    bk_tensor last = bk_tensor_slice(s.v, 0, s.count - 1, 1);
    EXPECT_OK(r, bk_tensor_write_f64(x.model->stream, &last, &(double){NAN}));
  }
  EXPECT(r, bk_model_check_finite(x.model, what, sizeof what) == BK_ERR_NOT_FINITE);
  EXPECT(r, strstr(what, "the second moment of ") != NULL);
  part_close(&x);
}

START_TEST(test_finite) {
  for (int i = 0; i < n_plans(); i++) {
    begin("none", BK_F32, 5);
    run(i, &bk_backend_cpu, body_finite);
  }
}
END_TEST

/* ---- ranks that do not hold one model ---- */

/* A chunk alone, without a pipeline, is no checkpoint. */
START_TEST(test_not_whole) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_device *device = open_device("cpu", 1);
  bk_model *m = NULL;
  begin("part", BK_F32, 5);
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){.n_chunks = 1, .chunks = {{0, 4}}},
                     &m));
  ck_assert_int_eq(bk_checkpoint_save(m, NULL, now.path), BK_ERR_ARGUMENT);
  unit_expect("the model is not whole: it lacks the weight model.layers.2.");
  ck_assert(!bk_path_exists(ctx, now.path) && !bk_path_exists(ctx, unit_path("part.tmp")));
  bk_model_destroy(m);
  bk_device_close(device);
}
END_TEST

static void body_strangers(rank *r) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_model *m = NULL;
  open_rank(r);
  bk_model_options o = {.comm = r->comm, .n_chunks = 1};
  o.chunks[0] = r->rank == 0 ? (bk_chunk_range){0, 4} : (bk_chunk_range){3, 6};
  EXPECT_OK(r, bk_model_create(r->device, &c, BK_F32, &o, &m));
  now.status[r->rank] = bk_checkpoint_save(m, NULL, now.path);
  bk_model_destroy(m);
}

START_TEST(test_strangers) {
  begin("strangers", BK_F32, 5);
  ranks all = run(DP_2, &bk_backend_cpu, body_strangers);
  for (int r = 0; r < 2; r++) {
    ck_assert_int_eq(now.status[r], BK_ERR_COMM);
    rank_expect(&all, r, "the ranks together would not write the weight model.layers.");
  }
  ck_assert(!bk_path_exists(ctx, now.path) && !bk_path_exists(ctx, unit_path("strangers.tmp")));
}
END_TEST

UNIT_MAIN("checkpoints of pipelines", unit_folder_open, unit_folder_close, test_plans, test_late,
          test_same_bytes, test_weights_alone, test_use, test_convert, test_rank_fails,
          test_rank_memory, test_refused, test_async, test_async_fails, test_finite, test_not_whole,
          test_strangers)

/* Allocation failures, one after the other, through everything that a training program does: an
 * error status, said once, nothing left behind, and the next attempt passes. */
#include <birkhoff/verify.h>

#include "tests/models/models.h"
#include "tests/unit/fault_alloc.h"
#include "tests/unit/fault_fs.h"

#include <birkhoff/bench.h>

#include "io/safetensors.h"
#include "models/checkpoint.h"
#include "models/generator.h"
#include "models/profile.h"
#include "models/trainer.h"

#define STEPS 2

/* What operations work on; made by each test before it injects anything. */
static bk_device *device;
static bk_model *model;
static bk_dataset *data;
static bk_dtype storage;
static char folder[512], text_file[512];

/* Two layers, one of them with experts. */
static bk_model_config tiny_config(int residual) {
  bk_model_config c = small_config(residual);
  c.vocab_size = 257;
  c.num_hidden_layers = 2;
  c.n_routed_experts = 4;
  c.n_group = 1;
  c.topk_group = 1;
  c.q_lora_rank = 5;
  c.hc_head = BK_HEAD_LEARNED;
  return c;
}

static bk_train_config recipe(void) {
  bk_train_config t;
  bk_train_config_default(&t);
  t.steps = STEPS;
  t.batch_size = 2;
  t.micro_batch_size = 1;
  t.seq_len = 8;
  t.warmup_steps = 0;
  t.eval_every = t.gain_every = 1;
  t.eval_tokens = 16;
  t.hc_recompute = 2;
  return t;
}

static void prepare(const char *name, bk_dtype dtype, int residual, bool trainable) {
  bk_model_config c = tiny_config(residual);
  char text[600] = "";
  const char *paths[] = {text_file};
  while (strlen(text) < 500) strcat(text, "the streams mix and keep their norm\n");
  snprintf(folder, sizeof folder, "%s", unit_path("run"));
  snprintf(text_file, sizeof text_file, "%s", unit_path("text"));
  storage = dtype;
  OK(bk_file_write_atomic(ctx, text_file, text, strlen(text)));
  OK(bk_dataset_open(ctx, paths, 1, &(bk_dataset_options){.vocab_size = 257, .split = BK_SPLIT_ALL},
                     &data));
  device = open_device(name, 1);
  OK(bk_model_create(device, &c, dtype, &(bk_model_options){.trainable = trainable}, &model));
  OK(bk_model_init(model, 7));
}

static void finish(void) {
  bk_model_destroy(model);
  bk_device_close(device);
  bk_dataset_close(data);
}

/* ---- context, devices, models ---- */

static bk_status make_context(void) {
  bk_context_options options = {.allocator = &fault_allocator, .log = unit_log};
  bk_context *made = NULL;
  bk_status status = bk_context_create(&options, &made);
  ck_assert((status == BK_OK) == (made != NULL));
  bk_context_destroy(made);
  return status;
}

static bk_status open_cpu(void) {
  bk_device *d = NULL;
  bk_status status = bk_device_open(ctx, "cpu", &(bk_device_options){.threads = 3}, &d);
  ck_assert((status == BK_OK) == (d != NULL));
  bk_device_close(d);
  return status;
}

static bk_status open_ref(void) {
  bk_device *d = NULL;
  bk_status status = bk_device_open(ctx, "ref", NULL, &d);
  bk_device_close(d);
  return status;
}

static bk_status build_model(void) {
  bk_model *m = NULL;
  bk_status status =
      bk_model_create(device, &model->config, storage, &(bk_model_options){.trainable = true}, &m);
  ck_assert((status == BK_OK) == (m != NULL));
  if (status == BK_OK) status = bk_model_init(m, 3);
  bk_model_destroy(m);
  return status;
}

START_TEST(test_build) {
  fault_each_allocation("context", make_context, 1);
  fault_each_allocation("cpu device", open_cpu, 1);
  fault_each_allocation("ref device", open_ref, 1);
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    prepare("cpu", i % 2 ? BK_BF16 : BK_F32, kinds[i], false);
    int64_t n = fault_each_allocation("model build", build_model, quick() ? 7 : 1);
    ck_assert_int_gt(n, 50);
    finish();
  }
}
END_TEST

/* ---- training, evaluation, generation ---- */

static bk_status train(void) {
  bk_train_config r = recipe();
  bk_trainer *t = NULL;
  bk_metrics_row row = {0};
  bk_status status = bk_trainer_create(model, &r, data, data, &t);
  ck_assert((status == BK_OK) == (t != NULL));
  for (int i = 0; i < STEPS && status == BK_OK; i++) {
    int64_t seen = fault_alloc.seen;
    status = bk_trainer_step(t, &row);
    if (i > 0) ck_assert_int_eq(fault_alloc.seen, seen); /* a step allocates nothing */
  }
  bk_trainer_destroy(t);
  return status;
}

static bk_status evaluate(void) {
  bk_evaluator *e = NULL;
  bk_eval_result result = {0};
  bk_status status = bk_evaluator_create(model, 2, 8, &e);
  ck_assert((status == BK_OK) == (e != NULL));
  if (status == BK_OK) status = bk_evaluator_run(e, data, 32, &result);
  bk_evaluator_destroy(e);
  return status;
}

static bk_status generate(void) {
  int32_t ids[40] = {116, 104, 101}, next = -1;
  bk_generator *g = NULL;
  bk_status status = bk_generator_create(model, 48, &g);
  ck_assert((status == BK_OK) == (g != NULL));
  if (status == BK_OK) status = bk_generator_feed(g, ids, 40);
  if (status == BK_OK) status = bk_generator_sample(g, 1.0, 0.9, 5, &next);
  bk_generator_destroy(g);
  return status;
}

/* A step with its events, sums and trace. */
static bk_status profile_step(void) {
  bk_train_config r = recipe();
  bk_trainer *t = NULL;
  bk_profile *p = NULL;
  bk_metrics_row row;
  bk_status status = bk_trainer_create(model, &r, data, NULL, &t);
  if (status == BK_OK) status = bk_profile_create(model, &p);
  ck_assert((status == BK_OK) == (p != NULL) && model->profile == p);
  if (status == BK_OK) status = bk_trainer_step(t, &row);
  if (status == BK_OK) status = bk_profile_write_trace(p, text_file);
  bk_profile_destroy(p);
  ck_assert_ptr_null(model->profile);
  bk_trainer_destroy(t);
  return status;
}

START_TEST(test_profile) {
  prepare("cpu", BK_F32, BK_HC_MHC, true);
  /* thousands of them are events */
  int64_t n = fault_each_allocation("profile", profile_step, quick() ? 397 : 23);
  ck_assert_int_gt(n, 2);
  finish();
}
END_TEST

static bk_status count_row(void *user, const bk_bench_row *row BK_UNUSED) {
  ++*(int *)user;
  return BK_OK;
}

static bk_status bench(void) {
  static const char *const ops[] = {"sum", "gemm", "moe_index", "hc_merge_mix"};
  bk_bench_options options = {.dtype = storage,
                              .tokens = 4,
                              .width = 64,
                              .streams = 4,
                              .vocabulary = 9,
                              .ops = ops,
                              .n_ops = (int)BK_COUNT(ops)};
  bk_roof roof = {.flops_per_s = 1};
  int rows = 0;
  bk_status status = bk_bench_ops(device, &options, &roof, count_row, &rows);
  ck_assert((status == BK_OK) == (rows == (int)BK_COUNT(ops)));
  return status;
}

/* On a host; and with the events of a device. */
START_TEST(test_bench) {
  prepare("cpu", BK_BF16, BK_HC_MHC, false);
  int64_t without = fault_each_allocation("bench", bench, quick() ? 41 : 1);
  ck_assert_int_gt(without, 40);
  device->props.host_memory = false;
  ck_assert_int_gt(fault_each_allocation("bench by events", bench, quick() ? 41 : 1), without);
  device->props.host_memory = true;
  finish();
}
END_TEST

static void check_training(const char *name, bk_dtype dtype, int residual, bool composed) {
  prepare(name, dtype, residual, true);
  device->options.composed_only = composed;
  int64_t skip = quick() ? 41 : 1;
  int64_t n = fault_each_allocation("training", train, skip);
  ck_assert_int_gt(n, 100);
  fault_each_allocation("evaluation", evaluate, skip);
  fault_each_allocation("generation", generate, skip);
  finish();
}

static bool urgent_lane;

/* No step is run here. */
static bk_status build_trainer(void) {
  bk_train_config r = recipe();
  r.merge_stream = urgent_lane;
  bk_model *m = NULL;
  bk_trainer *t = NULL;
  bk_status status =
      bk_model_create(device, &model->config, storage, &(bk_model_options){.trainable = true}, &m);
  if (status == BK_OK) status = bk_trainer_create(m, &r, data, data, &t);
  ck_assert((status == BK_OK) == (t != NULL));
  bk_trainer_destroy(t);
  bk_model_destroy(m);
  return status;
}

/* Graphs of programs need no memory of their own; a second lane has its stream, its workspace and
 * what orders it. */
START_TEST(test_room_for_graphs_and_lanes) {
  prepare("cpu", BK_F32, BK_HC_MHC, true);
  int64_t skip = quick() ? 41 : 1,
          without = fault_each_allocation("a trainer", build_trainer, skip);
  device->props.captures = true;
  ck_assert_int_eq(fault_each_allocation("a trainer with graphs", build_trainer, skip), without);
  urgent_lane = true;
  int64_t with = fault_each_allocation("a trainer with two lanes", build_trainer, skip);
  ck_assert_int_gt(with, without);
  urgent_lane = false;
  finish();
}
END_TEST

START_TEST(test_training) { check_training("cpu", BK_F32, BK_HC_MHC, false); }
END_TEST

START_TEST(test_training_composed) {
  check_training("cpu", BK_BF16, BK_HC_MHC_LITE, true);
  if (!quick()) check_training("ref", BK_F64, BK_HC_HC, false);
}
END_TEST

START_TEST(test_training_plain) { check_training("cpu", BK_F32, BK_HC_PLAIN, false); }
END_TEST

/* ---- files ---- */

static bk_status save(void) {
  bk_trainer_state state = {.step = 5, .tokens = 80, .dtype = storage, .recipe = recipe()};
  char path[600];
  snprintf(path, sizeof path, "%s/step-000005", folder);
  bk_status status = bk_checkpoint_save(model, &state, path);
  bk_status pruned = status == BK_OK ? bk_checkpoint_prune(ctx, folder, 1) : BK_OK;
  return status == BK_OK ? pruned : status;
}

static bk_status save_async(void) {
  bk_trainer_state state = {.step = 5, .tokens = 80, .dtype = storage, .recipe = recipe()};
  bk_checkpoint_saving *saving = NULL;
  char path[600];
  snprintf(path, sizeof path, "%s/step-000006", folder);
  bk_status status = bk_checkpoint_save_begin(model, &state, path, &saving);
  bk_status ended = bk_checkpoint_save_end(saving);
  if (status == BK_OK) status = ended;
  bk_status removed = status == BK_OK ? bk_remove_tree(ctx, path) : BK_OK;
  return status == BK_OK ? removed : status;
}

static bk_status load_state(const char *path, bk_trainer_state *state) {
  char *file = bk_path_join(ctx, path, "trainer_state.json");
  bk_status status = file ? bk_trainer_state_read(ctx, file, state) : BK_ERR_MEMORY;
  bk_free(ctx, file);
  return status;
}

static bk_status load(void) {
  char *path = NULL;
  bk_model *m = NULL;
  bk_trainer_state state;
  bk_status status = bk_checkpoint_resolve(ctx, folder, &path);
  ck_assert((status == BK_OK) == (path != NULL));
  if (status == BK_OK)
    status = bk_checkpoint_load(device, path, BK_NONE, &(bk_model_options){.trainable = true}, &m);
  ck_assert((status == BK_OK) == (m != NULL));
  if (status == BK_OK) status = bk_checkpoint_load_optimizer(m, path);
  if (status == BK_OK) status = load_state(path, &state);
  bk_model_destroy(m);
  bk_free(ctx, path);
  return status;
}

static bk_status convert(void) {
  bk_model *m = NULL;
  bk_model_config c = model->config;
  char path[600];
  snprintf(path, sizeof path, "%s/step-000005", folder);
  c.residual = BK_HC_MHC;
  bk_status status = bk_model_create(device, &c, storage, NULL, &m);
  if (status == BK_OK) status = bk_checkpoint_convert_plain(m, path);
  bk_model_destroy(m);
  return status;
}

/* Weights in two shards. */
static void split(const char *path) {
  static const char *const names[] = {"one.safetensors", "two.safetensors"};
  static char map[32768];
  bk_st_reader *r = NULL;
  bk_st_writer *w[2];
  size_t length = (size_t)snprintf(map, sizeof map, "{\"weight_map\": {");
  OK(bk_st_open_folder(ctx, path, &r));
  for (int s = 0; s < 2; s++) {
    char *file = bk_path_join(ctx, path, names[s]);
    OK(bk_st_create(ctx, file, &w[s]));
    bk_free(ctx, file);
  }
  for (int i = 0; i < bk_st_count(r); i++) {
    const bk_st_entry *e = bk_st_get(r, i);
    OK(bk_st_add(w[i & 1], e->name, e->dtype, e->ndim, e->shape));
    length += (size_t)snprintf(map + length, sizeof map - length, "%s\"%s\": \"%s\"", i ? ", " : "",
                               e->name, names[i & 1]);
  }
  for (int i = 0; i < bk_st_count(r); i++) {
    size_t bytes = (size_t)(bk_st_get(r, i)->end - bk_st_get(r, i)->begin);
    void *bytes_of = bk_alloc(ctx, bytes);
    OK(bk_st_read(r, bk_st_get(r, i), bytes_of, bytes));
    OK(bk_st_write(w[i & 1], bytes_of, bytes));
    bk_free(ctx, bytes_of);
  }
  for (int s = 0; s < 2; s++) OK(bk_st_finish(w[s]));
  bk_st_close(r);
  length += (size_t)snprintf(map + length, sizeof map - length, "}}");
  char *file = bk_path_join(ctx, path, "model.safetensors.index.json"),
       *single = bk_path_join(ctx, path, "model.safetensors");
  OK(bk_file_write_atomic(ctx, file, map, length));
  OK(bk_remove_tree(ctx, single));
  bk_free(ctx, single);
  bk_free(ctx, file);
}

static bk_status check_finite(void) {
  char path[600], *what = NULL;
  snprintf(path, sizeof path, "%s/step-000005", folder);
  bk_status status = bk_checkpoint_check_finite(ctx, path, &what);
  ck_assert_ptr_null(what);
  return status;
}

/* With an unfinished folder behind the whole one, which a warning names, and which lacks the
 * more the more it is asked for. */
static bk_status newest(void) {
  for (int use = BK_CHECKPOINT_READ; use <= BK_CHECKPOINT_RESUME; use++) {
    int64_t step = 0;
    BK_TRY(bk_checkpoint_newest(ctx, folder, (bk_checkpoint_use)use, &step));
    ck_assert_int_eq(step, 5);
    if (use == BK_CHECKPOINT_RESUME)
      unit_expect("step-000006 is not a whole checkpoint and is passed over");
  }
  return BK_OK;
}

static void check_shards(void) {
  char path[600];
  snprintf(path, sizeof path, "%s/step-000005", folder);
  split(path);
  fault_each_allocation("load of shards", load, quick() ? 41 : thorough() ? 3 : 11);
  fault_each_allocation("a look for what is not finite", check_finite, quick() ? 41 : 3);
  snprintf(path, sizeof path, "%s/step-000006", folder);
  OK(bk_mkdirs(ctx, path));
  fault_each_allocation("newest", newest, quick() ? 11 : thorough() ? 1 : 3);
}

START_TEST(test_checkpoints) {
  int64_t skip = quick() ? 41 : 1;
  prepare("cpu", BK_BF16, BK_HC_MHC, true);
  fault_each_allocation("save", save, skip);
  fault_each_allocation("save while training goes on", save_async,
                        quick() || thorough() ? skip : 7);
  fault_each_allocation("load", load, quick() || thorough() ? skip : 3);
  check_shards();
  finish();
}
END_TEST

START_TEST(test_conversion) {
  prepare("cpu", BK_F32, BK_HC_PLAIN, true);
  OK(save());
  fault_each_allocation("conversion of a plain checkpoint", convert, quick() ? 41 : 1);
  finish();
}
END_TEST

static bk_status open_data(void) {
  const char *paths[] = {text_file, text_file};
  bk_dataset *ds = NULL;
  bk_status status = bk_dataset_open(
      ctx, paths, 2, &(bk_dataset_options){.vocab_size = 257, .split = BK_SPLIT_TRAIN}, &ds);
  ck_assert((status == BK_OK) == (ds != NULL));
  bk_dataset_close(ds);
  return status;
}

static bk_status parse_config(void) {
  static const char json[] =
      "{\"hidden_size\": 64, \"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"residual\": "
      "\"mhc\", \"architectures\": [\"DeepseekV3ForCausalLM\"],"
      " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0}, "
      "\"q_lora_rank\": null}";
  bk_model_config c = {.vocab_size = -1};
  bk_status status = bk_model_config_parse(ctx, json, sizeof json - 1, "config.json", &c);
  ck_assert((status == BK_OK) == (c.vocab_size != -1));
  return status;
}

static bk_status write_config(void) {
  char path[600];
  bk_model_config c = {0};
  snprintf(path, sizeof path, "%s.json", folder);
  bk_status status = bk_model_config_write(ctx, path, &model->config, BK_F32);
  return status == BK_OK ? bk_model_config_read(ctx, path, &c) : status;
}

static bk_status write_rows(bk_metrics *metrics) {
  double load[8] = {0.5, 0.5};
  for (int i = 0; i < 3; i++) {
    bk_metrics_row row = {
        .step = i + 1, .loss = 5.0 - i, .n_layers = 2, .n_experts = 4, .expert_load = load};
    BK_TRY(bk_metrics_write(metrics, &row));
  }
  return BK_OK;
}

static bk_status append_line(const char *path, const char *line) {
  bk_file *file;
  OK(ctx->fs.open_write(ctx->fs.user, path, true, &file));
  OK(ctx->fs.write(ctx->fs.user, file, line, strlen(line)) - (int64_t)strlen(line));
  OK(ctx->fs.close(ctx->fs.user, file));
  return BK_OK;
}

static bk_status write_metrics(void) {
  char path[600];
  int64_t *steps = NULL, count = -1;
  double *values = NULL;
  bk_metrics *metrics = NULL;
  snprintf(path, sizeof path, "%s.jsonl", folder);
  bk_status status = bk_metrics_open(ctx, path, &metrics);
  if (status == BK_OK) status = write_rows(metrics);
  bk_metrics_close(metrics);
  if (status == BK_OK) status = bk_metrics_read(ctx, path, "loss", &steps, &values, &count);
  if (status == BK_OK) status = bk_metrics_cut(ctx, path, 2);
  if (status == BK_OK) status = append_line(path, "{\"loss\": 1}\n");
  if (status == BK_OK) status = bk_metrics_cut(ctx, path, 2);
  if (status == BK_OK) unit_expect("1 damaged line is");
  bk_free(ctx, steps);
  bk_free(ctx, values);
  ctx->fs.remove(ctx->fs.user, path);
  return status;
}

/* A row that could not be made is lost, the next one is not. */
static void check_metrics_go_on(void) {
  bk_metrics *metrics = NULL;
  OK(bk_metrics_open(ctx, unit_path("again.jsonl"), &metrics));
  fault_alloc_begin(1, false);
  ck_assert_int_eq(write_rows(metrics), BK_ERR_MEMORY);
  unit_expect("out of memory");
  OK(write_rows(metrics));
  bk_metrics_close(metrics);
}

static bk_status make_folders(void) {
  char **names = NULL, path[600];
  size_t count = 0;
  snprintf(path, sizeof path, "%s/a/b/c", folder);
  bk_status status = bk_mkdirs(ctx, path);
  if (status == BK_OK) status = bk_folder_names(ctx, folder, &names, &count);
  if (status == BK_OK) bk_names_free(ctx, names, count);
  snprintf(path, sizeof path, "%s/a", folder);
  return status == BK_OK ? bk_remove_tree(ctx, path) : status;
}

START_TEST(test_files) {
  prepare("cpu", BK_F32, BK_HC_MHC, false);
  fault_each_allocation("data", open_data, 1);
  fault_each_allocation("configuration", parse_config, 1);
  fault_each_allocation("configuration file", write_config, 1);
  fault_each_allocation("metrics", write_metrics, 1);
  fault_each_allocation("folders", make_folders, 1);
  check_metrics_go_on();
  finish();
}
END_TEST

/* ---- comparing two devices ---- */

static bk_device *trusted;
static double bisect_bounds; /* 0: the first call that rounds is written to a file */

static bk_status make_reference(bk_model **reference) {
  bk_status status = bk_model_create(trusted, &model->config, storage,
                                     &(bk_model_options){.trainable = true}, reference);
  if (status == BK_OK) status = bk_model_init(*reference, 7);
  return status == BK_OK ? bk_model_init(model, 7) : status;
}

static bk_status compare_step(void) {
  bk_model *reference = NULL;
  bk_verify_options options = {.batch = 1, .seq_len = 4, .seed = 1, .bounds = 1};
  bk_verify_result result = {.rows = -1};
  bk_status status = make_reference(&reference);
  if (status == BK_OK) status = bk_verify(model, reference, &options, NULL, NULL, &result);
  ck_assert((status == BK_OK) == (result.rows > 0));
  bk_model_destroy(reference);
  return status;
}

static bk_status compare_calls(void) {
  bk_model *reference = NULL;
  char path[600];
  snprintf(path, sizeof path, "%s-case", folder);
  bk_bisect_options options = {{.batch = 1, .seq_len = 4, .seed = 1, .bounds = bisect_bounds},
                               path};
  bk_bisect_result result = {.calls = -1};
  bk_status status = make_reference(&reference);
  if (status == BK_OK) status = bk_bisect(model, reference, &options, &result);
  ck_assert((status == BK_OK) == (result.calls > 0));
  ck_assert(status != BK_OK || (bisect_bounds == 0) == result.wrote_case);
  ck_assert(bk_path_exists(ctx, path) == result.wrote_case);
  if (result.wrote_case) OK(bk_remove_tree(ctx, path));
  bk_model_destroy(reference);
  return status;
}

START_TEST(test_comparisons) {
  prepare("cpu", BK_BF16, BK_HC_MHC, true);
  trusted = open_device("ref", 1);
  int64_t skip = quick() ? 97 : thorough() ? 7 : 23;
  fault_each_allocation("verify", compare_step, skip);
  bisect_bounds = 0;
  fault_each_allocation("bisect, to a case", compare_calls, skip);
  bisect_bounds = 1;
  int64_t n = fault_each_allocation("bisect", compare_calls, quick() ? 797 : thorough() ? 97 : 293);
  ck_assert_int_gt(n, 1000);
  bk_device_close(trusted);
  finish();
}
END_TEST

/* Files lie in memory: thousands of saves wait for no disk. */
static fault_fs files;

static void open_in_memory(void) {
  unsetenv("BIRKHOFF_BACKEND_DIR"); /* a folder of the disk; checks run in a process each */
  fault_open();
  fault_fs_open(&files);
  ctx->fs = fault_fs_table(&files);
  snprintf(unit_folder, sizeof unit_folder, "work");
  OK(bk_mkdirs(ctx, unit_folder));
}

static void close_in_memory(void) {
  fault_close();
  fault_fs_close(&files);
}

UNIT_MAIN("faults", open_in_memory, close_in_memory, test_build, test_room_for_graphs_and_lanes,
          test_training, test_training_composed, test_training_plain, test_profile, test_bench,
          test_checkpoints, test_conversion, test_files, test_comparisons)

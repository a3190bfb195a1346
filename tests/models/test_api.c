/* A program of somebody else's: the installed headers and the shared library alone. It makes a
 * model, runs passes over tokens of its own, reads parameters and gradients, measures gains, and
 * writes and reads files. What is asked for in a wrong order or does not exist is refused with a
 * message. */
#include <birkhoff/birkhoff.h>
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK(call) ck_assert_int_eq(call, BK_OK)
#define REFUSED(call, status, words)                               \
  do {                                                             \
    message[0] = '\0';                                             \
    ck_assert_int_eq(call, status);                                \
    ck_assert_msg(strstr(message, words), "message: %s", message); \
  } while (0)
enum { B = 2, T = 8, STREAMS = 4 };

static char message[1024]; /* the last one */
static bk_context *ctx;
static bk_device *device;
static bk_model *model;
static char folder[64];

static void keep_message(void *user, bk_log_level level, const char *text) {
  (void)user, (void)level;
  snprintf(message, sizeof message, "%s", text);
}

static bk_model_config config_of(const char *assignment) {
  bk_model_config c;
  OK(bk_model_preset(ctx, "tiny", &c, NULL));
  OK(bk_config_set(ctx, &c, NULL, assignment));
  OK(bk_model_config_validate(ctx, &c));
  return c;
}

static void setup(void) {
  bk_context_options options = {.log = keep_message, .log_level = BK_LOG_WARN};
  snprintf(folder, sizeof folder, "/tmp/birkhoff-api-XXXXXX");
  ck_assert_ptr_nonnull(mkdtemp(folder));
  OK(bk_context_create(&options, &ctx));
  OK(bk_device_open(ctx, "cpu", NULL, &device));
  bk_model_config c = config_of("residual=mhc");
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){.trainable = true}, &model));
  OK(bk_model_init(model, 3));
}

static void teardown(void) {
  bk_memory_stats stats;
  bk_model_destroy(model);
  bk_device_close(device);
  bk_context_memory_stats(ctx, &stats);
  size_t left = stats.current_bytes;
  bk_context_destroy(ctx);
  rmdir(folder);
  ck_assert_uint_lt(left, 1024); /* the context itself */
}

static const char *path_of(const char *name) {
  static char path[128];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return path;
}

/* ---- passes ---- */

static void fill(int32_t *ids, int32_t *targets) {
  for (int i = 0; i < B * T; i++) ids[i] = (i * 37 + 11) % 256;
  for (int i = 0; i < B * T; i++) targets[i] = (i + 1) % T ? ids[i + 1] : -100;
}

/* The loss of a pass, from its logits. */
static double loss_from(const double *logits, const int32_t *targets, int64_t V) {
  double sum = 0;
  int kept = 0;
  for (int i = 0; i < B * T; i++) {
    if (targets[i] < 0) continue;
    const double *row = logits + i * V;
    double all = 0;
    for (int64_t v = 0; v < V; v++) all += exp(row[v]);
    sum += log(all) - row[targets[i]];
    kept++;
  }
  return sum / kept;
}

START_TEST(a_pass_gives_logits_maps_gradients_and_the_loss) {
  bk_forward *f;
  int32_t ids[B * T], targets[B * T];
  int64_t V = bk_model_config_of(model)->vocab_size;
  double *logits = malloc(sizeof *logits * (size_t)(B * T * V)), loss;
  double pre[B * T * STREAMS], post[B * T * STREAMS], comb[B * T * STREAMS * STREAMS];
  ck_assert_ptr_nonnull(logits);
  fill(ids, targets);
  OK(bk_forward_create(model, &(bk_forward_options){.batch = B, .seq_len = T, .backward = true},
                       &f));
  for (int turn = 0; turn < 2; turn++) {
    OK(bk_forward_run(f, ids, targets));
    OK(bk_forward_logits(f, logits));
    OK(bk_forward_maps(f, 1, pre, post, comb));
    OK(bk_forward_backward(f));
    OK(bk_forward_finish(f, &loss));
    ck_assert_double_eq_tol(loss, loss_from(logits, targets, V), 1e-5);
  }
  for (int i = 0; i < B * T; i++) /* doubly stochastic: every source gives all that it has */
    for (int m = 0; m < STREAMS; m++) {
      double sum = 0;
      for (int k = 0; k < STREAMS; k++) sum += comb[(i * STREAMS + m) * STREAMS + k];
      ck_assert_double_eq_tol(sum, 1, 1e-5);
    }
  bk_forward_destroy(f);
  free(logits);
}
END_TEST

START_TEST(calls_of_a_pass_that_come_in_another_order_are_refused) {
  bk_forward *f;
  int32_t ids[B * T], targets[B * T];
  double maps[B * T * STREAMS * STREAMS], loss;
  fill(ids, targets);
  OK(bk_forward_create(model, &(bk_forward_options){.batch = B, .seq_len = T}, &f));
  REFUSED(bk_forward_logits(f, maps), BK_ERR_ARGUMENT, "bk_forward_logits comes out of order");
  REFUSED(bk_forward_finish(f, &loss), BK_ERR_ARGUMENT, "bk_forward_finish comes out of order");
  OK(bk_forward_run(f, ids, NULL));
  REFUSED(bk_forward_run(f, ids, NULL), BK_ERR_ARGUMENT, "bk_forward_run comes out of order");
  REFUSED(bk_forward_backward(f), BK_ERR_ARGUMENT, "bk_forward_backward comes out of order");
  REFUSED(bk_forward_maps(f, 99, maps, maps, maps), BK_ERR_ARGUMENT, "sublayer 99");
  OK(bk_forward_finish(f, &loss));
  ck_assert(isnan(loss));
  ids[3] = 100000;
  REFUSED(bk_forward_run(f, ids, NULL), BK_ERR_DATA, "100000");
  ids[3] = 1;
  OK(bk_forward_run(f, ids, targets)); /* a refused pass leaves nothing behind */
  OK(bk_forward_finish(f, &loss));
  ck_assert(isfinite(loss));
  bk_forward_destroy(f);
}
END_TEST

START_TEST(what_a_model_cannot_do_is_refused) {
  bk_forward *f;
  bk_model *plain;
  int32_t ids[B * T] = {0}, none[B * T];
  double values[B * T * STREAMS * STREAMS];
  bk_model_config c = config_of("residual=plain");
  for (int i = 0; i < B * T; i++) none[i] = -100;
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){0}, &plain));
  OK(bk_model_init(plain, 3));
  REFUSED(bk_forward_create(plain,
                            &(bk_forward_options){.batch = B, .seq_len = T, .backward = true}, &f),
          BK_ERR_ARGUMENT, "trainable");
  REFUSED(bk_forward_create(
              plain, &(bk_forward_options){.batch = B, .seq_len = T, .hc_recompute = -7}, &f),
          BK_ERR_ARGUMENT, "hc_recompute -7");
  REFUSED(
      bk_forward_create(plain, &(bk_forward_options){.batch = B, .seq_len = T, .recompute = 4}, &f),
      BK_ERR_ARGUMENT, "recompute 4 is none of 0 to 3");
  OK(bk_forward_create(plain, &(bk_forward_options){.batch = B, .seq_len = T}, &f));
  OK(bk_forward_run(f, ids, NULL));
  REFUSED(bk_forward_maps(f, 0, values, values, values), BK_ERR_ARGUMENT, "has no maps");
  bk_forward_destroy(f);
  REFUSED(bk_model_param_read(plain, 0, BK_PARAM_GRAD, values), BK_ERR_ARGUMENT, "no gradient");
  REFUSED(bk_model_param_read(plain, -1, BK_PARAM_WEIGHT, values), BK_ERR_ARGUMENT, "parameter -1");
  REFUSED(bk_model_param_read(plain, 0, (bk_param_part)9, values), BK_ERR_ARGUMENT, "no part 9");
  bk_model_destroy(plain);
  OK(bk_forward_create(model, &(bk_forward_options){.batch = B, .seq_len = T, .backward = true},
                       &f));
  OK(bk_forward_run(f, ids, none));
  REFUSED(bk_forward_backward(f), BK_ERR_ARGUMENT, "no target");
  bk_forward_destroy(f);
}
END_TEST

/* A part of a model has no logits, and gains of its own sublayers alone. */
START_TEST(a_part_of_a_model_and_sequences_that_are_too_long_are_refused) {
  static uint8_t tokens[64];
  bk_model *part;
  bk_forward *f;
  bk_dataset *data;
  bk_gain *gain;
  bk_model_config c = config_of("residual=mhc");
  int64_t longer = c.max_position_embeddings + 1;
  bk_model_options first = {.n_chunks = 1, .chunks = {{0, 2}}};
  OK(bk_model_create(device, &c, BK_F32, &first, &part));
  OK(bk_model_init(part, 3));
  OK(bk_dataset_from_tokens(ctx, tokens, sizeof tokens, 1, 257, &data));
  REFUSED(bk_forward_create(part, &(bk_forward_options){.batch = B, .seq_len = T}, &f),
          BK_ERR_ARGUMENT, "forward: the model is not whole: it has 2 sublayers of ");
  REFUSED(bk_gain_measure(part, data, 16, 100, &gain), BK_ERR_ARGUMENT, "gain: the model is not");
  REFUSED(bk_forward_create(model, &(bk_forward_options){.batch = B, .seq_len = longer}, &f),
          BK_ERR_ARGUMENT, "max_position_embeddings");
  REFUSED(bk_gain_measure(model, data, INT64_MAX, INT64_MAX, &gain), BK_ERR_ARGUMENT,
          "max_position_embeddings");
  bk_dataset_close(data);
  bk_model_destroy(part);
}
END_TEST

/* ---- parameters ---- */

static int find(const char *name, bk_param_info *info) {
  for (int i = 0; i < bk_model_param_count(model); i++) {
    OK(bk_model_param_info(model, i, info));
    if (strcmp(info->name, name) == 0) return i;
  }
  ck_abort_msg("no parameter %s", name);
}

START_TEST(parameters_are_read_and_written) {
  bk_param_info info;
  int i = find("model.norm.weight", &info);
  ck_assert_int_eq(info.ndim, 1);
  ck_assert_int_eq(info.count, bk_model_config_of(model)->hidden_size);
  ck_assert(info.trainable);
  double *values = malloc(sizeof *values * (size_t)info.count);
  ck_assert_ptr_nonnull(values);
  OK(bk_model_param_read(model, i, BK_PARAM_WEIGHT, values));
  for (int64_t k = 0; k < info.count; k++) ck_assert_double_eq(values[k], 1);
  values[2] = 0.5;
  OK(bk_model_param_write(model, i, BK_PARAM_WEIGHT, values));
  values[2] = 7;
  OK(bk_model_param_read(model, i, BK_PARAM_WEIGHT, values));
  ck_assert_double_eq(values[2], 0.5);
  char what[128];
  OK(bk_model_check_finite(model, what, sizeof what));
  ck_assert_str_eq(what, "");
  values[2] = NAN;
  OK(bk_model_param_write(model, i, BK_PARAM_WEIGHT, values));
  ck_assert_int_eq(bk_model_check_finite(model, what, sizeof what), BK_ERR_NOT_FINITE);
  ck_assert_msg(strstr(what, "model.norm.weight"), "%s", what);
  free(values);
}
END_TEST

/* ---- gains ---- */

START_TEST(gains_are_measured_on_tokens_in_memory) {
  static uint8_t tokens[400];
  bk_dataset *data;
  bk_gain *gain;
  for (size_t i = 0; i < sizeof tokens; i++) tokens[i] = (uint8_t)(i * 7);
  OK(bk_dataset_from_tokens(ctx, tokens, sizeof tokens, 1, 257, &data));
  OK(bk_gain_measure(model, data, 16, 100, &gain));
  ck_assert_int_eq(gain->tokens, 96); /* whole windows only */
  ck_assert_int_eq(gain->n_sublayers, 2 * bk_model_config_of(model)->num_hidden_layers);
  ck_assert_double_gt(gain->total_forward, 0.9);
  ck_assert_double_lt(gain->total_forward, 1.6);
  bk_gain_destroy(gain);
  REFUSED(bk_gain_measure(model, data, 16, 15, &gain), BK_ERR_ARGUMENT, "windows of 16 tokens");
  REFUSED(bk_gain_measure(model, data, 0, 15, &gain), BK_ERR_ARGUMENT, "windows of 0 tokens");
  bk_dataset_close(data);
  OK(bk_dataset_from_tokens(ctx, tokens, 10, 1, 257, &data));
  REFUSED(bk_gain_measure(model, data, 16, 100, &gain), BK_ERR_DATA, "10 tokens");
  bk_dataset_close(data);
}
END_TEST

/* ---- devices, kinds, versions ---- */

typedef struct seen {
  int reports, defaults, cpu;
} seen;

static bk_status look(void *user, const bk_device_report *r) {
  seen *s = user;
  s->reports++;
  s->defaults += r->is_default;
  if (strcmp(r->name, "cpu") != 0) return BK_OK;
  s->cpu++;
  ck_assert_int_eq(r->state, BK_DEVICE_OK);
  ck_assert_uint_gt(r->memory_bytes, 0);
  ck_assert(r->props.storage_dtypes & BK_DT(BK_BF16));
  return BK_OK;
}

static bk_status stop(void *user, const bk_device_report *r) {
  (void)r;
  ++*(int *)user;
  return BK_INTERRUPTED;
}

START_TEST(devices_and_kinds_are_listed) {
  seen s = {0};
  int calls = 0;
  bk_connection_info info = {.name = "as it was"};
  OK(bk_devices(ctx, look, &s));
  ck_assert_int_ge(s.reports, 2);
  ck_assert_int_eq(s.defaults, 1);
  ck_assert_int_eq(s.cpu, 1);
  ck_assert_int_eq(bk_devices(ctx, stop, &calls), BK_INTERRUPTED);
  ck_assert_int_eq(calls, 1);
  ck_assert_str_eq(bk_backend_name(ctx, 0), "ref");
  ck_assert_ptr_null(bk_backend_name(ctx, 1000));
  ck_assert_str_eq(bk_device_backend_name(device), "cpu");
  ck_assert(bk_device_properties(device)->host_memory);
  ck_assert(!bk_connection_describe(BK_HC_HEAD, &info));
  ck_assert(!bk_connection_describe((bk_hc_kind)77, &info));
  ck_assert_str_eq(info.name, "as it was");
  ck_assert(bk_connection_describe(BK_HC_KROMHC, &info));
  ck_assert_str_eq(info.name, "kromhc");
  ck_assert_str_eq(info.streams, "1, 2, 4 or 8");
}
END_TEST

START_TEST(the_version_is_that_of_the_package) {
  char text[64];
  snprintf(text, sizeof text, "%d.%d.%d", BK_VERSION_MAJOR, BK_VERSION_MINOR, BK_VERSION_PATCH);
  ck_assert_str_eq(bk_version(), text);
  ck_assert_str_eq(bk_version(), PACKAGE_VERSION);
}
END_TEST

/* ---- files ---- */

static bk_status count_rows(void *user, int64_t step, const char *json, size_t bytes) {
  int64_t *sum = user;
  ck_assert_uint_gt(bytes, 10);
  ck_assert_int_eq(json[0], '{');
  *sum += step;
  return BK_OK;
}

START_TEST(metrics_and_tensors_go_to_files_and_come_back) {
  bk_metrics *metrics;
  int64_t sum = 0;
  OK(bk_metrics_open(ctx, path_of("metrics.jsonl"), &metrics));
  for (int64_t step = 1; step <= 3; step++)
    OK(bk_metrics_write(metrics, &(bk_metrics_row){.step = step, .loss = 2, .grad_norm = NAN}));
  OK(bk_metrics_flush(metrics));
  bk_metrics_close(metrics);
  OK(bk_metrics_rows(ctx, path_of("metrics.jsonl"), count_rows, &sum));
  ck_assert_int_eq(sum, 6);
  bk_st_writer *out;
  bk_st_reader *in;
  float written[6] = {1, 2, 3, 4, 5, 6};
  double read[6];
  OK(bk_st_create(ctx, path_of("t.safetensors"), &out));
  OK(bk_st_add(out, "x", BK_F32, 2, (int64_t[]){2, 3}));
  OK(bk_st_write(out, written, sizeof written));
  OK(bk_st_finish(out));
  OK(bk_st_open(ctx, path_of("t.safetensors"), &in));
  const bk_st_entry *entry = bk_st_find(in, "x");
  ck_assert_ptr_nonnull(entry);
  ck_assert_int_eq(entry->shape[1], 3);
  OK(bk_st_read_f64(in, entry, 0, 6, read));
  for (int i = 0; i < 6; i++) ck_assert_double_eq(read[i], written[i]);
  bk_st_close(in);
  unlink(path_of("metrics.jsonl"));
  unlink(path_of("t.safetensors"));
}
END_TEST

START_TEST(memory_and_messages_of_a_context) {
  size_t capacity = 0;
  int *numbers = NULL;
  bk_log_level level;
  char *text = bk_format(ctx, "%d of %s", 3, "four"), *copy = bk_strdup(ctx, text);
  ck_assert_str_eq(copy, "3 of four");
  OK(bk_grow(ctx, (void **)&numbers, &capacity, 5, sizeof *numbers));
  ck_assert_uint_ge(capacity, 5);
  ck_assert_int_eq(numbers[4], 0);
  ck_assert_ptr_null(bk_alloc_array(ctx, SIZE_MAX / 2, 4));
  bk_free(ctx, numbers);
  bk_free(ctx, copy);
  bk_free(ctx, text);
  bk_free(ctx, NULL);
  REFUSED(bk_fail(ctx, BK_ERR_DATA, "line %d", 12), BK_ERR_DATA, "line 12");
  OK(bk_log_level_parse("debug", &level));
  ck_assert_int_eq(level, BK_LOG_DEBUG);
  ck_assert_int_eq(bk_log_level_parse("loud", &level), BK_ERR_ARGUMENT);
  ck_assert_ptr_nonnull(bk_context_fs(ctx)->open_read);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("api");
  TCase *tests = tcase_create("api");
  tcase_set_timeout(tests, 300);
  tcase_add_checked_fixture(tests, setup, teardown);
  tcase_add_test(tests, a_pass_gives_logits_maps_gradients_and_the_loss);
  tcase_add_test(tests, calls_of_a_pass_that_come_in_another_order_are_refused);
  tcase_add_test(tests, what_a_model_cannot_do_is_refused);
  tcase_add_test(tests, a_part_of_a_model_and_sequences_that_are_too_long_are_refused);
  tcase_add_test(tests, parameters_are_read_and_written);
  tcase_add_test(tests, gains_are_measured_on_tokens_in_memory);
  tcase_add_test(tests, devices_and_kinds_are_listed);
  tcase_add_test(tests, the_version_is_that_of_the_package);
  tcase_add_test(tests, metrics_and_tensors_go_to_files_and_come_back);
  tcase_add_test(tests, memory_and_messages_of_a_context);
  suite_add_tcase(suite, tests);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

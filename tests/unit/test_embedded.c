/* What a context without an operating system has and has not, devices opened without the
 * registry, tokens in memory. */
#include "tests/unit/unit.h"

#include <birkhoff/data.h>
#include <birkhoff/device.h>
#include <birkhoff/profile.h>
#include <birkhoff/train.h>

#include "runtime/backend.h"

#include <errno.h>
#include <math.h>

static void *counting_alloc(void *user, size_t bytes, size_t align) {
  ++*(int *)user;
  return aligned_alloc(align, BK_ALIGN_UP(bytes, align));
}

static void counting_free(void *user, void *ptr, size_t bytes) {
  (void)bytes;
  --*(int *)user;
  free(ptr);
}

static int held;
static const bk_allocator counting = {counting_alloc, counting_free, &held};

static void embedded_open(void) {
  bk_context_options options = {.allocator = &counting, .log = unit_log, .log_level = BK_LOG_TRACE};
  unit_messages[0] = '\0';
  held = 0;
  ck_assert_int_eq(bk_context_create_embedded(&options, &ctx), BK_OK);
}

static void embedded_close(void) {
  unit_close();
  ck_assert_int_eq(held, 0);
}

START_TEST(has_nothing_of_the_system) {
  size_t free_bytes = 0, total_bytes = 0;
  ck_assert(isnan(bk_context_seconds(ctx)));
  ck_assert_int_eq(bk_context_cpu_count(ctx), 1);
  ck_assert(!bk_context_system_memory(ctx, &free_bytes, &total_bytes));
  ck_assert_ptr_null(bk_context_environment(ctx, "PATH"));
}
END_TEST

START_TEST(needs_an_allocator) {
  bk_context *made = NULL;
  ck_assert_int_eq(bk_context_create_embedded(NULL, &made), BK_ERR_ARGUMENT);
  ck_assert_int_eq(bk_context_create_embedded(&(bk_context_options){.log = unit_log}, &made),
                   BK_ERR_ARGUMENT);
  ck_assert_ptr_null(made);
  unit_expect("allocator");
}
END_TEST

static void nothing(void *arg, const char *name) { (void)arg, (void)name; }

START_TEST(has_no_files) {
  const bk_fs *fs = &ctx->fs;
  bk_file *file = NULL;
  uint64_t bytes;
  char *data = NULL;
  size_t read = 0;
  ck_assert_int_eq(fs->open_read(fs->user, "a", &file), -ENOSYS);
  ck_assert_int_eq(fs->open_write(fs->user, "a", true, &file), -ENOSYS);
  ck_assert_int_eq(fs->read_at(fs->user, file, 0, &bytes, 1), -ENOSYS);
  ck_assert_int_eq(fs->write(fs->user, file, &bytes, 1), -ENOSYS);
  ck_assert_int_eq(fs->size(fs->user, file, &bytes), -ENOSYS);
  ck_assert_int_eq(fs->truncate(fs->user, "a", 0), -ENOSYS);
  ck_assert_int_eq(fs->sync(fs->user, file), -ENOSYS);
  ck_assert_int_eq(fs->close(fs->user, file), -ENOSYS);
  ck_assert_int_eq(fs->mkdir(fs->user, "a"), -ENOSYS);
  ck_assert_int_eq(fs->rename(fs->user, "a", "b"), -ENOSYS);
  ck_assert_int_eq(fs->remove(fs->user, "a"), -ENOSYS);
  ck_assert_int_eq(fs->sync_dir(fs->user, "a"), -ENOSYS);
  ck_assert_int_eq(fs->list(fs->user, "a", nothing, NULL), -ENOSYS);
  ck_assert_int_eq(fs->kind(fs->user, "a"), -ENOSYS);
  ck_assert_int_eq(bk_file_read_all(ctx, "config.json", 100, &data, &read), BK_ERR_IO);
  unit_expect("config.json");
}
END_TEST

START_TEST(has_one_thread) {
  bk_pool *pool = NULL;
  bk_device *device = NULL;
  ck_assert_int_eq(bk_pool_create(ctx, 1, &pool), BK_OK);
  bk_pool_destroy(pool);
  ck_assert_int_eq(bk_pool_create(ctx, 2, &pool), BK_ERR_UNSUPPORTED);
  unit_expect("threads: an embedded context has 1, not 2");
  ck_assert_int_eq(
      bk_device_open_backend(ctx, &bk_backend_cpu, &(bk_device_options){.threads = 3}, &device),
      BK_ERR_UNSUPPORTED);
  ck_assert_ptr_null(device);
  unit_expect("has 1, not 3");
}
END_TEST

START_TEST(opens_a_backend_by_address) {
  bk_device *device = NULL;
  size_t free_bytes, total_bytes;
  ck_assert_int_eq(bk_device_open_backend(ctx, &bk_backend_cpu, NULL, &device), BK_OK);
  ck_assert_int_eq(device->props.threads, 1);
  ck_assert_int_eq(device->ops->memory_info(device, &free_bytes, &total_bytes), BK_ERR_DEVICE);
  unit_expect("does not say how much memory");
  bk_device_close(device);
  ck_assert_int_eq(bk_device_open_backend(ctx, &bk_backend_ref, NULL, &device), BK_OK);
  bk_device_close(device);
}
END_TEST

static bk_status refuses(bk_context *c, char *reason, size_t size) {
  (void)c;
  snprintf(reason, size, "the bus is silent");
  return BK_ERR_ABSENT;
}

START_TEST(refuses_a_bad_backend) {
  bk_device *device = NULL;
  bk_backend other = bk_backend_ref, holed = bk_backend_ref, absent = bk_backend_ref;
  other.abi++;
  holed.open = NULL;
  absent.probe = refuses;
  ck_assert_int_eq(bk_device_open_backend(ctx, NULL, NULL, &device), BK_ERR_ABI);
  unit_expect("it is NULL");
  ck_assert_int_eq(bk_device_open_backend(ctx, &other, NULL, &device), BK_ERR_ABI);
  unit_expect("built for ABI");
  ck_assert_int_eq(bk_device_open_backend(ctx, &holed, NULL, &device), BK_ERR_ABI);
  unit_expect("hole");
  ck_assert_int_eq(bk_device_open_backend(ctx, &absent, NULL, &device), BK_ERR_ABSENT);
  unit_expect("device ref is not here: the bus is silent");
  ck_assert_ptr_null(device);
}
END_TEST

START_TEST(names_work_too) {
  bk_device *device = NULL;
  ck_assert_int_eq(bk_device_open(ctx, "cpu", NULL, &device), BK_OK);
  bk_device_close(device);
}
END_TEST

/* ---- tokens in memory ---- */

static bk_status count_working(void *user, const bk_device_report *r) {
  *(int *)user += r->state == BK_DEVICE_OK && r->memory_bytes == 0 && r->props.threads <= 1;
  return BK_OK;
}

/* How much memory there is nobody can say; the devices work all the same. */
START_TEST(devices_are_listed) {
  int working = 0;
  ck_assert_int_eq(bk_devices(ctx, count_working, &working), BK_OK);
  ck_assert_int_eq(working, 2); /* ref, cpu */
  ck_assert_str_eq(bk_backend_name(ctx, 0), "ref");
  ck_assert_str_eq(unit_messages, "");
}
END_TEST

START_TEST(tokens_of_every_width) {
  static const uint8_t bytes[] = {1, 2, 3, 250};
  static const uint16_t shorts[] = {1, 2, 3, 250};
  static const uint32_t words[] = {1, 2, 3, 250};
  const void *arrays[] = {bytes, shorts, words};
  for (int i = 0; i < 3; i++) {
    bk_dataset *ds = NULL;
    ck_assert_int_eq(bk_dataset_from_tokens(ctx, arrays[i], 4, 1 << i, 251, &ds), BK_OK);
    ck_assert_int_eq(bk_dataset_tokens(ds), 4);
    ck_assert_int_eq(bk_dataset_bytes(ds), -1);
    for (int t = 0; t < 4; t++) ck_assert_int_eq(bk_dataset_at(ds, t), bytes[t]);
    int32_t ids[3], targets[3];
    ck_assert_int_eq(bk_dataset_check_seq_len(ctx, ds, 3), BK_OK);
    ck_assert_int_eq(bk_dataset_train_sequence(ds, 1, 3, 0, ids, targets), BK_OK);
    for (int t = 0; t < 3; t++) ck_assert(ids[t] == bytes[t] && targets[t] == bytes[t + 1]);
    bk_dataset_close(ds);
  }
}
END_TEST

START_TEST(tokens_are_checked) {
  static const uint16_t tokens[] = {1, 2, 300};
  bk_dataset *ds = NULL;
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, tokens, 3, 2, 257, &ds), BK_ERR_DATA);
  unit_expect("tokens in memory: token 300 at token 2 is not below vocab_size (257)");
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, tokens, 0, 2, 257, &ds), BK_ERR_ARGUMENT);
  unit_expect("0 tokens");
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, NULL, 3, 2, 257, &ds), BK_ERR_ARGUMENT);
  unit_expect("at least one is needed");
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, (const char *)tokens + 1, 1, 2, 257, &ds),
                   BK_ERR_ARGUMENT);
  unit_expect("aligned");
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, tokens, 3, 3, 257, &ds), BK_ERR_ARGUMENT);
  unit_expect("token_bytes must be 1, 2 or 4, not 3");
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, tokens, 3, 2, 0, &ds), BK_ERR_ARGUMENT);
  unit_expect("vocab_size");
  ck_assert_ptr_null(ds);
}
END_TEST

/* ---- training without a clock ---- */

START_TEST(times_are_no_numbers) {
  static uint8_t tokens[100];
  bk_model_config config;
  bk_train_config recipe;
  bk_device *device = NULL;
  bk_dataset *data = NULL;
  bk_model *model = NULL;
  bk_trainer *trainer = NULL;
  bk_profile *profile = NULL;
  bk_metrics_row row;
  bk_step_times times = {0};
  ck_assert_int_eq(bk_model_preset(ctx, "tiny", &config, &recipe), BK_OK);
  recipe.batch_size = recipe.micro_batch_size = 1;
  recipe.seq_len = 8;
  ck_assert_int_eq(bk_device_open_backend(ctx, &bk_backend_cpu, NULL, &device), BK_OK);
  ck_assert_int_eq(
      bk_dataset_from_tokens(ctx, tokens, (int64_t)sizeof tokens, 1, config.vocab_size, &data),
      BK_OK);
  ck_assert_int_eq(
      bk_model_create(device, &config, BK_F32, &(bk_model_options){.trainable = true}, &model),
      BK_OK);
  ck_assert_int_eq(bk_model_init(model, 1), BK_OK);
  ck_assert_int_eq(bk_profile_create(model, &profile), BK_ERR_UNSUPPORTED);
  unit_expect("profile: the context has no clock");
  ck_assert_ptr_null(profile);
  ck_assert_int_eq(bk_trainer_create(model, &recipe, data, NULL, &trainer), BK_OK);
  ck_assert_int_eq(bk_trainer_step_timed(trainer, &row, &times), BK_OK);
  ck_assert(isnan(times.forward) && isnan(times.backward) && isnan(times.optimizer));
  ck_assert(isfinite(row.loss) && isnan(row.tokens_per_s));
  bk_trainer_destroy(trainer);
  bk_model_destroy(model);
  bk_dataset_close(data);
  bk_device_close(device);
}
END_TEST

UNIT_MAIN("embedded", embedded_open, embedded_close, has_nothing_of_the_system, needs_an_allocator,
          has_no_files, has_one_thread, opens_a_backend_by_address, refuses_a_bad_backend,
          names_work_too, devices_are_listed, tokens_of_every_width, tokens_are_checked,
          times_are_no_numbers)

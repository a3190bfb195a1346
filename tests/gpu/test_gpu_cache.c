/* The cache of compiled kernels (backends/gpu/cache.h): what is written is read, and nothing
 * else is. */
#include "tests/unit/unit.h"

#include "backends/gpu/cache.h"

#define KEY "platform 1.2\ndevice\ndriver 7\n-DA=1\n0123456789abcdef"
static bk_gpu_cache cache;
static const char data[] = "machine code, of which a byte may be 0: \0 and more";

static void set(const char *name, const char *value) {
  ck_assert_int_eq(value ? setenv(name, value, 1) : unsetenv(name), 0);
}

static void cache_open(void) {
  unit_folder_open();
  set("BIRKHOFF_CACHE", NULL);
  set("XDG_CACHE_HOME", unit_path("xdg"));
  set("HOME", unit_path("home"));
  bk_gpu_kept_init(&cache, ctx, "fake", 3);
}

static void cache_close(void) {
  bk_gpu_kept_fini(&cache);
  unit_folder_close();
}

static bool found(const char *name, const char *key) {
  char *got = NULL;
  size_t bytes = 0;
  if (!bk_gpu_kept_read(&cache, name, key, &got, &bytes)) {
    ck_assert_ptr_null(got);
    return false;
  }
  ck_assert_uint_eq(bytes, sizeof data);
  ck_assert_mem_eq(got, data, sizeof data);
  bk_free(ctx, got);
  return true;
}

static void write_data(void) { bk_gpu_kept_write(&cache, "kernel", KEY, data, sizeof data); }

/* The only file of `folder`. */
static const char *only_file(const char *folder) {
  static char path[512];
  char **names;
  size_t count;
  ck_assert_int_eq(bk_folder_names(ctx, unit_path(folder), &names, &count), BK_OK);
  ck_assert_uint_eq(count, 1);
  snprintf(path, sizeof path, "%s/%s", unit_path(folder), names[0]);
  bk_names_free(ctx, names, count);
  return path;
}

static void spoil(const char *path, size_t at, size_t length, char flip) {
  char *file;
  size_t bytes;
  ck_assert_int_eq(bk_file_read_all(ctx, path, 1 << 20, &file, &bytes), BK_OK);
  if (flip) file[at] ^= flip;
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, file, length ? length - 1 : bytes), BK_OK);
  bk_free(ctx, file);
}

START_TEST(hit_and_miss) {
  ck_assert(!found("kernel", KEY));
  ck_assert(!bk_path_exists(ctx, unit_path("xdg"))); /* reading makes nothing */
  write_data();
  ck_assert(found("kernel", KEY));
  ck_assert(!found("kernel", KEY "x"));
  ck_assert(!found("other", KEY));
  /* and nothing is left beside it */
  ck_assert(strncmp(strrchr(only_file("xdg/birkhoff"), '/'), "/kernel-", 8) == 0);
}
END_TEST

START_TEST(written_again) {
  bk_gpu_kept_write(&cache, "kernel", KEY, "old", 3);
  write_data();
  ck_assert(found("kernel", KEY));
}
END_TEST

START_TEST(another_run) {
  write_data();
  bk_gpu_kept_fini(&cache);
  ck_assert(!found("kernel", KEY)); /* closed: off */
  write_data();
  bk_gpu_kept_init(&cache, ctx, "fake", 0);
  ck_assert(found("kernel", KEY));
}
END_TEST

START_TEST(every_length) {
  uint64_t bytes;
  write_data();
  const char *path = only_file("xdg/birkhoff");
  ck_assert_int_eq(bk_file_size(ctx, path, &bytes), BK_OK);
  for (size_t length = bytes; length-- > 0;) {
    spoil(path, 0, length + 1, 0);
    ck_assert(!found("kernel", KEY));
  }
  write_data();
  ck_assert(found("kernel", KEY));
}
END_TEST

START_TEST(every_byte_flipped) {
  uint64_t bytes;
  write_data();
  const char *path = only_file("xdg/birkhoff");
  ck_assert_int_eq(bk_file_size(ctx, path, &bytes), BK_OK);
  for (size_t at = 0; at < bytes; at++) {
    spoil(path, at, 0, (char)(1 << at % 8));
    ck_assert(!found("kernel", KEY));
    spoil(path, at, 0, (char)(1 << at % 8));
  }
  ck_assert(found("kernel", KEY));
}
END_TEST

START_TEST(bytes_after_it) {
  char *file;
  size_t bytes;
  write_data();
  const char *path = only_file("xdg/birkhoff");
  ck_assert_int_eq(bk_file_read_all(ctx, path, 1 << 20, &file, &bytes), BK_OK);
  /* the NUL that read_all appends */
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, file, bytes + 1), BK_OK);
  bk_free(ctx, file);
  ck_assert(!found("kernel", KEY));
}
END_TEST

/* A file of another key under this one's name: another driver's, copied there or of the same
 * hash. */
START_TEST(wrong_key) {
  char mine[512], theirs[512];
  write_data();
  snprintf(mine, sizeof mine, "%s", only_file("xdg/birkhoff"));
  ck_assert_int_eq(ctx->fs.remove(ctx->fs.user, mine), 0);
  bk_gpu_kept_write(&cache, "kernel", "platform 1.2\ndevice\ndriver 8\n-DA=1\n0123456789abcdef",
                    data, sizeof data);
  snprintf(theirs, sizeof theirs, "%s", only_file("xdg/birkhoff"));
  ck_assert_str_ne(mine, theirs);
  ck_assert_int_eq(ctx->fs.rename(ctx->fs.user, theirs, mine), 0);
  ck_assert(!found("kernel", KEY));
}
END_TEST

START_TEST(a_folder_in_its_place) {
  char path[512];
  write_data();
  snprintf(path, sizeof path, "%s", only_file("xdg/birkhoff"));
  ck_assert_int_eq(ctx->fs.remove(ctx->fs.user, path), 0);
  ck_assert_int_eq(bk_mkdirs(ctx, path), BK_OK);
  ck_assert(!found("kernel", KEY));
  write_data();
  unit_expect("warning: fake:3: compiled kernels are not kept for the next run: cannot write ");
}
END_TEST

START_TEST(empty_data) {
  char *got;
  size_t bytes = 1;
  bk_gpu_kept_write(&cache, "kernel", KEY, data, 0);
  ck_assert(bk_gpu_kept_read(&cache, "kernel", KEY, &got, &bytes));
  ck_assert_uint_eq(bytes, 0);
  bk_free(ctx, got);
}
END_TEST

/* Below a file no folder can be made, whoever asks. */
START_TEST(folder_cannot_be_made) {
  bk_gpu_kept_fini(&cache);
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("file"), "x", 1), BK_OK);
  set("XDG_CACHE_HOME", unit_path("file/below"));
  bk_gpu_kept_init(&cache, ctx, "fake", 3);
  ck_assert(!found("kernel", KEY));
  unit_expect(NULL); /* reading says nothing */
  write_data();
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(
      "warning: fake:3: compiled kernels are not kept for the next run: cannot make folder ");
  write_data(); /* once */
  unit_expect(NULL);
  ck_assert(!found("kernel", KEY));
}
END_TEST

START_TEST(where_it_is) {
  bk_gpu_kept_fini(&cache);
  set("XDG_CACHE_HOME", "relative"); /* invalid, says the specification */
  bk_gpu_kept_init(&cache, ctx, "fake", 3);
  write_data();
  ck_assert(found("kernel", KEY));
  (void)only_file("home/.cache/birkhoff");
  bk_gpu_kept_fini(&cache);
  set("HOME", NULL);
  bk_gpu_kept_init(&cache, ctx, "fake", 3);
  write_data();
  ck_assert(!found("kernel", KEY));
}
END_TEST

START_TEST(switched_off) {
  write_data();
  bk_gpu_kept_fini(&cache);
  set("BIRKHOFF_CACHE", "off");
  bk_gpu_kept_init(&cache, ctx, "fake", 3);
  ck_assert(!found("kernel", KEY));
  bk_gpu_kept_write(&cache, "new", KEY, data, sizeof data);
  (void)only_file("xdg/birkhoff");
}
END_TEST

START_TEST(too_large) {
  bk_gpu_kept_write(&cache, "kernel", KEY, data, BK_GPU_CACHE_MAX_BYTES + 1); /* not looked at */
  ck_assert(!bk_path_exists(ctx, unit_path("xdg")));
}
END_TEST

START_TEST(too_many_files) {
  char path[300];
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("xdg/birkhoff")), BK_OK);
  for (int i = 0; i <= BK_GPU_CACHE_MAX_FILES; i++) {
    /* the last is not ours */
    snprintf(path, sizeof path, "%s/xdg/birkhoff/%d.%s", unit_folder, i, i ? "bin" : "txt");
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fclose(f);
  }
  write_data();
  char **names;
  size_t count;
  ck_assert_int_eq(bk_folder_names(ctx, unit_path("xdg/birkhoff"), &names, &count), BK_OK);
  bk_names_free(ctx, names, count);
  ck_assert_uint_eq(count, 2);
  ck_assert(found("kernel", KEY));
}
END_TEST

UNIT_MAIN("gpu_cache", cache_open, cache_close, hit_and_miss, written_again, another_run,
          every_length, every_byte_flipped, bytes_after_it, wrong_key, a_folder_in_its_place,
          empty_data, folder_cannot_be_made, where_it_is, switched_off, too_large, too_many_files)

/* Status names, log, memory, context, arenas, text. */
#include "tests/unit/unit.h"

#include <locale.h>
#include <math.h>

START_TEST(status_names) {
  ck_assert_str_eq(bk_status_name(BK_OK), "ok");
  ck_assert_str_eq(bk_status_name(BK_ERR_ABI), "abi");
  ck_assert_str_eq(bk_status_name(BK_INTERRUPTED), "interrupted");
  ck_assert_str_eq(bk_status_name((bk_status)12345), "unknown");
}
END_TEST

START_TEST(log_levels_and_status) {
  ctx->log_level = BK_LOG_ERROR;
  bk_warn(ctx, "must not be seen");
  unit_expect(NULL);
  ck_assert_int_eq(bk_fail(ctx, BK_ERR_DATA, "tensor %s: %d", "w", 3), BK_ERR_DATA);
  unit_expect("error: tensor w: 3\n");
  ck_assert_int_eq(bk_fail(NULL, BK_ERR_IO, "no context, no message"), BK_ERR_IO);
  bk_log_level level = BK_LOG_ERROR;
  ck_assert_int_eq(bk_log_level_parse("trace", &level), BK_OK);
  ck_assert_int_eq(level, BK_LOG_TRACE);
  ck_assert_int_eq(bk_log_level_parse("loud", &level), BK_ERR_ARGUMENT);
  ck_assert_int_eq(bk_log_level_parse(NULL, &level), BK_ERR_ARGUMENT);
  ck_assert_int_eq(level, BK_LOG_TRACE);
}
END_TEST

START_TEST(log_cuts_long_messages) {
  char *text = bk_alloc(ctx, 5001);
  memset(text, 'x', 5000);
  bk_warn(ctx, "%s", text);
  bk_free(ctx, text);
  size_t length = strlen(unit_messages);
  ck_assert_uint_lt(length, 2100);
  ck_assert_str_eq(unit_messages + length - 5, "x...\n");
  unit_messages[0] = '\0';
}
END_TEST

START_TEST(alloc_counts_zeroes_and_aligns) {
  bk_memory_stats before, during, after;
  bk_context_memory_stats(ctx, &before);
  unsigned char *p = bk_alloc(ctx, 1000);
  ck_assert_ptr_nonnull(p);
  ck_assert_uint_eq((uintptr_t)p % 64, 0);
  for (int i = 0; i < 1000; i++) ck_assert_uint_eq(p[i], 0);
  bk_context_memory_stats(ctx, &during);
  ck_assert_uint_eq(during.current_bytes, before.current_bytes + 1000);
  ck_assert_uint_eq(during.allocations, before.allocations + 1);
  bk_free(ctx, p);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(after.current_bytes, before.current_bytes);
  ck_assert_uint_ge(after.peak_bytes, during.current_bytes);
  void *none = bk_alloc(ctx, 0);
  ck_assert_ptr_nonnull(none);
  bk_free(ctx, none);
  bk_free(ctx, NULL);
}
END_TEST

START_TEST(alloc_overflow) {
  size_t product = 7;
  ck_assert(bk_mul_size(SIZE_MAX, 1, &product) && product == SIZE_MAX);
  ck_assert(bk_mul_size(0, SIZE_MAX, &product) && product == 0);
  ck_assert(!bk_mul_size(SIZE_MAX / 2 + 1, 2, &product) && product == 0);
  ck_assert_ptr_null(bk_alloc_array(ctx, SIZE_MAX / 4, 8));
  unit_expect("more than can be addressed");
  ck_assert_ptr_null(bk_alloc(ctx, SIZE_MAX));
  unit_expect("out of memory");
  ck_assert_ptr_null(bk_alloc(ctx, SIZE_MAX - 100));
  unit_expect("out of memory");
}
END_TEST

START_TEST(grow_keeps_and_doubles) {
  int *array = NULL;
  size_t capacity = 0;
  for (size_t i = 0; i < 1000; i++) {
    ck_assert_int_eq(bk_grow(ctx, (void **)&array, &capacity, i + 1, sizeof *array), BK_OK);
    ck_assert_uint_gt(capacity, i);
    array[i] = (int)i;
  }
  for (int i = 0; i < 1000; i++) ck_assert_int_eq(array[i], i);
  bk_memory_stats stats;
  bk_context_memory_stats(ctx, &stats);
  ck_assert_uint_lt(stats.allocations, 15);
  ck_assert_int_eq(bk_grow(ctx, (void **)&array, &capacity, SIZE_MAX / 2, sizeof *array),
                   BK_ERR_MEMORY);
  unit_expect("error");
  ck_assert_int_eq(array[999], 999);
  bk_free(ctx, array);
}
END_TEST

START_TEST(strings) {
  char *copy = bk_strdup(ctx, "ciao"), *made = bk_format(ctx, "%s-%05d", copy, 42);
  ck_assert_str_eq(made, "ciao-00042");
  bk_free(ctx, copy);
  bk_free(ctx, made);
}
END_TEST

/* An allocator that counts what it holds and fails on demand. */
typedef struct budget {
  int64_t left;
  size_t held;
} budget;

static void *budget_alloc(void *user, size_t bytes, size_t align) {
  budget *b = user;
  if (b->left-- <= 0) return NULL;
  b->held += bytes;
  return bk_allocator_libc.alloc(NULL, bytes, align);
}

static void budget_free(void *user, void *ptr, size_t bytes) {
  ((budget *)user)->held -= bytes;
  bk_allocator_libc.free(NULL, ptr, bytes);
}

START_TEST(callers_allocator) {
  budget b = {.left = 2};
  bk_allocator allocator = {budget_alloc, budget_free, &b};
  bk_context_options options = {
      .allocator = &allocator, .log = unit_log, .log_level = BK_LOG_TRACE};
  bk_context *own = NULL;
  ck_assert_int_eq(bk_context_create(&options, &own), BK_OK);
  void *p = bk_alloc(own, 10);
  ck_assert_ptr_nonnull(p);
  ck_assert_ptr_null(bk_alloc(own, 10));
  unit_expect("cannot allocate 10 bytes");
  bk_free(own, p);
  bk_context_destroy(own);
  ck_assert_uint_eq(b.held, 0);
  b.left = 0;
  own = (bk_context *)&b;
  ck_assert_int_eq(bk_context_create(&options, &own), BK_ERR_MEMORY);
  ck_assert_ptr_eq(own, &b); /* outputs are written only on success */
  unit_expect("out of memory");
  allocator.free = NULL;
  ck_assert_int_eq(bk_context_create(&options, &own), BK_ERR_ARGUMENT);
  unit_expect("allocator");
}
END_TEST

START_TEST(context_options) {
  bk_context *own = NULL;
  ck_assert_int_eq(bk_context_create(NULL, &own), BK_OK);
  bk_warn(own, "nobody listens");
  bk_context_destroy(own);
  bk_context_destroy(NULL);
  ck_assert_int_eq(bk_context_create(NULL, NULL), BK_ERR_ARGUMENT);
  bk_fs fs = bk_fs_posix;
  fs.rename = NULL;
  bk_context_options options = {.log = unit_log, .fs = &fs};
  ck_assert_int_eq(bk_context_create(&options, &own), BK_ERR_ARGUMENT);
  unit_expect("file access");
}
END_TEST

START_TEST(context_reports_leaks) {
  bk_context_options options = {.log = unit_log, .log_level = BK_LOG_WARN};
  bk_context *own = NULL;
  ck_assert_int_eq(bk_context_create(&options, &own), BK_OK);
  bk_context copy = *own;
  void *leaked = bk_alloc(own, 33);
  bk_context_destroy(own);
  unit_expect("33 bytes");
  bk_free(&copy, leaked);
}
END_TEST

START_TEST(arena_chunks) {
  bk_arena arena;
  bk_arena_place p = {-1, 1};
  bk_arena_init(&arena, ctx, "weights", 1000);
  ck_assert_uint_eq(bk_arena_bytes(&arena), 0);
  ck_assert_int_eq(bk_arena_reserve(&arena, 100, &p), BK_OK);
  ck_assert(p.chunk == 0 && p.offset == 0);
  ck_assert_int_eq(bk_arena_reserve(&arena, 300, &p), BK_OK);
  ck_assert(p.chunk == 0 && p.offset == 256);
  /* 768 + 232: the last byte of the chunk */
  ck_assert_int_eq(bk_arena_reserve(&arena, 232, &p), BK_OK);
  ck_assert(p.chunk == 0 && p.offset == 768);
  ck_assert_int_eq(bk_arena_reserve(&arena, 1, &p), BK_OK);
  ck_assert(p.chunk == 1 && p.offset == 0);
  ck_assert_int_eq(bk_arena_reserve(&arena, 1000, &p), BK_OK);
  ck_assert(p.chunk == 2 && p.offset == 0);
  ck_assert_uint_eq(bk_arena_bytes(&arena), 1000 + 1 + 1000);
  ck_assert_int_eq(bk_arena_reserve(&arena, 1001, &p), BK_ERR_MEMORY);
  ck_assert(p.chunk == 2 && p.offset == 0);
  unit_expect("weights: 1001 bytes");
  bk_arena_fini(&arena);
}
END_TEST

START_TEST(arena_rewind_keeps_high_water) {
  bk_arena arena;
  bk_arena_place p;
  bk_arena_init(&arena, ctx, "activations", SIZE_MAX);
  ck_assert_int_eq(bk_arena_reserve(&arena, 10, &p), BK_OK);
  bk_arena_mark mark = bk_arena_get_mark(&arena);
  ck_assert_int_eq(bk_arena_reserve(&arena, 5000, &p), BK_OK);
  ck_assert_uint_eq(p.offset, 256);
  bk_arena_rewind(&arena, mark);
  ck_assert_int_eq(bk_arena_reserve(&arena, 100, &p), BK_OK);
  ck_assert_uint_eq(p.offset, 256);
  ck_assert_uint_eq(bk_arena_bytes(&arena), 5256);
  ck_assert_int_eq(arena.n_chunks, 1);
  ck_assert_int_eq(bk_arena_reserve(&arena, SIZE_MAX, &p), BK_ERR_MEMORY);
  unit_expect("activations");
  bk_arena_fini(&arena);
}
END_TEST

START_TEST(edit_distance) {
  ck_assert_int_eq(bk_edit_distance("", ""), 0);
  ck_assert_int_eq(bk_edit_distance("kitten", "sitting"), 3);
  ck_assert_int_eq(bk_edit_distance("", "abc"), 3);
  ck_assert_int_eq(bk_edit_distance("abc", ""), 3);
  ck_assert_int_eq(bk_edit_distance("hc_mult", "hc_mult"), 0);
  static const char *const keys[] = {"learning_rate", "warmup_steps", "hc_mult", "hc_eps"};
  ck_assert_str_eq(bk_nearest("hcmult", keys, BK_COUNT(keys)), "hc_mult");
  ck_assert_str_eq(bk_nearest("warm_up_steps", keys, BK_COUNT(keys)), "warmup_steps");
  ck_assert_ptr_null(bk_nearest("zzzzzzzz", keys, BK_COUNT(keys)));
  ck_assert_ptr_null(bk_nearest("hc", keys, 0));
}
END_TEST

START_TEST(parse_integers) {
  static const struct {
    const char *text;
    int64_t value;
  } good[] = {{"0", 0},
              {"-0", 0},
              {"+7", 7},
              {"007", 7},
              {"-12", -12},
              {"9223372036854775807", INT64_MAX},
              {"-9223372036854775808", INT64_MIN},
              {"-9223372036854775807", -INT64_MAX}};
  static const char *const bad[] = {"",
                                    "-",
                                    "+",
                                    " 1",
                                    "1 ",
                                    "1.0",
                                    "0x10",
                                    "1e3",
                                    "9223372036854775808",
                                    "-9223372036854775809",
                                    "99999999999999999999",
                                    "--1",
                                    "a"};
  for (size_t i = 0; i < BK_COUNT(good); i++) {
    int64_t v = 99;
    ck_assert_msg(bk_parse_int64(good[i].text, &v), "%s", good[i].text);
    ck_assert_int_eq(v, good[i].value);
  }
  for (size_t i = 0; i < BK_COUNT(bad); i++) {
    int64_t v = 99;
    ck_assert_msg(!bk_parse_int64(bad[i], &v), "%s", bad[i]);
    ck_assert_int_eq(v, 99);
  }
}
END_TEST

static void check_doubles(void) {
  static const struct {
    const char *text;
    double value;
  } good[] = {{"0", 0},        {"-1.5", -1.5}, {".5", .5},   {"5.", 5},
              {"+1e-8", 1e-8}, {"3E4", 3e4},   {"0.1", 0.1}, {"1e-400", 0}};
  static const char *const bad[] = {"",    ".",     "-",     "1,5", "1e", "1e+",   "nan",
                                    "inf", "0x1p3", "1e400", " 1",  "1 ", "1.2.3", "e5"};
  for (size_t i = 0; i < BK_COUNT(good); i++) {
    double v = 99;
    ck_assert_msg(bk_parse_double(good[i].text, &v), "%s", good[i].text);
    ck_assert_double_eq(v, good[i].value);
  }
  for (size_t i = 0; i < BK_COUNT(bad); i++) {
    double v = 99;
    ck_assert_msg(!bk_parse_double(bad[i], &v), "%s", bad[i]);
    ck_assert_double_eq(v, 99);
  }
}

START_TEST(parse_doubles) {
  static const char *const comma_locales[] = {"de_DE.UTF-8", "it_IT.UTF-8", "fr_FR.UTF-8"};
  check_doubles();
  for (size_t i = 0; i < BK_COUNT(comma_locales); i++)
    if (setlocale(LC_NUMERIC, comma_locales[i])) check_doubles();
  setlocale(LC_NUMERIC, "C");
}
END_TEST

START_TEST(parse_bools) {
  bool v = false;
  ck_assert(bk_parse_bool("true", &v) && v);
  ck_assert(bk_parse_bool("0", &v) && !v);
  ck_assert(bk_parse_bool("1", &v) && v);
  ck_assert(bk_parse_bool("false", &v) && !v);
  ck_assert(!bk_parse_bool("yes", &v) && !bk_parse_bool("", &v) && !bk_parse_bool(NULL, &v));
}
END_TEST

START_TEST(system_facts) {
  size_t free_bytes = 0, total_bytes = 0;
  ck_assert_int_ge(bk_cpu_count(), 1);
  ck_assert(bk_system_memory(&free_bytes, &total_bytes));
  ck_assert_uint_gt(total_bytes, 1 << 20);
  ck_assert_uint_le(free_bytes, total_bytes);
  double t = bk_seconds();
  ck_assert(t > 0 && bk_seconds() >= t);
}
END_TEST

START_TEST(nan_has_no_sign) {
  char text[64];
  const double odd[] = {NAN, -NAN, copysign(NAN, -1.0), INFINITY - INFINITY};
  for (size_t i = 0; i < BK_COUNT(odd); i++) {
    snprintf(text, sizeof text, "%g %.3f", bk_unsigned_nan(odd[i]), bk_unsigned_nan(odd[i]));
    ck_assert_str_eq(text, "nan nan");
  }
  snprintf(text, sizeof text, "%g %g %g", bk_unsigned_nan(-1.5), bk_unsigned_nan(-INFINITY),
           bk_unsigned_nan(-0.0));
  ck_assert_str_eq(text, "-1.5 -inf -0");
}
END_TEST

UNIT_MAIN("base", unit_open, unit_close, status_names, log_levels_and_status,
          log_cuts_long_messages, alloc_counts_zeroes_and_aligns, alloc_overflow,
          grow_keeps_and_doubles, strings, callers_allocator, context_options,
          context_reports_leaks, arena_chunks, arena_rewind_keeps_high_water, edit_distance,
          parse_integers, parse_doubles, parse_bools, nan_has_no_sign, system_facts)

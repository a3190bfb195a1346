/* metrics.jsonl: rows, null, cutting back for a resume, reading a column. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <math.h>

#include "io/json_out.h"
#include "io/metrics.h"

static char *whole(void) {
  char *text;
  size_t bytes;
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("metrics.jsonl"), 1 << 24, &text, &bytes),
                   BK_OK);
  return text;
}

static void holds(const char *wanted) {
  char *text = whole();
  ck_assert_str_eq(text, wanted);
  bk_free(ctx, text);
}

static void put(const char *text) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("metrics.jsonl"), text, strlen(text)),
                   BK_OK);
}

static void append(const bk_metrics_row *row) {
  bk_metrics *m;
  ck_assert_int_eq(bk_metrics_open(ctx, unit_path("metrics.jsonl"), &m), BK_OK);
  ck_assert_int_eq(bk_metrics_write(m, row), BK_OK);
  bk_metrics_close(m);
}

START_TEST(rows) {
  const double load[4] = {0.25, 0.75, 0.5, 0.5};
  bk_metrics_row row = {
      .step = 1, .tokens = 2048, .loss = 5.5, .lr = 3e-4, .grad_norm = 1, .tokens_per_s = 1e20};
  append(&row);
  holds(
      "{\"step\": 1, \"tokens\": 2048, \"loss\": 5.5, \"lr\": 0.0003, \"grad_norm\": 1.0, "
      "\"tokens_per_s\": 1e+20}\n");
  row = (bk_metrics_row){.step = 2,
                         .tokens = 4096,
                         .loss = NAN,
                         .lr = 0,
                         .grad_norm = INFINITY,
                         .tokens_per_s = -INFINITY,
                         .has_val = true,
                         .val_loss = 0.1,
                         .has_gain = true,
                         .gain_forward = 1.5,
                         .gain_backward = NAN,
                         .n_layers = 2,
                         .n_experts = 2,
                         .expert_load = load};
  append(&row);
  holds(
      "{\"step\": 1, \"tokens\": 2048, \"loss\": 5.5, \"lr\": 0.0003, \"grad_norm\": 1.0, "
      "\"tokens_per_s\": 1e+20}\n"
      "{\"step\": 2, \"tokens\": 4096, \"loss\": null, \"lr\": 0.0, \"grad_norm\": null, "
      "\"tokens_per_s\": null, \"val_loss\": 0.1, "
      "\"gain_forward\": 1.5, \"gain_backward\": null, \"expert_load\": [[0.25, 0.75], [0.5, "
      "0.5]]}\n");
}
END_TEST

/* Rows with everything in them, after a short first one, need no memory. */
START_TEST(no_allocation_per_row) {
  enum { LAYERS = 3, EXPERTS = 64 };
  double load[LAYERS * EXPERTS];
  bk_metrics *m;
  bk_memory_stats before, after;
  for (int i = 0; i < LAYERS * EXPERTS; i++) load[i] = -1.2345678901234567e-300 / (i + 1);
  bk_metrics_row row = {.step = 1, .n_layers = LAYERS, .n_experts = EXPERTS, .expert_load = load};
  ck_assert_int_eq(bk_metrics_open(ctx, unit_path("metrics.jsonl"), &m), BK_OK);
  memset(load, 0, sizeof load);
  ck_assert_int_eq(bk_metrics_write(m, &row), BK_OK);
  bk_context_memory_stats(ctx, &before);
  for (int i = 0; i < LAYERS * EXPERTS; i++) load[i] = -1.2345678901234567e-300 / (i + 1);
  row.has_val = row.has_gain = true;
  row.step = row.tokens = INT64_MIN;
  row.loss = row.lr = row.grad_norm = row.tokens_per_s = row.val_loss = row.gain_forward =
      row.gain_backward = -1.2345678901234567e-300;
  for (int i = 0; i < 3; i++) ck_assert_int_eq(bk_metrics_write(m, &row), BK_OK);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(before.allocations, after.allocations);
  bk_metrics_close(m);
  bk_metrics_close(NULL);
}
END_TEST

START_TEST(cut) {
  static const char three[] =
      "{\"step\": 1, \"loss\": 3.0}\n{\"step\": 2, \"loss\": null}\n{\"loss\": 1.0, \"step\": 3}\n";
  const char *path = unit_path("metrics.jsonl");
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 5), BK_OK); /* missing is fine */
  ck_assert(!bk_path_exists(ctx, path));
  put(three);
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 9), BK_OK);
  holds(three);
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 2), BK_OK);
  holds("{\"step\": 1, \"loss\": 3.0}\n{\"step\": 2, \"loss\": null}\n");
  put("{\"step\": 1, \"loss\": 3.0}\n{\"step\": 2, \"lo");
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 1), BK_OK);
  holds("{\"step\": 1, \"loss\": 3.0}\n");
  bk_metrics_row row = {.step = 2};
  append(&row); /* begins on a line of its own */
  put("{\"step\": 1, \"lo");
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 0), BK_OK);
  holds("");
  ck_assert_int_eq(bk_remove_tree(ctx, unit_path("metrics.jsonl.damaged")), BK_OK);
  put(three);
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 0), BK_OK);
  holds("");
}
END_TEST

/* A good file cut anywhere keeps its whole rows. */
START_TEST(torn_anywhere) {
  static const char good[] = "{\"step\": 1, \"loss\": 3.0}\n{\"step\": 2, \"loss\": 2.0}\n";
  const char *second = strchr(good, '\n') + 1;
  char part[sizeof good];
  for (size_t cut = 0; cut < sizeof good; cut++) {
    snprintf(part, sizeof part, "%.*s", (int)cut, good);
    put(part);
    int64_t whole_rows = (good + cut >= second) + (cut == sizeof good - 1);
    /* a run whose rows up to its step are there */
    ck_assert_int_eq(bk_metrics_cut(ctx, unit_path("metrics.jsonl"), whole_rows), BK_OK);
    snprintf(part, sizeof part, "%.*s",
             cut == sizeof good - 1 ? (int)cut
             : good + cut >= second ? (int)(second - good)
                                    : 0,
             good);
    holds(part);
  }
}
END_TEST

START_TEST(column) {
  int64_t *steps, count;
  double *values;
  put("{\"step\": 10, \"loss\": 3.25, \"val_loss\": 4}\n{\"step\": 20, \"loss\": null}\n{\"step\": "
      "30, \"loss\": \"x\", \"val_loss\": 1e-3}\n{\"step\": 4");
  ck_assert_int_eq(
      bk_metrics_read(ctx, unit_path("metrics.jsonl"), "loss", &steps, &values, &count), BK_OK);
  ck_assert_int_eq(count, 3);
  ck_assert(steps[0] == 10 && steps[1] == 20 && steps[2] == 30);
  ck_assert(values[0] == 3.25 && isnan(values[1]) && isnan(values[2]));
  bk_free(ctx, steps);
  bk_free(ctx, values);
  ck_assert_int_eq(
      bk_metrics_read(ctx, unit_path("metrics.jsonl"), "val_loss", &steps, &values, &count), BK_OK);
  ck_assert(values[0] == 4 && isnan(values[1]) && values[2] == 1e-3);
  bk_free(ctx, steps);
  bk_free(ctx, values);
  put("");
  ck_assert_int_eq(
      bk_metrics_read(ctx, unit_path("metrics.jsonl"), "loss", &steps, &values, &count), BK_OK);
  ck_assert_int_eq(count, 0);
  bk_free(ctx, steps);
  bk_free(ctx, values);
}
END_TEST

/* Longer than the reader's buffer. */
START_TEST(long_rows) {
  enum { EXPERTS = 20000, ROWS = 5 };
  double *load = bk_alloc_array(ctx, EXPERTS, sizeof *load);
  for (int i = 0; i < EXPERTS; i++) load[i] = 1.0 / (i + 3);
  for (int i = 1; i <= ROWS; i++) {
    bk_metrics_row row = {
        .step = i, .loss = i * 0.1, .n_layers = 1, .n_experts = EXPERTS, .expert_load = load};
    append(&row);
  }
  bk_free(ctx, load);
  int64_t *steps, count;
  double *values;
  ck_assert_int_eq(bk_metrics_cut(ctx, unit_path("metrics.jsonl"), ROWS - 1), BK_OK);
  ck_assert_int_eq(
      bk_metrics_read(ctx, unit_path("metrics.jsonl"), "loss", &steps, &values, &count), BK_OK);
  ck_assert_int_eq(count, ROWS - 1);
  for (int i = 0; i < ROWS - 1; i++) ck_assert(values[i] == (i + 1) * 0.1);
  bk_free(ctx, steps);
  bk_free(ctx, values);
}
END_TEST

/* What is no row, anywhere: moved aside byte for byte, with one warning, and the rest stays. */
START_TEST(damaged_lines) {
  static const struct {
    const char *text, *kept, *aside, *message;
  } cases[] = {
      {"{\"step\": 1}\nnot json\n{\"step\": 2}\n", "{\"step\": 1}\n{\"step\": 2}\n", "not json\n",
       "1 damaged line is (the first is line 2: "},
      {"step 1/5  loss 5.5\n{\"step\": 1}\n", "{\"step\": 1}\n", "step 1/5  loss 5.5\n",
       "line 1: "},
      {"{\"step\": 1}\n{\"loss\": 2}\n", "{\"step\": 1}\n", "{\"loss\": 2}\n",
       "line 2: it has no integer \"step\""},
      {"[1]\n{\"step\": 1.0}\n{\"step\": 2}\n", "{\"step\": 2}\n", "[1]\n{\"step\": 1.0}\n",
       "2 damaged lines are (the first is line 1: it has no integer"},
      {"{\"step\": 1}\n{\"step\": 1}\n{\"step\": 2}\n{\"step\": 2}\n",
       "{\"step\": 1}\n{\"step\": 2}\n", "{\"step\": 1}\n{\"step\": 2}\n",
       "2 damaged lines are (the first is line 2: step 1 is out of order)"},
      {"{\"step\": 1}\n{\"step\": 5}\n{\"step\": 2}\n{\"step\": 3}\n{\"step\": 4}\n{\"step\": 5}\n",
       "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n{\"step\": 4}\n{\"step\": 5}\n",
       "{\"step\": 5}\n", "1 damaged line is (the first is line 2: step 5 is out of order)"},
      {"{\"step\": 4}\n{\"step\": 5}\n{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n",
       "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n", "{\"step\": 4}\n{\"step\": 5}\n",
       "2 damaged lines are (the first is line 1: step 4 is out of order)"},
      {"{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n",
       "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n",
       "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n",
       "3 damaged lines are (the first is line 4: "},
      {"{\"step\": 1}\nstep 2/5 loss{\"step\": 2}\n{\"step\": 3}\n{\"step\": 9}\nx\n",
       "{\"step\": 1}\n{\"step\": 3}\n", "step 2/5 loss{\"step\": 2}\nx\n", "line 2: "},
      {"{\"step\": 1, \"step\": 2}\n\xff\xfe\n{\"step\": 3}\n", "{\"step\": 3}\n",
       "{\"step\": 1, \"step\": 2}\n\xff\xfe\n", "duplicate"},
      /* a row past the step is dropped, wherever it stands */
      {"{\"step\": 9}\n{\"step\": 1}\n", "{\"step\": 1}\n", NULL, NULL},
      {"{\"step\": 1}\n\n{\"step\": 2}\n", "{\"step\": 1}\n\n{\"step\": 2}\n", NULL, NULL},
  };
  char path[512], aside[512];
  snprintf(path, sizeof path, "%s/metrics.jsonl", unit_folder);
  snprintf(aside, sizeof aside, "%s/metrics.jsonl.damaged", unit_folder);
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    char *text = NULL;
    size_t bytes;
    put(cases[i].text);
    ck_assert_int_eq(bk_metrics_cut(ctx, path, 5), BK_OK);
    unit_expect(cases[i].message);
    holds(cases[i].kept);
    ck_assert(bk_path_exists(ctx, aside) == (cases[i].aside != NULL));
    if (!cases[i].aside) continue;
    ck_assert_int_eq(bk_file_read_all(ctx, aside, 1000, &text, &bytes), BK_OK);
    ck_assert_str_eq(text, cases[i].aside);
    bk_free(ctx, text);
    /* the second time there is nothing to say */
    ck_assert_int_eq(bk_metrics_cut(ctx, path, 5), BK_OK);
    ck_assert_int_eq(bk_remove_tree(ctx, aside), BK_OK);
  }
}
END_TEST

/* What was set aside before stays; zeros, as a disk leaves them, and a line without an end. */
START_TEST(damaged_blocks) {
  static const char row[] = "{\"step\": 1}\n";
  char path[512], aside[512];
  snprintf(path, sizeof path, "%s/metrics.jsonl", unit_folder);
  snprintf(aside, sizeof aside, "%s/metrics.jsonl.damaged", unit_folder);
  enum { ZEROS = 200000 };
  char *text = bk_alloc(ctx, ZEROS + sizeof row), *back = NULL;
  size_t bytes = 0;
  memcpy(text + ZEROS, row, sizeof row - 1);
  text[ZEROS - 1] = '\n';
  for (int turn = 1; turn <= 2; turn++) {
    ck_assert_int_eq(bk_file_write_atomic(ctx, path, text, ZEROS + sizeof row - 1), BK_OK);
    ck_assert_int_eq(bk_metrics_cut(ctx, path, 1), BK_OK);
    unit_expect("1 damaged line is (the first is line 1: ");
    holds(row);
    ck_assert_int_eq(bk_file_read_all(ctx, aside, 1 << 20, &back, &bytes), BK_OK);
    ck_assert_uint_eq(bytes, (size_t)turn * ZEROS);
    bk_free(ctx, back);
  }
  bk_free(ctx, text);
  put("{\"step\": 1}\n{\"step\": 2, \"lo");
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 2), BK_OK); /* row 2 should be there */
  unit_expect("line 2: it has no end");
  put("{\"step\": 1}\n{\"step\": 2, \"lo");
  ck_assert_int_eq(bk_metrics_cut(ctx, path, 1), BK_OK);
  unit_expect(NULL);
  holds(row);
}
END_TEST

START_TEST(readers_pass_over_damage) {
  int64_t *steps, count;
  double *values;
  put("{\"step\": 1, \"loss\": 3}\nstep 2/9 loss\n{\"step\": 2, \"loss\": 2}\n{\"step\": 2, "
      "\"loss\": 9}\n");
  ck_assert_int_eq(
      bk_metrics_read(ctx, unit_path("metrics.jsonl"), "loss", &steps, &values, &count), BK_OK);
  unit_expect("2 damaged lines are passed over (the first is line 2: ");
  ck_assert(count == 2 && values[0] == 3 && values[1] == 2);
  bk_free(ctx, steps);
  bk_free(ctx, values);
  ck_assert(!bk_path_exists(ctx, unit_path("metrics.jsonl.damaged")));
  ck_assert_int_eq(bk_metrics_read(ctx, unit_path("absent.jsonl"), "loss", &steps, &values, &count),
                   BK_ERR_IO);
  unit_expect("absent.jsonl");
  bk_metrics *m;
  ck_assert_int_eq(bk_metrics_open(ctx, unit_path("no/metrics.jsonl"), &m), BK_ERR_IO);
  unit_expect("no/metrics.jsonl");
}
END_TEST

/* Where what is damaged cannot be kept, the file stays as it was. */
static int no_new_file(void *user, const char *path, bool append, bk_file **file) {
  return strstr(path, ".damaged") ? -ENOSPC : bk_fs_posix.open_write(user, path, append, file);
}

START_TEST(nothing_is_lost) {
  static const char text[] = "{\"step\": 1}\nx\n{\"step\": 2}\n";
  put(text);
  ctx->fs.open_write = no_new_file;
  ck_assert_int_eq(bk_metrics_cut(ctx, unit_path("metrics.jsonl"), 2), BK_ERR_IO);
  unit_expect("metrics.jsonl.damaged: No space left on device");
  ctx->fs = bk_fs_posix;
  holds(text);
}
END_TEST

START_TEST(numbers_as_text) {
  static const struct {
    double value;
    const char *text;
  } cases[] = {{0, "0.0"},
               {-0.0, "-0.0"},
               {1, "1.0"},
               {0.1, "0.1"},
               {1e-6, "1e-06"},
               {1e300, "1e+300"},
               {123456789012345680.0, "1.2345678901234568e+17"},
               {0.30000000000000004, "0.30000000000000004"},
               {4.9406564584124654e-324, "4.94065645841247e-324"},
               {NAN, "nan"},
               {-INFINITY, "-inf"},
               {-1.7976931348623157e308, "-1.7976931348623157e+308"}};
  char text[BK_DOUBLE_TEXT];
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    double back;
    bk_double_text(cases[i].value, text);
    if (isfinite(cases[i].value)) ck_assert(bk_parse_double(text, &back) && back == cases[i].value);
    ck_assert_str_eq(text, cases[i].text);
  }
  for (uint64_t i = 0; i < 20000; i++) {
    uint64_t bits = bk_hash64(&i, sizeof i);
    double value, back;
    memcpy(&value, &bits, sizeof value);
    if (!isfinite(value)) continue;
    ck_assert(bk_parse_double(bk_double_text(value, text), &back) && back == value);
    ck_assert_ptr_nonnull(strpbrk(text, ".e"));
  }
}
END_TEST

START_TEST(strings_are_escaped) {
  bk_json_out out;
  bk_json_out_init(&out, ctx);
  bk_json_out_string(&out, "a\"b\\c\n\x01\xc3\xa9/");
  ck_assert_str_eq(out.data, "\"a\\\"b\\\\c\\u000a\\u0001\xc3\xa9/\"");
  bk_json_out_fini(&out);
}
END_TEST

/* ---- a disk that is full for a while ---- */

static int64_t room; /* bytes that still fit; -1: any number */

static int64_t scant_write(void *user, bk_file *file, const void *src, size_t bytes) {
  size_t fits = room < 0 || (int64_t)bytes <= room ? bytes : (size_t)room;
  int64_t done = bk_fs_posix.write(user, file, src, fits);
  if (room >= 0) room -= (int64_t)fits;
  return fits < bytes ? -ENOSPC : done; /* what fitted is in the file, as on a real one */
}

static bk_status put_step(bk_metrics *m, int64_t step) {
  return bk_metrics_write(m, &(bk_metrics_row){.step = step, .tokens = 10 * step, .loss = 1});
}

START_TEST(rows_wait_for_room) {
  bk_metrics *m;
  int64_t first, last, *steps, count;
  double *values;
  ctx->fs.write = scant_write;
  room = -1;
  ck_assert_int_eq(bk_metrics_open(ctx, unit_path("metrics.jsonl"), &m), BK_OK);
  for (int s = 1; s <= 3; s++) ck_assert_int_eq(put_step(m, s), BK_OK);
  room = 40; /* half a row */
  int failed = 0;
  for (int s = 4; s <= 20; s++) {
    bk_status status = put_step(m, s);
    ck_assert(status == BK_OK || status == BK_ERR_IO);
    if (status == BK_OK) continue;
    unit_expect("metrics.jsonl: No space left on device");
    failed++;
    room = 40;
    char *text = whole(); /* nothing torn is left behind */
    ck_assert_int_eq(text[strlen(text) - 1], '\n');
    ck_assert_ptr_nonnull(strstr(text, "\"step\": 3,"));
    ck_assert_ptr_null(strstr(text, "\"step\": 4,"));
    bk_free(ctx, text);
  }
  ck_assert_int_eq(failed, 5); /* at steps 4, 5, 7, 11, 19 */
  ck_assert_int_eq(bk_metrics_pending(m, &first, &last), 17);
  ck_assert_int_eq(first, 4);
  ck_assert_int_eq(last, 20);
  ck_assert_int_eq(bk_metrics_flush(m), BK_ERR_IO);
  unit_expect("No space left on device");
  room = -1;
  ck_assert_int_eq(bk_metrics_flush(m), BK_OK);
  ck_assert_int_eq(bk_metrics_pending(m, &first, &last), 0);
  ck_assert_int_eq(put_step(m, 21), BK_OK);
  bk_metrics_close(m);
  ck_assert_int_eq(
      bk_metrics_read(ctx, unit_path("metrics.jsonl"), "tokens", &steps, &values, &count), BK_OK);
  ck_assert_int_eq(count, 21);
  for (int64_t i = 0; i < count; i++)
    ck_assert(steps[i] == i + 1 && values[i] == 10.0 * (double)(i + 1));
  bk_free(ctx, steps);
  bk_free(ctx, values);
}
END_TEST

UNIT_MAIN("metrics", unit_folder_open, unit_folder_close, rows, no_allocation_per_row, cut,
          torn_anywhere, column, long_rows, damaged_lines, damaged_blocks, readers_pass_over_damage,
          nothing_is_lost, numbers_as_text, strings_are_escaped, rows_wait_for_room)

/* Two metrics.jsonl files: per key the relative differences over the steps that both have, the
 * first step that differs, and the last values. Arrays (expert_load) are compared element by
 * element. tokens_per_s is a clock reading: it is listed, but does not make two runs different. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/compare.h"

typedef struct run_file {
  bk_context *ctx;
  const char *path;
  json_t **rows; /* objects with an integer "step" */
  size_t count, capacity;
} run_file;

typedef struct key_row {
  char *key;
  int64_t values, first_step; /* compared; first that differs, -1 = none */
  double sum, max;            /* of relative differences */
  double last_a, last_b;      /* at the last step that has both; NaN for arrays */
} key_row;

typedef struct comparison {
  cli_session *s;
  run_file a, b;
  key_row *keys;
  size_t n_keys, capacity;
  int64_t common;
} comparison;

/* ---- reading ---- */

static bk_status add_row(void *arg, int64_t step, const char *json, size_t bytes) {
  run_file *f = arg;
  (void)step;
  BK_TRY(bk_grow(f->ctx, (void **)&f->rows, &f->capacity, f->count + 1, sizeof *f->rows));
  f->rows[f->count] = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, NULL);
  if (!f->rows[f->count]) return bk_fail(f->ctx, BK_ERR_MEMORY, "out of memory for metrics");
  f->count++;
  return BK_OK;
}

static bk_status read_rows(cli_session *s, run_file *f) {
  f->ctx = s->ctx;
  BK_TRY(bk_metrics_rows(s->ctx, f->path, add_row, f));
  return f->count ? BK_OK : bk_fail(s->ctx, BK_ERR_DATA, "%s: no metrics in it", f->path);
}

/* ---- comparing ---- */

static key_row *find_key(comparison *c, const char *key) {
  for (size_t i = 0; i < c->n_keys; i++)
    if (strcmp(c->keys[i].key, key) == 0) return &c->keys[i];
  if (bk_grow(c->s->ctx, (void **)&c->keys, &c->capacity, c->n_keys + 1, sizeof *c->keys) != BK_OK)
    return NULL;
  char *name = bk_strdup(c->s->ctx, key);
  if (!name) return NULL;
  c->keys[c->n_keys] = (key_row){.key = name, .first_step = -1, .last_a = NAN, .last_b = NAN};
  return &c->keys[c->n_keys++];
}

/* 0 for equal values (two nulls are equal), 1 where only one is a number. */
static double relative(double a, double b) {
  if (isnan(a) && isnan(b)) return 0;
  if (isnan(a) || isnan(b)) return 1;
  double size = fmax(fabs(a), fabs(b));
  return a == b ? 0 : fabs(a - b) / size;
}

static void add_values(key_row *k, const json_t *a, const json_t *b, int64_t step) {
  if (json_is_array(a) && json_is_array(b)) {
    size_t n = json_array_size(a) > json_array_size(b) ? json_array_size(a) : json_array_size(b);
    for (size_t i = 0; i < n; i++) add_values(k, json_array_get(a, i), json_array_get(b, i), step);
    return;
  }
  double x = json_is_number(a) ? json_number_value(a) : NAN,
         y = json_is_number(b) ? json_number_value(b) : NAN;
  double d = !a || !b ? 1 : relative(x, y);
  k->values++;
  k->sum += d;
  k->max = fmax(k->max, d);
  if (d != 0 && k->first_step < 0) k->first_step = step;
}

static bk_status compare_row(comparison *c, json_t *a, json_t *b) {
  const char *key;
  json_t *value;
  int64_t step = json_integer_value(json_object_get(a, "step"));
  json_object_foreach(a, key, value) {
    json_t *other = json_object_get(b, key);
    key_row *k = strcmp(key, "step") == 0 ? NULL : find_key(c, key);
    if (!k && strcmp(key, "step") != 0) return BK_ERR_MEMORY;
    if (!k) continue;
    add_values(k, value, other, step);
    if (json_is_number(value)) k->last_a = json_number_value(value);
    if (json_is_number(other)) k->last_b = json_number_value(other);
  }
  json_object_foreach(b, key, value) {
    if (json_object_get(a, key)) continue;
    key_row *k = find_key(c, key);
    if (!k) return BK_ERR_MEMORY;
    add_values(k, NULL, value, step);
    if (json_is_number(value)) k->last_b = json_number_value(value);
  }
  return BK_OK;
}

/* Rows of both files by step, in the order of the first; steps ascend in what `train` writes. */
static bk_status compare_rows(comparison *c) {
  size_t j = 0;
  for (size_t i = 0; i < c->a.count; i++) {
    int64_t step = json_integer_value(json_object_get(c->a.rows[i], "step"));
    while (j < c->b.count && json_integer_value(json_object_get(c->b.rows[j], "step")) < step) j++;
    if (j == c->b.count || json_integer_value(json_object_get(c->b.rows[j], "step")) != step)
      continue;
    BK_TRY(compare_row(c, c->a.rows[i], c->b.rows[j]));
    c->common++;
  }
  if (c->common) return BK_OK;
  return bk_fail(c->s->ctx, BK_ERR_DATA, "%s and %s have no step in common", c->a.path, c->b.path);
}

/* ---- results ---- */

/* Readings of the clock differ in every run, and say nothing about what was trained. */
static bool counts(const key_row *k) {
  static const char *const clock[] = {"tokens_per_s", "comm_wait", "comm_busy"};
  for (size_t i = 0; i < sizeof clock / sizeof *clock; i++)
    if (strcmp(k->key, clock[i]) == 0) return false;
  return true;
}

static bool is_equal(const comparison *c) {
  bool equal = c->a.count == c->b.count && (size_t)c->common == c->a.count;
  for (size_t i = 0; i < c->n_keys; i++)
    equal = equal && (!counts(&c->keys[i]) || c->keys[i].first_step < 0);
  return equal;
}

static bk_status print_json(comparison *c) {
  json_t *keys = json_array();
  for (size_t i = 0; i < c->n_keys; i++) {
    const key_row *k = &c->keys[i];
    json_array_append_new(
        keys,
        json_pack("{s:s,s:o,s:o,s:o,s:o,s:o}", "key", k->key, "mean",
                  cli_number(k->sum / (double)k->values), "max", cli_number(k->max), "first_step",
                  k->first_step < 0 ? json_null() : json_integer((json_int_t)k->first_step),
                  "final_a", cli_number(k->last_a), "final_b", cli_number(k->last_b)));
  }
  return cli_print_json(
      c->s, json_pack("{s:s,s:b,s:I,s:I,s:I,s:o}", "kind", "metrics", "equal", is_equal(c),
                      "steps_a", (json_int_t)c->a.count, "steps_b", (json_int_t)c->b.count,
                      "steps_common", (json_int_t)c->common, "keys", keys));
}

static char *value_text(double x, char *text, size_t size) {
  if (isnan(x)) snprintf(text, size, "-");
  else snprintf(text, size, "%.6g", x);
  return text;
}

static bk_status print_text(comparison *c) {
  printf("%zu and %zu steps, %lld in common\n", c->a.count, c->b.count, (long long)c->common);
  printf("%-16s %12s %12s %12s %14s %14s\n", "key", "mean rel", "max rel", "first step", "final a",
         "final b");
  for (size_t i = 0; i < c->n_keys; i++) {
    const key_row *k = &c->keys[i];
    char first[24] = "-", a[24], b[24];
    if (k->first_step >= 0) snprintf(first, sizeof first, "%lld", (long long)k->first_step);
    printf("%-16s %12.3e %12.3e %12s %14s %14s%s\n", k->key, k->sum / (double)k->values, k->max,
           first, value_text(k->last_a, a, sizeof a), value_text(k->last_b, b, sizeof b),
           counts(k) ? "" : "  (clock)");
  }
  printf("%s\n", is_equal(c) ? "equal" : "different");
  return cli_flush_stdout(c->s);
}

static void free_rows(cli_session *s, run_file *f) {
  for (size_t i = 0; i < f->count; i++) json_decref(f->rows[i]);
  bk_free(s->ctx, f->rows);
}

bk_status compare_metrics(cli_session *s, const char *path_a, const char *path_b) {
  comparison c = {.s = s, .a = {.path = path_a}, .b = {.path = path_b}};
  bk_status status = read_rows(s, &c.a);
  if (status == BK_OK) status = read_rows(s, &c.b);
  if (status == BK_OK) status = compare_rows(&c);
  if (status == BK_OK) status = s->json ? print_json(&c) : print_text(&c);
  for (size_t i = 0; i < c.n_keys; i++) bk_free(s->ctx, c.keys[i].key);
  bk_free(s->ctx, c.keys);
  free_rows(s, &c.b);
  free_rows(s, &c.a);
  return status;
}

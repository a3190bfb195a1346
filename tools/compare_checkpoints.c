/* Two checkpoints, or any two safetensors files (outputs of `forward`), tensor by tensor: nmse =
 * sum (a - b)^2 / sum b^2, the largest difference, and whether the bytes are the same. Optimiser
 * states are compared where both have one. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/compare.h"

#define CHUNK ((int64_t)1 << 16)

typedef struct tensor_row {
  char *name;
  /* "equal", "different", "shape", "missing in a", "missing in b", "not comparable" */
  const char *status;
  double nmse, max_abs;
} tensor_row;

typedef struct comparison {
  cli_session *s;
  tensor_row *rows;
  size_t n_rows, capacity, equal, missing;
} comparison;

static bk_status add_row(comparison *c, const char *name, const char *status, double nmse,
                         double max_abs) {
  BK_TRY(bk_grow(c->s->ctx, (void **)&c->rows, &c->capacity, c->n_rows + 1, sizeof *c->rows));
  char *whole = bk_strdup(c->s->ctx, name);
  if (!whole) return BK_ERR_MEMORY;
  c->rows[c->n_rows++] = (tensor_row){whole, status, nmse, max_abs};
  c->equal += strcmp(status, "equal") == 0;
  c->missing += strncmp(status, "missing", 7) == 0;
  return BK_OK;
}

static bool same_shape(const bk_st_entry *a, const bk_st_entry *b) {
  bool same = a->ndim == b->ndim;
  for (int d = 0; same && d < a->ndim; d++) same = a->shape[d] == b->shape[d];
  return same;
}

static int64_t count_of(const bk_st_entry *e) {
  int64_t count = 1;
  for (int d = 0; d < e->ndim; d++) count *= e->shape[d];
  return count;
}

/* By bytes, not by value: -0 and 0 differ, equal NaNs do not. */
static bk_status same_bytes(comparison *c, bk_st_reader *ra, bk_st_reader *rb, const bk_st_entry *a,
                            const bk_st_entry *b, bool *same) {
  size_t bytes = (size_t)(a->end - a->begin);
  *same = false;
  if (strcmp(a->dtype_name, b->dtype_name) != 0 || b->end - b->begin != bytes) return BK_OK;
  void *x = bk_alloc(c->s->ctx, bytes), *y = bk_alloc(c->s->ctx, bytes);
  bk_status status = x && y ? bk_st_read(ra, a, x, bytes) : BK_ERR_MEMORY;
  if (status == BK_OK) status = bk_st_read(rb, b, y, bytes);
  if (status == BK_OK) *same = memcmp(x, y, bytes) == 0;
  bk_free(c->s->ctx, y);
  bk_free(c->s->ctx, x);
  return status;
}

static bk_status measure(comparison *c, bk_st_reader *ra, bk_st_reader *rb, const bk_st_entry *a,
                         const bk_st_entry *b, double *nmse, double *max_abs) {
  double *x = bk_alloc_array(c->s->ctx, CHUNK, sizeof *x),
         *y = bk_alloc_array(c->s->ctx, CHUNK, sizeof *y), error = 0, size = 0;
  bk_status status = x && y ? BK_OK : BK_ERR_MEMORY;
  int64_t count = count_of(a);
  *max_abs = 0;
  for (int64_t at = 0; at < count && status == BK_OK; at += CHUNK) {
    int64_t n = count - at < CHUNK ? count - at : CHUNK;
    status = bk_st_read_f64(ra, a, at, n, x);
    if (status == BK_OK) status = bk_st_read_f64(rb, b, at, n, y);
    for (int64_t i = 0; i < n && status == BK_OK; i++) {
      double d = fabs(x[i] - y[i]);
      error += d * d;
      size += y[i] * y[i];
      if (!(d <= *max_abs)) *max_abs = d;
    }
  }
  *nmse = error == 0 ? 0 : error / size;
  bk_free(c->s->ctx, y);
  bk_free(c->s->ctx, x);
  return status;
}

static bk_status compare_entry(comparison *c, bk_st_reader *ra, bk_st_reader *rb,
                               const bk_st_entry *a) {
  const bk_st_entry *b = bk_st_find(rb, a->name);
  bool same;
  double nmse, max_abs;
  if (!b) return add_row(c, a->name, "missing in b", NAN, NAN);
  if (!same_shape(a, b)) return add_row(c, a->name, "shape", NAN, NAN);
  BK_TRY(same_bytes(c, ra, rb, a, b, &same));
  if (same) return add_row(c, a->name, "equal", 0, 0);
  if (!bk_st_element_size(a) || !bk_st_element_size(b))
    return add_row(c, a->name, "not comparable", NAN, NAN);
  BK_TRY(measure(c, ra, rb, a, b, &nmse, &max_abs));
  return add_row(c, a->name, "different", nmse, max_abs);
}

static bk_status compare_readers(comparison *c, bk_st_reader *a, bk_st_reader *b) {
  bk_status status = BK_OK;
  for (int i = 0; status == BK_OK && i < bk_st_count(a); i++)
    status = compare_entry(c, a, b, bk_st_get(a, i));
  for (int i = 0; status == BK_OK && i < bk_st_count(b); i++)
    if (!bk_st_find(a, bk_st_get(b, i)->name))
      status = add_row(c, bk_st_get(b, i)->name, "missing in a", NAN, NAN);
  return status;
}

/* open: bk_st_open of two files, bk_st_open_folder of the weights of two folders, or
 * bk_st_open_state. */
static bk_status compare_opened(comparison *c, const char *path_a, const char *path_b,
                                bk_status (*open)(bk_context *ctx, const char *path,
                                                  bk_st_reader **reader)) {
  bk_st_reader *a = NULL, *b = NULL;
  bk_status status = open(c->s->ctx, path_a, &a);
  if (status == BK_OK) status = open(c->s->ctx, path_b, &b);
  if (status == BK_OK) status = compare_readers(c, a, b);
  bk_st_close(b);
  bk_st_close(a);
  return status;
}

/* The optimiser states of two checkpoint folders, whatever the number of ranks that wrote them;
 * passed over where neither has one. */
static bk_status compare_optimizers(comparison *c, const char *a, const char *b) {
  bool there = false, other = false;
  BK_TRY(bk_st_state_there(c->s->ctx, a, &there));
  BK_TRY(bk_st_state_there(c->s->ctx, b, &other));
  if (there != other)
    return add_row(c, "optimizer.safetensors", there ? "missing in b" : "missing in a", NAN, NAN);
  return there ? compare_opened(c, a, b, bk_st_open_state) : BK_OK;
}

static bk_status compare_folders(comparison *c, const char *path_a, const char *path_b) {
  char *a = NULL, *b = NULL;
  bk_status status = bk_checkpoint_resolve(c->s->ctx, path_a, &a);
  if (status == BK_OK) status = bk_checkpoint_resolve(c->s->ctx, path_b, &b);
  if (status == BK_OK) status = compare_opened(c, a, b, bk_st_open_folder);
  if (status == BK_OK) status = compare_optimizers(c, a, b);
  bk_free(c->s->ctx, b);
  bk_free(c->s->ctx, a);
  return status;
}

static bk_status print_json(comparison *c) {
  json_t *list = json_array();
  for (size_t i = 0; i < c->n_rows; i++) {
    const tensor_row *r = &c->rows[i];
    bool equal = strcmp(r->status, "equal") == 0;
    json_array_append_new(
        list, json_pack("{s:s,s:s,s:b,s:o,s:o}", "tensor", r->name, "status", r->status, "equal",
                        equal, "nmse", cli_number(r->nmse), "max_abs", cli_number(r->max_abs)));
  }
  return cli_print_json(c->s, json_pack("{s:s,s:b,s:o}", "kind", "checkpoints", "equal",
                                        c->equal == c->n_rows, "tensors", list));
}

static bk_status print_text(comparison *c) {
  int width = 6;
  for (size_t i = 0; i < c->n_rows; i++)
    if (strcmp(c->rows[i].status, "equal") != 0 && (int)strlen(c->rows[i].name) > width)
      width = (int)strlen(c->rows[i].name);
  if (c->equal < c->n_rows) printf("%-*s %12s %12s\n", width, "tensor", "nmse", "max abs");
  for (size_t i = 0; i < c->n_rows; i++) {
    const tensor_row *r = &c->rows[i];
    if (strcmp(r->status, "different") == 0)
      printf("%-*s %12.3e %12.3e\n", width, r->name, r->nmse, r->max_abs);
    else if (strcmp(r->status, "equal") != 0) printf("%-*s %s\n", width, r->name, r->status);
  }
  printf("%zu tensors: %zu bit-equal, %zu different, %zu missing\n", c->n_rows, c->equal,
         c->n_rows - c->equal - c->missing, c->missing);
  return cli_flush_stdout(c->s);
}

bk_status compare_checkpoints(cli_session *s, const char *path_a, const char *path_b) {
  comparison c = {.s = s};
  bool folders = bk_path_is_dir(s->ctx, path_a) && bk_path_is_dir(s->ctx, path_b);
  bool files = !bk_path_is_dir(s->ctx, path_a) && !bk_path_is_dir(s->ctx, path_b) &&
               bk_path_exists(s->ctx, path_a) && bk_path_exists(s->ctx, path_b);
  bk_status status = folders || !files ? compare_folders(&c, path_a, path_b)
                                       : compare_opened(&c, path_a, path_b, bk_st_open);
  if (status == BK_OK) status = s->json ? print_json(&c) : print_text(&c);
  for (size_t i = 0; i < c.n_rows; i++) bk_free(s->ctx, c.rows[i].name);
  bk_free(s->ctx, c.rows);
  return status;
}

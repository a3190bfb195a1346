/* See case_file.h. */
#include "tests/ops/case_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES ((size_t)1 << 32)
#define PLACE_BYTES 256 /* what offsets are told modulo */
/* A view's rows may be far apart, but not without measure: memory is asked for. */
#define MOST_STRETCH 64

static bk_status refuse(const case_file *c, const char *name, const char *what) {
  return bk_fail(c->ctx, BK_ERR_DATA, "%s: %s: %s", c->path, name, what);
}

static const char *said(const case_file *c, const char *kind, const char *name) {
  char key[64];
  snprintf(key, sizeof key, "%s%s", kind, name);
  return bk_st_metadata(c->reader, key);
}

static const bk_st_entry *find(case_file *c, const char *kind, const char *name) {
  char whole[64];
  snprintf(whole, sizeof whole, "%s%s", kind, name);
  const bk_st_entry *e = bk_st_find(c->reader, whole);
  c->taken += e != NULL;
  return e;
}

/* ---- op and parameters ---- */

static bk_status read_op(case_file *c) {
  const char *version = said(c, "birkhoff_case", ""), *name = said(c, "op", "");
  if (!version || strcmp(version, "1") != 0 || !name)
    return refuse(c, "birkhoff_case", "this is no case that birkhoff verify --bisect has written");
  for (int op = 1; op < BK_OP_COUNT && !c->desc; op++)
    if (strcmp(bk_op_name((bk_op)op), name) == 0) c->desc = bk_op_describe((bk_op)op);
  return c->desc ? BK_OK : refuse(c, name, "there is no such op");
}

static bk_status read_param(case_file *c, const bk_op_param *p) {
  const char *text = said(c, "param.", p->name);
  char *at = c->args + p->offset;
  double real;
  int64_t number;
  if (!text) return refuse(c, p->name, "the parameter is missing");
  if (p->type == BK_OP_PARAM_REAL || p->type == BK_OP_PARAM_NOT_NEGATIVE) {
    if (!bk_parse_double(text, &real)) return refuse(c, p->name, "no number");
    memcpy(at, &real, sizeof real);
    return BK_OK;
  }
  if (!bk_parse_int64(text, &number) || number < INT32_MIN || number > INT32_MAX)
    return refuse(c, p->name, "no number");
  if (p->type == BK_OP_PARAM_FLAG && (number < 0 || number > 1))
    return refuse(c, p->name, "0 or 1");
  if (p->type == BK_OP_PARAM_KIND && (number < 0 || number > BK_HC_HEAD))
    return refuse(c, p->name, "there is no such connection");
  int value = (int)number;
  if (p->type == BK_OP_PARAM_FLAG) *(bool *)at = value;
  else memcpy(at, &value, sizeof value);
  return BK_OK;
}

/* ---- operands ---- */

/* No two elements of what is written may be one: each stride, in rising order, is past all that the
 * smaller ones reach. */
static bool apart(const bk_tensor *t) {
  int64_t reach = 0;
  int left = 0;
  for (int d = 0; d < t->ndim; d++) left += t->shape[d] > 1;
  while (left--) {
    int next = -1;
    for (int d = 0; d < t->ndim; d++)
      if (t->shape[d] > 1 && t->stride[d] > reach && (next < 0 || t->stride[d] < t->stride[next]))
        next = d;
    if (next < 0) return false;
    reach += (t->shape[next] - 1) * t->stride[next];
  }
  return true;
}

static bk_status read_strides(const case_file *c, const char *name, bool written, bk_tensor *t) {
  const char *text = said(c, "stride.", name);
  int64_t span = 1;
  for (int d = 0; text && d < t->ndim; d++) {
    char *end;
    long long stride = strtoll(text, &end, 10);
    if (end == text || *end != (d + 1 < t->ndim ? ',' : '\0') || stride < 0 ||
        stride > (long long)(MOST_BYTES / 8) / (t->shape[d] ? t->shape[d] : 1))
      return refuse(c, name, "these are no strides");
    t->stride[d] = stride;
    text = end + 1;
  }
  for (int d = 0; d < t->ndim && bk_tensor_count(t); d++) span += (t->shape[d] - 1) * t->stride[d];
  if (written && bk_tensor_count(t) && !apart(t))
    return refuse(c, name, "elements that are written share their place");
  bool fits = span <= MOST_STRETCH * (bk_tensor_count(t) + 64);
  return fits ? BK_OK : refuse(c, name, "its elements are too far apart");
}

static bk_status describe_tensor(case_file *c, const bk_st_entry *e, const bk_op_field *f,
                                 bk_tensor *t) {
  int64_t offset = 0;
  const char *text = said(c, "offset.", f->name);
  if (e->ndim > BK_MAX_DIMS || e->dtype == BK_NONE || e->dtype == BK_U8 || e->dtype == BK_I64)
    return refuse(c, e->name, "no operand has this type or so many dimensions");
  *t = bk_tensor_make(e->dtype, e->ndim, e->shape);
  if (bk_tensor_bytes(t) > MOST_BYTES) return refuse(c, f->name, "too large");
  BK_TRY(read_strides(c, f->name, f->role != BK_IN, t));
  if (text && (!bk_parse_int64(text, &offset) || offset < 0 || offset >= PLACE_BYTES ||
               (size_t)offset % bk_dtype_size(t->dtype)))
    return refuse(c, f->name, "no such offset");
  t->offset = (size_t)offset;
  c->bytes += bk_tensor_span(t) + bk_tensor_bytes(t);
  return c->bytes <= MOST_BYTES ? BK_OK : refuse(c, f->name, "too large");
}

static bk_status read_operand(case_file *c, const bk_op_field *f) {
  const bk_st_entry *in = f->role == BK_OUT ? NULL : find(c, "in.", f->name),
                    *out = f->role == BK_IN ? NULL : find(c, "out.", f->name);
  bk_tensor *t = bk_op_field_ref(c->args, f);
  case_operand *o = &c->operands[c->n];
  if (!in && !out) return f->optional ? BK_OK : refuse(c, f->name, "the operand is missing");
  if (f->role == BK_INOUT && (!in || !out || in->dtype != out->dtype || in->ndim != out->ndim ||
                              memcmp(in->shape, out->shape, sizeof in->shape) != 0))
    return refuse(c, f->name, "it must be there before and after, alike");
  BK_TRY(describe_tensor(c, in ? in : out, f, t));
  *o = (case_operand){.field = f, .count = bk_tensor_count(t), .same = c->n};
  c->n++;
  if (!in) return BK_OK;
  o->values = bk_alloc_array(c->ctx, (size_t)o->count, sizeof *o->values);
  if (!o->values) return BK_ERR_MEMORY;
  return bk_st_read_f64(c->reader, in, 0, o->count, o->values);
}

/* ---- numbers that are places ---- */

#define ANY INT64_MAX

/* Those of this input lie below it; ANY: all will do. Of an op that is not here none does. */
static int64_t limit_of(const case_file *c, const char *name) {
  const char *a = c->args;
  switch (c->desc->op) {
    case BK_OP_GROUPED_GEMM: return ((const bk_grouped_gemm_args *)a)->a.shape[0] + 1;
    case BK_OP_GROUPED_WGRAD: return ((const bk_grouped_wgrad_args *)a)->a.shape[0] + 1;
    case BK_OP_EMBED: return ((const bk_embed_args *)a)->table.shape[0];
    case BK_OP_EMBED_BWD: return ((const bk_embed_bwd_args *)a)->dtable.shape[0];
    case BK_OP_CROSS_ENTROPY: return ((const bk_cross_entropy_args *)a)->logits.shape[1];
    case BK_OP_ROUTER_BWD: return ((const bk_router_bwd_args *)a)->scores.shape[1];
    case BK_OP_MOE_INDEX:
      return strcmp(name, "index") == 0 ? ((const bk_moe_index_args *)a)->offsets.shape[0] - 1
                                        : ANY;
    case BK_OP_PERMUTE:
      return ((const bk_permute_args *)a)->x.shape[0] * ((const bk_permute_args *)a)->k;
    case BK_OP_UNPERMUTE: return ((const bk_unpermute_args *)a)->x.shape[0];
    case BK_OP_UNPERMUTE_BWD: return ((const bk_unpermute_bwd_args *)a)->x.shape[0];
    case BK_OP_ATTENTION:
      return ((const bk_attention_args *)a)->k.shape[1] -
             ((const bk_attention_args *)a)->q.shape[1] + 1;
    case BK_OP_ROPE:
    case BK_OP_CACHE_WRITE: return (int64_t)1 << 24;
    case BK_OP_COPY:
    case BK_OP_BALANCE: return ANY;
    default: return 0;
  }
}

static bk_status check_places(const case_file *c, const case_operand *o) {
  const bk_tensor *t = bk_op_field_get(c->args, o->field);
  int64_t limit = limit_of(c, o->field->name);
  bool ignored = c->desc->op == BK_OP_CROSS_ENTROPY,
       rising = strcmp(o->field->name, "offsets") == 0;
  if (t->dtype != BK_I32 || o->field->role == BK_OUT || limit == ANY) return BK_OK;
  for (int64_t i = 0; i < o->count; i++) {
    double v = o->values[i];
    if (v >= (double)limit || (v < 0 && !ignored) ||
        (rising && (i ? v < o->values[i - 1] : v != 0)))
      return refuse(c, o->field->name, "a number points past what it chooses from");
  }
  return BK_OK;
}

/* ---- the case ---- */

/* The owner comes first, is in no other's memory, and has the same elements. They are no integers:
 * what is written would be read as a place that nobody has looked at. */
static bk_status read_place(case_file *c, int i) {
  const char *name = c->operands[i].field->name, *other = said(c, "same.", name);
  const bk_tensor *t = bk_op_field_get(c->args, c->operands[i].field);
  for (int j = 0; other && j < i; j++) {
    const bk_tensor *o = bk_op_field_get(c->args, c->operands[j].field);
    if (strcmp(c->operands[j].field->name, other) == 0 && c->operands[j].same == j &&
        bk_dtype_is_float(o->dtype) && o->dtype == t->dtype && o->offset == t->offset &&
        bk_tensor_count(o) == bk_tensor_count(t) && bk_tensor_span(o) == bk_tensor_span(t))
      c->operands[i].same = j;
  }
  if (!other || c->operands[i].same < i) return BK_OK;
  return refuse(c, name, "it cannot be in the same memory as what is named");
}

bk_status case_file_read(bk_context *ctx, const char *path, case_file *c) {
  c->ctx = ctx;
  c->path = path;
  BK_TRY(bk_st_open(ctx, path, &c->reader));
  BK_TRY(read_op(c));
  for (const bk_op_param *p = c->desc->params; p->type != BK_OP_PARAM_END; p++)
    BK_TRY(read_param(c, p));
  for (int i = 0; i < c->desc->n_fields; i++) BK_TRY(read_operand(c, &c->desc->fields[i]));
  if (c->taken != bk_st_count(c->reader))
    return refuse(c, c->desc->name, "the file has tensors that are no operands of the op");
  BK_TRY(bk_op_check(c->ctx, c->desc->op, c->args));
  for (int i = 0; i < c->n; i++) BK_TRY(check_places(c, &c->operands[i]));
  for (int i = 0; i < c->n; i++) BK_TRY(read_place(c, i));
  c->stage = said(c, "stage", "");
  return BK_OK;
}

void case_file_free(case_file *c) {
  for (int i = 0; i < c->n; i++) bk_free(c->ctx, c->operands[i].values);
  bk_st_close(c->reader);
}

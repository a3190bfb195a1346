/* A case from a file that `birkhoff verify --bisect` wrote (models/bisect_case.c; doc/testing.md
 * has the format). The file is not trusted: what passes the checks here and those of the op makes
 * no kernel read or write outside of its operands. */
#include "io/safetensors.h"
#include "tests/ops/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES ((size_t)1 << 32)

typedef struct operand {
  const bk_op_field *field;
  double *values;
  int64_t count;
} operand;

typedef struct case_file {
  bk_context *ctx;
  const char *path;
  bk_st_reader *reader;
  const bk_op_desc *desc;
  operand operands[BK_OP_MAX_FIELDS];
  int n;
  fill fills[BK_OP_MAX_FIELDS + 1];
  int taken; /* tensors of the file */
  size_t bytes;
  _Alignas(16) char args[BK_OP_MAX_ARGS];
} case_file;

static case_file *current; /* that give_values reads */

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
  return span <= (int64_t)(MOST_BYTES / 8) ? BK_OK : refuse(c, name, "too large");
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
  if (text && (!bk_parse_int64(text, &offset) || offset < 0 || offset >= HARNESS_GUARD ||
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
  operand *o = &c->operands[c->n];
  if (!in && !out) return f->optional ? BK_OK : refuse(c, f->name, "the operand is missing");
  if (f->role == BK_INOUT && (!in || !out || in->dtype != out->dtype || in->ndim != out->ndim ||
                              memcmp(in->shape, out->shape, sizeof in->shape) != 0))
    return refuse(c, f->name, "it must be there before and after, alike");
  BK_TRY(describe_tensor(c, in ? in : out, f, t));
  *o = (operand){.field = f, .count = bk_tensor_count(t)};
  c->n++;
  if (!in) return BK_OK;
  o->values = bk_alloc_array(c->ctx, (size_t)o->count, sizeof *o->values);
  if (!o->values) return BK_ERR_MEMORY;
  return bk_st_read_f64(c->reader, in, 0, o->count, o->values);
}

/* ---- numbers that are places ---- */

/* Those of this input lie below it; -1: any number will do. Of an op that is not here none does. */
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
      return strcmp(name, "index") == 0 ? ((const bk_moe_index_args *)a)->offsets.shape[0] - 1 : -1;
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
    case BK_OP_BALANCE: return -1;
    default: return 0;
  }
}

static bk_status check_places(const case_file *c, const operand *o) {
  const bk_tensor *t = bk_op_field_get(c->args, o->field);
  int64_t limit = limit_of(c, o->field->name);
  bool ignored = c->desc->op == BK_OP_CROSS_ENTROPY,
       rising = strcmp(o->field->name, "offsets") == 0;
  if (t->dtype != BK_I32 || o->field->role == BK_OUT || limit < 0) return BK_OK;
  for (int64_t i = 0; i < o->count; i++) {
    double v = o->values[i];
    if (v >= (double)limit || (v < 0 && !ignored) ||
        (rising && (i ? v < o->values[i - 1] : v != 0)))
      return refuse(c, o->field->name, "a number points past what it chooses from");
  }
  return BK_OK;
}

/* ---- the case ---- */

static void give_values(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream,
                        double *values) {
  (void)t, (void)seed, (void)stream;
  for (int i = 0; i < current->n; i++) {
    const operand *o = &current->operands[i];
    if (strcmp(o->field->name, f->field) == 0 && o->values)
      memcpy(values, o->values, (size_t)o->count * sizeof *values);
  }
}

static bk_status read_fill(const case_file *c, int i, fill *f) {
  const char *other = said(c, "same.", c->operands[i].field->name);
  const bk_tensor *t = bk_op_field_get(c->args, c->operands[i].field);
  *f = (fill){.field = c->operands[i].field->name,
              .kind = c->operands[i].field->role == BK_OUT ? FILL_POISON : FILL_CALL,
              .fn = give_values};
  if (!other) return BK_OK;
  for (int j = 0; j < i; j++) {
    const bk_tensor *o = bk_op_field_get(c->args, c->operands[j].field);
    if (strcmp(c->operands[j].field->name, other) != 0) continue;
    if (c->fills[j].kind == FILL_ALIAS || o->dtype != t->dtype ||
        bk_tensor_count(o) != bk_tensor_count(t) || bk_tensor_span(o) != bk_tensor_span(t))
      break;
    f->kind = FILL_ALIAS;
    f->other = c->operands[j].field->name;
    return BK_OK;
  }
  return refuse(c, f->field, "it cannot be in the same memory as what is named");
}

static bk_status read_case(case_file *c) {
  BK_TRY(bk_st_open(c->ctx, c->path, &c->reader));
  BK_TRY(read_op(c));
  for (const bk_op_param *p = c->desc->params; p->type != BK_OP_PARAM_END; p++)
    BK_TRY(read_param(c, p));
  for (int i = 0; i < c->desc->n_fields; i++) BK_TRY(read_operand(c, &c->desc->fields[i]));
  if (c->taken != bk_st_count(c->reader))
    return refuse(c, c->desc->name, "the file has tensors that are no operands of the op");
  BK_TRY(bk_op_check(c->ctx, c->desc->op, c->args));
  for (int i = 0; i < c->n; i++) BK_TRY(check_places(c, &c->operands[i]));
  for (int i = 0; i < c->n; i++) BK_TRY(read_fill(c, i, &c->fills[i]));
  c->fills[c->n] = (fill)FILL_END;
  return BK_OK;
}

static void run_case(harness *h, const case_file *c) {
  const char *stage = said(c, "stage", "");
  h->quick = h->tiny = false;
  h->st = BK_F32;
  for (int i = 0; i < c->n; i++)
    if (bk_op_field_get(c->args, c->operands[i].field)->dtype == BK_BF16) h->st = BK_BF16;
  printf("%s: %s, of %s\n", c->path, c->desc->name, stage ? stage : "?");
  harness_case(h, c->desc->op, c->args, c->fills, NULL, "of a file");
}

bool harness_case_file(harness *h, const char *path) {
  case_file *c = current = calloc(1, sizeof *c);
  if (!c) return false;
  c->ctx = h->ctx;
  c->path = path;
  bk_status status = read_case(c);
  if (status == BK_OK) run_case(h, c);
  for (int i = 0; i < c->n; i++) bk_free(c->ctx, c->operands[i].values);
  bk_st_close(c->reader);
  free(c);
  return status == BK_OK;
}

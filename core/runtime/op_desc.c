/* Questions that generic code asks about the args of any op, answered from its descriptor: its
 * operands by name, its cost, its kind and the key of its plan. */
#include "runtime/op_priv.h"

#include <stdio.h>
#include <string.h>

const char *bk_op_name(bk_op op) {
  const bk_op_desc *desc = bk_op_describe(op);
  return desc ? desc->name : "none";
}

const bk_op_field *bk_op_field_find(bk_op op, const char *name) {
  const bk_op_desc *desc = bk_op_describe(op);
  for (int i = 0; desc && i < desc->n_fields; i++) {
    if (strcmp(desc->fields[i].name, name) == 0) return &desc->fields[i];
  }
  return NULL;
}

bk_dtype bk_op_leading_dtype(bk_op op, const void *args) {
  return bk_op_field_get(args, &bk_op_describe(op)->fields[0])->dtype;
}

/* Ends early where the text is full, as messages about many operands may be. */
char *bk_op_describe_args(bk_op op, const void *args, char *text, size_t size) {
  const bk_op_desc *desc = bk_op_describe(op);
  size_t used = 0;
  text[0] = '\0';
  for (int i = 0; i < desc->n_fields && used + 1 < size; i++) {
    const bk_tensor *t = bk_op_field_get(args, &desc->fields[i]);
    char one[160];
    if (!bk_tensor_present(t)) continue;
    int n = snprintf(text + used, size - used, "%s%s %s", used ? ", " : "", desc->fields[i].name,
                     bk_tensor_describe(t, one, sizeof one));
    used += n > 0 ? (size_t)n : 0;
  }
  return text;
}

/* Every operand is counted as moved once, INOUT twice; the op's row says what to take off that
 * sum, for example what is not read when nothing is accumulated. */
void bk_op_cost(bk_op op, const void *args, double *flops, double *bytes) {
  const bk_op_desc *desc = bk_op_describe(op);
  double less;
  *flops = desc->flops(args, &less);
  *bytes = -less;
  for (int i = 0; i < desc->n_fields; i++) {
    double one = (double)bk_tensor_bytes(bk_op_field_get(args, &desc->fields[i]));
    *bytes += desc->fields[i].role == BK_INOUT ? 2 * one : one;
  }
}

bk_hc_kind bk_op_kind(bk_op op, const void *args) {
  bk_hc_kind kind = BK_HC_PLAIN;
  for (const bk_op_param *p = bk_op_describe(op)->params; p->type != BK_OP_PARAM_END; p++)
    if (p->type == BK_OP_PARAM_KIND) memcpy(&kind, (const char *)args + p->offset, sizeof kind);
  return kind;
}

/* The first operand that begins where this one does. It tells a key which operands share memory
 * without telling where that is. */
static int first_at_place(const bk_op_desc *d, const void *args, int field) {
  const bk_tensor *t = bk_op_field_get(args, &d->fields[field]);
  for (int i = 0; i < field; i++) {
    const bk_tensor *other = bk_op_field_get(args, &d->fields[i]);
    bool same = other->buffer == t->buffer && other->offset == t->offset;
    if (same && bk_tensor_present(other)) return i;
  }
  return field;
}

/* A plan may depend on how an operand is aligned, but not on where it lies; two operands in one
 * place may take another path through a kernel than two apart (in-place forms), so that the key
 * says which operand each one coincides with. */
void bk_op_plan_key(bk_op op, const void *args, void *key) {
  const bk_op_desc *d = bk_op_describe(op);
  memset(key, 0, d->args_size);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = bk_op_field_get(args, &d->fields[i]);
    if (!bk_tensor_present(t)) continue;
    bk_tensor *k = bk_op_field_ref(key, &d->fields[i]);
    *k = *t;
    k->buffer = NULL;
    k->offset = t->offset % BK_ARENA_ALIGN + (size_t)first_at_place(d, args, i) * BK_ARENA_ALIGN;
  }
  for (const bk_op_param *p = d->params; p->type != BK_OP_PARAM_END; p++)
    memcpy((char *)key + p->offset, (const char *)args + p->offset, p->size);
}

/* The case of a file in the harness. */
#include "tests/ops/case_file.h"
#include "tests/ops/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const case_file *current; /* that give_values reads */

static void give_values(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream,
                        double *values) {
  (void)t, (void)seed, (void)stream;
  for (int i = 0; i < current->n; i++) {
    const case_operand *o = &current->operands[i];
    if (strcmp(o->field->name, f->field) == 0)
      memcpy(values, o->values, (size_t)o->count * sizeof *values);
  }
}

static void run_case(harness *h, const case_file *c) {
  fill fills[BK_OP_MAX_FIELDS + 1] = {FILL_END};
  current = c;
  h->quick = h->tiny = false;
  h->st = BK_F32;
  for (int i = 0; i < c->n; i++) {
    const case_operand *o = &c->operands[i];
    fills[i] = (fill){.field = o->field->name,
                      .kind = o->same < i ? FILL_ALIAS
                              : o->values ? FILL_CALL
                                          : FILL_POISON,
                      .other = c->operands[o->same].field->name,
                      .fn = give_values};
    if (bk_op_field_get(c->args, o->field)->dtype == BK_BF16) h->st = BK_BF16;
  }
  fills[c->n] = (fill)FILL_END;
  printf("%s: %s, of %s\n", c->path, c->desc->name, c->stage ? c->stage : "?");
  harness_case(h, c->desc->op, c->args, fills, NULL, "of a file");
}

bool harness_case_file(harness *h, const char *path) {
  case_file *c = calloc(1, sizeof *c);
  if (!c) return false;
  bk_status status = case_file_read(h->ctx, path, c);
  if (status == BK_OK) run_case(h, c);
  case_file_free(c);
  free(c);
  return status == BK_OK;
}

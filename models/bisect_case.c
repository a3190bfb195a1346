/* Writing the case of a call: a safetensors file that the op harness runs again. See bisect.h.
 *
 * Metadata says what the call was: op, stage, parameters ("param.NAME"), and of operands what a
 * kernel may depend on beside their values ("same.", "offset.", "stride."). Tensors are the inputs
 * "in.NAME" as the device had them, and the reference's outputs "out.NAME". What is both has
 * both. */
#include "models/bisect.h"

#include <stdio.h>
#include <string.h>

#include "io/json_out.h"
#include "io/safetensors.h"

/* The key of the member is kind + name. */
static bk_status say(bk_st_writer *w, const char *kind, const char *name, const char *value) {
  char key[64];
  snprintf(key, sizeof key, "%s%s", kind, name);
  return bk_st_add_metadata(w, key, value);
}

/* A double is written as the shortest text that reads back to the same value. */
static bk_status write_param(bk_st_writer *w, const bk_op_param *p, const void *args) {
  const char *at = (const char *)args + p->offset;
  char text[BK_DOUBLE_TEXT];
  double real = 0;
  int number = 0;
  if (p->type == BK_OP_PARAM_REAL || p->type == BK_OP_PARAM_NOT_NEGATIVE) {
    memcpy(&real, at, sizeof real);
    bk_double_text(real, text);
  } else {
    if (p->type == BK_OP_PARAM_FLAG) number = *(const bool *)at;
    else memcpy(&number, at, sizeof number); /* a kind is one too */
    snprintf(text, sizeof text, "%d", number);
  }
  return say(w, "param.", p->name, text);
}

/* Where the operand lies, as far as a kernel may depend on it. */
static bk_status write_layout(bk_st_writer *w, const bk_bisect_operand *operands, int i) {
  const bk_bisect_operand *o = &operands[i];
  const char *name = o->field->name;
  char text[96] = "";
  size_t used = 0;
  if (o->same < i) BK_TRY(say(w, "same.", name, operands[o->same].field->name));
  if (o->here->offset % 256) {
    snprintf(text, sizeof text, "%d", (int)(o->here->offset % 256));
    BK_TRY(say(w, "offset.", name, text));
  }
  if (bk_tensor_contiguous(o->here)) return BK_OK;
  for (int d = 0; d < o->here->ndim; d++)
    used += (size_t)snprintf(text + used, sizeof text - used, "%s%lld", d ? "," : "",
                             (long long)o->here->stride[d]);
  return say(w, "stride.", name, text);
}

/* The tensor has the dtype in which the device stores it. */
static bk_status declare(bk_st_writer *w, const char *kind, const bk_bisect_operand *o) {
  char name[32];
  snprintf(name, sizeof name, "%s%s", kind, o->field->name);
  return bk_st_add(w, name, o->here->dtype, o->here->ndim, o->here->shape);
}

/* The order of the declarations is that in which bk_case_write writes the values. */
static bk_status write_header(bk_st_writer *w, const char *stage, bk_op op, const void *args,
                              const bk_bisect_operand *operands, int count) {
  const bk_op_desc *desc = bk_op_describe(op);
  BK_TRY(say(w, "birkhoff_case", "", "1"));
  BK_TRY(say(w, "op", "", desc->name));
  BK_TRY(say(w, "stage", "", stage));
  for (const bk_op_param *p = desc->params; p->type != BK_OP_PARAM_END; p++)
    BK_TRY(write_param(w, p, args));
  for (int i = 0; i < count; i++) BK_TRY(write_layout(w, operands, i));
  for (int i = 0; i < count; i++) {
    if (operands[i].field->role != BK_OUT) BK_TRY(declare(w, "in.", &operands[i]));
    if (operands[i].field->role != BK_IN) BK_TRY(declare(w, "out.", &operands[i]));
  }
  return BK_OK;
}

/* Values that came from the dtype go back into it without rounding. */
static bk_status write_values(bk_context *ctx, bk_st_writer *w, bk_dtype dtype,
                              const double *values, int64_t count) {
  size_t size = bk_dtype_size(dtype);
  char *stored = bk_alloc_array(ctx, (size_t)count, size);
  if (!stored) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < count; i++) bk_dtype_store(dtype, stored + (size_t)i * size, values[i]);
  bk_status status = bk_st_write(w, stored, (size_t)count * size);
  bk_free(ctx, stored);
  return status;
}

bk_status bk_case_write(bk_context *ctx, const char *path, const char *stage, bk_op op,
                        const void *args, const bk_bisect_operand *operands, int count) {
  bk_st_writer *w = NULL;
  BK_TRY(bk_st_create(ctx, path, &w));
  bk_status status = write_header(w, stage, op, args, operands, count);
  for (int i = 0; i < count && status == BK_OK; i++) {
    const bk_bisect_operand *o = &operands[i];
    if (o->field->role != BK_OUT)
      status = write_values(ctx, w, o->here->dtype, o->before, o->count);
    if (status == BK_OK && o->field->role != BK_IN)
      status = write_values(ctx, w, o->here->dtype, o->after, o->count);
  }
  if (status == BK_OK) status = bk_st_finish(w);
  if (status != BK_OK) bk_st_abandon(w);
  return status;
}

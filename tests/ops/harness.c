/* Running and judging one case; see harness.h. */
#include "ops/plan.h"
#include "tests/ops/harness.h"
#include "tests/ops/perf.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ARGS 8192
#define GUARD_BYTE 0xa5

/* One operand of the case being run. */
typedef struct operand {
  const bk_op_field *field;
  fill how;
  bk_tensor tensor; /* as the device has it; the offset is within the image */
  bk_tensor dense;  /* as ref has it: fp64 or i32, contiguous */
  int64_t count;
  double *values;     /* what goes in, rounded to tensor.dtype; NULL for an alias */
  double *want;       /* outputs: ref's result */
  double sensitivity; /* see measure_sensitivity; 0 until measured */
  int alias;          /* operand whose memory this is, or -1 */
} operand;

typedef struct run {
  harness *h;
  bk_op op;
  const bk_op_desc *desc;
  char name[256];
  operand operands[BK_OP_MAX_FIELDS];
  int n_operands;
  size_t bytes, ref_bytes;
  uint8_t *image, *mask; /* what the device gets; 1 where an output element lies */
  _Alignas(16) char ref_args[MAX_ARGS];
  _Alignas(16) char device_args[MAX_ARGS];
  bool failed;
} run;

static void *must_alloc(size_t count, size_t size) {
  void *p = calloc(count ? count : 1, size);
  if (!p) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  return p;
}

static void complain(run *r, const char *format, ...) BK_PRINTF(2, 3);
static void complain(run *r, const char *format, ...) {
  va_list list;
  if (!r->failed) printf("FAIL %s --seed %llu\n", r->name, (unsigned long long)r->h->seed);
  r->failed = true;
  printf("     ");
  va_start(list, format);
  vprintf(format, list);
  va_end(list);
  printf("\n");
}

/* ---- elements ---- */

static void store(void *at, bk_dtype dtype, double v) {
  float f = (float)v;
  uint16_t half = bk_f32_to_bf16(f);
  int32_t i = isnan(v) ? -1 : (int32_t)v;
  switch (dtype) {
    case BK_F32: memcpy(at, &f, sizeof f); break;
    case BK_BF16: memcpy(at, &half, sizeof half); break;
    case BK_F64: memcpy(at, &v, sizeof v); break;
    default: memcpy(at, &i, sizeof i); break;
  }
}

static double load(const void *at, bk_dtype dtype) {
  float f;
  uint16_t half;
  double d;
  int32_t i;
  switch (dtype) {
    case BK_F32: return memcpy(&f, at, sizeof f), (double)f;
    case BK_BF16: return memcpy(&half, at, sizeof half), (double)bk_bf16_to_f32(half);
    case BK_F64: return memcpy(&d, at, sizeof d), d;
    default: return memcpy(&i, at, sizeof i), (double)i;
  }
}

/* Bytes from the tensor's first element to element `index` in row-major order. */
static size_t element_at(const bk_tensor *t, int64_t index) {
  int64_t at = 0;
  for (int d = t->ndim - 1; d >= 0; d--) {
    at += index % t->shape[d] * t->stride[d];
    index /= t->shape[d];
  }
  return (size_t)at * bk_dtype_size(t->dtype);
}

/* ---- making the case ---- */

static fill default_fill(const bk_op_field *field) {
  return (fill){field->name, field->role == BK_OUT ? FILL_POISON : FILL_NORMAL, 0, 1, NULL, NULL};
}

static int slot_find(const run *r, const char *name) {
  for (int i = 0; i < r->n_operands; i++) {
    if (strcmp(r->operands[i].field->name, name) == 0) return i;
  }
  fprintf(stderr, "%s: no field %s in this case\n", r->name, name);
  exit(1);
}

static void slots_make(run *r, const void *args, const fill *fills) {
  for (int i = 0; i < r->desc->n_fields; i++) {
    const bk_op_field *field = &r->desc->fields[i];
    const bk_tensor *t = bk_op_field_get(args, field);
    if (!bk_tensor_present(t)) continue;
    operand *s = &r->operands[r->n_operands++];
    *s = (operand){.field = field,
                   .how = default_fill(field),
                   .tensor = *t,
                   .count = bk_tensor_count(t),
                   .alias = -1};
    for (const fill *f = fills; f && f->field; f++) {
      if (strcmp(f->field, field->name) == 0) s->how = *f;
    }
    s->dense = bk_tensor_make(bk_dtype_is_float(t->dtype) ? BK_F64 : t->dtype, t->ndim, t->shape);
  }
  for (const fill *f = fills; f && f->field; f++) slot_find(r, f->field);
}

/* Aliases may point to later fields, so places are given first to those that have memory of
 * their own. */
static void slots_place(run *r, bool odd_offsets) {
  r->bytes = HARNESS_GUARD;
  for (int i = 0; i < r->n_operands; i++) {
    operand *s = &r->operands[i];
    if (s->how.kind == FILL_ALIAS || s->how.kind == FILL_INPLACE)
      s->alias = slot_find(r, s->how.other);
    if (s->alias >= 0) continue;
    s->tensor.offset = r->bytes + s->tensor.offset % HARNESS_GUARD +
                       (odd_offsets ? bk_dtype_size(s->tensor.dtype) : 0);
    r->bytes = BK_ALIGN_UP(s->tensor.offset + bk_tensor_span(&s->tensor), (size_t)HARNESS_GUARD) +
               HARNESS_GUARD;
  }
  for (int i = 0; i < r->n_operands; i++) {
    operand *s = &r->operands[i];
    if (s->alias >= 0) s->tensor.offset = r->operands[s->alias].tensor.offset;
    if (s->how.kind == FILL_ALIAS) continue;
    s->dense.offset = r->ref_bytes;
    r->ref_bytes += BK_ALIGN_UP(bk_tensor_bytes(&s->dense), (size_t)64);
  }
  for (int i = 0; i < r->n_operands; i++) {
    if (r->operands[i].how.kind == FILL_ALIAS)
      r->operands[i].dense.offset = r->operands[r->operands[i].alias].dense.offset;
  }
}

/* Elements of a broadcast tensor (stride 0) share memory, and so their value: that of the last. */
static void share_values(operand *s) {
  bool broadcast = false;
  for (int d = 0; d < s->tensor.ndim; d++)
    broadcast |= s->tensor.stride[d] == 0 && s->tensor.shape[d] > 1;
  if (!broadcast) return;
  size_t size = bk_dtype_size(s->tensor.dtype);
  double *memory = must_alloc(bk_tensor_span(&s->tensor) / size, sizeof *memory);
  for (int64_t j = 0; j < s->count; j++) memory[element_at(&s->tensor, j) / size] = s->values[j];
  for (int64_t j = 0; j < s->count; j++) s->values[j] = memory[element_at(&s->tensor, j) / size];
  free(memory);
}

static void slots_fill(run *r) {
  for (int i = 0; i < r->n_operands; i++) {
    operand *s = &r->operands[i];
    if (s->how.kind == FILL_ALIAS) continue;
    uint64_t stream =
        bk_hash64(r->name, strlen(r->name)) ^ bk_hash64(s->field->name, strlen(s->field->name));
    s->values = must_alloc((size_t)s->count, sizeof *s->values);
    harness_fill(&s->how, &s->tensor, r->h->seed, stream, s->values);
    for (int64_t j = 0; j < s->count; j++)
      s->values[j] = bk_round_to(s->tensor.dtype, s->values[j]);
    share_values(s);
  }
}

/* ---- ref's side ---- */

static void ref_write(const operand *s) {
  for (int64_t i = 0; i < s->count; i++) {
    store((char *)bk_tensor_data(&s->dense) + (size_t)i * bk_dtype_size(s->dense.dtype),
          s->dense.dtype, s->values[i]);
  }
}

static double ref_value(const operand *s, int64_t i) {
  return load((const char *)bk_tensor_data(&s->dense) + (size_t)i * bk_dtype_size(s->dense.dtype),
              s->dense.dtype);
}

static void ref_take(operand *s) {
  s->want = must_alloc((size_t)s->count, sizeof *s->want);
  for (int64_t i = 0; i < s->count; i++) s->want[i] = ref_value(s, i);
}

/* Fills ref's memory, completes derived inputs (rounded to their dtype) and runs the op. */
static bk_status ref_run(run *r, const void *args, derive_fn derive, bk_buffer *buffer) {
  memcpy(r->ref_args, args, r->desc->args_size);
  for (int i = 0; i < r->n_operands; i++) {
    operand *s = &r->operands[i];
    s->dense.buffer = buffer;
    *bk_op_field_ref(r->ref_args, s->field) = s->dense;
    if (s->values) ref_write(s);
  }
  if (derive) {
    BK_TRY(derive(r->h, r->ref_args));
    for (int i = 0; i < r->n_operands; i++) {
      operand *s = &r->operands[i];
      if (!s->values || s->field->role == BK_OUT) continue;
      for (int64_t j = 0; j < s->count; j++)
        s->values[j] = bk_round_to(s->tensor.dtype, ref_value(s, j));
      ref_write(s);
    }
  }
  BK_TRY(bk_op_run(r->h->ref_stream, r->op, r->ref_args));
  for (int i = 0; i < r->n_operands; i++) {
    if (r->operands[i].field->role != BK_IN) ref_take(&r->operands[i]);
  }
  return BK_OK;
}

static void ref_write_moved(const operand *s, double unit, uint64_t stream) {
  if (!s->values || s->field->role == BK_OUT || !bk_dtype_is_float(s->tensor.dtype)) {
    if (s->values) ref_write(s);
    return;
  }
  for (int64_t i = 0; i < s->count; i++) {
    double moved = bk_judge_move(s->values[i], unit, stream, (uint64_t)i);
    store((char *)bk_tensor_data(&s->dense) + (size_t)i * sizeof moved, BK_F64, moved);
  }
}

static double moved_by(const operand *s) {
  if (s->dense.dtype != BK_F64) return 0;
  return bk_judge_distance(bk_tensor_data(&s->dense), s->want, s->count);
}

/* How far each output moves, as a normalised mean squared error, when all inputs move by about
 * one rounding: the most of four tries. A sum that nearly cancels cannot be had more exactly
 * than that. */
static void measure_sensitivity(run *r) {
  double unit = bk_op_rounding(r->h->device, r->op, r->device_args);
  for (int turn = 0; turn < BK_JUDGE_TRIES; turn++) {
    for (int i = 0; i < r->n_operands; i++)
      ref_write_moved(&r->operands[i], unit, (uint64_t)(100 * turn + i));
    if (bk_op_run(r->h->ref_stream, r->op, r->ref_args) != BK_OK) return;
    for (int i = 0; i < r->n_operands; i++) {
      if (r->operands[i].want)
        r->operands[i].sensitivity = fmax(r->operands[i].sensitivity, moved_by(&r->operands[i]));
    }
  }
}

/* ---- the device's side ---- */

static void image_make(run *r) {
  r->image = must_alloc(r->bytes, 1);
  r->mask = must_alloc(r->bytes, 1);
  memset(r->image, GUARD_BYTE, r->bytes);
  for (int i = 0; i < r->n_operands; i++) {
    const operand *s = &r->operands[i];
    size_t size = bk_dtype_size(s->tensor.dtype);
    for (int64_t j = 0; j < s->count; j++) {
      size_t at = s->tensor.offset + element_at(&s->tensor, j);
      if (s->values && s->alias < 0) store(r->image + at, s->tensor.dtype, s->values[j]);
      if (s->field->role != BK_IN) memset(r->mask + at, 1, size);
    }
  }
}

/* device_args: the case's operands in `buffer`. */
static void args_place(run *r, const void *args, bk_buffer *buffer) {
  memcpy(r->device_args, args, r->desc->args_size);
  for (int i = 0; i < r->n_operands; i++) {
    bk_tensor *t = bk_op_field_ref(r->device_args, r->operands[i].field);
    *t = r->operands[i].tensor;
    t->buffer = buffer;
  }
}

static void record_numbers(FILE *file, const int64_t *numbers, int count) {
  fprintf(file, ",[");
  for (int i = 0; i < count; i++) fprintf(file, "%s%lld", i ? "," : "", (long long)numbers[i]);
  fprintf(file, "]");
}

/* name, role, address, bytes, type, shape, strides in elements */
static void record_operand(FILE *file, const operand *s, const bk_buffer *buffer) {
  static const char *const roles[] = {[BK_IN] = "in", [BK_OUT] = "out", [BK_INOUT] = "inout"};
  const bk_tensor *t = &s->tensor;
  fprintf(file, "[\"%s\",\"%s\",%llu,%llu,\"%s\"", s->field->name, roles[s->field->role],
          (unsigned long long)((uintptr_t)buffer->handle + t->offset),
          (unsigned long long)bk_tensor_span(t), bk_dtype_name(t->dtype));
  record_numbers(file, t->shape, t->ndim);
  record_numbers(file, t->stride, t->ndim);
  fprintf(file, "]");
}

/* BK_CUDA_RECORD: which operands the launches that follow have (tests/cuda-on-host/record.cpp
 * writes to the same file). */
static void record_case(run *r, const bk_buffer *buffer) {
  const char *path = getenv("BK_CUDA_RECORD");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (path && !file) complain(r, "BK_CUDA_RECORD cannot be written");
  if (!file) return;
  fprintf(file, "{\"case\":\"%s\",\"buffer\":%llu,\"operands\":[", r->name,
          (unsigned long long)(uintptr_t)buffer->handle);
  for (int i = 0; i < r->n_operands; i++) {
    if (i) fprintf(file, ",");
    record_operand(file, &r->operands[i], buffer);
  }
  fprintf(file, "]}\n");
  fclose(file);
}

/* Runs the op on the image; `result` is what the memory then holds. NULL: times it instead. */
static bk_status device_run(run *r, bk_stream *stream, const void *args, uint8_t *result) {
  bk_buffer *buffer = NULL;
  BK_TRY(bk_buffer_alloc(stream->device, r->bytes, BK_MEM_WORKSPACE, &buffer));
  bk_place place = {buffer, 0};
  args_place(r, args, buffer);
  record_case(r, buffer);
  bk_status status = stream->ops->upload(stream, place, r->image, r->bytes);
  if (status == BK_OK && !result) status = perf_case(r->h, r->name, r->op, r->device_args);
  if (status == BK_OK && result) status = bk_op_run(stream, r->op, r->device_args);
  if (status == BK_OK && result) status = stream->ops->download(stream, result, place, r->bytes);
  /* also where the op was refused: the upload may be under way */
  bk_status synced = stream->ops->sync(stream);
  bk_buffer_free(buffer);
  return status == BK_OK ? synced : status;
}

/* ---- judging ---- */

static const char *nearest_field(const run *r, size_t at) {
  const operand *best = &r->operands[0];
  for (int i = 0; i < r->n_operands; i++) {
    const operand *s = &r->operands[i];
    if (s->tensor.offset <= at &&
        (best->tensor.offset > at || s->tensor.offset > best->tensor.offset))
      best = s;
  }
  return best->field->name;
}

static void judge_bytes(run *r, const uint8_t *result) {
  for (size_t i = 0; i < r->bytes; i++) {
    if (r->mask[i] || result[i] == r->image[i]) continue;
    complain(r, "wrote where it must not: byte %zu, in or behind %s", i, nearest_field(r, i));
    return;
  }
}

static double result_value(const operand *s, const uint8_t *result, int64_t i) {
  return load(result + s->tensor.offset + element_at(&s->tensor, i), s->tensor.dtype);
}

static void complain_of(run *r, const operand *s, double got, bool exact, const bk_judgement *j) {
  if (j->special) {
    complain(r, "%s[%lld] is %.9g, should be %s%.9g", s->field->name, (long long)j->element, got,
             exact ? "exactly " : "", s->want[j->element]);
    return;
  }
  if (!(j->nmse <= j->bound))
    complain(r, "%s: nmse %.3e above %.0e", s->field->name, j->nmse, j->bound);
  if (!(j->error <= j->most)) {
    complain(r, "%s[%lld] is off by %.3e, above %.3e (largest value %.3e)", s->field->name,
             (long long)j->element, j->error, j->most, j->largest);
  }
}

static void note_judgement(run *r, const operand *s, const bk_judgement *j) {
  const bool half = r->h->st == BK_BF16;
  r->h->worst[r->op][half] = fmax(r->h->worst[r->op][half], j->nmse / j->bound);
  r->h->nmse[r->op][half] = fmax(r->h->nmse[r->op][half], j->nmse);
  if (r->h->verbose) {
    printf("     %-14s nmse %.2e bound %.0e max %.2e of %.2e\n", s->field->name, j->nmse, j->bound,
           j->error, j->largest);
  }
}

/* False when the output is past a bound that may have to be reconsidered; says what is wrong if
 * `final`. */
static bool judge_operand(run *r, const operand *s, const uint8_t *result, bool final) {
  double bound = bk_op_bound(r->h->device, r->op, s->field, r->device_args);
  bool exact = bound == 0 || !bk_dtype_is_float(s->tensor.dtype);
  double *got = must_alloc((size_t)s->count, sizeof *got);
  bk_judgement j;
  for (int64_t i = 0; i < s->count; i++) got[i] = result_value(s, result, i);
  bk_judge(s->tensor.dtype, got, s->want, s->count, bound, s->sensitivity, &j);
  bool settled = j.within || j.special || final;
  if (settled && !exact && !j.special) note_judgement(r, s, &j);
  if (settled && !j.within) complain_of(r, s, got[j.element], exact, &j);
  free(got);
  return settled;
}

static void judge(run *r, const uint8_t *result) {
  bool measured = false;
  judge_bytes(r, result);
  for (int i = 0; i < r->n_operands; i++) {
    const operand *s = &r->operands[i];
    if (s->field->role == BK_IN || judge_operand(r, s, result, measured)) continue;
    if (!measured) measure_sensitivity(r);
    measured = true;
    judge_operand(r, s, result, true);
  }
}

/* What of an op must have the same bits where it is composed; NULL: nothing. */
static const char *like_composed(const harness *h, bk_op op) {
  if (h->st != BK_F32) return NULL;
  return op == BK_OP_HC_POST_RES ? "out" : op == BK_OP_HC_PRE_NORM ? "y" : NULL;
}

/* Whether the field must have the same bits on the second device. */
static bool bits_matter(const run *r, const char *field) {
  return !r->h->like_composed || strcmp(field, like_composed(r->h, r->op)) == 0;
}

static void judge_bits(run *r, const uint8_t *a, const uint8_t *b) {
  for (size_t i = 0; i < r->bytes; i++) {
    if (a[i] == b[i] || !bits_matter(r, nearest_field(r, i))) continue;
    if (r->h->like_composed)
      complain(r, "bits differ from the composed op's in %s", nearest_field(r, i));
    else
      complain(r, "bits differ between %d and %d threads in %s", r->h->device->props.threads,
               r->h->second->props.threads, nearest_field(r, i));
    return;
  }
}

/* ---- the case ---- */

static void run_device(run *r, const void *args) {
  harness *h = r->h;
  uint8_t *result = must_alloc(r->bytes, 1), *other = NULL;
  bk_status status = device_run(r, h->stream, args, result);
  if (status == BK_OK && h->second) {
    other = must_alloc(r->bytes, 1);
    status = device_run(r, h->second_stream, args, other);
  }
  if (status != BK_OK) complain(r, "the device says: %s", bk_status_name(status));
  else judge(r, result);
  if (status == BK_OK && h->second) judge_bits(r, result, other);
  free(result);
  free(other);
}

/* Compares the device with ref. */
static void run_compared(run *r, const void *args, derive_fn derive) {
  bk_buffer *buffer = NULL;
  bk_status status = bk_buffer_alloc(r->h->ref, r->ref_bytes + 64, BK_MEM_WORKSPACE, &buffer);
  if (status == BK_OK) status = ref_run(r, args, derive, buffer);
  if (status != BK_OK) {
    complain(r, "ref says: %s", bk_status_name(status));
  } else {
    image_make(r);
    run_device(r, args);
  }
  bk_buffer_free(buffer);
}

static void run_timed(run *r, const void *args) {
  image_make(r);
  bk_status status = device_run(r, r->h->stream, args, NULL);
  if (status != BK_OK) complain(r, "the device says: %s", bk_status_name(status));
}

static void run_case(run *r, const void *args, const fill *fills, derive_fn derive) {
  harness *h = r->h;
  int log_lines = h->log_lines;
  slots_make(r, args, fills);
  slots_place(r, strstr(r->name, "strided") && h->device->props.host_memory);
  slots_fill(r);
  if (h->roof) run_timed(r, args);
  else run_compared(r, args, derive);
  if (h->log_lines != log_lines)
    complain(r, "%d lines of warnings or errors", h->log_lines - log_lines);
  for (int i = 0; i < r->n_operands; i++) {
    free(r->operands[i].values);
    free(r->operands[i].want);
  }
  free(r->image);
  free(r->mask);
}

/* What a quick run leaves out: all that moves or computes much; a tiny one: more. */
static bool too_much(const harness *h, bk_op op, const void *args) {
  double flops, bytes;
  if (h->large) return false;
  bk_op_cost(op, args, &flops, &bytes);
  return (h->quick && (flops > 2e5 || bytes > 4e4)) || (h->tiny && (flops > 2e4 || bytes > 1e4));
}

static void note_coverage(harness *h, bk_op op, const void *args) {
  const bk_op_desc *desc = bk_op_describe(op);
  h->seen[op] = true;
  for (int i = 0; i < desc->n_fields; i++) {
    if (bk_tensor_present(bk_op_field_get(args, &desc->fields[i]))) h->fields[op][i] = true;
  }
}

void harness_case(harness *h, bk_op op, const void *args, const fill *fills, derive_fn derive,
                  const char *name, ...) {
  run *r = must_alloc(1, sizeof *r);
  va_list list;
  note_coverage(h, op, args);
  r->h = h;
  r->op = op;
  r->desc = bk_op_describe(op);
  int used = snprintf(r->name, sizeof r->name, "%s:%s,", bk_op_name(op), bk_dtype_name(h->st));
  va_start(list, name);
  vsnprintf(r->name + used, sizeof r->name - (size_t)used, name, list);
  va_end(list);
  bool wanted = (!h->op_filter || strcmp(h->op_filter, bk_op_name(op)) == 0) &&
                (!h->case_filter || strstr(r->name, h->case_filter)) &&
                (!h->like_composed || like_composed(h, op));
  if (wanted && h->list) {
    printf("%s\n", r->name);
  } else if (wanted && too_much(h, op, args)) {
    h->left_out++;
  } else if (wanted) {
    if (h->verbose) printf("     %s\n", r->name);
    run_case(r, args, fills, derive);
    h->ran++;
    h->failed += r->failed;
  }
  free(r);
}

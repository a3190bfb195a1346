/* Roofs of a device and times of its ops. See birkhoff/bench.h; what each op is given:
 * bench_cases.c.
 *
 * A roof is a rate that no op can pass: the best flops of a square product, and the bytes that a
 * copy moves, by the size of the copy, since a small one stays in a cache. An op's share is the
 * least time that its flops and bytes need under these roofs, divided by the time that it took. */
#include <birkhoff/bench.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/bench_cases.h"

/* the most samples of one op; more than fit into the time that is given are not wanted */
#define MAX_SAMPLES 4096
/* rows of the smallest and the largest square product, and the seconds at which products stop
 * growing */
#define ROOF_GEMM_MIN 128
#define ROOF_GEMM_MAX 8192
#define ROOF_GEMM_SECONDS 0.02
/* A copy that takes so long is out of every cache: larger ones go on at its rate and are not
 * waited for. */
#define ROOF_COPY_SECONDS 0.25
#define PATTERN 65536        /* random values, repeated */
#define FIRST (16 * PATTERN) /* what the host writes of an operand */

typedef struct bench {
  bk_device *device;
  bk_context *ctx;
  bk_stream *stream;
  bk_memory *memory; /* of the op at hand */
  /* letters of the ops' shapes; N and V are 1 while only roofs are measured */
  bk_bench_sizes sizes;
  /* how long the samples of one op may take */
  double seconds;
  /* [PATTERN] normal deviates times 0.3 */
  double *pattern;
} bench;

/* These are seconds of one launch; the kernel's name is that of its row. */
typedef struct timing {
  double median, best;
  const char *kernel;
} timing;

/* ---- time of one op ---- */

/* On an accelerator a sample is a run of launches between two events, so that neither the
 * launch's way there nor the wait is in it; on a host, one launch by the clock. */
typedef struct gauge {
  bk_stream *stream;
  const bk_plan *plan;
  const void *args;
  bk_place workspace;
  bk_event *begin, *end; /* NULL on a host */
  int launches;          /* of one sample */
} gauge;

/* Gives the stream all launches of a sample without waiting in between. */
static bk_status launch(const gauge *g) {
  for (int i = 0; i < g->launches; i++)
    BK_TRY(bk_plan_launch(g->stream, g->plan, g->args, g->workspace));
  return BK_OK;
}

/* *seconds gets the time of one launch, on average over those of the sample. */
static bk_status sample(const gauge *g, double *seconds) {
  const bk_stream_ops *ops = g->stream->ops;
  double begin = g->begin ? 0 : bk_context_seconds(g->stream->device->ctx);
  if (g->begin) BK_TRY(ops->event_record(g->stream, g->begin));
  BK_TRY(launch(g));
  if (g->begin) BK_TRY(ops->event_record(g->stream, g->end));
  BK_TRY(ops->sync(g->stream));
  if (g->begin) BK_TRY(g->begin->ops->elapsed(g->begin, g->end, seconds));
  else *seconds = bk_context_seconds(g->stream->device->ctx) - begin;
  *seconds /= g->launches;
  return BK_OK;
}

/* Warms up, and makes a sample as long as an event can tell well: about a millisecond. The first
 * launch is not counted, since it may load code. A sample has at most 100 launches, so that a very
 * short one does not fill the stream's queue. */
static bk_status gauge_start(gauge *g) {
  double warm;
  g->launches = 1;
  BK_TRY(sample(g, &warm));
  if (!g->begin) return BK_OK;
  BK_TRY(sample(g, &warm));
  g->launches = warm > 1e-3 ? 1 : warm < 1e-5 ? 100 : (int)(1e-3 / warm) + 1;
  return BK_OK;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* At least three samples are taken, and more until the time is up. A time of 0, which a coarse
 * clock gives, counts as 1 ns. */
static bk_status take_samples(const bench *b, gauge *g, timing *time) {
  double *times = bk_alloc_array(b->ctx, MAX_SAMPLES, sizeof *times), end;
  int n = 0;
  if (!times) return BK_ERR_MEMORY;
  bk_status status = gauge_start(g);
  end = bk_context_seconds(b->ctx) + b->seconds;
  while (status == BK_OK && n < MAX_SAMPLES && (n < 3 || bk_context_seconds(b->ctx) < end))
    status = sample(g, &times[n++]);
  if (status == BK_OK) {
    qsort(times, (size_t)n, sizeof *times, ascending);
    time->median = fmax(times[n / 2], 1e-9);
    time->best = fmax(times[0], 1e-9);
  }
  bk_free(b->ctx, times);
  return status;
}

/* A host has its clock; events there would only read it. */
static bk_status gauge_events(bk_device *device, gauge *g) {
  if (device->props.host_memory) return BK_OK;
  BK_TRY(device->ops->event_create(device, &g->begin));
  return device->ops->event_create(device, &g->end);
}

static void gauge_free(gauge *g) {
  if (g->end) g->end->ops->destroy(g->end);
  if (g->begin) g->begin->ops->destroy(g->begin);
}

/* The plan is prepared outside of the time, as in a step. *time keeps no memory of the plan: the
 * name of a kernel is static. */
static bk_status time_op(const bench *b, bk_op op, const void *args, timing *time) {
  bk_plan plan = {0};
  bk_buffer *workspace = NULL;
  BK_TRY(bk_plan_prepare(b->device, op, args, &plan));
  time->kernel = plan.kernel->name;
  gauge g = {.stream = b->stream, .plan = &plan, .args = args};
  bk_status status = plan.workspace_bytes ? bk_buffer_alloc(b->device, plan.workspace_bytes,
                                                            BK_MEM_WORKSPACE, &workspace)
                                          : BK_OK;
  g.workspace = (bk_place){workspace, 0};
  if (status == BK_OK) status = gauge_events(b->device, &g);
  if (status == BK_OK) status = take_samples(b, &g, time);
  gauge_free(&g);
  bk_buffer_free(workspace);
  bk_plan_release(&plan);
  return status;
}

/* ---- operands ---- */

/* Of "project.x" this is "x": an operand of a fused op is filled as in the op that it comes
 * from. */
static const char *leaf(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot ? dot + 1 : name;
}

/* `names` are strings one after the other, ended by an empty one. */
static bool is_among(const char *name, const char *names) {
  for (; *names; names += strlen(names) + 1)
    if (strcmp(name, names) == 0) return true;
  return false;
}

/* A step that is prime to `count`, so that multiples of it visit every element once: a permutation
 * without a table. */
static int64_t coprime(int64_t count) {
  static const int16_t primes[] = {7919, 7907, 7901};
  for (size_t i = 0; i < BK_COUNT(primes); i++)
    if (count % primes[i]) return primes[i];
  return 1;
}

/* What the operand called `name` holds at element i of `count`, as a router would write it; last:
 * its last dimension. Rows are spread evenly over the experts, tokens over the vocabulary. -1:
 * nothing is known of such an operand. */
static int32_t index_value(const bk_bench_sizes *z, const char *name, int64_t i, int64_t count,
                           int64_t last) {
  int64_t step = coprime(count);
  if (is_among(name, "offsets\0")) return (int32_t)(i * z->N * BK_BENCH_CHOICES / (count - 1));
  if (is_among(name, "index\0")) return (int32_t)((i / last * 7 + i % last * 5) % BK_BENCH_EXPERTS);
  if (is_among(name, "order\0row_of\0")) return (int32_t)(i * step % count);
  if (is_among(name, "past\0load\0")) return 0;
  return is_among(name, "ids\0targets\0") ? (int32_t)(i * step % z->V) : -1;
}

static bk_status fill_index(const bench *b, const bk_tensor *t, const char *name) {
  int64_t count = bk_tensor_count(t);
  /* a kernel reads memory by these numbers: one that is out of range is not tried */
  if (index_value(&b->sizes, name, 0, count, t->shape[t->ndim - 1]) < 0)
    return bk_fail(b->ctx, BK_ERR_NOT_FOUND, "bench: ops/bench.c does not say what %s holds", name);
  int32_t *values = bk_alloc_array(b->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < count; i++)
    values[i] = index_value(&b->sizes, name, i, count, t->shape[t->ndim - 1]);
  bk_status status = bk_tensor_upload(b->stream, t, values);
  bk_free(b->ctx, values);
  return status;
}

/* This is a step in which the optimiser does everything: finite, not clipped, with a small learning
 * rate. */
static void step_values(double *v) {
  memset(v, 0, BK_STEP_FIELDS * sizeof *v);
  v[BK_STEP_LR] = 1e-6, v[BK_STEP_BC1] = 0.1, v[BK_STEP_BC2] = 0.05, v[BK_STEP_MAX_NORM] = 1,
  v[BK_STEP_LOSS_SCALE] = 1e-3;
  v[BK_STEP_SUMSQ] = 1, v[BK_STEP_NORM] = 1, v[BK_STEP_CLIP] = 1, v[BK_STEP_FINITE] = 1;
}

/* `count` elements of a dense tensor, from its first on. */
static bk_tensor head_of(const bk_tensor *t, int64_t count) {
  bk_tensor head = bk_tensor_1d(t->dtype, count);
  head.buffer = t->buffer, head.offset = t->offset;
  return head;
}

/* The values repeat, so that all but the first block are copies on the device: a stream of
 * 32,768 tokens holds a thousand million. */
static bk_status spread(const bench *b, const bk_tensor *t, int64_t done) {
  int64_t count = bk_tensor_count(t);
  size_t size = bk_dtype_size(t->dtype);
  while (done < count) {
    int64_t more = count - done < done ? count - done : done;
    bk_place to = {t->buffer, t->offset + (size_t)done * size}, from = {t->buffer, t->offset};
    BK_TRY(b->stream->ops->copy(b->stream, to, from, (size_t)more * size));
    done += more;
  }
  return BK_OK;
}

/* Factors of norms, second moments and the like are positive; the others are random of either sign.
 * No operand is all zeros, since some devices multiply zeros with less power and so faster. */
static bk_status fill_floats(const bench *b, const bk_tensor *t, const char *name) {
  int64_t count = bk_tensor_count(t), first = count < FIRST ? count : FIRST;
  double *values = bk_alloc_array(b->ctx, (size_t)first, sizeof *values);
  bk_tensor head = head_of(t, first);
  bool positive = is_among(name, "rstd\0rinv\0v\0scores\0lse\0w\0");
  if (!values) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < first; i++)
    values[i] = positive ? 0.5 + fabs(b->pattern[i % PATTERN]) : b->pattern[i % PATTERN];
  if (is_among(name, "step\0")) step_values(values);
  bk_status status = bk_tensor_write_f64(b->stream, &head, values);
  bk_free(b->ctx, values);
  return status == BK_OK ? spread(b, t, first) : status;
}

/* ---- one case ---- */

/* Calls `each` for the operands that have a place of their own. */
static bk_status for_fields(const bench *b, bk_op op, const char *name, bk_any_args *args,
                            bk_status (*each)(const bench *b, const char *field, bk_tensor *t)) {
  const bk_op_desc *d = bk_op_describe(op);
  char place[BK_BENCH_WORD];
  for (int i = 0; i < d->n_fields; i++) {
    bk_tensor *t = bk_op_field_ref(args, &d->fields[i]);
    if (bk_tensor_present(t) && !bk_bench_case_place(name, d->fields[i].name, place))
      BK_TRY(each(b, d->fields[i].name, t));
  }
  return BK_OK;
}

/* Writes the place into the args themselves. */
static bk_status place_field(const bench *b, const char *field BK_UNUSED, bk_tensor *t) {
  return bk_memory_tensor(b->memory, BK_MEM_ACTIVATIONS, t->dtype, t->ndim, t->shape, t);
}

static bk_status fill_field(const bench *b, const char *field, bk_tensor *t) {
  return t->dtype == BK_I32 ? fill_index(b, t, leaf(field)) : fill_floats(b, t, leaf(field));
}

/* The others lie where the case says. */
static void share_places(bk_op op, const char *name, bk_any_args *args) {
  const bk_op_desc *d = bk_op_describe(op);
  char place[BK_BENCH_WORD];
  for (int i = 0; i < d->n_fields; i++) {
    if (!bk_bench_case_place(name, d->fields[i].name, place)) continue;
    bk_tensor *t = bk_op_field_ref(args, &d->fields[i]);
    const bk_tensor *there = bk_op_field_get(args, bk_op_field_find(op, place));
    t->buffer = there->buffer, t->offset = there->offset;
  }
}

/* Every operand is written before: memory that never was may not be there. */
static bk_status time_placed(bench *b, bk_op op, const char *name, bk_any_args *args,
                             timing *time) {
  BK_TRY(for_fields(b, op, name, args, place_field));
  share_places(op, name, args);
  BK_TRY(bk_memory_commit(b->memory));
  BK_TRY(for_fields(b, op, name, args, fill_field));
  return time_op(b, op, args, time);
}

/* Memory is taken for each case and given back: the largest alone may fill the device. */
static bk_status time_case(bench *b, bk_op op, const char *name, bk_any_args *args, timing *time) {
  BK_TRY(bk_memory_create(b->device, &b->memory));
  bk_status status = time_placed(b, op, name, args, time);
  bk_memory_destroy(b->memory);
  b->memory = NULL;
  return status;
}

/* ---- roofs ---- */

/* Square products of growing size, until one takes long enough to be timed well: the best rate
 * seen. */
static bk_status measure_product(bench *b, double *flops_per_s) {
  timing time = {0};
  double best = 0;
  for (int64_t n = ROOF_GEMM_MIN; n <= ROOF_GEMM_MAX && time.best < ROOF_GEMM_SECONDS; n *= 2) {
    double flops, bytes;
    bk_tensor square = bk_tensor_2d(b->sizes.st, n, n);
    bk_any_args args = {.GEMM = {.a = square, .b = square, .c = square, .alpha = 1}};
    BK_TRY(time_case(b, BK_OP_GEMM, "gemm", &args, &time));
    bk_op_cost(BK_OP_GEMM, &args, &flops, &bytes);
    best = fmax(best, flops / time.best);
  }
  *flops_per_s = best;
  return BK_OK;
}

/* Half of the bytes are read, half written. Sizes double from 2^BK_ROOF_COPY_MIN bytes; those that
 * are not measured have the last one's rate. */
static bk_status measure_copies(bench *b, bk_roof *roof) {
  timing time = {0};
  int i = 0;
  for (; i < BK_ROOF_COPY_SIZES && time.best <= ROOF_COPY_SECONDS; i++) {
    double bytes = (double)((int64_t)1 << (BK_ROOF_COPY_MIN + i));
    bk_tensor half =
        bk_tensor_1d(b->sizes.ct, (int64_t)bytes / 2 / (int64_t)bk_dtype_size(b->sizes.ct));
    bk_any_args args = {.COPY = {.x = half, .y = half}};
    BK_TRY(time_case(b, BK_OP_COPY, "copy", &args, &time));
    roof->bytes_per_s[i] = bytes / time.best;
  }
  roof->copies = i;
  for (; i < BK_ROOF_COPY_SIZES; i++) roof->bytes_per_s[i] = roof->bytes_per_s[i - 1];
  return BK_OK;
}

/* The least seconds that this many flops and bytes can take, if both go on at once. Bytes move at
 * the rate of the copy whose size is nearest. */
static double least_time(const bk_roof *roof, double flops, double bytes) {
  int i = bytes > 1 ? (int)lround(log2(bytes)) - BK_ROOF_COPY_MIN : 0;
  i = i < 0 ? 0 : i >= BK_ROOF_COPY_SIZES ? BK_ROOF_COPY_SIZES - 1 : i;
  return fmax(flops / roof->flops_per_s, bytes / roof->bytes_per_s[i]);
}

/* ---- begin and end ---- */

static bk_status check_use(bk_device *device, bk_dtype dtype, double seconds) {
  bk_context *ctx = device->ctx;
  if (isnan(bk_context_seconds(ctx)))
    return bk_fail(ctx, BK_ERR_UNSUPPORTED, "bench: the context has no clock");
  if (dtype <= BK_NONE || dtype >= BK_DTYPE_COUNT || !(device->props.storage_dtypes & BK_DT(dtype)))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "bench: device %s does not store %s",
                   device->backend->name, bk_dtype_name(dtype));
  if (!(seconds >= 0))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "bench: seconds is %g, it should be 0 or more",
                   bk_unsigned_nan(seconds));
  return BK_OK;
}

/* The random numbers are fixed, so that two runs time the same work. After a failure `end` frees
 * what there is. */
static bk_status begin(bench *b, bk_device *device, bk_dtype dtype, double seconds) {
  *b = (bench){.device = device,
               .ctx = device->ctx,
               .sizes = {.st = dtype, .ct = bk_coef_dtype(dtype), .N = 1, .V = 1},
               .seconds = seconds};
  BK_TRY(check_use(device, dtype, seconds));
  b->pattern = bk_alloc_array(b->ctx, PATTERN, sizeof *b->pattern);
  if (!b->pattern) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < PATTERN; i++) b->pattern[i] = 0.3 * bk_normal(1, 1, (uint64_t)i);
  return bk_stream_create(device, 0, &b->stream);
}

/* Passes the status on, so that a function can end with it. */
static bk_status end(bench *b, bk_status status) {
  bk_stream_destroy(b->stream);
  bk_free(b->ctx, b->pattern);
  return status;
}

/* *flops_per_s is written on success only. */
bk_status bk_bench_product(bk_device *device, bk_dtype dtype, double seconds, double *flops_per_s) {
  bench b;
  bk_status status = begin(&b, device, dtype, seconds);
  return end(&b, status == BK_OK ? measure_product(&b, flops_per_s) : status);
}

bk_status bk_bench_roof(bk_device *device, bk_dtype dtype, double seconds, bk_roof *roof) {
  bench b;
  bk_roof made = {0};
  bk_status status = begin(&b, device, dtype, seconds);
  if (status == BK_OK) status = measure_product(&b, &made.flops_per_s);
  if (status == BK_OK) status = measure_copies(&b, &made);
  if (status == BK_OK) *roof = made;
  return end(&b, status);
}

/* ---- all ops ---- */

const char *bk_bench_op_name(int i) {
  return i >= 0 && i + 1 < BK_OP_COUNT ? bk_op_name((bk_op)(i + 1)) : NULL;
}

static bk_status check_size(bk_context *ctx, const char *name, int64_t value, int64_t low,
                            int64_t high) {
  if (value >= low && value <= high) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "bench: %s is %lld, it should be %lld to %lld", name,
                 (long long)value, (long long)low, (long long)high);
}

/* T is the largest divisor of N up to 512, so that B sequences of T tokens are N tokens exactly.
 * Heads are 64 wide, and so is the unit of the width. */
static bk_status take_sizes(bench *b, const bk_bench_options *o) {
  bk_bench_sizes *z = &b->sizes;
  BK_TRY(check_size(b->ctx, "tokens", o->tokens, 1, 1 << 22));
  BK_TRY(check_size(b->ctx, "width", o->width, 64, 1 << 16));
  BK_TRY(check_size(b->ctx, "streams", o->streams, 1, BK_HC_MAX_N));
  BK_TRY(check_size(b->ctx, "vocabulary", o->vocabulary, 2, 1 << 24));
  if (o->width % 64)
    return bk_fail(b->ctx, BK_ERR_ARGUMENT, "bench: width is %lld, it should be a multiple of 64",
                   (long long)o->width);
  z->N = o->tokens, z->C = o->width, z->n = o->streams, z->V = o->vocabulary;
  z->T = z->N < 512 ? z->N : 512;
  while (z->N % z->T) z->T--;
  z->B = z->N / z->T, z->H = z->C / 64;
  return BK_OK;
}

/* wanted[op] is set for the ops in the list; no list means all of them. */
static bk_status find_ops(bk_context *ctx, const bk_bench_options *o, bool *wanted) {
  for (int op = 1; op < BK_OP_COUNT; op++) wanted[op] = !o->ops;
  for (int i = 0; o->ops && i < o->n_ops; i++) {
    int op = 1;
    while (op < BK_OP_COUNT && strcmp(o->ops[i], bk_op_name((bk_op)op)) != 0) op++;
    if (op == BK_OP_COUNT)
      return bk_fail(ctx, BK_ERR_NOT_FOUND, "bench: there is no op %s", o->ops[i]);
    wanted[op] = true;
  }
  return BK_OK;
}

/* The mixtures of permutations need n! columns, and the products of factors a power of two. */
static bool skipped(int64_t n, bk_op op) {
  return ((op == BK_OP_HC_PERM || op == BK_OP_HC_PERM_BWD) && n > BK_HC_PERM_MAX_N) ||
         ((op == BK_OP_HC_KRON || op == BK_OP_HC_KRON_BWD) && (n & (n - 1)));
}

/* The share is of the median time, which is what a step will see. */
static bk_status measure_case(bench *b, const bk_roof *roof, bk_op op, const char *name,
                              bk_bench_row *row) {
  bk_any_args args;
  timing time;
  BK_TRY(bk_bench_case_make(b->ctx, &b->sizes, op, name, &args));
  BK_TRY(time_case(b, op, name, &args, &time));
  *row = (bk_bench_row){bk_op_name(op), name, time.kernel, time.median, time.best, 0, 0, 0};
  bk_op_cost(op, &args, &row->flops, &row->bytes);
  row->share = least_time(roof, row->flops, row->bytes) / row->seconds;
  return BK_OK;
}

/* Ops come in the order of ops.def. A failure, or `each` saying so, ends the run. */
static bk_status measure_ops(bench *b, const bk_roof *roof, const bool *wanted,
                             bk_bench_row_fn each, void *user) {
  for (int i = 1; i < BK_OP_COUNT; i++) {
    bk_op op = (bk_op)i;
    const char *name;
    bk_bench_row row;
    if (!wanted[op] || skipped(b->sizes.n, op)) continue;
    for (int k = 0; (name = bk_bench_case_name(op, k)); k++) {
      BK_TRY(measure_case(b, roof, op, name, &row));
      BK_TRY(each(user, &row));
    }
  }
  return BK_OK;
}

bk_status bk_bench_ops(bk_device *device, const bk_bench_options *options, const bk_roof *roof,
                       bk_bench_row_fn each, void *user) {
  bench b;
  bool wanted[BK_OP_COUNT];
  bk_status status = begin(&b, device, options->dtype, options->seconds);
  if (status == BK_OK) status = take_sizes(&b, options);
  if (status == BK_OK) status = find_ops(b.ctx, options, wanted);
  if (status == BK_OK) status = measure_ops(&b, roof, wanted, each, user);
  return end(&b, status);
}

/* Measuring a device: a row for every case of every op, what it says, what is refused, in which
 * order; roofs. How long anything takes is not asked here. */
#include "tests/unit/unit.h"

#include <birkhoff/bench.h>

#include "ops/bench_cases.h"

#include <math.h>

#define OK(call) ck_assert_int_eq(call, BK_OK)
#define MAX_ROWS (2 * BK_OP_COUNT)

/* One byte and one flop a second: a share is then all bytes, or all flops, over the time. */
static bk_roof slow_roof(void) {
  bk_roof roof = {.flops_per_s = 1, .copies = BK_ROOF_COPY_SIZES};
  for (int i = 0; i < BK_ROOF_COPY_SIZES; i++) roof.bytes_per_s[i] = 1;
  return roof;
}

static bk_device *open_device(const char *name) {
  bk_device *device = NULL;
  OK(bk_device_open(ctx, name, &(bk_device_options){.threads = 2}, &device));
  return device;
}

static bk_bench_options small(void) {
  return (bk_bench_options){
      .dtype = BK_F32, .tokens = 6, .width = 64, .streams = 4, .vocabulary = 100};
}

typedef struct taken {
  char names[MAX_ROWS][32];
  int count, limit; /* limit > 0: the row that ends it all */
} taken;

static bk_status take(void *user, const bk_bench_row *row) {
  taken *t = user;
  ck_assert_int_lt(t->count, MAX_ROWS);
  ck_assert_msg(row->best > 0 && row->best <= row->seconds, "%s: %g, best %g", row->name,
                row->seconds, row->best);
  ck_assert_msg(row->bytes > 0 && row->flops >= 0 && row->kernel[0], "%s", row->name);
  ck_assert_double_eq_tol(row->share * row->seconds / fmax(row->bytes, row->flops), 1, 1e-12);
  ck_assert(strncmp(row->name, row->op, strlen(row->op)) == 0);
  snprintf(t->names[t->count++], sizeof t->names[0], "%s", row->name);
  return t->count == t->limit ? BK_INTERRUPTED : BK_OK;
}

static bk_status measure(bk_device *device, const bk_bench_options *options, taken *t) {
  bk_roof roof = slow_roof();
  *t = (taken){.limit = t->limit};
  return bk_bench_ops(device, options, &roof, take, t);
}

START_TEST(names_of_ops) {
  int n = 0;
  for (; bk_bench_op_name(n); n++)
    ck_assert_str_eq(bk_bench_op_name(n), bk_op_name((bk_op)(n + 1)));
  ck_assert_int_eq(n, BK_OP_COUNT - 1);
  ck_assert_ptr_null(bk_bench_op_name(-1));
  ck_assert_ptr_null(bk_bench_op_name(n + 1));
}
END_TEST

static void check_every_op(const char *name, bk_dtype dtype, int64_t streams, int64_t tokens) {
  bk_device *device = open_device(name);
  bk_bench_options options = small();
  taken t = {.limit = 0};
  options.dtype = dtype, options.streams = streams, options.tokens = tokens;
  OK(measure(device, &options, &t));
  int at = 0;
  for (int op = 1; op < BK_OP_COUNT; op++) {
    bool perm = op == BK_OP_HC_PERM || op == BK_OP_HC_PERM_BWD,
         kron = op == BK_OP_HC_KRON || op == BK_OP_HC_KRON_BWD,
         twice = op == BK_OP_ATTENTION || op == BK_OP_ATTENTION_BWD;
    if ((perm && streams > 5) || (kron && streams & (streams - 1))) continue;
    ck_assert_str_eq(t.names[at++], bk_op_name((bk_op)op));
    if (twice) ck_assert_ptr_nonnull(strstr(t.names[at++], "_192"));
  }
  ck_assert_int_eq(at, t.count);
  bk_device_close(device);
}

START_TEST(every_op) {
  check_every_op("cpu", BK_F32, 4, 6);
  check_every_op("cpu", BK_BF16, 8, 1);
  check_every_op("ref", BK_F64, 3, 2);
  check_every_op("cpu", BK_F32, 1, 521); /* a prime: sequences of one token */
}
END_TEST

/* Where memory is not the host's, times are those of events. */
START_TEST(by_events) {
  bk_device *device = open_device("cpu");
  bk_bench_options options = small();
  taken t = {.limit = 0};
  options.ops = (const char *[]){"sum", "hc_merge_mix"}, options.n_ops = 2;
  device->props.host_memory = false;
  OK(measure(device, &options, &t));
  ck_assert_int_eq(t.count, 2);
  device->props.host_memory = true;
  bk_device_close(device);
}
END_TEST

START_TEST(some_ops) {
  bk_device *device = open_device("cpu");
  bk_bench_options options = small();
  taken t = {.limit = 0};
  options.ops = (const char *[]){"sumsq", "copy", "sumsq", "attention"}, options.n_ops = 4;
  OK(measure(device, &options, &t));
  ck_assert_int_eq(t.count, 4);
  ck_assert_str_eq(t.names[0], "copy");
  ck_assert_str_eq(t.names[2], "attention_192");
  ck_assert_str_eq(t.names[3], "sumsq");
  options.n_ops = 0;
  OK(measure(device, &options, &t));
  ck_assert_int_eq(t.count, 0);
  options.ops = (const char *[]){"copy", "sinkhor"}, options.n_ops = 2;
  ck_assert_int_eq(measure(device, &options, &t), BK_ERR_NOT_FOUND);
  unit_expect("bench: there is no op sinkhor");
  ck_assert_int_eq(t.count, 0);
  bk_device_close(device);
}
END_TEST

/* Rows of sorted tokens are no ids: where the vocabulary is larger than their number, ids would
 * lead far out of the operands. */
START_TEST(rows_are_no_ids) {
  bk_device *device = open_device("cpu");
  bk_bench_options options = small();
  taken t = {.limit = 0};
  options.ops = (const char *[]){"permute", "unpermute", "unpermute_bwd"}, options.n_ops = 3;
  options.vocabulary = 1 << 24;
  OK(measure(device, &options, &t));
  ck_assert_int_eq(t.count, 3);
  bk_device_close(device);
}
END_TEST

START_TEST(ends_when_asked) {
  bk_device *device = open_device("cpu");
  bk_bench_options options = small();
  taken t = {.limit = 3};
  ck_assert_int_eq(measure(device, &options, &t), BK_INTERRUPTED);
  ck_assert_int_eq(t.count, 3);
  bk_device_close(device);
}
END_TEST

static void refused(bk_device *device, bk_bench_options options, const char *why) {
  taken t = {.limit = 0};
  ck_assert_msg(measure(device, &options, &t) == BK_ERR_ARGUMENT, "not refused: %s", why);
  unit_expect(why);
  ck_assert_int_eq(t.count, 0);
}

START_TEST(refusals) {
  bk_device *device = open_device("cpu");
  bk_bench_options o;
  bk_roof roof = {.copies = -1};
  double flops = -1;
  o = small(), o.tokens = 0, refused(device, o, "tokens is 0, it should be 1 to 4194304");
  o = small(), o.tokens = (1 << 22) + 1, refused(device, o, "tokens is 4194305");
  o = small(), o.width = 0, refused(device, o, "width is 0, it should be 64 to 65536");
  o = small(), o.width = 65600, refused(device, o, "width is 65600");
  o = small(), o.width = 100, refused(device, o, "width is 100, it should be a multiple of 64");
  o = small(), o.streams = 9, refused(device, o, "streams is 9, it should be 1 to 8");
  o = small(), o.vocabulary = 1, refused(device, o, "vocabulary is 1");
  o = small(), o.seconds = -1, refused(device, o, "seconds is -1");
  o = small(), o.seconds = NAN, refused(device, o, "seconds is nan");
  o = small(), o.dtype = BK_F64, refused(device, o, "device cpu does not store fp64");
  o = small(), o.dtype = BK_NONE, refused(device, o, "does not store none");
  o = small(), o.dtype = BK_DTYPE_COUNT, refused(device, o, "does not store");
  ck_assert_int_eq(bk_bench_roof(device, BK_I32, 0, &roof), BK_ERR_ARGUMENT);
  unit_expect("device cpu does not store i32");
  ck_assert_int_eq(bk_bench_product(device, BK_F32, NAN, &flops), BK_ERR_ARGUMENT);
  unit_expect("seconds is nan");
  ck_assert(roof.copies == -1 && flops == -1);
  bk_device_close(device);
}
END_TEST

START_TEST(roofs) {
  bk_device *device = open_device("cpu");
  bk_roof roof = {.copies = 0};
  double flops = 0;
  OK(bk_bench_roof(device, BK_F32, 0, &roof));
  ck_assert(roof.flops_per_s > 0 && isfinite(roof.flops_per_s));
  ck_assert(roof.copies >= 1 && roof.copies <= BK_ROOF_COPY_SIZES);
  for (int i = 0; i < BK_ROOF_COPY_SIZES; i++) {
    ck_assert(roof.bytes_per_s[i] > 0 && isfinite(roof.bytes_per_s[i]));
    if (i >= roof.copies) ck_assert(roof.bytes_per_s[i] == roof.bytes_per_s[roof.copies - 1]);
  }
  OK(bk_bench_product(device, BK_BF16, 0, &flops));
  ck_assert(flops > 0 && isfinite(flops));
  bk_device_close(device);
}
END_TEST

/* A context without a clock. */
static void *aligned(void *user BK_UNUSED, size_t bytes, size_t align) {
  return aligned_alloc(align, BK_ALIGN_UP(bytes, align));
}
static void release(void *user BK_UNUSED, void *ptr, size_t bytes BK_UNUSED) { free(ptr); }

START_TEST(without_a_clock) {
  static const bk_allocator allocator = {aligned, release, NULL};
  bk_context *embedded = NULL;
  bk_device *device = NULL;
  bk_bench_options options = small();
  taken t = {.limit = 0};
  bk_roof roof;
  double flops;
  OK(bk_context_create_embedded(&(bk_context_options){.allocator = &allocator, .log = unit_log},
                                &embedded));
  OK(bk_device_open_backend(embedded, &bk_backend_ref, NULL, &device));
  ck_assert_int_eq(measure(device, &options, &t), BK_ERR_UNSUPPORTED);
  unit_expect("bench: the context has no clock");
  ck_assert_int_eq(bk_bench_roof(device, BK_F32, 0, &roof), BK_ERR_UNSUPPORTED);
  unit_expect("no clock");
  ck_assert_int_eq(bk_bench_product(device, BK_F32, 0, &flops), BK_ERR_UNSUPPORTED);
  unit_expect("no clock");
  bk_device_close(device);
  bk_context_destroy(embedded);
}
END_TEST

/* A name that the table of cases does not know has what holds for all, which is not enough. */
START_TEST(what_a_case_lacks) {
  static bk_any_args args;
  bk_bench_sizes sizes = {.st = BK_F32, .ct = BK_F32, .N = 2, .C = 64, .n = 4, .V = 9, .B = 1};
  ck_assert_int_eq(bk_bench_case_make(ctx, &sizes, BK_OP_HC_REBUILD, "unknown", &args),
                   BK_ERR_NOT_FOUND);
  unit_expect("bench_cases.c does not say what layers is for unknown");
}
END_TEST

START_TEST(device_facts) {
  bk_device *device = open_device("cpu");
  bk_memory_stats stats;
  size_t used = 0;
  ck_assert_str_eq(bk_device_backend_name(device), "cpu");
  bk_context_memory_stats(ctx, &stats);
  OK(bk_device_memory_used(device, &used));
  ck_assert_uint_eq(used, stats.current_bytes);
  device->props.host_memory = false; /* then what the device itself says */
  OK(bk_device_memory_used(device, &used));
  ck_assert_uint_gt(used, 0);
  bk_device_close(device);
}
END_TEST

UNIT_MAIN("bench", unit_open, unit_close, names_of_ops, every_op, by_events, some_ops,
          rows_are_no_ids, ends_when_asked, refusals, roofs, without_a_clock, what_a_case_lacks,
          device_facts)

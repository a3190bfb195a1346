/* test_ops: every op on one device against `ref`; harness.h says how.
 *   --device NAME   default cpu        --isa NAME      this instruction set, faster kernels
 *                   stripped
 *   --threads N     default 2          --composed      composed ops as their composed default
 *   --bits          also with 1 thread: the bits must be the same
 *   --like-composed hc_post_res and hc_pre_norm in fp32 alone, also composed: the streams and y
 *   must have the same bits
 *   --tf32          fp32 products may round their operands to TF32; the bounds allow for it
 *   --op NAME       this op only       --case TEXT     cases whose name contains TEXT
 *   --case FILE     where it ends in .safetensors: only the case in that file, as `birkhoff verify
 *                   --bisect` writes it, whatever its size
 *   --seed N        default 1          --list          names only        --verbose
 *   --report        lines "report OP FP32 BF16 SHARE": worst normalised mean squared error by
 *                   storage type, worst share of a bound
 *   --perf          time the ops at working sizes instead (perf.h)
 * With BK_TEST_QUICK in the environment, small shapes only; with BK_TEST_TINY very small ones;
 * with BK_TEST_LARGE those of real models alone. Without a filter it also checks that every op
 * has a case and that every operand is present in one. Exit status 0, 1 after a failure, 2 for
 * wrong usage, 77 when the device or the instruction set is not here. */
#include "tests/ops/harness.h"
#include "tests/ops/perf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
  const char *device;
  bk_device_options open;
  bool bits, like_composed, perf;
  const char *file; /* of a case */
} options;

static void count_line(void *user, bk_log_level level, const char *message) {
  harness *h = user;
  if (level <= BK_LOG_WARN) h->log_lines++;
  fprintf(stderr, "     %s\n", message);
}

static bool parse_flag(harness *h, options *o, const char *arg) {
  if (strcmp(arg, "--list") == 0) return h->list = true;
  if (strcmp(arg, "--verbose") == 0) return h->verbose = true;
  if (strcmp(arg, "--report") == 0) return h->report = true;
  if (strcmp(arg, "--bits") == 0) return o->bits = true;
  if (strcmp(arg, "--like-composed") == 0) return o->like_composed = true;
  if (strcmp(arg, "--perf") == 0) return o->perf = true;
  if (strcmp(arg, "--tf32") == 0) return o->open.allow_tf32 = true;
  if (strcmp(arg, "--composed") == 0) return o->open.composed_only = true;
  return false;
}

static bool is_file(const char *text) {
  size_t length = strlen(text), ending = strlen(".safetensors");
  return length > ending && strcmp(text + length - ending, ".safetensors") == 0;
}

static bool parse_value(harness *h, options *o, const char *arg, const char *value) {
  if (!value) return false;
  if (strcmp(arg, "--device") == 0) o->device = value;
  else if (strcmp(arg, "--isa") == 0) o->open.isa = value;
  else if (strcmp(arg, "--op") == 0) h->op_filter = value;
  else if (strcmp(arg, "--case") == 0 && is_file(value)) o->file = value;
  else if (strcmp(arg, "--case") == 0) h->case_filter = value;
  else if (strcmp(arg, "--threads") == 0) o->open.threads = atoi(value);
  else if (strcmp(arg, "--seed") == 0) h->seed = strtoull(value, NULL, 10);
  else return false;
  return true;
}

static bool parse(harness *h, options *o, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    if (parse_flag(h, o, argv[i])) continue;
    if (!parse_value(h, o, argv[i], i + 1 < argc ? argv[i + 1] : NULL)) {
      fprintf(stderr, "test_ops: what is %s? the head of test_ops.c lists the options\n", argv[i]);
      return false;
    }
    i++;
  }
  return true;
}

static bk_status open_devices(harness *h, const options *o) {
  bk_device_options second = o->open;
  if (o->like_composed) second.composed_only = h->like_composed = true;
  else second.threads = 1;
  BK_TRY(bk_device_open(h->ctx, "ref", NULL, &h->ref));
  BK_TRY(bk_stream_create(h->ref, 0, &h->ref_stream));
  BK_TRY(bk_device_open(h->ctx, o->device, &o->open, &h->device));
  if (o->open.isa && strcmp(o->open.isa, h->device->props.isa)) {
    printf("SKIP: this machine has no %s\n", o->open.isa);
    return BK_ERR_ABSENT;
  }
  BK_TRY(bk_stream_create(h->device, 0, &h->stream));
  if (!o->bits && !o->like_composed) return BK_OK;
  BK_TRY(bk_device_open(h->ctx, o->device, &second, &h->second));
  return bk_stream_create(h->second, 0, &h->second_stream);
}

static void close_devices(harness *h) {
  bk_stream_destroy(h->second_stream);
  bk_device_close(h->second);
  bk_stream_destroy(h->stream);
  bk_device_close(h->device);
  bk_stream_destroy(h->ref_stream);
  bk_device_close(h->ref);
}

static void all_cases(harness *h) {
  const bk_dtype storage[] = {BK_F32, BK_BF16};
  for (int i = 0; i < 2; i++) {
    h->st = storage[i];
    h->ct = bk_coef_dtype(h->st);
    if (h->large) {
      cases_large(h);
      continue;
    }
    cases_basic(h);
    cases_layers(h);
    cases_experts(h);
    cases_streams(h);
    cases_maps(h);
    cases_fused(h);
  }
}

static int check_coverage(const harness *h) {
  int holes = 0;
  for (int op = 1; op < BK_OP_COUNT; op++) {
    const bk_op_desc *desc = bk_op_describe((bk_op)op);
    if (!h->seen[op]) printf("FAIL %s has no case\n", desc->name);
    holes += !h->seen[op];
    for (int i = 0; i < desc->n_fields && h->seen[op]; i++) {
      if (h->fields[op][i]) continue;
      printf("FAIL %s: no case has %s\n", desc->name, desc->fields[i].name);
      holes++;
    }
  }
  return holes;
}

/* Outputs that are exact by definition count as 0. */
static void report_ops(const harness *h) {
  for (int op = 1; op < BK_OP_COUNT; op++) {
    printf("report %s %.1e %.1e %.2f\n", bk_op_name((bk_op)op), h->nmse[op][0], h->nmse[op][1],
           fmax(h->worst[op][0], h->worst[op][1]));
  }
}

static int report(const harness *h, const options *o, int holes) {
  if (h->verbose) {
    for (int op = 1; op < BK_OP_COUNT; op++) {
      printf("%-18s worst share of the bound: fp32 %.2e bf16 %.2e\n", bk_op_name((bk_op)op),
             h->worst[op][0], h->worst[op][1]);
    }
  }
  if (h->report) report_ops(h);
  if (h->list) return 0;
  printf("%s (%s): %d holes in the coverage, %d cases left out\n", o->device, h->device->props.isa,
         holes, h->left_out);
  printf("%d passed, %d failed\n", h->ran - h->failed, h->failed + holes);
  if (h->ran == 0) printf("FAIL no case has that name\n");
  return h->failed || holes || h->ran == 0;
}

int main(int argc, char **argv) {
  harness h = {.seed = 1,
               .large = getenv("BK_TEST_LARGE") != NULL,
               .tiny = getenv("BK_TEST_TINY") != NULL,
               .quick = getenv("BK_TEST_QUICK") || getenv("BK_TEST_TINY")};
  options o = {.device = "cpu", .open = {.threads = 2}};
  bk_context_options context = {.log = count_line, .log_user = &h, .log_level = BK_LOG_WARN};
  if (!parse(&h, &o, argc, argv)) return 2;
  if (bk_context_create(&context, &h.ctx) != BK_OK || bk_registry_init(h.ctx) != BK_OK) return 1;
  bk_status status = open_devices(&h, &o);
  int result = status == BK_ERR_ABSENT ? 77 : status == BK_ERR_NOT_FOUND ? 2 : 1;
  perf_roof roof;
  if (status == BK_OK && o.perf) {
    status = perf_measure_roof(&h, &roof);
    h.roof = &roof;
  }
  if (status == BK_OK && o.file) {
    result = harness_case_file(&h, o.file) ? report(&h, &o, 0) : 2;
  } else if (status == BK_OK) {
    all_cases(&h);
    result = report(&h, &o, o.perf || h.large ? 0 : check_coverage(&h));
  }
  close_devices(&h);
  bk_context_destroy(h.ctx);
  return result;
}

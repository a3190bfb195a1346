/* birkhoff bench ops: options, table and JSON; what is measured is birkhoff/bench.h's. */
#include <birkhoff/bench.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench.h"

#define MAX_STREAMS 8

typedef struct ops_bench {
  cli_session *s;
  bk_bench_options options;
  bk_roof roof;
  json_t *list; /* with --json */
} ops_bench;

static int count_ops(void) {
  int n = 0;
  while (bk_bench_op_name(n)) n++;
  return n;
}

static bk_status check_name(cli_session *s, const char *name, const char *const *all, int n) {
  for (int i = 0; i < n; i++)
    if (strcmp(name, all[i]) == 0) return BK_OK;
  const char *near = bk_nearest(name, all, (size_t)n);
  if (near)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--op %s: no such op; did you mean %s?", name, near);
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--op %s: no such op", name);
}

static bk_status check_names(cli_session *s, const char *const *names, int n_names, int n_ops) {
  const char **all = bk_alloc_array(s->ctx, (size_t)n_ops, sizeof *all);
  bk_status status = all ? BK_OK : BK_ERR_MEMORY;
  for (int i = 0; all && i < n_ops; i++) all[i] = bk_bench_op_name(i);
  for (int i = 0; i < n_names && status == BK_OK; i++) status = check_name(s, names[i], all, n_ops);
  bk_free(s->ctx, all);
  return status;
}

/* Those of --op into *names (bk_free), or NULL: all. */
static bk_status find_ops(cli_session *s, const char ***names, int *n_names) {
  int n = cli_values(&s->args, "op", NULL, 0), n_ops = count_ops();
  if (n == 0) return BK_OK;
  if (n > n_ops + 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--op: %d names, there are %d ops", n, n_ops);
  *names = bk_alloc_array(s->ctx, (size_t)n, sizeof **names);
  if (!*names) return BK_ERR_MEMORY;
  *n_names = cli_values(&s->args, "op", *names, n);
  return check_names(s, *names, n, n_ops);
}

static bk_status read_options(cli_session *s, bk_bench_options *o) {
  o->dtype = BK_F32, o->tokens = 1024, o->width = 512, o->streams = 4, o->seconds = 0.1;
  BK_TRY(cli_dtype(s, &o->dtype));
  BK_TRY(cli_int(s, "tokens", 1, 1 << 22, &o->tokens));
  BK_TRY(cli_int(s, "width", 64, 1 << 16, &o->width));
  BK_TRY(cli_int(s, "streams", 1, MAX_STREAMS, &o->streams));
  BK_TRY(cli_double(s, "seconds", 0, 3600, &o->seconds));
  if (o->width % 64)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--width %lld: expected a multiple of 64",
                   (long long)o->width);
  o->vocabulary = 8 * o->width;
  return cli_int(s, "vocabulary", 2, 1 << 24, &o->vocabulary);
}

static bk_status print_row(void *user, const bk_bench_row *row) {
  char shown[32];
  (void)user;
  snprintf(shown, sizeof shown, row->seconds < 1e-3 ? "%.1f us" : "%.3f ms",
           row->seconds < 1e-3 ? row->seconds * 1e6 : row->seconds * 1e3);
  printf("%-17s %-20s %12s %9.2f %9.2f %8.1f%%\n", row->name, row->kernel, shown,
         row->bytes / row->seconds * 1e-9, row->flops / row->seconds * 1e-9, 100 * row->share);
  return BK_OK;
}

static bk_status append_row(void *user, const bk_bench_row *row) {
  json_t *value = json_pack("{s:s,s:s,s:f,s:f,s:f,s:f}", "op", row->name, "kernel", row->kernel,
                            "seconds", row->seconds, "gb_per_s", row->bytes / row->seconds * 1e-9,
                            "gflop_per_s", row->flops / row->seconds * 1e-9, "share", row->share);
  return value && json_array_append_new(user, value) == 0 ? BK_OK : BK_ERR_MEMORY;
}

static void print_head(const ops_bench *b) {
  const bk_bench_options *o = &b->options;
  printf("%s, %s: %lld tokens, width %lld, %lld streams\n", bk_device_backend_name(b->s->device),
         bk_dtype_name(o->dtype), (long long)o->tokens, (long long)o->width, (long long)o->streams);
  printf("roof: %.2f GFLOP/s (gemm); copy", b->roof.flops_per_s * 1e-9);
  for (int i = 0; i < BK_ROOF_COPY_SIZES; i += 7) {
    char size[32];
    printf("%s %.1f GB/s at %s%s", i ? "," : "", b->roof.bytes_per_s[i] * 1e-9,
           cli_bytes_text((double)((int64_t)1 << (BK_ROOF_COPY_MIN + i)), size, sizeof size),
           i < b->roof.copies ? "" : " (reckoned from smaller copies)");
  }
  printf("\n");
  printf("%-17s %-20s %12s %9s %9s %9s\n", "op", "kernel", "time", "GB/s", "GFLOP/s", "of roof");
}

static bk_status measure(ops_bench *b) {
  bk_device *device = b->s->device;
  const bk_bench_options *o = &b->options;
  BK_TRY(bk_bench_roof(device, o->dtype, o->seconds, &b->roof));
  if (b->list) return bk_bench_ops(device, o, &b->roof, append_row, b->list);
  print_head(b);
  BK_TRY(bk_bench_ops(device, o, &b->roof, print_row, NULL));
  return cli_flush_stdout(b->s);
}

static bk_status print_json(const ops_bench *b) {
  const bk_bench_options *o = &b->options;
  return cli_print_json(
      b->s,
      json_pack("{s:s,s:s,s:I,s:I,s:I,s:f,s:f,s:O}", "device", bk_device_backend_name(b->s->device),
                "dtype", bk_dtype_name(o->dtype), "tokens", (json_int_t)o->tokens, "width",
                (json_int_t)o->width, "streams", (json_int_t)o->streams, "roof_gb_per_s",
                b->roof.bytes_per_s[BK_ROOF_COPY_SIZES - 1] * 1e-9, "roof_gflop_per_s",
                b->roof.flops_per_s * 1e-9, "ops", b->list));
}

bk_status bench_ops(cli_session *s) {
  ops_bench b = {.s = s};
  const char **names = NULL;
  bk_status status = find_ops(s, &names, &b.options.n_ops);
  b.options.ops = names;
  if (status == BK_OK) status = cli_open_device(s);
  if (status == BK_OK) status = read_options(s, &b.options);
  if (status == BK_OK && s->json && !(b.list = json_array())) status = BK_ERR_MEMORY;
  if (status == BK_OK) status = measure(&b);
  if (status == BK_OK && s->json) status = print_json(&b);
  json_decref(b.list);
  bk_free(s->ctx, names);
  return status;
}

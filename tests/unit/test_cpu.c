/* The cpu backend beyond what the operator harness sees: the masks of instruction sets and of
 * CBLAS, and products and attention larger than one tile, block or panel, against `ref`, on
 * every engine and with the same bits for one and three threads. */
#include "ops/plan.h"
#include "backends/cpu/cpu.h"
#include "backends/cpu/gemm.h"
#include "tests/unit/unit.h"

#define ARENA ((size_t)8 << 20)

/* ---- devices: ref, then pairs of one and three threads for each engine: each instruction set
 * of this machine, with and without CBLAS, the portable one last ---- */
enum { MAX_DEVICES = 1 + 4 * BK_CPU_ISA_COUNT };
static int n_devices;
static bk_device *devices[MAX_DEVICES];
static bk_stream *streams[MAX_DEVICES];
static bk_buffer *buffers[MAX_DEVICES];
static size_t used;

static void device_open(const char *name, const bk_device_options *options) {
  int i = n_devices++;
  ck_assert_int_eq(bk_device_open(ctx, name, options, &devices[i]), BK_OK);
  ck_assert_int_eq(bk_stream_create(devices[i], 0, &streams[i]), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(devices[i], ARENA, BK_MEM_ACTIVATIONS, &buffers[i]), BK_OK);
}
static void devices_open(void) {
  unit_open();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  used = 0;
  n_devices = 0;
  device_open("ref", NULL);
  for (int engine = 0; engine < 2 * BK_CPU_ISA_COUNT; engine++) {
    bk_cpu_isa isa = (bk_cpu_isa)(engine / 2);
    if (!bk_cpu_isa_runs(isa)) continue;
    setenv("BIRKHOFF_CPU_BLAS", engine & 1 ? "0" : "1", 1);
    for (int threads = 1; threads <= 3; threads += 2) {
      device_open("cpu", &(bk_device_options){.threads = threads, .isa = bk_cpu_isa_name(isa)});
      ck_assert_int_eq(bk_cpu_of(devices[n_devices - 1])->isa, isa);
      ck_assert_int_eq(bk_cpu_of(devices[n_devices - 1])->blas,
                       !(engine & 1) && bk_cpu_blas_built());
    }
  }
  unsetenv("BIRKHOFF_CPU_BLAS");
}
static void devices_close(void) {
  for (int i = 0; i < n_devices; i++) {
    bk_buffer_free(buffers[i]);
    bk_stream_destroy(streams[i]);
    bk_device_close(devices[i]);
  }
  unit_close();
}

/* A tensor in ref's arena, of uniform values. */
static bk_tensor filled(bk_tensor t) {
  t.buffer = buffers[0];
  t.offset = used;
  used += BK_ALIGN_UP(bk_tensor_bytes(&t), 256);
  ck_assert_uint_le(used, ARENA);
  for (int64_t i = 0; i < bk_tensor_count(&t); i++) {
    float x = (float)(2.0 * bk_uniform(7, t.offset, (uint64_t)i) - 1.0);
    if (t.dtype == BK_BF16) ((uint16_t *)bk_tensor_data(&t))[i] = bk_f32_to_bf16(x);
    else if (t.dtype == BK_F32) ((float *)bk_tensor_data(&t))[i] = x;
    else ((int32_t *)bk_tensor_data(&t))[i] = 0;
  }
  return t;
}
static bk_tensor f2(bk_dtype d, int64_t a, int64_t b) { return filled(bk_tensor_2d(d, a, b)); }
static bk_tensor f4(bk_dtype d, int64_t a, int64_t b, int64_t c, int64_t e) {
  return filled(bk_tensor_4d(d, a, b, c, e));
}

static double nmse(const bk_tensor *want, const bk_tensor *have, int device) {
  int64_t n = bk_tensor_count(want);
  double *x = malloc((size_t)n * sizeof *x), *y = malloc((size_t)n * sizeof *y), error = 0,
         norm = 0;
  ck_assert_int_eq(bk_tensor_read_f64(streams[0], want, x), BK_OK);
  ck_assert_int_eq(bk_tensor_read_f64(streams[device], have, y), BK_OK);
  for (int64_t i = 0; i < n; i++) error += (x[i] - y[i]) * (x[i] - y[i]), norm += x[i] * x[i];
  free(x);
  free(y);
  return norm > 0 ? error / norm : error;
}
/* Runs the op on the arena as it is on every device: outputs agree with ref's, and all bytes of
 * the arena between the device with one thread and that with three. ref's outputs stay in the
 * arena. */
static void against_ref(bk_op op, const void *args, const char *label) {
  const bk_op_desc *desc = bk_op_describe(op);
  _Alignas(16) char own[1024];
  for (int i = 1; i < n_devices; i++) memcpy(buffers[i]->handle, buffers[0]->handle, used);
  ck_assert_int_eq(bk_op_run(streams[0], op, args), BK_OK);
  for (int i = 1; i < n_devices; i++) {
    memcpy(own, args, desc->args_size);
    for (int f = 0; f < desc->n_fields; f++) {
      bk_tensor *t = (bk_tensor *)(void *)(own + desc->fields[f].offset);
      if (bk_tensor_present(t)) t->buffer = buffers[i];
    }
    ck_assert_int_eq(bk_op_run(streams[i], op, own), BK_OK);
    for (int f = 0; f < desc->n_fields; f++) {
      const bk_tensor *want =
          (const bk_tensor *)(const void *)((const char *)args + desc->fields[f].offset);
      if (desc->fields[f].role == BK_IN || !bk_tensor_present(want)) continue;
      double error = nmse(want, (const bk_tensor *)(const void *)(own + desc->fields[f].offset), i);
      double bound = want->dtype == BK_BF16 ? 2e-5 : 1e-9;
      ck_assert_msg(error <= bound, "%s %s on device %d: %s has nmse %g", desc->name, label, i,
                    desc->fields[f].name, error);
    }
    if (i % 2 == 0)
      ck_assert_msg(!memcmp(buffers[i - 1]->handle, buffers[i]->handle, used),
                    "%s %s: threads change bits", desc->name, label);
  }
}

/* ---- products ---- */
static void product(int64_t m, int64_t k, int64_t n, int turns, bk_dtype st) {
  char label[96];
  bk_gemm_args a = {.alpha = 0.5, .accumulate = turns & 1};
  used = 0;
  a.a = turns & 1 ? bk_tensor_transpose(f2(st, k, m), 0, 1) : f2(st, m, k);
  a.b = turns & 2 ? bk_tensor_transpose(f2(BK_F32, n, k), 0, 1) : f2(st, k, n);
  a.c = turns & 4 ? bk_tensor_transpose(f2(st, n, m), 0, 1) : f2(st, m, n);
  snprintf(label, sizeof label, "%lldx%lldx%lld turns %d %s", (long long)m, (long long)k,
           (long long)n, turns, bk_dtype_name(st));
  against_ref(BK_OP_GEMM, &a, label);
}
START_TEST(products_past_one_tile) {
  /* more than one tile and panel, with remainders of one row, one column and one element of
   * depth */
  static const int64_t shapes[][3] = {{193, 257, 257}, {200, 300, 1},  {1, 700, 513},
                                      {4, 513, 70},    {260, 513, 24}, {7, 0, 5}};
  for (size_t s = 0; s < BK_COUNT(shapes); s++)
    for (int turns = 0; turns < 8; turns++)
      product(shapes[s][0], shapes[s][1], shapes[s][2], turns, turns % 3 ? BK_F32 : BK_BF16);
}
END_TEST
START_TEST(grouped_products_of_uneven_groups) {
  static const int32_t offsets[] = {0, 1, 1, 250, 253, 450, 450};
  for (int b = 0; b < 2; b++) {
    bk_dtype st = b ? BK_BF16 : BK_F32;
    used = 0;
    bk_grouped_gemm_args g = {.a = f2(st, 460, 300),
                              .b = bk_tensor_transpose(filled(bk_tensor_3d(st, 6, 70, 300)), 1, 2),
                              .offsets = filled(bk_tensor_1d(BK_I32, 7)),
                              .c = f2(st, 460, 70)};
    memcpy(bk_tensor_data(&g.offsets), offsets, sizeof offsets);
    against_ref(BK_OP_GROUPED_GEMM, &g, bk_dtype_name(st));
    bk_grouped_wgrad_args w = {g.c, g.a, g.offsets, filled(bk_tensor_3d(BK_F32, 6, 70, 300)),
                               false};
    against_ref(BK_OP_GROUPED_WGRAD, &w, bk_dtype_name(st));
  }
}
END_TEST

/* ---- attention ---- */
START_TEST(attention_past_one_block) {
  for (int b = 0; b < 2; b++) {
    bk_dtype st = b ? BK_BF16 : BK_F32;
    used = 0;
    bk_tensor kv = f4(st, 1, 300, 2, 56), dkv = f4(st, 1, 300, 2, 56);
    bk_attention_args a = {.q = f4(st, 1, 300, 2, 24),
                           .k = bk_tensor_slice(kv, 3, 0, 24),
                           .v = bk_tensor_slice(kv, 3, 24, 32),
                           .o = f4(st, 1, 300, 2, 32),
                           .lse = filled(bk_tensor_3d(BK_F32, 1, 2, 300)),
                           .scale = 0.3};
    against_ref(BK_OP_ATTENTION, &a, bk_dtype_name(st));
    bk_attention_bwd_args d = {a.q,
                               a.k,
                               a.v,
                               a.o,
                               a.lse,
                               f4(st, 1, 300, 2, 32),
                               f4(st, 1, 300, 2, 24),
                               bk_tensor_slice(dkv, 3, 0, 24),
                               bk_tensor_slice(dkv, 3, 24, 32),
                               0.3};
    against_ref(BK_OP_ATTENTION_BWD, &d, bk_dtype_name(st));
  }
}
END_TEST
START_TEST(attention_over_a_long_cache) {
  static const int past[] = {599, 233, 500}, tokens[] = {1, 70, 100};
  for (int i = 0; i < 3; i++) {
    used = 0;
    bk_attention_args a = {.q = f4(BK_F32, 2, tokens[i], 2, 24),
                           .k = f4(BK_F32, 2, 600, 2, 24),
                           .v = f4(BK_F32, 2, 600, 2, 16),
                           .past = filled(bk_tensor_1d(BK_I32, 1)),
                           .o = f4(BK_F32, 2, tokens[i], 2, 16),
                           .scale = 0.3};
    *(int32_t *)bk_tensor_data(&a.past) = past[i];
    against_ref(BK_OP_ATTENTION, &a, "with a cache");
  }
}
END_TEST
START_TEST(rope_past_its_table) {
  used = 0;
  bk_rope_args a = {.x = f4(BK_F32, 1, 5, 2, 10),
                    .past = filled(bk_tensor_1d(BK_I32, 1)),
                    .y = f4(BK_F32, 1, 5, 2, 10),
                    .theta = 1e4};
  for (int past = 0; past < 3000; past += 997) {
    *(int32_t *)bk_tensor_data(&a.past) = past;
    against_ref(BK_OP_ROPE, &a, "with a cache");
  }
}
END_TEST
START_TEST(rmsnorm_gradient_of_many_rows) {
  used = 0;
  bk_rmsnorm_bwd_args a = {.x = f2(BK_F32, 3000, 50),
                           .w = filled(bk_tensor_1d(BK_F32, 50)),
                           .rstd = filled(bk_tensor_1d(BK_F32, 3000)),
                           .dy = f2(BK_F32, 3000, 50),
                           .dx = f2(BK_F32, 3000, 50),
                           .dw = filled(bk_tensor_1d(BK_F32, 50))};
  against_ref(BK_OP_RMSNORM_BWD, &a, "3000 rows");
}
END_TEST

/* ---- masks ---- */
START_TEST(instruction_sets_are_masked) {
  bk_device *device;
  for (int i = 1; i < n_devices; i++) {
    const char *isa = bk_cpu_isa_name(bk_cpu_of(devices[i])->isa);
    ck_assert_str_eq(devices[i]->props.isa, isa);
    ck_assert_ptr_null(devices[i]->options.isa); /* the caller's text is not kept */
    ck_assert_ptr_nonnull(strstr(
        bk_kernel_find(devices[i], BK_OP_ADD, &(bk_add_args){.a = {.dtype = BK_F32}})->name, isa));
  }
  ck_assert_str_eq(devices[n_devices - 1]->props.isa, "portable");
  setenv("BIRKHOFF_CPU_ISA", "portable", 1);
  ck_assert_int_eq(bk_device_open(ctx, "cpu", NULL, &device), BK_OK);
  unsetenv("BIRKHOFF_CPU_ISA");
  ck_assert_str_eq(device->props.isa, "portable");
  bk_device_close(device);
  ck_assert_int_eq(bk_device_open(ctx, "cpu", &(bk_device_options){.isa = "mmx"}, &device),
                   BK_ERR_ARGUMENT);
  unit_expect("unknown instruction set 'mmx'");
  ck_assert_int_eq(bk_device_open(ctx, "cpu:1", NULL, &device), BK_ERR_ABSENT);
  unit_expect("cpu");
}
END_TEST

int main(void) {
  const TTest *const tests[] = {products_past_one_tile,     grouped_products_of_uneven_groups,
                                attention_past_one_block,   attention_over_a_long_cache,
                                rope_past_its_table,        rmsnorm_gradient_of_many_rows,
                                instruction_sets_are_masked};
  Suite *suite = suite_create("cpu");
  unit_case(suite, "large shapes and masks", devices_open, devices_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}

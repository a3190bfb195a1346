/* The cpu backend: probe, description, device. The device owns its pool of workers; streams run
 * inline. */
#include "backends/cpu/cpu.h"
#include "backends/cpu/gemm.h"
#include "backends/cpu/rope.h"
#include <stdio.h>

#define ISA_NAME(isa, ISA, ...) #isa,
#define ISA_RUNS(isa, ISA, ...) isa##_runs,
#define ISA_LISTED(isa, ISA, ...) " " #isa

static const char *const isa_names[BK_CPU_ISA_COUNT] = {BK_CPU_ISAS(ISA_NAME, 0)};

/* The compiler's tests include the operating system's part. */
#ifdef BK_HAVE_AVX2
static bool avx2_runs(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#ifdef BK_HAVE_AVX512
static bool avx512_runs(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}
#endif
#ifdef BK_HAVE_NEON
static bool neon_runs(void) { return true; } /* part of the architecture */
#endif
static bool portable_runs(void) { return true; }

static bool (*const isa_runs[BK_CPU_ISA_COUNT])(void) = {BK_CPU_ISAS(ISA_RUNS, 0)};

const char *bk_cpu_isa_name(bk_cpu_isa isa) { return isa_names[isa]; }
bool bk_cpu_isa_runs(bk_cpu_isa isa) { return isa_runs[isa](); }

static bk_cpu_isa isa_detect(void) {
  int isa = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  while (!bk_cpu_isa_runs((bk_cpu_isa)isa)) isa++;
  return (bk_cpu_isa)isa;
}

/* `text` is an upper limit: what the machine lacks is not used whatever it says. */
static bk_status isa_limit(bk_context *ctx, const char *text, bk_cpu_isa *isa) {
  if (!text || !*text) return BK_OK;
  for (int i = 0; i < BK_CPU_ISA_COUNT; i++) {
    if (strcmp(text, isa_names[i])) continue;
    if ((bk_cpu_isa)i > *isa) *isa = (bk_cpu_isa)i;
    return BK_OK;
  }
  return bk_fail(ctx, BK_ERR_ARGUMENT, "cpu: unknown instruction set '%s' (known:%s)", text,
                 BK_CPU_ISAS(ISA_LISTED, 0));
}

static void cpu_close(bk_device *device) {
  bk_cpu_device *cpu = (bk_cpu_device *)device;
  bk_pool_destroy(cpu->pool);
  bk_cpu_rope_tables_free(cpu);
  bk_free(device->ctx, cpu);
}

static const bk_device_ops cpu_device_ops = {.close = cpu_close, BK_HOST_DEVICE_OPS};

static void props_fill(bk_device_props *props, bk_cpu_isa isa, bool blas, int threads) {
  snprintf(props->name, sizeof props->name, "host processor");
  snprintf(props->driver, sizeof props->driver, "%s, %s", isa_names[isa],
           blas ? bk_cpu_blas_name() : "built-in gemm");
  snprintf(props->isa, sizeof props->isa, "%s", isa_names[isa]);
  props->host_memory = true;
  props->max_alloc = SIZE_MAX;
  props->max_binding_range = SIZE_MAX;
  props->offset_alignment = 64;
  props->threads = threads;
  props->storage_dtypes = BK_DT(BK_F32) | BK_DT(BK_BF16);
}

/* BIRKHOFF_CPU_BLAS=0 never, 1 always; else where there are no fused multiply-adds: elsewhere
 * the packed engine is the faster one. */
static bool blas_wanted(const bk_context *ctx, bk_cpu_isa isa) {
  const char *text = bk_context_environment(ctx, "BIRKHOFF_CPU_BLAS");
  if (!bk_cpu_blas_built()) return false;
  return text && *text ? strcmp(text, "0") != 0 : isa == BK_CPU_PORTABLE;
}

static bk_status cpu_probe(bk_context *ctx, char *reason, size_t reason_size) {
  (void)ctx;
  if (reason_size) reason[0] = 0;
  return BK_OK;
}

static int cpu_device_count(bk_context *ctx) {
  (void)ctx;
  return 1;
}

static bk_status cpu_describe(bk_context *ctx, int index, bk_device_props *props,
                              size_t *memory_bytes) {
  if (index != 0)
    return bk_fail(ctx, BK_ERR_ABSENT, "cpu: no device %d, there is only cpu:0", index);
  bk_cpu_isa isa = isa_detect();
  BK_TRY(isa_limit(ctx, bk_context_environment(ctx, "BIRKHOFF_CPU_ISA"), &isa));
  bk_device_props p = {0};
  props_fill(&p, isa, blas_wanted(ctx, isa), bk_context_cpu_count(ctx));
  *props = p;
  *memory_bytes = bk_host_memory_total(ctx);
  return BK_OK;
}

static bk_status cpu_open(bk_context *ctx, int index, const bk_device_options *options,
                          bk_device **device) {
  if (index != 0)
    return bk_fail(ctx, BK_ERR_ABSENT, "cpu: no device %d, there is only cpu:0", index);
  bk_cpu_isa isa = isa_detect();
  BK_TRY(isa_limit(ctx, bk_context_environment(ctx, "BIRKHOFF_CPU_ISA"), &isa));
  BK_TRY(isa_limit(ctx, options ? options->isa : NULL, &isa));
  bk_cpu_device *cpu = bk_alloc(ctx, sizeof *cpu);
  if (!cpu) return BK_ERR_MEMORY;
  int threads = options && options->threads > 0 ? options->threads : bk_context_cpu_count(ctx);
  bk_status status = bk_pool_create(ctx, threads, &cpu->pool);
  if (status != BK_OK) {
    bk_free(ctx, cpu);
    return status;
  }
  bk_host_device_init(&cpu->base, ctx, &bk_backend_cpu, index, options, &cpu_device_ops);
  cpu->isa = isa;
  cpu->blas = blas_wanted(ctx, isa);
  if (cpu->blas) bk_cpu_blas_init();
  props_fill(&cpu->base.props, isa, cpu->blas, bk_pool_size(cpu->pool));
  *device = &cpu->base;
  return BK_OK;
}

const bk_backend bk_backend_cpu = BK_BACKEND(cpu, 10, bk_cpu_kernels);

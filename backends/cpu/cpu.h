/* cpu: the fast host backend. Storage fp32 and bf16, arithmetic in fp32.
 *
 * Kernels are written once, in `x_tmpl.c`, over the vector layer of simd.h, and the build
 * compiles every template once per instruction set of the list below with -DBK_ISA=<set> and the
 * set's flags (Makefile.am). Every exported name of a template is wrapped,
 * BK_ISA_NAME(bk_cpu_x), everything else in it is static. A new template is a line of
 * CPU_TEMPLATES in Makefile.am; a new set is an entry in the list, its test in cpu.c, a library
 * in Makefile.am and a line in m4/bk_cpu.m4. Kernels are listed in kernels.h (dense) and
 * kernels_hc.h (optimiser, residual connections); table.c makes the kernel table from the two
 * lists.
 *
 * A template kernel has the signature of bk_kernel.launch and the name
 * BK_ISA_NAME(bk_cpu_<kernel>). A kernel that needs a workspace or state also has, in a plain
 * file (compiled once, shared by all sets), `bk_cpu_<kernel>_prepare`; its state, if any, is one
 * bk_alloc block, which the table releases with bk_free.
 *
 * Work is split with bk_cpu_run: the pieces depend on shapes only, never on the number of
 * threads, so bits do not either. */
#ifndef BK_CPU_H
#define BK_CPU_H

#include "runtime/backend.h"
#include <string.h>

/* The instruction sets of this build (configure: --with-cpu-isa), best first; `portable` is
 * always there and last. X(set, SET, what the caller adds). */
#ifdef BK_HAVE_AVX512
#define BK_CPU_ISA_AVX512(X, ...) X(avx512, AVX512, __VA_ARGS__)
#else
#define BK_CPU_ISA_AVX512(X, ...)
#endif
#ifdef BK_HAVE_AVX2
#define BK_CPU_ISA_AVX2(X, ...) X(avx2, AVX2, __VA_ARGS__)
#else
#define BK_CPU_ISA_AVX2(X, ...)
#endif
#ifdef BK_HAVE_NEON
#define BK_CPU_ISA_NEON(X, ...) X(neon, NEON, __VA_ARGS__)
#else
#define BK_CPU_ISA_NEON(X, ...)
#endif
#define BK_CPU_ISAS(X, ...)         \
  BK_CPU_ISA_AVX512(X, __VA_ARGS__) \
  BK_CPU_ISA_AVX2(X, __VA_ARGS__)   \
  BK_CPU_ISA_NEON(X, __VA_ARGS__)   \
  X(portable, PORTABLE, __VA_ARGS__)

/* In the order of the list; a device permits its own and all after it. */
#define BK_CPU_ISA_ENUM(isa, ISA, ...) BK_CPU_##ISA,
typedef enum bk_cpu_isa { BK_CPU_ISAS(BK_CPU_ISA_ENUM, 0) BK_CPU_ISA_COUNT } bk_cpu_isa;
const char *bk_cpu_isa_name(bk_cpu_isa isa); /* "avx512" "avx2" "neon" "portable" */
bool bk_cpu_isa_runs(bk_cpu_isa isa);        /* whether this machine has it */

#define BK_ISA_PASTE_(name, isa) name##_##isa
#define BK_ISA_PASTE(name, isa) BK_ISA_PASTE_(name, isa)
#define BK_ISA_NAME(name) BK_ISA_PASTE(name, BK_ISA)

typedef struct bk_cpu_rope_table bk_cpu_rope_table; /* rope.h */

typedef struct bk_cpu_device {
  bk_device base;
  bk_pool *pool;
  bk_cpu_isa isa;
  /* made by prepare, shared by plans, freed when the device is closed */
  bk_cpu_rope_table *rope_tables;
  /* dense products through CBLAS; off with BIRKHOFF_CPU_BLAS=0 or where the build has none */
  bool blas;
} bk_cpu_device;

extern const bk_kernel bk_cpu_kernels[];

static inline const bk_cpu_device *bk_cpu_of(const bk_device *device) {
  return (const bk_cpu_device *)device;
}
static inline bk_pool *bk_cpu_pool(const bk_stream *stream) {
  return bk_cpu_of(stream->device)->pool;
}
/* Number of workers; the `worker` of a piece is below it: per-worker scratch is workspace +
 * worker * bytes. */
static inline int bk_cpu_workers(const bk_device *device) { return device->props.threads; }

/* Items per piece so that a piece moves about 32 KiB. */
static inline int64_t bk_cpu_grain(int64_t bytes_per_item) {
  int64_t grain = bytes_per_item > 0 ? 32768 / bytes_per_item : 32768;
  return grain > 0 ? grain : 1;
}
/* Splits [0, count) into pieces of `grain` shared by the workers; one piece runs inline. */
static inline void bk_cpu_run(const bk_stream *stream, int64_t count, int64_t grain, bk_pool_fn fn,
                              const void *arg) {
  if (count <= 0) return;
  if (count <= grain) fn((void *)arg, 0, count, 0);
  else bk_pool_run(bk_cpu_pool(stream), count, grain, fn, (void *)arg);
}

/* Address of row i of [N,...] and of (i,j) of [A,B,...], outer strides free. */
static inline char *bk_cpu_at(const bk_tensor *t, int64_t i) {
  return (char *)bk_tensor_data(t) + (size_t)(i * t->stride[0]) * (t->dtype == BK_BF16 ? 2 : 4);
}
static inline char *bk_cpu_at2(const bk_tensor *t, int64_t i, int64_t j) {
  return (char *)bk_tensor_data(t) +
         (size_t)(i * t->stride[0] + j * t->stride[1]) * (t->dtype == BK_BF16 ? 2 : 4);
}
static inline bool bk_cpu_is_bf16(const bk_tensor *t) { return t->dtype == BK_BF16; }
/* Element i of a dense row, any storage type of this backend. */
static inline float bk_cpu_get(const void *row, int64_t i, bool bf16) {
  return bf16 ? bk_bf16_to_f32(((const uint16_t *)row)[i]) : ((const float *)row)[i];
}
static inline void bk_cpu_put(void *row, int64_t i, bool bf16, float x) {
  if (bf16) ((uint16_t *)row)[i] = bk_f32_to_bf16(x);
  else ((float *)row)[i] = x;
}

/* Doubles summed per piece, then over pieces in order: partials[piece]. Piece of index `begin`:
 * begin / grain. */
static inline int64_t bk_cpu_pieces(int64_t count, int64_t grain) {
  return (count + grain - 1) / grain;
}

#endif

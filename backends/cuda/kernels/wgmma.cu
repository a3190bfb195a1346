/* GEMM, GROUPED_GEMM and GROUPED_WGRAD of bf16 operands on Hopper's warpgroup products (compute
 * capability 9.0 only: the instructions are in sm_90a alone). One kernel: a block has a tile of
 * 128 rows by 128 or 256 columns of the result, each of its two warpgroups 64 of the rows. All
 * 256 threads copy: a step of 64 along the inner dimension goes by cp.async into a ring of
 * stages, laid out as its matrix lies in memory and swizzled (wgmma.cuh), so that transposed
 * operands cost nothing. While the products of step k run, the copies of later steps are under
 * way and those of step k - 1 end; one barrier a step.
 *
 * Aim: the rate of the tensor cores. A step of a tile of 256 columns is 2 M multiply-adds, 1024
 * cycles of a multiprocessor's tensor cores, and reads 48 KB: 48 bytes a cycle, more than L2 is
 * known to give to all multiprocessors at once. So L2 is the likely limit; blocks of a cluster
 * that share what they read would ask half of it, but that needs tensor maps (TMA), which the
 * driver's API encodes. Nothing of this has been measured.
 *
 * Groups are known to the device alone: the grid has as many row tiles as the worst case of
 * offsets asks for (a partial tile for each group), each block finds its group by scanning the
 * offsets; blocks beyond the last tile end. The order of every sum is ascending along the inner
 * dimension and independent of grid and tile. */
#include "backends/cuda/kernels/wgmma.h"

#include <limits.h>

#include "backends/cuda/kernels/wgmma.cuh"

namespace {

using namespace bk_wgmma;

enum kind { DENSE, GROUPED, WGRAD };

/* a [m,k], b [k,n], c [m,n]. Strides are those between lines, whichever way these run, and
 * between matrices of a batch or of experts. GROUPED: m counts all rows; WGRAD: k does. */
struct problem {
  const bk_bf16 *a, *b;
  void *c;
  const int32_t *offsets;
  int64_t a_line, b_line, c_line, a_matrix, b_matrix, c_matrix;
  int m, n, k, groups, row_tiles;
  float alpha;
  int accumulate;
  kind what;
};

#if BK_SM90A

struct tile {
  const bk_bf16 *a, *b;
  int64_t c; /* of its first element */
  int rows, cols, depth;
};

/* Group and row of the group at which row tile `wanted` over all groups starts; group -1 if
 * there is none. Each warp for itself. */
BK_DEVICE int find_group(const int32_t *offsets, int groups, int wanted, int &first) {
  const int lane = (int)threadIdx.x % BK_WARP;
  for (int base = 0, before = 0; base < groups; base += BK_WARP) {
    const int e = base + lane < groups ? base + lane : groups - 1;
    const int mine = base + lane < groups ? (offsets[e + 1] - offsets[e] + BM - 1) / BM : 0;
    int through = mine;
#pragma unroll
    for (int d = 1; d < BK_WARP; d <<= 1) {
      const int left = __shfl_up_sync(BK_FULL_MASK, through, d);
      if (lane >= d) through += left;
    }
    const unsigned past = __ballot_sync(BK_FULL_MASK, before + through > wanted);
    if (past) {
      const int found = __ffs((int)past) - 1;
      first = (wanted - before - __shfl_sync(BK_FULL_MASK, through - mine, found)) * BM;
      return base + found;
    }
    before += __shfl_sync(BK_FULL_MASK, through, BK_WARP - 1);
  }
  return -1;
}

/* Tiles go in bands of 8 row tiles, column by column within a band, so that blocks at work
 * together share lines in L2. */
template <bool A_MN, bool B_MN, int BN>
BK_DEVICE bool find_tile(const problem &p, tile &t) {
  constexpr int band = 8;
  const int column_tiles = (p.n + BN - 1) / BN, per_band = band * column_tiles,
            id = (int)blockIdx.x;
  const int top = id / per_band * band, height = min(band, p.row_tiles - top),
            within = id % per_band;
  const int column = within / height * BN, matrix = (int)blockIdx.y;
  int row = (top + within % height) * BM, a_row = row, end = p.m, from = 0, expert = matrix;
  t.depth = p.k;
  if (p.what == GROUPED) {
    expert = find_group(p.offsets, p.groups, top + within % height, row);
    if (expert < 0) return false;
    a_row = row += p.offsets[expert];
    end = p.offsets[expert + 1];
  } else if (p.what == WGRAD) {
    from = p.offsets[expert];
    t.depth = p.offsets[expert + 1] - from;
    if (t.depth == 0 && p.accumulate) return false;
  }
  t.a = p.a + matrix * p.a_matrix + (A_MN ? from * p.a_line + a_row : a_row * p.a_line + from);
  t.b = p.b + expert * p.b_matrix + (B_MN ? from * p.b_line + column : column * p.b_line + from);
  t.c = expert * p.c_matrix + row * p.c_line + column;
  t.rows = end - row;
  t.cols = p.n - column;
  return true;
}

#endif

template <class T, bool A_MN, bool B_MN, int BN>
__global__ void __launch_bounds__(threads, shape<BN>::blocks) wgmma_kernel(problem p) {
#if BK_SM90A
  using ring = shape<BN>;
  tile t;
  if (!find_tile<A_MN, B_MN, BN>(p, t)) return;
  BK_SHARED_DYNAMIC(unsigned char, raw);
  unsigned char *shared = raw + (0u - bk_ptx_shared(raw)) % shared_alignment;
  loader<A_MN, BM> a;
  loader<B_MN, BN> b;
  a.start(t.a, p.a_line, t.rows, t.depth);
  b.start(t.b, p.b_line, t.cols, t.depth);
  const int steps = (t.depth + BK - 1) / BK;
  for (int s = 0; s < ring::ahead; s++) {
    if (s < steps) {
      a.copy(shared + s * ring::stage_bytes);
      b.copy(shared + s * ring::stage_bytes + ring::a_bytes);
    }
    bk_cp_async_commit();
  }
  /* Rows 64 .. 127 of a: 64 lines, or the second block; 8192 bytes either way. */
  const uint64_t a0 = descriptor<A_MN>(shared + threadIdx.x / 128 * 64 * line_bytes),
                 b0 = descriptor<B_MN>(shared + ring::a_bytes);
  float d[BN / 2];
#pragma unroll
  for (int i = 0; i < BN / 2; i++) d[i] = 0;
  bk_wgmma_hold(d);
  /* small groups leave the second warpgroup nothing but copies */
  const bool busy = (int)threadIdx.x / 128 * 64 < t.rows;
  for (int step = 0, stage = 0, fill = ring::ahead; step < steps; step++) {
    bk_cp_async_wait<ring::ahead - 1>(); /* this step is here: this thread's copies, */
    bk_fence_proxy_async();
    __syncthreads(); /* everybody's; and no product reads the stage of step - 2 any more */
    if (busy) {
      bk_wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK / 16; k++)
        bk_wgmma_bf16<A_MN, B_MN>(
            d, a0 + (uint64_t)(stage * (ring::stage_bytes / 16) + k * step_16<A_MN>),
            b0 + (uint64_t)(stage * (ring::stage_bytes / 16) + k * step_16<B_MN>));
      bk_wgmma_commit();
    }
    if (step + ring::ahead < steps) {
      a.copy(shared + fill * ring::stage_bytes);
      b.copy(shared + fill * ring::stage_bytes + ring::a_bytes);
    }
    bk_cp_async_commit();
    bk_wgmma_wait<1>(); /* the products of step - 1 are done */
    stage = stage + 1 == ring::stages ? 0 : stage + 1;
    fill = fill + 1 == ring::stages ? 0 : fill + 1;
  }
  bk_wgmma_wait<0>();
  bk_wgmma_hold(d);
  __syncthreads();
  store_tile<T, BN>(d, shared, static_cast<T *>(p.c) + t.c, p.c_line, t.rows, t.cols, p.alpha,
                    p.accumulate);
#else
  (void)p;
  __trap(); /* accepts lets no launch come here */
#endif
}

/* Its static shared memory says whether what was compiled for this device has the instructions:
 * code for sm_90 has not. */
__global__ void code_kernel(float *y) {
#if BK_SM90A
  __shared__ float mark[BK_WARP];
  mark[threadIdx.x] = y[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = mark[BK_WARP - 1 - threadIdx.x];
#else
  (void)y;
#endif
}

bool device_fits(const bk_device *device) {
  if (bk_cuda_of(device)->capability != 90) return false;
#ifdef BK_CUDA_ON_HOST
  (void)code_kernel;
  return true;
#else
  struct cudaFuncAttributes attributes;
  if (cudaSetDevice(bk_cuda_of(device)->ordinal) == cudaSuccess &&
      cudaFuncGetAttributes(&attributes, code_kernel) == cudaSuccess)
    return attributes.sharedSizeBytes >= BK_WARP * sizeof(float);
  (void)cudaGetLastError();
  return false;
#endif
}

/* ---- from tensors to a problem; false where this kernel is not for it ---- */

/* A bf16 operand with dimension `mn` of the result and the inner dimension `k`: 16-byte pieces
 * along either. */
bool operand(const bk_tensor *t, int mn, int k, bool &is_mn, int64_t &line) {
  is_mn = t->stride[k] != 1;
  line = t->stride[is_mn ? k : mn];
  return t->dtype == BK_BF16 && (!is_mn || t->stride[mn] == 1) && line >= 0 && line % 8 == 0 &&
         t->offset % 16 == 0 && (t->ndim == 2 || t->stride[0] % 8 == 0);
}

/* The result; rows run along `column`. */
bool result(const bk_tensor *t, int row, int column, int64_t &line) {
  const int64_t pack = t->dtype == BK_BF16 ? 8 : 4;
  line = t->stride[row];
  return (t->dtype == BK_BF16 || t->dtype == BK_F32) && t->stride[column] == 1 &&
         line % pack == 0 && t->offset % 16 == 0 && (t->ndim == 2 || t->stride[0] % pack == 0);
}

/* Below these sizes smaller tiles should be better (reckoned). */
bool size_fits(int64_t m, int64_t n, int64_t k) {
  return m >= 64 && n >= 64 && k >= 64 && m * n >= 64 * 128 && m < INT_MAX - BM &&
         n < INT_MAX - 256 && k < INT_MAX - BK;
}

struct launch_plan {
  problem p;
  bool a_mn, b_mn, f32;
  int matrices, columns; /* grid in y, BN */
};

/* 256 columns where they leave every multiprocessor a tile, and few columns past the end. */
bool fill_grid(const bk_device *device, launch_plan *l) {
  problem *p = &l->p;
  const int64_t wide = bk_ceil_div(p->n, 256) * p->row_tiles * l->matrices;
  l->columns = wide >= bk_cuda_of(device)->sm_count &&
                       bk_ceil_div(p->n, 256) * 256 * 8 <= bk_ceil_div(p->n, 128) * 128 * 9
                   ? 256
                   : 128;
  return bk_ceil_div(p->n, l->columns) * p->row_tiles <= INT_MAX && l->matrices <= 65535;
}

bool plan_gemm(const bk_device *device, const bk_gemm_args *g, launch_plan *l) {
  *l = {};
  problem *p = &l->p;
  const int r = g->c.ndim - 2, s = g->c.ndim - 1;
  const bool turned = g->c.stride[s] != 1; /* c^T = b^T a^T */
  const bk_tensor *a = turned ? &g->b : &g->a, *b = turned ? &g->a : &g->b;
  const int64_t m = g->c.shape[turned ? s : r], n = g->c.shape[turned ? r : s], k = g->a.shape[s];
  if (!size_fits(m, n, k) || (g->c.ndim == 3 && g->c.shape[0] > 65535) || g->c.ndim > 3)
    return false;
  if (!operand(a, turned ? s : r, turned ? r : s, l->a_mn, p->a_line) ||
      !operand(b, turned ? r : s, turned ? s : r, l->b_mn, p->b_line) ||
      !result(&g->c, turned ? s : r, turned ? r : s, p->c_line))
    return false;
  p->a = (const bk_bf16 *)bk_cuda_data(a), p->b = (const bk_bf16 *)bk_cuda_data(b),
  p->c = bk_cuda_data(&g->c);
  if (g->c.ndim == 3)
    p->a_matrix = a->stride[0], p->b_matrix = b->stride[0], p->c_matrix = g->c.stride[0];
  p->m = (int)m, p->n = (int)n, p->k = (int)k;
  p->row_tiles = (int)bk_ceil_div(m, BM);
  p->alpha = (float)g->alpha;
  p->accumulate = g->accumulate;
  p->what = DENSE;
  l->f32 = g->c.dtype == BK_F32;
  l->matrices = g->c.ndim == 3 ? (int)g->c.shape[0] : 1;
  return fill_grid(device, l);
}

bool plan_grouped(const bk_device *device, const bk_grouped_gemm_args *g, launch_plan *l) {
  *l = {};
  problem *p = &l->p;
  const int64_t m = g->a.shape[0], k = g->a.shape[1], n = g->c.shape[1], groups = g->b.shape[0];
  if (!size_fits(m, n, k) || groups > 65535 || m + groups * BM > INT_MAX) return false;
  if (!operand(&g->a, 0, 1, l->a_mn, p->a_line) || l->a_mn ||
      !operand(&g->b, 2, 1, l->b_mn, p->b_line) || !result(&g->c, 0, 1, p->c_line))
    return false;
  p->a = (const bk_bf16 *)bk_cuda_data(&g->a), p->b = (const bk_bf16 *)bk_cuda_data(&g->b),
  p->c = bk_cuda_data(&g->c);
  p->offsets = (const int32_t *)bk_cuda_data(&g->offsets);
  p->b_matrix = g->b.stride[0];
  p->m = (int)m, p->n = (int)n, p->k = (int)k, p->groups = (int)groups;
  /* each group ends with a partial tile at most */
  p->row_tiles = (int)((m + groups * (BM - 1)) / BM);
  p->alpha = 1;
  p->what = GROUPED;
  l->f32 = g->c.dtype == BK_F32;
  l->matrices = 1;
  return fill_grid(device, l);
}

bool plan_wgrad(const bk_device *device, const bk_grouped_wgrad_args *g, launch_plan *l) {
  *l = {};
  problem *p = &l->p;
  const int64_t groups = g->c.shape[0], m = g->c.shape[1], n = g->c.shape[2], rows = g->a.shape[0];
  if (!size_fits(m, n, rows) || groups > 65535) return false;
  if (!operand(&g->a, 1, 0, l->a_mn, p->a_line) || !operand(&g->b, 1, 0, l->b_mn, p->b_line) ||
      !l->a_mn || !l->b_mn || !result(&g->c, 1, 2, p->c_line))
    return false;
  p->a = (const bk_bf16 *)bk_cuda_data(&g->a), p->b = (const bk_bf16 *)bk_cuda_data(&g->b),
  p->c = bk_cuda_data(&g->c);
  p->offsets = (const int32_t *)bk_cuda_data(&g->offsets);
  p->c_matrix = g->c.stride[0];
  p->m = (int)m, p->n = (int)n, p->groups = (int)groups;
  p->row_tiles = (int)bk_ceil_div(m, BM);
  p->alpha = 1;
  p->accumulate = !g->overwrite;
  p->what = WGRAD;
  l->f32 = g->c.dtype == BK_F32;
  l->matrices = (int)groups;
  return l->f32 && fill_grid(device, l);
}

/* ---- launching ---- */

typedef void (*kernel_fn)(problem);

template <class T, bool A_MN, bool B_MN>
kernel_fn by_columns(int columns) {
  return columns == 256 ? wgmma_kernel<T, A_MN, B_MN, 256> : wgmma_kernel<T, A_MN, B_MN, 128>;
}
template <class T>
kernel_fn by_layout(const launch_plan *l) {
  if (l->a_mn)
    return l->b_mn ? by_columns<T, true, true>(l->columns) : by_columns<T, true, false>(l->columns);
  return l->b_mn ? by_columns<T, false, true>(l->columns) : by_columns<T, false, false>(l->columns);
}
kernel_fn pick(const launch_plan *l) {
  return l->f32 ? by_layout<float>(l) : by_layout<bk_bf16>(l);
}

int shared_of(const launch_plan *l) {
  return l->columns == 256 ? shape<256>::shared_bytes : shape<128>::shared_bytes;
}

bk_status prepare(bk_device *device, const launch_plan *l, void **state, size_t *workspace_bytes) {
  *state = NULL;
  *workspace_bytes = 0;
  const void *kernel = reinterpret_cast<const void *>(pick(l));
  cudaError_t error = cudaSetDevice(bk_cuda_of(device)->ordinal);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_of(l));
  /* all of it */
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  return error == cudaSuccess ? BK_OK
                              : bk_cuda_fail(device->ctx, error,
                                             "asking for the shared memory of a warpgroup product");
}

bk_status launch(bk_stream *stream, const bk_plan *plan, const launch_plan *l) {
  BK_TRY(bk_cuda_begin(stream, plan));
  const kernel_fn wgmma_kernel = pick(l);
  const dim3 grid((unsigned)(bk_ceil_div(l->p.n, l->columns) * l->p.row_tiles),
                  (unsigned)l->matrices);
  BK_LAUNCH((wgmma_kernel), grid, threads, shared_of(l), bk_cuda_raw(stream), l->p);
  return bk_cuda_end(stream);
}

/* Only offsets can differ from what was accepted. */
bk_status misplaced(bk_device *device) {
  return bk_fail(device->ctx, BK_ERR_ARGUMENT,
                 "cuda: a product of warpgroups was planned for operands at multiples of 16 bytes, "
                 "and one lies elsewhere");
}

} // namespace

#define WGMMA_OP(name, op)                                                                \
  extern "C" BK_CUDA_ACCEPTS(wgmma_##name) {                                              \
    launch_plan l;                                                                        \
    return device_fits(device) && plan_##op(device, (const bk_##name##_args *)args, &l);  \
  }                                                                                       \
  extern "C" BK_CUDA_PREPARE(wgmma_##name) {                                              \
    launch_plan l;                                                                        \
    if (!plan_##op(device, (const bk_##name##_args *)args, &l)) return misplaced(device); \
    return prepare(device, &l, state, workspace_bytes);                                   \
  }                                                                                       \
  extern "C" BK_CUDA_LAUNCH(wgmma_##name) {                                               \
    launch_plan l;                                                                        \
    (void)workspace;                                                                      \
    if (!plan_##op(stream->device, (const bk_##name##_args *)args, &l))                   \
      return misplaced(stream->device);                                                   \
    return launch(stream, plan, &l);                                                      \
  }

WGMMA_OP(gemm, gemm)
WGMMA_OP(grouped_gemm, grouped)
WGMMA_OP(grouped_wgrad, wgrad)

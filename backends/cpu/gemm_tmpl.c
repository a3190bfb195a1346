/* The tile of dense products, and GEMM, GROUPED_GEMM, GROUPED_WGRAD made of it; see gemm.h. Template, see cpu.h.
 *
 * Packed engine (Goto): panels of a in slivers of MR rows and of b in slivers of NR columns, each of depth KC; the micro
 * kernel keeps an MR x NR block of c in registers. */
#include "backends/cpu/gemm.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"

#define MR 6
#define NR (2 * BK_VW)
#define KC BK_GEMM_KC
/* Multiply-adds of a tile up to which the packed engine beats a call of CBLAS (measured with OpenBLAS 0.3.21). */
#define SMALL (BK_VW >= 8 ? (int64_t)1 << 18 : (int64_t)1 << 13)

/* ---- packing: dst[l * width + i] = element (i, l); lanes past `count` are zero ---- */
/* Rows i, i+1 (.. i+3) of the source into columns of dst, four elements of depth at a time. */
BK_INLINE void pack_two(const char *src, int64_t si, int64_t depth, float *dst, const int64_t width, const bool bf) {
  int64_t l = 0;
  for (; l + 4 <= depth; l += 4) {
    bk_v4 a = bk_v4_ld(src, l, bf), b = bk_v4_ld(src, l + si, bf);
    bk_v4 low = BK_V4_SHUFFLE(a, b, 0, 4, 1, 5), high = BK_V4_SHUFFLE(a, b, 2, 6, 3, 7);
    memcpy(dst + l * width, &low, 8);
    memcpy(dst + (l + 1) * width, (const char *)&low + 8, 8);
    memcpy(dst + (l + 2) * width, &high, 8);
    memcpy(dst + (l + 3) * width, (const char *)&high + 8, 8);
  }
  for (; l < depth; l++)
    for (int64_t q = 0; q < 2; q++) dst[l * width + q] = bk_cpu_get(src, l + q * si, bf);
}
BK_INLINE void pack_four(const char *src, int64_t si, int64_t depth, float *dst, const int64_t width, const bool bf) {
  int64_t l = 0;
  for (; l + 4 <= depth; l += 4) {
    bk_v4 x[4];
    for (int q = 0; q < 4; q++) x[q] = bk_v4_ld(src, l + q * si, bf);
    bk_v4_transpose(x);
    for (int q = 0; q < 4; q++) memcpy(dst + (l + q) * width, x + q, sizeof x[q]);
  }
  for (; l < depth; l++)
    for (int64_t q = 0; q < 4; q++) dst[l * width + q] = bk_cpu_get(src, l + q * si, bf);
}
BK_INLINE void pack_sliver(const char *src, int64_t si, int64_t sl, int64_t count, int64_t depth, float *dst,
                           const int64_t width, const bool bf) {
  if (si == 1 && count == width && width % BK_VW == 0) {
    for (int64_t l = 0; l < depth; l++)
      for (int64_t i = 0; i < width; i += BK_VW) bk_v_st(dst, l * width + i, false, bk_v_ld(src, l * sl + i, bf));
    return;
  }
  if (count < width) memset(dst, 0, (size_t)(depth * width) * sizeof *dst);
  if (si == 1) {
    for (int64_t l = 0; l < depth; l++)
      for (int64_t i = 0; i < count; i++) dst[l * width + i] = bk_cpu_get(src, l * sl + i, bf);
    return;
  }
  int64_t done = 0, bytes = si * (bf ? 2 : 4);
  if (sl == 1) {
    for (; done + 4 <= count; done += 4) pack_four(src + done * bytes, si, depth, dst + done, width, bf);
    for (; done + 2 <= count; done += 2) pack_two(src + done * bytes, si, depth, dst + done, width, bf);
  }
  for (int64_t i = done; i < count; i++)
    for (int64_t l = 0; l < depth; l++) dst[l * width + i] = bk_cpu_get(src, i * si + l * sl, bf);
}
/* si, sl: strides along the sliver and along the depth. */
BK_INLINE void pack_panel(bk_gemm_mat x, int64_t si, int64_t sl, int64_t size, int64_t depth, float *dst, const int64_t width) {
  for (int64_t i = 0; i < size; i += width) {
    int64_t count = size - i < width ? size - i : width;
    const char *src = x.data + i * si * (x.bf16 ? 2 : 4);
    if (x.bf16) pack_sliver(src, si, sl, count, depth, dst + i * depth, width, true);
    else pack_sliver(src, si, sl, count, depth, dst + i * depth, width, false);
  }
}

/* ---- micro kernel ---- */
#define MICRO_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define MICRO_ZERO(i) bk_vf c##i##0 = bk_v_zero(), c##i##1 = bk_v_zero();
#define MICRO_STEP(i) { bk_vf x = bk_v_set(a[i]); c##i##0 = c##i##0 + x * b0; c##i##1 = c##i##1 + x * b1; }
#define MICRO_STORE(i)                                                                                  \
  {                                                                                                     \
    float *row = c + i * ldc;                                                                           \
    bk_vf v0 = c##i##0 * alpha, v1 = c##i##1 * alpha;                                                   \
    if (add) v0 = v0 + bk_v_ld(row, 0, false), v1 = v1 + bk_v_ld(row, BK_VW, false);                    \
    bk_v_st(row, 0, false, v0), bk_v_st(row, BK_VW, false, v1);                                         \
  }
static void micro(int64_t depth, const float *restrict a, const float *restrict b, float *restrict c, int64_t ldc, float alpha,
                  bool add) {
  MICRO_ROWS(MICRO_ZERO)
  for (int64_t l = 0; l < depth; l++, a += MR, b += NR) {
    bk_vf b0 = bk_v_ld(b, 0, false), b1 = bk_v_ld(b, BK_VW, false);
    MICRO_ROWS(MICRO_STEP)
  }
  MICRO_ROWS(MICRO_STORE)
}
static void micro_edge(int64_t depth, const float *a, const float *b, float *c, int64_t ldc, int64_t m, int64_t n, float alpha,
                       bool add) {
  float block[MR * NR];
  micro(depth, a, b, block, NR, alpha, false);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) c[i * ldc + j] = block[i * NR + j] + (add ? c[i * ldc + j] : 0.f);
}
static void packed_block(bk_gemm_mat a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s, float alpha, bool add,
                         float *scratch) {
  float *pa = scratch, *pb = scratch + BK_ALIGN_UP(s.m, MR) * s.k;
  pack_panel(a, a.rs, a.cs, s.m, s.k, pa, MR);
  pack_panel(b, b.cs, b.rs, s.n, s.k, pb, NR);
  for (int64_t j = 0; j < s.n; j += NR)
    for (int64_t i = 0; i < s.m; i += MR) {
      float *at = c + i * ldc + j;
      int64_t m = s.m - i, n = s.n - j;
      if (m >= MR && n >= NR) micro(s.k, pa + i * s.k, pb + j * s.k, at, ldc, alpha, add);
      else micro_edge(s.k, pa + i * s.k, pb + j * s.k, at, ldc, m < MR ? m : MR, n < NR ? n : NR, alpha, add);
    }
}

/* ---- direct engine: few rows ---- */
/* Along the depth: four columns of b at a time. */
BK_INLINE void direct_dots(const float *a, bk_gemm_mat b, float *c, int64_t j, int64_t width, int64_t depth, float alpha,
                           bool add, const bool bf) {
  const char *b0 = b.data + j * b.cs * (bf ? 2 : 4);
  int64_t step = b.cs * (bf ? 2 : 4);
  bk_vf s[4] = {bk_v_zero(), bk_v_zero(), bk_v_zero(), bk_v_zero()};
  for (int64_t l = 0; l < depth; l += BK_VW) {
    bk_vf x = bk_v_get(a, l, false, depth - l);
    for (int q = 0; q < 4; q++)
      if (q < width) s[q] = s[q] + x * bk_v_get(b0 + q * step, l, bf, depth - l);
  }
  for (int q = 0; q < width; q++) c[j + q] = alpha * bk_v_hsum(s[q]) + (add ? c[j + q] : 0.f);
}
/* Along a row of b: four vectors of columns at a time. */
BK_INLINE void direct_axpy(const float *a, bk_gemm_mat b, float *c, int64_t j, int64_t width, int64_t depth, float alpha,
                           bool add, const bool bf) {
  bk_vf s[4] = {bk_v_zero(), bk_v_zero(), bk_v_zero(), bk_v_zero()};
  for (int64_t l = 0; l < depth; l++) {
    const char *row = b.data + (l * b.rs + j) * (bf ? 2 : 4);
    for (int q = 0; q < 4; q++)
      if (q * BK_VW < width) s[q] = s[q] + a[l] * bk_v_get(row, q * BK_VW, bf, width - q * BK_VW);
  }
  for (int q = 0; q * BK_VW < width; q++) {
    bk_vf v = s[q] * alpha;
    int64_t left = width - q * BK_VW;
    if (add) v = v + bk_v_get(c, j + q * BK_VW, false, left);
    bk_v_put(c, j + q * BK_VW, false, left, v);
  }
}
BK_INLINE void direct_columns(const float *a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s, float alpha, bool add,
                              const bool bf) {
  bool dots = s.n > 1 ? b.cs != 1 : b.rs == 1; /* a stride along a size of 1 says nothing */
  int64_t group = dots ? 4 : 4 * BK_VW;
  for (int64_t j = 0; j < s.n; j += group) {
    int64_t width = s.n - j < group ? s.n - j : group;
    for (int64_t i = 0; i < s.m; i++) {
      if (dots && width == 4) direct_dots(a + i * s.k, b, c + i * ldc, j, 4, s.k, alpha, add, bf);
      else if (dots) direct_dots(a + i * s.k, b, c + i * ldc, j, width, s.k, alpha, add, bf);
      else if (width == group) direct_axpy(a + i * s.k, b, c + i * ldc, j, 4 * BK_VW, s.k, alpha, add, bf);
      else direct_axpy(a + i * s.k, b, c + i * ldc, j, width, s.k, alpha, add, bf);
    }
  }
}
static void direct_block(bk_gemm_mat a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s, float alpha, bool add,
                         float *scratch) {
  for (int64_t i = 0; i < s.m; i++)
    for (int64_t l = 0; l < s.k; l++) scratch[i * s.k + l] = bk_cpu_get(a.data, i * a.rs + l * a.cs, a.bf16);
  if (b.bf16) direct_columns(scratch, b, c, ldc, s, alpha, add, true);
  else direct_columns(scratch, b, c, ldc, s, alpha, add, false);
}

/* ---- cblas engine ---- */
/* A dense fp32 copy in the orientation of the original. */
static bk_gemm_mat widened(bk_gemm_mat x, int64_t rows, int64_t columns, float *dst) {
  bool by_row = x.cs == 1 || columns == 1;
  int64_t outer = by_row ? rows : columns, n = by_row ? columns : rows, stride = by_row ? x.rs : x.cs;
  if (!x.bf16) return x;
  for (int64_t r = 0; r < outer; r++)
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(dst + r * n, i, false, n - i, bk_v_get(x.data + r * stride * 2, i, true, n - i));
  return (bk_gemm_mat){(char *)dst, by_row ? n : 1, by_row ? 1 : n, false};
}
static void blas_block(bk_gemm_mat a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s, float alpha, bool add,
                       float *scratch) {
  bk_gemm_mat out = {(char *)c, ldc, 1, false};
  a = widened(a, s.m, s.k, scratch);
  b = widened(b, s.k, s.n, scratch + BK_ALIGN_UP(s.m, 48) * KC);
  bk_cpu_blas_sgemm(a, b, out, s, alpha, add);
}

/* ---- tile ---- */
static void tile_store(const float *tile, bk_gemm_mat c, bk_gemm_shape s, bool accumulate) {
  for (int64_t i = 0; i < s.m; i++) {
    const float *from = tile + i * s.n;
    char *row = c.data + i * c.rs * (c.bf16 ? 2 : 4);
    if (c.bf16 && c.cs == 1) {
      for (int64_t j = 0; j < s.n; j += BK_VW) {
        bk_vf v = bk_v_get(from, j, false, s.n - j);
        if (accumulate) v = v + bk_v_get(row, j, true, s.n - j);
        bk_v_put(row, j, true, s.n - j, v);
      }
      continue;
    }
    for (int64_t j = 0; j < s.n; j++)
      bk_cpu_put(row, j * c.cs, c.bf16, from[j] + (accumulate ? bk_cpu_get(row, j * c.cs, c.bf16) : 0.f));
  }
}
void BK_ISA_NAME(bk_cpu_gemm_tile)(bool blas, bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, bk_gemm_shape s, float alpha,
                                   bool accumulate, float *scratch) {
  bool direct = s.m <= BK_GEMM_FEW;
  blas = blas && s.m * s.n * s.k > SMALL;
  bool through = c.bf16 || (c.cs != 1 && s.n > 1);
  float *tile = scratch + (BK_ALIGN_UP(s.m, 48) + BK_ALIGN_UP(s.n, 64)) * KC;
  float *out = through ? tile : (float *)(void *)c.data;
  int64_t ldc = through ? s.n : c.rs, depth = blas && !direct && !a.bf16 && !b.bf16 ? s.k : KC;
  bool add = accumulate && !through;
  if (s.k == 0 && !add)
    for (int64_t i = 0; i < s.m; i++) memset(out + i * ldc, 0, (size_t)s.n * sizeof *out);
  for (int64_t l = 0; l < s.k; l += depth, add = true) {
    bk_gemm_shape part = {s.m, s.n, s.k - l < depth ? s.k - l : depth};
    bk_gemm_mat pa = bk_cpu_gemm_sub(a, 0, l), pb = bk_cpu_gemm_sub(b, l, 0);
    if (direct) direct_block(pa, pb, out, ldc, part, alpha, add, scratch);
    else if (blas) blas_block(pa, pb, out, ldc, part, alpha, add, scratch);
    else packed_block(pa, pb, out, ldc, part, alpha, add, scratch);
  }
  if (through) tile_store(tile, c, s, accumulate);
}
#define TILE BK_ISA_NAME(bk_cpu_gemm_tile)

/* ---- gemm: items are (batch, tile row, tile column) ---- */
typedef struct gemm_job {
  bk_gemm_mat a, b, c;
  int64_t batch_a, batch_b, batch_c; /* bytes */
  bk_gemm_shape s;
  bk_gemm_cut cut;
  float alpha;
  bool accumulate, blas;
  void *workspace;
  size_t scratch;
} gemm_job;

static void gemm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const gemm_job *job = arg;
  const bk_gemm_cut *cut = &job->cut;
  for (int64_t item = begin; item < end; item++) {
    int64_t j = item % cut->columns * cut->tn, i = item / cut->columns % cut->rows * cut->tm;
    int64_t batch = item / cut->columns / cut->rows;
    bk_gemm_shape s = {job->s.m - i < cut->tm ? job->s.m - i : cut->tm, job->s.n - j < cut->tn ? job->s.n - j : cut->tn, job->s.k};
    bk_gemm_mat a = bk_cpu_gemm_sub(job->a, i, 0), b = bk_cpu_gemm_sub(job->b, 0, j), c = bk_cpu_gemm_sub(job->c, i, j);
    a.data += batch * job->batch_a, b.data += batch * job->batch_b, c.data += batch * job->batch_c;
    TILE(job->blas, a, b, c, s, job->alpha, job->accumulate, bk_cpu_gemm_worker(job->workspace, worker, job->scratch));
  }
}
/* c = a b is turned into c^T = b^T a^T where c is dense by columns, or a single column. */
static void gemm_orient(gemm_job *job) {
  if (job->s.n > 1 && (job->c.cs == 1 || job->c.rs != 1 || job->s.m == 1)) return;
  bk_gemm_mat a = job->a;
  int64_t batch_a = job->batch_a, m = job->s.m;
  job->a = bk_cpu_gemm_transposed(job->b), job->b = bk_cpu_gemm_transposed(a), job->c = bk_cpu_gemm_transposed(job->c);
  job->batch_a = job->batch_b, job->batch_b = batch_a;
  job->s.m = job->s.n, job->s.n = m;
}
static int64_t batch_bytes(const bk_tensor *t) {
  return t->ndim == 3 ? t->stride[0] * (int64_t)bk_dtype_size(t->dtype) : 0;
}
/* Tiles per piece, so that a piece has work for some microseconds. */
static int64_t tiles_grain(bk_gemm_shape s, const bk_gemm_cut *cut) {
  int64_t m = s.m < cut->tm ? s.m : cut->tm, n = s.n < cut->tn ? s.n : cut->tn, work = m * n * (s.k + 1);
  return work >= 131072 ? 1 : 131072 / (work > 0 ? work : 1) + 1;
}
bk_status BK_ISA_NAME(bk_cpu_gemm)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_gemm_args *a = args;
  int d = a->c.ndim - 2;
  gemm_job job = {
    .a = bk_cpu_gemm_view(&a->a, d), .b = bk_cpu_gemm_view(&a->b, d), .c = bk_cpu_gemm_view(&a->c, d),
    .batch_a = batch_bytes(&a->a), .batch_b = batch_bytes(&a->b), .batch_c = batch_bytes(&a->c),
    .s = {a->c.shape[d], a->c.shape[d + 1], a->a.shape[d + 1]},
    .alpha = (float)a->alpha, .accumulate = a->accumulate, .blas = bk_cpu_of(stream->device)->blas,
    .workspace = bk_place_data(workspace),
  };
  (void)plan;
  gemm_orient(&job);
  job.cut = bk_cpu_gemm_cut(job.s.m, job.s.n, job.s.k);
  job.scratch = bk_cpu_gemm_scratch(job.cut.tm, job.cut.tn);
  int64_t batches = d ? a->c.shape[0] : 1;
  bk_cpu_run(stream, batches * job.cut.rows * job.cut.columns, tiles_grain(job.s, &job.cut), gemm_piece, &job);
  return BK_OK;
}

/* ---- grouped_gemm: items are (expert, block of its rows, tile column); which, is read from the offsets ---- */
typedef struct grouped_job {
  bk_gemm_mat a, b, c; /* b: of expert 0 */
  int64_t batch_b, batch_c, n_experts;
  const int32_t *offsets;
  bk_gemm_shape s; /* m: unused */
  bk_gemm_cut cut;
  bool blas;
  void *workspace;
  size_t scratch;
} grouped_job;

static int64_t grouped_blocks(const grouped_job *job, int64_t e) {
  return (job->offsets[e + 1] - job->offsets[e] + job->cut.tm - 1) / job->cut.tm;
}
static void grouped_gemm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const grouped_job *job = arg;
  const bk_gemm_cut *cut = &job->cut;
  int64_t e = 0, first = 0; /* expert, and its first block */
  for (int64_t item = begin; item < end; item++) {
    int64_t block = item / cut->columns, j = item % cut->columns * cut->tn;
    while (block >= first + grouped_blocks(job, e)) first += grouped_blocks(job, e), e++;
    int64_t i = job->offsets[e] + (block - first) * cut->tm, rows = job->offsets[e + 1] - i;
    bk_gemm_shape s = {rows < cut->tm ? rows : cut->tm, job->s.n - j < cut->tn ? job->s.n - j : cut->tn, job->s.k};
    bk_gemm_mat b = bk_cpu_gemm_sub(job->b, 0, j);
    b.data += e * job->batch_b;
    TILE(job->blas, bk_cpu_gemm_sub(job->a, i, 0), b, bk_cpu_gemm_sub(job->c, i, j), s, 1.f, false,
         bk_cpu_gemm_worker(job->workspace, worker, job->scratch));
  }
}
bk_status BK_ISA_NAME(bk_cpu_grouped_gemm)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_grouped_gemm_args *a = args;
  grouped_job job = {
    .a = bk_cpu_gemm_view(&a->a, 0), .b = bk_cpu_gemm_view(&a->b, 1), .c = bk_cpu_gemm_view(&a->c, 0),
    .batch_b = batch_bytes(&a->b), .n_experts = a->b.shape[0], .offsets = bk_tensor_data(&a->offsets),
    .s = {a->a.shape[0], a->c.shape[1], a->a.shape[1]}, .blas = bk_cpu_of(stream->device)->blas,
    .workspace = bk_place_data(workspace),
  };
  int64_t blocks = 0;
  (void)plan;
  job.cut = bk_cpu_gemm_cut(job.s.m, job.s.n, job.s.k);
  job.scratch = bk_cpu_gemm_scratch(job.cut.tm, job.cut.tn);
  for (int64_t e = 0; e < job.n_experts; e++) blocks += grouped_blocks(&job, e);
  bk_cpu_run(stream, blocks * job.cut.columns, 1, grouped_gemm_piece, &job);
  return BK_OK;
}

/* ---- grouped_wgrad: items are (expert, tile row, tile column) ---- */
static void grouped_wgrad_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const grouped_job *job = arg;
  const bk_gemm_cut *cut = &job->cut;
  for (int64_t item = begin; item < end; item++) {
    int64_t j = item % cut->columns * cut->tn, i = item / cut->columns % cut->rows * cut->tm;
    int64_t e = item / cut->columns / cut->rows, row = job->offsets[e], rows = job->offsets[e + 1] - row;
    if (rows == 0) continue;
    bk_gemm_shape s = {job->s.m - i < cut->tm ? job->s.m - i : cut->tm, job->s.n - j < cut->tn ? job->s.n - j : cut->tn, rows};
    bk_gemm_mat c = bk_cpu_gemm_sub(job->c, i, j);
    c.data += e * job->batch_c;
    TILE(job->blas, bk_cpu_gemm_transposed(bk_cpu_gemm_sub(job->a, row, i)), bk_cpu_gemm_sub(job->b, row, j), c, s, 1.f, true,
         bk_cpu_gemm_worker(job->workspace, worker, job->scratch));
  }
}
bk_status BK_ISA_NAME(bk_cpu_grouped_wgrad)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_grouped_wgrad_args *a = args;
  grouped_job job = {
    .a = bk_cpu_gemm_view(&a->a, 0), .b = bk_cpu_gemm_view(&a->b, 0), .c = bk_cpu_gemm_view(&a->c, 1),
    .batch_c = batch_bytes(&a->c), .n_experts = a->c.shape[0], .offsets = bk_tensor_data(&a->offsets),
    .s = {a->c.shape[1], a->c.shape[2], a->a.shape[0]}, .blas = bk_cpu_of(stream->device)->blas,
    .workspace = bk_place_data(workspace),
  };
  (void)plan;
  job.cut = bk_cpu_gemm_cut(job.s.m, job.s.n, job.s.k);
  job.scratch = bk_cpu_gemm_scratch(job.cut.tm, job.cut.tn);
  bk_cpu_run(stream, job.n_experts * job.cut.rows * job.cut.columns, 1, grouped_wgrad_piece, &job);
  return BK_OK;
}

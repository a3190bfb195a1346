/* The tile of dense products, and GEMM, GROUPED_GEMM, GROUPED_WGRAD made of it; see gemm.h.
 * Template, see cpu.h.
 *
 * Packed engine (Goto): panels of a in slivers of MR rows and of b in slivers of NR columns,
 * each of depth KC; the micro kernel keeps an MR x NR block of c in registers while a sliver of
 * b stays in the first cache. */
#include "backends/cpu/gemm.h"
#include "backends/cpu/gemm_direct.h"
#include "backends/cpu/gemm_micro.h"
#include "backends/cpu/gemm_pack.h"
#include "backends/cpu/kernels.h"

#define KC BK_GEMM_KC

/* ---- packed engine ---- */
/* The panel of b that follows, `depth` deep: fetched while this one is worked on. */
static micro_fetch fetch_panel(bk_gemm_mat b, bk_gemm_shape s, int64_t depth) {
  int64_t size = b.bf16 ? 2 : 4, rows = b.cs == 1 ? depth : s.n, run = b.cs == 1 ? s.n : depth;
  micro_fetch f = {.base = bk_cpu_gemm_sub(b, s.k, 0).data,
                   .pitch = (b.cs == 1 ? b.rs : b.cs) * size,
                   .lines = (run * size + 63) / 64};
  f.count = rows * f.lines;
  f.share = f.count / ((s.n + NR - 1) / NR * ((s.m + MR - 1) / MR)) + 1;
  return f;
}
static void packed_block(bk_gemm_mat a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s,
                         float alpha, bool add, float *scratch, int64_t following) {
  float *pa = scratch, *pb = scratch + BK_ALIGN_UP(s.m, 48) * s.k;
  pack_a(a, s.m, s.k, pa);
  pack_b(b, s.n, s.k, pb);
  micro_fetch fetch = fetch_panel(b, s, following);
  micro_panels(pa, s.k * MR, s.m, pb, s.n, s.k, c, ldc, alpha, add, following ? &fetch : NULL);
}

/* ---- cblas engine ---- */
/* A dense fp32 copy in the orientation of the original. */
static bk_gemm_mat widened(bk_gemm_mat x, int64_t rows, int64_t columns, float *dst) {
  bool by_row = x.cs == 1 || columns == 1;
  int64_t outer = by_row ? rows : columns, n = by_row ? columns : rows,
          stride = by_row ? x.rs : x.cs;
  if (!x.bf16) return x;
  for (int64_t r = 0; r < outer; r++)
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(dst + r * n, i, false, n - i, bk_v_get(x.data + r * stride * 2, i, true, n - i));
  return (bk_gemm_mat){(char *)dst, by_row ? n : 1, by_row ? 1 : n, false};
}
static void blas_block(bk_gemm_mat a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s,
                       float alpha, bool add, float *scratch) {
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
      bk_cpu_put(row, j * c.cs, c.bf16,
                 from[j] + (accumulate ? bk_cpu_get(row, j * c.cs, c.bf16) : 0.f));
  }
}
void BK_ISA_NAME(bk_cpu_gemm_tile)(bk_gemm_engine engine, bk_gemm_mat a, bk_gemm_mat b,
                                   bk_gemm_mat c, bk_gemm_shape s, float alpha, bool accumulate,
                                   float *scratch) {
  bool through = c.bf16 || (c.cs != 1 && s.n > 1);
  float *tile = scratch + (BK_ALIGN_UP(s.m, 48) + BK_ALIGN_UP(s.n, 64)) * KC;
  float *out = through ? tile : (float *)(void *)c.data;
  int64_t ldc = through ? s.n : c.rs,
          depth = engine == BK_GEMM_BLAS && !a.bf16 && !b.bf16 ? s.k : KC;
  bool add = accumulate && !through;
  if (s.k == 0 && !add)
    for (int64_t i = 0; i < s.m; i++) memset(out + i * ldc, 0, (size_t)s.n * sizeof *out);
  for (int64_t l = 0; l < s.k; l += depth, add = true) {
    bk_gemm_shape part = {s.m, s.n, s.k - l < depth ? s.k - l : depth};
    bk_gemm_mat pa = bk_cpu_gemm_sub(a, 0, l), pb = bk_cpu_gemm_sub(b, l, 0);
    if (engine == BK_GEMM_DIRECT) direct_block(pa, pb, out, ldc, part, alpha, add, scratch);
    else if (engine == BK_GEMM_BLAS) blas_block(pa, pb, out, ldc, part, alpha, add, scratch);
    else
      packed_block(pa, pb, out, ldc, part, alpha, add, scratch,
                   s.k - l - part.k < KC ? s.k - l - part.k : KC);
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
  bk_gemm_engine engine;
  float alpha;
  bool accumulate;
  void *workspace;
  size_t scratch;
} gemm_job;

static void gemm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const gemm_job *job = arg;
  const bk_gemm_cut *cut = &job->cut;
  for (int64_t item = begin; item < end; item++) {
    int64_t j = item % cut->columns * cut->tn, i = item / cut->columns % cut->rows * cut->tm;
    int64_t batch = item / cut->columns / cut->rows;
    bk_gemm_shape s = {job->s.m - i < cut->tm ? job->s.m - i : cut->tm,
                       job->s.n - j < cut->tn ? job->s.n - j : cut->tn, job->s.k};
    bk_gemm_mat a = bk_cpu_gemm_sub(job->a, i, 0), b = bk_cpu_gemm_sub(job->b, 0, j),
                c = bk_cpu_gemm_sub(job->c, i, j);
    a.data += batch * job->batch_a, b.data += batch * job->batch_b, c.data += batch * job->batch_c;
    TILE(job->engine, a, b, c, s, job->alpha, job->accumulate,
         bk_cpu_gemm_worker(job->workspace, worker, job->scratch));
  }
}
static void gemm_turn(gemm_job *job) {
  bk_gemm_mat a = job->a;
  int64_t batch_a = job->batch_a, m = job->s.m;
  job->a = bk_cpu_gemm_transposed(job->b), job->b = bk_cpu_gemm_transposed(a),
  job->c = bk_cpu_gemm_transposed(job->c);
  job->batch_a = job->batch_b, job->batch_b = batch_a;
  job->s.m = job->s.n, job->s.n = m;
}
static int64_t batch_bytes(const bk_tensor *t) {
  return t->ndim == 3 ? t->stride[0] * (int64_t)bk_dtype_size(t->dtype) : 0;
}
/* Tiles per piece, so that a piece has work for some microseconds. */
static int64_t tiles_grain(bk_gemm_shape s, const bk_gemm_cut *cut) {
  int64_t m = s.m < cut->tm ? s.m : cut->tm, n = s.n < cut->tn ? s.n : cut->tn,
          work = m * n * (s.k + 1);
  return work >= 131072 ? 1 : 131072 / (work > 0 ? work : 1) + 1;
}
bk_status BK_ISA_NAME(bk_cpu_gemm)(bk_stream *stream, const bk_plan *plan, const void *args,
                                   bk_place workspace) {
  const bk_gemm_args *a = args;
  const bk_gemm_state *made = plan->state;
  int d = a->c.ndim - 2;
  gemm_job job = {
      .a = bk_cpu_gemm_view(&a->a, d),
      .b = bk_cpu_gemm_view(&a->b, d),
      .c = bk_cpu_gemm_view(&a->c, d),
      .batch_a = batch_bytes(&a->a),
      .batch_b = batch_bytes(&a->b),
      .batch_c = batch_bytes(&a->c),
      .s = {a->c.shape[d], a->c.shape[d + 1], a->a.shape[d + 1]},
      .alpha = (float)a->alpha,
      .accumulate = a->accumulate,
      .cut = made->cut,
      .workspace = bk_place_data(workspace),
      .scratch = made->scratch,
  };
  if (made->turned) gemm_turn(&job);
  job.engine = bk_cpu_gemm_engine(bk_cpu_of(stream->device)->blas, job.s.m);
  int64_t batches = d ? a->c.shape[0] : 1;
  bk_cpu_run(stream, batches * job.cut.rows * job.cut.columns, tiles_grain(job.s, &job.cut),
             gemm_piece, &job);
  return BK_OK;
}

/* ---- grouped_gemm: items are (expert, block of its rows, tile column); which, is read from the
 * offsets ---- */
typedef struct grouped_job {
  bk_gemm_mat a, b, c; /* b: of expert 0 */
  int64_t batch_b, batch_c, n_experts;
  const int32_t *offsets;
  bool overwrite;  /* grouped_wgrad */
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
    bk_gemm_shape s = {rows < cut->tm ? rows : cut->tm,
                       job->s.n - j < cut->tn ? job->s.n - j : cut->tn, job->s.k};
    bk_gemm_mat b = bk_cpu_gemm_sub(job->b, 0, j);
    b.data += e * job->batch_b;
    bk_gemm_engine engine = bk_cpu_gemm_engine(job->blas, job->offsets[e + 1] - job->offsets[e]);
    TILE(engine, bk_cpu_gemm_sub(job->a, i, 0), b, bk_cpu_gemm_sub(job->c, i, j), s, 1.f, false,
         bk_cpu_gemm_worker(job->workspace, worker, job->scratch));
  }
}
bk_status BK_ISA_NAME(bk_cpu_grouped_gemm)(bk_stream *stream, const bk_plan *plan, const void *args,
                                           bk_place workspace) {
  const bk_grouped_gemm_args *a = args;
  grouped_job job = {
      .a = bk_cpu_gemm_view(&a->a, 0),
      .b = bk_cpu_gemm_view(&a->b, 1),
      .c = bk_cpu_gemm_view(&a->c, 0),
      .batch_b = batch_bytes(&a->b),
      .n_experts = a->b.shape[0],
      .offsets = bk_tensor_data(&a->offsets),
      .s = {a->a.shape[0], a->c.shape[1], a->a.shape[1]},
      .blas = bk_cpu_of(stream->device)->blas,
      .workspace = bk_place_data(workspace),
  };
  int64_t blocks = 0;
  (void)plan;
  job.cut = bk_cpu_gemm_grouped_cut(stream->device, job.n_experts, job.s.m, job.s.n);
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
    int64_t e = item / cut->columns / cut->rows, row = job->offsets[e],
            rows = job->offsets[e + 1] - row;
    bk_gemm_shape s = {job->s.m - i < cut->tm ? job->s.m - i : cut->tm,
                       job->s.n - j < cut->tn ? job->s.n - j : cut->tn, rows};
    bk_gemm_mat c = bk_cpu_gemm_sub(job->c, i, j);
    c.data += e * job->batch_c;
    TILE(bk_cpu_gemm_engine(job->blas, job->s.m),
         bk_cpu_gemm_transposed(bk_cpu_gemm_sub(job->a, row, i)), bk_cpu_gemm_sub(job->b, row, j),
         c, s, 1.f, !job->overwrite, bk_cpu_gemm_worker(job->workspace, worker, job->scratch));
  }
}
bk_status BK_ISA_NAME(bk_cpu_grouped_wgrad)(bk_stream *stream, const bk_plan *plan,
                                            const void *args, bk_place workspace) {
  const bk_grouped_wgrad_args *a = args;
  grouped_job job = {
      .a = bk_cpu_gemm_view(&a->a, 0),
      .b = bk_cpu_gemm_view(&a->b, 0),
      .c = bk_cpu_gemm_view(&a->c, 1),
      .batch_c = batch_bytes(&a->c),
      .n_experts = a->c.shape[0],
      .overwrite = a->overwrite,
      .offsets = bk_tensor_data(&a->offsets),
      .s = {a->c.shape[1], a->c.shape[2], a->a.shape[0]},
      .blas = bk_cpu_of(stream->device)->blas,
      .workspace = bk_place_data(workspace),
  };
  (void)plan;
  job.cut = bk_cpu_gemm_grouped_cut(stream->device, job.n_experts, job.s.m, job.s.n);
  job.scratch = bk_cpu_gemm_scratch(job.cut.tm, job.cut.tn);
  bk_cpu_run(stream, job.n_experts * job.cut.rows * job.cut.columns, 1, grouped_wgrad_piece, &job);
  return BK_OK;
}

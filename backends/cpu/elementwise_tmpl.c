/* COPY, ADD, SUM, CACHE_WRITE, SWIGLU and its backward; formulas in runtime/op.h. Template, see
 * cpu.h. */
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/walk.h"

/* ---- copy: bits where the types agree, else converted ---- */
typedef struct copy_job {
  bk_cpu_walk walk;
  bool same;
} copy_job;

BK_INLINE void copy_dense(const char *x, char *y, int64_t n, const bool bx, const bool by) {
  for (int64_t i = 0; i < n; i += BK_VW) bk_v_put(y, i, by, n - i, bk_v_get(x, i, bx, n - i));
}
BK_INLINE void copy_strided(const char *x, int64_t sx, char *y, int64_t sy, int64_t n,
                            const bool bx, const bool by) {
  for (int64_t i = 0; i < n; i++) bk_cpu_put(y, i * sy, by, bk_cpu_get(x, i * sx, bx));
}
BK_INLINE void copy_elements(const char *x, int64_t sx, char *y, int64_t sy, int64_t n,
                             const size_t size) {
  for (int64_t i = 0; i < n; i++)
    memcpy(y + i * sy * (int64_t)size, x + i * sx * (int64_t)size, size);
}
static void copy_bits(const bk_cpu_walk *w, char *const *at, int64_t n) {
  int64_t sx = w->inner[0], sy = w->inner[1];
  if (sx == 1 && sy == 1) memcpy(at[1], at[0], (size_t)n * w->esize[0]);
  else if (w->esize[0] == 1) copy_elements(at[0], sx, at[1], sy, n, 1);
  else if (w->esize[0] == 2) copy_elements(at[0], sx, at[1], sy, n, 2);
  else if (w->esize[0] == 4) copy_elements(at[0], sx, at[1], sy, n, 4);
  else copy_elements(at[0], sx, at[1], sy, n, 8);
}
BK_INLINE void copy_convert(const bk_cpu_walk *w, char *const *at, int64_t n, const bool widen) {
  if (w->inner[0] == 1 && w->inner[1] == 1) copy_dense(at[0], at[1], n, widen, !widen);
  else copy_strided(at[0], w->inner[0], at[1], w->inner[1], n, widen, !widen);
}
static void copy_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const copy_job *job = arg;
  const bk_cpu_walk *w = &job->walk;
  char *at[BK_CPU_WALK_MAX];
  (void)worker;
  for (int64_t item = begin; item < end; item++) {
    int64_t n = bk_cpu_walk_item(w, item, at);
    if (job->same) copy_bits(w, at, n);
    else if (w->esize[0] == 2) copy_convert(w, at, n, true);
    else copy_convert(w, at, n, false);
  }
}
bk_status BK_ISA_NAME(bk_cpu_copy)(bk_stream *stream, const bk_plan *plan, const void *args,
                                   bk_place workspace) {
  const bk_copy_args *a = args;
  copy_job job = {.same = a->x.dtype == a->y.dtype};
  (void)plan, (void)workspace;
  bk_cpu_walk_make(&job.walk, 2, (const bk_tensor *[]){&a->x, &a->y});
  bk_cpu_run(stream, bk_cpu_walk_items(&job.walk), bk_cpu_walk_grain(&job.walk), copy_piece, &job);
  return BK_OK;
}

/* ---- add ---- */
BK_INLINE void add_items(const bk_cpu_walk *w, int64_t begin, int64_t end, const bool bf) {
  char *at[BK_CPU_WALK_MAX];
  for (int64_t item = begin; item < end; item++) {
    int64_t n = bk_cpu_walk_item(w, item, at);
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(at[2], i, bf, n - i, bk_v_get(at[0], i, bf, n - i) + bk_v_get(at[1], i, bf, n - i));
  }
}
static void add_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_cpu_walk *w = arg;
  (void)worker;
  if (w->esize[0] == 2) add_items(w, begin, end, true);
  else add_items(w, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_add)(bk_stream *stream, const bk_plan *plan, const void *args,
                                  bk_place workspace) {
  const bk_add_args *a = args;
  bk_cpu_walk w;
  (void)plan, (void)workspace;
  bk_cpu_walk_make(&w, 3, (const bk_tensor *[]){&a->a, &a->b, &a->y});
  bk_cpu_run(stream, bk_cpu_walk_items(&w), bk_cpu_walk_grain(&w), add_piece, &w);
  return BK_OK;
}

/* ---- sum: in double; the pieces' sums are added in order ---- */
typedef struct sum_job {
  const bk_sum_args *a;
  double *partial;
} sum_job;
static void sum_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const sum_job *job = arg;
  const float *x = bk_tensor_data(&job->a->x);
  int64_t stride = job->a->x.stride[0], i = begin;
  double s[4] = {0};
  (void)worker;
  for (; i + 4 <= end; i += 4)
    for (int l = 0; l < 4; l++) s[l] += x[(i + l) * stride];
  for (; i < end; i++) s[0] += x[i * stride];
  job->partial[begin / BK_CPU_WALK_CHUNK] = (s[0] + s[1]) + (s[2] + s[3]);
}
bk_status BK_ISA_NAME(bk_cpu_sum)(bk_stream *stream, const bk_plan *plan, const void *args,
                                  bk_place workspace) {
  const bk_sum_args *a = args;
  sum_job job = {a, bk_place_data(workspace)};
  float *y = bk_tensor_data(&a->y);
  double total = 0;
  (void)plan;
  bk_cpu_run(stream, a->x.shape[0], BK_CPU_WALK_CHUNK, sum_piece, &job);
  for (int64_t p = 0; p < bk_cpu_pieces(a->x.shape[0], BK_CPU_WALK_CHUNK); p++)
    total += job.partial[p];
  *y = (float)(a->accumulate ? *y + total : total);
  return BK_OK;
}

/* ---- cache_write: items are (b, t) ---- */
typedef struct cache_job {
  const bk_cache_write_args *a;
  int64_t past;
} cache_job;
static void cache_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const cache_job *job = arg;
  const bk_tensor *x = &job->a->x, *y = &job->a->y;
  size_t esize = bk_dtype_size(x->dtype), bytes = (size_t)x->shape[3] * esize;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    int64_t b = i / x->shape[1], t = i % x->shape[1];
    if (job->past + t >= y->shape[1]) continue;
    const char *from = bk_cpu_at2(x, b, t);
    char *to = bk_cpu_at2(y, b, job->past + t);
    for (int64_t h = 0; h < x->shape[2]; h++)
      memcpy(to + (size_t)(h * y->stride[2]) * esize, from + (size_t)(h * x->stride[2]) * esize,
             bytes);
  }
}
bk_status BK_ISA_NAME(bk_cpu_cache_write)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_cache_write_args *a = args;
  cache_job job = {a, bk_tensor_present(&a->past) ? *(const int32_t *)bk_tensor_data(&a->past) : 0};
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0] * a->x.shape[1], bk_cpu_grain(8 * a->x.shape[2] * a->x.shape[3]),
             cache_piece, &job);
  return BK_OK;
}

/* ---- swiglu ---- */
BK_INLINE void swiglu_items(const bk_cpu_walk *w, int64_t begin, int64_t end, const bool bf) {
  char *at[BK_CPU_WALK_MAX];
  for (int64_t item = begin; item < end; item++) {
    int64_t n = bk_cpu_walk_item(w, item, at);
    for (int64_t i = 0; i < n; i += BK_VW) {
      bk_vf g = bk_v_get(at[0], i, bf, n - i), u = bk_v_get(at[1], i, bf, n - i);
      bk_v_put(at[2], i, bf, n - i, g * bk_v_sigmoid(g) * u);
    }
  }
}
static void swiglu_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_cpu_walk *w = arg;
  (void)worker;
  if (w->esize[0] == 2) swiglu_items(w, begin, end, true);
  else swiglu_items(w, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_swiglu)(bk_stream *stream, const bk_plan *plan, const void *args,
                                     bk_place workspace) {
  const bk_swiglu_args *a = args;
  bk_cpu_walk w;
  (void)plan, (void)workspace;
  bk_cpu_walk_make(&w, 3, (const bk_tensor *[]){&a->gate, &a->up, &a->y});
  bk_cpu_run(stream, bk_cpu_walk_items(&w), bk_cpu_walk_grain(&w), swiglu_piece, &w);
  return BK_OK;
}

/* d silu(g) = s (1 + g (1 - s)), s = sigmoid(g) */
BK_INLINE void swiglu_bwd_items(const bk_cpu_walk *w, int64_t begin, int64_t end, const bool bf) {
  char *at[BK_CPU_WALK_MAX];
  for (int64_t item = begin; item < end; item++) {
    int64_t n = bk_cpu_walk_item(w, item, at);
    for (int64_t i = 0; i < n; i += BK_VW) {
      bk_vf g = bk_v_get(at[0], i, bf, n - i), u = bk_v_get(at[1], i, bf, n - i),
            dy = bk_v_get(at[2], i, bf, n - i);
      bk_vf s = bk_v_sigmoid(g);
      bk_v_put(at[3], i, bf, n - i, dy * u * s * (1.f + g * (1.f - s)));
      bk_v_put(at[4], i, bf, n - i, dy * g * s);
    }
  }
}
static void swiglu_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_cpu_walk *w = arg;
  (void)worker;
  if (w->esize[0] == 2) swiglu_bwd_items(w, begin, end, true);
  else swiglu_bwd_items(w, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_swiglu_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                         bk_place workspace) {
  const bk_swiglu_bwd_args *a = args;
  bk_cpu_walk w;
  (void)plan, (void)workspace;
  bk_cpu_walk_make(&w, 5, (const bk_tensor *[]){&a->gate, &a->up, &a->dy, &a->dgate, &a->dup});
  bk_cpu_run(stream, bk_cpu_walk_items(&w), bk_cpu_walk_grain(&w), swiglu_bwd_piece, &w);
  return BK_OK;
}

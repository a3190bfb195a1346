/* See blaslt.h. The rows of the kernel table are in kernels/gemm.h. */
#include "backends/cuda/blaslt.h"

#include <cublasLt.h>
#include <string.h>

#include "backends/cuda/kernels/gemm.h"

/* X(name without cublasLt) */
#define FUNCTIONS(X)          \
  X(Create)                   \
  X(Destroy)                  \
  X(GetVersion)               \
  X(GetStatusString)          \
  X(Matmul)                   \
  X(MatmulAlgoGetHeuristic)   \
  X(MatmulDescCreate)         \
  X(MatmulDescDestroy)        \
  X(MatmulDescSetAttribute)   \
  X(MatrixLayoutCreate)       \
  X(MatrixLayoutDestroy)      \
  X(MatrixLayoutSetAttribute) \
  X(MatmulPreferenceCreate)   \
  X(MatmulPreferenceDestroy)  \
  X(MatmulPreferenceSetAttribute)

struct bk_cublaslt {
  cublasLtHandle_t handle;
#define MEMBER(name) __typeof__(cublasLt##name) *name;
  FUNCTIONS(MEMBER)
#undef MEMBER
};

/* ---- the library ---- */

/* NULL, or the first function that is missing. */
static const char *find_functions(void *library, bk_cublaslt *b) {
  void *symbol;
#define FIND(name)                                            \
  symbol = bk_cuda_library_symbol(library, "cublasLt" #name); \
  if (!symbol) return "cublasLt" #name;                       \
  memcpy(&b->name, &symbol, sizeof symbol); /* data to function, as dlsym wants */
  FUNCTIONS(FIND)
#undef FIND
  return NULL;
}

/* Why the library of that name does not serve, or NULL. */
static const char *start(bk_cublaslt *b, const char *name, const char **opened) {
  const char *const names[] = {name, NULL};
  void *library = bk_cuda_library_open(names, opened);
  if (!library) return "it is not found";
  const char *missing = find_functions(library, b);
  if (missing) return missing;
  cublasStatus_t status = b->Create(&b->handle);
  return status == CUBLAS_STATUS_SUCCESS ? NULL : b->GetStatusString(status);
}

/* The first library that serves: one that opens may be of another CUDA than the driver, and the
 * next may be right. The reason is that of the first one that is there. */
static const char *start_any(bk_context *ctx, bk_cublaslt *b, const char **opened) {
  static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  const char *reason = "it is not found", *first = NULL;
  for (size_t i = 0; i < BK_COUNT(names); i++) {
    const char *found = NULL, *why = start(b, names[i], &found);
    if (!why) {
      *opened = found;
      return NULL;
    }
    if (!found) continue;
    if (first) bk_debug(ctx, "cuda: %s does not serve either: %s", found, why);
    else first = found, reason = why;
  }
  if (first) *opened = first;
  return reason;
}

bk_status bk_cublaslt_open(bk_cuda_device *d) {
  bk_context *ctx = d->base.ctx;
  const char *opened = "libcublasLt";
  d->blaslt = NULL;
  if (!bk_cuda_switch(ctx, "BIRKHOFF_CUDA_BLASLT", true)) {
    bk_debug(ctx, "cuda:%d: BIRKHOFF_CUDA_BLASLT=0: our own kernels serve the dense products",
             d->ordinal);
    return BK_OK;
  }
  bk_cublaslt *b = bk_alloc(ctx, sizeof *b);
  if (!b) return BK_ERR_MEMORY;
  const char *reason = start_any(ctx, b, &opened);
  if (reason) {
    bk_debug(ctx, "cuda:%d: our own kernels serve the dense products, %s does not: %s", d->ordinal,
             opened, reason);
    bk_free(ctx, b);
    return BK_OK;
  }
  d->blaslt = b;
  bk_debug(ctx, "cuda:%d: %s (version %zu) serves dense products", d->ordinal, opened,
           b->GetVersion());
  return BK_OK;
}

void bk_cublaslt_close(bk_cuda_device *d) {
  if (!d->blaslt) return;
  (void)d->blaslt->Destroy(d->blaslt->handle);
  bk_free(d->base.ctx, d->blaslt);
  d->blaslt = NULL;
}

/* ---- a product as cuBLASLt sees it ---- */

/* A matrix by columns: `rows` of them dense, `ld` from column to column. */
typedef struct matrix {
  cudaDataType_t type;
  int64_t rows, columns, ld, batch_stride;
  int32_t batch;
  uint32_t alignment; /* bytes that the address is a multiple of, up to 256 */
  bool inner_dense;
} matrix;

/* d = alpha op(a) op(b) + beta d */
typedef struct product {
  matrix a, b, d;
  cublasOperation_t op_a, op_b;
  bool turned;
} product;

static cudaDataType_t type_of(bk_dtype dtype) {
  return dtype == BK_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static uint32_t alignment_of(size_t address) {
  uint32_t alignment = 256;
  while (address % alignment) alignment /= 2;
  return alignment;
}

/* t with the dimensions `outer` and `inner`, one of which is dense; buffers begin at multiples
 * of 256 bytes. */
static matrix matrix_of(const bk_tensor *t, int outer, int inner) {
  matrix m = {.type = type_of(t->dtype), .batch = 1, .alignment = alignment_of(t->offset)};
  m.inner_dense = t->stride[inner] == 1 || t->shape[inner] <= 1;
  const int dense = m.inner_dense ? inner : outer, other = m.inner_dense ? outer : inner;
  m.rows = t->shape[dense];
  m.columns = t->shape[other];
  m.ld = m.columns > 1 ? t->stride[other] : m.rows;
  if (t->ndim == 3) m.batch = (int32_t)t->shape[0];
  if (m.batch > 1) m.batch_stride = t->stride[0];
  return m;
}

/* Our c = a b by rows is c^T = b^T a^T by columns; where c has dense columns it is c = a b as it
 * stands. */
static product product_of(const bk_gemm_args *g) {
  const int row = g->c.ndim - 2, column = g->c.ndim - 1;
  const matrix a = matrix_of(&g->a, row, column), b = matrix_of(&g->b, column, row);
  product p = {.turned = g->c.stride[column] != 1 && g->c.shape[column] > 1};
  p.a = p.turned ? a : b;
  p.b = p.turned ? b : a;
  p.d = p.turned ? matrix_of(&g->c, column, row) : matrix_of(&g->c, row, column);
  p.op_a = p.a.inner_dense ? CUBLAS_OP_T : CUBLAS_OP_N;
  p.op_b = p.b.inner_dense ? CUBLAS_OP_N : CUBLAS_OP_T;
  return p;
}

static bool matrix_fits(const matrix *m) {
  return m->rows >= 1 && m->columns >= 1 && m->ld >= m->rows;
}

static bool types_fit(const bk_gemm_args *g) {
  if (g->a.dtype != g->b.dtype) return false;
  return g->a.dtype == BK_BF16 ? g->c.dtype == BK_BF16 || g->c.dtype == BK_F32
                               : g->a.dtype == BK_F32 && g->c.dtype == BK_F32;
}

/* ---- plans ---- */

typedef struct plan_state {
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, d;
  cublasLtMatmulAlgo_t algo;
  size_t workspace;
  uint32_t align_a, align_b, align_d; /* what the algorithm was chosen for */
} plan_state;

static void state_release(const bk_cublaslt *l, plan_state *s) {
  if (s->desc) (void)l->MatmulDescDestroy(s->desc);
  if (s->a) (void)l->MatrixLayoutDestroy(s->a);
  if (s->b) (void)l->MatrixLayoutDestroy(s->b);
  if (s->d) (void)l->MatrixLayoutDestroy(s->d);
  *s = (plan_state){0};
}

#define LT_TRY(call)                                      \
  do {                                                    \
    cublasStatus_t status_ = (call);                      \
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_; \
  } while (0)

static cublasStatus_t make_layout(const bk_cublaslt *l, const matrix *m,
                                  cublasLtMatrixLayout_t *layout) {
  LT_TRY(l->MatrixLayoutCreate(layout, m->type, (uint64_t)m->rows, (uint64_t)m->columns, m->ld));
  if (m->batch == 1) return CUBLAS_STATUS_SUCCESS;
  LT_TRY(l->MatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &m->batch,
                                     sizeof m->batch));
  return l->MatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                     &m->batch_stride, sizeof m->batch_stride);
}

static cublasStatus_t make_desc(const bk_cuda_device *d, const product *p, plan_state *s) {
  const bk_cublaslt *l = d->blaslt;
  const bool tf32 = p->a.type == CUDA_R_32F && d->base.options.allow_tf32;
  const int32_t op_a = p->op_a, op_b = p->op_b;
  LT_TRY(l->MatmulDescCreate(&s->desc, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                             CUDA_R_32F));
  LT_TRY(l->MatmulDescSetAttribute(s->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a));
  LT_TRY(l->MatmulDescSetAttribute(s->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b));
  LT_TRY(make_layout(l, &p->a, &s->a));
  LT_TRY(make_layout(l, &p->b, &s->b));
  return make_layout(l, &p->d, &s->d);
}

static cublasStatus_t set_preference(const bk_cublaslt *l, cublasLtMatmulPreference_t preference,
                                     const plan_state *s) {
  const uint64_t workspace = BK_CUBLASLT_WORKSPACE;
  /* not cutting k at all is always allowed */
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const struct {
    cublasLtMatmulPreferenceAttributes_t name;
    const void *value;
    size_t size;
  } set[] = {
      {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
      {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &s->align_a, sizeof s->align_a},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &s->align_b, sizeof s->align_b},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &s->align_d, sizeof s->align_d},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &s->align_d, sizeof s->align_d},
  };
  for (size_t i = 0; i < BK_COUNT(set); i++)
    LT_TRY(l->MatmulPreferenceSetAttribute(preference, set[i].name, set[i].value, set[i].size));
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t choose(const bk_cublaslt *l, plan_state *s) {
  cublasLtMatmulPreference_t preference = NULL;
  cublasLtMatmulHeuristicResult_t best = {0};
  int found = 0;
  LT_TRY(l->MatmulPreferenceCreate(&preference));
  cublasStatus_t status = set_preference(l, preference, s);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = l->MatmulAlgoGetHeuristic(l->handle, s->desc, s->a, s->b, s->d, s->d, preference, 1,
                                       &best, &found);
  (void)l->MatmulPreferenceDestroy(preference);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = found < 1 ? CUBLAS_STATUS_NOT_SUPPORTED : best.state;
  s->algo = best.algo;
  s->workspace = best.workspaceSize;
  return status;
}

/* Leaves nothing behind when it fails. */
static cublasStatus_t state_make(const bk_cuda_device *d, const bk_gemm_args *g, plan_state *s) {
  const product p = product_of(g);
  *s = (plan_state){.align_a = p.a.alignment, .align_b = p.b.alignment, .align_d = p.d.alignment};
  if (!matrix_fits(&p.a) || !matrix_fits(&p.b) || !matrix_fits(&p.d))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (cudaSetDevice(d->ordinal) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  cublasStatus_t status = make_desc(d, &p, s);
  if (status == CUBLAS_STATUS_SUCCESS) status = choose(d->blaslt, s);
  if (status != CUBLAS_STATUS_SUCCESS) state_release(d->blaslt, s);
  return status;
}

/* ---- the row ---- */

static bk_status fail(bk_context *ctx, const bk_cublaslt *l, cublasStatus_t status,
                      const char *what) {
  (void)cudaGetLastError(); /* the next launch is not blamed for it */
  return bk_fail(ctx, status == CUBLAS_STATUS_ALLOC_FAILED ? BK_ERR_MEMORY : BK_ERR_DEVICE,
                 "cuda: cuBLASLt: %s: %s (%d)", what, l->GetStatusString(status), (int)status);
}

BK_CUDA_ACCEPTS(gemm_cublaslt) {
  const bk_cuda_device *d = bk_cuda_of(device);
  plan_state s;
  if (!d->blaslt || !types_fit(args) || !bk_cuda_gemm_fp32_accepts(self, device, args))
    return false;
  if (state_make(d, args, &s) != CUBLAS_STATUS_SUCCESS) return false;
  state_release(d->blaslt, &s);
  return true;
}

/* The workspace is large enough for our own kernel too: see launch. */
BK_CUDA_PREPARE(gemm_cublaslt) {
  const bk_cuda_device *d = bk_cuda_of(device);
  BK_TRY(bk_cuda_gemm_fp32_prepare(self, device, args, state, workspace_bytes));
  plan_state *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  cublasStatus_t status = state_make(d, args, s);
  if (status != CUBLAS_STATUS_SUCCESS) {
    bk_free(device->ctx, s);
    return fail(device->ctx, d->blaslt, status, "planning a product");
  }
  if (*workspace_bytes < s->workspace) *workspace_bytes = s->workspace;
  *state = s;
  return BK_OK;
}

BK_CUDA_RELEASE(gemm_cublaslt) {
  if (!state) return;
  state_release(bk_cuda_of(device)->blaslt, state);
  bk_free(device->ctx, state);
}

static cublasStatus_t multiply(bk_stream *stream, const plan_state *s, const bk_gemm_args *g,
                               const bk_tensor *a, const bk_tensor *b, bk_place workspace) {
  const bk_cublaslt *l = bk_cuda_of(stream->device)->blaslt;
  /* beta 0: what is in c is not read */
  const float alpha = (float)g->alpha, beta = g->accumulate ? 1.0f : 0.0f;
  void *c = bk_cuda_data(&g->c);
  return l->Matmul(l->handle, s->desc, &alpha, bk_cuda_data(a), s->a, bk_cuda_data(b), s->b, &beta,
                   c, s->d, c, s->d, &s->algo, s->workspace ? bk_cuda_place(workspace) : NULL,
                   s->workspace, bk_cuda_raw(stream));
}

/* An algorithm serves addresses aligned as those it was chosen for. Operands that lie in a
 * workspace have a place only now: should one lie worse, our own kernel does this product. */
BK_CUDA_LAUNCH(gemm_cublaslt) {
  const bk_gemm_args *g = args;
  const plan_state *s = plan->state;
  const bool turned = product_of(g).turned;
  const bk_tensor *a = turned ? &g->a : &g->b, *b = turned ? &g->b : &g->a;
  if (alignment_of(a->offset) < s->align_a || alignment_of(b->offset) < s->align_b ||
      alignment_of(g->c.offset) < s->align_d)
    return g->a.dtype == BK_BF16 ? bk_cuda_gemm_mma(stream, plan, args, workspace)
                                 : bk_cuda_gemm_fp32(stream, plan, args, workspace);
  BK_TRY(bk_cuda_begin(stream, plan));
  cublasStatus_t status = multiply(stream, s, g, a, b, workspace);
  if (status != CUBLAS_STATUS_SUCCESS)
    return fail(stream->device->ctx, bk_cuda_of(stream->device)->blaslt, status, "a product");
  return bk_cuda_end(stream);
}

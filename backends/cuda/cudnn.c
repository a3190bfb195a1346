/* See cudnn.h. */
#include "backends/cuda/cudnn.h"

#include "backends/cuda/kernels/attention.h"

#ifdef BK_CUDNN_HERE

#include <string.h>

#include "backends/cuda/cudnn_graph.h"
#include "backends/cuda/cudnn_pieces.h"

/* ---- what a device keeps ---- */

/* What decides a plan: shapes and strides of the operands in the order of cudnn_graph.h, and the
 * scale. */
typedef struct signature {
  int count;
  double scale;
  int64_t shape[BK_CUDNN_BACKWARD_COUNT][BK_MAX_DIMS], stride[BK_CUDNN_BACKWARD_COUNT][BK_MAX_DIMS];
} signature;

typedef struct entry {
  struct entry *next;
  signature key;
  bk_cudnn_cut cut; /* of a backward */
  /* the second for the last piece of a backward, where it is of another shape than the first */
  bk_cudnn_plan plans[2];
  int n_plans;
  cudnnStatus_t status; /* of making the plans */
  bool given_up;        /* it failed when it ran */
} entry;

struct bk_cudnn {
  bk_cudnn_api api;
  cudnnHandle_t handle;
  bool tried, ready;
  entry *entries;
};

bk_status bk_cudnn_open(bk_cuda_device *d) {
  bk_context *ctx = d->base.ctx;
  d->cudnn = NULL;
  if (!bk_cuda_switch(ctx, "BIRKHOFF_CUDA_CUDNN", true)) {
    bk_debug(ctx, "cuda:%d: BIRKHOFF_CUDA_CUDNN=0: our own kernels serve attention", d->ordinal);
    return BK_OK;
  }
  d->cudnn = bk_alloc(ctx, sizeof *d->cudnn);
  return d->cudnn ? BK_OK : BK_ERR_MEMORY;
}

static void release_plans(entry *e) {
  while (e->n_plans > 0) bk_cudnn_plan_release(&e->plans[--e->n_plans]);
}

void bk_cudnn_close(bk_cuda_device *d) {
  bk_cudnn *c = d->cudnn;
  if (!c) return;
  for (entry *e = c->entries, *next; e; e = next) {
    next = e->next;
    release_plans(e);
    bk_free(d->base.ctx, e);
  }
  if (c->ready) (void)c->api.Destroy(c->handle);
  bk_free(d->base.ctx, c);
  d->cudnn = NULL;
}

/* Opens the library at the first call. */
static bool is_ready(const bk_cuda_device *d) {
  bk_cudnn *c = d->cudnn;
  const char *opened = "cuDNN", *reason = NULL;
  if (!c || c->tried) return c && c->ready;
  c->tried = true;
  reason = bk_cudnn_api_find(&c->api, &opened);
  if (!reason && c->api.GetVersion() < BK_CUDNN_VERSION) reason = "it is older than 9.18";
  if (!reason && cudaSetDevice(d->ordinal) != cudaSuccess) reason = "the device cannot be used";
  if (!reason) {
    cudnnStatus_t status = c->api.Create(&c->handle);
    if (status != CUDNN_STATUS_SUCCESS) reason = c->api.GetErrorString(status);
  }
  c->ready = !reason;
  if (reason)
    bk_debug(d->base.ctx, "cuda:%d: our own kernels serve attention, %s does not: %s", d->ordinal,
             opened, reason);
  else
    bk_debug(d->base.ctx, "cuda:%d: %s (version %zu) serves attention", d->ordinal, opened,
             c->api.GetVersion());
  return c->ready;
}

/* ---- what is asked ---- */

typedef struct operands {
  const bk_tensor *at[BK_CUDNN_BACKWARD_COUNT]; /* in the order of cudnn_graph.h */
  int count;
  double scale;
  const void *args; /* that they are from */
} operands;

static bool is_backward(const operands *x) { return x->count == BK_CUDNN_BACKWARD_COUNT; }

static operands operands_of_forward(const bk_attention_args *a) {
  return (operands){.at = {&a->q, &a->k, &a->v, &a->o, &a->lse},
                    .count = BK_CUDNN_FORWARD_COUNT,
                    .scale = a->scale,
                    .args = a};
}

static operands operands_of_backward(const bk_attention_bwd_args *a) {
  return (operands){.at = {&a->q, &a->k, &a->v, &a->o, &a->lse, &a->dout, &a->dq, &a->dk, &a->dv},
                    .count = BK_CUDNN_BACKWARD_COUNT,
                    .scale = a->scale,
                    .args = a};
}

static signature signature_of(const operands *x) {
  signature key;
  memset(&key, 0, sizeof key); /* compared byte by byte */
  key.count = x->count;
  key.scale = x->scale;
  for (int i = 0; i < x->count; i++) {
    memcpy(key.shape[i], x->at[i]->shape, sizeof key.shape[i]);
    memcpy(key.stride[i], x->at[i]->stride, sizeof key.stride[i]);
  }
  return key;
}

static bool rows_fit(const bk_tensor *t) {
  return t->dtype == BK_BF16 && t->shape[3] > 0 && t->shape[3] % 8 == 0 && t->stride[3] == 1 &&
         t->stride[0] > 0 && t->stride[1] > 0 && t->stride[2] > 0 && t->stride[0] % 8 == 0 &&
         t->stride[1] % 8 == 0 && t->stride[2] % 8 == 0;
}

/* Older libraries read and write it packed, whatever strides are named. */
static bool lse_fits(const bk_tensor *t) { return t->dtype == BK_F32 && bk_tensor_contiguous(t); }

/* Operands that lie in a workspace have a place at launch only, so that the alignment is checked
 * then. */
static bool places_fit(const operands *x) {
  for (int i = 0; i < x->count; i++)
    if (x->at[i]->offset % 16) return false;
  return true;
}

static bool operands_fit(const operands *x) {
  const bk_tensor *q = x->at[BK_CUDNN_Q], *k = x->at[BK_CUDNN_K];
  if (q->shape[0] < 1 || q->shape[2] < 1 || q->shape[1] < BK_CUDNN_MIN_TOKENS ||
      q->shape[1] != k->shape[1])
    return false;
  for (int i = 0; i < x->count; i++)
    if (i == BK_CUDNN_LSE ? !lse_fits(x->at[i]) : !rows_fit(x->at[i])) return false;
  return places_fit(x);
}

/* The cut of a backward into pieces. Each piece must be aligned as well as the whole; with a T
 * that is no multiple of 4 the lse of some heads is not. */
static bool cut_of(const operands *x, bk_cudnn_cut *cut) {
  *cut = bk_cudnn_cut_of(x->args, BK_CUDNN_MATRIX);
  for (int64_t i = 0; i < bk_cudnn_count(*cut); i++) {
    const bk_attention_bwd_args piece = bk_cudnn_piece(x->args, *cut, i);
    const operands y = operands_of_backward(&piece);
    if (!places_fit(&y)) return false;
  }
  return bk_cudnn_count(*cut) > 0;
}

/* ---- plans ---- */

static void add_plan(const bk_cuda_device *d, const operands *x, entry *e) {
  bk_cudnn *c = d->cudnn;
  const bk_cudnn_target target = {.handle = c->handle};
  const bk_tensor *q = x->at[BK_CUDNN_Q];
  bk_cudnn_plan *plan = &e->plans[e->n_plans];
  if (cudaSetDevice(d->ordinal) != cudaSuccess) e->status = CUDNN_STATUS_NOT_INITIALIZED;
  else if (is_backward(x))
    e->status = bk_cudnn_plan_backward(&c->api, target, x->args, BK_CUDNN_WORKSPACE, plan);
  else e->status = bk_cudnn_plan_forward(&c->api, target, x->args, BK_CUDNN_WORKSPACE, plan);
  if (e->status == CUDNN_STATUS_SUCCESS) e->n_plans++;
  bk_debug(d->base.ctx,
           "cuda:%d: cuDNN: attention%s of %lld x %lld tokens, %lld heads, %lld/%lld: %s %s",
           d->ordinal, is_backward(x) ? " backward" : "", (long long)q->shape[0],
           (long long)q->shape[1], (long long)q->shape[2], (long long)q->shape[3],
           (long long)x->at[BK_CUDNN_V]->shape[3],
           e->status == CUDNN_STATUS_SUCCESS ? plan->name : "our own kernel serves:",
           e->status == CUDNN_STATUS_SUCCESS ? "" : c->api.GetErrorString(e->status));
}

static void add_plans_of_pieces(const bk_cuda_device *d, const operands *x, entry *e) {
  const bk_attention_bwd_args first = bk_cudnn_piece(x->args, e->cut, 0),
                              last = bk_cudnn_piece(x->args, e->cut, bk_cudnn_count(e->cut) - 1);
  const operands of_first = operands_of_backward(&first), of_last = operands_of_backward(&last);
  add_plan(d, &of_first, e);
  if (e->status == CUDNN_STATUS_SUCCESS && !bk_tensor_same_shape(&first.q, &last.q))
    add_plan(d, &of_last, e);
  if (e->status != CUDNN_STATUS_SUCCESS) release_plans(e);
  else if (bk_cudnn_count(e->cut) > 1)
    bk_debug(
        d->base.ctx,
        "cuda:%d: cuDNN: attention backward of %lld sequences with %lld heads goes in %lld pieces",
        d->ordinal, (long long)x->at[BK_CUDNN_Q]->shape[0], (long long)x->at[BK_CUDNN_Q]->shape[2],
        (long long)bk_cudnn_count(e->cut));
}

/* What the device keeps for this signature, made if need be; NULL where cuDNN does not serve it. */
static entry *entry_for(const bk_cuda_device *d, const operands *x) {
  bk_cudnn_cut cut = {0, 0};
  if (!operands_fit(x) || (is_backward(x) && !cut_of(x, &cut)) || !is_ready(d)) return NULL;
  const signature key = signature_of(x);
  entry *e = d->cudnn->entries;
  while (e && memcmp(&e->key, &key, sizeof key) != 0) e = e->next;
  if (!e) {
    e = bk_alloc(d->base.ctx, sizeof *e);
    if (!e) return NULL;
    e->key = key;
    e->cut = cut;
    if (is_backward(x)) add_plans_of_pieces(d, x, e);
    else add_plan(d, x, e);
    e->next = d->cudnn->entries;
    d->cudnn->entries = e;
  }
  return e->status == CUDNN_STATUS_SUCCESS && !e->given_up ? e : NULL;
}

static bk_status prepare(bk_device *device, const operands *x, void **state,
                         size_t *workspace_bytes) {
  entry *e = entry_for(bk_cuda_of(device), x);
  if (!e)
    return bk_fail(device->ctx, BK_ERR_DEVICE,
                   "cuda: cuDNN: no plan for an attention that it had accepted");
  for (int i = 0; i < e->n_plans; i++)
    if (*workspace_bytes < e->plans[i].bytes) *workspace_bytes = e->plans[i].bytes;
  *state = e;
  return BK_OK;
}

/* ---- launches ---- */

static cudnnStatus_t run_plan(const bk_cudnn *c, bk_cudnn_plan *plan, const operands *x,
                              bk_place workspace) {
  char *data[BK_CUDNN_BACKWARD_COUNT] = {0};
  for (int i = 0; i < x->count; i++) data[i] = bk_cuda_data(x->at[i]);
  return bk_cudnn_plan_run(plan, c->handle, data, x->count, bk_cuda_place(workspace));
}

/* One after the other, in one workspace. */
static cudnnStatus_t run_pieces(const bk_cudnn *c, entry *e, const operands *x,
                                bk_place workspace) {
  const bk_attention_bwd_args first = bk_cudnn_piece(x->args, e->cut, 0);
  cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
  for (int64_t i = 0; i < bk_cudnn_count(e->cut) && status == CUDNN_STATUS_SUCCESS; i++) {
    const bk_attention_bwd_args piece = bk_cudnn_piece(x->args, e->cut, i);
    const operands y = operands_of_backward(&piece);
    status =
        run_plan(c, &e->plans[bk_tensor_same_shape(&piece.q, &first.q) ? 0 : 1], &y, workspace);
  }
  return status;
}

static cudnnStatus_t run(bk_stream *stream, entry *e, const operands *x, bk_place workspace) {
  const bk_cudnn *c = bk_cuda_of(stream->device)->cudnn;
  /* cuDNN may load code at a plan's first run, also within a capture */
  enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess)
    return CUDNN_STATUS_EXECUTION_FAILED_CUDART;
  cudnnStatus_t status = c->api.SetStream(c->handle, bk_cuda_raw(stream));
  if (status == CUDNN_STATUS_SUCCESS)
    status =
        is_backward(x) ? run_pieces(c, e, x, workspace) : run_plan(c, &e->plans[0], x, workspace);
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  return status;
}

/* True where cuDNN has done it. Whatever it wrote before a piece failed is overwritten by our own
 * kernel, which then does the whole. */
static bool serve(bk_stream *stream, const bk_plan *plan, const operands *x, bk_place workspace) {
  bk_context *ctx = stream->device->ctx;
  entry *e = plan->state;
  if (e->given_up || !places_fit(x)) return false;
  cudnnStatus_t status = run(stream, e, x, workspace);
  if (status == CUDNN_STATUS_SUCCESS) return true;
  e->given_up = true;
  (void)cudaGetLastError();
  bk_warn(ctx,
          "cuda: cuDNN: attention%s (%s) failed: %s (%d); our own kernel serves from now on, as it "
          "does with BIRKHOFF_CUDA_CUDNN=0",
          is_backward(x) ? " backward" : "", e->plans[0].name,
          bk_cuda_of(stream->device)->cudnn->api.GetErrorString(status), (int)status);
  return false;
}

/* ---- the rows ---- */

BK_CUDA_ACCEPTS(attention_cudnn) {
  const bk_attention_args *a = args;
  const operands x = operands_of_forward(a);
  return !bk_tensor_present(&a->past) && bk_cuda_attention_simt_accepts(self, device, args) &&
         entry_for(bk_cuda_of(device), &x) != NULL;
}

BK_CUDA_PREPARE(attention_cudnn) {
  const operands x = operands_of_forward(args);
  *workspace_bytes = 0;
  return prepare(device, &x, state, workspace_bytes);
}

BK_CUDA_LAUNCH(attention_cudnn) {
  const operands x = operands_of_forward(args);
  BK_TRY(bk_cuda_begin(stream, plan));
  if (serve(stream, plan, &x, workspace)) return bk_cuda_end(stream);
  return (bk_cuda_attention_mma_accepts(plan->kernel, stream->device, args)
              ? bk_cuda_attention_mma
              : bk_cuda_attention_simt)(stream, plan, args, workspace);
}

BK_CUDA_ACCEPTS(attention_bwd_cudnn) {
  const operands x = operands_of_backward(args);
  return bk_cuda_of(device)->capability < 100 &&
         bk_cuda_attention_bwd_simt_accepts(self, device, args) &&
         entry_for(bk_cuda_of(device), &x) != NULL;
}

/* The workspace is large enough for our own kernels too: both ask for the same. */
BK_CUDA_PREPARE(attention_bwd_cudnn) {
  const operands x = operands_of_backward(args);
  BK_TRY(bk_cuda_attention_bwd_simt_prepare(self, device, args, state, workspace_bytes));
  return prepare(device, &x, state, workspace_bytes);
}

BK_CUDA_LAUNCH(attention_bwd_cudnn) {
  const operands x = operands_of_backward(args);
  BK_TRY(bk_cuda_begin(stream, plan));
  if (serve(stream, plan, &x, workspace)) return bk_cuda_end(stream);
  return (bk_cuda_attention_bwd_mma_accepts(plan->kernel, stream->device, args)
              ? bk_cuda_attention_bwd_mma
              : bk_cuda_attention_bwd_simt)(stream, plan, args, workspace);
}

#else /* without cuDNN's header no row accepts anything */

bk_status bk_cudnn_open(bk_cuda_device *d) {
  d->cudnn = NULL;
  return BK_OK;
}

void bk_cudnn_close(bk_cuda_device *d) { (void)d; }

#define ABSENT(name)                                                     \
  BK_CUDA_ACCEPTS(name) {                                                \
    (void)device, (void)args;                                            \
    return false;                                                        \
  }                                                                      \
  BK_CUDA_PREPARE(name) {                                                \
    (void)args, (void)state, (void)workspace_bytes;                      \
    return bk_fail(device->ctx, BK_ERR_ABSENT,                           \
                   "cuda: built without cuDNN's header (9.8 or newer)"); \
  }                                                                      \
  BK_CUDA_LAUNCH(name) {                                                 \
    (void)plan, (void)args, (void)workspace;                             \
    return bk_fail(stream->device->ctx, BK_ERR_ABSENT,                   \
                   "cuda: built without cuDNN's header (9.8 or newer)"); \
  }
ABSENT(attention_cudnn)
ABSENT(attention_bwd_cudnn)

#endif

/* GEMM by CLBlast, found at run time: fp32 on GPUs. On processors only where
 * BIRKHOFF_OPENCL_CLBLAST=1 asks for it (our own is much faster there); 0 leaves it out
 * everywhere. What CLBlast cannot do, or fails at, our own kernels do: the state of a plan has
 * both.
 *
 * CLBlast compiles all kernels of the product at its first call for a device: a small one, at
 * the first prepare. Its temporary memory is the plan's workspace, as a sub-buffer that is made
 * at the first launch. A batch is a loop: CLBlast's own has no place for workspace. */
#include "backends/gpu/gemm.h"
#include "backends/opencl/opencl.h"

#include <dlfcn.h>
#include <string.h>

enum { ROWS_DENSE = 101, COLUMNS_DENSE = 102, AS_IS = 111, TURNED = 112 }; /* of clblast_c.h */

typedef int (*gemm_fn)(int layout, int turn_a, int turn_b, size_t m, size_t n, size_t k,
                       float alpha, cl_mem a, size_t a_at, size_t a_ld, cl_mem b, size_t b_at,
                       size_t b_ld, float beta, cl_mem c, size_t c_at, size_t c_ld,
                       cl_command_queue *queue, cl_event *event, cl_mem temporary);
typedef int (*temporary_fn)(int layout, int turn_a, int turn_b, size_t m, size_t n, size_t k,
                            size_t a_at, size_t a_ld, size_t b_at, size_t b_ld, size_t c_at,
                            size_t c_ld, cl_command_queue *queue, size_t *bytes);

static struct {
  bool tried;
  gemm_fn gemm;
  temporary_fn temporary;
} library;

/* A matrix as CLBlast sees it. */
typedef struct matrix {
  int turn;
  size_t ld;
} matrix;
typedef struct product {
  int layout;
  matrix a, b, c;
} product;

typedef struct clblast_state {
  bk_gpu_state own; /* first: our own launch code reads the plan's state as this */
  const bk_cl_api *cl;
  size_t temporary, align; /* bytes */
  bool fails;
  cl_mem parent, part; /* the sub-buffer, and of what */
  size_t part_at;
} clblast_state;

/* ---- which library, which device ---- */

static void take(void *from, const char *name, void *into) {
  void *symbol = dlsym(from, name);
  memcpy(into, &symbol, sizeof symbol); /* ISO C has no conversion to a function pointer */
}

static bool load(void) {
  if (!library.tried) {
    void *found = dlopen("libclblast.so.1", RTLD_NOW | RTLD_LOCAL);
    library.tried = true;
    if (found) {
      take(found, "CLBlastSgemmWithTempBuffer", &library.gemm);
      take(found, "CLBlastSGemmTempBufferSize", &library.temporary);
    }
  }
  return library.gemm && library.temporary;
}

/* CLBlast is bound to the system's libOpenCL: another one's handles are nothing to it. */
static bool wanted(const bk_device *device, bool *forced) {
  const bk_cl_device *d = (const bk_cl_device *)device;
  const char *text = bk_context_environment(device->ctx, "BIRKHOFF_OPENCL_CLBLAST");
  const char *other = bk_context_environment(device->ctx, "BIRKHOFF_OPENCL_LIBRARY");
  *forced = text && text[0] == '1';
  if ((text && text[0] == '0') || (other && *other) || d->clblast_fails) return false;
  if (!*forced &&
      (bk_cl_device_number(d->cl, d->id, CL_DEVICE_TYPE, sizeof(cl_ulong)) & CL_DEVICE_TYPE_CPU))
    return false;
  return load();
}

static void give_up(bk_device *device, int code) {
  bk_cl_device *d = bk_cl_of(device);
  if (!d->clblast_fails)
    bk_warn(device->ctx, "opencl:%d: CLBlast fails (%d): our own products are used", device->index,
            code);
  d->clblast_fails = true;
}

/* ---- what it takes ---- */

/* rows x columns in a layout; false where it has no such form. */
static bool matrix_of(int layout, const bk_gpu_matrix *t, matrix *out) {
  const bool by_rows =
      (t->column == 1 || t->columns == 1) && (t->rows == 1 || t->row >= t->columns);
  const bool by_columns =
      (t->row == 1 || t->rows == 1) && (t->columns == 1 || t->column >= t->rows);
  const bool as_is = layout == ROWS_DENSE ? by_rows : by_columns;
  if (!by_rows && !by_columns) return false;
  const bool rows = layout == ROWS_DENSE ? as_is : !as_is;
  out->turn = as_is ? AS_IS : TURNED;
  out->ld = rows ? (size_t)(t->rows == 1 ? t->columns : t->row)
                 : (size_t)(t->columns == 1 ? t->rows : t->column);
  return true;
}

static bool product_of(const bk_gemm_args *g, product *p) {
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b),
                      c = bk_gpu_matrix_of(&g->c);
  for (p->layout = ROWS_DENSE; p->layout <= COLUMNS_DENSE; p->layout++)
    if (matrix_of(p->layout, &c, &p->c) && p->c.turn == AS_IS)
      return matrix_of(p->layout, &a, &p->a) && matrix_of(p->layout, &b, &p->b);
  return false;
}

/* Small results with long sums are left to our own kernels, which cut k into parts. */
static bool fits(const bk_gpu_matrix *c, int64_t k) {
  return k < 512 || c->batches * c->rows * c->columns >= 1 << 18;
}

BK_ACCEPTS(bk_cl_clblast_accepts) {
  const bk_gemm_args *g = args;
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), c = bk_gpu_matrix_of(&g->c);
  product p;
  bool forced;
  if (g->a.dtype != BK_F32 || g->b.dtype != BK_F32 || g->c.dtype != BK_F32) return false;
  if (!c.batches || !c.rows || !c.columns || !a.columns || !product_of(g, &p)) return false;
  return wanted(device, &forced) && (forced || fits(&c, a.columns)) &&
         bk_gpu_accepts(self, device, args);
}

/* ---- prepare ---- */

static cl_mem zeros(bk_cl_device *d, size_t bytes, cl_int *error) {
  const cl_uchar zero = 0;
  if (!bytes || *error != CL_SUCCESS) return NULL;
  cl_mem made = d->cl->CreateBuffer(d->context, CL_MEM_READ_WRITE, bytes, NULL, error);
  if (*error == CL_SUCCESS)
    *error = d->cl->EnqueueFillBuffer(d->queue, made, &zero, 1, 0, bytes, 0, NULL, NULL);
  return made;
}

/* The first product of a device, 8 x 8: compiles. */
static void try_out(bk_cl_device *d) {
  enum { N = 8, COUNT = N * N };
  size_t bytes = 0;
  cl_int error = library.temporary(ROWS_DENSE, AS_IS, AS_IS, N, N, N, 0, N, COUNT, N, 2 * COUNT, N,
                                   &d->queue, &bytes);
  cl_mem memory = zeros(d, 3 * COUNT * sizeof(float), &error), room = zeros(d, bytes, &error);
  if (error == CL_SUCCESS)
    error = library.gemm(ROWS_DENSE, AS_IS, AS_IS, N, N, N, 1, memory, 0, N, memory, COUNT, N, 0,
                         memory, 2 * COUNT, N, &d->queue, NULL, room);
  const cl_int ended = d->cl->Finish(d->queue);
  if (memory) (void)d->cl->ReleaseMemObject(memory);
  if (room) (void)d->cl->ReleaseMemObject(room);
  if (error == CL_SUCCESS) error = ended;
  if (error != CL_SUCCESS) give_up(&d->gpu.base, error);
  d->clblast_tried = true;
}

static bk_status prepare_state(bk_device *device, const bk_gemm_args *g, clblast_state *s,
                               size_t *workspace_bytes) {
  bk_cl_device *d = bk_cl_of(device);
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), c = bk_gpu_matrix_of(&g->c);
  product p = {0};
  s->cl = d->cl;
  BK_TRY(bk_gpu_gemm_prepare(device, g, &s->own, workspace_bytes));
  if (!d->clblast_tried) try_out(d);
  s->fails = d->clblast_fails || !product_of(g, &p);
  if (s->fails) return BK_OK;
  const int error = library.temporary(p.layout, p.a.turn, p.b.turn, (size_t)c.rows,
                                      (size_t)c.columns, (size_t)a.columns, 1, p.a.ld, 1, p.b.ld, 1,
                                      /* with offsets other than 0 it needs most */
                                      p.c.ld, &d->queue, &s->temporary);
  if (error) give_up(device, error);
  s->fails = error != 0;
  /* in bits */
  s->align =
      (size_t)bk_cl_device_number(d->cl, d->id, CL_DEVICE_MEM_BASE_ADDR_ALIGN, sizeof(cl_uint)) / 8;
  if (s->align < 1) s->align = 1;
  const size_t bytes = s->temporary ? s->temporary + s->align : 0;
  if (!s->fails && bytes > *workspace_bytes) *workspace_bytes = bytes;
  return BK_OK;
}

void bk_cl_clblast_release(bk_device *device, void *state) {
  clblast_state *s = state;
  if (s->part) (void)s->cl->ReleaseMemObject(s->part);
  bk_free(device->ctx, s);
}

BK_PREPARE(bk_cl_clblast_prepare) {
  clblast_state *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  bk_status status = prepare_state(device, args, s, workspace_bytes);
  if (status == BK_OK) *state = s;
  else bk_cl_clblast_release(device, s);
  return status;
}

/* ---- launch ---- */

/* The part of the workspace that CLBlast may use; the same one at every launch of a plan, as a
 * rule. */
static cl_int temporary(clblast_state *s, bk_place workspace, cl_mem *out) {
  const cl_buffer_region region = {BK_ALIGN_UP(workspace.offset, s->align), s->temporary};
  cl_int error = CL_SUCCESS;
  *out = NULL;
  if (!s->temporary) return CL_SUCCESS;
  if (s->part && (s->parent != workspace.buffer->handle || s->part_at != region.origin)) {
    (void)s->cl->ReleaseMemObject(s->part);
    s->part = NULL;
  }
  if (!s->part)
    s->part = s->cl->CreateSubBuffer(workspace.buffer->handle, CL_MEM_READ_WRITE,
                                     CL_BUFFER_CREATE_TYPE_REGION, &region, &error);
  s->parent = workspace.buffer->handle, s->part_at = region.origin;
  *out = s->part;
  return error;
}

static int call(bk_stream *stream, clblast_state *s, const bk_gemm_args *g, bk_place workspace) {
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b),
                      c = bk_gpu_matrix_of(&g->c);
  const size_t a_at = g->a.offset / sizeof(float), b_at = g->b.offset / sizeof(float),
               c_at = g->c.offset / sizeof(float);
  product p;
  cl_mem room;
  int error = temporary(s, workspace, &room);
  if (!product_of(g, &p)) return CL_INVALID_VALUE;
  for (int64_t i = 0; i < c.batches && !error; i++)
    error = library.gemm(p.layout, p.a.turn, p.b.turn, (size_t)c.rows, (size_t)c.columns,
                         (size_t)a.columns, (float)g->alpha, g->a.buffer->handle,
                         a_at + (size_t)(i * a.batch), p.a.ld, g->b.buffer->handle,
                         b_at + (size_t)(i * b.batch), p.b.ld, g->accumulate ? 1.0f : 0.0f,
                         g->c.buffer->handle, c_at + (size_t)(i * c.batch), p.c.ld,
                         &((bk_cl_stream *)stream)->queue, NULL, room);
  return error;
}

/* Whether a failure is of the device, and not CLBlast's objection to what it was asked. */
static bool is_of_device(int error) {
  return error == CL_DEVICE_NOT_AVAILABLE || error == CL_MEM_OBJECT_ALLOCATION_FAILURE ||
         error == CL_OUT_OF_RESOURCES || error == CL_OUT_OF_HOST_MEMORY ||
         error == CL_INVALID_COMMAND_QUEUE || error == CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST;
}

/* A call that fails has changed nothing of the first matrix, because CLBlast checks everything
 * before it begins. In a batch that accumulates some matrices may be done by then, and there is no
 * way back. */
bk_status bk_cl_clblast(bk_stream *stream, const bk_plan *plan, const void *args,
                        bk_place workspace) {
  const bk_gemm_args *g = args;
  clblast_state *s = plan->state;
  const bool half_done = g->accumulate && g->c.ndim == 3 && g->c.shape[0] > 1;
  BK_TRY(bk_cl_enter(stream));
  ((bk_cl_stream *)stream)->last = plan->kernel->name;
  if (!s->fails) {
    const int error = call(stream, s, g, workspace);
    if (!error) return BK_OK;
    if (half_done || is_of_device(error)) return bk_cl_check(stream, error, plan->kernel->name);
    give_up(stream->device, error);
    s->fails = true;
  }
  return bk_gpu_gemm(stream, plan, args, workspace);
}

/* The composed defaults of the fused ops: kernel rows that are made of other ops. They are what
 * makes the mathematics of a fused op hold on every device: a backend that has the plain ops has
 * the fused ones too, and writes its own kernel for speed alone.
 *
 * The compose function of an op writes down its steps: ops with their args, operands taken from
 * the fused op's args or from scratch memory in the workspace. The same function serves the lookup
 * (are all parts there?), prepare (a plan for each step) and launch (the plans in order), so that
 * the three cannot drift apart: each step goes to a visitor as soon as it is made, and lives no
 * longer. It may look at dtypes, shapes and strides only, because the same steps must come out
 * whatever the buffers are. The workspace holds the scratch tensors, then the largest workspace of
 * any step. */
#include "ops/ops.h"
#include "runtime/connection.h"

/* State of a composed plan: one plan for each step. It belongs to the plan (bk_plan.state) and is
 * freed with it. The kernels of the steps use the part of the workspace behind the first `scratch`
 * bytes. */
typedef struct composite_state {
  size_t scratch;
  int n_plans;
  bk_plan plans[];
} composite_state;

/* A visitor does something with a step: find_step, prepare_step or launch_step below. */
typedef bk_status (*step_visitor)(bk_composition *c, bk_op op, const void *args);
/* This is one walk over the steps of a composed op. It lives on the stack of the function that
 * walks. */
struct bk_composition {
  step_visitor visit; /* NULL: steps are only counted */
  bk_status status;   /* the first failure; later steps are no longer visited */
  int n_steps;        /* so far */
  /* during a launch; empty before */
  bk_place workspace;
  size_t scratch; /* bytes of scratch so far */
  /* What the visitors work with: the lookup with `asked`, prepare with `device`, launch with
   * `stream`. */
  const bk_device *asked;
  bk_device *device;
  bk_stream *stream;
  composite_state *state;
  size_t largest; /* workspace of a step */
};

/* The count goes on after a failure, so that a step always has the same number. */
void bk_compose_step(bk_composition *c, bk_op op, const void *args) {
  if (c->visit && c->status == BK_OK) c->status = c->visit(c, op, args);
  c->n_steps++;
}

/* Scratch is never given back within an op: its steps are few, and what they keep is small. */
bk_tensor bk_compose_scratch(bk_composition *c, const bk_tensor *like) {
  bk_tensor t = bk_tensor_make(like->dtype, like->ndim, like->shape);
  t.buffer = c->workspace.buffer;
  t.offset = c->workspace.offset + c->scratch;
  c->scratch += BK_ALIGN_UP(bk_tensor_bytes(&t), (size_t)BK_ARENA_ALIGN);
  return t;
}

static bk_tensor transposed(bk_tensor t) { return bk_tensor_transpose(t, 0, 1); }

/* ---- projection ---- */

/* proj = x fn^T on the raw streams, and the norm's factor beside it. That the norm may be applied
 * after the product is eq. 14-15 of arXiv 2512.24880: it only scales a row. */
void bk_compose_hc_project(const void *args, bk_composition *c) {
  const bk_hc_project_args *a = args;
  BK_COMPOSE(c, GEMM, gemm, .a = a->x, .b = transposed(a->fn), .c = a->proj, .alpha = 1);
  BK_COMPOSE(c, HC_RMS, hc_rms, .x = a->x, .rinv = a->rinv, .eps = a->eps);
}

/* x enters twice, through the product and through the norm; the second part adds to dx. dfn, a
 * parameter's gradient, always adds. */
void bk_compose_hc_project_bwd(const void *args, bk_composition *c) {
  const bk_hc_project_bwd_args *a = args;
  if (bk_tensor_present(&a->dfn)) {
    BK_COMPOSE(c, GEMM, gemm, .a = transposed(a->dproj), .b = a->x, .c = a->dfn, .alpha = 1,
               .accumulate = true);
  }
  if (bk_tensor_present(&a->dx)) {
    BK_COMPOSE(c, GEMM, gemm, .a = a->dproj, .b = a->fn, .c = a->dx, .alpha = 1,
               .accumulate = a->accumulate);
    BK_COMPOSE(c, HC_RMS_BWD, hc_rms_bwd, .x = a->x, .rinv = a->rinv, .drinv = a->drinv,
               .dx = a->dx, .accumulate = true);
  }
}

/* ---- maps: each kind knows its own ---- */

void bk_compose_hc_maps(const void *args, bk_composition *c) {
  const bk_hc_maps_args *a = args;
  bk_connection_kind_of(a->kind)->compose_maps(a, c);
}

void bk_compose_hc_maps_bwd(const void *args, bk_composition *c) {
  const bk_hc_maps_bwd_args *a = args;
  bk_connection_kind_of(a->kind)->compose_maps_bwd(a, c);
}

/* ---- pre + norm ---- */

/* y is stored between the two, as the op's definition has it: the norm acts on what was rounded. */
void bk_compose_hc_pre_norm(const void *args, bk_composition *c) {
  const bk_hc_pre_norm_args *a = args;
  BK_COMPOSE(c, HC_PRE, hc_pre, .x = a->x, .pre = a->pre, .y = a->y);
  BK_COMPOSE(c, RMSNORM, rmsnorm, .x = a->y, .w = a->w, .y = a->h, .rstd = a->rstd, .eps = a->eps);
}

/* The gradient of y is needed only between the two steps. */
void bk_compose_hc_pre_norm_bwd(const void *args, bk_composition *c) {
  const bk_hc_pre_norm_bwd_args *a = args;
  bk_tensor dy = bk_compose_scratch(c, &a->y);
  BK_COMPOSE(c, RMSNORM_BWD, rmsnorm_bwd, .x = a->y, .w = a->w, .rstd = a->rstd, .dy = a->dh,
             .dx = dy, .dw = a->dw);
  BK_COMPOSE(c, HC_PRE_BWD, hc_pre_bwd, .x = a->x, .pre = a->pre, .dy = dy, .dx = a->dx,
             .dpre = a->dpre, .accumulate = a->accumulate);
}

/* ---- post + res ---- */

/* The mixed streams come first, then the post part is added, which rounds once more than a fused
 * kernel. */
void bk_compose_hc_post_res(const void *args, bk_composition *c) {
  const bk_hc_post_res_args *a = args;
  if (bk_tensor_present(&a->comb))
    BK_COMPOSE(c, HC_RES, hc_res, .x = a->x, .comb = a->comb, .y = a->out);
  else BK_COMPOSE(c, COPY, copy, .x = a->x, .y = a->out);
  BK_COMPOSE(c, HC_POST, hc_post, .f = a->f, .post = a->post, .y = a->out);
}

/* dx may be dout's memory, so that dout must be read to the end before dx is written. Where comb
 * mixes the streams dx is therefore made in scratch memory and copied. */
void bk_compose_hc_post_res_bwd(const void *args, bk_composition *c) {
  const bk_hc_post_res_bwd_args *a = args;
  BK_COMPOSE(c, HC_POST_BWD, hc_post_bwd, .f = a->f, .post = a->post, .dy = a->dout, .df = a->df,
             .dpost = a->dpost);
  if (bk_tensor_present(&a->comb)) {
    bk_tensor dx = bk_compose_scratch(c, &a->dx);
    BK_COMPOSE(c, HC_RES_BWD, hc_res_bwd, .x = a->x, .comb = a->comb, .dy = a->dout, .dx = dx,
               .dcomb = a->dcomb);
    BK_COMPOSE(c, COPY, copy, .x = dx, .y = a->dx);
  } else {
    BK_COMPOSE(c, COPY, copy, .x = a->dout, .y = a->dx);
  }
}

/* ---- merge + mix ---- */

/* A merge of one sublayer followed by the mix of the next. The parts share their operands in
 * place: runtime/op_table.c checks that what one part writes is what the next one reads. */
void bk_compose_hc_merge_mix(const void *args, bk_composition *c) {
  const bk_hc_merge_mix_args *a = args;
  bk_compose_step(c, BK_OP_HC_POST_RES, &a->merge);
  bk_compose_step(c, BK_OP_HC_PROJECT, &a->project);
  bk_compose_step(c, BK_OP_HC_MAPS, &a->maps);
  bk_compose_step(c, BK_OP_HC_PRE_NORM, &a->pre_norm);
}

/* In reverse: the gradient of the streams is complete once the projection has added its part, and
 * only then does the merge of the sublayer before take it. */
void bk_compose_hc_merge_mix_bwd(const void *args, bk_composition *c) {
  const bk_hc_merge_mix_bwd_args *a = args;
  bk_compose_step(c, BK_OP_HC_PRE_NORM_BWD, &a->pre_norm);
  bk_compose_step(c, BK_OP_HC_MAPS_BWD, &a->maps);
  bk_compose_step(c, BK_OP_HC_PROJECT_BWD, &a->project);
  bk_compose_step(c, BK_OP_HC_POST_RES_BWD, &a->merge);
}

/* ---- rebuild ---- */

/* The last layer has no merge: its streams belong to the next block. */
void bk_compose_hc_rebuild(const void *args, bk_composition *c) {
  const bk_hc_rebuild_args *a = args;
  for (int i = 0; i < a->layers; i++) {
    const bk_hc_rebuild_layer *l = &a->layer[i];
    BK_COMPOSE(c, HC_PRE_NORM, hc_pre_norm, .x = l->x, .pre = l->pre, .w = l->w, .y = l->y,
               .h = l->h, .rstd = l->rstd, .eps = a->eps);
    if (i + 1 < a->layers)
      BK_COMPOSE(c, HC_POST_RES, hc_post_res, .x = l->x, .f = l->f, .post = l->post,
                 .comb = l->comb, .out = l[1].x);
  }
}

/* ---- from compositions to kernels ---- */

/* This is the one place where an op finds its compose function. It is made from the COMPOSED rows
 * of ops.def. */
static void compose(bk_op op, const void *args, bk_composition *c) {
  switch (op) {
#define OP(...)
#define COMPOSED(ID, name, ...) \
  case BK_OP_##ID:              \
    bk_compose_##name(args, c); \
    break;
#define COMPOSED_OF(ID, name, ...) COMPOSED(ID, name, )
#include "runtime/ops.def"
    default: break;
  }
}

/* The lookup: is there a kernel for this step? Steps that are composed themselves are looked
 * into. */
static bk_status find_step(bk_composition *c, bk_op op, const void *args) {
  return bk_kernel_find(c->asked, op, args) ? BK_OK : BK_ERR_UNSUPPORTED;
}

/* If one step has no kernel, the fused op has none. */
static bool composite_accepts(const bk_kernel *self, const bk_device *device, const void *args) {
  bk_composition c = {.visit = find_step, .asked = device};
  compose(self->op, args, &c);
  return c.status == BK_OK;
}

static void composite_release(bk_device *device, void *state) {
  composite_state *s = state;
  if (!s) return;
  while (s->n_plans > 0) bk_plan_release(&s->plans[--s->n_plans]);
  bk_free(device->ctx, s);
}

/* n_plans counts those that were made, so that a failure releases these and no others. */
static bk_status prepare_step(bk_composition *c, bk_op op, const void *args) {
  bk_plan *plan = &c->state->plans[c->n_steps];
  BK_TRY(bk_plan_prepare(c->device, op, args, plan));
  c->state->n_plans++;
  if (plan->workspace_bytes > c->largest) c->largest = plan->workspace_bytes;
  return BK_OK;
}

/* Two walks over the steps: the first counts them, so that the state is one allocation; the second
 * prepares a plan for each. Steps may be composed themselves; their workspace is then that of
 * their own steps. */
static BK_PREPARE(composite_prepare) {
  bk_composition count = {0}, c = {.visit = prepare_step, .device = device};
  compose(self->op, args, &count);
  c.state = bk_alloc(device->ctx, sizeof *c.state + (size_t)count.n_steps * sizeof(bk_plan));
  if (!c.state) return BK_ERR_MEMORY;
  compose(self->op, args, &c);
  if (c.status != BK_OK) {
    composite_release(device, c.state);
    return c.status;
  }
  c.state->scratch = c.scratch;
  *state = c.state;
  *workspace_bytes = c.scratch + c.largest;
  return BK_OK;
}

/* A copy whose two operands turn out to be one place. Only the launch can see it, because the
 * buffers are not known before; prepare has made a plan for it all the same. */
static bool copies_onto_itself(bk_op op, const void *args) {
  const bk_copy_args *a = args;
  return op == BK_OP_COPY && a->x.buffer && a->x.buffer == a->y.buffer &&
         a->x.offset == a->y.offset;
}

/* All steps use one workspace behind the scratch, one after the other on the stream. */
static bk_status launch_step(bk_composition *c, bk_op op, const void *args) {
  bk_place rest = {c->workspace.buffer, c->workspace.offset + c->state->scratch};
  return copies_onto_itself(op, args)
             ? BK_OK
             : bk_plan_launch(c->stream, &c->state->plans[c->n_steps], args, rest);
}

/* The walk is made again, now with buffers; it allocates nothing. */
static bk_status composite_launch(bk_stream *stream, const bk_plan *plan, const void *args,
                                  bk_place workspace) {
  bk_composition c = {
      .visit = launch_step, .workspace = workspace, .stream = stream, .state = plan->state};
  compose(plan->kernel->op, args, &c);
  return c.status;
}

/* Each composed op has a row. Dtypes and kinds are not limited here, since the steps limit them. */
#define ALL_FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16) | BK_DT(BK_F64))
#define OP(...)
#define COMPOSED(ID, ...)        \
  {.op = BK_OP_##ID,             \
   .dtypes = ALL_FLOATS,         \
   .kinds = BK_KINDS_ALL,        \
   .name = "composed",           \
   .accepts = composite_accepts, \
   .prepare = composite_prepare, \
   .launch = composite_launch,   \
   .release = composite_release},
#define COMPOSED_OF(ID, ...) COMPOSED(ID, )
static const bk_kernel composed[] = {
#include "runtime/ops.def"
};

const bk_kernel *bk_composite_find(const bk_device *device, bk_op op, const void *args) {
  for (size_t i = 0; i < BK_COUNT(composed); i++)
    if (composed[i].op == op)
      return bk_kernel_takes(&composed[i], device, args) ? &composed[i] : NULL;
  return NULL;
}

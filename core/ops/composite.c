/* The composed defaults of the fused slots: kernel rows that are made of other ops.
 *
 * A slot's compose function writes down its steps: ops with their args, operands taken from the
 * slot's args or from scratch memory in the workspace. The same function serves the lookup (are
 * all parts there?), prepare (a plan for each step) and launch (the plans in order), so that the
 * three cannot drift: each step goes to a visitor as soon as it is made, and lives no longer. It
 * may look at dtypes, shapes and strides only: the same steps must come out whatever the
 * buffers. Workspace: the scratch tensors, then the largest workspace of the steps. */
#include "ops/ops.h"

/* State of a composed plan: one plan for each step. */
typedef struct composite_state {
  size_t scratch;
  int n_plans;
  bk_plan plans[];
} composite_state;

typedef struct composition composition;
typedef bk_status (*step_visitor)(composition *c, bk_op op, const void *args);
struct composition {
  step_visitor visit; /* NULL: steps are only counted */
  bk_status status;   /* the first that is not BK_OK ends the visits */
  int n_steps;        /* so far */
  bk_place workspace;
  size_t scratch; /* bytes of scratch so far */
  /* what the visitors work with */
  const bk_device *asked;
  bk_device *device;
  bk_stream *stream;
  composite_state *state;
  size_t largest; /* workspace of a step */
};

static void add_step(composition *c, bk_op op, const void *args) {
  if (c->visit && c->status == BK_OK) c->status = c->visit(c, op, args);
  c->n_steps++;
}

#define ADD_STEP(c, id, member, ...)                                          \
  do {                                                                        \
    const bk_##member##_args step_ = {__VA_ARGS__}; /* ends with the block */ \
    add_step(c, BK_OP_##id, &step_);                                          \
  } while (0)

/* A contiguous tensor in the workspace, of the shape of `like`. */
static bk_tensor scratch(composition *c, const bk_tensor *like) {
  bk_tensor t = bk_tensor_make(like->dtype, like->ndim, like->shape);
  t.buffer = c->workspace.buffer;
  t.offset = c->workspace.offset + c->scratch;
  c->scratch += BK_ALIGN_UP(bk_tensor_bytes(&t), (size_t)BK_ARENA_ALIGN);
  return t;
}

static bk_tensor transposed(bk_tensor t) { return bk_tensor_transpose(t, 0, 1); }

/* ---- projection ---- */

static void compose_HC_PROJECT(const void *args, composition *c) {
  const bk_hc_project_args *a = args;
  ADD_STEP(c, GEMM, gemm, .a = a->x, .b = transposed(a->fn), .c = a->proj, .alpha = 1);
  ADD_STEP(c, HC_RMS, hc_rms, .x = a->x, .rinv = a->rinv, .eps = a->eps);
}

static void compose_HC_PROJECT_BWD(const void *args, composition *c) {
  const bk_hc_project_bwd_args *a = args;
  if (bk_tensor_present(&a->dfn)) {
    ADD_STEP(c, GEMM, gemm, .a = transposed(a->dproj), .b = a->x, .c = a->dfn, .alpha = 1,
             .accumulate = true);
  }
  if (bk_tensor_present(&a->dx)) {
    ADD_STEP(c, GEMM, gemm, .a = a->dproj, .b = a->fn, .c = a->dx, .alpha = 1,
             .accumulate = a->accumulate);
    ADD_STEP(c, HC_RMS_BWD, hc_rms_bwd, .x = a->x, .rinv = a->rinv, .drinv = a->drinv, .dx = a->dx,
             .accumulate = true);
  }
}

/* ---- maps ---- */

/* The columns of the comb logits, [N,n!] for mhc_lite, else seen as [N,n,n]. */
static bk_tensor comb_logits(bk_tensor logits, bk_hc_kind kind, int n) {
  bk_tensor columns = bk_tensor_slice(logits, 1, 2 * n, logits.shape[1] - 2 * n);
  return kind == BK_HC_MHC_LITE ? columns : bk_tensor_split(columns, 1, n);
}

static void compose_HC_MAPS(const void *args, composition *c) {
  const bk_hc_maps_args *a = args;
  if (a->kind == BK_HC_HC) {
    ADD_STEP(c, HC_TANH, hc_tanh, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
             .base = a->base, .pre = a->pre, .post = a->post, .comb = a->comb, .n = a->n);
    return;
  }
  bk_tensor logits = scratch(c, &a->proj);
  ADD_STEP(c, HC_LOGITS, hc_logits, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
           .base = a->base, .logits = logits, .kind = a->kind, .n = a->n);
  ADD_STEP(c, HC_GATES, hc_gates, .logits = logits, .pre = a->pre, .post = a->post,
           .hc_eps = a->hc_eps);
  if (a->kind == BK_HC_MHC) {
    ADD_STEP(c, SINKHORN, sinkhorn, .logits = comb_logits(logits, a->kind, a->n), .comb = a->comb,
             .iters = a->iters, .hc_eps = a->hc_eps);
  } else if (a->kind == BK_HC_MHC_LITE) {
    ADD_STEP(c, HC_PERM, hc_perm, .logits = comb_logits(logits, a->kind, a->n), .comb = a->comb,
             .n = a->n);
  }
}

static void compose_HC_MAPS_BWD(const void *args, composition *c) {
  const bk_hc_maps_bwd_args *a = args;
  if (a->kind == BK_HC_HC) {
    ADD_STEP(c, HC_TANH_BWD, hc_tanh_bwd, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
             .dpre = a->dpre, .dpost = a->dpost, .dcomb = a->dcomb, .dproj = a->dproj,
             .drinv = a->drinv, .dscale = a->dscale, .dbase = a->dbase, .n = a->n);
    return;
  }
  bk_tensor logits = scratch(c, &a->proj), dlogits = scratch(c, &a->proj);
  ADD_STEP(c, HC_LOGITS, hc_logits, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
           .base = a->base, .logits = logits, .kind = a->kind, .n = a->n);
  ADD_STEP(c, HC_GATES_BWD, hc_gates_bwd, .logits = logits, .dpre = a->dpre, .dpost = a->dpost,
           .dlogits = dlogits);
  if (a->kind == BK_HC_MHC) {
    ADD_STEP(c, SINKHORN_BWD, sinkhorn_bwd, .logits = comb_logits(logits, a->kind, a->n),
             .dcomb = a->dcomb, .dlogits = comb_logits(dlogits, a->kind, a->n), .iters = a->iters,
             .hc_eps = a->hc_eps);
  } else if (a->kind == BK_HC_MHC_LITE) {
    ADD_STEP(c, HC_PERM_BWD, hc_perm_bwd, .logits = comb_logits(logits, a->kind, a->n),
             .dcomb = a->dcomb, .dlogits = comb_logits(dlogits, a->kind, a->n), .n = a->n);
  }
  ADD_STEP(c, HC_LOGITS_BWD, hc_logits_bwd, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
           .dlogits = dlogits, .dproj = a->dproj, .drinv = a->drinv, .dscale = a->dscale,
           .dbase = a->dbase, .kind = a->kind, .n = a->n);
}

/* ---- pre + norm ---- */

static void compose_HC_PRE_NORM(const void *args, composition *c) {
  const bk_hc_pre_norm_args *a = args;
  ADD_STEP(c, HC_PRE, hc_pre, .x = a->x, .pre = a->pre, .y = a->y);
  ADD_STEP(c, RMSNORM, rmsnorm, .x = a->y, .w = a->w, .y = a->h, .rstd = a->rstd, .eps = a->eps);
}

static void compose_HC_PRE_NORM_BWD(const void *args, composition *c) {
  const bk_hc_pre_norm_bwd_args *a = args;
  bk_tensor dy = scratch(c, &a->y);
  ADD_STEP(c, RMSNORM_BWD, rmsnorm_bwd, .x = a->y, .w = a->w, .rstd = a->rstd, .dy = a->dh,
           .dx = dy, .dw = a->dw);
  ADD_STEP(c, HC_PRE_BWD, hc_pre_bwd, .x = a->x, .pre = a->pre, .dy = dy, .dx = a->dx,
           .dpre = a->dpre, .accumulate = a->accumulate);
}

/* ---- post + res ---- */

static void compose_HC_POST_RES(const void *args, composition *c) {
  const bk_hc_post_res_args *a = args;
  if (bk_tensor_present(&a->comb))
    ADD_STEP(c, HC_RES, hc_res, .x = a->x, .comb = a->comb, .y = a->out);
  else ADD_STEP(c, COPY, copy, .x = a->x, .y = a->out);
  ADD_STEP(c, HC_POST, hc_post, .f = a->f, .post = a->post, .y = a->out);
}

/* dx may be dout's memory, so dout is read to the end before dx is written: through scratch
 * where comb mixes streams. */
static void compose_HC_POST_RES_BWD(const void *args, composition *c) {
  const bk_hc_post_res_bwd_args *a = args;
  ADD_STEP(c, HC_POST_BWD, hc_post_bwd, .f = a->f, .post = a->post, .dy = a->dout, .df = a->df,
           .dpost = a->dpost);
  if (bk_tensor_present(&a->comb)) {
    bk_tensor dx = scratch(c, &a->dx);
    ADD_STEP(c, HC_RES_BWD, hc_res_bwd, .x = a->x, .comb = a->comb, .dy = a->dout, .dx = dx,
             .dcomb = a->dcomb);
    ADD_STEP(c, COPY, copy, .x = dx, .y = a->dx);
  } else {
    ADD_STEP(c, COPY, copy, .x = a->dout, .y = a->dx);
  }
}

/* ---- merge + mix ---- */

static void compose_HC_MERGE_MIX(const void *args, composition *c) {
  const bk_hc_merge_mix_args *a = args;
  add_step(c, BK_OP_HC_POST_RES, &a->merge);
  add_step(c, BK_OP_HC_PROJECT, &a->project);
  add_step(c, BK_OP_HC_MAPS, &a->maps);
  add_step(c, BK_OP_HC_PRE_NORM, &a->pre_norm);
}

static void compose_HC_MERGE_MIX_BWD(const void *args, composition *c) {
  const bk_hc_merge_mix_bwd_args *a = args;
  add_step(c, BK_OP_HC_PRE_NORM_BWD, &a->pre_norm);
  add_step(c, BK_OP_HC_MAPS_BWD, &a->maps);
  add_step(c, BK_OP_HC_PROJECT_BWD, &a->project);
  add_step(c, BK_OP_HC_POST_RES_BWD, &a->merge);
}

/* ---- rebuild ---- */

static void compose_HC_REBUILD(const void *args, composition *c) {
  const bk_hc_rebuild_args *a = args;
  for (int i = 0; i < a->layers; i++) {
    const bk_hc_rebuild_layer *l = &a->layer[i];
    ADD_STEP(c, HC_PRE_NORM, hc_pre_norm, .x = l->x, .pre = l->pre, .w = l->w, .y = l->y, .h = l->h,
             .rstd = l->rstd, .eps = a->eps);
    if (i + 1 < a->layers)
      ADD_STEP(c, HC_POST_RES, hc_post_res, .x = l->x, .f = l->f, .post = l->post, .comb = l->comb,
               .out = l[1].x);
  }
}

/* ---- from compositions to kernels ---- */

#define FUSED_SLOTS(X) \
  X(HC_PROJECT)        \
  X(HC_PROJECT_BWD)    \
  X(HC_MAPS)           \
  X(HC_MAPS_BWD)       \
  X(HC_PRE_NORM)       \
  X(HC_PRE_NORM_BWD)   \
  X(HC_POST_RES)       \
  X(HC_POST_RES_BWD)   \
  X(HC_MERGE_MIX)      \
  X(HC_MERGE_MIX_BWD)  \
  X(HC_REBUILD)

static void compose(bk_op op, const void *args, composition *c) {
  switch (op) {
#define SLOT(id) \
  case BK_OP_##id: compose_##id(args, c); break;
    FUSED_SLOTS(SLOT)
#undef SLOT
    default: break;
  }
}

static bk_status find_step(composition *c, bk_op op, const void *args) {
  return bk_kernel_find(c->asked, op, args) ? BK_OK : BK_ERR_UNSUPPORTED;
}

static bool composite_accepts(const bk_device *device, bk_op op, const void *args) {
  composition c = {.visit = find_step, .asked = device};
  compose(op, args, &c);
  return c.status == BK_OK;
}

static void composite_release(bk_device *device, void *state) {
  composite_state *s = state;
  if (!s) return;
  while (s->n_plans > 0) bk_plan_release(&s->plans[--s->n_plans]);
  bk_free(device->ctx, s);
}

static bk_status prepare_step(composition *c, bk_op op, const void *args) {
  bk_plan *plan = &c->state->plans[c->n_steps];
  BK_TRY(bk_plan_prepare(c->device, op, args, plan));
  c->state->n_plans++;
  if (plan->workspace_bytes > c->largest) c->largest = plan->workspace_bytes;
  return BK_OK;
}

static bk_status composite_prepare(bk_device *device, bk_op op, const void *args, void **state,
                                   size_t *workspace_bytes) {
  composition count = {0}, c = {.visit = prepare_step, .device = device};
  compose(op, args, &count);
  c.state = bk_alloc(device->ctx, sizeof *c.state + (size_t)count.n_steps * sizeof(bk_plan));
  if (!c.state) return BK_ERR_MEMORY;
  compose(op, args, &c);
  if (c.status != BK_OK) {
    composite_release(device, c.state);
    return c.status;
  }
  c.state->scratch = c.scratch;
  *state = c.state;
  *workspace_bytes = c.scratch + c.largest;
  return BK_OK;
}

/* Known at launch alone: nothing to do. */
static bool copies_onto_itself(bk_op op, const void *args) {
  const bk_copy_args *a = args;
  return op == BK_OP_COPY && a->x.buffer && a->x.buffer == a->y.buffer &&
         a->x.offset == a->y.offset;
}

static bk_status launch_step(composition *c, bk_op op, const void *args) {
  bk_place rest = {c->workspace.buffer, c->workspace.offset + c->state->scratch};
  return copies_onto_itself(op, args)
             ? BK_OK
             : bk_plan_launch(c->stream, &c->state->plans[c->n_steps], args, rest);
}

static bk_status composite_launch(bk_stream *stream, const bk_plan *plan, const void *args,
                                  bk_place workspace) {
  composition c = {
      .visit = launch_step, .workspace = workspace, .stream = stream, .state = plan->state};
  compose(plan->kernel->op, args, &c);
  return c.status;
}

/* prepare and accepts are not told the op, so each slot has its own. */
#define SLOT(id)                                                                   \
  static bool accepts_##id(const bk_device *device, const void *args) {            \
    return composite_accepts(device, BK_OP_##id, args);                            \
  }                                                                                \
  static bk_status prepare_##id(bk_device *device, const void *args, void **state, \
                                size_t *workspace_bytes) {                         \
    return composite_prepare(device, BK_OP_##id, args, state, workspace_bytes);    \
  }
FUSED_SLOTS(SLOT)
#undef SLOT

#define ALL_FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16) | BK_DT(BK_F64))
#define SLOT(id)                                                   \
  {BK_OP_##id,   ALL_FLOATS,       "composed",       accepts_##id, \
   prepare_##id, composite_launch, composite_release},
const bk_kernel bk_composite_kernels[] = {FUSED_SLOTS(SLOT) BK_KERNEL_END};
#undef SLOT

bool bk_op_is_fused_slot(bk_op op) {
  for (const bk_kernel *k = bk_composite_kernels; k->op != BK_OP_NONE; k++) {
    if (k->op == op) return true;
  }
  return false;
}

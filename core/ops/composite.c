/* The composed defaults of the fused slots: kernel rows that are made of other ops.
 *
 * A slot's compose function writes down its steps: ops with their args, operands taken from the slot's args or from
 * scratch memory in the workspace. The same function serves the lookup (are all parts there?), prepare (a plan for each
 * step) and launch (the plans in order), so that the three cannot drift. It may look at dtypes, shapes and strides
 * only: the same steps must come out whatever the buffers. Workspace: the scratch tensors, then the largest workspace
 * of the steps. */
#include "ops/ops.h"

#include <string.h>

typedef struct step {
  bk_op op;
  bool skip; /* known at launch: nothing to do */
  union {
    bk_copy_args copy;
    bk_gemm_args gemm;
    bk_rmsnorm_args rmsnorm;
    bk_rmsnorm_bwd_args rmsnorm_bwd;
    bk_hc_rms_args hc_rms;
    bk_hc_rms_bwd_args hc_rms_bwd;
    bk_hc_logits_args hc_logits;
    bk_hc_logits_bwd_args hc_logits_bwd;
    bk_hc_gates_args hc_gates;
    bk_hc_gates_bwd_args hc_gates_bwd;
    bk_sinkhorn_args sinkhorn;
    bk_sinkhorn_bwd_args sinkhorn_bwd;
    bk_hc_perm_args hc_perm;
    bk_hc_perm_bwd_args hc_perm_bwd;
    bk_hc_tanh_args hc_tanh;
    bk_hc_tanh_bwd_args hc_tanh_bwd;
    bk_hc_pre_args hc_pre;
    bk_hc_pre_bwd_args hc_pre_bwd;
    bk_hc_res_args hc_res;
    bk_hc_res_bwd_args hc_res_bwd;
    bk_hc_post_args hc_post;
    bk_hc_post_bwd_args hc_post_bwd;
    bk_hc_project_args hc_project;
    bk_hc_project_bwd_args hc_project_bwd;
    bk_hc_maps_args hc_maps;
    bk_hc_maps_bwd_args hc_maps_bwd;
    bk_hc_pre_norm_args hc_pre_norm;
    bk_hc_pre_norm_bwd_args hc_pre_norm_bwd;
    bk_hc_post_res_args hc_post_res;
    bk_hc_post_res_bwd_args hc_post_res_bwd;
  } args;
} step;

typedef struct composition {
  bk_place workspace;
  size_t scratch; /* bytes of scratch so far */
  int n_steps;
  step steps[5];
} composition;

#define ADD_STEP(c, id, member, ...)                         \
  do {                                                       \
    step *s_ = &(c)->steps[(c)->n_steps++];                  \
    s_->op = BK_OP_##id;                                     \
    s_->skip = false;                                        \
    memset(&s_->args, 0, sizeof s_->args);                   \
    s_->args.member = (bk_##member##_args){__VA_ARGS__};     \
  } while (0)

/* A contiguous tensor in the workspace, of the shape of `like`. */
static bk_tensor scratch(composition *c, const bk_tensor *like) {
  bk_tensor t = bk_tensor_make(like->dtype, like->ndim, like->shape);
  t.buffer = c->workspace.buffer;
  t.offset = c->workspace.offset + c->scratch;
  c->scratch += BK_ALIGN_UP(bk_tensor_bytes(&t), (size_t)BK_ARENA_ALIGN);
  return t;
}

static bool same_place(const bk_tensor *a, const bk_tensor *b) {
  return a->buffer && a->buffer == b->buffer && a->offset == b->offset;
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
    ADD_STEP(c, GEMM, gemm, .a = transposed(a->dproj), .b = a->x, .c = a->dfn, .alpha = 1, .accumulate = true);
  }
  if (bk_tensor_present(&a->dx)) {
    ADD_STEP(c, GEMM, gemm, .a = a->dproj, .b = a->fn, .c = a->dx, .alpha = 1, .accumulate = a->accumulate);
    ADD_STEP(c, HC_RMS_BWD, hc_rms_bwd, .x = a->x, .rinv = a->rinv, .drinv = a->drinv, .dx = a->dx, .accumulate = true);
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
    ADD_STEP(c, HC_TANH, hc_tanh, .proj = a->proj, .rinv = a->rinv, .scale = a->scale, .base = a->base, .pre = a->pre,
             .post = a->post, .comb = a->comb, .n = a->n);
    return;
  }
  bk_tensor logits = scratch(c, &a->proj);
  ADD_STEP(c, HC_LOGITS, hc_logits, .proj = a->proj, .rinv = a->rinv, .scale = a->scale, .base = a->base,
           .logits = logits, .kind = a->kind, .n = a->n);
  ADD_STEP(c, HC_GATES, hc_gates, .logits = logits, .pre = a->pre, .post = a->post, .hc_eps = a->hc_eps);
  if (a->kind == BK_HC_MHC) {
    ADD_STEP(c, SINKHORN, sinkhorn, .logits = comb_logits(logits, a->kind, a->n), .comb = a->comb, .iters = a->iters,
             .hc_eps = a->hc_eps);
  } else if (a->kind == BK_HC_MHC_LITE) {
    ADD_STEP(c, HC_PERM, hc_perm, .logits = comb_logits(logits, a->kind, a->n), .comb = a->comb, .n = a->n);
  }
}

static void compose_HC_MAPS_BWD(const void *args, composition *c) {
  const bk_hc_maps_bwd_args *a = args;
  if (a->kind == BK_HC_HC) {
    ADD_STEP(c, HC_TANH_BWD, hc_tanh_bwd, .proj = a->proj, .rinv = a->rinv, .scale = a->scale, .dpre = a->dpre,
             .dpost = a->dpost, .dcomb = a->dcomb, .dproj = a->dproj, .drinv = a->drinv, .dscale = a->dscale,
             .dbase = a->dbase, .n = a->n);
    return;
  }
  bk_tensor logits = scratch(c, &a->proj), dlogits = scratch(c, &a->proj);
  ADD_STEP(c, HC_LOGITS, hc_logits, .proj = a->proj, .rinv = a->rinv, .scale = a->scale, .base = a->base,
           .logits = logits, .kind = a->kind, .n = a->n);
  ADD_STEP(c, HC_GATES_BWD, hc_gates_bwd, .logits = logits, .dpre = a->dpre, .dpost = a->dpost, .dlogits = dlogits);
  if (a->kind == BK_HC_MHC) {
    ADD_STEP(c, SINKHORN_BWD, sinkhorn_bwd, .logits = comb_logits(logits, a->kind, a->n), .dcomb = a->dcomb,
             .dlogits = comb_logits(dlogits, a->kind, a->n), .iters = a->iters, .hc_eps = a->hc_eps);
  } else if (a->kind == BK_HC_MHC_LITE) {
    ADD_STEP(c, HC_PERM_BWD, hc_perm_bwd, .logits = comb_logits(logits, a->kind, a->n), .dcomb = a->dcomb,
             .dlogits = comb_logits(dlogits, a->kind, a->n), .n = a->n);
  }
  ADD_STEP(c, HC_LOGITS_BWD, hc_logits_bwd, .proj = a->proj, .rinv = a->rinv, .scale = a->scale, .dlogits = dlogits,
           .dproj = a->dproj, .drinv = a->drinv, .dscale = a->dscale, .dbase = a->dbase, .kind = a->kind, .n = a->n);
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
  ADD_STEP(c, RMSNORM_BWD, rmsnorm_bwd, .x = a->y, .w = a->w, .rstd = a->rstd, .dy = a->dh, .dx = dy, .dw = a->dw);
  ADD_STEP(c, HC_PRE_BWD, hc_pre_bwd, .x = a->x, .pre = a->pre, .dy = dy, .dx = a->dx, .dpre = a->dpre,
           .accumulate = a->accumulate);
}

/* ---- post + res ---- */

static void compose_HC_POST_RES(const void *args, composition *c) {
  const bk_hc_post_res_args *a = args;
  if (bk_tensor_present(&a->comb)) ADD_STEP(c, HC_RES, hc_res, .x = a->x, .comb = a->comb, .y = a->out);
  else ADD_STEP(c, COPY, copy, .x = a->x, .y = a->out);
  ADD_STEP(c, HC_POST, hc_post, .f = a->f, .post = a->post, .y = a->out);
}

/* dx may be dout's memory, so dout is read to the end before dx is written: through scratch where comb mixes streams. */
static void compose_HC_POST_RES_BWD(const void *args, composition *c) {
  const bk_hc_post_res_bwd_args *a = args;
  ADD_STEP(c, HC_POST_BWD, hc_post_bwd, .f = a->f, .post = a->post, .dy = a->dout, .df = a->df, .dpost = a->dpost);
  if (bk_tensor_present(&a->comb)) {
    bk_tensor dx = scratch(c, &a->dx);
    ADD_STEP(c, HC_RES_BWD, hc_res_bwd, .x = a->x, .comb = a->comb, .dy = a->dout, .dx = dx, .dcomb = a->dcomb);
    ADD_STEP(c, COPY, copy, .x = dx, .y = a->dx);
  } else {
    ADD_STEP(c, COPY, copy, .x = a->dout, .y = a->dx);
    c->steps[c->n_steps - 1].skip = same_place(&a->dout, &a->dx);
  }
}

/* ---- merge + mix ---- */

static void compose_HC_MERGE_MIX(const void *args, composition *c) {
  const bk_hc_merge_mix_args *a = args;
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_POST_RES, .args.hc_post_res = a->merge};
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_PROJECT, .args.hc_project = a->project};
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_MAPS, .args.hc_maps = a->maps};
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_PRE_NORM, .args.hc_pre_norm = a->pre_norm};
}

static void compose_HC_MERGE_MIX_BWD(const void *args, composition *c) {
  const bk_hc_merge_mix_bwd_args *a = args;
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_PRE_NORM_BWD, .args.hc_pre_norm_bwd = a->pre_norm};
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_MAPS_BWD, .args.hc_maps_bwd = a->maps};
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_PROJECT_BWD, .args.hc_project_bwd = a->project};
  c->steps[c->n_steps++] = (step){.op = BK_OP_HC_POST_RES_BWD, .args.hc_post_res_bwd = a->merge};
}

/* ---- from compositions to kernels ---- */

#define FUSED_SLOTS(X)                                                                                        \
  X(HC_PROJECT) X(HC_PROJECT_BWD) X(HC_MAPS) X(HC_MAPS_BWD) X(HC_PRE_NORM) X(HC_PRE_NORM_BWD) X(HC_POST_RES) \
  X(HC_POST_RES_BWD) X(HC_MERGE_MIX) X(HC_MERGE_MIX_BWD)

static void compose(bk_op op, const void *args, bk_place workspace, composition *c) {
  c->workspace = workspace;
  c->scratch = 0;
  c->n_steps = 0;
  switch (op) {
#define SLOT(id) case BK_OP_##id: compose_##id(args, c); break;
    FUSED_SLOTS(SLOT)
#undef SLOT
    default: break;
  }
}

/* State of a composed plan: one plan for each step. */
typedef struct composite_state {
  int n_plans;
  size_t scratch;
  bk_plan plans[BK_COUNT(((composition *)0)->steps)];
} composite_state;

static bool composite_accepts(const bk_device *device, bk_op op, const void *args) {
  composition c;
  compose(op, args, (bk_place){0}, &c);
  for (int i = 0; i < c.n_steps; i++) {
    if (!bk_kernel_find(device, c.steps[i].op, &c.steps[i].args)) return false;
  }
  return true;
}

static void composite_release(bk_device *device, void *state) {
  composite_state *s = state;
  if (!s) return;
  while (s->n_plans > 0) bk_plan_release(&s->plans[--s->n_plans]);
  bk_free(device->ctx, s);
}

static bk_status prepare_steps(bk_device *device, const composition *c, composite_state *s, size_t *largest) {
  for (int i = 0; i < c->n_steps; i++) {
    BK_TRY(bk_plan_prepare(device, c->steps[i].op, &c->steps[i].args, &s->plans[i]));
    s->n_plans = i + 1;
    if (s->plans[i].workspace_bytes > *largest) *largest = s->plans[i].workspace_bytes;
  }
  return BK_OK;
}

static bk_status composite_prepare(bk_device *device, bk_op op, const void *args, void **state, size_t *workspace_bytes) {
  composition c;
  size_t largest = 0;
  compose(op, args, (bk_place){0}, &c);
  composite_state *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  s->scratch = c.scratch;
  bk_status status = prepare_steps(device, &c, s, &largest);
  if (status != BK_OK) {
    composite_release(device, s);
    return status;
  }
  *state = s;
  *workspace_bytes = c.scratch + largest;
  return BK_OK;
}

static bk_status composite_launch(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const composite_state *s = plan->state;
  composition c;
  compose(plan->kernel->op, args, workspace, &c);
  bk_place rest = {workspace.buffer, workspace.offset + s->scratch};
  for (int i = 0; i < c.n_steps; i++) {
    if (!c.steps[i].skip) BK_TRY(bk_plan_launch(stream, &s->plans[i], &c.steps[i].args, rest));
  }
  return BK_OK;
}

/* prepare and accepts are not told the op, so each slot has its own. */
#define SLOT(id)                                                                                                   \
  static bool accepts_##id(const bk_device *device, const void *args) {                                            \
    return composite_accepts(device, BK_OP_##id, args);                                                            \
  }                                                                                                                \
  static bk_status prepare_##id(bk_device *device, const void *args, void **state, size_t *workspace_bytes) {      \
    return composite_prepare(device, BK_OP_##id, args, state, workspace_bytes);                                    \
  }
FUSED_SLOTS(SLOT)
#undef SLOT

#define ALL_FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16) | BK_DT(BK_F64))
#define SLOT(id) {BK_OP_##id, ALL_FLOATS, "composed", accepts_##id, prepare_##id, composite_launch, composite_release},
const bk_kernel bk_composite_kernels[] = {FUSED_SLOTS(SLOT) BK_KERNEL_END};
#undef SLOT

bool bk_op_is_fused_slot(bk_op op) {
  for (const bk_kernel *k = bk_composite_kernels; k->op != BK_OP_NONE; k++) {
    if (k->op == op) return true;
  }
  return false;
}

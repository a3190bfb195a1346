/* Dense SwiGLU MLP: f = (silu(h Wg^T) * (h Wu^T)) Wd^T. Gate and up are one product over the
 * stacked block [2I, C]. The product of gate and up is not kept: wgrad makes it again from gate_up
 * by the same op, which costs one pass and saves N I elements for each sublayer and slot.
 *
 * What lives how long: gate_up [N,2I] is kept in the slot from forward to wgrad, or made again from
 * h before each of them. act [N,I] is
 * scratch with three meanings, one after the other: swiglu's output in forward, the gradient of
 * that output in dgrad, and the output again in wgrad. dgate_up [N,2I] goes from dgrad to wgrad.
 *
 * A sparse layer's shared experts use the same functions on blocks of their own. */
#include "models/layers/sublayer.h"

/* The width comes from the parameters and not from the configuration, because the shared experts
 * have another one. */
bk_mlp_acts bk_mlp_plan_acts(bk_planner *p, const bk_mlp_params *m) {
  return (bk_mlp_acts){bk_planner_2d(p, p->again, p->st, p->tokens, 2 * m->width)};
}

bk_mlp_scratch bk_mlp_plan_forward(bk_planner *p, const bk_mlp_params *m) {
  return (bk_mlp_scratch){.act = bk_planner_2d(p, BK_MEM_WORKSPACE, p->st, p->tokens, m->width)};
}

bk_mlp_scratch bk_mlp_plan_backward(bk_planner *p, const bk_mlp_params *m) {
  return (bk_mlp_scratch){.act = bk_planner_2d(p, BK_MEM_WORKSPACE, p->st, p->tokens, m->width),
                          .dgate_up = bk_planner_2d(p, p->left, p->st, p->tokens, 2 * m->width)};
}

/* act = silu(gate) * up from the two halves of gate_up; used by forward and again by wgrad. */
static bk_status mlp_act(bk_recorder *rec, const bk_mlp_acts *a, const bk_mlp_scratch *w) {
  return bk_record(rec, BK_OP_SWIGLU,
                   &(bk_swiglu_args){bk_gate_half(a->gate_up), bk_up_half(a->gate_up), w->act});
}

bk_status bk_mlp_forward(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                         const bk_mlp_scratch *w, bk_tensor h, bk_tensor f) {
  BK_TRY(bk_linear(rec, h, m->gate_up, a->gate_up));
  BK_TRY(mlp_act(rec, a, w));
  return bk_linear(rec, w->act, m->down, f);
}

/* All that the backward reads is the first product. */
bk_status bk_mlp_rebuild(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                         bk_tensor h) {
  return bk_linear(rec, h, m->gate_up, a->gate_up);
}

/* `act` holds the gradient of swiglu's output here; what it held in the forward pass is not
 * needed. */
bk_status bk_mlp_dgrad(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                       const bk_mlp_scratch *w, bk_tensor df, bk_tensor dh, bool accumulate) {
  BK_TRY(bk_linear_dgrad(rec, df, m->down, w->act, false));
  BK_TRY(bk_record(rec, BK_OP_SWIGLU_BWD,
                   &(bk_swiglu_bwd_args){bk_gate_half(a->gate_up), bk_up_half(a->gate_up), w->act,
                                         bk_gate_half(w->dgate_up), bk_up_half(w->dgate_up)}));
  return bk_linear_dgrad(rec, w->dgate_up, m->gate_up, dh, accumulate);
}

/* The product with dgate_up comes first. act still holds a gradient then, which nobody needs any
 * more, and is made again for the second. */
bk_status bk_mlp_wgrad(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                       const bk_mlp_scratch *w, bk_tensor h, bk_tensor df) {
  BK_TRY(bk_linear_wgrad(rec, w->dgate_up, h, m->gate_up));
  BK_TRY(mlp_act(rec, a, w));
  return bk_linear_wgrad(rec, df, w->act, m->down);
}

/* ---- the vtable of a dense FFN ---- */
static void plan_acts(bk_planner *p, const bk_sublayer *s, bk_f_acts *a) {
  a->mlp = bk_mlp_plan_acts(p, &s->mlp);
}
static void plan_forward(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w) {
  w->mlp = bk_mlp_plan_forward(p, &s->mlp);
}
static void plan_backward(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w) {
  w->mlp = bk_mlp_plan_backward(p, &s->mlp);
}

static bk_status forward(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                         const bk_f_scratch *w, bk_tensor h, bk_tensor f) {
  BK_TRY(bk_f_piece(rec, s, BK_PART_MLP, BK_PASS_F));
  return bk_mlp_forward(rec, &s->mlp, &a->mlp, &w->mlp, h, f);
}

static bk_status rebuild(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                         const bk_f_scratch *w, bk_tensor h, bk_pass pass) {
  (void)w;
  BK_TRY(bk_f_rebuild_piece(rec, s, pass));
  return bk_mlp_rebuild(rec, &s->mlp, &a->mlp, h);
}

static bk_status dgrad(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                       const bk_f_scratch *w, bk_tensor df, bk_tensor dh) {
  BK_TRY(bk_f_piece(rec, s, BK_PART_MLP, BK_PASS_D));
  return bk_mlp_dgrad(rec, &s->mlp, &a->mlp, &w->mlp, df, dh, false);
}

static bk_status wgrad(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                       const bk_f_scratch *w, bk_tensor h, bk_tensor df) {
  BK_TRY(bk_f_piece(rec, s, BK_PART_MLP, BK_PASS_W));
  return bk_mlp_wgrad(rec, &s->mlp, &a->mlp, &w->mlp, h, df);
}

const bk_f_ops bk_mlp_ops = {"mlp",   plan_acts, plan_forward, plan_backward,
                             forward, rebuild,   dgrad,        wgrad};

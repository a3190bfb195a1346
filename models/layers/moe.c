/* Mixture of experts, DeepSeek-V3 (doc/model.md). F is four pieces: route (scores,
 * choice, order by expert), dispatch (tokens to their experts), experts, combine (weighted sum,
 * back at the token); dispatch and combine move rows inside the device here. Shared experts are
 * one dense MLP beside them, a piece of its own. Of the M = N k rows only gate_up and the
 * outputs y are kept: the permuted input and swiglu's output are rebuilt in wgrad by the same
 * ops.
 *
 * How many rows an expert gets is known on the device alone (offsets): shapes never depend on it,
 * so that no step waits for the host.
 *   s = sigmoid(h Wg^T);  the k experts of a token are chosen by s + bias, within the best groups
 *   w_j = s_j, divided by their sum if norm_topk_prob, times routed_scaling_factor
 *   f = shared(h) + sum_j w_j expert_j(h), each expert a SwiGLU MLP
 * The bias has no gradient: the balancing rule moves it after each step (arXiv 2408.15664).
 *
 * Kept from forward to wgrad: scores, index and weights (router), offsets, order and row_of (sort),
 * gate_up and y (experts). With recompute gate_up and y are made again, while the routing, which is
 * small, is kept: a second choice would be the same, but would count the experts' loads twice.
 * Scratch: logits [N,E], the permuted input x [M,C] and act [M,I], each of
 * which holds its own gradient in dgrad; x and act are made again in wgrad. dgrad leaves dlogits,
 * dgate_up and dy for wgrad.
 *
 * With experts on several ranks only dispatch and combine change: the rows of x go to the rank of
 * their expert and those of y come back (all_to_allv in comm/comm.h, and the other way round in
 * dgrad); route, experts and shared stay what they are, over the rows that are here. */
#include "models/layers/sublayer.h"

/* Rows of tokens sorted by expert: one for each of a token's k choices. */
static int64_t n_rows(const bk_planner *p) { return p->tokens * p->config->num_experts_per_tok; }

/* Routing is kept too: the backward must send the gradients the way the tokens went. The sizes are
 * those of N tokens with k choices each, whatever the router decides: M is exact, only its division
 * among the experts is open. */
static void plan_acts(bk_planner *p, const bk_sublayer *s, bk_f_acts *a) {
  const bk_model_config *c = p->config;
  bk_memory_class keep = p->keep;
  int64_t N = p->tokens, E = c->n_routed_experts, k = c->num_experts_per_tok;
  a->moe = (bk_moe_acts){
      .scores = bk_planner_2d(p, keep, p->ct, N, E),
      .index = bk_planner_2d(p, keep, BK_I32, N, k),
      .weights = bk_planner_2d(p, keep, p->ct, N, k),
      .offsets = bk_planner_1d(p, keep, BK_I32, E + 1),
      .order = bk_planner_1d(p, keep, BK_I32, N * k),
      .row_of = bk_planner_2d(p, keep, BK_I32, N, k),
      .gate_up = bk_planner_2d(p, p->again, p->st, n_rows(p), 2 * c->moe_intermediate_size),
      .y = bk_planner_2d(p, p->again, p->st, n_rows(p), c->hidden_size),
  };
  if (s->moe.shared.gate_up) a->moe.shared = bk_mlp_plan_acts(p, &s->moe.shared);
}

/* The places are free again when the sublayer's forward has ended. */
static void plan_forward(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w) {
  const bk_model_config *c = p->config;
  w->moe = (bk_moe_scratch){
      .logits = bk_planner_2d(p, BK_MEM_WORKSPACE, p->ct, p->tokens, c->n_routed_experts),
      .x = bk_planner_2d(p, BK_MEM_WORKSPACE, p->st, n_rows(p), c->hidden_size),
      .act = bk_planner_2d(p, BK_MEM_WORKSPACE, p->st, n_rows(p), c->moe_intermediate_size),
  };
  if (s->moe.shared.gate_up) w->moe.shared = bk_mlp_plan_forward(p, &s->moe.shared);
}

/* `left` marks what wgrad reads after dgrad has ended: the gradients in front of each product. */
static void plan_backward(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w) {
  const bk_model_config *c = p->config;
  w->moe = (bk_moe_scratch){
      .logits = bk_planner_2d(p, p->left, p->ct, p->tokens, c->n_routed_experts),
      .x = bk_planner_2d(p, BK_MEM_WORKSPACE, p->st, n_rows(p), c->hidden_size),
      .act = bk_planner_2d(p, BK_MEM_WORKSPACE, p->st, n_rows(p), c->moe_intermediate_size),
      .dgate_up = bk_planner_2d(p, p->left, p->st, n_rows(p), 2 * c->moe_intermediate_size),
      .dy = bk_planner_2d(p, p->left, p->st, n_rows(p), c->hidden_size),
      .dweights = bk_planner_2d(p, BK_MEM_WORKSPACE, p->ct, p->tokens, c->num_experts_per_tok),
  };
  if (s->moe.shared.gate_up) w->moe.shared = bk_mlp_plan_backward(p, &s->moe.shared);
}

/* ---- forward ---- */
/* Three ops are recorded: the router's logits (ct, since h is multiplied by a ct weight into a ct
 * tensor), the choice, and the sort of the N k choices by expert. The sort also adds to the expert
 * loads. */
static bk_status moe_route(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                           const bk_moe_scratch *w, bk_tensor h) {
  const bk_model_config *c = s->config;
  BK_TRY(bk_linear(rec, h, s->moe.gate, w->logits));
  BK_TRY(bk_record(rec, BK_OP_ROUTER,
                   &(bk_router_args){.logits = w->logits,
                                     .bias = s->moe.bias->weight,
                                     .scores = a->scores,
                                     .index = a->index,
                                     .weights = a->weights,
                                     .n_group = (int)c->n_group,
                                     .topk_group = (int)c->topk_group,
                                     .norm_topk_prob = c->norm_topk_prob,
                                     .routed_scaling_factor = c->routed_scaling_factor}));
  return bk_record(rec, BK_OP_MOE_INDEX,
                   &(bk_moe_index_args){a->index, a->offsets, a->order, a->row_of, s->moe.load});
}

/* Copies each token's row of h to the rows of its k choices. wgrad calls it too, to have x
 * again. */
static bk_status moe_dispatch(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                              const bk_moe_scratch *w, bk_tensor h) {
  return bk_record(rec, BK_OP_PERMUTE,
                   &(bk_permute_args){h, a->order, w->x, (int)s->config->num_experts_per_tok});
}

/* This is as in mlp.c, over rows of choices instead of tokens. */
static bk_status moe_act(bk_recorder *rec, const bk_moe_acts *a, const bk_moe_scratch *w) {
  return bk_record(rec, BK_OP_SWIGLU,
                   &(bk_swiglu_args){bk_gate_half(a->gate_up), bk_up_half(a->gate_up), w->act});
}

/* The first of two grouped products over the rows sorted by expert. */
static bk_status moe_gate_up(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                             const bk_moe_scratch *w) {
  bk_tensor gate_up = bk_tensor_transpose(s->moe.gate_up->weight, 1, 2);
  return bk_record(rec, BK_OP_GROUPED_GEMM,
                   &(bk_grouped_gemm_args){w->x, gate_up, a->offsets, a->gate_up});
}

/* Both products, with SwiGLU between them. */
static bk_status moe_experts(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                             const bk_moe_scratch *w) {
  bk_tensor down = bk_tensor_transpose(s->moe.down->weight, 1, 2);
  BK_TRY(moe_gate_up(rec, s, a, w));
  BK_TRY(moe_act(rec, a, w));
  return bk_record(rec, BK_OP_GROUPED_GEMM,
                   &(bk_grouped_gemm_args){w->act, down, a->offsets, a->y});
}

/* Writes f, or adds to what the shared experts have left in it. */
static bk_status moe_combine(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                             bk_tensor f) {
  return bk_record(
      rec, BK_OP_UNPERMUTE,
      &(bk_unpermute_args){a->y, a->row_of, a->weights, f, s->moe.shared.gate_up != NULL});
}

/* The shared experts write f and the routed ones add to it. Without shared experts combine writes
 * f. */
static bk_status forward(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                         const bk_f_scratch *scratch, bk_tensor h, bk_tensor f) {
  const bk_moe_acts *a = &acts->moe;
  const bk_moe_scratch *w = &scratch->moe;
  BK_TRY(bk_f_piece(rec, s, BK_PART_ROUTE, BK_PASS_F));
  BK_TRY(moe_route(rec, s, a, w, h));
  BK_TRY(bk_f_piece(rec, s, BK_PART_DISPATCH, BK_PASS_F));
  BK_TRY(moe_dispatch(rec, s, a, w, h));
  if (s->moe.shared.gate_up) {
    BK_TRY(bk_f_piece(rec, s, BK_PART_SHARED, BK_PASS_F));
    BK_TRY(bk_mlp_forward(rec, &s->moe.shared, &a->shared, &w->shared, h, f));
  }
  BK_TRY(bk_f_piece(rec, s, BK_PART_EXPERTS, BK_PASS_F));
  BK_TRY(moe_experts(rec, s, a, w));
  BK_TRY(bk_f_piece(rec, s, BK_PART_COMBINE, BK_PASS_F));
  return moe_combine(rec, s, a, f);
}

/* ---- recompute ---- */
/* The pieces are those of forward, so that an exchange of rows between ranks stays a piece of its
 * own. The router's weights have a gradient from y, which dgrad makes, so that wgrad needs no y. */
static bk_status rebuild(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                         const bk_f_scratch *scratch, bk_tensor h, bk_pass pass) {
  const bk_moe_acts *a = &acts->moe;
  const bk_moe_scratch *w = &scratch->moe;
  BK_TRY(bk_f_rebuild_piece(rec, s, pass));
  BK_TRY(moe_dispatch(rec, s, a, w, h));
  if (s->moe.shared.gate_up) {
    BK_TRY(bk_f_rebuild_piece(rec, s, pass));
    BK_TRY(bk_mlp_rebuild(rec, &s->moe.shared, &a->shared, h));
  }
  BK_TRY(bk_f_rebuild_piece(rec, s, pass));
  return pass == BK_PASS_W ? moe_gate_up(rec, s, a, w) : moe_experts(rec, s, a, w);
}

/* ---- dgrad: the mirror ---- */
/* y is kept for this: a choice's weight has the gradient y . df. Makes dy [M,C], the gradient of
 * each choice's output, and dweights [N,k]. */
static bk_status moe_combine_bwd(bk_recorder *rec, const bk_moe_acts *a, const bk_moe_scratch *w,
                                 bk_tensor df) {
  return bk_record(rec, BK_OP_UNPERMUTE_BWD,
                   &(bk_unpermute_bwd_args){a->y, a->row_of, a->weights, df, w->dy, w->dweights});
}

/* The weights are used as they are stored, [out, in], which is the transpose of the forward's view.
 * act and x hold gradients here: the places of swiglu's output and of the permuted input. */
static bk_status moe_experts_bwd(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                                 const bk_moe_scratch *w) {
  BK_TRY(bk_record(rec, BK_OP_GROUPED_GEMM,
                   &(bk_grouped_gemm_args){w->dy, s->moe.down->weight, a->offsets, w->act}));
  BK_TRY(bk_record(rec, BK_OP_SWIGLU_BWD,
                   &(bk_swiglu_bwd_args){bk_gate_half(a->gate_up), bk_up_half(a->gate_up), w->act,
                                         bk_gate_half(w->dgate_up), bk_up_half(w->dgate_up)}));
  return bk_record(rec, BK_OP_GROUPED_GEMM,
                   &(bk_grouped_gemm_args){w->dgate_up, s->moe.gate_up->weight, a->offsets, w->x});
}

/* A token's gradient is the sum over its k rows: unpermute without weights. dh is overwritten. */
static bk_status moe_dispatch_bwd(bk_recorder *rec, const bk_moe_acts *a, const bk_moe_scratch *w,
                                  bk_tensor dh) {
  return bk_record(
      rec, BK_OP_UNPERMUTE,
      &(bk_unpermute_args){.x = w->x, .row_of = a->row_of, .y = dh, .accumulate = false});
}

/* The choice of experts has no gradient, only their weights have. dh holds the experts' part
 * already. */
static bk_status moe_route_bwd(bk_recorder *rec, const bk_sublayer *s, const bk_moe_acts *a,
                               const bk_moe_scratch *w, bk_tensor dh) {
  BK_TRY(bk_record(
      rec, BK_OP_ROUTER_BWD,
      &(bk_router_bwd_args){a->scores, a->index, w->dweights, w->logits, s->config->norm_topk_prob,
                            s->config->routed_scaling_factor}));
  return bk_linear_dgrad(rec, w->logits, s->moe.gate, dh, true);
}

/* From the combine back to the route: dispatch overwrites dh, the router and the shared experts
 * add. The shared experts come last because they are a piece of their own, which a schedule may run
 * beside an exchange of the others. */
static bk_status dgrad(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                       const bk_f_scratch *scratch, bk_tensor df, bk_tensor dh) {
  const bk_moe_acts *a = &acts->moe;
  const bk_moe_scratch *w = &scratch->moe;
  BK_TRY(bk_f_piece(rec, s, BK_PART_COMBINE, BK_PASS_D));
  BK_TRY(moe_combine_bwd(rec, a, w, df));
  BK_TRY(bk_f_piece(rec, s, BK_PART_EXPERTS, BK_PASS_D));
  BK_TRY(moe_experts_bwd(rec, s, a, w));
  BK_TRY(bk_f_piece(rec, s, BK_PART_DISPATCH, BK_PASS_D));
  BK_TRY(moe_dispatch_bwd(rec, a, w, dh));
  BK_TRY(bk_f_piece(rec, s, BK_PART_ROUTE, BK_PASS_D));
  BK_TRY(moe_route_bwd(rec, s, a, w, dh));
  if (!s->moe.shared.gate_up) return BK_OK;
  BK_TRY(bk_f_piece(rec, s, BK_PART_SHARED, BK_PASS_D));
  return bk_mlp_dgrad(rec, &s->moe.shared, &a->shared, &w->shared, df, dh, true);
}

/* An expert without tokens gets a gradient of zero where gradients are overwritten. */
static bk_status moe_linear_wgrad(bk_recorder *rec, const bk_moe_acts *a, bk_tensor dy, bk_tensor x,
                                  bk_param_block *w) {
  bool overwrite = !bk_record_accumulates(rec, w);
  return bk_record(rec, BK_OP_GROUPED_WGRAD,
                   &(bk_grouped_wgrad_args){dy, x, a->offsets, w->grad, overwrite});
}

/* x and act are made again here, where the products read them: dgrad has used their places for
 * their gradients. The router's product reads only h and what dgrad left, and can therefore come
 * first. dispatch and combine have no parameters and so no W pieces. */
static bk_status wgrad(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                       const bk_f_scratch *scratch, bk_tensor h, bk_tensor df) {
  const bk_moe_acts *a = &acts->moe;
  const bk_moe_scratch *w = &scratch->moe;
  BK_TRY(bk_f_piece(rec, s, BK_PART_ROUTE, BK_PASS_W));
  BK_TRY(bk_linear_wgrad(rec, w->logits, h, s->moe.gate));
  BK_TRY(bk_f_piece(rec, s, BK_PART_EXPERTS, BK_PASS_W));
  BK_TRY(moe_dispatch(rec, s, a, w, h));
  BK_TRY(moe_linear_wgrad(rec, a, w->dgate_up, w->x, s->moe.gate_up));
  BK_TRY(moe_act(rec, a, w));
  BK_TRY(moe_linear_wgrad(rec, a, w->dy, w->act, s->moe.down));
  if (!s->moe.shared.gate_up) return BK_OK;
  BK_TRY(bk_f_piece(rec, s, BK_PART_SHARED, BK_PASS_W));
  return bk_mlp_wgrad(rec, &s->moe.shared, &a->shared, &w->shared, h, df);
}

const bk_f_ops bk_moe_ops = {"moe",   plan_acts, plan_forward, plan_backward,
                             forward, rebuild,   dgrad,        wgrad};

/* The calls of the kinds with n streams (streams.h): they fill in the arguments of the HC ops and
 * record them. The functions NAME_args are used by the single ops and by the fused ones, so that
 * both get the same tensors. */
#include "models/connections/streams.h"

static const bk_tensor absent = {0};

/* x as the projection sees it: hc projects every stream by itself (arXiv 2409.19606), the other
 * kinds the flattened vector of n C entries (arXiv 2512.24880 eq. 7). */
static bk_tensor project_view(const bk_connection *c, bk_tensor x) {
  int64_t rows = x.shape[0];
  if (c->kind->per_stream) return bk_tensor_reshape(x, 2, (int64_t[]){rows * c->n, c->width});
  return bk_tensor_reshape(x, 2, (int64_t[]){rows, c->n * c->width});
}

/* HC_PROJECT makes proj and rinv from x and fn. norm_eps is under the root of rinv. */
static bk_hc_project_args project_args(const bk_connection *c, const bk_mix_acts *a) {
  return (bk_hc_project_args){project_view(c, a->x), c->param[BK_STREAMS_FN]->weight,
                              a->map[BK_STREAMS_PROJ], a->map[BK_STREAMS_RINV], c->norm_eps};
}

/* HC_MAPS makes pre, post and comb from proj and rinv, scale and base. post and comb are absent for
 * kinds without them, which the op takes as such. */
static bk_hc_maps_args maps_args(const bk_connection *c, const bk_mix_acts *a) {
  return (bk_hc_maps_args){.proj = a->map[BK_STREAMS_PROJ],
                           .rinv = a->map[BK_STREAMS_RINV],
                           .scale = c->param[BK_STREAMS_SCALE]->weight,
                           .base = c->param[BK_STREAMS_BASE]->weight,
                           .pre = a->map[BK_STREAMS_PRE],
                           .post = a->map[BK_STREAMS_POST],
                           .comb = a->map[BK_STREAMS_COMB],
                           .kind = c->kind->kind,
                           .n = c->n,
                           .iters = c->iters,
                           .hc_eps = c->hc_eps};
}

/* HC_PRE_NORM makes y, the sum of the streams by pre, and h = rmsnorm(y) with the weight of the
 * norm in front of F. y is kept for the norm's backward. */
static bk_hc_pre_norm_args pre_norm_args(const bk_connection *c, const bk_mix_acts *a) {
  return (bk_hc_pre_norm_args){
      a->x, a->map[BK_STREAMS_PRE], c->norm->weight, a->y, a->h, a->rstd, c->norm_eps};
}

/* HC_POST_RES makes the streams after the sublayer. It needs no parameters, only the maps of the
 * mix. */
static bk_hc_post_res_args post_res_args(const bk_mix_acts *a, bk_tensor out) {
  return (bk_hc_post_res_args){a->x, a->f, a->map[BK_STREAMS_POST], a->map[BK_STREAMS_COMB], out};
}

/* The projection sees the streams before the norm: dividing by its root mean square afterwards is
 * the same (eq. 14-16 of arXiv 2512.24880), and makes one pass over x enough for both. A
 * connection without a norm in front of F has no fused form of its last step. */
static bk_status streams_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a) {
  bk_hc_project_args project = project_args(c, a);
  bk_hc_maps_args maps = maps_args(c, a);
  BK_TRY(bk_record(rec, BK_OP_HC_PROJECT, &project));
  BK_TRY(bk_record(rec, BK_OP_HC_MAPS, &maps));
  if (!c->norm)
    return bk_record(rec, BK_OP_HC_PRE, &(bk_hc_pre_args){a->x, a->map[BK_STREAMS_PRE], a->h});
  bk_hc_pre_norm_args pre_norm = pre_norm_args(c, a);
  return bk_record(rec, BK_OP_HC_PRE_NORM, &pre_norm);
}

/* x' = H_res x + H_post^T f (arXiv 2512.24880, section 4.1), in one pass over the streams. */
static bk_status streams_merge(bk_recorder *rec, const bk_connection *c BK_UNUSED,
                               const bk_mix_acts *a, bk_tensor out) {
  bk_hc_post_res_args merge = post_res_args(a, out);
  return bk_record(rec, BK_OP_HC_POST_RES, &merge);
}

/* The four calls of merge and mix are one op here, so that a kernel can take the new streams while
 * they are still at hand. `out` of the merge is next->x, which is written to memory as well. */
static bk_status streams_merge_mix(bk_recorder *rec, const bk_connection *c BK_UNUSED,
                                   const bk_mix_acts *a, const bk_connection *c_next,
                                   const bk_mix_acts *next) {
  bk_hc_merge_mix_args args = {post_res_args(a, next->x), project_args(c_next, next),
                               maps_args(c_next, next), pre_norm_args(c_next, next)};
  return bk_record(rec, BK_OP_HC_MERGE_MIX, &args);
}

/* The last sublayer of a block only mixes: its merge belongs to the next block. One op for a whole
 * run of sublayers: a kernel can walk through them with a token's streams in its registers. */
static bk_status streams_rebuild(bk_recorder *rec, const bk_connection *const *c,
                                 const bk_mix_acts *a, int count) {
  bk_hc_rebuild_args args = {.layers = count, .eps = c[0]->norm_eps};
  for (int i = 0; i < count; i++) {
    bool last = i + 1 == count;
    args.layer[i] = (bk_hc_rebuild_layer){a[i].x,
                                          last ? absent : a[i].f,
                                          last ? absent : a[i].map[BK_STREAMS_POST],
                                          last ? absent : a[i].map[BK_STREAMS_COMB],
                                          a[i].map[BK_STREAMS_PRE],
                                          c[i]->norm->weight,
                                          a[i].y,
                                          a[i].h,
                                          a[i].rstd};
  }
  return bk_record(rec, BK_OP_HC_REBUILD, &args);
}

static bk_hc_pre_norm_bwd_args pre_norm_bwd_args(const bk_connection *c, const bk_mix_acts *a,
                                                 const bk_mix_grads *g, bk_tensor dh, bk_tensor D,
                                                 bool accumulate) {
  return (bk_hc_pre_norm_bwd_args){.x = a->x,
                                   .pre = a->map[BK_STREAMS_PRE],
                                   .w = c->norm->weight,
                                   .y = a->y,
                                   .rstd = a->rstd,
                                   .dh = dh,
                                   .dx = D,
                                   .dpre = g->map[BK_STREAMS_PRE],
                                   .dw = c->norm->grad,
                                   .accumulate = accumulate};
}

/* From the gradient of h to those of pre and of the streams, the first part of mix_bwd. */
static bk_status unmix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                       const bk_mix_grads *g, bk_tensor dh, bk_tensor D, bool accumulate) {
  if (!c->norm)
    return bk_record(rec, BK_OP_HC_PRE_BWD,
                     &(bk_hc_pre_bwd_args){a->x, a->map[BK_STREAMS_PRE], dh, D,
                                           g->map[BK_STREAMS_PRE], accumulate});
  bk_hc_pre_norm_bwd_args args = pre_norm_bwd_args(c, a, g, dh, D, accumulate);
  return bk_record(rec, BK_OP_HC_PRE_NORM_BWD, &args);
}

/* dpost and dcomb have a place only where the kind has the map: the learned head has neither. */
static bk_hc_maps_bwd_args maps_bwd_args(const bk_connection *c, const bk_mix_acts *a,
                                         const bk_mix_grads *g) {
  return (bk_hc_maps_bwd_args){
      .proj = a->map[BK_STREAMS_PROJ],
      .rinv = a->map[BK_STREAMS_RINV],
      .scale = c->param[BK_STREAMS_SCALE]->weight,
      .base = c->param[BK_STREAMS_BASE]->weight,
      .dpre = g->map[BK_STREAMS_PRE],
      .dpost = a->map[BK_STREAMS_POST].dtype ? g->map[BK_STREAMS_POST] : absent,
      .dcomb = a->map[BK_STREAMS_COMB].dtype ? g->map[BK_STREAMS_COMB] : absent,
      .dproj = g->map[BK_STREAMS_PROJ],
      .drinv = g->map[BK_STREAMS_RINV],
      .dscale = c->param[BK_STREAMS_SCALE]->grad,
      .dbase = c->param[BK_STREAMS_BASE]->grad,
      .kind = c->kind->kind,
      .n = c->n,
      .iters = c->iters,
      .hc_eps = c->hc_eps};
}

/* Both D and the gradient of fn are added to, from dproj and drinv. */
static bk_hc_project_bwd_args project_bwd_args(const bk_connection *c, const bk_mix_acts *a,
                                               const bk_mix_grads *g, bk_tensor D) {
  return (bk_hc_project_bwd_args){.x = project_view(c, a->x),
                                  .fn = c->param[BK_STREAMS_FN]->weight,
                                  .rinv = a->map[BK_STREAMS_RINV],
                                  .dproj = g->map[BK_STREAMS_PROJ],
                                  .drinv = g->map[BK_STREAMS_RINV],
                                  .dx = project_view(c, D),
                                  .dfn = c->param[BK_STREAMS_FN]->grad,
                                  .accumulate = true};
}

/* Makes dx, df and the gradients of post and comb from dout. dx may be dout's memory. */
static bk_hc_post_res_bwd_args post_res_bwd_args(const bk_mix_acts *a, const bk_mix_grads *g,
                                                 bk_tensor dout, bk_tensor dx, bk_tensor df) {
  return (bk_hc_post_res_bwd_args){
      .x = a->x,
      .f = a->f,
      .post = a->map[BK_STREAMS_POST],
      .comb = a->map[BK_STREAMS_COMB],
      .dout = dout,
      .dx = dx,
      .df = df,
      .dpost = g->map[BK_STREAMS_POST],
      .dcomb = a->map[BK_STREAMS_COMB].dtype ? g->map[BK_STREAMS_COMB] : absent};
}

static bk_status streams_merge_bwd(bk_recorder *rec, const bk_connection *c BK_UNUSED,
                                   const bk_mix_acts *a, const bk_mix_grads *g, bk_tensor dout,
                                   bk_tensor dx, bk_tensor df) {
  bk_hc_post_res_bwd_args merge = post_res_bwd_args(a, g, dout, dx, df);
  return bk_record(rec, BK_OP_HC_POST_RES_BWD, &merge);
}

/* Three parts add to the gradient of x here: through pre, through the projection, and through its
 * norm. The maps' gradients from the merge (dpost, dcomb) are there already, since the merge of a
 * sublayer comes after its mix, and so before it in the backward pass. */
static bk_status streams_mix_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                 const bk_mix_grads *g, bk_tensor dh, bk_tensor D,
                                 bool accumulate) {
  BK_TRY(bk_connection_adds(rec, c));
  bk_hc_maps_bwd_args maps = maps_bwd_args(c, a, g);
  bk_hc_project_bwd_args project = project_bwd_args(c, a, g, D);
  BK_TRY(unmix(rec, c, a, g, dh, D, accumulate));
  BK_TRY(bk_record(rec, BK_OP_HC_MAPS_BWD, &maps));
  return bk_record(rec, BK_OP_HC_PROJECT_BWD, &project);
}

/* These are four parts in one op: pre_norm, maps and project of this sublayer, then post_res of the
 * one before, which takes the completed D as its dout and rewrites it. */
static bk_status streams_merge_mix_bwd(bk_recorder *rec, const bk_connection *c,
                                       const bk_mix_acts *a, const bk_mix_grads *g,
                                       const bk_mix_acts *prev, const bk_mix_grads *g_prev,
                                       bk_tensor dh, bk_tensor D, bk_tensor df) {
  BK_TRY(bk_connection_adds(rec, c));
  bk_hc_merge_mix_bwd_args args = {pre_norm_bwd_args(c, a, g, dh, D, true), maps_bwd_args(c, a, g),
                                   project_bwd_args(c, a, g, D),
                                   post_res_bwd_args(prev, g_prev, D, D, df)};
  return bk_record(rec, BK_OP_HC_MERGE_MIX_BWD, &args);
}

/* ---- maps ---- */

/* The projection has one row for each token, or one for each stream of each token (hc). */
static int64_t projected(const bk_connection_kind *kind, int n, int64_t tokens) {
  return kind->per_stream ? tokens * n : tokens;
}

/* Each returns the number of dimensions that it has written, 0 where the kind has no such map. */
static int proj_shape(const bk_connection_kind *kind, int n, int64_t width BK_UNUSED,
                      int64_t tokens, int64_t *shape) {
  shape[0] = projected(kind, n, tokens);
  shape[1] = kind->rows(n);
  return 2;
}
static int rinv_shape(const bk_connection_kind *kind, int n, int64_t width BK_UNUSED,
                      int64_t tokens, int64_t *shape) {
  shape[0] = projected(kind, n, tokens);
  return 1;
}
static int pre_shape(const bk_connection_kind *kind BK_UNUSED, int n, int64_t width BK_UNUSED,
                     int64_t tokens, int64_t *shape) {
  shape[0] = tokens;
  shape[1] = n;
  return 2;
}
static int post_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t tokens,
                      int64_t *shape) {
  return kind->post ? pre_shape(kind, n, width, tokens, shape) : 0;
}
static int comb_shape(const bk_connection_kind *kind, int n, int64_t width BK_UNUSED,
                      int64_t tokens, int64_t *shape) {
  shape[0] = tokens;
  shape[1] = shape[2] = n;
  return kind->comb ? 3 : 0;
}

/* The maps are the slot's own tensors, not copies: they hold until the slot's next forward pass. */
static void streams_show(const bk_mix_acts *a, bk_tensor *pre, bk_tensor *post, bk_tensor *comb) {
  *pre = a->map[BK_STREAMS_PRE];
  *post = a->map[BK_STREAMS_POST];
  *comb = a->map[BK_STREAMS_COMB];
}

/* proj and rinv are kept for the backward alone; the maps are shown too. Gradients of post and comb
 * cross from merge_bwd to mix_bwd of the same sublayer, with the backward of F in between. */
const bk_connection_calls bk_streams_calls = {
    .reads_f = true,
    .maps = {[BK_STREAMS_PROJ] = {"projection", proj_shape, false, false},
             [BK_STREAMS_RINV] = {"norm", rinv_shape, false, false},
             [BK_STREAMS_PRE] = {"pre map", pre_shape, true, false},
             [BK_STREAMS_POST] = {"post map", post_shape, true, true},
             [BK_STREAMS_COMB] = {"residual map", comb_shape, true, true}},
    .mix = streams_mix,
    .merge = streams_merge,
    .merge_bwd = streams_merge_bwd,
    .mix_bwd = streams_mix_bwd,
    .merge_mix = streams_merge_mix,
    .merge_mix_bwd = streams_merge_mix_bwd,
    .rebuild = streams_rebuild,
    .show = streams_show,
};

/* ---- parameters ---- */

void bk_streams_fn_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape) {
  shape[0] = kind->rows(n);
  shape[1] = kind->per_stream ? width : n * width;
}
void bk_streams_base_shape(const bk_connection_kind *kind, int n, int64_t width BK_UNUSED,
                           int64_t *shape) {
  shape[0] = kind->base(n);
}
void bk_streams_scale_shape(const bk_connection_kind *kind, int n BK_UNUSED,
                            int64_t width BK_UNUSED, int64_t *shape) {
  shape[0] = kind->scales;
}

void bk_streams_first_scale(const bk_connection_kind *kind BK_UNUSED, double *values, int64_t count,
                            int n BK_UNUSED, int sublayer BK_UNUSED) {
  for (int64_t i = 0; i < count; i++) values[i] = 0.01;
}

void bk_streams_scale_from_plain(const bk_connection_kind *kind, double *values, int64_t count,
                                 int n, int sublayer, double hc_eps BK_UNUSED) {
  bk_streams_first_scale(kind, values, count, n, sublayer);
}

/* Adds what base needs behind the 2n logits of the gates, so that comb begins as the identity or
 * nearly so. */
static void add_identity(const bk_connection_kind *kind, double *values, int n) {
  if (kind->identity) kind->identity(values + 2 * n, n);
}

/* sigmoid(1) = 0.73 and sigmoid(-1) = 0.27; the write gates are twice that. */
void bk_streams_first_base(const bk_connection_kind *kind, double *values, int64_t count BK_UNUSED,
                           int n, int sublayer) {
  for (int i = 0; i < n; i++) values[i] = values[n + i] = i == sublayer % n ? 1.0 : -1.0;
  add_identity(kind, values, n);
}

/* The gate is sigmoid(logit) + hc_eps, so that hc_eps is taken off first. */
double bk_streams_read_logit(int n, double hc_eps) {
  double read = 1.0 / (double)n - hc_eps;
  return read < 1 ? log(read / (1 - read)) : 40; /* sigmoid(40) is 1 to the last bit */
}

/* With one stream there is no rest; the caller sets its logit to 0, whose gate is 1. */
double bk_streams_write_rest(int n) {
  return n > 1 ? ((double)n - BK_STREAMS_WRITE_MOST) / ((double)n - 1) : 1;
}

/* log(r / (2 - r)) is the logit whose gate 2 sigmoid gives r. With one stream both gates are 1. */
void bk_streams_base_from_plain(const bk_connection_kind *kind, double *values,
                                int64_t count BK_UNUSED, int n, int sublayer, double hc_eps) {
  double rest = bk_streams_write_rest(n);
  for (int i = 0; i < n; i++) {
    values[i] = bk_streams_read_logit(n, hc_eps);
    values[n + i] = i == sublayer % n ? 1 : log(rest / 2 / (1 - rest / 2));
    if (n == 1) values[n + i] = 0;
  }
  add_identity(kind, values, n);
}

/* ---- maps from logits ---- */

/* logits [N,R] are scale of the column's group * proj * rinv + base. */
static void compose_logits(const bk_tensor *proj, const bk_tensor *rinv, const bk_tensor *scale,
                           const bk_tensor *base, bk_tensor logits, int n, bk_composition *c) {
  BK_COMPOSE(c, HC_LOGITS, hc_logits, .proj = *proj, .rinv = *rinv, .scale = *scale, .base = *base,
             .logits = logits, .n = n);
}

bk_tensor bk_streams_compose_gates(const bk_hc_maps_args *a, bk_composition *c) {
  bk_tensor logits = bk_compose_scratch(c, &a->proj);
  compose_logits(&a->proj, &a->rinv, &a->scale, &a->base, logits, a->n, c);
  BK_COMPOSE(c, HC_GATES, hc_gates, .logits = logits, .pre = a->pre, .post = a->post,
             .hc_eps = a->hc_eps);
  return logits;
}

/* The logits are not kept from the forward pass: they cost little, and n^2 + 2n of them a token
 * would have to be stored. */
bk_streams_logits bk_streams_compose_gates_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  bk_streams_logits l = {bk_compose_scratch(c, &a->proj), {0}};
  l.dlogits = bk_compose_scratch(c, &a->proj);
  compose_logits(&a->proj, &a->rinv, &a->scale, &a->base, l.logits, a->n, c);
  BK_COMPOSE(c, HC_GATES_BWD, hc_gates_bwd, .logits = l.logits, .dpre = a->dpre, .dpost = a->dpost,
             .dlogits = l.dlogits);
  return l;
}

/* dproj and drinv are overwritten; dscale and dbase add. */
void bk_streams_compose_logits_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c,
                                   const bk_streams_logits *l) {
  BK_COMPOSE(c, HC_LOGITS_BWD, hc_logits_bwd, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
             .dlogits = l->dlogits, .dproj = a->dproj, .drinv = a->drinv, .dscale = a->dscale,
             .dbase = a->dbase, .n = a->n);
}

void bk_streams_compose_gates_alone(const bk_hc_maps_args *a, bk_composition *c) {
  bk_streams_compose_gates(a, c);
}

void bk_streams_compose_gates_alone_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  bk_streams_logits l = bk_streams_compose_gates_bwd(a, c);
  bk_streams_compose_logits_bwd(a, c, &l);
}

bk_tensor bk_streams_comb_columns(bk_tensor logits, int n) {
  return bk_tensor_slice(logits, 1, 2 * n, logits.shape[1] - 2 * n);
}

/* A logit takes 3 flops (two products and a sum), an entry of a gate 4 (exp, sum, division,
 * scale). */
double bk_streams_gates_flops(double logits, double maps, double comb, int n BK_UNUSED,
                              int iters BK_UNUSED) {
  return 3 * logits + 4 * (maps - comb);
}

/* Ops: ids and argument structs, plain data. All that a backend knows of the ops.
 *
 * Conventions.
 * - Letters: B sequences, T positions, N = B*T tokens, C model width, n residual streams, H
 *   heads, E experts, k experts per
 *   token, M rows, V vocabulary.  "st" is the storage dtype (fp32, bf16, or fp64 on ref), "ct"
 *                                 the coefficient dtype: fp32,
 *   or fp64 where st is fp64. Accumulators are at least fp32; results are rounded once, on
 *   store.
 * - Inputs come first, outputs last. `opt` operands may be absent (zeroed struct). Inputs of one
 *   kind may not overlap outputs
 *   unless the op says "may alias".
 * - Gradients of parameters (dw, dfn, dtable, dscale, dbase, wgrad) ADD to what is there, in ct,
 *   unless the op says otherwise. Gradients of
 *   activations overwrite, or add where `accumulate` is set.
 * - Last dimensions are dense (stride 1) unless the op says "any strides"; outer strides are free.
 * - Reductions have a fixed order for given shapes: same inputs, same bits, whatever the number
 *   of threads.
 * - Every gradient formula follows from the forward formula beside it; ref/ is the executable
 *   specification. */
#ifndef BK_OP_H
#define BK_OP_H

#include "tensor/tensor.h"

/* X(ID, name, args struct) in one list: the enum, the names and the descriptors cannot drift. */
#define BK_OP_LIST(X)                                                                           \
  X(COPY, "copy", bk_copy_args)                                                                 \
  X(ADD, "add", bk_add_args)                                                                    \
  X(SUM, "sum", bk_sum_args)                                                                    \
  X(GEMM, "gemm", bk_gemm_args)                                                                 \
  X(GROUPED_GEMM, "grouped_gemm", bk_grouped_gemm_args)                                         \
  X(GROUPED_WGRAD, "grouped_wgrad", bk_grouped_wgrad_args)                                      \
  X(RMSNORM, "rmsnorm", bk_rmsnorm_args)                                                        \
  X(RMSNORM_BWD, "rmsnorm_bwd", bk_rmsnorm_bwd_args)                                            \
  X(ROPE, "rope", bk_rope_args)                                                                 \
  X(CACHE_WRITE, "cache_write", bk_cache_write_args)                                            \
  X(ATTENTION, "attention", bk_attention_args)                                                  \
  X(ATTENTION_BWD, "attention_bwd", bk_attention_bwd_args)                                      \
  X(SWIGLU, "swiglu", bk_swiglu_args)                                                           \
  X(SWIGLU_BWD, "swiglu_bwd", bk_swiglu_bwd_args)                                               \
  X(EMBED, "embed", bk_embed_args)                                                              \
  X(EMBED_BWD, "embed_bwd", bk_embed_bwd_args)                                                  \
  X(CROSS_ENTROPY, "cross_entropy", bk_cross_entropy_args)                                      \
  X(ROUTER, "router", bk_router_args)                                                           \
  X(ROUTER_BWD, "router_bwd", bk_router_bwd_args)                                               \
  X(MOE_INDEX, "moe_index", bk_moe_index_args)                                                  \
  X(PERMUTE, "permute", bk_permute_args)                                                        \
  X(UNPERMUTE, "unpermute", bk_unpermute_args)                                                  \
  X(UNPERMUTE_BWD, "unpermute_bwd", bk_unpermute_bwd_args)                                      \
  X(BALANCE, "balance", bk_balance_args)                                                        \
  X(SUMSQ, "sumsq", bk_sumsq_args)                                                              \
  X(CLIP, "clip", bk_clip_args)                                                                 \
  X(ADAMW, "adamw", bk_adamw_args)                                                              \
  X(HC_EXPAND, "hc_expand", bk_hc_expand_args)                                                  \
  X(HC_COLLAPSE, "hc_collapse", bk_hc_collapse_args)                                            \
  /* primitives of the residual connections */                                                  \
  X(HC_RMS, "hc_rms", bk_hc_rms_args)                                                           \
  X(HC_RMS_BWD, "hc_rms_bwd", bk_hc_rms_bwd_args)                                               \
  X(HC_LOGITS, "hc_logits", bk_hc_logits_args)                                                  \
  X(HC_LOGITS_BWD, "hc_logits_bwd", bk_hc_logits_bwd_args)                                      \
  X(HC_GATES, "hc_gates", bk_hc_gates_args)                                                     \
  X(HC_GATES_BWD, "hc_gates_bwd", bk_hc_gates_bwd_args)                                         \
  X(SINKHORN, "sinkhorn", bk_sinkhorn_args)                                                     \
  X(SINKHORN_BWD, "sinkhorn_bwd", bk_sinkhorn_bwd_args)                                         \
  X(HC_PERM, "hc_perm", bk_hc_perm_args)                                                        \
  X(HC_PERM_BWD, "hc_perm_bwd", bk_hc_perm_bwd_args)                                            \
  X(HC_TANH, "hc_tanh", bk_hc_tanh_args)                                                        \
  X(HC_TANH_BWD, "hc_tanh_bwd", bk_hc_tanh_bwd_args)                                            \
  X(HC_PRE, "hc_pre", bk_hc_pre_args)                                                           \
  X(HC_PRE_BWD, "hc_pre_bwd", bk_hc_pre_bwd_args)                                               \
  X(HC_RES, "hc_res", bk_hc_res_args)                                                           \
  X(HC_RES_BWD, "hc_res_bwd", bk_hc_res_bwd_args)                                               \
  X(HC_POST, "hc_post", bk_hc_post_args)                                                        \
  X(HC_POST_BWD, "hc_post_bwd", bk_hc_post_bwd_args)                                            \
  /* fused slots: a backend may have them; else ops/composite.c puts the primitives together */ \
  X(HC_PROJECT, "hc_project", bk_hc_project_args)                                               \
  X(HC_PROJECT_BWD, "hc_project_bwd", bk_hc_project_bwd_args)                                   \
  X(HC_MAPS, "hc_maps", bk_hc_maps_args)                                                        \
  X(HC_MAPS_BWD, "hc_maps_bwd", bk_hc_maps_bwd_args)                                            \
  X(HC_PRE_NORM, "hc_pre_norm", bk_hc_pre_norm_args)                                            \
  X(HC_PRE_NORM_BWD, "hc_pre_norm_bwd", bk_hc_pre_norm_bwd_args)                                \
  X(HC_POST_RES, "hc_post_res", bk_hc_post_res_args)                                            \
  X(HC_POST_RES_BWD, "hc_post_res_bwd", bk_hc_post_res_bwd_args)                                \
  X(HC_MERGE_MIX, "hc_merge_mix", bk_hc_merge_mix_args)                                         \
  X(HC_MERGE_MIX_BWD, "hc_merge_mix_bwd", bk_hc_merge_mix_bwd_args)                             \
  X(HC_REBUILD, "hc_rebuild", bk_hc_rebuild_args)

typedef enum bk_op {
  BK_OP_NONE = 0,
#define BK_OP_ENUM(id, name, args) BK_OP_##id,
  BK_OP_LIST(BK_OP_ENUM)
#undef BK_OP_ENUM
      BK_OP_COUNT
} bk_op;

/* ---- the step block: everything that changes from step to step, one small tensor in ct,
 * [BK_STEP_SLOTS]. ---- The host writes all of it with one copy at the start of a step (results
 * zeroed, BK_STEP_FINITE = 1) and reads it once at the end. Ops take the whole block as a
 * tensor. */
enum {
  BK_STEP_LR,           /* learning rate of this step */
  BK_STEP_BC1,          /* 1 - beta1^t, t from 1 */
  BK_STEP_BC2,          /* 1 - beta2^t */
  BK_STEP_MAX_NORM,     /* gradient clip, <= 0: off */
  BK_STEP_LOSS_SCALE,   /* 1 / number of kept targets of the step */
  BK_STEP_BALANCE_RATE, /* router_bias_lr */
  BK_STEP_RESULTS = 16, /* from here on written by the device */
  BK_STEP_LOSS = 16,    /* sum of the kept targets' losses, nats */
  BK_STEP_SUMSQ,        /* sum of squares of all gradients */
  BK_STEP_NORM,         /* sqrt of it */
  BK_STEP_CLIP,         /* factor on the gradients: min(1, max_norm / norm) */
  /* 1; 0 when loss or gradient norm is not finite: then ADAMW and BALANCE change nothing */
  BK_STEP_FINITE,
  BK_STEP_SLOTS = 32
};

/* ---- copies ---- */
/* y = x, converted to y's dtype (round to nearest even). Same shape, any strides (x may have
 * stride 0: broadcast). */
typedef struct {
  bk_tensor x, y;
} bk_copy_args;
/* y = a + b (y may alias a or b). Same shape, st. */
typedef struct {
  bk_tensor a, b, y;
} bk_add_args;
/* y[0] (+)= sum x[i]; x [N] ct, y [1] ct (a view of the step block, as a rule). */
typedef struct {
  bk_tensor x, y;
  bool accumulate;
} bk_sum_args;

/* ---- dense products. Transposition is expressed by strides: of a matrix's two strides one must
 * be 1 (any, if the size is 1). */
/* c[b,i,j] = alpha sum_l a[b,i,l] b[b,l,j] (+ c if accumulate). a [M,K] or [B,M,K], b [K,N] or
 * [B,K,N], c [M,N] or [B,M,N], all of the same ndim; c rows dense or columns dense. dtypes: each
 * of a, b, c st or ct (mixed bf16 x fp32 is legal), sums in fp32 at least. K = 0 is legal
 * (zeros). */
typedef struct {
  bk_tensor a, b, c;
  double alpha;
  bool accumulate;
} bk_gemm_args;
/* Experts: rows offsets[e] .. offsets[e+1]-1 of a and c belong to expert e: c[r,:] = a[r,:]
 * b[e]. a [M,K], b [E,K,N] (any transposed view), offsets [E+1] i32 (offsets[0] = 0,
 * non-decreasing, <= M), c [M,N]. Rows past offsets[E] are untouched; empty groups are legal. */
typedef struct {
  bk_tensor a, b, offsets, c;
} bk_grouped_gemm_args;
/* c[e] += a_e^T b_e over the rows of expert e; with `overwrite` c[e] = a_e^T b_e, zero for an
 * expert without rows. a [M,P], b [M,Q], offsets [E+1], c [E,P,Q] ct. */
typedef struct {
  bk_tensor a, b, offsets, c;
  bool overwrite;
} bk_grouped_wgrad_args;

/* ---- RMSNorm over the last dimension: rstd = (mean(x^2) + eps)^-1/2, y = x rstd w. x [N,D], w
 * [D] ct, rstd [N] ct (opt). */
typedef struct {
  bk_tensor x, w, y, rstd;
  double eps;
} bk_rmsnorm_args;
/* dx [N,D] (opt), dw [D] (opt, adds). */
typedef struct {
  bk_tensor x, w, rstd, dy, dx, dw;
  bool accumulate; /* dx */
} bk_rmsnorm_bwd_args;

/* ---- RoPE, interleaved pairs as DeepSeek: (x[2i], x[2i+1]) turned by angle (past + t)
 * theta^(-2i/D). x [B,T,Hx,D], y [B,T,Hy,D]; Hx = Hy, or Hx = 1 (broadcast to Hy heads), or Hy =
 * 1 (sum over x's heads, then turned). inverse turns by the negative angle: with the roles of Hx
 * and Hy exchanged it is the backward. y may alias x if Hx = Hy. past i32 [1] (opt, 0): tokens
 * already in the cache. Angles are computed in double and rounded once. */
typedef struct {
  bk_tensor x, past, y;
  double theta;
  bool inverse;
} bk_rope_args;
/* y[b, past + t, ...] = x[b, t, ...]: x [B,T,H,D], y [B,S,H,D]; rows that would land past S are
 * dropped. */
typedef struct {
  bk_tensor x, past, y;
} bk_cache_write_args;

/* ---- causal attention: o[b,t,h] = sum_j softmax_j(scale q.k_j) v_j over j <= past + t. q
 * [B,T,H,Dk], k [B,S,H,Dk], v [B,S,H,Dv], o [B,T,H,Dv]; lse [B,H,T] ct (opt) = log sum exp of
 * the scaled scores. past i32 [1] (opt): absent = 0 and S = T. Never a [T,S] matrix for the
 * whole batch. */
typedef struct {
  bk_tensor q, k, v, past, o, lse;
  double scale;
} bk_attention_args;
/* S = T, no past. dq, dk, dv overwrite. */
typedef struct {
  bk_tensor q, k, v, o, lse, dout, dq, dk, dv;
  double scale;
} bk_attention_bwd_args;

/* ---- SwiGLU: y = gate sigmoid(gate) up. All [N,I], outer stride free. */
typedef struct {
  bk_tensor gate, up, y;
} bk_swiglu_args;
/* dgate/dup may alias gate/up */
typedef struct {
  bk_tensor gate, up, dy, dgate, dup;
} bk_swiglu_bwd_args;

/* ---- embedding: y[i] = table[ids[i]]; ids [N] i32, 0 <= id < V (checked by the caller), table
 * [V,C], y [N,C]. */
typedef struct {
  bk_tensor ids, table, y;
} bk_embed_args;
typedef struct {
  bk_tensor ids, dy, dtable;
} bk_embed_bwd_args; /* dtable [V,C] ct, adds */

/* ---- cross entropy, nats. logits [N,V] (st or ct), targets [N] i32 (negative = ignored), step
 * = the step block; loss [N] ct: lse - logit[target], 0 where ignored. dlogits [N,V] (opt; st or
 * ct, may alias logits of the same dtype) = (softmax - onehot) * step[BK_STEP_LOSS_SCALE], 0
 * where ignored. */
typedef struct {
  bk_tensor logits, targets, step, loss, dlogits;
} bk_cross_entropy_args;

/* ---- router (DeepSeek-V3): s = sigmoid(logits); choice by s + bias: a group's score is the sum
 * of its two best biased scores, the best topk_group groups are kept (ties: lowest index), of
 * their experts the best k in descending order (ties: lowest index). weights = s of the chosen,
 * divided by (their sum + 1e-20) if norm_topk_prob, times scale. logits [N,E] ct, bias [E] ct,
 * scores [N,E] ct, index [N,k] i32, weights [N,k] ct. */
typedef struct {
  bk_tensor logits, bias, scores, index, weights;
  int n_group, topk_group;
  bool norm_topk_prob;
  double routed_scaling_factor;
} bk_router_args;
/* dlogits [N,E] overwritten, zero for experts not chosen. The choice itself has no gradient. */
typedef struct {
  bk_tensor scores, index, dweights, dlogits;
  bool norm_topk_prob;
  double routed_scaling_factor;
} bk_router_bwd_args;
/* Stable counting sort of the N*k choices by expert. index [N,k] i32 -> offsets [E+1] i32, order
 * [N*k] i32 (row r of the sorted rows holds choice order[r] = token*k + j), slot [N,k] i32 (its
 * inverse), load [E] i32 (opt, adds the counts). */
typedef struct {
  bk_tensor index, offsets, order, slot, load;
} bk_moe_index_args;
/* y[r] = x[order[r] / k]: x [N,C], order [M], y [M,C]. Its backward is UNPERMUTE without
 * weights. */
typedef struct {
  bk_tensor x, order, y;
  int k;
} bk_permute_args;
/* y[i] (+)= sum_j weights[i,j] x[slot[i,j]], j ascending: x [M,C], slot [N,k], weights [N,k] ct
 * (opt: ones), y [N,C]. */
typedef struct {
  bk_tensor x, slot, weights, y;
  bool accumulate;
} bk_unpermute_args;
/* dx[slot[i,j]] = weights[i,j] dy[i]; dweights[i,j] = x[slot[i,j]] . dy[i]. dx may alias x. */
typedef struct {
  bk_tensor x, slot, weights, dy, dx, dweights;
} bk_unpermute_bwd_args;
/* Loss-free balancing: bias[e] += step[BALANCE_RATE] sign(mean(load) - load[e]); nothing if
 * step[FINITE] is 0. load [E] i32, bias [E] ct. The mean is exact: sign(sum(load) - E load[e])
 * in integers. */
typedef struct {
  bk_tensor load, step, bias;
} bk_balance_args;

/* ---- optimiser ---- */
/* y[0] (+)= sum x^2. x [P] ct, y [1] ct. */
typedef struct {
  bk_tensor x, y;
  bool accumulate;
} bk_sumsq_args;
/* From step[SUMSQ], step[LOSS], step[MAX_NORM]: writes step[NORM], step[CLIP], step[FINITE]. */
typedef struct {
  bk_tensor step;
} bk_clip_args;
/* AdamW on flat tensors [P]: g' = g step[CLIP]; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2; w
 * -= lr (mhat / (sqrt(vhat) + eps) + weight_decay w), mhat = m / BC1, vhat = v / BC2. The
 * weights w are `master` (ct) where present, then p (st) = w rounded; otherwise p itself (ct).
 * Nothing if step[FINITE] is 0. */
typedef struct {
  bk_tensor grad, step, p, master /* opt */, m, v;
  double beta1, beta2, eps, weight_decay;
} bk_adamw_args;

/* ---- residual connections (design.md section 3; mHC arXiv 2512.24880 eq. 7-9; HC arXiv
 * 2409.19606) ---- x [N,n,C] st: the streams. pre, post [N,n] ct. comb [N,n,n] ct: comb[m][k] is
 * the weight from source m to destination k (H_res[k][m] = comb[m][k]); each of its [n,n] blocks
 * is dense. */
/* bk_hc_kind: birkhoff/types.h */
#define BK_HC_MAX_N 8

/* Rows of fn (R), of base, of scale and of rinv per token for a kind; HEAD is the learned head:
 * pre only.
 *            fn rows R   fn columns   base      scale   proj              rinv
 * mhc        n(n+2)      nC           n(n+2)    3       [N, n(n+2)]       [N]
 * mhc_lite   2n+n!       nC           2n+n!     3       [N, 2n+n!]        [N]
 * ihc        2n          nC           2n        2       [N, 2n]           [N]
 * head       n           nC           n         1       [N, n]            [N]
 * hc         n+2         C            n(n+2)    3       [N*n, n+2]        [N*n]      (x seen as
 *            [N*n, C]) */
int bk_hc_rows(bk_hc_kind kind, int n);
int bk_hc_base_count(bk_hc_kind kind, int n);
int bk_hc_scale_count(bk_hc_kind kind);
int bk_factorial(int n);

typedef struct {
  bk_tensor x, y;
} bk_hc_expand_args; /* x [N,C] -> y [N,n,C]: n copies */
/* x [N,n,C] -> y [N,C]: sum over streams; expand's backward */
typedef struct {
  bk_tensor x, y;
} bk_hc_collapse_args;

/* rinv = (mean(x^2) + eps)^-1/2 over a row: x [M,K], rinv [M] ct. */
typedef struct {
  bk_tensor x, rinv;
  double eps;
} bk_hc_rms_args;
typedef struct {
  bk_tensor x, rinv, drinv, dx;
  bool accumulate;
} bk_hc_rms_bwd_args;

/* mhc, mhc_lite, ihc, head: logits[i,j] = scale[group(j)] proj[i,j] rinv[i] + base[j]; groups of
 * rows: pre, post, comb. */
typedef struct {
  bk_tensor proj, rinv, scale, base, logits;
  bk_hc_kind kind;
  int n;
} bk_hc_logits_args;
typedef struct {
  bk_tensor proj, rinv, scale, dlogits, dproj, drinv, dscale, dbase;
  bk_hc_kind kind;
  int n;
} bk_hc_logits_bwd_args;
/* pre = sigmoid(logits[:, :n]) + hc_eps, post = 2 sigmoid(logits[:, n:2n]). logits is [N,R] or a
 * view; post opt (head). */
typedef struct {
  bk_tensor logits, pre, post;
  double hc_eps;
} bk_hc_gates_args;
/* dlogits columns 0..n-1 (and n..2n-1 if dpost is present) are written, others untouched. */
typedef struct {
  bk_tensor logits, dpre, dpost /* opt */, dlogits;
} bk_hc_gates_bwd_args;
/* Sinkhorn. logits [N,n,n] (outer strides free, each n*n block dense) -> comb [N,n,n]. hc_eps >
 * 0: comb = softmax over each row + eps; comb /= (column sum + eps); then iters-1 times { /=
 * (row sum + eps); /= (column sum + eps) }: DeepSeek-V4's form. Row = fixed source m, column =
 * fixed destination k. hc_eps = 0: the same steps without eps, in the log domain: finite for any
 * finite logits; on H_res = comb^T this is the paper's exp, then iters times T_r(T_c(.)). The
 * first softmax's normalisation is a row step of comb. */
typedef struct {
  bk_tensor logits, comb;
  int iters;
  double hc_eps;
} bk_sinkhorn_args;
/* Recomputes the iterates from the logits, walks them back. dlogits overwritten. */
typedef struct {
  bk_tensor logits, dcomb, dlogits;
  int iters;
  double hc_eps;
} bk_sinkhorn_bwd_args;
/* mhc_lite: w = softmax(logits [N,n!]); comb[m][k] = sum of w over permutations sigma with
 * sigma(m) = k; lexicographic. */
typedef struct {
  bk_tensor logits, comb;
  int n;
} bk_hc_perm_args;
typedef struct {
  bk_tensor logits, dcomb, dlogits;
  int n;
} bk_hc_perm_bwd_args;
/* hc: u[m,j] = proj[i*n+m, j] rinv[i*n+m]; pre[m] = scale0 tanh(u[m,0]) + base[m]; post[k] =
 * scale1 tanh(u[k,1]) + base[n+k]; comb[m][k] = scale2 tanh(u[m,2+k]) + base[2n + m*n + k]. */
typedef struct {
  bk_tensor proj, rinv, scale, base, pre, post, comb;
  int n;
} bk_hc_tanh_args;
typedef struct {
  bk_tensor proj, rinv, scale, dpre, dpost, dcomb, dproj, drinv, dscale, dbase;
  int n;
} bk_hc_tanh_bwd_args;

/* y[c] = sum_m pre[m] x[m][c]: x [N,n,C], y [N,C]. */
typedef struct {
  bk_tensor x, pre, y;
} bk_hc_pre_args;
typedef struct {
  bk_tensor x, pre, dy, dx, dpre;
  bool accumulate; /* dx */
} bk_hc_pre_bwd_args;
/* y[k] = sum_m comb[m][k] x[m]. */
typedef struct {
  bk_tensor x, comb, y;
} bk_hc_res_args;
typedef struct {
  bk_tensor x, comb, dy, dx, dcomb;
} bk_hc_res_bwd_args;
/* y[k] += post[k] f. */
typedef struct {
  bk_tensor f, post, y;
} bk_hc_post_args;
typedef struct {
  bk_tensor f, post, dy, df, dpost;
} bk_hc_post_bwd_args;

/* ---- fused slots ---- */
/* Projection and norm in one pass over x: proj[i,j] = fn[j] . x[i], rinv as HC_RMS. x [M,K] st,
 * fn [R,K] ct, proj [M,R]. */
typedef struct {
  bk_tensor x, fn, proj, rinv;
  double eps;
} bk_hc_project_args;
/* dx (opt) and dfn (opt, adds) in one pass over x. */
typedef struct {
  bk_tensor x, fn, rinv, dproj, drinv, dx, dfn;
  bool accumulate; /* dx */
} bk_hc_project_bwd_args;
/* All maps in one go. comb absent for ihc and head, post absent for head. Row layouts as in the
 * table above. */
typedef struct {
  bk_tensor proj, rinv, scale, base, pre, post, comb;
  bk_hc_kind kind;
  int n, iters;
  double hc_eps;
} bk_hc_maps_args;
/* Recomputes everything from proj and rinv; nothing else is saved. */
typedef struct {
  bk_tensor proj, rinv, scale, base, dpre, dpost, dcomb, dproj, drinv, dscale, dbase;
  bk_hc_kind kind;
  int n, iters;
  double hc_eps;
} bk_hc_maps_bwd_args;
/* y = HC_PRE (kept for the backward), h = RMSNORM(y): x [N,n,C], pre [N,n], w [C] ct; y, h
 * [N,C], rstd [N] ct. The norm acts on y as stored (rounded to st). */
typedef struct {
  bk_tensor x, pre, w, y, h, rstd;
  double eps;
} bk_hc_pre_norm_args;
typedef struct {
  bk_tensor x, pre, w, y, rstd, dh, dx, dpre, dw;
  bool accumulate; /* dx */
} bk_hc_pre_norm_bwd_args;
/* out[k] = post[k] f + sum_m comb[m][k] x[m]; comb absent = identity. x, out [N,n,C], f [N,C].
 * out must not alias x. */
typedef struct {
  bk_tensor x, f, post, comb, out;
} bk_hc_post_res_args;
/* dx [N,n,C] overwritten, df [N,C], dpost [N,n], dcomb [N,n,n] (absent with comb). dx may alias
 * dout. */
typedef struct {
  bk_tensor x, f, post, comb, dout, dx, df, dpost, dcomb;
} bk_hc_post_res_bwd_args;
/* merge of one sublayer with the mix of the next: post_res, then project, maps, pre_norm on its
 * output. */
typedef struct {
  bk_hc_post_res_args merge;
  bk_hc_project_args project;
  bk_hc_maps_args maps;
  bk_hc_pre_norm_args pre_norm;
} bk_hc_merge_mix_args;
/* The mirror, in reverse: pre_norm, maps, project of the later sublayer (adding into dout), then
 * post_res of the earlier. */
typedef struct {
  bk_hc_pre_norm_bwd_args pre_norm;
  bk_hc_maps_bwd_args maps;
  bk_hc_project_bwd_args project;
  bk_hc_post_res_bwd_args merge;
} bk_hc_merge_mix_bwd_args;
/* Recompute of a block of sublayers from its first x, the kept f and the kept maps. For i = 0 ..
 * layers-1: y_i, h_i, rstd_i = HC_PRE_NORM(x_i, pre_i, w_i), and for all but the last x_{i+1} =
 * HC_POST_RES(x_i, f_i, post_i, comb_i). Shapes as there. Only the first x is an input. Absent:
 * f, post and comb of the last layer, the layers from `layers` on; comb is there in all layers
 * or in none. The streams act as stored (rounded to st) at every layer. */
#define BK_HC_REBUILD_MAX 8
typedef struct {
  bk_tensor x, f, post, comb, pre, w, y, h, rstd;
} bk_hc_rebuild_layer;
typedef struct {
  bk_hc_rebuild_layer layer[BK_HC_REBUILD_MAX];
  int layers;
  double eps;
} bk_hc_rebuild_args;

/* ---- descriptors (ops/desc.c): what generic code (dispatch, harness, fallback) needs to know
 * of an args struct ---- */
/* an OUT that may also accumulate is INOUT */
typedef enum bk_role { BK_IN, BK_OUT, BK_INOUT } bk_role;
typedef struct bk_op_field {
  const char *name;
  size_t offset; /* of a bk_tensor in the args struct */
  bk_role role;
  bool optional;
} bk_op_field;
/* What is no tensor in an args struct: numbers that choose what a kernel does. */
typedef struct bk_op_param {
  uint16_t offset, size; /* in the args struct; size 0: no more */
} bk_op_param;
#define BK_OP_MAX_FIELDS 69 /* of a descriptor */
#define BK_OP_MAX_PARAMS 8
#define BK_OP_MAX_ARGS 8192 /* at least the bytes of any args struct */
typedef struct bk_op_desc {
  bk_op op;
  const char *name;
  size_t args_size;
  const bk_op_field *fields;
  int n_fields;
  const bk_op_param *params; /* [BK_OP_MAX_PARAMS], those that are there first */
  /* shape rules; logs the op, the field and what would be right */
  bk_status (*check)(bk_context *ctx, const void *args);
  /* multiply-add = 2 flops; each operand moved once */
  void (*cost)(const void *args, double *flops, double *bytes);
} bk_op_desc;
const bk_op_desc *bk_op_describe(bk_op op);
const char *bk_op_name(bk_op op);

#endif

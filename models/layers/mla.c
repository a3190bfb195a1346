/* Multi-head latent attention, DeepSeek-V3 (arXiv 2412.19437 section 2.1.1; layouts as Hugging
 * Face's DeepseekV3Attention). With nope and rope the widths of a head's unrotated and rotated
 * parts:
 *   q [H,(nope|rope)] = h Wq^T, or with query compression rmsnorm(h Wqa^T) Wqb^T
 *   (c | k_pe) = h Wkva^T, where c is the latent vector that stands for keys and values
 *   (k_nope | v) per head = rmsnorm(c) Wkvb^T
 *   q_pe and k_pe are turned by RoPE, and k_pe is shared by all heads
 *   f = attention(q, (k_nope|k_pe), v) Wo^T
 * The softmax scale is (nope + rope)^-1/2. The latent norms use eps 1e-6 whatever rms_norm_eps
 * says, as the originals do.
 *
 * The cache of a decoder holds whole keys and values, not the latent vector: decoding is simple,
 * at the price of a larger cache.
 *
 * What the backward reads: q and k as they were turned, v as a view of kv, o and lse for attention;
 * q_a, kv_a and their rstd for the latent norms; q_an, kv_an and o as inputs of products. dgrad
 * leaves dq, dq_an, dq_a, dkv, dkv_an and dkv_a for wgrad; dk and dout are scratch of dgrad
 * alone. */
#include "models/layers/sublayer.h"

#include <math.h>

#define LATENT_NORM_EPS 1e-6

/* The shape is [B,T,H,D], with tokens outside and heads inside, so that a product writes all heads
 * of a token as one row [H D] and attention sees them by head without a copy. */
static bk_tensor plan_4d(bk_planner *p, bk_memory_class c, int64_t T, int64_t D) {
  return bk_planner_tensor(p, c, p->st, 4,
                           (int64_t[]){p->batch, T, p->config->num_attention_heads, D});
}

/* A head's query and key have this width. */
static int64_t query_width(const bk_model_config *c) {
  return c->qk_nope_head_dim + c->qk_rope_head_dim;
}

/* The caches of a prefill are those of the decoding that goes on from it. p->cache_of are the
 * activations of the same sublayer in the other runner. The caches are activations even without a
 * backward pass, because they must outlive the pass. */
static void plan_cache(bk_planner *p, bk_mla_acts *a) {
  if (!p->cache_len) return;
  a->past = p->past;
  if (p->cache_of) {
    a->k_cache = p->cache_of->mla.k_cache;
    a->v_cache = p->cache_of->mla.v_cache;
    return;
  }
  a->k_cache = plan_4d(p, BK_MEM_ACTIVATIONS, p->cache_len, query_width(p->config));
  a->v_cache = plan_4d(p, BK_MEM_ACTIVATIONS, p->cache_len, p->config->v_head_dim);
}

/* Everything that the backward reads is kept, or all of it is made again. q_a, q_an and
 * q_rstd exist only with query compression (q_lora_rank > 0). lse is made only for a backward. */
static void plan_acts(bk_planner *p, const bk_sublayer *s, bk_f_acts *acts) {
  const bk_model_config *c = p->config;
  bk_mla_acts *a = &acts->mla;
  bk_memory_class again = p->again;
  int64_t N = p->tokens, r = c->kv_lora_rank;
  *a = (bk_mla_acts){0};
  if (s->mla.q_a) {
    a->q_a = bk_planner_2d(p, again, p->st, N, c->q_lora_rank);
    a->q_an = bk_planner_2d(p, again, p->st, N, c->q_lora_rank);
    a->q_rstd = bk_planner_1d(p, again, p->ct, N);
  }
  a->q = plan_4d(p, again, p->seq_len, query_width(c));
  a->k = plan_4d(p, again, p->seq_len, query_width(c));
  a->kv_a = bk_planner_2d(p, again, p->st, N, r + c->qk_rope_head_dim);
  a->kv_an = bk_planner_2d(p, again, p->st, N, r);
  a->kv_rstd = bk_planner_1d(p, again, p->ct, N);
  a->kv = plan_4d(p, again, p->seq_len, c->qk_nope_head_dim + c->v_head_dim);
  a->o = plan_4d(p, again, p->seq_len, c->v_head_dim);
  if (p->backward) {
    a->lse = bk_planner_tensor(p, again, p->ct, 3,
                               (int64_t[]){p->batch, c->num_attention_heads, p->seq_len});
  }
  plan_cache(p, a);
}

/* Every product goes into an activation that is kept, or into a place shared in its stead. */
static void plan_forward(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w) {
  (void)p;
  (void)s;
  w->mla = (bk_mla_scratch){0};
}

/* `left` marks what wgrad reads after dgrad has ended. */
static void plan_backward(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w) {
  const bk_model_config *c = p->config;
  bk_memory_class ws = BK_MEM_WORKSPACE, left = p->left;
  int64_t N = p->tokens, r = c->kv_lora_rank, T = p->seq_len;
  w->mla = (bk_mla_scratch){
      .dq = plan_4d(p, left, T, query_width(c)),
      .dk = plan_4d(p, ws, T, query_width(c)),
      .dkv = plan_4d(p, left, T, c->qk_nope_head_dim + c->v_head_dim),
      .dkv_an = bk_planner_2d(p, left, p->st, N, r),
      .dkv_a = bk_planner_2d(p, left, p->st, N, r + c->qk_rope_head_dim),
      .dout = plan_4d(p, ws, T, c->v_head_dim),
  };
  if (!s->mla.q_a) return;
  w->mla.dq_an = bk_planner_2d(p, left, p->st, N, c->q_lora_rank);
  w->mla.dq_a = bk_planner_2d(p, left, p->st, N, c->q_lora_rank);
}

/* ---- views ---- */
/* [B,T,H,D] contiguous as [N, H*D]. */
static bk_tensor rows(bk_tensor t) {
  return bk_tensor_reshape(t, 2, (int64_t[]){t.shape[0] * t.shape[1], t.shape[2] * t.shape[3]});
}
/* The unrotated columns of every head come first in q, k and kv alike. */
static bk_tensor nope_part(const bk_sublayer *s, bk_tensor t) {
  return bk_tensor_slice(t, 3, 0, s->config->qk_nope_head_dim);
}
/* What follows the nope part: rope of q and k, v of kv. */
static bk_tensor tail_part(const bk_sublayer *s, bk_tensor t) {
  return bk_tensor_slice(t, 3, s->config->qk_nope_head_dim,
                         t.shape[3] - s->config->qk_nope_head_dim);
}
/* The first r columns of kv_a [N, r+rope] are the latent vector c. */
static bk_tensor latent_part(const bk_sublayer *s, bk_tensor kv_a) {
  return bk_tensor_slice(kv_a, 1, 0, s->config->kv_lora_rank);
}
/* The shared rotary key [B,T,1,rope] in kv_a [N, r+rope]. */
static bk_tensor key_pe_part(const bk_sublayer *s, bk_tensor kv_a, int64_t seq_len) {
  int64_t rope = s->config->qk_rope_head_dim;
  bk_tensor t = bk_tensor_slice(kv_a, 1, s->config->kv_lora_rank, rope);
  return bk_tensor_split(bk_tensor_split(t, 0, seq_len), 2, rope);
}

/* `inverse` turns back, which is the backward pass of a rotation. With past absent positions count
 * from 0. */
static bk_status rope(bk_recorder *rec, const bk_sublayer *s, bk_tensor x, bk_tensor past,
                      bk_tensor y, bool inverse) {
  return bk_record(rec, BK_OP_ROPE, &(bk_rope_args){x, past, y, s->config->rope_theta, inverse});
}

/* x may be a view with a row stride larger than its width (latent_part). */
static bk_status latent_norm(bk_recorder *rec, bk_tensor x, const bk_param_block *w, bk_tensor y,
                             bk_tensor rstd) {
  return bk_record(rec, BK_OP_RMSNORM, &(bk_rmsnorm_args){x, w->weight, y, rstd, LATENT_NORM_EPS});
}

/* ---- forward ---- */
/* The rotated part of the queries is turned in place. The weights of queries map straight into q
 * seen as rows [N, H(nope+rope)]. */
static bk_status mla_query(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a,
                           bk_tensor h) {
  if (s->mla.q_a) {
    BK_TRY(bk_linear(rec, h, s->mla.q_a, a->q_a));
    BK_TRY(latent_norm(rec, a->q_a, s->mla.q_norm, a->q_an, a->q_rstd));
    BK_TRY(bk_linear(rec, a->q_an, s->mla.q_b, rows(a->q)));
  } else {
    BK_TRY(bk_linear(rec, h, s->mla.q, rows(a->q)));
  }
  bk_tensor q_pe = tail_part(s, a->q);
  return rope(rec, s, q_pe, a->past, q_pe, false);
}

/* k is put together from two sources: the unrotated part of each head is copied out of kv, and the
 * rotated part, one for all heads, is turned on its way to each. */
static bk_status mla_key_value(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a,
                               bk_tensor h) {
  BK_TRY(bk_linear(rec, h, s->mla.kv_a, a->kv_a));
  BK_TRY(latent_norm(rec, latent_part(s, a->kv_a), s->mla.kv_norm, a->kv_an, a->kv_rstd));
  BK_TRY(bk_linear(rec, a->kv_an, s->mla.kv_b, rows(a->kv)));
  BK_TRY(bk_record(rec, BK_OP_COPY, &(bk_copy_args){nope_part(s, a->kv), nope_part(s, a->k)}));
  return rope(rec, s, key_pe_part(s, a->kv_a, a->k.shape[1]), a->past, tail_part(s, a->k), false);
}

/* When decoding, the new keys and values are first written to the cache, so that a token sees
 * itself. */
static bk_status mla_attend(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a) {
  bk_tensor v = tail_part(s, a->kv);
  bk_attention_args args = {.q = a->q,
                            .k = a->k,
                            .v = v,
                            .o = a->o,
                            .lse = a->lse,
                            .scale = 1.0 / sqrt((double)query_width(s->config))};
  if (bk_tensor_present(&a->k_cache)) {
    BK_TRY(bk_record(rec, BK_OP_CACHE_WRITE, &(bk_cache_write_args){a->k, a->past, a->k_cache}));
    BK_TRY(bk_record(rec, BK_OP_CACHE_WRITE, &(bk_cache_write_args){v, a->past, a->v_cache}));
    args.k = a->k_cache;
    args.v = a->v_cache;
    args.past = a->past;
  }
  return bk_record(rec, BK_OP_ATTENTION, &args);
}

/* Everything between h and f. There is no scratch, since every intermediate tensor is kept for the
 * backward (or shared by all sublayers where there is none). */
static bk_status mla_inside(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a,
                            bk_tensor h) {
  BK_TRY(mla_query(rec, s, a, h));
  BK_TRY(mla_key_value(rec, s, a, h));
  return mla_attend(rec, s, a);
}

/* This is piece F of attention, from h [N,C] to f [N,C]. */
static bk_status forward(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                         const bk_f_scratch *w, bk_tensor h, bk_tensor f) {
  (void)w;
  const bk_mla_acts *a = &acts->mla;
  BK_TRY(bk_f_piece(rec, s, BK_PART_ATTENTION, BK_PASS_F));
  BK_TRY(mla_inside(rec, s, a, h));
  return bk_linear(rec, rows(a->o), s->mla.o, f);
}

/* dgrad reads all of it, and wgrad the heads' outputs, which are the last to be made. */
static bk_status rebuild(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                         const bk_f_scratch *w, bk_tensor h, bk_pass pass) {
  (void)w;
  BK_TRY(bk_f_rebuild_piece(rec, s, pass));
  return mla_inside(rec, s, &acts->mla, h);
}

/* ---- dgrad ---- */
/* The norm's two gradients are two calls, because dx is wanted in dgrad and dw in wgrad, which may
 * be another program. */
static bk_status latent_norm_dgrad(bk_recorder *rec, bk_tensor x, const bk_param_block *w,
                                   bk_tensor rstd, bk_tensor dy, bk_tensor dx) {
  return bk_record(
      rec, BK_OP_RMSNORM_BWD,
      &(bk_rmsnorm_bwd_args){.x = x, .w = w->weight, .rstd = rstd, .dy = dy, .dx = dx});
}

/* dv is written into its half of dkv; the other half, of the unrotated keys, follows from dk. dq,
 * dk and dv are overwritten. */
static bk_status mla_attend_bwd(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a,
                                const bk_mla_scratch *w) {
  return bk_record(rec, BK_OP_ATTENTION_BWD,
                   &(bk_attention_bwd_args){.q = a->q,
                                            .k = a->k,
                                            .v = tail_part(s, a->kv),
                                            .o = a->o,
                                            .lse = a->lse,
                                            .dout = w->dout,
                                            .dq = w->dq,
                                            .dk = w->dk,
                                            .dv = tail_part(s, w->dkv),
                                            .scale = 1.0 / sqrt((double)query_width(s->config))});
}

/* The mirror of mla_query. The first product into dh overwrites it. */
static bk_status mla_query_bwd(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a,
                               const bk_mla_scratch *w, bk_tensor dh) {
  bk_tensor dq_pe = tail_part(s, w->dq), none = {0};
  BK_TRY(rope(rec, s, dq_pe, none, dq_pe, true));
  if (!s->mla.q_a) return bk_linear_dgrad(rec, rows(w->dq), s->mla.q, dh, false);
  BK_TRY(bk_linear_dgrad(rec, rows(w->dq), s->mla.q_b, w->dq_an, false));
  BK_TRY(latent_norm_dgrad(rec, a->q_a, s->mla.q_norm, a->q_rstd, w->dq_an, w->dq_a));
  return bk_linear_dgrad(rec, w->dq_a, s->mla.q_a, dh, false);
}

/* The mirror of mla_key_value: the gradient of the rotated part is summed over the heads while it
 * is turned back, into its columns of dkv_a; the latent part fills the others. dh already has the
 * queries' part, so that the last product adds. */
static bk_status mla_key_value_bwd(bk_recorder *rec, const bk_sublayer *s, const bk_mla_acts *a,
                                   const bk_mla_scratch *w, bk_tensor dh) {
  bk_tensor none = {0};
  BK_TRY(bk_record(rec, BK_OP_COPY, &(bk_copy_args){nope_part(s, w->dk), nope_part(s, w->dkv)}));
  BK_TRY(rope(rec, s, tail_part(s, w->dk), none, key_pe_part(s, w->dkv_a, w->dk.shape[1]), true));
  BK_TRY(bk_linear_dgrad(rec, rows(w->dkv), s->mla.kv_b, w->dkv_an, false));
  BK_TRY(latent_norm_dgrad(rec, latent_part(s, a->kv_a), s->mla.kv_norm, a->kv_rstd, w->dkv_an,
                           latent_part(s, w->dkv_a)));
  return bk_linear_dgrad(rec, w->dkv_a, s->mla.kv_a, dh, true);
}

/* The queries' part of dh comes first and overwrites; the keys' and values' part adds. */
static bk_status dgrad(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                       const bk_f_scratch *scratch, bk_tensor df, bk_tensor dh) {
  const bk_mla_acts *a = &acts->mla;
  const bk_mla_scratch *w = &scratch->mla;
  BK_TRY(bk_f_piece(rec, s, BK_PART_ATTENTION, BK_PASS_D));
  BK_TRY(bk_linear_dgrad(rec, df, s->mla.o, rows(w->dout), false));
  BK_TRY(mla_attend_bwd(rec, s, a, w));
  BK_TRY(mla_query_bwd(rec, s, a, w, dh));
  return mla_key_value_bwd(rec, s, a, w, dh);
}

/* ---- wgrad ---- */
static bk_status latent_norm_wgrad(bk_recorder *rec, bk_tensor x, const bk_param_block *w,
                                   bk_tensor rstd, bk_tensor dy) {
  BK_TRY(bk_record_adds_to(rec, w));
  return bk_record(
      rec, BK_OP_RMSNORM_BWD,
      &(bk_rmsnorm_bwd_args){.x = x, .w = w->weight, .rstd = rstd, .dy = dy, .dw = w->grad});
}

/* One product for each matrix and one norm for each latent vector: what dgrad has left stands on
 * the left side, what forward has kept on the right. */
static bk_status wgrad(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *acts,
                       const bk_f_scratch *scratch, bk_tensor h, bk_tensor df) {
  const bk_mla_acts *a = &acts->mla;
  const bk_mla_scratch *w = &scratch->mla;
  BK_TRY(bk_f_piece(rec, s, BK_PART_ATTENTION, BK_PASS_W));
  BK_TRY(bk_linear_wgrad(rec, df, rows(a->o), s->mla.o));
  if (s->mla.q_a) {
    BK_TRY(bk_linear_wgrad(rec, rows(w->dq), a->q_an, s->mla.q_b));
    BK_TRY(latent_norm_wgrad(rec, a->q_a, s->mla.q_norm, a->q_rstd, w->dq_an));
    BK_TRY(bk_linear_wgrad(rec, w->dq_a, h, s->mla.q_a));
  } else {
    BK_TRY(bk_linear_wgrad(rec, rows(w->dq), h, s->mla.q));
  }
  BK_TRY(bk_linear_wgrad(rec, rows(w->dkv), a->kv_an, s->mla.kv_b));
  BK_TRY(latent_norm_wgrad(rec, latent_part(s, a->kv_a), s->mla.kv_norm, a->kv_rstd, w->dkv_an));
  return bk_linear_wgrad(rec, w->dkv_a, h, s->mla.kv_a);
}

const bk_f_ops bk_mla_ops = {"mla",   plan_acts, plan_forward, plan_backward,
                             forward, rebuild,   dgrad,        wgrad};

/* Parameter counts and flops from the configuration alone, without a device. Matrices and the rest
 * are counted apart, because flops follow the matrices: 2 flops for each of a matrix's entries in
 * the forward pass and 4 in the backward pass, for each token. Attention adds its scores and
 * weighted values, of which a causal mask leaves half. */
#include "models/model_priv.h"
#include "models/stage_costs.h"

/* These are numbers of parameters. "Vectors" are those that are no matrix of a product: norms,
 * biases, scales and bases. */
typedef struct tally {
  int64_t matrices, vectors;
} tally;

/* These are the entries of one layer's attention matrices, as mla.c multiplies them. */
static int64_t attention_matrices(const bk_model_config *c) {
  int64_t C = c->hidden_size, H = c->num_attention_heads,
          D = c->qk_nope_head_dim + c->qk_rope_head_dim;
  int64_t query = c->q_lora_rank ? C * c->q_lora_rank + c->q_lora_rank * H * D : C * H * D;
  int64_t key_value = C * (c->kv_lora_rank + c->qk_rope_head_dim) +
                      c->kv_lora_rank * H * (c->qk_nope_head_dim + c->v_head_dim);
  return query + key_value + H * c->v_head_dim * C;
}

/* The parameters of one connection, without the norm in front of F. */
static tally connection(const bk_model_config *c, const bk_connection_kind *kind) {
  tally t = {0, 0};
  int64_t shape[BK_MAX_DIMS];
  for (const bk_connection_param *p = kind->params; p->name; p++) {
    int64_t count = 1;
    p->shape(kind, (int)c->hc_mult, c->hidden_size, shape);
    for (int d = 0; d < p->ndim; d++) count *= shape[d];
    *(p->decays ? &t.matrices : &t.vectors) += count;
  }
  return t;
}

/* The entries of a layer's feed-forward matrices that one token meets: the router, the shared
 * experts and k of the others, or a dense MLP. */
static int64_t feed_forward_matrices(const bk_model_config *c, int64_t layer) {
  int64_t C = c->hidden_size;
  if (layer < c->first_k_dense_replace) return 3 * C * c->intermediate_size;
  int64_t experts = c->n_shared_experts + c->num_experts_per_tok;
  return C * c->n_routed_experts + experts * 3 * C * c->moe_intermediate_size;
}

/* Scores and weighted values of one layer's attention, forward and backward. */
static double attention_pairs(const bk_model_config *c, int64_t seq_len) {
  int64_t width = c->qk_nope_head_dim + c->qk_rope_head_dim + c->v_head_dim;
  return 3.0 * (double)(c->num_attention_heads * width) * (double)(seq_len + 1);
}

/* The embedding only looks up rows. */
void bk_sublayer_costs(const bk_model_config *c, int64_t seq_len, double *costs) {
  int64_t site = connection(c, bk_connection_kind_of((bk_hc_kind)c->residual)).matrices;
  int64_t head = connection(c, bk_model_head_kind(c)).matrices + c->vocab_size * c->hidden_size;
  *costs++ = 0;
  for (int64_t l = 0; l < c->num_hidden_layers; l++) {
    *costs++ = 6.0 * (double)(attention_matrices(c) + site) + attention_pairs(c, seq_len);
    *costs++ = 6.0 * (double)(feed_forward_matrices(c, l) + site);
  }
  *costs = 6.0 * (double)head;
}

/* Active are the parameters that one token meets: k of the E experts, and of the two vocabulary
 * matrices the head only, since the embedding looks up one row. */
void bk_model_count(const bk_model_config *c, int64_t seq_len, bk_model_counts *counts) {
  int64_t C = c->hidden_size, layers = c->num_hidden_layers, E = c->n_routed_experts;
  int64_t dense = c->first_k_dense_replace < layers ? c->first_k_dense_replace : layers,
          sparse = layers - dense;
  tally site = connection(c, bk_connection_kind_of((bk_hc_kind)c->residual)),
        head = connection(c, bk_model_head_kind(c));

  int64_t matrices = layers * attention_matrices(c);
  for (int64_t l = 0; l < layers; l++) matrices += feed_forward_matrices(c, l);
  matrices += 2 * layers * site.matrices + head.matrices + c->vocab_size * C;
  int64_t vectors = layers * (2 * C + c->kv_lora_rank + c->q_lora_rank) + sparse * E + C;
  vectors += 2 * layers * site.vectors + head.vectors;
  int64_t idle = sparse * (E - c->num_experts_per_tok) * 3 * C * c->moe_intermediate_size;

  *counts = (bk_model_counts){
      .parameters_active = matrices + vectors,
      .parameters_total = matrices + vectors + idle + c->vocab_size * C,
      .parameters_connections =
          2 * layers * (site.matrices + site.vectors) + head.matrices + head.vectors,
      .parameters_vocabulary = 2 * c->vocab_size * C,
      .flops_per_token = 6.0 * (double)matrices + (double)layers * attention_pairs(c, seq_len),
  };
}

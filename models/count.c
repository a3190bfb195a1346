/* Parameter counts and flops from the configuration alone. Matrices and the rest are counted
 * apart, because flops follow the matrices. */
#include "models/model.h"

typedef struct tally {
  int64_t matrices, vectors;
} tally;

static int64_t attention_matrices(const bk_model_config *c) {
  int64_t C = c->hidden_size, H = c->num_attention_heads,
          D = c->qk_nope_head_dim + c->qk_rope_head_dim;
  int64_t query = c->q_lora_rank ? C * c->q_lora_rank + c->q_lora_rank * H * D : C * H * D;
  int64_t key_value = C * (c->kv_lora_rank + c->qk_rope_head_dim) +
                      c->kv_lora_rank * H * (c->qk_nope_head_dim + c->v_head_dim);
  return query + key_value + H * c->v_head_dim * C;
}

/* One connection, its norm in front of F not counted. */
static tally connection(const bk_model_config *c, bk_hc_kind kind) {
  if (kind == BK_HC_PLAIN) return (tally){0, 0};
  int n = (int)c->hc_mult;
  int64_t columns = kind == BK_HC_HC ? c->hidden_size : n * c->hidden_size;
  return (tally){bk_hc_rows(kind, n) * columns,
                 bk_hc_base_count(kind, n) + bk_hc_scale_count(kind)};
}

void bk_model_count(const bk_model_config *c, int64_t seq_len, bk_model_counts *counts) {
  int64_t C = c->hidden_size, layers = c->num_hidden_layers, E = c->n_routed_experts,
          expert = 3 * C * c->moe_intermediate_size;
  int64_t dense = c->first_k_dense_replace < layers ? c->first_k_dense_replace : layers,
          sparse = layers - dense;
  bool learned = c->residual != BK_HC_PLAIN && c->hc_head == BK_HEAD_LEARNED;
  tally site = connection(c, (bk_hc_kind)c->residual),
        head = connection(c, learned ? BK_HC_HEAD : BK_HC_PLAIN);

  int64_t matrices = layers * attention_matrices(c) + dense * 3 * C * c->intermediate_size;
  matrices += sparse * (E * C + c->n_shared_experts * expert + c->num_experts_per_tok * expert);
  matrices += 2 * layers * site.matrices + head.matrices + c->vocab_size * C;
  int64_t vectors = layers * (2 * C + c->kv_lora_rank + c->q_lora_rank) + sparse * E + C;
  vectors += 2 * layers * site.vectors + head.vectors;
  int64_t idle = sparse * (E - c->num_experts_per_tok) * expert;

  int64_t width = c->qk_nope_head_dim + c->qk_rope_head_dim + c->v_head_dim;
  double attention =
      3.0 * (double)(layers * c->num_attention_heads * width) * (double)(seq_len + 1);
  *counts = (bk_model_counts){
      .parameters_active = matrices + vectors,
      .parameters_total = matrices + vectors + idle + c->vocab_size * C,
      .parameters_connections =
          2 * layers * (site.matrices + site.vectors) + head.matrices + head.vectors,
      .parameters_vocabulary = 2 * c->vocab_size * C,
      .flops_per_token = 6.0 * (double)matrices + attention,
  };
}

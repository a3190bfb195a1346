/* Parameters of the model: blocks of storage, their named views, and the flat list of sublayers
 * that uses them (model.h). A block is what a product or the optimiser sees; a view is what a
 * checkpoint sees: all experts of a layer are one block of three dimensions, and gate and up of an
 * MLP are the two halves of one matrix, so that a single product makes both.
 *
 * Names and order are those of Hugging Face's DeepseekV3; the connections' parameters come after
 * those of their sublayer.
 *
 * Weights lie in memory class BK_MEM_WEIGHTS; what is trained also has gradients, masters (where
 * the weight is not ct itself) and two moments, in classes of their own, so that a plan shows what
 * each costs. */
#include "models/model_priv.h"
#include "models/shards.h"

#include <stdarg.h>
#include <stdio.h>

/* The most blocks that a sublayer and the ends can have: room is made before they are counted. */
enum {
  BLOCKS_PER_SUBLAYER = 9 + BK_CONNECTION_MAX_PARAMS,
  BLOCKS_OF_ENDS = 3 + BK_CONNECTION_MAX_PARAMS
};

/* An error sticks in `status` and makes what follows do nothing, so that the builders read as
 * lists. */
typedef struct builder {
  bk_model *m;
  const bk_model_config *c;
  char prefix[64]; /* "model.layers.3." */
  int sublayer;    /* bk_param_block's, of what is being built */
  bk_param sink;   /* written after an error, never read */
  bk_status status;
} builder;

/* How a block is stored and trained: see block(). */
typedef enum block_kind { MATRIX, MATRIX_CT, VECTOR_CT, BIAS } block_kind;

/* The result is absent after an error. */
static bk_tensor reserve(builder *b, bk_memory_class c, bk_dtype dtype, int ndim,
                         const int64_t *shape) {
  bk_tensor t = {0};
  if (b->status == BK_OK) b->status = bk_memory_tensor(b->m->memory, c, dtype, ndim, shape, &t);
  return t;
}

/* MATRIX: storage dtype, decays. MATRIX_CT: ct, decays. VECTOR_CT: ct, no decay. BIAS: ct, not
 * trained by gradients. The memory comes last, in reserve_blocks. */
static bk_param_block *block(builder *b, block_kind kind, int ndim, const int64_t *shape) {
  bk_model *m = b->m;
  bk_param_block *p = &m->blocks[m->n_blocks++];
  p->trainable = kind != BIAS;
  p->sublayer = b->sublayer;
  p->decay = kind == MATRIX || kind == MATRIX_CT;
  p->weight = bk_tensor_make(kind == MATRIX ? m->dtype : m->ct, ndim, shape);
  return p;
}

/* What is not trained by gradients has its weight alone. */
static void reserve_part(builder *b, bk_param_block *p, bool gradient) {
  const bk_tensor *w = &p->weight;
  if (!gradient) p->weight = reserve(b, BK_MEM_WEIGHTS, w->dtype, w->ndim, w->shape);
  else if (b->m->options.trainable && p->trainable)
    p->grad = reserve(b, BK_MEM_GRADIENTS, b->m->ct, w->ndim, w->shape);
}

/* Weights first, then gradients. Blocks that the optimiser treats alike lie side by side in both,
 * within a group in the order of the checkpoint, so that it can treat them in one go; masters and
 * moments then follow from that (shards.h). */
static void reserve_blocks(builder *b) {
  bk_model *m = b->m;
  for (int gradient = 0; gradient < 2; gradient++)
    for (int group = 0; group < BK_UPDATE_GROUPS; group++)
      for (int i = 0; i < m->n_blocks; i++)
        if (bk_param_block_group(m, &m->blocks[i]) == group)
          reserve_part(b, &m->blocks[i], gradient);
  if (b->status == BK_OK) b->status = bk_model_make_shards(m);
}
/* A matrix is [rows, columns], which for a product is [out, in]. */
static bk_param_block *block_2d(builder *b, block_kind kind, int64_t rows, int64_t columns) {
  return block(b, kind, 2, (int64_t[]){rows, columns});
}
static bk_param_block *block_1d(builder *b, block_kind kind, int64_t n) {
  return block(b, kind, 1, (int64_t[]){n});
}

/* ---- named views ---- */
static bk_param *param(builder *b, const bk_param_block *p, size_t offset, int ndim,
                       const int64_t *shape, const char *format, ...) BK_PRINTF(6, 7);
/* A view takes the configuration's initializer_range unless its builder says otherwise. After an
 * error a writable dummy is returned, so that no caller has to test for NULL. */
static bk_param *param(builder *b, const bk_param_block *p, size_t offset, int ndim,
                       const int64_t *shape, const char *format, ...) {
  bk_model *m = b->m;
  if (b->status == BK_OK) {
    b->status = bk_grow(m->ctx, (void **)&m->params, &m->parts->params_capacity,
                        (size_t)m->n_params + 1, sizeof *m->params);
  }
  if (b->status != BK_OK) return &b->sink;
  char leaf[96];
  va_list args;
  va_start(args, format);
  vsnprintf(leaf, sizeof leaf, format, args);
  va_end(args);
  bk_param *q = &m->params[m->n_params];
  *q = (bk_param){.block = (int)(p - m->blocks),
                  .element_offset = offset,
                  .ndim = ndim,
                  .init = BK_INIT_NORMAL,
                  .init_std = b->c->initializer_range};
  for (int i = 0; i < BK_MAX_DIMS; i++) q->shape[i] = i < ndim ? shape[i] : 1;
  q->name = bk_format(m->ctx, "%s%s", b->prefix, leaf);
  if (!q->name) b->status = BK_ERR_MEMORY;
  m->n_params++;
  return q;
}

/* A part of the block is a matrix of the checkpoint. The offset is in elements. */
static void matrix_view(builder *b, const bk_param_block *p, int64_t offset, int64_t rows,
                        int64_t columns, const char *name) {
  param(b, p, (size_t)offset, 2, (int64_t[]){rows, columns}, "%s", name);
}

/* The block is one matrix of the checkpoint. */
static bk_param_block *matrix(builder *b, block_kind kind, int64_t rows, int64_t columns,
                              const char *name) {
  bk_param_block *p = block_2d(b, kind, rows, columns);
  matrix_view(b, p, 0, rows, columns, name);
  return p;
}

/* The elements of the vector all begin with one value. */
static bk_param_block *constant(builder *b, block_kind kind, int64_t n, double value,
                                const char *name) {
  bk_param_block *p = block_1d(b, kind, n);
  bk_param *q = param(b, p, 0, 1, (int64_t[]){n}, "%s", name);
  q->init = BK_INIT_CONST;
  q->init_value = value;
  return p;
}

/* RMSNorm weights begin with 1. */
static bk_param_block *norm(builder *b, int64_t n, const char *name) {
  return constant(b, VECTOR_CT, n, 1.0, name);
}

/* ---- residual connections ---- */
/* The values belong to the model until it is destroyed. The result is NULL after an error. */
static double *new_values(builder *b, int64_t n) {
  struct bk_model_parts *parts = b->m->parts;
  if (b->status == BK_OK) {
    b->status = bk_grow(b->m->ctx, (void **)&parts->values, &parts->values_capacity,
                        parts->n_values + 1, sizeof *parts->values);
  }
  if (b->status != BK_OK) return NULL;
  double *values = bk_alloc_array(b->m->ctx, (size_t)n, sizeof *values);
  if (!values) b->status = BK_ERR_MEMORY;
  else parts->values[parts->n_values++] = values;
  return values;
}

/* A sum of the streams, like a plain model, needs only the final norm. */
const bk_connection_kind *bk_model_head_kind(const bk_model_config *config) {
  bool learned = config->residual != BK_HC_PLAIN && config->hc_head == BK_HEAD_LEARNED;
  return bk_connection_kind_of(learned ? BK_HC_HEAD : BK_HC_PLAIN);
}

/* One parameter of a connection. `prefix` comes before its name: "hc_attn_". fn, which is drawn at
 * random, has no list of values (p->first is NULL) and keeps the default of `param`, a normal
 * distribution. */
static bk_param_block *connection_param(builder *b, const bk_connection *r,
                                        const bk_connection_param *p, int sublayer,
                                        const char *prefix) {
  int64_t shape[BK_MAX_DIMS], count = 1;
  p->shape(r->kind, r->n, r->width, shape);
  for (int d = 0; d < p->ndim; d++) count *= shape[d];
  bk_param_block *blk = block(b, p->decays ? MATRIX_CT : VECTOR_CT, p->ndim, shape);
  bk_param *q = param(b, blk, 0, p->ndim, shape, "%s%s", prefix, p->name);
  q->connection = p;
  q->kind = r->kind;
  q->sublayer = sublayer;
  double *values = p->first ? new_values(b, count) : NULL;
  if (!values) return blk;
  q->init = BK_INIT_VALUES;
  q->init_values = values;
  p->first(r->kind, values, count, r->n, sublayer);
  return blk;
}

/* Fills in a connection of a sublayer, or of the head, with its parameters. The norm in front of F
 * is the caller's business: its name is the sublayer's. */
static void connection(builder *b, bk_connection *r, const bk_connection_kind *kind, int sublayer,
                       const char *prefix) {
  const bk_model_config *c = b->c;
  r->kind = kind;
  r->n = kind->max_streams > 1 ? (int)bk_model_streams(b->m) : 1;
  r->iters = (int)c->hc_sinkhorn_iters;
  r->width = c->hidden_size;
  r->hc_eps = kind->signed_maps ? 0.0 : c->hc_eps;
  r->norm_eps = c->rms_norm_eps;
  for (int i = 0; kind->params[i].name; i++)
    r->param[i] = connection_param(b, r, &kind->params[i], sublayer, prefix);
}

/* All sublayers have the kind that the configuration names. */
static void sublayer_connection(builder *b, bk_sublayer *s, const char *prefix) {
  connection(b, &s->connection, bk_connection_kind_of((bk_hc_kind)b->c->residual), s->index,
             prefix);
}

/* ---- sublayers ---- */
/* The blocks come in the order of a checkpoint: norm, queries, latent vector, its expansion,
 * output, then the connection's. */
static void attention(builder *b, bk_sublayer *s) {
  const bk_model_config *c = b->c;
  bk_mla_params *a = &s->mla;
  int64_t C = c->hidden_size, H = c->num_attention_heads,
          D = c->qk_nope_head_dim + c->qk_rope_head_dim;
  s->ops = &bk_mla_ops;
  s->connection.norm = norm(b, C, "input_layernorm.weight");
  if (c->q_lora_rank) {
    a->q_a = matrix(b, MATRIX, c->q_lora_rank, C, "self_attn.q_a_proj.weight");
    a->q_norm = norm(b, c->q_lora_rank, "self_attn.q_a_layernorm.weight");
    a->q_b = matrix(b, MATRIX, H * D, c->q_lora_rank, "self_attn.q_b_proj.weight");
  } else {
    a->q = matrix(b, MATRIX, H * D, C, "self_attn.q_proj.weight");
  }
  a->kv_a = matrix(b, MATRIX, c->kv_lora_rank + c->qk_rope_head_dim, C,
                   "self_attn.kv_a_proj_with_mqa.weight");
  a->kv_norm = norm(b, c->kv_lora_rank, "self_attn.kv_a_layernorm.weight");
  a->kv_b = matrix(b, MATRIX, H * (c->qk_nope_head_dim + c->v_head_dim), c->kv_lora_rank,
                   "self_attn.kv_b_proj.weight");
  a->o = matrix(b, MATRIX, C, H * c->v_head_dim, "self_attn.o_proj.weight");
  sublayer_connection(b, s, "hc_attn_");
}

/* The two halves of gate_up are two tensors of a checkpoint. */
static void mlp(builder *b, bk_mlp_params *m, int64_t width, const char *name) {
  int64_t C = b->c->hidden_size;
  m->width = width;
  m->gate_up = block_2d(b, MATRIX, 2 * width, C);
  m->down = block_2d(b, MATRIX, C, width);
  param(b, m->gate_up, 0, 2, (int64_t[]){width, C}, "%s.gate_proj.weight", name);
  param(b, m->gate_up, (size_t)(width * C), 2, (int64_t[]){width, C}, "%s.up_proj.weight", name);
  param(b, m->down, 0, 2, (int64_t[]){C, width}, "%s.down_proj.weight", name);
}

/* Each expert has its gate rows, then its up rows, so that one grouped product makes both. */
static void experts(builder *b, bk_moe_params *m) {
  int64_t C = b->c->hidden_size, E = b->c->n_routed_experts, I = b->c->moe_intermediate_size;
  m->gate_up = block(b, MATRIX, 3, (int64_t[]){E, 2 * I, C});
  m->down = block(b, MATRIX, 3, (int64_t[]){E, C, I});
  for (int64_t e = 0; e < E; e++) {
    size_t gate = (size_t)(e * 2 * I * C);
    param(b, m->gate_up, gate, 2, (int64_t[]){I, C}, "mlp.experts.%d.gate_proj.weight", (int)e);
    param(b, m->gate_up, gate + (size_t)(I * C), 2, (int64_t[]){I, C},
          "mlp.experts.%d.up_proj.weight", (int)e);
    param(b, m->down, (size_t)(e * C * I), 2, (int64_t[]){C, I}, "mlp.experts.%d.down_proj.weight",
          (int)e);
  }
}

/* The router stays in ct whatever the storage dtype is, so that no rounding of its weights changes
 * the choice of experts. The shared experts are one MLP whose width is the sum of theirs. */
static void moe(builder *b, bk_sublayer *s) {
  const bk_model_config *c = b->c;
  s->ops = &bk_moe_ops;
  s->moe_layer = b->m->parts->n_moe++;
  s->moe.gate = matrix(b, MATRIX_CT, c->n_routed_experts, c->hidden_size, "mlp.gate.weight");
  s->moe.bias = constant(b, BIAS, c->n_routed_experts, 0.0, "mlp.gate.e_score_correction_bias");
  experts(b, &s->moe);
  if (c->n_shared_experts)
    mlp(b, &s->moe.shared, c->n_shared_experts * c->moe_intermediate_size, "mlp.shared_experts");
}

/* The first layers are dense (first_k_dense_replace), the others have experts. */
static void feed_forward(builder *b, bk_sublayer *s) {
  s->connection.norm = norm(b, b->c->hidden_size, "post_attention_layernorm.weight");
  if (s->index / 2 < b->c->first_k_dense_replace) {
    s->ops = &bk_mlp_ops;
    mlp(b, &s->mlp, b->c->intermediate_size, "mlp");
  } else {
    moe(b, s);
  }
  sublayer_connection(b, s, "hc_ffn_");
}

/* index counts sublayers of the whole model; two of them are one layer of the checkpoint. */
static void sublayer(builder *b, bk_sublayer *s, int index) {
  s->config = b->c;
  s->index = b->sublayer = index;
  s->moe_layer = -1;
  snprintf(b->prefix, sizeof b->prefix, "model.layers.%d.", index / 2);
  if (index % 2 == 0) attention(b, s);
  else feed_forward(b, s);
}

/* ---- ends ---- */
/* The final norm, the learned head's parameters where there is one, and lm_head, which has no
 * "model." in front of its name. */
static void head(builder *b) {
  const bk_model_config *c = b->c;
  struct bk_model_parts *parts = b->m->parts;
  b->sublayer = 2 * (int)c->num_hidden_layers;
  snprintf(b->prefix, sizeof b->prefix, "model.");
  parts->head.norm = norm(b, c->hidden_size, "norm.weight");
  connection(b, &parts->head, bk_model_head_kind(c), 0, "hc_head_");
  b->prefix[0] = '\0';
  parts->lm_head = matrix(b, MATRIX, c->vocab_size, c->hidden_size, "lm_head.weight");
}

/* One tensor for the loads of all layers, so that one fill zeroes them at the start of a step. */
static void expert_loads(builder *b) {
  struct bk_model_parts *parts = b->m->parts;
  if (!parts->n_moe) return;
  parts->load =
      reserve(b, BK_MEM_WORKSPACE, BK_I32, 2, (int64_t[]){parts->n_moe, b->c->n_routed_experts});
  for (int i = 0; i < b->m->n_sublayers; i++) {
    bk_sublayer *s = &b->m->sublayers[i];
    if (s->moe_layer < 0) continue;
    bk_tensor row = bk_tensor_slice(parts->load, 0, s->moe_layer, 1);
    s->moe.load = bk_tensor_reshape(row, 1, (int64_t[]){b->c->n_routed_experts});
  }
}

/* The chunk whose sublayers begin at that place in the list. Chunks do not overlap, so that there
 * is one for each place at which a chunk begins. */
static int chunk_at(const bk_model *m, int first) {
  for (int i = 0; i < m->options.n_chunks; i++)
    if (bk_model_chunk_first(m, i) == first) return i;
  return -1;
}

/* Builds the sublayers of the chunks by their place in the model, so that parameters come in the
 * order of checkpoints. */
static void all_sublayers(builder *b) {
  bk_model *m = b->m;
  for (int at = 0; at < m->n_sublayers;) {
    bk_chunk_range range = m->options.chunks[chunk_at(m, at)];
    for (int64_t s = range.begin; s < range.end; s++) sublayer(b, &m->sublayers[at++], (int)s);
  }
}

/* Whether one of the chunks has that sublayer. */
static bool holds(const bk_model *m, int64_t sublayer) {
  for (int i = 0; i < m->options.n_chunks; i++)
    if (m->options.chunks[i].begin <= sublayer && sublayer < m->options.chunks[i].end) return true;
  return false;
}

/* Shapes first, then memory: reserve_blocks needs all blocks to group them. */
bk_status bk_model_build(bk_model *m) {
  builder b = {.m = m, .c = &m->config};
  size_t n = (size_t)m->n_sublayers;
  m->blocks = bk_alloc_array(m->ctx, n * BLOCKS_PER_SUBLAYER + BLOCKS_OF_ENDS, sizeof *m->blocks);
  m->sublayers = bk_alloc_array(m->ctx, n, sizeof *m->sublayers);
  if (!m->blocks || !m->sublayers) return BK_ERR_MEMORY;
  if (holds(m, 0)) {
    b.sublayer = -1;
    snprintf(b.prefix, sizeof b.prefix, "model.");
    m->parts->embed =
        matrix(&b, MATRIX, m->config.vocab_size, m->config.hidden_size, "embed_tokens.weight");
  }
  all_sublayers(&b);
  if (holds(m, 2 * m->config.num_hidden_layers - 1)) head(&b);
  reserve_blocks(&b);
  m->step = reserve(&b, BK_MEM_WORKSPACE, m->ct, 1, (int64_t[]){BK_STEP_FIELDS});
  if (b.status == BK_OK) expert_loads(&b);
  return b.status;
}

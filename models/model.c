/* Creation and destruction of a model, and views of its parameters (model.h). A model that holds
 * only a part of the layers (for pipelines over ranks) is made the same way as a whole one: its
 * chunks say which sublayers it has, and everything else follows from them.
 *
 * With plan_only nothing gets memory: sizes are planned, and the device is asked for nothing. */
#include "models/model_priv.h"

#include "comm/comm.h"
#include "models/pipeline.h"

#include <string.h>

/* A range is [begin, end) of sublayers; the whole model has n of them. */
static bk_status check_range(bk_context *ctx, const bk_chunk_range *c, int64_t n) {
  if (c->begin >= 0 && c->begin < c->end && c->end <= n) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "sublayer range [%lld, %lld) is not within [0, %lld)",
                 (long long)c->begin, (long long)c->end, (long long)n);
}

/* A sublayer in two chunks would have its parameters twice. */
static bk_status check_apart(bk_context *ctx, const bk_chunk_range *a, const bk_chunk_range *b) {
  if (a->end <= b->begin || b->end <= a->begin) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "chunks [%lld, %lld) and [%lld, %lld) overlap",
                 (long long)a->begin, (long long)a->end, (long long)b->begin, (long long)b->end);
}

/* n_chunks 0 stands for a single chunk with all sublayers. A range past n_chunks that is filled in
 * is refused, since its author must have meant it. */
static bk_status check_chunks(bk_context *ctx, const bk_model_config *config, bk_model_options *o) {
  int64_t n = 2 * config->num_hidden_layers;
  for (int i = o->n_chunks < 0 ? 0 : o->n_chunks; i < BK_CHUNKS_MAX; i++)
    if (o->chunks[i].begin || o->chunks[i].end)
      return bk_fail(ctx, BK_ERR_ARGUMENT,
                     "a model of %d chunks: another one is given, [%lld, %lld)", o->n_chunks,
                     (long long)o->chunks[i].begin, (long long)o->chunks[i].end);
  if (o->n_chunks == 0) {
    o->n_chunks = 1;
    o->chunks[0] = (bk_chunk_range){0, n};
  }
  if (o->n_chunks < 0 || o->n_chunks > BK_CHUNKS_MAX)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "a model of %d chunks, 1 to %d can be", o->n_chunks,
                   BK_CHUNKS_MAX);
  for (int i = 0; i < o->n_chunks; i++) {
    BK_TRY(check_range(ctx, &o->chunks[i], n));
    for (int j = 0; j < i; j++) BK_TRY(check_apart(ctx, &o->chunks[j], &o->chunks[i]));
  }
  return BK_OK;
}

/* The chunks of the options become those of this rank in the pipeline, in the schedule's order. */
static bk_status take_stages(bk_context *ctx, bk_model_options *o) {
  const bk_pipeline *l = o->pipeline;
  if (!l) return BK_OK;
  if (o->n_chunks || (l->comm && o->comm != l->comm))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "a model in a pipeline has the pipeline's comm and chunks, and none of its own");
  const bk_schedule_rank *rank = &l->schedule->rank[l->p];
  o->n_chunks = l->schedule->chunks;
  for (int i = 0; i < o->n_chunks; i++)
    bk_pipeline_stage(l, rank->chunks[i].stage, &o->chunks[i].begin, &o->chunks[i].end);
  return BK_OK;
}

/* Fills in the chunks that the options leave open. */
static bk_status check_options(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                               bk_model_options *o) {
  if (!bk_dtype_is_float(dtype) || !(device->props.storage_dtypes & BK_DT(dtype))) {
    return bk_fail(device->ctx, BK_ERR_UNSUPPORTED, "device %s does not store models in %s",
                   device->backend->name, bk_dtype_name(dtype));
  }
  BK_TRY(take_stages(device->ctx, o));
  return check_chunks(device->ctx, config, o);
}

/* The order is that of the dependencies: the parameters say what memory is needed, the lanes bring
 * the stream with which it will be filled. */
static bk_status model_fill(bk_model *m) {
  m->parts = bk_alloc(m->ctx, sizeof *m->parts);
  if (!m->parts) return BK_ERR_MEMORY;
  for (int i = 0; i < m->options.n_chunks; i++) m->n_sublayers += bk_model_chunk_count(m, i);
  BK_TRY(bk_memory_create(m->device, &m->memory));
  BK_TRY(bk_model_build(m));
  BK_TRY(bk_lanes_init(&m->lanes, m->device, m->options.plan_only));
  m->stream = m->lanes.stream[BK_LANE_COMPUTE];
  if (m->options.plan_only) return BK_OK;
  BK_TRY(bk_memory_commit(m->memory));
  if (bk_model_replicas(m) == 1 || !m->n_shards) return BK_OK;
  m->parts->requests = bk_alloc_array(m->ctx, (size_t)m->n_shards, sizeof *m->parts->requests);
  return m->parts->requests ? bk_model_reserve_comm(m, 0) : BK_ERR_MEMORY;
}

/* The chunks may be given in any order; in model->sublayers the sublayers lie by their index. */
int bk_model_chunk_first(const bk_model *m, int chunk) {
  int first = 0;
  for (int i = 0; i < m->options.n_chunks; i++)
    if (m->options.chunks[i].begin < m->options.chunks[chunk].begin)
      first += bk_model_chunk_count(m, i);
  return first;
}

bk_status bk_model_check_pass(const bk_model *m, const char *who, int64_t seq_len) {
  int64_t all = 2 * m->config.num_hidden_layers, longest = m->config.max_position_embeddings;
  if (m->n_sublayers != all)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT,
                   "%s: the model is not whole: it has %d sublayers of %lld", who, m->n_sublayers,
                   (long long)all);
  if (seq_len <= longest) return BK_OK;
  return bk_fail(m->ctx, BK_ERR_ARGUMENT,
                 "%s: seq_len %lld: the model takes at most %lld (max_position_embeddings)", who,
                 (long long)seq_len, (long long)longest);
}

/* The weights are zeros until bk_model_init or a checkpoint fills them. */
bk_status bk_model_create(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                          const bk_model_options *options, bk_model **model) {
  bk_model_options o = options ? *options : (bk_model_options){0};
  BK_TRY(bk_model_config_validate(device->ctx, config));
  BK_TRY(check_options(device, config, dtype, &o));
  bk_model *m = bk_alloc(device->ctx, sizeof *m);
  if (!m) return BK_ERR_MEMORY;
  m->ctx = device->ctx;
  m->device = device;
  m->config = *config;
  m->dtype = dtype;
  m->ct = dtype == BK_F64 ? BK_F64 : BK_F32;
  m->options = o;
  bk_status status = model_fill(m);
  if (status != BK_OK) {
    bk_model_destroy(m);
    return status;
  }
  *model = m;
  return BK_OK;
}

/* The lanes first, which wait for work under way on the memory. */
void bk_model_destroy(bk_model *m) {
  if (!m) return;
  bk_lanes_fini(&m->lanes);
  bk_memory_destroy(m->memory);
  for (int i = 0; i < m->n_params; i++) bk_free(m->ctx, m->params[i].name);
  for (size_t i = 0; m->parts && i < m->parts->n_values; i++) bk_free(m->ctx, m->parts->values[i]);
  if (m->parts) bk_free(m->ctx, m->parts->values);
  if (m->parts) bk_free(m->ctx, m->parts->requests);
  bk_free(m->ctx, m->parts);
  bk_free(m->ctx, m->params);
  bk_free(m->ctx, m->shards);
  bk_free(m->ctx, m->blocks);
  bk_free(m->ctx, m->sublayers);
  bk_free(m->ctx, m);
}

/* Planned bytes; the workspaces of the kernels, which grow with every runner that is made, count
 * too. */
size_t bk_model_bytes(const bk_model *m, bk_memory_class c) {
  return bk_memory_bytes(m->memory, c) + (c == BK_MEM_WORKSPACE ? bk_lanes_bytes(&m->lanes) : 0) +
         (c == BK_MEM_COMM ? bk_model_comm_bytes(m) : 0);
}

int bk_model_ranks(const bk_model *m) { return bk_comm_size(m->options.comm); }
int bk_model_rank(const bk_model *m) { return bk_comm_rank(m->options.comm); }

/* A pipeline that is only planned has no comm, but numbers. */
int bk_model_replicas(const bk_model *m) {
  const bk_pipeline *l = m->options.pipeline;
  return l ? l->n_replicas : bk_model_ranks(m);
}
int bk_model_replica(const bk_model *m) {
  const bk_pipeline *l = m->options.pipeline;
  return l ? l->replica : bk_model_rank(m);
}
struct bk_comm *bk_model_replica_comm(const bk_model *m) {
  return m->options.pipeline ? m->options.pipeline->replicas : m->options.comm;
}

const bk_param *bk_model_find(const bk_model *model, const char *name) {
  for (int i = 0; i < model->n_params; i++) {
    if (strcmp(model->params[i].name, name) == 0) return &model->params[i];
  }
  return NULL;
}

/* A parameter's part of one of its block's tensors, contiguous, in the checkpoint's shape. */
static bk_tensor view(const bk_param *p, bk_tensor block) {
  if (!bk_tensor_present(&block)) return block;
  bk_tensor t = bk_tensor_make(block.dtype, p->ndim, p->shape);
  t.buffer = block.buffer;
  t.offset = block.offset + p->element_offset * bk_dtype_size(block.dtype);
  return t;
}
bk_tensor bk_param_weight(const bk_model *m, const bk_param *p) {
  return view(p, m->blocks[p->block].weight);
}
bk_tensor bk_param_grad(const bk_model *m, const bk_param *p) {
  return view(p, m->blocks[p->block].grad);
}
bk_tensor bk_param_master(const bk_model *m, const bk_param *p) {
  return view(p, m->blocks[p->block].master);
}
bk_tensor bk_param_m(const bk_model *m, const bk_param *p) {
  return view(p, m->blocks[p->block].m);
}
bk_tensor bk_param_v(const bk_model *m, const bk_param *p) {
  return view(p, m->blocks[p->block].v);
}
bool bk_param_trainable(const bk_model *m, const bk_param *p) {
  return m->blocks[p->block].trainable;
}

/* 0: decays, in the storage dtype; 1: decays, in ct; 2: does not decay; 3: not trained. In a model
 * whose storage dtype is ct there is no group 1. */
int bk_param_block_group(const bk_model *m, const bk_param_block *b) {
  if (!b->trainable) return 3;
  return !b->decay ? 2 : b->weight.dtype == m->dtype ? 0 : 1;
}

/* The result is the model's own memory, a row of parts->load, and not a copy. */
bk_tensor bk_model_expert_load(const bk_model *model, int moe_layer) {
  bk_tensor row = bk_tensor_slice(model->parts->load, 0, moe_layer, 1);
  return bk_tensor_reshape(row, 1, (int64_t[]){model->config.n_routed_experts});
}

/* ---- what programs ask: birkhoff/model.h ---- */

const bk_model_config *bk_model_config_of(const bk_model *m) { return &m->config; }
bk_dtype bk_model_dtype(const bk_model *m) { return m->dtype; }
int bk_model_param_count(const bk_model *m) { return m->n_params; }

/* Parameters are numbered in the order of the checkpoint. */
static bk_status param_of(const bk_model *m, int i, const bk_param **p) {
  if (i < 0 || i >= m->n_params)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT, "parameter %d: the model has 0 to %d", i,
                   m->n_params - 1);
  *p = &m->params[i];
  return BK_OK;
}

_Static_assert(BK_PARAM_MAX_DIMS == BK_MAX_DIMS, "a parameter has the dimensions of a tensor");

bk_status bk_model_param_info(const bk_model *m, int i, bk_param_info *info) {
  const bk_param *p = NULL;
  BK_TRY(param_of(m, i, &p));
  *info = (bk_param_info){
      .name = p->name, .ndim = p->ndim, .count = 1, .trainable = bk_param_trainable(m, p)};
  for (int d = 0; d < p->ndim; d++) {
    info->shape[d] = p->shape[d];
    info->count *= p->shape[d];
  }
  return BK_OK;
}

/* A part that the model does not have (gradients of a model that is not trainable, the master of an
 * fp32 weight) is an error; it does not read as zeros. */
static bk_status part_of(const bk_model *m, int i, bk_param_part part, bk_tensor *t) {
  static bk_tensor (*const views[])(const bk_model *, const bk_param *) = {
      [BK_PARAM_WEIGHT] = bk_param_weight,
      [BK_PARAM_GRAD] = bk_param_grad,
      [BK_PARAM_MASTER] = bk_param_master,
      [BK_PARAM_M] = bk_param_m,
      [BK_PARAM_V] = bk_param_v};
  static const char *const names[] = {"weight", "gradient", "master", "first moment",
                                      "second moment"};
  const bk_param *p = NULL;
  BK_TRY(param_of(m, i, &p));
  if ((unsigned)part >= BK_COUNT(views))
    return bk_fail(m->ctx, BK_ERR_ARGUMENT, "%s: there is no part %d of a parameter", p->name,
                   (int)part);
  *t = views[part](m, p);
  if (bk_model_replicas(m) > 1 && part != BK_PARAM_WEIGHT && bk_param_trainable(m, p))
    return bk_fail(m->ctx, BK_ERR_ARGUMENT, "%s: each of %d ranks has parts of its %s", p->name,
                   bk_model_replicas(m), names[part]);
  if (bk_tensor_present(t) && !m->options.plan_only) return BK_OK;
  return bk_fail(m->ctx, BK_ERR_ARGUMENT, "%s: this model has no %s of it", p->name, names[part]);
}

/* The values are row-major doubles. The call waits for the stream. */
bk_status bk_model_param_read(const bk_model *m, int i, bk_param_part part, double *values) {
  bk_tensor t;
  BK_TRY(part_of(m, i, part, &t));
  return bk_tensor_read_f64(m->stream, &t, values);
}

/* The values are rounded to the part's dtype. Writing a weight leaves its master as it was. */
bk_status bk_model_param_write(bk_model *m, int i, bk_param_part part, const double *values) {
  bk_tensor t;
  BK_TRY(part_of(m, i, part, &t));
  return bk_tensor_write_f64(m->stream, &t, values);
}

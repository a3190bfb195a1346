/* Creation and destruction of a model, views of its parameters: see model.h. */
#include "models/model_priv.h"

#include <string.h>

static bk_status check_options(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                               bk_model_options *o) {
  int64_t n = 2 * config->num_hidden_layers;
  if (!bk_dtype_is_float(dtype) || !(device->props.storage_dtypes & BK_DT(dtype))) {
    return bk_fail(device->ctx, BK_ERR_UNSUPPORTED, "device %s does not store models in %s",
                   device->backend->name, bk_dtype_name(dtype));
  }
  if (o->end == 0) o->end = n;
  if (o->begin < 0 || o->begin >= o->end || o->end > n) {
    return bk_fail(device->ctx, BK_ERR_ARGUMENT,
                   "sublayer range [%lld, %lld) is not within [0, %lld)", (long long)o->begin,
                   (long long)o->end, (long long)n);
  }
  return BK_OK;
}

static bk_status model_fill(bk_model *m) {
  m->parts = bk_alloc(m->ctx, sizeof *m->parts);
  if (!m->parts) return BK_ERR_MEMORY;
  BK_TRY(bk_memory_create(m->device, &m->memory));
  BK_TRY(bk_model_build(m));
  BK_TRY(bk_stream_create(m->device, 0, &m->stream));
  BK_TRY(bk_graph_reserve(&m->parts->zero_graph, m, "zeroing the gradients", m->blocks,
                          m->options.trainable ? m->n_blocks : 0));
  return m->options.plan_only ? BK_OK : bk_memory_commit(m->memory);
}

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

void bk_model_destroy(bk_model *m) {
  if (!m) return;
  if (m->parts) bk_graph_fini(&m->parts->zero_graph);
  bk_stream_destroy(m->stream);
  bk_memory_destroy(m->memory);
  for (int i = 0; i < m->n_params; i++) bk_free(m->ctx, m->params[i].name);
  for (size_t i = 0; m->parts && i < m->parts->n_values; i++) bk_free(m->ctx, m->parts->values[i]);
  if (m->parts) bk_free(m->ctx, m->parts->values);
  bk_free(m->ctx, m->parts);
  bk_free(m->ctx, m->params);
  bk_free(m->ctx, m->blocks);
  bk_free(m->ctx, m->sublayers);
  bk_free(m->ctx, m);
}

size_t bk_model_bytes(const bk_model *model, bk_memory_class c) {
  return bk_memory_bytes(model->memory, c);
}

const bk_param *bk_model_find(const bk_model *model, const char *name) {
  for (int i = 0; i < model->n_params; i++) {
    if (strcmp(model->params[i].name, name) == 0) return &model->params[i];
  }
  return NULL;
}

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

static bk_status zero_grads(void *arg) {
  bk_model *model = arg;
  for (int i = 0; i < model->n_blocks; i++) {
    bk_param_block *b = &model->blocks[i];
    b->fresh = b->by_product;
    if (!b->fresh && bk_tensor_present(&b->grad)) BK_TRY(bk_tensor_zero(model->stream, &b->grad));
  }
  return BK_OK;
}

bk_status bk_model_zero_grads(bk_model *model) {
  return bk_graph_run(&model->parts->zero_graph, bk_model_may_graph(model), zero_grads, model);
}

bk_status bk_model_settle_grads(bk_model *model) {
  for (int i = 0; i < model->n_blocks; i++) {
    bk_param_block *b = &model->blocks[i];
    if (b->fresh) BK_TRY(bk_tensor_zero(model->stream, &b->grad));
    b->fresh = false;
  }
  return BK_OK;
}

int bk_param_block_group(const bk_model *m, const bk_param_block *b) {
  if (!b->trainable) return 3;
  return !b->decay ? 2 : b->weight.dtype == m->dtype ? 0 : 1;
}

bool bk_param_block_adds(bk_param_block *block, bool preparing) {
  bool adds = !block->fresh;
  if (preparing) block->by_product = true;
  else block->fresh = false;
  return adds;
}

bk_tensor bk_model_expert_load(const bk_model *model, int moe_layer) {
  bk_tensor row = bk_tensor_slice(model->parts->load, 0, moe_layer, 1);
  return bk_tensor_reshape(row, 1, (int64_t[]){model->config.n_routed_experts});
}

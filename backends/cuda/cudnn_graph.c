/* See cudnn_graph.h. The operations that cuDNN's attention engines recognise are those of
 * NVIDIA's documentation of the graph API. */
#include "backends/cuda/cudnn.h"

#if defined(BK_CUDNN_HERE) && !defined(BK_CUDA_ON_HOST)

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backends/cuda/cudnn_graph.h"

typedef cudnnBackendDescriptor_t descriptor;

/* ---- the library ---- */

const char *bk_cudnn_api_find(bk_cudnn_api *api, const char **opened) {
  static const char *const names[] = {"libcudnn_graph.so.9", "libcudnn.so.9", NULL};
  void *symbol, *library = bk_cuda_library_open(names, opened);
  if (!library) return "libcudnn.so.9 is not found";
#define FIND(name)                                         \
  symbol = bk_cuda_library_symbol(library, "cudnn" #name); \
  if (!symbol) return "cudnn" #name " is missing";         \
  memcpy(&api->name, &symbol, sizeof symbol); /* data to function, as dlsym wants */
  BK_CUDNN_FUNCTIONS(FIND)
#undef FIND
  return NULL;
}

/* ---- descriptors: the first failure stays in `status`, and later calls do nothing ---- */

#define MAX_OPERATIONS 32

typedef struct graph {
  bk_cudnn_plan *plan;
  cudnnStatus_t status;
  descriptor operations[MAX_OPERATIONS];
  int n_operations;
  int64_t b, h, t, next_id;
} graph;

enum { ID_SCALE = 100, ID_MASKED, ID_ONE, ID_SUMS, ID_VIRTUAL };

static descriptor create(graph *g, cudnnBackendDescriptorType_t type) {
  bk_cudnn_plan *p = g->plan;
  descriptor d = NULL;
  if (g->status != CUDNN_STATUS_SUCCESS) return NULL;
  if (p->n_made == BK_CUDNN_DESCRIPTORS) g->status = CUDNN_STATUS_NOT_SUPPORTED;
  else g->status = p->api->BackendCreateDescriptor(type, &d);
  if (g->status == CUDNN_STATUS_SUCCESS) p->made[p->n_made++] = d;
  return d;
}

static void set(graph *g, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values) {
  if (g->status == CUDNN_STATUS_SUCCESS)
    g->status = g->plan->api->BackendSetAttribute(d, name, type, count, values);
}

static void set_descriptor(graph *g, descriptor d, cudnnBackendAttributeName_t name,
                           descriptor value) {
  set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finalize(graph *g, descriptor d) {
  if (g->status == CUDNN_STATUS_SUCCESS) g->status = g->plan->api->BackendFinalize(d);
}

static void add_operation(graph *g, descriptor d) {
  finalize(g, d);
  if (g->status != CUDNN_STATUS_SUCCESS) return;
  if (g->n_operations == MAX_OPERATIONS) g->status = CUDNN_STATUS_NOT_SUPPORTED;
  else g->operations[g->n_operations++] = d;
}

/* ---- tensors ---- */

typedef struct shape {
  int64_t size[4], stride[4];
} shape;

typedef enum kind { REAL, VIRTUAL, BY_VALUE } kind;

static descriptor tensor(graph *g, int64_t id, cudnnDataType_t type, shape s, kind kind) {
  const int64_t alignment = 16;
  const bool is_virtual = kind == VIRTUAL, by_value = kind == BY_VALUE;
  descriptor d = create(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
  set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, s.size);
  set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, s.stride);
  set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
  set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
  set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
  finalize(g, d);
  return d;
}

static shape packed(int64_t b, int64_t h, int64_t rows, int64_t columns) {
  return (shape){{b, h, rows, columns}, {h * rows * columns, rows * columns, columns, 1}};
}

/* [B,T,H,D] as [B,H,T,D]. */
static shape heads_of(const bk_tensor *t) {
  return (shape){{t->shape[0], t->shape[2], t->shape[1], t->shape[3]},
                 {t->stride[0], t->stride[2], t->stride[1], 1}};
}

static shape transposed(shape s) {
  return (shape){{s.size[0], s.size[1], s.size[3], s.size[2]},
                 {s.stride[0], s.stride[1], s.stride[3], s.stride[2]}};
}

static descriptor operand(graph *g, int64_t id, shape s) {
  return tensor(g, id, CUDNN_DATA_BFLOAT16, s, REAL);
}

/* lse [B,H,T] */
static descriptor row_values(graph *g, int64_t id, const bk_tensor *t) {
  const shape s = {{t->shape[0], t->shape[1], t->shape[2], 1},
                   {t->stride[0], t->stride[1], t->stride[2], 1}};
  return tensor(g, id, CUDNN_DATA_FLOAT, s, REAL);
}

static descriptor number(graph *g, int64_t id) {
  return tensor(g, id, CUDNN_DATA_FLOAT, packed(1, 1, 1, 1), BY_VALUE);
}

/* Virtual: a score for each query and key; a value for each query. */
static descriptor scores(graph *g, cudnnDataType_t type) {
  return tensor(g, g->next_id++, type, packed(g->b, g->h, g->t, g->t), VIRTUAL);
}
static descriptor column(graph *g) {
  return tensor(g, g->next_id++, CUDNN_DATA_FLOAT, packed(g->b, g->h, g->t, 1), VIRTUAL);
}

/* ---- operations ---- */

static descriptor product(graph *g, descriptor a, descriptor b, descriptor c) {
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  descriptor how = create(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  finalize(g, how);
  descriptor op = create(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  add_operation(g, op);
  return c;
}

static descriptor reduce(graph *g, cudnnReduceTensorOp_t operation, descriptor x, descriptor y) {
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  descriptor how = create(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &operation);
  set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  finalize(g, how);
  descriptor op = create(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
  add_operation(g, op);
  return y;
}

typedef struct pointwise {
  cudnnPointwiseMode_t mode;
  cudnnDataType_t compute;
  descriptor x, b, t, y; /* b, t: NULL where the mode takes none */
  int64_t axis;          /* GEN_INDEX only */
} pointwise;

static descriptor apply(graph *g, pointwise p) {
  descriptor how = create(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &p.mode);
  set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &p.compute);
  if (p.mode == CUDNN_POINTWISE_GEN_INDEX)
    set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &p.axis);
  finalize(g, how);
  descriptor op = create(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, p.x);
  if (p.b) set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, p.b);
  if (p.t) set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, p.t);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, p.y);
  add_operation(g, op);
  return p.y;
}

static descriptor unary(graph *g, cudnnPointwiseMode_t mode, descriptor x, descriptor y) {
  return apply(g, (pointwise){.mode = mode, .compute = CUDNN_DATA_FLOAT, .x = x, .y = y});
}

static descriptor binary(graph *g, cudnnPointwiseMode_t mode, descriptor x, descriptor b,
                         descriptor y) {
  return apply(g, (pointwise){.mode = mode, .compute = CUDNN_DATA_FLOAT, .x = x, .b = b, .y = y});
}

static descriptor reshape(graph *g, descriptor x, descriptor y) {
  descriptor op = create(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
  set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
  add_operation(g, op);
  return y;
}

/* x where the query sees the key, else minus infinity. */
static descriptor causal(graph *g, descriptor x) {
  descriptor row = scores(g, CUDNN_DATA_INT32), col = scores(g, CUDNN_DATA_INT32),
             seen = scores(g, CUDNN_DATA_BOOLEAN);
  apply(g, (pointwise){.mode = CUDNN_POINTWISE_GEN_INDEX,
                       .compute = CUDNN_DATA_FLOAT,
                       .x = x,
                       .y = row,
                       .axis = 2});
  apply(g, (pointwise){.mode = CUDNN_POINTWISE_GEN_INDEX,
                       .compute = CUDNN_DATA_FLOAT,
                       .x = x,
                       .y = col,
                       .axis = 3});
  apply(g, (pointwise){.mode = CUDNN_POINTWISE_CMP_GE,
                       .compute = CUDNN_DATA_BOOLEAN,
                       .x = row,
                       .b = col,
                       .y = seen});
  return apply(g, (pointwise){.mode = CUDNN_POINTWISE_BINARY_SELECT,
                              .compute = CUDNN_DATA_FLOAT,
                              .x = x,
                              .b = number(g, ID_MASKED),
                              .t = seen,
                              .y = scores(g, CUDNN_DATA_FLOAT)});
}

static void build_forward(graph *g, const bk_attention_args *a) {
  descriptor q = operand(g, BK_CUDNN_Q + 1, heads_of(&a->q)),
             k = operand(g, BK_CUDNN_K + 1, transposed(heads_of(&a->k)));
  descriptor v = operand(g, BK_CUDNN_V + 1, heads_of(&a->v)),
             o = operand(g, BK_CUDNN_O + 1, heads_of(&a->o));
  descriptor lse = row_values(g, BK_CUDNN_LSE + 1, &a->lse);
  descriptor s = product(g, q, k, scores(g, CUDNN_DATA_FLOAT));
  descriptor z = causal(
      g, binary(g, CUDNN_POINTWISE_MUL, s, number(g, ID_SCALE), scores(g, CUDNN_DATA_FLOAT)));
  descriptor m = reduce(g, CUDNN_REDUCE_TENSOR_MAX, z, column(g));
  descriptor e = unary(g, CUDNN_POINTWISE_EXP,
                       binary(g, CUDNN_POINTWISE_SUB, z, m, scores(g, CUDNN_DATA_FLOAT)),
                       scores(g, CUDNN_DATA_FLOAT));
  descriptor l = reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, column(g));
  binary(g, CUDNN_POINTWISE_ADD, m, unary(g, CUDNN_POINTWISE_LOG, l, column(g)), lse);
  product(g, binary(g, CUDNN_POINTWISE_DIV, e, l, scores(g, CUDNN_DATA_BFLOAT16)), v, o);
}

/* p^T in bf16, the left side of a product over queries. */
static descriptor turned(graph *g, descriptor x) {
  return reshape(g, x,
                 tensor(g, g->next_id++, CUDNN_DATA_BFLOAT16,
                        transposed(packed(g->b, g->h, g->t, g->t)), VIRTUAL));
}

static descriptor sums_of(graph *g, descriptor dout, descriptor o, int64_t dv) {
  const shape s = {{g->b, g->h, g->t, dv}, {g->h * g->t * dv, g->t * dv, g->h * dv, 1}};
  descriptor x = binary(g, CUDNN_POINTWISE_MUL, dout, o,
                        tensor(g, g->next_id++, CUDNN_DATA_FLOAT, s, VIRTUAL));
  return binary(g, CUDNN_POINTWISE_MUL, reduce(g, CUDNN_REDUCE_TENSOR_ADD, x, column(g)),
                number(g, ID_ONE),
                tensor(g, ID_SUMS, CUDNN_DATA_FLOAT, packed(g->b, g->h, g->t, 1), REAL));
}

static void build_backward(graph *g, const bk_attention_bwd_args *a) {
  const shape kt = transposed(heads_of(&a->k));
  descriptor q = operand(g, BK_CUDNN_Q + 1, heads_of(&a->q)), k = operand(g, BK_CUDNN_K + 1, kt);
  descriptor v = operand(g, BK_CUDNN_V + 1, transposed(heads_of(&a->v))),
             o = operand(g, BK_CUDNN_O + 1, heads_of(&a->o));
  descriptor dout = operand(g, BK_CUDNN_DOUT + 1, heads_of(&a->dout)),
             lse = row_values(g, BK_CUDNN_LSE + 1, &a->lse);
  descriptor scale = number(g, ID_SCALE), r = sums_of(g, dout, o, a->v.shape[3]);

  descriptor s = binary(g, CUDNN_POINTWISE_MUL, product(g, q, k, scores(g, CUDNN_DATA_FLOAT)),
                        scale, scores(g, CUDNN_DATA_FLOAT));
  descriptor p =
      unary(g, CUDNN_POINTWISE_EXP,
            causal(g, binary(g, CUDNN_POINTWISE_SUB, s, lse, scores(g, CUDNN_DATA_FLOAT))),
            scores(g, CUDNN_DATA_FLOAT));
  product(g, turned(g, p), dout, operand(g, BK_CUDNN_DV + 1, heads_of(&a->dv)));

  descriptor dp = binary(g, CUDNN_POINTWISE_SUB, product(g, dout, v, scores(g, CUDNN_DATA_FLOAT)),
                         r, scores(g, CUDNN_DATA_FLOAT));
  descriptor ds = binary(g, CUDNN_POINTWISE_MUL,
                         binary(g, CUDNN_POINTWISE_MUL, dp, p, scores(g, CUDNN_DATA_FLOAT)), scale,
                         scores(g, CUDNN_DATA_FLOAT));
  product(g, turned(g, ds), q, operand(g, BK_CUDNN_DK + 1, heads_of(&a->dk)));
  descriptor k_rows =
      reshape(g, k, tensor(g, g->next_id++, CUDNN_DATA_BFLOAT16, transposed(kt), VIRTUAL));
  product(g, ds, k_rows, operand(g, BK_CUDNN_DQ + 1, heads_of(&a->dq)));
}

/* ---- plans ---- */

static int64_t numbers_of(graph *g, descriptor d, cudnnBackendAttributeName_t name,
                          cudnnBackendAttributeType_t type, int64_t most, void *values) {
  int64_t n = 0;
  if (g->status == CUDNN_STATUS_SUCCESS)
    g->status = g->plan->api->BackendGetAttribute(d, name, type, most, &n, values);
  return g->status == CUDNN_STATUS_SUCCESS ? n < most ? n : most : 0;
}

/* The engine of a configuration: its number into the plan's name, and whether it says that its
 * bits may differ from run to run. */
static bool engine_is_deterministic(graph *g, descriptor config) {
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT] = {0};
  int64_t index = -1;
  bool deterministic = true;
  descriptor engine = create(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  numbers_of(g, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
  numbers_of(g, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index);
  const int64_t n = numbers_of(g, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                               CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT, notes);
  for (int64_t i = 0; i < n; i++)
    deterministic = deterministic && notes[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
  snprintf(g->plan->name, sizeof g->plan->name, "engine %lld", (long long)index);
  return deterministic && g->status == CUDNN_STATUS_SUCCESS;
}

/* Whether a configuration may serve: what it says of its engine and of the workspace before its
 * code is compiled. */
static bool config_serves(graph *g, descriptor config, size_t limit) {
  int64_t n, bytes = 0;
  if (!engine_is_deterministic(g, config)) return false;
  if (g->plan->api->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE,
                                        CUDNN_TYPE_INT64, 1, &n, &bytes) == CUDNN_STATUS_SUCCESS)
    g->plan->workspace = (size_t)bytes;
  return g->plan->workspace <= limit;
}

/* A plan from a configuration; the graph's status says how that went. */
static void plan_from(graph *g, bk_cudnn_target target, descriptor config, size_t limit) {
  int64_t bytes = 0;
  g->plan->workspace = 0;
  if (!config_serves(g, config, limit)) {
    if (g->status == CUDNN_STATUS_SUCCESS) g->status = CUDNN_STATUS_NOT_SUPPORTED;
    return;
  }
  descriptor plan = create(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  if (target.handle)
    set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &target.handle);
  else set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target.properties);
  finalize(g, plan);
  numbers_of(g, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &bytes);
  if (g->status == CUDNN_STATUS_SUCCESS && (uint64_t)bytes > limit)
    g->status = CUDNN_STATUS_NOT_SUPPORTED;
  g->plan->plan = plan;
  if (g->status == CUDNN_STATUS_SUCCESS) g->plan->workspace = (size_t)bytes;
}

static descriptor operation_graph(graph *g, bk_cudnn_target target) {
  descriptor d = create(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (target.handle)
    set(g, d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &target.handle);
  set(g, d, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_operations,
      g->operations);
  finalize(g, d);
  return d;
}

#define MAX_CONFIGS 8

/* The heuristic's first configuration that is deterministic, finalizes and stays within the
 * limit. */
static void choose(graph *g, bk_cudnn_target target, size_t limit) {
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  descriptor configs[MAX_CONFIGS], ops = operation_graph(g, target),
                                   heuristic = create(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  set_descriptor(g, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, ops);
  set(g, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (!target.handle)
    set_descriptor(g, heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target.properties);
  finalize(g, heuristic);
  for (int i = 0; i < MAX_CONFIGS; i++) configs[i] = create(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  const int64_t n = numbers_of(g, heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                               CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, configs);
  if (g->status != CUDNN_STATUS_SUCCESS) return;
  g->status = CUDNN_STATUS_NOT_SUPPORTED;
  for (int64_t i = 0; i < n && g->status != CUDNN_STATUS_SUCCESS; i++) {
    g->status = CUDNN_STATUS_SUCCESS;
    plan_from(g, target, configs[i], limit);
  }
}

static graph begin(const bk_cudnn_api *api, bk_cudnn_plan *plan, const bk_tensor *q, double scale) {
  *plan = (bk_cudnn_plan){.api = api, .scale = (float)scale, .masked = -INFINITY};
  return (graph){.plan = plan,
                 .status = CUDNN_STATUS_SUCCESS,
                 .b = q->shape[0],
                 .h = q->shape[2],
                 .t = q->shape[1],
                 .next_id = ID_VIRTUAL};
}

static cudnnStatus_t end(graph *g, bk_cudnn_target target, size_t limit) {
  bk_cudnn_plan *p = g->plan;
  choose(g, target, limit);
  p->sums = (p->workspace + 255) / 256 * 256;
  p->bytes = p->sums;
  if (g->status != CUDNN_STATUS_SUCCESS) bk_cudnn_plan_release(p);
  return g->status;
}

cudnnStatus_t bk_cudnn_plan_forward(const bk_cudnn_api *api, bk_cudnn_target target,
                                    const bk_attention_args *a, size_t limit, bk_cudnn_plan *plan) {
  graph g = begin(api, plan, &a->q, a->scale);
  build_forward(&g, a);
  return end(&g, target, limit);
}

cudnnStatus_t bk_cudnn_plan_backward(const bk_cudnn_api *api, bk_cudnn_target target,
                                     const bk_attention_bwd_args *a, size_t limit,
                                     bk_cudnn_plan *plan) {
  graph g = begin(api, plan, &a->q, a->scale);
  build_backward(&g, a);
  cudnnStatus_t status = end(&g, target, limit);
  if (status == CUDNN_STATUS_SUCCESS) plan->bytes += (size_t)(g.b * g.h * g.t) * sizeof(float);
  return status;
}

void bk_cudnn_plan_release(bk_cudnn_plan *plan) {
  while (plan->n_made > 0) (void)plan->api->BackendDestroyDescriptor(plan->made[--plan->n_made]);
  plan->plan = NULL;
}

/* ---- running ---- */

static cudnnStatus_t fill_pack(bk_cudnn_plan *p, descriptor pack, char *const *data, int count,
                               char *workspace) {
  static const float one = 1.0f;
  /* numbers are read from the host, when the plan is run */
  const void *at[BK_CUDNN_OPERANDS] = {0};
  int64_t ids[BK_CUDNN_OPERANDS];
  int n = 0;
  for (; n < count; n++) ids[n] = n + 1, at[n] = data[n];
  ids[n] = ID_SCALE, at[n++] = &p->scale;
  ids[n] = ID_MASKED, at[n++] = &p->masked;
  if (count == BK_CUDNN_BACKWARD_COUNT) ids[n] = ID_ONE, at[n++] = &one;
  if (count == BK_CUDNN_BACKWARD_COUNT) ids[n] = ID_SUMS, at[n++] = workspace + p->sums;
  cudnnStatus_t status = p->api->BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
                                                     CUDNN_TYPE_INT64, n, ids);
  if (status == CUDNN_STATUS_SUCCESS)
    status = p->api->BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                         CUDNN_TYPE_VOID_PTR, n, at);
  if (status == CUDNN_STATUS_SUCCESS)
    status = p->api->BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                                         CUDNN_TYPE_VOID_PTR, 1, &workspace);
  return status == CUDNN_STATUS_SUCCESS ? p->api->BackendFinalize(pack) : status;
}

cudnnStatus_t bk_cudnn_plan_run(bk_cudnn_plan *plan, cudnnHandle_t handle, char *const *data,
                                int count, char *workspace) {
  descriptor pack = NULL;
  cudnnStatus_t status =
      plan->api->BackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
  if (status != CUDNN_STATUS_SUCCESS) return status;
  status = fill_pack(plan, pack, data, count, workspace);
  if (status == CUDNN_STATUS_SUCCESS) status = plan->api->BackendExecute(handle, plan->plan, pack);
  (void)plan->api->BackendDestroyDescriptor(pack);
  return status;
}

#endif

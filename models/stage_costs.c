/* What a stage needs (birkhoff/parallel.h): it is planned as a model with one chunk, and everything
 * is read off that. Seconds are those of a roofline: an op takes as long as its products or its
 * bytes do, whichever is longer (Williams et al., doi 10.1145/1498765.1498785), with flops and
 * bytes of the op's own row in runtime/ops.def. */
#include "models/stage_costs.h"

#include "models/chunk.h"
#include "models/model_priv.h"

/* ---- seconds ---- */

/* What runs on units for matrix products. */
static bool multiplies(bk_op op) {
  return op == BK_OP_GEMM || op == BK_OP_GROUPED_GEMM || op == BK_OP_GROUPED_WGRAD ||
         op == BK_OP_ATTENTION || op == BK_OP_ATTENTION_BWD;
}

static double call_seconds(const bk_stage_options *o, const bk_call *c) {
  double flops = 0, bytes = 0;
  if (c->kind == BK_CALL_ZERO) bytes = (double)bk_tensor_bytes(c->args);
  if (c->kind == BK_CALL_OP) bk_op_cost(c->op, c->args, &flops, &bytes);
  double moved = bytes / o->bytes_per_s;
  double computed = multiplies(c->op) ? flops / o->flops_per_s : 0;
  return computed > moved ? computed : moved;
}

/* Adds the time of a program, by pass, and apart that of recompute. A program that the chunk does
 * not have is NULL. */
static void add_program(const bk_stage_options *o, const bk_program *p, double *by_pass,
                        double *rebuild) {
  for (int i = 0; p && i < p->n_pieces; i++)
    for (int k = p->pieces[i].begin; k < p->pieces[i].end; k++) {
      double seconds = call_seconds(o, &p->calls[k]);
      by_pass[p->pieces[i].pass] += seconds;
      if (p->pieces[i].part == BK_PART_REBUILD) *rebuild += seconds;
    }
}

/* A step has many micro-batches, so that those after the first count. The loss runs in F whatever
 * passes its pieces are of. */
static void find_seconds(const bk_stage_options *o, const bk_chunk *c, bk_stage_needs *n) {
  double forward[BK_PASSES] = {0}, backward[BK_PASSES] = {0};
  const int f[] = {BK_PROGRAM_FORWARD, BK_PROGRAM_LOSS + BK_MICRO_NEXT};
  const int b[] = {BK_PROGRAM_BACKWARD + BK_MICRO_NEXT, BK_PROGRAM_WGRAD + BK_MICRO_NEXT};
  for (int i = 0; i < 2; i++) {
    add_program(o, bk_chunk_program(c, 0, f[i]), forward, &n->rebuild);
    add_program(o, bk_chunk_program(c, 0, b[i]), backward, &n->rebuild);
  }
  for (int p = 0; p < BK_PASSES; p++) {
    n->seconds.f += forward[p];
    n->seconds.b += backward[p];
  }
  n->seconds.w = backward[BK_PASS_W];
}

/* ---- bytes ---- */

static double port_bytes(const bk_port *p) {
  return (double)bk_tensor_bytes(&p->streams) + (double)bk_tensor_bytes(&p->carry);
}

/* Both edges of a stage carry the same. */
static void find_edge(const bk_chunk *c, bk_stage_needs *n) {
  bk_port in = bk_chunk_input(c, 0), out = bk_chunk_output(c, 0);
  n->edge_bytes = port_bytes(bk_tensor_present(&in.streams) ? &in : &out);
}

static void find_bytes(const bk_model *m, const bk_chunk *one, const bk_chunk *two,
                       bk_stage_needs *n) {
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++)
    n->bytes[c] = bk_model_bytes(m, c) + bk_chunk_bytes(one, c);
  n->kernel_bytes = bk_lanes_bytes(&m->lanes);
  n->slot_bytes = bk_chunk_bytes(two, BK_MEM_ACTIVATIONS) - bk_chunk_bytes(one, BK_MEM_ACTIVATIONS);
}

static void find_parameters(const bk_model *m, bk_stage_needs *n) {
  const bk_model_config *c = &m->config;
  for (int i = 0; i < m->n_blocks; i++)
    n->parameters += (double)bk_tensor_count(&m->blocks[i].weight);
  for (int i = 0; i < m->n_sublayers; i++) n->expert_sublayers += m->sublayers[i].moe_layer >= 0;
  n->expert_parameters = (double)n->expert_sublayers * (double)c->n_routed_experts * 3 *
                         (double)c->hidden_size * (double)c->moe_intermediate_size;
}

/* ---- planning ---- */

static bk_status check(bk_context *ctx, const bk_model_config *c, const bk_stage_options *o) {
  int64_t ranks = o->expert_ranks ? o->expert_ranks : 1;
  if (!(o->flops_per_s > 0) || !(o->bytes_per_s > 0))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "stage: flops and bytes a second must be above 0");
  if (ranks < 1 || c->n_routed_experts % ranks ||
      c->n_routed_experts / ranks < c->num_experts_per_tok)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "stage: %lld ranks cannot share %lld experts of which a token chooses %lld",
                   (long long)ranks, (long long)c->n_routed_experts,
                   (long long)c->num_experts_per_tok);
  return BK_OK;
}

/* With balanced loads the ranks that share experts get as many rows as each of them has tokens and
 * choices, so that one rank is a model with fewer experts. */
static bk_model_config share_experts(const bk_model_config *config, int64_t ranks) {
  bk_model_config c = *config;
  if (ranks <= 1) return c;
  c.n_routed_experts /= ranks;
  c.n_group = c.topk_group = 1;
  return c;
}

/* Both chunks are of one range, and take the place of each other: only their bytes and programs are
 * looked at. */
static bk_status measure(bk_model *m, const bk_stage_options *o, bk_stage_needs *needs) {
  bk_chunk *one = NULL, *two = NULL;
  bk_chunk_options options = {.batch = o->batch,
                              .seq_len = o->seq_len,
                              .slots = 1,
                              .backward = true,
                              .defer_wgrad = o->defer_wgrad,
                              .head_rows = o->head_rows,
                              .hc_recompute = o->hc_recompute,
                              .recompute = o->recompute};
  bk_stage_needs n = {.seconds = {0}};
  bk_status status = bk_chunk_create(m, 0, &options, NULL, &one);
  options.slots = 2;
  if (status == BK_OK) status = bk_chunk_create(m, 0, &options, NULL, &two);
  if (status == BK_OK) {
    find_seconds(o, one, &n);
    find_edge(one, &n);
    find_bytes(m, one, two, &n);
    find_parameters(m, &n);
    *needs = n;
  }
  bk_chunk_destroy(two);
  bk_chunk_destroy(one);
  return status;
}

bk_status bk_stage_plan(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                        const bk_stage_options *o, bk_stage_needs *needs) {
  BK_TRY(check(device->ctx, config, o));
  bk_model_config c = share_experts(config, o->expert_ranks);
  bk_model_options options = {.trainable = true, .plan_only = true, .n_chunks = 1};
  options.chunks[0] = (bk_chunk_range){o->begin, o->end};
  bk_model *model = NULL;
  BK_TRY(bk_model_create(device, &c, dtype, &options, &model));
  bk_status status = measure(model, o, needs);
  bk_model_destroy(model);
  return status;
}

/* What one choice of plan_search.h takes: memory by class, and the time of a step. doc/parallel.md
 * says what is assumed. */
#include <math.h>

#include "tools/plan_search.h"

/* ---- stages that were planned ---- */

/* Stages of layers that are alike need the same, wherever they lie: those in the middle that have
 * as many sublayers and begin with the same kind. */
static void make_alike(const bk_model_config *c, bk_stage_options *o) {
  int64_t first = 2 * (c->first_k_dense_replace > 0 ? c->first_k_dense_replace : 1);
  int64_t by = (o->begin - first) / 2 * 2;
  if (o->begin < first || o->end == 2 * c->num_hidden_layers) return;
  o->begin -= by;
  o->end -= by;
}

static bool same_options(const bk_stage_options *a, const bk_stage_options *b) {
  return a->begin == b->begin && a->end == b->end && a->batch == b->batch &&
         a->hc_recompute == b->hc_recompute && a->recompute == b->recompute &&
         a->defer_wgrad == b->defer_wgrad && a->expert_ranks == b->expert_ranks;
}

/* The newest are asked for again most often. The place in q->stages. */
static bk_status plan_one(plan_search *q, bk_stage_options *o, size_t *at) {
  make_alike(&q->config, o);
  for (size_t i = q->n_stages; i-- > 0;)
    if (same_options(&q->stages[i].options, o)) {
      *at = i;
      return BK_OK;
    }
  BK_TRY(bk_grow(q->s->ctx, (void **)&q->stages, &q->stages_capacity, q->n_stages + 1,
                 sizeof *q->stages));
  plan_stage *p = &q->stages[q->n_stages];
  p->options = *o;
  BK_TRY(bk_stage_plan(q->s->device, &q->config, q->dtype, o, &p->needs));
  *at = q->n_stages++;
  return BK_OK;
}

/* Logits as a GPU makes them, 2^28 elements at a time and 256 rows at least. */
static int64_t head_rows(const bk_model_config *c) {
  int64_t rows = ((int64_t)1 << 28) / c->vocab_size / 256 * 256;
  return rows < 256 ? 256 : rows;
}

static bk_stage_options stage_options(const plan_search *q, const plan_recompute *r, int64_t begin,
                                      int64_t end) {
  return (bk_stage_options){.begin = begin,
                            .end = end,
                            .batch = 1,
                            .seq_len = q->recipe.seq_len,
                            .hc_recompute = r->connections ? end - begin : 0,
                            .recompute = r->f,
                            .head_rows = head_rows(&q->config),
                            .flops_per_s = q->cluster.flops,
                            .bytes_per_s = q->cluster.device_bandwidth};
}

bk_status plan_recompute_seconds(plan_search *q, const plan_recompute *r, double *seconds) {
  bk_stage_needs n;
  bk_stage_options o = stage_options(q, r, 0, 2 * q->config.num_hidden_layers);
  BK_TRY(bk_stage_plan(q->s->device, &q->config, q->dtype, &o, &n));
  *seconds = n.seconds.f + n.seconds.b;
  return BK_OK;
}

/* ---- the choice in numbers ---- */

typedef struct weighing {
  plan_search *q;
  const bk_schedule *s;
  plan_choice *c;
  bk_stage_needs *needs; /* [stages] */
  bk_stage_costs *costs; /* [stages], with what the experts exchange */
  double *exchange;      /* [stages]: seconds of a forward pass in which experts exchange */
  double replicas;       /* ranks that hold the same stages */
} weighing;

static bool pairs(const bk_schedule *s) {
  for (int r = 0; r < s->ranks; r++)
    for (int i = 0; i < s->rank[r].n_records; i++)
      if (s->rank[r].records[i].kind == BK_WORK_FB) return true;
  return false;
}

static bk_status find_needs(weighing *w, const bk_pipeline *p) {
  plan_search *q = w->q;
  bool deferred = w->s->rank[0].puts_off; /* then all ranks do */
  for (int i = 0; i < w->s->stages; i++) {
    int64_t begin, end;
    size_t at;
    bk_pipeline_stage(p, i, &begin, &end);
    bk_stage_options o = stage_options(q, &q->recompute[w->c->recompute], begin, end);
    o.batch = w->c->micro_batch;
    o.defer_wgrad = deferred;
    o.expert_ranks = w->c->ep;
    BK_TRY(plan_one(q, &o, &at));
    w->needs[i] = q->stages[at].needs;
  }
  return BK_OK;
}

/* ---- memory ---- */

/* A bucket of gradients, and the pieces of it that come from others (models/shards.h). */
#define BUCKET_BYTES (2.0 * (32 << 20))

/* The rows that a token's choices send and receive. */
static double expert_bytes(const weighing *w) {
  const bk_model_config *c = &w->q->config;
  return (double)w->c->micro_batch * (double)w->q->recipe.seq_len * (double)c->num_experts_per_tok *
         (double)c->hidden_size * (double)bk_dtype_size(w->q->dtype);
}

/* Receives that are posted ahead, for each of a chunk's neighbours on another rank. */
static double ring_bytes(const weighing *w, int rank, const bk_schedule_chunk *chunk) {
  double bytes = 0;
  for (int by = -1; by <= 1; by += 2) {
    int chunk_there, stage = chunk->stage + by;
    if (stage < 0 || stage >= w->s->stages) continue;
    bool elsewhere = bk_schedule_holder(w->s, chunk->stream, stage, &chunk_there) != rank;
    bytes += elsewhere ? BK_SCHEDULE_AHEAD * w->needs[chunk->stage].edge_bytes : 0;
  }
  return bytes;
}

/* Adds what a chunk takes. Of masters and moments a rank keeps its share of those that are summed
 * over as many ranks; experts lie on fewer. */
static void add_chunk(const weighing *w, const bk_schedule_chunk *chunk, double *bytes) {
  const bk_stage_needs *n = &w->needs[chunk->stage];
  double experts = n->parameters > 0 ? n->expert_parameters / n->parameters : 0;
  double share = (1 - experts + experts * (double)w->c->ep) / w->replicas;
  for (int k = 0; k < BK_MEM_CLASS_COUNT; k++) {
    bool cut = k == BK_MEM_MASTERS || k == BK_MEM_OPTIMIZER;
    bytes[k] += (double)n->bytes[k] * (cut ? share : 1);
  }
  bytes[BK_MEM_ACTIVATIONS] += (double)n->slot_bytes * (chunk->slots - 1);
  bytes[BK_MEM_WORKSPACE] -= (double)n->kernel_bytes;
}

/* Chunks share the kernels' workspace, of which one that has become too small is kept beside the
 * larger one (models/lanes.c). */
static void rank_bytes(const weighing *w, int rank, double *bytes) {
  double kernels = 0;
  for (int k = 0; k < BK_MEM_CLASS_COUNT; k++) bytes[k] = 0;
  for (int i = 0; i < w->s->chunks; i++) {
    double more = (double)w->needs[w->s->rank[rank].chunks[i].stage].kernel_bytes;
    bytes[BK_MEM_WORKSPACE] += more > kernels ? more : 0;
    kernels = fmax(kernels, more);
    add_chunk(w, &w->s->rank[rank].chunks[i], bytes);
    bytes[BK_MEM_COMM] += ring_bytes(w, rank, &w->s->rank[rank].chunks[i]);
  }
  bytes[BK_MEM_COMM] += w->replicas > 1 ? BUCKET_BYTES : 0;
  bytes[BK_MEM_COMM] += w->c->ep > 1 ? 2 * expert_bytes(w) : 0;
}

/* Of the rank that needs most. */
static void find_bytes(weighing *w) {
  w->c->bytes_total = 0;
  for (int r = 0; r < w->s->ranks; r++) {
    double bytes[BK_MEM_CLASS_COUNT], sum = 0;
    rank_bytes(w, r, bytes);
    for (int k = 0; k < BK_MEM_CLASS_COUNT; k++) sum += bytes[k];
    if (sum <= w->c->bytes_total) continue;
    w->c->bytes_total = sum;
    for (int k = 0; k < BK_MEM_CLASS_COUNT; k++) w->c->bytes[k] = bytes[k];
  }
}

/* ---- communication ---- */

static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

/* Each of `size` neighbouring ranks sends so many bytes to each other one, those of its node and
 * those of others at the same time. */
static double exchange_seconds(const plan_cluster *c, int64_t size, double bytes) {
  if (size < 2) return 0;
  int64_t near = common_divisor(size, c->per_node) - 1, far = size - 1 - near;
  return c->latency + fmax((double)near * bytes / c->inside, (double)far * bytes / c->between);
}

/* Two blocks of neighbouring ranks (dualpipe), of which both lie in one node or each elsewhere. */
static double replica_seconds(const weighing *w, double ranks, double bytes) {
  const plan_cluster *c = &w->q->cluster;
  int64_t size = (int64_t)ranks;
  if (size < 2) return 0;
  if (size == w->c->dp || c->gpus <= c->per_node) return exchange_seconds(c, size, bytes);
  int64_t block = size / 2, near = block > 1 ? common_divisor(block, c->per_node) - 1 : 0;
  int64_t far = size - 1 - near;
  return c->latency + fmax((double)near * bytes / c->inside, (double)far * bytes / c->between);
}

/* Summed over the chunks of a rank: each parameter's bytes go to and come from all ranks with the
 * same parameters, in pieces. */
static double all_seconds(const weighing *w, int rank, double element) {
  double seconds = 0, ep = (double)w->c->ep;
  for (int i = 0; i < w->s->chunks; i++) {
    const bk_stage_needs *n = &w->needs[w->s->rank[rank].chunks[i].stage];
    double experts = n->expert_parameters, rest = n->parameters - experts;
    seconds += replica_seconds(w, w->replicas, rest * element / w->replicas);
    seconds += replica_seconds(w, w->replicas / ep, experts * element * ep / w->replicas);
  }
  return seconds;
}

/* Rank numbers of pipeline neighbours are dp apart (birkhoff/parallel.h): as soon as a pipeline is
 * longer than a node, one of its edges lies between nodes, and is the slowest. */
static double edge_rate(const weighing *w) {
  const plan_cluster *c = &w->q->cluster;
  return w->c->pp * w->c->dp <= c->per_node ? c->inside : c->between;
}

/* Rows of experts go there and come back, in the forward pass and as gradients. */
static void find_costs(weighing *w) {
  for (int i = 0; i < w->s->stages; i++) {
    const bk_stage_needs *n = &w->needs[i];
    double each = exchange_seconds(&w->q->cluster, w->c->ep, expert_bytes(w) / (double)w->c->ep);
    w->exchange[i] = 2 * (double)n->expert_sublayers * each;
    w->costs[i] = n->seconds;
    w->costs[i].f += w->exchange[i];
    w->costs[i].b += w->exchange[i];
  }
}

/* In an FB what the experts of one pass exchange hides under the products of the other; a device
 * computes no faster for having two passes at once. */
static double overlap_of(const weighing *w) {
  double least = 1;
  for (int i = 0; i < w->s->stages; i++) {
    const bk_stage_costs *x = &w->costs[i];
    double e = w->exchange[i];
    if (e > 0) least = fmin(least, (fmin(e, x->b - e) + fmin(e, x->f - e)) / fmin(x->f, x->b));
    else least = w->c->ep > 1 ? least : 0;
  }
  return fmax(least, 0);
}

/* ---- time ---- */

/* When all gradients are summed: the buckets of a rank are under way from its last pass on. */
static double summed(const weighing *w, const bk_timeline *t, double *sent, double *exposed) {
  double done = t->time;
  for (int r = 0; r < w->s->ranks; r++) {
    double seconds = all_seconds(w, r, 4);
    const bk_schedule_span *last = &t->spans[r][w->s->rank[r].n_records - 1];
    double end = fmax(last->end, last->begin + seconds);
    done = fmax(done, end);
    *sent += seconds;
    *exposed += end - last->end;
  }
  return done;
}

/* AdamW reads and writes what a rank keeps of masters and moments, and its gradients and
 * weights. */
static double optimizer_seconds(const weighing *w) {
  const plan_choice *c = w->c;
  double kept = c->bytes[BK_MEM_MASTERS] + c->bytes[BK_MEM_OPTIMIZER];
  double share = c->bytes[BK_MEM_OPTIMIZER] / fmax(1, 2 * c->bytes[BK_MEM_GRADIENTS]);
  double rest = c->bytes[BK_MEM_GRADIENTS] * 2 + c->bytes[BK_MEM_WEIGHTS];
  return (2 * kept + rest * share) / w->q->cluster.device_bandwidth;
}

/* What the experts of all ranks exchange; in pairs of passes the overlap of it is hidden. */
static void add_exchanges(const weighing *w, double overlap, double *sent, double *exposed) {
  for (int r = 0; r < w->s->ranks; r++)
    for (int i = 0; i < w->s->rank[r].n_records; i++) {
      const bk_schedule_record *x = &w->s->rank[r].records[i];
      int f = w->s->rank[r].chunks[x->chunk].stage, b = w->s->rank[r].chunks[x->back_chunk].stage;
      double all = x->kind == BK_WORK_W    ? 0
                   : x->kind == BK_WORK_FB ? w->exchange[f] + w->exchange[b]
                                           : w->exchange[f];
      double hidden = x->kind == BK_WORK_FB ? overlap * fmin(w->costs[f].f, w->costs[b].b) : 0;
      *sent += all;
      *exposed += fmax(0, all - hidden);
    }
}

static void find_times(weighing *w, const bk_timeline *t, double overlap) {
  plan_choice *c = w->c;
  const plan_cluster *k = &w->q->cluster;
  double sent = t->sent, exposed = t->exposed, gather = 0;
  c->edge_hidden = sent > 0 ? fmax(0, 1 - exposed / sent) : NAN;
  add_exchanges(w, overlap, &sent, &exposed);
  c->pipeline = t->time;
  c->gradients = summed(w, t, &sent, &exposed) - t->time;
  c->optimizer = optimizer_seconds(w);
  for (int r = 0; r < w->s->ranks; r++) {
    double seconds = all_seconds(w, r, (double)bk_dtype_size(w->q->dtype));
    gather = fmax(gather, seconds);
    sent += seconds;
    exposed += seconds;
  }
  c->weights = gather;
  c->step = c->pipeline + c->gradients + c->optimizer + c->weights;
  c->bubble = t->bubble / t->time;
  c->sent = sent;
  c->hidden = sent > 0 ? fmax(0, 1 - exposed / sent) : NAN;
  bk_model_counts counts;
  bk_model_count(&w->q->config, w->q->recipe.seq_len, &counts);
  c->tokens_per_s = (double)w->q->recipe.batch_size * (double)w->q->recipe.seq_len / c->step;
  c->share = c->tokens_per_s * counts.flops_per_token / ((double)k->gpus * k->flops);
}

static bk_status simulate(weighing *w, bk_timeline **timeline) {
  plan_choice *c = w->c;
  find_costs(w);
  for (int i = 0; i < w->s->stages; i++) {
    c->edge_bytes = w->s->stages > 1 ? w->needs[i].edge_bytes : 0;
    c->f_seconds = fmax(c->f_seconds, w->costs[i].f);
  }
  c->edge_seconds = c->edge_bytes / edge_rate(w);
  bk_schedule_costs costs = {.stage = w->costs,
                             .overlap = pairs(w->s) ? overlap_of(w) : 0,
                             .latency = w->q->cluster.latency,
                             .transfer = c->edge_seconds,
                             .weights_last = true};
  bk_timeline *t = NULL;
  BK_TRY(bk_schedule_simulate(w->q->quiet, w->s, &costs, &t));
  find_times(w, t, costs.overlap);
  if (timeline) *timeline = t;
  else bk_timeline_destroy(w->q->quiet, t);
  return BK_OK;
}

bk_status plan_choice_weigh(plan_search *q, const plan_pipeline *p, plan_choice *c,
                            bk_timeline **timeline) {
  bk_context *ctx = q->s->ctx;
  const bk_schedule *s = p->schedule;
  weighing w = {.q = q, .s = s, .c = c};
  w.replicas = (double)(c->dp * s->streams);
  w.needs = bk_alloc_array(ctx, (size_t)s->stages, sizeof *w.needs);
  w.costs = bk_alloc_array(ctx, (size_t)s->stages, sizeof *w.costs);
  w.exchange = bk_alloc_array(ctx, (size_t)s->stages, sizeof *w.exchange);
  bk_status status = w.needs && w.costs && w.exchange ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK) status = find_needs(&w, p->pipeline);
  if (status == BK_OK) find_bytes(&w);
  if (status == BK_OK && c->bytes_total > q->cluster.memory) c->drop = PLAN_MEMORY;
  else if (status == BK_OK) status = simulate(&w, timeline);
  bk_free(ctx, w.exchange);
  bk_free(ctx, w.costs);
  bk_free(ctx, w.needs);
  return status;
}

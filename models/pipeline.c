/* The layout of pipelines (pipeline.h): which rank is what, and where the model is cut. */
#include "models/pipeline.h"

#include "base/base.h"
#include "comm/comm.h"
#include "models/stage_costs.h"

#include <stdlib.h>
#include <string.h>

/* ---- cuts ---- */

/* Cuts costs[0..n) into `parts` runs of one or more such that the largest sum is as small as can
 * be, and among such cuts the squares of the sums. best[k][i]: of the first i costs in k runs. */
typedef struct cut {
  double largest, squares;
  int64_t from; /* where the last run begins */
} cut;

static bool better(const cut *a, const cut *b) {
  return a->largest < b->largest || (a->largest == b->largest && a->squares < b->squares);
}

static void find_cuts(const double *sums, int64_t n, int parts, cut *best, int64_t *cuts) {
  size_t row = (size_t)n + 1;
  for (int k = 1; k <= parts; k++)
    for (int64_t i = k; i <= n - (parts - k); i++) {
      cut *to = &best[(size_t)k * row + (size_t)i];
      *to = (cut){1e300, 1e300, 0};
      for (int64_t from = k - 1; from < i && (k > 1 || from == 0); from++) {
        const cut *before = &best[(size_t)(k - 1) * row + (size_t)from];
        double sum = sums[i] - sums[from], largest = k > 1 ? before->largest : 0;
        cut c = {sum > largest ? sum : largest, (k > 1 ? before->squares : 0) + sum * sum, from};
        if (better(&c, to)) *to = c;
      }
    }
  cuts[parts] = n;
  for (int k = parts; k > 0; k--) cuts[k - 1] = best[(size_t)k * row + (size_t)cuts[k]].from;
}

/* The embedding belongs to the first sublayer, the head and the loss to the last. */
static bk_status cut_by_cost(bk_pipeline *l, const bk_model_config *config,
                             const bk_pipeline_options *o) {
  int64_t n = 2 * config->num_hidden_layers;
  int stages = l->schedule->stages;
  double *costs = bk_alloc_array(l->ctx, (size_t)n + 2, sizeof *costs);
  double *sums = bk_alloc_array(l->ctx, (size_t)n + 1, sizeof *sums);
  cut *best = bk_alloc_array(l->ctx, ((size_t)stages + 1) * ((size_t)n + 1), sizeof *best);
  bk_status status = costs && sums && best ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK) {
    if (o->costs) memcpy(costs, o->costs, ((size_t)n + 2) * sizeof *costs);
    else bk_sublayer_costs(config, o->seq_len, costs);
    for (int64_t i = 0; i < n; i++)
      sums[i + 1] =
          sums[i] + costs[i + 1] + (i == 0 ? costs[0] : 0) + (i == n - 1 ? costs[n + 1] : 0);
    find_cuts(sums, n, stages, best, l->cuts);
  }
  bk_free(l->ctx, best);
  bk_free(l->ctx, sums);
  bk_free(l->ctx, costs);
  return status;
}

/* "9,8,8,7" */
static bk_status cut_as_told(bk_pipeline *l, const bk_model_config *config, const char *text) {
  int64_t n = 2 * config->num_hidden_layers, sum = 0;
  int stages = l->schedule->stages, at = 0;
  for (const char *c = text; at < stages;) {
    char *end;
    long long count = strtoll(c, &end, 10);
    if (end == c || count < 1 || count > n || (*end && *end != ',')) break;
    l->cuts[++at] = sum += count;
    if (!*end) {
      if (at == stages && sum == n) return BK_OK;
      break;
    }
    c = end + 1;
  }
  return bk_fail(l->ctx, BK_ERR_ARGUMENT,
                 "stages %s: expected %d numbers, each at least 1, with commas between, whose sum "
                 "is the %lld sublayers of the model",
                 text, stages, (long long)n);
}

static bk_status make_cuts(bk_pipeline *l, const bk_model_config *config,
                           const bk_pipeline_options *o) {
  int64_t n = 2 * config->num_hidden_layers;
  if (l->schedule->stages > n)
    return bk_fail(l->ctx, BK_ERR_ARGUMENT,
                   "%s with %d ranks has %d stages, the model only %lld sublayers (two for each of "
                   "%lld layers)",
                   l->schedule->name, l->schedule->ranks, l->schedule->stages, (long long)n,
                   (long long)config->num_hidden_layers);
  l->cuts = bk_alloc_array(l->ctx, (size_t)l->schedule->stages + 1, sizeof *l->cuts);
  if (!l->cuts) return BK_ERR_MEMORY;
  return o->stages ? cut_as_told(l, config, o->stages) : cut_by_cost(l, config, o);
}

/* ---- ranks ---- */

/* Whether rank p of a pipeline holds the stage, in whatever chunk. */
static bool holds(const bk_schedule *s, int p, int stage) {
  for (int c = 0; c < s->chunks; c++)
    if (s->rank[p].chunks[c].stage == stage) return true;
  return false;
}

/* How many of the stages of rank a are also held by rank b. */
static int shared(const bk_schedule *s, int a, int b) {
  int n = 0;
  for (int c = 0; c < s->chunks; c++) n += holds(s, b, s->rank[a].chunks[c].stage);
  return n;
}

/* Ranks hold the same stages or none in common, since gradients are summed in one group. */
static bk_status check_stages(const bk_pipeline *l) {
  const bk_schedule *s = l->schedule;
  for (int c = 0; c < s->chunks; c++)
    for (int e = 0; e < c; e++)
      if (s->rank[l->p].chunks[c].stage == s->rank[l->p].chunks[e].stage)
        return bk_fail(l->ctx, BK_ERR_ARGUMENT,
                       "%s: rank %d holds stage %d in two chunks; a rank holds a stage once",
                       s->name, l->p, s->rank[l->p].chunks[c].stage);
  for (int p = 0; p < s->ranks; p++) {
    int n = shared(s, l->p, p);
    if (n > 0 && n < s->chunks)
      return bk_fail(l->ctx, BK_ERR_ARGUMENT,
                     "%s: ranks %d and %d share %d of %d stages; ranks that share a stage must "
                     "share all of them",
                     s->name, l->p, p, n, s->chunks);
  }
  return BK_OK;
}

static void find_replicas(bk_pipeline *l) {
  for (int p = 0; p < l->schedule->ranks; p++) {
    if (!shared(l->schedule, l->p, p)) continue;
    if (p < l->p) l->replica += l->dp;
    l->n_replicas += l->dp;
  }
  l->replica += l->d;
}

/* The lowest p that holds the same stages numbers the group. */
static bk_status split(bk_pipeline *l) {
  int first = 0;
  while (!shared(l->schedule, l->p, first)) first++;
  BK_TRY(bk_comm_split(l->comm, first, l->rank, &l->replicas));
  return bk_comm_split(l->comm, l->d, l->p, &l->line);
}

static bk_status pipeline_fill(bk_pipeline *l, const bk_model_config *config,
                               const bk_pipeline_options *o) {
  const bk_schedule *s = l->schedule;
  if (l->ranks % s->ranks)
    return bk_fail(l->ctx, BK_ERR_ARGUMENT,
                   "pipelines of %d ranks: there are %d ranks, which is no multiple of it",
                   s->ranks, l->ranks);
  if (s->chunks > BK_CHUNKS_MAX)
    return bk_fail(l->ctx, BK_ERR_ARGUMENT, "%s: %d chunks on a rank, %d can be", s->name,
                   s->chunks, BK_CHUNKS_MAX);
  l->dp = l->ranks / s->ranks;
  l->p = l->rank / l->dp;
  l->d = l->rank % l->dp;
  BK_TRY(check_stages(l));
  find_replicas(l);
  BK_TRY(make_cuts(l, config, o));
  return l->comm ? split(l) : BK_OK;
}

bk_status bk_pipeline_create(bk_context *ctx, bk_comm *comm, const bk_model_config *config,
                             const bk_pipeline_options *options, bk_pipeline **pipeline) {
  bk_pipeline *l = bk_alloc(ctx, sizeof *l);
  if (!l) return BK_ERR_MEMORY;
  *l = (bk_pipeline){.ctx = ctx,
                     .schedule = options->schedule,
                     .comm = comm,
                     .rank = comm ? bk_comm_rank(comm) : options->rank,
                     .ranks = comm ? bk_comm_size(comm) : options->ranks};
  bk_status status = pipeline_fill(l, config, options);
  if (status == BK_OK) *pipeline = l;
  else bk_pipeline_destroy(l);
  return status;
}

void bk_pipeline_destroy(bk_pipeline *l) {
  if (!l) return;
  bk_comm_destroy(l->line);
  bk_comm_destroy(l->replicas);
  bk_free(l->ctx, l->cuts);
  bk_free(l->ctx, l);
}

int bk_pipeline_rank(const bk_pipeline *l) { return l->p; }
int bk_pipeline_number(const bk_pipeline *l) { return l->d; }
int bk_pipeline_count(const bk_pipeline *l) { return l->dp; }

void bk_pipeline_stage(const bk_pipeline *l, int stage, int64_t *begin, int64_t *end) {
  *begin = l->cuts[stage];
  *end = l->cuts[stage + 1];
}

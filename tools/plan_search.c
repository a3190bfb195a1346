/* birkhoff plan --gpus: goes through all ways of sharing a step's work on a cluster
 * (plan_search.h): pipelines, their schedules, micro-batches, ranks that share experts,
 * recompute. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/plan_search.h"
#include "tools/svg.h"

/* ---- options ---- */

/* "141G", "450e9": a number above 0 with a unit behind it, in powers of 1000, or of 1024 with an i
 * (Ki, Mi, Gi, Ti). Returns where it ends; NULL: it is none. */
static const char *parse_amount(const char *text, double *value) {
  static const char units[] = "kMGTP";
  char *end;
  double v = strtod(text, &end);
  const char *unit = *end ? strchr(units, *end == 'K' ? 'k' : *end) : NULL;
  if (end == text || !isfinite(v) || v <= 0) return NULL;
  if (unit) {
    double base = end[1] == 'i' ? 1024 : 1000;
    v *= pow(base, (double)(unit - units + 1));
    end += end[1] == 'i' ? 2 : 1;
  }
  *value = v;
  return end;
}

static bk_status read_amount(cli_session *s, const char *option, double *value) {
  const char *text = cli_value(&s->args, option), *end;
  if (!text) return BK_OK;
  end = parse_amount(text, value);
  if (end && !*end) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                 "--%s %s: expected a number above 0, which may have a unit: 141G, 3.3T, 80Gi",
                 option, text);
}

bk_status cli_bandwidth(cli_session *s, double *inside, double *between) {
  const char *text = cli_value(&s->args, "bandwidth"), *end;
  end = parse_amount(text, inside);
  if (end && !*end) *between = *inside;
  else end = end && *end == ',' ? parse_amount(end + 1, between) : NULL;
  if (end && !*end) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                 "--bandwidth %s: expected bytes a second in one direction, inside a node and "
                 "between nodes: 450G,50G",
                 text);
}

/* What a GPU of 2024 reaches: 400 TFLOP/s in large products of bf16, 3.3 TB/s of its memory. */
static bk_status read_cluster(cli_session *s, plan_cluster *c) {
  *c = (plan_cluster){.per_node = 8, .latency = 10e-6, .flops = 400e12, .device_bandwidth = 3.3e12};
  const char *needed[] = {"memory", "bandwidth", "model"};
  for (size_t i = 0; i < BK_COUNT(needed); i++)
    if (!cli_given(&s->args, needed[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --gpus needs --%s", needed[i]);
  BK_TRY(cli_int(s, "gpus", 1, 1 << 20, &c->gpus));
  BK_TRY(cli_int(s, "gpus-per-node", 1, 1 << 20, &c->per_node));
  BK_TRY(read_amount(s, "memory", &c->memory));
  BK_TRY(cli_bandwidth(s, &c->inside, &c->between));
  BK_TRY(read_amount(s, "flops", &c->flops));
  BK_TRY(read_amount(s, "device-bandwidth", &c->device_bandwidth));
  BK_TRY(cli_double(s, "latency", 0, 1, &c->latency));
  if (c->gpus > c->per_node && c->gpus % c->per_node)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--gpus %lld: nodes have %lld each (--gpus-per-node)",
                   (long long)c->gpus, (long long)c->per_node);
  return BK_OK;
}

static bk_status find_schedule(plan_search *q, const char *name) {
  const char *const *names = bk_schedule_names();
  char *all = NULL;
  for (int i = 0; names[i]; i++) {
    if (strcmp(names[i], name) == 0) {
      q->schedule = names[i];
      return BK_OK;
    }
  }
  for (int i = 0; names[i]; i++) {
    char *longer = bk_format(q->s->ctx, "%s%s%s", all ? all : "", all ? ", " : "", names[i]);
    bk_free(q->s->ctx, all);
    if (!(all = longer)) return BK_ERR_MEMORY;
  }
  bk_status status =
      bk_fail(q->s->ctx, BK_ERR_ARGUMENT, "--schedule %s: a search knows %s", name, all);
  bk_free(q->s->ctx, all);
  return status;
}

/* What the search chooses itself, and what is for other uses of the command. */
static bk_status refuse_options(cli_session *s) {
  static const char *const others[] = {"micro", "costs", "measured", "data", "val-data"};
  static const char *const keys[] = {"micro_batch_size", "hc_recompute", "recompute"};
  for (size_t i = 0; i < BK_COUNT(others); i++)
    if (cli_given(&s->args, others[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --%s has no meaning with --gpus", others[i]);
  for (size_t i = 0; i < BK_COUNT(keys); i++)
    if (cli_sets_key(s, keys[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: with --gpus %s is what the search looks for",
                     keys[i]);
  return BK_OK;
}

static bk_status read_options(plan_search *q) {
  cli_session *s = q->s;
  const char *schedule = cli_value(&s->args, "schedule");
  q->model = cli_value(&s->args, "model");
  BK_TRY(refuse_options(s));
  BK_TRY(read_cluster(s, &q->cluster));
  BK_TRY(cli_open_device(s));
  BK_TRY(cli_dtype(s, &q->dtype));
  BK_TRY(cli_model_config(s, q->model, &q->config, &q->recipe));
  BK_TRY(cli_recipe_option(s, "batch-size", "batch_size", &q->recipe));
  BK_TRY(cli_recipe_option(s, "seq-len", "seq_len", &q->recipe));
  BK_TRY(bk_train_config_validate(s->ctx, &q->recipe));
  if (q->recipe.seq_len > q->config.max_position_embeddings)
    return bk_fail(s->ctx, BK_ERR_CONFIG, "seq_len %lld is above max_position_embeddings %lld",
                   (long long)q->recipe.seq_len, (long long)q->config.max_position_embeddings);
  BK_TRY(cli_int(s, "pp", 1, q->cluster.gpus, &q->pp));
  BK_TRY(cli_int(s, "ep", 1, q->cluster.gpus, &q->ep));
  if (q->pp && q->cluster.gpus % q->pp)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--pp %lld does not divide --gpus %lld",
                   (long long)q->pp, (long long)q->cluster.gpus);
  return schedule ? find_schedule(q, schedule) : BK_OK;
}

/* ---- recompute ---- */

/* From the one that takes least time on. Plain connections have nothing to recompute. */
static bk_status order_recompute(plan_search *q) {
  double seconds[PLAN_RECOMPUTES];
  bool plain = q->config.residual == BK_HC_PLAIN;
  for (int f = BK_RECOMPUTE_F_NONE; f <= BK_RECOMPUTE_F_ALL; f++)
    for (int connections = 0; connections < (plain ? 1 : 2); connections++) {
      plan_recompute r = {.connections = connections, .f = f};
      double time;
      int at = q->n_recompute++;
      BK_TRY(plan_recompute_seconds(q, &r, &time));
      for (; at > 0 && seconds[at - 1] > time; at--) {
        q->recompute[at] = q->recompute[at - 1];
        seconds[at] = seconds[at - 1];
      }
      q->recompute[at] = r;
      seconds[at] = time;
    }
  return BK_OK;
}

/* ---- going through all ---- */

static bk_status add(plan_search *q, const plan_choice *c) {
  BK_TRY(bk_grow(q->s->ctx, (void **)&q->choices, &q->capacity, q->n + 1, sizeof *q->choices));
  q->choices[q->n++] = *c;
  return BK_OK;
}

/* Ranks that share experts: numbers that divide dp and the experts, of which each rank then has as
 * many as a token chooses, at least. */
#define MOST_EP 64
typedef struct expert_ranks {
  int64_t ep[MOST_EP];
  /* The bytes that a smaller micro-batch needs at least, where it does not fit; else 0. */
  double full[MOST_EP];
  int n;
} expert_ranks;

static expert_ranks find_expert_ranks(const plan_search *q, int64_t dp) {
  const bk_model_config *c = &q->config;
  bool sparse = c->first_k_dense_replace < c->num_hidden_layers;
  expert_ranks e = {.ep = {1}, .n = q->ep <= 1};
  for (int64_t ep = 2; sparse && ep <= dp && e.n < MOST_EP; ep++)
    if ((!q->ep || q->ep == ep) && dp % ep == 0 && c->n_routed_experts % ep == 0 &&
        c->n_routed_experts / ep >= c->num_experts_per_tok)
      e.ep[e.n++] = ep;
  return e;
}

/* Dropped for a reason that holds whatever experts and recompute are. */
static bk_status drop(plan_search *q, plan_choice c, const expert_ranks *e, plan_drop why,
                      bool said) {
  c.drop = why;
  c.ep = 0;
  c.recompute = -1;
  c.count = (int64_t)q->n_recompute * e->n;
  if (!c.count) return BK_OK;
  if (said && !(c.reason = bk_strdup(q->s->ctx, q->said))) return BK_ERR_MEMORY;
  bk_status status = add(q, &c);
  if (status != BK_OK) bk_free(q->s->ctx, c.reason);
  return status;
}

/* The first recompute that fits is the fastest. *full: as in expert_ranks. */
static bk_status try_recompute(plan_search *q, const plan_pipeline *p, plan_choice c,
                               double *full) {
  bool fits = false;
  for (int i = 0; i < q->n_recompute; i++) {
    plan_choice one = c;
    one.recompute = i;
    one.count = 1;
    if (fits) one.drop = PLAN_NEEDLESS;
    else BK_TRY(plan_choice_weigh(q, p, &one, NULL));
    fits |= one.drop == PLAN_KEPT;
    if (!fits && (i == 0 || one.bytes_total < *full)) *full = one.bytes_total;
    BK_TRY(add(q, &one));
  }
  if (fits) *full = 0;
  return BK_OK;
}

/* A larger micro-batch needs no less memory: it has as many tokens in flight, or more. */
static bk_status try_experts(plan_search *q, const plan_pipeline *p, plan_choice c,
                             expert_ranks *e) {
  for (int i = 0; i < e->n; i++) {
    c.ep = e->ep[i];
    if (e->full[i] > 0) {
      plan_choice all = c;
      all.recompute = -1;
      all.count = q->n_recompute;
      all.drop = PLAN_MEMORY;
      all.bytes_total = e->full[i];
      all.at_least = true;
      BK_TRY(add(q, &all));
    } else BK_TRY(try_recompute(q, p, c, &e->full[i]));
  }
  return BK_OK;
}

static void close_pipeline(plan_search *q, plan_pipeline *p) {
  bk_pipeline_destroy(p->pipeline);
  bk_schedule_destroy(q->quiet, p->schedule);
  *p = (plan_pipeline){0};
}

/* What does not go is a reason; other failures are the search's. */
static bk_status open_pipeline(plan_search *q, const plan_choice *c, plan_pipeline *p,
                               plan_drop *why) {
  *why = PLAN_SCHEDULE;
  BK_TRY(
      bk_schedule_create(q->quiet, c->schedule, (int)c->pp, (int)c->micro_batches, &p->schedule));
  bk_pipeline_options o = {
      .schedule = p->schedule, .seq_len = q->recipe.seq_len, .ranks = (int)(c->pp * c->dp)};
  *why = PLAN_LAYERS;
  return bk_pipeline_create(q->quiet, NULL, &q->config, &o, &p->pipeline);
}

static bk_status try_micro_batch(plan_search *q, plan_choice c, expert_ranks *e) {
  plan_pipeline p = {0};
  plan_drop why;
  int64_t own = q->recipe.batch_size / c.dp;
  c.micro_batches = own / c.micro_batch;
  if (own % c.micro_batch) return drop(q, c, e, PLAN_BATCH, false);
  bk_status status = open_pipeline(q, &c, &p, &why);
  if (status == BK_ERR_ARGUMENT) status = drop(q, c, e, why, true);
  else if (status == BK_OK) status = try_experts(q, &p, c, e);
  close_pipeline(q, &p);
  return status;
}

static bk_status try_schedule(plan_search *q, int64_t pp, const char *schedule) {
  plan_choice c = {.pp = pp, .dp = q->cluster.gpus / pp, .schedule = schedule};
  expert_ranks e = find_expert_ranks(q, c.dp);
  snprintf(q->said, sizeof q->said, "a pipeline of %lld ranks, the model has %lld sublayers",
           (long long)pp, (long long)(2 * q->config.num_hidden_layers));
  if (pp > 2 * q->config.num_hidden_layers) return drop(q, c, &e, PLAN_LAYERS, true);
  if (q->recipe.batch_size % c.dp) return drop(q, c, &e, PLAN_BATCH, false);
  for (c.micro_batch = 1; c.micro_batch <= q->recipe.batch_size / c.dp; c.micro_batch *= 2)
    BK_TRY(try_micro_batch(q, c, &e));
  return BK_OK;
}

/* One rank alone needs no schedule but the trivial one, which no others can take. */
static bool takes(const plan_search *q, int64_t pp, const char *schedule) {
  bool trivial = strcmp(schedule, "sequential") == 0;
  if (q->pp && q->pp != pp) return false;
  if (q->schedule && q->schedule != schedule) return false;
  return q->schedule ? true : (pp == 1) == trivial;
}

static bk_status try_all(plan_search *q) {
  const char *const *names = bk_schedule_names();
  for (int64_t pp = 1; pp <= q->cluster.gpus; pp++) {
    if (q->cluster.gpus % pp) continue;
    for (int i = 0; names[i]; i++)
      if (takes(q, pp, names[i])) BK_TRY(try_schedule(q, pp, names[i]));
  }
  return BK_OK;
}

/* ---- the best ---- */

/* Those that are kept first, from the fastest on; where two take as long, that with less memory. */
static int faster(const void *a, const void *b) {
  const plan_choice *x = a, *y = b;
  if ((x->drop != PLAN_KEPT) != (y->drop != PLAN_KEPT)) return x->drop != PLAN_KEPT ? 1 : -1;
  if (x->drop != PLAN_KEPT) return (int)x->drop - (int)y->drop;
  if (x->step != y->step) return x->step > y->step ? 1 : -1;
  return (x->bytes_total > y->bytes_total) - (x->bytes_total < y->bytes_total);
}

static void sort_choices(plan_search *q) {
  int kept = 0;
  qsort(q->choices, q->n, sizeof *q->choices, faster);
  for (size_t i = 0; i < q->n; i++)
    if (q->choices[i].drop == PLAN_KEPT && kept++ >= PLAN_BEST) q->choices[i].drop = PLAN_SLOWER;
}

static bk_status draw_best(plan_search *q, const char *path) {
  plan_choice c;
  plan_pipeline p = {0};
  plan_drop why;
  bk_timeline *t = NULL;
  char title[128], recompute[64];
  if (q->n == 0 || q->choices[0].drop != PLAN_KEPT)
    return bk_fail(q->s->ctx, BK_ERR_ARGUMENT, "--svg: no plan fits, there is nothing to draw");
  c = q->choices[0];
  snprintf(title, sizeof title, "%s: %s, pp %lld, dp %lld, ep %lld, recompute %s", q->model,
           c.schedule, (long long)c.pp, (long long)c.dp, (long long)c.ep,
           plan_recompute_text(q, &c, recompute, sizeof recompute));
  bk_status status = open_pipeline(q, &c, &p, &why);
  if (status == BK_OK) status = plan_choice_weigh(q, &p, &c, &t);
  if (status == BK_OK)
    status = cli_svg_timeline(q->s->ctx, path,
                              &(cli_svg_times){.schedule = p.schedule,
                                               .timeline = t,
                                               .transfers = true,
                                               .title = title,
                                               .seconds = true});
  bk_timeline_destroy(q->quiet, t);
  close_pipeline(q, &p);
  return status;
}

/* ---- the command ---- */

/* Of the quiet context: what does not go is asked for, and said in the report. */
static void hear(void *user, bk_log_level level, const char *message) {
  plan_search *q = user;
  if (level == BK_LOG_ERROR) snprintf(q->said, sizeof q->said, "%s", message);
}

static bk_status search(plan_search *q) {
  const char *svg = cli_value(&q->s->args, "svg");
  bk_context_options quiet = {.log = hear, .log_user = q};
  BK_TRY(bk_context_create(&quiet, &q->quiet));
  BK_TRY(order_recompute(q));
  BK_TRY(try_all(q));
  sort_choices(q);
  BK_TRY(plan_report(q));
  return svg ? draw_best(q, svg) : BK_OK;
}

bk_status plan_search_run(cli_session *s) {
  plan_search q = {.s = s, .dtype = BK_BF16};
  BK_TRY(read_options(&q));
  bk_status status = search(&q);
  for (size_t i = 0; i < q.n; i++) bk_free(s->ctx, q.choices[i].reason);
  bk_free(s->ctx, q.choices);
  bk_free(s->ctx, q.stages);
  bk_context_destroy(q.quiet);
  return status;
}

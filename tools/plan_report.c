/* What a search has found (plan_search.h): the best, and why the others are not among them. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/plan_search.h"

static const char *const drop_names[PLAN_DROPS] = {
    [PLAN_KEPT] = "kept",         [PLAN_LAYERS] = "layers", [PLAN_BATCH] = "batch",
    [PLAN_SCHEDULE] = "schedule", [PLAN_MEMORY] = "memory", [PLAN_NEEDLESS] = "recompute",
    [PLAN_SLOWER] = "slower"};

static const char *const f_names[] = {"none", "attention", "experts", "all"};

static const char *connections_text(const plan_search *q, const plan_choice *c) {
  return q->recompute[c->recompute].connections ? "auto" : "off";
}

char *plan_recompute_text(const plan_search *q, const plan_choice *c, char *text, size_t size) {
  const plan_recompute *r = &q->recompute[c->recompute];
  const char *f = f_names[r->f];
  if (r->connections && r->f) snprintf(text, size, "connections, %s", f);
  else snprintf(text, size, "%s", r->connections ? "connections" : f);
  return text;
}

/* In units of 1000, as GPUs and networks are sold. */
static char *amount_text(double x, const char *unit, char *text, size_t size) {
  static const char *const prefixes[] = {"", "k", "M", "G", "T", "P"};
  size_t i = 0;
  while (x >= 999.5 && i + 1 < BK_COUNT(prefixes)) x /= 1000, i++;
  snprintf(text, size, x < 99.95 ? "%.3g %s%s" : "%.0f %s%s", x, prefixes[i], unit);
  return text;
}

static char *seconds_text(double s, char *text, size_t size) {
  if (s >= 0.9995 || s <= 0) snprintf(text, size, "%.3f s", s);
  else if (s >= 0.9995e-3) snprintf(text, size, "%.3g ms", s * 1e3);
  else snprintf(text, size, "%.3g us", s * 1e6);
  return text;
}

/* ---- reasons ---- */

/* The whole reason of one choice. */
static char *reason_text(const plan_search *q, const plan_choice *c, char *text, size_t size) {
  char a[32], b[32];
  const plan_choice *best = &q->choices[0];
  switch (c->drop) {
    case PLAN_KEPT: snprintf(text, size, "%s", ""); break;
    case PLAN_LAYERS:
    case PLAN_SCHEDULE: snprintf(text, size, "%s", c->reason); break;
    case PLAN_BATCH:
      if (c->micro_batch)
        snprintf(text, size, "%lld sequences of a pipeline are no micro-batches of %lld",
                 (long long)(q->recipe.batch_size / c->dp), (long long)c->micro_batch);
      else
        snprintf(text, size, "%lld sequences cannot be shared evenly by %lld pipelines",
                 (long long)q->recipe.batch_size, (long long)c->dp);
      break;
    case PLAN_MEMORY:
      snprintf(text, size, "a rank needs %s%s of %s", c->at_least ? "more than " : "",
               amount_text(c->bytes_total, "B", a, sizeof a),
               amount_text(q->cluster.memory, "B", b, sizeof b));
      break;
    case PLAN_NEEDLESS: snprintf(text, size, "it fits with less recompute"); break;
    default:
      snprintf(text, size, "a step takes %.3f times as long as the best", c->step / best->step);
  }
  return text;
}

/* Of the memory dropped the one that comes nearest says most. */
static const plan_choice *example_of(const plan_search *q, plan_drop drop) {
  const plan_choice *found = NULL;
  for (size_t i = 0; i < q->n; i++) {
    const plan_choice *c = &q->choices[i];
    if (c->drop != drop) continue;
    if (!found || (drop == PLAN_MEMORY && c->bytes_total < found->bytes_total) ||
        (drop == PLAN_SLOWER && c->step < found->step))
      found = c;
  }
  return found;
}

static int64_t count_of(const plan_search *q, plan_drop drop) {
  int64_t n = 0;
  for (size_t i = 0; i < q->n; i++) n += q->choices[i].drop == drop ? q->choices[i].count : 0;
  return n;
}

/* ---- text ---- */

static void print_cluster(const plan_search *q) {
  const plan_cluster *c = &q->cluster;
  char a[32], b[32], d[32], e[32], f[32];
  printf(
      "%s on %lld GPUs of %s, %lld a node; a GPU has %s inside a node and %s between nodes, %s, "
      "memory at %s\n",
      q->model, (long long)c->gpus, amount_text(c->memory, "B", a, sizeof a),
      (long long)c->per_node, amount_text(c->inside, "B/s", b, sizeof b),
      amount_text(c->between, "B/s", d, sizeof d), amount_text(c->flops, "FLOP/s", e, sizeof e),
      amount_text(c->device_bandwidth, "B/s", f, sizeof f));
  printf("a step has %lld sequences of %lld tokens, in %s\n\n", (long long)q->recipe.batch_size,
         (long long)q->recipe.seq_len, bk_dtype_name(q->dtype));
}

static void print_choice(const plan_search *q, const plan_choice *c) {
  char recompute[64], memory[32], hidden[16] = "-", tokens[32], step[32];
  if (isfinite(c->hidden)) snprintf(hidden, sizeof hidden, "%.1f%%", 100 * c->hidden);
  printf("%4lld %5lld %3lld  %-10s %5lld x %-5lld %-22s %10s %6.1f%% %9s %7s %9s %8.1f%%\n",
         (long long)c->pp, (long long)c->dp, (long long)c->ep, c->schedule,
         (long long)c->micro_batches, (long long)c->micro_batch,
         plan_recompute_text(q, c, recompute, sizeof recompute),
         seconds_text(c->step, step, sizeof step), 100 * c->bubble,
         amount_text(c->bytes_total, "B", memory, sizeof memory), hidden,
         amount_text(c->tokens_per_s, "", tokens, sizeof tokens), 100 * c->share);
}

/* What a user asks next of the best: where its memory and its time go. */
static void print_best(const plan_choice *c) {
  char a[32], t[4][32];
  const char *between = ":";
  printf("\nof the first, in the rank that needs most memory");
  for (int k = 0; k < BK_MEM_CLASS_COUNT; k++) {
    if (c->bytes[k] <= 0) continue;
    printf("%s %s %s", between, bk_memory_class_name(k),
           amount_text(c->bytes[k], "B", a, sizeof a));
    between = ",";
  }
  printf("\nits step: pipeline %s, gradients after it %s, optimiser %s, weights %s\n",
         seconds_text(c->pipeline, t[0], 32), seconds_text(c->gradients, t[1], 32),
         seconds_text(c->optimizer, t[2], 32), seconds_text(c->weights, t[3], 32));
  if (c->edge_bytes > 0)
    printf(
        "an edge between stages: %s a micro-batch and direction, %s, of which %.1f%% is hidden; "
        "a forward pass of a stage takes up to %s\n",
        amount_text(c->edge_bytes, "B", a, sizeof a), seconds_text(c->edge_seconds, t[0], 32),
        100 * c->edge_hidden, seconds_text(c->f_seconds, t[1], 32));
}

static void print_drops(const plan_search *q) {
  char reason[320], recompute[64];
  printf("\nothers, by reason\n");
  for (int d = PLAN_KEPT + 1; d < PLAN_DROPS; d++) {
    const plan_choice *c = example_of(q, d);
    if (!c) continue;
    printf("  %7lld  %-9s  %s (pp %lld, dp %lld", (long long)count_of(q, d), drop_names[d],
           reason_text(q, c, reason, sizeof reason), (long long)c->pp, (long long)c->dp);
    if (c->ep) printf(", ep %lld", (long long)c->ep);
    printf(", %s", c->schedule);
    if (c->micro_batch)
      printf(", %lld x %lld", (long long)c->micro_batches, (long long)c->micro_batch);
    if (c->recompute >= 0) printf(", %s", plan_recompute_text(q, c, recompute, sizeof recompute));
    printf(")\n");
  }
}

static bk_status print_text(plan_search *q) {
  bool any = q->n && q->choices[0].drop == PLAN_KEPT;
  print_cluster(q);
  if (!any) printf("nothing fits\n");
  else
    printf("%4s %5s %3s  %-10s %-13s %-22s %10s %7s %9s %7s %9s %9s\n", "pp", "dp", "ep",
           "schedule", "micro-batches", "recompute", "step", "bubble", "memory", "hidden",
           "tokens/s", "of roof");
  for (size_t i = 0; i < q->n && q->choices[i].drop == PLAN_KEPT; i++)
    print_choice(q, &q->choices[i]);
  if (any) print_best(&q->choices[0]);
  for (size_t i = 0; i < q->n && q->choices[i].drop == PLAN_KEPT; i++)
    if (q->choices[i].ep > 1) {
      printf(
          "ranks that share experts (ep above 1) are planned, but cannot be run yet; --ep 1 has "
          "the plans that can\n");
      break;
    }
  print_drops(q);
  return cli_flush_stdout(q->s);
}

/* ---- JSON ---- */

static json_t *number_or_null(int64_t n) { return n ? json_integer((json_int_t)n) : json_null(); }

/* What it is; null is whatever it is. */
static json_t *choice_json(const plan_search *q, const plan_choice *c) {
  bool open = c->recompute < 0;
  json_t *recompute = open ? json_null() : json_string(f_names[q->recompute[c->recompute].f]);
  json_t *connections = open ? json_null() : json_string(connections_text(q, c));
  return json_pack("{s:I,s:I,s:o,s:s,s:o,s:o,s:o,s:o}", "pp", (json_int_t)c->pp, "dp",
                   (json_int_t)c->dp, "ep", number_or_null(c->ep), "schedule", c->schedule,
                   "micro_batch_size", number_or_null(c->micro_batch), "micro_batches",
                   number_or_null(c->micro_batches), "hc_recompute", connections, "recompute",
                   recompute);
}

static json_t *bytes_json(const plan_choice *c) {
  json_t *bytes = json_object();
  for (int k = 0; k < BK_MEM_CLASS_COUNT; k++)
    json_object_set_new(bytes, bk_memory_class_name(k), json_real(c->bytes[k]));
  return bytes;
}

static json_t *kept_json(const plan_search *q, const plan_choice *c) {
  json_t *j = choice_json(q, c);
  json_t *more = json_pack(
      "{s:f,s:f,s:f,s:f,s:f,s:f,s:o,s:f,s:f,s:f,s:f,s:o,s:f,s:f,s:o}", "seconds", c->step,
      "pipeline_seconds", c->pipeline, "gradients_seconds", c->gradients, "optimizer_seconds",
      c->optimizer, "weights_seconds", c->weights, "bubble", c->bubble, "hidden",
      cli_number(c->hidden), "tokens_per_s", c->tokens_per_s, "share", c->share, "edge_bytes",
      c->edge_bytes, "edge_seconds", c->edge_seconds, "edge_hidden", cli_number(c->edge_hidden),
      "forward_seconds", c->f_seconds, "bytes_total", c->bytes_total, "bytes", bytes_json(c));
  if (!j || !more || json_object_update(j, more) != 0) {
    json_decref(j);
    j = NULL;
  }
  json_decref(more);
  return j;
}

static json_t *dropped_json(const plan_search *q, const plan_choice *c) {
  char text[320];
  json_t *j = choice_json(q, c);
  if (!j) return NULL;
  json_object_set_new(j, "count", json_integer((json_int_t)c->count));
  json_object_set_new(j, "reason", json_string(drop_names[c->drop]));
  json_object_set_new(j, "text", json_string(reason_text(q, c, text, sizeof text)));
  if (c->bytes_total > 0) json_object_set_new(j, "bytes_total", json_real(c->bytes_total));
  if (c->drop == PLAN_SLOWER) json_object_set_new(j, "seconds", json_real(c->step));
  return j;
}

static json_t *cluster_json(const plan_search *q) {
  const plan_cluster *c = &q->cluster;
  return json_pack("{s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:f}", "gpus", (json_int_t)c->gpus,
                   "gpus_per_node", (json_int_t)c->per_node, "memory", c->memory,
                   "bandwidth_inside", c->inside, "bandwidth_between", c->between, "flops_per_s",
                   c->flops, "device_bytes_per_s", c->device_bandwidth, "latency", c->latency);
}

static bk_status print_json(plan_search *q) {
  json_t *plans = json_array(), *dropped = json_array();
  bool ok = plans && dropped;
  for (size_t i = 0; i < q->n && ok; i++) {
    const plan_choice *c = &q->choices[i];
    bool kept = c->drop == PLAN_KEPT;
    ok = json_array_append_new(kept ? plans : dropped,
                               kept ? kept_json(q, c) : dropped_json(q, c)) == 0;
  }
  if (!ok) {
    json_decref(plans);
    json_decref(dropped);
    return cli_print_json(q->s, NULL);
  }
  return cli_print_json(
      q->s, json_pack("{s:s,s:s,s:I,s:I,s:o,s:o,s:o}", "model", q->model, "dtype",
                      bk_dtype_name(q->dtype), "batch_size", (json_int_t)q->recipe.batch_size,
                      "seq_len", (json_int_t)q->recipe.seq_len, "cluster", cluster_json(q), "plans",
                      plans, "dropped", dropped));
}

bk_status plan_report(plan_search *q) { return q->s->json ? print_json(q) : print_text(q); }

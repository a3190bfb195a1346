/* birkhoff plan --schedule: the lists of a pipeline schedule, and what a step takes: if every stage
 * costs the same and messages nothing, or with costs that were measured. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/plan_schedule.h"
#include "tools/svg.h"

/* Sums of that many passes stay exact to many digits. */
#define COST_MAX 1e9

typedef struct report {
  const bk_schedule *schedule;
  const bk_timeline *timeline;
  double f, b, w, fb;
  bk_stage_costs *stage; /* [stages] */
  int *sublayers;        /* [stages], of measured costs */
  const char *measured;  /* the file that they come from; NULL: all are the same */
  double latency, transfer, optimizer;
} report;

/* ---- options ---- */

static const char *const own_options[] = {"pp", "micro", "costs", "measured", "svg"};

bk_status cli_plan_without_schedule(cli_session *s) {
  for (size_t i = 0; i < BK_COUNT(own_options); i++)
    if (cli_given(&s->args, own_options[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --%s has a meaning with --schedule alone",
                     own_options[i]);
  return BK_OK;
}

static bk_status refuse_model_options(cli_session *s) {
  static const char *const names[] = {"model", "batch-size", "seq-len", "data", "val-data", "set"};
  for (size_t i = 0; i < BK_COUNT(names); i++)
    if (cli_given(&s->args, names[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                     "plan: --schedule is planned without a model; --%s has no meaning there",
                     names[i]);
  return BK_OK;
}

/* One NAME=NUMBER of --costs, up to a comma or the end. */
static bk_status read_cost(cli_session *s, report *r, const char *word, size_t length,
                           bool given[4]) {
  static const char *const names[4] = {"F", "B", "W", "FB"};
  double *const values[4] = {&r->f, &r->b, &r->w, &r->fb}, value;
  char text[64];
  snprintf(text, sizeof text, "%.*s", (int)(length < 64 ? length : 63), word);
  char *equals = strchr(text, '=');
  if (equals) *equals = '\0';
  int at = 0;
  while (at < 4 && strcmp(text, names[at]) != 0) at++;
  if (!equals || at == 4)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--costs: \"%.*s\" is no cost; they are given as F=1,B=2,W=1,FB=3", (int)length,
                   word);
  if (given[at]) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--costs: %s is given twice", text);
  if (length >= sizeof text || !bk_parse_double(equals + 1, &value) || value < 0 ||
      value > COST_MAX || (at == 3 && value == 0))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--costs: %.*s: expected a number from 0 to %g%s",
                   (int)length, word, COST_MAX, at == 3 ? ", above 0" : "");
  given[at] = true;
  *values[at] = value;
  return BK_OK;
}

static bk_status read_costs(cli_session *s, report *r) {
  const char *text = cli_value(&s->args, "costs");
  bool given[4] = {false};
  *r = (report){.f = 1, .b = 2, .w = 1};
  while (text) {
    size_t length = strcspn(text, ",");
    BK_TRY(read_cost(s, r, text, length, given));
    text = text[length] ? text + length + 1 : NULL;
  }
  if (r->w > r->b)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--costs: W, the gradients of parameters, is a part of B, the whole backward "
                   "pass: W=%g must not be above B=%g",
                   r->w, r->b);
  if (!given[3]) r->fb = r->f + r->b;
  if (r->fb > 0) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--costs: F and B must not both be 0");
}

/* ---- the schedule ---- */

static bool is_name(const char *text) {
  const char *const *names = bk_schedule_names();
  while (*names && strcmp(*names, text) != 0) names++;
  return *names != NULL;
}

/* A word that is no name is a file if there is one, or if it looks like a path. */
static bool is_file(cli_session *s, const char *text) {
  return !is_name(text) && (strpbrk(text, "/.") || bk_path_exists(s->ctx, text));
}

static bk_status read_file(cli_session *s, const char *path, int64_t pp, int64_t micro,
                           bk_schedule **schedule) {
  bk_schedule *read = NULL;
  BK_TRY(bk_schedule_read(s->ctx, path, &read));
  bk_status status = BK_OK;
  if (pp && pp != read->ranks)
    status = bk_fail(s->ctx, BK_ERR_ARGUMENT, "--pp %lld: the schedule in %s has %d rank%s",
                     (long long)pp, path, read->ranks, read->ranks == 1 ? "" : "s");
  else if (micro && micro != read->micro_batches)
    status =
        bk_fail(s->ctx, BK_ERR_ARGUMENT, "--micro %lld: the schedule in %s has %d micro-batch%s",
                (long long)micro, path, read->micro_batches, read->micro_batches == 1 ? "" : "es");
  if (status == BK_OK) *schedule = read;
  else bk_schedule_destroy(s->ctx, read);
  return status;
}

static bk_status make_schedule(cli_session *s, bk_schedule **schedule) {
  const char *name = cli_value(&s->args, "schedule");
  int64_t pp = 0, micro = 0;
  BK_TRY(cli_int(s, "pp", 1, INT32_MAX, &pp));
  BK_TRY(cli_int(s, "micro", 1, INT32_MAX, &micro));
  if (is_file(s, name)) return read_file(s, name, pp, micro, schedule);
  if (is_name(name) && (!pp || !micro))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --schedule %s needs --pp P and --micro M", name);
  return bk_schedule_create(s->ctx, name, (int)pp, (int)micro, schedule);
}

static bk_status measured_costs(cli_session *s, report *r) {
  cli_measured m;
  double edge = 0, inside = 0, between = 0;
  BK_TRY(cli_measured_read(s, r->measured, &m));
  bk_status status = BK_OK;
  if (cli_given(&s->args, "bandwidth")) status = cli_bandwidth(s, &inside, &between);
  if (status == BK_OK) status = cli_double(s, "latency", 0, 1, &r->latency);
  if (status == BK_OK)
    status = cli_measured_costs(s, &m, r->schedule, r->stage, r->sublayers, &edge, &r->optimizer);
  if (status == BK_OK && inside > 0) r->transfer = edge / inside;
  bk_free(s->ctx, m.parts);
  return status;
}

static bk_status find_costs(cli_session *s, report *r) {
  r->stage = bk_alloc_array(s->ctx, (size_t)r->schedule->stages, sizeof *r->stage);
  r->sublayers = bk_alloc_array(s->ctx, (size_t)r->schedule->stages, sizeof *r->sublayers);
  if (!r->stage || !r->sublayers) return BK_ERR_MEMORY;
  for (int i = 0; i < r->schedule->stages; i++)
    r->stage[i] = (bk_stage_costs){.f = r->f, .b = r->b, .w = r->w};
  return r->measured ? measured_costs(s, r) : BK_OK;
}

static bk_status simulate(cli_session *s, report *r, bk_timeline **timeline) {
  bk_schedule_costs costs = {.stage = r->stage,
                             .fb = r->measured ? 0 : r->fb,
                             .latency = r->latency,
                             .transfer = r->transfer,
                             .weights_last = r->measured != NULL};
  return bk_schedule_simulate(s->ctx, r->schedule, &costs, timeline);
}

/* ---- printing ---- */

static json_t *stages_json(const bk_schedule *x) {
  json_t *all = json_array();
  for (int r = 0; r < x->ranks; r++) {
    json_t *list = json_array();
    for (int c = 0; c < x->chunks; c++)
      json_array_append_new(list, json_integer(x->rank[r].chunks[c].stage));
    json_array_append_new(all, list);
  }
  return all;
}

/* A chunk belongs to the same stream on all ranks, in every schedule that this command can get. */
static json_t *streams_json(const bk_schedule *x) {
  json_t *list = json_array();
  for (int c = 0; c < x->chunks; c++)
    json_array_append_new(list, json_integer(x->rank[0].chunks[c].stream));
  return list;
}

static json_t *peaks_json(const bk_schedule *x) {
  json_t *list = json_array();
  for (int r = 0; r < x->ranks; r++) json_array_append_new(list, json_integer(x->rank[r].peak));
  return list;
}

/* NULL: out of memory, which was said. */
static json_t *lines_json(cli_session *s, const bk_schedule *x) {
  json_t *list = json_array();
  for (int r = 0; r < x->ranks; r++) {
    char *line = bk_schedule_text(s->ctx, x, r);
    if (!line) {
      json_decref(list);
      return NULL;
    }
    json_array_append_new(list, json_string(line));
    bk_free(s->ctx, line);
  }
  return list;
}

/* One set of costs, or those of each stage. */
static json_t *costs_json(const report *r) {
  if (!r->measured)
    return json_pack("{s:f,s:f,s:f,s:f}", "F", r->f, "B", r->b, "W", r->w, "FB", r->fb);
  json_t *list = json_array();
  for (int i = 0; i < r->schedule->stages; i++)
    json_array_append_new(list, json_pack("{s:f,s:f,s:f}", "F", r->stage[i].f, "B", r->stage[i].b,
                                          "W", r->stage[i].w));
  return list;
}

static bk_status print_json(cli_session *s, const report *r) {
  json_t *lines = lines_json(s, r->schedule);
  if (!lines) return BK_ERR_MEMORY;
  json_t *all = json_pack("{s:s,s:o,s:o,s:i,s:o,s:f,s:f,s:o,s:o}", "schedule", r->schedule->name,
                          "stages", stages_json(r->schedule), "streams", streams_json(r->schedule),
                          "micro", r->schedule->micro_batches, "ranks", lines, "bubble",
                          r->timeline->bubble, "time", r->timeline->time, "peak_activations",
                          peaks_json(r->schedule), "costs", costs_json(r));
  if (all && r->measured) {
    json_t *sublayers = json_array();
    for (int i = 0; i < r->schedule->stages; i++)
      json_array_append_new(sublayers, json_integer(r->sublayers[i]));
    json_object_set_new(all, "sublayers", sublayers);
    json_object_set_new(all, "optimizer", json_real(r->optimizer));
    json_object_set_new(all, "step", json_real(r->timeline->time + r->optimizer));
  }
  return cli_print_json(s, all);
}

static void print_rank(const report *r, int rank) {
  const bk_schedule_rank *list = &r->schedule->rank[rank];
  int counts[BK_WORKS] = {0}, used = 0;
  char stages[BK_SCHEDULE_CHUNKS * 8] = "";
  for (int i = 0; i < list->n_records; i++) counts[list->records[i].kind]++;
  for (int c = 0; c < r->schedule->chunks; c++)
    used += snprintf(stages + used, sizeof stages - (size_t)used, "%s%d", c ? "," : "",
                     list->chunks[c].stage);
  printf("%5d %-12s %5d %5d %5d %5d %5d %6d %10g %10g\n", rank, stages, counts[BK_WORK_F],
         counts[BK_WORK_B], counts[BK_WORK_I], counts[BK_WORK_W], counts[BK_WORK_FB], list->peak,
         r->timeline->busy[rank], r->timeline->time - r->timeline->busy[rank]);
}

static void print_stages(const report *r) {
  printf("costs            seconds, measured: %s\n", r->measured);
  for (int i = 0; i < r->schedule->stages; i++)
    printf("  stage %-8d %d sublayer%s: F %g, B %g, I %g, W %g\n", i, r->sublayers[i],
           r->sublayers[i] == 1 ? "" : "s", r->stage[i].f, r->stage[i].b,
           r->stage[i].b - r->stage[i].w, r->stage[i].w);
}

static bk_status print_text(cli_session *s, const report *r) {
  const bk_schedule *x = r->schedule;
  const bk_timeline *t = r->timeline;
  printf("schedule         %s: %d rank%s, %d stage%s in %d stream%s, %d micro-batch%s\n", x->name,
         x->ranks, x->ranks == 1 ? "" : "s", x->stages, x->stages == 1 ? "" : "s", x->streams,
         x->streams == 1 ? "" : "s", x->micro_batches, x->micro_batches == 1 ? "" : "es");
  if (r->measured) print_stages(r);
  else
    printf("costs            F %g, B %g, I %g, W %g, FB %g\n", r->f, r->b, r->b - r->w, r->w,
           r->fb);
  printf("time             %g\n", t->time);
  if (r->measured)
    printf("step             %g, with %g of the optimiser\n", t->time + r->optimizer, r->optimizer);
  printf("bubble           %g (%.1f %%), the time in which the rank that is idle most is idle\n\n",
         t->bubble, t->time > 0 ? 100 * t->bubble / t->time : 0);
  printf("%5s %-12s %5s %5s %5s %5s %5s %6s %10s %10s\n", "rank", "stages", "F", "B", "I", "W",
         "FB", "peak", "busy", "idle");
  for (int rank = 0; rank < x->ranks; rank++) print_rank(r, rank);
  return cli_flush_stdout(s);
}

static bk_status draw(cli_session *s, const report *r) {
  const char *path = cli_value(&s->args, "svg");
  if (!path) return BK_OK;
  return cli_svg_timeline(s->ctx, path,
                          &(cli_svg_times){.schedule = r->schedule,
                                           .timeline = r->timeline,
                                           .transfers = r->latency > 0 || r->transfer > 0,
                                           .title = "A step of a pipeline",
                                           .seconds = r->measured != NULL});
}

static bk_status read_options(cli_session *s, report *r) {
  static const char *const with_measured[] = {"bandwidth", "latency"};
  BK_TRY(refuse_model_options(s));
  BK_TRY(read_costs(s, r));
  r->measured = cli_value(&s->args, "measured");
  if (r->measured && cli_given(&s->args, "costs"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --costs and --measured: one of them is enough");
  for (size_t i = 0; i < BK_COUNT(with_measured) && !r->measured; i++)
    if (cli_given(&s->args, with_measured[i]))
      return bk_fail(
          s->ctx, BK_ERR_ARGUMENT,
          "plan: --%s goes with --measured or --gpus: without them messages take no time",
          with_measured[i]);
  return BK_OK;
}

bk_status cli_plan_schedule(cli_session *s) {
  bk_schedule *schedule = NULL;
  bk_timeline *timeline = NULL;
  report r;
  BK_TRY(read_options(s, &r));
  BK_TRY(make_schedule(s, &schedule));
  r.schedule = schedule;
  bk_status status = find_costs(s, &r);
  if (status == BK_OK) status = simulate(s, &r, &timeline);
  r.timeline = timeline;
  if (status == BK_OK) status = draw(s, &r);
  if (status == BK_OK) status = s->json ? print_json(s, &r) : print_text(s, &r);
  bk_timeline_destroy(s->ctx, timeline);
  bk_free(s->ctx, r.sublayers);
  bk_free(s->ctx, r.stage);
  bk_schedule_destroy(s->ctx, schedule);
  return status;
}

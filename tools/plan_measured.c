/* Costs of stages as `birkhoff bench step --json` has measured them (plan_schedule.h). The file is
 * not trusted: it may be anybody's, of any model. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/plan_schedule.h"

#define SECONDS_MAX 1e9
#define MEASURED_MAX ((size_t)16 << 20) /* bytes of a file */

static bk_status wrong(cli_session *s, const char *path, const char *what) {
  return bk_fail(s->ctx, BK_ERR_DATA,
                 "%s: %s; it is to be what birkhoff bench step --json prints without --compare",
                 path, what);
}

static bool number_of(const json_t *object, const char *key, double *value) {
  const json_t *n = json_object_get(object, key);
  *value = json_number_value(n);
  return json_is_number(n) && *value >= 0 && *value <= SECONDS_MAX;
}

static bool whole_of(const json_t *object, const char *key, int64_t *value) {
  const json_t *n = json_object_get(object, key);
  *value = json_integer_value(n);
  return json_is_integer(n) && *value >= 1 && *value <= INT32_MAX;
}

/* One of the model's parts: w is a part of b. */
static bool part_of(const json_t *part, bk_stage_costs *c) {
  return number_of(part, "F", &c->f) && number_of(part, "B", &c->b) &&
         number_of(part, "W", &c->w) && c->w <= c->b;
}

static bk_status read_config(cli_session *s, const char *path, const json_t *root,
                             bk_model_config *config) {
  const json_t *object = json_object_get(root, "config");
  if (!json_is_object(object)) return wrong(s, path, "there is no \"config\"");
  char *text = json_dumps(object, JSON_COMPACT);
  if (!text) return BK_ERR_MEMORY;
  bk_status status = bk_model_config_parse(s->ctx, text, strlen(text), path, config);
  free(text);
  return status;
}

static bk_status read_numbers(cli_session *s, const char *path, const json_t *root,
                              cli_measured *m) {
  const char *dtype = json_string_value(json_object_get(root, "dtype"));
  if (!number_of(root, "optimizer_seconds", &m->optimizer))
    return wrong(s, path, "\"optimizer_seconds\" is no time");
  if (!whole_of(root, "batch_size", &m->batch) || !whole_of(root, "seq_len", &m->seq_len) ||
      m->seq_len > m->config.max_position_embeddings)
    return wrong(s, path, "\"batch_size\" and \"seq_len\" are none of the model's");
  if (!dtype || bk_dtype_parse(dtype, &m->dtype) != BK_OK)
    return wrong(s, path, "\"dtype\" is none");
  return BK_OK;
}

/* The embedding, the sublayers, and head and loss, one after the other. */
static bk_status read_parts(cli_session *s, const char *path, const json_t *root, cli_measured *m) {
  const json_t *list = json_object_get(root, "parts");
  size_t n = 2 * (size_t)m->config.num_hidden_layers + 2;
  if (!json_is_array(list) || json_array_size(list) != n)
    return wrong(s, path, "\"parts\" are not those of the model");
  m->parts = bk_alloc_array(s->ctx, n, sizeof *m->parts);
  if (!m->parts) return BK_ERR_MEMORY;
  for (size_t i = 0; i < n; i++)
    if (!part_of(json_array_get(list, i), &m->parts[i]))
      return wrong(s, path, "one of \"parts\" has no times F, B and W");
  return BK_OK;
}

bk_status cli_measured_read(cli_session *s, const char *path, cli_measured *measured) {
  char *text = NULL;
  size_t bytes;
  cli_measured m = {.parts = NULL};
  BK_TRY(bk_file_read_all(s->ctx, path, MEASURED_MAX, &text, &bytes));
  json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
  bk_free(s->ctx, text);
  bk_status status = json_is_object(root) ? BK_OK : wrong(s, path, "it is no JSON object");
  if (status == BK_OK) status = read_config(s, path, root, &m.config);
  if (status == BK_OK) status = read_numbers(s, path, root, &m);
  if (status == BK_OK) status = read_parts(s, path, root, &m);
  json_decref(root);
  if (status == BK_OK) *measured = m;
  else bk_free(s->ctx, m.parts);
  return status;
}

bk_status cli_measured_cuts(cli_session *s, const cli_measured *m, double **costs) {
  size_t n = 2 * (size_t)m->config.num_hidden_layers + 2;
  *costs = bk_alloc_array(s->ctx, n, sizeof **costs);
  if (!*costs) return BK_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) (*costs)[i] = m->parts[i].f + m->parts[i].b;
  return BK_OK;
}

/* Sums over the sublayers of each stage; the ends belong to the first and the last. */
static void sum_parts(const cli_measured *m, const bk_pipeline *p, int stages,
                      bk_stage_costs *costs, int *sublayers) {
  int64_t last = 2 * m->config.num_hidden_layers;
  for (int i = 0; i < stages; i++) {
    int64_t begin, end;
    bk_pipeline_stage(p, i, &begin, &end);
    costs[i] = (bk_stage_costs){0, 0, 0};
    sublayers[i] = (int)(end - begin);
    for (int64_t k = begin + (begin > 0); k < end + 1 + (end == last); k++) {
      costs[i].f += m->parts[k].f;
      costs[i].b += m->parts[k].b;
      costs[i].w += m->parts[k].w;
    }
  }
}

/* What crosses an edge, and the largest share of all parameters that a rank has to update. */
static bk_status find_sizes(cli_session *s, const cli_measured *m, const bk_pipeline *p,
                            const bk_schedule *schedule, double *edge, double *share) {
  double most = 0, all = 0;
  *edge = 0;
  for (int i = 0; i < schedule->stages; i++) {
    bk_stage_needs n;
    bk_stage_options o = {
        .batch = m->batch, .seq_len = m->seq_len, .flops_per_s = 1, .bytes_per_s = 1};
    bk_pipeline_stage(p, i, &o.begin, &o.end);
    BK_TRY(bk_stage_plan(s->device, &m->config, m->dtype, &o, &n));
    if (schedule->stages > 1) *edge = n.edge_bytes;
    most = fmax(most, n.parameters);
    all += n.parameters;
  }
  *share = fmin(1, schedule->chunks * most / schedule->streams / all);
  return BK_OK;
}

bk_status cli_measured_costs(cli_session *s, const cli_measured *m, const bk_schedule *schedule,
                             bk_stage_costs *costs, int *sublayers, double *edge_bytes,
                             double *optimizer) {
  bk_pipeline *p = NULL;
  double share, *parts = NULL;
  if (!s->device) BK_TRY(cli_open_device(s));
  BK_TRY(cli_measured_cuts(s, m, &parts));
  bk_pipeline_options o = {.schedule = schedule, .costs = parts, .ranks = schedule->ranks};
  bk_status made = bk_pipeline_create(s->ctx, NULL, &m->config, &o, &p);
  bk_free(s->ctx, parts);
  BK_TRY(made);
  sum_parts(m, p, schedule->stages, costs, sublayers);
  bk_status status = find_sizes(s, m, p, schedule, edge_bytes, &share);
  if (status == BK_OK) *optimizer = share * m->optimizer;
  bk_pipeline_destroy(p);
  return status;
}

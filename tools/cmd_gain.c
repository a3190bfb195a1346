/* birkhoff gain: Amax gain magnitudes of the residual maps of one or several models on data: a
 * table, JSON, and an SVG like the paper's figures. */
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/svg.h"

#define DEFAULT_TOKENS 2048

typedef struct gain_run {
  cli_session *s;
  const char *name; /* as on the command line */
  bk_model *model;  /* NULL once it is measured */
  bk_dataset *data;
  bk_gain *gain;
  cli_reading reading;
  /* seq_len: that of the reading, or what the data and max_tokens leave of it */
  int64_t seq_len, max_tokens;
  int residual;
} gain_run;

/* The validation part, unless a stream is among the files: all of it then. */
static bk_status open_data(gain_run *r) {
  bool any_bin;
  BK_TRY(cli_any_data(r->s, true, &any_bin));
  r->reading.data.split = any_bin ? BK_SPLIT_ALL : BK_SPLIT_VAL;
  BK_TRY(cli_split(r->s, &r->reading.data.split));
  BK_TRY(cli_open_data(r->s, "data", &r->reading.data, &r->data));
  int64_t tokens = bk_dataset_tokens(r->data);
  if (tokens < 2)
    return bk_fail(r->s->ctx, BK_ERR_DATA, "gain: the data has %lld token, at least 2 are needed",
                   (long long)tokens);
  r->seq_len = r->reading.seq_len;
  if (r->seq_len > tokens - 1) r->seq_len = tokens - 1;
  if (r->seq_len > r->max_tokens) r->seq_len = r->max_tokens;
  return BK_OK;
}

/* ---- results ---- */

static json_t *rows_json(const bk_gain_row *rows, int count) {
  json_t *list = json_array();
  for (int i = 0; i < count; i++)
    json_array_append_new(
        list,
        json_pack("{s:o,s:o,s:o,s:o,s:o}", "forward", cli_number(rows[i].forward), "forward_max",
                  cli_number(rows[i].forward_max), "backward", cli_number(rows[i].backward),
                  "backward_max", cli_number(rows[i].backward_max), "abs_forward",
                  cli_number(rows[i].abs_forward)));
  return list;
}

static json_t *matrix_json(const double *m, int n) {
  json_t *rows = json_array();
  for (int k = 0; k < n; k++) {
    json_t *row = json_array();
    for (int j = 0; j < n; j++) json_array_append_new(row, cli_number(m[k * n + j]));
    json_array_append_new(rows, row);
  }
  return rows;
}

static json_t *run_json(const gain_run *r) {
  const bk_gain *g = r->gain;
  return json_pack(
      "{s:o,s:o,s:o,s:o,s:o,s:I,s:I,s:s}", "sublayers", rows_json(g->sublayers, g->n_sublayers),
      "composite", rows_json(g->composite, g->n_sublayers), "total_forward",
      cli_number(g->total_forward), "total_backward", cli_number(g->total_backward),
      "mean_composite", matrix_json(g->mean_composite, g->n), "tokens", (json_int_t)g->tokens,
      "seq_len", (json_int_t)r->seq_len, "residual", cli_residual_name(r->residual));
}

/* One run is its object; several are {"runs": [...]} of such objects, each with its "run". */
static bk_status print_json(const gain_run *runs, int count) {
  if (count == 1) return cli_print_json(runs->s, run_json(runs));
  json_t *list = json_array();
  for (int i = 0; i < count; i++) {
    json_t *one = run_json(&runs[i]);
    json_object_set_new(one, "run", json_string(runs[i].name));
    json_array_append_new(list, one);
  }
  return cli_print_json(runs->s, json_pack("{s:o}", "runs", list));
}

static void print_gain(double v) { printf(v < 1000 ? " %9.5f" : " %9.3e", bk_unsigned_nan(v)); }

static void print_gains(const bk_gain_row *row) {
  printf(" ");
  print_gain(row->forward);
  print_gain(row->forward_max);
  print_gain(row->backward);
  print_gain(row->backward_max);
}

static void print_map(const bk_gain *g) {
  for (int k = 0; k < g->n; k++) {
    for (int m = 0; m < g->n; m++)
      printf(" %9.4f", bk_unsigned_nan(g->mean_composite[k * g->n + m]));
    printf("\n");
  }
}

static void print_run(const gain_run *r) {
  const bk_gain *g = r->gain;
  bk_connection_info kind;
  bool hc = bk_connection_describe((bk_hc_kind)r->residual, &kind) && kind.signed_maps;
  printf(
      "Amax gain magnitude, %lld tokens in sequences of %lld (%s), residual %s, %d stream%s\n",
      (long long)g->tokens, (long long)r->seq_len,
      r->seq_len == r->reading.seq_len ? r->reading.why : "as many as the data and --tokens have",
      cli_residual_name(r->residual), g->n, g->n == 1 ? "" : "s");
  printf("                   single sublayer                           composite\n");
  printf(
      "sublayer       forward       max  backward       max    forward       max  backward       "
      "max%s\n",
      hc ? "   sum |H|" : "");
  for (int i = 0; i < g->n_sublayers; i++) {
    printf("%4d %-6s", i + 1, i % 2 ? "ffn" : "attn");
    print_gains(&g->sublayers[i]);
    print_gains(&g->composite[i]);
    if (hc) print_gain(g->sublayers[i].abs_forward);
    printf("\n");
  }
  printf(
      "H_L ... H_1: forward %.6g, backward %.6g (means over tokens)\nits mean over tokens (rows: "
      "destination, columns: source)\n",
      bk_unsigned_nan(g->total_forward), bk_unsigned_nan(g->total_backward));
  print_map(g);
}

/* A line of each run, after the tables of several. */
static void print_summary(const gain_run *runs, int count) {
  printf("H_L ... H_1 of each run\nresidual    sublayers    forward   backward  run\n");
  for (int i = 0; i < count; i++)
    printf("%-10s %10d %10.4g %10.4g  %s\n", cli_residual_name(runs[i].residual),
           runs[i].gain->n_sublayers, bk_unsigned_nan(runs[i].gain->total_forward),
           bk_unsigned_nan(runs[i].gain->total_backward), runs[i].name);
}

static bk_status print_text(const gain_run *runs, int count) {
  for (int i = 0; i < count; i++) {
    if (count > 1) printf("%s%s:\n", i ? "\n" : "", runs[i].name);
    print_run(&runs[i]);
  }
  if (count > 1) {
    printf("\n");
    print_summary(runs, count);
  }
  return cli_flush_stdout(runs->s);
}

static bk_status draw_one(const gain_run *r, const char *path) {
  char title[128], subtitle[160];
  snprintf(title, sizeof title, "Residual gains, %s, n = %d", cli_residual_name(r->residual),
           r->gain->n);
  snprintf(subtitle, sizeof subtitle,
           "%d sublayers, %lld tokens; H_L ... H_1: forward %.4g, backward %.4g",
           r->gain->n_sublayers, (long long)r->gain->tokens, r->gain->total_forward,
           r->gain->total_backward);
  return cli_svg_gain(r->s->ctx, path, r->gain, title, subtitle);
}

static bk_status draw(const gain_run *runs, int count, const char *path) {
  cli_svg_run curves[CLI_SVG_MOST_RUNS];
  if (count == 1) return draw_one(runs, path);
  for (int i = 0; i < count; i++)
    curves[i] = (cli_svg_run){runs[i].name, cli_residual_name(runs[i].residual), runs[i].gain};
  return cli_svg_composites(runs->s->ctx, path, curves, count);
}

/* ---- measuring ---- */

/* The gains are all that is kept of a model: several runs take the memory of the largest. */
static void drop_model(gain_run *r) {
  bk_dataset_close(r->data);
  bk_model_destroy(r->model);
  r->data = NULL;
  r->model = NULL;
}

static bk_status measure_run(gain_run *r) {
  cli_session *s = r->s;
  char *folder = NULL;
  bk_status status = cli_load_model(s, r->name, &(bk_model_options){0}, &r->model, &folder);
  const bk_model_config *config = status == BK_OK ? bk_model_config_of(r->model) : NULL;
  if (status == BK_OK) status = cli_reading_of(s, folder, config, &r->reading);
  if (status == BK_OK) r->residual = config->residual;
  if (status == BK_OK) status = open_data(r);
  if (status == BK_OK)
    status = bk_gain_measure(r->model, r->data, r->seq_len, r->max_tokens, &r->gain);
  drop_model(r);
  bk_free(s->ctx, folder);
  return status;
}

/* Gains of other tokens are other numbers, if only by a little. */
static void warn_of_other_tokens(const gain_run *runs, int count) {
  for (int i = 1; i < count; i++)
    if (runs[i].seq_len != runs->seq_len || runs[i].gain->tokens != runs->gain->tokens) {
      bk_warn(runs->s->ctx,
              "gain: %s is measured on %lld tokens in sequences of %lld, %s on %lld in sequences "
              "of %lld; --seq-len and --split make them alike",
              runs->name, (long long)runs->gain->tokens, (long long)runs->seq_len, runs[i].name,
              (long long)runs[i].gain->tokens, (long long)runs[i].seq_len);
      return;
    }
}

/* Everything is measured before the first result is written. */
static bk_status gain(gain_run *runs, int count) {
  const char *path = cli_value(&runs->s->args, "svg");
  for (int i = 0; i < count; i++) BK_TRY(measure_run(&runs[i]));
  warn_of_other_tokens(runs, count);
  if (path) BK_TRY(draw(runs, count, path));
  return runs->s->json ? print_json(runs, count) : print_text(runs, count);
}

static bk_status check_names(cli_session *s) {
  const char **names = s->args.words;
  if (s->args.n_words > CLI_SVG_MOST_RUNS)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "gain: %d checkpoints are given, it takes at most %d",
                   s->args.n_words, CLI_SVG_MOST_RUNS);
  for (int i = 0; i < s->args.n_words; i++)
    for (int k = 0; k < i; k++)
      if (strcmp(names[i], names[k]) == 0)
        return bk_fail(s->ctx, BK_ERR_ARGUMENT, "gain: %s is given twice", names[i]);
  return BK_OK;
}

static bk_status run(cli_session *s) {
  gain_run runs[CLI_SVG_MOST_RUNS] = {{0}}, first = {.s = s, .max_tokens = DEFAULT_TOKENS};
  int count = s->args.n_words;
  if (!cli_given(&s->args, "data"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "gain: --data FILE... is needed");
  BK_TRY(check_names(s));
  BK_TRY(cli_int(s, "seq-len", 1, 1 << 24, &first.reading.seq_len));
  BK_TRY(cli_int(s, "tokens", 1, INT64_MAX, &first.max_tokens));
  /* a wrong word is told before the model is read */
  BK_TRY(cli_split(s, &first.reading.data.split));
  BK_TRY(cli_open_device(s));
  for (int i = 0; i < count; i++) {
    runs[i] = first;
    runs[i].name = s->args.words[i];
  }
  bk_status status = gain(runs, count);
  for (int i = 0; i < count; i++) bk_gain_destroy(runs[i].gain);
  return status;
}

static const cli_option options[] = {
    {"data", CLI_MANY, "FILE", "UTF-8 text or .bin token streams: files, patterns, @LIST"},
    {"split", CLI_ONE, "train|val|all", "part of each file (default: val; all if a .bin is given)"},
    {"tokens", CLI_ONE, "N", "most tokens to average over (default: 2048)"},
    {"seq-len", CLI_ONE, "N",
     "tokens per sequence (default: as in training, else max_position_embeddings, at most 1024)"},
    {"svg", CLI_ONE, "FILE",
     "draw gain against depth: of one checkpoint with its composite map, of several in one panel"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_gain = {"gain",
                              "CKPT... --data FILE... [OPTIONS]",
                              "Shows the gains of the residual maps, per sublayer and composite.",
                              options,
                              1,
                              INT_MAX,
                              run};

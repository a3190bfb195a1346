/* Amax gain magnitudes of residual maps (gain.h, birkhoff/train.h), the measure of arXiv
 * 2512.24880. Forward it is the largest absolute row sum of H_res: how much a signal that is equal
 * in all streams grows on its way. Backward it is the largest absolute column sum, the same for
 * gradients. Both are taken of each sublayer's map and of composites, the products of the maps up
 * to a sublayer (forward) or from it on (backward), token by token, and then averaged over the
 * tokens. Averaging the maps first would hide what single tokens do.
 *
 * Maps come as comb (source, destination) and are turned into H (destination, source). Everything
 * is computed on the host in doubles. */
#include "models/gain.h"

#include "models/chunk_priv.h"

#include <math.h>
#include <string.h>

typedef struct gain_state {
  bk_gain gain; /* first: what the caller sees */
  bk_context *ctx;
  double *maps; /* host copy of one batch, [n_sublayers][tokens][n][n] */
  size_t capacity;
} gain_state;

/* One token's H_res: h[destination][source]. */
typedef struct map {
  double h[BK_HC_MAX_N][BK_HC_MAX_N];
} map;

/* What the caller gets is the first member of gain_state, so that a pointer to one is one to the
 * other. */
bk_status bk_gain_create(bk_context *ctx, int n_sublayers, int n, bk_gain **gain) {
  if (n_sublayers < 1 || n < 1 || n > BK_HC_MAX_N) {
    return bk_fail(ctx, BK_ERR_ARGUMENT, "gain: %d sublayers of %d streams; streams are 1 to %d",
                   n_sublayers, n, BK_HC_MAX_N);
  }
  gain_state *g = bk_alloc(ctx, sizeof *g);
  if (!g) return BK_ERR_MEMORY;
  g->ctx = ctx;
  g->gain.n_sublayers = n_sublayers;
  g->gain.n = n;
  g->gain.sublayers = bk_alloc_array(ctx, (size_t)n_sublayers, sizeof(bk_gain_row));
  g->gain.composite = bk_alloc_array(ctx, (size_t)n_sublayers, sizeof(bk_gain_row));
  g->gain.mean_composite = bk_alloc_array(ctx, (size_t)(n * n), sizeof(double));
  if (!g->gain.sublayers || !g->gain.composite || !g->gain.mean_composite) {
    bk_gain_destroy(&g->gain);
    return BK_ERR_MEMORY;
  }
  *gain = &g->gain;
  return BK_OK;
}

bk_status bk_gain_reserve(bk_gain *gain, int64_t tokens, int sublayers) {
  gain_state *g = (gain_state *)gain;
  size_t maps = (size_t)(gain->n * gain->n) * (size_t)sublayers * (size_t)tokens;
  return bk_grow(g->ctx, (void **)&g->maps, &g->capacity, maps, sizeof *g->maps);
}

void bk_gain_destroy(bk_gain *gain) {
  if (!gain) return;
  gain_state *g = (gain_state *)gain;
  bk_context *ctx = g->ctx;
  bk_free(ctx, gain->sublayers);
  bk_free(ctx, gain->composite);
  bk_free(ctx, gain->mean_composite);
  bk_free(ctx, g->maps);
  bk_free(ctx, g);
}

/* A new measurement begins; the memory stays. */
void bk_gain_reset(bk_gain *gain) {
  memset(gain->sublayers, 0, (size_t)gain->n_sublayers * sizeof *gain->sublayers);
  memset(gain->composite, 0, (size_t)gain->n_sublayers * sizeof *gain->composite);
  memset(gain->mean_composite, 0, (size_t)(gain->n * gain->n) * sizeof(double));
  gain->tokens = 0;
  gain->total_forward = gain->total_backward = 0.0;
}

/* ---- small matrices ---- */
static map map_identity(int n) {
  map a = {{{0}}};
  for (int i = 0; i < n; i++) a.h[i][i] = 1.0;
  return a;
}

/* H_res is the transpose of comb. */
static map map_of_comb(const double *comb, int n) {
  map a = {{{0}}};
  for (int m = 0; m < n; m++) {
    for (int k = 0; k < n; k++) a.h[k][m] = comb[m * n + k];
  }
  return a;
}

/* In the product a b the map b acts first. */
static map map_product(const map *a, const map *b, int n) {
  map c = {{{0}}};
  for (int i = 0; i < n; i++) {
    for (int j = 0; j < n; j++) {
      for (int l = 0; l < n; l++) c.h[i][j] += a->h[i][l] * b->h[l][j];
    }
  }
  return c;
}

/* The larger of the two; a NaN in `a` stays, so that it is seen in the result. */
static double larger(double a, double b) { return a >= b || isnan(a) ? a : b; }

/* The largest absolute row sum: sources m are summed for each destination k. */
static double gain_forward(const map *a, int n) {
  double best = 0.0;
  for (int k = 0; k < n; k++) {
    double sum = 0.0;
    for (int m = 0; m < n; m++) sum += a->h[k][m];
    best = larger(best, fabs(sum));
  }
  return best;
}

/* The largest absolute column sum says what a gradient that is equal in all streams becomes. */
static double gain_backward(const map *a, int n) {
  double best = 0.0;
  for (int m = 0; m < n; m++) {
    double sum = 0.0;
    for (int k = 0; k < n; k++) sum += a->h[k][m];
    best = larger(best, fabs(sum));
  }
  return best;
}

/* The same with absolute values inside the sum (the maximum norm of the matrix), which signs that
 * cancel cannot hide. */
static double gain_absolute(const map *a, int n) {
  double best = 0.0;
  for (int k = 0; k < n; k++) {
    double sum = 0.0;
    for (int m = 0; m < n; m++) sum += fabs(a->h[k][m]);
    best = larger(best, sum);
  }
  return best;
}

/* These are sums over tokens, of which bk_gain_finish makes means; maxima stay maxima. */
static void add_forward(bk_gain_row *row, const map *a, int n) {
  double f = gain_forward(a, n);
  row->forward += f;
  row->forward_max = larger(row->forward_max, f);
  row->abs_forward += gain_absolute(a, n);
}

static void add_backward(bk_gain_row *row, const map *a, int n) {
  double b = gain_backward(a, n);
  row->backward += b;
  row->backward_max = larger(row->backward_max, b);
}

/* ---- one token: sublayers [first, first + count), comb of number s of them at comb + s * stride
 * ---- */

/* `up` is H_s ... H_1, what sublayer s makes of the streams at the beginning. */
static void add_up(bk_gain *g, int first, int count, const double *comb, size_t stride, map *up) {
  int n = g->n;
  for (int s = 0; s < count; s++) {
    map h = comb ? map_of_comb(comb + (size_t)s * stride, n) : map_identity(n);
    add_forward(&g->sublayers[first + s], &h, n);
    add_backward(&g->sublayers[first + s], &h, n);
    *up = map_product(&h, up, n);
    add_forward(&g->composite[first + s], up, n);
  }
}

/* `down` is H_L ... H_s, what the gradient at the end becomes at sublayer s. */
static void add_down(bk_gain *g, int first, int count, const double *comb, size_t stride,
                     map *down) {
  int n = g->n;
  for (int s = count - 1; s >= 0; s--) {
    map h = comb ? map_of_comb(comb + (size_t)s * stride, n) : map_identity(n);
    *down = map_product(down, &h, n);
    add_backward(&g->composite[first + s], down, n);
  }
}

static void add_total(bk_gain *g, const map *up) {
  int n = g->n;
  g->total_forward += gain_forward(up, n);
  g->total_backward += gain_backward(up, n);
  for (int i = 0; i < n * n; i++) g->mean_composite[i] += up->h[i / n][i % n];
}

static void add_token(bk_gain *g, const double *comb, size_t stride) {
  map up = map_identity(g->n), down = up;
  add_up(g, 0, g->n_sublayers, comb, stride, &up);
  add_down(g, 0, g->n_sublayers, comb, stride, &down);
  add_total(g, &up);
}

/* In the maps of a batch the sublayer is the outermost index; NULL stands for identities. */
void bk_gain_add_maps(bk_gain *gain, const double *comb, int64_t tokens) {
  size_t block = (size_t)(gain->n * gain->n), stride = block * (size_t)tokens;
  for (int64_t t = 0; t < tokens; t++)
    add_token(gain, comb ? comb + (size_t)t * block : NULL, stride);
  gain->tokens += tokens;
}

/* A kind without comb has the identity in every sublayer, which needs no copies. */
static bk_status read_maps(gain_state *g, const bk_runner *runner, int slot, bool *identity,
                           int64_t *tokens) {
  bk_tensor pre, post, comb;
  size_t at = 0;
  *identity = false;
  for (int s = 0; s < g->gain.n_sublayers; s++) {
    BK_TRY(bk_runner_maps(runner, slot, s, &pre, &post, &comb));
    if (!bk_tensor_present(&comb)) {
      *identity = true;
      return BK_OK;
    }
    size_t count = (size_t)bk_tensor_count(&comb);
    *tokens = comb.shape[0];
    BK_TRY(bk_grow(g->ctx, (void **)&g->maps, &g->capacity, count * (size_t)g->gain.n_sublayers,
                   sizeof *g->maps));
    BK_TRY(bk_tensor_read_f64(bk_runner_stream(runner), &comb, g->maps + at));
    at += count;
  }
  return BK_OK;
}

/* Maps are read as the last forward left them, before another uses the slot. */
bk_status bk_gain_add(bk_gain *gain, const bk_runner *runner, int slot) {
  gain_state *g = (gain_state *)gain;
  bool identity;
  int64_t tokens = bk_runner_tokens(runner);
  if (gain->n_sublayers != bk_runner_n_sublayers(runner)) {
    return bk_fail(g->ctx, BK_ERR_ARGUMENT, "gain: made for %d sublayers, the model has %d",
                   gain->n_sublayers, bk_runner_n_sublayers(runner));
  }
  BK_TRY(read_maps(g, runner, slot, &identity, &tokens));
  bk_gain_add_maps(gain, identity ? NULL : g->maps, tokens);
  return BK_OK;
}

/* ---- in several chunks ---- */

static map map_load(const double *numbers, int n) {
  map a = {{{0}}};
  for (int i = 0; i < n * n; i++) a.h[i / n][i % n] = numbers[i];
  return a;
}

static void map_store(const map *a, double *numbers, int n) {
  for (int i = 0; i < n * n; i++) numbers[i] = a->h[i / n][i % n];
}

void bk_gain_identity(const bk_gain *gain, double *products, int64_t tokens) {
  map one = map_identity(gain->n);
  for (int64_t t = 0; t < tokens; t++) map_store(&one, products + t * gain->n * gain->n, gain->n);
}

/* The kind has comb: there is nothing to pass on where every map is the identity. */
static bk_status read_chunk(gain_state *g, const bk_chunk *c, int slot) {
  size_t at = 0;
  for (int s = 0; s < c->n; s++) {
    bk_tensor pre, post, comb;
    bk_connection_show(&c->sublayers[s].connection, &c->slots[slot].mix[s], &pre, &post, &comb);
    size_t count = (size_t)bk_tensor_count(&comb);
    BK_TRY(bk_grow(g->ctx, (void **)&g->maps, &g->capacity, count * (size_t)c->n, sizeof *g->maps));
    BK_TRY(bk_tensor_read_f64(c->model->stream, &comb, g->maps + at));
    at += count;
  }
  return BK_OK;
}

bk_status bk_gain_pass(bk_gain *gain, const bk_chunk *c, int slot, bool back, double *products) {
  gain_state *g = (gain_state *)gain;
  int n = gain->n, first = c->sublayers[0].index;
  size_t block = (size_t)(n * n), stride = block * (size_t)c->tokens;
  BK_TRY(read_chunk(g, c, slot));
  for (int64_t t = 0; t < c->tokens; t++) {
    map m = map_load(products + (size_t)t * block, n);
    (back ? add_down : add_up)(gain, first, c->n, g->maps + (size_t)t * block, stride, &m);
    map_store(&m, products + (size_t)t * block, n);
  }
  return BK_OK;
}

void bk_gain_total(bk_gain *gain, const double *products, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++) {
    map up = map_load(products + t * gain->n * gain->n, gain->n);
    add_total(gain, &up);
  }
  gain->tokens += tokens;
}

/* The maxima are over tokens already. */
static void to_means(bk_gain_row *rows, int count, double tokens) {
  for (int i = 0; i < count; i++) {
    rows[i].forward /= tokens;
    rows[i].backward /= tokens;
    rows[i].abs_forward /= tokens;
  }
}

/* This comes once, after the last batch. Without tokens everything is 0. */
void bk_gain_finish(bk_gain *gain) {
  double tokens = gain->tokens > 0 ? (double)gain->tokens : 1.0;
  to_means(gain->sublayers, gain->n_sublayers, tokens);
  to_means(gain->composite, gain->n_sublayers, tokens);
  gain->total_forward /= tokens;
  gain->total_backward /= tokens;
  for (int i = 0; i < gain->n * gain->n; i++) gain->mean_composite[i] /= tokens;
}

/* ---- of a model, on data ---- */

/* The passes have no targets. No step is ended, since nothing of the step block is wanted. */
static bk_status measure_windows(bk_gain *gain, bk_runner *runner, bk_model *m,
                                 const bk_dataset *data, int64_t seq_len, int64_t windows) {
  int32_t *ids = bk_alloc_array(m->ctx, (size_t)seq_len, sizeof *ids),
          *targets = bk_alloc_array(m->ctx, (size_t)seq_len, sizeof *targets);
  bk_status status = ids && targets ? BK_OK : BK_ERR_MEMORY;
  for (int64_t i = 0; i < windows && status == BK_OK; i++) {
    int64_t kept; /* all of them: the windows are whole */
    status = bk_dataset_eval_window(data, seq_len, i, ids, targets, &kept);
    if (status == BK_OK) status = bk_step_begin(m, &(bk_step_values){.bc1 = 1, .bc2 = 1});
    if (status == BK_OK) status = bk_runner_forward(runner, 0, ids, NULL);
    if (status == BK_OK) status = bk_gain_add(gain, runner, 0);
  }
  bk_free(m->ctx, targets);
  bk_free(m->ctx, ids);
  return status;
}

/* Whole windows only: the padding of a short one is no token of the data. */
bk_status bk_gain_measure(bk_model *m, const bk_dataset *data, int64_t seq_len, int64_t max_tokens,
                          bk_gain **gain) {
  if (seq_len < 1 || max_tokens < seq_len)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT,
                   "gain: windows of %lld tokens, at most %lld in all: one must fit",
                   (long long)seq_len, (long long)max_tokens);
  BK_TRY(bk_model_check_pass(m, "gain", seq_len));
  int64_t windows = (bk_dataset_tokens(data) - 1) / seq_len;
  if (windows < 1)
    return bk_fail(m->ctx, BK_ERR_DATA, "gain: the data has %lld tokens, at least %lld are needed",
                   (long long)bk_dataset_tokens(data), (long long)seq_len + 1);
  if (windows > max_tokens / seq_len) windows = max_tokens / seq_len;
  bk_runner_options options = {.batch = 1, .seq_len = seq_len, .slots = 1};
  bk_runner *runner = NULL;
  bk_gain *made = NULL;
  bk_status status = bk_runner_create(m, &options, &runner);
  if (status == BK_OK)
    status = bk_gain_create(m->ctx, bk_runner_n_sublayers(runner), (int)bk_model_streams(m), &made);
  if (status == BK_OK) status = measure_windows(made, runner, m, data, seq_len, windows);
  bk_runner_destroy(runner);
  if (status == BK_OK) {
    bk_gain_finish(made);
    *gain = made;
  } else {
    bk_gain_destroy(made);
  }
  return status;
}

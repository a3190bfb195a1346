/* Generation with a KV cache (birkhoff/train.h). A prompt goes through a runner of PREFILL
 * positions as far as whole pieces go, and the rest token by token through another that shares its
 * cache: both have fixed shapes, and nothing is allocated between two tokens.
 *
 * A token drawn depends on seed, position and logits alone: the same call gives the same text on
 * any number of threads. */
#include "models/generator.h"

#include <math.h>
#include <string.h>

#define PREFILL 32

/* A token with its weight, exp((logit - largest) / temperature). */
typedef struct candidate {
  double p;
  int32_t token;
} candidate;

/* length is the number of tokens in the cache, which is also the position of the next one. */
struct bk_generator {
  bk_model *model;
  /* `many` shares one's cache; NULL where the room is shorter than a piece */
  bk_runner *one, *many;
  int64_t length, max_tokens;
  double *logits; /* [V] of the last token */
  candidate *sorted;
};

/* The cache has max_tokens positions and belongs to the runner for single tokens. */
bk_status bk_generator_create(bk_model *model, int64_t max_tokens, bk_generator **generator) {
  bk_context *ctx = model->ctx;
  if (max_tokens < 1)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "generator: room for %lld tokens, at least 1 is needed",
                   (long long)max_tokens);
  bk_generator *g = bk_alloc(ctx, sizeof *g);
  if (!g) return BK_ERR_MEMORY;
  *g = (bk_generator){.model = model, .max_tokens = max_tokens};
  size_t vocab = (size_t)model->config.vocab_size;
  g->logits = bk_alloc_array(ctx, vocab, sizeof *g->logits);
  g->sorted = bk_alloc_array(ctx, vocab, sizeof *g->sorted);
  bk_runner_options options = {
      .batch = 1, .seq_len = 1, .slots = 1, .keep_logits = true, .cache_len = max_tokens};
  bk_status status =
      g->logits && g->sorted ? bk_runner_create(model, &options, &g->one) : BK_ERR_MEMORY;
  if (status == BK_OK && max_tokens >= PREFILL) {
    options.seq_len = PREFILL;
    status = bk_runner_create_sharing(model, &options, g->one, &g->many);
  }
  if (status == BK_OK) *generator = g;
  else bk_generator_destroy(g);
  return status;
}

/* The runner that shares the cache ends before the one that owns it. */
void bk_generator_destroy(bk_generator *g) {
  if (!g) return;
  bk_context *ctx = g->model->ctx;
  bk_runner_destroy(g->many);
  bk_runner_destroy(g->one);
  bk_free(ctx, g->sorted);
  bk_free(ctx, g->logits);
  bk_free(ctx, g);
}

/* The shared cache counts once, with its owner. */
size_t bk_generator_bytes(const bk_generator *g, bk_memory_class c) {
  return bk_runner_bytes(g->one, c) + (g->many ? bk_runner_bytes(g->many, c) : 0);
}

int64_t bk_generator_length(const bk_generator *g) { return g->length; }

/* As doubles, widened where they land, from the last to the first: bk_tensor_read_f64 would
 * allocate on a device with its own memory. */
static bk_status read_logits(bk_generator *g, const bk_tensor *row) {
  BK_TRY(bk_tensor_download(g->model->stream, row, g->logits));
  for (int64_t i = row->dtype == BK_F32 ? g->model->config.vocab_size : 0; i-- > 0;) {
    float one;
    memcpy(&one, (const char *)g->logits + i * (int64_t)sizeof one, sizeof one);
    g->logits[i] = (double)one;
  }
  return BK_OK;
}

/* A whole piece is fed where there are tokens for it, else a single token. Only the logits of the
 * last token are read. A pass belongs to a step, so that one is begun for each. */
bk_status bk_generator_feed(bk_generator *g, const int32_t *ids, int64_t count) {
  bk_context *ctx = g->model->ctx;
  if (count < 1 || count > g->max_tokens - g->length)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "generator: %lld tokens after %lld, room for %lld in all",
                   (long long)count, (long long)g->length, (long long)g->max_tokens);
  bk_tensor last = {0};
  while (count > 0) {
    int64_t piece = g->many && count >= PREFILL ? PREFILL : 1;
    bk_runner *runner = piece > 1 ? g->many : g->one;
    BK_TRY(bk_step_begin(g->model, &(bk_step_values){.bc1 = 1, .bc2 = 1}));
    BK_TRY(bk_runner_decode(runner, g->length, ids));
    g->length += piece;
    ids += piece;
    count -= piece;
    last = bk_tensor_slice(bk_runner_logits(runner), 0, piece - 1, 1);
  }
  return read_logits(g, &last);
}

/* The order is total, because no two candidates have the same token. */
static bool comes_before(const candidate *x, const candidate *y) {
  return x->p != y->p ? x->p > y->p : x->token < y->token;
}

/* One step of the heap sort: lets heap[at] sink until both children come before it. The root is the
 * one that comes last. */
static void sift_down(candidate *heap, int64_t at, int64_t count) {
  candidate moved = heap[at];
  for (int64_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && comes_before(&heap[child], &heap[child + 1])) child++;
    if (!comes_before(&moved, &heap[child])) break;
    heap[at] = heap[child];
  }
  heap[at] = moved;
}

/* Sorts by falling probability, ties by token. It is a heap sort, because the C library's qsort
 * may allocate. */
static void sort_candidates(candidate *c, int64_t count) {
  for (int64_t i = count / 2 - 1; i >= 0; i--) sift_down(c, i, count);
  for (int64_t i = count - 1; i > 0; i--) {
    candidate last = c[i];
    c[i] = c[0];
    c[0] = last;
    sift_down(c, 0, i);
  }
}

/* Of equal elements the first one is meant. */
static int32_t arg_max(const double *x, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; i++)
    if (x[i] > x[best]) best = i;
  return (int32_t)best;
}

/* Sampling from logits that are not finite would give a token all the same, and hide the fault. */
static bk_status check_sample(const bk_generator *g, double temperature, double top_p) {
  bk_context *ctx = g->model->ctx;
  if (g->length == 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "generator: nothing was fed yet, there is no token to go on from");
  if (!(temperature >= 0) || !(top_p >= 0))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "generator: temperature %g and top_p %g must be at least 0", temperature, top_p);
  for (int64_t i = 0; i < g->model->config.vocab_size; i++)
    if (!isfinite(g->logits[i]))
      return bk_fail(ctx, BK_ERR_NOT_FINITE,
                     "generator: the logits after %lld tokens are not finite",
                     (long long)g->length);
  return BK_OK;
}

/* Nucleus sampling: the most likely tokens are kept until their share reaches top_p, at least one,
 * and one of them is drawn. Temperature 0 takes the most likely one. The weights are never divided
 * by their sum; the draw is scaled instead. */
bk_status bk_generator_sample(bk_generator *g, double temperature, double top_p, uint64_t seed,
                              int32_t *token) {
  int64_t vocab = g->model->config.vocab_size;
  BK_TRY(check_sample(g, temperature, top_p));
  /* the largest logit is taken off before exp, so that no weight overflows */
  int32_t best = arg_max(g->logits, vocab);
  if (temperature == 0) {
    *token = best;
    return BK_OK;
  }
  double total = 0;
  for (int64_t i = 0; i < vocab; i++) {
    g->sorted[i] = (candidate){exp((g->logits[i] - g->logits[best]) / temperature), (int32_t)i};
    total += g->sorted[i].p;
  }
  sort_candidates(g->sorted, vocab);
  double mass = 0;
  int64_t kept = 0;
  while (kept < vocab && (kept == 0 || mass < top_p * total)) mass += g->sorted[kept++].p;
  /* the random number is that of the position, so that each token has its own */
  double draw = bk_uniform(seed, bk_hash64("generate", 8), (uint64_t)g->length) * mass;
  int64_t i = 0;
  while (i + 1 < kept && draw >= g->sorted[i].p) draw -= g->sorted[i++].p;
  *token = g->sorted[i].token;
  return BK_OK;
}

/* Tokens of one pass out of a safetensors file (tokens.h). Everything is checked here, so that the
 * model may take ids and targets as they are: ids below the vocabulary, targets the same or
 * IGNORED, the value that PyTorch's cross entropy passes over.
 *
 * The file has input_ids [B,T] and may have targets [B,T]; both in I32 or I64. Positions are not
 * shifted: targets[b][t] is what the model is to predict at position t. */
#include "io/tokens.h"

#include "io/safetensors.h"

#define IGNORED (-100)

/* The file and what its tokens must keep to: ids below `vocab`, sequences of at most `longest`
 * tokens. */
typedef struct source {
  bk_context *ctx;
  bk_st_reader *in;
  int64_t vocab, longest;
  bk_tokens t;
} source;

/* `values` gets the B*T elements of a tensor of i32 or i64. */
static bk_status read_integers(const source *s, const bk_st_entry *e, int64_t *values) {
  size_t count = (size_t)(s->t.batch * s->t.seq_len), bytes = (size_t)(e->end - e->begin);
  void *raw = bk_alloc(s->ctx, bytes);
  if (!raw) return BK_ERR_MEMORY;
  bk_status status = bk_st_read(s->in, e, raw, bytes);
  for (size_t i = 0; i < count && status == BK_OK; i++)
    values[i] = e->dtype == BK_I32 ? ((int32_t *)raw)[i] : ((int64_t *)raw)[i];
  bk_free(s->ctx, raw);
  return status;
}

/* Only dtype and number of dimensions are checked here; the sizes are compared elsewhere. */
static bk_status check_integers(const source *s, const bk_st_entry *e) {
  if (e->dtype != BK_I32 && e->dtype != BK_I64)
    return bk_fail(s->ctx, BK_ERR_DATA, "%s: tensor %s has dtype %s, expected I32 or I64",
                   bk_st_path(s->in), e->name, e->dtype_name);
  if (e->ndim != 2)
    return bk_fail(s->ctx, BK_ERR_DATA,
                   "%s: tensor %s has %d dimensions, expected [sequences, tokens]",
                   bk_st_path(s->in), e->name, e->ndim);
  return BK_OK;
}

/* The message says sequence and position, as a user counts them in Python. */
static bk_status read_ids(source *s, int64_t *values) {
  BK_TRY(read_integers(s, bk_st_find(s->in, "input_ids"), values));
  for (int64_t i = 0; i < s->t.batch * s->t.seq_len; i++) {
    if (values[i] < 0 || values[i] >= s->vocab)
      return bk_fail(s->ctx, BK_ERR_DATA,
                     "%s: input_ids[%lld][%lld] is %lld, the vocabulary has 0 to %lld",
                     bk_st_path(s->in), (long long)(i / s->t.seq_len),
                     (long long)(i % s->t.seq_len), (long long)values[i], (long long)s->vocab - 1);
    s->t.ids[i] = (int32_t)values[i];
  }
  return BK_OK;
}

/* Every token predicts the next one of its own sequence; the last one predicts nothing. */
static void default_targets(bk_tokens *t) {
  for (int64_t i = 0; i < t->batch * t->seq_len; i++)
    t->targets[i] = (i + 1) % t->seq_len ? t->ids[i + 1] : IGNORED;
}

/* Targets have the shape of the ids; IGNORED marks those that do not count. */
static bk_status read_targets(source *s, const bk_st_entry *e, int64_t *values) {
  bk_tokens *t = &s->t;
  BK_TRY(check_integers(s, e));
  if (e->shape[0] != t->batch || e->shape[1] != t->seq_len)
    return bk_fail(s->ctx, BK_ERR_DATA, "%s: targets is [%lld,%lld], input_ids [%lld,%lld]",
                   bk_st_path(s->in), (long long)e->shape[0], (long long)e->shape[1],
                   (long long)t->batch, (long long)t->seq_len);
  BK_TRY(read_integers(s, e, values));
  for (int64_t i = 0; i < t->batch * t->seq_len; i++) {
    if (values[i] != IGNORED && (values[i] < 0 || values[i] >= s->vocab))
      return bk_fail(s->ctx, BK_ERR_DATA,
                     "%s: targets[%lld][%lld] is %lld, expected 0 to %lld, or %d to ignore it",
                     bk_st_path(s->in), (long long)(i / t->seq_len), (long long)(i % t->seq_len),
                     (long long)values[i], (long long)s->vocab - 1, IGNORED);
    t->targets[i] = (int32_t)values[i];
  }
  return BK_OK;
}

/* The number of tokens must fit 31 bits, in which kernels count rows. */
static bk_status check_shape(source *s, const bk_st_entry *e) {
  if (!e) return bk_fail(s->ctx, BK_ERR_DATA, "%s: tensor input_ids is missing", bk_st_path(s->in));
  BK_TRY(check_integers(s, e));
  if (e->shape[0] < 1 || e->shape[1] < 1 || e->shape[0] > INT32_MAX || e->shape[1] > INT32_MAX ||
      e->shape[0] * e->shape[1] > INT32_MAX)
    return bk_fail(s->ctx, BK_ERR_DATA,
                   "%s: input_ids is [%lld,%lld], which holds no usable number of tokens",
                   bk_st_path(s->in), (long long)e->shape[0], (long long)e->shape[1]);
  if (e->shape[1] > s->longest)
    return bk_fail(
        s->ctx, BK_ERR_DATA,
        "%s: sequences of %lld tokens, the model takes at most %lld (max_position_embeddings)",
        bk_st_path(s->in), (long long)e->shape[1], (long long)s->longest);
  s->t.batch = e->shape[0];
  s->t.seq_len = e->shape[1];
  return BK_OK;
}

/* A pass without any kept target has no loss to speak of: its mean would divide by 0. */
static bk_status read_all(source *s) {
  BK_TRY(check_shape(s, bk_st_find(s->in, "input_ids")));
  bk_tokens *t = &s->t;
  size_t count = (size_t)(t->batch * t->seq_len);
  t->ids = bk_alloc_array(s->ctx, count, sizeof *t->ids);
  t->targets = bk_alloc_array(s->ctx, count, sizeof *t->targets);
  int64_t *values = bk_alloc_array(s->ctx, count, sizeof *values);
  const bk_st_entry *targets = bk_st_find(s->in, "targets");
  bk_status status = t->ids && t->targets && values ? read_ids(s, values) : BK_ERR_MEMORY;
  if (status == BK_OK && targets) status = read_targets(s, targets, values);
  else if (status == BK_OK) default_targets(t);
  bk_free(s->ctx, values);
  BK_TRY(status);
  for (size_t i = 0; i < count; i++) t->kept += t->targets[i] >= 0;
  if (t->kept) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_DATA, "%s: no target is kept%s", bk_st_path(s->in),
                 targets ? "" : "; a sequence of one token predicts nothing");
}

/* *tokens is written on success only, and is then to be freed with bk_tokens_fini. */
bk_status bk_tokens_read(bk_context *ctx, const char *path, int64_t vocab_size, int64_t longest,
                         bk_tokens *tokens) {
  source s = {.ctx = ctx, .vocab = vocab_size, .longest = longest};
  BK_TRY(bk_st_open(ctx, path, &s.in));
  bk_status status = read_all(&s);
  bk_st_close(s.in);
  if (status == BK_OK) *tokens = s.t;
  else bk_tokens_fini(ctx, &s.t);
  return status;
}

void bk_tokens_fini(bk_context *ctx, bk_tokens *tokens) {
  bk_free(ctx, tokens->targets);
  bk_free(ctx, tokens->ids);
  *tokens = (bk_tokens){0};
}

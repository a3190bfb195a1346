/* birkhoff generate: continues a prompt; raw bytes on standard output, as they come. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "models/generator.h"
#include "io/dataset.h"
#include "tools/cli.h"

#define DEFAULT_TOKENS 256

typedef struct text {
  char *bytes;
  size_t count, capacity;
} text;

static bk_status append(cli_session *s, text *t, const char *bytes, size_t count) {
  BK_TRY(bk_grow(s->ctx, (void **)&t->bytes, &t->capacity, t->count + count + 1, 1));
  memcpy(t->bytes + t->count, bytes, count);
  t->count += count;
  return BK_OK;
}

static bk_status read_prompt(cli_session *s, text *prompt) {
  const char *given = cli_value(&s->args, "prompt");
  char piece[4096];
  size_t n;
  if (!given) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "generate: --prompt TEXT (or - for standard input) is needed");
  if (strcmp(given, "-") != 0) BK_TRY(append(s, prompt, given, strlen(given)));
  else
    while ((n = fread(piece, 1, sizeof piece, stdin)) > 0) BK_TRY(append(s, prompt, piece, n));
  if (strcmp(given, "-") == 0 && ferror(stdin)) return bk_fail(s->ctx, BK_ERR_IO, "generate: cannot read standard input");
  return BK_OK;
}

typedef struct sampling {
  int64_t max_tokens, seed;
  double temperature, top_p;
} sampling;

static bk_status continue_text(cli_session *s, bk_generator *g, const sampling *o, text *made) {
  for (int64_t i = 0; i < o->max_tokens && !cli_signal; i++) {
    int32_t token;
    BK_TRY(bk_generator_sample(g, o->temperature, o->top_p, (uint64_t)o->seed, &token));
    if (token >= BK_TOKEN_END) break;
    char byte = (char)token;
    BK_TRY(append(s, made, &byte, 1));
    if (!s->json) {
      putchar((unsigned char)byte);
      BK_TRY(cli_flush_stdout(s));
    }
    if (i + 1 < o->max_tokens) BK_TRY(bk_generator_feed(g, &token, 1));
  }
  return BK_OK;
}

/* The bytes as a JSON string: as UTF-8 if they are, else each byte as the character of that number. */
static json_t *json_bytes(bk_context *ctx, const text *t) {
  json_t *whole = json_stringn(t->bytes ? t->bytes : "", t->count);
  if (whole) return whole;
  char *wide = bk_alloc(ctx, 2 * t->count + 1);
  size_t n = 0;
  if (!wide) return NULL;
  for (size_t i = 0; i < t->count; i++) {
    unsigned char c = (unsigned char)t->bytes[i];
    if (c >= 0x80) wide[n++] = (char)(0xc0 | c >> 6);
    wide[n++] = (char)(c >= 0x80 ? 0x80 | (c & 0x3f) : c);
  }
  whole = json_stringn(wide, n);
  bk_free(ctx, wide);
  return whole;
}

/* Without --max-tokens: what fits, at least one. */
static int64_t default_length(int64_t left) { return left < 1 ? 1 : left < DEFAULT_TOKENS ? left : DEFAULT_TOKENS; }

static bk_status generate(cli_session *s, bk_model *model, const text *prompt, sampling *o) {
  bk_context *ctx = s->ctx;
  int64_t longest = model->config.max_position_embeddings;
  if (!cli_given(&s->args, "max-tokens")) o->max_tokens = default_length(longest - (int64_t)prompt->count);
  int64_t room = (int64_t)prompt->count + 1 + o->max_tokens;
  if (model->config.vocab_size < BK_TOKEN_END)
    return bk_fail(ctx, BK_ERR_DATA, "generate: the model has %lld tokens; text needs the 256 bytes", (long long)model->config.vocab_size);
  if (room - 1 > longest)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "generate: %zu tokens of prompt and --max-tokens %lld are more than max_position_embeddings %lld", prompt->count,
                   (long long)o->max_tokens, (long long)longest);
  size_t count = prompt->count ? prompt->count : 1;
  int32_t *ids = bk_alloc_array(ctx, count, sizeof *ids);
  if (!ids) return BK_ERR_MEMORY;
  ids[0] = model->config.vocab_size > BK_TOKEN_END ? BK_TOKEN_END : '\n'; /* an empty prompt: after the end of a text */
  for (size_t i = 0; i < prompt->count; i++) ids[i] = (unsigned char)prompt->bytes[i];
  bk_generator *g = NULL;
  text made = {0};
  bk_status status = bk_generator_create(model, room, &g);
  if (status == BK_OK) status = bk_generator_feed(g, ids, (int64_t)count);
  if (status == BK_OK) status = continue_text(s, g, o, &made);
  if (status == BK_OK && s->json) status = cli_print_json(s, json_pack("{s:o,s:I}", "text", json_bytes(ctx, &made), "tokens", (json_int_t)made.count));
  bk_free(ctx, made.bytes);
  bk_generator_destroy(g);
  bk_free(ctx, ids);
  return status == BK_OK && cli_signal ? BK_INTERRUPTED : status;
}

static bk_status run(cli_session *s) {
  sampling o = {.seed = 1, .temperature = 0.8, .top_p = 0.95};
  text prompt = {0};
  BK_TRY(cli_int(s, "max-tokens", 1, 1 << 24, &o.max_tokens));
  BK_TRY(cli_int(s, "seed", 0, INT64_MAX, &o.seed));
  BK_TRY(cli_double(s, "temperature", 0, 1000, &o.temperature));
  BK_TRY(cli_double(s, "top-p", 0, 1, &o.top_p));
  bk_model *model = NULL;
  bk_status status = read_prompt(s, &prompt);
  if (status == BK_OK) status = cli_open_device(s);
  if (status == BK_OK) status = cli_load_model(s, s->args.words[0], &(bk_model_options){0}, &model, NULL);
  cli_catch_signals(NULL);
  if (status == BK_OK) status = generate(s, model, &prompt, &o);
  bk_model_destroy(model);
  bk_free(s->ctx, prompt.bytes);
  return status;
}

static const cli_option options[] = {
    {"prompt", CLI_ONE, "TEXT|-", "what to continue; - reads standard input"},
    {"max-tokens", CLI_ONE, "N", "most tokens to make (default: 256, or as many as fit)"},
    {"temperature", CLI_ONE, "X", "0 takes the likeliest token (default: 0.8)"},
    {"top-p", CLI_ONE, "X", "keep the likeliest tokens up to this mass (default: 0.95)"},
    {"seed", CLI_ONE, "N", "of the draws (default: 1)"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_generate = {"generate", "CKPT --prompt TEXT|- [OPTIONS]", "Continues a text.", options, 1, 1, run};

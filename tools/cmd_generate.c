/* birkhoff generate: continues a prompt, text or token ids; raw bytes or ids on standard output,
 * as they come. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

/* What an option gives, or with "-" what standard input does. */
static bk_status read_given(cli_session *s, const char *given, text *out) {
  char piece[4096];
  size_t n;
  if (strcmp(given, "-") != 0) return append(s, out, given, strlen(given));
  while ((n = fread(piece, 1, sizeof piece, stdin)) > 0) BK_TRY(append(s, out, piece, n));
  return ferror(stdin) ? bk_fail(s->ctx, BK_ERR_IO, "generate: cannot read standard input") : BK_OK;
}

/* One run: tokens in, tokens out, and how they are written. */
typedef struct run_state {
  cli_session *s;
  const bk_model_config *config;
  bool as_ids;     /* --prompt-tokens: ids in and out; else text, whose bytes are its tokens */
  int32_t *prompt; /* [n_prompt] */
  int64_t n_prompt, n_given; /* an empty text: nothing is given, and the prompt is one token */
  int32_t *ids;              /* made so far, [count]; the end token is not among them */
  int64_t count;
  size_t capacity;
  bool ended; /* by an end token */
} run_state;

typedef struct sampling {
  int64_t max_tokens, seed;
  double temperature, top_p;
} sampling;

/* ---- tokens in ---- */

static bool is_end(const run_state *r, int32_t token) {
  const bk_model_config *c = r->config;
  for (int i = 0; i < c->n_eos_token_ids; i++)
    if (token == c->eos_token_id[i]) return true;
  bool bytes = !r->as_ids || (c->n_eos_token_ids == 0 && c->vocab_size == BK_TOKEN_END + 1);
  return bytes && token == BK_TOKEN_END;
}

/* Text is for models whose first tokens are the 256 bytes. One whose end token is another than
 * that of texts is none. */
static bk_status check_text(run_state *r) {
  const bk_model_config *c = r->config;
  bk_context *ctx = r->s->ctx;
  if (c->vocab_size < BK_TOKEN_END)
    return bk_fail(ctx, BK_ERR_DATA,
                   "generate: the model has %lld tokens; text needs the 256 bytes; --prompt-tokens "
                   "gives and takes token ids",
                   (long long)c->vocab_size);
  if (c->n_eos_token_ids == 0 || is_end(&(run_state){.config = c, .as_ids = true}, BK_TOKEN_END))
    return BK_OK;
  return bk_fail(ctx, BK_ERR_DATA,
                 "generate: the model has a vocabulary of its own (%lld tokens, eos_token_id "
                 "%lld), which text cannot be turned into here; "
                 "--prompt-tokens gives and takes token ids",
                 (long long)c->vocab_size, (long long)c->eos_token_id[0]);
}

/* After the end of a text where the prompt is empty. */
static bk_status bytes_to_tokens(run_state *r, const text *given) {
  BK_TRY(check_text(r));
  r->n_given = (int64_t)given->count;
  r->n_prompt = r->n_given ? r->n_given : 1;
  r->prompt = bk_alloc_array(r->s->ctx, (size_t)r->n_prompt, sizeof *r->prompt);
  if (!r->prompt) return BK_ERR_MEMORY;
  r->prompt[0] = r->config->vocab_size > BK_TOKEN_END ? BK_TOKEN_END : '\n';
  for (size_t i = 0; i < given->count; i++) r->prompt[i] = (unsigned char)given->bytes[i];
  return BK_OK;
}

/* "1,2,3", with commas, white space or both between. */
static bk_status ids_to_tokens(run_state *r, text *given) {
  bk_context *ctx = r->s->ctx;
  static const char between[] = ", \t\r\n";
  if (given->count && memchr(given->bytes, '\0', given->count))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "--prompt-tokens: there is a NUL in it; expected token ids with commas between");
  BK_TRY(append(r->s, given, "", 1)); /* ends it for strtok_r */
  r->prompt = bk_alloc_array(ctx, given->count / 2 + 1, sizeof *r->prompt);
  if (!r->prompt) return BK_ERR_MEMORY;
  char *rest;
  for (char *word = strtok_r(given->bytes, between, &rest); word;
       word = strtok_r(NULL, between, &rest)) {
    int64_t id;
    if (!bk_parse_int64(word, &id) || id < 0 || id >= r->config->vocab_size)
      return bk_fail(
          ctx, BK_ERR_ARGUMENT,
          "--prompt-tokens: %.32s: expected token ids from 0 to %lld, with commas between", word,
          (long long)r->config->vocab_size - 1);
    r->prompt[r->n_prompt++] = (int32_t)id;
  }
  r->n_given = r->n_prompt;
  return r->n_prompt
             ? BK_OK
             : bk_fail(ctx, BK_ERR_ARGUMENT, "--prompt-tokens: at least one token id is needed");
}

/* ---- tokens out ---- */

static bk_status write_token(run_state *r, int32_t token) {
  if (!r->as_ids && token > UINT8_MAX)
    return bk_fail(r->s->ctx, BK_ERR_DATA,
                   "generate: the model made token %d, which is no byte: its %lld tokens are a "
                   "vocabulary of its own and not text; "
                   "--prompt-tokens gives and takes token ids",
                   (int)token, (long long)r->config->vocab_size);
  BK_TRY(bk_grow(r->s->ctx, (void **)&r->ids, &r->capacity, (size_t)r->count + 1, sizeof *r->ids));
  r->ids[r->count++] = token;
  if (r->s->json) return BK_OK;
  if (r->as_ids) printf("%s%d", r->count > 1 ? "," : "", (int)token);
  else putchar(token);
  return cli_flush_stdout(r->s);
}

static bk_status continue_tokens(run_state *r, bk_generator *g, const sampling *o) {
  for (int64_t i = 0; i < o->max_tokens && !cli_signal; i++) {
    int32_t token;
    BK_TRY(bk_generator_sample(g, o->temperature, o->top_p, (uint64_t)o->seed, &token));
    if ((r->ended = is_end(r, token))) break;
    BK_TRY(write_token(r, token));
    if (i + 1 < o->max_tokens) BK_TRY(bk_generator_feed(g, &token, 1));
  }
  if (!r->as_ids || r->s->json) return BK_OK;
  putchar('\n');
  return cli_flush_stdout(r->s);
}

/* The bytes as a JSON string: as UTF-8 if they are, else each byte as the character of that
 * number. */
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

static json_t *json_ids(const run_state *r) {
  json_t *ids = json_array();
  for (int64_t i = 0; i < r->count; i++) json_array_append_new(ids, json_integer(r->ids[i]));
  return ids;
}

static bk_status print_json(run_state *r) {
  text made = {0};
  bk_status status = BK_OK;
  for (int64_t i = 0; i < r->count && !r->as_ids && status == BK_OK; i++)
    status = append(r->s, &made, (char[]){(char)r->ids[i]}, 1);
  if (status == BK_OK)
    status = cli_print_json(r->s, json_pack("{s:o,s:I,s:s}", r->as_ids ? "ids" : "text",
                                            r->as_ids ? json_ids(r) : json_bytes(r->s->ctx, &made),
                                            "tokens", (json_int_t)r->count, "finish_reason",
                                            r->ended     ? "stop"
                                            : cli_signal ? "signal"
                                                         : "length"));
  bk_free(r->s->ctx, made.bytes);
  return status;
}

/* Without --max-tokens: what fits, at least one. */
static int64_t default_length(int64_t left) {
  return left < 1 ? 1 : left < DEFAULT_TOKENS ? left : DEFAULT_TOKENS;
}

static bk_status choose_length(const run_state *r, int64_t *max_tokens) {
  int64_t longest = r->config->max_position_embeddings;
  if (!cli_given(&r->s->args, "max-tokens")) *max_tokens = default_length(longest - r->n_given);
  if (r->n_given + *max_tokens <= longest) return BK_OK;
  return bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                 "generate: %lld tokens of prompt and --max-tokens %lld are more than "
                 "max_position_embeddings %lld",
                 (long long)r->n_given, (long long)*max_tokens, (long long)longest);
}

static bk_status generate(run_state *r, bk_model *model, text *given, sampling *o) {
  bk_generator *g = NULL;
  r->config = bk_model_config_of(model);
  BK_TRY(r->as_ids ? ids_to_tokens(r, given) : bytes_to_tokens(r, given));
  BK_TRY(choose_length(r, &o->max_tokens));
  bk_status status = bk_generator_create(model, r->n_given + 1 + o->max_tokens, &g);
  if (status == BK_OK) status = bk_generator_feed(g, r->prompt, r->n_prompt);
  if (status == BK_OK) status = continue_tokens(r, g, o);
  if (status == BK_OK && r->s->json) status = print_json(r);
  bk_generator_destroy(g);
  return status == BK_OK && cli_signal ? BK_INTERRUPTED : status;
}

static bk_status read_prompt(run_state *r, text *given) {
  const char *bytes = cli_value(&r->s->args, "prompt"),
             *ids = cli_value(&r->s->args, "prompt-tokens");
  if (!bytes == !ids)
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                   "generate: exactly one of --prompt TEXT and --prompt-tokens ID,ID,... is needed "
                   "(- reads standard input)");
  r->as_ids = ids != NULL;
  return read_given(r->s, ids ? ids : bytes, given);
}

static bk_status run(cli_session *s) {
  sampling o = {.seed = 1, .temperature = 0.8, .top_p = 0.95};
  run_state r = {.s = s};
  text given = {0};
  BK_TRY(cli_int(s, "max-tokens", 1, 1 << 24, &o.max_tokens));
  BK_TRY(cli_int(s, "seed", 0, INT64_MAX, &o.seed));
  BK_TRY(cli_double(s, "temperature", 0, 1000, &o.temperature));
  BK_TRY(cli_double(s, "top-p", 0, 1, &o.top_p));
  bk_model *model = NULL;
  bk_status status = read_prompt(&r, &given);
  if (status == BK_OK) status = cli_open_device(s);
  if (status == BK_OK)
    status = cli_load_model(s, s->args.words[0], &(bk_model_options){0}, &model, NULL);
  cli_catch_signals(NULL);
  if (status == BK_OK) status = generate(&r, model, &given, &o);
  bk_model_destroy(model);
  bk_free(s->ctx, r.ids);
  bk_free(s->ctx, r.prompt);
  bk_free(s->ctx, given.bytes);
  return status;
}

static const cli_option options[] = {
    {"prompt", CLI_ONE, "TEXT|-", "text to continue; - reads standard input"},
    {"prompt-tokens", CLI_ONE, "IDS|-",
     "token ids to continue, 1,2,3; ids are printed, for models with a vocabulary of their own"},
    {"max-tokens", CLI_ONE, "N", "most tokens to make (default: 256, or as many as fit)"},
    {"temperature", CLI_ONE, "X", "0 takes the likeliest token (default: 0.8)"},
    {"top-p", CLI_ONE, "X", "keep the likeliest tokens up to this mass (default: 0.95)"},
    {"seed", CLI_ONE, "N", "of the draws (default: 1)"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_generate = {"generate",
                                  "CKPT --prompt TEXT|- | --prompt-tokens IDS|- [OPTIONS]",
                                  "Continues a text, or a list of token ids.",
                                  options,
                                  1,
                                  1,
                                  run};

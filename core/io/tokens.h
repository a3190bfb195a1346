/* Tokens for one pass, as `birkhoff forward --tokens` takes them: a safetensors file with
 * input_ids [B,T] (I32 or I64) and, optionally, targets [B,T] (-100 = ignored; default:
 * targets[b,t] = input_ids[b,t+1], and -100 at the last t). */
#ifndef BK_TOKENS_H
#define BK_TOKENS_H

#include "base/base.h"

typedef struct bk_tokens {
  int64_t batch, seq_len, kept; /* B, T, targets that count */
  int32_t *ids, *targets;       /* [B,T] */
} bk_tokens;

/* BK_ERR_DATA, naming file, tensor and place: a wrong shape or dtype, sequences longer than
 * `longest`, a token that is not below vocab_size, no kept target at all. */
bk_status bk_tokens_read(bk_context *ctx, const char *path, int64_t vocab_size, int64_t longest,
                         bk_tokens *tokens);
void bk_tokens_fini(bk_context *ctx, bk_tokens *tokens);

#endif

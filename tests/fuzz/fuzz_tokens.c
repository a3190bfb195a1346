/* libFuzzer target: any bytes as the tokens of `birkhoff forward --tokens`. What is accepted is
 * a whole rectangle of tokens. */
#include "io/tokens.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"tokens", 20000};

#define VOCAB 257
#define LONGEST 64

static void check_tokens(const bk_tokens *t) {
  int64_t kept = 0;
  if (t->batch < 1 || t->seq_len < 1 || t->seq_len > LONGEST) abort();
  for (int64_t i = 0; i < t->batch * t->seq_len; i++) {
    if (t->ids[i] < 0 || t->ids[i] >= VOCAB || t->targets[i] >= VOCAB ||
        (t->targets[i] < 0 && t->targets[i] != -100))
      abort();
    kept += t->targets[i] >= 0;
  }
  if (kept < 1 || kept != t->kept) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  memory_file file = {.name = "input", .data = data, .bytes = size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_tokens tokens = {0};
  bk_context *ctx = memory_context(&fs, &logged);
  bk_status status = bk_tokens_read(ctx, "input", VOCAB, LONGEST, &tokens);
  if (status == BK_OK) check_tokens(&tokens);
  else if (logged == 0 || tokens.ids) abort();
  bk_tokens_fini(ctx, &tokens);
  memory_context_close(ctx, &logged);
  return 0;
}

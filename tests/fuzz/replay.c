/* Runs a fuzz target over its seeds, every truncation of them, and mutations of them (see fuzz.h). A target aborts on a fault. */
#include "base/base.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>

#define MUTATIONS 20000
#define BYTES_MAX 8192

static const char interesting[] = "\"\\{}[]:,0123456789-+.eEu\0\xff\x80 \n";

static uint64_t random_below(uint64_t *counter, uint64_t bound) {
  uint32_t r[4];
  bk_philox(20, 0, (*counter)++, r);
  return r[0] % bound;
}

/* One change in place: a byte replaced, a byte removed, a stretch copied elsewhere, or the end cut off. */
static size_t mutate(uint64_t *counter, uint8_t *data, size_t bytes) {
  size_t at = (size_t)random_below(counter, bytes), to = (size_t)random_below(counter, bytes);
  size_t longest = bytes - (at > to ? at : to), length = (size_t)random_below(counter, longest) + 1;
  switch (random_below(counter, 8)) {
    case 0: memmove(data + at, data + at + 1, bytes - at - 1); return bytes - 1;
    case 1: memmove(data + to, data + at, length); return bytes;
    case 2: data[at] = (uint8_t)random_below(counter, 256); return bytes;
    case 3: return random_below(counter, 4) ? bytes : at;
    default: data[at] = (uint8_t)interesting[random_below(counter, sizeof interesting - 1)]; return bytes;
  }
}

/* Each input in a block of its own size, so that the sanitizers see a read past its end. */
static int run(bk_context *ctx, const uint8_t *data, size_t bytes) {
  uint8_t *copy = bk_alloc(ctx, bytes);
  if (!copy) return 1;
  memcpy(copy, data, bytes);
  int rc = LLVMFuzzerTestOneInput(copy, bytes);
  bk_free(ctx, copy);
  return rc;
}

int main(void) {
  bk_context *ctx;
  uint8_t data[BYTES_MAX];
  uint64_t counter = 0, runs = 0;
  if (bk_context_create(NULL, &ctx) != BK_OK) return 1;
  for (size_t s = 0; s < fuzz_seed_count; s++) {
    const fuzz_seed *seed = &fuzz_seeds[s];
    if (seed->bytes > sizeof data) return 1;
    for (size_t cut = 0; cut <= seed->bytes; cut++, runs++)
      if (run(ctx, (const uint8_t *)seed->data, cut) != 0) return 1;
    for (size_t i = 0; i < MUTATIONS / fuzz_seed_count; i++, runs++) {
      size_t bytes = seed->bytes;
      memcpy(data, seed->data, bytes);
      for (uint64_t changes = random_below(&counter, 4) + 1; changes > 0 && bytes > 0; changes--) bytes = mutate(&counter, data, bytes);
      if (run(ctx, data, bytes) != 0) return 1;
    }
  }
  bk_context_destroy(ctx);
  printf("%llu inputs\n", (unsigned long long)runs);
  return 0;
}

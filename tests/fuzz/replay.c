/* Runs a fuzz target over its seeds, every truncation of them, and mutations of them (see
 * fuzz.h). Arguments, if any, are files that are run as they are: findings. A target aborts on a
 * fault. */
#include "base/base.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES_MAX ((size_t)1 << 16)

static const char interesting[] = "\"\\{}[]:,0123456789-+.eEu\0\xff\x80 \n";

static uint64_t random_below(uint64_t *counter, uint64_t bound) {
  uint32_t r[4];
  bk_philox(20, 0, (*counter)++, r);
  return r[0] % bound;
}

/* One change in place: a byte replaced, a byte removed, a stretch copied elsewhere, or the end
 * cut off. */
static size_t mutate(uint64_t *counter, uint8_t *data, size_t bytes) {
  size_t at = (size_t)random_below(counter, bytes), to = (size_t)random_below(counter, bytes);
  size_t longest = bytes - (at > to ? at : to), length = (size_t)random_below(counter, longest) + 1;
  switch (random_below(counter, 8)) {
    case 0: memmove(data + at, data + at + 1, bytes - at - 1); return bytes - 1;
    case 1: memmove(data + to, data + at, length); return bytes;
    case 2: data[at] = (uint8_t)random_below(counter, 256); return bytes;
    case 3: return random_below(counter, 4) ? bytes : at;
    default:
      data[at] = (uint8_t)interesting[random_below(counter, sizeof interesting - 1)];
      return bytes;
  }
}

typedef struct replay {
  bk_context *ctx;
  uint64_t counter, runs; /* of random numbers drawn; of inputs */
  uint8_t *scratch;       /* [BYTES_MAX] */
} replay;

/* Each input in a block of its own size, so that the sanitizers see a read past its end. */
static bk_status run(replay *r, const void *data, size_t bytes) {
  uint8_t *copy = bk_alloc(r->ctx, bytes);
  if (!copy) return BK_ERR_MEMORY;
  memcpy(copy, data, bytes);
  int rc = LLVMFuzzerTestOneInput(copy, bytes);
  bk_free(r->ctx, copy);
  r->runs++;
  return rc == 0 ? BK_OK : BK_ERR_BOUNDS;
}

static bk_status run_mutations(replay *r, const char *seed, size_t seed_bytes, int mutations) {
  for (int i = 0; i < mutations; i++) {
    size_t bytes = seed_bytes;
    memcpy(r->scratch, seed, seed_bytes);
    for (uint64_t changes = random_below(&r->counter, 4) + 1; changes > 0 && bytes > 0; changes--)
      bytes = mutate(&r->counter, r->scratch, bytes);
    BK_TRY(run(r, r->scratch, bytes));
  }
  return BK_OK;
}

/* The whole seed; its truncations, at most about 500; mutations. */
static bk_status run_seed(replay *r, const char *path, int mutations) {
  char *seed;
  size_t bytes;
  BK_TRY(bk_file_read_all(r->ctx, path, BYTES_MAX, &seed, &bytes));
  bk_status status = run(r, seed, bytes);
  for (size_t cut = 0; mutations && cut < bytes && status == BK_OK; cut += bytes / 500 + 1)
    status = run(r, seed, cut);
  if (status == BK_OK) status = run_mutations(r, seed, bytes, mutations);
  bk_free(r->ctx, seed);
  return status;
}

static int compare_texts(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static bk_status run_corpus(replay *r) {
  const char *top = getenv("TOP_SRCDIR");
  char **names, *folder = bk_format(r->ctx, "%s/tests/fuzz/corpus/%s", top ? top : ".", fuzz.name);
  size_t count;
  if (!folder) return BK_ERR_MEMORY;
  bk_status status = bk_folder_names(r->ctx, folder, &names, &count);
  if (status != BK_OK) {
    bk_free(r->ctx, folder);
    return status;
  }
  qsort(names, count, sizeof *names, compare_texts);
  for (size_t i = 0; i < count && status == BK_OK; i++) {
    char *path = bk_path_join(r->ctx, folder, names[i]);
    status = path ? run_seed(r, path, fuzz.mutations / (int)count) : BK_ERR_MEMORY;
    bk_free(r->ctx, path);
  }
  if (count == 0) status = bk_fail(r->ctx, BK_ERR_DATA, "%s: no seeds", folder);
  bk_names_free(r->ctx, names, count);
  bk_free(r->ctx, folder);
  return status;
}

static void print_log(void *user, bk_log_level level, const char *message) {
  (void)user, (void)level;
  fprintf(stderr, "%s\n", message);
}

int main(int argc, char **argv) {
  static uint8_t scratch[BYTES_MAX];
  replay r = {.scratch = scratch};
  bk_context_options options = {.log = print_log, .log_level = BK_LOG_WARN};
  if (bk_context_create(&options, &r.ctx) != BK_OK) return 1;
  bk_status status = argc < 2 ? run_corpus(&r) : BK_OK;
  for (int i = 1; i < argc && status == BK_OK; i++) status = run_seed(&r, argv[i], 0);
  bk_context_destroy(r.ctx);
  printf("%s: %llu inputs\n", fuzz.name, (unsigned long long)r.runs);
  return status != BK_OK;
}

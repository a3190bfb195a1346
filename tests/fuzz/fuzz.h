/* A fuzz target is one file with LLVMFuzzerTestOneInput (libFuzzer's entry) and the inputs that mutation starts from. replay.c
 * is a main for compilers without libFuzzer: a fixed number of mutations from a fixed seed, the same in every run. */
#ifndef BK_TESTS_FUZZ_H
#define BK_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

typedef struct fuzz_seed {
  const char *data;
  size_t bytes;
} fuzz_seed;
#define FUZZ_SEED(text) {text, sizeof(text) - 1}

extern const fuzz_seed fuzz_seeds[];
extern const size_t fuzz_seed_count;
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif

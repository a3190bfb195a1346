/* A fuzz target is one file with LLVMFuzzerTestOneInput (libFuzzer's entry) and a name, which is
 * also that of its folder of seeds, tests/fuzz/corpus/NAME. run.sh builds the targets with
 * libFuzzer; replay.c is a main without it: the seeds and a fixed number of mutations of them
 * from a fixed seed, the same in every run. A target aborts on a fault. */
#ifndef BK_TESTS_FUZZ_H
#define BK_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

typedef struct fuzz_target {
  const char *name;
  int mutations; /* that replay.c tries */
} fuzz_target;
extern const fuzz_target fuzz;
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif

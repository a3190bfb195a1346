/* Several files in one input, between lines "====". */
#ifndef BK_TESTS_FUZZ_PARTS_H
#define BK_TESTS_FUZZ_PARTS_H

#include "tests/fuzz/memory_fs.h"

/* Takes the part before the next mark, or all that is left. */
static memory_file next_part(const char *name, const uint8_t **data, size_t *size,
                             const memory_file *next) {
  static const char mark[] = "\n====\n";
  size_t length = sizeof mark - 1, at = 0;
  while (at + length <= *size && memcmp(*data + at, mark, length) != 0) at++;
  bool found = at + length <= *size;
  memory_file file = {.name = name, .data = *data, .bytes = found ? at : *size, .next = next};
  size_t skip = found ? at + length : *size;
  *data += skip;
  *size -= skip;
  return file;
}

#endif

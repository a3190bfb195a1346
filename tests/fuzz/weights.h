/* What the fuzz targets of weights share. */
#ifndef BK_TESTS_FUZZ_WEIGHTS_H
#define BK_TESTS_FUZZ_WEIGHTS_H

#include "io/safetensors.h"

#include <stdlib.h>

/* What opens must be readable to its last byte. */
static void read_all(bk_context *ctx, bk_st_reader *reader) {
  for (int i = 0; i < bk_st_count(reader); i++) {
    const bk_st_entry *e = bk_st_get(reader, i);
    size_t bytes = (size_t)(e->end - e->begin);
    char *copy = bk_alloc(ctx, bytes);
    double first;
    if (bk_st_find(reader, e->name) != e || !bk_st_entry_path(reader, e) || !copy ||
        bk_st_read(reader, e, copy, bytes) != BK_OK)
      abort();
    if (bk_st_element_size(e) && bytes && bk_st_read_f64(reader, e, 0, 1, &first) != BK_OK) abort();
    bk_free(ctx, copy);
  }
}

#endif

/* Host memory through the context's allocator. Each block is preceded by a header of one alignment
 * unit (64 bytes) that keeps its size. bk_free therefore needs no size, the context can count what
 * is held, and every pointer handed out is aligned for any vector load.
 *
 * Memory comes zeroed. A failure is logged here and shows as NULL, or as BK_ERR_MEMORY from
 * bk_grow. Only the thread that uses the context allocates, never a worker of a pool, so that the
 * counters are plain integers and not atomics. */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

#define BLOCK_ALIGN ((size_t)64)

static void count_block(bk_memory_stats *stats, size_t bytes) {
  stats->current_bytes += bytes;
  if (stats->current_bytes > stats->peak_bytes) stats->peak_bytes = stats->current_bytes;
  stats->allocations++;
}

/* The size that is asked for, without the header, is what the statistics count, and what bk_free
 * subtracts again. */
void *bk_alloc(bk_context *ctx, size_t bytes) {
  char *block = NULL;
  if (bytes <= SIZE_MAX - BLOCK_ALIGN)
    block = ctx->allocator.alloc(ctx->allocator.user, bytes + BLOCK_ALIGN, BLOCK_ALIGN);
  if (!block) {
    bk_fail(ctx, BK_ERR_MEMORY, "out of memory: cannot allocate %zu bytes, %zu are held", bytes,
            ctx->stats.current_bytes);
    return NULL;
  }
  memset(block, 0, bytes + BLOCK_ALIGN);
  memcpy(block, &bytes, sizeof bytes);
  count_block(&ctx->stats, bytes);
  return block + BLOCK_ALIGN;
}

void bk_free(bk_context *ctx, void *ptr) {
  if (!ptr) return;
  char *block = (char *)ptr - BLOCK_ALIGN;
  size_t bytes;
  memcpy(&bytes, block, sizeof bytes);
  ctx->stats.current_bytes -= bytes;
  ctx->allocator.free(ctx->allocator.user, block, bytes + BLOCK_ALIGN);
}

bool bk_mul_size(size_t a, size_t b, size_t *product) {
  if (b != 0 && a > SIZE_MAX / b) return false;
  *product = a * b;
  return true;
}

void *bk_alloc_array(bk_context *ctx, size_t count, size_t element) {
  size_t bytes;
  if (bk_mul_size(count, element, &bytes)) return bk_alloc(ctx, bytes);
  bk_fail(ctx, BK_ERR_MEMORY,
          "out of memory: %zu elements of %zu bytes are more than can be addressed", count,
          element);
  return NULL;
}

/* Copies into a new block, since a bk_allocator knows no realloc. The array is left as it was when
 * there is no memory. */
bk_status bk_grow(bk_context *ctx, void **array, size_t *capacity, size_t needed, size_t element) {
  if (needed <= *capacity) return BK_OK;
  size_t larger = *capacity > SIZE_MAX / 2 ? needed : 2 * *capacity;
  if (larger < needed) larger = needed;
  void *grown = bk_alloc_array(ctx, larger, element);
  if (!grown) return BK_ERR_MEMORY;
  if (*capacity) memcpy(grown, *array, *capacity * element);
  bk_free(ctx, *array);
  *array = grown;
  *capacity = larger;
  return BK_OK;
}

char *bk_strdup(bk_context *ctx, const char *text) {
  size_t bytes = strlen(text) + 1;
  char *copy = bk_alloc(ctx, bytes);
  if (copy) memcpy(copy, text, bytes);
  return copy;
}

/* The text is formatted twice: once for its length, once into a block of that length. */
char *bk_format(bk_context *ctx, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int length = vsnprintf(NULL, 0, format, args);
  va_end(args);
  if (length < 0) {
    bk_fail(ctx, BK_ERR_ARGUMENT, "text could not be formatted: %s", format);
    return NULL;
  }
  char *text = bk_alloc(ctx, (size_t)length + 1);
  if (!text) return NULL;
  va_start(args, format);
  vsnprintf(text, (size_t)length + 1, format, args);
  va_end(args);
  return text;
}

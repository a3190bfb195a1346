/* Offsets planned before memory exists: a bump allocator over chunks that remembers each chunk's
 * high-water mark.
 *
 * A model's tensors are laid out with it before any buffer is made, so that the memory a run needs
 * is known from its configuration alone. A chunk becomes one buffer later, and is therefore no
 * longer than the largest allocation of the device (`chunk_limit`, in bytes). A reservation never
 * straddles two chunks. Rewinding to a mark frees everything reserved since, as a stack would:
 * activations of one sublayer take the place of those of another. */
#include "base/base.h"

void bk_arena_init(bk_arena *arena, bk_context *ctx, const char *name, size_t chunk_limit) {
  *arena = (bk_arena){.ctx = ctx, .name = name, .chunk_limit = chunk_limit};
}

void bk_arena_fini(bk_arena *arena) {
  bk_free(arena->ctx, arena->chunk_bytes);
  *arena = (bk_arena){0};
}

/* The limit is lowered by one alignment unit so that rounding the end of a place up cannot
 * overflow. */
static bool fits(const bk_arena *arena, size_t used, size_t bytes) {
  size_t limit = arena->chunk_limit < SIZE_MAX - BK_ARENA_ALIGN ? arena->chunk_limit
                                                                : SIZE_MAX - BK_ARENA_ALIGN;
  return used <= limit && bytes <= limit - used;
}

/* Goes on in the next chunk when the current one has no room. The rest of the current chunk is
 * then lost to reservations until the arena is rewound. Chunks opened before a rewind are used
 * again. */
bk_status bk_arena_reserve(bk_arena *arena, size_t bytes, bk_arena_place *place) {
  if (!fits(arena, 0, bytes))
    return bk_fail(arena->ctx, BK_ERR_MEMORY,
                   "%s: %zu bytes do not fit in one allocation of at most %zu", arena->name, bytes,
                   arena->chunk_limit);
  bool next = !fits(arena, arena->used, bytes);
  int chunk = arena->current + next;
  size_t offset = next ? 0 : arena->used;
  BK_TRY(bk_grow(arena->ctx, (void **)&arena->chunk_bytes, &arena->capacity, (size_t)chunk + 1,
                 sizeof(size_t)));
  if (chunk >= arena->n_chunks) arena->n_chunks = chunk + 1;
  if (offset + bytes > arena->chunk_bytes[chunk]) arena->chunk_bytes[chunk] = offset + bytes;
  arena->current = chunk;
  arena->used = BK_ALIGN_UP(offset + bytes, (size_t)BK_ARENA_ALIGN);
  *place = (bk_arena_place){chunk, offset};
  return BK_OK;
}

bk_arena_mark bk_arena_get_mark(const bk_arena *arena) {
  return (bk_arena_mark){arena->current, arena->used};
}

void bk_arena_rewind(bk_arena *arena, bk_arena_mark mark) {
  arena->current = mark.chunk;
  arena->used = mark.offset;
}

size_t bk_arena_bytes(const bk_arena *arena) {
  size_t sum = 0;
  for (int i = 0; i < arena->n_chunks; i++) sum += arena->chunk_bytes[i];
  return sum;
}

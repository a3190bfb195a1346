/* The state of an optimiser as a reader that looks like one of a single file: where several ranks
 * have written it in slices, each tensor is put together when it is read. */
#include <string.h>

#include "io/safetensors_priv.h"

#define STATE "optimizer.safetensors"
#define STATE_INDEX "optimizer.safetensors.index.json"

/* An entry has the number of its tensor among the slices' as its file. */
static bk_status add_entry(bk_st_reader *r, int number) {
  const bk_st_sliced *t = &r->whole.tensors[number];
  const bk_st_entry *first = t->slices[0].entry;
  bk_st_entry *e = &r->table.entries[r->table.count];
  uint64_t count = 1;
  *e = *first;
  e->ndim = t->ndim;
  memcpy(e->shape, t->shape, sizeof e->shape);
  for (int d = 0; d < t->ndim; d++) count *= (uint64_t)t->shape[d];
  e->begin = 0;
  e->end = count * bk_st_element_size(first);
  e->file = number;
  e->name = bk_strdup(r->ctx, t->name);
  if (!e->name) return BK_ERR_MEMORY;
  r->table.count++;
  return BK_OK;
}

static bk_status fill(bk_st_reader *r, const char *folder) {
  BK_TRY(bk_st_open_slices(r->ctx, folder, STATE, STATE_INDEX, &r->parts, &r->whole));
  size_t n = r->whole.n_tensors;
  r->table.entries = bk_alloc_array(r->ctx, n, sizeof *r->table.entries);
  if (!r->table.entries) return BK_ERR_MEMORY;
  r->table.capacity = n;
  for (size_t i = 0; i < n; i++)
    if (r->whole.tensors[i].n_slices) BK_TRY(add_entry(r, (int)i));
  return bk_st_table_sort(&r->table, r->path);
}

static bk_status open_one(bk_context *ctx, const char *folder, bk_st_reader **reader) {
  char *path = bk_path_join(ctx, folder, STATE);
  if (!path) return BK_ERR_MEMORY;
  bk_status status = bk_st_open(ctx, path, reader);
  bk_free(ctx, path);
  return status;
}

bk_status bk_st_open_state(bk_context *ctx, const char *folder, bk_st_reader **reader) {
  bk_st_reader *r = NULL;
  bool one;
  BK_TRY(bk_st_is_there(ctx, folder, STATE, &one));
  if (one) return open_one(ctx, folder, reader);
  BK_TRY(bk_st_reader_create(ctx, folder, &r));
  bk_status status = fill(r, folder);
  if (status == BK_OK) *reader = r;
  else bk_st_close(r);
  return status;
}

bk_status bk_st_state_there(bk_context *ctx, const char *folder, bool *there) {
  return bk_st_slices_there(ctx, folder, STATE, STATE_INDEX, there);
}

/* Both ends are whole elements: everybody who reads asks for such. */
bk_status bk_st_read_parts(const bk_st_reader *r, const bk_st_entry *entry, uint64_t offset,
                           void *dst, size_t bytes) {
  const bk_st_sliced *t = &r->whole.tensors[entry->file];
  int64_t width = (int64_t)bk_st_element_size(entry), first = (int64_t)offset / width,
          end = first + (int64_t)bytes / width;
  for (size_t i = 0; i < t->n_slices; i++) {
    const bk_st_slice *s = &t->slices[i];
    int64_t from = s->begin > first ? s->begin : first;
    int64_t to = s->begin + s->count < end ? s->begin + s->count : end;
    if (from >= to) continue;
    BK_TRY(bk_st_read_range(r->parts, s->entry, from - s->begin, to - from,
                            (char *)dst + (from - first) * width));
  }
  return BK_OK;
}

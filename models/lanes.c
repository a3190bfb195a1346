/* Lanes (lanes.h). A workspace that has become too small is replaced, but kept until the end:
 * graphs that were captured before know its address. */
#include "models/lanes.h"

const char *bk_lane_name(bk_lane lane) {
#define NAME(id, name, priority) name,
  static const char *const names[] = { BK_LANE_LIST(NAME) };
#undef NAME
  return (unsigned)lane < BK_COUNT(names) ? names[lane] : "?";
}

/* Further lanes are opened where a program wants them. */
bk_status bk_lanes_init(bk_lanes *l, bk_device *device, bool plan_only) {
  *l = (bk_lanes){.device = device, .plan_only = plan_only};
  return bk_lanes_open(l, BK_LANE_COMPUTE);
}

/* Streams end before memory, since destroying a stream may still wait for its kernels. */
void bk_lanes_fini(bk_lanes *l) {
  if (!l->device) return;
  bk_lanes_sync(l);
  for (int i = BK_LANES - 1; i >= 0; i--) bk_stream_destroy(l->stream[i]);
  for (int i = l->n_memory - 1; i >= 0; i--) bk_memory_destroy(l->memory[i]);
  bk_free(l->device->ctx, l->memory);
  *l = (bk_lanes){0};
}

/* Opening a lane that is open does nothing. */
bk_status bk_lanes_open(bk_lanes *l, bk_lane lane) {
#define PRIORITY(id, name, priority) priority,
  static const int priorities[] = {BK_LANE_LIST(PRIORITY)};
#undef PRIORITY
  return l->stream[lane] ? BK_OK : bk_stream_create(l->device, priorities[lane], &l->stream[lane]);
}

/* The size is only noted: several programs are recorded before memory is taken once. */
void bk_lanes_want(bk_lanes *l, bk_lane lane, size_t bytes) {
  if (bytes > l->wanted[lane]) l->wanted[lane] = bytes;
}

/* A workspace of its own for the new size; the old one stays for the graphs that know it. */
static bk_status enlarge(bk_lanes *l, bk_lane lane) {
  bk_tensor t;
  bk_context *ctx = l->device->ctx;
  int64_t shape[1] = {(int64_t)l->wanted[lane]};
  BK_TRY(
      bk_grow(ctx, (void **)&l->memory, &l->capacity, (size_t)l->n_memory + 1, sizeof *l->memory));
  BK_TRY(bk_memory_create(l->device, &l->memory[l->n_memory]));
  bk_memory *memory = l->memory[l->n_memory++];
  BK_TRY(bk_memory_tensor(memory, BK_MEM_WORKSPACE, BK_U8, 1, shape, &t));
  if (!l->plan_only) BK_TRY(bk_memory_commit(memory));
  l->workspace[lane] = (bk_place){t.buffer, t.offset};
  l->bytes[lane] = l->wanted[lane];
  return BK_OK;
}

/* Programs look the workspace up at each launch, so that those recorded before use the new one. */
bk_status bk_lanes_commit(bk_lanes *l) {
  for (int i = 0; i < BK_LANES; i++)
    if (l->wanted[i] > l->bytes[i]) BK_TRY(enlarge(l, (bk_lane)i));
  return BK_OK;
}

/* All lanes are waited for, even after one has failed; the first failure is returned. */
bk_status bk_lanes_sync(const bk_lanes *l) {
  bk_status status = BK_OK;
  for (int i = 0; i < BK_LANES; i++) {
    bk_status one = l->stream[i] ? l->stream[i]->ops->sync(l->stream[i]) : BK_OK;
    if (status == BK_OK) status = one;
  }
  return status;
}

/* Those that were replaced count too, since they are kept. */
size_t bk_lanes_bytes(const bk_lanes *l) {
  size_t sum = 0;
  for (int i = 0; i < l->n_memory; i++) sum += bk_memory_bytes(l->memory[i], BK_MEM_WORKSPACE);
  return sum;
}

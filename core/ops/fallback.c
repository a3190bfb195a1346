/* Ops that a device lacks, run on another: `cpu`, or `ref` where the device is `cpu` itself or cpu
 * is not there. open.c makes that choice; a device that was opened without the registry has no
 * other to fall back on.
 *
 * The other device is opened once per device (device->fallback) and closed with it. Where both
 * have host memory its kernel works on the operands in place. Otherwise the operands' memory
 * passes through a staging buffer, byte for byte: ranges that overlap (views of one tensor,
 * operands that alias) travel as one, everything goes in, and the ranges that hold an output come
 * back. Such launches synchronise the stream, which kernels otherwise never do: falling back is
 * slow, and a warning says so once for each op. */
#include "ops/ops.h"

#include <string.h>

typedef struct fallback_state {
  bk_op op;
  bk_plan plan;         /* on the other device */
  bk_buffer *workspace; /* workspace of that plan, or NULL */
  bk_buffer *staging;   /* NULL: works in place */
} fallback_state;

/* A range of bytes of one buffer, and where in the staging buffer it goes. */
typedef struct range {
  bk_buffer *buffer;
  size_t begin, end, staged;
  bool written;
} range;

/* Neighbours that only meet at an end do not count: they may be copied apart. */
static bool ranges_touch(const range *a, const range *b) {
  return a->buffer == b->buffer && a->begin < b->end && b->begin < a->end;
}

/* Adds `r`, merging it with the ranges it overlaps, and returns the new count. A merge makes `r`
 * longer, so that ranges passed before may now overlap it: the search starts anew. */
static int ranges_add(range *ranges, int count, range r) {
  for (int i = 0; i < count;) {
    if (!ranges_touch(&ranges[i], &r)) {
      i++;
      continue;
    }
    if (ranges[i].begin < r.begin) r.begin = ranges[i].begin;
    if (ranges[i].end > r.end) r.end = ranges[i].end;
    r.written |= ranges[i].written;
    ranges[i] = ranges[--count];
    i = 0;
  }
  ranges[count] = r;
  return count + 1;
}

/* The ranges of all operands, and their places in the staging buffer. A range that an output lies
 * in is written back whole, with the bytes around it as they came. */
static int ranges_collect(bk_op op, const void *args, range *ranges) {
  const bk_op_desc *desc = bk_op_describe(op);
  int count = 0;
  for (int i = 0; i < desc->n_fields; i++) {
    const bk_tensor *t = bk_op_field_get(args, &desc->fields[i]);
    size_t span = bk_tensor_span(t);
    if (!bk_tensor_present(t) || span == 0) continue;
    count = ranges_add(
        ranges, count,
        (range){t->buffer, t->offset, t->offset + span, 0, desc->fields[i].role != BK_IN});
  }
  size_t used = 0;
  for (int i = 0; i < count; i++) {
    size_t skew = ranges[i].begin % BK_ARENA_ALIGN; /* keeps the alignment of every element */
    ranges[i].staged = used + skew;
    used += BK_ALIGN_UP(skew + ranges[i].end - ranges[i].begin, (size_t)BK_ARENA_ALIGN);
  }
  return count;
}

/* Room enough for any aliasing: every operand on its own, rounded up, and its skew. Prepare needs
 * the size before the buffers are known. */
static size_t staging_bytes(bk_op op, const void *args) {
  const bk_op_desc *desc = bk_op_describe(op);
  size_t bytes = 0;
  for (int i = 0; i < desc->n_fields; i++) {
    bytes += BK_ALIGN_UP(bk_tensor_span(bk_op_field_get(args, &desc->fields[i])),
                         (size_t)BK_ARENA_ALIGN) +
             BK_ARENA_ALIGN;
  }
  return bytes;
}

/* Each operand points to its place within the staging buffer instead. */
static void redirect(bk_op op, void *args, const range *ranges, int count, bk_buffer *staging) {
  const bk_op_desc *desc = bk_op_describe(op);
  for (int i = 0; i < desc->n_fields; i++) {
    bk_tensor *t = bk_op_field_ref(args, &desc->fields[i]);
    for (int j = 0; j < count && bk_tensor_present(t); j++) {
      if (t->buffer != ranges[j].buffer || t->offset < ranges[j].begin ||
          t->offset >= ranges[j].end)
        continue;
      t->offset = ranges[j].staged + (t->offset - ranges[j].begin);
      t->buffer = staging;
      break;
    }
  }
}

/* Waits, because the caller goes on with memory that the kernel writes. */
static bk_status run_there(const fallback_state *s, bk_stream *other, const void *args) {
  BK_TRY(bk_plan_launch(other, &s->plan, args, (bk_place){s->workspace, 0}));
  return other->ops->sync(other);
}

/* Three parts, each of which waits for the one before: everything to the host, the kernel there,
 * and the written ranges back. The arguments are copied, since they are the caller's. */
static bk_status launch_staged(bk_stream *stream, const fallback_state *s, bk_stream *other,
                               const void *args) {
  range ranges[BK_OP_MAX_FIELDS];
  _Alignas(16) char copy[BK_OP_MAX_ARGS];
  int count = ranges_collect(s->op, args, ranges);
  char *host = s->staging->handle;
  for (int i = 0; i < count; i++) {
    BK_TRY(stream->ops->download(stream, host + ranges[i].staged,
                                 (bk_place){ranges[i].buffer, ranges[i].begin},
                                 ranges[i].end - ranges[i].begin));
  }
  BK_TRY(stream->ops->sync(stream));
  memcpy(copy, args, bk_op_describe(s->op)->args_size);
  redirect(s->op, copy, ranges, count, s->staging);
  BK_TRY(run_there(s, other, copy));
  for (int i = 0; i < count; i++) {
    if (!ranges[i].written) continue;
    BK_TRY(stream->ops->upload(stream, (bk_place){ranges[i].buffer, ranges[i].begin},
                               host + ranges[i].staged, ranges[i].end - ranges[i].begin));
  }
  return stream->ops->sync(stream);
}

/* In place: the device's own stream must have finished with the operands first. */
static bk_status fallback_launch(bk_stream *stream, const bk_plan *plan, const void *args,
                                 bk_place workspace BK_UNUSED) {
  const fallback_state *s = plan->state;
  bk_stream *other = plan->device->fallback_stream;
  if (s->staging) return launch_staged(stream, s, other, args);
  BK_TRY(stream->ops->sync(stream));
  return run_there(s, other, args);
}

/* Works on a half-made state too; `device` is the one that fell back. */
static void fallback_release(bk_device *device, void *state) {
  fallback_state *s = state;
  bk_plan_release(&s->plan);
  bk_buffer_free(s->workspace);
  bk_buffer_free(s->staging);
  bk_free(device->ctx, s);
}

/* This is a row of no table: its op is BK_OP_NONE, and no lookup finds it. The state knows the
 * op. */
static const bk_kernel fallback_kernel = {.name = "fallback",
                                          .accepts = bk_kernel_accepts_all,
                                          .prepare = bk_kernel_prepare_none,
                                          .launch = fallback_launch,
                                          .release = fallback_release};

/* Opens the device to fall back on, once. */
static bk_status fallback_open(bk_device *device) {
  if (device->fallback_stream) return BK_OK;
  if (!device->fallback && device->open_fallback)
    BK_TRY(device->open_fallback(device, &device->fallback));
  if (!device->fallback) return BK_ERR_UNSUPPORTED;
  return bk_stream_create(device->fallback, 0, &device->fallback_stream);
}

/* The workspace and the staging are made once, with the plan. */
static bk_status prepare_there(bk_device *device, bk_op op, const void *args, fallback_state *s) {
  s->op = op;
  BK_TRY(bk_plan_prepare(device->fallback, op, args, &s->plan));
  if (s->plan.workspace_bytes) {
    BK_TRY(bk_buffer_alloc(device->fallback, s->plan.workspace_bytes, BK_MEM_WORKSPACE,
                           &s->workspace));
  }
  if (device->props.host_memory) return BK_OK;
  return bk_buffer_alloc(device->fallback, staging_bytes(op, args), BK_MEM_STAGING, &s->staging);
}

/* The lookup on the other device comes first, so that a failure there is told by the caller in
 * terms of the device that the user asked for. */
bk_status bk_fallback_prepare(bk_device *device, bk_op op, const void *args, bk_plan *plan) {
  BK_TRY(fallback_open(device));
  if (!bk_kernel_find(device->fallback, op, args)) return BK_ERR_UNSUPPORTED;
  fallback_state *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  bk_status status = prepare_there(device, op, args, s);
  if (status != BK_OK) {
    fallback_release(device, s);
    return status;
  }
  if (!device->fell_back[op]) {
    bk_warn(device->ctx, "%s has no kernel for %s: it runs on %s", device->backend->name,
            bk_op_name(op), device->fallback->backend->name);
    device->fell_back[op] = true;
  }
  *plan = (bk_plan){.kernel = &fallback_kernel, .device = device, .state = s};
  return BK_OK;
}

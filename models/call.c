/* Op calls with kernels prepared once: see call.h. */
#include "models/call.h"

#include "models/profile.h"

bk_status bk_exec_init(bk_exec *ex, bk_device *device, bk_stream *stream, bool plan_only) {
  *ex = (bk_exec){.ctx = device->ctx,
                  .device = device,
                  .stream = stream,
                  .preparing = true,
                  .plan_only = plan_only};
  return bk_memory_create(device, &ex->memory);
}

void bk_exec_fini(bk_exec *ex) {
  bk_memory_destroy(ex->memory);
  *ex = (bk_exec){0};
}

bk_status bk_exec_commit(bk_exec *ex) {
  ex->preparing = false;
  if (ex->workspace_bytes == 0) return BK_OK;
  bk_tensor t;
  int64_t shape[1] = {(int64_t)ex->workspace_bytes};
  BK_TRY(bk_memory_tensor(ex->memory, BK_MEM_WORKSPACE, BK_U8, 1, shape, &t));
  if (!ex->plan_only) BK_TRY(bk_memory_commit(ex->memory));
  ex->workspace = (bk_place){t.buffer, t.offset};
  return BK_OK;
}

size_t bk_exec_bytes(const bk_exec *ex, bk_memory_class c) {
  return bk_memory_bytes(ex->memory, c);
}

const char *bk_phase_name(bk_phase phase) {
#define BK_PHASE_NAME(id, name) name,
  static const char *const names[] = {BK_PHASE_LIST(BK_PHASE_NAME)};
#undef BK_PHASE_NAME
  return (unsigned)phase < BK_COUNT(names) ? names[phase] : "?";
}

void bk_exec_begin(bk_exec *ex, bk_calls *calls, bk_phase phase, int sublayer) {
  ex->calls = calls;
  ex->phase = phase;
  ex->sublayer = sublayer;
  calls->next = 0;
}

static bk_status call_prepare(bk_exec *ex, bk_op op, const void *args) {
  bk_calls *c = ex->calls;
  bk_plan plan = {0};
  BK_TRY(bk_plan_prepare(ex->device, op, args, &plan));
  if (plan.workspace_bytes > ex->workspace_bytes) ex->workspace_bytes = plan.workspace_bytes;
  if (ex->plan_only) {
    bk_plan_release(&plan);
    return BK_OK;
  }
  bk_status status =
      bk_grow(ex->ctx, (void **)&c->call, &c->capacity, (size_t)c->count + 1, sizeof *c->call);
  if (status != BK_OK) {
    bk_plan_release(&plan);
    return status;
  }
  c->call[c->count++] = (bk_call){op, plan};
  return BK_OK;
}

bk_status bk_exec_call(bk_exec *ex, bk_op op, const void *args) {
  if (ex->preparing) return call_prepare(ex, op, args);
  bk_calls *c = ex->calls;
  if (c->next >= c->count || c->call[c->next].op != op) {
    return bk_fail(ex->ctx, BK_ERR_ARGUMENT, "op %s was not prepared at call %d of its phase",
                   bk_op_name(op), c->next);
  }
  const bk_call *call = &c->call[c->next++];
  if (ex->profile) return bk_profile_launch(ex->profile, ex, call, args);
  return bk_plan_launch(ex->stream, &call->plan, args, ex->workspace);
}

void bk_calls_fini(bk_context *ctx, bk_calls *calls) {
  for (int i = 0; i < calls->count; i++) bk_plan_release(&calls->call[i].plan);
  bk_free(ctx, calls->call);
  *calls = (bk_calls){0};
}

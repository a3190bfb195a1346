/* Op calls with kernels prepared once. The step code of the models is plain functions that call ops in a fixed order; each
 * phase (forward of one sublayer, its dgrad, ...) owns a list of calls. At creation the same functions run in preparing mode and
 * fill the lists (shapes only, nothing is launched); in a step they launch from them, in the same order. Calls depend on
 * shapes and strides only, so that all micro-batch slots share one list. */
#ifndef BK_CALL_H
#define BK_CALL_H

#include "runtime/backend.h"

typedef struct bk_call {
  bk_op op;
  bk_plan plan;
} bk_call;

typedef struct bk_calls {
  bk_call *call;
  size_t capacity;
  int count, next;
} bk_calls;

typedef struct bk_exec {
  bk_context *ctx;
  bk_device *device;
  bk_stream *stream;
  bk_calls *calls; /* of the phase being run */
  bk_memory *memory; /* of the shared kernel workspace */
  bk_place workspace;
  size_t workspace_bytes; /* the largest of all calls */
  bool preparing;
  bool plan_only; /* kernels are prepared for their workspace sizes and released at once */
} bk_exec;

/* Starts in preparing mode. */
bk_status bk_exec_init(bk_exec *ex, bk_device *device, bk_stream *stream, bool plan_only);
void bk_exec_fini(bk_exec *ex); /* safe on a zeroed one */
/* Ends preparing: reserves the workspace that all calls share (class workspace) and, unless plan_only, commits it. */
bk_status bk_exec_commit(bk_exec *ex);
size_t bk_exec_bytes(const bk_exec *ex, bk_memory_class c);

/* The calls that follow belong to this phase. */
void bk_exec_begin(bk_exec *ex, bk_calls *calls);
bk_status bk_exec_call(bk_exec *ex, bk_op op, const void *args);
void bk_calls_fini(bk_context *ctx, bk_calls *calls);

#endif

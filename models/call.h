/* Op calls with kernels prepared once. The step code of the models is plain functions that call
 * ops in a fixed order; each phase (forward of one sublayer, its dgrad, ...) owns a list of
 * calls. At creation the same functions run in preparing mode and fill the lists (shapes only,
 * nothing is launched); in a step they launch from them, in the same order. Calls depend on
 * shapes and strides only, so that all micro-batch slots share one list. */
#ifndef BK_CALL_H
#define BK_CALL_H

#include "runtime/backend.h"

/* What a list of calls is for. The head begins with the final norm; `loss` has the head's own
 * dgrad and wgrad, `merge` and `mix_bwd` the mix of the next and the merge of the previous
 * sublayer where the two are one op. X(ID, name) */
#define BK_PHASE_LIST(X)    \
  X(EMBED, "embed")         \
  X(MIX, "mix")             \
  X(FORWARD, "forward")     \
  X(MERGE, "merge")         \
  X(HEAD, "head")           \
  X(LOSS, "loss")           \
  X(HEAD_BWD, "head_bwd")   \
  X(REBUILD, "rebuild")     \
  X(MERGE_BWD, "merge_bwd") \
  X(DGRAD, "dgrad")         \
  X(WGRAD, "wgrad")         \
  X(MIX_BWD, "mix_bwd")     \
  X(EMBED_BWD, "embed_bwd") \
  X(OPTIMIZER, "optimizer")
typedef enum bk_phase {
#define BK_PHASE_ENUM(id, name) BK_PHASE_##id,
  BK_PHASE_LIST(BK_PHASE_ENUM)
#undef BK_PHASE_ENUM
      BK_PHASE_COUNT
} bk_phase;
const char *bk_phase_name(bk_phase phase);

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
  bk_phase phase;  /* its name and the sublayer it belongs to, -1: none; for the profile */
  int sublayer;
  struct bk_profile *profile; /* profile.h; NULL: launches are not timed */
  bk_memory *memory;          /* of the shared kernel workspace */
  bk_place workspace;
  size_t workspace_bytes; /* the largest of all calls */
  bool preparing;
  bool plan_only; /* kernels are prepared for their workspace sizes and released at once */
} bk_exec;

/* Starts in preparing mode. */
bk_status bk_exec_init(bk_exec *ex, bk_device *device, bk_stream *stream, bool plan_only);
void bk_exec_fini(bk_exec *ex); /* safe on a zeroed one */
/* Ends preparing: reserves the workspace that all calls share (class workspace) and, unless
 * plan_only, commits it. */
bk_status bk_exec_commit(bk_exec *ex);
size_t bk_exec_bytes(const bk_exec *ex, bk_memory_class c);

/* The calls that follow are those of this list. */
void bk_exec_begin(bk_exec *ex, bk_calls *calls, bk_phase phase, int sublayer);
bk_status bk_exec_call(bk_exec *ex, bk_op op, const void *args);
void bk_calls_fini(bk_context *ctx, bk_calls *calls);

#endif

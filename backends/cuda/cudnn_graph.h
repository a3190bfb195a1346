/* Causal attention and its backward as operation graphs of cuDNN's C backend, and execution
 * plans for them. Needs no device by itself: a plan is made for a handle (the device it belongs
 * to) or for a descriptor of device properties.
 *
 * Tensors are seen as [B,H,T,D] with free strides. Forward, after the score matrix s = q k^T
 * (never stored: all between the two products is virtual):
 *   z = select(row >= column, scale s, -inf);  m = max z;  l = sum exp(z - m);  lse = m + log l;
 *                                              o = (exp(z - m) / l) v
 * Backward:
 *   r = sum dout o;  p = exp(select(row >= column, scale s - lse, -inf));  dv = p^T dout
 *   ds = scale p (dout v^T - r);  dk = ds^T q;  dq = ds k
 * cuDNN's statistic is the natural logarithm of the sum of exponentials of the scaled scores:
 * our lse.
 *
 * Deterministic: engines that carry the note NONDETERMINISTIC are passed over, and in the
 * backward dq is a product that is written once: the other form, where blocks of keys add to an
 * fp32 dq in whatever order they finish, is not asked for. */
#ifndef BK_CUDA_CUDNN_GRAPH_H
#define BK_CUDA_CUDNN_GRAPH_H

#include <cudnn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/op.h"

/* X(name without cudnn) */
#define BK_CUDNN_FUNCTIONS(X) \
  X(Create)                   \
  X(Destroy)                  \
  X(SetStream)                \
  X(GetVersion)               \
  X(GetErrorString)           \
  X(BackendCreateDescriptor)  \
  X(BackendDestroyDescriptor) \
  X(BackendFinalize)          \
  X(BackendSetAttribute)      \
  X(BackendGetAttribute)      \
  X(BackendExecute)

typedef struct bk_cudnn_api {
#define BK_CUDNN_MEMBER(name) __typeof__(cudnn##name) *name;
  BK_CUDNN_FUNCTIONS(BK_CUDNN_MEMBER)
#undef BK_CUDNN_MEMBER
} bk_cudnn_api;

/* Opens the library; NULL where all is well, or why it does not serve. *opened gets the
 * library's name. */
const char *bk_cudnn_api_find(bk_cudnn_api *api, const char **opened);

/* What a plan is for: a handle, or a finalized CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR (cuDNN 9.8
 * on). */
typedef struct bk_cudnn_target {
  cudnnHandle_t handle;
  cudnnBackendDescriptor_t properties;
} bk_cudnn_target;

#define BK_CUDNN_DESCRIPTORS 128
#define BK_CUDNN_OPERANDS 16

typedef struct bk_cudnn_plan {
  const bk_cudnn_api *api;
  /* all that must be destroyed, oldest first */
  cudnnBackendDescriptor_t made[BK_CUDNN_DESCRIPTORS];
  int n_made;
  cudnnBackendDescriptor_t plan;
  /* cuDNN's own, also of a plan that failed at its end; what follows it is at `sums` */
  size_t workspace;
  size_t sums;  /* backward: offset of r, fp32 [B,H,T] */
  size_t bytes; /* the whole workspace */
  float scale, masked;
  char name[64]; /* the engine and its notes, for a debug line */
} bk_cudnn_plan;

/* Leave nothing behind when they fail. `limit`: bytes of workspace that an engine may ask for. */
cudnnStatus_t bk_cudnn_plan_forward(const bk_cudnn_api *api, bk_cudnn_target target,
                                    const bk_attention_args *a, size_t limit, bk_cudnn_plan *plan);
cudnnStatus_t bk_cudnn_plan_backward(const bk_cudnn_api *api, bk_cudnn_target target,
                                     const bk_attention_bwd_args *a, size_t limit,
                                     bk_cudnn_plan *plan);
void bk_cudnn_plan_release(bk_cudnn_plan *plan);

/* `data`: device addresses in the order of bk_cudnn_forward_operands or backward_operands. */
enum { BK_CUDNN_Q, BK_CUDNN_K, BK_CUDNN_V, BK_CUDNN_O, BK_CUDNN_LSE, BK_CUDNN_FORWARD_COUNT };
enum {
  BK_CUDNN_DOUT = BK_CUDNN_FORWARD_COUNT,
  BK_CUDNN_DQ,
  BK_CUDNN_DK,
  BK_CUDNN_DV,
  BK_CUDNN_BACKWARD_COUNT
};
cudnnStatus_t bk_cudnn_plan_run(bk_cudnn_plan *plan, cudnnHandle_t handle, char *const *data,
                                int count, char *workspace);

#endif

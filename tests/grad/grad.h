/* Central differences in double on `ref`: is an op's backward the derivative of its forward?
 *
 * The loss is the sum of cotangent * output over the outputs. Each input element (at most
 * GRAD_SAMPLES of a tensor, drawn at random) is moved by h and 2h both ways; the five-point rule
 * gives its derivative with an error of order h^4. The backward op's gradient must agree within
 * 1e-6 of the norm of the tensor's gradient. Gradients that add are given something to add to,
 * and it is taken off again; those that overwrite find other numbers there. */
#ifndef BK_TEST_GRAD_H
#define BK_TEST_GRAD_H

#include "ops/ops.h"

#define GRAD_SAMPLES 48
#define GRAD_MAX_TENSORS 64
#define GRAD_MAX_PAIRS 16

typedef struct grad_test {
  bk_context *ctx;
  bk_device *ref;
  bk_stream *stream;
  uint64_t draws; /* streams of random numbers used so far */
  bk_buffer *buffers[GRAD_MAX_TENSORS];
  int n_buffers;
  bool covered[BK_OP_COUNT]; /* ops that served as a backward */
  int checks, failed;
} grad_test;

/* Contiguous fp64 tensors with memory, normal(0,1) and uniform; freed by grad_reset. */
bk_tensor g_tensor(grad_test *g, int ndim, const int64_t *shape);
#define G(...) \
  g_tensor(g, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
bk_tensor g_uniform(grad_test *g, int64_t count, double low, double high);
bk_tensor g_ints(grad_test *g, int ndim, const int64_t *shape, const int32_t *values);
void g_scale(const bk_tensor *t, double factor);
void grad_reset(grad_test *g);

/* One gradient: of `in`, found in `grad`. */
typedef struct grad_pair {
  const bk_tensor *in, *grad;
  bool adds;
} grad_pair;
/* One cotangent: of output `out`, handed to the backward in `cotangent`. fixed: it already has
 * its values. */
typedef struct grad_cotangent {
  const bk_tensor *out, *cotangent;
  bool fixed;
} grad_cotangent;
typedef struct grad_case {
  const char *name;
  bk_op forward, backward;
  const void *forward_args, *backward_args;
  grad_cotangent outs[GRAD_MAX_PAIRS]; /* ends with out NULL */
  grad_pair ins[GRAD_MAX_PAIRS];       /* ends with in NULL */
  const bk_tensor *inout;              /* an operand that the forward adds to, or NULL */
} grad_case;
void grad_check(grad_test *g, const grad_case *c);

void grad_layers(grad_test *g);
void grad_streams(grad_test *g);
void grad_composed(grad_test *g);

#endif

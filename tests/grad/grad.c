/* The engine of grad.h. `ref` has host memory, so elements are read and written in place. */
#include "ops/plan.h"
#include "tests/grad/grad.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED 20260u
#define STEP 1e-3

static void must(bk_status status, const char *what) {
  if (status == BK_OK) return;
  printf("FAIL %s: %s\n", what, bk_status_name(status));
  exit(1);
}

/* ---- tensors ---- */

static bk_tensor with_memory(grad_test *g, bk_tensor t) {
  if (g->n_buffers == GRAD_MAX_TENSORS) must(BK_ERR_MEMORY, "tensors of one case");
  must(bk_buffer_alloc(g->ref, bk_tensor_bytes(&t), BK_MEM_WORKSPACE, &g->buffers[g->n_buffers]),
       "memory");
  t.buffer = g->buffers[g->n_buffers++];
  return t;
}

static void randomize(grad_test *g, const bk_tensor *t) {
  double *v = bk_tensor_data(t);
  uint64_t stream = ++g->draws;
  for (int64_t i = 0; i < bk_tensor_count(t); i++) v[i] = bk_normal(SEED, stream, (uint64_t)i);
}

bk_tensor g_tensor(grad_test *g, int ndim, const int64_t *shape) {
  bk_tensor t = with_memory(g, bk_tensor_make(BK_F64, ndim, shape));
  randomize(g, &t);
  return t;
}

bk_tensor g_uniform(grad_test *g, int64_t count, double low, double high) {
  bk_tensor t = with_memory(g, bk_tensor_1d(BK_F64, count));
  uint64_t stream = ++g->draws;
  double *v = bk_tensor_data(&t);
  for (int64_t i = 0; i < count; i++)
    v[i] = low + (high - low) * bk_uniform(SEED, stream, (uint64_t)i);
  return t;
}

bk_tensor g_ints(grad_test *g, int ndim, const int64_t *shape, const int32_t *values) {
  bk_tensor t = with_memory(g, bk_tensor_make(BK_I32, ndim, shape));
  if (values) memcpy(bk_tensor_data(&t), values, bk_tensor_bytes(&t));
  return t;
}

void g_scale(const bk_tensor *t, double factor) {
  double *v = bk_tensor_data(t);
  for (int64_t i = 0; i < bk_tensor_count(t); i++) v[i] *= factor;
}

void grad_reset(grad_test *g) {
  while (g->n_buffers > 0) bk_buffer_free(g->buffers[--g->n_buffers]);
}

/* ---- the check ---- */

static double *copy_of(const bk_tensor *t) {
  double *v = malloc(bk_tensor_bytes(t) + 1);
  if (!v) must(BK_ERR_MEMORY, "a copy");
  memcpy(v, bk_tensor_data(t), bk_tensor_bytes(t));
  return v;
}

/* What the loss is made of: the cotangents as they were (the backward may use their memory) and
 * what INOUT started from. */
typedef struct loss_state {
  grad_test *g;
  const grad_case *c;
  double *cotangents[GRAD_MAX_PAIRS];
  double *start;
} loss_state;

static double loss(const loss_state *s) {
  if (s->start) memcpy(bk_tensor_data(s->c->inout), s->start, bk_tensor_bytes(s->c->inout));
  must(bk_op_run(s->g->stream, s->c->forward, s->c->forward_args), s->c->name);
  double sum = 0;
  for (int i = 0; s->c->outs[i].out; i++) {
    const double *v = bk_tensor_data(s->c->outs[i].out);
    for (int64_t j = 0; j < bk_tensor_count(s->c->outs[i].out); j++)
      sum += s->cotangents[i][j] * v[j];
  }
  return sum;
}

static double difference(const loss_state *s, double *at) {
  double x = *at, f[4];
  const double moves[4] = {-2, -1, 1, 2};
  for (int i = 0; i < 4; i++) {
    *at = x + moves[i] * STEP;
    f[i] = loss(s);
  }
  *at = x;
  return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * STEP);
}

/* gradient: what the backward gave for this input. */
static void check_input(const loss_state *s, int which, const double *gradient) {
  const bk_tensor *in = s->c->ins[which].in;
  int64_t count = bk_tensor_count(in), samples = count < GRAD_SAMPLES ? count : GRAD_SAMPLES;
  double error = 0, norm = 0;
  uint64_t stream = ++s->g->draws;
  for (int64_t i = 0; i < count; i++) norm += gradient[i] * gradient[i];
  for (int64_t i = 0; i < samples; i++) {
    int64_t at =
        count == samples ? i : (int64_t)(bk_uniform(SEED, stream, (uint64_t)i) * (double)count);
    double d = difference(s, (double *)bk_tensor_data(in) + at) - gradient[at];
    error += d * d;
  }
  s->g->checks++;
  double share = sqrt(error) / fmax(sqrt(norm), 1e-3);
  if (share < 1e-6) return;
  s->g->failed++;
  printf("FAIL %s: gradient %d of %s: error %.3e of its norm %.3e\n", s->c->name, which,
         bk_op_name(s->c->backward), share, sqrt(norm));
}

void grad_check(grad_test *g, const grad_case *c) {
  loss_state s = {.g = g, .c = c};
  double *before[GRAD_MAX_PAIRS], *gradient[GRAD_MAX_PAIRS];
  if (c->inout) s.start = copy_of(c->inout);
  for (int i = 0; c->ins[i].in; i++) randomize(g, c->ins[i].grad);
  for (int i = 0; c->outs[i].out; i++) {
    if (!c->outs[i].fixed) randomize(g, c->outs[i].cotangent);
    s.cotangents[i] = copy_of(c->outs[i].cotangent);
  }
  for (int i = 0; c->ins[i].in; i++) before[i] = copy_of(c->ins[i].grad);
  loss(&s);
  must(bk_op_run(g->stream, c->backward, c->backward_args), c->name);
  g->covered[c->backward] = true;
  for (int i = 0; c->ins[i].in; i++) {
    gradient[i] = copy_of(c->ins[i].grad);
    for (int64_t j = 0; c->ins[i].adds && j < bk_tensor_count(c->ins[i].grad); j++)
      gradient[i][j] -= before[i][j];
  }
  for (int i = 0; c->ins[i].in; i++) check_input(&s, i, gradient[i]);
  for (int i = 0; c->ins[i].in; i++) {
    free(before[i]);
    free(gradient[i]);
  }
  for (int i = 0; c->outs[i].out; i++) free(s.cotangents[i]);
  free(s.start);
}

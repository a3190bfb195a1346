/* Sinkhorn: an n by n matrix of logits becomes (nearly) doubly stochastic. mHC, arXiv 2512.24880
 * eq. 9.
 *
 * 2 iters steps: the even ones normalise rows (fixed source m), the odd ones columns (fixed
 * destination k). hc_eps = 0: in the log domain a step is y = x - logsumexp(x) along its line,
 * and comb = exp of the last y.
 *   With z = x - max(x), y = z - log(sum exp z): no large numbers cancel, lines sum to 1 to
 *   rounding whatever the gaps. Backward of a step: dx = dy - exp(y) sum(dy).
 * hc_eps > 0 (DeepSeek-V4): step 0 is a softmax, plus eps; the others y = x / (sum(x) + eps).
 *   Backward: dx = (dy - sum(dy y)) / (sum(x) + eps); of the softmax p: dx = p (dy - sum(dy p)).
 * The backward recomputes all iterates, keeps them in the workspace, and walks them back. */
#include "backends/ref/ref.h"
#include <float.h>

enum { MAX_N = BK_HC_MAX_N, MAX_STEPS = 2 * 64 };
typedef double matrix[MAX_N][MAX_N];

/* Line i of a step: a row in even steps, a column in odd ones. Elements of a line are line[0],
 * line[stride], ... */
static double *line_of(matrix x, int step, int i) { return step % 2 == 0 ? &x[i][0] : &x[0][i]; }
static int line_stride(int step) { return step % 2 == 0 ? 1 : MAX_N; }

static double line_max(const double *x, int n, int stride) {
  double max = x[0];
  for (int j = 1; j < n; j++) max = fmax(max, x[j * stride]);
  return max;
}

/* Gaps past the range of a double count as the largest that still leaves room for all steps. */
static const double LOWEST = -DBL_MAX / 8;

static void log_step(double *x, int n, int stride) {
  double max = line_max(x, n, stride), sum = 0;
  for (int j = 0; j < n; j++) sum += exp(x[j * stride] - max);
  double log_sum = log(sum);
  for (int j = 0; j < n; j++) {
    double y = x[j * stride] - max - log_sum;
    x[j * stride] = y < LOWEST ? LOWEST : y; /* a NaN stays */
  }
}

static void softmax_step(double *x, int n, int stride, double eps) {
  double max = line_max(x, n, stride), sum = 0;
  for (int j = 0; j < n; j++) sum += exp(x[j * stride] - max);
  for (int j = 0; j < n; j++) x[j * stride] = exp(x[j * stride] - max) / sum + eps;
}

/* Returns the divisor. */
static double divide_step(double *x, int n, int stride, double eps) {
  double sum = 0;
  for (int j = 0; j < n; j++) sum += x[j * stride];
  for (int j = 0; j < n; j++) x[j * stride] /= sum + eps;
  return sum + eps;
}

/* One step of all lines, in place; divisors [n] may be NULL. */
static void forward_step(matrix x, int n, int step, double eps, double *divisors) {
  for (int i = 0; i < n; i++) {
    double *line = line_of(x, step, i), divisor = 1;
    int stride = line_stride(step);
    if (eps == 0) log_step(line, n, stride);
    else if (step == 0) softmax_step(line, n, stride, eps);
    else divisor = divide_step(line, n, stride, eps);
    if (divisors) divisors[i] = divisor;
  }
}

/* Turns the gradient of the step's output y into that of its input, in place. */
static void backward_step(matrix grad, matrix y, int n, int step, double eps,
                          const double *divisors) {
  int stride = line_stride(step);
  for (int i = 0; i < n; i++) {
    double *g = line_of(grad, step, i), *line = line_of(y, step, i), sum = 0;
    double shift = eps > 0 && step == 0 ? eps : 0; /* the softmax itself is y - eps */
    for (int j = 0; j < n; j++)
      sum += eps == 0 ? g[j * stride] : g[j * stride] * (line[j * stride] - shift);
    for (int j = 0; j < n; j++) {
      double *at = &g[j * stride], out = line[j * stride];
      *at = eps == 0    ? *at - exp(out) * sum
            : step == 0 ? (out - eps) * (*at - sum)
                        : (*at - sum) / divisors[i];
    }
  }
}

static void load_matrix(const bk_tensor *t, int64_t i, int n, matrix x) {
  for (int m = 0; m < n; m++)
    for (int k = 0; k < n; k++) x[m][k] = get3(t, i, m, k);
}

static bool within_limits(const bk_tensor *logits, int iters) {
  return logits->shape[1] <= MAX_N && iters >= 1 && 2 * iters <= MAX_STEPS;
}

BK_REF_ACCEPTS(sinkhorn) {
  const bk_sinkhorn_args *a = args;
  return within_limits(&a->logits, a->iters);
}

BK_REF_ACCEPTS(sinkhorn_bwd) {
  const bk_sinkhorn_bwd_args *a = args;
  return within_limits(&a->logits, a->iters);
}

BK_REF_LAUNCH(sinkhorn) {
  const bk_sinkhorn_args *a = args;
  int n = (int)a->logits.shape[1];
  for (int64_t i = 0; i < a->logits.shape[0]; i++) {
    matrix x;
    load_matrix(&a->logits, i, n, x);
    for (int step = 0; step < 2 * a->iters; step++) forward_step(x, n, step, a->hc_eps, NULL);
    for (int m = 0; m < n; m++)
      for (int k = 0; k < n; k++) set3(&a->comb, i, m, k, a->hc_eps == 0 ? exp(x[m][k]) : x[m][k]);
  }
  return BK_OK;
}

/* What a step gave. */
typedef struct iterate {
  matrix out;
  double divisors[MAX_N];
} iterate;

BK_REF_PREPARE(sinkhorn_bwd) {
  const bk_sinkhorn_bwd_args *a = args;
  *workspace_bytes = 2 * (size_t)a->iters * sizeof(iterate);
  return BK_OK;
}

BK_REF_LAUNCH(sinkhorn_bwd) {
  const bk_sinkhorn_bwd_args *a = args;
  int n = (int)a->logits.shape[1], steps = 2 * a->iters;
  iterate *kept = bk_place_data(workspace);
  matrix x, grad;
  for (int64_t i = 0; i < a->logits.shape[0]; i++) {
    load_matrix(&a->logits, i, n, x);
    for (int step = 0; step < steps; step++) {
      forward_step(x, n, step, a->hc_eps, kept[step].divisors);
      for (int m = 0; m < n; m++) memcpy(kept[step].out[m], x[m], (size_t)n * sizeof(double));
    }
    load_matrix(&a->dcomb, i, n, grad);
    if (a->hc_eps == 0)
      for (int m = 0; m < n; m++)
        for (int k = 0; k < n; k++) grad[m][k] *= exp(x[m][k]);
    for (int step = steps - 1; step >= 0; step--)
      backward_step(grad, kept[step].out, n, step, a->hc_eps, kept[step].divisors);
    for (int m = 0; m < n; m++)
      for (int k = 0; k < n; k++) set3(&a->dlogits, i, m, k, grad[m][k]);
  }
  return BK_OK;
}

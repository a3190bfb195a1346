/* The mHC residual connection around a sublayer of one's own: F is y = tanh(W h) in plain C, the
 * connection is the library's, the training loop is neither. First the gradients are checked by
 * central differences, then a few steps of plain gradient descent bring a loss down. cc
 * mhc_layer.c $(pkg-config --cflags --libs birkhoff) -lm && ./a.out */
#include <birkhoff/residual.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
  TOKENS = 6,
  STREAMS = 4,
  WIDTH = 8,
  ROW = TOKENS * WIDTH,
  ALL = TOKENS * STREAMS * WIDTH,
  MOST = 1024
};

/* One sublayer: the connection, F's matrix, and what its backward needs. */
typedef struct layer {
  bk_residual *connection;
  float w[WIDTH][WIDTH], dw[WIDTH][WIDTH];
  float h[ROW], f[ROW], out[ALL];
} layer;

static void sublayer_forward(layer *l) {
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < WIDTH; i++) {
      double sum = 0;
      for (int j = 0; j < WIDTH; j++) sum += l->w[i][j] * l->h[t * WIDTH + j];
      l->f[t * WIDTH + i] = (float)tanh(sum);
    }
}

static void sublayer_backward(layer *l, const float *df, float *dh) {
  memset(dh, 0, ROW * sizeof *dh);
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < WIDTH; i++) {
      float f = l->f[t * WIDTH + i], da = df[t * WIDTH + i] * (1 - f * f);
      for (int j = 0; j < WIDTH; j++) {
        l->dw[i][j] += da * l->h[t * WIDTH + j];
        dh[t * WIDTH + j] += da * l->w[i][j];
      }
    }
}

/* loss = half the mean of (out - goal)^2 */
static bk_status forward(layer *l, const float *x, const float *goal, double *loss) {
  bk_status status = bk_residual_mix(l->connection, x, l->h);
  if (status != BK_OK) return status;
  sublayer_forward(l);
  status = bk_residual_merge(l->connection, l->f, l->out);
  double sum = 0;
  for (int i = 0; i < ALL; i++)
    sum += 0.5 * ((double)l->out[i] - goal[i]) * ((double)l->out[i] - goal[i]) / ALL;
  *loss = sum;
  return status;
}

/* dx: the gradient of the streams that came in; those of W, fn, base and scale add up in their
 * places. */
static bk_status backward(layer *l, const float *goal, float *dx) {
  float df[ROW], dh[ROW];
  for (int i = 0; i < ALL; i++) dx[i] = (l->out[i] - goal[i]) / ALL;
  bk_status status = bk_residual_merge_bwd(l->connection, dx, dx, df);
  if (status != BK_OK) return status;
  sublayer_backward(l, df, dh);
  return bk_residual_mix_bwd(l->connection, dh, dx);
}

static float spread(int i, int salt) { return (float)sin(1.0 + 12.9898 * i + 78.233 * salt); }

/* Along its own direction a gradient's derivative is its length; `loss` has the central
 * difference's two sides. */
static void compare(const char *name, const double loss[2], double step, double length,
                    double *error) {
  double measured = (loss[0] - loss[1]) / (2 * step), off = fabs(measured - length) / length;
  printf("gradient of %-5s has length %.6e, by differences %.6e\n", name, length, measured);
  if (!(off <= *error)) *error = off;
}

static double length_of(const float *v, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += (double)v[i] * v[i];
  return sqrt(sum);
}

static bk_status check_param(layer *l, bk_residual_param p, const float *x, const float *goal,
                             double *error) {
  static const char *const names[] = {"fn", "base", "scale"};
  float start[MOST], moved[MOST], grad[MOST];
  double loss[2], step = 1e-2;
  int64_t count = bk_residual_count(l->connection, p);
  bk_status status = bk_residual_get(l->connection, p, start);
  if (status == BK_OK) status = bk_residual_get_grad(l->connection, p, grad);
  if (status != BK_OK) return status;
  double length = length_of(grad, count);
  for (int side = 0; status == BK_OK && side < 2; side++) {
    for (int64_t i = 0; i < count; i++)
      moved[i] = start[i] + (float)((side ? -step : step) * grad[i] / length);
    status = bk_residual_set(l->connection, p, moved);
    if (status == BK_OK) status = forward(l, x, goal, &loss[side]);
  }
  if (status == BK_OK) status = bk_residual_set(l->connection, p, start);
  if (status == BK_OK) compare(names[p], loss, step, length, error);
  return status;
}

static bk_status check_streams(layer *l, const float *x, const float *goal, const float *dx,
                               double *error) {
  float moved[ALL];
  double loss[2], step = 1e-2, length = length_of(dx, ALL);
  bk_status status = BK_OK;
  for (int side = 0; status == BK_OK && side < 2; side++) {
    for (int i = 0; i < ALL; i++) moved[i] = x[i] + (float)((side ? -step : step) * dx[i] / length);
    status = forward(l, moved, goal, &loss[side]);
  }
  if (status == BK_OK) compare("x", loss, step, length, error);
  return status;
}

static bk_status check(layer *l, const float *x, const float *goal, double *error) {
  float dx[ALL];
  double loss;
  bk_status status = forward(l, x, goal, &loss);
  if (status == BK_OK) status = backward(l, goal, dx);
  for (int p = 0; status == BK_OK && p < BK_RESIDUAL_PARAMS; p++)
    status = check_param(l, (bk_residual_param)p, x, goal, error);
  return status == BK_OK ? check_streams(l, x, goal, dx, error) : status;
}

static bk_status descend(layer *l, bk_residual_param p, float rate) {
  float values[MOST], grad[MOST];
  bk_status status = bk_residual_get(l->connection, p, values);
  if (status == BK_OK) status = bk_residual_get_grad(l->connection, p, grad);
  for (int64_t i = 0; status == BK_OK && i < bk_residual_count(l->connection, p); i++)
    values[i] -= rate * grad[i];
  return status == BK_OK ? bk_residual_set(l->connection, p, values) : status;
}

static bk_status train(layer *l, const float *x, const float *goal, double *first, double *last) {
  bk_status status = BK_OK;
  for (int step = 0; status == BK_OK && step < 200; step++) {
    float dx[ALL];
    memset(l->dw, 0, sizeof l->dw);
    status = bk_residual_zero_grads(l->connection);
    if (status == BK_OK) status = forward(l, x, goal, last);
    if (status == BK_OK) status = backward(l, goal, dx);
    if (step == 0) *first = *last;
    if (step % 50 == 0) printf("step %3d  loss %.5f\n", step, *last);
    for (int i = 0; i < WIDTH * WIDTH; i++)
      l->w[i / WIDTH][i % WIDTH] -= 0.5f * l->dw[i / WIDTH][i % WIDTH];
    for (int p = 0; status == BK_OK && p < BK_RESIDUAL_PARAMS; p++)
      status = descend(l, (bk_residual_param)p, 0.5f);
  }
  if (status == BK_OK) printf("step 200  loss %.5f\n", *last);
  return status;
}

static bk_status run(bk_device *device, bool *right) {
  static layer l;
  float x[ALL], goal[ALL];
  double error = 0, first = 0, last = 0;
  const bk_residual_options options = {
      .kind = BK_HC_MHC, .streams = STREAMS, .width = WIDTH, .tokens = TOKENS, .seed = 1};
  for (int i = 0; i < ALL; i++) x[i] = spread(i, 20), goal[i] = spread(i, 21);
  for (int i = 0; i < WIDTH * WIDTH; i++) l.w[i / WIDTH][i % WIDTH] = 0.3f * spread(i, 22);
  bk_status status = bk_residual_create(device, &options, &l.connection);
  /* Scale starts at 0.01: the maps hardly depend on x yet, and float would drown what fn does. */
  if (status == BK_OK)
    status = bk_residual_set(l.connection, BK_RESIDUAL_SCALE, (const float[]){1, 1, 1});
  if (status == BK_OK) status = check(&l, x, goal, &error);
  if (status == BK_OK) status = train(&l, x, goal, &first, &last);
  bk_residual_destroy(l.connection);
  *right = error < 1e-3 && last < 0.8 * first;
  printf("largest relative difference %.1e: %s\n", error, *right ? "right" : "wrong");
  return status;
}

static void print_message(void *user, bk_log_level level, const char *message) {
  (void)user, (void)level;
  fprintf(stderr, "%s\n", message);
}

int main(void) {
  bk_context *ctx = NULL;
  bk_device *device = NULL;
  bool right = false;
  const bk_context_options options = {.log = print_message, .log_level = BK_LOG_WARN};
  bk_status status = bk_context_create(&options, &ctx);
  if (status == BK_OK) status = bk_device_open(ctx, NULL, NULL, &device);
  if (status == BK_OK) status = run(device, &right);
  bk_device_close(device);
  bk_context_destroy(ctx);
  return status == BK_OK && right ? 0 : 1;
}

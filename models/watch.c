/* Spikes of the gradient norm and of the gain (watch.h). Warnings are given once a run: a run that
 * has begun to diverge would warn in every step, and the first one is what matters. The norms of
 * refused steps are not given to it. */
#include "models/watch.h"

#include <math.h>
#include <string.h>

/* By insertion; the window is small. The mean of the two middle ones for an even count. */
static double median(const double *values, int count) {
  double sorted[BK_WATCH_WINDOW];
  for (int i = 0; i < count; i++) {
    int at = i;
    for (; at > 0 && sorted[at - 1] > values[i]; at--) sorted[at] = sorted[at - 1];
    sorted[at] = values[i];
  }
  return 0.5 * (sorted[(count - 1) / 2] + sorted[count / 2]);
}

/* The window must be full before anything can be a spike. The comparison is with the norms before
 * this one. A norm that is not a number is no spike: a failed step is handled elsewhere. */
bool bk_watch_norm(bk_context *ctx, bk_watch *w, int64_t step, double norm, double factor) {
  double usual = w->seen >= BK_WATCH_WINDOW ? median(w->norms, BK_WATCH_WINDOW) : INFINITY;
  bool warns = factor > 0 && !w->norm_warned && norm > factor * usual;
  w->norms[w->seen++ % BK_WATCH_WINDOW] = norm;
  if (!warns) return false;
  w->norm_warned = true;
  bk_warn(ctx,
          "step %lld: the gradient norm %.4g is %.3g times the median of the last %d steps, %.4g; "
          "later spikes of it are not reported",
          (long long)step, norm, norm / usual, BK_WATCH_WINDOW, usual);
  return true;
}

/* Forward and backward have one limit, and the larger of the two counts. */
bool bk_watch_gain(bk_context *ctx, bk_watch *w, int64_t step, double forward, double backward,
                   double limit) {
  double largest = !(forward <= backward) ? forward : backward; /* a NaN in `forward` stays */
  if (limit <= 0 || w->gain_warned || largest <= limit) return false;
  w->gain_warned = true;
  bk_warn(ctx,
          "step %lld: the composite gain of the residual connections is %.4g forward and %.4g "
          "backward, gain_limit is %.4g: the streams are amplified; "
          "later steps are not reported",
          (long long)step, forward, backward, limit);
  return true;
}

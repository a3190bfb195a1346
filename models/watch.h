/* What watches over a training run.
 *
 * Spikes, from the numbers that a step reports anyway; each kind is warned about once in a run:
 *   gradient norm   above spike_factor x the median of the last 32 norms, once there are so many
 *   composite gain  forward or backward above gain_limit; a map that neither amplifies nor damps
 *                   has 1
 * The first thing that is not finite, in the order in which a step makes things; only looked for
 * after a step that failed. */
#ifndef BK_WATCH_H
#define BK_WATCH_H

#include "models/runner.h"

#define BK_WATCH_WINDOW 32

typedef struct bk_watch {
  double norms[BK_WATCH_WINDOW]; /* the last ones, in a ring */
  int64_t seen;
  bool norm_warned, gain_warned;
} bk_watch; /* begins zeroed */

/* factor, limit 0: off. True where it warned. */
bool bk_watch_norm(bk_context *ctx, bk_watch *w, int64_t step, double norm, double factor);
bool bk_watch_gain(bk_context *ctx, bk_watch *w, int64_t step, double forward, double backward,
                   double limit);

/* What a search found. */
typedef struct bk_suspect {
  bool found;
  /* among the weights and activations of the forward pass: the state itself is bad, not the step
   * from it */
  bool in_forward;
  char what[192]; /* "the output of model.layers.3's attention"; empty if nothing was found */
} bk_suspect;

/* One micro-batch again, forward and backward, looking at every tensor on the way: first the
 * weights that a piece reads, then what it made. Between bk_step_begin and bk_step_end,
 * gradients are written as ever. BK_OK where all is finite; BK_ERR_NOT_FINITE, not logged, with
 * *suspect filled; the pass ends there. */
bk_status bk_watch_pass(bk_runner *runner, const int32_t *ids, const int32_t *targets,
                        bk_suspect *suspect);
/* The same piece by piece, for a schedule that goes on by itself: `look` is called after each piece
 * with the chunk and the slot that it belongs to. */
typedef struct bk_watch_search bk_watch_search;
bk_status bk_watch_search_begin(bk_context *ctx, bk_suspect *suspect, bk_watch_search **search);
bk_status bk_watch_search_look(const bk_watch_search *search, const bk_chunk *chunk, int slot,
                               const bk_piece *piece);
void bk_watch_search_end(bk_watch_search *search);
/* The gradient with the largest square sum, which is put into *squares: for a norm that overflows
 * although no gradient does. */
bk_status bk_watch_largest_gradient(bk_model *model, bk_suspect *suspect, double *squares);
/* The first stored weight, master or moment that is not finite: BK_ERR_NOT_FINITE, not logged.
 * Collective where there are several ranks, each of which looks at what it has; all are told the
 * same. */
bk_status bk_watch_stored(bk_model *model, bk_suspect *suspect);

#endif

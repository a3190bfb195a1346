/* Amax gain magnitude of residual maps: gathering it. The numbers: birkhoff/train.h. */
#ifndef BK_GAIN_H
#define BK_GAIN_H

#include <birkhoff/train.h>

#include "models/runner.h"

bk_status bk_gain_create(bk_context *ctx, int n_sublayers, int n, bk_gain **gain);
/* Makes the host memory now that bk_gain_add and bk_gain_pass need for batches of up to `tokens`
 * and so many sublayers; else the first one allocates. */
bk_status bk_gain_reserve(bk_gain *gain, int64_t tokens, int sublayers);
void bk_gain_reset(bk_gain *gain);
/* Adds the tokens of the runner's last forward in `slot`. plain and ihc count as identity maps:
 * exactly 1. */
bk_status bk_gain_add(bk_gain *gain, const bk_runner *runner, int slot);
/* From host maps: comb [n_sublayers][tokens][n][n] (source, destination), NULL = identity. */
void bk_gain_add_maps(bk_gain *gain, const double *comb, int64_t tokens);
void bk_gain_finish(bk_gain *gain); /* sums to means */

/* The same where the sublayers are in several chunks: `products` [tokens][n][n] go from chunk to
 * chunk, forward and then, from identities again, back. */
void bk_gain_identity(const bk_gain *gain, double *products, int64_t tokens);
/* Adds the tokens of the chunk's last forward in `slot`. The products are those of the maps in
 * front of the chunk, on the way back of those behind it, and then the chunk's maps are in them
 * too. */
bk_status bk_gain_pass(bk_gain *gain, const struct bk_chunk *chunk, int slot, bool back,
                       double *products);
/* The products of all maps, from the way forward. */
void bk_gain_total(bk_gain *gain, const double *products, int64_t tokens);

#endif

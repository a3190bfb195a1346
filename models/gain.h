/* Amax gain magnitude of residual maps: gathering it. The numbers: birkhoff/train.h. */
#ifndef BK_GAIN_H
#define BK_GAIN_H

#include <birkhoff/train.h>

#include "models/runner.h"

bk_status bk_gain_create(bk_context *ctx, int n_sublayers, int n, bk_gain **gain);
/* Makes the host memory now that bk_gain_add needs for batches of up to `tokens`; else the first
 * one allocates. */
bk_status bk_gain_reserve(bk_gain *gain, int64_t tokens);
void bk_gain_reset(bk_gain *gain);
/* Adds the tokens of the runner's last forward in `slot`. plain and ihc count as identity maps:
 * exactly 1. */
bk_status bk_gain_add(bk_gain *gain, const bk_runner *runner, int slot);
/* From host maps: comb [n_sublayers][tokens][n][n] (source, destination), NULL = identity. */
void bk_gain_add_maps(bk_gain *gain, const double *comb, int64_t tokens);
void bk_gain_finish(bk_gain *gain); /* sums to means */

#endif

/* The part of rng.c that is not for callers but that its tests compare with tables. */
#ifndef BK_RNG_PRIV_H
#define BK_RNG_PRIV_H

/* The standard normal's quantile for 0 < p < 1, relative error about 1e-15, the same bits on
 * every machine. */
double bk_normal_quantile(double p);

#endif

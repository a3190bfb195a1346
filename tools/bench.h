/* The benches of `birkhoff bench`. */
#ifndef BK_BENCH_H
#define BK_BENCH_H

#include "tools/cli.h"

bk_status bench_ops(cli_session *s);
bk_status bench_step(cli_session *s);
bk_status bench_comm(cli_session *s);
/* Prints what a step of the recipe does: one line for each call. */
bk_status bench_program(cli_session *s, const bk_model_config *config, bk_dtype dtype,
                        const bk_train_config *recipe);

#endif

/* `birkhoff plan --schedule`: a pipeline schedule and how long its step takes (plan_schedule.c). No
 * model is needed. */
#ifndef BK_PLAN_SCHEDULE_H
#define BK_PLAN_SCHEDULE_H

#include "tools/cli.h"

bk_status cli_plan_schedule(cli_session *s);
/* BK_ERR_ARGUMENT where an option is given that has a meaning with --schedule alone. */
bk_status cli_plan_without_schedule(cli_session *s);

/* --bandwidth A,B, which is given; with one number both are it (plan_search.c). */
bk_status cli_bandwidth(cli_session *s, double *inside, double *between);

/* ---- plan_measured.c: costs that were measured ---- */
typedef struct cli_measured {
  bk_model_config config;
  bk_dtype dtype;
  int64_t batch, seq_len; /* of a micro-batch */
  /* [2 * layers + 2] seconds of the embedding, the sublayers, and head and loss; bk_free */
  bk_stage_costs *parts;
  double optimizer; /* seconds of its step on all of the model */
} cli_measured;
/* What bench step --json has printed. BK_ERR_DATA: it is something else. */
bk_status cli_measured_read(cli_session *s, const char *path, cli_measured *measured);
/* [2 * layers + 2], for bk_pipeline_options.costs; bk_free. */
bk_status cli_measured_cuts(cli_session *s, const cli_measured *measured, double **costs);
/* Costs and sublayers of the schedule's stages, cut by these costs, as train --stages FILE cuts
 * them; the bytes of a micro-batch that cross an edge, and the seconds of the optimiser on the rank
 * that has most to update. */
bk_status cli_measured_costs(cli_session *s, const cli_measured *measured,
                             const bk_schedule *schedule, bk_stage_costs *costs, int *sublayers,
                             double *edge_bytes, double *optimizer);

#endif

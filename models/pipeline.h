/* The layout of pipelines (birkhoff/parallel.h): which stages this rank holds, and with which ranks
 * it works together. What runs a schedule is executor.h. */
#ifndef BK_PIPELINE_H
#define BK_PIPELINE_H

#include <birkhoff/model.h>
#include <birkhoff/parallel.h>

struct bk_pipeline {
  bk_context *ctx;
  const bk_schedule *schedule;
  bk_comm *comm;     /* all ranks; NULL: it is only planned */
  bk_comm *line;     /* those of this pipeline, by their number p */
  bk_comm *replicas; /* those that hold the same stages, by their rank */
  int rank, ranks;   /* of the job */
  int p, d, dp;
  int n_replicas, replica;
  int64_t *cuts; /* [stages + 1]: stage s has the sublayers from cuts[s] to cuts[s + 1] */
};

#endif

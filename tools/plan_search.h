/* `birkhoff plan --gpus`: what a step would take on a cluster, for every way of sharing the work.
 * plan_search.c goes through the ways, plan_choice.c says what one of them takes, plan_report.c
 * prints. */
#ifndef BK_PLAN_SEARCH_H
#define BK_PLAN_SEARCH_H

#include "tools/plan_schedule.h"

/* Bytes, and bytes and flops a second; inside and between are those of one GPU in one direction. */
typedef struct plan_cluster {
  int64_t gpus, per_node;
  double memory, inside, between, latency;
  double flops, device_bandwidth;
} plan_cluster;

/* Why a choice is not among the best. */
typedef enum plan_drop {
  PLAN_KEPT,
  PLAN_LAYERS,   /* more stages than sublayers */
  PLAN_BATCH,    /* the sequences cannot be shared evenly */
  PLAN_SCHEDULE, /* not with so many ranks and micro-batches */
  PLAN_MEMORY,
  PLAN_NEEDLESS, /* it fits with less recompute, which takes less time */
  PLAN_SLOWER,
  PLAN_DROPS
} plan_drop;

/* A way of sharing the work. 0 and NULL: whatever it is, for choices that are dropped together. */
typedef struct plan_choice {
  int64_t pp, dp, ep;
  const char *schedule;
  int64_t micro_batch, micro_batches; /* sequences of one, and how many there are in a step */
  int recompute;                      /* place in plan_search.recompute; -1: whatever it is */
  int64_t count;                      /* the choices that this one stands for */
  plan_drop drop;
  char *reason;                     /* PLAN_LAYERS, PLAN_SCHEDULE: what the library says */
  double bytes[BK_MEM_CLASS_COUNT]; /* of the rank that needs most */
  double bytes_total;
  bool at_least; /* bytes_total is what a smaller micro-batch needs */
  /* Seconds of a step, and of its parts: the pipeline, gradients that are still under way after it,
   * the optimiser, and weights on their way back. */
  double step, pipeline, gradients, optimizer, weights;
  double bubble;       /* idle share of the pipeline, of the rank that idles most */
  double sent, hidden; /* seconds of communication of all ranks of a pipeline; the hidden share */
  /* What crosses an edge between stages, how long it takes, and how much of that is hidden. */
  double edge_bytes, edge_seconds, edge_hidden;
  double f_seconds;           /* F of the slowest stage */
  double tokens_per_s, share; /* of all GPUs; of their flops */
} plan_choice;

/* Recompute of connections (a block is a stage), and of F. */
typedef struct plan_recompute {
  bool connections;
  int f; /* bk_recompute_f */
} plan_recompute;
#define PLAN_RECOMPUTES 8

/* A stage that was planned, to be used again. */
typedef struct plan_stage {
  bk_stage_options options;
  bk_stage_needs needs;
} plan_stage;

typedef struct plan_search {
  cli_session *s;
  bk_context *quiet; /* its last error is in `said`: what does not go is a reason here, no error */
  char said[256];
  plan_cluster cluster;
  bk_model_config config;
  bk_train_config recipe;
  bk_dtype dtype;
  const char *model, *schedule;              /* NULL: all */
  int64_t pp, ep;                            /* 0: all */
  plan_recompute recompute[PLAN_RECOMPUTES]; /* from the fastest on */
  int n_recompute;
  plan_stage *stages;
  size_t n_stages, stages_capacity;
  plan_choice *choices;
  size_t n, capacity;
} plan_search;

#define PLAN_BEST 10

/* The whole command. */
bk_status plan_search_run(cli_session *s);

/* plan_choice.c. A schedule and its cuts, with the search's quiet context. */
typedef struct plan_pipeline {
  bk_schedule *schedule;
  bk_pipeline *pipeline;
} plan_pipeline;
/* Fills in what the choice needs: bytes, and where they fit the times, else drop. With `timeline`
 * that of the step, to be destroyed with the quiet context. */
bk_status plan_choice_weigh(plan_search *q, const plan_pipeline *p, plan_choice *c,
                            bk_timeline **timeline);
/* The seconds of F and B of the whole model with this recompute, to put them in order. */
bk_status plan_recompute_seconds(plan_search *q, const plan_recompute *r, double *seconds);

/* plan_report.c; best: the first PLAN_BEST of the choices that are kept, sorted */
bk_status plan_report(plan_search *q);
char *plan_recompute_text(const plan_search *q, const plan_choice *c, char *text, size_t size);

#endif

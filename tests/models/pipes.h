/* A model on ranks that are threads, in pipelines or not, for tests that compare what comes out:
 * losses, gradients, weights, masters and moments, wherever each of them lies. Ranks assert
 * nothing; the test looks at what they leave. */
#ifndef BK_TESTS_PIPES_H
#define BK_TESTS_PIPES_H

#include "tests/unit/ranks.h"

#include "models/executor.h"
#include "models/profile.h"
#include "models/runner.h"
#include "models/trainer.h"

#define PIPES_STEPS 20

/* A parameter that step 2 finds altered: all its elements times `factor`, or where that is no
 * number, its first element not a number. */
typedef struct pipes_ill {
  const char *name;
  double factor;
} pipes_ill;

struct pipes;

typedef struct pipes_spec {
  const bk_backend *backend;
  bk_dtype dtype;
  bk_model_config config;
  bk_train_config recipe;
  /* A name, or the path of a file; NULL: there are no pipelines, and with one rank no comm. */
  const char *schedule;
  const char *stages;
  int pp, dp;
  int steps; /* of a trainer; 0: one of the executor, or of a runner, without the optimiser */
  uint64_t disturb;
  double timeout_s; /* 0: 60 */
  pipes_ill ill[3];
  bool profiled;
  /* The executor's: called after each piece. */
  bk_status (*look)(rank *r, const struct pipes *p, const bk_piece *piece);
  /* Before the executor is made: what a rank changes in the schedule that is its own. */
  bk_status (*tamper)(rank *r, bk_schedule *schedule);
  int other_tokens; /* a rank whose executor has another seq_len; 0: none; else its number + 1 */
} pipes_spec;

typedef enum pipes_part {
  PIPES_WEIGHT,
  PIPES_GRAD, /* of the first step, summed over the ranks that hold it */
  PIPES_MASTER,
  PIPES_M,
  PIPES_V,
  PIPES_PARTS
} pipes_part;

/* What a rank leaves. */
typedef struct pipes_outcome {
  bk_status status; /* of the first call that failed, or BK_OK */
  bk_metrics_row rows[PIPES_STEPS];
  double loss;  /* of the executor: the sum of this rank's micro-batches */
  double loads; /* all shares of each step, each times a number of its own */
  double gain[2];
  double mean_composite; /* all elements, each times a number of its own */
  bool allocates;        /* in the steps after the second */
  double seconds;        /* of the steps */
  char refusal[256];     /* what was not finite */
  /* With a profile, of all steps but the first: messages between stages, and those that there
   * should be. */
  bk_profile_exchange exchange;
  double messages;
} pipes_outcome;

/* All elements of all parameters of the whole model, one after the other. */
typedef struct pipes {
  pipes_spec s;
  ranks all;
  const char *text; /* a file */
  bk_context *ctx;
  bk_model *whole; /* planned: names and places */
  bk_device *device;
  int64_t *at; /* [n_params] */
  int64_t n;
  double *part[PIPES_PARTS]; /* [n] */
  uint8_t *seen[PIPES_PARTS];
  char differs[128]; /* a weight that two ranks have in two ways */
  pipes_outcome out[RANKS_MAX];
  pthread_mutex_t lock;
} pipes;

pipes *pipes_run(bk_context *ctx, const pipes_spec *spec, const char *text);
void pipes_free(pipes *p);

/* All ranks have come to their end without a word, agree, and have each part once. */
void pipes_check_ended(const pipes *p, const char *what);
/* Rows, gains, loads and all parts are those of `one`: to the bit with `bound` 0, else relative to
 * the norm of each part. */
void pipes_check_equal(const pipes *p, const pipes *one, double bound, const char *what);

#endif

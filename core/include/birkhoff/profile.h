/* Profiles: where the time of a model's steps goes, by op and by phase, and as a trace.
 *
 * A profile is attached to a model when it is made; from then on every step of a trainer and every
 * pass of an evaluator on that model is measured, until the profile is destroyed. Results are the
 * same, bit for bit; a step takes a little longer, because each op has events around it and steps
 * are given call by call. All memory is taken at creation.
 *
 * Sums are over the steps that count: the first one warms up and is left out as soon as there are
 * others. Times are in seconds, by the device's own events; bytes and flops are those of the ops
 * themselves: each operand is moved once, a multiply-add is 2 flops. */
#ifndef BIRKHOFF_PROFILE_H
#define BIRKHOFF_PROFILE_H

#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_profile bk_profile;

/* The model outlives the profile. One that has a profile already: BK_ERR_ARGUMENT. A
 * context without a clock (bk_context_create_embedded): BK_ERR_UNSUPPORTED. */
BK_API bk_status bk_profile_create(bk_model *model, bk_profile **profile);
BK_API void bk_profile_destroy(
    bk_profile *profile); /* NULL is allowed; the model goes on without */
/* Steps that begin while it is paused are not measured. Between steps; NULL is allowed. */
BK_API void bk_profile_pause(bk_profile *profile, bool paused);

/* Of the whole: what of the steps' time is not the ops' lies between them (copies, zeros, gaps). */
typedef struct bk_profile_total {
  int64_t steps;   /* that were measured */
  int64_t counted; /* of these: all but the first, which counts only while it is the only one */
  double step_seconds, op_seconds; /* summed over the steps that count */
} bk_profile_total;
BK_API void bk_profile_get_total(const bk_profile *profile, bk_profile_total *total);

/* Two tables of the same time: a line for every kernel of every op, in the order in which they
 * were first launched; a line for every phase of a step, in the order of a step. */
typedef enum bk_profile_table { BK_PROFILE_OPS, BK_PROFILE_PHASES } bk_profile_table;
typedef struct bk_profile_line {
  const char *name;                    /* of the op or phase; lives as long as the library */
  const char *kernel;                  /* "" of a phase; as long as the device */
  double calls, seconds, bytes, flops; /* summed over the steps that count; may be 0 */
} bk_profile_line;
BK_API int bk_profile_count(const bk_profile *profile, bk_profile_table table);
/* Line i from 0, below the count. */
BK_API void bk_profile_get(const bk_profile *profile, bk_profile_table table, int i,
                           bk_profile_line *line);

/* Writes the last 3 steps as a Chrome trace (Trace Event Format), for chrome://tracing, Perfetto
 * and the like: PATH.tmp, synced, then renamed to PATH. A JSON object with traceEvents, complete
 * events (ph "X") with name = op, cat = phase, ts and dur in microseconds, args kernel, sublayer
 * (null: none), bytes and flops; a step is an event too, with cat "step". BK_ERR_IO where it
 * cannot be written. */
BK_API bk_status bk_profile_write_trace(const bk_profile *profile, const char *path);

#ifdef __cplusplus
}
#endif
#endif

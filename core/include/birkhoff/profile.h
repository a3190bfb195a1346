/* Profiles: where the time of a model's steps goes, in tables by op and by phase, and as a trace.
 *
 * A profile is attached to a model when it is made. From then on every step of a trainer and every
 * pass of an evaluator on that model is measured, until the profile is destroyed. Results are the
 * same bit for bit. A step takes a little longer, because each op has events around it and steps
 * are launched call by call. All memory is taken at creation.
 *
 * Sums are over the steps that count: the first one warms up, and is left out as soon as there are
 * others. Times are in seconds, by the device's own events. Bytes and flops are those of the ops
 * themselves: each operand is moved once, and a multiply-add counts as 2 flops. */
#ifndef BIRKHOFF_PROFILE_H
#define BIRKHOFF_PROFILE_H

#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_profile bk_profile;

/* The model must outlive the profile. BK_ERR_ARGUMENT for a model that has a profile already, and
 * BK_ERR_UNSUPPORTED in a context without a clock (bk_context_create_embedded). */
BK_API bk_status bk_profile_create(bk_model *model, bk_profile **profile);
/* The model goes on without a profile. NULL is allowed. */
BK_API void bk_profile_destroy(bk_profile *profile);
/* Steps that begin while a profile is paused are not measured. To be called between steps; NULL is
 * allowed. */
BK_API void bk_profile_pause(bk_profile *profile, bool paused);

/* The sums over all ops. What of the steps' time is not the ops' lies between them: copies, zeroing
 * and gaps. */
typedef struct bk_profile_total {
  int64_t steps;   /* how many were measured */
  int64_t counted; /* how many of them count: all but the first, unless it is the only one */
  double step_seconds, op_seconds; /* summed over the steps that count */
} bk_profile_total;
BK_API void bk_profile_get_total(const bk_profile *profile, bk_profile_total *total);

/* Two tables of the same time. One has a line for every kernel of every op, in the order in which
 * they were first launched; the other has a line for every phase of a step, in the order of a
 * step. */
typedef enum bk_profile_table { BK_PROFILE_OPS, BK_PROFILE_PHASES } bk_profile_table;
typedef struct bk_profile_line {
  const char *name;                    /* of the op or phase; valid as long as the library */
  const char *kernel;                  /* valid as long as the device; of a phase "" */
  double calls, seconds, bytes, flops; /* summed over the steps that count; may be 0 */
} bk_profile_line;
BK_API int bk_profile_count(const bk_profile *profile, bk_profile_table table);
/* Gives line i of a table, counted from 0 and below bk_profile_count. */
BK_API void bk_profile_get(const bk_profile *profile, bk_profile_table table, int i,
                           bk_profile_line *line);

/* Writes the last 3 steps as a Chrome trace (Trace Event Format), for chrome://tracing, Perfetto
 * and the like. The file is written as PATH.tmp, synced and renamed to PATH. It is a JSON object
 * whose traceEvents are complete events (ph "X"): name is the op, cat the phase, ts and dur are in
 * microseconds, and args has kernel, sublayer (null where there is none), bytes and flops. A step
 * is an event too, with cat "step". BK_ERR_IO where the file cannot be written. */
BK_API bk_status bk_profile_write_trace(const bk_profile *profile, const char *path);
/* The events of such a trace as text: those of rank `rank` of several, which is their pid. The
 * texts of all ranks, with commas between them, are the traceEvents of one trace. Times count from
 * the creation of each profile. *text is to be bk_free'd. */
BK_API bk_status bk_profile_trace_events(const bk_profile *profile, int rank, char **text,
                                         size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif

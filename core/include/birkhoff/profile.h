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
#include <birkhoff/schedule.h>

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

/* What the ops of a part of the model took in the last step, in seconds: the embedding (part 0),
 * each of the 2 * num_hidden_layers sublayers with the connection around it (1, 2, ...), and head
 * and loss, which is the last part and makes the gradients of lm_head in its forward pass. What
 * lies between the ops is in none. */
BK_API void bk_profile_part(const bk_profile *profile, int part, bk_stage_costs *seconds);

/* What went between the ranks in the steps that count, as this rank saw it: how many operations of
 * a kind there were, the bytes that it sent, the seconds in which at least one of them was under
 * way (busy_s: from when this rank's transport began it until it was done, so that waiting for a
 * rank that comes later is part of it), and the seconds in which the rank did nothing but wait for
 * them. Times are the host's clock's. What was under way while the rank computed is hidden: of the
 * reduce_scatters of gradients (busy_s - wait_s) / busy_s is the share that the backward pass
 * hides. A profiled step is launched op by op, and this share is that of profiled steps. */
typedef struct bk_profile_exchange {
  const char *name; /* "reduce_scatter", "all_reduce", "all_gather" */
  double calls, bytes, busy_s, wait_s;
} bk_profile_exchange;
/* How many kinds there are; 0 for a model of one rank. */
BK_API int bk_profile_exchange_count(const bk_profile *profile);
/* Gives kind i, counted from 0; the first is "reduce_scatter". */
BK_API void bk_profile_exchange_get(const bk_profile *profile, int i, bk_profile_exchange *kind);
/* The share of an exchange that was hidden, from 0 to 1; NAN where nothing was under way. */
BK_API double bk_profile_hidden(const bk_profile_exchange *kind);

/* Writes the last 3 steps as a Chrome trace (Trace Event Format), for chrome://tracing, Perfetto
 * and the like. The file is written as PATH.tmp, synced and renamed to PATH. It is a JSON object
 * whose traceEvents are complete events (ph "X"): name is the op, cat the phase, ts and dur are in
 * microseconds, and args has kernel, sublayer (null where there is none), bytes and flops. A step
 * is an event too, with cat "step". Of several ranks the operations between them are events with
 * cat "comm". Their clock is the host's, which is laid beside the device's at the begin of each
 * step. BK_ERR_IO where the file cannot be written. */
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

/* bk_runner: runs a model whose chunks follow each other on batches of one shape, by the trivial
 * schedule: forward through the chunks in their order, backward the other way round, what
 * crosses their edges copied from port to port. The chunks, their slots and programs: chunk.h.
 * No allocation after creation. */
#ifndef BK_RUNNER_H
#define BK_RUNNER_H

#include "models/chunk.h"
#include "models/step.h"

typedef struct bk_runner bk_runner;
typedef bk_chunk_options bk_runner_options;

/* The runner is the caller's, and must end before the model. BK_ERR_ARGUMENT for options that do
 * not go together, with a message; BK_ERR_UNSUPPORTED where a kernel is missing. */
bk_status bk_runner_create(bk_model *model, const bk_runner_options *options, bk_runner **runner);
/* Decoding that shares the cache of another runner of the same model and batch (prefill and
 * decode), which must outlive this one. */
bk_status bk_runner_create_sharing(bk_model *model, const bk_runner_options *options,
                                   const bk_runner *cache_of, bk_runner **runner);
void bk_runner_destroy(bk_runner *runner); /* NULL is allowed */
/* Planned bytes by class, without the model, which has the kernels' workspaces. */
size_t bk_runner_bytes(const bk_runner *runner, bk_memory_class c);

/* ids, targets: [B*T] host arrays, each id below vocab_size (checked: BK_ERR_DATA), targets
 * negative = ignored, NULL = none (no loss). Uploads, runs forward in `slot`. Losses ADD into
 * the step block's BK_STEP_LOSS (the caller has written the block: bk_step_begin). With backward
 * the head's dgrad and wgrad are done here too. Of each step, from bk_step_begin on, the
 * first pass that writes a gradient overwrites it, the others add (bk_step_micro). */
bk_status bk_runner_forward(bk_runner *runner, int slot, const int32_t *ids,
                            const int32_t *targets);
/* The same loss without the head's dgrad and wgrad, on a runner with or without backward: for
 * evaluation. No backward may follow. */
bk_status bk_runner_evaluate(bk_runner *runner, int slot, const int32_t *ids,
                             const int32_t *targets);
/* Gradients of all parameters, or where wgrad is deferred of those alone that come with the
 * gradients of the streams; the slot's wgrad then joins a queue. */
bk_status bk_runner_backward(bk_runner *runner, int slot);
/* The wgrad that has waited longest, which frees its slot; BK_ERR_ARGUMENT where none waits. */
bk_status bk_runner_wgrad(bk_runner *runner);
int bk_runner_waiting(const bk_runner *runner); /* slots whose wgrad waits */
/* Decoding: forward with the cache: tokens land at positions past .. past+T-1. */
bk_status bk_runner_decode(bk_runner *runner, int64_t past, const int32_t *ids);
/* The next passes call `look` after every piece, and are not captured; NULL: no longer. */
void bk_runner_look(bk_runner *runner, bk_look_fn look, void *arg);
/* The same with bk_run's `after`, which lets the lanes be. */
void bk_runner_after(bk_runner *runner, bk_look_fn after, void *arg);

/* Results of the last forward (device tensors; absent where not kept). */
bk_tensor bk_runner_logits(const bk_runner *runner);     /* [B*T, V] ct */
bk_tensor bk_runner_row_losses(const bk_runner *runner); /* [B*T] ct */
int bk_runner_n_sublayers(const bk_runner *runner);
int64_t bk_runner_tokens(const bk_runner *runner);    /* B*T */
bk_stream *bk_runner_stream(const bk_runner *runner); /* the model's */
/* Maps of sublayer s in `slot`: pre, post [N,n], comb [N,n,n] (absent for ihc = identity; all
 * absent for plain). */
bk_status bk_runner_maps(const bk_runner *runner, int slot, int sublayer, bk_tensor *pre,
                         bk_tensor *post, bk_tensor *comb);
/* Router scores [N,E] ct and choices [N,k] i32 of MoE layer i (0-based among MoE layers) in
 * `slot`, as its last forward left them. */
bk_status bk_runner_routing(const bk_runner *runner, int slot, int moe_layer, bk_tensor *scores,
                            bk_tensor *index);
int bk_runner_n_chunks(const bk_runner *runner);
bk_chunk *bk_runner_chunk(const bk_runner *runner, int i);
/* The streams after the last sublayer, also where the head follows. */
bk_tensor bk_runner_last_streams(const bk_runner *runner, int slot);
/* Expert loads: i32 [E] of MoE layer i (0-based among MoE layers), added since bk_step_begin. */
int bk_runner_n_moe(const bk_runner *runner);
bk_tensor bk_model_expert_load(const bk_model *model, int moe_layer);

#endif

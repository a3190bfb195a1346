/* bk_runner: runs a model on batches of one shape: planned activations, prepared kernels,
 * forward and backward. The walker over the flat list of sublayers owns the residual connection:
 * mix (norm + projection, maps, pre + norm) -> F -> merge (post + res), with merge_mix between
 * neighbours. No allocation after creation. */
#ifndef BK_RUNNER_H
#define BK_RUNNER_H

#include "models/model.h"

typedef struct bk_runner bk_runner;

typedef struct bk_runner_options {
  int64_t batch, seq_len; /* B, T */
  int slots;              /* micro-batch slots of kept activations, at least 1 */
  /* gradients wanted: head computes dlogits in the forward pass, activations are kept */
  bool backward;
  /* logits [B*T, V] in fp32 (ct) stay readable after forward; otherwise made in chunks */
  bool keep_logits;
  /* rows of logits made at a time; 0: as many as fit 2^25 elements, with gradients on a GPU 2^28 */
  int64_t head_rows;
  int64_t hc_recompute; /* BK_RECOMPUTE_AUTO, 0 off, N; only with backward */
  /* merges of feed-forward sublayers and their backward on a stream of higher priority (mHC
   * paper, section 4.3.3) */
  bool merge_stream;
  int64_t cache_len; /* > 0: decoding with a KV cache of that many positions; no backward */
  /* share the cache of another runner of the same model and batch (prefill and decode); it must
   * outlive this one */
  const bk_runner *cache_of;
} bk_runner_options;

bk_status bk_runner_create(bk_model *model, const bk_runner_options *options, bk_runner **runner);
void bk_runner_destroy(bk_runner *runner); /* NULL is allowed */
/* Planned bytes by class, model excluded. */
size_t bk_runner_bytes(const bk_runner *runner, bk_memory_class c);

/* ids, targets: [B*T] host arrays, each id below vocab_size (checked: BK_ERR_DATA), targets
 * negative = ignored, NULL = none (no loss). Uploads, runs forward in `slot`. Losses ADD into
 * the step block's BK_STEP_LOSS (the caller has written the block: bk_step_begin). With backward
 * the head's dgrad and wgrad are done here too. */
bk_status bk_runner_forward(bk_runner *runner, int slot, const int32_t *ids,
                            const int32_t *targets);
/* The same loss without the head's dgrad and wgrad, on a runner with or without backward: for
 * evaluation. No backward may follow. */
bk_status bk_runner_evaluate(bk_runner *runner, int slot, const int32_t *ids,
                             const int32_t *targets);
/* Gradients of all parameters add to the model's. dgrad and wgrad of each F are separate calls
 * underneath. */
bk_status bk_runner_backward(bk_runner *runner, int slot);
/* Decoding: forward with the cache: tokens land at positions past .. past+T-1. */
bk_status bk_runner_decode(bk_runner *runner, int64_t past, const int32_t *ids);

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
/* Pipeline stages. A stage without the embedding reads its input streams (written by the caller
 * before forward), one without the head leaves its output streams in `output`; its caller writes
 * the gradient of the output into `stream_grad` before backward and finds the gradient of the
 * input there afterwards. [N,n,C], plain [N,C]; the gradient is one tensor for all slots. */
bk_tensor bk_runner_input(const bk_runner *runner, int slot);
bk_tensor bk_runner_output(const bk_runner *runner, int slot);
bk_tensor bk_runner_stream_grad(const bk_runner *runner);
/* Expert loads: i32 [E] of MoE layer i (0-based among MoE layers), added since bk_step_begin. */
int bk_runner_n_moe(const bk_runner *runner);
bk_tensor bk_model_expert_load(const bk_model *model, int moe_layer);

/* ---- the step block and the optimiser (models/step.c) ---- */
typedef struct bk_step_values {
  double lr, bc1, bc2, max_norm, loss_scale, balance_rate;
} bk_step_values;
/* Writes the block with one copy (results zeroed), zeroes expert loads. */
bk_status bk_step_begin(bk_model *model, const bk_step_values *values);
typedef struct bk_step_results {
  double loss_sum, grad_norm, clip;
  bool finite;
} bk_step_results;
/* Reads the block once; synchronises. */
bk_status bk_step_end(bk_model *model, bk_step_results *results);

/* AdamW over all blocks, gradient norm and clip, balancing update, with kernels prepared once. */
typedef struct bk_optimizer bk_optimizer;
typedef struct bk_optimizer_options {
  double beta1, beta2, eps, weight_decay;
} bk_optimizer_options;
bk_status bk_optimizer_create(bk_model *model, const bk_optimizer_options *options,
                              bk_optimizer **optimizer);
void bk_optimizer_destroy(bk_optimizer *optimizer);
/* its kernels' workspace; moments are the model's */
size_t bk_optimizer_bytes(const bk_optimizer *optimizer, bk_memory_class c);
/* norm -> clip -> AdamW -> balance; then the results are read with bk_step_end. Non-finite:
 * weights unchanged. */
bk_status bk_optimizer_step(bk_optimizer *optimizer);

#endif

/* Single passes over tokens that the caller gives: forward, with logits and residual maps, and
 * backward.
 *
 * The calls of one pass come in this order; those in brackets may be left out:
 *   bk_forward_run, [bk_forward_logits], [bk_forward_maps ...], [bk_forward_backward],
 *   bk_forward_finish
 * Then the next pass may begin. A call out of order is BK_ERR_ARGUMENT. Gradients are read from the
 * model with bk_model_param_read; they are those of the mean loss over the targets that count. No
 * weight changes, and nothing is allocated on the device after creation. */
#ifndef BIRKHOFF_FORWARD_H
#define BIRKHOFF_FORWARD_H

#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_forward bk_forward;

typedef struct bk_forward_options {
  int64_t batch, seq_len; /* B sequences of T tokens; T is at most max_position_embeddings */
  bool backward;          /* bk_forward_backward will be called; the model must be trainable */
  /* as in bk_train_config; single passes do not need them: 0 is off, and none */
  int64_t hc_recompute;
  int recompute;
} bk_forward_options;

/* The model must outlive the object. BK_ERR_ARGUMENT: a model that does not have all of its
 * sublayers, or options that do not fit it. */
BK_API bk_status bk_forward_create(bk_model *model, const bk_forward_options *options,
                                   bk_forward **forward);
BK_API void bk_forward_destroy(bk_forward *forward); /* NULL is allowed */

/* Runs the forward pass. ids and targets are [B,T], in host memory. Sequences are independent,
 * positions count from 0, and attention is causal. A negative target is ignored. If targets is NULL
 * there is no loss. BK_ERR_DATA for an id or a target that is not below vocab_size. */
BK_API bk_status bk_forward_run(bk_forward *forward, const int32_t *ids, const int32_t *targets);
/* Writes the logits of the pass, [B,T,V]. */
BK_API bk_status bk_forward_logits(bk_forward *forward, double *logits);
/* Writes the maps of one sublayer (they are attention, feed-forward, attention, ...): pre and post
 * [B,T,n], and comb [B,T,n,n] by source and destination, the identity where the kind has no comb. A
 * plain model has no maps: BK_ERR_ARGUMENT. */
BK_API bk_status bk_forward_maps(bk_forward *forward, int sublayer, double *pre, double *post,
                                 double *comb);
/* Computes the gradients of all parameters. */
BK_API bk_status bk_forward_backward(bk_forward *forward);
/* Ends the pass. *loss becomes the mean over the targets that count, in nats, or NAN where there is
 * none; loss may be NULL. */
BK_API bk_status bk_forward_finish(bk_forward *forward, double *loss);

#ifdef __cplusplus
}
#endif
#endif

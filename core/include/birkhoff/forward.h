/* Passes over tokens of one's own: forward, with logits and residual maps, and backward.
 *
 * The calls of one pass come in this order; what is in brackets may be left out:
 *   bk_forward_run, [bk_forward_logits], [bk_forward_maps ...], [bk_forward_backward],
 *   bk_forward_finish
 * and then the next pass may begin. Gradients are read from the model (bk_model_param_read); they
 * are those of the mean loss over the targets that are kept. A call out of order is
 * BK_ERR_ARGUMENT. No weight changes. Nothing is allocated on the device after creation. */
#ifndef BIRKHOFF_FORWARD_H
#define BIRKHOFF_FORWARD_H

#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_forward bk_forward;

typedef struct bk_forward_options {
  int64_t batch, seq_len; /* B sequences of T tokens; T is at most max_position_embeddings */
  bool backward;          /* the model is trainable, and bk_forward_backward is wanted */
  /* as the recipe's key: 0 is off, and as good for single passes */
  int64_t hc_recompute;
} bk_forward_options;

/* The model outlives it. BK_ERR_ARGUMENT: a model that is not whole, or options that do not fit
 * it. */
BK_API bk_status bk_forward_create(bk_model *model, const bk_forward_options *options,
                                   bk_forward **forward);
BK_API void bk_forward_destroy(bk_forward *forward); /* NULL is allowed */

/* ids, targets: [B,T] in host memory. Sequences are independent, positions count from 0, attention
 * is causal. A negative target is ignored; NULL: there are no targets, and no loss. An id or a
 * target that is not below vocab_size: BK_ERR_DATA. */
BK_API bk_status bk_forward_run(bk_forward *forward, const int32_t *ids, const int32_t *targets);
/* Of the pass: [B,T,V]. */
BK_API bk_status bk_forward_logits(bk_forward *forward, double *logits);
/* Maps of sublayer s (attention, feed-forward, attention, ...): pre and post [B,T,n], comb
 * [B,T,n,n] (source, destination; the identity where the kind has none). A model with residual
 * plain has none: BK_ERR_ARGUMENT. */
BK_API bk_status bk_forward_maps(bk_forward *forward, int sublayer, double *pre, double *post,
                                 double *comb);
/* Gradients of all parameters. */
BK_API bk_status bk_forward_backward(bk_forward *forward);
/* Ends the pass. *loss: the mean over the kept targets, in nats; NAN where none is kept. May be
 * NULL. */
BK_API bk_status bk_forward_finish(bk_forward *forward, double *loss);

#ifdef __cplusplus
}
#endif
#endif

/* The insides of a runner, shared by runner.c (planning, creation, results) and walk.c (the
 * steps).
 *
 * Where tensors live, by mode:
 *                            forward only              backward                     backward with
 *                              recompute blocks
 *   x of a sublayer          two, in turn              kept                         kept at block
 *                            starts, else by position
 *   y, h, rstd               one                       kept                         by position
 *                            in the block
 *   f                        one                       kept (plain: one)            kept
 *   proj, rinv               one                       kept                         kept
 *   pre, post, comb          kept                      kept                         kept
 *   F's own                  one place for all         kept                         kept
 * "Kept" is per slot, class activations; the rest is class workspace, shared by all slots. */
#ifndef BK_RUNNER_PRIV_H
#define BK_RUNNER_PRIV_H

#include "models/model_priv.h"

/* A piece of the head's logits has at most so many elements, and whole multiples of BK_HEAD_ROWS
 * rows if it has that many. Every piece reads the head's weights and reads and writes their
 * gradient: a GPU needs some 2,000 rows before its products outweigh that (reckoned for 3.3 TB/s
 * and 700 TFLOP/s). */
#define BK_HEAD_PIECE_HOST ((int64_t)1 << 25)
#define BK_HEAD_PIECE_DEVICE ((int64_t)1 << 28)
#define BK_HEAD_ROWS 256

typedef struct bk_head_acts {
  /* final norm: x is the collapsed [N,C] stream, or the streams (learned head), or x_L itself
   * (plain) */
  bk_mix_acts mix;
  bk_tensor dh; /* [N,C] gradient of the normed input of lm_head, made in the forward pass */
} bk_head_acts;

/* Walks of a slot that are captured each for itself: forward with a loss, with a loss but no
 * gradients, without a loss; backward. */
enum { BK_WALK_LOSS, BK_WALK_EVALUATE, BK_WALK_FORWARD, BK_WALK_BACKWARD, BK_WALKS };

typedef struct bk_slot {
  bk_mix_acts *mix; /* [n_sublayers] */
  bk_f_acts *f;     /* [n_sublayers] */
  bk_tensor last;   /* streams after the last sublayer */
  bk_head_acts head;
  bk_tensor ids, targets; /* [N] i32 */
  int32_t *host;          /* staging of ids, then targets: [2N] */
  bk_event *uploaded;     /* the staging may be written again */
  bool uploading;
  bool has_loss; /* the last forward had targets */
  bk_graph graphs[BK_WALKS];
} bk_slot;

/* Phases of one sublayer, each with its prepared calls; rebuild: of the sublayers that are
 * rebuilt together from this one on. */
typedef struct bk_sublayer_calls {
  bk_calls mix, forward, merge, dgrad, wgrad, mix_bwd, merge_bwd, rebuild;
} bk_sublayer_calls;

/* What a pass has just done: what there is to see then is in diagnose.c. The sublayer is -1 at
 * the ends; MIX of sublayer n is the last merge. */
typedef enum bk_stage {
  BK_STAGE_EMBED,
  BK_STAGE_MIX,
  BK_STAGE_F,
  BK_STAGE_HEAD,
  BK_STAGE_HEAD_BWD,
  BK_STAGE_F_BWD,
  BK_STAGE_MIX_BWD,
  BK_STAGE_EMBED_BWD,
} bk_stage;
/* Anything but BK_OK ends the pass with it. */
typedef bk_status (*bk_stage_fn)(void *arg, const bk_runner *r, const bk_slot *slot, bk_stage stage,
                                 int sublayer);

enum { BK_PIECE_FULL, BK_PIECE_REST, BK_PIECE_KINDS };

struct bk_runner {
  bk_model *model;
  bk_runner_options options;
  int n; /* sublayers */
  int64_t tokens;
  int64_t block; /* sublayers per recompute block, 0 = off */
  bk_memory *memory;
  bk_exec exec;
  bk_slot *slots;

  /* shared by all slots */
  bk_tensor x[2];     /* forward only: streams in turn */
  bk_tensor *block_x; /* [block], entry 0 unused */
  /* [block] or [1]; y and rstd one more: of the first sublayer of every other block */
  bk_tensor *y, *h, *rstd;
  bk_tensor f, proj, rinv;
  bk_tensor last;
  bk_tensor D, df, dh;   /* gradient of the streams; of F's output and input */
  bk_mix_grads grads[2]; /* by parity of the sublayer */
  bk_mix_grads head_grads;
  bk_tensor embedding, head_row; /* [N,C] each, scratch of the ends */
  /* [piece rows, V]: logits in ct, their gradient in st; one memory where these are the same */
  bk_tensor piece, dpiece;
  int64_t piece_rows;
  bk_tensor logits, row_losses, past;
  bk_f_scratch *forward_scratch, *backward_scratch; /* [n] */
  int32_t past_host;
  bk_stream *merge_stream;   /* NULL: all on the model's stream */
  bk_event *forked, *joined; /* order the two: before a merge, after it */
  bk_stage_fn look;          /* NULL: nobody looks between the stages */
  void *look_arg;
  bool loss_only; /* this forward makes no gradient in the head */

  bk_sublayer_calls *calls; /* [n] */
  bk_calls embed, embed_bwd, head_norm, head_bwd, loss_sum;
  bk_calls piece_logits[BK_PIECE_KINDS], piece_loss[BK_PIECE_KINDS];
};

static inline bool bk_runner_has_embed(const bk_runner *r) {
  return r->model->parts->embed != NULL;
}
static inline bool bk_runner_has_head(const bk_runner *r) {
  return r->model->parts->lm_head != NULL;
}
static inline bool bk_runner_plain(const bk_runner *r) {
  return r->model->config.residual == BK_HC_PLAIN;
}
/* The streams are summed before the final norm. */
static inline bool bk_runner_sums(const bk_runner *r) {
  return !bk_runner_plain(r) && r->model->parts->head.kind == BK_HC_PLAIN;
}

/* Nothing looks on between the stages and the shapes are static: the walks may be captured. A
 * decoding runner's are not. */
static inline bool bk_runner_may_graph(const bk_runner *r) {
  return bk_model_may_graph(r->model) && !r->look && !r->options.cache_len;
}

/* Around the merge of sublayer s or its backward: that of a feed-forward sublayer runs on the
 * merge stream, where there is one. join: also after a failure, so that the model's stream waits
 * for what is under way; returns the status given unless that is BK_OK. */
bk_status bk_runner_fork(bk_runner *r, int s);
bk_status bk_runner_join(bk_runner *r, int s, bk_status status);

/* walk.c; in preparing mode they prepare all calls and touch no data. `with_head` false: no
 * logits, no loss. */
bk_status bk_walk_forward(bk_runner *r, bk_slot *slot, bool with_head, bool with_loss);
bk_status bk_walk_backward(bk_runner *r, bk_slot *slot);

#endif

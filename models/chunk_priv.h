/* The insides of a chunk: chunk.c (creation, ports, uploads), places.c (where tensors live),
 * pieces.c (what the sublayers do), ends.c (what embedding and head do). */
#ifndef BK_CHUNK_PRIV_H
#define BK_CHUNK_PRIV_H

#include "models/chunk.h"
#include "models/model_priv.h"

/* The head's logits are made some rows at a time: at most so many elements, and in whole multiples
 * of BK_HEAD_ROWS rows if there are that many. For each such part the head's weights are read, and
 * their gradient is read and written. On a GPU of 3.3 TB/s and 700 TFLOP/s it takes about 2,000
 * rows before the products outweigh that (computed, not measured). */
#define BK_HEAD_ELEMENTS_HOST ((int64_t)1 << 25)
#define BK_HEAD_ELEMENTS_DEVICE ((int64_t)1 << 28)
#define BK_HEAD_ROWS 256

/* What the head keeps for one micro-batch. */
typedef struct bk_head_acts {
  /* final norm: x is the collapsed [N,C] stream, or the streams (learned head), or x_L itself
   * (plain) */
  bk_mix_acts mix;
  bk_tensor dh; /* [N,C] gradient of the normed input of lm_head, made in the forward pass */
} bk_head_acts;

/* The place of one micro-batch in flight. n is the number of the chunk's sublayers; the tensors are
 * descriptors, and several slots may share memory (places.c). Below, n is the number of sublayers
 * and N the tokens of a micro-batch. */
typedef struct bk_slot {
  bk_mix_acts *mix;         /* [n] what each connection keeps */
  bk_mix_grads *grads;      /* [n] gradients of its maps */
  bk_f_acts *f;             /* [n] what each F keeps */
  bk_f_scratch *backward;   /* [n] scratch of F's backward */
  bk_tensor *df;            /* [n] gradient of F's output */
  bk_tensor last;           /* streams after the last sublayer */
  bk_tensor last_carry;     /* what it hands on beside them */
  bk_tensor D, D_carry, dh; /* gradient of the streams, of the carry, of F's input */
  bk_head_acts head;
  bk_tensor ids, targets; /* [N] i32 */
  int32_t *host;          /* staging of ids, then targets: [2N] */
  bk_event *uploaded;     /* recorded after an upload: the staging may then be written again */
  bool uploading;
  bk_program programs[BK_PROGRAMS]; /* without calls: not recorded */
} bk_slot;

struct bk_chunk {
  bk_model *model;
  bk_chunk_options options;
  const bk_chunk *cache_of;
  bk_sublayer *sublayers; /* [n], the model's */
  int n;
  bool has_embed, has_head;
  int64_t tokens;
  int64_t block; /* sublayers per recompute block, counted from the chunk's first; 0: off */
  bk_memory *memory;
  bk_plans plans;
  bk_slot *slots;

  /* shared by all slots */
  bk_tensor **shared;    /* places.c: for each rule the tensors that are not kept per slot */
  bk_f_scratch *forward; /* [n] */
  bk_mix_grads head_grads;
  bk_tensor embedding, head_row; /* [N,C] each, scratch of the ends */
  /* [head_rows, V]: logits in ct, their gradient in st; one memory where these are the same */
  bk_tensor logit_rows, dlogit_rows;
  int64_t head_rows;
  bk_tensor logits, row_losses, past;
  int32_t past_host;
};

static inline bool bk_chunk_plain(const bk_chunk *c) {
  return c->model->config.residual == BK_HC_PLAIN;
}
/* Whether the streams are summed before the final norm: where there is no learned head. */
static inline bool bk_chunk_sums(const bk_chunk *c) {
  return !bk_chunk_plain(c) && c->model->parts->head.kind->max_streams == 1;
}

/* Whether F of sublayer s is run again in the backward pass, which then finds nothing of it kept
 * but its output and its routing. Even sublayers are attention. */
static inline bool bk_chunk_recomputes(const bk_chunk *c, int s) {
  int mine = c->sublayers[s].index % 2 ? BK_RECOMPUTE_F_EXPERTS : BK_RECOMPUTE_F_ATTENTION;
  return c->options.backward &&
         (c->options.recompute == mine || c->options.recompute == BK_RECOMPUTE_F_ALL);
}

/* places.c: plans all tensors; the memory comes with the commit of chunk->memory. */
bk_status bk_chunk_plan(bk_chunk *chunk);
void bk_chunk_free_places(bk_chunk *chunk);

/* pieces.c: records all programs of a slot. */
bk_status bk_chunk_record(bk_chunk *chunk, bk_recorder *rec, bk_slot *slot);

/* ends.c: the pieces of the ends, into the program that is being recorded. */
typedef enum bk_head_use { BK_HEAD_LOGITS, BK_HEAD_EVALUATE, BK_HEAD_TRAIN } bk_head_use;
bk_status bk_record_embed(bk_chunk *chunk, bk_recorder *rec, const bk_slot *slot);
bk_status bk_record_head(bk_chunk *chunk, bk_recorder *rec, const bk_slot *slot, bk_head_use use);
bk_status bk_record_head_bwd(bk_chunk *chunk, bk_recorder *rec, const bk_slot *slot);
bk_status bk_record_embed_bwd(bk_chunk *chunk, bk_recorder *rec, const bk_slot *slot);

#endif

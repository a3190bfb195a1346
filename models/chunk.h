/* bk_chunk: one of a model's ranges of sublayers, made ready for batches of one shape: planned
 * activations, prepared kernels, recorded programs. It knows nothing of other chunks: what comes
 * in and goes out passes its ports. Nothing is allocated after creation.
 *
 * A *slot* is the place of one micro-batch in flight: its activations, its ports and its programs.
 * A schedule with several micro-batches in flight at once (pipelines) needs as many slots. */
#ifndef BK_CHUNK_H
#define BK_CHUNK_H

#include "models/step.h"

typedef struct bk_chunk bk_chunk;

typedef struct bk_chunk_options {
  int64_t batch, seq_len; /* B, T */
  int slots;              /* micro-batches that can be in flight, at least 1 */
  /* Gradients are wanted: activations are kept, and the head makes dlogits in the forward pass. */
  bool backward;
  /* The gradients of parameters may come later: what they read is kept in every slot. */
  bool defer_wgrad;
  /* Logits [B*T, V] in ct stay readable after forward; otherwise some rows exist at a time. */
  bool keep_logits;
  /* rows of logits made at a time; 0: as many as fit 2^25 elements, with gradients on a GPU 2^28 */
  int64_t head_rows;
  /* BK_RECOMPUTE_AUTO, 0 off, N; only with backward. In a model with a pipeline auto is the whole
   * chunk: its first streams alone are kept, and the rest may be rebuilt while the gradient of its
   * output is still on its way. */
  int64_t hc_recompute;
  /* bk_recompute_f; only with backward. Where wgrad is deferred, F is run again for it too. */
  int recompute;
  /* merges of feed-forward sublayers and their backward on the urgent lane (mHC paper, section
   * 4.3.3) */
  bool merge_stream;
  int64_t cache_len; /* > 0: decoding with a KV cache of that many positions; no backward */
} bk_chunk_options;

/* The programs of a slot. One of the head's programs follows a FORWARD at once, before any other
 * program of the chunk. BACKWARD is all of the backward pass. Where wgrad is deferred it makes the
 * gradients of the streams, and what comes with them, alone; WGRAD is then the rest. */
typedef enum bk_program_id {
  BK_PROGRAM_FORWARD,  /* to the streams after the last sublayer */
  BK_PROGRAM_LOGITS,   /* the head without a loss */
  BK_PROGRAM_EVALUATE, /* the head with a loss, without gradients */
  BK_PROGRAM_LOSS,     /* the head with a loss, its dgrad and wgrad: two, by bk_micro */
  BK_PROGRAM_BACKWARD = BK_PROGRAM_LOSS + BK_MICROS,
  BK_PROGRAM_WGRAD = BK_PROGRAM_BACKWARD + BK_MICROS,
  BK_PROGRAMS = BK_PROGRAM_WGRAD + BK_MICROS
} bk_program_id;

/* What crosses the edge of a chunk in one direction, for one slot. */
typedef struct bk_port {
  bk_tensor streams; /* [N,n,C] st, plain [N,C]; absent: the chunk has no such edge */
  bk_tensor carry;   /* what a sublayer hands to the next beside them; absent without such */
} bk_port;

/* `index` is the number of the range among the model's chunks. `cache_of` is another chunk object
 * of the same range and batch whose cache this one shares (prefill and decode); it must outlive
 * this one. */
bk_status bk_chunk_create(bk_model *model, int index, const bk_chunk_options *options,
                          const bk_chunk *cache_of, bk_chunk **chunk);
void bk_chunk_destroy(bk_chunk *chunk); /* NULL is allowed */
/* Planned bytes by class, without the model and its lanes. */
size_t bk_chunk_bytes(const bk_chunk *chunk, bk_memory_class c);

/* A program of a slot; NULL where the chunk's options leave it out. */
bk_program *bk_chunk_program(const bk_chunk *chunk, int slot, int program);

/* Ports. A chunk with the embedding has no input, one with the head no output. The gradient of
 * the input lies where that of the output lay: backward reads the one and leaves the other. With
 * several slots each has ports of its own, so that messages of one may be under way while
 * another runs. */
bk_port bk_chunk_input(const bk_chunk *chunk, int slot);
bk_port bk_chunk_output(const bk_chunk *chunk, int slot);
bk_port bk_chunk_output_grad(const bk_chunk *chunk, int slot);
bk_port bk_chunk_input_grad(const bk_chunk *chunk, int slot);
/* Enqueues the copy of one port to another on the compute lane, for two chunks on one device. */
bk_status bk_port_copy(bk_stream *stream, const bk_port *from, const bk_port *to);

/* Enqueues the upload of a micro-batch's tokens: ids for the embedding, targets for the loss,
 * [B*T] each; NULL: none. The caller may change the arrays as soon as the call returns. */
bk_status bk_chunk_upload(bk_chunk *chunk, int slot, const int32_t *ids, const int32_t *targets);
/* Decoding: the tokens of the bk_chunk_upload that follows land at positions past .. past+T-1. */
bk_status bk_chunk_upload_past(bk_chunk *chunk, int64_t past);

#endif

/* The residual connection of one sublayer, as models use it: mix makes the normed input h of F
 * from the streams x, merge puts F's output f back into them. What these are made of is the
 * business of the kind (runtime/connection.h): each kind has its table of calls, and the functions
 * here only dispatch to it. All of them record ops into a program (program.h); nothing is
 * launched.
 *
 * The learned head is a connection that only mixes. In the backward pass D, the gradient of the
 * streams, is one buffer that is rewritten in place from sublayer to sublayer. Fused neighbours
 * (merge_mix) give the same bits as merge, then mix, on ref and cpu. A backend may sum a
 * projection in another order there, so that a model cut into stages may differ from the whole in
 * the last bits.
 *
 * Order of the calls for one sublayer: mix, F, merge; backward: merge_bwd, F's dgrad, mix_bwd.
 * Names of gradients: dout that of the streams after the merge, df that of F's output, dh that of
 * F's normed input. All tensors are planned by places.c before anything is recorded here. */
#ifndef BK_CONNECTION_H
#define BK_CONNECTION_H

#include "models/program.h"
#include "runtime/connection.h"

/* One connection: its kind, its sizes and its parameters. params.c fills it in; the blocks are the
 * model's. */
typedef struct bk_connection {
  const bk_connection_kind *kind;
  /* n is the number of streams, iters that of Sinkhorn's iterations, for kinds that iterate */
  int n, iters;
  int64_t width; /* C */
  /* hc_eps is added to the read gates and in Sinkhorn's divisions, and is 0 for kinds with signed
   * maps; norm_eps (rms_norm_eps) is in the norm of the projection and in the norm in front of
   * F. */
  double hc_eps, norm_eps;
  bk_param_block *norm; /* the norm in front of F: [C]; NULL: h is the mix itself */
  bk_param_block *param[BK_CONNECTION_MAX_PARAMS]; /* in the order of kind->params; then NULL */
} bk_connection;

/* What a kind keeps of a mix besides the streams: its maps, and what they were made from. Each is
 * a tensor in ct. */
#define BK_CONNECTION_MAX_MAPS 8
typedef struct bk_connection_map {
  const char *name; /* in messages; NULL: no more */
  /* Writes the shape for `tokens` tokens and returns its dimensions; 0: the kind has no such
   * map. */
  int (*shape)(const bk_connection_kind *kind, int n, int64_t width, int64_t tokens,
               int64_t *shape);
  bool shown;        /* read after the forward pass (gains, `forward --maps`), so that it is kept */
  bool grad_crosses; /* merge_bwd makes its gradient, which mix_bwd of the same sublayer reads */
} bk_connection_map;

/* What one sublayer's connection keeps for one micro-batch; tensors that a kind does not have are
 * absent. Several of them may lie in one place where nothing has to be kept, or where recompute
 * makes them again (places.c): x, y, h and rstd can be rebuilt, f and the maps cannot. */
typedef struct bk_mix_acts {
  bk_tensor x;     /* [N,n,C] streams in, or [N,C] */
  bk_tensor y, h;  /* [N,C] st: the mix, and normed */
  bk_tensor rstd;  /* [N] ct */
  bk_tensor f;     /* [N,C] F's output */
  bk_tensor carry; /* [N,carry] ct, from the sublayer before; absent without such */
  bk_tensor map[BK_CONNECTION_MAX_MAPS]; /* in the order of calls->maps */
} bk_mix_acts;

/* The gradients of the maps of one sublayer, shaped as the maps. merge_bwd writes those of post and
 * comb, mix_bwd the others, which it needs only itself. */
typedef struct bk_mix_grads {
  bk_tensor map[BK_CONNECTION_MAX_MAPS];
} bk_mix_grads;

struct bk_connection_calls {
  bool reads_f; /* merge_bwd reads f and writes df; otherwise df is D itself, unchanged */
  bk_connection_map maps[BK_CONNECTION_MAX_MAPS + 1];
  /* What a sublayer hands to the next beside the streams: the number of columns of ct for each
   * token; NULL: nothing. It travels with the streams, from chunk to chunk too. */
  int64_t (*carry)(int n);
  /* The four passes; the functions of their names below say what each does. */
  bk_status (*mix)(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a);
  bk_status (*merge)(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a, bk_tensor out);
  bk_status (*merge_bwd)(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                         const bk_mix_grads *g, bk_tensor dout, bk_tensor dx, bk_tensor df);
  bk_status (*mix_bwd)(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                       const bk_mix_grads *g, bk_tensor dh, bk_tensor D, bool accumulate);
  /* The same together with the neighbour, as one fused op; NULL: one call after the other. */
  bk_status (*merge_mix)(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                         const bk_connection *c_next, const bk_mix_acts *next);
  bk_status (*merge_mix_bwd)(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                             const bk_mix_grads *g, const bk_mix_acts *prev,
                             const bk_mix_grads *g_prev, bk_tensor dh, bk_tensor D, bk_tensor df);
  /* NULL is not allowed here: every kind of a model can be rebuilt. All connections are of one
   * kind. */
  bk_status (*rebuild)(bk_recorder *rec, const bk_connection *const *c, const bk_mix_acts *a,
                       int count);
  /* Picks pre and post [N,n] and comb [N,n,n] among the maps; those that the kind lacks stay
   * absent. NULL: the kind has no streams. */
  void (*show)(const bk_mix_acts *a, bk_tensor *pre, bk_tensor *post, bk_tensor *comb);
};

/* Makes the maps of a sublayer, y and the normed input h of F from a->x. */
bk_status bk_connection_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a);
/* Makes `out`, the streams of the next sublayer, from a->x, a->f and the maps that mix made. */
bk_status bk_connection_merge(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                              bk_tensor out);
/* Merge of c into next->x, then the mix of the next. */
bk_status bk_connection_merge_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_connection *c_next, const bk_mix_acts *next);
/* Recompute: y, h and rstd of `count` neighbouring sublayers (1 to BK_HC_REBUILD_MAX) and the x of
 * all but the first, from the first x, the kept f and maps. It also reads the kept pre, post and
 * comb, and never the projection. */
bk_status bk_connection_rebuild(bk_recorder *rec, const bk_connection *const *c,
                                const bk_mix_acts *a, int count);

/* Backward of merge. dout is the gradient of its output, and dx the part of its input's gradient
 * that bypasses F. In a model both are the same memory, D. df is the gradient of f; without
 * reads_f that is D's memory too, unchanged, or a copy of it where wgrad is deferred. */
bk_status bk_connection_merge_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_mix_grads *g, bk_tensor dout, bk_tensor dx,
                                  bk_tensor df);
/* Backward of mix: adds to D (or overwrites it with) what comes through the mix, and adds the
 * parameters' gradients. With `accumulate` D already holds what bypasses the sublayer (merge_bwd's
 * dx). Only the end of the model overwrites: nothing bypasses the head. */
bk_status bk_connection_mix_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                const bk_mix_grads *g, bk_tensor dh, bk_tensor D, bool accumulate);
/* mix_bwd of c, then merge_bwd of the sublayer before it. F lies on the other side of the merge,
 * so that these two neighbours need nothing between them. */
bk_status bk_connection_merge_mix_bwd(bk_recorder *rec, const bk_connection *c,
                                      const bk_connection *c_prev, const bk_mix_acts *a,
                                      const bk_mix_grads *g, const bk_mix_acts *prev,
                                      const bk_mix_grads *g_prev, bk_tensor dh, bk_tensor D,
                                      bk_tensor df);

/* The maps of a kind by calls->show; all are absent for a kind without it. */
void bk_connection_show(const bk_connection *c, const bk_mix_acts *a, bk_tensor *pre,
                        bk_tensor *post, bk_tensor *comb);
/* Columns of the carry, 0 for kinds without. */
int64_t bk_connection_carry(const bk_connection_kind *kind, int n);
/* To be called before an op that adds to the gradients of the norm and of all parameters: where
 * the program is the first of its step to write them, they are zeroed. */
bk_status bk_connection_adds(bk_recorder *rec, const bk_connection *c);

#endif

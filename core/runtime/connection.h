/* A kind of residual connection, as all code but its own file sees it: configuration, checks of
 * ops, checkpoints, models and help. Each kind is one file, models/connections/NAME.c, which makes
 * one bk_connection_kind; the list of them is models/connections/kinds.c. doc/connections.md says
 * how to add one.
 *
 * n is the number of residual streams, C the width of one, N the number of tokens. The maps of a
 * token (pre, post, comb) come from the projection fn . x of its streams. R, J, Q and G below are
 * sizes that depend on the kind, named as in runtime/ops.def. */
#ifndef BK_CONNECTION_KIND_H
#define BK_CONNECTION_KIND_H

#include "runtime/op.h"

/* One parameter of a connection. A checkpoint has it as "hc_attn_NAME" and "hc_ffn_NAME", for the
 * two sublayers of a layer. */
typedef struct bk_connection_kind bk_connection_kind;
typedef struct bk_connection_param {
  const char *name; /* NULL: no more */
  int ndim;
  void (*shape)(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
  bool decays; /* weight decay applies to it, as to matrices, and not to scales and biases */
  /* Writes `count` values for a new model; NULL: normal, with the model's initializer_range. */
  void (*first)(const bk_connection_kind *kind, double *values, int64_t count, int n, int sublayer);
  /* Writes `count` values that make the mean of the streams follow the residual stream of the plain
   * model from which a model is converted; NULL: zeros. */
  void (*from_plain)(const bk_connection_kind *kind, double *values, int64_t count, int n,
                     int sublayer, double hc_eps);
} bk_connection_param;
#define BK_CONNECTION_MAX_PARAMS 8

typedef struct bk_connection_calls bk_connection_calls; /* models/connections/connection.h */

struct bk_connection_kind {
  bk_hc_kind kind;
  const char *name;    /* in configurations and on the command line */
  const char *summary; /* a few words for help and README */
  /* The numbers of streams that the kind allows: 1 to max_streams, or the powers of two up to it.
   * With 1 there is a single stream, as in a plain model. */
  int max_streams;
  bool powers_of_two;
  bool iterates;    /* hc_sinkhorn_iters means something */
  bool signed_maps; /* maps may be negative, and hc_eps means nothing */

  /* ---- maps: sizes for ops HC_PROJECT and HC_MAPS; all NULL and 0 for kinds without ---- */
  int (*rows)(int n); /* R, rows of fn and columns of proj */
  int (*base)(int n); /* Q, entries of base */
  int scales;         /* G, entries of scale */
  bool per_stream; /* J: fn sees every stream by itself, proj has n rows a token; otherwise one */
  bool post, comb; /* which maps there are beside pre; comb absent = identity */
  /* Writes those entries of base, behind the 2n of the gates, that make comb the identity or nearly
   * so; NULL: the kind has none. */
  void (*identity)(double *values, int n);
  /* Flops of HC_MAPS. `logits`, `maps` and `comb` are the numbers of entries of the logits, of all
   * maps together and of comb. */
  double (*flops)(double logits, double maps, double comb, int n, int iters);
  /* The steps of HC_MAPS and HC_MAPS_BWD on a device where no kernel takes the kind (ops/ops.h). */
  void (*compose_maps)(const bk_hc_maps_args *a, bk_composition *c);
  void (*compose_maps_bwd)(const bk_hc_maps_bwd_args *a, bk_composition *c);

  /* ---- models ---- */
  bk_connection_param params[BK_CONNECTION_MAX_PARAMS + 1];
  const bk_connection_calls *calls;
};

/* The kind of that number, or NULL where there is none. */
const bk_connection_kind *bk_connection_kind_of(bk_hc_kind kind);
/* The names in configurations in the order of bk_hc_kind, without HEAD; NULL after the last. */
extern const char *const bk_connection_names[];
/* Whether the kind can have n streams; bk_connection_streams_text: "1 to 8", "1, 2, 4 or 8". */
bool bk_connection_takes(const bk_connection_kind *kind, int64_t n);
const char *bk_connection_streams_text(const bk_connection_kind *kind, char *text, size_t size);

#endif

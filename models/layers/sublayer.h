/* F, the function inside a sublayer, behind one small vtable: it makes f [N,C] from the normed
 * input h [N,C], N = B*T. forward, dgrad and wgrad record their pieces (program.h). forward keeps
 * what the backward pass needs in the activations of the micro-batch's slot; dgrad maps df to dh;
 * wgrad writes the parameters' gradients, and reads only what forward kept, the same h and df, and
 * what dgrad left for it. dgrad and wgrad are separate pieces because pipeline schedules move wgrad
 * to fill gaps (zero bubble). Where activations are not kept, rebuild makes them again from h, by
 * the ops of forward and so with the same bits. Shapes are planned before any
 * memory exists: the plan functions reserve tensors, the step only uses them.
 *
 * Letters, beside those of runtime/op.h: H heads; nope and rope, the widths of the unrotated and
 * the rotated part of a head's query and key; v, the width of its value; rq and r, the ranks
 * q_lora_rank and kv_lora_rank; I, the inner width of an MLP; E experts, k of them chosen for each
 * token; S positions of a cache. Tensors are in st unless a comment says ct or i32.
 *
 * To add a kind of F, write a struct of its blocks, one of what it keeps and one of its scratch in
 * the unions below, a file with its bk_f_ops, the builder of its blocks in params.c, its pieces in
 * program.h if they are new ones, its blocks in f_blocks of diagnose.c, and its size in count.c. */
#ifndef BK_SUBLAYER_H
#define BK_SUBLAYER_H

#include "models/connections/connection.h"

/* ---- parameters ---- */
/* The blocks are the model's (bk_model.blocks); a sublayer only points to them. In mla.c: the
 * weights that map h to queries, to the latent vector and from it to keys and values, and the
 * heads' outputs back to C. */
typedef struct bk_mla_params {
  bk_param_block *q;                     /* [H(nope+rope), C]; NULL with query compression */
  bk_param_block *q_a, *q_norm, *q_b;    /* [rq, C] [rq] [H(nope+rope), rq]; NULL without */
  bk_param_block *kv_a, *kv_norm, *kv_b; /* [r+rope, C] [r] [H(nope+v), r] */
  bk_param_block *o;                     /* [C, H v] */
} bk_mla_params;
typedef struct bk_mlp_params {
  bk_param_block *gate_up, *down; /* [2I, C] gate rows then up rows; [C, I]. NULL: none */
  int64_t width;                  /* I */
} bk_mlp_params;
typedef struct bk_moe_params {
  bk_param_block *gate, *bias;    /* [E, C] [E] ct */
  bk_param_block *gate_up, *down; /* [E, 2I, C] [E, C, I] */
  /* the shared experts as one MLP; gate_up NULL: there are none */
  bk_mlp_params shared;
  /* How often each expert was chosen since bk_step_begin: a row of the model's counter, to which
   * every forward pass adds and which BALANCE reads. It is no parameter. */
  bk_tensor load; /* [E] i32 */
} bk_moe_params;

/* ---- activations kept in a slot ---- */
/* Forward writes them, and dgrad and wgrad read them without changing them, so that a slot can wait
 * with a finished forward pass for as long as its schedule wants. Those that are made again lie in
 * one place for all sublayers and slots: they hold from rebuild to the next F that is run. */
typedef struct bk_mla_acts {
  /* q_a and kv_a are kept because the backward of their norms reads the input; q_an and kv_an
   * because they are the inputs of products, whose wgrad reads them; rstd (ct) are the factors of
   * the norms. */
  bk_tensor q_a, q_an, q_rstd;    /* [N,rq] [N,rq] [N]; with query compression */
  bk_tensor q, k;                 /* [B,T,H,nope+rope], turned */
  bk_tensor kv_a, kv_an, kv_rstd; /* [N,r+rope] [N,r] [N] */
  bk_tensor kv;                   /* [B,T,H,nope+v]: v is a view of it */
  /* o and lse (ct) let the backward of attention compute its probabilities again, block by block,
   * without a [T,S] matrix. */
  bk_tensor o, lse; /* [B,T,H,v] [B,H,T] */
  /* past is the number of positions that the cache holds before this pass. */
  bk_tensor k_cache, v_cache, past; /* [B,S,H,nope+rope] [B,S,H,v] i32 [1]; decoding only */
} bk_mla_acts;
typedef struct bk_mlp_acts {
  bk_tensor gate_up; /* [N,2I] */
} bk_mlp_acts;
typedef struct bk_moe_acts {
  /* scores and weights in ct, index in i32: what the router made of the logits, and for each token
   * the experts that it chose and what their outputs count. */
  bk_tensor scores, index, weights; /* [N,E] [N,k] [N,k] */
  /* i32: the counting sort of the choices by expert (op MOE_INDEX). Rows offsets[e] to offsets[e+1]
   * - 1 belong to expert e; order says which choice a row is, row_of is the inverse. */
  bk_tensor offsets, order, row_of; /* [E+1] [Nk] [N,k] */
  bk_tensor gate_up, y;             /* [Nk,2I] [Nk,C], sorted by expert */
  bk_mlp_acts shared;
} bk_moe_acts;
/* Which member holds is said by bk_sublayer.ops; the same goes for bk_f_scratch and the
 * parameters. */
typedef struct bk_f_acts {
  union {
    bk_mla_acts mla;
    bk_mlp_acts mlp;
    bk_moe_acts moe;
  };
} bk_f_acts;

/* ---- scratch: used by one forward, or from a dgrad to the end of its wgrad. What wgrad reads of
 * it ("left") has a place in each slot where wgrad is deferred; the rest is shared by all slots.
 * ---- */
typedef struct bk_mla_scratch {
  /* dq, dkv, dkv_an, dkv_a, dq_an and dq_a are left for wgrad; dk and dout end with dgrad. */
  bk_tensor dq, dk;             /* as q, k */
  bk_tensor dkv, dkv_an, dkv_a; /* as kv, kv_an, kv_a */
  bk_tensor dq_an, dq_a, dout;  /* dout as o */
} bk_mla_scratch;
typedef struct bk_mlp_scratch {
  bk_tensor act;      /* [N,I] swiglu's output; in dgrad its gradient; rebuilt in wgrad */
  bk_tensor dgate_up; /* [N,2I] */
} bk_mlp_scratch;
typedef struct bk_moe_scratch {
  /* logits and dweights are in ct. logits (as a gradient), dgate_up and dy are left for wgrad. */
  bk_tensor logits; /* [N,E]; in dgrad its gradient */
  bk_tensor x;      /* [Nk,C] permuted input; in dgrad its gradient; rebuilt in wgrad */
  bk_tensor act;    /* [Nk,I] as in bk_mlp_scratch */
  bk_tensor dgate_up, dy, dweights; /* [Nk,2I] [Nk,C] [N,k] */
  bk_mlp_scratch shared;
} bk_moe_scratch;
typedef struct bk_f_scratch {
  union {
    bk_mla_scratch mla;
    bk_mlp_scratch mlp;
    bk_moe_scratch moe;
  };
} bk_f_scratch;

/* ---- planning. An error sticks in `status`; the tensors are then not to be used. One planner
 * serves all sublayers of a chunk, one after the other; places.c sets again and cache_of before
 * each. ---- */
typedef struct bk_planner {
  bk_memory *memory;    /* the chunk's; only planned while F's tensors are reserved */
  bk_memory_class keep; /* class of a slot's activations: workspace where nothing is kept */
  /* class of those that rebuild can make again: workspace where it does, else as `keep` */
  bk_memory_class again;
  bk_memory_class left; /* class of what dgrad leaves for wgrad: activations if that is deferred */
  const bk_model_config *config;  /* the model's */
  bk_dtype st, ct;                /* storage and coefficient dtype of the model */
  int64_t batch, seq_len, tokens; /* B, T, and N = B*T */
  bool backward;             /* a backward pass will follow: what only it reads is planned too */
  int64_t cache_len;         /* S; 0: no cache */
  const bk_f_acts *cache_of; /* share the caches of these activations; NULL: make new ones */
  bk_tensor past;            /* i32 [1], the chunk's; absent without a cache */
  bk_status status;          /* the first failure */
} bk_planner;
bk_tensor bk_planner_tensor(bk_planner *p, bk_memory_class c, bk_dtype dtype, int ndim,
                            const int64_t *shape);
static inline bk_tensor bk_planner_1d(bk_planner *p, bk_memory_class c, bk_dtype dtype, int64_t a) {
  return bk_planner_tensor(p, c, dtype, 1, (int64_t[]){a});
}
static inline bk_tensor bk_planner_2d(bk_planner *p, bk_memory_class c, bk_dtype dtype, int64_t a,
                                      int64_t b) {
  return bk_planner_tensor(p, c, dtype, 2, (int64_t[]){a, b});
}

typedef struct bk_sublayer bk_sublayer;
/* One kind of F. The three plan functions reserve what a sublayer keeps for a micro-batch, what its
 * forward uses meanwhile, and what its backward does; the other four record its pieces. A vtable
 * is constant and knows nothing of a model: everything comes through the arguments. h and f belong
 * to the connection around F (bk_mix_acts), df to the slot. The recording functions launch
 * nothing; they fail only where the device has no kernel or memory runs out. */
typedef struct bk_f_ops {
  const char *name;
  /* Reserves in p->keep and p->again for one slot. It is called for every slot where there is a
   * backward pass, else once. */
  void (*plan_acts)(bk_planner *p, const bk_sublayer *s, bk_f_acts *a);
  /* Reserves in the workspace, once for all slots. It is rewound afterwards, so that the next
   * sublayer's scratch lies in the same place: nothing of it lives longer than one forward. */
  void (*plan_forward)(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w);
  /* Is called for every slot. What wgrad reads goes into p->left, the rest into the workspace,
   * which is rewound too. */
  void (*plan_backward)(bk_planner *p, const bk_sublayer *s, bk_f_scratch *w);
  /* f = F(h). */
  bk_status (*forward)(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                       const bk_f_scratch *w, bk_tensor h, bk_tensor f);
  /* Makes again what lies in p->again and `pass` reads, D or W, with the scratch of forward. It
   * makes no f and counts no expert a second time. */
  bk_status (*rebuild)(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                       const bk_f_scratch *w, bk_tensor h, bk_pass pass);
  /* dh, overwritten, from df. */
  bk_status (*dgrad)(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                     const bk_f_scratch *w, bk_tensor df, bk_tensor dh);
  /* The gradients of F's parameters; after dgrad, at once or later. */
  bk_status (*wgrad)(bk_recorder *rec, const bk_sublayer *s, const bk_f_acts *a,
                     const bk_f_scratch *w, bk_tensor h, bk_tensor df);
} bk_f_ops;

/* One sublayer of the model: attention or feed-forward, with the connection around it. */
struct bk_sublayer {
  /* which F it is, and so which members of the unions hold */
  const bk_f_ops *ops;
  const bk_model_config *config;
  int index;     /* in the whole model: 2 * layer for attention, 2 * layer + 1 for the FFN */
  int moe_layer; /* among the model's MoE layers in range, or -1 */
  bk_connection connection;
  union {
    bk_mla_params mla;
    bk_mlp_params mlp;
    bk_moe_params moe;
  };
};

/* Begins a piece of this sublayer, on the compute lane. */
static inline bk_status bk_f_piece(bk_recorder *rec, const bk_sublayer *s, bk_part part,
                                   bk_pass pass) {
  return bk_record_piece(rec, part, pass, s->index, BK_LANE_COMPUTE);
}

/* The same for a piece that makes activations again, whichever part of F they belong to. */
static inline bk_status bk_f_rebuild_piece(bk_recorder *rec, const bk_sublayer *s, bk_pass pass) {
  return bk_f_piece(rec, s, BK_PART_REBUILD, pass);
}

extern const bk_f_ops bk_mla_ops, bk_mlp_ops, bk_moe_ops;

/* ---- mlp.c, shared with the shared experts ---- */
/* These are the seven functions of bk_f_ops without the piece, which the caller has begun. */
bk_mlp_acts bk_mlp_plan_acts(bk_planner *p, const bk_mlp_params *m);
bk_mlp_scratch bk_mlp_plan_forward(bk_planner *p, const bk_mlp_params *m);
bk_mlp_scratch bk_mlp_plan_backward(bk_planner *p, const bk_mlp_params *m);
bk_status bk_mlp_forward(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                         const bk_mlp_scratch *w, bk_tensor h, bk_tensor f);
bk_status bk_mlp_rebuild(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                         bk_tensor h);
/* With `accumulate` dh is added to: the experts' part is in it already. */
bk_status bk_mlp_dgrad(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                       const bk_mlp_scratch *w, bk_tensor df, bk_tensor dh, bool accumulate);
bk_status bk_mlp_wgrad(bk_recorder *rec, const bk_mlp_params *m, const bk_mlp_acts *a,
                       const bk_mlp_scratch *w, bk_tensor h, bk_tensor df);
/* Gate and up halves of [M,2I]. */
static inline bk_tensor bk_gate_half(bk_tensor t) {
  return bk_tensor_slice(t, 1, 0, t.shape[1] / 2);
}
static inline bk_tensor bk_up_half(bk_tensor t) {
  return bk_tensor_slice(t, 1, t.shape[1] / 2, t.shape[1] / 2);
}

/* ---- linear.c: y = x W^T with W [out, in]; all tensors 2-D ---- */
/* bk_linear makes y [N,out] from x [N,in]; bk_linear_dgrad makes dx = dy W, and adds it to dx with
 * `accumulate`, since an input that goes to several layers collects their gradients in one
 * place. */
bk_status bk_linear(bk_recorder *rec, bk_tensor x, const bk_param_block *w, bk_tensor y);
bk_status bk_linear_dgrad(bk_recorder *rec, bk_tensor dy, const bk_param_block *w, bk_tensor dx,
                          bool accumulate);
/* Adds to the gradient, or overwrites it where this is the first of the step
 * (bk_record_accumulates). */
bk_status bk_linear_wgrad(bk_recorder *rec, bk_tensor dy, bk_tensor x, bk_param_block *w);

#endif

/* Gradients of products, layers, and experts. */
#include "tests/grad/grad.h"

#include <math.h>

#define CHECK(...) grad_check(g, &(grad_case){__VA_ARGS__})

/* ---- products: the backward of a product is two more of them ---- */

static void check_gemm(grad_test *g, bool batched) {
  bk_tensor a = batched ? G(3, 5, 7) : G(5, 7), b = batched ? G(3, 7, 4) : G(7, 4),
            c = batched ? G(3, 5, 4) : G(5, 4);
  bk_tensor dc = batched ? G(3, 5, 4) : G(5, 4), da = batched ? G(3, 5, 7) : G(5, 7),
            db = batched ? G(3, 7, 4) : G(7, 4);
  int row = a.ndim - 2, column = a.ndim - 1;
  bk_gemm_args forward = {a, b, c, -1.5, false};
  for (int accumulate = 0; accumulate < 2; accumulate++) {
    bk_gemm_args to_a = {dc, bk_tensor_transpose(b, row, column), da, -1.5, accumulate};
    bk_gemm_args to_b = {bk_tensor_transpose(a, row, column), dc, db, -1.5, accumulate};
    CHECK("gemm, to a", BK_OP_GEMM, BK_OP_GEMM, &forward, &to_a, {{&c, &dc, 0}},
          {{&a, &da, accumulate}}, NULL);
    CHECK("gemm, to b", BK_OP_GEMM, BK_OP_GEMM, &forward, &to_b, {{&c, &dc, 0}},
          {{&b, &db, accumulate}}, NULL);
  }
  grad_reset(g);
}

static void check_grouped(grad_test *g) {
  const int32_t bounds[] = {0, 3, 3, 7, 9};
  bk_tensor a = G(9, 5), b = G(4, 5, 6), c = G(9, 6), dc = G(9, 6), da = G(9, 5), db = G(4, 5, 6);
  bk_tensor offsets = g_ints(g, 1, (int64_t[]){5}, bounds);
  bk_grouped_gemm_args forward = {a, b, offsets, c},
                       to_a = {dc, bk_tensor_transpose(b, 1, 2), offsets, da};
  bk_grouped_wgrad_args to_b = {a, dc, offsets, db, false};
  CHECK("grouped_gemm, to a", BK_OP_GROUPED_GEMM, BK_OP_GROUPED_GEMM, &forward, &to_a,
        {{&c, &dc, 0}}, {{&a, &da, 0}}, NULL);
  CHECK("grouped_gemm, to b", BK_OP_GROUPED_GEMM, BK_OP_GROUPED_WGRAD, &forward, &to_b,
        {{&c, &dc, 0}}, {{&b, &db, 1}}, NULL);
  grad_reset(g);
}

/* ---- layers ---- */

static void check_rmsnorm(grad_test *g, bool accumulate) {
  bk_tensor x = G(5, 9), w = G(9), y = G(5, 9), rstd = G(5), dy = G(5, 9), dx = G(5, 9), dw = G(9);
  bk_rmsnorm_args forward = {x, w, y, rstd, 1e-2};
  bk_rmsnorm_bwd_args backward = {x, w, rstd, dy, dx, dw, accumulate};
  CHECK("rmsnorm", BK_OP_RMSNORM, BK_OP_RMSNORM_BWD, &forward, &backward, {{&y, &dy, 0}},
        {{&x, &dx, accumulate}, {&w, &dw, 1}}, NULL);
  grad_reset(g);
}

static void check_rope(grad_test *g, int64_t from, int64_t to, bool past) {
  const int32_t cached[] = {11};
  bk_tensor x = G(2, 5, from, 6), y = G(2, 5, to, 6), dx = G(2, 5, from, 6), dy = G(2, 5, to, 6),
            none = {0};
  bk_tensor offset = past ? g_ints(g, 1, (int64_t[]){1}, cached) : none;
  bk_rope_args forward = {x, offset, y, 100, false}, backward = {dy, offset, dx, 100, true};
  CHECK("rope", BK_OP_ROPE, BK_OP_ROPE, &forward, &backward, {{&y, &dy, 0}}, {{&x, &dx, 0}}, NULL);
  grad_reset(g);
}

static void check_attention(grad_test *g) {
  bk_tensor q = G(2, 6, 3, 5), k = G(2, 6, 3, 5), v = G(2, 6, 3, 4), o = G(2, 6, 3, 4),
            lse = G(2, 3, 6), none = {0};
  bk_tensor dq = G(2, 6, 3, 5), dk = G(2, 6, 3, 5), dv = G(2, 6, 3, 4), dout = G(2, 6, 3, 4);
  bk_attention_args forward = {q, k, v, none, o, lse, 0.45};
  bk_attention_bwd_args backward = {q, k, v, o, lse, dout, dq, dk, dv, 0.45};
  CHECK("attention", BK_OP_ATTENTION, BK_OP_ATTENTION_BWD, &forward, &backward, {{&o, &dout, 0}},
        {{&q, &dq, 0}, {&k, &dk, 0}, {&v, &dv, 0}}, NULL);
  grad_reset(g);
}

static void check_swiglu(grad_test *g) {
  bk_tensor gate = G(4, 7), up = G(4, 7), y = G(4, 7), dy = G(4, 7), dgate = G(4, 7), dup = G(4, 7);
  bk_swiglu_args forward = {gate, up, y};
  bk_swiglu_bwd_args backward = {gate, up, dy, dgate, dup};
  CHECK("swiglu", BK_OP_SWIGLU, BK_OP_SWIGLU_BWD, &forward, &backward, {{&y, &dy, 0}},
        {{&gate, &dgate, 0}, {&up, &dup, 0}}, NULL);
  grad_reset(g);
}

static void check_embed(grad_test *g) {
  const int32_t values[] = {2, 0, 2, 3, 2, 3};
  bk_tensor ids = g_ints(g, 1, (int64_t[]){6}, values), table = G(5, 4), y = G(6, 4), dy = G(6, 4),
            dtable = G(5, 4);
  bk_embed_args forward = {ids, table, y};
  bk_embed_bwd_args backward = {ids, dy, dtable};
  CHECK("embed", BK_OP_EMBED, BK_OP_EMBED_BWD, &forward, &backward, {{&y, &dy, 0}},
        {{&table, &dtable, 1}}, NULL);
  grad_reset(g);
}

/* The cotangent of each loss is the step's loss scale. */
static void check_cross_entropy(grad_test *g) {
  const int32_t values[] = {2, -100, 0, 6, 3};
  bk_tensor targets = g_ints(g, 1, (int64_t[]){5}, values), logits = G(5, 7),
            step = G(BK_STEP_FIELDS), loss = G(5), dlogits = G(5, 7);
  bk_tensor scale = g_uniform(g, 5, 0.25, 0.25), none = {0};
  ((double *)bk_tensor_data(&step))[BK_STEP_LOSS_SCALE] = 0.25;
  bk_cross_entropy_args forward = {logits, targets, step, loss, none},
                        backward = {logits, targets, step, loss, dlogits};
  CHECK("cross_entropy", BK_OP_CROSS_ENTROPY, BK_OP_CROSS_ENTROPY, &forward, &backward,
        {{&loss, &scale, 1}}, {{&logits, &dlogits, 0}}, NULL);
  grad_reset(g);
}

/* ---- experts ---- */

static void check_router(grad_test *g, bool norm) {
  bk_tensor logits = G(6, 8), bias = G(8), scores = G(6, 8), weights = G(6, 3), dweights = G(6, 3),
            dlogits = G(6, 8);
  bk_tensor index = g_ints(g, 2, (int64_t[]){6, 3}, NULL);
  bk_router_args forward = {logits, bias, scores, index, weights, 4, 2, norm, 2.5};
  bk_router_bwd_args backward = {scores, index, dweights, dlogits, norm, 2.5};
  CHECK("router", BK_OP_ROUTER, BK_OP_ROUTER_BWD, &forward, &backward, {{&weights, &dweights, 0}},
        {{&logits, &dlogits, 0}}, NULL);
  grad_reset(g);
}

/* order and row_of are inverse to each other: order[row_of] = token k + j. */
static void check_permute(grad_test *g) {
  const int32_t to[] = {3, 7, 0, 5, 1, 6, 2, 4}, back[] = {2, 4, 6, 0, 7, 3, 5, 1};
  bk_tensor order = g_ints(g, 1, (int64_t[]){8}, to),
            row_of = g_ints(g, 2, (int64_t[]){4, 2}, back), none = {0};
  bk_tensor x = G(4, 5), rows = G(8, 5), drows = G(8, 5), dx = G(4, 5), y = G(4, 5), dy = G(4, 5);
  bk_tensor weights = G(4, 2), dweights = G(4, 2);
  for (int accumulate = 0; accumulate < 2; accumulate++) {
    bk_permute_args forward = {x, order, rows, 2};
    bk_unpermute_args backward = {drows, row_of, none, dx, accumulate};
    CHECK("permute", BK_OP_PERMUTE, BK_OP_UNPERMUTE, &forward, &backward, {{&rows, &drows, 0}},
          {{&x, &dx, accumulate}}, NULL);
  }
  bk_unpermute_args bare = {rows, row_of, none, y, false},
                    weighted = {rows, row_of, weights, y, false};
  bk_permute_args bare_backward = {dy, order, drows, 2};
  bk_unpermute_bwd_args weighted_backward = {rows, row_of, weights, dy, drows, dweights};
  CHECK("unpermute", BK_OP_UNPERMUTE, BK_OP_PERMUTE, &bare, &bare_backward, {{&y, &dy, 0}},
        {{&rows, &drows, 0}}, NULL);
  CHECK("unpermute with weights", BK_OP_UNPERMUTE, BK_OP_UNPERMUTE_BWD, &weighted,
        &weighted_backward, {{&y, &dy, 0}}, {{&rows, &drows, 0}, {&weights, &dweights, 0}}, NULL);
  grad_reset(g);
}

void grad_layers(grad_test *g) {
  const int64_t heads[][2] = {{1, 1}, {3, 3}, {1, 4}, {4, 1}};
  check_gemm(g, false);
  check_gemm(g, true);
  check_grouped(g);
  check_rmsnorm(g, false);
  check_rmsnorm(g, true);
  for (int i = 0; i < 8; i++) check_rope(g, heads[i % 4][0], heads[i % 4][1], i >= 4);
  check_attention(g);
  check_swiglu(g);
  check_embed(g);
  check_cross_entropy(g);
  check_router(g, false);
  check_router(g, true);
  check_permute(g);
}

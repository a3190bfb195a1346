/* Programs as data: what is recorded for a step, that calls share plans, that lanes never touch the
 * same bytes without one waiting for the other, that first and next differ where they should alone,
 * and that no two args of different meaning have the same key. */
#include "tests/models/models.h"

#include "models/chunk_priv.h"
#include "ops/ops.h"

enum { B = 2, T = 6 };

static rig open_recomputing(int kind, int64_t recompute, int of_f, bool merge_stream,
                            bool deferred) {
  bk_model_config c = small_config(kind);
  bk_runner_options options = {.batch = B,
                               .seq_len = T,
                               .slots = 1,
                               .backward = true,
                               .hc_recompute = recompute,
                               .recompute = of_f,
                               .merge_stream = merge_stream,
                               .defer_wgrad = deferred};
  return rig_open("cpu", 1, &c, BK_F32, &options);
}

static rig open_with(int kind, int64_t recompute, bool merge_stream, bool deferred) {
  return open_recomputing(kind, recompute, BK_RECOMPUTE_F_NONE, merge_stream, deferred);
}

static const bk_program *program_of(const rig *r, int id) {
  return bk_chunk_program(bk_runner_chunk(r->runner, 0), 0, id);
}

/* ---- lanes: a checker that knows nothing of the recorder ---- */

typedef struct access {
  const bk_buffer *buffer;
  size_t begin, end;
  bool writes;
} access;

static int accesses_of(const bk_call *c, access *out) {
  int n = 0;
  if (c->kind == BK_CALL_ZERO) {
    const bk_tensor *t = c->args;
    out[n++] = (access){t->buffer, t->offset, t->offset + bk_tensor_bytes(t), true};
  }
  if (c->kind != BK_CALL_OP) return n;
  const bk_op_desc *d = bk_op_describe(c->op);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = bk_op_field_get(c->args, &d->fields[i]);
    if (!bk_tensor_present(t)) continue;
    out[n++] =
        (access){t->buffer, t->offset, t->offset + bk_tensor_span(t), d->fields[i].role != BK_IN};
  }
  return n;
}

static bool meet(const bk_call *x, const bk_call *y) {
  access a[BK_OP_MAX_FIELDS], b[BK_OP_MAX_FIELDS];
  int n = accesses_of(x, a), m = accesses_of(y, b);
  for (int i = 0; i < n; i++)
    for (int j = 0; j < m; j++)
      if (a[i].buffer == b[j].buffer && (a[i].writes || b[j].writes) && a[i].begin < b[j].end &&
          b[j].begin < a[i].end)
        return true;
  return false;
}

/* Calls that meet on two lanes without an order; `without`: a call that is left out, or -1. By what
 * each lane has waited for: clock[lane][other] calls of the other are before what comes next. */
static int count_races(const bk_program *p, int without) {
  int clock[BK_LANES][BK_LANES] = {{0}}, signalled[BK_LANES][BK_LANES] = {{0}}, races = 0;
  for (int i = 0; i < p->n_calls; i++) {
    const bk_call *c = &p->calls[i];
    if (i == without) continue;
    if (c->kind == BK_CALL_SIGNAL) memcpy(signalled[c->lane], clock[c->lane], sizeof clock[0]);
    for (int l = 0; c->kind == BK_CALL_WAIT && l < BK_LANES; l++)
      if (signalled[c->from][l] > clock[c->lane][l]) clock[c->lane][l] = signalled[c->from][l];
    if (c->kind == BK_CALL_SIGNAL || c->kind == BK_CALL_WAIT) continue;
    for (int j = 0; j < i; j++) {
      const bk_call *before = &p->calls[j];
      bool calls = before->kind == BK_CALL_OP || before->kind == BK_CALL_ZERO;
      if (calls && before->lane != c->lane && j >= clock[c->lane][before->lane])
        races += meet(before, c);
    }
    clock[c->lane][c->lane] = i + 1;
  }
  /* what comes after the program is on compute, and after all of it */
  for (int j = 0; j < p->n_calls; j++) {
    const bk_call *c = &p->calls[j];
    bool calls = c->kind == BK_CALL_OP || c->kind == BK_CALL_ZERO;
    races += calls && c->lane != BK_LANE_COMPUTE && j >= clock[BK_LANE_COMPUTE][c->lane];
  }
  return races;
}

static int count_kind(const bk_program *p, bk_call_kind kind) {
  int n = 0;
  for (int i = 0; i < p->n_calls; i++) n += p->calls[i].kind == kind;
  return n;
}

static void check_lanes(const rig *r, int id, const char *what) {
  const bk_program *p = program_of(r, id);
  int urgent = 0, needed = 0;
  ck_assert_msg(count_races(p, -1) == 0, "%s: %d races", what, count_races(p, -1));
  for (int i = 0; i < p->n_pieces; i++) {
    const bk_piece *piece = &p->pieces[i];
    for (int k = piece->begin; k < piece->end; k++)
      if (p->calls[k].kind == BK_CALL_OP) ck_assert_int_eq(p->calls[k].lane, piece->lane);
    urgent += piece->lane == BK_LANE_URGENT && piece->begin < piece->end;
  }
  ck_assert_msg(urgent >= 2, "%s: %d urgent pieces", what, urgent);
  for (int i = 0; i < p->n_calls; i++)
    if (p->calls[i].kind == BK_CALL_WAIT) needed += count_races(p, i) > 0;
  /* the first wait of a lane is for what came before the program, so before its first call */
  for (int i = 0; i < p->n_calls; i++) {
    const bk_call *c = &p->calls[i];
    if (c->lane != BK_LANE_URGENT) continue;
    ck_assert_msg(c->kind == BK_CALL_WAIT && c->from == BK_LANE_COMPUTE, "%s: call %d", what, i);
    break;
  }
  ck_assert_msg(needed >= count_kind(p, BK_CALL_WAIT) - 1, "%s: %d of %d waits are needed", what,
                needed, count_kind(p, BK_CALL_WAIT));
}

START_TEST(lanes_never_race) {
  static const int64_t recompute[] = {0, 2, BK_RECOMPUTE_AUTO};
  for (size_t k = 0; k < BK_COUNT(kinds); k++)
    for (size_t i = 0; i < 2 * BK_COUNT(recompute); i++) {
      char what[64];
      rig r =
          open_recomputing(kinds[k], recompute[i / 2], i > 3 ? BK_RECOMPUTE_F_ALL : 0, true, i % 2);
      snprintf(what, sizeof what, "kind %d, recompute %d, deferred %d", kinds[k],
               (int)recompute[i / 2], (int)(i % 2));
      check_lanes(&r, BK_PROGRAM_FORWARD, what);
      check_lanes(&r, BK_PROGRAM_BACKWARD, what);
      check_lanes(&r, BK_PROGRAM_BACKWARD + BK_MICRO_NEXT, what);
      rig_close(&r);
    }
}
END_TEST

/* An urgent merge is joined where something needs it, not at its end: its piece has no wait of
 * compute's, and with wgrad deferred the backward's has pieces of compute beside it in a
 * schedule. */
START_TEST(urgent_until_needed) {
  rig r = open_with(BK_HC_MHC, 0, true, false);
  const bk_program *p = program_of(&r, BK_PROGRAM_FORWARD);
  for (int i = 0; i < p->n_pieces; i++) {
    const bk_piece *piece = &p->pieces[i];
    if (piece->part != BK_PART_MERGE) continue;
    bool last = piece->sublayer == 5;
    ck_assert_int_eq(piece->lane, piece->sublayer % 2 ? BK_LANE_URGENT : BK_LANE_COMPUTE);
    for (int k = piece->begin; k < piece->end && !last; k++)
      ck_assert(p->calls[k].kind != BK_CALL_WAIT || p->calls[k].lane == piece->lane);
    if (piece->lane == BK_LANE_URGENT)
      ck_assert_int_eq(p->calls[piece->end - (last ? 2 : 1)].kind, BK_CALL_SIGNAL);
  }
  rig_close(&r);
}
END_TEST

START_TEST(one_lane_orders_nothing) {
  rig r = open_with(BK_HC_MHC, 2, false, false);
  for (int id = 0; id < BK_PROGRAMS; id++) {
    const bk_program *p = program_of(&r, id);
    if (!p) continue;
    ck_assert_int_eq(count_kind(p, BK_CALL_SIGNAL) + count_kind(p, BK_CALL_WAIT), 0);
    for (int i = 0; i < p->n_calls; i++) ck_assert_int_eq(p->calls[i].lane, BK_LANE_COMPUTE);
  }
  ck_assert(!bk_lanes_has(&r.model->lanes, BK_LANE_URGENT));
  rig_close(&r);
}
END_TEST

/* ---- pieces ---- */

/* Pieces follow each other without a gap; each is of a kind that there is. */
START_TEST(pieces_cover_programs) {
  for (size_t k = 0; k < BK_COUNT(kinds); k++) {
    rig r = open_recomputing(kinds[k], 2, BK_RECOMPUTE_F_ALL, true, true);
    for (int id = 0; id < BK_PROGRAMS; id++) {
      const bk_program *p = program_of(&r, id);
      int at = 0;
      if (!p) continue;
      for (int i = 0; i < p->n_pieces; at = p->pieces[i++].end) {
        ck_assert_int_eq(p->pieces[i].begin, at);
        ck_assert_int_lt(p->pieces[i].phase, BK_PHASE_COUNT);
        for (int c = p->pieces[i].begin; c < p->pieces[i].end; c++)
          ck_assert_int_eq(p->calls[c].piece, i);
      }
      ck_assert_int_eq(at, p->n_calls);
    }
    ck_assert_ptr_null(program_of(&r, BK_PROGRAM_LOGITS));
    rig_close(&r);
  }
}
END_TEST

/* A schedule may run a program piece by piece. */
START_TEST(piece_by_piece) {
  int32_t ids[B * T], targets[B * T];
  rig r = open_recomputing(BK_HC_MHC, 2, BK_RECOMPUTE_F_ALL, true, true);
  int64_t kept = make_tokens(r.model->config.vocab_size, B * T, 21, ids, targets), count;
  run_step(&r, ids, targets, kept);
  OK(bk_runner_wgrad(r.runner));
  double loss = run_step(&r, ids, targets, kept);
  OK(bk_runner_wgrad(r.runner));
  double *want = read_grads(r.model, &count);
  static const int programs[] = {BK_PROGRAM_FORWARD, BK_PROGRAM_LOSS, BK_PROGRAM_BACKWARD,
                                 BK_PROGRAM_WGRAD};
  begin_step(r.model, kept);
  for (size_t k = 0; k < BK_COUNT(programs); k++) {
    const bk_program *p = program_of(&r, programs[k]);
    for (int i = 0; i < p->n_pieces; i++) OK(bk_program_run_piece(p, &p->pieces[i], &(bk_run){0}));
  }
  ck_assert_double_eq(end_step(r.model, kept), loss);
  double *got = read_grads(r.model, &count);
  ck_assert_mem_eq(want, got, (size_t)count * sizeof *want);
  bk_free(ctx, want);
  bk_free(ctx, got);
  rig_close(&r);
}
END_TEST

/* ---- first and next ---- */

static bool writes_gradient(const bk_model *m, const bk_tensor *t) {
  for (int i = 0; i < m->n_blocks; i++)
    if (m->blocks[i].grad.buffer == t->buffer && m->blocks[i].grad.offset == t->offset) return true;
  return false;
}

/* Without its zeros, *first* is *next* call by call but for the parameter by which a product
 * adds. */
static void check_pair(const rig *r, int id, int *zeros, int *differ) {
  const bk_program *first = program_of(r, id), *next = program_of(r, id + BK_MICRO_NEXT);
  int n = 0;
  ck_assert_int_eq(count_kind(next, BK_CALL_ZERO), 0);
  for (int i = 0; i < first->n_calls; i++) {
    const bk_call *a = &first->calls[i], *b = &next->calls[n];
    if (a->kind == BK_CALL_ZERO) {
      ck_assert(writes_gradient(r->model, a->args));
      (*zeros)++;
      continue;
    }
    n++;
    ck_assert(a->kind == b->kind && a->op == b->op && a->lane == b->lane);
    if (a->of == b->of) continue;
    (*differ)++;
    ck_assert(a->op == BK_OP_GEMM || a->op == BK_OP_GROUPED_WGRAD);
    if (a->op == BK_OP_GEMM) {
      const bk_gemm_args *x = a->args, *y = b->args;
      ck_assert(!x->accumulate && y->accumulate && writes_gradient(r->model, &x->c));
    } else {
      const bk_grouped_wgrad_args *x = a->args, *y = b->args;
      ck_assert(x->overwrite && !y->overwrite && writes_gradient(r->model, &x->c));
    }
  }
  ck_assert_int_eq(n, next->n_calls);
}

/* Every gradient is either zeroed or overwritten, once. */
START_TEST(first_and_next) {
  for (size_t k = 0; k < 2 * BK_COUNT(kinds); k++) {
    rig r = open_recomputing(kinds[k / 2], 2, k / 2 % 4, false, k % 2);
    int zeros = 0, differ = 0, trained = 0;
    check_pair(&r, BK_PROGRAM_LOSS, &zeros, &differ);
    check_pair(&r, BK_PROGRAM_BACKWARD, &zeros, &differ);
    if (k % 2) check_pair(&r, BK_PROGRAM_WGRAD, &zeros, &differ);
    for (int i = 0; i < r.model->n_blocks; i++) trained += r.model->blocks[i].trainable;
    ck_assert_int_eq(zeros + differ, trained);
    rig_close(&r);
  }
}
END_TEST

/* ---- plans ---- */

/* Layers of the same shapes share their plans: far fewer than calls, and as many for a model of
 * three times the layers but for what its first layer alone has. */
START_TEST(plans_are_shared) {
  int plans[2], calls[2];
  for (int i = 0; i < 2; i++) {
    bk_model_config c = small_config(BK_HC_MHC);
    bk_runner_options options = {.batch = B, .seq_len = T, .slots = 2, .backward = true};
    c.num_hidden_layers = i ? 9 : 3;
    rig r = rig_open("cpu", 1, &c, BK_F32, &options);
    plans[i] = bk_runner_chunk(r.runner, 0)->plans.count;
    calls[i] = 0;
    for (int id = 0; id < BK_PROGRAMS; id++)
      if (program_of(&r, id)) calls[i] += count_kind(program_of(&r, id), BK_CALL_OP);
    rig_close(&r);
  }
  ck_assert_int_gt(calls[1], 2 * calls[0]);
  ck_assert_msg(plans[1] < plans[0] + 20, "%d plans for 9 layers, %d for 3", plans[1], plans[0]);
}
END_TEST

static void expect_key(bk_op op, const void *a, const void *b, bool same) {
  char x[sizeof(bk_hc_rebuild_args)], y[sizeof(bk_hc_rebuild_args)];
  size_t size = bk_op_describe(op)->args_size;
  ck_assert_uint_le(size, sizeof x);
  bk_op_plan_key(op, a, x);
  bk_op_plan_key(op, b, y);
  ck_assert_int_eq(memcmp(x, y, size) == 0, same);
}

/* The same key only where no kernel could tell the two apart: shapes, strides, parameters,
 * alignment of places, and what is the same place. */
START_TEST(keys) {
  bk_buffer one = {.size = 1 << 20}, two = {.size = 1 << 20};
  bk_tensor x = bk_tensor_2d(BK_F32, 4, 8), y = x, z = x;
  x.buffer = y.buffer = &one;
  z.buffer = &two;
  y.offset = 4096;
  z.offset = 512;
  bk_gemm_args a = {x, bk_tensor_2d(BK_F32, 8, 8), y, 1.0, false}, b = a;
  a.b.buffer = b.b.buffer = &two;
  a.b.offset = b.b.offset = 8192;
  expect_key(BK_OP_GEMM, &a, &b, true);
  b.c = z;
  expect_key(BK_OP_GEMM, &a, &b, true);
  b.accumulate = true;
  expect_key(BK_OP_GEMM, &a, &b, false);
  b = a;
  b.alpha = 2.0;
  expect_key(BK_OP_GEMM, &a, &b, false);
  b = a;
  b.c.offset += 16;
  expect_key(BK_OP_GEMM, &a, &b, false);
  b = a;
  b.a.stride[0] = 16;
  expect_key(BK_OP_GEMM, &a, &b, false);
  bk_add_args in_place = {x, z, x}, apart = {x, z, y};
  expect_key(BK_OP_ADD, &in_place, &apart, false);
}
END_TEST

/* Every byte of every args struct is a tensor, a parameter, or padding, and padding ends where an
 * aligned member begins. A parameter that a descriptor forgets shows here, if it is of 8 bytes or
 * not behind another of its struct. */
START_TEST(descriptors_cover_args) {
  for (int op = BK_OP_NONE + 1; op < BK_OP_COUNT; op++) {
    const bk_op_desc *d = bk_op_describe((bk_op)op);
    char covered[sizeof(bk_hc_rebuild_args)] = {0};
    for (int i = 0; i < d->n_fields; i++)
      memset(covered + d->fields[i].offset, 1, sizeof(bk_tensor));
    for (const bk_op_param *p = d->params; p->type != BK_OP_PARAM_END; p++) {
      ck_assert_uint_le(p->offset + p->size, d->args_size);
      memset(covered + p->offset, 1, p->size);
    }
    for (size_t i = 0, gap = 0; i < d->args_size; i++) {
      gap = covered[i] ? 0 : gap + 1;
      /* the last layer of hc_rebuild makes no x, so it has no f, post and comb */
      bool last_layer = op == BK_OP_HC_REBUILD && i >= offsetof(bk_hc_rebuild_args, layer[7]) &&
                        i < offsetof(bk_hc_rebuild_args, layers);
      ck_assert_msg(gap < 8 || last_layer, "%s: bytes before %zu are in no descriptor", d->name,
                    i + 1);
      if (gap) ck_assert_msg(!(i % 8 == 0) || last_layer, "%s: byte %zu", d->name, i);
    }
  }
}
END_TEST

/* Debug builds notice arguments that are not those of the plan. */
START_TEST(changed_arguments) {
#ifdef BK_DEBUG
  int32_t ids[B * T], targets[B * T];
  rig r = open_with(BK_HC_MHC, 0, false, false);
  int64_t kept = make_tokens(r.model->config.vocab_size, B * T, 21, ids, targets);
  bk_program *p = bk_chunk_program(bk_runner_chunk(r.runner, 0), 0, BK_PROGRAM_BACKWARD);
  run_step(&r, ids, targets, kept);
  for (int i = 0; i < p->n_calls; i++) {
    if (p->calls[i].kind != BK_CALL_OP || p->calls[i].op != BK_OP_GEMM) continue;
    bk_gemm_args *a = (bk_gemm_args *)(uintptr_t)p->calls[i].args;
    a->accumulate = !a->accumulate;
    break;
  }
  begin_step(r.model, kept);
  OK(bk_runner_forward(r.runner, 0, ids, targets));
  ck_assert_int_eq(bk_runner_backward(r.runner, 0), BK_ERR_ARGUMENT);
  unit_expect("gemm is launched with other arguments than it was prepared with");
  rig_close(&r);
#endif
}
END_TEST

UNIT_MAIN("program", unit_open, unit_close, lanes_never_race, urgent_until_needed,
          one_lane_orders_nothing, pieces_cover_programs, piece_by_piece, first_and_next,
          plans_are_shared, keys, descriptors_cover_args, changed_arguments)

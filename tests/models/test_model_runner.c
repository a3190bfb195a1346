/* Runners: recompute, micro-batches, decoding with a cache, pipeline stages, and that a step
 * allocates nothing. */
#include "ops/plan.h"
#include "tests/models/models.h"

enum { B = 2, T = 6 };

static bk_runner_options training_options(int64_t batch, int slots, int64_t recompute) {
  return (bk_runner_options){
      .batch = batch, .seq_len = T, .slots = slots, .backward = true, .hc_recompute = recompute};
}

/* ---- recompute: bit-equal gradients, less memory ---- */
static double *grads_with(const char *device, bk_dtype dtype, const bk_model_config *c,
                          int64_t recompute, int64_t *count, double *loss, size_t *bytes) {
  int32_t ids[B * T], targets[B * T];
  bk_runner_options options = training_options(B, 1, recompute);
  rig r = rig_open(device, 2, c, dtype, &options);
  int64_t kept = make_tokens(c->vocab_size, B * T, 21, ids, targets);
  *loss = run_step(&r, ids, targets, kept);
  *bytes = bk_runner_bytes(r.runner, BK_MEM_ACTIVATIONS);
  double *grads = read_grads(r.model, count);
  rig_close(&r);
  return grads;
}

static void check_blocks(const char *device, bk_dtype dtype, int kind, int64_t layers,
                         const int64_t *blocks, size_t n_blocks) {
  bk_model_config c = small_config(kind);
  int64_t count, n;
  double loss, again;
  size_t all, less;
  c.num_hidden_layers = layers;
  double *want = grads_with(device, dtype, &c, 0, &count, &loss, &all);
  for (size_t i = 0; i < n_blocks; i++) {
    double *got = grads_with(device, dtype, &c, blocks[i], &n, &again, &less);
    ck_assert_int_eq(n, count);
    ck_assert_msg(memcmp(&again, &loss, sizeof loss) == 0, "kind %d, L_r %d: loss %.17g, not %.17g",
                  kind, (int)blocks[i], again, loss);
    ck_assert_msg(memcmp(want, got, (size_t)n * sizeof *got) == 0,
                  "kind %d on %s %s: gradients with L_r = %d differ by %g", kind, device,
                  bk_dtype_name(dtype), (int)blocks[i], distance(want, got, n));
    if (kind != BK_HC_PLAIN && blocks[i] == BK_RECOMPUTE_AUTO)
      ck_assert_msg(less < all, "kind %d: keeps %zu bytes, without %zu", kind, less, all);
    bk_free(ctx, got);
  }
  bk_free(ctx, want);
}

static void check_recompute(const char *device, bk_dtype dtype, int kind) {
  static const int64_t blocks[] = {1, 2, 3, 5, BK_RECOMPUTE_AUTO};
  check_blocks(device, dtype, kind, 3, blocks, BK_COUNT(blocks));
}

/* The most that one op rebuilds, and a block that takes two. */
static void check_long_blocks(const char *device, bk_dtype dtype, int kind) {
  static const int64_t blocks[] = {8, 10};
  check_blocks(device, dtype, kind, 5, blocks, BK_COUNT(blocks));
}

START_TEST(test_recompute) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    check_recompute("ref", BK_F64, kinds[i]);
    check_recompute(fast_device(), BK_F32, kinds[i]);
    check_recompute(fast_device(), BK_BF16, kinds[i]);
    check_long_blocks("ref", BK_F64, kinds[i]);
    if (kinds[i] != BK_HC_PLAIN)
      check_long_blocks(fast_device(), i % 2 ? BK_F32 : BK_BF16, kinds[i]);
  }
}
END_TEST

/* ---- the op of recompute: the bits of its parts, rows of aligned and of odd widths ---- */
typedef struct rebuild_shape {
  int n, layers;
  int64_t width;
  bool comb;
} rebuild_shape;

static bk_hc_rebuild_args rebuild_args(const rebuild_shape *s, bk_dtype st) {
  const int64_t N = 3;
  bk_tensor wide = bk_tensor_3d(st, N, s->n, s->width), row = bk_tensor_2d(st, N, s->width),
            gates = bk_tensor_2d(BK_F32, N, s->n);
  bk_tensor comb = s->comb ? bk_tensor_3d(BK_F32, N, s->n, s->n) : (bk_tensor){0};
  bk_hc_rebuild_args a = {.layers = s->layers, .eps = 1e-6};
  for (int i = 0; i < s->layers; i++) {
    a.layer[i] = (bk_hc_rebuild_layer){.x = wide,
                                       .pre = gates,
                                       .w = bk_tensor_1d(BK_F32, s->width),
                                       .y = row,
                                       .h = row,
                                       .rstd = bk_tensor_1d(BK_F32, N)};
    if (i + 1 < s->layers) a.layer[i].f = row, a.layer[i].post = gates, a.layer[i].comb = comb;
  }
  return a;
}

/* Memory for all operands of a; b has outputs of its own. */
static void rebuild_place(bk_memory *memory, bk_hc_rebuild_args *a, bk_hc_rebuild_args *b) {
  const bk_op_desc *d = bk_op_describe(BK_OP_HC_REBUILD);
  for (int i = 0; i < 2 * d->n_fields; i++) {
    const bk_op_field *f = &d->fields[i / 2];
    bk_tensor *t = (bk_tensor *)(void *)((char *)(i % 2 ? b : a) + f->offset);
    if (!bk_tensor_present(t)) continue;
    if (i % 2 && f->role == BK_IN) memcpy(t, (char *)a + f->offset, sizeof *t);
    else OK(bk_memory_tensor(memory, BK_MEM_ACTIVATIONS, t->dtype, t->ndim, t->shape, t));
  }
  OK(bk_memory_commit(memory));
}

static void rebuild_fill(bk_stream *stream, const bk_hc_rebuild_args *a) {
  const bk_op_desc *d = bk_op_describe(BK_OP_HC_REBUILD);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = (const bk_tensor *)(const void *)((const char *)a + d->fields[i].offset);
    int64_t count = bk_tensor_count(t);
    if (!bk_tensor_present(t) || d->fields[i].role != BK_IN) continue;
    double *values = bk_alloc_array(ctx, (size_t)count, sizeof *values);
    for (int64_t j = 0; j < count; j++) values[j] = bk_uniform(7, (uint64_t)i, (uint64_t)j) - 0.25;
    OK(bk_tensor_write_f64(stream, t, values));
    bk_free(ctx, values);
  }
}

static void rebuild_parts(bk_stream *stream, const bk_hc_rebuild_args *a) {
  for (int i = 0; i < a->layers; i++) {
    const bk_hc_rebuild_layer *l = &a->layer[i];
    OK(bk_op_run(stream, BK_OP_HC_PRE_NORM,
                 &(bk_hc_pre_norm_args){l->x, l->pre, l->w, l->y, l->h, l->rstd, a->eps}));
    if (i + 1 < a->layers)
      OK(bk_op_run(stream, BK_OP_HC_POST_RES,
                   &(bk_hc_post_res_args){l->x, l->f, l->post, l->comb, l[1].x}));
  }
}

static void rebuild_compare(bk_stream *stream, const bk_hc_rebuild_args *a,
                            const bk_hc_rebuild_args *b, const char *what) {
  const bk_op_desc *d = bk_op_describe(BK_OP_HC_REBUILD);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = (const bk_tensor *)(const void *)((const char *)a + d->fields[i].offset);
    size_t bytes = bk_tensor_bytes(t);
    if (!bk_tensor_present(t) || d->fields[i].role == BK_IN) continue;
    char *have = bk_alloc(ctx, bytes), *want = bk_alloc(ctx, bytes);
    OK(bk_tensor_download(stream, t, have));
    OK(bk_tensor_download(
        stream, (const bk_tensor *)(const void *)((const char *)b + d->fields[i].offset), want));
    ck_assert_msg(memcmp(have, want, bytes) == 0, "%s: %s is not that of the parts", what,
                  d->fields[i].name);
    bk_free(ctx, have);
    bk_free(ctx, want);
  }
}

START_TEST(test_rebuild_bits) {
  static const rebuild_shape shapes[] = {{4, 8, 1032, true}, {4, 3, 136, false}, {4, 4, 31, true},
                                         {3, 4, 264, true},  {8, 2, 136, true},  {1, 3, 24, false}};
  bk_device *device = open_device(fast_device(), 2);
  bk_stream *stream;
  OK(bk_stream_create(device, 0, &stream));
  for (size_t i = 0; i < 2 * BK_COUNT(shapes); i++) {
    const rebuild_shape *s = &shapes[i / 2];
    bk_hc_rebuild_args a = rebuild_args(s, i % 2 ? BK_F32 : BK_BF16), b = a;
    bk_memory *memory;
    char what[96];
    snprintf(what, sizeof what, "n = %d, C = %d, %d layers, %s", s->n, (int)s->width, s->layers,
             i % 2 ? "fp32" : "bf16");
    OK(bk_memory_create(device, &memory));
    rebuild_place(memory, &a, &b);
    rebuild_fill(stream, &a);
    OK(bk_op_run(stream, BK_OP_HC_REBUILD, &a));
    rebuild_parts(stream, &b);
    rebuild_compare(stream, &a, &b, what);
    bk_memory_destroy(memory);
  }
  bk_stream_destroy(stream);
  bk_device_close(device);
}
END_TEST

/* Slots are independent: forward of both, then backward of both in either order, with the shared
 * buffers rewritten between. */
START_TEST(test_slots) {
  int32_t ids[2][B * T], targets[2][B * T];
  bk_model_config c = small_config(BK_HC_MHC);
  int64_t kept = make_tokens(c.vocab_size, B * T, 21, ids[0], targets[0]);
  kept += make_tokens(c.vocab_size, B * T, 22, ids[1], targets[1]);
  double *grads[4];
  int64_t count = 0;
  for (int turn = 0; turn < 4; turn++) {
    bk_runner_options options = training_options(B, 2, turn / 2 ? 2 : 0);
    rig r = rig_open("ref", 1, &c, BK_F64, &options);
    begin_step(r.model, kept);
    for (int i = 0; i < 2; i++) OK(bk_runner_forward(r.runner, i, ids[i], targets[i]));
    for (int i = 0; i < 2; i++) OK(bk_runner_backward(r.runner, turn % 2 ? 1 - i : i));
    end_step(r.model, kept);
    grads[turn] = read_grads(r.model, &count);
    rig_close(&r);
  }
  double norm = norm_of(grads[0], count);
  ck_assert_double_lt(distance(grads[0], grads[1], count), 1e-13 * norm);
  ck_assert_mem_eq(grads[0], grads[2], (size_t)count * sizeof(double));
  ck_assert_mem_eq(grads[1], grads[3], (size_t)count * sizeof(double));
  for (int i = 0; i < 4; i++) bk_free(ctx, grads[i]);
}
END_TEST

/* ---- micro-batches ---- */
START_TEST(test_micro_batches) {
  int32_t ids[4 * T], targets[4 * T];
  bk_model_config c = small_config(BK_HC_MHC);
  int64_t kept = make_tokens(c.vocab_size, 4 * T, 31, ids, targets), count;
  bk_runner_options whole = training_options(4, 1, 0), part = training_options(2, 1, 0);
  rig a = rig_open("ref", 1, &c, BK_F64, &whole), b = rig_open("ref", 1, &c, BK_F64, &part);
  const char *name;
  double loss = run_step(&a, ids, targets, kept), *want = read_grads(a.model, &count);
  begin_step(b.model, kept);
  for (int i = 0; i < 2; i++) {
    OK(bk_runner_forward(b.runner, 0, ids + i * 2 * T, targets + i * 2 * T));
    OK(bk_runner_backward(b.runner, 0));
  }
  ck_assert_double_eq_tol(end_step(b.model, kept), loss, 1e-12);
  double *got = read_grads(b.model, &count),
         error = worst_grad_error(a.model, got, want, count, &name);
  ck_assert_msg(error < 1e-9, "%s: %g", name, error);
  for (int i = 0; i < bk_runner_n_moe(a.runner); i++) {
    double *la = read_tensor(a.model, bk_model_expert_load(a.model, i));
    double *lb = read_tensor(b.model, bk_model_expert_load(b.model, i));
    ck_assert_mem_eq(la, lb, (size_t)c.n_routed_experts * sizeof *la);
    bk_free(ctx, la);
    bk_free(ctx, lb);
  }
  bk_free(ctx, want);
  bk_free(ctx, got);
  rig_close(&a);
  rig_close(&b);
}
END_TEST

/* ---- the head in pieces of rows, the last one shorter ---- */
static double *grads_with_pieces(const bk_model_config *c, int64_t rows, bool keep_logits,
                                 int64_t *count, double *loss) {
  int32_t ids[B * T], targets[B * T];
  bk_runner_options options = training_options(B, 1, 0);
  options.head_rows = rows;
  options.keep_logits = keep_logits;
  rig r = rig_open("ref", 1, c, BK_F64, &options);
  int64_t kept = make_tokens(c->vocab_size, B * T, 35, ids, targets);
  *loss = run_step(&r, ids, targets, kept);
  double *grads = read_grads(r.model, count);
  if (keep_logits) {
    double *logits = read_tensor(r.model, bk_runner_logits(r.runner)),
           *losses = read_tensor(r.model, bk_runner_row_losses(r.runner));
    for (int i = 0; i < B * T; i++) {
      double sum = 0.0, *row = logits + i * c->vocab_size;
      for (int64_t v = 0; v < c->vocab_size; v++) sum += exp(row[v]);
      ck_assert_double_eq_tol(losses[i], targets[i] < 0 ? 0.0 : log(sum) - row[targets[i]], 1e-12);
    }
    bk_free(ctx, logits);
    bk_free(ctx, losses);
  }
  rig_close(&r);
  return grads;
}

START_TEST(test_head_pieces) {
  bk_model_config c = small_config(BK_HC_MHC);
  int64_t count;
  double loss, again, *want = grads_with_pieces(&c, 0, false, &count, &loss);
  for (int i = 0; i < 4; i++) {
    double *got = grads_with_pieces(&c, i < 2 ? 5 : 1, i % 2, &count, &again);
    ck_assert_double_eq_tol(again, loss, 1e-14);
    ck_assert_double_lt(distance(want, got, count), 1e-13 * norm_of(want, count));
    bk_free(ctx, got);
  }
  bk_free(ctx, want);
}
END_TEST

/* ---- merges on a stream of their own: the same bits, call by call and captured ---- */
static double *grads_of_third_step(bool merge_stream, const bk_model_config *c, int64_t *count,
                                   double *loss) {
  int32_t ids[B * T], targets[B * T];
  bk_runner_options options = training_options(B, 1, BK_RECOMPUTE_AUTO);
  options.merge_stream = merge_stream;
  rig r = rig_open(fast_device(), 1, c, BK_F32, &options);
  int64_t kept = make_tokens(c->vocab_size, B * T, 35, ids, targets);
  for (int i = 0; i < 3; i++) {
    *loss = run_step(&r, ids, targets, kept);
  }
  double *grads = read_grads(r.model, count);
  rig_close(&r);
  return grads;
}

START_TEST(test_merge_stream) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    bk_model_config c = small_config(kinds[i]);
    int64_t count;
    double one, two, *want = grads_of_third_step(false, &c, &count, &one),
                     *got = grads_of_third_step(true, &c, &count, &two);
    ck_assert(one == two);
    ck_assert_mem_eq(want, got, (size_t)count * sizeof *want);
    bk_free(ctx, want);
    bk_free(ctx, got);
  }
}
END_TEST

/* ---- decoding: prefill of 3, then one by one, against the whole forward ---- */
static void decode_all(bk_runner *prefill, bk_runner *one, const bk_model *m, const int32_t *ids,
                       double *logits) {
  int64_t V = m->config.vocab_size;
  int32_t first[B * 3], next[B];
  for (int b = 0; b < B; b++) memcpy(first + b * 3, ids + b * T, 3 * sizeof *ids);
  OK(bk_runner_decode(prefill, 0, first));
  double *v = read_tensor(m, bk_runner_logits(prefill));
  for (int b = 0; b < B; b++)
    memcpy(logits + b * T * V, v + b * 3 * V, (size_t)(3 * V) * sizeof *v);
  bk_free(ctx, v);
  for (int t = 3; t < T; t++) {
    for (int b = 0; b < B; b++) next[b] = ids[b * T + t];
    OK(bk_runner_decode(one, t, next));
    v = read_tensor(m, bk_runner_logits(one));
    for (int b = 0; b < B; b++) memcpy(logits + (b * T + t) * V, v + b * V, (size_t)V * sizeof *v);
    bk_free(ctx, v);
  }
}

static void check_decode(const char *device, bk_dtype dtype, int kind, double bound) {
  int32_t ids[B * T], targets[B * T];
  bk_model_config c = small_config(kind);
  c.q_lora_rank = 5;
  bk_runner *prefill, *one;
  rig r = rig_open(device, 2, &c, dtype,
                   &(bk_runner_options){.batch = B, .seq_len = T, .slots = 1, .keep_logits = true});
  make_tokens(c.vocab_size, B * T, 41, ids, targets);
  bk_runner_options o = {
      .batch = B, .seq_len = 3, .slots = 1, .keep_logits = true, .cache_len = T + 2};
  OK(bk_runner_create(r.model, &o, &prefill));
  o.seq_len = 1;
  OK(bk_runner_create_sharing(r.model, &o, prefill, &one));
  begin_step(r.model, 1);
  OK(bk_runner_forward(r.runner, 0, ids, NULL));
  int64_t n = B * T * c.vocab_size;
  double *want = read_tensor(r.model, bk_runner_logits(r.runner)),
         *got = bk_alloc_array(ctx, (size_t)n, sizeof *got);
  decode_all(prefill, one, r.model, ids, got);
  double error = distance(want, got, n) / norm_of(want, n);
  ck_assert_msg(error < bound, "kind %d on %s: decoding is off by %g", kind, device, error);
  ck_assert_int_eq(bk_runner_decode(one, T + 2, ids), BK_ERR_ARGUMENT);
  unit_expect("do not fit a cache");
  bk_free(ctx, want);
  bk_free(ctx, got);
  bk_runner_destroy(one);
  bk_runner_destroy(prefill);
  rig_close(&r);
}

START_TEST(test_decode) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    check_decode("ref", BK_F64, kinds[i], 1e-13);
    check_decode(fast_device(), BK_F32, kinds[i], 1e-5);
  }
}
END_TEST

/* ---- pipeline stages: a model cut in two gives the whole one's loss and gradients ---- */
static void hand_over(bk_model *m, bk_tensor from, bk_tensor to) {
  double *v = read_tensor(m, from);
  OK(bk_tensor_write_f64(m->stream, &to, v));
  bk_free(ctx, v);
}

static void check_stage_grads(const bk_model *stage, const bk_model *whole) {
  for (int i = 0; i < stage->n_params; i++) {
    const bk_param *p = &stage->params[i], *q = bk_model_find(whole, p->name);
    if (!bk_param_trainable(stage, p)) continue;
    ck_assert_ptr_nonnull(q);
    bk_tensor g = bk_param_grad(stage, p);
    double *a = read_tensor(stage, g), *b = read_tensor(whole, bk_param_grad(whole, q));
    ck_assert_msg(memcmp(a, b, (size_t)bk_tensor_count(&g) * sizeof *a) == 0,
                  "%s differs in a stage", p->name);
    bk_free(ctx, a);
    bk_free(ctx, b);
  }
}

static void check_stages(int kind, int head, int64_t cut, int64_t recompute) {
  int32_t ids[B * T], targets[B * T];
  bk_model_config c = small_config(kind);
  c.hc_head = head;
  bk_runner_options options = training_options(B, 1, recompute);
  rig whole = {.device = open_device("ref", 1)};
  bk_model *m[2];
  bk_runner *r[2];
  int64_t kept = make_tokens(c.vocab_size, B * T, 51, ids, targets);
  OK(bk_model_create(whole.device, &c, BK_F64, &(bk_model_options){.trainable = true},
                     &whole.model));
  OK(bk_model_init(whole.model, 7));
  OK(bk_runner_create(whole.model, &options, &whole.runner));
  double loss = run_step(&whole, ids, targets, kept);
  for (int i = 0; i < 2; i++) {
    bk_model_options o = {.trainable = true, .n_chunks = 1};
    o.chunks[0] = (bk_chunk_range){i ? cut : 0, i ? 2 * c.num_hidden_layers : cut};
    OK(bk_model_create(whole.device, &c, BK_F64, &o, &m[i]));
    OK(bk_model_init(m[i], 7));
    OK(bk_runner_create(m[i], &options, &r[i]));
    begin_step(m[i], kept);
  }
  OK(bk_runner_forward(r[0], 0, ids, NULL));
  hand_over(m[0], bk_chunk_output(bk_runner_chunk(r[0], 0), 0).streams,
            bk_chunk_input(bk_runner_chunk(r[1], 0), 0).streams);
  OK(bk_runner_forward(r[1], 0, NULL, targets));
  OK(bk_runner_backward(r[1], 0));
  hand_over(m[0], bk_chunk_input_grad(bk_runner_chunk(r[1], 0), 0).streams,
            bk_chunk_output_grad(bk_runner_chunk(r[0], 0), 0).streams);
  OK(bk_runner_backward(r[0], 0));
  ck_assert_double_eq(end_step(m[1], kept), loss);
  for (int i = 0; i < 2; i++) {
    check_stage_grads(m[i], whole.model);
    bk_runner_destroy(r[i]);
    bk_model_destroy(m[i]);
  }
  rig_close(&whole);
}

START_TEST(test_stages) {
  check_stages(BK_HC_PLAIN, BK_HEAD_SUM, 3, 0);
  check_stages(BK_HC_MHC, BK_HEAD_LEARNED, 2, 0);
  check_stages(BK_HC_MHC, BK_HEAD_SUM, 5, 2);
}
END_TEST

/* ---- a step allocates nothing, and trains ---- */
START_TEST(test_no_allocation) {
  int32_t ids[B * T], targets[B * T];
  bk_model_config c = small_config(BK_HC_MHC);
  bk_runner_options options = training_options(B, 1, BK_RECOMPUTE_AUTO);
  rig r = rig_open(fast_device(), 2, &c, BK_BF16, &options);
  bk_optimizer *optimizer;
  bk_optimizer_options adam = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
  OK(bk_optimizer_create(r.model, &adam, &optimizer));
  int64_t kept = make_tokens(c.vocab_size, B * T, 61, ids, targets);
  bk_memory_stats before, after;
  uint64_t buffers = 0;
  double first = 0.0, last = 0.0;
  for (int step = 1; step <= 12; step++) {
    if (step == 2) {
      bk_context_memory_stats(ctx, &before);
      buffers = r.device->buffer_allocs;
    }
    bk_step_values values = {.lr = 1e-2,
                             .bc1 = 1.0 - pow(0.9, step),
                             .bc2 = 1.0 - pow(0.95, step),
                             .max_norm = 1.0,
                             .loss_scale = 1.0 / (double)kept,
                             .balance_rate = 1e-3};
    OK(bk_step_begin(r.model, &values));
    OK(bk_runner_forward(r.runner, 0, ids, targets));
    OK(bk_runner_backward(r.runner, 0));
    OK(bk_optimizer_step(optimizer));
    last = end_step(r.model, kept);
    if (step == 1) first = last;
  }
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(before.allocations, after.allocations);
  ck_assert_uint_eq(buffers, r.device->buffer_allocs);
  ck_assert_msg(last < 0.8 * first, "loss %g after 12 steps, %g at first", last, first);
  bk_optimizer_destroy(optimizer);
  rig_close(&r);
}
END_TEST

/* Loss not finite: the flag is down, weights and biases stay. */
START_TEST(test_not_finite) {
  int32_t ids[B * T], targets[B * T];
  bk_model_config c = small_config(BK_HC_PLAIN);
  bk_runner_options options = training_options(B, 1, 0);
  rig r = rig_open(fast_device(), 1, &c, BK_F32, &options);
  bk_optimizer *optimizer;
  OK(bk_optimizer_create(r.model, &(bk_optimizer_options){0.9, 0.95, 1e-8, 0.1, 0}, &optimizer));
  int64_t kept = make_tokens(c.vocab_size, B * T, 61, ids, targets);
  const bk_param *embed = bk_model_find(r.model, "model.embed_tokens.weight"),
                 *head = bk_model_find(r.model, "lm_head.weight");
  bk_tensor e = bk_param_weight(r.model, embed), w = bk_param_weight(r.model, head),
            one = bk_tensor_slice(e, 0, ids[0], 1);
  double inf[12];
  for (int i = 0; i < 12; i++) inf[i] = INFINITY;
  OK(bk_tensor_write_f64(r.model->stream, &one, inf));
  double *before = read_tensor(r.model, w);
  begin_step(r.model, kept);
  OK(bk_runner_forward(r.runner, 0, ids, targets));
  OK(bk_runner_backward(r.runner, 0));
  OK(bk_optimizer_step(optimizer));
  bk_step_results results;
  OK(bk_step_end(r.model, &results));
  ck_assert(!results.finite);
  double *after = read_tensor(r.model, w);
  ck_assert_mem_eq(before, after, (size_t)bk_tensor_count(&w) * sizeof *after);
  bk_free(ctx, before);
  bk_free(ctx, after);
  bk_optimizer_destroy(optimizer);
  rig_close(&r);
}
END_TEST

/* ---- what is refused ---- */
START_TEST(test_refusals) {
  int32_t ids[B * T], targets[B * T];
  bk_model_config c = small_config(BK_HC_MHC);
  bk_runner_options options = {.batch = B, .seq_len = T, .slots = 1};
  rig r = rig_open(fast_device(), 1, &c, BK_F32, &options);
  make_tokens(c.vocab_size, B * T, 61, ids, targets);
  begin_step(r.model, 1);
  ids[3] = (int32_t)c.vocab_size;
  ck_assert_int_eq(bk_runner_forward(r.runner, 0, ids, NULL), BK_ERR_DATA);
  unit_expect("token id 23 at position 3");
  ids[3] = -1;
  ck_assert_int_eq(bk_runner_forward(r.runner, 0, ids, NULL), BK_ERR_DATA);
  unit_expect("token id -1");
  ids[3] = 0;
  targets[4] = 23;
  ck_assert_int_eq(bk_runner_forward(r.runner, 0, ids, targets), BK_ERR_DATA);
  unit_expect("target 23");
  ck_assert_int_eq(bk_runner_backward(r.runner, 0), BK_ERR_ARGUMENT);
  unit_expect("backward needs");
  ck_assert_int_eq(bk_runner_forward(r.runner, 1, ids, NULL), BK_ERR_ARGUMENT);
  unit_expect("no slot 1");
  ck_assert_int_eq(bk_runner_decode(r.runner, 0, ids), BK_ERR_ARGUMENT);
  unit_expect("no cache");
  bk_runner *none = NULL;
  options.seq_len = 0;
  ck_assert_int_eq(bk_runner_create(r.model, &options, &none), BK_ERR_ARGUMENT);
  unit_expect("seq_len 0");
  options = (bk_runner_options){.batch = 1, .seq_len = 8, .slots = 1, .cache_len = 4};
  ck_assert_int_eq(bk_runner_create(r.model, &options, &none), BK_ERR_ARGUMENT);
  unit_expect("cache of 4");
  bk_model *model = NULL;
  ck_assert_int_eq(bk_model_create(r.device, &c, BK_F64, NULL, &model), BK_ERR_UNSUPPORTED);
  unit_expect("does not store models in fp64");
  ck_assert_int_eq(bk_model_create(r.device, &c, BK_F32,
                                   &(bk_model_options){.n_chunks = 1, .chunks = {{4, 9}}}, &model),
                   BK_ERR_ARGUMENT);
  unit_expect("range [4, 9)");
  ck_assert_ptr_null(none);
  ck_assert_ptr_null(model);
  rig_close(&r);
}
END_TEST

/* ---- memory that runs out at any point of creation: an error, nothing leaked ---- */
static int64_t allowed;

static void *scarce_alloc(void *user, size_t bytes, size_t align) {
  (void)user;
  return allowed-- > 0 ? bk_allocator_libc.alloc(bk_allocator_libc.user, bytes, align) : NULL;
}

static void scarce_free(void *user, void *ptr, size_t bytes) {
  (void)user;
  bk_allocator_libc.free(bk_allocator_libc.user, ptr, bytes);
}

static bk_status create_all(bk_device *device, const bk_model_config *c) {
  bk_model *m = NULL;
  bk_runner *r = NULL;
  bk_optimizer *o = NULL;
  bk_runner_options options = training_options(B, 2, 2);
  bk_status status =
      bk_model_create(device, c, BK_BF16, &(bk_model_options){.trainable = true}, &m);
  if (status == BK_OK) status = bk_runner_create(m, &options, &r);
  if (status == BK_OK)
    status = bk_optimizer_create(m, &(bk_optimizer_options){0.9, 0.95, 1e-8, 0.1, 0}, &o);
  bk_optimizer_destroy(o);
  bk_runner_destroy(r);
  bk_model_destroy(m);
  return status;
}

START_TEST(test_scarce_memory) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_context *outer = ctx;
  bk_allocator scarce = {scarce_alloc, scarce_free, NULL};
  bk_context_options options = {.allocator = &scarce, .log = unit_log, .log_level = BK_LOG_WARN};
  allowed = INT64_MAX;
  OK(bk_context_create(&options, &ctx));
  bk_device *device = open_device(fast_device(), 1);
  bk_status status = BK_ERR_MEMORY;
  int failures = 0;
  for (int64_t k = 0; status != BK_OK; k += 5) {
    allowed = k;
    status = create_all(device, &c);
    allowed = INT64_MAX;
    if (status == BK_OK) break;
    ck_assert_int_eq(status, BK_ERR_MEMORY);
    unit_expect("error");
    failures++;
  }
  ck_assert_int_gt(failures, 20);
  bk_device_close(device);
  /* warns of what is still held; a device keeps tables until it is closed */
  bk_context_destroy(ctx);
  ctx = outer;
  unit_expect(NULL);
}
END_TEST

UNIT_MAIN("model_runner", unit_open, unit_close, test_recompute, test_rebuild_bits, test_slots,
          test_micro_batches, test_head_pieces, test_merge_stream, test_decode, test_stages,
          test_no_allocation, test_not_finite, test_refusals, test_scarce_memory)

/* A model of several chunks on one device: every connection, every cut, with and without recompute,
 * with wgrad at once and deferred, gives the loss and gradients of one chunk, bit for bit; so does
 * training. Ports, queues, and what is refused. */
#include "tests/models/models.h"

#include "models/chunk_priv.h"
#include "models/trainer.h"

enum { B = 1, T = 5, MICRO = 3, SUBLAYERS = 6 };

typedef struct tokens {
  int32_t ids[MICRO][B * T], targets[MICRO][B * T];
  int64_t kept;
} tokens;

static tokens make_all_tokens(int64_t vocab) {
  tokens t = {.kept = 0};
  for (int i = 0; i < MICRO; i++)
    t.kept += make_tokens(vocab, B * T, 70 + (uint64_t)i, t.ids[i], t.targets[i]);
  return t;
}

/* Cuts of 0 are none: {2, 0} is [0, 2) and [2, 6). */
static bk_model_options cut_at(const int *cuts, int n) {
  bk_model_options o = {.trainable = true};
  int64_t begin = 0;
  for (int i = 0; i <= n; i++) {
    int64_t end = i < n && cuts[i] ? cuts[i] : SUBLAYERS;
    if (begin < end) o.chunks[o.n_chunks++] = (bk_chunk_range){begin, end};
    begin = end;
  }
  return o;
}

static rig open_cut(bk_device *device, const bk_model_config *c, bk_dtype dtype,
                    const bk_model_options *cut, const bk_runner_options *options) {
  rig r = {.device = device};
  OK(bk_model_create(device, c, dtype, cut, &r.model));
  OK(bk_model_init(r.model, 7));
  enliven(r.model, 11);
  OK(bk_runner_create(r.model, options, &r.runner));
  return r;
}

static void close_cut(rig *r) {
  bk_runner_destroy(r->runner);
  bk_model_destroy(r->model);
}

/* Three micro-batches in flight: backward of the first two before the first wgrad, as schedules do
 * that defer it; first in, first out. */
static double run_micro_batches(rig *r, const tokens *t, bool deferred) {
  begin_step(r->model, t->kept);
  for (int i = 0; i < MICRO; i++) OK(bk_runner_forward(r->runner, i, t->ids[i], t->targets[i]));
  for (int i = 0; i < MICRO; i++) {
    OK(bk_runner_backward(r->runner, i));
    if (deferred && i > 0) OK(bk_runner_wgrad(r->runner));
  }
  if (deferred) OK(bk_runner_wgrad(r->runner));
  return end_step(r->model, t->kept);
}

static bk_runner_options options_of(int64_t recompute, bool deferred) {
  return (bk_runner_options){.batch = B,
                             .seq_len = T,
                             .slots = MICRO,
                             .backward = true,
                             .hc_recompute = recompute,
                             .defer_wgrad = deferred};
}

static double *grads_of(bk_device *device, const bk_model_config *c, bk_dtype dtype,
                        const bk_model_options *cut, const bk_runner_options *options,
                        double *loss) {
  tokens t = make_all_tokens(c->vocab_size);
  rig r = open_cut(device, c, dtype, cut, options);
  int64_t count;
  for (int step = 0; step < 2; step++) *loss = run_micro_batches(&r, &t, options->defer_wgrad);
  double *grads = read_grads(r.model, &count);
  close_cut(&r);
  return grads;
}

static int64_t count_of(bk_device *device, const bk_model_config *c, bk_dtype dtype) {
  bk_model *m = NULL;
  int64_t n = 0;
  OK(bk_model_create(device, c, dtype, &(bk_model_options){.trainable = true}, &m));
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor g = bk_param_grad(m, &m->params[i]);
    n += bk_tensor_count(&g);
  }
  bk_model_destroy(m);
  return n;
}

static void check_cut(bk_device *device, const bk_model_config *c, bk_dtype dtype, int a, int b,
                      const double *want, double want_loss, int64_t count) {
  static const int64_t recompute[] = {0, 2, BK_RECOMPUTE_AUTO};
  int cuts[] = {a, b};
  bk_model_options cut = cut_at(cuts, 2);
  for (size_t i = 0; i < 2 * BK_COUNT(recompute); i++) {
    bk_runner_options options = options_of(recompute[i / 2], i % 2);
    double loss, *got = grads_of(device, c, dtype, &cut, &options, &loss);
    ck_assert_msg(memcmp(&loss, &want_loss, sizeof loss) == 0 &&
                      memcmp(got, want, (size_t)count * sizeof *got) == 0,
                  "kind %d on %s, %s, cuts %d %d, recompute %d%s: loss %.17g, not %.17g; "
                  "gradients differ by %g",
                  c->residual, device->backend->name, bk_dtype_name(dtype), a, b,
                  (int)recompute[i / 2], i % 2 ? ", wgrad deferred" : "", loss, want_loss,
                  distance(got, want, count));
    bk_free(ctx, got);
  }
}

static void check_kind(const char *name, bk_dtype dtype, int kind, int head) {
  bk_device *device = open_device(name, 1);
  bk_model_config c = small_config(kind);
  c.hc_head = head;
  c.q_lora_rank = kind % 2 ? 5 : 0;
  bk_runner_options options = options_of(0, false);
  bk_model_options whole = {.trainable = true};
  double loss, *want = grads_of(device, &c, dtype, &whole, &options, &loss);
  int64_t count = count_of(device, &c, dtype);
  check_cut(device, &c, dtype, 0, 0, want, loss, count);
  for (int a = 1; a < SUBLAYERS; a++) {
    check_cut(device, &c, dtype, a, 0, want, loss, count);
    for (int b = a + 1; b < SUBLAYERS; b++) check_cut(device, &c, dtype, a, b, want, loss, count);
  }
  bk_free(ctx, want);
  bk_device_close(device);
}

START_TEST(bits_on_ref) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++)
    check_kind("ref", i % 2 ? BK_F32 : BK_F64, kinds[i], i % 2 ? BK_HEAD_LEARNED : BK_HEAD_SUM);
}
END_TEST

START_TEST(bits_on_cpu) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++)
    check_kind("cpu", i % 2 ? BK_F32 : BK_BF16, kinds[i], i % 2 ? BK_HEAD_SUM : BK_HEAD_LEARNED);
}
END_TEST

/* ---- pieces of two chunks in turn, as a schedule overlaps a forward and a backward ---- */

static void run_in_turn(const bk_program *a, const bk_program *b) {
  const bk_run how = {0};
  for (int i = 0, j = 0; i < a->n_pieces || j < b->n_pieces;) {
    if (i < a->n_pieces) OK(bk_program_run_piece(a, &a->pieces[i++], &how));
    for (int k = 0; k < 2 && j < b->n_pieces; k++)
      OK(bk_program_run_piece(b, &b->pieces[j++], &how));
  }
}

static void run_program(const bk_chunk *c, int slot, int id) {
  OK(bk_program_run(bk_chunk_program(c, slot, id), &(bk_run){0}));
}

static void cross(const bk_model *m, bk_port from, bk_port to) {
  OK(bk_port_copy(m->stream, &from, &to));
}

/* Two micro-batches through two chunks: the first chunk's forward of the second and the second
 * chunk's backward of the first in turn, piece by piece; then the other way round. */
static double run_overlapped(rig *r, const tokens *t) {
  bk_chunk *a = bk_runner_chunk(r->runner, 0), *b = bk_runner_chunk(r->runner, 1);
  begin_step(r->model, t->kept);
  for (int s = 0; s < 2; s++) {
    OK(bk_chunk_upload(a, s, t->ids[s], NULL));
    OK(bk_chunk_upload(b, s, NULL, t->targets[s]));
  }
  run_program(a, 0, BK_PROGRAM_FORWARD);
  cross(r->model, bk_chunk_output(a, 0), bk_chunk_input(b, 0));
  run_program(b, 0, BK_PROGRAM_FORWARD);
  run_program(b, 0, BK_PROGRAM_LOSS);
  run_in_turn(bk_chunk_program(a, 1, BK_PROGRAM_FORWARD),
              bk_chunk_program(b, 0, BK_PROGRAM_BACKWARD));
  cross(r->model, bk_chunk_output(a, 1), bk_chunk_input(b, 1));
  cross(r->model, bk_chunk_input_grad(b, 0), bk_chunk_output_grad(a, 0));
  run_in_turn(bk_chunk_program(b, 1, BK_PROGRAM_FORWARD),
              bk_chunk_program(a, 0, BK_PROGRAM_BACKWARD));
  run_program(b, 1, BK_PROGRAM_LOSS + BK_MICRO_NEXT);
  run_program(b, 1, BK_PROGRAM_BACKWARD + BK_MICRO_NEXT);
  cross(r->model, bk_chunk_input_grad(b, 1), bk_chunk_output_grad(a, 1));
  for (int s = 0; s < 2; s++) run_program(b, s, BK_PROGRAM_WGRAD + s);
  run_program(a, 1, BK_PROGRAM_BACKWARD + BK_MICRO_NEXT);
  for (int s = 0; s < 2; s++) run_program(a, s, BK_PROGRAM_WGRAD + s);
  return end_step(r->model, t->kept);
}

static double run_two(rig *r, const tokens *t) {
  begin_step(r->model, t->kept);
  for (int s = 0; s < 2; s++) {
    OK(bk_runner_forward(r->runner, s, t->ids[s], t->targets[s]));
    OK(bk_runner_backward(r->runner, s));
  }
  return end_step(r->model, t->kept);
}

START_TEST(two_chunks_in_turn) {
  for (size_t k = 0; k < 2 * BK_COUNT(kinds); k++) {
    bk_device *device = open_device(fast_device(), 1);
    bk_model_config c = small_config(kinds[k / 2]);
    tokens t = make_all_tokens(c.vocab_size);
    bk_model_options whole = {.trainable = true}, cut = cut_at((int[]){3, 0}, 2);
    bk_runner_options plain = options_of(0, false), overlapped = options_of(k % 2 ? 2 : 0, true);
    int64_t count;
    overlapped.merge_stream = true;
    rig one = open_cut(device, &c, BK_F32, &whole, &plain),
        two = open_cut(device, &c, BK_F32, &cut, &overlapped);
    double loss = run_two(&one, &t), again = run_overlapped(&two, &t);
    double *want = read_grads(one.model, &count), *got = read_grads(two.model, &count);
    ck_assert_double_eq(loss, again);
    ck_assert_msg(memcmp(want, got, (size_t)count * sizeof *got) == 0,
                  "kind %d: gradients differ by %g", kinds[k / 2], distance(want, got, count));
    bk_free(ctx, want);
    bk_free(ctx, got);
    close_cut(&one);
    close_cut(&two);
    bk_device_close(device);
  }
}
END_TEST

/* ---- training ---- */
/* The trainer takes a model of chunks as it takes one of one chunk: validation, gains, loads, AdamW
 * over all of them. */
START_TEST(trainer_takes_chunks) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_train_config recipe;
  bk_device *device = open_device("cpu", 2);
  bk_dataset *data = small_text();
  bk_model *models[2];
  bk_trainer *trainers[2];
  bk_model_options options[2] = {{.trainable = true}, cut_at((int[]){1, 4}, 2)};
  c.vocab_size = 257;
  bk_train_config_default(&recipe);
  recipe.steps = 10;
  recipe.batch_size = 4;
  recipe.micro_batch_size = 2;
  recipe.seq_len = 12;
  recipe.gain_every = recipe.eval_every = 2;
  recipe.router_bias_lr = 0.01;
  for (int i = 0; i < 2; i++) {
    OK(bk_model_create(device, &c, BK_F32, &options[i], &models[i]));
    OK(bk_model_init(models[i], 7));
    OK(bk_trainer_create(models[i], &recipe, data, data, &trainers[i]));
  }
  for (int s = 0; s < 5; s++) {
    bk_metrics_row rows[2];
    for (int i = 0; i < 2; i++) OK(bk_trainer_step(trainers[i], &rows[i]));
    ck_assert(rows[0].loss == rows[1].loss && rows[0].grad_norm == rows[1].grad_norm);
    ck_assert(rows[0].has_val == rows[1].has_val && rows[0].has_gain == rows[1].has_gain);
    if (rows[0].has_val) ck_assert(rows[0].val_loss == rows[1].val_loss);
    if (rows[0].has_gain) ck_assert(rows[0].gain_forward == rows[1].gain_forward);
  }
  ck_assert_int_eq(models[0]->n_params, models[1]->n_params);
  check_same_params(models[0], models[1], "three chunks");
  for (int i = 0; i < 2; i++) {
    bk_trainer_destroy(trainers[i]);
    bk_model_destroy(models[i]);
  }
  bk_dataset_close(data);
  bk_device_close(device);
}
END_TEST

/* ---- where things are ---- */

/* Ports of slots are apart wherever something crosses them, and the gradient of the input is where
 * that of the output was. */
START_TEST(ports) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_device *device = open_device("cpu", 1);
  bk_model_options cut = cut_at((int[]){2, 4}, 2);
  bk_runner_options options = options_of(2, true);
  rig r = open_cut(device, &c, BK_F32, &cut, &options);
  ck_assert_int_eq(bk_runner_n_chunks(r.runner), 3);
  const bk_chunk *first = bk_runner_chunk(r.runner, 0), *middle = bk_runner_chunk(r.runner, 1),
                 *last = bk_runner_chunk(r.runner, 2);
  bk_port absent[] = {bk_chunk_input(first, 0), bk_chunk_input_grad(first, 0),
                      bk_chunk_output(last, 0), bk_chunk_output_grad(last, 0)};
  for (size_t i = 0; i < BK_COUNT(absent); i++)
    ck_assert(!bk_tensor_present(&absent[i].streams) && !bk_tensor_present(&absent[i].carry));
  for (int s = 0; s < MICRO; s++) {
    bk_port in = bk_chunk_input(middle, s), out = bk_chunk_output(middle, s),
            dout = bk_chunk_output_grad(middle, s), din = bk_chunk_input_grad(middle, s);
    bk_port all[] = {in, out, dout};
    for (size_t i = 0; i < BK_COUNT(all); i++) {
      ck_assert_int_eq(bk_tensor_count(&all[i].streams), B * T * c.hc_mult * c.hidden_size);
      ck_assert(!bk_tensor_present(&all[i].carry)); /* no connection hands anything over yet */
    }
    ck_assert(din.streams.offset == dout.streams.offset);
    if (s == 0) continue;
    bk_port before[] = {bk_chunk_input(middle, s - 1), bk_chunk_output(middle, s - 1),
                        bk_chunk_output_grad(middle, s - 1)};
    for (size_t i = 0; i < BK_COUNT(all); i++)
      ck_assert(before[i].streams.offset != all[i].streams.offset);
  }
  close_cut(&r);
  bk_device_close(device);
}
END_TEST

/* Without backward too: two micro-batches under way do not meet at an edge. */
START_TEST(ports_without_backward) {
  bk_model_config c = small_config(BK_HC_MHC);
  tokens t = make_all_tokens(c.vocab_size);
  bk_device *device = open_device("cpu", 1);
  bk_model_options cut = cut_at((int[]){2, 4}, 2);
  bk_runner_options options = {.batch = B, .seq_len = T, .slots = 2};
  rig r = open_cut(device, &c, BK_F32, &cut, &options);
  const bk_chunk *middle = bk_runner_chunk(r.runner, 1);
  size_t places[4];
  for (int s = 0; s < 2; s++) {
    places[2 * s] = bk_chunk_input(middle, s).streams.offset;
    places[2 * s + 1] = bk_chunk_output(middle, s).streams.offset;
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < i; j++) ck_assert(places[i] != places[j]);
  begin_step(r.model, t.kept);
  OK(bk_runner_evaluate(r.runner, 0, t.ids[0], t.targets[0]));
  double cut_loss = end_step(r.model, t.kept);
  close_cut(&r);
  bk_model_options whole = {.trainable = true};
  r = open_cut(device, &c, BK_F32, &whole, &options);
  begin_step(r.model, t.kept);
  OK(bk_runner_evaluate(r.runner, 1, t.ids[0], t.targets[0]));
  ck_assert_double_eq(end_step(r.model, t.kept), cut_loss);
  close_cut(&r);
  bk_device_close(device);
}
END_TEST

/* Both tensors of a port cross; what does not fit is refused. */
START_TEST(port_copy) {
  bk_device *device = open_device("cpu", 1);
  bk_stream *stream = NULL;
  bk_memory *memory = NULL;
  bk_port from = {0}, to = {0}, other = {0};
  bk_port *all[] = {&from, &to, &other};
  OK(bk_stream_create(device, 0, &stream));
  OK(bk_memory_create(device, &memory));
  for (int i = 0; i < 3; i++) {
    int64_t streams[] = {2, 4, 3}, carry[] = {2, i < 2 ? 4 : 5};
    OK(bk_memory_tensor(memory, BK_MEM_ACTIVATIONS, BK_BF16, 3, streams, &all[i]->streams));
    OK(bk_memory_tensor(memory, BK_MEM_ACTIVATIONS, BK_F32, 2, carry, &all[i]->carry));
  }
  OK(bk_memory_commit(memory));
  float *x = bk_tensor_data(&from.carry), *y = bk_tensor_data(&to.carry);
  uint16_t *u = bk_tensor_data(&from.streams), *v = bk_tensor_data(&to.streams);
  for (int i = 0; i < 8; i++) x[i] = (float)i + 0.5f;
  for (int i = 0; i < 24; i++) u[i] = (uint16_t)(0x3f80 + i);
  OK(bk_port_copy(stream, &from, &to));
  ck_assert_mem_eq(x, y, 8 * sizeof *x);
  ck_assert_mem_eq(u, v, 24 * sizeof *u);
  ck_assert_int_eq(bk_port_copy(stream, &from, &other), BK_ERR_ARGUMENT);
  unit_expect("what leaves one chunk");
  ck_assert_int_eq(bk_port_copy(stream, &from, &(bk_port){.streams = to.streams}), BK_ERR_ARGUMENT);
  unit_expect("what leaves one chunk");
  bk_memory_destroy(memory);
  bk_stream_destroy(stream);
  bk_device_close(device);
}
END_TEST

/* What a deferred wgrad reads has its price. */
START_TEST(deferring_costs_memory) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_device *device = open_device("cpu", 1);
  size_t bytes[2];
  for (int i = 0; i < 2; i++) {
    bk_runner_options options = options_of(2, i);
    bk_model_options whole = {.trainable = true};
    rig r = open_cut(device, &c, BK_F32, &whole, &options);
    bytes[i] = bk_runner_bytes(r.runner, BK_MEM_ACTIVATIONS);
    close_cut(&r);
  }
  /* at least df and h, in every slot and sublayer */
  size_t least = (size_t)(MICRO * SUBLAYERS * 2 * B * T * c.hidden_size) * sizeof(float);
  ck_assert_uint_ge(bytes[1], bytes[0] + least);
  bk_device_close(device);
}
END_TEST

/* ---- what is refused ---- */
static void refuse_model(bk_device *device, const bk_model_config *c, const bk_model_options *o,
                         const char *said) {
  bk_model *m = NULL;
  ck_assert_int_eq(bk_model_create(device, c, BK_F32, o, &m), BK_ERR_ARGUMENT);
  ck_assert_ptr_null(m);
  unit_expect(said);
}

START_TEST(refusals) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_device *device = open_device("cpu", 1);
  refuse_model(device, &c, &(bk_model_options){.n_chunks = 2, .chunks = {{0, 4}, {3, 6}}},
               "chunks [0, 4) and [3, 6) overlap");
  refuse_model(device, &c, &(bk_model_options){.n_chunks = 2, .chunks = {{0, 4}, {4, 7}}},
               "[4, 7) is not within [0, 6)");
  refuse_model(device, &c, &(bk_model_options){.n_chunks = 1, .chunks = {{3, 3}}},
               "[3, 3) is not within");
  refuse_model(device, &c, &(bk_model_options){.n_chunks = 17}, "a model of 17 chunks");
  refuse_model(device, &c, &(bk_model_options){.n_chunks = -1}, "a model of -1 chunks");
  refuse_model(device, &c, &(bk_model_options){.chunks = {{2, 4}}},
               "a model of 0 chunks: another one is given, [2, 4)");
  /* two that do not follow each other can be held, not run by the trivial schedule */
  bk_model *m = NULL;
  bk_runner *runner = NULL;
  bk_runner_options options = options_of(0, false);
  OK(bk_model_create(
      device, &c, BK_F32,
      &(bk_model_options){.trainable = true, .n_chunks = 2, .chunks = {{4, 6}, {0, 2}}}, &m));
  ck_assert_int_eq(m->n_sublayers, 4);
  ck_assert_str_eq(m->params[0].name, "model.embed_tokens.weight");
  ck_assert_str_eq(m->params[m->n_params - 1].name, "lm_head.weight");
  ck_assert_int_eq(bk_runner_create(m, &options, &runner), BK_ERR_ARGUMENT);
  unit_expect("chunk [0, 2) does not follow [4, 6)");
  bk_model_destroy(m);
  options = (bk_runner_options){.batch = B, .seq_len = T, .slots = 1, .defer_wgrad = true};
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){.trainable = true}, &m));
  ck_assert_int_eq(bk_runner_create(m, &options, &runner), BK_ERR_ARGUMENT);
  unit_expect("there is no wgrad to defer");
  bk_model_destroy(m);
  bk_device_close(device);
}
END_TEST

/* A slot whose wgrad waits is not free, and nothing waits twice. */
START_TEST(queue) {
  bk_model_config c = small_config(BK_HC_MHC);
  tokens t = make_all_tokens(c.vocab_size);
  bk_device *device = open_device("cpu", 1);
  bk_model_options whole = {.trainable = true};
  bk_runner_options options = options_of(0, true);
  rig r = open_cut(device, &c, BK_F32, &whole, &options);
  begin_step(r.model, t.kept);
  ck_assert_int_eq(bk_runner_wgrad(r.runner), BK_ERR_ARGUMENT);
  unit_expect("no wgrad waits");
  OK(bk_runner_forward(r.runner, 1, t.ids[0], t.targets[0]));
  OK(bk_runner_backward(r.runner, 1));
  ck_assert_int_eq(bk_runner_forward(r.runner, 1, t.ids[1], t.targets[1]), BK_ERR_ARGUMENT);
  unit_expect("slot 1 waits for its wgrad");
  ck_assert_int_eq(bk_runner_backward(r.runner, 1), BK_ERR_ARGUMENT);
  unit_expect("backward needs");
  OK(bk_runner_wgrad(r.runner));
  ck_assert_int_eq(bk_runner_wgrad(r.runner), BK_ERR_ARGUMENT);
  unit_expect("no wgrad waits");
  OK(bk_runner_forward(r.runner, 1, t.ids[1], t.targets[1]));
  OK(bk_runner_backward(r.runner, 1));
  bk_optimizer *o = NULL;
  OK(bk_optimizer_create(r.model, &(bk_optimizer_options){0.9, 0.95, 1e-8, 0.1, 0}, &o));
  ck_assert_int_eq(bk_optimizer_step(o), BK_ERR_ARGUMENT);
  unit_expect("1 deferred wgrads wait");
  /* the step is given up: its slot is free in the next one */
  begin_step(r.model, t.kept);
  OK(bk_runner_forward(r.runner, 1, t.ids[1], t.targets[1]));
  ck_assert_int_eq(bk_runner_waiting(r.runner), 0);
  OK(bk_runner_backward(r.runner, 1));
  OK(bk_runner_wgrad(r.runner));
  OK(bk_optimizer_step(o));
  end_step(r.model, t.kept);
  bk_optimizer_destroy(o);
  close_cut(&r);
  bk_device_close(device);
}
END_TEST

/* Two runners of a model may share a step, but not one that defers with one that does not. */
START_TEST(two_runners_in_a_step) {
  bk_model_config c = small_config(BK_HC_MHC);
  tokens t = make_all_tokens(c.vocab_size);
  bk_device *device = open_device("cpu", 1);
  bk_model_options whole = {.trainable = true};
  bk_runner_options at_once = options_of(0, false), deferred = options_of(0, true);
  rig r = open_cut(device, &c, BK_F32, &whole, &at_once);
  bk_runner *other = NULL, *defers = NULL;
  OK(bk_runner_create(r.model, &at_once, &other));
  OK(bk_runner_create(r.model, &deferred, &defers));
  double loss = run_two(&r, &t);
  int64_t count;
  double *want = read_grads(r.model, &count);
  begin_step(r.model, t.kept);
  OK(bk_runner_forward(r.runner, 0, t.ids[0], t.targets[0]));
  OK(bk_runner_backward(r.runner, 0));
  OK(bk_runner_forward(other, 0, t.ids[1], t.targets[1]));
  OK(bk_runner_backward(other, 0));
  ck_assert_double_eq(end_step(r.model, t.kept), loss);
  double *got = read_grads(r.model, &count);
  ck_assert_mem_eq(want, got, (size_t)count * sizeof *got);
  begin_step(r.model, t.kept);
  OK(bk_runner_forward(defers, 0, t.ids[0], t.targets[0]));
  OK(bk_runner_backward(defers, 0));
  OK(bk_runner_forward(other, 0, t.ids[1], t.targets[1]));
  ck_assert_int_eq(bk_runner_backward(other, 0), BK_ERR_ARGUMENT);
  unit_expect("in a step whose wgrads were deferred");
  bk_free(ctx, want);
  bk_free(ctx, got);
  bk_runner_destroy(defers);
  bk_runner_destroy(other);
  close_cut(&r);
  bk_device_close(device);
}
END_TEST

UNIT_MAIN("chunks", unit_folder_open, unit_folder_close, bits_on_ref, bits_on_cpu,
          two_chunks_in_turn, trainer_takes_chunks, ports, ports_without_backward, port_copy,
          deferring_costs_memory, refusals, queue, two_runners_in_a_step)

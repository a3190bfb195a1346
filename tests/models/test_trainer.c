/* Training steps: learning, bit-exact resume, micro-batches, recompute, refusal of what is not
 * finite, balancing, validation and evaluation, allocations, learning rates. */
#include "tests/models/models.h"

#include "models/checkpoint.h"
#include "models/trainer.h"

/* ---- rigs ---- */

/* Half a page in which every word is foreseeable, so that a small model learns quickly. */
static void write_text(const char *path, int lines) {
  static const char *const words[] = {"the stream ",      "of the residual ", "mixes ",
                                      "with the others ", "and keeps ",       "its norm "};
  char text[16384] = "";
  uint32_t r[4];
  for (int i = 0; i < lines; i++) {
    bk_philox(9, 1, (uint64_t)i, r);
    strcat(text, words[r[0] % BK_COUNT(words)]);
    strcat(text, words[r[1] % BK_COUNT(words)]);
    strcat(text, "\n");
  }
  OK(bk_file_write_atomic(ctx, path, text, strlen(text)));
}

static bk_dataset *open_text(bk_split split) {
  const char *path = unit_path("text");
  bk_dataset *ds = NULL;
  if (!bk_path_exists(ctx, path)) write_text(path, 160);
  OK(bk_dataset_open(ctx, &path, 1, &(bk_dataset_options){.vocab_size = 257, .split = split}, &ds));
  return ds;
}

typedef struct run {
  bk_device *device;
  bk_model *model;
  bk_dataset *train, *val;
  bk_trainer *trainer;
} run;

static bk_train_config make_recipe(int64_t steps) {
  bk_train_config t;
  bk_train_config_default(&t);
  t.steps = steps;
  t.batch_size = 4;
  t.seq_len = 16;
  t.lr = 5e-3;
  t.warmup_steps = 2;
  t.eval_every = t.gain_every = 0;
  t.eval_tokens = 0;
  return t;
}

static void run_attach(run *r, const bk_train_config *recipe) {
  r->train = open_text(BK_SPLIT_TRAIN);
  r->val = open_text(BK_SPLIT_VAL);
  OK(bk_trainer_create(r->model, recipe, r->train, r->val, &r->trainer));
}

static run run_open(const char *device, bk_dtype dtype, const bk_model_config *c,
                    const bk_train_config *recipe) {
  run r = {.device = open_device(device, 2)};
  OK(bk_model_create(r.device, c, dtype, &(bk_model_options){.trainable = true}, &r.model));
  OK(bk_model_init(r.model, 7));
  run_attach(&r, recipe);
  return r;
}

static void run_close(run *r) {
  bk_trainer_destroy(r->trainer);
  bk_dataset_close(r->train);
  bk_dataset_close(r->val);
  bk_model_destroy(r->model);
  bk_device_close(r->device);
}

static bk_metrics_row step(run *r) {
  bk_metrics_row row;
  OK(bk_trainer_step(r->trainer, &row));
  return row;
}

typedef bk_tensor (*view_fn)(const bk_model *, const bk_param *);

/* Weights, masters and moments as stored; bk_free. */
static char *bytes_of(const bk_model *m, size_t *bytes) {
  static const view_fn views[] = {bk_param_weight, bk_param_master, bk_param_m, bk_param_v};
  char *raw = NULL;
  for (int pass = 0; pass < 2; pass++) {
    size_t at = 0;
    for (int i = 0; i < m->n_params; i++)
      for (size_t k = 0; k < BK_COUNT(views); k++) {
        bk_tensor t = views[k](m, &m->params[i]);
        if (raw && bk_tensor_present(&t)) OK(bk_tensor_download(m->stream, &t, raw + at));
        at += bk_tensor_bytes(&t);
      }
    *bytes = at;
    if (!raw) raw = bk_alloc(ctx, at);
  }
  return raw;
}

static void check_same(const bk_model *a, const bk_model *b, const char *what) {
  size_t na, nb;
  char *x = bytes_of(a, &na), *y = bytes_of(b, &nb);
  ck_assert_uint_eq(na, nb);
  ck_assert_msg(memcmp(x, y, na) == 0, "%s: weights or moments differ", what);
  bk_free(ctx, x);
  bk_free(ctx, y);
}

static bool same_double(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

/* ---- learning ---- */

START_TEST(test_learns) {
  bk_model_config c;
  bk_train_config recipe;
  OK(bk_model_preset(ctx, "tiny", &c, &recipe));
  recipe = make_recipe(quick() ? 12 : 60);
  recipe.seq_len = 32;
  run r = run_open("cpu", BK_F32, &c, &recipe);
  double first = 0, last = 0;
  for (int64_t s = 1; s <= recipe.steps; s++) {
    bk_metrics_row row = step(&r);
    ck_assert_int_eq(row.step, s);
    ck_assert_int_eq(row.tokens, s * 4 * 32);
    ck_assert_int_eq(bk_trainer_step_done(r.trainer), s);
    ck_assert(row.tokens_per_s > 0 && row.grad_norm > 0 && !row.has_val && !row.has_gain);
    if (s == 1) first = row.loss;
    last = row.loss;
  }
  ck_assert_double_eq_tol(first, log(257), 0.1); /* knows nothing */
  ck_assert_msg(last < (quick() ? 0.9 : 0.45) * first, "loss %g after %d steps, %g at first", last,
                (int)recipe.steps, first);
  run_close(&r);
}
END_TEST

START_TEST(test_learns_on_ref) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(quick() ? 3 : 10);
  run r = run_open("ref", BK_F64, &c, &recipe);
  double first = step(&r).loss, last = first;
  for (int64_t s = 2; s <= recipe.steps; s++) last = step(&r).loss;
  ck_assert_msg(last < first - (quick() ? 0 : 0.2), "loss %g after %d steps, %g at first", last,
                (int)recipe.steps, first);
  run_close(&r);
}
END_TEST

/* ---- one step by hand ---- */

/* With a rate of 0 nothing changes, and the loss of step s is that of sequences (s - 1)
 * batch_size and on. */
START_TEST(test_data_order) {
  enum { S = 16 };
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(3);
  recipe.lr = recipe.router_bias_lr = 0;
  recipe.micro_batch_size = 2;
  run r = run_open("cpu", BK_F32, &c, &recipe);
  bk_runner *one = NULL;
  OK(bk_runner_create(r.model, &(bk_runner_options){.batch = 1, .seq_len = S, .slots = 1}, &one));
  double last = 0;
  for (int s = 0; s < 3; s++) {
    int32_t ids[S], targets[S];
    double loss = step(&r).loss;
    begin_step(r.model, 1);
    for (int b = 0; b < 4; b++) {
      OK(bk_dataset_train_sequence(r.train, recipe.seed, S, 4 * s + b, ids, targets));
      OK(bk_runner_forward(one, 0, ids, targets));
    }
    ck_assert_double_eq_tol(loss, end_step(r.model, 4 * S), 1e-6 * loss);
    ck_assert(fabs(loss - last) > 1e-5 * loss); /* other sequences, another loss */
    last = loss;
  }
  bk_runner_destroy(one);
  run_close(&r);
}
END_TEST

/* AdamW from the moments that a step leaves: p -= lr (mhat / (sqrt(vhat) + eps) + wd p), decay
 * on matrices only. */
static void check_update(const run *r, const bk_train_config *t, const bk_param *p,
                         const double *before, int s) {
  double c1 = 1 - pow(t->adam_beta1, s), c2 = 1 - pow(t->adam_beta2, s),
         decay = p->ndim > 1 ? t->weight_decay : 0;
  double *now = read_tensor(r->model, bk_param_weight(r->model, p)),
         *m = read_tensor(r->model, bk_param_m(r->model, p));
  double *v = read_tensor(r->model, bk_param_v(r->model, p));
  bk_tensor w = bk_param_weight(r->model, p);
  for (int64_t i = 0; i < bk_tensor_count(&w); i++) {
    double want = before[i] - bk_learning_rate(t, s) *
                                  (m[i] / c1 / (sqrt(v[i] / c2) + t->adam_eps) + decay * before[i]);
    ck_assert_msg(fabs(now[i] - want) <= 1e-13, "%s[%d] after step %d: %.17g, not %.17g", p->name,
                  (int)i, s, now[i], want);
  }
  bk_free(ctx, now);
  bk_free(ctx, m);
  bk_free(ctx, v);
}

START_TEST(test_update) {
  static const char *const names[] = {"lm_head.weight",
                                      "model.norm.weight",
                                      "model.layers.0.hc_attn_base",
                                      "model.layers.1.hc_ffn_fn",
                                      "model.layers.1.mlp.gate.weight",
                                      "model.embed_tokens.weight"};
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(3);
  recipe.grad_clip = 0.01; /* far below the gradient's norm */
  run r = run_open("ref", BK_F64, &c, &recipe);
  for (int s = 1; s <= 3; s++) {
    double *before[BK_COUNT(names)], sum = 0;
    for (size_t i = 0; i < BK_COUNT(names); i++)
      before[i] = read_tensor(r.model, bk_param_weight(r.model, bk_model_find(r.model, names[i])));
    ck_assert_double_gt(step(&r).grad_norm, 0.1); /* reported as it was before the cut */
    for (size_t i = 0; i < BK_COUNT(names); i++) {
      check_update(&r, &recipe, bk_model_find(r.model, names[i]), before[i], s);
      bk_free(ctx, before[i]);
    }
    /* after one step m is (1 - beta1) times the clipped gradient */
    for (int i = 0; s == 1 && i < r.model->n_params; i++) {
      bk_tensor m = bk_param_m(r.model, &r.model->params[i]);
      double *v = bk_tensor_present(&m) ? read_tensor(r.model, m) : NULL,
             norm = v ? norm_of(v, bk_tensor_count(&m)) : 0;
      sum += norm * norm;
      bk_free(ctx, v);
    }
    if (s == 1) ck_assert_double_eq_tol(sqrt(sum) / (1 - recipe.adam_beta1), 0.01, 1e-12);
  }
  run_close(&r);
}
END_TEST

/* ---- resume ---- */

static void check_resume(const char *device, bk_dtype dtype, int kind) {
  enum { K = 3 };
  bk_model_config c = text_config(kind);
  bk_train_config recipe = make_recipe(2 * K);
  recipe.micro_batch_size = 2;
  recipe.eval_every = 2;
  recipe.gain_every = 1;
  recipe.hc_recompute = BK_RECOMPUTE_AUTO;
  bk_metrics_row want[2 * K];
  run whole = run_open(device, dtype, &c, &recipe), part = run_open(device, dtype, &c, &recipe);
  for (int s = 0; s < 2 * K; s++) want[s] = step(&whole);
  for (int s = 0; s < K; s++) ck_assert(same_double(step(&part).loss, want[s].loss));
  bk_trainer_state state = {.recipe = recipe, .step = K, .tokens = 1, .dtype = dtype};
  char path[512];
  snprintf(path, sizeof path, "%s", unit_path("step-000003"));
  OK(bk_checkpoint_save(part.model, &state, path));
  run_close(&part);
  run again = {.device = open_device(device, 1)}; /* another number of threads: the same bits */
  OK(bk_checkpoint_load(again.device, path, BK_NONE, &(bk_model_options){.trainable = true},
                        &again.model));
  OK(bk_checkpoint_load_optimizer(again.model, path));
  run_attach(&again, &recipe);
  bk_trainer_set_step(again.trainer, K, want[K - 1].tokens);
  for (int s = K; s < 2 * K; s++) {
    bk_metrics_row row = step(&again);
    ck_assert_int_eq(row.step, s + 1);
    ck_assert_int_eq(row.tokens, want[s].tokens);
    ck_assert_msg(same_double(row.loss, want[s].loss),
                  "%s %s: loss %.17g at step %d, %.17g without a break", device,
                  bk_dtype_name(dtype), row.loss, s + 1, want[s].loss);
    ck_assert(same_double(row.grad_norm, want[s].grad_norm) && same_double(row.lr, want[s].lr));
    ck_assert(row.has_val == want[s].has_val &&
              (!row.has_val || same_double(row.val_loss, want[s].val_loss)));
    ck_assert(same_double(row.gain_forward, want[s].gain_forward) &&
              same_double(row.gain_backward, want[s].gain_backward));
  }
  check_same(again.model, whole.model, bk_dtype_name(dtype));
  run_close(&again);
  run_close(&whole);
}

START_TEST(test_resume) {
  check_resume("cpu", BK_F32, BK_HC_MHC);
  check_resume("cpu", BK_BF16, BK_HC_MHC);
  if (quick()) return;
  check_resume("cpu", BK_BF16, BK_HC_MHC_LITE);
  check_resume("cpu", BK_F32, BK_HC_PLAIN);
  check_resume("ref", BK_F64, BK_HC_HC);
}
END_TEST

/* ---- micro-batches: the same loss, gradient and next loss, up to the order of sums ---- */
static void check_micro(const char *device, bk_dtype dtype, double bound) {
  static const int64_t micros[] = {0, 4, 2, 1, 3};
  bk_metrics_row want[2];
  for (size_t i = 0; i < BK_COUNT(micros); i++) {
    bk_model_config c = text_config(BK_HC_MHC);
    bk_train_config recipe = make_recipe(2);
    recipe.micro_batch_size = micros[i];
    run r = run_open(device, dtype, &c, &recipe);
    for (int s = 0; s < 2; s++) {
      bk_metrics_row row = step(&r);
      if (i == 0) want[s] = row;
      ck_assert_msg(fabs(row.loss - want[s].loss) <= bound * want[s].loss,
                    "micro-batches of %d on %s: loss %.9g, not %.9g", (int)micros[i], device,
                    row.loss, want[s].loss);
      ck_assert(fabs(row.grad_norm - want[s].grad_norm) <= 10 * bound * want[s].grad_norm);
    }
    run_close(&r);
  }
}

START_TEST(test_micro_batches) {
  check_micro("cpu", BK_F32, 1e-6);
  if (!quick()) check_micro("ref", BK_F64, 1e-12);
}
END_TEST

/* ---- recompute: the same bits, step after step ---- */
static void check_recompute(bk_dtype dtype, int kind) {
  static const struct {
    int64_t block;
    int of_f;
  } settings[] = {{0, BK_RECOMPUTE_F_NONE},
                  {1, BK_RECOMPUTE_F_NONE},
                  {2, BK_RECOMPUTE_F_NONE},
                  {4, BK_RECOMPUTE_F_NONE},
                  {BK_RECOMPUTE_AUTO, BK_RECOMPUTE_F_NONE},
                  {0, BK_RECOMPUTE_F_ATTENTION},
                  {2, BK_RECOMPUTE_F_EXPERTS},
                  {BK_RECOMPUTE_AUTO, BK_RECOMPUTE_F_ALL}};
  double want[4];
  for (size_t i = 0; i < BK_COUNT(settings); i++) {
    bk_model_config c = text_config(kind);
    bk_train_config recipe = make_recipe(4);
    recipe.hc_recompute = settings[i].block;
    recipe.recompute = settings[i].of_f;
    recipe.micro_batch_size = 2;
    run r = run_open("cpu", dtype, &c, &recipe);
    for (int s = 0; s < 4; s++) {
      double loss = step(&r).loss;
      if (i == 0) want[s] = loss;
      ck_assert_msg(same_double(loss, want[s]),
                    "kind %d %s, L_r %d, recompute %d, step %d: loss %.17g, not %.17g", kind,
                    bk_dtype_name(dtype), (int)settings[i].block, settings[i].of_f, s + 1, loss,
                    want[s]);
    }
    run_close(&r);
  }
}

START_TEST(test_recompute) {
  check_recompute(BK_BF16, BK_HC_MHC);
  if (quick()) return;
  check_recompute(BK_F32, BK_HC_MHC);
  check_recompute(BK_F32, BK_HC_HC);
}
END_TEST

/* ---- not finite: refused, nothing changed, and after the cure the step is what it would have
 * been ---- */
static void check_not_finite(const char *device, bk_dtype dtype, const char *name, double poison) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(4);
  run r = run_open(device, dtype, &c, &recipe), control = run_open(device, dtype, &c, &recipe);
  for (int s = 0; s < 2; s++) step(&r), step(&control);
  bk_tensor w = bk_param_weight(r.model, bk_model_find(r.model, name));
  int64_t count = bk_tensor_count(&w);
  double *healthy = read_tensor(r.model, w), *sick = read_tensor(r.model, w);
  for (int64_t i = 0; i < count; i++) sick[i] = poison;
  OK(bk_tensor_write_f64(r.model->stream, &w, sick));
  size_t bytes;
  char *before = bytes_of(r.model, &bytes);
  bk_metrics_row row = {.step = -1};
  for (int turn = 0; turn < 2; turn++) {
    ck_assert_int_eq(bk_trainer_step(r.trainer, &row), BK_ERR_NOT_FINITE);
    unit_expect("step 3: loss ");
  }
  ck_assert_int_eq(row.step, -1);
  ck_assert_int_eq(bk_trainer_step_done(r.trainer), 2);
  char *after = bytes_of(r.model, &bytes);
  ck_assert_msg(memcmp(before, after, bytes) == 0, "%s = %g on %s: weights or moments changed",
                name, poison, device);
  OK(bk_tensor_write_f64(r.model->stream, &w, healthy));
  ck_assert(same_double(step(&r).loss, step(&control).loss));
  check_same(r.model, control.model, name);
  bk_free(ctx, before);
  bk_free(ctx, after);
  bk_free(ctx, healthy);
  bk_free(ctx, sick);
  run_close(&r);
  run_close(&control);
}

START_TEST(test_not_finite) {
  check_not_finite("cpu", BK_F32, "model.norm.weight", NAN);
  check_not_finite("cpu", BK_F32, "model.norm.weight", INFINITY);
  check_not_finite("cpu", BK_BF16, "model.layers.1.self_attn.o_proj.weight", INFINITY);
  check_not_finite("cpu", BK_BF16, "lm_head.weight", NAN);
  check_not_finite("ref", BK_F64, "model.layers.0.hc_attn_base", NAN);
}
END_TEST

/* ---- loads and balancing ---- */
START_TEST(test_balance) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(5);
  recipe.micro_batch_size = 2;
  recipe.router_bias_lr = 0.125;
  run r = run_open("cpu", BK_F32, &c, &recipe);
  int64_t E = c.n_routed_experts, moved = 0;
  const char *names[] = {"model.layers.1.mlp.gate.e_score_correction_bias",
                         "model.layers.2.mlp.gate.e_score_correction_bias"};
  double bias[2][6] = {{0}};
  for (int s = 0; s < 5; s++) {
    bk_metrics_row row = step(&r);
    ck_assert_int_eq(row.n_layers, 2);
    ck_assert_int_eq(row.n_experts, E);
    for (int l = 0; l < 2; l++) {
      double *now =
          read_tensor(r.model, bk_param_weight(r.model, bk_model_find(r.model, names[l])));
      double *load = read_tensor(r.model, bk_model_expert_load(r.model, l)), sum = 0, share = 0;
      for (int64_t e = 0; e < E; e++) sum += load[e];
      ck_assert(sum == 4 * 16 * 2); /* tokens x top-k over both micro-batches */
      for (int64_t e = 0; e < E; e++) {
        double excess = sum - (double)E * load[e], sign = excess > 0 ? 1 : excess < 0 ? -1 : 0;
        share += row.expert_load[l * E + e];
        ck_assert_double_eq_tol(row.expert_load[l * E + e], load[e] / sum, 1e-15);
        ck_assert_msg(now[e] == bias[l][e] + 0.125 * sign,
                      "step %d, layer %d, expert %d: bias %g after %g, load %g of %g", s + 1, l,
                      (int)e, now[e], bias[l][e], load[e], sum);
        moved += sign != 0;
        bias[l][e] = now[e];
      }
      ck_assert_double_eq_tol(share, 1, 1e-12);
      bk_free(ctx, now);
      bk_free(ctx, load);
    }
  }
  ck_assert_int_gt(moved, 20);
  run_close(&r);
}
END_TEST

/* ---- evaluation ---- */

/* Window by window on a runner of one sequence. */
static double evaluate_slowly(bk_model *m, const bk_dataset *data, int64_t seq_len,
                              int64_t *tokens) {
  bk_runner *r = NULL;
  int32_t ids[64], targets[64];
  double sum = 0;
  *tokens = 0;
  OK(bk_runner_create(
      m, &(bk_runner_options){.batch = 1, .seq_len = seq_len, .slots = 1, .keep_logits = true},
      &r));
  for (int64_t first = 0; first + 1 < bk_dataset_tokens(data); first += seq_len) {
    int64_t V = m->config.vocab_size, kept = 0;
    for (int64_t t = 0; t < seq_len; t++) {
      bool there = first + t + 1 < bk_dataset_tokens(data);
      /* what follows the end must not matter */
      ids[t] = there ? (int32_t)bk_dataset_at(data, first + t) : 5;
      targets[t] = there ? (int32_t)bk_dataset_at(data, first + t + 1) : -100;
      kept += there;
    }
    begin_step(m, 1);
    OK(bk_runner_forward(r, 0, ids, NULL));
    double *logits = read_tensor(m, bk_runner_logits(r));
    for (int64_t t = 0; t < kept; t++) {
      double most = -INFINITY, total = 0;
      for (int64_t v = 0; v < V; v++) most = fmax(most, logits[t * V + v]);
      for (int64_t v = 0; v < V; v++) total += exp(logits[t * V + v] - most);
      sum += most + log(total) - logits[t * V + targets[t]];
    }
    bk_free(ctx, logits);
    *tokens += kept;
  }
  bk_runner_destroy(r);
  return sum;
}

static void check_evaluator(const char *device, bk_dtype dtype, double bound) {
  static const int64_t shapes[][2] = {{1, 16}, {3, 16}, {7, 33}, {2, 64}};
  bk_model_config c = text_config(BK_HC_MHC);
  bk_dataset *data = open_text(BK_SPLIT_VAL);
  bk_device *d = open_device(device, 2);
  bk_model *m = NULL;
  OK(bk_model_create(d, &c, dtype, NULL, &m));
  OK(bk_model_init(m, 7));
  for (size_t i = 0; i < BK_COUNT(shapes); i++) {
    bk_evaluator *e = NULL;
    bk_eval_result all, some;
    int64_t tokens;
    double want = evaluate_slowly(m, data, shapes[i][1], &tokens);
    OK(bk_evaluator_create(m, shapes[i][0], shapes[i][1], &e));
    ck_assert_uint_gt(bk_evaluator_bytes(e, BK_MEM_WORKSPACE), 0);
    OK(bk_evaluator_run(e, data, 0, &all));
    ck_assert_int_eq(tokens, bk_dataset_tokens(data) - 1);
    ck_assert_int_eq(all.tokens, tokens);
    ck_assert_msg(fabs(all.loss_sum - want) <= bound * want,
                  "batch %d, seq_len %d on %s: %.12g nats, not %.12g", (int)shapes[i][0],
                  (int)shapes[i][1], device, all.loss_sum, want);
    OK(bk_evaluator_run(e, data, 20, &some));
    int64_t batch = shapes[i][0] * shapes[i][1], expected = (20 + batch - 1) / batch * batch;
    ck_assert_int_eq(some.tokens, expected < tokens ? expected : tokens);
    OK(bk_evaluator_run(e, data, 0, &some)); /* nothing is left over from run to run */
    ck_assert(same_double(all.loss_sum, some.loss_sum));
    bk_evaluator_destroy(e);
  }
  bk_evaluator *none = NULL;
  ck_assert_int_eq(bk_evaluator_create(m, 0, 16, &none), BK_ERR_ARGUMENT);
  unit_expect("evaluator: 0 sequences");
  ck_assert_ptr_null(none);
  bk_model_destroy(m);
  bk_dataset_close(data);
  bk_device_close(d);
}

START_TEST(test_evaluator) {
  check_evaluator("cpu", BK_F32, 1e-6);
  if (!quick()) check_evaluator("ref", BK_F64, 1e-12);
}
END_TEST

/* A step's validation loss is what an evaluator says right after it, at every eval_every-th step
 * and the last; training goes on as if there had been none. */
START_TEST(test_validation) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(5), without = recipe;
  recipe.eval_every = 2;
  recipe.gain_every = 3;
  run r = run_open("cpu", BK_F32, &c, &recipe), control = run_open("cpu", BK_F32, &c, &without);
  bk_evaluator *e = NULL;
  OK(bk_evaluator_create(r.model, recipe.batch_size, recipe.seq_len, &e));
  for (int s = 1; s <= 5; s++) {
    bk_metrics_row row = step(&r);
    bk_eval_result result;
    bk_metrics_row other = step(&control);
    ck_assert(same_double(row.loss, other.loss));
    /* of the training tokens alone */
    ck_assert_mem_eq(row.expert_load, other.expert_load, 2 * 6 * sizeof(double));
    ck_assert_int_eq(row.has_val, s % 2 == 0 || s == 5);
    ck_assert_int_eq(row.has_gain, s == 3 || s == 5);
    ck_assert((bk_trainer_gain(r.trainer) != NULL) == row.has_gain);
    if (row.has_gain) {
      ck_assert_int_eq(bk_trainer_gain(r.trainer)->tokens, 4 * 16);
      ck_assert_double_eq_tol(row.gain_forward, 1, 1e-5); /* row sums of mhc are 1 */
      ck_assert(same_double(row.gain_backward, bk_trainer_gain(r.trainer)->total_backward));
    }
    if (!row.has_val) continue;
    OK(bk_evaluator_run(e, r.val, 0, &result));
    ck_assert(same_double(row.val_loss, result.loss_sum / (double)result.tokens));
  }
  check_same(r.model, control.model, "validation");
  bk_evaluator_destroy(e);
  run_close(&r);
  run_close(&control);
}
END_TEST

/* ---- no allocation in a step after the first ---- */
static void check_allocations(const char *device, bk_dtype dtype, int kind) {
  bk_model_config c = text_config(kind);
  bk_train_config recipe = make_recipe(8);
  recipe.micro_batch_size = 2;
  recipe.gain_every = 2;
  recipe.eval_every = 3;
  recipe.hc_recompute = BK_RECOMPUTE_AUTO;
  run r = run_open(device, dtype, &c, &recipe);
  bk_metrics *metrics = NULL;
  bk_memory_stats before = {0}, after;
  uint64_t buffers = 0;
  OK(bk_metrics_open(ctx, unit_path("metrics.jsonl"), &metrics));
  for (int s = 1; s <= 8; s++) {
    bk_metrics_row row = step(&r);
    OK(bk_metrics_write(metrics, &row));
    if (s == 1) {
      bk_context_memory_stats(ctx, &before);
      buffers = r.device->buffer_allocs;
    }
    bk_context_memory_stats(ctx, &after);
    ck_assert_msg(before.allocations == after.allocations,
                  "%s, kind %d: step %d made %d allocations", device, kind, s,
                  (int)(after.allocations - before.allocations));
    ck_assert_uint_eq(r.device->buffer_allocs, buffers);
  }
  bk_metrics_close(metrics);
  run_close(&r);
}

START_TEST(test_no_allocation) {
  check_allocations("cpu", BK_F32, BK_HC_MHC);
  check_allocations("cpu", BK_BF16, BK_HC_MHC_LITE);
  check_allocations("cpu", BK_F32, BK_HC_PLAIN);
  check_allocations("ref", BK_F64, BK_HC_IHC);
}
END_TEST

/* ---- steps with the times of their parts ---- */

/* The same bits, and parts that are no longer than the whole. */
START_TEST(test_timed) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(3);
  recipe.micro_batch_size = 2;
  run r = run_open("cpu", BK_BF16, &c, &recipe), control = run_open("cpu", BK_BF16, &c, &recipe);
  ck_assert_int_eq(bk_trainer_warm_steps(r.trainer), 1);
  for (int s = 0; s < 3; s++) {
    bk_metrics_row row;
    bk_step_times times = {-1, -1, -1};
    double begin = bk_seconds();
    OK(bk_trainer_step_timed(r.trainer, &row, &times));
    double whole = bk_seconds() - begin;
    ck_assert(times.forward > 0 && times.backward > 0 && times.optimizer > 0);
    ck_assert(times.forward + times.backward + times.optimizer <= whole * (1 + 1e-9));
    ck_assert(same_double(row.loss, step(&control).loss));
  }
  check_same(r.model, control.model, "timed steps");
  r.device->props.captures = true; /* the second step is then captured */
  ck_assert_int_eq(bk_trainer_warm_steps(r.trainer), 2);
  r.device->props.captures = false;
  run_close(&r);
  run_close(&control);
}
END_TEST

START_TEST(test_timed_and_refused) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(3);
  run r = run_open("cpu", BK_F32, &c, &recipe);
  bk_metrics_row row;
  bk_step_times times = {-1, -2, -3};
  bk_tensor w = bk_param_weight(r.model, bk_model_find(r.model, "model.norm.weight"));
  double *values = read_tensor(r.model, w);
  values[0] = NAN;
  OK(bk_tensor_write_f64(r.model->stream, &w, values));
  ck_assert_int_eq(bk_trainer_step_timed(r.trainer, &row, &times), BK_ERR_NOT_FINITE);
  unit_expect("step 1: loss ");
  ck_assert(times.forward == -1 && times.backward == -2 && times.optimizer == -3);
  bk_free(ctx, values);
  run_close(&r);
}
END_TEST

/* ---- learning rates: of the recipe, and those that a step uses ---- */
START_TEST(test_learning_rates) {
  static const struct {
    int schedule;
    double after;
  } cases[] = {{BK_LR_STEP, 0.1}, {BK_LR_COSINE, 0.2}, {BK_LR_CONSTANT, 1}};
  bk_model_config c = text_config(BK_HC_PLAIN);
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_train_config recipe = make_recipe(10);
    recipe.lr = 8e-3;
    recipe.lr_schedule = cases[i].schedule;
    recipe.warmup_steps = 4;
    recipe.min_lr_ratio = 0.2;
    run r = run_open("cpu", BK_F32, &c, &recipe);
    for (int s = 1; s <= 10; s++) {
      double factor = s <= 4 ? s / 4.0 : 1;
      if (s > 4 && cases[i].schedule == BK_LR_STEP) factor = s == 10 ? 0.1 : s == 9 ? 0.316 : 1;
      if (s > 4 && cases[i].schedule == BK_LR_COSINE)
        factor = 0.2 + 0.8 * 0.5 * (1 + cos(acos(-1) * (s - 4) / 6));
      ck_assert_double_eq_tol(step(&r).lr, 8e-3 * factor, 1e-15);
    }
    ck_assert_double_eq_tol(bk_learning_rate(&recipe, 10), 8e-3 * cases[i].after, 1e-15);
    run_close(&r);
  }
}
END_TEST

/* ---- what is refused ---- */
START_TEST(test_refusals) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = make_recipe(2);
  bk_device *device = open_device("cpu", 1);
  bk_dataset *data = open_text(BK_SPLIT_VAL);
  bk_model *fixed = NULL, *part = NULL, *whole = NULL;
  bk_trainer *t = NULL;
  OK(bk_model_create(device, &c, BK_F32, NULL, &fixed));
  OK(bk_model_create(device, &c, BK_F32,
                     &(bk_model_options){.trainable = true, .n_chunks = 1, .chunks = {{2, 6}}},
                     &part));
  OK(bk_model_create(device, &c, BK_F32, &(bk_model_options){.trainable = true}, &whole));
  ck_assert_int_eq(bk_trainer_create(fixed, &recipe, data, NULL, &t), BK_ERR_ARGUMENT);
  unit_expect("trainable and whole");
  ck_assert_int_eq(bk_trainer_create(part, &recipe, data, NULL, &t), BK_ERR_ARGUMENT);
  unit_expect("trainable and whole");
  recipe.batch_size = 0;
  ck_assert_int_eq(bk_trainer_create(whole, &recipe, data, NULL, &t), BK_ERR_ARGUMENT);
  unit_expect("batch_size 0 and micro_batch_size 0");
  recipe.batch_size = 4;
  recipe.seq_len = bk_dataset_tokens(data);
  ck_assert_int_eq(bk_trainer_create(whole, &recipe, data, NULL, &t), BK_ERR_DATA);
  unit_expect("a sequence of seq_len");
  ck_assert_ptr_null(t);
  recipe.seq_len--;
  OK(bk_trainer_create(whole, &recipe, data, NULL, &t));
  bk_trainer_destroy(t);
  bk_model_destroy(fixed);
  bk_model_destroy(part);
  bk_model_destroy(whole);
  bk_dataset_close(data);
  bk_device_close(device);
}
END_TEST

UNIT_MAIN("trainer", unit_folder_open, unit_folder_close, test_learns, test_learns_on_ref,
          test_data_order, test_update, test_resume, test_micro_batches, test_recompute,
          test_not_finite, test_balance, test_evaluator, test_validation, test_no_allocation,
          test_timed, test_timed_and_refused, test_learning_rates, test_refusals)

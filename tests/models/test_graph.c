/* Steps as captured graphs, on a backend that captures: the same bits as call by call, every
 * program captured once and launched from then on, nothing of the host in a graph, failed
 * captures, lifetimes, no allocation in a launch. */
#include "tests/models/graph_device.h"
#include "tests/models/run.h"

#include "models/generator.h"
#include "models/model_priv.h"
#include "models/runner.h"
#include "models/trainer.h"
#include "models/watch.h"

static void graph_open(void) {
  unit_folder_open();
  OK(graph_backend_register(ctx, BK_OP_NONE));
}

/* What was captured is gone, and every capture was ended. */
static void graph_close(void) {
  ck_assert_int_eq(graphs.held, 0);
  ck_assert_int_eq(graphs.begun_and_not_ended, 0);
  unit_folder_close();
}

/* ---- rigs ---- */

static bk_train_config make_recipe(int64_t micro, int64_t recompute) {
  bk_train_config t = run_recipe(micro);
  t.eval_tokens = 0;
  t.hc_recompute = recompute;
  return t;
}

static run run_open(bool on, bool composed, bk_dtype dtype, const bk_model_config *c,
                    const bk_train_config *recipe) {
  bk_device *device = NULL;
  bk_device_options options = {
      .threads = 1, .no_graph = !on, .composed_only = composed, .allow_fallback = true};
  OK(bk_device_open(ctx, "graphs", &options, &device));
  return run_begin(device, small_text(), dtype, c, recipe);
}

static bool same_double(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

static void check_rows(const bk_metrics_row *a, const bk_metrics_row *b, const char *what) {
  ck_assert_msg(same_double(a->loss, b->loss) && same_double(a->grad_norm, b->grad_norm),
                "%s, step %d: loss %.17g and %.17g", what, (int)a->step, a->loss, b->loss);
  ck_assert(a->has_val == b->has_val && a->has_gain == b->has_gain);
  if (a->has_val) ck_assert(same_double(a->val_loss, b->val_loss));
  if (a->has_gain)
    ck_assert(same_double(a->gain_forward, b->gain_forward) &&
              same_double(a->gain_backward, b->gain_backward));
  for (int i = 0; i < a->n_layers * a->n_experts; i++)
    ck_assert(same_double(a->expert_load[i], b->expert_load[i]));
}

static bk_metrics_row step(run *r) {
  bk_metrics_row row;
  OK(bk_trainer_step(r->trainer, &row));
  return row;
}

static void step_both(run *with, run *without, const char *what) {
  bk_metrics_row a = step(with), b = step(without);
  check_rows(&a, &b, what);
}

/* ---- training ---- */

/* The programs of a step, a graph each: forward, the optimiser's two, and of loss and backward one
 * for the first micro-batch and one for those after it. */
static int graphs_of_a_step(int64_t micro) { return 3 + 2 * (int)(2 / micro); }
/* What so many steps launch as graphs: each program but the first time that it runs. */
static int launches_of_steps(int64_t micro, int steps) {
  return steps * (3 * (int)(2 / micro) + 2) - graphs_of_a_step(micro);
}

static void check_training(int kind, bk_dtype dtype, bool composed, int64_t micro,
                           int64_t recompute) {
  bk_model_config c = small_config(kind);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(micro, recompute);
  char what[96];
  snprintf(what, sizeof what, "kind %d, %s%s, micro-batch %d, recompute %d", kind,
           bk_dtype_name(dtype), composed ? " composed" : "", (int)micro, (int)recompute);
  graphs = (graph_counts){0};
  run with = run_open(true, composed, dtype, &c, &recipe),
      without = run_open(false, composed, dtype, &c, &recipe);
  step_both(&with, &without, what);
  int forward = graphs.noted; /* with two micro-batches, it has run twice */
  ck_assert_int_eq(forward > 0, micro == 1);
  for (int s = 2; s <= 5; s++) step_both(&with, &without, what);
  check_same_params(with.model, without.model, what);
  ck_assert_msg(graphs.captures == graphs_of_a_step(micro) && graphs.held == graphs.captures,
                "%s: %d captures, %d graphs", what, graphs.captures, graphs.held);
  ck_assert_msg(graphs.replays == launches_of_steps(micro, 5), "%s: %d launches of graphs", what,
                graphs.replays);
  int calls = graphs.calls, replayed = graphs.replayed;
  step(&with);
  /* the loads are zeroed with the step block; each micro-batch's loss is kept, its field zeroed */
  ck_assert_msg(graphs.calls == calls + 1 + 2 * (int)(2 / micro), "%s: %d calls beside the graphs",
                what, graphs.calls - calls);
  ck_assert_msg(graphs.replayed - replayed == graphs.noted + forward,
                "%s: graphs do %d things, %d were noted", what, graphs.replayed - replayed,
                graphs.noted);
  run_close(&with);
  run_close(&without);
}

START_TEST(same_bits) {
  for (size_t k = 0; k < BK_COUNT(kinds); k++)
    for (int64_t micro = 1; micro <= 2; micro++) {
      check_training(kinds[k], BK_F32, false, micro, 0);
      check_training(kinds[k], BK_F32, false, micro, BK_RECOMPUTE_AUTO);
    }
  check_training(BK_HC_MHC, BK_F32, true, 1, BK_RECOMPUTE_AUTO);
  check_training(BK_HC_MHC_LITE, BK_F32, true, 1, 0);
  check_training(BK_HC_MHC, BK_BF16, false, 1, BK_RECOMPUTE_AUTO);
}
END_TEST

/* The preset as it is trained, with validation and gains between the steps. */
START_TEST(preset_with_all_between) {
  bk_model_config c;
  bk_train_config recipe;
  OK(bk_model_preset(ctx, "tiny", &c, &recipe));
  recipe = make_recipe(1, BK_RECOMPUTE_AUTO);
  recipe.seq_len = 24;
  recipe.gain_every = 2;
  recipe.eval_every = 3;
  run with = run_open(true, false, BK_F32, &c, &recipe),
      without = run_open(false, false, BK_F32, &c, &recipe);
  for (int s = 1; s <= 7; s++) step_both(&with, &without, "tiny");
  check_same_params(with.model, without.model, "tiny");
  int64_t windows = bk_dataset_eval_windows(with.data, recipe.seq_len);
  ck_assert_int_gt(windows, 2);
  ck_assert_int_eq(graphs.captures, graphs_of_a_step(1) + 1);
  /* of each of the two validations, the forward pass and the head */
  ck_assert_int_eq(graphs.replays, launches_of_steps(1, 7) + 4 * (int)windows - 1);
  run_close(&with);
  run_close(&without);
}
END_TEST

START_TEST(off) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(1, 0);
  run r = run_open(false, false, BK_F32, &c, &recipe);
  for (int s = 0; s < 4; s++) step(&r);
  ck_assert(graphs.captures == 0 && graphs.replays == 0);
  run_close(&r);
}
END_TEST

START_TEST(no_allocation) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(1, BK_RECOMPUTE_AUTO);
  bk_memory_stats before, after;
  run r = run_open(true, false, BK_F32, &c, &recipe);
  for (int s = 0; s < 2; s++) step(&r);
  bk_context_memory_stats(ctx, &before);
  uint64_t buffers = r.device->buffer_allocs;
  int replays = graphs.replays;
  for (int s = 0; s < 3; s++) step(&r);
  bk_context_memory_stats(ctx, &after);
  ck_assert_int_eq(graphs.replays - replays, 3 * 8);
  ck_assert_uint_eq(after.allocations, before.allocations);
  ck_assert_uint_eq(r.device->buffer_allocs, buffers);
  run_close(&r);
}
END_TEST

/* A step that is refused is looked at call by call; once the weight is mended the graphs go on,
 * with the same bits. */
START_TEST(diagnosis_runs_call_by_call) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(1, BK_RECOMPUTE_AUTO);
  run with = run_open(true, false, BK_F32, &c, &recipe),
      without = run_open(false, false, BK_F32, &c, &recipe);
  run *both[] = {&with, &without};
  for (int s = 0; s < 3; s++) step_both(&with, &without, "before");
  int captures = graphs.captures, held = graphs.held;
  for (int i = 0; i < 2; i++) {
    bk_tensor w = bk_param_weight(
        both[i]->model, bk_model_find(both[i]->model, "model.layers.1.self_attn.o_proj.weight"));
    float *x = bk_tensor_data(&w), was = x[5];
    bk_metrics_row row;
    x[5] = INFINITY;
    ck_assert_int_eq(bk_trainer_step(both[i]->trainer, &row), BK_ERR_NOT_FINITE);
    unit_expect(
        "not finite, first of all: weight model.layers.1.self_attn.o_proj.weight (inf at element "
        "5");
    ck_assert(bk_trainer_refusal(both[i]->trainer)->in_forward &&
              bk_trainer_refusal(both[i]->trainer)->again);
    x[5] = was;
  }
  for (int s = 0; s < 4; s++) step_both(&with, &without, "after");
  check_same_params(with.model, without.model, "after");
  ck_assert(graphs.captures == captures && graphs.held == held);
  run_close(&with);
  run_close(&without);
}
END_TEST

/* ---- evaluation and generation ---- */

START_TEST(evaluation) {
  bk_model_config c = small_config(BK_HC_MHC_LITE);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(1, 0);
  bk_eval_result results[2];
  for (int on = 0; on < 2; on++) {
    run r = run_open(on, false, BK_F32, &c, &recipe);
    bk_evaluator *e = NULL;
    OK(bk_evaluator_create(r.model, 2, 16, &e));
    OK(bk_evaluator_run(e, r.data, 0, &results[on]));
    int64_t runs = (bk_dataset_eval_windows(r.data, 16) + 1) / 2;
    ck_assert_int_eq(graphs.replays, on ? 2 * ((int)runs - 1) : 0);
    ck_assert_int_eq(graphs.held, on ? 2 : 0); /* the forward pass, the head */
    bk_evaluator_destroy(e);
    ck_assert_int_eq(graphs.held, 0);
    run_close(&r);
  }
  ck_assert(same_double(results[0].loss_sum, results[1].loss_sum) &&
            results[0].tokens == results[1].tokens);
}
END_TEST

START_TEST(decoding_is_not_captured) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(1, 0);
  run r = run_open(true, false, BK_F32, &c, &recipe);
  bk_generator *g = NULL;
  OK(bk_generator_create(r.model, 40, &g));
  OK(bk_generator_feed(g, (int32_t[40]){1, 2, 3}, 40));
  ck_assert(graphs.captures == 0 && graphs.calls > 0);
  bk_generator_destroy(g);
  run_close(&r);
}
END_TEST

/* ---- programs in any order ---- */

static rig rig_of(bool on, int slots) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_device_options options = {.threads = 1, .no_graph = !on};
  rig r = {0};
  OK(bk_device_open(ctx, "graphs", &options, &r.device));
  OK(bk_model_create(r.device, &c, BK_F32, &(bk_model_options){.trainable = true}, &r.model));
  OK(bk_model_init(r.model, 7));
  enliven(r.model, 11);
  OK(bk_runner_create(
      r.model, &(bk_runner_options){.batch = 1, .seq_len = 10, .slots = slots, .backward = true},
      &r.runner));
  return r;
}

typedef enum act { FORWARD_0, FORWARD_1, BACKWARD_0, BACKWARD_1, EVALUATE, LOGITS, END } act;

static void do_act(rig *r, act a, const int32_t *ids, const int32_t *targets) {
  switch (a) {
    case FORWARD_0:
    case FORWARD_1:
      OK(bk_runner_forward(r->runner, a - FORWARD_0, ids + 10 * (a - FORWARD_0),
                           targets + 10 * (a - FORWARD_0)));
      break;
    case BACKWARD_0:
    case BACKWARD_1: OK(bk_runner_backward(r->runner, a - BACKWARD_0)); break;
    case EVALUATE: OK(bk_runner_evaluate(r->runner, 0, ids, targets)); break;
    case LOGITS: OK(bk_runner_forward(r->runner, 1, ids, NULL)); break;
    case END: break;
  }
}

/* Each line is a step. Two slots forward before two backward, in either order, as in a pipeline,
 * and what nobody does on purpose: a forward that no backward follows, a backward done twice. */
START_TEST(any_order_as_call_by_call) {
  static const act steps[][12] = {
      {FORWARD_0, FORWARD_1, BACKWARD_0, BACKWARD_1, END},
      {EVALUATE, FORWARD_0, FORWARD_1, BACKWARD_0, BACKWARD_1, LOGITS, END},
      {FORWARD_1, BACKWARD_1, FORWARD_0, BACKWARD_0, END},
      {FORWARD_0, FORWARD_0, BACKWARD_0, BACKWARD_0, END},
      {FORWARD_0, FORWARD_1, BACKWARD_1, BACKWARD_0, END},
      {FORWARD_1, END},
      {EVALUATE, FORWARD_0, FORWARD_1, BACKWARD_0, BACKWARD_1, LOGITS, END},
  };
  int32_t ids[20], targets[20];
  int64_t kept = make_tokens(23, 20, 3, ids, targets);
  rig with = rig_of(true, 2), without = rig_of(false, 2);
  for (size_t s = 0; s < 4 * BK_COUNT(steps); s++) {
    char what[64];
    begin_step(with.model, kept);
    begin_step(without.model, kept);
    for (int i = 0; steps[s / 4][i] != END; i++) {
      snprintf(what, sizeof what, "step %d, act %d", (int)s, i);
      do_act(&with, steps[s / 4][i], ids, targets);
      do_act(&without, steps[s / 4][i], ids, targets);
    }
    ck_assert(same_double(end_step(with.model, kept), end_step(without.model, kept)));
    check_same_params(with.model, without.model, what);
  }
  ck_assert_int_gt(graphs.replays, 60);
  rig_close(&with);
  rig_close(&without);
}
END_TEST

/* ---- lifetimes ---- */

START_TEST(ends_with_its_owner) {
  int32_t ids[20], targets[20];
  int64_t kept = make_tokens(23, 20, 3, ids, targets);
  rig r = rig_of(true, 2);
  bk_optimizer *o = NULL;
  OK(bk_optimizer_create(r.model, &(bk_optimizer_options){0.9, 0.95, 1e-8, 0.1, 0}, &o));
  for (int s = 0; s < 3; s++) {
    static const act acts[] = {FORWARD_0, FORWARD_1, BACKWARD_0, BACKWARD_1};
    begin_step(r.model, kept);
    for (size_t i = 0; i < BK_COUNT(acts); i++) do_act(&r, acts[i], ids, targets);
    OK(bk_optimizer_step(o));
    end_step(r.model, kept);
  }
  /* forward, loss and backward in two slots, the optimiser */
  ck_assert_int_eq(graphs.held, 8);
  bk_runner_destroy(r.runner);
  ck_assert_int_eq(graphs.held, 2);
  bk_optimizer_destroy(o);
  ck_assert_int_eq(graphs.held, 0);
  /* another runner of the same model has its own */
  OK(bk_runner_create(r.model,
                      &(bk_runner_options){.batch = 1, .seq_len = 10, .slots = 1, .backward = true},
                      &r.runner));
  for (int s = 0; s < 3; s++) run_step(&r, ids, targets, kept);
  ck_assert_int_eq(graphs.held, 3);
  rig_close(&r);
}
END_TEST

/* ---- captures that fail ---- */

static void check_failure(graph_counts how, const char *reason) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(1, BK_RECOMPUTE_AUTO);
  run with = run_open(true, false, BK_F32, &c, &recipe),
      without = run_open(false, false, BK_F32, &c, &recipe);
  graphs = how;
  for (int s = 0; s < 4; s++) step_both(&with, &without, reason);
  ck_assert_int_eq(unit_errors(), 0);
  ck_assert_msg(strchr(unit_messages, '\n') == strrchr(unit_messages, '\n'),
                "more than one line:\n%s", unit_messages);
  unit_expect(reason);
  check_same_params(with.model, without.model, reason);
  ck_assert_int_eq(graphs.begun_and_not_ended, 0);
  if (!how.refuse_launch) {
    ck_assert_int_eq(graphs.captures, graphs_of_a_step(1)); /* each is tried once */
    ck_assert(graphs.held == 0 && graphs.replays == 0);
  }
  run_close(&with);
  run_close(&without);
}

START_TEST(failed_captures) {
  static const char *const head =
      "warning: the forward pass cannot be captured as a graph and runs call by call: ";
  char text[256];
  snprintf(text, sizeof text, "%sgraphs: no capture today", head);
  check_failure((graph_counts){.refuse_begin = true}, text);
  snprintf(text, sizeof text, "%sgraphs: the capture is not valid", head);
  check_failure((graph_counts){.refuse_end = true}, text);
  snprintf(text, sizeof text, "%sthere is no graph", head);
  check_failure((graph_counts){.lose = true}, text);
}
END_TEST

/* A launch at the beginning and in the middle of a walk. */
START_TEST(failed_launches) {
  static const struct {
    int at;
    const char *walk;
  } cases[] = {{1, "the forward pass"}, {30, "the forward pass"}, {110, "the backward pass"}};
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    char text[256];
    snprintf(text, sizeof text,
             "warning: %s cannot be captured as a graph and runs call by call: graphs: this launch "
             "cannot be captured",
             cases[i].walk);
    check_failure((graph_counts){.refuse_launch = cases[i].at}, text);
  }
}
END_TEST

/* An op that runs on another device waits for it: passes with it cannot be captured, the rest of
 * the step can. */
START_TEST(op_on_another_device) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = 257;
  bk_train_config recipe = make_recipe(2, 0);
  OK(graph_backend_register(ctx, BK_OP_SWIGLU));
  run with = run_open(true, false, BK_F32, &c, &recipe),
      without = run_open(false, false, BK_F32, &c, &recipe);
  unit_expect("graphs has no kernel for swiglu: it runs on cpu");
  step_both(&with, &without, "fallback");
  unit_expect(NULL);
  step_both(&with, &without, "fallback");
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(
      "warning: the forward pass cannot be captured as a graph and runs call by call: graphs: a "
      "sync during a capture");
  step_both(&with, &without, "fallback");
  check_same_params(with.model, without.model, "fallback");
  ck_assert(graphs.captures == graphs_of_a_step(2) && graphs.held == 3);
  run_close(&with);
  run_close(&without);
}
END_TEST

/* ---- walks that do what they may not ---- */

typedef struct strange {
  bk_model *model;
  int what, runs;
} strange;

static bk_status strange_walk(void *arg) {
  strange *s = arg;
  bk_model *m = s->model;
  const bk_stream_ops *ops = m->stream->ops;
  bk_place place = {m->step.buffer, m->step.offset};
  bool done;
  float x = 1;
  s->runs++;
  switch (s->what) {
    case 0: return ops->upload(m->stream, place, &x, sizeof x);
    case 1: return ops->download(m->stream, &x, place, sizeof x);
    case 2: return ops->sync(m->stream);
    case 3: return ops->query(m->stream, &done);
    default: return bk_fail(m->ctx, BK_ERR_ARGUMENT, "a walk that always fails");
  }
}

static bk_graph strange_graph(bk_model *m) {
  return (bk_graph){
      .stream = m->stream, .name = "a strange walk", .warned = &m->parts->graph_warned};
}

START_TEST(host_in_a_walk) {
  static const char *const said[] = {"graphs: an upload during a capture", "graphs: a download",
                                     "graphs: a sync", "graphs: a query"};
  for (int i = 0; i < 4; i++) {
    rig r = rig_of(true, 1);
    strange s = {r.model, i, 0};
    bk_graph g = strange_graph(r.model);
    for (int n = 1; n <= 4; n++) {
      OK(bk_graph_run(&g, true, strange_walk, &s));
      ck_assert_int_eq(s.runs, n + (n > 1)); /* the second time twice: in vain, then call by call */
      if (n == 2) unit_expect(said[i]);
      unit_expect(NULL);
    }
    bk_graph_fini(&g);
    rig_close(&r);
  }
}
END_TEST

/* An error of the walk itself is the walk's, once. */
START_TEST(error_in_a_walk) {
  rig r = rig_of(true, 1);
  strange s = {r.model, 0, 0};
  bk_graph g = strange_graph(r.model);
  OK(bk_graph_run(&g, true, strange_walk, &s));
  s.what = 4;
  r.model->parts->graph_warned = true;
  ck_assert_int_eq(bk_graph_run(&g, true, strange_walk, &s), BK_ERR_ARGUMENT);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("a walk that always fails");
  bk_graph_fini(&g);
  rig_close(&r);
}
END_TEST

UNIT_MAIN("graph", graph_open, graph_close, same_bits, preset_with_all_between, off, no_allocation,
          diagnosis_runs_call_by_call, evaluation, decoding_is_not_captured,
          any_order_as_call_by_call, ends_with_its_owner, failed_captures, failed_launches,
          op_on_another_device, host_in_a_walk, error_in_a_walk)

/* Training in pipelines against one process that runs the same micro-batches: losses, gradients,
 * weights, masters and moments, loads, gain and validation, to the bit. Only DualPipe adds the
 * gradients of its two streams up in another order. */
#include "tests/models/models.h"

#include "models/pipeline.h"
#include "models/shards.h"
#include "tests/models/pipes.h"

enum { MICROS = 8, LAYERS = 4, SUBLAYERS = 2 * LAYERS };

/* ---- what is run ---- */

/* Stages of one sublayer each with dualpipev on four ranks. */
static pipes_spec make_spec(const bk_backend *backend, bk_dtype dtype, int kind, int steps) {
  pipes_spec s = {.backend = backend,
                  .dtype = dtype,
                  .config = text_config(kind),
                  .pp = 1,
                  .dp = 1,
                  .steps = steps};
  s.config.num_hidden_layers = LAYERS;
  s.config.hc_sinkhorn_iters = 5;
  bk_train_config_default(&s.recipe);
  s.recipe.steps = s.steps;
  s.recipe.batch_size = MICROS;
  s.recipe.micro_batch_size = 1;
  s.recipe.seq_len = 4;
  s.recipe.lr = 5e-3;
  s.recipe.warmup_steps = 2;
  s.recipe.router_bias_lr = 1e-2;
  s.recipe.gain_every = s.recipe.eval_every = s.steps > 3 ? 4 : s.steps;
  s.recipe.eval_tokens = 0;
  return s;
}

typedef struct plan {
  const char *schedule;
  int pp;
  const char *stages;
} plan;

static void describe(const pipes_spec *s, char *what, size_t size) {
  snprintf(what, size,
           "%s, %s, kind %d, %s, pp %d, dp %d, stages %s, hc_recompute %d, recompute %d",
           s->backend->name, bk_dtype_name(s->dtype), s->config.residual, s->schedule, s->pp, s->dp,
           s->stages ? s->stages : "as computed", (int)s->recipe.hc_recompute, s->recipe.recompute);
}

static void check_plan(pipes_spec s, const plan *plan, const pipes *one, const char *text) {
  char what[256];
  s.schedule = plan->schedule;
  s.pp = plan->pp;
  s.stages = plan->stages;
  describe(&s, what, sizeof what);
  pipes *p = pipes_run(ctx, &s, text);
  pipes_check_equal(p, one, strcmp(plan->schedule, "dualpipe") ? 0 : 1e-12, what);
  for (int r = 0; s.steps && r < s.pp * s.dp; r++) {
    ck_assert(p->out[r].rows[0].has_comm == (s.pp * s.dp > 1));
    ck_assert(p->out[r].loads > 0);
  }
  pipes_free(p);
}

/* One process, or dp ranks without pipelines, and then each plan. */
static void check_plans(const pipes_spec *s, const plan *plans, size_t n) {
  char name[256];
  snprintf(name, sizeof name, "%s", path_of_text());
  pipes *one = pipes_run(ctx, s, name);
  pipes_check_ended(one, "without pipelines");
  for (size_t i = 0; i < n; i++) check_plan(*s, &plans[i], one, name);
  pipes_free(one);
}

static const plan all_plans[] = {
    {"dualpipev", 4, NULL}, {"zb1p", 2, NULL},       {"1f1b", 4, NULL}, {"dualpipev", 2, NULL},
    {"dualpipe", 4, NULL},  {"zb1p", 4, NULL},       {"1f1b", 2, NULL}, {"dualpipe", 2, NULL},
    {"dualpipev", 1, NULL}, {"sequential", 1, NULL}, {"1f1b", 1, NULL},
};
enum { PLANS = BK_COUNT(all_plans) };

/* ---- numbers ---- */

START_TEST(test_kinds) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    pipes_spec s = make_spec(&bk_backend_ref, BK_F64, kinds[i], thorough() ? PIPES_STEPS : 3);
    if (thorough()) check_plans(&s, all_plans, PLANS);
    else check_plans(&s, &all_plans[i], quick() ? 1 : 2);
  }
}
END_TEST

START_TEST(test_twenty_steps) {
  pipes_spec s = make_spec(&bk_backend_ref, BK_F64, BK_HC_MHC, quick() ? 5 : PIPES_STEPS);
  check_plans(&s, all_plans, thorough() ? PLANS : quick() ? 1 : 2);
}
END_TEST

static void check_cpu(bk_dtype dtype, size_t first) {
  static const plan some[] = {{"1f1b", 4, NULL},      {"dualpipev", 2, NULL}, {"zb1p", 2, NULL},
                              {"dualpipev", 4, NULL}, {"1f1b", 2, NULL},      {"zb1p", 4, NULL},
                              {"dualpipev", 1, NULL}, {"sequential", 1, NULL}};
  for (size_t k = 0; k < (thorough() ? BK_COUNT(kinds) : 1); k++) {
    int kind = thorough() ? kinds[k] : BK_HC_MHC;
    pipes_spec s = make_spec(&bk_backend_cpu, dtype, kind, quick() ? 5 : PIPES_STEPS);
    if (thorough()) check_plans(&s, some, BK_COUNT(some));
    else check_plans(&s, &some[first], quick() ? 1 : 2);
  }
}

START_TEST(test_cpu) { check_cpu(BK_F32, 0); }
END_TEST

START_TEST(test_cpu_bf16) { check_cpu(BK_BF16, 2); }
END_TEST

/* Streams and F made again in the backward pass: the bits of a step that keeps everything. */
static void check_recompute(int kind, int first, int by) {
  static const int64_t blocks[] = {0, BK_RECOMPUTE_AUTO, 3};
  static const plan cut[] = {{"zb1p", 2, "3,5"},
                             {"dualpipev", 2, "1,3,2,2"},
                             {"1f1b", 4, NULL},
                             {"dualpipev", 4, NULL},
                             {"dualpipe", 2, "5,3"}};
  enum { FORMS = BK_RECOMPUTE_F_ALL + 1, ALL = BK_COUNT(blocks) * FORMS };
  pipes_spec s = make_spec(&bk_backend_ref, BK_F64, kind, 2);
  char name[256];
  snprintf(name, sizeof name, "%s", path_of_text());
  s.recipe.hc_recompute = 0;
  pipes *one = pipes_run(ctx, &s, name);
  for (int at = first; at < ALL; at += by) {
    s.recipe.hc_recompute = blocks[at / FORMS];
    s.recipe.recompute = at % FORMS;
    for (size_t i = 0; i < BK_COUNT(cut); i++)
      if (i == (size_t)at % BK_COUNT(cut) || (thorough() && i == (size_t)(at + 2) % BK_COUNT(cut)))
        check_plan(s, &cut[i], one, name);
  }
  pipes_free(one);
}

START_TEST(test_recompute) {
  check_recompute(BK_HC_MHC, 0, thorough() ? 1 : quick() ? 5 : 2);
  for (size_t k = 0; k < BK_COUNT(kinds) && !quick(); k++)
    check_recompute(kinds[k], thorough() ? 0 : 5 + 2 * ((int)k % 3), thorough() ? 1 : 6);
}
END_TEST

/* Cuts between attention and feed-forward, and stages that differ much. */
START_TEST(test_cuts) {
  static const plan cut[] = {{"1f1b", 2, "1,7"},          {"1f1b", 2, "7,1"},
                             {"zb1p", 4, "1,1,1,5"},      {"1f1b", 4, "2,3,1,2"},
                             {"dualpipev", 2, "1,1,5,1"}, {"dualpipe", 4, "3,1,1,3"}};
  static const int some[] = {BK_HC_MHC, BK_HC_IHC}; /* with one there is more than streams */
  for (size_t k = 0; k < BK_COUNT(some); k++) {
    pipes_spec s = make_spec(&bk_backend_ref, BK_F64, some[k], 2);
    s.recipe.merge_stream = k == 0;
    if (thorough()) check_plans(&s, cut, BK_COUNT(cut));
    else check_plans(&s, &cut[3 * k], 3);
  }
}
END_TEST

/* Beside each other: the numbers of as many ranks without pipelines. */
START_TEST(test_two_pipelines) {
  static const plan some[] = {{"1f1b", 2, NULL},    {"zb1p", 2, NULL},      {"dualpipev", 2, NULL},
                              {"1f1b", 4, NULL},    {"dualpipev", 4, NULL}, {"dualpipe", 2, NULL},
                              {"dualpipe", 4, NULL}};
  pipes_spec s = make_spec(&bk_backend_ref, BK_F64, BK_HC_MHC, thorough() ? PIPES_STEPS : 3);
  s.dp = 2;
  s.recipe.batch_size = 2 * MICROS;
  check_plans(&s, some, quick() ? 3 : BK_COUNT(some));
  s = make_spec(&bk_backend_cpu, BK_BF16, BK_HC_MHC, thorough() ? PIPES_STEPS : 3);
  s.dp = 2;
  s.recipe.batch_size = 2 * MICROS;
  check_plans(&s, some, quick() ? 1 : 3);
}
END_TEST

/* A profile changes no bit, counts all messages between stages, and takes memory in no step. */
START_TEST(test_profile) {
  static const plan some[] = {{"dualpipev", 2, NULL}, {"zb1p", 4, NULL}};
  pipes_spec s = make_spec(&bk_backend_cpu, BK_F32, BK_HC_MHC, 4);
  char name[256];
  snprintf(name, sizeof name, "%s", path_of_text());
  pipes *one = pipes_run(ctx, &s, name);
  for (size_t i = 0; i < BK_COUNT(some); i++) {
    s.schedule = some[i].schedule;
    s.pp = some[i].pp;
    s.profiled = true;
    pipes *p = pipes_run(ctx, &s, name);
    pipes_check_equal(p, one, 0, "profiled");
    for (int r = 0; r < s.pp; r++) {
      const pipes_outcome *o = &p->out[r];
      ck_assert(o->messages > 0 && o->exchange.bytes > 0 && o->exchange.busy_s > 0);
      ck_assert_double_eq(o->exchange.calls, o->messages);
    }
    pipes_free(p);
  }
  pipes_free(one);
}
END_TEST

/* ---- schedules of others ---- */

/* Adds "0F0 0F1" and the like to a line: one pass through a chunk of n micro-batches from `first`
 * on; with I each has its W at once. */
static void add_passes(char *line, size_t size, int chunk, char kind, int first, int n) {
  for (int m = first; m < first + n; m++) {
    size_t used = strlen(line);
    snprintf(line + used, size - used, "%s%d%c%d", used ? " " : "", chunk, kind, m);
    used = strlen(line);
    if (kind == 'I') snprintf(line + used, size - used, " %dW%d", chunk, m);
  }
}

/* All forward and then all backward, `block` micro-batches at a time through the chunks in their
 * order and back. */
static const char *write_schedule(const char *stages, int ranks, int chunks, int block, char back) {
  const char *path = unit_path("schedule.json");
  char line[1024] = "", text[4096];
  for (int pass = 0; pass < 2; pass++)
    for (int m = 0; m < MICROS; m += block)
      for (int c = 0; c < chunks; c++)
        add_passes(line, sizeof line, pass ? chunks - 1 - c : c, pass ? back : 'F', m, block);
  size_t used = (size_t)snprintf(
      text, sizeof text, "{\"schedule\": \"of-others\", \"stages\": %s, \"ranks\": [", stages);
  for (int r = 0; r < ranks; r++)
    used += (size_t)snprintf(text + used, sizeof text - used, "%s\"%s\"", r ? ", " : "", line);
  used += (size_t)snprintf(text + used, sizeof text - used, "]}");
  OK(bk_file_write_atomic(ctx, path, text, used));
  return path;
}

/* GPipe, and a ring of two ranks with two stages each. */
START_TEST(test_file) {
  static const struct {
    const char *stages;
    int ranks, chunks, block;
    char back;
  } cases[] = {{"[[0],[1],[2]]", 3, 1, MICROS, 'B'},
               {"[[0],[1]]", 2, 1, MICROS, 'I'},
               {"[[0,2],[1,3]]", 2, 2, 2, 'B'},
               {"[[0,2],[1,3]]", 2, 2, 2, 'I'},
               {"[[1],[0]]", 2, 1, MICROS, 'B'}};
  pipes_spec s = make_spec(&bk_backend_ref, BK_F64, BK_HC_MHC, thorough() ? PIPES_STEPS : 2);
  for (size_t i = quick() ? 2 : 0; i < BK_COUNT(cases); i += quick() ? 2 : 1) {
    char path[256];
    snprintf(path, sizeof path, "%s",
             write_schedule(cases[i].stages, cases[i].ranks, cases[i].chunks, cases[i].block,
                            cases[i].back));
    check_plans(&s, &(plan){path, cases[i].ranks, NULL}, 1);
  }
}
END_TEST

/* ---- what each rank keeps ---- */

/* Elements of masters and moments by the sublayer that they belong to, behind the embedding. */
static void count_state(const bk_model *m, int64_t *counts, bool slices) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    const bk_param_block *b = &m->blocks[p->block];
    bk_tensor w = bk_param_weight(m, p);
    if (!b->trainable) continue;
    if (!slices) counts[b->sublayer + 1] += bk_tensor_count(&w);
    else
      for (bk_slice s = {0}; bk_param_next_slice(m, p, &s);) {
        ck_assert_int_eq(bk_tensor_count(&s.m), s.count);
        ck_assert_int_eq(bk_tensor_count(&s.v), s.count);
        counts[b->sublayer + 1] += s.count;
      }
  }
}

static bk_model *plan_model(bk_device *device, const bk_model_config *c, bk_pipeline *layout) {
  bk_model *m = NULL;
  OK(bk_model_create(device, c, BK_BF16,
                     &(bk_model_options){.trainable = true, .plan_only = true, .pipeline = layout},
                     &m));
  return m;
}

/* Of each sublayer of its stages a rank has its share, and of others nothing. */
static void check_shares(bk_device *device, const bk_model_config *c, const bk_schedule *schedule,
                         int rank, int ranks, int sharers) {
  int64_t own[64] = {0}, whole[64] = {0}, all = 2 * c->num_hidden_layers;
  bk_pipeline *layout = NULL;
  bk_pipeline_options o = {.schedule = schedule, .seq_len = 64, .rank = rank, .ranks = ranks};
  OK(bk_pipeline_create(ctx, NULL, c, &o, &layout));
  bk_model *m = plan_model(device, c, layout), *w = plan_model(device, c, NULL);
  count_state(m, own, true);
  count_state(w, whole, false);
  int held = 0;
  for (int64_t s = -1; s <= all; s++) {
    bool holds = false;
    for (int k = 0; k < m->options.n_chunks; k++) {
      const bk_chunk_range *range = &m->options.chunks[k];
      holds |= s >= range->begin && s < range->end;
      holds |= (s == -1 && range->begin == 0) || (s == all && range->end == all);
    }
    double share = (double)own[s + 1] / (double)whole[s + 1];
    held += holds;
    ck_assert_msg(holds ? fabs(share * sharers - 1) < 0.05 : own[s + 1] == 0,
                  "%s: rank %d of %d has %.4f of sublayer %d", schedule->name, rank, ranks, share,
                  (int)s);
  }
  ck_assert_int_gt(held, 0);
  bk_model_destroy(w);
  bk_model_destroy(m);
  bk_pipeline_destroy(layout);
}

START_TEST(test_shares) {
  static const struct {
    const char *schedule;
    int pp, dp, sharers;
  } cases[] = {{"dualpipe", 2, 1, 2}, {"dualpipe", 4, 2, 4},  {"dualpipe", 4, 3, 6},
               {"1f1b", 4, 2, 2},     {"dualpipev", 2, 4, 4}, {"zb1p", 2, 1, 1}};
  bk_model_config c;
  bk_train_config unused;
  bk_device *device = open_device("cpu", 1);
  OK(bk_model_preset(ctx, "tiny", &c, &unused));
  c.num_hidden_layers = c.num_hidden_layers < 4 ? 4 : c.num_hidden_layers;
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_schedule *schedule = NULL;
    int ranks = cases[i].pp * cases[i].dp;
    OK(bk_schedule_create(ctx, cases[i].schedule, cases[i].pp, 2 * cases[i].pp + 2, &schedule));
    for (int r = 0; r < ranks; r++) check_shares(device, &c, schedule, r, ranks, cases[i].sharers);
    bk_schedule_destroy(ctx, schedule);
  }
  bk_device_close(device);
}
END_TEST

/* ---- layouts that are refused ---- */

/* Every rank says why, before anything runs. */
static void check_layout(const pipes_spec *s, const char *says) {
  pipes *p = pipes_run(ctx, s, path_of_text());
  for (int r = 0; r < p->all.size; r++) {
    ck_assert_int_eq(p->out[r].status, BK_ERR_ARGUMENT);
    ck_assert_msg(strstr(p->all.rank[r].messages, says) != NULL, "rank %d, not \"%s\": %s", r, says,
                  p->all.rank[r].messages);
  }
  pipes_free(p);
}

/* Two streams, each all forward and all back. */
static const char *write_streams(const char *stages, int ranks) {
  const char *path = unit_path("streams.json"), *line = "0F0 0F1 0B0 0B1 1F0 1F1 1B0 1B1";
  char text[1024];
  size_t used = (size_t)snprintf(text, sizeof text,
                                 "{\"schedule\": \"two\", \"streams\": [0, 1], \"stages\": %s, "
                                 "\"ranks\": [\"%s\"",
                                 stages, line);
  for (int r = 1; r < ranks; r++)
    used += (size_t)snprintf(text + used, sizeof text - used, ", \"%s\"", line);
  used += (size_t)snprintf(text + used, sizeof text - used, "]}");
  OK(bk_file_write_atomic(ctx, path, text, used));
  return path;
}

START_TEST(test_layouts) {
  pipes_spec s = make_spec(&bk_backend_cpu, BK_F32, BK_HC_MHC, 1);
  char path[256];
  snprintf(path, sizeof path, "%s", write_schedule("[[0],[1]]", 2, 1, MICROS, 'B'));
  s.schedule = path;
  s.pp = 3;
  check_layout(&s, "pipelines of 2 ranks: there are 3 ranks, which is no multiple of it");
  s.pp = 2;
  s.recipe.batch_size = MICROS - 2;
  check_layout(&s,
               "of-others is made for 8 micro-batches; batch_size 6 in 1 pipelines and "
               "micro-batches of 1 sequences makes 6");
  s.recipe.batch_size = 15;
  s.recipe.micro_batch_size = 2;
  check_layout(&s, "makes 8, the last of fewer sequences");
  s.recipe.batch_size = 4;
  s.recipe.micro_batch_size = 1;
  snprintf(path, sizeof path, "%s", write_streams("[[0,0],[1,1]]", 2));
  check_layout(&s, "holds stage ");
  snprintf(path, sizeof path, "%s", write_streams("[[0,1],[1,2],[2,0]]", 3));
  s.pp = 3;
  check_layout(&s, "share 1 of 2 stages; ranks that share a stage must share all of them");
  s.schedule = "1f1b";
  s.pp = 2;
  s.config.num_hidden_layers = 1;
  s.recipe.batch_size = MICROS;
  s.stages = "1,2";
  check_layout(&s, "whose sum is the 2 sublayers of the model");
  s.schedule = "dualpipev";
  check_layout(&s, "dualpipev with 2 ranks has 4 stages, the model only 2 sublayers");
}
END_TEST

/* ---- steps that are refused ---- */

/* All ranks refuse, one of them says so, in the words of one process and with the rank. */
static void check_refused(pipes_spec s, const plan *plan, const char *says, int rank) {
  char place[256], what[256];
  s.schedule = plan->schedule;
  s.pp = plan->pp;
  describe(&s, what, sizeof what);
  pipes *p = pipes_run(ctx, &s, path_of_text());
  snprintf(place, sizeof place, rank < 0 ? "%s" : "%s in micro-batch 1 on rank %d", says, rank);
  for (int r = 0; r < p->all.size; r++) {
    ck_assert_msg(p->out[r].status == BK_ERR_NOT_FINITE, "%s: rank %d: %s\n%s", what, r,
                  bk_status_name(p->out[r].status), p->all.rank[r].messages);
    ck_assert_msg(strstr(p->out[r].refusal, place) == p->out[r].refusal,
                  "%s: rank %d blames %s, not %s", what, r, p->out[r].refusal, place);
    ck_assert_int_eq(p->out[r].rows[0].step, 1);
    ck_assert_int_eq(p->out[r].rows[1].step, 0);
    if (r) ck_assert_str_eq(p->all.rank[r].messages, "");
  }
  ck_assert_msg(strstr(p->all.rank[0].messages, place) != NULL, "%s: %s", what,
                p->all.rank[0].messages);
  pipes_free(p);
}

/* What one process blames, without the micro-batch. */
static void blame_of_one(pipes_spec s, char *says, size_t size) {
  s.pp = s.dp = 1;
  pipes *one = pipes_run(ctx, &s, path_of_text());
  ck_assert_int_eq(one->out[0].status, BK_ERR_NOT_FINITE);
  snprintf(says, size, "%s", one->out[0].refusal);
  char *micro = strstr(says, " in micro-batch 1");
  ck_assert_msg(micro || strstr(says, "the sum of") == says, "%s", says);
  if (micro) *micro = '\0';
  pipes_free(one);
}

/* `ranks`: who holds the sublayer in 1f1b and dualpipe on four ranks, and in dualpipev on two. */
START_TEST(test_not_finite) {
  static const plan plans[] = {{"1f1b", 4, NULL}, {"dualpipe", 4, NULL}, {"dualpipev", 2, NULL}};
  static const struct {
    const char *name, *says;
    int rank[BK_COUNT(plans)];
  } cases[] = {
      {"model.layers.1.self_attn.o_proj.weight",
       "weight model.layers.1.self_attn.o_proj.weight (nan at element 0",
       {1, 1, 1}},
      {"model.layers.3.mlp.experts.2.down_proj.weight",
       "weight model.layers.3.mlp.experts.2.down_proj.weight (nan at element 0",
       {3, 3, 0}},
      {"lm_head.weight", "weight lm_head.weight (nan at element 0", {3, 3, 0}},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++)
    for (size_t k = 0; k < BK_COUNT(plans); k++) {
      pipes_spec s = make_spec(&bk_backend_cpu, BK_F32, BK_HC_MHC, 3);
      char says[256];
      if (!thorough() && (i + k) % 2) continue;
      s.ill[0] = (pipes_ill){cases[i].name, NAN};
      blame_of_one(s, says, sizeof says);
      ck_assert_msg(strstr(says, cases[i].says) == says, "%s", says);
      /* each stage of this model is two sublayers, or one rank's */
      static const char *const even[] = {"2,2,2,2"};
      s.stages = even[0];
      check_refused(s, &plans[k], says, cases[i].rank[k]);
    }
}
END_TEST

/* The gradient of a weight that is nothing, behind what multiplies by 1e42. Where gradients of
 * weights are put off, those of what comes before the attention are not finite earlier. */
START_TEST(test_overflow) {
  static const plan plans[] = {{"1f1b", 4, NULL}, {"dualpipe", 4, NULL}, {"dualpipev", 2, NULL}};
  char says[256];
  pipes_spec s = make_spec(&bk_backend_cpu, BK_F32, BK_HC_MHC, 3);
  s.ill[0] = (pipes_ill){"model.layers.1.self_attn.kv_b_proj.weight", 1e21};
  s.ill[1] = (pipes_ill){"model.layers.1.self_attn.o_proj.weight", 1e21};
  s.ill[2] = (pipes_ill){"model.layers.1.self_attn.kv_a_layernorm.weight", 1e-42};
  s.stages = "2,2,2,2";
  blame_of_one(s, says, sizeof says);
  ck_assert_msg(strstr(says, "the gradient of model.layers.1.self_attn.kv_a_layernorm") == says,
                "%s", says);
  check_refused(s, &plans[0], says, 1);
  for (size_t k = 1; k < BK_COUNT(plans); k++)
    check_refused(s, &plans[k],
                  "the gradient of model.layers.1.hc_attn_fn (nan at element 0 of 1152)", 1);
}
END_TEST

/* All gradients are finite, and the sum of their squares is not: the largest is to blame. */
START_TEST(test_large_gradient) {
  char says[256];
  static const plan plans[] = {{"zb1p", 2, NULL}, {"dualpipe", 2, NULL}, {"dualpipev", 2, NULL}};
  pipes_spec s = make_spec(&bk_backend_cpu, BK_F32, BK_HC_PLAIN, 3);
  s.ill[0] = (pipes_ill){"lm_head.weight", 1e25};
  s.ill[1] = (pipes_ill){"model.norm.weight", 1e-25};
  blame_of_one(s, says, sizeof says);
  ck_assert_msg(strstr(says, "that of model.norm.weight") != NULL, "%s", says);
  for (size_t k = 0; k < BK_COUNT(plans); k++) {
    bool two = strcmp(plans[k].schedule, "dualpipe") == 0;
    check_refused(s, &plans[k],
                  two ? "the sum of the squares of all gradients, the largest (norm " : says, -1);
  }
}
END_TEST

UNIT_MAIN("pipeline", unit_folder_open, unit_folder_close, test_kinds, test_twenty_steps, test_cpu,
          test_cpu_bf16, test_recompute, test_cuts, test_two_pipelines, test_profile, test_file,
          test_shares, test_layouts, test_not_finite, test_overflow, test_large_gradient)

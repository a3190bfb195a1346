/* bk_verify and bk_bisect as a program calls them: what they say of models that agree and that do
 * not, what they refuse, and what a case's file holds. Wrong kernels: tests/ops/backend-broken. */
#include <birkhoff/forward.h>
#include <birkhoff/verify.h>

#include "io/safetensors.h"
#include "ops/judge.h"
#include "tests/models/models.h"

typedef struct pair {
  bk_device *fast, *ref;
  bk_model *model, *reference;
} pair;

/* cut: in two chunks */
static bk_model *make(bk_device *device, const bk_model_config *c, bk_dtype dtype, bool cut) {
  bk_model_options options = {.trainable = true};
  bk_model *m = NULL;
  if (cut) {
    options.n_chunks = 2;
    options.chunks[0] = (bk_chunk_range){0, 2};
    options.chunks[1] = (bk_chunk_range){2, 2 * c->num_hidden_layers};
  }
  OK(bk_model_create(device, c, dtype, &options, &m));
  OK(bk_model_init(m, 7));
  enliven(m, 11);
  return m;
}

static pair open_pair(int residual, bk_dtype dtype) {
  bk_model_config c = small_config(residual);
  pair p = {.fast = open_device(fast_device(), 2), .ref = open_device("ref", 1)};
  p.model = make(p.fast, &c, dtype, false);
  p.reference = make(p.ref, &c, dtype, false);
  return p;
}

static void close_pair(pair *p) {
  bk_model_destroy(p->model);
  bk_model_destroy(p->reference);
  bk_device_close(p->fast);
  bk_device_close(p->ref);
}

/* Adds to one element of a weight (and of its master). */
static void change(bk_model *m, const char *name, int64_t index, double by) {
  const bk_param *param = bk_model_find(m, name);
  bk_tensor views[] = {bk_param_weight(m, param), bk_param_master(m, param)};
  for (int i = 0; i < 2; i++) {
    if (!bk_tensor_present(&views[i])) continue;
    double *v = read_tensor(m, views[i]);
    v[index] += by;
    OK(bk_tensor_write_f64(m->stream, &views[i], v));
    bk_free(ctx, v);
  }
}

/* ---- tensor by tensor ---- */

typedef struct seen {
  int64_t rows, failed, stop_at;
  bool loss, step;
} seen;

static bk_status see(void *user, const bk_verify_row *row) {
  seen *s = user;
  s->rows++;
  s->failed += !row->pass;
  s->loss |= strcmp(row->tensor, "loss") == 0;
  s->step |= strncmp(row->tensor, "step.model.layers.2.", 20) == 0;
  return s->rows == s->stop_at ? BK_INTERRUPTED : BK_OK;
}

START_TEST(models_that_agree) {
  for (int half = 0; half < 2; half++) {
    pair p = open_pair(BK_HC_MHC, half ? BK_BF16 : BK_F32);
    seen s = {.rows = 0};
    bk_verify_result r;
    OK(bk_verify(p.model, p.reference, NULL, see, &s, &r));
    ck_assert(s.loss && s.step);
    ck_assert_int_eq(s.rows, r.rows);
    ck_assert_int_gt(r.rows, 2 * p.model->n_params - 10);
    ck_assert_int_eq(r.failed + s.failed + r.forbidden, 0);
    ck_assert_int_eq(r.choices, 2 * 2 * 48); /* layers with experts, sequences, tokens */
    ck_assert_str_eq(r.setting.reference, "ref");
    ck_assert_int_eq(r.setting.seq_len, 48);
    ck_assert_int_eq(r.setting.dtype, half ? BK_BF16 : BK_F32);
    close_pair(&p);
  }
}
END_TEST

START_TEST(models_that_do_not) {
  pair p = open_pair(BK_HC_HC, BK_F32);
  bk_verify_options o;
  bk_verify_result r;
  seen s = {.stop_at = 3};
  bk_verify_options_default(&o);
  o.seq_len = 8;
  ck_assert_int_eq(bk_verify(p.model, p.reference, &o, see, &s, &r), BK_INTERRUPTED);
  ck_assert_int_eq(s.rows, 3);
  close_pair(&p);
  p = open_pair(BK_HC_HC, BK_F32);
  change(p.model, "model.norm.weight", 2, 1e-2);
  OK(bk_verify(p.model, p.reference, &o, NULL, NULL, &r));
  ck_assert_int_gt(r.failed, 3);
  ck_assert_int_eq(r.forbidden, 0);
  close_pair(&p);
  /* one expert that is always chosen on one device alone */
  p = open_pair(BK_HC_HC, BK_F32);
  change(p.model, "model.layers.1.mlp.gate.e_score_correction_bias", 4, 9);
  OK(bk_verify(p.model, p.reference, &o, NULL, NULL, &r));
  ck_assert_int_gt(r.forbidden, 0);
  ck_assert_int_ge(r.failed, 1);
  close_pair(&p);
}
END_TEST

/* ---- call by call ---- */

START_TEST(calls_that_agree) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    pair p = open_pair(kinds[i], i % 2 ? BK_BF16 : BK_F32);
    bk_bisect_result r;
    OK(bk_bisect(p.model, p.reference, NULL, &r));
    ck_assert_msg(r.cause == BK_BISECT_NONE, "kind %d: %s, %s of %s: %g, not %g, nmse %g of %g",
                  kinds[i], r.stage, r.operand, r.op, r.got, r.expected, r.nmse, r.bound);
    ck_assert_int_gt(r.calls, 250);
    ck_assert(!r.wrote_case && r.op[0] == '\0' && r.stage[0] == '\0');
    close_pair(&p);
  }
}
END_TEST

/* In the gradient of the queries of a first token all is zero in theory: the one weight of its
 * attention is 1, whatever the score. A device has rounding there, and no more. */
START_TEST(what_is_zero_in_theory) {
  static const double zeros[2];
  double noise[2] = {1e-12, 0};
  bk_judgement j;
  bk_judge(BK_F32, noise, zeros, 2, 1e-9, 0, &j);
  ck_assert(!j.within && isinf(j.nmse));
  bk_judge(BK_F32, noise, zeros, 2, 1e-9, bk_judge_distance(noise, zeros, 2), &j);
  ck_assert(j.within);
  bk_judge(BK_F32, noise, zeros, 2, 1e-9, bk_judge_distance(noise, zeros, 2) / 17, &j);
  ck_assert(!j.within && j.element == 0);
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_MHC; kind++) {
    pair p = open_pair(kind, BK_F32);
    bk_bisect_options o = {.case_file = NULL};
    bk_bisect_result r;
    bk_verify_options_default(&o.verify);
    o.verify.batch = 1, o.verify.seq_len = 2;
    OK(bk_bisect(p.model, p.reference, &o, &r));
    ck_assert_msg(r.cause == BK_BISECT_NONE, "%s: %s of %s: %g", r.stage, r.operand, r.op, r.got);
    close_pair(&p);
  }
}
END_TEST

/* Gradients that an earlier pass has left on one of the two are overwritten, not read. */
START_TEST(models_that_were_used) {
  pair p = open_pair(BK_HC_MHC, BK_F32);
  const int32_t ids[] = {1, 2, 3, 4};
  bk_forward *f = NULL;
  bk_bisect_result r;
  OK(bk_forward_create(p.model, &(bk_forward_options){.batch = 1, .seq_len = 4, .backward = true},
                       &f));
  OK(bk_forward_run(f, ids, ids));
  OK(bk_forward_backward(f));
  OK(bk_forward_finish(f, NULL));
  bk_forward_destroy(f);
  OK(bk_bisect(p.model, p.reference, NULL, &r));
  ck_assert_msg(r.cause == BK_BISECT_NONE, "%s: %s of %s", r.stage, r.operand, r.op);
  close_pair(&p);
}
END_TEST

START_TEST(inputs_that_are_not_the_same) {
  pair p = open_pair(BK_HC_MHC, BK_F32);
  bk_bisect_options o = {.case_file = unit_path("none.safetensors")};
  bk_bisect_result r;
  bk_verify_options_default(&o.verify);
  change(p.model, "model.embed_tokens.weight", 12 * 3 + 5, 1.0);
  OK(bk_bisect(p.model, p.reference, &o, &r));
  ck_assert_int_eq(r.cause, BK_BISECT_CHANGED);
  ck_assert_int_eq(r.calls, 1);
  ck_assert_int_eq(r.micro_batch, 1);
  ck_assert_str_eq(r.stage, "embed, F");
  ck_assert_str_eq(r.op, "embed");
  ck_assert_str_eq(r.operand, "table");
  ck_assert(r.ndim == 2 && r.element[0] == 3 && r.element[1] == 5);
  ck_assert_double_eq_tol(r.got - r.expected, 1.0, 1e-6);
  ck_assert(!r.wrote_case && !bk_path_exists(ctx, o.case_file));
  close_pair(&p);
}
END_TEST

/* With bounds 0 every number must be the exact one, rounded: no device is so good for long. */
START_TEST(what_a_case_holds) {
  pair p = open_pair(BK_HC_MHC, BK_F32);
  bk_bisect_options o = {.case_file = unit_path("case.safetensors")};
  bk_bisect_result r;
  bk_st_reader *file = NULL;
  char name[32];
  bk_verify_options_default(&o.verify);
  o.verify.bounds = 0;
  OK(bk_bisect(p.model, p.reference, &o, &r));
  ck_assert_int_eq(r.cause, BK_BISECT_VALUE);
  ck_assert(r.wrote_case && r.bound == 0 && isinf(r.nmse));
  OK(bk_st_open(ctx, o.case_file, &file));
  ck_assert_str_eq(bk_st_metadata(file, "birkhoff_case"), "1");
  ck_assert_str_eq(bk_st_metadata(file, "op"), r.op);
  ck_assert_str_eq(bk_st_metadata(file, "stage"), r.stage);
  snprintf(name, sizeof name, "out.%s", r.operand);
  const bk_st_entry *e = bk_st_find(file, name);
  ck_assert_ptr_nonnull(e);
  ck_assert_int_eq(e->ndim, r.ndim);
  bk_st_close(file);
  o.case_file = unit_path("no/such/folder/case.safetensors");
  ck_assert_int_eq(bk_bisect(p.model, p.reference, &o, &r), BK_ERR_IO);
  unit_expect("cannot create");
  close_pair(&p);
}
END_TEST

/* ---- refusals ---- */

static void refused(bk_model *a, bk_model *b, bk_verify_options o, bool calls, const char *why) {
  bk_bisect_options bisect = {.verify = o};
  bk_status status = calls ? bk_bisect(a, b, &bisect, NULL) : bk_verify(a, b, &o, NULL, NULL, NULL);
  ck_assert_int_eq(status, BK_ERR_ARGUMENT);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(why);
}

START_TEST(refusals) {
  pair p = open_pair(BK_HC_MHC, BK_F32);
  bk_model_config other = small_config(BK_HC_MHC), same = other;
  bk_verify_options o;
  bk_verify_options_default(&o);
  other.hidden_size = 16;
  bk_model *wider = make(p.ref, &other, BK_F32, false), *sharper, *part = NULL;
  bk_model_options first = {.trainable = true, .n_chunks = 1, .chunks = {{0, 2}}};
  other = same, other.rms_norm_eps = 1e-3;
  sharper = make(p.ref, &other, BK_F32, false);
  OK(bk_model_create(p.ref, &same, BK_F32, &first, &part));
  bk_model *half = make(p.ref, &same, BK_BF16, false), *parts = make(p.fast, &same, BK_F32, true);
  for (int calls = 0; calls < 2; calls++) {
    bk_verify_options bad = o;
    refused(p.model, wider, o, calls, "different configurations: hidden_size is");
    refused(p.model, sharper, o, calls, "different configurations: rms_norm_eps is");
    refused(p.model, half, o, calls, "one model is in fp32 and the other in bf16");
    refused(p.model, p.model, o, calls, "a model cannot be compared with itself");
    refused(p.model, part, o, calls, "not whole: it has 2 sublayers of 6");
    refused(part, p.reference, o, calls, "not whole: it has 2 sublayers of 6");
    bad.seed = -1;
    refused(p.model, p.reference, bad, calls, "negative");
    bad = o, bad.bounds = NAN;
    refused(p.model, p.reference, bad, calls, "negative");
    bad = o, bad.batch = 0;
    refused(p.model, p.reference, bad, calls, "0 sequences");
    bad = o, bad.seq_len = -5;
    refused(p.model, p.reference, bad, calls, "sequences of -5 tokens");
    bad = o, bad.seq_len = 1;
    refused(p.model, p.reference, bad, calls, "fewer than 2 predict nothing");
    bad = o, bad.seq_len = 65;
    refused(p.model, p.reference, bad, calls, "max_position_embeddings");
  }
  refused(parts, p.reference, o, true, "one chunk");
  bk_model_destroy(parts);
  bk_model_destroy(half);
  bk_model_destroy(part);
  bk_model_destroy(sharper);
  bk_model_destroy(wider);
  close_pair(&p);
}
END_TEST

UNIT_MAIN("verify", unit_folder_open, unit_folder_close, models_that_agree, models_that_do_not,
          calls_that_agree, what_is_zero_in_theory, models_that_were_used,
          inputs_that_are_not_the_same, what_a_case_holds, refusals)

/* Watching over a run: spikes are warned about once and not without cause; what is not finite is
 * named, in the order in which a step makes things; the same bits for any number of threads; no
 * allocation at all, the C library's included, in a step. */
#include "tests/models/run.h"

#include "models/profile.h"
#include "models/trainer.h"
#include "models/watch.h"

/* ---- the C library's allocator, counted where it can be: glibc without a sanitizer of its own
 * ---- */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTED 0
#endif
#endif
#if !defined(COUNTED) && defined(__GLIBC__)
#define COUNTED 1
#endif

static uint64_t mallocs;
#if COUNTED
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void *malloc(size_t bytes) {
  return __atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED), __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) {
  return __atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED), __libc_calloc(count, bytes);
}
void *realloc(void *block, size_t bytes) {
  return __atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED), __libc_realloc(block, bytes);
}
void *aligned_alloc(size_t align, size_t bytes) {
  return __atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED), __libc_memalign(align, bytes);
}
void *memalign(size_t align, size_t bytes);
void *memalign(size_t align, size_t bytes) { return aligned_alloc(align, bytes); }
#endif

/* ---- rigs ---- */

static run run_open(int threads, bk_dtype dtype, const bk_model_config *c,
                    const bk_train_config *recipe) {
  return run_begin(open_device("cpu", threads), text_of(2000), dtype, c, recipe);
}

/* ---- spikes ---- */

START_TEST(norm_spikes_once) {
  bk_watch w = {.seen = 0};
  /* not yet */
  for (int i = 1; i < BK_WATCH_WINDOW; i++)
    ck_assert(!bk_watch_norm(ctx, &w, i, i == 5 ? 1e9 : 1 + 0.01 * i, 10));
  ck_assert(!bk_watch_norm(ctx, &w, 32, 1.5, 10));
  ck_assert(!bk_watch_norm(ctx, &w, 33, 11, 10)); /* the median is about 1.16 */
  ck_assert(!bk_watch_norm(ctx, &w, 34, 0, 10));
  ck_assert(!bk_watch_norm(ctx, &w, 35, 1e6, 0)); /* off */
  unit_expect(NULL);
  ck_assert(bk_watch_norm(ctx, &w, 36, 1e6, 10));
  unit_expect("step 36: the gradient norm 1e+06");
  ck_assert(!bk_watch_norm(ctx, &w, 37, 1e7, 10));
  unit_expect(NULL);
}
END_TEST

START_TEST(norm_falls_and_rises_slowly) {
  bk_watch w = {.seen = 0};
  for (int i = 0; i < 400; i++)
    ck_assert(!bk_watch_norm(ctx, &w, i + 1, i < 200 ? 50 * pow(0.98, i) : pow(1.02, i - 200), 10));
}
END_TEST

START_TEST(gain_spikes_once) {
  bk_watch w = {.seen = 0};
  ck_assert(!bk_watch_gain(ctx, &w, 1, 1, 1.6, 100));
  ck_assert(!bk_watch_gain(ctx, &w, 2, 1e9, 1, 0));
  ck_assert(bk_watch_gain(ctx, &w, 3, 1, 101, 100));
  unit_expect(
      "step 3: the composite gain of the residual connections is 1 forward and 101 backward, "
      "gain_limit is 100");
  ck_assert(!bk_watch_gain(ctx, &w, 4, 1e9, 1e9, 100));
}
END_TEST

/* Through a trainer: a rate that leaps after forty calm steps, and a gain above a low limit; no
 * other message. */
START_TEST(spikes_of_a_run) {
  bk_model_config c = text_config(BK_HC_HC);
  bk_train_config recipe = run_recipe(1);
  bk_metrics_row row;
  recipe.lr = 0;
  recipe.router_bias_lr = 0;
  recipe.gain_every = 50;
  recipe.gain_limit = 1e-3;
  run r = run_open(1, BK_F32, &c, &recipe);
  for (int s = 1; s <= 40; s++) OK(bk_trainer_step(r.trainer, &row));
  unit_expect(NULL);
  bk_tensor w = bk_param_weight(r.model, bk_model_find(r.model, "model.norm.weight"));
  double *v = read_tensor(r.model, w);
  for (int64_t i = 0; i < bk_tensor_count(&w); i++) v[i] *= 1000;
  OK(bk_tensor_write_f64(r.model->stream, &w, v));
  bk_free(ctx, v);
  OK(bk_trainer_step(r.trainer, &row));
  unit_expect("step 41: the gradient norm");
  for (int s = 42; s <= 49; s++) OK(bk_trainer_step(r.trainer, &row));
  unit_expect(NULL);
  OK(bk_trainer_step(r.trainer, &row));
  unit_expect("step 50: the composite gain");
  run_close(&r);
}
END_TEST

/* ---- the first that is not finite ---- */

static void poison(const run *r, const char *name, int64_t at, double value) {
  bk_tensor w = bk_param_weight(r->model, bk_model_find(r->model, name));
  double *v = read_tensor(r->model, w);
  v[at] = value;
  OK(bk_tensor_write_f64(r->model->stream, &w, v));
  bk_free(ctx, v);
}

typedef struct blame {
  const char *name; /* poisoned */
  int64_t at;
  double value;
  bool in_forward;
  const char *says;
} blame;

static void check_blame(int kind, bk_dtype dtype, int64_t recompute, const blame *b) {
  bk_model_config c = text_config(kind);
  bk_train_config recipe = run_recipe(1);
  bk_metrics_row row = {.step = -1};
  char words[256];
  recipe.hc_recompute = recompute;
  run r = run_open(1, dtype, &c, &recipe);
  OK(bk_trainer_step(r.trainer, &row));
  ck_assert_ptr_null(bk_trainer_refusal(r.trainer));
  poison(&r, b->name, b->at, b->value);
  ck_assert_int_eq(bk_trainer_step(r.trainer, &row), BK_ERR_NOT_FINITE);
  ck_assert_int_eq(row.step, 1);
  snprintf(words, sizeof words, "not finite, first of all: %s", b->says);
  unit_expect(words);
  const bk_refusal *refusal = bk_trainer_refusal(r.trainer);
  ck_assert_ptr_nonnull(refusal);
  ck_assert_int_eq(refusal->row.step, 2);
  ck_assert(refusal->again);
  ck_assert_msg(refusal->in_forward == b->in_forward, "%s", refusal->first);
  run_close(&r);
}

START_TEST(blames_the_first) {
  static const blame cases[] = {
      {"model.embed_tokens.weight", 1167, NAN, true,
       "weight model.embed_tokens.weight (nan at element 1167 of 3084)"} /* of the letter a */,
      {"model.layers.1.self_attn.o_proj.weight", 5, INFINITY, true,
       "weight model.layers.1.self_attn.o_proj.weight (inf at element 5"},
      {"model.layers.2.mlp.experts.4.up_proj.weight", 1, NAN, true,
       "weight model.layers.2.mlp.experts.4.up_proj.weight (nan at element 1 of 60) in micro-batch "
       "1"},
      {"model.norm.weight", 0, -INFINITY, true,
       "weight model.norm.weight (-inf at element 0 of 12)"},
      {"lm_head.weight", 3083, NAN, true, "weight lm_head.weight (nan at element 3083"},
      /* finite weights that overflow on the way */
      {"model.layers.1.input_layernorm.weight", 2, 3e38, true,
       "the normed input of model.layers.1's attention (inf at element 2"},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++)
    check_blame(i % 2 ? BK_HC_MHC : BK_HC_PLAIN, BK_F32, i % 3 ? BK_RECOMPUTE_AUTO : 0, &cases[i]);
  static const blame map = {"model.layers.0.hc_ffn_base", 9, NAN, true,
                            "weight model.layers.0.hc_ffn_base (nan at element 9"};
  check_blame(BK_HC_MHC, BK_BF16, BK_RECOMPUTE_AUTO, &map);
  check_blame(BK_HC_HC, BK_F32, 0, &map);
}
END_TEST

/* A forward pass that is finite, gradients that are not: the head multiplies what comes back by
 * 1e30, the square sum overflows or the gradients themselves do. */
START_TEST(blames_a_gradient) {
  bk_model_config c = text_config(BK_HC_PLAIN);
  bk_train_config recipe = run_recipe(1);
  bk_metrics_row row;
  recipe.lr = 0;
  run r = run_open(1, BK_F32, &c, &recipe);
  bk_tensor head = bk_param_weight(r.model, bk_model_find(r.model, "lm_head.weight"));
  bk_tensor norm = bk_param_weight(r.model, bk_model_find(r.model, "model.norm.weight"));
  double *h = read_tensor(r.model, head), *n = read_tensor(r.model, norm);
  for (int64_t i = 0; i < bk_tensor_count(&head); i++) h[i] *= 1e25;
  /* the logits are what they were */
  for (int64_t i = 0; i < bk_tensor_count(&norm); i++) n[i] *= 1e-25;
  OK(bk_tensor_write_f64(r.model->stream, &head, h));
  OK(bk_tensor_write_f64(r.model->stream, &norm, n));
  ck_assert_int_eq(bk_trainer_step(r.trainer, &row), BK_ERR_NOT_FINITE);
  unit_expect("the sum of the squares of all gradients, the largest (norm ");
  ck_assert(strstr(bk_trainer_refusal(r.trainer)->first, "that of model.norm.weight") != NULL);
  ck_assert(!bk_trainer_refusal(r.trainer)->in_forward);
  bk_free(ctx, h);
  bk_free(ctx, n);
  run_close(&r);
}
END_TEST

START_TEST(stored_values) {
  bk_model_config c = text_config(BK_HC_MHC);
  bk_train_config recipe = run_recipe(1);
  bk_suspect suspect;
  run r = run_open(1, BK_BF16, &c, &recipe);
  OK(bk_watch_stored(r.model, &suspect));
  ck_assert(!suspect.found);
  bk_tensor v = bk_param_v(r.model, bk_model_find(r.model, "lm_head.weight"));
  bk_tensor last = bk_tensor_slice(bk_tensor_reshape(v, 1, (int64_t[]){bk_tensor_count(&v)}), 0,
                                   bk_tensor_count(&v) - 1, 1);
  OK(bk_tensor_write_f64(r.model->stream, &last, &(double){INFINITY}));
  ck_assert_int_eq(bk_watch_stored(r.model, &suspect), BK_ERR_NOT_FINITE);
  ck_assert(strstr(suspect.what, "the second moment of lm_head.weight (inf at element") != NULL);
  run_close(&r);
}
END_TEST

/* ---- threads ---- */

static uint64_t trained_hash(const bk_model_config *c, bk_dtype dtype, int threads, double *loss) {
  static bk_tensor (*const views[])(const bk_model *, const bk_param *) = {
      bk_param_weight, bk_param_master, bk_param_m, bk_param_v};
  bk_train_config recipe = run_recipe(1);
  bk_metrics_row row = {.loss = 0};
  uint64_t hash = 0;
  recipe.seq_len = 37;
  recipe.gain_every = recipe.eval_every = 2;
  run r = run_open(threads, dtype, c, &recipe);
  for (int s = 1; s <= 3; s++) OK(bk_trainer_step(r.trainer, &row));
  *loss = row.loss;
  for (int i = 0; i < r.model->n_params; i++)
    for (size_t k = 0; k < BK_COUNT(views); k++) {
      bk_tensor t = views[k](r.model, &r.model->params[i]);
      size_t bytes = bk_tensor_bytes(&t);
      char *raw = bytes ? bk_alloc(ctx, bytes + sizeof hash) : NULL;
      if (!raw) continue;
      OK(bk_tensor_download(r.model->stream, &t, raw));
      memcpy(raw + bytes, &hash, sizeof hash);
      hash = bk_hash64(raw, bytes + sizeof hash);
      bk_free(ctx, raw);
    }
  run_close(&r);
  return hash;
}

/* Weights, masters and moments after three steps, bit for bit. */
START_TEST(threads_do_not_matter) {
  static const int threads[] = {2, 3};
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_IHC; kind++) {
    bk_model_config c = text_config(kind);
    if (kind == BK_HC_MHC) OK(bk_model_preset(ctx, "tiny", &c, NULL));
    bk_dtype dtype = kind % 2 ? BK_BF16 : BK_F32;
    double want_loss, loss;
    uint64_t want = trained_hash(&c, dtype, 1, &want_loss);
    for (size_t i = 0; i < BK_COUNT(threads); i++) {
      ck_assert_msg(trained_hash(&c, dtype, threads[i], &loss) == want,
                    "kind %d: %d threads give other bits", kind, threads[i]);
      ck_assert_mem_eq(&loss, &want_loss, sizeof loss);
    }
  }
}
END_TEST

/* ---- no allocation ---- */

static void check_no_malloc(int kind, bool profiled) {
  bk_model_config c = text_config(kind);
  bk_train_config recipe = run_recipe(1);
  bk_memory_stats before, after;
  bk_metrics_row row;
  bk_profile *profile = NULL;
  recipe.gain_every = 2;
  run r = run_open(2, kind % 2 ? BK_BF16 : BK_F32, &c, &recipe);
  if (profiled) OK(bk_profile_create(r.model, &profile));
  OK(bk_trainer_step(r.trainer, &row)); /* a BLAS takes its buffers at its first products */
  bk_context_memory_stats(ctx, &before);
  uint64_t mallocs_before = mallocs, buffers = r.device->buffer_allocs;
  int failed = 0; /* check's own assertions allocate */
  for (int s = 2; s <= 6; s++) failed += bk_trainer_step(r.trainer, &row) != BK_OK;
  uint64_t made = mallocs - mallocs_before;
  ck_assert_int_eq(failed, 0);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(before.allocations, after.allocations);
  ck_assert_uint_eq(buffers, r.device->buffer_allocs);
  ck_assert_msg(made == 0, "kind %d: %d calls of the C library's allocator in five %ssteps", kind,
                (int)made, profiled ? "profiled " : "");
  if (profile) ck_assert_int_eq(profile->done, 6);
  bk_profile_destroy(profile);
  run_close(&r);
}

START_TEST(no_malloc_in_a_step) {
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_IHC; kind++) {
    check_no_malloc(kind, false);
    check_no_malloc(kind, true);
  }
#if COUNTED
  ck_assert_uint_gt(mallocs, 100); /* the counter counts */
#endif
}
END_TEST

UNIT_MAIN("watch", unit_folder_open, unit_folder_close, norm_spikes_once,
          norm_falls_and_rises_slowly, gain_spikes_once, spikes_of_a_run, blames_the_first,
          blames_a_gradient, stored_values, threads_do_not_matter, no_malloc_in_a_step)

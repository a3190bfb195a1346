/* F made again in the backward pass (recompute): every residual connection, with and without
 * recompute of the connections, with wgrad at once and deferred, with several slots and chunks,
 * gives the loss, gradients and expert loads of a pass that keeps everything, bit for bit. What is
 * no longer kept, and which pieces a schedule may run before the gradient arrives. */
#include "tests/models/models.h"

#include "models/chunk_priv.h"
#include "models/pipeline.h"
#include "ops/ops.h"

/* A chunk asks whether there is one, and no more. */
static bk_pipeline any_pipeline;

enum { B = 1, T = 5, MICRO = 3, SUBLAYERS = 6, SETTINGS = BK_RECOMPUTE_F_ALL + 1 };

/* The model is cut in two unless `cut` is 0. */
static rig open_cut(const char *name, const bk_model_config *c, bk_dtype dtype, int cut,
                    const bk_runner_options *options) {
  rig r = {.device = open_device(name, 1)};
  bk_model_options model = {.trainable = true};
  if (cut) {
    model.n_chunks = 2;
    model.chunks[0] = (bk_chunk_range){0, cut};
    model.chunks[1] = (bk_chunk_range){cut, SUBLAYERS};
  }
  OK(bk_model_create(r.device, c, dtype, &model, &r.model));
  OK(bk_model_init(r.model, 7));
  enliven(r.model, 11);
  OK(bk_runner_create(r.model, options, &r.runner));
  return r;
}

static bk_runner_options options_of(int recompute, int64_t block, bool deferred) {
  return (bk_runner_options){.batch = B,
                             .seq_len = T,
                             .slots = MICRO,
                             .backward = true,
                             .hc_recompute = block,
                             .recompute = recompute,
                             .defer_wgrad = deferred};
}

/* ---- bits ---- */
typedef struct result {
  double loss, *grads, *loads; /* loads: [n_moe, E] */
  int64_t n_grads, n_loads;
} result;

static void read_loads(const rig *r, result *out) {
  int64_t E = r->model->config.n_routed_experts;
  int n = bk_runner_n_moe(r->runner);
  out->n_loads = n * E;
  out->loads = bk_alloc_array(ctx, (size_t)out->n_loads, sizeof *out->loads);
  for (int i = 0; i < n; i++) {
    double *one = read_tensor(r->model, bk_model_expert_load(r->model, i));
    memcpy(out->loads + i * E, one, (size_t)E * sizeof *one);
    bk_free(ctx, one);
  }
}

/* All micro-batches are in flight at once, and of deferred wgrads two wait. */
static result run_micro_batches(rig *r, bool deferred) {
  int32_t ids[MICRO][B * T], targets[MICRO][B * T];
  int64_t kept = 0;
  result out;
  for (int i = 0; i < MICRO; i++)
    kept += make_tokens(r->model->config.vocab_size, B * T, 70 + (uint64_t)i, ids[i], targets[i]);
  begin_step(r->model, kept);
  for (int i = 0; i < MICRO; i++) OK(bk_runner_forward(r->runner, i, ids[i], targets[i]));
  for (int i = 0; i < MICRO; i++) {
    OK(bk_runner_backward(r->runner, i));
    if (deferred && i > 0) OK(bk_runner_wgrad(r->runner));
  }
  if (deferred) OK(bk_runner_wgrad(r->runner));
  read_loads(r, &out);
  out.loss = end_step(r->model, kept);
  out.grads = read_grads(r->model, &out.n_grads);
  return out;
}

static void drop(result *x) {
  bk_free(ctx, x->grads);
  bk_free(ctx, x->loads);
}

static void check_result(const result *got, const result *want, const char *what) {
  ck_assert_int_eq(got->n_grads, want->n_grads);
  ck_assert_msg(memcmp(&got->loss, &want->loss, sizeof want->loss) == 0,
                "%s: loss %.17g, not %.17g", what, got->loss, want->loss);
  ck_assert_msg(memcmp(got->grads, want->grads, (size_t)want->n_grads * sizeof(double)) == 0,
                "%s: gradients differ by %g", what,
                distance(got->grads, want->grads, want->n_grads));
  ck_assert_msg(memcmp(got->loads, want->loads, (size_t)want->n_loads * sizeof(double)) == 0,
                "%s: the loads of experts differ", what);
}

static void check_setting(const char *name, const bk_model_config *c, bk_dtype dtype, int cut,
                          const bk_runner_options *o, const result *want) {
  char what[128];
  rig r = open_cut(name, c, dtype, cut, o);
  result got = run_micro_batches(&r, o->defer_wgrad);
  snprintf(what, sizeof what, "kind %d on %s, %s, cut %d, hc_recompute %d, recompute %d%s",
           c->residual, name, bk_dtype_name(dtype), cut, (int)o->hc_recompute, o->recompute,
           o->defer_wgrad ? ", wgrad deferred" : "");
  check_result(&got, want, what);
  drop(&got);
  rig_close(&r);
}

/* A device that is emulated is slow: one of the cuts, and of the pairs of hc_recompute and deferral
 * two that differ in both. */
static void check_kind(const char *name, bk_dtype dtype, int kind) {
  static const int64_t blocks[] = {0, 2, BK_RECOMPUTE_AUTO};
  bool few = strcmp(name, "ref") != 0 && strcmp(name, "cpu") != 0;
  bk_model_config c = small_config(kind);
  c.q_lora_rank = kind % 2 ? 5 : 0;
  c.n_shared_experts = kind % 3 ? 2 : 0;
  bk_runner_options keep = options_of(BK_RECOMPUTE_F_NONE, 0, false);
  rig r = open_cut(name, &c, dtype, 0, &keep);
  result want = run_micro_batches(&r, false);
  for (int64_t i = 0; i < want.n_loads; i++) ck_assert_double_le(want.loads[i], MICRO * B * T);
  rig_close(&r);
  for (int f = BK_RECOMPUTE_F_ATTENTION; f < SETTINGS; f++)
    for (size_t i = 0; i < 2 * BK_COUNT(blocks); i += few ? 3 : 1) {
      bk_runner_options o = options_of(f, blocks[i / 2], i % 2);
      if (!few) check_setting(name, &c, dtype, 0, &o, &want);
      check_setting(name, &c, dtype, 3, &o, &want);
    }
  drop(&want);
}

START_TEST(bits_on_ref) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) check_kind("ref", i % 2 ? BK_F32 : BK_F64, kinds[i]);
}
END_TEST

START_TEST(bits_on_fast) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++)
    check_kind(fast_device(), i % 2 ? BK_F32 : BK_BF16, kinds[i]);
}
END_TEST

/* ---- memory ---- */

static size_t kept_bytes(const bk_model_config *c, int recompute, bool deferred, int slots) {
  bk_runner_options o = options_of(recompute, BK_RECOMPUTE_AUTO, deferred);
  o.slots = slots;
  rig r = open_cut("cpu", c, BK_F32, 0, &o);
  size_t bytes = bk_runner_bytes(r.runner, BK_MEM_ACTIVATIONS);
  rig_close(&r);
  return bytes;
}

/* What attention keeps for one micro-batch, without the gaps between tensors: q, k, kv, o, lse, the
 * latent vector with and without its norm, the rotated key, and the factors of the norm. */
static int64_t attention_bytes(const bk_model_config *c) {
  int64_t key = c->qk_nope_head_dim + c->qk_rope_head_dim,
          head = 2 * key + c->qk_nope_head_dim + 2 * c->v_head_dim + 1,
          latent = 2 * c->kv_lora_rank + c->qk_rope_head_dim + 1;
  return 4 * B * T * (c->num_attention_heads * head + latent);
}

/* The same of gate_up of a dense sublayer, and of the experts' rows and the shared experts of a
 * sparse one. */
static int64_t dense_bytes(const bk_model_config *c) {
  return 4 * B * T * 2 * c->intermediate_size;
}
static int64_t sparse_bytes(const bk_model_config *c) {
  int64_t row = 2 * c->moe_intermediate_size + c->hidden_size;
  return 4 * B * T *
         (c->num_experts_per_tok * row + c->n_shared_experts * 2 * c->moe_intermediate_size);
}

/* Each setting saves what it is named for, in every slot, up to the gaps between tensors. */
START_TEST(keeps_less) {
  bk_model_config c = small_config(BK_HC_MHC);
  int64_t layers = c.num_hidden_layers, dense = c.first_k_dense_replace;
  int64_t attention = layers * attention_bytes(&c),
          experts = dense * dense_bytes(&c) + (layers - dense) * sparse_bytes(&c);
  const int64_t want[SETTINGS] = {0, attention, experts, attention + experts};
  for (int deferred = 0; deferred < 2; deferred++)
    for (int slots = 1; slots <= 2; slots++) {
      size_t all = kept_bytes(&c, BK_RECOMPUTE_F_NONE, deferred, slots);
      for (int f = BK_RECOMPUTE_F_ATTENTION; f < SETTINGS; f++) {
        size_t less = kept_bytes(&c, f, deferred, slots), saved = (size_t)(slots * want[f]);
        ck_assert_msg(less + saved <= all && all <= less + 2 * saved,
                      "recompute %d, %d slots: keeps %zu of %zu bytes, %zu should go", f, slots,
                      less, all, saved);
      }
    }
}
END_TEST

/* ---- pieces ---- */

/* Whether the call touches this tensor. */
static bool touches(const bk_call *call, const bk_tensor *t) {
  if (call->kind != BK_CALL_OP) return false;
  const bk_op_desc *d = bk_op_describe(call->op);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *x = bk_op_field_get(call->args, &d->fields[i]);
    if (bk_tensor_present(x) && x->buffer == t->buffer && x->offset == t->offset) return true;
  }
  return false;
}

static int count_op(const bk_program *p, const bk_piece *piece, bk_op op) {
  int n = 0;
  for (int i = piece->begin; i < piece->end; i++)
    n += p->calls[i].kind == BK_CALL_OP && p->calls[i].op == op;
  return n;
}

/* Whether the program makes this sublayer's F again: it has a piece REBUILD that is not of
 * streams. */
static bool makes_again(const bk_program *p, int sublayer) {
  bool found = false;
  for (int i = 0; i < p->n_pieces; i++) {
    const bk_piece *piece = &p->pieces[i];
    bool rebuild = piece->part == BK_PART_REBUILD && count_op(p, piece, BK_OP_HC_REBUILD) == 0;
    ck_assert_int_eq(count_op(p, piece, BK_OP_MOE_INDEX), 0); /* it counts the loads */
    ck_assert_int_eq(count_op(p, piece, BK_OP_ROUTER), 0);
    found |= rebuild && piece->sublayer == sublayer;
  }
  return found;
}

static bool is_set(int recompute, int sublayer) {
  return recompute == BK_RECOMPUTE_F_ALL ||
         recompute == (sublayer % 2 ? BK_RECOMPUTE_F_EXPERTS : BK_RECOMPUTE_F_ATTENTION);
}

/* A chunk without the head begins its backward pass with all that the last block needs, before
 * anything that touches the gradient of its output. */
static void check_leading(const bk_chunk *c, int slot, int recompute, int64_t block) {
  const bk_program *p = bk_chunk_program(c, slot, BK_PROGRAM_BACKWARD);
  bk_port gradient = bk_chunk_output_grad(c, slot);
  int leading = 0, of_f = 0, last = c->sublayers[c->n - 1].index;
  for (; p->pieces[leading].part == BK_PART_REBUILD; leading++) {
    const bk_piece *piece = &p->pieces[leading];
    for (int i = piece->begin; i < piece->end; i++)
      ck_assert(!touches(&p->calls[i], &gradient.streams));
    of_f += count_op(p, piece, BK_OP_HC_REBUILD) == 0;
    ck_assert_int_eq(piece->pass, BK_PASS_D);
  }
  ck_assert_int_eq(leading - of_f, block > 0);
  ck_assert_int_eq(of_f > 0, is_set(recompute, last));
  bool read = false;
  for (int i = p->pieces[leading].begin; i < p->pieces[leading].end; i++)
    read |= touches(&p->calls[i], &gradient.streams);
  ck_assert(read);
}

START_TEST(pieces) {
  bk_model_config c = small_config(BK_HC_MHC);
  for (int f = 0; f < SETTINGS; f++)
    for (int k = 0; k < 4; k++) {
      bool deferred = k % 2;
      int64_t block = k / 2 ? 2 : 0;
      bk_runner_options o = options_of(f, block, deferred);
      rig r = open_cut("cpu", &c, BK_F32, 3 + k % 2, &o);
      for (int i = 0; i < 2; i++) {
        const bk_chunk *chunk = bk_runner_chunk(r.runner, i);
        for (int s = 0; s < chunk->n; s++) {
          int index = chunk->sublayers[s].index;
          ck_assert_int_eq(makes_again(bk_chunk_program(chunk, 1, BK_PROGRAM_BACKWARD), index),
                           is_set(f, index));
          if (deferred)
            ck_assert_int_eq(makes_again(bk_chunk_program(chunk, 1, BK_PROGRAM_WGRAD), index),
                             is_set(f, index));
        }
      }
      check_leading(bk_runner_chunk(r.runner, 0), 1, f, block);
      rig_close(&r);
    }
}
END_TEST

/* ---- options ---- */

/* In a pipeline auto means the whole chunk, and numbers mean what they always do. The chunk asks
 * whether there is a pipeline and nothing of it. */
START_TEST(auto_in_a_pipeline) {
  static const int64_t asked[] = {BK_RECOMPUTE_AUTO, 0, 1, 4, 100};
  for (size_t i = 0; i < 2 * BK_COUNT(asked); i++) {
    bk_model_config c = small_config(BK_HC_MHC);
    bk_runner_options o = options_of(BK_RECOMPUTE_F_NONE, 0, false);
    rig r = open_cut("cpu", &c, BK_F32, 5, &o);
    bk_chunk *chunk = NULL;
    int64_t usual = bk_recompute_block(&c, asked[i / 2]), most = usual < 5 ? usual : 5;
    if (i % 2) r.model->options.pipeline = &any_pipeline;
    o.hc_recompute = asked[i / 2];
    OK(bk_chunk_create(r.model, 0, &o, NULL, &chunk));
    ck_assert_int_eq(chunk->block, i == 1 ? 5 : most);
    bk_chunk_destroy(chunk);
    o.backward = false;
    OK(bk_chunk_create(r.model, 0, &o, NULL, &chunk));
    ck_assert_int_eq(chunk->block, 0);
    bk_chunk_destroy(chunk);
    r.model->options.pipeline = NULL;
    rig_close(&r);
  }
}
END_TEST

/* A single stream has nothing to rebuild, in a pipeline either. */
START_TEST(plain_in_a_pipeline) {
  bk_model_config c = small_config(BK_HC_PLAIN);
  bk_runner_options o = options_of(BK_RECOMPUTE_F_ALL, BK_RECOMPUTE_AUTO, false);
  rig r = open_cut("cpu", &c, BK_F32, 3, &o);
  bk_chunk *chunk = NULL;
  r.model->options.pipeline = &any_pipeline;
  OK(bk_chunk_create(r.model, 0, &o, NULL, &chunk));
  ck_assert_int_eq(chunk->block, 0);
  bk_chunk_destroy(chunk);
  r.model->options.pipeline = NULL;
  rig_close(&r);
}
END_TEST

START_TEST(refusals) {
  bk_model_config c = small_config(BK_HC_MHC);
  bk_runner_options o = options_of(BK_RECOMPUTE_F_NONE, 0, false);
  rig r = open_cut("cpu", &c, BK_F32, 0, &o);
  static const int wrong[] = {-1, BK_RECOMPUTE_F_ALL + 1};
  for (size_t i = 0; i < BK_COUNT(wrong); i++) {
    bk_chunk *chunk = NULL;
    o.recompute = wrong[i];
    ck_assert_int_eq(bk_chunk_create(r.model, 0, &o, NULL, &chunk), BK_ERR_ARGUMENT);
    unit_expect(i ? "recompute 4 is none of 0 to 3" : "recompute -1 is none of 0 to 3");
    ck_assert_ptr_null(chunk);
  }
  rig_close(&r);
}
END_TEST

UNIT_MAIN("recompute", unit_open, unit_close, bits_on_ref, bits_on_fast, keeps_less, pieces,
          auto_in_a_pipeline, plain_in_a_pipeline, refusals)

/* What the reader of weights takes and what it refuses: shards, half precision, names, experts
 * in one tensor, layers left out, numbers that are not finite. Files are made here byte by byte,
 * as others make them. */
#include "tests/models/models.h"

#include "io/safetensors.h"
#include "models/checkpoint.h"

/* ---- weights as a list, from which files are made ---- */

#define ITEMS 256
typedef struct item {
  char name[120];
  const char *dtype; /* "F32", ... */
  int ndim, shard;
  int64_t shape[3], count;
  double *v;
} item;

static item items[ITEMS];
static int n_items;
static char header[ITEMS * 256];

static void drop_items(void) {
  for (int i = 0; i < n_items; i++) bk_free(ctx, items[i].v);
  n_items = 0;
}

static item *add_item(const char *name, const char *dtype, int ndim, const int64_t *shape) {
  ck_assert_int_lt(n_items, ITEMS);
  item *t = &items[n_items++];
  *t = (item){.dtype = dtype, .ndim = ndim, .count = 1};
  snprintf(t->name, sizeof t->name, "%s", name);
  for (int d = 0; d < ndim; d++) t->count *= t->shape[d] = shape[d];
  t->v = bk_alloc_array(ctx, (size_t)t->count, sizeof *t->v);
  return t;
}

/* The weights of a model in steps of 1/128: every dtype but bf16 holds them. */
static void take_model(bk_model *m, const char *dtype) {
  drop_items();
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    bk_tensor w = bk_param_weight(m, p);
    item *t = add_item(p->name, dtype, p->ndim, p->shape);
    OK(bk_tensor_read_f64(m->stream, &w, t->v));
    for (int64_t j = 0; j < t->count; j++) t->v[j] = round(t->v[j] * 128) / 128;
  }
}

static item *find_item(const char *name) {
  for (int i = 0; i < n_items; i++)
    if (strcmp(items[i].name, name) == 0) return &items[i];
  ck_abort_msg("no tensor %s", name);
  return NULL;
}

static uint16_t half_of(double x) { /* of values that a half holds, infinities and NaN */
  uint16_t sign = signbit(x) ? 0x8000 : 0;
  int e;
  if (isnan(x)) return 0x7e00;
  if (isinf(x)) return sign | 0x7c00;
  double m = frexp(fabs(x), &e);
  if (x == 0 || e < -13) return sign | (uint16_t)ldexp(fabs(x), 24);
  return (uint16_t)(sign | (uint16_t)(e + 14) << 10 | ((uint16_t)ldexp(m, 11) & 1023));
}

static size_t width_of(const char *dtype) {
  return strcmp(dtype, "F64") == 0                                ? 8
         : strcmp(dtype, "F32") == 0 || strcmp(dtype, "I32") == 0 ? 4
         : strncmp(dtype, "F8", 2) == 0                           ? 1
                                                                  : 2;
}

static void encode(const item *t, char *out) {
  size_t width = width_of(t->dtype);
  for (int64_t i = 0; i < t->count; i++) {
    float f = (float)t->v[i];
    uint16_t h = strcmp(t->dtype, "F16") == 0 ? half_of(t->v[i]) : bk_f32_to_bf16(f);
    const void *from = width == 8   ? (const void *)&t->v[i]
                       : width == 4 ? (const void *)&f
                                    : (const void *)&h;
    memcpy(out + (size_t)i * width, from, width);
  }
}

static void put_shard(const char *path, int shard) {
  size_t length = 0, at = 0;
  length += (size_t)snprintf(header, sizeof header, "{\"__metadata__\":null");
  for (int i = 0; i < n_items; i++) {
    const item *t = &items[i];
    if (t->shard != shard) continue;
    size_t bytes = (size_t)t->count * width_of(t->dtype);
    length += (size_t)snprintf(header + length, sizeof header - length,
                               ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->dtype);
    for (int d = 0; d < t->ndim; d++)
      length += (size_t)snprintf(header + length, sizeof header - length, "%s%lld", d ? "," : "",
                                 (long long)t->shape[d]);
    length += (size_t)snprintf(header + length, sizeof header - length,
                               "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
    at += bytes;
  }
  length += (size_t)snprintf(header + length, sizeof header - length, "}");
  char *file = bk_alloc(ctx, 8 + length + at), *data = file + 8 + length;
  for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)length >> 8 * i & 255);
  memcpy(file + 8, header, length);
  for (int i = 0; i < n_items; i++) {
    if (items[i].shard != shard) continue;
    encode(&items[i], data);
    data += (size_t)items[i].count * width_of(items[i].dtype);
  }
  OK(bk_file_write_atomic(ctx, path, file, 8 + length + at));
  bk_free(ctx, file);
}

static void put_single(const char *folder) {
  char *path = bk_path_join(ctx, folder, "model.safetensors");
  OK(bk_mkdirs(ctx, folder));
  for (int i = 0; i < n_items; i++) items[i].shard = 0;
  put_shard(path, 0);
  bk_free(ctx, path);
}

/* model-00001-of-0000N.safetensors and so on, and their index. */
static void put_shards(const char *folder, int n) {
  char path[600];
  size_t length = (size_t)snprintf(
      header, sizeof header,
      "{\"metadata\": {\"total_size\": 1.5e3, \"note\": [null]}, \"weight_map\": {");
  OK(bk_remove_tree(ctx, folder));
  OK(bk_mkdirs(ctx, folder));
  for (int i = 0; i < n_items; i++) {
    items[i].shard = (i * 7 + 1) % n; /* in no order at all */
    length += (size_t)snprintf(header + length, sizeof header - length,
                               "%s\n\"%s\": \"model-%05d-of-%05d.safetensors\"", i ? "," : "",
                               items[i].name, items[i].shard + 1, n);
  }
  length += (size_t)snprintf(header + length, sizeof header - length, "}}");
  snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
  OK(bk_file_write_atomic(ctx, path, header, length));
  for (int s = 0; s < n; s++) {
    snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", folder, s + 1, n);
    put_shard(path, s);
  }
}

/* ---- models ---- */

static bk_device *device, *reference;

static void open_all(void) {
  unit_folder_open();
  device = open_device("cpu", 1);
  reference = open_device("ref", 1);
}

static void close_all(void) {
  drop_items();
  bk_device_close(reference);
  bk_device_close(device);
  unit_folder_close();
}

static bk_model *make_model(const bk_model_config *c, bk_dtype dtype, bool trainable, bool allow) {
  bk_model *m = NULL;
  OK(bk_model_create(dtype == BK_F64 ? reference : device, c, dtype,
                     &(bk_model_options){.trainable = trainable, .allow_nonfinite = allow}, &m));
  OK(bk_model_init(m, 3));
  return m;
}

/* small_config's weights in `items`, stored as `dtype`. */
static bk_model_config begin(int residual, const char *dtype) {
  bk_model_config c = small_config(residual);
  bk_model *m = make_model(&c, BK_F32, false, false);
  enliven(m, 4);
  take_model(m, dtype);
  bk_model_destroy(m);
  return c;
}

static bool same_number(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

/* what take_wanted took: the weights in the order of the model's parameters */
static double *wanted;

static void take_wanted(void) {
  int64_t at = 0, n = 0;
  for (int i = 0; i < n_items; i++) n += items[i].count;
  wanted = bk_alloc_array(ctx, (size_t)n, sizeof *wanted);
  for (int i = 0; i < n_items; i++)
    for (int64_t j = 0; j < items[i].count; j++) wanted[at++] = items[i].v[j];
}

static void check_tensor(bk_model *m, const bk_param *p, bk_tensor t, const double *want) {
  int64_t n = bk_tensor_count(&t);
  if (!bk_tensor_present(&t)) return;
  double *got = read_tensor(m, t);
  for (int64_t j = 0; j < n; j++) {
    double w = t.dtype == BK_BF16  ? (double)bk_bf16_to_f32(bk_f32_to_bf16((float)want[j]))
               : t.dtype == BK_F32 ? (double)(float)want[j]
                                   : want[j];
    ck_assert_msg(same_number(got[j], w), "%s[%lld] in %s: %g, expected %g", p->name, (long long)j,
                  bk_dtype_name(t.dtype), got[j], w);
  }
  bk_free(ctx, got);
}

static void check_weights(bk_model *m) {
  const double *want = wanted;
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    bk_tensor w = bk_param_weight(m, p);
    check_tensor(m, p, w, want);
    check_tensor(m, p, bk_param_master(m, p), want);
    want += bk_tensor_count(&w);
  }
}

/* The folder's weights are the wanted ones, in models of all kinds. */
static void check_loads(const bk_model_config *c, const char *folder) {
  static const bk_dtype dtypes[] = {BK_F32, BK_BF16, BK_F64};
  for (size_t i = 0; i < BK_COUNT(dtypes); i++) {
    bk_model *m = make_model(c, dtypes[i], dtypes[i] == BK_BF16, false);
    OK(bk_checkpoint_load_weights(m, folder));
    unit_expect(NULL);
    check_weights(m);
    bk_model_destroy(m);
  }
}

static void refused(const bk_model_config *c, const char *folder, const char *file,
                    const char *part) {
  bk_model *m = make_model(c, BK_F32, false, false);
  ck_assert_int_eq(bk_checkpoint_load_weights(m, folder), BK_ERR_DATA);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_msg(strstr(unit_messages, file) != NULL, "%s is not named in: %s", file, unit_messages);
  unit_expect(part);
  bk_model_destroy(m);
}

/* ---- shards ---- */

START_TEST(test_shards) {
  char folder[512];
  bk_dtype dtype = BK_NONE;
  snprintf(folder, sizeof folder, "%s", unit_path("s"));
  for (int n = 1; n <= 5; n += 2) {
    bk_model_config c = begin(n == 3 ? BK_HC_PLAIN : BK_HC_MHC, n == 5 ? "BF16" : "F32");
    char *path = NULL;
    if (n == 5)
      for (int i = 0; i < n_items; i++)
        for (int64_t j = 0; j < items[i].count; j++)
          items[i].v[j] = (double)bk_bf16_to_f32(bk_f32_to_bf16((float)items[i].v[j]));
    take_wanted();
    put_shards(folder, n);
    check_loads(&c, folder);
    OK(bk_checkpoint_dtype(ctx, folder, &dtype));
    ck_assert_int_eq(dtype, n == 5 ? BK_BF16 : BK_F32);
    OK(bk_checkpoint_resolve(ctx, folder, &path));
    ck_assert_str_eq(path, folder);
    bk_free(ctx, path);
    bk_free(ctx, wanted);
  }
}
END_TEST

START_TEST(test_shards_refused) {
  char folder[512];
  snprintf(folder, sizeof folder, "%s", unit_path("s"));
  bk_model_config c = begin(BK_HC_MHC, "F32"), other = c;
  put_shards(folder, 4);
  other.vocab_size = 24;
  refused(&other, folder, "-of-00004.safetensors: tensor ",
          "has shape [23,12], the configuration wants [24,12]");
  other = c, other.num_hidden_layers = 2;
  refused(&other, folder, "-of-00004.safetensors", "does not belong to this configuration");
  other = c, other.num_hidden_layers = 4;
  refused(&other, folder, "model.safetensors.index.json",
          "tensor model.layers.3.input_layernorm.weight is missing");
  OK(bk_remove_tree(ctx, unit_path("s/model-00003-of-00004.safetensors")));
  refused(&c, folder, "model-00003-of-00004.safetensors", "is missing, a part of the weights that");
  find_item("lm_head.weight")->v[7] = NAN;
  put_shards(folder, 2);
  refused(&c, folder,
          find_item("lm_head.weight")->shard ? "model-00002-of-00002" : "model-00001-of-00002",
          "tensor lm_head.weight is not finite: element 7 is nan;");
}
END_TEST

/* model.safetensors has precedence, as in transformers; a plain checkpoint in shards is
 * converted too. */
START_TEST(test_shards_beside) {
  char folder[512];
  snprintf(folder, sizeof folder, "%s", unit_path("s"));
  bk_model_config c = begin(BK_HC_PLAIN, "F32"), mhc = c;
  put_shards(folder, 2);
  for (int i = 0; i < n_items; i++) items[i].v[0] += 1;
  take_wanted();
  put_single(folder);
  check_loads(&c, folder);
  OK(bk_remove_tree(ctx, unit_path("s/model.safetensors")));
  mhc.residual = BK_HC_MHC;
  bk_model *m = make_model(&mhc, BK_F32, false, false);
  OK(bk_checkpoint_convert_plain(m, folder));
  bk_model_destroy(m);
  bk_free(ctx, wanted);
}
END_TEST

START_TEST(test_other_formats) {
  static const char *const names[] = {"pytorch_model.bin", "pytorch_model.bin.index.json"};
  for (size_t i = 0; i < BK_COUNT(names); i++) {
    char *path = NULL, *file = bk_path_join(ctx, unit_path("p"), names[i]);
    OK(bk_mkdirs(ctx, unit_path("p")));
    OK(bk_file_write_atomic(ctx, file, "x", 1));
    ck_assert_int_eq(bk_checkpoint_resolve(ctx, unit_path("p"), &path), BK_ERR_DATA);
    ck_assert_msg(strstr(unit_messages, names[i]) != NULL, "%s", unit_messages);
    unit_expect("converted to safetensors first");
    OK(bk_remove_tree(ctx, unit_path("p")));
    bk_free(ctx, file);
  }
}
END_TEST

/* ---- dtypes ---- */

START_TEST(test_half) {
  bk_model_config c = begin(BK_HC_MHC, "F16");
  bk_dtype dtype = BK_NONE;
  item *t = find_item("lm_head.weight");
  /* the largest, subnormals, a zero */
  t->v[0] = 65504, t->v[1] = 0x1p-24, t->v[2] = -0x1.ff8p-15, t->v[3] = -0.0;
  find_item("model.norm.weight")->dtype = "F32";
  find_item("model.norm.weight")->v[1] = 0x1p-100;
  take_wanted();
  put_single(unit_path("h"));
  check_loads(&c, unit_path("h"));
  OK(bk_checkpoint_dtype(ctx, unit_path("h"), &dtype));
  ck_assert_int_eq(dtype, BK_F32);
  bk_free(ctx, wanted);
}
END_TEST

START_TEST(test_dtypes_refused) {
  static const char q[] = "model.layers.1.self_attn.q_proj.weight";
  static const char *const fp8[] = {"F8_E4M3", "F8_E5M2", "F8_E8M0"};
  bk_model_config c = begin(BK_HC_MHC, "F32");
  for (size_t i = 0; i < BK_COUNT(fp8); i++) {
    find_item(q)->dtype = fp8[i];
    put_single(unit_path("d"));
    refused(&c, unit_path("d"), q,
            "FP8 weights with block scales are not read; convert them to bf16 first");
  }
  find_item(q)->dtype = "I32";
  put_single(unit_path("d"));
  refused(&c, unit_path("d"), q, "has dtype I32, expected F32, BF16, F64 or F16");
  find_item(q)->dtype = "F32";
  add_item("model.layers.1.self_attn.q_proj.weight_scale_inv", "F32", 2, (int64_t[]){1, 1});
  put_single(unit_path("d"));
  refused(&c, unit_path("d"), "weight_scale_inv", "FP8 weights with block scales are not read");
  find_item("model.embed_tokens.weight")->dtype = "F8_E4M3";
  put_single(unit_path("d"));
  bk_dtype dtype;
  ck_assert_int_eq(bk_checkpoint_dtype(ctx, unit_path("d"), &dtype), BK_ERR_DATA);
  unit_expect("FP8");
}
END_TEST

/* ---- names ---- */

static void rename_all(const char *prefix, bool without_model) {
  for (int i = 0; i < n_items; i++) {
    char old[120];
    memcpy(old, items[i].name, sizeof old);
    const char *name = without_model && strncmp(old, "model.", 6) == 0 ? old + 6 : old;
    ck_assert_int_lt(snprintf(items[i].name, sizeof items[i].name, "%s%s", prefix, name),
                     (int)sizeof items[i].name);
  }
}

START_TEST(test_prefixes) {
  static const char *const prefixes[] = {"module.", "_orig_mod.", "module._orig_mod.",
                                         "_orig_mod.module.", "module.module."};
  bk_model_config c;
  for (size_t i = 0; i < 2 * BK_COUNT(prefixes); i++) {
    bk_dtype dtype = BK_NONE;
    c = begin(BK_HC_MHC, "F32");
    take_wanted();
    rename_all(prefixes[i / 2], i % 2);
    if (i % 3) put_single(unit_path("n"));
    else put_shards(unit_path("n"), 3);
    check_loads(&c, unit_path("n"));
    OK(bk_checkpoint_dtype(ctx, unit_path("n"), &dtype));
    OK(bk_remove_tree(ctx, unit_path("n")));
    bk_free(ctx, wanted);
  }
  /* beside module.module.lm_head.weight */
  add_item("lm_head.weight", "F32", 2, (int64_t[]){23, 12});
  put_single(unit_path("n"));
  refused(&c, unit_path("n"), "module.module.lm_head.weight", "does not belong beside");
  begin(BK_HC_MHC, "F32");
  rename_all("modul.", false);
  put_single(unit_path("n"));
  refused(&c, unit_path("n"), "model.embed_tokens.weight", "is missing");
}
END_TEST

/* ---- experts in one tensor ---- */

enum { EXPERTS = 6, INNER = 5, WIDTH = 12 };

/* The experts of a layer as transformers keeps them; `which`: 1 gate_up_proj, 2 down_proj. */
static void fuse(int layer, int which, const char *prefix) {
  static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
  char name[120];
  for (int fused = 0; fused < 2; fused++) {
    if (!(which & 1 << fused)) continue;
    snprintf(name, sizeof name, "%smodel.layers.%d.mlp.experts.%s", prefix, layer,
             fused ? "down_proj" : "gate_up_proj");
    const int64_t gate_up[] = {EXPERTS, 2 * INNER, WIDTH}, down[] = {EXPERTS, WIDTH, INNER};
    double *v = add_item(name, items[0].dtype, 3, fused ? down : gate_up)->v;
    for (int e = 0; e < EXPERTS; e++)
      for (int part = fused ? 2 : 0; part < (fused ? 3 : 2); part++) {
        snprintf(name, sizeof name, "%smodel.layers.%d.mlp.experts.%d.%s.weight", prefix, layer, e,
                 names[part]);
        item *t = find_item(name);
        memcpy(v, t->v, (size_t)t->count * sizeof *v);
        v += t->count;
        bk_free(ctx, t->v);
        *t = items[--n_items];
      }
  }
}

START_TEST(test_fused) {
  static const char *const dtypes[] = {"F32", "F16", "F64"}, *const prefixes[] = {
                                                                 "", "module.",
                                                                 "_orig_mod.module."};
  for (int i = 0; i < 3; i++) {
    bk_model_config c = begin(BK_HC_PLAIN, dtypes[i]);
    take_wanted();
    rename_all(prefixes[i], false);
    fuse(1, i == 2 ? 1 : 3, prefixes[i]); /* also one of the two alone */
    fuse(2, 3, prefixes[i]);
    put_single(unit_path("f"));
    check_loads(&c, unit_path("f"));
    bk_free(ctx, wanted);
  }
}
END_TEST

START_TEST(test_fused_refused) {
  static const char gate_up[] = "model.layers.2.mlp.experts.gate_up_proj",
                    down[] = "model.layers.2.mlp.experts.down_proj";
  bk_model_config c = begin(BK_HC_PLAIN, "F32");
  fuse(2, 3, "");
  add_item("model.layers.2.mlp.experts.3.up_proj.weight", "F32", 2, (int64_t[]){INNER, WIDTH});
  put_single(unit_path("f"));
  refused(&c, unit_path("f"), gate_up,
          "tensor model.layers.2.mlp.experts.3.up_proj.weight does not belong beside tensor");
  n_items--, bk_free(ctx, items[n_items].v);
  add_item("model.layers.2.mlp.experts.0.down_proj.weight", "F32", 2, (int64_t[]){WIDTH, INNER});
  put_single(unit_path("f"));
  refused(&c, unit_path("f"), down, "only one form of a weight");
  n_items--, bk_free(ctx, items[n_items].v);
  /* transposed, as other models have it */
  find_item(gate_up)->shape[1] = WIDTH, find_item(gate_up)->shape[2] = 2 * INNER;
  put_single(unit_path("f"));
  refused(&c, unit_path("f"), gate_up, "has shape [6,12,10], the configuration wants [6,10,12]");
  find_item(gate_up)->shape[1] = 2 * INNER, find_item(gate_up)->shape[2] = WIDTH;
  find_item(gate_up)->dtype = "F8_E4M3";
  put_single(unit_path("f"));
  refused(&c, unit_path("f"), gate_up, "FP8");
  find_item(gate_up)->dtype = "F32";
  /* layer 0 has none */
  add_item("model.layers.0.mlp.experts.down_proj", "F32", 3, (int64_t[]){EXPERTS, WIDTH, INNER});
  put_single(unit_path("f"));
  refused(&c, unit_path("f"), "model.layers.0.mlp.experts.down_proj", "does not belong");
  n_items--, bk_free(ctx, items[n_items].v);
  /* of the up matrix of expert 4 */
  find_item(gate_up)->v[(4 * 2 + 1) * INNER * WIDTH + 3] = (double)INFINITY;
  find_item(gate_up)->v[5 * 2 * INNER * WIDTH] = (double)NAN;
  put_single(unit_path("f"));
  refused(&c, unit_path("f"), gate_up, "is not finite: element 543 is inf;");
}
END_TEST

/* ---- layers left out ---- */

static void add_extra(const char *name) { add_item(name, "F32", 1, (int64_t[]){2}); }

START_TEST(test_next_layers) {
  bk_model_config c = begin(BK_HC_PLAIN, "F32"), one = c, two = c;
  one.num_nextn_predict_layers = 1, two.num_nextn_predict_layers = 2;
  take_wanted();
  add_extra("model.layers.3.embed_tokens.weight");
  add_extra("model.layers.3.enorm.weight");
  add_extra("model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv");
  find_item("model.layers.3.enorm.weight")->v[1] = (double)NAN; /* nobody reads it */
  put_single(unit_path("m"));
  refused(&c, unit_path("m"), "model.layers.3.embed_tokens.weight", "does not belong");
  check_loads(&one, unit_path("m"));
  check_loads(&two, unit_path("m"));
  add_extra("module._orig_mod.layers.4.shared_head.head.weight");
  put_single(unit_path("m"));
  refused(&one, unit_path("m"), "layers.4.shared_head.head.weight", "does not belong");
  check_loads(&two, unit_path("m"));
  add_extra("model.layers.30.enorm.weight");
  put_single(unit_path("m"));
  refused(&two, unit_path("m"), "model.layers.30.enorm.weight", "does not belong");
  n_items--, bk_free(ctx, items[n_items].v);
  add_extra("model.layers.3x.enorm.weight");
  put_single(unit_path("m"));
  refused(&two, unit_path("m"), "model.layers.3x.enorm.weight", "does not belong");
  n_items--, bk_free(ctx, items[n_items].v);
  add_extra("module.model.layers.0.self_attn.rotary_emb.inv_freq");
  put_single(unit_path("m"));
  check_loads(&two, unit_path("m"));
  bk_free(ctx, wanted);
}
END_TEST

/* ---- what is not finite ---- */

typedef struct poison {
  const char *dtype; /* of the file */
  bk_dtype model;
  double value;
  const char *said;
} poison;

/* The value in two tensors of the file, refused and, where allowed, loaded with a warning in the
 * same words. */
static void check_poison(const poison *x) {
  bk_model_config c = begin(BK_HC_MHC, x->dtype);
  char said[256], *what = NULL;
  find_item("model.layers.1.mlp.experts.2.up_proj.weight")->v[31] = x->value;
  find_item("model.layers.1.mlp.experts.2.up_proj.weight")->v[40] = x->value;
  find_item("model.embed_tokens.weight")->v[275] = x->value;
  take_wanted();
  put_single(unit_path("x"));
  for (int allow = 0; allow < 2; allow++) {
    bk_model *m = make_model(&c, x->model, true, allow);
    bk_status status = bk_checkpoint_load_weights(m, unit_path("x"));
    ck_assert_msg(status == (allow ? BK_OK : BK_ERR_DATA), "%g of %s into %s: status %s", x->value,
                  x->dtype, bk_dtype_name(x->model), bk_status_name(status));
    ck_assert_int_eq(unit_errors(), !allow);
    snprintf(said, sizeof said,
             "%s: tensor model.embed_tokens.weight is not finite%s, and 1 further tensor is not "
             "finite; ",
             unit_path("x/model.safetensors"), x->said);
    ck_assert_msg(strstr(unit_messages, allow ? "warning: " : "error: ") == unit_messages, "%s",
                  unit_messages);
    unit_expect(said);
    if (allow) check_weights(m);
    bk_model_destroy(m);
  }
  /* sees what the file itself has */
  bk_status status = bk_checkpoint_check_finite(ctx, unit_path("x"), &what);
  ck_assert_int_eq(status, isfinite(x->value) ? BK_OK : BK_ERR_NOT_FINITE);
  ck_assert((what != NULL) == !isfinite(x->value) &&
            (!what || strstr(what, "model.embed_tokens.weight") != NULL));
  bk_free(ctx, what);
  bk_free(ctx, wanted);
}

START_TEST(test_not_finite) {
  const double inf = (double)INFINITY, nan_ = (double)NAN;
  const poison poisons[] = {
      {"F32", BK_F32, nan_, ": element 275 is nan"},
      {"F32", BK_F32, inf, ": element 275 is inf"},
      {"F32", BK_F32, -inf, ": element 275 is -inf"},
      {"BF16", BK_BF16, nan_, ": element 275 is nan"},
      {"BF16", BK_F32, -inf, ": element 275 is -inf"},
      {"F16", BK_F32, inf, ": element 275 is inf"},
      {"F16", BK_BF16, nan_, ": element 275 is nan"},
      {"F64", BK_F64, nan_, ": element 275 is nan"},
      {"F64", BK_F64, -inf, ": element 275 is -inf"},
      {"F32", BK_F64, inf, ": element 275 is inf"},
      {"F32", BK_BF16, inf, ": element 275 is inf"},
      {"F64", BK_F32, 1e300,
       " once it is loaded: element 275 is 1e+300, which is finite in the file and too large for "
       "fp32"},
      {"F64", BK_F32, -0x1.ffffffp127,
       " once it is loaded: element 275 is -3.40282357e+38, which is finite in the file and too "
       "large for fp32"},
      {"F32", BK_BF16, 0x1.ffp127,
       " once it is loaded: element 275 is 3.39617753e+38, which is finite in the file and too "
       "large for bf16"},
      {"F64", BK_BF16, -1e300,
       " once it is loaded: element 275 is -1e+300, which is finite in the file and too large for "
       "bf16"},
  };
  for (size_t i = 0; i < BK_COUNT(poisons); i++) check_poison(&poisons[i]);
}
END_TEST

/* The largest numbers that a dtype holds pass without a word. */
START_TEST(test_largest) {
  static const struct {
    const char *dtype;
    double value;
  } largest[] = {
      {"F64", 0x1.fffffefffffffp127}, {"F32", 0x1.fefffep127}, {"F64", -0x1.fefffeffffff0p127}};
  for (size_t i = 0; i < BK_COUNT(largest); i++) {
    bk_model_config c = begin(BK_HC_PLAIN, largest[i].dtype);
    find_item("lm_head.weight")->v[0] = largest[i].value;
    put_single(unit_path("l"));
    bk_model *m = make_model(&c, i == 0 ? BK_F32 : BK_BF16, false, false);
    OK(bk_checkpoint_load_weights(m, unit_path("l")));
    bk_tensor w = bk_param_weight(m, bk_model_find(m, "lm_head.weight"));
    double *got = read_tensor(m, w);
    ck_assert(isfinite(got[0]));
    bk_free(ctx, got);
    bk_model_destroy(m);
  }
}
END_TEST

/* Far into a tensor that passes in several pieces, in shards, and where a plain checkpoint is
 * converted. */
START_TEST(test_not_finite_elsewhere) {
  bk_model_config c = small_config(BK_HC_PLAIN);
  char folder[512];
  snprintf(folder, sizeof folder, "%s", unit_path("e"));
  c.vocab_size = 30000;
  bk_model *m = make_model(&c, BK_F32, false, false);
  take_model(m, "F32");
  find_item("lm_head.weight")->v[300001] = (double)-INFINITY;
  find_item("lm_head.weight")->v[300002] = (double)NAN;
  put_shards(folder, 2);
  ck_assert_int_eq(bk_checkpoint_load_weights(m, folder), BK_ERR_DATA);
  ck_assert_ptr_nonnull(strstr(unit_messages, "-of-00002.safetensors: "));
  unit_expect("tensor lm_head.weight is not finite: element 300001 is -inf; --allow-nonfinite");
  bk_model_destroy(m);
  c.residual = BK_HC_MHC;
  for (int allow = 0; allow < 2; allow++) {
    m = make_model(&c, BK_F32, false, allow);
    ck_assert_int_eq(bk_checkpoint_convert_plain(m, folder), allow ? BK_OK : BK_ERR_DATA);
    unit_expect("element 300001 is -inf; ");
    bk_model_destroy(m);
  }
}
END_TEST

static void set_element(bk_model *m, bk_tensor t, int64_t i, double value) {
  double *v = read_tensor(m, t);
  v[i] = value;
  OK(bk_tensor_write_f64(m->stream, &t, v));
  bk_free(ctx, v);
}

/* Moments and masters. */
START_TEST(test_optimizer_not_finite) {
  static bk_tensor (*const views[])(const bk_model *, const bk_param *) = {bk_param_master,
                                                                           bk_param_m, bk_param_v};
  static const char *const prefixes[] = {"master", "m", "v"};
  bk_model_config c = small_config(BK_HC_MHC);
  bk_trainer_state state = {.step = 4, .tokens = 5, .dtype = BK_BF16};
  bk_train_config_default(&state.recipe);
  for (size_t k = 0; k < BK_COUNT(views); k++) {
    bk_model *a = make_model(&c, BK_BF16, true, false);
    char said[256], *what = NULL;
    set_element(a, views[k](a, bk_model_find(a, "lm_head.weight")), 17,
                k == 2 ? (double)INFINITY : (double)NAN);
    OK(bk_checkpoint_save(a, &state, unit_path("o")));
    snprintf(said, sizeof said,
             "optimizer.safetensors: tensor %s.lm_head.weight is not finite: element 17 is %s",
             prefixes[k], k == 2 ? "inf" : "nan");
    for (int allow = 0; allow < 2; allow++) {
      bk_model *b = make_model(&c, BK_BF16, true, allow);
      OK(bk_checkpoint_load_weights(b, unit_path("o")));
      ck_assert_int_eq(bk_checkpoint_load_optimizer(b, unit_path("o")),
                       allow ? BK_OK : BK_ERR_DATA);
      unit_expect(said);
      bk_model_destroy(b);
    }
    ck_assert_int_eq(bk_checkpoint_check_finite(ctx, unit_path("o"), &what), BK_ERR_NOT_FINITE);
    ck_assert_msg(what && strstr(what, said) != NULL, "%s", what ? what : "nothing");
    bk_free(ctx, what);
    bk_model_destroy(a);
  }
}
END_TEST

/* ---- step folders that are not whole ---- */

static bk_model *saver;
static bk_trainer_state saver_state;

static char *step_file(int64_t step, const char *file) {
  char name[64];
  snprintf(name, sizeof name, "run/step-%06lld%s%s", (long long)step, *file ? "/" : "", file);
  return bk_path_join(ctx, unit_folder, name);
}

static void save_step(int64_t step) {
  char *path = step_file(step, "");
  OK(bk_checkpoint_save(saver, &saver_state, path));
  bk_free(ctx, path);
}

static void drop_file(int64_t step, const char *file) {
  char *path = step_file(step, file);
  OK(bk_remove_tree(ctx, path));
  bk_free(ctx, path);
}

/* Leaves `keep` bytes, or all but -keep. */
static void cut_file(int64_t step, const char *file, int64_t keep) {
  char *path = step_file(step, file);
  uint64_t bytes;
  OK(bk_file_size(ctx, path, &bytes));
  ck_assert_int_eq(
      ctx->fs.truncate(ctx->fs.user, path, (uint64_t)(keep < 0 ? (int64_t)bytes + keep : keep)), 0);
  bk_free(ctx, path);
}

static void check_newest(bk_checkpoint_use use, int64_t want, const char *said) {
  int64_t step = 77;
  OK(bk_checkpoint_newest(ctx, unit_path("run"), use, &step));
  ck_assert_int_eq(step, want);
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(said);
}

static void check_none(bk_checkpoint_use use, const char *said) {
  int64_t step = 77;
  ck_assert_int_eq(bk_checkpoint_newest(ctx, unit_path("run"), use, &step), BK_ERR_DATA);
  ck_assert_int_eq(step, 77);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_ptr_null(strstr(unit_messages, "warning"));
  unit_expect(said);
}

static void open_steps(void) {
  open_all();
  bk_model_config c = small_config(BK_HC_PLAIN);
  c.num_hidden_layers = 1;
  saver = make_model(&c, BK_F32, true, false);
  saver_state = (bk_trainer_state){.step = 1, .tokens = 2, .dtype = BK_F32};
  bk_train_config_default(&saver_state.recipe);
}

static void close_steps(void) {
  bk_model_destroy(saver);
  close_all();
}

START_TEST(test_unfinished) {
  char *path = NULL;
  save_step(10);
  save_step(20);
  drop_file(20, "optimizer.safetensors");
  check_newest(BK_CHECKPOINT_ANY, 20, NULL);
  check_newest(BK_CHECKPOINT_READ, 20, NULL); /* enough for a reader */
  check_newest(
      BK_CHECKPOINT_RESUME, 10,
      "step-000020 is not a whole checkpoint and is passed over: optimizer.safetensors is missing");
  drop_file(20, "trainer_state.json");
  check_newest(BK_CHECKPOINT_RESUME, 10,
               "optimizer.safetensors is missing, trainer_state.json is missing");
  cut_file(20, "model.safetensors", -1);
  check_newest(BK_CHECKPOINT_READ, 10, "passed over: model.safetensors ends before its data does");
  OK(bk_checkpoint_resolve(ctx, unit_path("run"), &path));
  ck_assert_str_eq(path, unit_path("run/step-000010"));
  unit_expect("step-000020 is not a whole checkpoint");
  bk_free(ctx, path);
  cut_file(20, "model.safetensors", 100); /* in the header */
  check_newest(BK_CHECKPOINT_READ, 10, "ends before its data does");
  cut_file(20, "model.safetensors", 0);
  check_newest(BK_CHECKPOINT_READ, 10, "ends before its data does");
  cut_file(20, "config.json", 0);
  check_newest(BK_CHECKPOINT_READ, 10, "config.json is empty, model.safetensors ends");
  drop_file(20, "model.safetensors");
  drop_file(20, "config.json");
  check_newest(BK_CHECKPOINT_READ, 10, "config.json is missing, model.safetensors is missing");
  OK(bk_mkdirs(ctx, unit_path("run/step-000030")));
  check_newest(BK_CHECKPOINT_RESUME, 10, "step-000030 is not a whole checkpoint");
  save_step(30); /* over the unfinished one */
  check_newest(BK_CHECKPOINT_RESUME, 30, NULL);
  save_step(20);
  cut_file(30, "optimizer.safetensors", -4);
  check_newest(BK_CHECKPOINT_RESUME, 20,
               "step-000030 is not a whole checkpoint and is passed over: optimizer.safetensors "
               "ends before");
  check_newest(BK_CHECKPOINT_READ, 30, NULL);
}
END_TEST

START_TEST(test_none_whole) {
  char *path = NULL;
  OK(bk_mkdirs(ctx, unit_path("run/step-000005")));
  check_newest(BK_CHECKPOINT_ANY, 5, NULL);
  check_none(BK_CHECKPOINT_READ,
             "no checkpoint there is whole; of the newest, step-000005: config.json is missing, "
             "model.safetensors is missing");
  save_step(4);
  drop_file(4, "config.json");
  check_none(BK_CHECKPOINT_RESUME, "of the newest, step-000005:");
  save_step(7);
  cut_file(7, "model.safetensors", -1);
  check_none(BK_CHECKPOINT_RESUME,
             "of the newest, step-000007: model.safetensors ends before its data does");
  ck_assert_int_eq(bk_checkpoint_resolve(ctx, unit_path("run"), &path), BK_ERR_DATA);
  unit_expect("step-000007: model.safetensors ends before its data does");
  ck_assert_int_eq(bk_checkpoint_resolve(ctx, unit_path("run/step-000005"), &path), BK_ERR_DATA);
  unit_expect("model.safetensors is missing");
  ck_assert_ptr_null(path);
}
END_TEST

static bool has_step(int64_t step) {
  char *path = step_file(step, "");
  bool there = bk_path_exists(ctx, path);
  bk_free(ctx, path);
  return there;
}

/* Folders that are not whole neither count nor go, unless they are older than what is kept. */
START_TEST(test_prune_unfinished) {
  save_step(10);
  OK(bk_mkdirs(ctx, unit_path("run/step-000020")));
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 1));
  ck_assert(has_step(10) && has_step(20));
  save_step(30);
  save_step(40);
  drop_file(40, "trainer_state.json");
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 2));
  ck_assert(has_step(10) && has_step(20) && has_step(30) && has_step(40));
  save_step(35);
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 2));
  ck_assert(!has_step(10) && !has_step(20) && has_step(30) && has_step(35) && has_step(40));
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 1));
  ck_assert(!has_step(30) && has_step(35) && has_step(40));
  cut_file(35, "optimizer.safetensors", 3);
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 1)); /* none is whole: nothing goes */
  ck_assert(has_step(35) && has_step(40));
}
END_TEST

int main(void) {
  const TTest *const loads[] = {test_shards,
                                test_shards_refused,
                                test_shards_beside,
                                test_other_formats,
                                test_half,
                                test_dtypes_refused,
                                test_prefixes,
                                test_fused,
                                test_fused_refused,
                                test_next_layers,
                                test_not_finite,
                                test_largest,
                                test_not_finite_elsewhere,
                                test_optimizer_not_finite};
  const TTest *const steps[] = {test_unfinished, test_none_whole, test_prune_unfinished};
  Suite *suite = suite_create("checkpoint load");
  unit_case(suite, "loads", open_all, close_all, loads, BK_COUNT(loads));
  unit_case(suite, "steps", open_steps, close_steps, steps, BK_COUNT(steps));
  return unit_run(suite);
}

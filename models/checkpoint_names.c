/* From the names in files of weights to ours (checkpoint_priv.h). Files come from Hugging Face,
 * from other training code and from wrappers around it, which spell names in their own ways; all
 * of them are brought to the form that bk_param has. */
#include <stdlib.h>
#include <string.h>

#include "models/checkpoint_priv.h"
#include "runtime/connection.h"

/* How transformers names a connection's parameter NAME, and how we do. */
static const struct {
  const char *other, *ours;
} spellings[] = {{"attn_hc.", "hc_attn_"}, {"ffn_hc.", "hc_ffn_"}, {"hc_head.hc_", "hc_head_"}};

/* Steps past `text` if it stands there. */
static bool skip_text(const char **at, const char *text) {
  size_t length = strlen(text);
  if (strncmp(*at, text, length) != 0) return false;
  *at += length;
  return true;
}

/* Steps past the words that DataParallel, DistributedDataParallel and torch.compile put before a
 * name. */
static const char *without_wrappers(const char *name) {
  while (skip_text(&name, "module.") || skip_text(&name, "_orig_mod.")) continue;
  return name;
}

/* Whether some kind has a parameter of this name. */
static bool is_connection_param(const char *name) {
  const bk_connection_kind *kind;
  for (int k = 0; (kind = bk_connection_kind_of((bk_hc_kind)k)); k++)
    for (const bk_connection_param *p = kind->params; p->name; p++)
      if (strcmp(p->name, name) == 0) return true;
  return false;
}

/* `before` and the name, in our spelling if it is a connection's parameter. */
static char *with_our_leaf(bk_context *ctx, const char *before, const char *name) {
  for (size_t i = 0; i < BK_COUNT(spellings); i++) {
    const char *at = strstr(name, spellings[i].other);
    if (!at || (at != name && at[-1] != '.')) continue;
    const char *leaf = at + strlen(spellings[i].other);
    if (is_connection_param(leaf))
      return bk_format(ctx, "%s%.*s%s%s", before, (int)(at - name), name, spellings[i].ours, leaf);
  }
  return bk_format(ctx, "%s%s", before, name);
}

/* A base model (DeepseekV3Model) has names without "model."; only lm_head lies beside it. */
static char *our_name(bk_context *ctx, const char *name, bool prefixes) {
  const char *model = "";
  if (prefixes) {
    name = without_wrappers(name);
    if (strncmp(name, "model.", 6) != 0 && strcmp(name, "lm_head.weight") != 0) model = "model.";
  }
  return with_our_leaf(ctx, model, name);
}

/* The order is the one by which bk_weights_find searches. */
static int compare_weights(const void *a, const void *b) {
  return strcmp(((const bk_weight *)a)->name, ((const bk_weight *)b)->name);
}

/* Sorted by name for look-ups, which also brings two spellings of one name side by side. */
static bk_status name_all(bk_weights *w, const bk_st_reader *reader, bool prefixes) {
  int count = bk_st_count(reader);
  if (!(w->list = bk_alloc_array(w->ctx, (size_t)count, sizeof *w->list))) return BK_ERR_MEMORY;
  for (int i = 0; i < count; i++) {
    const bk_st_entry *e = bk_st_get(reader, i);
    char *name = our_name(w->ctx, e->name, prefixes);
    if (!name) return BK_ERR_MEMORY;
    w->list[w->count++] = (bk_weight){name, e, false};
  }
  if (count) qsort(w->list, w->count, sizeof *w->list, compare_weights);
  for (size_t i = 1; i < w->count; i++)
    if (strcmp(w->list[i - 1].name, w->list[i].name) == 0)
      return bk_fail(
          w->ctx, BK_ERR_DATA,
          "%s: tensor %s does not belong beside tensor %s: both are %s, and there can be only one",
          bk_st_entry_path(reader, w->list[i].entry), w->list[i].entry->name,
          w->list[i - 1].entry->name, w->list[i].name);
  return BK_OK;
}

bk_status bk_weights_list(bk_context *ctx, const bk_st_reader *reader, bool prefixes,
                          bk_weights *weights) {
  *weights = (bk_weights){.ctx = ctx};
  bk_status status = name_all(weights, reader, prefixes);
  if (status != BK_OK) bk_weights_free(weights);
  return status;
}

void bk_weights_free(bk_weights *weights) {
  for (size_t i = 0; i < weights->count; i++) bk_free(weights->ctx, weights->list[i].name);
  bk_free(weights->ctx, weights->list);
  *weights = (bk_weights){.ctx = weights->ctx};
}

static int compare_key(const void *key, const void *element) {
  return strcmp(key, ((const bk_weight *)element)->name);
}

/* The list is sorted by our names, so that it can be searched by bisection. */
bk_weight *bk_weights_find(const bk_weights *weights, const char *name) {
  return weights->count
             ? bsearch(name, weights->list, weights->count, sizeof *weights->list, compare_key)
             : NULL;
}

/* ---- experts that lie in one tensor ---- */

/* gate_up_proj has, for each expert, the rows of gate_proj and then those of up_proj. */
static const struct {
  const char *leaf, *fused;
  int part, parts;
} fused_names[] = {{".gate_proj.weight", "gate_up_proj", 0, 2},
                   {".up_proj.weight", "gate_up_proj", 1, 2},
                   {".down_proj.weight", "down_proj", 0, 1}};

/* The name of the tensor of all experts that would hold this matrix, whether or not a file has
 * it. */
bk_status bk_fused_name(bk_context *ctx, const char *name, bk_fused *fused) {
  static const char experts[] = ".mlp.experts.";
  const char *at = strstr(name, experts);
  char *leaf;
  *fused = (bk_fused){0};
  if (!at) return BK_OK;
  at += strlen(experts);
  fused->expert = strtoll(at, &leaf, 10);
  for (size_t i = 0; i < BK_COUNT(fused_names); i++) {
    if (strcmp(leaf, fused_names[i].leaf) != 0) continue;
    fused->part = fused_names[i].part;
    fused->parts = fused_names[i].parts;
    fused->name = bk_format(ctx, "%.*s%s", (int)(at - name), name, fused_names[i].fused);
    return fused->name ? BK_OK : BK_ERR_MEMORY;
  }
  return BK_OK;
}

/* What comes behind the number and its dot does not matter. */
int64_t bk_layer_of_name(const char *name) {
  char *end;
  if (!skip_text(&name, "model.layers.") || *name < '0' || *name > '9') return -1;
  long long layer = strtoll(name, &end, 10);
  return *end == '.' ? layer : -1;
}

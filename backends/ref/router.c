/* DeepSeek-V3's router (arXiv 2412.19437 section 2.1.2): sigmoid scores, group-limited top-k,
 * bias only in the choice. */
#include "backends/ref/ref.h"

/* One token's working set, in the workspace. */
typedef struct {
  double *biased; /* [E] */
  double *group;  /* [n_group] */
  int32_t *open;  /* [E]: may still be chosen */
  int64_t n_experts, n_group;
} choice;

BK_REF_PREPARE(router) {
  const bk_router_args *a = args;
  size_t e = (size_t)a->logits.shape[1], g = a->n_group > 0 ? (size_t)a->n_group : 1;
  *workspace_bytes = (e + g) * sizeof(double) + e * sizeof(int32_t);
  return BK_OK;
}

static choice make_choice(const bk_router_args *a, bk_place workspace) {
  choice c = {.n_experts = a->logits.shape[1], .n_group = a->n_group > 0 ? a->n_group : 1};
  c.biased = bk_place_data(workspace);
  c.group = c.biased + c.n_experts;
  c.open = (int32_t *)(c.group + c.n_group);
  return c;
}

/* Index of the largest of value[0 .. count) among those that are open; the lowest wins a tie.
 * With NaNs about, still an index within range. -1 when none is open. */
static int64_t best_open(const double *value, const int32_t *open, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; i++)
    if (open[i] && (best < 0 || value[i] > value[best])) best = i;
  return best;
}

/* The sum of the two best of a group; of one, if that is all it has. */
static double group_score(const double *value, int64_t count) {
  double first = value[0], second = -INFINITY;
  for (int64_t i = 1; i < count; i++) {
    if (value[i] > first) {
      second = first;
      first = value[i];
    } else if (value[i] > second) {
      second = value[i];
    }
  }
  return count > 1 ? first + second : first;
}

/* Opens the experts of the topk_group best groups, closes the others. */
static void keep_groups(choice *c, int topk_group) {
  int64_t size = c->n_experts / c->n_group;
  for (int64_t g = 0; g < c->n_group; g++) c->group[g] = group_score(c->biased + g * size, size);
  for (int64_t g = 0; g < c->n_group; g++) {
    int64_t better = 0;
    for (int64_t o = 0; o < c->n_group; o++)
      if (c->group[o] > c->group[g] || (c->group[o] == c->group[g] && o < g)) better++;
    for (int64_t e = g * size; e < (g + 1) * size; e++) c->open[e] = better < topk_group;
  }
}

static void write_weights(const bk_router_args *a, int64_t i) {
  int64_t k = a->index.shape[1];
  double sum = 0;
  for (int64_t j = 0; j < k; j++)
    sum += bk_ref_sigmoid(get2(&a->logits, i, geti2(&a->index, i, j)));
  double divisor = a->norm_topk_prob ? sum + 1e-20 : 1;
  for (int64_t j = 0; j < k; j++) {
    double s = bk_ref_sigmoid(get2(&a->logits, i, geti2(&a->index, i, j)));
    set2(&a->weights, i, j, s / divisor * a->routed_scaling_factor);
  }
}

BK_REF_LAUNCH(router) {
  const bk_router_args *a = args;
  choice c = make_choice(a, workspace);
  for (int64_t i = 0; i < a->logits.shape[0]; i++) {
    for (int64_t e = 0; e < c.n_experts; e++) {
      double s = bk_ref_sigmoid(get2(&a->logits, i, e));
      set2(&a->scores, i, e, s);
      c.biased[e] = s + get1(&a->bias, e);
    }
    keep_groups(&c, c.n_group > 1 ? a->topk_group : 1);
    for (int64_t j = 0; j < a->index.shape[1]; j++) {
      int64_t best = best_open(c.biased, c.open, c.n_experts);
      if (best < 0)
        return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                       "router: %lld experts are left for a choice of %lld", (long long)j,
                       (long long)a->index.shape[1]);
      c.open[best] = 0;
      *bk_ref_int(&a->index, at2(&a->index, i, j)) = (int32_t)best;
    }
    write_weights(a, i);
  }
  return BK_OK;
}

/* weights_j = f s_j / D: D = sum s + 1e-20, so ds_j = f (dw_j - sum_l dw_l s_l / D) / D; without
 * norm D = 1 is constant. */
BK_REF_LAUNCH(router_bwd) {
  const bk_router_bwd_args *a = args;
  int64_t k = a->index.shape[1];
  for (int64_t i = 0; i < a->scores.shape[0]; i++) {
    double sum = 0, mixed = 0;
    for (int64_t j = 0; j < k; j++) {
      double s = get2(&a->scores, i, geti2(&a->index, i, j));
      sum += s;
      mixed += get2(&a->dweights, i, j) * s;
    }
    double divisor = a->norm_topk_prob ? sum + 1e-20 : 1,
           common = a->norm_topk_prob ? mixed / divisor : 0;
    for (int64_t e = 0; e < a->dlogits.shape[1]; e++) set2(&a->dlogits, i, e, 0);
    for (int64_t j = 0; j < k; j++) {
      int32_t e = geti2(&a->index, i, j);
      double s = get2(&a->scores, i, e);
      double ds = a->routed_scaling_factor * (get2(&a->dweights, i, j) - common) / divisor;
      set2(&a->dlogits, i, e, ds * s * (1 - s));
    }
  }
  return BK_OK;
}

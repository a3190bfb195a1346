/* ROUTER, ROUTER_BWD, MOE_INDEX, BALANCE; formulas in runtime/op.h. Template, see cpu.h. */
#include "backends/cpu/kernels.h"
#include "backends/cpu/router.h"
#include "backends/cpu/simd.h"

/* ---- router: items are tokens ---- */
typedef struct router_job {
  const bk_router_args *a;
  char *scratch; /* bk_cpu_router_bytes for each worker */
} router_job;
typedef struct router_scratch {
  float *biased, *group;    /* [E], [n_group] */
  uint8_t *out, *group_out; /* not to be chosen (again) */
} router_scratch;

/* The first of the greatest that are not out; a NaN never beats what came before it. */
static int64_t best_of(const float *value, const uint8_t *out, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; i++)
    if (!out[i] && (best < 0 || value[i] > value[best])) best = i;
  return best;
}

/* Marks the experts of all but the best topk_group groups. */
static void router_groups(const bk_router_args *a, int64_t n_experts, router_scratch *s) {
  int64_t size = n_experts / a->n_group;
  for (int64_t g = 0; g < a->n_group; g++) {
    const float *v = s->biased + g * size;
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
      if (v[i] > first) second = first, first = v[i];
      else if (v[i] > second) second = v[i];
    }
    s->group[g] = size > 1 ? first + second : first;
  }
  memset(s->group_out, 0, (size_t)a->n_group);
  memset(s->out, 1, (size_t)n_experts);
  for (int kept = 0; kept < a->topk_group; kept++) {
    int64_t g = best_of(s->group, s->group_out, a->n_group);
    s->group_out[g] = 1;
    memset(s->out + g * size, 0, (size_t)size);
  }
}
static void router_token(const bk_router_args *a, int64_t t, router_scratch *s) {
  int64_t n = a->logits.shape[1], k = a->index.shape[1];
  const char *logits = bk_cpu_at(&a->logits, t);
  const float *bias = bk_tensor_data(&a->bias);
  float *scores = (float *)(void *)bk_cpu_at(&a->scores, t),
        *weights = (float *)(void *)bk_cpu_at(&a->weights, t);
  int32_t *index = (int32_t *)(void *)bk_cpu_at(&a->index, t);
  for (int64_t i = 0; i < n; i += BK_VW) {
    bk_vf v = bk_v_sigmoid(bk_v_get(logits, i, false, n - i));
    bk_v_put(scores, i, false, n - i, v);
    bk_v_put(s->biased, i, false, n - i, v + bk_v_get(bias, i, false, n - i));
  }
  memset(s->out, 0, (size_t)n);
  if (a->n_group > 1 && a->topk_group < a->n_group) router_groups(a, n, s);
  double sum = 0;
  for (int64_t j = 0; j < k; j++) {
    int64_t e = best_of(s->biased, s->out, n);
    s->out[e] = 1;
    index[j] = (int32_t)e;
    sum += scores[e];
  }
  double factor =
      a->norm_topk_prob ? a->routed_scaling_factor / (sum + 1e-20) : a->routed_scaling_factor;
  for (int64_t j = 0; j < k; j++) weights[j] = (float)(scores[index[j]] * factor);
}
static void router_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const router_job *job = arg;
  int64_t n = job->a->logits.shape[1];
  char *scratch = job->scratch + (size_t)worker * bk_cpu_router_bytes(n, job->a->n_group);
  router_scratch s;
  s.biased = (float *)(void *)scratch;
  s.group = s.biased + n;
  s.out = (uint8_t *)(s.group + job->a->n_group);
  s.group_out = s.out + n;
  for (int64_t t = begin; t < end; t++) router_token(job->a, t, &s);
}
bk_status BK_ISA_NAME(bk_cpu_router)(bk_stream *stream, const bk_plan *plan, const void *args,
                                     bk_place workspace) {
  const bk_router_args *a = args;
  router_job job = {a, bk_place_data(workspace)};
  (void)plan;
  bk_cpu_run(stream, a->logits.shape[0], bk_cpu_grain(32 * a->logits.shape[1]), router_piece, &job);
  return BK_OK;
}

/* ---- router_bwd: w_j = f s_j / S with S = sum s + 1e-20, so ds_j = f / S (dw_j - sum_i dw_i
 * s_i / S) ---- */
static void router_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_router_bwd_args *a = arg;
  int64_t n = a->scores.shape[1], k = a->index.shape[1];
  (void)worker;
  for (int64_t t = begin; t < end; t++) {
    const float *s = (const float *)(const void *)bk_cpu_at(&a->scores, t);
    const float *dw = (const float *)(const void *)bk_cpu_at(&a->dweights, t);
    const int32_t *index = (const int32_t *)(const void *)bk_cpu_at(&a->index, t);
    float *d = (float *)(void *)bk_cpu_at(&a->dlogits, t);
    double sum = 1e-20, dot = 0, mean = 0, factor = a->routed_scaling_factor;
    memset(d, 0, (size_t)n * sizeof *d);
    for (int64_t j = 0; j < k; j++) sum += s[index[j]], dot += (double)dw[j] * s[index[j]];
    if (a->norm_topk_prob) mean = dot / sum, factor /= sum;
    for (int64_t j = 0; j < k; j++) {
      double v = s[index[j]];
      d[index[j]] = (float)(factor * (dw[j] - mean) * v * (1.0 - v));
    }
  }
}
bk_status BK_ISA_NAME(bk_cpu_router_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                         bk_place workspace) {
  const bk_router_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->scores.shape[0], bk_cpu_grain(32 * a->scores.shape[1]), router_bwd_piece,
             a);
  return BK_OK;
}

/* ---- moe_index: counts, their running sum, then every choice in order to its expert's next row
 * ---- */
bk_status BK_ISA_NAME(bk_cpu_moe_index)(bk_stream *stream, const bk_plan *plan, const void *args,
                                        bk_place workspace) {
  const bk_moe_index_args *a = args;
  int64_t n = a->index.shape[0], k = a->index.shape[1], n_experts = a->offsets.shape[0] - 1;
  int32_t *offsets = bk_tensor_data(&a->offsets), *order = bk_tensor_data(&a->order),
          *next = bk_place_data(workspace);
  (void)stream, (void)plan;
  memset(next, 0, (size_t)n_experts * sizeof *next);
  for (int64_t t = 0; t < n; t++) {
    const int32_t *index = (const int32_t *)(const void *)bk_cpu_at(&a->index, t);
    for (int64_t j = 0; j < k; j++) next[index[j]]++;
  }
  offsets[0] = 0;
  for (int64_t e = 0; e < n_experts; e++) {
    if (bk_tensor_present(&a->load)) ((int32_t *)bk_tensor_data(&a->load))[e] += next[e];
    offsets[e + 1] = offsets[e] + next[e];
    next[e] = offsets[e];
  }
  for (int64_t t = 0; t < n; t++) {
    const int32_t *index = (const int32_t *)(const void *)bk_cpu_at(&a->index, t);
    int32_t *row_of = (int32_t *)(void *)bk_cpu_at(&a->row_of, t);
    for (int64_t j = 0; j < k; j++) {
      int32_t row = next[index[j]]++;
      row_of[j] = row;
      order[row] = (int32_t)(t * k + j);
    }
  }
  return BK_OK;
}

/* ---- balance ---- */
bk_status BK_ISA_NAME(bk_cpu_balance)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_balance_args *a = args;
  const int32_t *load = bk_tensor_data(&a->load);
  const float *step = bk_tensor_data(&a->step);
  float *bias = bk_tensor_data(&a->bias);
  int64_t n = a->load.shape[0], sum = 0;
  (void)stream, (void)plan, (void)workspace;
  if (step[BK_STEP_FINITE] == 0.f) return BK_OK;
  for (int64_t e = 0; e < n; e++) sum += load[e];
  for (int64_t e = 0; e < n; e++) {
    int64_t gap = sum - n * load[e];
    bias[e] += step[BK_STEP_BALANCE_RATE] * (float)((gap > 0) - (gap < 0));
  }
  return BK_OK;
}

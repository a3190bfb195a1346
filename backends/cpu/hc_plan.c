/* hc_plan: workspaces and states of the optimiser's and the residual connections' kernels; see
 * hc.h. */
#include "backends/cpu/hc.h"
#include "backends/cpu/optimizer.h"

void bk_hc_permutations(int n, uint8_t *table) {
  uint8_t p[BK_HC_PERM_MAX_N];
  for (int m = 0; m < n; m++) p[m] = (uint8_t)m;
  for (;;) {
    memcpy(table, p, (size_t)n);
    table += n;
    int i = n - 2; /* the next one in lexicographic order */
    while (i >= 0 && p[i] > p[i + 1]) i--;
    if (i < 0) return;
    int j = n - 1;
    while (p[j] < p[i]) j--;
    uint8_t t = p[i];
    p[i] = p[j], p[j] = t;
    for (int a = i + 1, b = n - 1; a < b; a++, b--) t = p[a], p[a] = p[b], p[b] = t;
  }
}

static bk_status permutations_create(bk_device *device, int n, void **state) {
  uint8_t *table = bk_alloc(device->ctx, (size_t)bk_factorial(n) * (size_t)n);
  if (!table) return BK_ERR_MEMORY;
  bk_hc_permutations(n, table);
  *state = table;
  return BK_OK;
}

BK_PREPARE(bk_cpu_sumsq_prepare) {
  const bk_sumsq_args *a = args;
  *workspace_bytes =
      (size_t)bk_cpu_pieces(bk_tensor_count(&a->x), bk_sumsq_grain(bk_tensor_count(&a->x))) *
      sizeof(double);
  return BK_OK;
}

BK_PREPARE(bk_cpu_hc_logits_bwd_prepare) {
  const bk_hc_logits_bwd_args *a = args;
  *workspace_bytes = bk_hc_partials_bytes(a->proj.shape[0], &a->dbase, &a->dscale);
  return BK_OK;
}

BK_PREPARE(bk_cpu_hc_perm_prepare) {
  return permutations_create(device, ((const bk_hc_perm_args *)args)->n, state);
}

BK_PREPARE(bk_cpu_hc_perm_bwd_prepare) {
  return permutations_create(device, ((const bk_hc_perm_bwd_args *)args)->n, state);
}

BK_PREPARE(bk_cpu_hc_tanh_bwd_prepare) {
  const bk_hc_tanh_bwd_args *a = args;
  *workspace_bytes = bk_hc_partials_bytes(a->proj.shape[0] / a->n, &a->dbase, &a->dscale);
  return BK_OK;
}

BK_PREPARE(bk_cpu_hc_maps_prepare) {
  const bk_hc_maps_args *a = args;
  return a->kind == BK_HC_MHC_LITE ? permutations_create(device, a->n, state) : BK_OK;
}

BK_PREPARE(bk_cpu_hc_maps_bwd_prepare) {
  const bk_hc_maps_bwd_args *a = args;
  *workspace_bytes = bk_hc_partials_bytes(a->dpre.shape[0], &a->dbase, &a->dscale);
  return a->kind == BK_HC_MHC_LITE ? permutations_create(device, a->n, state) : BK_OK;
}

BK_PREPARE(bk_cpu_hc_project_prepare) {
  const bk_hc_project_args *a = args;
  *workspace_bytes = bk_hc_project_floats(a->fn.shape[0], a->fn.shape[1]) * sizeof(float);
  return BK_OK;
}

BK_PREPARE(bk_cpu_hc_project_bwd_prepare) {
  const bk_hc_project_bwd_args *a = args;
  *workspace_bytes =
      bk_hc_project_bwd_floats(a->x.shape[0], a->fn.shape[0], a->x.shape[1]) * sizeof(float);
  return BK_OK;
}

BK_PREPARE(bk_cpu_hc_pre_norm_bwd_prepare) {
  const bk_hc_pre_norm_bwd_args *a = args;
  *workspace_bytes = (size_t)(bk_hc_pieces(a->x.shape[0]) * a->x.shape[2]) * sizeof(float);
  return BK_OK;
}

bk_hc_merge_mix_bwd_places bk_hc_merge_mix_bwd_split(const bk_hc_merge_mix_bwd_args *a,
                                                     bk_place workspace) {
  int64_t tokens = a->merge.x.shape[0];
  size_t maps = bk_hc_partials_bytes(tokens, &a->maps.dbase, &a->maps.dscale);
  size_t pre_norm = (size_t)(bk_hc_pieces(tokens) * a->pre_norm.x.shape[2]) * sizeof(float);
  size_t project = bk_hc_project_bwd_floats(tokens, a->project.fn.shape[0], a->project.x.shape[1]) *
                   sizeof(float);
  bk_hc_merge_mix_bwd_places at = {.maps = workspace, .pre_norm = workspace, .project = workspace};
  at.pre_norm.offset += BK_ALIGN_UP(maps, (size_t)64);
  at.project.offset = at.pre_norm.offset + BK_ALIGN_UP(pre_norm, (size_t)64);
  at.bytes = at.project.offset - workspace.offset + project;
  return at;
}

BK_PREPARE(bk_cpu_hc_merge_mix_prepare) {
  const bk_hc_merge_mix_args *a = args;
  *workspace_bytes =
      bk_hc_project_floats(a->project.fn.shape[0], a->project.fn.shape[1]) * sizeof(float);
  return a->maps.kind == BK_HC_MHC_LITE ? permutations_create(device, a->maps.n, state) : BK_OK;
}

BK_PREPARE(bk_cpu_hc_merge_mix_bwd_prepare) {
  const bk_hc_merge_mix_bwd_args *a = args;
  *workspace_bytes = bk_hc_merge_mix_bwd_split(a, (bk_place){0}).bytes;
  return a->maps.kind == BK_HC_MHC_LITE ? permutations_create(device, a->maps.n, state) : BK_OK;
}

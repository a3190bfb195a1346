/* hc_project: RMS of rows, and the projection with the RMS in one pass over x, forward and
 * backward. Template, see cpu.h. x [M,K] st, fn [R,K], proj [M,R], rinv [M]. The work on a block
 * of tokens is in hc_project.h. */
#include "backends/cpu/hc_project.h"

/* ---- the primitive ---- */
BK_INLINE void rms_rows(const bk_hc_rms_args *a, int64_t begin, int64_t end, const bool bf,
                        const int n) {
  int64_t columns = a->x.shape[1];
  (void)n;
  for (int64_t i = begin; i < end; i++) {
    const char *x = bk_cpu_at(&a->x, i);
    bk_vf squares = bk_v_zero();
#define BODY(count)                      \
  do {                                   \
    bk_vf v = bk_v_get(x, c, bf, count); \
    squares = v * v + squares;           \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    ((float *)bk_tensor_data(&a->rinv))[i] = rms_inverse(squares, columns, a->eps);
  }
}

static void rms_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_rms_args *a = arg;
  (void)worker;
  BK_HC_CALL(rms_rows, bk_cpu_is_bf16(&a->x), 1, a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_rms)(bk_stream *stream, const bk_plan *plan, const void *args,
                                     bk_place workspace) {
  const bk_hc_rms_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[1], 1), rms_piece, a);
  return BK_OK;
}

BK_INLINE void rms_bwd_rows(const bk_hc_rms_bwd_args *a, int64_t begin, int64_t end, const bool bf,
                            const int n) {
  const float *rinv = bk_tensor_data(&a->rinv), *drinv = bk_tensor_data(&a->drinv);
  int64_t columns = a->x.shape[1];
  (void)n;
  for (int64_t i = begin; i < end; i++) {
    const char *x = bk_cpu_at(&a->x, i);
    char *dx = bk_cpu_at(&a->dx, i);
    float factor = rms_back(rinv[i], drinv[i], columns);
#define BODY(count)                                        \
  do {                                                     \
    bk_vf v = bk_v_get(x, c, bf, count) * factor;          \
    if (a->accumulate) v = v + bk_v_get(dx, c, bf, count); \
    bk_v_put(dx, c, bf, count, v);                         \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
  }
}

static void rms_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_rms_bwd_args *a = arg;
  (void)worker;
  BK_HC_CALL(rms_bwd_rows, bk_cpu_is_bf16(&a->x), 1, a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_rms_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                         bk_place workspace) {
  const bk_hc_rms_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[1], 3), rms_bwd_piece, a);
  return BK_OK;
}

/* ---- projection ---- */
typedef struct project_job {
  const bk_hc_project_args *args;
  const float *packed;
} project_job;

BK_INLINE void project_blocks(const project_job *job, int64_t begin, int64_t end, const bool bf,
                              const int n) {
  (void)n;
  for (int64_t i = begin; i < end; i += BK_HC_BLOCK) {
    ahead next = {0};
    ahead_add(&next, &job->args->x, i + BK_HC_BLOCK, BK_HC_BLOCK, end);
    project_block(job->args, job->packed, i, end - i < BK_HC_BLOCK ? end - i : BK_HC_BLOCK, &next,
                  bf);
  }
}

static void project_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const project_job *job = arg;
  (void)worker;
  BK_HC_CALL(project_blocks, bk_cpu_is_bf16(&job->args->x), 1, job, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_project)(bk_stream *stream, const bk_plan *plan, const void *args,
                                         bk_place workspace) {
  const bk_hc_project_args *a = args;
  project_job job = {a, bk_place_data(workspace)};
  (void)plan;
  project_pack(stream, &a->fn, bk_place_data(workspace));
  bk_cpu_run(stream, a->x.shape[0], bk_hc_block_grain(a->x.shape[0]), project_piece, &job);
  return BK_OK;
}

BK_INLINE void project_bwd_groups(const project_bwd *job, int64_t begin, int64_t end, const bool bf,
                                  const int n) {
  float *dfn =
      job->partials + begin / bk_hc_grain(job->args->x.shape[0]) * project_bwd_partial(job);
  (void)n;
  for (int64_t i = begin; i < end; i += BK_HC_GROUP) {
    ahead next = {0};
    ahead_add(&next, &job->args->x, i + BK_HC_GROUP, BK_HC_GROUP, end);
    ahead_add(&next, &job->args->dx, i + BK_HC_GROUP, BK_HC_GROUP, end);
    project_bwd_group(job, i, end - i < BK_HC_GROUP ? end - i : BK_HC_GROUP, i == begin, dfn, &next,
                      bf);
  }
}

static void project_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const project_bwd *job = arg;
  (void)worker;
  BK_HC_CALL(project_bwd_groups, bk_cpu_is_bf16(&job->args->x), 1, job, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_project_bwd)(bk_stream *stream, const bk_plan *plan,
                                             const void *args, bk_place workspace) {
  const bk_hc_project_bwd_args *a = args;
  project_bwd job = project_bwd_of(a, bk_place_data(workspace));
  (void)plan;
  if (bk_tensor_present(&a->dx)) project_bwd_pack(stream, &a->fn, bk_place_data(workspace));
  bk_cpu_run(stream, a->x.shape[0], bk_hc_grain(a->x.shape[0]), project_bwd_piece, &job);
  project_bwd_finish(stream, &job);
  return BK_OK;
}

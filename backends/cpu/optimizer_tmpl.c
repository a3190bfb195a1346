/* optimizer: sum of squares, clip factor, AdamW. Template, see cpu.h.
 * The sum of squares adds 1024 elements in fp32, the rest in double, pieces in ascending order. */
#include "backends/cpu/optimizer.h"
#include "backends/cpu/simd.h"

typedef struct sumsq_job {
  const float *x;
  double *partials;
  int64_t grain;
} sumsq_job;

static double sumsq_1024(const float *x, int64_t count) {
  bk_vf sum[2] = {bk_v_zero(), bk_v_zero()};
  int64_t i = 0;
  for (; i + 2 * BK_VW <= count; i += 2 * BK_VW) {
    bk_vf a = bk_v_ld(x, i, false), b = bk_v_ld(x, i + BK_VW, false);
    sum[0] = a * a + sum[0];
    sum[1] = b * b + sum[1];
  }
  for (; i < count; i += BK_VW) {
    bk_vf a = bk_v_get(x, i, false, count - i);
    sum[0] = a * a + sum[0];
  }
  return (double)bk_v_hsum(sum[0] + sum[1]);
}

static void sumsq_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const sumsq_job *job = arg;
  double sum = 0;
  (void)worker;
  for (int64_t i = begin; i < end; i += 1024)
    sum += sumsq_1024(job->x + i, end - i < 1024 ? end - i : 1024);
  job->partials[begin / job->grain] = sum;
}

bk_status BK_ISA_NAME(bk_cpu_sumsq)(bk_stream *stream, const bk_plan *plan, const void *args,
                                    bk_place workspace) {
  const bk_sumsq_args *a = args;
  int64_t count = bk_tensor_count(&a->x);
  sumsq_job job = {bk_tensor_data(&a->x), bk_place_data(workspace), bk_sumsq_grain(count)};
  float *y = bk_tensor_data(&a->y);
  double sum = 0;
  (void)plan;
  bk_cpu_run(stream, count, job.grain, sumsq_piece, &job);
  for (int64_t p = 0; p < bk_cpu_pieces(count, job.grain); p++) sum += job.partials[p];
  y[0] = (float)(a->accumulate ? (double)y[0] + sum : sum);
  return BK_OK;
}

bk_status BK_ISA_NAME(bk_cpu_clip)(bk_stream *stream, const bk_plan *plan, const void *args,
                                   bk_place workspace) {
  float *step = bk_tensor_data(&((const bk_clip_args *)args)->step);
  double norm = sqrt((double)step[BK_STEP_SUMSQ]), limit = step[BK_STEP_MAX_NORM];
  (void)stream, (void)plan, (void)workspace;
  step[BK_STEP_NORM] = (float)norm;
  step[BK_STEP_CLIP] = (float)(limit > 0 && norm > limit ? limit / norm : 1);
  step[BK_STEP_FINITE] = isfinite(norm) && isfinite(step[BK_STEP_LOSS]) ? 1.f : 0.f;
  return BK_OK;
}

typedef struct adamw_job {
  const float *grad;
  void *p;
  float *master, *m, *v; /* master is p where there is none */
  float clip, lr, inv_bc1, inv_bc2, beta1, beta2, rest1, rest2, eps, decay;
  bool p_bf16, has_master;
} adamw_job;

BK_INLINE void adamw_lanes(const adamw_job *job, int64_t i, int64_t count) {
  bk_vf g = bk_v_get(job->grad, i, false, count) * job->clip;
  bk_vf m = bk_v_get(job->m, i, false, count) * job->beta1 + g * job->rest1;
  bk_vf v = bk_v_get(job->v, i, false, count) * job->beta2 + g * g * job->rest2;
  bk_vf w = bk_v_get(job->master, i, false, count);
  bk_vf update = m * job->inv_bc1 / (bk_v_sqrt(v * job->inv_bc2) + job->eps) + w * job->decay;
  w = w - update * job->lr;
  bk_v_put(job->m, i, false, count, m);
  bk_v_put(job->v, i, false, count, v);
  bk_v_put(job->master, i, false, count, w);
  if (job->has_master) {
    if (job->p_bf16) bk_v_put(job->p, i, true, count, w);
    else bk_v_put(job->p, i, false, count, w);
  }
}

static void adamw_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const adamw_job *job = arg;
  int64_t i = begin;
  (void)worker;
  for (; i + BK_VW <= end; i += BK_VW) adamw_lanes(job, i, BK_VW);
  if (i < end) adamw_lanes(job, i, end - i);
}

bk_status BK_ISA_NAME(bk_cpu_adamw)(bk_stream *stream, const bk_plan *plan, const void *args,
                                    bk_place workspace) {
  const bk_adamw_args *a = args;
  const float *step = bk_tensor_data(&a->step);
  (void)plan, (void)workspace;
  if (step[BK_STEP_FINITE] == 0.f) return BK_OK;
  adamw_job job = {
      .grad = bk_tensor_data(&a->grad),
      .p = bk_tensor_data(&a->p),
      .m = bk_tensor_data(&a->m),
      .v = bk_tensor_data(&a->v),
      .clip = step[BK_STEP_CLIP],
      .lr = step[BK_STEP_LR],
      .inv_bc1 = 1.f / step[BK_STEP_BC1],
      .inv_bc2 = 1.f / step[BK_STEP_BC2],
      .beta1 = (float)a->beta1,
      .beta2 = (float)a->beta2,
      .rest1 = (float)(1 - a->beta1),
      .rest2 = (float)(1 - a->beta2),
      .eps = (float)a->eps,
      .decay = (float)a->weight_decay,
      .p_bf16 = bk_cpu_is_bf16(&a->p),
      .has_master = bk_tensor_present(&a->master),
  };
  job.master = job.has_master ? bk_tensor_data(&a->master) : job.p;
  bk_cpu_run(stream, bk_tensor_count(&a->grad), 8192, adamw_piece, &job);
  return BK_OK;
}

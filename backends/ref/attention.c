/* Causal attention, one row of scores at a time. The workspace holds one head of one sequence in
 * double: it grows linearly with the number of positions. */
#include "backends/ref/ref.h"

/* Hands out consecutive pieces of the workspace. */
static double *take(double **free_space, int64_t count) {
  double *piece = *free_space;
  *free_space += count;
  return piece;
}

/* Row (b, t, h) of a [B,T,H,D] tensor. */
static void load_vector(const bk_tensor *x, int64_t b, int64_t t, int64_t h, double *dst) {
  bk_ref_load(x, at3(x, b, t, h), x->stride[3], x->shape[3], dst);
}

static void store_vector(const bk_tensor *x, int64_t b, int64_t t, int64_t h, const double *src) {
  bk_ref_store(x, at3(x, b, t, h), x->stride[3], x->shape[3], src);
}

static void load_head(const bk_tensor *x, int64_t b, int64_t rows, int64_t h, double *dst) {
  for (int64_t s = 0; s < rows; s++) load_vector(x, b, s, h, dst + s * x->shape[3]);
}

static void store_head(const bk_tensor *x, int64_t b, int64_t h, const double *src) {
  for (int64_t s = 0; s < x->shape[1]; s++) store_vector(x, b, s, h, src + s * x->shape[3]);
}

static void add_scaled(double *y, const double *x, double factor, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] += factor * x[i];
}

/* ---- forward ---- */

typedef struct {
  double *k, *v, *q, *o, *p;
} forward_space;

BK_REF_PREPARE(attention) {
  const bk_attention_args *a = args;
  int64_t s = a->k.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  *workspace_bytes = (size_t)(s * (dk + dv + 1) + dk + dv) * sizeof(double);
  return BK_OK;
}

/* o = sum_j p_j v_j over the first `count` keys, p = softmax(scale q.k); returns log sum exp of
 * the scaled scores. */
static double attend(const forward_space *w, int64_t count, int64_t dk, int64_t dv, double scale) {
  double max = -INFINITY, sum = 0;
  for (int64_t j = 0; j < count; j++) {
    w->p[j] = scale * bk_ref_dot(w->q, w->k + j * dk, dk);
    max = fmax(max, w->p[j]);
  }
  for (int64_t j = 0; j < count; j++) {
    w->p[j] = exp(w->p[j] - max);
    sum += w->p[j];
  }
  memset(w->o, 0, (size_t)dv * sizeof(double));
  for (int64_t j = 0; j < count; j++) add_scaled(w->o, w->v + j * dv, w->p[j] / sum, dv);
  return max + log(sum);
}

BK_REF_LAUNCH(attention) {
  const bk_attention_args *a = args;
  int64_t nt = a->q.shape[1], ns = a->k.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  int64_t past = bk_ref_past(&a->past), keys = past + nt < ns ? past + nt : ns;
  double *space = bk_place_data(workspace);
  forward_space w = {take(&space, ns * dk), take(&space, ns * dv), take(&space, dk),
                     take(&space, dv), take(&space, ns)};
  for (int64_t b = 0; b < a->q.shape[0]; b++)
    for (int64_t h = 0; h < a->q.shape[2]; h++) {
      load_head(&a->k, b, keys, h, w.k);
      load_head(&a->v, b, keys, h, w.v);
      for (int64_t t = 0; t < nt; t++) {
        load_vector(&a->q, b, t, h, w.q);
        double lse = attend(&w, past + t + 1 < keys ? past + t + 1 : keys, dk, dv, a->scale);
        store_vector(&a->o, b, t, h, w.o);
        if (bk_tensor_present(&a->lse)) set3(&a->lse, b, h, t, lse);
      }
    }
  return BK_OK;
}

/* ---- backward: probabilities from lse, p_j = exp(scale q.k_j - lse); delta = dout.o; ds_j =
 * p_j (dout.v_j - delta); dv_j += p_j dout; dq = scale sum_j ds_j k_j; dk_j += scale ds_j q ---- */

typedef struct {
  double *k, *v, *dk, *dv, *q, *dq, *o, *dout;
} backward_space;

BK_REF_PREPARE(attention_bwd) {
  const bk_attention_bwd_args *a = args;
  int64_t s = a->k.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  *workspace_bytes = (size_t)((2 * s + 2) * (dk + dv)) * sizeof(double);
  return BK_OK;
}

static void attend_bwd(const backward_space *w, int64_t count, int64_t dk, int64_t dv, double scale,
                       double lse) {
  double delta = bk_ref_dot(w->dout, w->o, dv);
  memset(w->dq, 0, (size_t)dk * sizeof(double));
  for (int64_t j = 0; j < count; j++) {
    double p = exp(scale * bk_ref_dot(w->q, w->k + j * dk, dk) - lse);
    double ds = p * (bk_ref_dot(w->dout, w->v + j * dv, dv) - delta);
    add_scaled(w->dv + j * dv, w->dout, p, dv);
    add_scaled(w->dq, w->k + j * dk, scale * ds, dk);
    add_scaled(w->dk + j * dk, w->q, scale * ds, dk);
  }
}

static void head_bwd(const bk_attention_bwd_args *a, const backward_space *w, int64_t b,
                     int64_t h) {
  int64_t nt = a->q.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  load_head(&a->k, b, nt, h, w->k);
  load_head(&a->v, b, nt, h, w->v);
  memset(w->dk, 0, (size_t)(nt * dk) * sizeof(double));
  memset(w->dv, 0, (size_t)(nt * dv) * sizeof(double));
  for (int64_t t = 0; t < nt; t++) {
    load_vector(&a->q, b, t, h, w->q);
    load_vector(&a->o, b, t, h, w->o);
    load_vector(&a->dout, b, t, h, w->dout);
    attend_bwd(w, t + 1, dk, dv, a->scale, get3(&a->lse, b, h, t));
    store_vector(&a->dq, b, t, h, w->dq);
  }
  store_head(&a->dk, b, h, w->dk);
  store_head(&a->dv, b, h, w->dv);
}

BK_REF_LAUNCH(attention_bwd) {
  const bk_attention_bwd_args *a = args;
  int64_t nt = a->q.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  double *space = bk_place_data(workspace);
  backward_space w = {
      .k = take(&space, nt * dk),
      .v = take(&space, nt * dv),
      .dk = take(&space, nt * dk),
      .dv = take(&space, nt * dv),
      .q = take(&space, dk),
      .dq = take(&space, dk),
      .o = take(&space, dv),
      .dout = take(&space, dv),
  };
  for (int64_t b = 0; b < a->q.shape[0]; b++)
    for (int64_t h = 0; h < a->q.shape[2]; h++) head_bwd(a, &w, b, h);
  return BK_OK;
}

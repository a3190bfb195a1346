/* A connection by itself, over host arrays of the caller's (birkhoff/residual.h). It is the same
 * code that models use: four programs, one for each pass, over a connection whose tensors are
 * planned here. On a device with host memory the caller's arrays are the tensors' memory; on
 * another they are copied in and out. */
#include <birkhoff/residual.h>

#include "models/connections/streams.h"

#include <stdio.h>
#include <string.h>

#define FN_STD 0.02 /* standard deviation of the first fn; the paper gives none */

/* Where one of the caller's arrays meets the device: a tensor whose buffer points to the array, or
 * one with memory of its own where the host's memory is not the device's. */
typedef struct port {
  bk_tensor t;
  bk_buffer host;
} port;

/* X, OUT, DOUT and DX are streams [N,n,C]; H, F, DF and DH are rows [N,C]; all are fp32. */
typedef enum port_id { X, H, F, OUT, DOUT, DX, DF, DH, PORTS } port_id;

/* The pass that was done last; the next call must be the one that follows it. */
typedef enum stage { IDLE, MIXED, MERGED, MERGED_BACK } stage;

struct bk_residual {
  bk_context *ctx;
  bk_device *device;
  bk_stream *stream; /* that of the compute lane */
  /* with its defaults filled in */
  bk_residual_options o;
  /* parameters, maps and their gradients, and the ports of a device with its own memory */
  bk_memory *memory;
  bk_lanes lanes;
  bk_plans plans;
  bk_program mix, merge, merge_bwd, mix_bwd;
  port ports[PORTS];
  bk_param_block param[BK_RESIDUAL_PARAMS]; /* weight and grad */
  bk_connection connection;
  bk_mix_acts acts;
  bk_mix_grads grads;
  stage stage;
};

/* ---- creation ---- */

/* The kinds that can stand alone: those with streams whose parameters are fn, base and scale, for
 * which this interface has names. */
static const bk_connection_kind *kind_of(bk_hc_kind number) {
  const bk_connection_kind *kind = bk_connection_kind_of(number);
  return kind && number != BK_HC_HEAD && kind->calls == &bk_streams_calls ? kind : NULL;
}

static bk_status refuse_kind(bk_context *ctx, bk_hc_kind kind) {
  char names[128] = "";
  size_t used = 0;
  for (int i = 0; bk_connection_names[i] && used < sizeof names; i++)
    if (kind_of((bk_hc_kind)i))
      used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                               bk_connection_names[i]);
  return bk_fail(ctx, BK_ERR_ARGUMENT, "residual: kind %d is none of %s", (int)kind, names);
}

/* Rows and columns of the flattened streams must fit 31 bits. */
static bk_status check_options(bk_device *device, const bk_residual_options *o) {
  bk_context *ctx = device->ctx;
  const bk_connection_kind *kind = kind_of(o->kind);
  char text[64];
  if (!kind) return refuse_kind(ctx, o->kind);
  if (!bk_connection_takes(kind, o->streams))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "residual: %d streams, %s can be", o->streams,
                   bk_connection_streams_text(kind, text, sizeof text));
  if (o->width < 1 || o->width > INT32_MAX / o->streams || o->tokens < 1 ||
      o->tokens > INT32_MAX / o->streams)
    return bk_fail(
        ctx, BK_ERR_ARGUMENT,
        "residual: %lld tokens of width %lld: each at least 1, and below 2^31 times the streams",
        (long long)o->tokens, (long long)o->width);
  if (o->sinkhorn_iters < 1 || o->sinkhorn_iters > BK_SINKHORN_MAX_ITERS || o->sublayer < 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "residual: sinkhorn_iters %d (1 to 64), sublayer %d (from 0)", o->sinkhorn_iters,
                   o->sublayer);
  if (!(o->hc_eps >= 0 && o->hc_eps <= 1) || !(o->norm_eps > 0 && o->norm_eps <= 1))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "residual: hc_eps %g (0 to 1), norm_eps %g (above 0, to 1)", o->hc_eps,
                   o->norm_eps);
  if (!(device->props.storage_dtypes & BK_DT(BK_F32)))
    return bk_fail(ctx, BK_ERR_UNSUPPORTED, "residual: device %s does not store fp32",
                   device->backend->name);
  return BK_OK;
}

/* Everything is fp32 here, the streams too: st and ct are the same. */
static bk_status reserve(bk_residual *r, bk_memory_class c, int ndim, const int64_t *shape,
                         bk_tensor *t) {
  return bk_memory_tensor(r->memory, c, BK_F32, ndim, shape, t);
}

/* The order is that of bk_residual_param and of the kind's params: fn, base, scale. */
static bk_status plan_params(bk_residual *r) {
  const bk_connection_kind *kind = r->connection.kind;
  for (int i = 0; i < BK_RESIDUAL_PARAMS; i++) {
    const bk_connection_param *p = &kind->params[i];
    int64_t shape[BK_MAX_DIMS];
    p->shape(kind, r->o.streams, r->o.width, shape);
    BK_TRY(reserve(r, BK_MEM_WEIGHTS, p->ndim, shape, &r->param[i].weight));
    BK_TRY(reserve(r, BK_MEM_GRADIENTS, p->ndim, shape, &r->param[i].grad));
    r->connection.param[i] = &r->param[i];
  }
  return BK_OK;
}

/* Maps live from mix to mix_bwd. Their gradients lie in the workspace all the same: merge_bwd and
 * mix_bwd are two programs, and nothing else writes there in between. */
static bk_status plan_maps(bk_residual *r) {
  const bk_connection_kind *kind = r->connection.kind;
  for (int i = 0; kind->calls->maps[i].name; i++) {
    int64_t shape[BK_MAX_DIMS];
    int ndim = kind->calls->maps[i].shape(kind, r->o.streams, r->o.width, r->o.tokens, shape);
    if (!ndim) continue;
    BK_TRY(reserve(r, BK_MEM_ACTIVATIONS, ndim, shape, &r->acts.map[i]));
    BK_TRY(reserve(r, BK_MEM_WORKSPACE, ndim, shape, &r->grads.map[i]));
  }
  return BK_OK;
}

/* The buffers of a host device have no memory yet: each call points them to the caller's arrays. */
static bk_status plan_ports(bk_residual *r) {
  for (int i = 0; i < PORTS; i++) {
    port *p = &r->ports[i];
    bool row = i == H || i == F || i == DF || i == DH;
    int64_t rows[] = {r->o.tokens, r->o.width}, streams[] = {r->o.tokens, r->o.streams, r->o.width};
    p->t = bk_tensor_make(BK_F32, row ? 2 : 3, row ? rows : streams);
    if (!r->device->props.host_memory) {
      BK_TRY(reserve(r, BK_MEM_STAGING, p->t.ndim, p->t.shape, &p->t));
      continue;
    }
    p->host = (bk_buffer){
        .device = r->device, .size = bk_tensor_bytes(&p->t), .mem_class = BK_MEM_STAGING};
    p->t.buffer = &p->host;
  }
  return BK_OK;
}

/* ---- the four passes, a program each ---- */

/* Every pass is a program with one piece, which belongs to no sublayer of a model (-1). */
static bk_status begin(bk_recorder *rec, bk_program *program, bk_part part, bk_pass pass) {
  bk_record_begin(rec, program, false, NULL);
  return bk_record_piece(rec, part, pass, -1, BK_LANE_COMPUTE);
}

/* Makes the maps and h from x. */
static bk_status record_mix(bk_residual *r, bk_recorder *rec) {
  BK_TRY(begin(rec, &r->mix, BK_PART_MIX, BK_PASS_F));
  return bk_connection_mix(rec, &r->connection, &r->acts);
}

/* Makes out from x, f and the maps. */
static bk_status record_merge(bk_residual *r, bk_recorder *rec) {
  BK_TRY(begin(rec, &r->merge, BK_PART_MERGE, BK_PASS_F));
  return bk_connection_merge(rec, &r->connection, &r->acts, r->ports[OUT].t);
}

/* Makes dx (the part that bypasses F), df and the gradients of post and comb from dout. */
static bk_status record_merge_bwd(bk_residual *r, bk_recorder *rec) {
  BK_TRY(begin(rec, &r->merge_bwd, BK_PART_MERGE, BK_PASS_D));
  return bk_connection_merge_bwd(rec, &r->connection, &r->acts, &r->grads, r->ports[DOUT].t,
                                 r->ports[DX].t, r->ports[DF].t);
}

/* Adds the rest of dx and the parameters' gradients, both from dh. */
static bk_status record_mix_bwd(bk_residual *r, bk_recorder *rec) {
  BK_TRY(begin(rec, &r->mix_bwd, BK_PART_MIX, BK_PASS_D));
  return bk_connection_mix_bwd(rec, &r->connection, &r->acts, &r->grads, r->ports[DH].t,
                               r->ports[DX].t, true);
}

/* Gradients always add here (first is false): the caller zeroes them when a step begins. */
static bk_status record_all(bk_residual *r, bk_recorder *rec) {
  bk_status (*const passes[])(bk_residual *, bk_recorder *) = {record_mix, record_merge,
                                                               record_merge_bwd, record_mix_bwd};
  for (size_t i = 0; i < BK_COUNT(passes); i++) {
    BK_TRY(passes[i](r, rec));
    BK_TRY(bk_record_end(rec, NULL, NULL));
  }
  bk_plans_close(&r->plans);
  return bk_lanes_commit(&r->lanes);
}

/* The recorder gets the parameter blocks, because it is it who knows whether their gradients
 * add. */
static bk_status prepare(bk_residual *r) {
  bk_recorder rec;
  BK_TRY(bk_recorder_init(&rec, r->device, &r->lanes, &r->plans, r->param, BK_RESIDUAL_PARAMS));
  bk_status status = record_all(r, &rec);
  bk_recorder_fini(&rec);
  return status;
}

static bk_status run(bk_program *program) { return bk_program_run(program, &(bk_run){0}); }

/* ---- initial values ---- */

/* The random stream is named after the parameter and the number of the sublayer, so that
 * connections with different numbers start with different values. */
static void first_values(const bk_residual *r, int param, double *values, int64_t count) {
  const bk_connection_param *p = &r->connection.kind->params[param];
  char name[48];
  snprintf(name, sizeof name, "sublayers.%d.hc_%s", r->o.sublayer, p->name);
  uint64_t stream = bk_hash64(name, strlen(name));
  if (p->first) p->first(r->connection.kind, values, count, r->o.streams, r->o.sublayer);
  for (int64_t i = 0; !p->first && i < count; i++)
    values[i] = FN_STD * bk_normal(r->o.seed, stream, (uint64_t)i);
}

/* The gradients begin with zeros, since the programs only add to them. */
static bk_status init_params(bk_residual *r) {
  for (int i = 0; i < BK_RESIDUAL_PARAMS; i++) {
    int64_t count = bk_tensor_count(&r->param[i].weight);
    double *values = bk_alloc_array(r->ctx, (size_t)count, sizeof *values);
    if (!values) return BK_ERR_MEMORY;
    first_values(r, i, values, count);
    bk_status status = bk_tensor_write_f64(r->stream, &r->param[i].weight, values);
    bk_free(r->ctx, values);
    BK_TRY(status);
  }
  return bk_residual_zero_grads(r);
}

/* Planning first, then recording, which asks for workspaces, then the memory, then the values. */
static bk_status fill(bk_residual *r) {
  BK_TRY(bk_lanes_init(&r->lanes, r->device, false));
  r->stream = r->lanes.stream[BK_LANE_COMPUTE];
  BK_TRY(bk_memory_create(r->device, &r->memory));
  BK_TRY(plan_params(r));
  BK_TRY(plan_maps(r));
  BK_TRY(plan_ports(r));
  r->acts.x = r->ports[X].t, r->acts.h = r->ports[H].t, r->acts.f = r->ports[F].t;
  BK_TRY(prepare(r));
  BK_TRY(bk_memory_commit(r->memory));
  return init_params(r);
}

/* Zeros in the options stand for defaults; hc_eps means nothing for kinds whose maps may be
 * negative. */
bk_status bk_residual_create(bk_device *device, const bk_residual_options *options,
                             bk_residual **residual) {
  bk_residual_options o = *options;
  if (o.sinkhorn_iters == 0) o.sinkhorn_iters = 20;
  if (o.norm_eps == 0) o.norm_eps = 1e-6;
  if (kind_of(o.kind) && kind_of(o.kind)->signed_maps) o.hc_eps = 0;
  BK_TRY(check_options(device, &o));
  bk_residual *r = bk_alloc(device->ctx, sizeof *r);
  if (!r) return BK_ERR_MEMORY;
  r->ctx = device->ctx;
  r->device = device;
  r->o = o;
  r->connection = (bk_connection){.kind = kind_of(o.kind),
                                  .n = o.streams,
                                  .iters = o.sinkhorn_iters,
                                  .width = o.width,
                                  .hc_eps = o.hc_eps,
                                  .norm_eps = o.norm_eps};
  bk_status status = fill(r);
  if (status == BK_OK) *residual = r;
  else bk_residual_destroy(r);
  return status;
}

/* Works on a half-made one too. Programs end before the plans that they refer to, and the memory
 * last. */
void bk_residual_destroy(bk_residual *r) {
  if (!r) return;
  bk_program *all[] = {&r->mix, &r->merge, &r->merge_bwd, &r->mix_bwd};
  if (r->stream) bk_lanes_sync(&r->lanes);
  for (size_t i = 0; i < BK_COUNT(all); i++) bk_program_fini(all[i]);
  bk_plans_fini(&r->plans);
  bk_lanes_fini(&r->lanes);
  bk_memory_destroy(r->memory);
  bk_free(r->ctx, r);
}

/* ---- calls ---- */

/* Makes `values` the contents of a port: its memory on a host device, else a copy of it for an
 * input. The cast takes const away from an input's array: no program writes to it. */
static bk_status attach(bk_residual *r, port_id id, const float *values, bool input) {
  port *p = &r->ports[id];
  if (!values) return bk_fail(r->ctx, BK_ERR_ARGUMENT, "residual: an array is NULL");
  if (r->device->props.host_memory) p->host.handle = (void *)values;
  else if (input) return bk_tensor_upload(r->stream, &p->t, values);
  return BK_OK;
}

/* Hands a port's contents to the caller when the stream has finished; on a host device they are
 * there. */
static bk_status deliver(bk_residual *r, port_id id, float *values) {
  if (r->device->props.host_memory) return r->stream->ops->sync(r->stream);
  return bk_tensor_download(r->stream, &r->ports[id].t, values);
}

/* A pass out of its order is refused, because its inputs are those that the pass before has
 * left. */
static bk_status check_stage(const bk_residual *r, stage wanted, const char *call,
                             const char *before) {
  if (r->stage == wanted) return BK_OK;
  return bk_fail(r->ctx, BK_ERR_ARGUMENT, "residual: %s comes after %s", call, before);
}

/* A failure leaves the stage IDLE, so that no later pass can use half-made maps. */
bk_status bk_residual_mix(bk_residual *r, const float *x, float *h) {
  BK_TRY(attach(r, X, x, true));
  BK_TRY(attach(r, H, h, false));
  r->stage = IDLE;
  BK_TRY(run(&r->mix));
  BK_TRY(deliver(r, H, h));
  r->stage = MIXED;
  return BK_OK;
}

/* A failure leaves the stage as it was: maps and x are still good, and the call may be tried
 * again. */
bk_status bk_residual_merge(bk_residual *r, const float *f, float *out) {
  BK_TRY(check_stage(r, MIXED, "merge", "mix"));
  BK_TRY(attach(r, F, f, true));
  BK_TRY(attach(r, OUT, out, false));
  BK_TRY(run(&r->merge));
  BK_TRY(deliver(r, OUT, out));
  r->stage = MERGED;
  return BK_OK;
}

/* dx and df are overwritten. */
bk_status bk_residual_merge_bwd(bk_residual *r, const float *dout, float *dx, float *df) {
  BK_TRY(check_stage(r, MERGED, "merge_bwd", "merge"));
  BK_TRY(attach(r, DOUT, dout, true));
  BK_TRY(attach(r, DX, dx, false));
  BK_TRY(attach(r, DF, df, false));
  BK_TRY(run(&r->merge_bwd));
  BK_TRY(deliver(r, DX, dx));
  BK_TRY(deliver(r, DF, df));
  r->stage = MERGED_BACK;
  return BK_OK;
}

/* dx comes in as merge_bwd left it, and this pass adds to it. */
bk_status bk_residual_mix_bwd(bk_residual *r, const float *dh, float *dx) {
  BK_TRY(check_stage(r, MERGED_BACK, "mix_bwd", "merge_bwd"));
  BK_TRY(attach(r, DH, dh, true));
  BK_TRY(attach(r, DX, dx, true));
  BK_TRY(run(&r->mix_bwd));
  BK_TRY(deliver(r, DX, dx));
  r->stage = IDLE;
  return BK_OK;
}

/* comb is [N,n,n], so that i % (n*n) is the place within one token's matrix. */
static void identities(float *comb, int64_t tokens, int n) {
  for (int64_t i = 0; i < tokens * n * n; i++) comb[i] = i % (n * n) % (n + 1) == 0 ? 1.0f : 0.0f;
}

/* A kind without comb has the identity, which is written out here. */
bk_status bk_residual_maps(bk_residual *r, float *pre, float *post, float *comb) {
  if (r->stage == IDLE) return bk_fail(r->ctx, BK_ERR_ARGUMENT, "residual: maps come after mix");
  bk_tensor p, q, c;
  bk_connection_show(&r->connection, &r->acts, &p, &q, &c);
  if (pre) BK_TRY(bk_tensor_download(r->stream, &p, pre));
  if (post) BK_TRY(bk_tensor_download(r->stream, &q, post));
  if (comb && !bk_tensor_present(&c)) identities(comb, r->o.tokens, r->o.streams);
  else if (comb) BK_TRY(bk_tensor_download(r->stream, &c, comb));
  return BK_OK;
}

/* ---- parameters ---- */

static bk_status check_param(const bk_residual *r, bk_residual_param param) {
  if ((unsigned)param < BK_RESIDUAL_PARAMS) return BK_OK;
  return bk_fail(r->ctx, BK_ERR_ARGUMENT, "residual: there is no parameter %d", (int)param);
}

int64_t bk_residual_count(const bk_residual *r, bk_residual_param param) {
  return (unsigned)param < BK_RESIDUAL_PARAMS ? bk_tensor_count(&r->param[param].weight) : 0;
}

bk_status bk_residual_get(bk_residual *r, bk_residual_param param, float *values) {
  BK_TRY(check_param(r, param));
  return bk_tensor_download(r->stream, &r->param[param].weight, values);
}

bk_status bk_residual_set(bk_residual *r, bk_residual_param param, const float *values) {
  BK_TRY(check_param(r, param));
  return bk_tensor_upload(r->stream, &r->param[param].weight, values);
}

bk_status bk_residual_get_grad(bk_residual *r, bk_residual_param param, float *values) {
  BK_TRY(check_param(r, param));
  return bk_tensor_download(r->stream, &r->param[param].grad, values);
}

bk_status bk_residual_zero_grads(bk_residual *r) {
  for (int i = 0; i < BK_RESIDUAL_PARAMS; i++) BK_TRY(bk_tensor_zero(r->stream, &r->param[i].grad));
  return BK_OK;
}

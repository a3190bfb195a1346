/* The learned head, as in DeepSeek-V4: after the last sublayer, pre alone collapses the streams
 * into one. Its parameters are hc_head_fn, hc_head_base and hc_head_scale. It is a connection that
 * only mixes; bk_hc_kind has a number for it, but no configuration names it as its residual. */
#include "models/connections/streams.h"

/* Each stream has one logit, of its read gate; there is nothing to write and nothing to mix. */
static int rows(int n) { return n; }

/* With zeros every stream is read with sigmoid(0) = 1/2. The streams differ by then, so that
 * nothing has to break a symmetry here. */
static void first_base(const bk_connection_kind *kind BK_UNUSED, double *values, int64_t count,
                       int n BK_UNUSED, int sublayer BK_UNUSED) {
  for (int64_t i = 0; i < count; i++) values[i] = 0.0;
}
/* The scale is 1 and not 0.01 as in a sublayer: the head depends on the token from the first step
 * on, as in Hugging Face's code of DeepSeek-V4. */
static void first_scale(const bk_connection_kind *kind BK_UNUSED, double *values, int64_t count,
                        int n BK_UNUSED, int sublayer BK_UNUSED) {
  for (int64_t i = 0; i < count; i++) values[i] = 1.0;
}
/* Reads of 1/n make the head the mean of the streams. */
static void base_from_plain(const bk_connection_kind *kind BK_UNUSED, double *values, int64_t count,
                            int n, int sublayer BK_UNUSED, double hc_eps) {
  for (int64_t i = 0; i < count; i++) values[i] = bk_streams_read_logit(n, hc_eps);
}
static void scale_from_plain(const bk_connection_kind *kind, double *values, int64_t count, int n,
                             int sublayer, double hc_eps BK_UNUSED) {
  first_scale(kind, values, count, n, sublayer);
}

const bk_connection_kind bk_connection_head = {
    .kind = BK_HC_HEAD,
    .name = "head",
    .summary = "the learned collapse of the streams at the end",
    .max_streams = BK_HC_MAX_N,
    .rows = rows,
    .base = rows,
    .scales = 1,
    .flops = bk_streams_gates_flops,
    .compose_maps = bk_streams_compose_gates_alone,
    .compose_maps_bwd = bk_streams_compose_gates_alone_bwd,
    .params = BK_STREAMS_PARAMS(first_base, base_from_plain, first_scale, scale_from_plain),
    .calls = &bk_streams_calls,
};

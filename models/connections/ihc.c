/* ihc: identity hyper-connections: pre and post as for mhc, and no mixing of the streams. */
#include "models/connections/streams.h"

static int rows(int n) { return 2 * n; }

static void compose_maps(const bk_hc_maps_args *a, bk_composition *c) {
  bk_streams_compose_gates(a, c);
}

static void compose_maps_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  bk_streams_logits l = bk_streams_compose_gates_bwd(a, c);
  bk_streams_compose_logits_bwd(a, c, &l);
}

const bk_connection_kind bk_connection_ihc = {
    .kind = BK_HC_IHC,
    .name = "ihc",
    .summary = "gates alone, the streams are not mixed",
    .max_streams = BK_HC_MAX_N,
    .rows = rows,
    .base = rows,
    .scales = 2,
    .post = true,
    .flops = bk_streams_gates_flops,
    .compose_maps = compose_maps,
    .compose_maps_bwd = compose_maps_bwd,
    .params = BK_STREAMS_GATED_PARAMS,
    .calls = &bk_streams_calls,
};

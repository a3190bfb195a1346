/* ihc: identity hyper-connections: pre and post as in mhc, and H_res = I, so that the streams are
 * read and written but never mixed. comb is absent, which the ops take for the identity. The
 * composite of all sublayers is then the identity too, and its gain exactly 1. The ICML version of
 * the mHC paper (PMLR 306) has it as an ablation. */
#include "models/connections/streams.h"

/* There are the logits of pre and post alone. */
static int rows(int n) { return 2 * n; }

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
    .compose_maps = bk_streams_compose_gates_alone,
    .compose_maps_bwd = bk_streams_compose_gates_alone_bwd,
    .params = BK_STREAMS_GATED_PARAMS,
    .calls = &bk_streams_calls,
};

/* What the parts of a model cost: by these numbers a model is cut into stages, and a cluster is
 * planned. */
#ifndef BK_STAGE_COSTS_H
#define BK_STAGE_COSTS_H

#include <birkhoff/model.h>
#include <birkhoff/parallel.h>

/* count.c: flops of F and B together for one token, as bk_model_count counts them. costs has
 * 2 * num_hidden_layers + 2 places: the embedding, the sublayers, head and loss. Their sum is
 * bk_model_counts.flops_per_token. */
void bk_sublayer_costs(const bk_model_config *config, int64_t seq_len, double *costs);

#endif

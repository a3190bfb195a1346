/* The whole model, of which a rank of a pipeline holds a part (checkpoint_priv.h). */
#include "models/checkpoint_priv.h"

#include <string.h>

/* Both lists are in the order of the checkpoint, so that the part's follows the whole one's. */
static bk_status number_params(bk_whole *w, const bk_model *part) {
  int at = 0;
  w->number = bk_alloc_array(w->ctx, (size_t)part->n_params, sizeof *w->number);
  if (!w->number) return BK_ERR_MEMORY;
  for (int i = 0; i < w->model->n_params && at < part->n_params; i++)
    if (strcmp(w->model->params[i].name, part->params[at].name) == 0) w->number[at++] = i;
  return BK_OK;
}

bk_status bk_whole_open(bk_whole *w, const bk_model *part) {
  bk_model_options plan = {.plan_only = true, .trainable = part->options.trainable};
  *w = (bk_whole){.ctx = part->ctx, .model = part};
  if (part->n_sublayers != 2 * part->config.num_hidden_layers) {
    BK_TRY(bk_model_create(part->device, &part->config, part->dtype, &plan, &w->planned));
    w->model = w->planned;
  }
  bk_status status = number_params(w, part);
  if (status != BK_OK) bk_whole_close(w);
  return status;
}

void bk_whole_close(bk_whole *w) {
  bk_free(w->ctx, w->number);
  bk_model_destroy(w->planned);
  *w = (bk_whole){.ctx = w->ctx};
}

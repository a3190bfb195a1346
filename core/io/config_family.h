/* Whether a config.json describes the one architecture that is built here: DeepSeek-V3's, with
 * Birkhoff's connections or without. `root` is the document's object, `origin` begins every
 * message. */
#ifndef BK_CONFIG_FAMILY_H
#define BK_CONFIG_FAMILY_H

#include "io/json_in.h"

/* model_type must be "deepseek_v3" or "birkhoff", and architectures a list of
 * "DeepseekV3ForCausalLM", "DeepseekV3Model" and "BirkhoffForCausalLM", or one of these as a
 * string; each may be absent or null (architectures also empty). Where both are, the keys that
 * only this family has must be there. BK_ERR_CONFIG with one message for the names, or for each
 * that is of a wrong kind. `alone`, set on failure too: the document has so little of this
 * family that nothing else in it can be judged. */
bk_status bk_config_check_family(bk_context *ctx, const char *origin, const json_t *root,
                                 bool *alone);

/* Keys by which sibling families compute something else. They are no keys here, so a value that
 * asks for it is refused; one that asks for nothing (null, false, a factor 1, layer_types of
 * full_attention alone, a sliding_window beside use_sliding_window false) passes. One message
 * for what each would change. */
bk_status bk_config_check_siblings(bk_context *ctx, const char *origin, const json_t *root);
bool bk_config_is_sibling_key(const char *key);

#endif

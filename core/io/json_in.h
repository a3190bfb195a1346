/* Reading JSON with jansson, which takes a failed allocation for bad syntax in some places and, where its string buffer cannot
 * grow, leaves a character out without a word: a key of a configuration would be another one. */
#ifndef BK_JSON_IN_H
#define BK_JSON_IN_H

#include <jansson.h>

#include "base/base.h"

/* The document (json_decref), duplicate keys refused; a failure is logged with its line and column. BK_ERR_DATA, or BK_ERR_MEMORY where
 * jansson shows that memory was the cause. */
bk_status bk_json_load(bk_context *ctx, const char *origin, const char *text, size_t bytes, json_t **root);
/* The same; BK_ERR_DATA is not logged, *error says why. */
bk_status bk_json_parse(bk_context *ctx, const char *origin, const char *text, size_t bytes, json_t **root, json_error_t *error);

#endif

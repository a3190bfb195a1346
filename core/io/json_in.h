/* Reading JSON with jansson, which takes a failed allocation for bad syntax in some places and,
 * where its string buffer cannot grow, leaves a character out without a word: a key of a
 * configuration would be another one. */
#ifndef BK_JSON_IN_H
#define BK_JSON_IN_H

#include <jansson.h>

#include "base/base.h"

/* The document (json_decref); a byte order mark in front is skipped, duplicate keys are refused;
 * a failure is logged with its line and column. BK_ERR_DATA, or BK_ERR_MEMORY where jansson
 * shows that memory was the cause. */
bk_status bk_json_load(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                       json_t **root);
/* The same; BK_ERR_DATA is not logged, *error says why. */
bk_status bk_json_try(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                      json_t **root, json_error_t *error);
/* Of a text without such a mark. */
bk_status bk_json_parse(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                        json_t **root, json_error_t *error);

const char *bk_json_kind(const json_t *value); /* "an object" */
/* A value as a message shows it: a number, a string (the beginning of a long one, without
 * control characters), else its kind. */
#define BK_JSON_SHOWN 72
const char *bk_json_shown(const json_t *value, char text[BK_JSON_SHOWN]);

#endif

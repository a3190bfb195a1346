/* What config_json.c and trainer_state.c share: an open JSON document, keys of an option table in
 * it, and members that are written. */
#ifndef BK_CONFIG_DOCUMENT_H
#define BK_CONFIG_DOCUMENT_H

#include "io/config_priv.h"
#include "io/json_in.h"
#include "io/json_out.h"

/* 16 MiB: no configuration is nearly as long, and a wrong file is not read into memory */
#define BK_CONFIG_BYTES_MAX ((size_t)16 << 20)

/* An open JSON document; `origin` begins every message about it. */
typedef struct bk_document {
  bk_context *ctx;
  const char *origin;
  json_t *root; /* an object */
} bk_document;

/* On success doc->root is to be json_decref'd; on failure there is none. */
bk_status bk_document_load(bk_document *doc, const char *json, size_t bytes);
/* The value of one option, into its place in the struct `config`. */
bk_status bk_document_option(const bk_document *doc, const bk_option *o, const json_t *value,
                             void *config);

/* A comma where one is needed, the key, a colon. */
void bk_document_member(bk_json_out *out, const char *indent, const char *key);
/* Words are quoted in JSON, except for null; numbers and booleans are not. */
void bk_document_write_option(bk_json_out *out, const char *indent, const bk_option *o,
                              const void *config);
/* `json` is written as it is, quotes included. */
void bk_document_text_member(bk_json_out *out, const char *key, const char *json);
/* Writes the file; the text is freed, whether or not it could be written. */
bk_status bk_document_save(bk_json_out *out, const char *path);

#endif

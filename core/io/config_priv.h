/* Shared by options.c, config.c and config_json.c. `origin` is where a value came from
 * ("run/config.json", "--set"); it begins every message. Values outside their range are
 * BK_ERR_CONFIG and leave the struct as it was. */
#ifndef BK_CONFIG_PRIV_H
#define BK_CONFIG_PRIV_H

#include "io/config.h"

/* room for the text of a value, of a range or of a list of choices */
#define BK_OPTION_TEXT 160

/* Some options of a table: bit i is its i-th. */
typedef uint64_t bk_option_set;
#define BK_OPTION_ALL (~(bk_option_set)0)

/* The result is NULL where the name is in no row. The rows of a table end with one without a name;
 * `length` is that of `name`, which need not end there. */
const bk_option *bk_option_find(const bk_option *table, const char *name, size_t length);
/* of the options among the words of `names` */
bk_option_set bk_option_bits(const bk_option *table, const char *names);
/* "an integer from 1 to 8, or null" into text; returns text. */
char *bk_option_range_text(const bk_option *o, char *text, size_t size);
/* Stores a value given as text, or as a number of the right kind. */
bk_status bk_option_set_text(bk_context *ctx, const char *origin, const bk_option *o,
                             const char *text, void *config);
bk_status bk_option_set_int(bk_context *ctx, const char *origin, const bk_option *o, int64_t value,
                            void *config);
bk_status bk_option_set_double(bk_context *ctx, const char *origin, const bk_option *o,
                               double value, void *config);
/* Looks whether the stored values of the options in `set` are in range; logs every one that is
 * not, and takes it out of the set. */
bk_status bk_options_check(bk_context *ctx, const char *origin, const bk_option *table,
                           const void *config, bk_option_set *set);

/* The stored value of an option of the named type; an enum is stored as an int, the number of its
 * choice. */
static inline int64_t bk_option_int(const bk_option *o, const void *config) {
  return *(const int64_t *)(const void *)((const char *)config + o->offset);
}
static inline double bk_option_double(const bk_option *o, const void *config) {
  return *(const double *)(const void *)((const char *)config + o->offset);
}
static inline bool bk_option_bool(const bk_option *o, const void *config) {
  return *(const bool *)(const void *)((const char *)config + o->offset);
}
static inline int bk_option_enum(const bk_option *o, const void *config) {
  return *(const int *)(const void *)((const char *)config + o->offset);
}

#define BK_NEXTN_MAX 64 /* bk_model_config.num_nextn_predict_layers */

/* As the public functions, with an origin in front of each message: one for every reason. Of the
 * model's keys only those in `known` are looked at, and only rules all of whose keys are there. */
bk_status bk_model_config_check(bk_context *ctx, const char *origin, const bk_model_config *m,
                                bk_option_set known);
bk_status bk_train_config_check(bk_context *ctx, const char *origin, const bk_train_config *t);
/* Whether a text is JSON at all; nothing is logged but want of memory. For who must know without
 * reading: models/ sees no JSON library. */
bk_status bk_json_whole(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                        bool *whole);
/* Hugging Face's DeepseekV3Config defaults (transformers 5.23), residual plain, and
 * doc/model.md's for hc_*. */
extern const bk_model_config bk_model_config_absent;

#endif

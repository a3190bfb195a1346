/* Schedules from JSON files (doc/files.md), which are not trusted: every number is looked at before
 * it is used, and what comes out has passed the check. */
#include <string.h>

#include "io/json_in.h"
#include "schedule/schedule.h"

/* The records of a file take up to 21 times as many bytes. */
#define FILE_MAX ((size_t)64 << 20)
#define NAME_MAX_BYTES 64

typedef struct reader {
  bk_context *ctx;
  const char *path;
  json_t *root;
  const json_t *lines, *stages; /* arrays: one text and one array for each rank */
  const char *name;
  int ranks, chunks, streams;
  int stream[BK_SCHEDULE_CHUNKS];
  int micro; /* of all streams */
} reader;

/* ---- the members ---- */

static const char *const read_keys[] = {"schedule", "stages", "streams", "micro", "ranks"};
/* what `birkhoff plan --json` says of a schedule beside it */
static const char *const said_keys[] = {"bubble", "time",      "peak_activations", "costs",
                                        "step",   "optimizer", "sublayers"};

static bool is_among(const char *key, const char *const *keys, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (strcmp(key, keys[i]) == 0) return true;
  return false;
}

static bk_status take_keys(const reader *r) {
  const char *key;
  json_t *value;
  json_object_foreach(r->root, key, value) {
    char shown[BK_JSON_SHOWN];
    if (is_among(key, read_keys, BK_COUNT(read_keys)) ||
        is_among(key, said_keys, BK_COUNT(said_keys)))
      continue;
    json_t *text = json_string(key);
    if (!text) return bk_fail(r->ctx, BK_ERR_MEMORY, "%s: out of memory", r->path);
    bk_json_shown(text, shown);
    json_decref(text);
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: the key %s is not known; a schedule has schedule, stages, streams, micro "
                   "and ranks",
                   r->path, shown);
  }
  return BK_OK;
}

static bk_status take_array(const reader *r, const char *key, const json_t **array) {
  const json_t *value = json_object_get(r->root, key);
  if (value && json_is_array(value) && json_array_size(value)) {
    *array = value;
    return BK_OK;
  }
  return bk_fail(r->ctx, BK_ERR_DATA, "%s: %s must be an array that is not empty; it is %s",
                 r->path, key,
                 !value                 ? "not there"
                 : json_is_array(value) ? "empty"
                                        : bk_json_kind(value));
}

static bk_status take_name(reader *r) {
  const json_t *value = json_object_get(r->root, "schedule");
  const char *name = value ? json_string_value(value) : NULL;
  bool good = name && *name && strlen(name) <= NAME_MAX_BYTES;
  for (const char *p = name; good && *p; p++) good = *p > ' ' && *p < 0x7f;
  if (!good)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: schedule must be the name of the schedule, 1 to %d printable characters "
                   "of ASCII without a blank",
                   r->path, NAME_MAX_BYTES);
  r->name = name;
  return BK_OK;
}

/* An integer of 0 to `limit` - 1. */
static bool take_integer(const json_t *value, int limit, int *x) {
  if (!value || !json_is_integer(value)) return false;
  json_int_t i = json_integer_value(value);
  if (i < 0 || i >= limit) return false;
  *x = (int)i;
  return true;
}

/* The streams of the chunks; without the member there is one. */
static bk_status take_streams(reader *r) {
  const json_t *value = json_object_get(r->root, "streams");
  r->streams = 1;
  if (!value) return BK_OK;
  if (!json_is_array(value) || json_array_size(value) != (size_t)r->chunks)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: streams must be an array with the stream of each chunk, %d in all", r->path,
                   r->chunks);
  for (int c = 0; c < r->chunks; c++) {
    if (!take_integer(json_array_get(value, (size_t)c), r->chunks, &r->stream[c]))
      return bk_fail(r->ctx, BK_ERR_DATA,
                     "%s: streams: that of chunk %d must be an integer of 0 to %d", r->path, c,
                     r->chunks - 1);
    if (r->stream[c] >= r->streams) r->streams = r->stream[c] + 1;
  }
  return BK_OK;
}

static bk_status take_shape(reader *r) {
  BK_TRY(take_array(r, "ranks", &r->lines));
  BK_TRY(take_array(r, "stages", &r->stages));
  size_t ranks = json_array_size(r->lines), chunks = json_array_size(json_array_get(r->stages, 0));
  if (ranks > BK_SCHEDULE_RANKS)
    return bk_fail(r->ctx, BK_ERR_DATA, "%s: there are %zu ranks; the limit is %d", r->path, ranks,
                   BK_SCHEDULE_RANKS);
  if (json_array_size(r->stages) != ranks)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: stages has %zu members, and there are %zu ranks; it must have one for each",
                   r->path, json_array_size(r->stages), ranks);
  if (chunks < 1 || chunks > BK_SCHEDULE_CHUNKS)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: each member of stages must be an array of 1 to %d stages, one for each "
                   "chunk of the rank",
                   r->path, BK_SCHEDULE_CHUNKS);
  r->ranks = (int)ranks;
  r->chunks = (int)chunks;
  return take_streams(r);
}

/* ---- the lists ---- */

/* The first `room` - 1 bytes of a word; what is not printable ASCII shows as '?'. */
static const char *shown_word(const char *at, char *text, size_t room) {
  size_t n = 0;
  for (; at[n] && at[n] != ' ' && n + 1 < room; n++)
    text[n] = at[n] > ' ' && at[n] < 0x7f ? at[n] : '?';
  text[n] = '\0';
  return text;
}

static bk_status next_record(const reader *r, int rank, int number, const char **at,
                             bk_schedule_record *record) {
  char word[24];
  if (bk_schedule_record_parse(at, record)) return BK_OK;
  return bk_fail(
      r->ctx, BK_ERR_DATA,
      "%s: rank %d, record %d: \"%s\" is none; a record is one of 0F1, 0B1, 0I1, 0W1 and "
      "(0F1;1B0), and blanks are between two",
      r->path, rank, number, shown_word(*at, word, sizeof word));
}

static bk_status take_line(const reader *r, int rank, const char **line) {
  const json_t *value = json_array_get(r->lines, (size_t)rank);
  *line = json_string_value(value);
  if (*line) *line += strspn(*line, " ");
  if (*line) return BK_OK;
  return bk_fail(r->ctx, BK_ERR_DATA, "%s: ranks: that of rank %d must be a text; it is %s",
                 r->path, rank, bk_json_kind(value));
}

/* As many micro-batches as go forward through chunk 0 of rank 0: all chunks have the same. */
static bk_status count_micro(reader *r) {
  const char *at;
  int64_t count = 0;
  bk_schedule_record record;
  BK_TRY(take_line(r, 0, &at));
  for (int i = 1; *at; i++) {
    int chunk, micro;
    BK_TRY(next_record(r, 0, i, &at, &record));
    if (bk_schedule_pass(&record, 0, &chunk, &micro) && chunk == 0) count += r->streams;
  }
  const json_t *said = json_object_get(r->root, "micro");
  if (count < 1 || count > BK_SCHEDULE_MICRO)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: chunk 0 of rank 0 takes %lld micro-batches of all streams; 1 to %d can be",
                   r->path, (long long)count, BK_SCHEDULE_MICRO);
  char shown[BK_JSON_SHOWN];
  if (said && !(json_is_integer(said) && json_integer_value(said) == count))
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: micro is %s, but chunk 0 of rank 0 takes %lld of each of %d streams",
                   r->path, bk_json_shown(said, shown), (long long)(count / r->streams),
                   r->streams);
  r->micro = (int)count;
  return BK_OK;
}

static bk_status fill_chunks(const reader *r, bk_schedule *s, int rank) {
  const json_t *list = json_array_get(r->stages, (size_t)rank);
  if (!json_is_array(list) || json_array_size(list) != (size_t)r->chunks)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: stages: that of rank %d must be an array of %d, as that of rank 0", r->path,
                   rank, r->chunks);
  for (int c = 0; c < r->chunks; c++) {
    s->rank[rank].chunks[c].stream = r->stream[c];
    if (!take_integer(json_array_get(list, (size_t)c), s->stages, &s->rank[rank].chunks[c].stage))
      return bk_fail(r->ctx, BK_ERR_DATA,
                     "%s: stages: chunk %d of rank %d must hold a stage, an integer of 0 to %d",
                     r->path, c, rank, s->stages - 1);
  }
  return BK_OK;
}

/* Each micro-batch has two or three records on each chunk, of which two may be shared with others.
 * A list that cannot be right is refused before it takes memory. */
static bk_status fill_list(const reader *r, bk_schedule *s, int rank) {
  const char *at;
  bk_schedule_record record;
  int each = r->micro / r->streams, least = r->chunks * each;
  BK_TRY(take_line(r, rank, &at));
  for (int i = 1; *at; i++) {
    BK_TRY(next_record(r, rank, i, &at, &record));
    if (i <= 3 * least) BK_TRY(bk_schedule_add(r->ctx, s, rank, &record));
    else
      return bk_fail(r->ctx, BK_ERR_DATA,
                     "%s: rank %d has more than %d records, which is all that %d micro-batches of "
                     "each stream on %d chunks can have",
                     r->path, rank, 3 * least, each, r->chunks);
  }
  if (s->rank[rank].n_records < least)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: rank %d has %d records; %d micro-batches of each stream on %d chunks need "
                   "%d or more",
                   r->path, rank, s->rank[rank].n_records, each, r->chunks, least);
  return BK_OK;
}

static bk_status make(reader *r, bk_schedule **schedule) {
  bk_schedule *s = NULL;
  BK_TRY(bk_schedule_new(r->ctx, r->name, r->path, r->ranks, r->chunks, r->streams, r->micro, &s));
  bk_status status = BK_OK;
  for (int rank = 0; rank < r->ranks && status == BK_OK; rank++) {
    status = fill_chunks(r, s, rank);
    if (status == BK_OK) status = fill_list(r, s, rank);
  }
  if (status == BK_OK) status = bk_schedule_check(r->ctx, s);
  if (status == BK_OK) *schedule = s;
  else bk_schedule_destroy(r->ctx, s);
  return status;
}

static bk_status read_document(reader *r, bk_schedule **schedule) {
  if (!json_is_object(r->root))
    return bk_fail(r->ctx, BK_ERR_DATA, "%s: a schedule is a JSON object; this is %s", r->path,
                   bk_json_kind(r->root));
  BK_TRY(take_keys(r));
  BK_TRY(take_name(r));
  BK_TRY(take_shape(r));
  BK_TRY(count_micro(r));
  return make(r, schedule);
}

bk_status bk_schedule_read(bk_context *ctx, const char *path, bk_schedule **schedule) {
  reader r = {.ctx = ctx, .path = path};
  char *text = NULL;
  size_t bytes;
  BK_TRY(bk_file_read_all(ctx, path, FILE_MAX, &text, &bytes));
  bk_status status = bk_json_load(ctx, path, text, bytes, &r.root);
  bk_free(ctx, text);
  if (status == BK_OK) status = read_document(&r, schedule);
  json_decref(r.root);
  return status;
}

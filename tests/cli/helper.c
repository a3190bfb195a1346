/* What the shell tests of the command cannot do themselves:
 *   helper json FILE [PATH]        the value at PATH (keys, array indexes, # for a size,
 *                                  KEY=VALUE to find an object in an
 *                                  array; separated by /), or, without PATH, whether FILE holds
 *                                  exactly one JSON value
 *   helper tokens OUT NAME DTYPE SHAPE VALUE... [, NAME ...]   a safetensors file; SHAPE is 2x3,
 *     DTYPE i32 or i64 or fp32
 *   helper tensor FILE NAME        dtype and shape of a tensor, "fp32 2x3"
 *   helper values FILE NAME        its values, one a line
 *   helper shards FOLDER N         FOLDER/model.safetensors becomes N shards and their index
 *   helper bin OUT 2|4|8 VALUE...  a token stream of that many bytes a token
 *   helper whole-hash TEXT         the hash of its training part that versions without lists of
 *                                  files kept: of all bytes
 *   helper arithmetic              a word for the bits that the C library's functions and plain
 *                                  sums of products have here; then the floats in a vector of the
 *                                  portable code, "4" where nothing but SSE2 or NEON is compiled in
 *   helper peak COMMAND...         runs it; the most memory it had, in bytes (77: the build has a
 *                                  sanitizer, with memory of its own)
 *   helper hangup COMMAND...       becomes it, with SIGHUP as it is by default, whatever the
 *                                  caller does with it
 * Exit status 0, or 1 with a message. */
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/safetensors.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static void print_log(void *user, bk_log_level level, const char *message) {
  (void)user;
  (void)level;
  fprintf(stderr, "helper: %s\n", message);
}

/* ---- json ---- */

static const json_t *find_object(const json_t *array, const char *key, const char *value) {
  for (size_t i = 0; i < json_array_size(array); i++) {
    const char *text = json_string_value(json_object_get(json_array_get(array, i), key));
    if (text && strcmp(text, value) == 0) return json_array_get(array, i);
  }
  return NULL;
}

static const json_t *descend(const json_t *at, char *part, json_t *scratch) {
  char *equals = strchr(part, '=');
  if (strcmp(part, "#") == 0) {
    json_integer_set(scratch,
                     (json_int_t)(json_is_array(at) ? json_array_size(at) : json_object_size(at)));
    return scratch;
  }
  if (json_is_object(at)) return json_object_get(at, part);
  if (!equals) return json_array_get(at, strtoul(part, NULL, 10));
  *equals = '\0';
  return find_object(at, part, equals + 1);
}

static int run_json(const char *path, char *query) {
  json_error_t error;
  json_t *root = json_load_file(path, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error),
         *scratch = json_integer(0);
  const json_t *at = root;
  if (!root) return fprintf(stderr, "helper: %s:%d: %s\n", path, error.line, error.text), 1;
  for (char *part = query ? strtok(query, "/") : NULL; part && at; part = strtok(NULL, "/"))
    at = descend(at, part, scratch);
  if (!at) fprintf(stderr, "helper: %s: nothing there\n", path);
  else if (query && json_is_string(at)) puts(json_string_value(at));
  else if (query)
    json_dumpf(at, stdout, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(17)), putchar('\n');
  int rc = !at;
  json_decref(scratch);
  json_decref(root);
  return rc;
}

/* ---- safetensors ---- */

static int parse_shape(const char *text, int64_t *shape) {
  int ndim = 0;
  for (char *end; ndim < BK_ST_MAX_DIMS; text = end + 1) {
    shape[ndim++] = strtoll(text, &end, 10);
    if (*end != 'x') break;
  }
  return ndim;
}

static bk_dtype parse_dtype(const char *text) {
  return strcmp(text, "i32") == 0 ? BK_I32 : strcmp(text, "i64") == 0 ? BK_I64 : BK_F32;
}

static bk_status write_value(bk_st_writer *w, bk_dtype dtype, const char *text) {
  int64_t i64 = strtoll(text, NULL, 10);
  int32_t i32 = (int32_t)i64;
  float f32 = strtof(text, NULL);
  if (dtype == BK_I32) return bk_st_write(w, &i32, sizeof i32);
  return dtype == BK_I64 ? bk_st_write(w, &i64, sizeof i64) : bk_st_write(w, &f32, sizeof f32);
}

/* Two walks over the words: declarations, then data. */
static bk_status write_tensors(bk_st_writer *w, int argc, char **argv, bool data) {
  for (int i = 0; i + 2 < argc; i++) {
    int64_t shape[BK_ST_MAX_DIMS];
    bk_dtype dtype = parse_dtype(argv[i + 1]);
    int ndim = parse_shape(argv[i + 2], shape);
    if (!data) BK_TRY(bk_st_add(w, argv[i], dtype, ndim, shape));
    for (i += 3; i < argc && strcmp(argv[i], ",") != 0; i++)
      if (data) BK_TRY(write_value(w, dtype, argv[i]));
  }
  return BK_OK;
}

static bk_status run_tokens(bk_context *ctx, const char *path, int argc, char **argv) {
  bk_st_writer *w = NULL;
  BK_TRY(bk_st_create(ctx, path, &w));
  bk_status status = write_tensors(w, argc, argv, false);
  if (status == BK_OK) status = write_tensors(w, argc, argv, true);
  if (status == BK_OK) status = bk_st_finish(w);
  if (status != BK_OK) bk_st_abandon(w);
  return status;
}

static bk_status print_values(bk_st_reader *r, const bk_st_entry *e) {
  int64_t count = 1;
  for (int d = 0; d < e->ndim; d++) count *= e->shape[d];
  for (int64_t i = 0; i < count; i++) {
    double v;
    BK_TRY(bk_st_read_f64(r, e, i, 1, &v));
    printf("%.17g\n", v);
  }
  return BK_OK;
}

static bk_status run_tensor(bk_context *ctx, const char *path, const char *name, bool values) {
  bk_st_reader *r = NULL;
  BK_TRY(bk_st_open(ctx, path, &r));
  const bk_st_entry *e = bk_st_find(r, name);
  bk_status status = e ? BK_OK : BK_ERR_NOT_FOUND;
  if (!e) fprintf(stderr, "helper: %s: no tensor %s\n", path, name);
  else if (values) status = print_values(r, e);
  else
    for (int d = 0; d < e->ndim; d++)
      printf("%s%s%lld%s", d ? "x" : bk_dtype_name(e->dtype), d ? "" : " ", (long long)e->shape[d],
             d + 1 < e->ndim ? "" : "\n");
  bk_st_close(r);
  return status;
}

static bk_status copy_tensor(bk_context *ctx, bk_st_reader *r, bk_st_writer *w,
                             const bk_st_entry *e) {
  size_t bytes = (size_t)(e->end - e->begin);
  void *data = bk_alloc(ctx, bytes);
  bk_status status = data ? bk_st_read(r, e, data, bytes) : BK_ERR_MEMORY;
  if (status == BK_OK) status = bk_st_write(w, data, bytes);
  bk_free(ctx, data);
  return status;
}

/* Every n-th tensor from the shard's on. */
static bk_status write_shard(bk_context *ctx, bk_st_reader *r, const char *path, int shard, int n,
                             FILE *index) {
  bk_st_writer *w = NULL;
  BK_TRY(bk_st_create(ctx, path, &w));
  bk_status status = BK_OK;
  for (int i = shard; i < bk_st_count(r) && status == BK_OK; i += n) {
    const bk_st_entry *e = bk_st_get(r, i);
    fprintf(index, "%s\"%s\": \"%s\"", i ? ", " : "", e->name, strrchr(path, '/') + 1);
    status = bk_st_add(w, e->name, e->dtype, e->ndim, e->shape);
  }
  for (int i = shard; i < bk_st_count(r) && status == BK_OK; i += n)
    status = copy_tensor(ctx, r, w, bk_st_get(r, i));
  if (status == BK_OK) status = bk_st_finish(w);
  if (status != BK_OK) bk_st_abandon(w);
  return status;
}

static bk_status run_shards(bk_context *ctx, const char *folder, int n) {
  char path[512];
  bk_st_reader *r = NULL;
  BK_TRY(bk_st_open_folder(ctx, folder, &r));
  snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
  FILE *index = fopen(path, "w");
  bk_status status = index ? BK_OK : BK_ERR_IO;
  if (index) fprintf(index, "{\"metadata\": {}, \"weight_map\": {");
  for (int s = 0; s < n && status == BK_OK; s++) {
    snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", folder, s + 1, n);
    status = write_shard(ctx, r, path, s, n, index);
  }
  bk_st_close(r);
  if (index) fprintf(index, "}}\n"), fclose(index);
  snprintf(path, sizeof path, "%s/model.safetensors", folder);
  if (status == BK_OK && remove(path) != 0) status = BK_ERR_IO;
  return status;
}

static int run_bin(const char *path, int width, int argc, char **argv) {
  FILE *f = fopen(path, "wb");
  if (!f) return perror(path), 1;
  for (int i = 0; i < argc; i++) {
    unsigned long v = strtoul(argv[i], NULL, 10);
    for (int b = 0; b < width; b++) putc((int)(v >> (8 * b) & 255), f);
  }
  return fclose(f) != 0;
}

/* ---- arithmetic ---- */

/* FNV-1a over the bits of a double. */
static uint64_t mix(uint64_t hash, double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  for (int b = 0; b < 64; b += 8) hash = (hash ^ (bits >> b & 255)) * 1099511628211u;
  return hash;
}

/* What the ops take from the C library, over the ranges in which they take it, and sums of
 * products in both precisions: these differ where the compiler fuses or reorders them. u: one of
 * many numbers in [0, 1). */
static uint64_t mix_functions(uint64_t hash, double u) {
  float f = (float)u, g = 0.3f, h = 1.7f;
  hash = mix(hash, exp(60 * u - 50));
  hash = mix(hash, log(0.001 + 100 * u));
  hash = mix(hash, pow(10000, -u));
  hash = mix(hash, sin(100 * u));
  hash = mix(hash, cos(100 * u));
  hash = mix(hash, tanh(8 * u - 4));
  hash = mix(hash, expm1(-u));
  hash = mix(hash, sqrt(u));
  hash = mix(hash, u * 0.3 + 1.7 * (1 - u) + u * u);
  return mix(hash, (double)(f * g + h * (1 - f) + f * f));
}

#if defined(__AVX512F__)
#define VECTOR_FLOATS "16"
#elif defined(__AVX2__)
#define VECTOR_FLOATS "8"
#elif defined(__FMA__)
#define VECTOR_FLOATS "4, fused"
#else
#define VECTOR_FLOATS "4"
#endif

static int run_arithmetic(void) {
  volatile uint64_t start = 20;
  uint64_t hash = 14695981039346656037u, x = start;
  for (int i = 0; i < 20000; i++) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    hash = mix_functions(hash, (double)(x >> 11) / 9007199254740992.0);
  }
  printf("%016llx %s\n", (unsigned long long)hash, VECTOR_FLOATS);
  return 0;
}

/* ---- memory ---- */

static int run_peak(char **command) {
  struct rusage usage;
  int state = 0;
  if (SANITIZED) return 77;
  pid_t pid = fork();
  if (pid == 0) {
    execvp(command[0], command);
    _exit(127);
  }
  if (pid < 0 || waitpid(pid, &state, 0) != pid || getrusage(RUSAGE_CHILDREN, &usage) != 0)
    return perror("helper: peak"), 1;
  if (!WIFEXITED(state) || WEXITSTATUS(state) != 0)
    return fprintf(stderr, "helper: %s failed\n", command[0]), 1;
  printf("%lld\n", (long long)usage.ru_maxrss * 1024); /* kilobytes, on Linux */
  return 0;
}

static int run_hangup(char **command) {
  signal(SIGHUP, SIG_DFL);
  execvp(command[0], command);
  return perror(command[0]), 1;
}

/* Written out here, so that it does not change with the library's code. */
static bk_status run_whole_hash(bk_context *ctx, const char *path) {
  char *text;
  size_t bytes;
  BK_TRY(bk_file_read_all(ctx, path, (size_t)1 << 28, &text, &bytes));
  bytes -= bytes / 10;
  const uint64_t parts[4] = {0, bytes, 1, bk_hash64(text, bytes)};
  printf("%016llx\n", (unsigned long long)bk_hash64(parts, sizeof parts));
  bk_free(ctx, text);
  return BK_OK;
}

int main(int argc, char **argv) {
  bk_context_options options = {.log = print_log, .log_level = BK_LOG_WARN};
  bk_context *ctx = NULL;
  if (argc == 2 && strcmp(argv[1], "arithmetic") == 0) return run_arithmetic();
  if (argc < 3) return fprintf(stderr, "helper: see helper.c\n"), 1;
  if (strcmp(argv[1], "json") == 0) return run_json(argv[2], argc > 3 ? argv[3] : NULL);
  if (strcmp(argv[1], "peak") == 0) return run_peak(argv + 2);
  if (strcmp(argv[1], "hangup") == 0) return run_hangup(argv + 2);
  if (strcmp(argv[1], "bin") == 0)
    return argc < 4 ? 1 : run_bin(argv[2], atoi(argv[3]), argc - 4, argv + 4);
  if (bk_context_create(&options, &ctx) != BK_OK) return 1;
  bk_status status = BK_ERR_ARGUMENT;
  if (strcmp(argv[1], "tokens") == 0) status = run_tokens(ctx, argv[2], argc - 3, argv + 3);
  if (strcmp(argv[1], "shards") == 0 && argc > 3) status = run_shards(ctx, argv[2], atoi(argv[3]));
  if (strcmp(argv[1], "tensor") == 0 && argc > 3) status = run_tensor(ctx, argv[2], argv[3], false);
  if (strcmp(argv[1], "values") == 0 && argc > 3) status = run_tensor(ctx, argv[2], argv[3], true);
  if (strcmp(argv[1], "whole-hash") == 0) status = run_whole_hash(ctx, argv[2]);
  bk_context_destroy(ctx);
  return status != BK_OK;
}

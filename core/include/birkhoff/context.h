/* bk_context holds what the library may use of its surroundings: memory, a log and file access.
 * Everything else is made from a context and keeps a pointer to it, so the context must outlive all
 * of it. A context and what was made from it is used by one thread at a time. (Backends have worker
 * threads of their own.) */
#ifndef BIRKHOFF_CONTEXT_H
#define BIRKHOFF_CONTEXT_H

#include <birkhoff/status.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_context bk_context;

typedef enum bk_log_level {
  BK_LOG_ERROR,
  BK_LOG_WARN,
  BK_LOG_INFO,
  BK_LOG_DEBUG,
  BK_LOG_TRACE
} bk_log_level;

/* Receives one message, without a newline. The text is valid during the call. */
typedef void (*bk_log_fn)(void *user, bk_log_level level, const char *message);

/* Host memory. alloc returns memory aligned to `align` (a power of two, at least 16), or NULL. free
 * is told the size that was asked for. */
typedef struct bk_allocator {
  void *(*alloc)(void *user, size_t bytes, size_t align);
  void (*free)(void *user, void *ptr, size_t bytes);
  void *user;
} bk_allocator;

/* File access. A path is a string of bytes with '/' between its parts. Each function returns 0 or a
 * negated errno value, but read_at and write return the number of bytes that they moved, which is
 * smaller than asked for only at the end of the file, or a negated errno value. */
typedef struct bk_file bk_file;
typedef struct bk_fs {
  int (*open_read)(void *user, const char *path, bk_file **file);
  /* Creates the file, or empties one that is there unless `append` is set. */
  int (*open_write)(void *user, const char *path, bool append, bk_file **file);
  int64_t (*read_at)(void *user, bk_file *file, uint64_t offset, void *dst, size_t bytes);
  /* Writes behind what was written before. */
  int64_t (*write)(void *user, bk_file *file, const void *src, size_t bytes);
  int (*size)(void *user, bk_file *file, uint64_t *bytes);
  int (*truncate)(void *user, const char *path, uint64_t bytes);
  int (*sync)(void *user, bk_file *file);
  int (*close)(void *user, bk_file *file);
  int (*mkdir)(void *user, const char *path);                  /* -EEXIST if it is there */
  int (*rename)(void *user, const char *from, const char *to); /* atomic; also directories */
  int (*remove)(void *user, const char *path);                 /* a file or an empty folder */
  int (*sync_dir)(void *user, const char *path);
  /* Gives the names in a folder, without . and .. */
  int (*list)(void *user, const char *path, void (*each)(void *arg, const char *name), void *arg);
  /* 0 for a regular file, 1 for a folder, 2 for anything else, or a negated errno value */
  int (*kind)(void *user, const char *path);
  void *user;
} bk_fs;

typedef struct bk_context_options {
  const bk_allocator *allocator; /* NULL: the C library's */
  bk_log_fn log;                 /* NULL: no messages, since the library never prints */
  void *log_user;
  bk_log_level log_level; /* messages above this level are not made; 0: errors only */
  const bk_fs *fs;        /* NULL: the operating system's files */
} bk_context_options;

/* options may be NULL: memory of the C library, no log, files of the operating system. */
BK_API bk_status bk_context_create(const bk_context_options *options, bk_context **context);
/* A context for programs that have no operating system, or want nothing of it: it uses only what
 * the options hand in. The allocator is needed. Without fs every access to a file fails, and
 * without a log there are no messages. Devices run in the calling thread; there is no clock
 * (tokens_per_s is not a number), no environment variable and no loadable module. If a program
 * makes only such contexts and opens its device with bk_device_open_backend, a static link of it
 * holds no code that needs an operating system. */
BK_API bk_status bk_context_create_embedded(const bk_context_options *options,
                                            bk_context **context);
BK_API void bk_context_destroy(bk_context *context); /* NULL is allowed */

/* The bytes of host memory that are held through the context now, the largest such number so far,
 * and how many allocations were ever made. */
typedef struct bk_memory_stats {
  size_t current_bytes, peak_bytes;
  uint64_t allocations;
} bk_memory_stats;
BK_API void bk_context_memory_stats(const bk_context *context, bk_memory_stats *stats);

/* The file access of a context: what was handed in, or the operating system's. It is never NULL and
 * is valid as long as the context. */
BK_API const bk_fs *bk_context_fs(const bk_context *context);

/* ---- memory and messages of a context, as the library itself uses them ---- */

#if defined(__GNUC__)
#define BK_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#define BK_PRINTF(format_at, first_at)
#endif

/* Memory from the context's allocator. It is zeroed and aligned to 64 bytes, and bk_free releases
 * it. Returns NULL and logs a message if there is none left. 0 bytes give a valid pointer. */
BK_API void *bk_alloc(bk_context *ctx, size_t bytes);
/* The same for count x element bytes. A product that does not fit a size_t fails in the same
 * way. */
BK_API void *bk_alloc_array(bk_context *ctx, size_t count, size_t element);
/* Makes room for at least `needed` elements: if *capacity is less, *array moves and *capacity at
 * least doubles. On failure both stay as they were. */
BK_API bk_status bk_grow(bk_context *ctx, void **array, size_t *capacity, size_t needed,
                         size_t element);
/* A copy of a text, and a text made as printf would; NULL as above. */
BK_API char *bk_strdup(bk_context *ctx, const char *text);
BK_API char *bk_format(bk_context *ctx, const char *format, ...) BK_PRINTF(2, 3);
/* Releases what these functions made, and whatever else a header says is to be bk_free'd. The
 * context must be the one that the memory came from. NULL is allowed. */
BK_API void bk_free(bk_context *ctx, void *memory);

/* Sends one message to the context's log, if its level allows it. */
BK_API void bk_log(bk_context *ctx, bk_log_level level, const char *format, ...) BK_PRINTF(3, 4);
/* Logs an error and returns `status`: `return bk_fail(ctx, BK_ERR_DATA, "%s: empty", path);` */
BK_API bk_status bk_fail(bk_context *ctx, bk_status status, const char *format, ...)
    BK_PRINTF(3, 4);
/* Reads "error", "warn", "info", "debug" or "trace". Any other text is BK_ERR_ARGUMENT, which is
 * not logged. */
BK_API bk_status bk_log_level_parse(const char *text, bk_log_level *level);

#ifdef __cplusplus
}
#endif
#endif

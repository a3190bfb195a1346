/* bk_context: what the library may use of its surroundings: memory, a log sink and file access.
 * Everything else is made from a context and keeps a pointer to it; it must outlive them all. A
 * context and what is made from it is used by one thread at a time (backends own their worker
 * threads). */
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

/* Receives one message, without a newline, valid for the call only. */
typedef void (*bk_log_fn)(void *user, bk_log_level level, const char *message);

/* Host memory. alloc returns memory aligned to `align` (a power of two, at least 16) or NULL. */
typedef struct bk_allocator {
  void *(*alloc)(void *user, size_t bytes, size_t align);
  void (*free)(void *user, void *ptr, size_t bytes);
  void *user;
} bk_allocator;

/* File access. Paths are bytes, '/' separated. Each returns 0 or a negated errno value; read and
 * write return the number of bytes moved (short only at the end of the file) or a negated errno
 * value. */
typedef struct bk_file bk_file;
typedef struct bk_fs {
  int (*open_read)(void *user, const char *path, bk_file **file);
  /* creates; truncates unless append */
  int (*open_write)(void *user, const char *path, bool append, bk_file **file);
  int64_t (*read_at)(void *user, bk_file *file, uint64_t offset, void *dst, size_t bytes);
  /* appends at the write position */
  int64_t (*write)(void *user, bk_file *file, const void *src, size_t bytes);
  int (*size)(void *user, bk_file *file, uint64_t *bytes);
  int (*truncate)(void *user, const char *path, uint64_t bytes);
  int (*sync)(void *user, bk_file *file);
  int (*close)(void *user, bk_file *file);
  int (*mkdir)(void *user, const char *path);                  /* -EEXIST if it is there */
  int (*rename)(void *user, const char *from, const char *to); /* atomic; also directories */
  int (*remove)(void *user, const char *path);                 /* a file or an empty folder */
  int (*sync_dir)(void *user, const char *path);
  /* no . or .. */
  int (*list)(void *user, const char *path, void (*each)(void *arg, const char *name), void *arg);
  /* 0 regular file, 1 folder, 2 other, or a negated errno value */
  int (*kind)(void *user, const char *path);
  void *user;
} bk_fs;

typedef struct bk_context_options {
  const bk_allocator *allocator; /* NULL: the C library's */
  bk_log_fn log;                 /* NULL: no messages (the library itself never prints) */
  void *log_user;
  bk_log_level log_level; /* messages above this level are not made; 0 = errors only */
  const bk_fs *fs;        /* NULL: the operating system's files */
} bk_context_options;

/* options may be NULL: C library memory, no log, operating system files. */
BK_API bk_status bk_context_create(const bk_context_options *options, bk_context **context);
/* For programs without an operating system, or that want nothing of it: uses only what options
 * hand in. The allocator is needed; without fs every access to a file fails, without a log there
 * are no messages. There is one thread (devices run inline), no clock (tokens_per_s is not a
 * number), no environment variable and no loadable module. A static link of a program that makes
 * no other context, and opens its device with bk_device_open_backend, holds no code that needs
 * an operating system. */
BK_API bk_status bk_context_create_embedded(const bk_context_options *options,
                                            bk_context **context);
/* NULL is allowed. */
BK_API void bk_context_destroy(bk_context *context);

/* Bytes of host memory now held through the context, and the largest value so far; number of
 * allocations ever made. */
typedef struct bk_memory_stats {
  size_t current_bytes, peak_bytes;
  uint64_t allocations;
} bk_memory_stats;
BK_API void bk_context_memory_stats(const bk_context *context, bk_memory_stats *stats);

/* The file access of a context: what was handed in, or the operating system's. Valid as long as
 * the context; never NULL. */
BK_API const bk_fs *bk_context_fs(const bk_context *context);

/* ---- memory and messages of a context, as the library itself uses them ---- */

#if defined(__GNUC__)
#define BK_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#define BK_PRINTF(format_at, first_at)
#endif

/* Memory from the context's allocator: zeroed, aligned to 64 bytes, released with bk_free. NULL,
 * with a message, if there is none; 0 bytes give a valid pointer. */
BK_API void *bk_alloc(bk_context *ctx, size_t bytes);
/* count x element bytes; a product that is too large is a failure like any other. */
BK_API void *bk_alloc_array(bk_context *ctx, size_t count, size_t element);
/* Makes room for at least `needed` elements: *array moves and *capacity at least doubles where it
 * has less. Both stay as they were on failure. */
BK_API bk_status bk_grow(bk_context *ctx, void **array, size_t *capacity, size_t needed,
                         size_t element);
BK_API char *bk_strdup(bk_context *ctx, const char *text);
BK_API char *bk_format(bk_context *ctx, const char *format, ...) BK_PRINTF(2, 3);
/* Releases what these functions made, and what other functions of the library say is to be
 * released with it. The context must be the one that it was made with; NULL is allowed. */
BK_API void bk_free(bk_context *ctx, void *memory);

/* One message to the context's log, if its level allows it. */
BK_API void bk_log(bk_context *ctx, bk_log_level level, const char *format, ...) BK_PRINTF(3, 4);
/* Logs an error and returns `status`: `return bk_fail(ctx, BK_ERR_DATA, "%s: empty", path);` */
BK_API bk_status bk_fail(bk_context *ctx, bk_status status, const char *format, ...)
    BK_PRINTF(3, 4);
/* "error" "warn" "info" "debug" "trace"; others: BK_ERR_ARGUMENT, without a message. */
BK_API bk_status bk_log_level_parse(const char *text, bk_log_level *level);

#ifdef __cplusplus
}
#endif
#endif

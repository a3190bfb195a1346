/* bk_context: a copy of the options, with defaults for what they leave out. It owns nothing but
 * its own block; the log sink, the file access and the allocator stay the caller's.
 *
 * This file refers to nothing of the operating system. What a context has of it comes in through
 * `defaults` (os.c), so that a static link of a program with embedded contexts only stays free of
 * threads, clock and files. */
#include "base/base.h"

#include <math.h>

/* NULL options leave every default; a member that is NULL leaves its own. The log has no default:
 * a library that nobody asked to speak is silent. */
static bk_context from_options(const bk_context_options *options, const bk_context *defaults) {
  bk_context ctx = *defaults;
  if (!options) return ctx;
  if (options->allocator) ctx.allocator = *options->allocator;
  if (options->fs) ctx.fs = *options->fs;
  ctx.log = options->log;
  ctx.log_user = options->log_user;
  ctx.log_level = options->log_level;
  return ctx;
}

/* The library calls each member without a test for NULL, so that a gap has to be found here. */
static bool fs_complete(const bk_fs *fs) {
  return fs->open_read && fs->open_write && fs->read_at && fs->write && fs->size && fs->truncate &&
         fs->sync && fs->close && fs->mkdir && fs->rename && fs->remove && fs->sync_dir &&
         fs->list && fs->kind;
}

/* The context is first made on the stack, because its own block is allocated and counted through
 * it; the copy then carries that count along. */
bk_status bk_context_make(const bk_context_options *options, const bk_context *defaults,
                          bk_context **context) {
  if (!context) return BK_ERR_ARGUMENT;
  bk_context made = from_options(options, defaults);
  if (!made.allocator.alloc || !made.allocator.free)
    return bk_fail(&made, BK_ERR_ARGUMENT,
                   "context options: the allocator needs both alloc and free");
  if (!fs_complete(&made.fs))
    return bk_fail(&made, BK_ERR_ARGUMENT, "context options: the file access has a NULL member");
  bk_context *ctx = bk_alloc(&made, sizeof *ctx);
  if (!ctx) return BK_ERR_MEMORY;
  *ctx = made;
  *context = ctx;
  return BK_OK;
}

bk_status bk_context_create_embedded(const bk_context_options *options, bk_context **context) {
  const bk_context defaults = {.fs = bk_fs_none};
  return bk_context_make(options, &defaults, context);
}

/* Memory that is still held means that something made from the context outlives it, which is a
 * fault of the program; it is warned about and not freed. */
void bk_context_destroy(bk_context *context) {
  if (!context) return;
  bk_context last = *context; /* the context's own block is freed through a copy of it */
  bk_free(&last, context);
  if (last.stats.current_bytes > 0)
    bk_warn(&last, "context destroyed while %zu bytes made from it are still held",
            last.stats.current_bytes);
}

void bk_context_memory_stats(const bk_context *context, bk_memory_stats *stats) {
  *stats = context->stats;
}

double bk_context_seconds(const bk_context *ctx) {
  return ctx->os ? ctx->os->seconds() : (double)NAN;
}

int bk_context_cpu_count(const bk_context *ctx) { return ctx->os ? ctx->os->cpu_count() : 1; }

bool bk_context_system_memory(const bk_context *ctx, size_t *free_bytes, size_t *total_bytes) {
  return ctx->os && ctx->os->system_memory(free_bytes, total_bytes);
}

const char *bk_context_environment(const bk_context *ctx, const char *name) {
  return ctx->os ? ctx->os->environment(name) : NULL;
}

bool bk_context_reads_in_threads(const bk_context *ctx) {
  const bk_fs *own = ctx->os ? ctx->os->fs : NULL, *fs = &ctx->fs;
  return own && fs->open_read == own->open_read && fs->read_at == own->read_at &&
         fs->size == own->size && fs->kind == own->kind && fs->close == own->close;
}

bool bk_context_writes_in_threads(const bk_context *ctx) {
  const bk_fs *own = ctx->os ? ctx->os->fs : NULL;
  return own && ctx->fs.write == own->write && ctx->fs.sync == own->sync;
}

const bk_fs *bk_context_fs(const bk_context *ctx) { return &ctx->fs; }

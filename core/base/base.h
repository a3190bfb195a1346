/* base: services for the whole library; knows no tensor. Internal header (shared within
 * libbirkhoff). */
#ifndef BK_BASE_H
#define BK_BASE_H

#include <birkhoff/context.h>
#include <birkhoff/status.h>

#include "base/files.h"
#include "base/macros.h"
#include "base/text.h"

/* What a context has of the operating system beside memory, log and files; every use of it goes
 * through these. os.c has the only table; a context made by bk_context_create_embedded has none,
 * so that a static link leaves all of it out. */
typedef struct bk_pool bk_pool;
struct bk_worker_ops; /* worker.h */
typedef struct bk_os {
  double (*seconds)(void);
  int (*cpu_count)(void);
  bool (*system_memory)(size_t *free_bytes, size_t *total_bytes);
  const char *(*environment)(const char *name);
  /* n_threads > 1 */
  bk_status (*threads_create)(struct bk_context *ctx, int n_threads, bk_pool **pool);
  const struct bk_worker_ops *worker;
  const bk_fs *fs; /* the operating system's files, whose functions any thread may call */
} bk_os;

struct bk_context {
  bk_allocator allocator;
  bk_log_fn log;
  void *log_user;
  bk_log_level log_level;
  bk_fs fs;
  const bk_os *os;       /* NULL: embedded */
  bk_memory_stats stats; /* of host memory through bk_alloc */
};

/* ---- alloc.c ---- */
/* False on overflow; *product is then as it was. */
bool bk_mul_size(size_t a, size_t b, size_t *product);

/* ---- pages.c ---- */
#define BK_LARGE_PAGE ((size_t)2 << 20)
/* Before the block is touched: the system may serve it with large pages (fewer TLB misses in
 * products). A hint. */
void bk_pages_prefer_large(void *block, size_t bytes);

/* ---- rng.c: Philox 4x32-10, counter based; the same bits everywhere. ---- */
/* FNV-1a 64 over bytes, then a finaliser */
BK_MODULE_API uint64_t bk_hash64(const void *bytes, size_t count);
/* The same in parts: bk_hash64_end(bk_hash64_add(BK_HASH64_BEGIN, bytes, count)). */
#define BK_HASH64_BEGIN UINT64_C(0xcbf29ce484222325)
uint64_t bk_hash64_add(uint64_t h, const void *bytes, size_t count);
uint64_t bk_hash64_end(uint64_t h);
void bk_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4]);
double bk_uniform(uint64_t seed, uint64_t stream, uint64_t index); /* (0,1), 53 bits */
/* Standard normal by the inverse distribution function in our own integer and polynomial code
 * (no libm), so that every machine gets the same bits. Element `index` of stream `stream` (for
 * weights: bk_hash64 of the tensor's name). */
double bk_normal(uint64_t seed, uint64_t stream, uint64_t index);

/* ---- arena.c: offsets planned before memory exists. Offsets only; runtime/ binds chunks to
 * buffers. ---- */
#define BK_ARENA_ALIGN 256
typedef struct bk_arena_place {
  int chunk;
  size_t offset;
} bk_arena_place;
typedef struct bk_arena_mark {
  int chunk;
  size_t offset;
} bk_arena_mark;
typedef struct bk_arena {
  bk_context *ctx;
  const char *name;
  size_t chunk_limit;  /* bytes; no reservation straddles two chunks; SIZE_MAX = one chunk */
  int n_chunks;        /* chunks ever opened */
  int current;         /* chunk being filled */
  size_t used;         /* bytes used in the current chunk */
  size_t *chunk_bytes; /* high-water mark of each chunk */
  size_t capacity;
} bk_arena;
void bk_arena_init(bk_arena *arena, bk_context *ctx, const char *name, size_t chunk_limit);
void bk_arena_fini(bk_arena *arena);
/* BK_ERR_MEMORY past chunk_limit */
bk_status bk_arena_reserve(bk_arena *arena, size_t bytes, bk_arena_place *place);
bk_arena_mark bk_arena_get_mark(const bk_arena *arena);
/* later reservations reuse the space; the high-water mark stays */
void bk_arena_rewind(bk_arena *arena, bk_arena_mark mark);
size_t bk_arena_bytes(const bk_arena *arena); /* sum of the chunks' high-water marks */

/* ---- pool.c: a pool owned by whoever creates it; with more than one thread it is threads.c's.
 * ---- */
#define BK_MAX_THREADS 1024
/* Bytes of stack of a worker, whatever the system's limit; the cpu backend's kernels,
 * unoptimised, need a third of it. */
#define BK_WORKER_STACK ((size_t)2 << 20)
/* worker in [0, n) */
typedef void (*bk_pool_fn)(void *arg, int64_t begin, int64_t end, int worker);
/* n_threads includes the caller; 1 makes no thread; more in an embedded context:
 * BK_ERR_UNSUPPORTED. */
bk_status bk_pool_create(bk_context *ctx, int n_threads, bk_pool **pool);
void bk_pool_destroy(bk_pool *pool);
int bk_pool_size(const bk_pool *pool);
/* Splits [0, count) into pieces of `grain` (the last may be shorter), always the same pieces
 * whatever the number of threads; pieces are taken dynamically. Returns when all are done. No
 * allocation. Callable from one thread at a time. */
void bk_pool_run(bk_pool *pool, int64_t count, int64_t grain, bk_pool_fn fn, void *arg);

/* ---- context.c: the operating system as the context sees it. In an embedded one: no clock
 * (NAN), one processor, memory unknown (false), no variable set (NULL). ---- */
BK_MODULE_API double bk_context_seconds(const bk_context *ctx);
int bk_context_cpu_count(const bk_context *ctx);
bool bk_context_system_memory(const bk_context *ctx, size_t *free_bytes, size_t *total_bytes);
BK_MODULE_API const char *bk_context_environment(const bk_context *ctx, const char *name);
/* Whether a thread of the library's own may read files: there are threads, and the functions that
 * read are the operating system's. Those of the options are called by the context's user alone. */
bool bk_context_reads_in_threads(const bk_context *ctx);
bool bk_context_writes_in_threads(const bk_context *ctx); /* and sync */

/* ---- clock.c, system.c: the operating system itself, for programs and tests; the library's own
 * code asks the context ---- */
double bk_seconds(void); /* monotonic */
/* processors this process may run on and has time on (quotas of control groups), 1 to
 * BK_MAX_THREADS */
int bk_cpu_count(void);
/* of the machine or of the control group; false if it does not say */
bool bk_system_memory(size_t *free_bytes, size_t *total_bytes);

/* ---- cgroup.c: limits of the process's control groups, as files under `root` say ("": the
 * system's own; tests have trees of theirs). What is handed in is lowered to the smallest limit;
 * where there is none it stays. ---- */
int bk_cgroup_cpus(const char *root, int cpus); /* quotas of time, rounded up to whole processors */
void bk_cgroup_memory(const char *root, size_t *free_bytes, size_t *total_bytes);

/* ---- os.c, fs_posix.c, fs_none.c ---- */
extern const bk_fs bk_fs_posix;
extern const bk_fs bk_fs_none; /* no files: every call returns -ENOSYS */
extern const bk_allocator bk_allocator_libc;
/* Behind the two public functions: `defaults` has the allocator, files and os of a context that
 * is given none. */
bk_status bk_context_make(const bk_context_options *options, const bk_context *defaults,
                          bk_context **context);

#endif

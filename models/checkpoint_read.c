/* The data of tensors, from files to where they belong, by pieces of some MiB and on several
 * threads (checkpoint_priv.h). Each piece is read, searched for what is not finite, and converted
 * while it is in a processor's cache. Where the tensor's memory is the host's and the file has its
 * dtype, it is read straight into the tensor.
 *
 * Pieces are in file order and threads take them in that order, so that a disk sees one stream of
 * reads. Threads use neither the context's memory nor its log: what they find is left in the
 * pieces, and looked at in file order when all are done. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "models/checkpoint_priv.h"

/* Work for one more thread begins with so many bytes. */
#define BYTES_PER_THREAD ((uint64_t)1 << 20)
/* More threads would only wait for memory. */
enum { THREADS_MAX = 8 };
/* Elements that are converted at a time, by way of doubles on the stack. */
enum { BLOCK = 1024 };

typedef struct piece {
  const bk_read_job *job;
  int64_t at, count; /* elements of the job */
  int64_t got;       /* bytes read, or a negated errno value */
  int64_t bad;       /* the first element of the entry that is not finite, or -1 */
  double value;
  bk_dtype beyond; /* the dtype that cannot hold the value; BK_NONE: not finite in the file */
} piece;

/* The buffers of one thread; of a device whose memory is not the host's, of one piece. */
typedef struct slot {
  char *raw;          /* as in the file */
  char *converted[2]; /* for the two tensors of a job, where they are not on the host */
} slot;

typedef struct read_state {
  const bk_st_reader *reader;
  bool host;             /* tensors can be written where they lie */
  piece *pieces, *batch; /* batch: where the pieces begin that the threads work on */
  int64_t n_pieces;
  slot slots[THREADS_MAX];
  int n_slots;
  atomic_bool failed;
} read_state;

/* ---- what is not finite ---- */

void bk_finding_note(bk_finding *f, const bk_st_entry *e, int64_t index, double value,
                     bk_dtype dtype) {
  if (f->last == e) return; /* the same tensor again */
  f->last = e;
  if (f->tensors++) return;
  f->first = e;
  f->index = index;
  f->value = isnan(value) ? (double)NAN : value; /* without its sign */
  f->dtype = isfinite(value) ? dtype : BK_NONE;
}

char *bk_finding_text(bk_context *ctx, const bk_st_reader *reader, const bk_finding *f) {
  char more[96] = "", why[96] = "";
  long long further = (long long)f->tensors - 1;
  if (further > 0)
    snprintf(more, sizeof more, ", and %lld further tensor%s not finite", further,
             further == 1 ? " is" : "s are");
  if (f->dtype != BK_NONE)
    snprintf(why, sizeof why, ", which is finite in the file and too large for %s",
             bk_dtype_name(f->dtype));
  return bk_format(ctx, "%s: tensor %s is not finite%s: element %lld is %.9g%s%s",
                   bk_st_entry_path(reader, f->first), f->first->name,
                   f->dtype != BK_NONE ? " once it is loaded" : "", (long long)f->index, f->value,
                   why, more);
}

/* The index of the first element whose exponent has all bits set (infinities and NaN), or -1. The
 * first loop takes 8 bytes at a time, whatever the compiler makes of it: with `least`, the lowest
 * bit of the exponent, added to an exponent, a carry into the sign's place says that all its bits
 * were set. */
#define FIRST_NOT_FINITE(name, type, bits, least)                                  \
  static int64_t name(const type *v, int64_t n) {                                  \
    const uint64_t lanes = UINT64_MAX / (type) ~(type)0, mask = lanes * (bits);    \
    const uint64_t add = lanes * (least), carry = lanes * ((bits) + (least));      \
    const int64_t whole = n / (int64_t)(8 / sizeof *v) * (int64_t)(8 / sizeof *v); \
    uint64_t any = 0, word;                                                        \
    for (int64_t i = 0; i < whole; i += (int64_t)(8 / sizeof *v)) {                \
      memcpy(&word, v + i, sizeof word);                                           \
      any |= (word & mask) + add;                                                  \
    }                                                                              \
    for (int64_t i = any & carry ? 0 : whole; i < n; i++)                          \
      if ((v[i] & (bits)) == (bits)) return i;                                     \
    return -1;                                                                     \
  }
FIRST_NOT_FINITE(first_bad_f32, uint32_t, 0x7f800000u, 0x00800000u)
FIRST_NOT_FINITE(first_bad_bf16, uint16_t, 0x7f80u, 0x0080u)
FIRST_NOT_FINITE(first_bad_f16, uint16_t, 0x7c00u, 0x0400u)
FIRST_NOT_FINITE(first_bad_f64, uint64_t, UINT64_C(0x7ff0000000000000),
                 UINT64_C(0x0010000000000000))

/* BK_NONE stands for F16, which is the only dtype that is read and has no bk_dtype. */
static int64_t first_bad(const void *stored, bk_dtype dtype, int64_t n) {
  switch (dtype) {
    case BK_F32: return first_bad_f32(stored, n);
    case BK_BF16: return first_bad_bf16(stored, n);
    case BK_F64: return first_bad_f64(stored, n);
    default: return first_bad_f16(stored, n);
  }
}

/* The least magnitude that rounds to infinity: half a unit in the last place above the largest
 * number. */
static double limit_of(bk_dtype dtype) {
  if (dtype == BK_F32) return 0x1.ffffffp127;
  /* bf16 by way of fp32: the last fp32 below 0x1.ffp127 ends there */
  return dtype == BK_BF16 ? 0x1.feffffp127 : (double)INFINITY;
}

/* The index of the first element that the dtype cannot hold as a finite number, or -1. */
static int64_t first_beyond(const double *v, bk_dtype dtype, int64_t n) {
  double limit = limit_of(dtype);
  int any = 0;
  for (int64_t i = 0; i < n; i++) any |= !(fabs(v[i]) < limit);
  for (int64_t i = 0; any && i < n; i++)
    if (!(fabs(v[i]) < limit)) return i;
  return -1;
}

/* ---- conversion ---- */

static void widen(const void *stored, bk_dtype dtype, int64_t n, double *v) {
  const float *f = stored;
  const uint16_t *h = stored;
  switch (dtype) {
    case BK_F32:
      for (int64_t i = 0; i < n; i++) v[i] = (double)f[i];
      break;
    case BK_BF16:
      for (int64_t i = 0; i < n; i++) v[i] = (double)bk_bf16_to_f32(h[i]);
      break;
    case BK_F64: memcpy(v, stored, (size_t)n * sizeof *v); break;
    default:
      for (int64_t i = 0; i < n; i++) v[i] = (double)bk_f16_to_f32(h[i]);
  }
}

/* bf16 by way of fp32, as bk_dtype_store rounds. */
static void narrow(const double *v, int64_t n, bk_dtype dtype, void *dst) {
  float *f = dst;
  uint16_t *h = dst;
  switch (dtype) {
    case BK_F32:
      for (int64_t i = 0; i < n; i++) f[i] = (float)v[i];
      break;
    case BK_BF16:
      for (int64_t i = 0; i < n; i++) h[i] = bk_f32_to_bf16((float)v[i]);
      break;
    default: memcpy(dst, v, (size_t)n * sizeof *v);
  }
}

/* The first bad element of a piece is kept, and of two in one place the first that was noted. */
static void note_bad(piece *p, int64_t index, double value, bk_dtype beyond) {
  int64_t place = p->job->first + p->at + index;
  if (p->bad >= 0 && p->bad <= place) return;
  p->bad = place;
  p->value = value;
  p->beyond = beyond;
}

static void convert(piece *p, const char *stored, bk_dtype to, char *dst) {
  bk_dtype from = p->job->entry->dtype;
  size_t width = bk_st_element_size(p->job->entry), wide = bk_dtype_size(to);
  double v[BLOCK];
  for (int64_t at = 0; at < p->count; at += BLOCK) {
    int64_t n = p->count - at < BLOCK ? p->count - at : BLOCK;
    widen(stored + (size_t)at * width, from, n, v);
    int64_t bad = first_beyond(v, to, n);
    if (bad >= 0) note_bad(p, at + bad, v[bad], to);
    narrow(v, n, to, dst + (size_t)at * wide);
  }
}

/* ---- one piece ---- */

static const bk_tensor *tensor_of(const bk_read_job *job, int k) { return k ? &job->b : &job->a; }

static char *place_in(const piece *p, int k) {
  const bk_tensor *t = tensor_of(p->job, k);
  return (char *)bk_tensor_data(t) + (size_t)p->at * bk_dtype_size(t->dtype);
}

static bool has_dtype_of_file(const bk_read_job *job, int k) {
  const bk_tensor *t = tensor_of(job, k);
  return bk_tensor_present(t) && t->dtype == job->entry->dtype;
}

/* Which of the job's tensors can be read into directly, or -1. */
static int direct_tensor(const read_state *r, const bk_read_job *job) {
  for (int k = 0; k < 2 && r->host; k++)
    if (has_dtype_of_file(job, k)) return k;
  return -1;
}

/* Whether the stored form itself is looked at: where a tensor gets it, or where there is none. */
static bool keeps_stored(const bk_read_job *job) {
  return has_dtype_of_file(job, 0) || has_dtype_of_file(job, 1) || !bk_tensor_present(&job->a);
}

static void check_stored(piece *p, const char *stored) {
  bk_dtype dtype = p->job->entry->dtype;
  int64_t bad = first_bad(stored, dtype, p->count);
  double value;
  if (bad < 0) return;
  widen(stored + (size_t)bad * bk_st_element_size(p->job->entry), dtype, 1, &value);
  note_bad(p, bad, value, BK_NONE);
}

static void read_piece(read_state *r, piece *p, slot *s) {
  const bk_read_job *job = p->job;
  size_t bytes = (size_t)p->count * bk_st_element_size(job->entry);
  int direct = direct_tensor(r, job);
  char *stored = direct >= 0 ? place_in(p, direct) : s->raw;
  p->got = bk_st_read_stored(r->reader, job->entry, job->first + p->at, p->count, stored);
  if (p->got < 0 || (uint64_t)p->got != bytes) {
    atomic_store(&r->failed, true);
    return;
  }
  if (keeps_stored(job)) check_stored(p, stored);
  for (int k = 0; k < 2; k++) {
    const bk_tensor *t = tensor_of(job, k);
    if (!bk_tensor_present(t) || k == direct) continue;
    char *dst = r->host ? place_in(p, k) : s->converted[k];
    if (!has_dtype_of_file(job, k)) convert(p, stored, t->dtype, dst);
    else if (r->host) memcpy(dst, stored, bytes);
  }
}

/* On the host a thread has one slot for all of its pieces; elsewhere a piece keeps the slot of its
 * number in the batch until it is uploaded. */
static void read_pieces(void *arg, int64_t begin, int64_t end, int worker) {
  read_state *r = arg;
  for (int64_t i = begin; i < end && !atomic_load(&r->failed); i++)
    read_piece(r, &r->batch[i], &r->slots[r->host ? worker : (int)i]);
}

/* ---- all pieces ---- */

static bk_status upload_piece(bk_stream *stream, const piece *p, const slot *s) {
  for (int k = 0; k < 2; k++) {
    const bk_tensor *t = tensor_of(p->job, k);
    if (!bk_tensor_present(t)) continue;
    bk_tensor part = bk_tensor_slice(*t, 0, p->at, p->count);
    BK_TRY(
        bk_tensor_upload(stream, &part, has_dtype_of_file(p->job, k) ? s->raw : s->converted[k]));
  }
  return BK_OK;
}

/* The first failure in file order, of the pieces that were read. */
static bk_status report_failure(const read_state *r) {
  for (int64_t i = 0; i < r->n_pieces; i++) {
    const piece *p = &r->pieces[i];
    size_t bytes = (size_t)p->count * bk_st_element_size(p->job->entry);
    if (p->got != INT64_MIN && (p->got < 0 || (uint64_t)p->got != bytes))
      return bk_st_read_failed(r->reader, p->job->entry, p->got, bytes);
  }
  return BK_OK;
}

static bk_status run_batches(read_state *r, bk_pool *pool, bk_stream *stream) {
  int64_t batch = r->host ? r->n_pieces : r->n_slots;
  if (stream) BK_TRY(stream->ops->sync(stream));
  for (int64_t at = 0; at < r->n_pieces; at += batch) {
    int64_t n = r->n_pieces - at < batch ? r->n_pieces - at : batch;
    r->batch = r->pieces + at;
    bk_pool_run(pool, n, 1, read_pieces, r);
    if (atomic_load(&r->failed)) return report_failure(r);
    for (int64_t i = 0; i < n && !r->host; i++)
      BK_TRY(upload_piece(stream, &r->batch[i], &r->slots[i]));
  }
  return BK_OK;
}

/* The widest form of an element: a piece is so many of these as fit its bytes. */
static size_t widest(const bk_read_job *job) {
  size_t width = bk_st_element_size(job->entry);
  for (int k = 0; k < 2; k++)
    if (bk_dtype_size(tensor_of(job, k)->dtype) > width)
      width = bk_dtype_size(tensor_of(job, k)->dtype);
  return width;
}

static int64_t piece_elements(const bk_read_job *job, size_t piece_bytes) {
  return (int64_t)(piece_bytes / widest(job));
}

static bk_status cut(read_state *r, bk_context *ctx, const bk_read_job *jobs, int64_t n_jobs,
                     size_t piece_bytes) {
  for (int64_t i = 0; i < n_jobs; i++) {
    int64_t most = piece_elements(&jobs[i], piece_bytes);
    r->n_pieces += (jobs[i].count + most - 1) / most;
  }
  if (!(r->pieces = bk_alloc_array(ctx, (size_t)r->n_pieces, sizeof *r->pieces)))
    return BK_ERR_MEMORY;
  piece *p = r->pieces;
  for (int64_t i = 0; i < n_jobs; i++) {
    int64_t most = piece_elements(&jobs[i], piece_bytes);
    for (int64_t at = 0; at < jobs[i].count; at += most, p++)
      *p = (piece){.job = &jobs[i],
                   .at = at,
                   .count = jobs[i].count - at < most ? jobs[i].count - at : most,
                   .got = INT64_MIN,
                   .bad = -1};
  }
  return BK_OK;
}

/* One block for all slots: BK_CHECKPOINT_STAGING bytes at the most, less where all tensors are
 * small, and none where everything is read into its tensor. */
static bk_status make_slots(read_state *r, bk_context *ctx, size_t piece_bytes, bool staged,
                            char **block) {
  int parts = r->host ? 1 : 3;
  if (!staged) return BK_OK;
  if (!(*block = bk_alloc_array(ctx, (size_t)(r->n_slots * parts), piece_bytes)))
    return BK_ERR_MEMORY;
  for (int i = 0; i < r->n_slots; i++) {
    char *at = *block + (size_t)(i * parts) * piece_bytes;
    r->slots[i].raw = at;
    for (int k = 0; k < 2 && parts == 3; k++)
      r->slots[i].converted[k] = at + (size_t)(k + 1) * piece_bytes;
  }
  return BK_OK;
}

/* How many threads read, and by how large pieces. */
static void plan(read_state *r, bk_context *ctx, const bk_read_job *jobs, int64_t n_jobs,
                 int threads, size_t *piece_bytes, bool *staged) {
  uint64_t total = 0, largest = 0;
  for (int64_t i = 0; i < n_jobs; i++) {
    uint64_t bytes = (uint64_t)jobs[i].count * widest(&jobs[i]);
    total += bytes;
    if (bytes > largest) largest = bytes;
    *staged |= bk_st_element_size(jobs[i].entry) && direct_tensor(r, &jobs[i]) < 0;
  }
  uint64_t useful = total / BYTES_PER_THREAD + 1;
  int n = threads > 0 ? threads : bk_context_cpu_count(ctx);
  if (n > THREADS_MAX) n = THREADS_MAX;
  if (!bk_context_reads_in_threads(ctx)) n = 1;
  r->n_slots = (uint64_t)n < useful ? n : (int)useful;
  size_t most = BK_CHECKPOINT_STAGING / (size_t)(r->n_slots * (r->host ? 1 : 3));
  if (most > BK_CHECKPOINT_READ_PIECE) most = BK_CHECKPOINT_READ_PIECE;
  *piece_bytes = largest < most ? BK_ALIGN_UP((size_t)largest + 64, 64) : most / 64 * 64;
}

bk_status bk_checkpoint_read(bk_context *ctx, bk_stream *stream, const bk_st_reader *reader,
                             const bk_read_job *jobs, int64_t n_jobs, int threads,
                             bk_finding *found) {
  read_state r = {.reader = reader, .host = !stream || stream->device->props.host_memory};
  size_t piece_bytes;
  bool staged = false;
  char *block = NULL;
  bk_pool *pool = NULL;
  plan(&r, ctx, jobs, n_jobs, threads, &piece_bytes, &staged);
  bk_status status = cut(&r, ctx, jobs, n_jobs, piece_bytes);
  if (status == BK_OK) status = make_slots(&r, ctx, piece_bytes, staged, &block);
  if (status == BK_OK) status = bk_pool_create(ctx, r.n_slots, &pool);
  if (status == BK_OK) status = run_batches(&r, pool, stream);
  for (int64_t i = 0; i < r.n_pieces && status == BK_OK; i++)
    if (r.pieces[i].bad >= 0)
      bk_finding_note(found, r.pieces[i].job->entry, r.pieces[i].bad, r.pieces[i].value,
                      r.pieces[i].beyond);
  bk_pool_destroy(pool);
  bk_free(ctx, block);
  bk_free(ctx, r.pieces);
  return status;
}

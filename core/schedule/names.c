/* The schedules that have a name. Each list is a pure function of the name, the number of ranks,
 * that of micro-batches and the rank. */
#include "schedule/schedule.h"

#include <stdio.h>
#include <string.h>

/* The list of one rank under construction. Micro-batches come in their order in both directions of
 * each chunk, so that counters are all that a schedule needs. */
typedef struct maker {
  bk_context *ctx;
  bk_schedule *s;
  int rank;
  int micro;                   /* of each stream */
  int forward[2], backward[2]; /* the next micro-batch of each chunk */
  int deferred;                /* W: where the search for the oldest I begins */
  bk_status status;            /* the first failure stays */
} maker;

static void add(maker *m, const bk_schedule_record *record) {
  if (m->status == BK_OK) m->status = bk_schedule_add(m->ctx, m->s, m->rank, record);
}

/* F, B or I of the chunk's next micro-batch. */
static void pass(maker *m, bk_work kind, int chunk) {
  int micro = kind == BK_WORK_F ? m->forward[chunk]++ : m->backward[chunk]++;
  add(m,
      &(bk_schedule_record){
          .kind = kind, .chunk = chunk, .micro = micro, .back_chunk = chunk, .back_micro = micro});
}

static void pair(maker *m, int chunk, int back_chunk) {
  add(m, &(bk_schedule_record){.kind = BK_WORK_FB,
                               .chunk = chunk,
                               .micro = m->forward[chunk]++,
                               .back_chunk = back_chunk,
                               .back_micro = m->backward[back_chunk]++});
}

/* The W of the oldest I that has none. */
static void weights(maker *m) {
  const bk_schedule_rank *rank = &m->s->rank[m->rank];
  while (m->deferred < rank->n_records && rank->records[m->deferred].kind != BK_WORK_I)
    m->deferred++;
  if (m->status != BK_OK || m->deferred == rank->n_records) return;
  bk_schedule_record w = rank->records[m->deferred++];
  w.kind = BK_WORK_W;
  add(m, &w);
}

/* ---- one chunk a rank ---- */

static void place_in_line(maker *m) {
  m->s->rank[m->rank].chunks[0] = (bk_schedule_chunk){.stage = m->rank};
}

/* The later a stage, the fewer forward passes before its first backward one; in between they take
 * turns. It is the order of PyTorch's Schedule1F1B. */
static void make_1f1b(maker *m) {
  int first = m->s->ranks - 1 - m->rank;
  place_in_line(m);
  for (int i = 0; i < first && i < m->micro; i++) pass(m, BK_WORK_F, 0);
  while (m->backward[0] < m->micro) {
    if (m->forward[0] < m->micro) pass(m, BK_WORK_F, 0);
    pass(m, BK_WORK_B, 0);
  }
}

/* As 1f1b, with as many W put off as the rank has ranks before it: no rank then holds more
 * activations than the first one, and gradients reach the first rank sooner. It is the order of
 * PyTorch's ScheduleInterleavedZeroBubble with one stage a rank. */
static void make_zb1p(maker *m) {
  int first = m->s->ranks - 1 - m->rank;
  place_in_line(m);
  for (int i = 0; i < first && i < m->micro; i++) pass(m, BK_WORK_F, 0);
  while (m->backward[0] < m->micro) {
    if (m->forward[0] < m->micro) pass(m, BK_WORK_F, 0);
    pass(m, BK_WORK_I, 0);
    if (m->backward[0] > m->rank) weights(m);
  }
  for (int i = 0; i < m->rank && i < m->micro; i++) weights(m);
}

/* ---- two chunks a rank: DualPipe and DualPipeV ---- */

/* The eight phases of DualPipe for a rank that has `before` ranks between it and the middle, where
 * the two directions meet, and `after` - 1 on its other side. What comes in on that side goes
 * through chunk `near`, what comes from the middle through chunk `far`. */
static void make_phases(maker *m, int before, int after, int near) {
  int far = 1 - near, together = m->micro - 2 * (before + after) + after;
  for (int i = 0; i < 2 * before; i++) pass(m, BK_WORK_F, near);
  for (int i = 0; i < after; i++) {
    pass(m, BK_WORK_F, near);
    pass(m, BK_WORK_F, far);
  }
  for (int i = 0; i < before; i++) {
    pass(m, BK_WORK_I, far);
    weights(m);
    pass(m, BK_WORK_F, far);
  }
  for (int i = 0; i < together; i++) {
    if (i == 0 && before == 0) { /* in the middle one after the other: the bubble is smaller */
      pass(m, BK_WORK_F, near);
      pass(m, BK_WORK_B, far);
    } else {
      pair(m, near, far);
    }
    pair(m, far, near);
  }
  for (int i = 0; i < before; i++) {
    pass(m, BK_WORK_B, far);
    pair(m, far, near);
  }
  for (int i = 0; i < 2 * after; i++) /* half of them put their W off */
    pass(m, i < after ? BK_WORK_B : BK_WORK_I, i % 2 ? near : far);
  for (int i = 0; i < before; i++) {
    weights(m);
    pass(m, BK_WORK_I, near);
  }
  for (int i = 0; i < after; i++) weights(m);
}

static void make_dualpipe(maker *m) {
  int n = m->s->ranks, mirror = n - 1 - m->rank, nearest = m->rank < mirror ? m->rank : mirror;
  bk_schedule_chunk *chunks = m->s->rank[m->rank].chunks;
  chunks[0] = (bk_schedule_chunk){.stage = m->rank, .stream = 0};
  chunks[1] = (bk_schedule_chunk){.stage = mirror, .stream = 1};
  make_phases(m, n / 2 - 1 - nearest, nearest + 1, m->rank > mirror);
}

static void make_dualpipev(maker *m) {
  int n = m->s->ranks;
  bk_schedule_chunk *chunks = m->s->rank[m->rank].chunks;
  chunks[0].stage = m->rank;
  chunks[1].stage = 2 * n - 1 - m->rank;
  make_phases(m, n - 1 - m->rank, m->rank + 1, 0);
}

/* ---- by name ---- */

typedef struct named {
  const char *name;
  int chunks, streams;
  bool even;        /* ranks and micro-batches */
  int least;        /* micro-batches for each rank */
  const char *asks; /* what `even` and `least` say, in words */
  void (*make)(maker *m);
} named;
static const named all[] = {
    {"sequential", 1, 1, false, 0, NULL, make_1f1b},
    {"1f1b", 1, 1, false, 0, NULL, make_1f1b},
    {"zb1p", 1, 1, false, 0, NULL, make_zb1p},
    {"dualpipe", 2, 2, true, 2,
     "dualpipe needs an even number of ranks, and an even number of micro-batches, at least 2 for "
     "each rank",
     make_dualpipe},
    {"dualpipev", 2, 1, false, 2, "dualpipev needs at least 2 micro-batches for each rank",
     make_dualpipev},
};

const char *const *bk_schedule_names(void) {
  static const char *const names[] = {"sequential", "1f1b", "zb1p", "dualpipe", "dualpipev", NULL};
  return names;
}

static bk_status find(bk_context *ctx, const char *name, const named **found) {
  const char *const *names = bk_schedule_names();
  size_t n = BK_COUNT(all);
  for (size_t i = 0; i < n; i++)
    if (strcmp(name, all[i].name) == 0) {
      *found = &all[i];
      return BK_OK;
    }
  const char *near = bk_nearest(name, names, n);
  if (near)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "there is no schedule %s; did you mean %s?", name, near);
  return bk_fail(ctx, BK_ERR_ARGUMENT,
                 "there is no schedule %s; there are sequential, 1f1b, zb1p, dualpipe and "
                 "dualpipev",
                 name);
}

/* Limits on sizes are looked at later, by bk_schedule_new. */
static bk_status take_numbers(bk_context *ctx, const named *x, int ranks, int micro) {
  if (strcmp(x->name, "sequential") == 0 && ranks != 1)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "sequential is the schedule of 1 rank, and there are %d; 1f1b is like it with "
                   "any number",
                   ranks);
  if (!x->asks || ranks < 1 || ranks > BK_SCHEDULE_RANKS) return BK_OK;
  if (x->even && ranks % 2)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s; there are %d ranks, and dualpipev takes any number",
                   x->asks, ranks);
  if (micro < x->least * ranks || (x->even && micro % 2))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: %d for %d rank%s; there are %d", x->asks,
                   micro < x->least * ranks ? x->least * ranks : micro + 1, ranks,
                   ranks == 1 ? "" : "s", micro);
  return BK_OK;
}

bk_status bk_schedule_create(bk_context *ctx, const char *name, int ranks, int micro_batches,
                             bk_schedule **schedule) {
  const named *x = NULL;
  bk_schedule *s = NULL;
  BK_TRY(find(ctx, name, &x));
  BK_TRY(take_numbers(ctx, x, ranks, micro_batches));
  BK_TRY(bk_schedule_new(ctx, name, NULL, ranks, x->chunks, x->streams, micro_batches, &s));
  maker m = {.ctx = ctx, .s = s, .micro = micro_batches / x->streams};
  for (int r = 0; r < ranks && m.status == BK_OK; r++) {
    m.rank = r;
    m.deferred = 0;
    memset(m.forward, 0, sizeof m.forward);
    memset(m.backward, 0, sizeof m.backward);
    x->make(&m);
  }
  if (m.status == BK_OK) m.status = bk_schedule_check(ctx, s);
  if (m.status == BK_OK) *schedule = s;
  else bk_schedule_destroy(ctx, s);
  return m.status;
}

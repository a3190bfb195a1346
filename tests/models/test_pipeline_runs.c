/* Pipelines under strain: delays at random in front of messages and between pieces, ranks that are
 * slow, that fail, that hang, that expect another message than what comes. Whatever the delays, the
 * bits are the same and nothing hangs; a fault ends all ranks in time, with a line that names it.
 */
#include "tests/models/models.h"

#include "tests/models/pipes.h"

#include <time.h>

enum { MICROS = 8 };

static void sleep_for(double seconds) {
  struct timespec t = {.tv_sec = (time_t)seconds};
  t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  nanosleep(&t, NULL);
}

/* Four stages of one sublayer, or two of two. */
static pipes_spec make_spec(const char *schedule, int pp, int kind) {
  pipes_spec s = {.backend = &bk_backend_cpu,
                  .dtype = BK_F32,
                  .config = small_config(kind),
                  .schedule = schedule,
                  .pp = pp,
                  .dp = 1};
  s.config.num_hidden_layers = 2;
  bk_train_config_default(&s.recipe);
  s.recipe.batch_size = MICROS;
  s.recipe.micro_batch_size = 1;
  s.recipe.seq_len = 4;
  return s;
}

/* ---- delays ---- */

static _Thread_local uint64_t random_state;

static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

/* Of the run, and of what a rank does in it. */
static uint64_t delay_seed;

static bk_status dawdle(rank *r, const struct pipes *p, const bk_piece *piece) {
  (void)p, (void)piece;
  if (!random_state) random_state = bk_hash64(&(uint64_t[]){delay_seed, (uint64_t)r->rank}, 16) | 1;
  uint64_t x = next_random();
  if (x % 16 == 0) sleep_for((double)(x >> 8 & 255) * 1e-6);
  if (x % 1024 == 1) sleep_for(2e-3);
  return BK_OK;
}

static const struct {
  const char *schedule;
  int pp;
} shapes[] = {{"dualpipev", 2}, {"1f1b", 4}, {"dualpipe", 4}, {"zb1p", 4},
              {"dualpipe", 2},  {"1f1b", 2}, {"zb1p", 2},     {"dualpipev", 1}};
enum { SHAPES = BK_COUNT(shapes) };

/* DualPipe has bits of its own: those of a run without delays. */
static pipes *reference(size_t shape, int kind) {
  bool dualpipe = strcmp(shapes[shape].schedule, "dualpipe") == 0;
  pipes_spec s = make_spec(dualpipe ? "dualpipe" : NULL, dualpipe ? shapes[shape].pp : 1, kind);
  pipes *p = pipes_run(ctx, &s, NULL);
  pipes_check_ended(p, "without delays");
  return p;
}

START_TEST(test_delays) {
  int runs = thorough() ? 1000 : quick() ? 4 : 20;
  pipes *one[SHAPES][BK_COUNT(kinds)] = {{NULL}};
  for (int i = 0; i < runs; i++) {
    size_t shape = (size_t)i % SHAPES, kind = (size_t)(i / 3) % BK_COUNT(kinds);
    pipes_spec s = make_spec(shapes[shape].schedule, shapes[shape].pp, kinds[kind]);
    char what[128];
    s.disturb = delay_seed = 1000 + (uint64_t)i;
    s.look = dawdle;
    s.recipe.merge_stream = i % 5 == 0;
    snprintf(what, sizeof what, "run %d, %s, pp %d, kind %d", i, s.schedule, s.pp, kinds[kind]);
    if (!one[shape][kind]) one[shape][kind] = reference(shape, kinds[kind]);
    pipes *p = pipes_run(ctx, &s, NULL);
    pipes_check_equal(p, one[shape][kind], 0, what);
    pipes_free(p);
  }
  for (size_t i = 0; i < SHAPES * BK_COUNT(kinds); i++)
    if (one[i / BK_COUNT(kinds)][i % BK_COUNT(kinds)])
      pipes_free(one[i / BK_COUNT(kinds)][i % BK_COUNT(kinds)]);
}
END_TEST

/* Whole steps, in which replicas add their gradients up and validate. */
START_TEST(test_delayed_training) {
  int runs = thorough() ? 100 : quick() ? 1 : 3;
  const char *file = unit_path("text.txt");
  char text[600], path[256];
  for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i * i % 23);
  OK(bk_file_write_atomic(ctx, file, text, sizeof text));
  snprintf(path, sizeof path, "%s", file);
  for (int k = 0; k < 2; k++) {
    pipes_spec s = make_spec(k ? "dualpipe" : "dualpipev", 2, BK_HC_MHC);
    s.config.vocab_size = 257;
    s.dp = 2;
    s.recipe.batch_size = 2 * MICROS;
    s.steps = s.recipe.steps = s.recipe.gain_every = s.recipe.eval_every = 2;
    s.recipe.eval_tokens = 64;
    pipes *first = pipes_run(ctx, &s, path);
    pipes_check_ended(first, "without delays");
    for (int i = 0; i < runs; i++) {
      s.disturb = 77 + (uint64_t)i;
      pipes *p = pipes_run(ctx, &s, path);
      pipes_check_equal(p, first, 0, k ? "dualpipe, delayed" : "dualpipev, delayed");
      pipes_free(p);
    }
    pipes_free(first);
  }
}
END_TEST

/* ---- a rank that is slow ---- */

static double nap;
static _Thread_local int pieces;

static bk_status nap_once(rank *r, const struct pipes *p, const bk_piece *piece) {
  (void)p, (void)piece;
  if (r->rank == 1 && ++pieces == 20) sleep_for(nap);
  return BK_OK;
}

/* It is waited for as long as the time-out allows. */
START_TEST(test_slow) {
  nap = thorough() ? 10 : quick() ? 0.2 : 1;
  for (size_t shape = 0; shape < (thorough() ? 4 : 1); shape++) {
    pipes_spec s = make_spec(shapes[shape].schedule, shapes[shape].pp, BK_HC_MHC);
    pipes *one = reference(shape, BK_HC_MHC);
    s.look = nap_once;
    pipes *p = pipes_run(ctx, &s, NULL);
    pipes_check_equal(p, one, 0, "a slow rank");
    ck_assert_double_ge(p->out[0].seconds, nap);
    pipes_free(p);
    pipes_free(one);
  }
}
END_TEST

/* Rank 0 takes long for its first two passes. The gradients that it gets are posted before the
 * first and come after the second: they are not waited for yet, and no time-out runs. */
static bk_status nap_twice(rank *r, const struct pipes *p, const bk_piece *piece) {
  (void)p;
  if (r->rank == 0 && piece->part == BK_PART_EMBED && ++pieces <= 2) sleep_for(0.6);
  return BK_OK;
}

START_TEST(test_early_receives) {
  pipes_spec s = make_spec("1f1b", 2, BK_HC_MHC);
  pipes *one = reference(1, BK_HC_MHC);
  s.look = nap_twice;
  s.timeout_s = 1;
  pipes *p = pipes_run(ctx, &s, NULL);
  pipes_check_equal(p, one, 0, "two long passes");
  ck_assert_double_ge(p->out[0].seconds, 1.2);
  pipes_free(p);
  pipes_free(one);
}
END_TEST

/* ---- faults ---- */

/* All ranks fail in time; `part` is in the line of some rank. Each has said something once. */
static void check_ends(const pipes_spec *s, const char *part, double seconds, const char *what) {
  double begin = bk_seconds();
  pipes *p = pipes_run(ctx, s, NULL);
  bool found = false;
  ck_assert_msg(bk_seconds() - begin < seconds, "%s: it took %.1f s", what, bk_seconds() - begin);
  for (int r = 0; r < p->all.size; r++) {
    const char *messages = p->all.rank[r].messages;
    ck_assert_msg(p->out[r].status != BK_OK && messages[0], "%s: rank %d: %s\n%s", what, r,
                  bk_status_name(p->out[r].status), messages);
    const char *end = strchr(messages, '\n');
    ck_assert_msg(end && !end[1], "%s: rank %d says more than a line: %s", what, r, messages);
    found |= strstr(messages, part) != NULL;
  }
  ck_assert_msg(found, "%s: nobody says \"%s\": rank 0: %srank 1: %s", what, part,
                p->all.rank[0].messages, p->all.rank[1].messages);
  pipes_free(p);
}

/* Rank 1 has a schedule in which rank 0 sends two messages the other way round, forward or back. */
static int swapped;
static bk_status swap_messages(rank *r, bk_schedule *schedule) {
  bk_schedule_message *found[2];
  int n = 0;
  if (r->rank != 1) return BK_OK;
  for (int i = 0; i < schedule->rank[0].n_records && n < 2; i++) {
    bk_schedule_message *m = &schedule->rank[0].records[i].send[swapped];
    if (m->peer == 1) found[n++] = m;
  }
  if (n < 2) return BK_ERR_ARGUMENT;
  bk_schedule_message kept = *found[0];
  *found[0] = *found[1];
  *found[1] = kept;
  return BK_OK;
}

START_TEST(test_swapped) {
  static const struct {
    const char *schedule;
    int pp, side;
    const char *says;
  } cases[] = {
      {"1f1b", 2, 0, "rank 0 is at a send of exchange "},
      {"zb1p", 4, 0, "rank 0 is at a send of exchange "},
      {"dualpipev", 2, 1, "rank 0 is at a send of exchange "},
      {"dualpipe", 4, 0, "rank 0 is at a send of exchange "},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    pipes_spec s = make_spec(cases[i].schedule, cases[i].pp, BK_HC_MHC);
    s.tamper = swap_messages;
    swapped = cases[i].side;
    check_ends(&s, cases[i].says, 20, cases[i].schedule);
  }
}
END_TEST

/* Rank 1 has read another list than the others. */
static bk_status other_list(rank *r, bk_schedule *schedule) {
  bk_schedule_record *records = schedule->rank[1].records;
  if (r->rank != 1) return BK_OK;
  for (int i = 0; i + 1 < schedule->rank[1].n_records; i++)
    if (records[i].kind == BK_WORK_F && records[i].micro == 2) {
      records[i].micro = records[i].back_micro = 3;
      for (int side = 0; side < 2; side++) records[i].send[side].micro++;
      break;
    }
  return BK_OK;
}

START_TEST(test_other_list) {
  pipes_spec s = make_spec("1f1b", 4, BK_HC_MHC);
  s.tamper = other_list;
  check_ends(&s, "rank 1 is at a send of exchange ", 20, "another list");
}
END_TEST

/* Rank 1 has sequences that are shorter: both shapes are named. */
START_TEST(test_shape) {
  pipes_spec s = make_spec("1f1b", 2, BK_HC_MHC);
  s.other_tokens = 2;
  check_ends(&s, "fp32 [144]", 20, "another shape");
  check_ends(&s, "fp32 [192]", 20, "another shape");
}
END_TEST

static int die_at;
static bk_status die(rank *r, const struct pipes *p, const bk_piece *piece) {
  (void)p, (void)piece;
  if (r->rank != 1 || ++pieces != die_at) return BK_OK;
  return bk_fail(r->ctx, BK_ERR_DEVICE, "the device is gone");
}

/* Wherever a rank fails, it says why, and the others end without it. */
START_TEST(test_dies) {
  static const size_t some[] = {0, 1, 2, 3};
  for (size_t k = 0; k < BK_COUNT(some); k++)
    for (die_at = 1; die_at < 50; die_at += thorough() ? 3 : 16) {
      pipes_spec s = make_spec(shapes[some[k]].schedule, shapes[some[k]].pp, BK_HC_MHC);
      char what[64];
      s.look = die;
      snprintf(what, sizeof what, "%s dies after %d pieces", s.schedule, die_at);
      check_ends(&s, "the device is gone", 20, what);
    }
}
END_TEST

/* Rank 1 does nothing more for longer than the others wait. */
START_TEST(test_hangs) {
  nap = 2.5;
  for (size_t k = 0; k < (quick() ? 1 : 2); k++) {
    pipes_spec s = make_spec(k ? "zb1p" : "dualpipev", 2, BK_HC_MHC);
    s.look = nap_once;
    s.timeout_s = 0.5;
    check_ends(&s, "rank 1 has not come to exchange ", 20, "a rank that hangs");
  }
}
END_TEST

UNIT_MAIN("pipeline_runs", unit_folder_open, unit_folder_close, test_delays, test_delayed_training,
          test_slow, test_early_receives, test_swapped, test_other_list, test_shape, test_dies,
          test_hangs)

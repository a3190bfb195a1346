/* Schedules as data: the lists of those that have a name against tables that DeepSeek's own code
 * made (tests/fixtures/schedules.json) and, for more ranks and micro-batches, against counts and
 * formulas; what the check refuses; the simulation against steps worked out by hand; reading. */
#include "io/json_in.h"
#include "schedule/schedule.h"
#include "tests/unit/fault_alloc.h"

#include <math.h>

#define OK(call) ck_assert_int_eq(call, BK_OK)

static bk_schedule *make(const char *name, int ranks, int micro) {
  bk_schedule *s = NULL;
  OK(bk_schedule_create(ctx, name, ranks, micro, &s));
  return s;
}

static void line_is(const bk_schedule *s, int rank, const char *line) {
  char *text = bk_schedule_text(ctx, s, rank);
  ck_assert_str_eq(text, line);
  bk_free(ctx, text);
}

/* A step where every stage costs the same and messages nothing. */
static void simulate(const bk_schedule *s, double f, double b, double w, double fb,
                     bk_timeline **t) {
  bk_stage_costs *stage = bk_alloc_array(ctx, (size_t)s->stages, sizeof *stage);
  for (int i = 0; i < s->stages; i++) stage[i] = (bk_stage_costs){.f = f, .b = b, .w = w};
  OK(bk_schedule_simulate(ctx, s, &(bk_schedule_costs){.stage = stage, .fb = fb}, t));
  bk_free(ctx, stage);
}

static void bubble_is(const bk_schedule *s, double f, double b, double w, double fb,
                      double bubble) {
  bk_timeline *t = NULL;
  simulate(s, f, b, w, fb, &t);
  ck_assert_msg(t->bubble == bubble, "%s of %d ranks, %d micro-batches: bubble %g, not %g", s->name,
                s->ranks, s->micro_batches, t->bubble, bubble);
  bk_timeline_destroy(ctx, t);
}

/* ---- lists ---- */

static void table_is(const char *name, const char *sizes, const json_t *lines) {
  int ranks, micro;
  ck_assert_int_eq(sscanf(sizes, "%d,%d", &ranks, &micro), 2);
  ck_assert_uint_eq(json_array_size(lines), (size_t)ranks);
  bk_schedule *s = make(name, ranks, micro);
  for (int r = 0; r < ranks; r++)
    line_is(s, r, json_string_value(json_array_get(lines, (size_t)r)));
  bk_schedule_destroy(ctx, s);
}

START_TEST(tables_of_others) {
  const char *top = getenv("TOP_SRCDIR"), *name, *sizes;
  char path[512], *text;
  size_t bytes;
  int tables = 0;
  json_t *root, *of_name, *lines;
  snprintf(path, sizeof path, "%s/tests/fixtures/schedules.json", top ? top : ".");
  OK(bk_file_read_all(ctx, path, (size_t)1 << 20, &text, &bytes));
  OK(bk_json_load(ctx, path, text, bytes, &root));
  json_object_foreach(root, name, of_name) json_object_foreach(of_name, sizes, lines) {
    table_is(name, sizes, lines);
    tables++;
  }
  ck_assert_int_eq(tables, 14);
  json_decref(root);
  bk_free(ctx, text);
}
END_TEST

/* As PyTorch's Schedule1F1B and ScheduleInterleavedZeroBubble have them. */
START_TEST(small_lists) {
  bk_schedule *s = make("1f1b", 3, 4);
  line_is(s, 0, "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3");
  line_is(s, 1, "0F0 0F1 0B0 0F2 0B1 0F3 0B2 0B3");
  line_is(s, 2, "0F0 0B0 0F1 0B1 0F2 0B2 0F3 0B3");
  bk_schedule_destroy(ctx, s);
  s = make("zb1p", 3, 4);
  line_is(s, 0, "0F0 0F1 0F2 0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3");
  line_is(s, 1, "0F0 0F1 0I0 0F2 0I1 0W0 0F3 0I2 0W1 0I3 0W2 0W3");
  line_is(s, 2, "0F0 0I0 0F1 0I1 0F2 0I2 0W0 0F3 0I3 0W1 0W2 0W3");
  bk_schedule_destroy(ctx, s);
  s = make("sequential", 1, 2);
  line_is(s, 0, "0F0 0B0 0F1 0B1");
  bk_schedule_destroy(ctx, s);
  s = make("dualpipev", 1, 3);
  line_is(s, 0, "0F0 1F0 0F1 1B0 (1F1;0B0) (0F2;1B1) (1F2;0B1) 1B2 0I2 0W2");
  bk_schedule_destroy(ctx, s);
}
END_TEST

/* Passes of each chunk, and I and W of the rank. */
static void counts_are(const bk_schedule *s, int rank) {
  int passes[2][BK_SCHEDULE_CHUNKS] = {{0}}, kinds[BK_WORKS] = {0}, chunk, micro;
  for (int i = 0; i < s->rank[rank].n_records; i++) {
    const bk_schedule_record *r = &s->rank[rank].records[i];
    kinds[r->kind]++;
    for (int d = 0; d < 2; d++)
      if (bk_schedule_pass(r, d, &chunk, &micro)) passes[d][chunk]++;
  }
  for (int c = 0; c < s->chunks; c++)
    for (int d = 0; d < 2; d++) ck_assert_int_eq(passes[d][c], s->micro_batches / s->streams);
  ck_assert_int_eq(kinds[BK_WORK_I], kinds[BK_WORK_W]);
}

/* Every message that is sent is received, and all that both sides say of it agrees. */
static void messages_agree(const bk_schedule *s, int rank) {
  for (int i = 0; i < s->rank[rank].n_records; i++)
    for (int d = 0; d < 2; d++) {
      const bk_schedule_record *r = &s->rank[rank].records[i];
      const bk_schedule_message *sent = &r->send[d];
      int chunk = d ? r->back_chunk : r->chunk, found = 0, other, micro;
      if (sent->peer < 0) continue;
      ck_assert_int_eq(sent->gradient, d);
      for (int j = 0; j < s->rank[sent->peer].n_records; j++) {
        const bk_schedule_record *to = &s->rank[sent->peer].records[j];
        const bk_schedule_message *got = &to->receive[d];
        if (!bk_schedule_pass(to, d, &other, &micro) || got->peer != rank ||
            got->peer_chunk != chunk || other != sent->peer_chunk || got->micro != sent->micro)
          continue;
        found++;
        ck_assert(got->edge == sent->edge && got->stream == sent->stream &&
                  got->gradient == sent->gradient);
      }
      ck_assert_int_eq(found, 1);
    }
}

/* DualPipe, folded or not: `half` ranks from an end to the middle. */
static void two_ways_are(const char *name, int ranks, int half, int micro) {
  bk_schedule *s = make(name, ranks, micro);
  for (int r = 0; r < ranks; r++) {
    counts_are(s, r);
    if (ranks <= 6) messages_agree(s, r);
    ck_assert_int_eq(s->rank[r].peak, 2 * half + 1);
    ck_assert_int_eq(s->rank[r].chunks[0].slots + s->rank[r].chunks[1].slots, 2 * half + 1);
  }
  bubble_is(s, 1, 2, 1, 3, (half - 1) * (3 + 2 - 3 * 1));
  bk_schedule_destroy(ctx, s);
}

START_TEST(dualpipe) {
  for (int n = 2; n <= 32; n += 2)
    for (int micro = 2 * n; micro <= 2 * n + 8; micro += 2)
      two_ways_are("dualpipe", n, n / 2, micro);
}
END_TEST

START_TEST(dualpipev) {
  for (int p = 1; p <= 16; p++)
    for (int micro = 2 * p; micro <= 2 * p + 8; micro++) two_ways_are("dualpipev", p, p, micro);
}
END_TEST

static int least(int a, int b) { return a < b ? a : b; }

/* The formulas hold from as many micro-batches as ranks on. */
START_TEST(one_way) {
  for (int p = 1; p <= 12; p++)
    for (int micro = 1; micro <= 2 * p + 2; micro++) {
      bk_schedule *s = make("1f1b", p, micro), *z = make("zb1p", p, micro);
      for (int r = 0; r < p; r++) {
        counts_are(s, r);
        counts_are(z, r);
        messages_agree(s, r);
        messages_agree(z, r);
        ck_assert_int_eq(s->rank[r].peak, least(p - r, micro));
        ck_assert_int_eq(z->rank[r].peak, least(p, micro));
      }
      if (micro >= p) {
        bubble_is(s, 1, 2, 1, 3, (p - 1) * 3);
        bubble_is(s, 2, 5, 1, 3, (p - 1) * 7);
        bubble_is(z, 1, 2, 1, 3, p - 1);
        bubble_is(z, 3, 5, 2, 3, (p - 1) * 4);
      }
      bk_schedule_destroy(ctx, s);
      bk_schedule_destroy(ctx, z);
    }
}
END_TEST

START_TEST(holders) {
  bk_schedule *s = make("dualpipe", 4, 8);
  int chunk;
  for (int stream = 0; stream < 2; stream++)
    for (int stage = 0; stage < 4; stage++) {
      int rank = bk_schedule_holder(s, stream, stage, &chunk);
      ck_assert_int_eq(s->rank[rank].chunks[chunk].stage, stage);
      ck_assert_int_eq(s->rank[rank].chunks[chunk].stream, stream);
      ck_assert_int_eq(rank, stream ? 3 - stage : stage);
    }
  bk_schedule_destroy(ctx, s);
  s = make("dualpipev", 3, 6);
  ck_assert_int_eq(bk_schedule_holder(s, 0, 5, &chunk), 0);
  ck_assert_int_eq(chunk, 1);
  /* the fold: both stages are the last rank's */
  ck_assert_int_eq(s->rank[2].records[0].send[0].peer, 2);
  ck_assert_int_eq(s->rank[2].records[1].receive[0].peer, 2);
  bk_schedule_destroy(ctx, s);
}
END_TEST

static void not_made(const char *name, int ranks, int micro, const char *message) {
  bk_schedule *s = NULL;
  ck_assert_int_eq(bk_schedule_create(ctx, name, ranks, micro, &s), BK_ERR_ARGUMENT);
  ck_assert_ptr_null(s);
  unit_expect(message);
}

START_TEST(not_with_these_numbers) {
  not_made("dualpipe", 8, 10, "at least 2 for each rank: 16 for 8 ranks; there are 10");
  not_made("dualpipe", 8, 17, "18 for 8 ranks; there are 17");
  not_made("dualpipe", 7, 20, "an even number of ranks");
  not_made("dualpipev", 3, 5, "at least 2 micro-batches for each rank: 6 for 3 ranks; there are 5");
  not_made("sequential", 2, 4, "sequential is the schedule of 1 rank, and there are 2");
  not_made("1f1b", 0, 4, "the number of ranks is 1 to");
  not_made("1f1b", 4, 0, "the number of micro-batches is 1 to");
  not_made("zb1p", 1, -1, "the number of micro-batches is 1 to");
  not_made("dualpipe", INT32_MAX - 1, INT32_MAX - 1, "the number of ranks is 1 to");
  not_made("1f1b", BK_SCHEDULE_RANKS, BK_SCHEDULE_MICRO, "passes, more than the limit");
  not_made("dualpip", 2, 4, "did you mean dualpipe?");
  not_made("interleaved", 2, 4, "there are sequential, 1f1b, zb1p, dualpipe and dualpipev");
}
END_TEST

/* ---- the check ---- */

static bk_schedule_record *record(bk_schedule *s, int rank, int at) {
  return &s->rank[rank].records[at];
}

static void swap(bk_schedule *s, int rank, int a, int b) {
  bk_schedule_record kept = *record(s, rank, a);
  *record(s, rank, a) = *record(s, rank, b);
  *record(s, rank, b) = kept;
}

static void drop(bk_schedule *s, int rank, int at) {
  bk_schedule_rank *list = &s->rank[rank];
  memmove(record(s, rank, at), record(s, rank, at + 1),
          (size_t)(--list->n_records - at) * sizeof *list->records);
}

static void refused(bk_schedule *s, const char *message) {
  ck_assert_int_eq(bk_schedule_check(ctx, s), BK_ERR_DATA);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(message);
  bk_schedule_destroy(ctx, s);
}

/* zb1p of 2 ranks and 3 micro-batches: "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2" and
 * "0F0 0I0 0F1 0I1 0W0 0F2 0I2 0W1 0W2". */
START_TEST(wrong_passes) {
  bk_schedule *s = make("zb1p", 2, 3);
  OK(bk_schedule_check(ctx, s)); /* as often as one likes */
  drop(s, 1, 8);
  refused(s, "rank 1: micro-batch 2 has no W on chunk 0");
  swap(s = make("zb1p", 2, 3), 1, 7, 8);
  refused(s, "rank 1, record 8, 0W2: the W of a chunk come in the order of their I; 0W1 is next");
  record(s = make("zb1p", 2, 3), 1, 8)->micro = 1;
  refused(s, "rank 1, record 9, 0W1: no gradient of parameters is put off");
  swap(s = make("zb1p", 2, 3), 0, 2, 3);
  refused(s, "rank 0, record 3, 0W0: no gradient of parameters is put off");
  record(s = make("zb1p", 2, 3), 0, 1)->micro = 0;
  refused(s, "rank 0, record 2, 0F0: micro-batch 0 went forward through chunk 0 already");
  swap(s = make("zb1p", 2, 3), 1, 0, 1);
  refused(s, "rank 1, record 1, 0I0: micro-batch 0 must go forward through chunk 0 first");
  record(s = make("zb1p", 2, 3), 0, 5)->back_micro = 0;
  refused(s, "micro-batch 0 went backward through chunk 0 already");
  record(s = make("zb1p", 2, 3), 0, 5)->kind = BK_WORK_B;
  refused(s, "rank 0, record 7, 0W1: no gradient of parameters is put off");
  drop(s = make("1f1b", 2, 3), 0, 5);
  refused(s, "rank 0: micro-batch 2 does not go backward through chunk 0");
  s = make("1f1b", 2, 3);
  s->rank[1].n_records = 0;
  refused(s, "rank 1: micro-batch 0 does not go through chunk 0");
}
END_TEST

START_TEST(wrong_numbers) {
  bk_schedule *s = make("1f1b", 2, 3);
  record(s, 1, 0)->micro = 3;
  refused(s, "rank 1, record 1, 0F3: there is no micro-batch 3; each stream has 0 to 2");
  record(s = make("1f1b", 2, 3), 1, 0)->back_micro = -1;
  refused(s, "there is no micro-batch -1");
  record(s = make("1f1b", 2, 3), 0, 0)->chunk = 1;
  refused(s, "rank 0, record 1, 1F0: there is no chunk 1; a rank holds chunks 0 to 0");
  record(s = make("1f1b", 2, 3), 0, 0)->kind = BK_WORKS;
  refused(s, "rank 0, record 1: there is no work of kind 5");
  record(s = make("dualpipe", 2, 4), 0, 4)->back_chunk = 1;
  refused(s, "rank 0, record 5, (1F1;1B0): both passes are of chunk 1; they must be of two chunks");
  s = make("dualpipe", 2, 4);
  s->rank[1].chunks[0].stage = 0;
  refused(s, "rank 1, chunk 0: stage 0 of stream 0 is chunk 0 of rank 0 already");
  s = make("dualpipe", 2, 4);
  s->rank[1].chunks[0].stage = 2;
  refused(s, "rank 1, chunk 0: there is no stage 2 of stream 0");
  s = make("dualpipe", 2, 4);
  s->rank[1].chunks[1].stream = 2;
  refused(s, "there is no stage 0 of stream 2; stages are 0 to 1 and streams 0 to 1");
  swap(s = make("dualpipev", 1, 2), 0, 0, 1);
  refused(s, "the forward pass of micro-batch 0 through chunk 0 of the same rank must come first");
  s = make("dualpipev", 1, 2); /* "0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1" */
  swap(s, 0, 5, 6);
  refused(s, "the backward pass of micro-batch 1 through chunk 1 of the same rank must come first");
}
END_TEST

START_TEST(wrong_orders) {
  bk_schedule *s = make("1f1b", 2, 3);
  swap(s, 0, 0, 1);
  refused(s,
          "chunk 0 of rank 0 makes the output of micro-batch 1 as its number 1, where chunk 0 "
          "of rank 1 takes that of micro-batch 0");
  swap(s = make("1f1b", 2, 3), 0, 4, 5);
  refused(s,
          "chunk 0 of rank 1 makes the gradient of micro-batch 1 as its number 2, where chunk 0 "
          "of rank 0 takes that of micro-batch 2");
}
END_TEST

/* A schedule from lines; each rank holds two stages of two streams, or one. */
static bk_schedule *from_lines(int ranks, int chunks, int micro, const char *const *lines) {
  bk_schedule *s = NULL;
  OK(bk_schedule_new(ctx, "own", NULL, ranks, chunks, chunks, micro, &s));
  for (int r = 0; r < ranks; r++) {
    const char *at = lines[r];
    bk_schedule_record parsed;
    s->rank[r].chunks[0] = (bk_schedule_chunk){.stage = r};
    if (chunks > 1) s->rank[r].chunks[1] = (bk_schedule_chunk){.stage = ranks - 1 - r, .stream = 1};
    while (bk_schedule_record_parse(&at, &parsed)) OK(bk_schedule_add(ctx, s, r, &parsed));
    ck_assert_str_eq(at, "");
  }
  return s;
}

START_TEST(waiting_in_a_circle) {
  static const char *const turns[] = {"0F0 0B0 0F1 0B1", "0F0 0F1 0B0 0B1"};
  refused(
      from_lines(2, 1, 2, turns),
      "the lists never end: rank 0, before record 2, 0B0, waits for rank 1 to send the gradient "
      "of micro-batch 0; rank 1, before record 2, 0F1, waits for rank 0 to send the output of "
      "micro-batch 1");
  static const char *const three[] = {"0F0 0B0 0F1 0B1", "0F0 0F1 0B0 0B1", "0F0 0F1 0B0 0B1"};
  refused(from_lines(3, 1, 2, three), "the lists never end: rank ");
}
END_TEST

/* Rank 1 begins with its own stream and takes no output of rank 0's before the gradient comes:
 * rank 0 may send two outputs ahead, not three, since the gradient comes after them. */
START_TEST(too_far_ahead) {
  static const char *const two[] = {"0F0 0F1 1F0 1B0 1F1 1B1 1F2 1B2 0F2 0B0 0B1 0B2",
                                    "1F0 1B0 1F1 1B1 1F2 1B2 0F0 0F1 0F2 0B0 0B1 0B2"};
  static const char *const three[] = {"0F0 0F1 0F2 1F0 1B0 1F1 1B1 1F2 1B2 0B0 0B1 0B2",
                                      "1F0 1B0 1F1 1B1 1F2 1B2 0F0 0F1 0F2 0B0 0B1 0B2"};
  bk_schedule *s = from_lines(2, 2, 6, two);
  OK(bk_schedule_check(ctx, s));
  bk_schedule_destroy(ctx, s);
  refused(from_lines(2, 2, 6, three),
          "the lists never end: rank 0, after record 5, 1B0, waits for rank 1 to receive what it "
          "sent before the gradient of micro-batch 0 (2 are held there); rank 1, before record 2, "
          "1B0, waits for rank 0 to send the gradient of micro-batch 0");
}
END_TEST

/* ---- the simulation ---- */

/* A message takes 1 + 2. F of rank 0 ends at 1, that of rank 1 begins at 4, its B ends at 7, that
 * of rank 0 begins at 10. */
START_TEST(messages_take_time) {
  bk_schedule *s = make("1f1b", 2, 1);
  bk_stage_costs stage[2] = {{1, 2, 1}, {1, 2, 1}};
  bk_schedule_costs costs = {.stage = stage, .latency = 1, .transfer = 2};
  bk_timeline *t = NULL;
  OK(bk_schedule_simulate(ctx, s, &costs, &t));
  ck_assert(t->time == 12 && t->bubble == 9 && t->busy[0] == 3 && t->busy[1] == 3);
  ck_assert(t->sent == 6 && t->exposed == 6);
  ck_assert(t->spans[1][0].begin == 4 && t->spans[1][1].end == 7 && t->spans[0][1].begin == 10);
  bk_timeline_destroy(ctx, t);
  bk_schedule_destroy(ctx, s);
}
END_TEST

/* The outputs of 0F0 and 0F1 (made at 1 and 2) share a link that each keeps for 4: they arrive at 5
 * and 9, while rank 1 works from 5 to 8. The gradients leave at 8 and 12 and arrive at 12 and 16,
 * while rank 0 works from 12 to 14. Ranks wait 4 + 1 + 4 + 2. */
START_TEST(messages_share_a_link) {
  bk_schedule *s = make("1f1b", 2, 2);
  bk_stage_costs stage[2] = {{1, 2, 1}, {1, 2, 1}};
  bk_schedule_costs costs = {.stage = stage, .transfer = 4};
  bk_timeline *t = NULL;
  OK(bk_schedule_simulate(ctx, s, &costs, &t));
  ck_assert(t->spans[1][0].begin == 5 && t->spans[1][2].begin == 9);
  ck_assert(t->spans[0][2].begin == 12 && t->spans[0][3].begin == 16);
  ck_assert(t->time == 18 && t->sent == 16 && t->exposed == 11);
  bk_timeline_destroy(ctx, t);
  bk_schedule_destroy(ctx, s);
}
END_TEST

/* "0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1" on one rank, whose stages cost 1, 3, 2 and 10, 20, 5:
 * the FB takes F of the second and B of the first. */
START_TEST(stages_differ) {
  bk_schedule *s = make("dualpipev", 1, 2);
  bk_stage_costs stage[2] = {{1, 3, 2}, {10, 20, 5}};
  bk_schedule_costs costs = {.stage = stage};
  double all = 1 + 10 + 1 + 20 + (10 + 3) + 20 + 1 + 2;
  bk_timeline *t = NULL;
  OK(bk_schedule_simulate(ctx, s, &costs, &t));
  ck_assert(t->time == all && t->bubble == 0 && t->sent == 0 && t->exposed == 0);
  bk_timeline_destroy(ctx, t);
  costs.overlap = 0.5;
  OK(bk_schedule_simulate(ctx, s, &costs, &t));
  ck_assert(t->time == all - 1.5);
  ck_assert(t->spans[0][4].end - t->spans[0][4].begin == 11.5);
  bk_timeline_destroy(ctx, t);
  costs.fb = 7;
  OK(bk_schedule_simulate(ctx, s, &costs, &t));
  ck_assert(t->time == all - 6);
  bk_timeline_destroy(ctx, t);
  bk_schedule_destroy(ctx, s);
}
END_TEST

static void not_simulated(const bk_schedule *s, bk_stage_costs stage, bk_schedule_costs costs,
                          const char *message) {
  bk_timeline *t = NULL;
  costs.stage = &stage;
  ck_assert_int_eq(bk_schedule_simulate(ctx, s, &costs, &t), BK_ERR_ARGUMENT);
  ck_assert_ptr_null(t);
  unit_expect(message);
}

START_TEST(wrong_costs) {
  static const bk_stage_costs good = {1, 2, 1};
  bk_schedule *s = make("sequential", 1, 2);
  not_simulated(s, (bk_stage_costs){1, 2, 3}, (bk_schedule_costs){0}, "W is a part of B");
  not_simulated(s, (bk_stage_costs){-1, 2, 1}, (bk_schedule_costs){0}, "costs of stage 0: F -1");
  not_simulated(s, (bk_stage_costs){1, (double)INFINITY, 1}, (bk_schedule_costs){0},
                "each is 0 or");
  not_simulated(s, good, (bk_schedule_costs){.overlap = 1.5}, "is 0 to 1; it is 1.5");
  not_simulated(s, good, (bk_schedule_costs){.latency = -1}, "latency -1");
  not_simulated(s, good, (bk_schedule_costs){.transfer = (double)NAN}, "must be 0 or more");
  bk_schedule_destroy(ctx, s);
}
END_TEST

/* ---- files ---- */

static void write_text(const char *text) {
  OK(bk_file_write_atomic(ctx, unit_path("schedule.json"), text, strlen(text)));
}

START_TEST(reads) {
  bk_schedule *s = NULL;
  write_text(
      "{\"schedule\": \"own\", \"stages\": [[0, 1], [1, 0]], \"streams\": [0, 1],"
      " \"micro\": 4, \"bubble\": 0.0, \"time\": 12, \"peak_activations\": [3, 3],"
      " \"costs\": {}, \"ranks\": [\"0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1\","
      " \" 1F0 0F0  1F1 0B0 (0F1;1B0) 0B1 1I1 1W1 \"]}");
  OK(bk_schedule_read(ctx, unit_path("schedule.json"), &s));
  bk_schedule *named = make("dualpipe", 2, 4);
  ck_assert_str_eq(s->name, "own");
  ck_assert(s->stages == 2 && s->streams == 2 && s->micro_batches == 4 && s->chunks == 2);
  for (int r = 0; r < 2; r++) {
    char *line = bk_schedule_text(ctx, named, r);
    line_is(s, r, line);
    bk_free(ctx, line);
    ck_assert_int_eq(s->rank[r].peak, 3);
    for (int i = 0; i < s->rank[r].n_records; i++)
      for (int d = 0; d < 2; d++) {
        ck_assert_int_eq(record(s, r, i)->send[d].peer, record(named, r, i)->send[d].peer);
        ck_assert_int_eq(record(s, r, i)->receive[d].edge, record(named, r, i)->receive[d].edge);
      }
  }
  bk_schedule_destroy(ctx, named);
  bk_schedule_destroy(ctx, s);
}
END_TEST

/* The members of a file that is good without any of them changed. */
static void not_read(const char *schedule, const char *stages, const char *rest, const char *ranks,
                     const char *message) {
  bk_schedule *s = NULL;
  char text[512];
  snprintf(text, sizeof text, "{\"schedule\": %s, \"stages\": %s, %s \"ranks\": %s}", schedule,
           stages, rest, ranks);
  write_text(text);
  bk_status status = bk_schedule_read(ctx, unit_path("schedule.json"), &s);
  if (!message) {
    OK(status);
    bk_schedule_destroy(ctx, s);
    return;
  }
  ck_assert_int_eq(status, BK_ERR_DATA);
  ck_assert_ptr_null(s);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(message);
}

#define NAME_A "\"a\""
#define STAGES "[[0], [1]]"
#define RANKS "[\"0F0 0B0\", \"0F0 0B0\"]"

START_TEST(wrong_members) {
  not_read(NAME_A, STAGES, "", RANKS, NULL);
  not_read(NAME_A, STAGES, "\"micros\": 1,", RANKS, "the key micros is not known");
  not_read(NAME_A, STAGES, "\"micro\": 2,", RANKS, "micro is 2, but chunk 0 of rank 0 takes 1");
  not_read(NAME_A, STAGES, "\"micro\": 1.0,", RANKS, "micro is 1.0, but");
  not_read(NAME_A, STAGES, "\"streams\": [0, 0],", RANKS, "the stream of each chunk, 1 in all");
  not_read(NAME_A, STAGES, "\"streams\": [1],", RANKS,
           "that of chunk 0 must be an integer of 0 to");
  not_read(NAME_A, STAGES, "\"streams\": 0,", RANKS, "streams must be an array");
  not_read("\"a b\"", STAGES, "", RANKS, "schedule must be the name");
  not_read("\"\"", STAGES, "", RANKS, "schedule must be the name");
  not_read("1", STAGES, "", RANKS, "schedule must be the name");
  not_read(NAME_A, "[[0], [0]]", "", RANKS, "stage 0 of stream 0 is chunk 0 of rank 0 already");
  not_read(NAME_A, "[[0], [2]]", "", RANKS, "an integer of 0 to 1");
  not_read(NAME_A, "[[0], [-1]]", "", RANKS, "chunk 0 of rank 1 must hold a stage");
  not_read(NAME_A, "[[0], [1.5]]", "", RANKS, "chunk 0 of rank 1 must hold a stage");
  not_read(NAME_A, "[[0], [1, 2]]", "", RANKS, "that of rank 1 must be an array of 1");
  not_read(NAME_A, "[[0], 1]", "", RANKS, "that of rank 1 must be an array of 1");
  not_read(NAME_A, "[[0]]", "", RANKS, "stages has 1 members, and there are 2 ranks");
  not_read(NAME_A, "[[], []]", "", RANKS, "an array of 1 to 8 stages");
  not_read(NAME_A, "[]", "", RANKS, "stages must be an array that is not empty; it is empty");
  not_read(NAME_A, "[[0,1,2,3,4,5,6,7,8],[]]", "", RANKS, "an array of 1 to 8 stages");
  not_read(NAME_A, STAGES, "", "{}", "ranks must be an array that is not empty; it is an object");
}
END_TEST

START_TEST(wrong_lines) {
  static const char *const words[] = {
      "0X0",   "F0",        "0F",   "0F0;", "0F0,0B0", "(0F0;1B0",     "(0B0;1F0)",
      "(0F0)", "(0F0;1I0)", "-1F0", "0F-1", "0f0",     "0F1000000000", "0F0\\t0B0"};
  for (size_t i = 0; i < BK_COUNT(words); i++) {
    char ranks[128];
    snprintf(ranks, sizeof ranks, "[\"%s\", \"0F0 0B0\"]", words[i]);
    not_read(NAME_A, STAGES, "", ranks, "rank 0, record 1: \"");
  }
  not_read(NAME_A, STAGES, "", "[\"0F0 0B0\", 3]",
           "that of rank 1 must be a text; it is an integer");
  not_read(NAME_A, STAGES, "", "[\"\", \"0F0 0B0\"]", "chunk 0 of rank 0 takes 0 micro-batches");
  not_read(NAME_A, STAGES, "", "[\"0F0 0B0\", \"\"]", "rank 1 has 0 records; 1 micro-batches of");
  not_read(NAME_A, STAGES, "", "[\"0F0 0B0\", \"0F0 0B0 0W0 0W0\"]", "has more than 3 records");
  not_read(NAME_A, STAGES, "", "[\"0F0 0B0\", \"0F0 0B0 0W0\"]", "record 3, 0W0: no gradient");
  not_read(NAME_A, STAGES, "", "[\"0F0 0B0\", \"0F0 0Z0\"]", "rank 1, record 2: \"0Z0\" is none");
}
END_TEST

START_TEST(no_file) {
  bk_schedule *s = NULL;
  ck_assert_int_eq(bk_schedule_read(ctx, unit_path("nowhere.json"), &s), BK_ERR_IO);
  unit_expect("nowhere.json");
  write_text("[1]");
  ck_assert_int_eq(bk_schedule_read(ctx, unit_path("schedule.json"), &s), BK_ERR_DATA);
  unit_expect("a schedule is a JSON object; this is an array");
  ck_assert_ptr_null(s);
}
END_TEST

/* ---- memory that runs out ---- */

static bk_status all_of_it(void) {
  bk_schedule *s = NULL;
  bk_timeline *t = NULL;
  bk_stage_costs stage[4] = {{1, 2, 1}, {1, 2, 1}, {1, 2, 1}, {1, 2, 1}};
  bk_schedule_costs costs = {.stage = stage};
  bk_status status = bk_schedule_create(ctx, "dualpipev", 2, 5, &s);
  if (status == BK_OK) status = bk_schedule_simulate(ctx, s, &costs, &t);
  char *text = status == BK_OK ? bk_schedule_text(ctx, s, 1) : NULL;
  if (status == BK_OK && !text) status = BK_ERR_MEMORY;
  bk_free(ctx, text);
  bk_timeline_destroy(ctx, t);
  bk_schedule_destroy(ctx, s);
  return status;
}

static bk_status read_it(void) {
  const char *top = getenv("TOP_SRCDIR");
  char path[512];
  bk_schedule *s = NULL;
  snprintf(path, sizeof path, "%s/tests/fuzz/corpus/schedule/dualpipe.json", top ? top : ".");
  bk_status status = bk_schedule_read(ctx, path, &s);
  if (status != BK_OK) ck_assert_ptr_null(s);
  bk_schedule_destroy(ctx, s);
  return status;
}

START_TEST(no_memory) {
  ck_assert_int_gt(fault_each_allocation("schedules", all_of_it, 1), 20);
  ck_assert_int_gt(fault_each_allocation("a schedule's file", read_it, 1), 20);
}
END_TEST

int main(void) {
  const TTest *const lists[] = {
      tables_of_others, small_lists, dualpipe, dualpipev, one_way, holders, not_with_these_numbers};
  const TTest *const checks[] = {wrong_passes, wrong_numbers, wrong_orders, waiting_in_a_circle,
                                 too_far_ahead};
  const TTest *const times[] = {messages_take_time, messages_share_a_link, stages_differ,
                                wrong_costs};
  const TTest *const files[] = {reads, wrong_members, wrong_lines, no_file};
  const TTest *const memory[] = {no_memory};
  Suite *suite = suite_create("schedule");
  unit_case(suite, "lists", unit_open, unit_close, lists, BK_COUNT(lists));
  unit_case(suite, "check", unit_open, unit_close, checks, BK_COUNT(checks));
  unit_case(suite, "times", unit_open, unit_close, times, BK_COUNT(times));
  unit_case(suite, "files", unit_folder_open, unit_folder_close, files, BK_COUNT(files));
  unit_case(suite, "memory", fault_open, fault_close, memory, BK_COUNT(memory));
  return unit_run(suite);
}

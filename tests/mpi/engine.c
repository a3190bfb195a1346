/* The engine on the transport mpi: what tests/unit/test_ranks.c does with ranks that are threads,
 * one rank of several processes does here.
 *
 *   engine CASE FOLDER [NUMBER]
 *
 * A rank writes into FOLDER/rank.N "ok" or what was wrong, and ends when all ranks have, since the
 * launcher ends them all when one that has given up ends without MPI_Finalize. */
#define main main_of_threads
#include "tests/unit/test_ranks.c"
#undef main

#include <unistd.h>

static rank own; /* this process */

static void keep_message(void *user, bk_log_level level, const char *message) {
  size_t used = strlen(own.messages);
  (void)user;
  if (level <= BK_LOG_WARN)
    snprintf(own.messages + used, sizeof own.messages - used, "%s\n", message);
}

/* The device and its comm are of a body; the engine is the process's. */
static void run_body(const bk_backend *backend, void (*body)(rank *)) {
  EXPECT_OK(&own, bk_device_open_backend(own.ctx, backend, NULL, &own.device));
  EXPECT_OK(&own, bk_stream_create(own.device, 0, &own.stream));
  EXPECT_OK(&own, bk_engine_comm(own.engine, own.device, &own.comm));
  if (!own.failure[0]) body(&own);
  bk_comm_destroy(own.comm);
  bk_stream_destroy(own.stream);
  bk_device_close(own.device);
  own.comm = NULL, own.stream = NULL, own.device = NULL;
}

typedef struct engine_case {
  const char *name;
  void (*body)(rank *);
  double timeout_s;
  bool broken; /* it ends in a failure */
  struct {
    int rank;
    const char *message; /* what that rank must say; NULL: no more */
  } says[3];
} engine_case;

static const engine_case cases[] = {
    {.name = "reductions", .body = reductions_body},
    {.name = "moves", .body = all_body},
    {.name = "groups", .body = groups_body},
    {.name = "statistics", .body = statistics_body},
    {.name = "disagreement", .body = disagreement_body, .broken = true},
    {"other-group", other_group_body, 0, true, {{2, "in another group"}}},
    {"late", late_body, 1, true, {{0, "rank 2 has not come to reduce_scatter 1 for 1 s"}}},
    {"no-send", no_send_body, 1, true, {{0, NULL}}},
    {"told", told_body, 0, true, {{0, "told so from outside"}, {1, "told so from outside"}}},
    {"aborted", abort_body, 0, true, {{1, "rank 0 has given up"}}},
};

static void expect_messages(const engine_case *c) {
  if (!c->broken) EXPECT(&own, !own.messages[0]);
  for (int i = 0; i < 3 && c->says[i].message; i++)
    if (c->says[i].rank == own.rank) EXPECT(&own, strstr(own.messages, c->says[i].message) != NULL);
  for (int side = 0; side < 2 && c->body == disagreement_body; side++)
    EXPECT(&own, strstr(own.messages, disagreements[own.all->detail].view[side]) != NULL);
}

static void run_case(const engine_case *c, ranks *all) {
  bk_context_options options = {.log = keep_message, .log_level = BK_LOG_TRACE};
  bk_job_options job = {.timeout_s = c->timeout_s};
  const bk_transport *transport = NULL;
  EXPECT_OK(&own, bk_context_create(&options, &own.ctx));
  EXPECT_OK(&own, bk_transport_find(own.ctx, "mpi", &transport));
  if (own.failure[0]) return;
  EXPECT_OK(&own, bk_engine_open(own.ctx, transport, &job, &own.engine));
  own.rank = job.rank, own.size = all->size = job.size, own.all = all;
  if (own.engine) run_body(&bk_backend_ref, c->body);
  if (own.engine && !c->broken) run_body(&late_backend, c->body);
  if (own.engine) bk_engine_close(own.engine, own.abandon);
  bk_context_destroy(own.ctx); /* warns of a leak */
  expect_messages(c);
}

/* Written under another name, so that nobody sees half of it. */
static void report(const char *folder) {
  char temporary[512], path[512];
  snprintf(temporary, sizeof temporary, "%s/part.%d", folder, own.rank);
  snprintf(path, sizeof path, "%s/rank.%d", folder, own.rank);
  FILE *file = fopen(temporary, "w");
  if (!file) exit(2);
  if (own.failure[0]) fprintf(file, "%s; messages: %s\n", own.failure, own.messages);
  else fprintf(file, "ok\n");
  if (fclose(file) != 0 || rename(temporary, path) != 0) exit(2);
  for (int q = 0, turns = 0; q < own.size && turns < 3000; turns++) {
    snprintf(path, sizeof path, "%s/rank.%d", folder, q);
    if (access(path, F_OK) == 0) q++;
    else usleep(10000);
  }
}

int main(int argc, char **argv) {
  static ranks all;
  if (argc < 3) return 2;
  all.detail = argc > 3 ? atoi(argv[3]) : 0;
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    if (strcmp(cases[i].name, argv[1]) != 0) continue;
    run_case(&cases[i], &all);
    report(argv[2]);
    return own.failure[0] ? 1 : 0;
  }
  fprintf(stderr, "no case %s\n", argv[1]);
  return 2;
}

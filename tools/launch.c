/* The ranks of a command: how many there are, who starts them, and what each takes of its machine.
 * See launch.h. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif

#include "tools/launch.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the options ---- */

typedef struct launch {
  bk_job_options job;
  bool named;  /* ranks are numbered by --rank, --world and --rendezvous */
  int64_t dp;  /* 0: not given */
  int64_t pp;  /* 1: not given */
  int threads; /* ranks that are threads of this process; 0: none */
} launch;

/* What has started several processes, in words. */
static const char *starter(const bk_job_options *found) {
  return found->launcher ? found->launcher : "what launched this process";
}

static bool is_launched(const bk_job_options *found) {
  return found->launcher && strcmp(found->launcher, "none") != 0;
}

static bk_status read_named(cli_session *s, launch *l, const bk_job_options *found) {
  static const char *const names[] = {"rank", "world", "rendezvous"};
  const char *given = NULL, *missing = NULL;
  for (size_t i = 0; i < BK_COUNT(names); i++) {
    if (cli_given(&s->args, names[i])) given = given ? given : names[i];
    else missing = missing ? missing : names[i];
  }
  if (!given) return BK_OK;
  if (missing)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--%s: --rank R, --world N and --rendezvous HOST:PORT go together; --%s is "
                   "missing",
                   given, missing);
  if (found->size > 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--%s: %s has started %d ranks and numbers them; leave --rank, --world and "
                   "--rendezvous out",
                   given, starter(found), found->size);
  int64_t rank = 0, size = 0;
  BK_TRY(cli_int(s, "world", 1, 1 << 20, &size));
  BK_TRY(cli_int(s, "rank", 0, size - 1, &rank));
  l->job = (bk_job_options){.rank = (int)rank,
                            .size = (int)size,
                            .rendezvous = cli_value(&s->args, "rendezvous"),
                            .launcher = "--rank and --world"};
  l->named = true;
  return BK_OK;
}

/* Whether the command knows --pp. */
static bool has_pipelines(const cli_session *s) {
  for (const cli_option *o = s->args.command->options; o->name; o++)
    if (strcmp(o->name, "pp") == 0) return true;
  return false;
}

static bk_status read_threads(cli_session *s, launch *l, const bk_job_options *found) {
  if (l->named)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--comm threads: its ranks are threads of one process; --rank, --world and "
                   "--rendezvous are for ranks that are processes");
  if (found->size > 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--comm threads: its ranks are threads of one process, but %s has started %d; "
                   "start one, or leave --comm out",
                   starter(found), found->size);
  if (!l->dp && !cli_given(&s->args, "pp"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--comm threads: --dp N is needed, the number of ranks to run%s",
                   has_pipelines(s) ? ", or --pp P, or both" : "");
  l->threads = (int)((l->dp ? l->dp : 1) * l->pp);
  l->job = (bk_job_options){.size = l->threads, .local_size = l->threads};
  return BK_OK;
}

/* --comm self, and no --comm where nothing has started several ranks. */
static bk_status read_alone(cli_session *s, const launch *l, const bk_job_options *found) {
  int ranks = l->named ? l->job.size : found->size;
  if (ranks > 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--comm self is one rank alone, but there are %d (%s); leave --comm out", ranks,
                   starter(l->named ? &l->job : found));
  return BK_OK;
}

/* What only makes sense where there may be other ranks. */
static bk_status refuse_stray(cli_session *s, const launch *l) {
  static const char *const names[] = {"comm-timeout", "share-device"};
  for (size_t i = 0; i < BK_COUNT(names); i++)
    if (cli_given(&s->args, names[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                     "--%s is for several ranks, and this is one alone: start it with mpirun or "
                     "srun, or with --comm threads --dp N",
                     names[i]);
  if (l->dp > 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--dp %lld: there is one rank; --comm threads --dp %lld runs %lld in this "
                   "process, mpirun -n %lld starts as many processes",
                   (long long)l->dp, (long long)l->dp, (long long)(l->dp * l->pp),
                   (long long)(l->dp * l->pp));
  if (l->pp > 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--pp %lld: there is one rank; --comm threads --pp %lld runs %lld in this "
                   "process, mpirun -n %lld starts as many processes",
                   (long long)l->pp, (long long)l->pp, (long long)l->pp, (long long)l->pp);
  return BK_OK;
}

static bk_status read_options(cli_session *s, launch *l) {
  const char *comm = cli_value(&s->args, "comm");
  bk_job_options found = {0};
  double timeout = 0;
  BK_TRY(cli_int(s, "dp", 1, 4096, &l->dp));
  BK_TRY(cli_int(s, "pp", 1, 4096, &l->pp));
  BK_TRY(cli_double(s, "comm-timeout", 1, 1e6, &timeout));
  BK_TRY(bk_job_find(s->ctx, &found));
  cli_log_rank(s->log, found.rank, false);
  if (!is_launched(&found)) found.launcher = NULL;
  /* a transport that is asked for by name may know of ranks that nothing here tells of */
  if (found.launcher || !comm) l->job = found;
  BK_TRY(read_named(s, l, &found));
  if (comm && strcmp(comm, "threads") == 0) BK_TRY(read_threads(s, l, &found));
  if (comm && strcmp(comm, "self") == 0) BK_TRY(read_alone(s, l, &found));
  bool alone = !l->threads && l->job.size <= 1 && !l->named && !found.launcher &&
               (!comm || strcmp(comm, "self") == 0);
  if (alone) BK_TRY(refuse_stray(s, l));
  if (comm) l->job.comm = comm;
  l->job.timeout_s = timeout;
  return BK_OK;
}

/* One rank needs no transport, unless one is asked for by name: that may know of others. */
static bool needs_job(const launch *l) {
  return l->job.size > 1 || (l->job.comm && strcmp(l->job.comm, "self") != 0);
}

/* ---- one rank ---- */

typedef bk_status (*rank_fn)(cli_session *s);

/* What the transport has counted is what --dp and --pp must say. */
static bk_status check_ranks(cli_session *s, const launch *l) {
  if (l->pp > 1 && (l->dp ? l->dp * l->pp != s->team->size : s->team->size % l->pp != 0)) {
    char dp[32] = "";
    if (l->dp) snprintf(dp, sizeof dp, " --dp %lld", (long long)l->dp);
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--pp %lld%s: the number of ranks is %d; it must be %s%lld", (long long)l->pp,
                   dp, s->team->size, l->dp ? "" : "a multiple of ",
                   (long long)(l->dp ? l->dp * l->pp : l->pp));
  }
  if (!l->dp || l->dp * l->pp == s->team->size) return BK_OK;
  return bk_fail(
      s->ctx, BK_ERR_ARGUMENT,
      "--dp %lld, but the number of ranks is %d%s%s%s: the two are the same; --dp may be left "
      "out",
      (long long)l->dp, s->team->size, s->team->launcher ? " (" : "",
      s->team->launcher ? s->team->launcher : "", s->team->launcher ? ")" : "");
}

static bk_status run_rank(cli_session *s, const launch *l, const bk_job_options *options,
                          rank_fn run) {
  cli_team team = {.s = s, .size = 1, .local_size = 1, .launcher = l->job.launcher};
  team.hears_signals = !l->threads || options->rank == 0;
  s->team = &team;
  bk_status status = BK_OK;
  if (needs_job(l)) status = cli_team_open(&team, s, options);
  if (status == BK_OK) status = cli_team_agree(&team, check_ranks(s, l));
  if (status == BK_OK) status = run(s);
  cli_team_close(&team, status);
  s->team = NULL;
  return status;
}

/* ---- ranks that are threads ---- */

typedef struct rank_thread {
  pthread_t thread;
  const launch *l;
  bk_job_options options;
  rank_fn run;
  cli_session session;
  cli_log log;
} rank_thread;

static bk_status run_thread(rank_thread *t) {
  bk_status status = run_rank(&t->session, t->l, &t->options, t->run);
  bk_device_close(t->session.device);
  cli_data_paths_free(&t->session);
  return status;
}

static void *run_other(void *arg) {
  rank_thread *t = arg;
  run_thread(t);
  bk_context_destroy(t->session.ctx);
  cli_log_fini(&t->log);
  return NULL;
}

static bk_status start_rank(cli_session *s, rank_thread *t) {
  cli_log_init(&t->log);
  cli_log_rank(&t->log, t->options.rank, true);
  t->session = *s;
  t->session.log = &t->log;
  t->session.device = NULL;
  memset(t->session.data_paths, 0, sizeof t->session.data_paths);
  if (cli_log_context(&t->log, &t->session.ctx) != BK_OK)
    return bk_fail(s->ctx, BK_ERR_MEMORY, "out of memory");
  if (cli_thread_start(&t->thread, run_other, t)) return BK_OK;
  bk_context_destroy(t->session.ctx);
  return bk_fail(s->ctx, BK_ERR_MEMORY, "the thread of rank %d cannot be started", t->options.rank);
}

/* The others wait for a rank that could not be started, and cannot be told: the process ends. */
static _Noreturn void end_unstarted(bk_status status) {
  fflush(stdout);
  _exit(cli_exit_code(status));
}

/* This thread is rank 0. */
static bk_status run_threads(cli_session *s, const launch *l, bk_thread_world *world, rank_fn run) {
  rank_thread *others = bk_alloc_array(s->ctx, (size_t)l->threads, sizeof *others);
  if (!others) return BK_ERR_MEMORY;
  bk_job_options options = l->job;
  options.world = world;
  for (int r = 1; r < l->threads; r++) {
    options.rank = options.local_rank = r;
    others[r].l = l;
    others[r].options = options;
    others[r].run = run;
    bk_status status = start_rank(s, &others[r]);
    if (status != BK_OK) end_unstarted(status);
  }
  options.rank = options.local_rank = 0;
  bk_status status = run_rank(s, l, &options, run);
  for (int r = 1; r < l->threads; r++) pthread_join(others[r].thread, NULL);
  bk_free(s->ctx, others);
  return status;
}

bk_status cli_launch(cli_session *s, bk_status (*run)(cli_session *s)) {
  launch l = {.pp = 1};
  bk_thread_world *world = NULL;
  BK_TRY(read_options(s, &l));
  if (!l.threads) return run_rank(s, &l, &l.job, run);
  BK_TRY(bk_thread_world_create(s->ctx, l.threads, &world));
  bk_status status = run_threads(s, &l, world, run);
  bk_thread_world_destroy(world);
  return status;
}

/* ---- devices ---- */

typedef struct count {
  const char *backend;
  int found;
  char best[128];
} count;

static bk_status count_device(void *user, const bk_device_report *report) {
  count *c = user;
  size_t n = strlen(c->backend);
  if (report->state != BK_DEVICE_OK) return BK_OK;
  if (report->is_default) snprintf(c->best, sizeof c->best, "%s", report->name);
  c->found += strncmp(report->name, c->backend, n) == 0 && report->name[n] == ':';
  return BK_OK;
}

static bool is_host(const char *name) {
  return strcmp(name, "cpu") == 0 || strcmp(name, "ref") == 0;
}

/* "cuda:1" for all ranks of a machine. */
static bk_status check_shared(cli_session *s, const char *given, int ranks) {
  if (cli_given(&s->args, "share-device")) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                 "--device %s: %d ranks on this machine would work on one device; --device %.*s "
                 "gives each its own, --share-device lets them share",
                 given, ranks, (int)strcspn(given, ":"), given);
}

bk_status cli_rank_device(cli_session *s, const char *given, char *name, size_t size,
                          const char **chosen) {
  const cli_team *team = s->team;
  count c = {.backend = given ? given : ""};
  *chosen = given;
  if (!team || team->local_size < 2 || (given && is_host(given))) return BK_OK;
  if (given && strchr(given, ':')) return check_shared(s, given, team->local_size);
  if (!given) {
    BK_TRY(bk_devices(s->ctx, count_device, &c));
    if (!strchr(c.best, ':')) return BK_OK;
    snprintf(name, size, "%.*s", (int)strcspn(c.best, ":"), c.best);
    return cli_rank_device(s, name, name, size, chosen);
  }
  BK_TRY(bk_devices(s->ctx, count_device, &c));
  bool share = cli_given(&s->args, "share-device");
  if (c.found < 1) return BK_OK; /* bk_device_open says why */
  if (team->local_size > c.found && !share)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "--device %s: %d ranks on this machine, but %d device%s; start fewer, or let "
                   "them share with --share-device",
                   given, team->local_size, c.found, c.found == 1 ? "" : "s");
  char backend[128];
  snprintf(backend, sizeof backend, "%s", given);
  snprintf(name, size, "%s:%d", backend, team->local_rank % c.found);
  *chosen = name;
  return BK_OK;
}

/* ---- host threads ---- */

/* Launchers bind ranks to processors or let them float: what counts is how many ranks may run on
 * each of those that this one may run on. */
typedef struct place {
  uint64_t host;
  cpu_set_t set;
} place;

static uint64_t hash_host(void) {
  char name[256] = "";
  uint64_t hash = 14695981039346656037u;
  gethostname(name, sizeof name - 1);
  for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
  return hash;
}

/* The part of its processors that is this rank's, from 0 to 1. */
static double share_of(const place *places, int rank, int size) {
  const place *own = &places[rank];
  double share = 0;
  for (int c = 0; c < CPU_SETSIZE; c++) {
    int ranks = 0;
    for (int r = 0; r < size && CPU_ISSET(c, &own->set); r++)
      ranks += places[r].host == own->host && CPU_ISSET(c, &places[r].set);
    if (ranks) share += 1.0 / ranks;
  }
  int all = CPU_COUNT(&own->set);
  return all ? share / all : 0;
}

static bk_status count_processors(cli_session *s, int *processors) {
  bk_device *device;
  bk_device_options options = {0};
  BK_TRY(bk_device_open(s->ctx, "cpu", &options, &device));
  *processors = bk_device_properties(device)->threads;
  bk_device_close(device);
  return BK_OK;
}

bk_status cli_rank_threads(cli_session *s, int *threads) {
  cli_team *team = s->team;
  if (!team || !team->job) return BK_OK;
  place own, *places = bk_alloc_array(s->ctx, (size_t)team->size, sizeof *places);
  int processors = 1;
  memset(&own, 0, sizeof own);
  own.host = hash_host();
  if (sched_getaffinity(0, sizeof own.set, &own.set) != 0) CPU_ZERO(&own.set);
  bk_status status = places ? count_processors(s, &processors) : BK_ERR_MEMORY;
  status = cli_team_agree(team, status);
  if (status == BK_OK) status = cli_team_gather(team, &own, sizeof own, places);
  if (status == BK_OK) {
    double share = share_of(places, team->rank, team->size);
    if (share <= 0) share = 1.0 / team->local_size;
    *threads = (int)(processors * share + 1e-6);
    if (*threads < 1) *threads = 1;
  }
  bk_free(s->ctx, places);
  return status;
}

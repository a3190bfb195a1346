/* What launched the process, by the variables that launchers set. */
#include "tests/unit/unit.h"

#include <birkhoff/parallel.h>

#include <math.h>

/* Every variable that is looked at; what launched this test may have set some. */
static const char *const known[] = {"OMPI_COMM_WORLD_RANK",
                                    "OMPI_COMM_WORLD_SIZE",
                                    "OMPI_COMM_WORLD_LOCAL_RANK",
                                    "OMPI_COMM_WORLD_LOCAL_SIZE",
                                    "PMI_RANK",
                                    "PMI_SIZE",
                                    "MPI_LOCALRANKID",
                                    "MPI_LOCALNRANKS",
                                    "PMIX_RANK",
                                    "SLURM_PROCID",
                                    "SLURM_NTASKS",
                                    "SLURM_LOCALID",
                                    "SLURM_NTASKS_PER_NODE",
                                    "SLURM_STEP_ID",
                                    "SLURM_STEPID",
                                    "RANK",
                                    "WORLD_SIZE",
                                    "LOCAL_RANK",
                                    "LOCAL_WORLD_SIZE",
                                    "MASTER_ADDR",
                                    "MASTER_PORT",
                                    "BIRKHOFF_JOB_TOKEN"};

/* "NAME=VALUE NAME=VALUE ..." and nothing else. */
static void set_environment(const char *text) {
  char copy[1024], *rest = copy;
  for (size_t i = 0; i < BK_COUNT(known); i++) unsetenv(known[i]);
  snprintf(copy, sizeof copy, "%s", text);
  for (char *word; (word = strtok_r(rest, " ", &rest));) {
    char *equals = strchr(word, '=');
    *equals = '\0';
    bool found = false;
    for (size_t i = 0; i < BK_COUNT(known); i++) found = found || strcmp(known[i], word) == 0;
    ck_assert_msg(found, "%s is not in the list of this test", word);
    ck_assert_int_eq(setenv(word, equals + 1, 1), 0);
  }
}

#define OMPI                                                                    \
  "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 " \
  "OMPI_COMM_WORLD_LOCAL_SIZE=2"
#define HYDRA "PMI_RANK=2 PMI_SIZE=4 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1"
#define SLURM "SLURM_PROCID=5 SLURM_NTASKS=6 SLURM_LOCALID=1 SLURM_NTASKS_PER_NODE=2"
#define TORCH \
  "RANK=7 WORLD_SIZE=8 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4 MASTER_ADDR=node1 MASTER_PORT=29500"

typedef struct expected {
  const char *environment, *launcher, *comm;
  int rank, size, local_rank, local_size;
} expected;

static void expect_text(const char *what, const char *is, const char *should) {
  ck_assert_msg((!is && !should) || (is && should && strcmp(is, should) == 0),
                "%s is %s and should be %s", what, is ? is : "NULL", should ? should : "NULL");
}

static void check_found(const expected *e, const bk_job_options *o) {
  expect_text("launcher", o->launcher, e->launcher);
  expect_text("comm", o->comm, e->comm);
  ck_assert_msg(o->rank == e->rank && o->size == e->size && o->local_rank == e->local_rank &&
                    o->local_size == e->local_size,
                "%s: rank %d of %d, local rank %d of %d", e->environment, o->rank, o->size,
                o->local_rank, o->local_size);
}

START_TEST(launchers) {
  static const expected cases[] = {
      {"", "none", "self", 0, 1, 0, 0},
      {OMPI, "mpirun", "mpi", 3, 8, 1, 2},
      {HYDRA, "mpirun", "mpi", 2, 4, 0, 1},
      {SLURM " SLURM_STEP_ID=0", "srun", NULL, 5, 6, 1, 2},
      {SLURM " SLURM_STEPID=2", "srun", NULL, 5, 6, 1, 2},
      {TORCH, "RANK and WORLD_SIZE", NULL, 7, 8, 3, 4},
      /* the order */
      {OMPI " " HYDRA " SLURM_STEP_ID=0 " SLURM " " TORCH, "mpirun", "mpi", 3, 8, 1, 2},
      {HYDRA " " TORCH, "mpirun", "mpi", 2, 4, 0, 1},
      /* a batch script is one process, whatever it may start */
      {"SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0", "none", "self", 0, 1, 0, 0},
      {"SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_STEP_ID=4294967294", "none", "self", 0, 1, 0, 0},
      /* and where torchrun is started in it, torchrun counts */
      {"SLURM_PROCID=0 SLURM_NTASKS=2 " TORCH, "RANK and WORLD_SIZE", NULL, 7, 8, 3, 4},
      /* MPI under srun */
      {"SLURM_STEP_ID=0 " SLURM " PMI_RANK=5 PMI_SIZE=6", "srun", "mpi", 5, 6, 1, 2},
      {"SLURM_STEP_ID=0 " SLURM " PMIX_RANK=5", "srun", "mpi", 5, 6, 1, 2},
      /* PMIx alone does not say how many there are */
      {"PMIX_RANK=5", "mpirun", "mpi", 5, 0, 0, 0},
      /* one rank needs no transport and no rendezvous */
      {"OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1", "mpirun", "self", 0, 1, 0, 0},
      {"RANK=0 WORLD_SIZE=1", "RANK and WORLD_SIZE", "self", 0, 1, 0, 0},
      /* variables that are set to nothing */
      {"RANK= WORLD_SIZE=", "none", "self", 0, 1, 0, 0},
      /* a step with fewer tasks than the allocation has on a node */
      {"SLURM_STEP_ID=1 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_NTASKS_PER_NODE=8",
       "srun", NULL, 1, 2, 1, 2},
      {"SLURM_STEP_ID=1 SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=3 SLURM_NTASKS_PER_NODE=2",
       "srun", NULL, 3, 4, 3, 0},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_job_options o = {0};
    set_environment(cases[i].environment);
    ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK);
    check_found(&cases[i], &o);
    ck_assert(o.timeout_s == BK_JOB_TIMEOUT && !o.token);
    ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK); /* again changes nothing */
    check_found(&cases[i], &o);
  }
}
END_TEST

START_TEST(contradictions) {
  static const char *const cases[][2] = {
      {"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_RANK is set and OMPI_COMM_WORLD_SIZE is not"},
      {"PMI_SIZE=3", "PMI_SIZE is set and PMI_RANK is not"},
      {"RANK=0", "RANK is set and WORLD_SIZE is not"},
      {"WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "WORLD_SIZE is set and RANK is not"},
      {"PMI_RANK=4 PMI_SIZE=4", "PMI_RANK is 4 and PMI_SIZE is 4"},
      {"PMI_RANK=x PMI_SIZE=4", "PMI_RANK is \"x\" and should be a number from 0"},
      {"PMI_RANK=-1 PMI_SIZE=4", "PMI_RANK is \"-1\""},
      {"PMI_RANK=0 PMI_SIZE=0", "PMI_SIZE is \"0\" and should be a number from 1"},
      {"PMI_RANK=0 PMI_SIZE=99999999999", "PMI_SIZE is \"99999999999\""},
      {"PMI_RANK=0 PMI_SIZE=4 MPI_LOCALRANKID=2 MPI_LOCALNRANKS=2",
       "MPI_LOCALRANKID is 2 and MPI_LOCALNRANKS is 2"},
      {"RANK=0 WORLD_SIZE=2", "WORLD_SIZE is 2 and MASTER_ADDR is not set"},
      {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", "WORLD_SIZE is 2 and MASTER_PORT is not set"},
      {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000", "MASTER_PORT is 70000"},
      {"SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 RANK=1 WORLD_SIZE=8",
       "SLURM_NTASKS is 2 and WORLD_SIZE is 8: unset the variables"},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_job_options o = {.local_rank = 0}, before = o;
    set_environment(cases[i][0]);
    ck_assert_int_eq(bk_job_find(ctx, &o), BK_ERR_ARGUMENT);
    unit_expect(cases[i][1]);
    ck_assert_mem_eq(&o, &before, sizeof o);
  }
}
END_TEST

START_TEST(options_win) {
  set_environment(OMPI);
  bk_job_options o = {.rank = 1, .size = 2};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK); /* still MPI's: it will compare the numbers */
  check_found(&(expected){OMPI, "options", "mpi", 1, 2, 0, 0}, &o);
  o = (bk_job_options){.size = 1};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK);
  check_found(&(expected){OMPI, "options", "self", 0, 1, 0, 0}, &o);
  o = (bk_job_options){.comm = "self"};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK);
  check_found(&(expected){OMPI, "options", "self", 0, 1, 0, 0}, &o);

  set_environment(TORCH " BIRKHOFF_JOB_TOKEN=secret");
  o = (bk_job_options){.timeout_s = 7};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK);
  ck_assert(o.timeout_s == 7 && o.rendezvous_port == 29500);
  ck_assert_str_eq(o.rendezvous, "node1");
  ck_assert_str_eq(o.token, "secret");
  o = (bk_job_options){.rendezvous = "node2:1", .token = "other"};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK);
  ck_assert(o.rank == 7 && o.rendezvous_port == 0);
  ck_assert_str_eq(o.rendezvous, "node2:1");
  ck_assert_str_eq(o.token, "other");

  set_environment("PMIX_RANK=5");
  o = (bk_job_options){.comm = "mpi", .rank = 4};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_ERR_ARGUMENT);
  unit_expect("rank 4 is given, and PMIX_RANK is 5");

  set_environment("");
  o = (bk_job_options){.rank = 1, .size = 2, .rendezvous = "node2:1"};
  ck_assert_int_eq(bk_job_find(ctx, &o), BK_OK);
  check_found(&(expected){"", "options", NULL, 1, 2, 0, 0}, &o);
}
END_TEST

/* Every wrong set of options. */
START_TEST(half_given) {
  static const struct {
    bk_job_options options;
    const char *message;
  } cases[] = {
      {{.rank = 1}, "rank 1 is given and the number of ranks is not"},
      {{.rank = 2, .size = 2}, "rank 2 of 2"},
      {{.rank = -1, .size = 2}, "rank -1 of 2"},
      {{.size = -2}, "rank 0 of -2"},
      {{.rank = 1, .size = 2}, "rank 1 of 2 is given and the rendezvous is not"},
      {{.rendezvous = "a:1"}, "the rendezvous a:1 is given, and rank and number of ranks are not"},
      {{.local_rank = 1, .local_size = 1}, "local rank 1 of 1"},
      {{.timeout_s = -1}, "a time-out of -1 s"},
      {{.timeout_s = INFINITY}, "a time-out of inf s"},
      {{.timeout_s = NAN}, "a time-out of nan s"},
  };
  set_environment("");
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_job_options o = cases[i].options;
    ck_assert_int_eq(bk_job_find(ctx, &o), BK_ERR_ARGUMENT);
    unit_expect(cases[i].message);
  }
}
END_TEST

/* There is no environment then, and no launcher. */
START_TEST(embedded_context) {
  bk_context *embedded = NULL;
  bk_context_options options = {.allocator = &ctx->allocator, .log = unit_log};
  bk_job_options o = {0};
  set_environment(OMPI);
  ck_assert_int_eq(bk_context_create_embedded(&options, &embedded), BK_OK);
  ck_assert_int_eq(bk_job_find(embedded, &o), BK_OK);
  check_found(&(expected){"", "none", "self", 0, 1, 0, 0}, &o);
  bk_context_destroy(embedded);
}
END_TEST

UNIT_MAIN("find", unit_open, unit_close, launchers, contradictions, options_win, half_given,
          embedded_context)

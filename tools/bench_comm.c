/* birkhoff bench comm: options, table and JSON; what is measured is birkhoff/bench.h's. */
#include <birkhoff/bench.h>
#include <jansson.h>
#include <stdio.h>

#include "tools/bench.h"
#include "tools/launch.h"
#include "tools/team.h"

typedef struct comm_bench {
  cli_session *s;
  int64_t bytes;
  double seconds;
  bk_bench_comm_row rows[BK_BENCH_COMM_ROWS];
} comm_bench;

static bk_status read_options(comm_bench *b) {
  b->bytes = 32 << 20, b->seconds = 1;
  BK_TRY(cli_int(b->s, "bytes", 4, (int64_t)1 << 32, &b->bytes));
  BK_TRY(cli_double(b->s, "seconds", 0, 3600, &b->seconds));
  if (b->s->team->job) return BK_OK;
  return bk_fail(b->s->ctx, BK_ERR_ARGUMENT,
                 "bench comm: one rank has nobody to send to; start it with mpirun or srun, or "
                 "with --comm threads --dp N");
}

static void print_row(const bk_bench_comm_row *row) {
  char size[32], shown[32];
  snprintf(shown, sizeof shown, row->seconds < 1e-3 ? "%.1f us" : "%.3f ms",
           row->seconds < 1e-3 ? row->seconds * 1e6 : row->seconds * 1e3);
  printf("%-17s %12s %12s", row->op, cli_bytes_text(row->bytes, size, sizeof size), shown);
  if (row->share > 0) printf(" %9.2f %8.1f%%", row->sent / row->seconds * 1e-9, 100 * row->share);
  printf("\n");
}

static bk_status print_table(const comm_bench *b) {
  const cli_team *team = b->s->team;
  printf(
      "%s, %s: %d ranks; GB/s of what a rank sends; the roof is a copy of as much by all ranks\n",
      bk_job_transport(team->job), bk_device_backend_name(b->s->device), team->size);
  printf("%-17s %12s %12s %9s %9s\n", "op", "tensor", "time", "GB/s", "of roof");
  for (int i = 0; i < BK_BENCH_COMM_ROWS; i++) print_row(&b->rows[i]);
  return cli_flush_stdout(b->s);
}

static bk_status print_json(const comm_bench *b) {
  const cli_team *team = b->s->team;
  json_t *list = json_array();
  for (int i = 0; i < BK_BENCH_COMM_ROWS; i++) {
    const bk_bench_comm_row *row = &b->rows[i];
    json_array_append_new(
        list, json_pack("{s:s,s:f,s:o,s:f,s:f,s:o,s:o}", "op", row->op, "bytes", row->bytes, "sent",
                        cli_number(row->sent), "seconds", row->seconds, "best_seconds", row->best,
                        "gb_per_s", cli_number(row->sent / row->seconds * 1e-9), "share",
                        cli_number(row->share)));
  }
  return cli_print_json(
      b->s, json_pack("{s:s,s:s,s:i,s:o}", "transport", bk_job_transport(team->job), "device",
                      bk_device_backend_name(b->s->device), "ranks", team->size, "ops", list));
}

static bk_status run_rank(cli_session *s) {
  comm_bench b = {.s = s};
  BK_TRY(cli_team_agree(s->team, read_options(&b)));
  BK_TRY(cli_team_agree(s->team, cli_open_device(s)));
  BK_TRY(cli_team_agree(s->team, cli_team_open_comm(s->team)));
  BK_TRY(cli_team_agree(s->team, bk_bench_comm(s->team->comm, b.bytes, b.seconds, b.rows)));
  bk_status status = BK_OK;
  if (cli_team_leads(s->team)) status = s->json ? print_json(&b) : print_table(&b);
  return cli_team_agree(s->team, status);
}

bk_status bench_comm(cli_session *s) { return cli_launch(s, run_rank); }

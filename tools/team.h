/* One rank of a job as the command sees it: what it agrees on with the others, and how it ends
 * when one of them is lost. Every function but those that say otherwise is collective: all ranks
 * make the same calls in the same order. Without a job a team is one rank, which is alone, and
 * every call only passes on what it is given.
 *
 * Agreements go over a comm of their own on the host, which is there before the device of the run
 * is chosen. */
#ifndef BK_TOOLS_TEAM_H
#define BK_TOOLS_TEAM_H

#include <birkhoff/parallel.h>

#include "tools/cli.h"

struct cli_team {
  cli_session *s;
  bk_job *job;   /* NULL: alone */
  bk_comm *comm; /* of the run's device, NULL until cli_team_open_comm; NULL: alone */
  int rank, size, local_rank, local_size;
  const char *launcher; /* NULL: none */
  /* what cli_team_step has found: the signal that ends the run, 0: none; whether a checkpoint was
   * asked for */
  int signal;
  bool save;
  /* of the team itself */
  bool hears_signals; /* the others are threads of the same process */
  bk_device *host;
  bk_comm *talk;
  struct team_watch *watch;
};

/* Opens the job. The session's log is then that of a rank among others. */
bk_status cli_team_open(cli_team *team, cli_session *s, const bk_job_options *options);
/* Ends together with the others; where the job has failed, the process ends here. */
void cli_team_close(cli_team *team, bk_status status);
/* The comm of all ranks on s->device. */
bk_status cli_team_open_comm(cli_team *team);

/* Every rank says how it has fared. BK_OK if all have fared well, else the status of the lowest
 * rank that has not; messages that were held until then are said, each once. BK_ERR_COMM: there is
 * no agreement any more. */
bk_status cli_team_agree(cli_team *team, bk_status status);
/* The same after a step, with signals, see above. */
bk_status cli_team_step(cli_team *team, bk_status status);
/* `save`, which is then false. Not collective. */
bool cli_team_take_save(cli_team *team);
/* Rank 0's value is given to all. */
bk_status cli_team_follow(cli_team *team, void *value, size_t bytes);
/* dst has room for size times as many bytes; see bk_comm_gather. */
bk_status cli_team_gather(cli_team *team, const void *src, size_t bytes, void *dst);
/* BK_OK if the text is the same on all ranks; else a rank names the first line in which it differs
 * from rank 0: "WHAT differs: it has ..., rank 0 has ...". */
bk_status cli_team_same(cli_team *team, const char *what, const char *text);

/* Not collective. A rank that fails while others may wait for it tells them; returns the
 * status. */
bk_status cli_team_give_up(cli_team *team, bk_status status);
/* Not collective. Whether the job has failed: no call to others is of use any more. */
bool cli_team_lost(const cli_team *team, bk_status status);
/* Not collective. What is to be said when the job fails: what this rank was doing ("in step 12"),
 * and of the newest checkpoint. */
void cli_team_doing(cli_team *team, const char *doing);
void cli_team_kept(cli_team *team, const char *kept);

static inline bool cli_team_leads(const cli_team *team) { return team->rank == 0; }

#endif

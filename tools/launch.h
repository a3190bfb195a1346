/* The ranks of a command: how many there are and who starts them, and what each of them takes of a
 * machine that several share. */
#ifndef BK_TOOLS_LAUNCH_H
#define BK_TOOLS_LAUNCH_H

#include "tools/team.h"

/* The options of a command that can run on many ranks; part of its table. */
#define CLI_LAUNCH_OPTIONS                                                                        \
  {"comm", CLI_ONE, "NAME",                                                                       \
   "how ranks talk: self, threads or mpi (default: by what starts them)"},                        \
      {"dp", CLI_ONE, "N",                                                                        \
       "ranks, or pipelines, that share the sequences of a step; with --comm threads, how many"}, \
      {"rank", CLI_ONE, "R", "the number of this process, where no launcher tells it"},           \
      {"world", CLI_ONE, "N", "with --rank: the number of processes"},                            \
      {"rendezvous", CLI_ONE, "HOST:PORT", "with --rank: where rank 0 listens"},                  \
      {"comm-timeout", CLI_ONE, "SECONDS", "how long a rank waits for another (default: 120)"}, { \
    "share-device", CLI_FLAG, NULL, "several ranks may work on one device"                        \
  }

/* Runs the command on its ranks: here on one, or, where ranks are threads, on all of them. s->team
 * is set, and `run` returns what all ranks have agreed on. */
bk_status cli_launch(cli_session *s, bk_status (*run)(cli_session *s));

/* The device of this rank: --device NAME, or the best, as the local rank has it; name [size]. NULL
 * is left where there is a choice to be made by bk_device_open. */
bk_status cli_rank_device(cli_session *s, const char *given, char *name, size_t size,
                          const char **chosen);
/* Host threads of this rank where --threads is not given; 0: as many as there are processors. */
bk_status cli_rank_threads(cli_session *s, int *threads);

#endif

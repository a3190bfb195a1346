/* birkhoff: the command. One table of subcommands; see doc/files.md and birkhoff(1). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"

#ifndef BK_COMMIT
#define BK_COMMIT "unknown"
#endif

static const cli_command *const commands[] = {&cli_train,   &cli_eval, &cli_generate, &cli_init,
                                              &cli_forward, &cli_gain, &cli_verify,   &cli_compare,
                                              &cli_bench,   &cli_plan, &cli_devices};

static void print_usage(FILE *to) {
  fprintf(to, "usage: birkhoff COMMAND [ARGUMENTS]; birkhoff COMMAND --help says more\n\n");
  for (size_t i = 0; i < BK_COUNT(commands); i++)
    fprintf(to, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
  fprintf(to, "\n  birkhoff --version\n");
}

static bk_status print_version(bk_context *ctx) {
  const char *name;
  printf("birkhoff %s (%s)\nbackends:", bk_version(), BK_COMMIT);
  for (int i = 0; (name = bk_backend_name(ctx, i)) != NULL; i++) printf(" %s", name);
  printf("\n");
  return BK_OK;
}

static const cli_command *find_command(bk_context *ctx, const char *name) {
  const char *names[BK_COUNT(commands)];
  for (size_t i = 0; i < BK_COUNT(commands); i++) {
    names[i] = commands[i]->name;
    if (strcmp(name, names[i]) == 0) return commands[i];
  }
  const char *near = bk_nearest(name, names, BK_COUNT(names));
  if (near) bk_fail(ctx, BK_ERR_ARGUMENT, "unknown command %s; did you mean %s?", name, near);
  else bk_fail(ctx, BK_ERR_ARGUMENT, "unknown command %s; see birkhoff --help", name);
  return NULL;
}

static bk_status run_command(cli_session *s, const cli_command *command) {
  bk_status status = cli_args_parse(s->ctx, command, s->argc - 2, s->argv + 2, &s->args);
  if (status == BK_OK && cli_given(&s->args, "help")) {
    cli_print_help(command);
  } else if (status == BK_OK) {
    s->json = cli_given(&s->args, "json");
    status = command->run(s);
    bk_device_close(s->device);
  }
  cli_data_paths_free(s);
  cli_args_free(s->ctx, &s->args);
  return status;
}

static bk_status run_words(cli_session *s) {
  const char *first = s->argv[1];
  if (strcmp(first, "--version") == 0) return print_version(s->ctx);
  if (strcmp(first, "--help") != 0 && strcmp(first, "-h") != 0 && strcmp(first, "help") != 0) {
    const cli_command *command = find_command(s->ctx, first);
    return command ? run_command(s, command) : BK_ERR_ARGUMENT;
  }
  print_usage(stdout);
  return BK_OK;
}

static int run(int argc, char **argv) {
  cli_log log;
  cli_log_init(&log);
  bk_context *ctx = NULL;
  if (cli_log_context(&log, &ctx) != BK_OK) {
    fprintf(stderr, "birkhoff: error: out of memory\n");
    return 1;
  }
  bk_log_level level;
  const char *text = getenv("BIRKHOFF_LOG");
  if (text && *text && bk_log_level_parse(text, &level) != BK_OK)
    bk_warn(ctx, "BIRKHOFF_LOG=%s: expected error, warn, info, debug or trace", text);
  cli_session s = {.ctx = ctx, .log = &log, .argc = argc, .argv = argv};
  bk_status status = BK_ERR_ARGUMENT;
  if (argc < 2) print_usage(stderr);
  else status = run_words(&s);
  if (status == BK_OK) status = cli_flush_stdout(&s);
  bk_context_destroy(ctx);
  cli_log_fini(&log);
  return cli_exit_code(status);
}

int main(int argc, char **argv) {
  return cli_process_begin() ? cli_process_run(run, argc, argv) : 1;
}

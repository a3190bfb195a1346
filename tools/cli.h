/* What the subcommands share: argument tables, the session (context, device), loading, output. The
 * command is a program like any other: it uses the installed functions of the library, and compiles
 * two of its files of helpers (base/files.c, base/text.c) for itself. */
#ifndef BK_CLI_H
#define BK_CLI_H

#include <birkhoff/birkhoff.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "base/files.h"
#include "base/text.h"

/* ---- args.c ---- */
/* MANY: every following word up to the next --option */
typedef enum cli_arity { CLI_FLAG, CLI_ONE, CLI_MANY } cli_arity;
typedef struct cli_option {
  const char *name; /* without the dashes */
  cli_arity arity;
  const char *value; /* "FILE", for the help */
  const char *help;
} cli_option;

typedef struct cli_command cli_command;
typedef struct cli_args {
  const cli_command *command;
  const char **words; /* positional */
  int n_words;
  struct {
    const cli_option *option;
    const char *value;
  } * given;
  int n_given;
} cli_args;

/* Paths of files: the list and its texts are bk_free'd. */
typedef struct cli_paths {
  char **list;
  int n;
  size_t room;
} cli_paths;

typedef struct cli_log cli_log;
typedef struct cli_team cli_team;

typedef struct cli_session {
  bk_context *ctx;
  cli_log *log;      /* where the messages of ctx go */
  cli_team *team;    /* the ranks that this one works with (team.h); NULL: there is one alone */
  bk_device *device; /* NULL until cli_open_device */
  cli_args args;
  cli_paths data_paths[2]; /* of --data and --val-data, once they were asked for */
  bool json;
  /* the folder with the results, where they are not what is printed; else NULL */
  const char *on_disk;
  bool stdout_failed; /* that was said */
  int argc;           /* the whole command line */
  char *const *argv;
} cli_session;

struct cli_command {
  const char *name, *synopsis, *summary;
  const cli_option *options; /* ends with name NULL; the common ones are added */
  int min_words, max_words;
  bk_status (*run)(cli_session *s);
};
extern const cli_option cli_common_options[];
/* Of every command that loads a checkpoint. */
#define CLI_ALLOW_NONFINITE                                                    \
  {                                                                            \
    "allow-nonfinite", CLI_FLAG, NULL,                                         \
        "load weights and optimiser state that are not finite, with a warning" \
  }

bk_status cli_args_parse(bk_context *ctx, const cli_command *command, int argc, char *const *argv,
                         cli_args *args);
void cli_args_free(bk_context *ctx, cli_args *args);
const char *cli_value(const cli_args *args, const char *option); /* the last given; NULL */
bool cli_given(const cli_args *args, const char *option);
/* returns the number given */
int cli_values(const cli_args *args, const char *option, const char **values, int max);
/* Numbers with ranges; unset leaves *value. */
bk_status cli_int(cli_session *s, const char *option, int64_t min, int64_t max, int64_t *value);
bk_status cli_double(cli_session *s, const char *option, double min, double max, double *value);
/* The same for a number that is a key of the recipe: the key's own range. */
bk_status cli_recipe_option(cli_session *s, const char *option, const char *key,
                            bk_train_config *t);
/* Whether --set gives the key. */
bool cli_sets_key(const cli_session *s, const char *key);
void cli_print_help(const cli_command *command);
/* The command line as it would be typed into a shell, with more words (as they are) at its end;
 * bk_free. */
char *cli_command_text(const cli_session *s, const char *more);

/* ---- session.c ---- */
/* From --device, --threads, --allow-fallback; cuda_graph and allow_tf32 from --set, else their
 * defaults. */
bk_status cli_open_device(cli_session *s);
/* cuda_graph and allow_tf32 as in the recipe */
bk_status cli_open_device_for(cli_session *s, const bk_train_config *recipe);
bk_status cli_open_named(cli_session *s, const char *name, bk_device **device);
bool cli_stores(const bk_device *device, bk_dtype dtype);
bk_status cli_dtype(cli_session *s, bk_dtype *dtype); /* --dtype; unset leaves it */
/* --set on the structs (either may be NULL). */
bk_status cli_apply_sets(cli_session *s, bk_model_config *m, bk_train_config *t);
/* PRESET, FILE.json, or DIR (a checkpoint, or a run's newest: its config.json), then --set; the
 * recipe that goes with it. Validated. */
bk_status cli_model_config(cli_session *s, const char *name, bk_model_config *m,
                           bk_train_config *t);
/* CKPT (resolved), its config with --set, its weights, on s->device in --dtype or its own;
 * --allow-nonfinite is added to the options. path_out (bk_free) may be NULL. */
bk_status cli_load_model(cli_session *s, const char *checkpoint, const bk_model_options *options,
                         bk_model **model, char **path_out);
bk_status cli_split(cli_session *s, bk_split *split); /* --split; unset leaves it */
/* Whether a .bin is among the --data files (or a text, where `bin` is false). */
bk_status cli_any_data(cli_session *s, bool bin, bool *any);
bk_status cli_open_data(cli_session *s, const char *option, const bk_dataset_options *options,
                        bk_dataset **data);
/* How a command that measures reads its --data: as the run that the checkpoint is of did
 * (trainer_state.json in its folder), else by default; --seq-len and --set stand in either case.
 * With --seq-len and texts alone that file is not needed and not read. */
typedef struct cli_reading {
  int64_t seq_len;         /* cli_reading_of is given --seq-len in it, or 0 */
  const char *why;         /* seq_len is what it is: "as in training" */
  bk_dataset_options data; /* the split is still to be chosen */
} cli_reading;
bk_status cli_reading_of(cli_session *s, const char *folder, const bk_model_config *m,
                         cli_reading *reading);
int cli_exit_code(bk_status status);

/* ---- data_files.c ---- */
/* The files of --data or --val-data: names, patterns and lists (@FILE) in the order in which they
 * were given. They stay the session's; none where the option is not there. BK_ERR_NOT_FOUND for a
 * pattern that no name matches. */
bk_status cli_data_paths(cli_session *s, const char *option, const cli_paths **paths);
void cli_data_paths_free(cli_session *s);
/* ---- log.c: messages on standard error ----
 * Of a job of several ranks rank 0 speaks. Warnings and errors of all ranks are held until the
 * ranks meet (cli_team_agree); then each is said once, by the lowest rank that has it, and where
 * that is not rank 0 it begins with "[rank 3] ". Whatever else other ranks have to say is
 * dropped. A log may be used by several threads. */
#define CLI_HELD 12 /* what finds no room is said at once */
struct cli_log {
  pthread_mutex_t lock;
  int rank;
  bool hold;
  int held;
  struct {
    bk_log_level level;
    char *text;
  } messages[CLI_HELD];
  char last_error[384], known[512];
};
void cli_log_init(cli_log *log);
void cli_log_fini(cli_log *log);
void cli_log_message(void *log, bk_log_level level, const char *message); /* a bk_log_fn */
/* A context whose messages go there, those up to the level in BIRKHOFF_LOG. */
bk_status cli_log_context(cli_log *log, bk_context **ctx);
void cli_log_rank(cli_log *log, int rank, bool hold);
/* Fills marks [CLI_HELD] with numbers that stand for the messages that are held; how many. */
int cli_log_marks(cli_log *log, uint64_t *marks);
/* The first n that are held are said, or dropped where say is false. */
void cli_log_release(cli_log *log, int n, const bool *say);
/* Says all that are held, and holds no more. What contains the text `known` is not said, now or
 * later; NULL: none. */
void cli_log_release_all(cli_log *log, const char *known);
/* The newest error, or "". */
void cli_log_last_error(cli_log *log, char *text, size_t size);

/* ---- process.c ---- */
/* First of all: descriptors 0 to 2 are open, SIGPIPE and SIGXFSZ are errors of a write. False,
 * said: it cannot be had. */
bool cli_process_begin(void);
/* run(argc, argv), whose value it returns, with enough stack for it and for threads of drivers,
 * whatever the limit. */
int cli_process_run(int (*run)(int argc, char **argv), int argc, char **argv);
/* Starts a thread with enough stack, whatever the limit, to which no signal goes. */
bool cli_thread_start(pthread_t *thread, void *(*run)(void *arg), void *arg);

/* ---- signals.c ---- */
/* Interrupts: the first of SIGINT, SIGTERM and SIGHUP since cli_catch_signals was called, else
 * 0. A second SIGINT or SIGTERM ends the program; SIGHUP stays ignored where it was. The note,
 * NULL or a text that stays, goes to standard error when the first one comes. */
extern volatile sig_atomic_t cli_signal;
void cli_catch_signals(const char *note);
/* SIGUSR1 and SIGUSR2 ask for a checkpoint: whether one came since the last call, or since
 * cli_catch_save was called. */
void cli_catch_save(void);
bool cli_take_save(void);

/* ---- output.c ---- */
struct json_t;
/* Prints the value and a newline on stdout and drops the reference; NULL: out of memory. */
bk_status cli_print_json(cli_session *s, struct json_t *value);
struct json_t *cli_number(double x);                          /* null where it is not finite */
char *cli_count_text(double x, char *text, size_t size);      /* 2.97B 27.0B 612M 12.3k 57 */
char *cli_bytes_text(double x, char *text, size_t size);      /* 1.2 GiB */
char *cli_time_text(double seconds, char *text, size_t size); /* 1:02:03, 4:05 */
double cli_seconds(void);                                     /* of a clock that never goes back */
const char *cli_residual_name(int kind);                      /* "mhc" of bk_hc_kind */
/* BK_ERR_IO if results could not be written; where they are on disk it is a warning, given once. */
bk_status cli_flush_stdout(cli_session *s);

/* ---- profile.c: --profile FILE on a model's steps. begin: *profile stays NULL without the
 * option; BK_ERR_IO where FILE will not be writable. end: writes the trace, prints the tables to
 * standard error and frees; returns `status`, or what went wrong with the trace. With several ranks
 * both are collective; rank 0 writes the traces of all, and prints its own tables. ---- */
struct bk_profile;
bk_status cli_profile_begin(cli_session *s, bk_model *model, struct bk_profile **profile);
bk_status cli_profile_end(cli_session *s, struct bk_profile *profile, bk_status status);
/* The parts, for a command that has its results elsewhere. */
bk_status cli_profile_print(const struct bk_profile *profile, const char *file, FILE *to);
struct json_t *cli_profile_json(const struct bk_profile *profile, const char *file);

extern const cli_command cli_train, cli_eval, cli_generate, cli_init, cli_forward, cli_gain,
    cli_verify, cli_compare, cli_bench, cli_plan, cli_devices;

#endif

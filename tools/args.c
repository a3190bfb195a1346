/* Command-line arguments by table. See cli.h. */
#include "tools/cli.h"

#include <stdio.h>
#include <string.h>

const cli_option cli_common_options[] = {
    {"device", CLI_ONE, "NAME",
     "ref, cpu, cuda:0, opencl:0, vulkan:0 (default: the best that probes)"},
    {"dtype", CLI_ONE, "TYPE", "fp32 or bf16 (fp64 on ref); default: the checkpoint's, or fp32"},
    {"threads", CLI_ONE, "N", "host threads (default: one per processor)"},
    {"set", CLI_MANY, "KEY=VALUE", "any key of the configuration or the recipe"},
    {"allow-fallback", CLI_FLAG, NULL,
     "ops that the device lacks run on the cpu backend, logged once per op"},
    {"json", CLI_FLAG, NULL, "one JSON value on standard output"},
    {"help", CLI_FLAG, NULL, "this text"},
    {NULL, CLI_FLAG, NULL, NULL},
};

static const cli_option *find_in(const cli_option *options, const char *name) {
  for (; options->name; options++)
    if (strcmp(options->name, name) == 0) return options;
  return NULL;
}

static const cli_option *find_option(const cli_command *command, const char *name) {
  const cli_option *o = find_in(command->options, name);
  return o ? o : find_in(cli_common_options, name);
}

static bk_status unknown_option(bk_context *ctx, const cli_command *command, const char *name) {
  const char *names[64];
  size_t n = 0;
  for (const cli_option *o = command->options; o->name && n < BK_COUNT(names); o++)
    names[n++] = o->name;
  for (const cli_option *o = cli_common_options; o->name && n < BK_COUNT(names); o++)
    names[n++] = o->name;
  const char *near = bk_nearest(name, names, n);
  if (near)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: unknown option --%s; did you mean --%s?",
                   command->name, name, near);
  return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: unknown option --%s; see birkhoff %s --help",
                 command->name, name, command->name);
}

static void add(cli_args *args, const cli_option *option, const char *value) {
  args->given[args->n_given].option = option;
  args->given[args->n_given++].value = value;
}

/* One --option with what belongs to it; *i is left on the last word used. */
static bk_status parse_option(bk_context *ctx, cli_args *args, int argc, char *const *argv,
                              int *i) {
  char name[64];
  const char *word = argv[*i] + 2, *equals = strchr(word, '=');
  size_t length = equals ? (size_t)(equals - word) : strlen(word);
  snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), word);
  const cli_option *o = find_option(args->command, name);
  if (!o) return unknown_option(ctx, args->command, name);
  if (o->arity == CLI_FLAG) {
    if (equals)
      return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: --%s takes no value", args->command->name, name);
    add(args, o, "");
    return BK_OK;
  }
  if (equals) {
    add(args, o, equals + 1);
    return BK_OK;
  }
  int before = args->n_given;
  while (*i + 1 < argc && (o->arity == CLI_MANY || args->n_given == before) &&
         (args->n_given == before ? strncmp(argv[*i + 1], "--", 2) != 0 || argv[*i + 1][2] == '\0'
                                  : strncmp(argv[*i + 1], "--", 2) != 0))
    add(args, o, argv[++*i]);
  if (args->n_given == before)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: --%s needs %s", args->command->name, name, o->value);
  return BK_OK;
}

bk_status cli_args_parse(bk_context *ctx, const cli_command *command, int argc, char *const *argv,
                         cli_args *args) {
  *args = (cli_args){.command = command};
  args->words = bk_alloc_array(ctx, (size_t)argc + 1, sizeof *args->words);
  args->given = bk_alloc_array(ctx, (size_t)argc + 1, sizeof *args->given);
  if (!args->words || !args->given) return BK_ERR_MEMORY;
  bool only_words = false;
  for (int i = 0; i < argc; i++) {
    if (!only_words && strcmp(argv[i], "--") == 0) only_words = true;
    else if (!only_words && strcmp(argv[i], "-h") == 0) add(args, find_option(command, "help"), "");
    else if (!only_words && strncmp(argv[i], "--", 2) == 0)
      BK_TRY(parse_option(ctx, args, argc, argv, &i));
    else if (!only_words && argv[i][0] == '-' && argv[i][1])
      return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: unknown option %s; see birkhoff %s --help",
                     command->name, argv[i], command->name);
    else args->words[args->n_words++] = argv[i];
  }
  if (cli_given(args, "help")) return BK_OK;
  if (args->n_words < command->min_words || args->n_words > command->max_words)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: %d argument%s given; usage: birkhoff %s %s",
                   command->name, args->n_words, args->n_words == 1 ? "" : "s", command->name,
                   command->synopsis);
  return BK_OK;
}

void cli_args_free(bk_context *ctx, cli_args *args) {
  bk_free(ctx, args->words);
  bk_free(ctx, args->given);
}

const char *cli_value(const cli_args *args, const char *option) {
  for (int i = args->n_given - 1; i >= 0; i--)
    if (strcmp(args->given[i].option->name, option) == 0) return args->given[i].value;
  return NULL;
}

bool cli_given(const cli_args *args, const char *option) { return cli_value(args, option) != NULL; }

int cli_values(const cli_args *args, const char *option, const char **values, int max) {
  int n = 0;
  for (int i = 0; i < args->n_given; i++)
    if (strcmp(args->given[i].option->name, option) == 0 && n++ < max && values)
      values[n - 1] = args->given[i].value;
  return n;
}

bk_status cli_int(cli_session *s, const char *option, int64_t min, int64_t max, int64_t *value) {
  const char *text = cli_value(&s->args, option);
  int64_t v;
  if (!text) return BK_OK;
  if (!bk_parse_int64(text, &v) || v < min || v > max)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--%s %s: expected a whole number from %lld to %lld",
                   option, text, (long long)min, (long long)max);
  *value = v;
  return BK_OK;
}

bk_status cli_double(cli_session *s, const char *option, double min, double max, double *value) {
  const char *text = cli_value(&s->args, option);
  double v;
  if (!text) return BK_OK;
  if (!bk_parse_double(text, &v) || v < min || v > max)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--%s %s: expected a number from %g to %g", option,
                   text, min, max);
  *value = v;
  return BK_OK;
}

bk_status cli_recipe_option(cli_session *s, const char *option, const char *key,
                            bk_train_config *t) {
  const bk_option *o = bk_train_keys;
  while (strcmp(o->name, key) != 0) o++;
  void *value = (char *)t + o->offset;
  return o->type == BK_OPT_DOUBLE ? cli_double(s, option, o->min, o->max, value)
                                  : cli_int(s, option, (int64_t)o->min, (int64_t)o->max, value);
}

bool cli_sets_key(const cli_session *s, const char *key) {
  size_t n = strlen(key);
  for (int i = 0; i < s->args.n_given; i++) {
    const char *value = s->args.given[i].value;
    if (strcmp(s->args.given[i].option->name, "set") == 0 && strncmp(value, key, n) == 0 &&
        value[n] == '=')
      return true;
  }
  return false;
}

static void print_options(const cli_option *options) {
  for (; options->name; options++) {
    char left[64];
    snprintf(left, sizeof left, "--%s%s%s%s", options->name, options->value ? " " : "",
             options->value ? options->value : "", options->arity == CLI_MANY ? "..." : "");
    printf("  %-26s %s\n", left, options->help);
  }
}

void cli_print_help(const cli_command *command) {
  printf("usage: birkhoff %s %s\n\n%s\n\n", command->name, command->synopsis, command->summary);
  print_options(command->options);
  print_options(cli_common_options);
}

/* ---- back to a command line ---- */

static bool is_plain_word(const char *word) {
  static const char plain[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%";
  return *word && word[strspn(word, plain)] == '\0';
}

/* Appends `word`, in single quotes where a shell would take it for something else. */
static char *append_word(bk_context *ctx, char *text, const char *word) {
  const char *quote = is_plain_word(word) ? "" : "'";
  char *longer = text ? bk_format(ctx, "%s%s%s", text, *text ? " " : "", quote) : NULL;
  bk_free(ctx, text);
  while (longer && *word) {
    size_t run = *quote ? strcspn(word, "'") : strlen(word);
    char *next =
        bk_format(ctx, "%s%.*s%s", longer, (int)run, word, word[run] == '\'' ? "'\\''" : "");
    bk_free(ctx, longer);
    longer = next;
    word += run + (word[run] == '\'');
  }
  char *closed = longer ? bk_format(ctx, "%s%s", longer, quote) : NULL;
  bk_free(ctx, longer);
  return closed;
}

char *cli_command_text(const cli_session *s, const char *more) {
  char *text = bk_strdup(s->ctx, "");
  for (int i = 0; i < s->argc; i++) text = append_word(s->ctx, text, s->argv[i]);
  char *whole = text ? bk_format(s->ctx, "%s%s", text, more) : NULL;
  bk_free(s->ctx, text);
  return whole;
}

/* The files that --data and --val-data mean. A word is a file, a pattern (which the shell leaves to
 * us where it stands in quotes, or is too long for a command line once it is expanded), or
 * @LIST, a file with one such word a line.
 *
 * Patterns are those of the shell: * ? [...] in any part of a path; none of them matches a '/' or a
 * point at the beginning of a name. What they match is sorted by its bytes, so that the order,
 * which counts in training, is the same everywhere. Folders are listed by way of the context's
 * files. */
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"

#define LIST_BYTES_MAX ((size_t)64 << 20)

static bk_status add(cli_session *s, cli_paths *to, char *path) {
  bk_status status =
      path ? bk_grow(s->ctx, (void **)&to->list, &to->room, (size_t)to->n + 1, sizeof *to->list)
           : BK_ERR_MEMORY;
  if (status == BK_OK) to->list[to->n++] = path;
  else bk_free(s->ctx, path);
  return status;
}

static void drop(cli_session *s, cli_paths *paths) {
  for (int i = 0; i < paths->n; i++) bk_free(s->ctx, paths->list[i]);
  bk_free(s->ctx, paths->list);
  *paths = (cli_paths){0};
}

/* ---- patterns ---- */

static bool is_pattern(const char *text) { return strpbrk(text, "*?[") != NULL; }

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static bk_status expand(cli_session *s, const char *base, const char *rest, cli_paths *to);

/* `base` is what is known to be there, with its '/'; `part` one part of a path with signs of
 * patterns, `rest` what follows it, without the '/'s between; NULL: nothing does. */
static bk_status match_part(cli_session *s, const char *base, const char *part, const char *rest,
                            cli_paths *to) {
  char **names = NULL;
  size_t n = 0;
  int error;
  BK_TRY(bk_folder_list(s->ctx, *base ? base : ".", &names, &n, &error));
  bk_status status = BK_OK;
  if (error < 0 && error != -ENOENT && error != -ENOTDIR)
    status = bk_fail(s->ctx, BK_ERR_IO, "cannot list %s: %s", *base ? base : ".", strerror(-error));
  for (size_t i = 0; i < n && status == BK_OK; i++) {
    if (fnmatch(part, names[i], FNM_PERIOD) != 0) continue;
    char *path = bk_format(s->ctx, "%s%s%s", base, names[i], rest ? "/" : "");
    if (!path) status = BK_ERR_MEMORY;
    else if (!rest) status = add(s, to, path);
    else {
      status = expand(s, path, rest, to);
      bk_free(s->ctx, path);
    }
  }
  bk_names_free(s->ctx, names, n);
  return status;
}

/* Parts without signs are taken as they are, up to the next one that has some; what ends the path
 * must be there. */
static bk_status expand(cli_session *s, const char *base, const char *rest, cli_paths *to) {
  size_t slashes = strspn(rest, "/"), length = slashes + strcspn(rest + slashes, "/");
  const char *after = rest + length + strspn(rest + length, "/");
  char *part = bk_format(s->ctx, "%.*s", (int)length, rest), *next = NULL;
  bk_status status = part ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK && !slashes && is_pattern(part)) {
    status = match_part(s, base, part, *after ? after : NULL, to);
  } else if (status == BK_OK) {
    next = bk_format(s->ctx, "%s%s%s", base, part, *after ? "/" : "");
    if (!next) status = BK_ERR_MEMORY;
    else if (*after) status = expand(s, next, after, to);
    else if (bk_path_exists(s->ctx, next)) status = add(s, to, bk_strdup(s->ctx, next));
  }
  bk_free(s->ctx, next);
  bk_free(s->ctx, part);
  return status;
}

/* A name that is there is meant literally, whatever signs it has. */
static bk_status add_word(cli_session *s, const char *word, const char *where, cli_paths *to) {
  int kind = 0, before = to->n;
  if (is_pattern(word)) BK_TRY(bk_path_kind(s->ctx, word, &kind));
  if (kind >= 0) return add(s, to, bk_strdup(s->ctx, word));
  size_t root = strspn(word, "/");
  BK_TRY(expand(s, root ? "/" : "", word + root, to));
  if (to->n == before)
    return bk_fail(s->ctx, BK_ERR_NOT_FOUND, "%s%s: no file has such a name", where, word);
  qsort(to->list + before, (size_t)(to->n - before), sizeof *to->list, by_bytes);
  return BK_OK;
}

/* ---- lists ---- */

/* Names in a list begin in the list's folder. */
static bk_status add_line(cli_session *s, const char *list, char *line, int number, cli_paths *to) {
  size_t length = strlen(line);
  while (length > 0 && strchr(" \t\r", line[length - 1])) line[--length] = '\0';
  line += strspn(line, " \t");
  if (!*line || *line == '#') return BK_OK;
  const char *slash = strrchr(list, '/');
  int folder = slash && *line != '/' ? (int)(slash - list) + 1 : 0;
  char *word = bk_format(s->ctx, "%.*s%s", folder, list, line),
       *where = bk_format(s->ctx, "%s: line %d: ", list, number);
  bk_status status = word && where ? add_word(s, word, where, to) : BK_ERR_MEMORY;
  bk_free(s->ctx, where);
  bk_free(s->ctx, word);
  return status;
}

static bk_status add_list(cli_session *s, const char *list, cli_paths *to) {
  char *text, *next;
  size_t bytes;
  int number = 0, before = to->n;
  BK_TRY(bk_file_read_all(s->ctx, list, LIST_BYTES_MAX, &text, &bytes));
  bk_status status = BK_OK;
  if (strlen(text) != bytes)
    status = bk_fail(s->ctx, BK_ERR_DATA, "%s is not a list of files: it has a byte 0", list);
  for (char *line = text; line && status == BK_OK; line = next) {
    if ((next = strchr(line, '\n'))) *next++ = '\0';
    status = add_line(s, list, line, ++number, to);
  }
  bk_free(s->ctx, text);
  if (status != BK_OK || to->n > before) return status;
  return bk_fail(s->ctx, BK_ERR_DATA, "%s names no file", list);
}

/* ---- of an option ---- */

static bk_status add_option(cli_session *s, const char *option, cli_paths *to) {
  for (int i = 0; i < s->args.n_given; i++) {
    const char *word = s->args.given[i].value;
    int kind = 0;
    if (strcmp(s->args.given[i].option->name, option) != 0) continue;
    if (*word == '@') BK_TRY(bk_path_kind(s->ctx, word, &kind));
    BK_TRY(kind < 0 ? add_list(s, word + 1, to) : add_word(s, word, "", to));
  }
  return BK_OK;
}

bk_status cli_data_paths(cli_session *s, const char *option, const cli_paths **paths) {
  cli_paths *kept = &s->data_paths[strcmp(option, "data") != 0];
  if (kept->n == 0) {
    bk_status status = add_option(s, option, kept);
    if (status != BK_OK) {
      drop(s, kept);
      return status;
    }
  }
  *paths = kept;
  return BK_OK;
}

void cli_data_paths_free(cli_session *s) {
  drop(s, &s->data_paths[0]);
  drop(s, &s->data_paths[1]);
}

/* Limits of the control groups (Linux) that this process is in: processors and memory. Both
 * versions, each where it is mounted; a limit of a group holds for all below it, so the group's
 * ancestors count as far as they can be seen. See control groups in the kernel's documentation,
 * admin-guide/cgroup-v2 and cgroup-v1, and proc(5) for /proc/self/cgroup and
 * /proc/self/mountinfo.
 *
 * Whatever cannot be read or understood is no limit: containers show part of the tree, or none.
 * Nothing is allocated. */
#include "base/base.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define NAME_MAX_BYTES 1024 /* longest path; a longer one is passed over */
#define LINE_MAX_BYTES 4096 /* longest line of the two tables; a longer one is passed over */

/* Where a group's files are. The first `mount` bytes of `path` are the folder on which its tree is
 * mounted, above which nothing can be seen. */
typedef struct place {
  char path[NAME_MAX_BYTES];
  size_t mount;
} place;

/* ---- files ---- */

static FILE *open_below(const char *root, const char *folder, const char *name) {
  char path[2 * NAME_MAX_BYTES];
  int n = snprintf(path, sizeof path, "%s%s/%s", root, folder, name);
  return n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
}

static bool is_folder(const char *root, const char *folder) {
  char path[2 * NAME_MAX_BYTES];
  struct stat st;
  int n = snprintf(path, sizeof path, "%s%s", root, folder);
  return n > 0 && (size_t)n < sizeof path && stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Reads the next whole line without its end. A line that is longer than `size` is left out. */
static bool next_line(FILE *file, char *line, size_t size) {
  while (fgets(line, (int)size, file)) {
    size_t n = strlen(line);
    if (n > 0 && line[n - 1] == '\n') {
      line[n - 1] = '\0';
      return true;
    }
    if (n + 1 < size) return n > 0; /* the last line, or a byte of zero in it */
    int c;
    while ((c = getc(file)) != '\n' && c != EOF) {}
  }
  return false;
}

/* Takes a whole number of at least 0 from the front of *text, which then points behind it. False:
 * there is none, or it is too large for 64 bits. */
static bool take_number(const char **text, uint64_t *value) {
  const char *p = *text;
  uint64_t sum = 0;
  if (*p < '0' || *p > '9') return false;
  for (; *p >= '0' && *p <= '9'; p++) {
    uint64_t digit = (uint64_t)(*p - '0');
    if (sum > (UINT64_MAX - digit) / 10) return false;
    sum = 10 * sum + digit;
  }
  *text = p;
  *value = sum;
  return true;
}

static bool first_line(const char *root, const char *folder, const char *name, char *line,
                       size_t size) {
  FILE *file = open_below(root, folder, name);
  bool found = file && next_line(file, line, size);
  if (file) fclose(file);
  return found;
}

/* Reads a file that holds one number. */
static bool read_number(const char *root, const char *folder, const char *name, uint64_t *value) {
  char line[64];
  const char *at = line;
  return first_line(root, folder, name, line, sizeof line) && take_number(&at, value) &&
         *at == '\0';
}

/* Reads the number of one key from a file of lines "KEY NUMBER". */
static bool read_key(const char *root, const char *folder, const char *name, const char *key,
                     uint64_t *value) {
  FILE *file = open_below(root, folder, name);
  char line[128];
  size_t n = strlen(key);
  bool found = false;
  while (file && !found && next_line(file, line, sizeof line)) {
    const char *at = line + n + 1;
    found = strncmp(line, key, n) == 0 && line[n] == ' ' && take_number(&at, value) && *at == '\0';
  }
  if (file) fclose(file);
  return found;
}

/* ---- the two tables ---- */

/* Cuts a field off at `mark` and steps behind it; NULL past the last field. */
static char *take_field(char **text, char mark) {
  char *field = *text;
  if (!field) return NULL;
  char *end = strchr(field, mark);
  if (end) *end = '\0';
  *text = end ? end + 1 : NULL;
  return field;
}

static bool has_word(const char *list, const char *word) {
  size_t n = strlen(word);
  for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
    if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0')) return true;
  return false;
}

/* The group's path from /proc/self/cgroup, whose lines are "HIERARCHY:CONTROLLERS:PATH"; version 2
 * has no controllers there (`controller` NULL). A path with ".." is that of a group outside of the
 * namespace, which cannot be seen: it becomes empty, which means the top of a mount. */
static bool group_path(const char *root, const char *controller, char *path) {
  FILE *file = open_below(root, "/proc/self", "cgroup");
  char line[LINE_MAX_BYTES];
  bool found = false;
  while (file && !found && next_line(file, line, sizeof line)) {
    char *rest = line;
    const char *id = take_field(&rest, ':'), *names = take_field(&rest, ':');
    if (!id || !names || !rest || *rest != '/' || strlen(rest) >= NAME_MAX_BYTES) continue;
    found = controller ? has_word(names, controller) : *names == '\0' && strcmp(id, "0") == 0;
    if (found) strcpy(path, strstr(rest, "/..") ? "" : rest);
  }
  if (file) fclose(file);
  return found;
}

/* In /proc/self/mountinfo blanks and the like are written as a backslash and three octal digits. */
static void unescape(char *text) {
  char *to = text;
  for (const char *p = text; *p; p++) {
    bool octal = p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' &&
                 p[3] >= '0' && p[3] <= '7';
    *to++ = octal ? (char)((p[1] - '0') * 64 + (p[2] - '0') * 8 + (p[3] - '0')) : *p;
    if (octal) p += 3;
  }
  *to = '\0';
}

typedef struct mount_line {
  char *root, *point; /* which part of its file system is mounted, and where */
  bool match;         /* it is a file system of the controller, or of version 2 */
} mount_line;

/* Parses "36 35 98:0 ROOT POINT OPTIONS [FIELDS...] - TYPE SOURCE OPTIONS", cutting the line up. */
static bool parse_mount(char *line, const char *controller, mount_line *m) {
  char *rest = line;
  for (int i = 0; i < 3; i++) take_field(&rest, ' ');
  m->root = take_field(&rest, ' ');
  m->point = take_field(&rest, ' ');
  for (const char *field = take_field(&rest, ' '); field && strcmp(field, "-") != 0;)
    field = take_field(&rest, ' ');
  const char *type = take_field(&rest, ' ');
  take_field(&rest, ' ');
  if (!m->root || !m->point || !type || !rest) return false;
  m->match = controller ? strcmp(type, "cgroup") == 0 && has_word(rest, controller)
                        : strcmp(type, "cgroup2") == 0;
  unescape(m->root);
  unescape(m->point);
  return *m->point == '/' && strlen(m->point) < NAME_MAX_BYTES;
}

/* The part of a group's path below what is mounted ("/" is all), or NULL where the mount does
 * not show the group. */
static const char *part_below(const char *group, const char *root) {
  size_t n = strcmp(root, "/") == 0 ? 0 : strlen(root);
  return strncmp(group, root, n) == 0 && (group[n] == '/' || group[n] == '\0') ? group + n : NULL;
}

static void set_place(place *p, const char *point, const char *below) {
  size_t n = strlen(below);
  while (n > 0 && below[n - 1] == '/') n--;
  int written = snprintf(p->path, sizeof p->path, "%s%.*s", point, (int)n, below);
  p->mount = strlen(point);
  if (written < 0 || (size_t)written >= sizeof p->path) p->path[p->mount] = '\0';
}

/* Finds the group's folder under the first mount that shows it. Where no mount does, it is the top
 * of the first mount: what is seen there is the group itself or one above it. */
static bool find_place(const char *root, const char *controller, place *found) {
  char group[NAME_MAX_BYTES], line[LINE_MAX_BYTES];
  if (!group_path(root, controller, group)) return false;
  FILE *file = open_below(root, "/proc/self", "mountinfo");
  bool any = false, shown = false;
  while (file && !shown && next_line(file, line, sizeof line)) {
    mount_line m;
    place p;
    if (!parse_mount(line, controller, &m) || !m.match) continue;
    const char *below = part_below(group, m.root);
    set_place(&p, m.point, below ? below : "");
    shown = below && is_folder(root, p.path);
    if (!shown) p.path[p.mount] = '\0';
    if (shown || !any) *found = p;
    any = true;
  }
  if (file) fclose(file);
  return any;
}

/* From a group's folder to the one above it; false at the top of the mount. */
static bool go_up(place *p) {
  size_t n = strlen(p->path);
  if (n <= p->mount) return false;
  while (n > p->mount && p->path[n - 1] != '/') n--;
  p->path[n > p->mount ? n - 1 : p->mount] = '\0';
  return true;
}

/* ---- processors ---- */

/* The time of processors that the group may use in each period, rounded up to whole processors; 0
 * means that there is no limit. */
static uint64_t quota_of(const char *root, const char *folder, bool v2) {
  char line[64];
  uint64_t quota = 0, period = 100000;
  if (v2) {
    const char *at = line;
    if (!first_line(root, folder, "cpu.max", line, sizeof line) || !take_number(&at, &quota))
      return 0;
    if (*at == ' ') at++;
    if (*at && (!take_number(&at, &period) || *at)) return 0;
  } else if (!read_number(root, folder, "cpu.cfs_quota_us", &quota) ||
             !read_number(root, folder, "cpu.cfs_period_us", &period)) {
    return 0;
  }
  return quota > 0 && period > 0 ? (quota - 1) / period + 1 : 0;
}

/* A machine may have both versions at once, with a controller in either; all limits on the way up
 * count. */
int bk_cgroup_cpus(const char *root, int cpus) {
  for (int v2 = 0; v2 < 2; v2++) {
    place p;
    if (!find_place(root, v2 ? NULL : "cpu", &p)) continue;
    do {
      uint64_t quota = quota_of(root, p.path, v2);
      if (quota > 0 && quota < (uint64_t)cpus) cpus = (int)quota;
    } while (go_up(&p));
  }
  return cpus;
}

/* ---- memory ---- */

/* Lowers both numbers to a group's limit. Free is what the group may have and does not, and what
 * the kernel would take back first: cached files that have not been used lately. */
static void cap_at(const char *root, const char *folder, bool v2, size_t *free_bytes,
                   size_t *total_bytes) {
  uint64_t limit, used = 0, cache = 0;
  if (!read_number(root, folder, v2 ? "memory.max" : "memory.limit_in_bytes", &limit)) return;
  read_number(root, folder, v2 ? "memory.current" : "memory.usage_in_bytes", &used);
  read_key(root, folder, "memory.stat", v2 ? "inactive_file" : "total_inactive_file", &cache);
  used -= cache < used ? cache : used;
  uint64_t left = used < limit ? limit - used : 0;
  if (limit < *total_bytes) *total_bytes = (size_t)limit;
  if (left < *free_bytes) *free_bytes = (size_t)left;
}

void bk_cgroup_memory(const char *root, size_t *free_bytes, size_t *total_bytes) {
  for (int v2 = 0; v2 < 2; v2++) {
    place p;
    if (!find_place(root, v2 ? NULL : "memory", &p)) continue;
    do cap_at(root, p.path, v2, free_bytes, total_bytes);
    while (go_up(&p));
  }
}

/* Results on standard output. See cli.h. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "tools/cli.h"

double cli_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

json_t *cli_number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

const char *cli_residual_name(int kind) {
  bk_connection_info info;
  return bk_connection_describe((bk_hc_kind)kind, &info) ? info.name : "?";
}

bk_status cli_flush_stdout(cli_session *s) {
  if (fflush(stdout) == 0 && !ferror(stdout)) return BK_OK;
  if (!s->on_disk) return bk_fail(s->ctx, BK_ERR_IO, "cannot write to standard output");
  if (!s->stdout_failed)
    bk_warn(s->ctx, "cannot write to standard output; what was made is whole, in %s", s->on_disk);
  s->stdout_failed = true;
  return BK_OK;
}

bk_status cli_print_json(cli_session *s, json_t *value) {
  if (!value) return bk_fail(s->ctx, BK_ERR_MEMORY, "out of memory while making the JSON result");
  json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
  json_decref(value);
  putchar('\n');
  return cli_flush_stdout(s);
}

char *cli_count_text(double x, char *text, size_t size) {
  static const struct {
    double unit;
    const char *name;
  } units[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}};
  for (size_t i = 0; i < BK_COUNT(units); i++)
    if (x >= units[i].unit * 0.9995) {
      double y = x / units[i].unit;
      snprintf(text, size, "%.*f%s", y < 9.995 ? 2 : y < 99.95 ? 1 : 0, y, units[i].name);
      return text;
    }
  snprintf(text, size, "%.4g", x);
  return text;
}

char *cli_bytes_text(double x, char *text, size_t size) {
  static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t i = 0;
  while (x >= 1024 && i + 1 < BK_COUNT(names)) x /= 1024, i++;
  snprintf(text, size, i ? "%.2f %s" : "%.0f %s", x, names[i]);
  return text;
}

char *cli_time_text(double seconds, char *text, size_t size) {
  if (!(seconds >= 0) || seconds > 1e9) {
    snprintf(text, size, "?");
    return text;
  }
  long long t = (long long)(seconds + 0.5);
  if (t >= 3600) snprintf(text, size, "%lld:%02lld:%02lld", t / 3600, t / 60 % 60, t % 60);
  else snprintf(text, size, "%lld:%02lld", t / 60, t % 60);
  return text;
}

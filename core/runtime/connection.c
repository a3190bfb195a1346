/* Answers to questions about kinds of connection by number: see runtime/connection.h. The kinds
 * themselves are files under models/connections; this folder knows none of them by name. */
#include "runtime/connection.h"

#include <birkhoff/config.h>
#include <stdio.h>

/* Defined in models/connections/kinds.c; the index is the kind's number. */
extern const bk_connection_kind *const bk_connection_kinds[];

const bk_connection_kind *bk_connection_kind_of(bk_hc_kind kind) {
  return kind >= BK_HC_PLAIN && kind <= BK_HC_HEAD ? bk_connection_kinds[kind] : NULL;
}

bool bk_connection_takes(const bk_connection_kind *kind, int64_t n) {
  return n >= 1 && n <= kind->max_streams && (!kind->powers_of_two || (n & (n - 1)) == 0);
}

const char *bk_connection_streams_text(const bk_connection_kind *kind, char *text, size_t size) {
  int most = kind->max_streams, used = snprintf(text, size, "1");
  if (most > 1 && !kind->powers_of_two) snprintf(text, size, "1 to %d", most);
  for (int n = 2; kind->powers_of_two && n <= most && (size_t)used < size; n *= 2)
    used += snprintf(text + used, size - (size_t)used, "%s%d", 2 * n > most ? " or " : ", ", n);
  return text;
}

int bk_factorial(int n) {
  int product = 1;
  for (int i = 2; i <= n; i++) product *= i;
  return product;
}

int bk_hc_rows(bk_hc_kind kind, int n) {
  const bk_connection_kind *k = bk_connection_kind_of(kind);
  return k && k->rows ? k->rows(n) : 0;
}

int bk_hc_base_count(bk_hc_kind kind, int n) {
  const bk_connection_kind *k = bk_connection_kind_of(kind);
  return k && k->base ? k->base(n) : 0;
}

int bk_hc_scale_count(bk_hc_kind kind) {
  const bk_connection_kind *k = bk_connection_kind_of(kind);
  return k ? k->scales : 0;
}

bool bk_connection_describe(bk_hc_kind kind, bk_connection_info *info) {
  const bk_connection_kind *k = bk_connection_kind_of(kind);
  if (!k || kind == BK_HC_HEAD) return false;
  *info =
      (bk_connection_info){.name = k->name, .summary = k->summary, .signed_maps = k->signed_maps};
  bk_connection_streams_text(k, info->streams, sizeof info->streams);
  return true;
}

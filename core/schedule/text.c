/* The grammar of schedules (doc/files.md): records as words, a rank's list as a line. */
#include <stdio.h>
#include <string.h>

#include "io/json_out.h"
#include "schedule/schedule.h"

/* By kind; an FB is made of an F and a B. */
static const char letters[] = "FBIW";

char *bk_schedule_record_text(const bk_schedule_record *r, char text[BK_SCHEDULE_RECORD_TEXT]) {
  if (r->kind == BK_WORK_FB)
    snprintf(text, BK_SCHEDULE_RECORD_TEXT, "(%dF%d;%dB%d)", r->chunk, r->micro, r->back_chunk,
             r->back_micro);
  else snprintf(text, BK_SCHEDULE_RECORD_TEXT, "%d%c%d", r->chunk, letters[r->kind], r->micro);
  return text;
}

char *bk_schedule_text(bk_context *ctx, const bk_schedule *schedule, int rank) {
  const bk_schedule_rank *list = &schedule->rank[rank];
  char record[BK_SCHEDULE_RECORD_TEXT];
  bk_json_out out;
  bk_json_out_init(&out, ctx);
  for (int i = 0; i < list->n_records; i++) {
    if (i) bk_json_out_text(&out, " ");
    bk_json_out_text(&out, bk_schedule_record_text(&list->records[i], record));
  }
  if (out.status == BK_OK) return out.data; /* a list that was checked is not empty */
  bk_json_out_fini(&out);
  return NULL;
}

/* ---- reading ---- */

/* Up to 9 digits: no limit of a schedule has more. A larger number is no number. */
static bool take_number(const char **at, int *value) {
  const char *begin = *at;
  int sum = 0;
  while (**at >= '0' && **at <= '9' && *at - begin < 9) sum = 10 * sum + (*(*at)++ - '0');
  *value = sum;
  return *at > begin && !(**at >= '0' && **at <= '9');
}

/* A pass of one of the kinds. */
static bool take_pass(const char **at, const char *kinds, char *kind, int *chunk, int *micro) {
  if (!take_number(at, chunk) || **at == '\0' || !strchr(kinds, **at)) return false;
  *kind = *(*at)++;
  return take_number(at, micro);
}

static bool take_char(const char **at, char c) {
  if (**at != c) return false;
  ++*at;
  return true;
}

static bool take_pair(const char **at, bk_schedule_record *r) {
  char kind;
  r->kind = BK_WORK_FB;
  return take_char(at, '(') && take_pass(at, "F", &kind, &r->chunk, &r->micro) &&
         take_char(at, ';') && take_pass(at, "B", &kind, &r->back_chunk, &r->back_micro) &&
         take_char(at, ')');
}

static bool take_single(const char **at, bk_schedule_record *r) {
  char kind;
  if (!take_pass(at, letters, &kind, &r->chunk, &r->micro)) return false;
  r->kind = (bk_work)(strchr(letters, kind) - letters);
  r->back_chunk = r->chunk;
  r->back_micro = r->micro;
  return true;
}

bool bk_schedule_record_parse(const char **at, bk_schedule_record *record) {
  const char *p = *at;
  bk_schedule_record r = {.kind = BK_WORK_F};
  if (!(*p == '(' ? take_pair(&p, &r) : take_single(&p, &r))) return false;
  if (*p != ' ' && *p != '\0') return false;
  while (*p == ' ') p++;
  *at = p;
  *record = r;
  return true;
}

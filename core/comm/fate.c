/* See fate.h. The reason is written by whoever changes the state from 0 to 1, so that no lock is
 * needed and a caller that comes second does not wait. */
#include "comm/fate.h"

#include <stdio.h>
#include <string.h>

/* How many of `left` bytes at s can be printed as they are, 0 if not even one character. U+0080 to
 * U+009F are control characters, too. */
static size_t printable(const unsigned char *s, size_t left) {
  size_t length = bk_utf8_length(s, left);
  bool control =
      length == 1 ? s[0] < 0x20 || s[0] == 0x7f : length == 2 && s[0] == 0xc2 && s[1] < 0xa0;
  return control ? 0 : length;
}

void bk_fate_clean(char *dst, size_t size, const char *text, size_t bytes) {
  const unsigned char *s = (const unsigned char *)text;
  size_t used = 0;
  for (size_t at = 0; at < bytes && s[at];) {
    size_t length = printable(s + at, bytes - at);
    if (used + (length ? length : 1) >= size) break;
    if (length) memcpy(dst + used, s + at, length);
    else dst[used] = s[at] < 0x80 || s[at] == 0xc2 ? ' ' : '?';
    used += length ? length : 1;
    at += length ? length : 1;
  }
  dst[used] = '\0';
}

bool bk_fate_seal(bk_fate *fate, const char *reason) {
  int nothing = 0;
  if (!atomic_compare_exchange_strong(&fate->state, &nothing, 1)) return false;
  bk_fate_clean(fate->reason, sizeof fate->reason, reason, strlen(reason));
  atomic_store(&fate->state, 2);
  return true;
}

bool bk_fate_known(bk_fate *fate, char *reason, size_t size) {
  if (atomic_load(&fate->state) != 2) return false;
  if (reason && size) snprintf(reason, size, "%s", fate->reason);
  return true;
}

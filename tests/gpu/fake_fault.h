/* How the stand-ins for libOpenCL and libvulkan are told which faults to make: the value of an
 * environment variable, "oom=1000,lost". */
#ifndef BK_TESTS_FAKE_FAULT_H
#define BK_TESTS_FAKE_FAULT_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Whether a fault is on; *value: what stands behind =. */
static bool fault_is_on(const char *variable, const char *name, size_t *value) {
  const char *at = getenv(variable);
  size_t length = strlen(name);
  for (; at && *at; at += strcspn(at, ","), at += *at == ',') {
    /* strchr finds the NUL too */
    if (strncmp(at, name, length) != 0 || !strchr("=,", at[length])) continue;
    if (value) *value = at[length] == '=' ? strtoull(at + length + 1, NULL, 10) : 0;
    return true;
  }
  return false;
}

#endif

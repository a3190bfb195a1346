/* Time for measuring: seconds since some moment in the past. The clock is monotonic, so that a
 * change of the system's date does not show in a duration. */
#include "base/base.h"

#include <time.h>

double bk_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

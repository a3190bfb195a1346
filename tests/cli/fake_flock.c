/* Stands before the C library's flock (LD_PRELOAD), for file systems that this machine does not have. BK_FAKE_FLOCK: "granted" gives every lock to
 * everybody; a number is the errno value that every call fails with. Without it the library is not in force. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

int flock(int fd, int operation) {
  const char *what = getenv("BK_FAKE_FLOCK");
  (void)fd, (void)operation;
  if (what && strcmp(what, "granted") == 0) return 0;
  errno = what ? atoi(what) : EIO;
  return -1;
}

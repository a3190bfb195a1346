/* Stands before the C library's flock (LD_PRELOAD), for file systems and moments that this
 * machine does not have. BK_FAKE_FLOCK: "granted" gives every lock to everybody; "meanwhile"
 * first does what BK_FAKE_COMMAND says, then locks as ever; a number is the errno value that
 * every call fails with. Without it the library is not in force. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

static int meanwhile(int fd, int operation) {
  const char *command = getenv("BK_FAKE_COMMAND");
  if (command) {
    unsetenv("LD_PRELOAD");
    int rc = system(command);
    unsetenv("BK_FAKE_COMMAND");
    if (rc != 0) return -1;
  }
  return (int)syscall(SYS_flock, fd, operation);
}

int flock(int fd, int operation) {
  const char *what = getenv("BK_FAKE_FLOCK");
  if (what && strcmp(what, "granted") == 0) return 0;
  if (what && strcmp(what, "meanwhile") == 0) return meanwhile(fd, operation);
  errno = what ? atoi(what) : EIO;
  return -1;
}

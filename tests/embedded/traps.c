/* Linked with -Wl,--wrap=NAME for each NAME below: whoever calls one of them between the begin
 * and the end of main() stops the program with status 3 and the name. What the C library does
 * before and after main() is its own business. */
#include <string.h>
#include <unistd.h>

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

static int armed;

int __wrap_main(int argc, char **argv) {
  armed = 1;
  int status = __real_main(argc, argv);
  armed = 0;
  return status;
}

static void trap(const char *name) {
  if (!armed) return;
  static const char text[] = "forbidden call: ";
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0 ||
      write(STDERR_FILENO, name, strlen(name)) < 0)
    _exit(4);
  _exit(3);
}

/* The arguments pass through in registers: six words are more than any of these takes. */
#define TRAP(name)                                                     \
  long __real_##name(long a, long b, long c, long d, long e, long f);  \
  long __wrap_##name(long a, long b, long c, long d, long e, long f);  \
  long __wrap_##name(long a, long b, long c, long d, long e, long f) { \
    trap(#name);                                                       \
    return __real_##name(a, b, c, d, e, f);                            \
  }

TRAP(malloc)
TRAP(calloc)
TRAP(realloc)
TRAP(free)
TRAP(aligned_alloc)
TRAP(mmap)
TRAP(pthread_create)
TRAP(pthread_mutex_lock)
TRAP(open)
TRAP(fopen)
TRAP(dlopen)
TRAP(getenv)
TRAP(clock_gettime)
TRAP(sysconf)

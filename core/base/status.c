/* Names of the status codes, for messages and tests. The switch has no default, so that the
 * compiler warns about a code without a name. */
#include <birkhoff/status.h>

const char *bk_status_name(bk_status status) {
  switch (status) {
    case BK_OK: return "ok";
    case BK_ERR_ARGUMENT: return "argument";
    case BK_ERR_CONFIG: return "config";
    case BK_ERR_UNSUPPORTED: return "unsupported";
    case BK_ERR_NOT_FOUND: return "not found";
    case BK_ERR_MEMORY: return "memory";
    case BK_ERR_BUSY: return "busy";
    case BK_ERR_DEVICE: return "device";
    case BK_ERR_ABSENT: return "absent";
    case BK_ERR_ABI: return "abi";
    case BK_ERR_COMM: return "comm";
    case BK_ERR_IO: return "io";
    case BK_ERR_DATA: return "data";
    case BK_ERR_NOT_FINITE: return "not finite";
    case BK_ERR_BOUNDS: return "bounds";
    case BK_INTERRUPTED: return "interrupted";
  }
  return "unknown";
}

#define DIGITS(number) #number
#define TEXT(number) DIGITS(number)

const char *bk_version(void) {
  return TEXT(BK_VERSION_MAJOR) "." TEXT(BK_VERSION_MINOR) "." TEXT(BK_VERSION_PATCH);
}

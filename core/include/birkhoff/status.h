/* Status codes: every fallible function returns one; 0 is success. A code's hundred names the
 * recovery scope (who can do something about it). The function that first detects a failure logs
 * it once with the cause; callers only propagate. Outputs are written only on success. */
#ifndef BIRKHOFF_STATUS_H
#define BIRKHOFF_STATUS_H

/* In front of every function that the library exports. */
#ifndef BK_API
#define BK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum bk_status {
  BK_OK = 0,
  /* argument: the caller passed something wrong; a command exits with 2 */
  BK_ERR_ARGUMENT = 100,    /* a value outside its range, a NULL, a wrong shape or dtype */
  BK_ERR_CONFIG = 101,      /* a model or recipe configuration that cannot be honoured */
  BK_ERR_UNSUPPORTED = 102, /* no kernel on the device for this op, dtypes and shapes */
  BK_ERR_NOT_FOUND = 103,   /* a name that is not known (device, preset, key, tensor) */
  /* resource */
  BK_ERR_MEMORY = 200, /* an allocation failed or a limit was exceeded */
  BK_ERR_BUSY = 201,
  /* device */
  BK_ERR_DEVICE = 300, /* the device or its driver failed */
  BK_ERR_ABSENT = 301, /* a known backend whose device is not here (exit status 1; a test skips) */
  BK_ERR_ABI = 302,    /* a backend module of another ABI */
  /* comm */
  BK_ERR_COMM = 400,
  /* io: the operating system said no; exit status 1 */
  BK_ERR_IO = 500,
  /* data: files with contents that are wrong; exit status 2 */
  BK_ERR_DATA = 600,
  BK_ERR_NOT_FINITE = 601, /* a loss or gradient that is not finite; exit status 1 */
  BK_ERR_BOUNDS = 602,     /* a verification went past its bounds; exit status 1 */
  /* control */
  BK_INTERRUPTED = 700, /* stopped by request, state is whole */
} bk_status;

/* A short lower-case name, "ok", "argument", ...; never NULL. */
const char *bk_status_name(bk_status status);

/* Leaves the enclosing function when a call did not return BK_OK. */
#define BK_TRY(call)                                    \
  do {                                                  \
    bk_status bk_try_status_ = (call);                  \
    if (bk_try_status_ != BK_OK) return bk_try_status_; \
  } while (0)

#ifdef __cplusplus
}
#endif
#endif

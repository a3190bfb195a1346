/* Status codes. Every function that can fail returns one; 0 is success. A code's hundred says who
 * can do something about it; doc/embedding.md has a table of what to do. The function that first
 * notices a failure logs it once, with the cause, and its callers only pass the code on. Outputs
 * are written only on success. */
#ifndef BIRKHOFF_STATUS_H
#define BIRKHOFF_STATUS_H

#include <birkhoff/version.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum bk_status {
  BK_OK = 0,
  /* 100: the caller asked for something that cannot be */
  BK_ERR_ARGUMENT = 100,    /* a value out of its range, a wrong shape or dtype */
  BK_ERR_CONFIG = 101,      /* a model or a recipe that cannot be built */
  BK_ERR_UNSUPPORTED = 102, /* the device or the context lacks it: a kernel, a dtype, a clock */
  BK_ERR_NOT_FOUND = 103,   /* a name that is not known: of a device, preset, key or tensor */
  /* 200: resources */
  BK_ERR_MEMORY = 200, /* an allocation failed, or a limit was exceeded */
  BK_ERR_BUSY = 201,   /* in use: another run writes in the folder */
  /* 300: devices */
  BK_ERR_DEVICE = 300, /* the device or its driver failed */
  BK_ERR_ABSENT = 301, /* a known backend that has no such device here */
  BK_ERR_ABI = 302,    /* a backend built for another version, or with a hole in its tables */
  /* 400: communication */
  BK_ERR_COMM = 400, /* a group of processes failed */
  /* 500: the operating system refused to read or write */
  BK_ERR_IO = 500,
  /* 600: what files or results hold */
  BK_ERR_DATA = 600,       /* a file was read, and what it holds is wrong */
  BK_ERR_NOT_FINITE = 601, /* a loss, a gradient or a logit is not finite */
  BK_ERR_BOUNDS = 602,     /* results of two devices differ by more than they may */
  /* 700: no failure */
  BK_INTERRUPTED = 700, /* stopped on request; state is whole */
} bk_status;

/* A short name in small letters: "ok", "argument", ...; never NULL. */
BK_API const char *bk_status_name(bk_status status);

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

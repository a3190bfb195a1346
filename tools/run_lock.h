/* The lock on the folder of a run: held by the training run that writes there, by the kernel
 * (flock on FOLDER/.lock), so that it ends with the process, whatever ends it. The text in the
 * file says who it is, for the message to others; it never decides anything, and whoever only
 * reads the folder never looks at it. The file stays: to remove it would race with a run that
 * has just opened it. */
#ifndef BK_TOOLS_RUN_LOCK_H
#define BK_TOOLS_RUN_LOCK_H

#include "base/files.h"

/* Takes the lock of a folder that is there. *fd is to be closed when the run has ended.
 * BK_ERR_BUSY: another run has it. BK_ERR_IO: the file cannot be made, or locks of its file
 * system do not hold. */
bk_status run_lock_take(bk_context *ctx, const char *folder, int *fd);
/* Whether locks will hold in a folder that is yet to be made, as far as its file system's name
 * and options tell. */
bk_status run_lock_check(bk_context *ctx, const char *folder);

/* The file system that a descriptor is on, as the kernel names it. */
typedef struct run_lock_place {
  long mount; /* the number of the mount, or -1: not known */
  unsigned major, minor;
} run_lock_place;
/* Looks the mount up in the text of /proc/self/mountinfo, by its number, else the last one of
 * that device. True where it is a file system that other hosts share while it keeps locks to
 * this one; *why is then what to call it, "nfs4 mounted with nolock". */
bool run_lock_is_local(const char *mountinfo, const run_lock_place *place, char *why, size_t size);

#endif

/* A file system in memory that fails where a test wants it, and that can lose power.
 *
 * Calls are counted; the `fail_at`-th call of the kinds in `which` fails in the given way. A
 * crash keeps what a disk must keep and nothing more: a file's bytes as of its last sync, and,
 * with `names`, a folder's names as of its last sync_dir. */
#ifndef BK_TESTS_FAULT_FS_H
#define BK_TESTS_FAULT_FS_H

#include "base/base.h"

enum { /* kinds of calls */
       FAULT_OPEN_READ = 1 << 0,
       FAULT_OPEN_WRITE = 1 << 1,
       FAULT_READ = 1 << 2,
       FAULT_WRITE = 1 << 3,
       FAULT_SIZE = 1 << 4,
       FAULT_TRUNCATE = 1 << 5,
       FAULT_SYNC = 1 << 6,
       FAULT_CLOSE = 1 << 7,
       FAULT_MKDIR = 1 << 8,
       FAULT_RENAME = 1 << 9,
       FAULT_REMOVE = 1 << 10,
       FAULT_SYNC_DIR = 1 << 11,
       FAULT_LIST = 1 << 12,
       FAULT_KIND = 1 << 13,
       FAULT_CHANGES = FAULT_OPEN_WRITE | FAULT_WRITE | FAULT_TRUNCATE | FAULT_SYNC | FAULT_CLOSE |
                       FAULT_MKDIR | FAULT_RENAME | FAULT_REMOVE | FAULT_SYNC_DIR,
       FAULT_LOOKS = FAULT_OPEN_READ | FAULT_READ | FAULT_SIZE | FAULT_LIST | FAULT_KIND
};

typedef struct fault_node fault_node;
typedef struct fault_fs {
  unsigned which;       /* kinds that are counted */
  int seen, fail_at;    /* 0: none fails */
  int error;            /* errno value of the failure */
  bool is_short;        /* reads and writes move half and report it, without an error */
  bool dead;            /* all calls after the failing one fail too, of whatever kind */
  unsigned failed_kind; /* of the call that failed first; 0: none did */
  char failed_path[512];
  fault_node *root, *all;
} fault_fs;

void fault_fs_open(fault_fs *fs);  /* one empty folder, where relative paths begin */
void fault_fs_close(fault_fs *fs); /* frees everything */
bk_fs fault_fs_table(fault_fs *fs);
void fault_fs_arm(fault_fs *fs, unsigned which, int fail_at, int error);
void fault_fs_disarm(fault_fs *fs); /* nothing fails; what failed is still said */
void fault_fs_crash(fault_fs *fs, bool names);

#endif

/* The lock on the folder of a run: what the table of mounts says of a file system; taking,
 * refusing, letting go. */
#include "tests/unit/unit.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/run_lock.h"

#define ROOT "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"

/* The line at mount 40, device 0:50, between others; NULL: its locks hold. */
static void expect_line(const char *line, const char *want) {
  static const run_lock_place by_number = {40, 0, 0}, by_device = {-1, 0, 50};
  char text[1024], why[64] = "";
  snprintf(text, sizeof text,
           ROOT
           "39 27 0:49 / /a rw shared:1 - nfs4 host:/x rw,local_lock=all\n%s\n41 27 0:51 / /b rw - "
           "fuse.sshfs me@host: rw\n",
           line);
  for (int i = 0; i < 2; i++) {
    bool local = run_lock_is_local(text, i ? &by_device : &by_number, why, sizeof why);
    ck_assert_msg(local == (want != NULL), "%s: %s", line, why);
    if (want) ck_assert_str_eq(why, want);
  }
}

START_TEST(file_systems) {
  expect_line("40 27 0:50 / /m rw,relatime - ext4 /dev/vdb rw", NULL);
  expect_line("40 27 0:50 / /m rw,relatime shared:3 master:1 - xfs /dev/vdb rw,nolock", NULL);
  expect_line("40 27 0:50 / /m rw - nfs4 host:/x rw,vers=4.2,hard,local_lock=none,addr=1.2.3.4",
              NULL);
  expect_line("40 27 0:50 / /m rw - nfs4 host:/x rw,vers=4.2,local_lock=posix,addr=1.2.3.4", NULL);
  expect_line("40 27 0:50 / /m rw - nfs4 host:/x rw,vers=4.2,local_lock=flock,addr=1.2.3.4",
              "nfs4 mounted with local_lock=flock");
  expect_line("40 27 0:50 / /m rw - nfs host:/x rw,vers=3,nolock,addr=1.2.3.4,local_lock=all",
              "nfs mounted with nolock");
  expect_line("40 27 0:50 / /m rw,local_lock=all propagate_from:2 - nfs host:/x rw,vers=3",
              "nfs mounted with local_lock=all");
  expect_line("40 27 0:50 / /m rw - nfs host:/nolock rw,vers=3,xnolock,nolocks", NULL);
  expect_line("40 27 0:50 / /m rw - cifs //host/x rw,vers=3.0,nobrl", "cifs mounted with nobrl");
  expect_line("40 27 0:50 / /m rw - smb3 //host/x nobrl,rw", "smb3 mounted with nobrl");
  expect_line("40 27 0:50 / /m rw - cifs //host/x rw,vers=3.0,brl", NULL);
  expect_line("40 27 0:50 / /m rw - lustre 1.2.3.4@tcp:/x rw,localflock,lazystatfs",
              "lustre mounted with localflock");
  expect_line("40 27 0:50 / /m rw - lustre 1.2.3.4@tcp:/x rw,flock", NULL);
  expect_line("40 27 0:50 / /m rw - fuse.sshfs me@host:/x rw,user_id=0", "fuse.sshfs");
  expect_line("40 27 0:50 / /m rw - fuse.gcsfuse bucket rw", "fuse.gcsfuse");
  expect_line("40 27 0:50 / /m rw - fuse gcsfuse rw", "fuse.gcsfuse");
  expect_line("40 27 0:50 / /m rw - fuse mountpoint-s3 rw", "fuse.mountpoint-s3");
  expect_line("40 27 0:50 / /m rw - fuse.rclone remote: rw", "fuse.rclone");
  expect_line("40 27 0:50 / /m rw - fuse.glusterfs host:/v rw", NULL);
  expect_line("40 27 0:50 / /m rw - fuse.sshfsx x rw", NULL);
  expect_line("40 27 0:50 / /m rw - fuseblk /dev/sdb rw", NULL);
  expect_line("40 27 0:50 /a\\040b /my\\040place rw - nfs4 host:/x rw,nolock",
              "nfs4 mounted with nolock");
}
END_TEST

START_TEST(tables) {
  static const run_lock_place at40 = {40, 0, 50}, none = {-1, 9, 9}, device = {-1, 0, 50};
  static const char *const garbage[] = {"",
                                        "\n",
                                        "\n\n\n",
                                        "40",
                                        "40 27 0:50",
                                        "40 27 0:50 / /m rw",
                                        "40 27 0:50 / /m rw -",
                                        "40 27 0:50 / /m rw - ",
                                        "40 27 0:50 / /m rw - nfs",
                                        "x 27 0:50 / /m rw - nfs h rw,nolock",
                                        "40 27 050 / /m rw - nfs h rw,nolock",
                                        "- - - - - - -\n",
                                        "40 27 0:50 / /m nolock nolock nolock\n"};
  char why[64];
  for (size_t i = 0; i < BK_COUNT(garbage); i++)
    ck_assert_msg(!run_lock_is_local(garbage[i], &at40, why, sizeof why), "%s", garbage[i]);
  ck_assert(
      !run_lock_is_local(ROOT "40 27 0:50 / /m rw - nfs h rw,nolock\n", &none, why, sizeof why));
  /* one over another on the same device: the last one is on top */
  ck_assert(
      run_lock_is_local("39 27 0:50 / /m rw - nfs h rw\n40 27 0:50 / /m rw - nfs h rw,nolock\n",
                        &device, why, sizeof why));
  ck_assert(
      !run_lock_is_local("39 27 0:50 / /m rw - nfs h rw,nolock\n40 27 0:50 / /m rw - nfs h rw\n",
                         &device, why, sizeof why));
  /* no end of line */
  ck_assert(run_lock_is_local("40 27 0:50 / /m rw - nfs h rw,nolock", &at40, why, sizeof why));
  ck_assert_str_eq(why, "nfs mounted with nolock");
  ck_assert(run_lock_is_local("40 27 0:50 / /m rw - nfs h rw,nolock", &at40, why, 4)); /* no room */
  ck_assert_str_eq(why, "nfs");
}
END_TEST

START_TEST(take_and_let_go) {
  int fd = -1, other = -1;
  ck_assert_int_eq(run_lock_take(ctx, unit_folder, &fd), BK_OK);
  ck_assert_int_ge(fd, 3);
  ck_assert_int_eq(run_lock_take(ctx, unit_folder, &other), BK_ERR_BUSY);
  unit_expect("is in use by another run (host ");
  ck_assert_int_eq(other, -1);
  close(fd);
  ck_assert_int_eq(run_lock_take(ctx, unit_folder, &fd), BK_OK);
  close(fd);
  ck_assert(bk_path_exists(ctx, unit_path(".lock")));
  ck_assert_int_eq(run_lock_take(ctx, unit_path("nowhere"), &fd), BK_ERR_IO);
  unit_expect("No such file");
}
END_TEST

START_TEST(gone_with_its_process) {
  int fd = -1, ready[2];
  char byte;
  ck_assert_int_eq(pipe(ready), 0);
  pid_t pid = fork();
  if (pid == 0) {
    if (run_lock_take(ctx, unit_folder, &fd) == BK_OK && write(ready[1], "x", 1) == 1) pause();
    _exit(1);
  }
  ck_assert_int_eq(read(ready[0], &byte, 1), 1);
  ck_assert_int_eq(run_lock_take(ctx, unit_folder, &fd), BK_ERR_BUSY);
  char want[64];
  snprintf(want, sizeof want, "process %ld)", (long)pid);
  unit_expect(want);
  kill(pid, SIGKILL);
  ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
  ck_assert_int_eq(run_lock_take(ctx, unit_folder, &fd), BK_OK);
  close(fd);
  close(ready[0]);
  close(ready[1]);
}
END_TEST

START_TEST(folders_to_be_made) {
  static const char *const names[] = {"", ".", "/", "a", "a/b/c", "/a/b", "//a//b//", "../x/y"};
  for (size_t i = 0; i < BK_COUNT(names); i++)
    ck_assert_int_eq(run_lock_check(ctx, names[i]), BK_OK);
  ck_assert_int_eq(run_lock_check(ctx, unit_path("new/deep")), BK_OK);
  ck_assert(!bk_path_exists(ctx, unit_path("new")));
}
END_TEST

UNIT_MAIN("run_lock", unit_folder_open, unit_folder_close, file_systems, tables, take_and_let_go,
          gone_with_its_process, folders_to_be_made)

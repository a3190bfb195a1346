/* Limits of control groups, read from file trees made for each test. */
#include "tests/unit/unit.h"

#define V2 "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_CPU \
  "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 master:3 - cgroup cgroup rw,cpu,cpuacct\n"
#define V1_MEMORY "34 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
#define OTHER                                                                                  \
  "22 27 0:21 / /proc rw,relatime - proc proc rw\n27 1 254:0 / / rw,relatime - ext4 /dev/vda " \
  "rw,discard\n"
#define MIB ((size_t)1 << 20)

/* root/PATH with that text; folders are made. */
static void put(const char *path, const char *text) {
  char whole[1024];
  snprintf(whole, sizeof whole, "%s/%s", unit_folder, path);
  *strrchr(whole, '/') = '\0';
  ck_assert_int_eq(bk_mkdirs(ctx, whole), BK_OK);
  whole[strlen(whole)] = '/';
  FILE *file = fopen(whole, "w");
  ck_assert_ptr_nonnull(file);
  ck_assert_int_ge(fputs(text, file), 0);
  ck_assert_int_eq(fclose(file), 0);
}

static void tables(const char *groups, const char *mounts) {
  put("proc/self/cgroup", groups);
  put("proc/self/mountinfo", mounts);
}

static void expect_memory(size_t free_bytes, size_t total_bytes) {
  size_t f = 900 * MIB, t = 1000 * MIB; /* the machine's */
  bk_cgroup_memory(unit_folder, &f, &t);
  ck_assert_uint_eq(f, free_bytes);
  ck_assert_uint_eq(t, total_bytes);
}

START_TEST(nothing_there) {
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 16);
  expect_memory(900 * MIB, 1000 * MIB);
  tables("0::/a\n", OTHER);
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 16);
  tables("0::/a\n", OTHER V2); /* mounted, and none of its files are there */
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 16);
  expect_memory(900 * MIB, 1000 * MIB);
}
END_TEST

START_TEST(v2_quotas) {
  static const struct {
    const char *text;
    int cpus;
  } cases[] = {{"max 100000\n", 16},      {"max\n", 16},
               {"200000 100000\n", 2},    {"200001 100000\n", 3},
               {"1000 100000\n", 1},      {"1 1000000\n", 1},
               {"150000\n", 2},           {"150000", 2},
               {"10000000 100000\n", 16}, {"18446744073709551615 1\n", 16}};
  tables("0::/a/b\n", OTHER V2);
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    put("sys/fs/cgroup/a/b/cpu.max", cases[i].text);
    ck_assert_msg(bk_cgroup_cpus(unit_folder, 16) == cases[i].cpus, "%s", cases[i].text);
  }
}
END_TEST

START_TEST(v2_ancestors_count) {
  tables("1:name=systemd:/x\n0::/a/b/c\n", V2);
  put("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n");
  put("sys/fs/cgroup/a/b/cpu.max", "350000 100000\n");
  put("sys/fs/cgroup/a/cpu.max", "900000 100000\n");
  put("sys/fs/cgroup/ab/cpu.max", "100000 100000\n"); /* a sibling with a name that begins alike */
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 4);
  put("sys/fs/cgroup/a/b/c/memory.max", "max\n");
  put("sys/fs/cgroup/a/b/memory.max", "209715200\n"); /* 200 MiB */
  put("sys/fs/cgroup/a/b/memory.current", "104857600\n");
  put("sys/fs/cgroup/a/memory.max", "314572800\n"); /* 300 MiB, and less of them left */
  put("sys/fs/cgroup/a/memory.current", "293601280\n");
  expect_memory(20 * MIB, 200 * MIB);
}
END_TEST

START_TEST(v2_memory) {
  tables("0::/job\n", V2);
  put("sys/fs/cgroup/job/memory.max", "max\n");
  put("sys/fs/cgroup/job/memory.current", "104857600\n");
  expect_memory(900 * MIB, 1000 * MIB);
  put("sys/fs/cgroup/job/memory.max", "419430400\n"); /* 400 MiB, 100 of them used */
  expect_memory(300 * MIB, 400 * MIB);
  put("sys/fs/cgroup/job/memory.stat",
      "anon 1\nactive_file 20971520\ninactive_file 31457280\nslab 5\n");
  expect_memory(330 * MIB, 400 * MIB);
  put("sys/fs/cgroup/job/memory.stat", "inactive_file 999999999999\n"); /* more than is used */
  expect_memory(400 * MIB, 400 * MIB);
  put("sys/fs/cgroup/job/memory.stat", "inactive_file 0\n");
  put("sys/fs/cgroup/job/memory.current", "999999999999\n");
  expect_memory(0, 400 * MIB);
  put("sys/fs/cgroup/job/memory.max", "9999999999999\n"); /* more than the machine has */
  put("sys/fs/cgroup/job/memory.current", "1048576\n");
  expect_memory(900 * MIB, 1000 * MIB);
}
END_TEST

START_TEST(v1_limits) {
  tables("9:memory:/job\n3:cpuacct,cpu:/job/part\n2:cpuset:/\n", OTHER V1_CPU V1_MEMORY);
  put("sys/fs/cgroup/cpu,cpuacct/job/part/cpu.cfs_quota_us", "-1\n");
  put("sys/fs/cgroup/cpu,cpuacct/job/part/cpu.cfs_period_us", "100000\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 16);
  put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n");
  put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "50000\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 5);
  put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
  put("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "104857600\n");
  expect_memory(900 * MIB, 1000 * MIB);
  put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "209715200\n");
  put("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 99\ntotal_inactive_file 10485760\n");
  expect_memory(110 * MIB, 200 * MIB);
}
END_TEST

/* version 2 without controllers, limits in version 1; and the other way round for memory */
START_TEST(hybrid) {
  tables("4:memory:/m\n3:cpu:/c\n0::/u\n",
         V1_CPU V1_MEMORY "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  put("sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us", "300000\n");
  put("sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n");
  put("sys/fs/cgroup/unified/u/cgroup.procs", "1\n");
  put("sys/fs/cgroup/unified/u/memory.max", "104857600\n");
  put("sys/fs/cgroup/unified/u/memory.current", "0\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 3);
  expect_memory(100 * MIB, 100 * MIB);
}
END_TEST

START_TEST(containers) {
  /* a namespace of its own: the limits lie at the top */
  tables("0::/\n", V2);
  put("sys/fs/cgroup/cpu.max", "200000 100000\n");
  put("sys/fs/cgroup/memory.max", "104857600\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 2);
  expect_memory(100 * MIB, 100 * MIB);
  /* none, and only the container's part is mounted: the path is the host's */
  tables("3:cpu:/docker/0123\n",
         "33 31 0:29 /docker/0123 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n");
  put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n");
  put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 3);
  /* a group below the container's */
  tables("3:cpu:/docker/0123/job\n",
         "33 31 0:29 /docker/0123 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n");
  put("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "100000\n");
  put("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 1);
  /* paths that the mount does not show: its top */
  static const char *const unseen[] = {
      "3:cpu:/elsewhere\n", "3:cpu:/../../other\n", "3:cpu:/docker/0123456\n",
      "3:cpu:/docker/0123/gone (deleted)\n", "3:cpu:/docker/0123/../job\n"};
  for (size_t i = 0; i < BK_COUNT(unseen); i++) {
    tables(unseen[i], "33 31 0:29 /docker/0123 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n");
    ck_assert_msg(bk_cgroup_cpus(unit_folder, 16) == 3, "%s", unseen[i]);
  }
  /* a second mount that shows the group is better than a first one that does not */
  tables("3:cpu:/job\n",
         "33 31 0:29 /docker/0123 /mnt/part ro - cgroup cgroup rw,cpu\n34 31 0:29 / /mnt/all ro - "
         "cgroup cgroup rw,cpu\n");
  put("mnt/part/cpu.cfs_quota_us", "100000\n");
  put("mnt/part/cpu.cfs_period_us", "100000\n");
  put("mnt/all/job/cpu.cfs_quota_us", "700000\n");
  put("mnt/all/job/cpu.cfs_period_us", "100000\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 7);
}
END_TEST

START_TEST(odd_names) { /* colons and blanks in a group's name, blanks in the place of the mount */
  tables("0::/user slice/a:b\n", "30 23 0:26 / /my\\040groups\\134x rw - cgroup2 cgroup2 rw\n");
  put("my groups\\x/user slice/a:b/cpu.max", "200000 100000\n");
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 2);
}
END_TEST

START_TEST(garbage) {
  static const char *const numbers[] = {"",
                                        "\n",
                                        "abc\n",
                                        "-5\n",
                                        "-5 100000\n",
                                        "0 100000\n",
                                        "100000 0\n",
                                        "100000 x\n",
                                        "100000 100000 1\n",
                                        "99999999999999999999999 100000\n",
                                        "100000 99999999999999999999999\n",
                                        " 100000 100000\n",
                                        "0x10 1\n",
                                        "1e5 100000\n"};
  tables("0::/a\n", V2);
  put("sys/fs/cgroup/a/memory.current", "garbage\n");
  put("sys/fs/cgroup/a/memory.stat", "inactive_file\ninactive_file x\ninactive_file 5 6\n");
  for (size_t i = 0; i < BK_COUNT(numbers); i++) {
    put("sys/fs/cgroup/a/cpu.max", numbers[i]);
    put("sys/fs/cgroup/a/memory.max", numbers[i]);
    ck_assert_msg(bk_cgroup_cpus(unit_folder, 16) == 16, "%s", numbers[i]);
    expect_memory(900 * MIB, 1000 * MIB);
  }
  put("sys/fs/cgroup/a/memory.max", "104857600\n"); /* a limit alone counts */
  expect_memory(100 * MIB, 100 * MIB);
}
END_TEST

START_TEST(garbage_in_tables) {
  static const char *const groups[] = {"",       "\n",    ":::\n",         "0\n",
                                       "0:\n",   "0::\n", "0::a\n",        "x::/a\n",
                                       "::/a\n", "0::/a", "3:cpu\n0::/a\n"};
  static const char *const mounts[] = {"",
                                       "\n",
                                       "a b c\n",
                                       "30 23 0:26 / /sys/fs/cgroup rw\n",
                                       "30 23 0:26 / /sys/fs/cgroup rw -\n",
                                       "30 23 0:26 / /sys/fs/cgroup rw - cgroup2\n",
                                       "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 x\n",
                                       "- - - - - - - - -\n",
                                       "30 23 0:26 / relative rw - cgroup2 cgroup2 rw\n"};
  put("sys/fs/cgroup/a/cpu.max", "200000 100000\n");
  for (size_t i = 0; i < BK_COUNT(groups); i++) {
    tables(groups[i], V2);
    int cpus = bk_cgroup_cpus(unit_folder, 16);
    ck_assert_msg(cpus == (i < 9 ? 16 : 2), "%s: %d", groups[i], cpus);
  }
  for (size_t i = 0; i < BK_COUNT(mounts); i++) {
    tables("0::/a\n", mounts[i]);
    ck_assert_msg(bk_cgroup_cpus(unit_folder, 16) == 16, "%s", mounts[i]);
  }
}
END_TEST

/* passed over, those around them are not; a path too long to follow is no limit */
START_TEST(long_lines) {
  char *line = bk_alloc(ctx, 40000);
  put("sys/fs/cgroup/cpu.max", "200000 100000\n");
  for (int size = 1000; size <= 20000; size += 997) {
    memset(line, 'x', (size_t)size);
    strcpy(line + size, "\n" V2);
    tables("0::/\n", line);
    ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 2);
  }
  strcpy(line, "0::/");
  memset(line + 4, 'y', 30000);
  strcpy(line + 30004, "\n");
  tables(line, V2);
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 16);
  strcpy(line + 900, "\n"); /* fits, and there is no such folder: the top */
  tables(line, V2);
  ck_assert_int_eq(bk_cgroup_cpus(unit_folder, 16), 2);
  bk_free(ctx, line);
}
END_TEST

UNIT_MAIN("cgroup", unit_folder_open, unit_folder_close, nothing_there, v2_quotas,
          v2_ancestors_count, v2_memory, v1_limits, hybrid, containers, odd_names, garbage,
          garbage_in_tables, long_lines)

/* What the unit tests share: a context whose messages are kept, so that one that a test did not
 * expect fails it, and so does a leak. Every test case uses unit_open and unit_close as its
 * checked fixture. */
#ifndef BK_TESTS_UNIT_H
#define BK_TESTS_UNIT_H

#include "base/base.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_context *ctx;
static char unit_messages[8192]; /* warnings and errors that no unit_expect has taken */
static char unit_folder[256];

static BK_UNUSED void unit_log(void *user, bk_log_level level, const char *message) {
  (void)user;
  if (level > BK_LOG_WARN) return;
  size_t used = strlen(unit_messages);
  snprintf(unit_messages + used, sizeof unit_messages - used, "%s: %s\n",
           level == BK_LOG_ERROR ? "error" : "warning", message);
}

static BK_UNUSED void unit_open(void) {
  bk_context_options options = {.log = unit_log, .log_level = BK_LOG_TRACE};
  unit_messages[0] = '\0';
  ck_assert_int_eq(bk_context_create(&options, &ctx), BK_OK);
}

static BK_UNUSED void unit_close(void) {
  bk_context_destroy(ctx); /* warns of a leak */
  ctx = NULL;
  ck_assert_msg(unit_messages[0] == '\0', "unexpected messages:\n%s", unit_messages);
}

/* The messages since the last call must hold `part` (NULL: there must be none); they are then
 * forgotten. */
static BK_UNUSED void unit_expect(const char *part) {
  if (part)
    ck_assert_msg(strstr(unit_messages, part) != NULL, "expected \"%s\" in:\n%s", part,
                  unit_messages);
  else ck_assert_msg(unit_messages[0] == '\0', "unexpected messages:\n%s", unit_messages);
  unit_messages[0] = '\0';
}

/* Errors among the messages since the last unit_expect. */
static BK_UNUSED int unit_errors(void) {
  int count = 0;
  for (const char *at = unit_messages; (at = strstr(at, "error: ")); at++)
    count += at == unit_messages || at[-1] == '\n';
  return count;
}

static BK_UNUSED void unit_folder_open(void) {
  const char *base = getenv("TMPDIR");
  unit_open();
  snprintf(unit_folder, sizeof unit_folder, "%s/birkhoff-unit-XXXXXX",
           base && *base ? base : "/tmp");
  ck_assert_ptr_nonnull(mkdtemp(unit_folder));
}

static BK_UNUSED void unit_folder_close(void) {
  ck_assert_int_eq(bk_remove_tree(ctx, unit_folder), BK_OK);
  unit_close();
}

/* "FOLDER/name"; valid until four more calls. */
static BK_UNUSED const char *unit_path(const char *name) {
  static char paths[4][1024];
  static int turn;
  char *path = paths[turn++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", unit_folder, name);
  return path;
}

static BK_UNUSED void unit_case(Suite *suite, const char *name, SFun setup, SFun teardown,
                                const TTest *const *tests, size_t n) {
  TCase *tcase = tcase_create(name);
  tcase_set_timeout(tcase, 120);
  tcase_add_checked_fixture(tcase, setup, teardown);
  for (size_t i = 0; i < n; i++) tcase_add_test(tcase, tests[i]);
  suite_add_tcase(suite, tcase);
}

static BK_UNUSED int unit_run(Suite *suite) {
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* One test case of all `tests`, run as the whole program. */
#define UNIT_MAIN(name, setup, teardown, ...)                        \
  int main(void) {                                                   \
    const TTest *const tests[] = {__VA_ARGS__};                      \
    Suite *suite = suite_create(name);                               \
    unit_case(suite, name, setup, teardown, tests, BK_COUNT(tests)); \
    return unit_run(suite);                                          \
  }

#endif

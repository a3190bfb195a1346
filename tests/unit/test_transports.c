/* The list of transports: names, and modules that are loaded when they are asked for. A module of
 * another ABI, with holes, under another name, or a file that is none is refused with its reason,
 * and a good one that comes later is taken. The modules are module_transport_N.so in the folder
 * MODULE_DIR, or in tests/unit/.libs of the build folder. */
#include "tests/unit/unit.h"

#include "comm/transport.h"
#include "runtime/backend.h"

#include <unistd.h>

#define SKIPPED 77

static char module_dir[512];
static bk_transport_report reports[8];
static int n_reports;

static bk_status keep(void *user, const bk_transport_report *report) {
  (void)user;
  ck_assert_int_lt(n_reports, (int)BK_COUNT(reports));
  reports[n_reports++] = *report;
  return BK_OK;
}

static const bk_transport_report *report_of(const char *name) {
  n_reports = 0;
  ck_assert_int_eq(bk_transports(ctx, keep, NULL), BK_OK);
  for (int i = 0; i < n_reports; i++)
    if (strcmp(reports[i].name, name) == 0) return &reports[i];
  ck_abort_msg("no report of %s", name);
  return NULL;
}

static void install(const char *from_name) {
  char from[1024], *data = NULL;
  size_t bytes = 0;
  snprintf(from, sizeof from, "%s/%s", module_dir, from_name);
  ck_assert_int_eq(bk_file_read_all(ctx, from, 16 << 20, &data, &bytes), BK_OK);
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("birkhoff_comm_mpi.so"), data, bytes),
                   BK_OK);
  bk_free(ctx, data);
}

/* Asked by name it is an error, in the list a line; both with the reason. */
static void expect_refused(bk_status status, const char *reason) {
  const bk_transport *transport = NULL;
  ck_assert_int_eq(bk_transport_find(ctx, "mpi", &transport), status);
  ck_assert_ptr_null(transport);
  unit_expect(reason);
  const bk_transport_report *r = report_of("mpi");
  ck_assert(!r->usable);
  ck_assert_ptr_nonnull(strstr(r->reason, reason));
  ck_assert_str_eq(r->description, "");
  unit_expect(NULL);
}

START_TEST(names) {
  const bk_transport *transport = NULL;
  ck_assert_str_eq(bk_transport_name(0), "self");
  int n = 0;
  while (bk_transport_name(n)) n++;
  ck_assert_str_eq(bk_transport_name(n - 1), "mpi");
  ck_assert_int_eq(bk_transport_find(ctx, "self", &transport), BK_OK);
  ck_assert_ptr_null(transport);
  ck_assert(report_of("self")->usable);
  ck_assert_int_eq(n_reports, n);
  ck_assert_int_eq(bk_transport_find(ctx, "tcp", &transport), BK_ERR_NOT_FOUND);
  unit_expect("there is no transport \"tcp\"; transports are: self");
}
END_TEST

static bk_status stop(void *user, const bk_transport_report *report) {
  (void)report;
  ++*(int *)user;
  return BK_INTERRUPTED;
}

START_TEST(listing_ends_with_the_callers_status) {
  int calls = 0;
  ck_assert_int_eq(bk_transports(ctx, stop, &calls), BK_INTERRUPTED);
  ck_assert_int_eq(calls, 1);
}
END_TEST

START_TEST(embedded_contexts_load_no_module) {
  bk_context *embedded = NULL;
  bk_transport_report *r = NULL;
  ck_assert_int_eq(
      bk_context_create_embedded(
          &(bk_context_options){.log = unit_log, .allocator = &bk_allocator_libc}, &embedded),
      BK_OK);
  n_reports = 0;
  ck_assert_int_eq(bk_transports(embedded, keep, NULL), BK_OK);
  for (int i = 0; i < n_reports; i++)
    if (strcmp(reports[i].name, "mpi") == 0) r = &reports[i];
  ck_assert(r && !r->usable);
  ck_assert_ptr_nonnull(strstr(r->reason, "a context without an operating system"));
  bk_context_destroy(embedded);
}
END_TEST

/* One test: a module that was taken stays. */
START_TEST(modules) {
  const bk_transport *transport = NULL, *again = NULL;
  char abi[80];
  ck_assert_int_eq(setenv("BIRKHOFF_BACKEND_DIR", unit_folder, 1), 0);
#ifdef HAVE_MPI
  expect_refused(BK_ERR_ABSENT, "birkhoff_comm_mpi.so is not installed in ");
#else
  expect_refused(BK_ERR_ABSENT, "this build has no MPI (configure --with-mpi)");
#endif
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("birkhoff_comm_mpi.so"), "not a module", 12),
                   BK_OK);
  expect_refused(BK_ERR_ABSENT, "birkhoff_comm_mpi.so");
  install("module_good.so");
  expect_refused(BK_ERR_ABI, "it does not export bk_transport_module");
  for (int i = 1; i <= 3; i++) {
    char name[40];
    snprintf(name, sizeof name, "module_transport_%d.so", i);
    install(name);
    expect_refused(BK_ERR_ABI, "its table has a hole");
  }
  install("module_transport_4.so");
  expect_refused(BK_ERR_ABI, "it gives the transport other and not mpi");
  install("module_transport_5.so");
  snprintf(abi, sizeof abi, "it was built for ABI %u of transports", BK_COMM_ABI + 1);
  expect_refused(BK_ERR_ABI, abi);
  install("module_transport_6.so");
  expect_refused(BK_ERR_ABI, "its bk_transport_module returns NULL");
  install("module_transport_0.so");
  ck_assert_int_eq(bk_transport_find(ctx, "mpi", &transport), BK_OK);
  ck_assert_ptr_nonnull(transport);
  ck_assert_str_eq(report_of("mpi")->description, "a module for tests");
  /* backends are loaded from the same folder, and this is none */
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_loader_refused_count(), 0);
  ck_assert_int_eq(unlink(unit_path("birkhoff_comm_mpi.so")), 0);
  ck_assert_int_eq(bk_transport_find(ctx, "mpi", &again), BK_OK);
  ck_assert_ptr_eq(again, transport);
}
END_TEST

static bool find_modules(void) {
  const char *set = getenv("MODULE_DIR"), *build = getenv("TOP_BUILDDIR");
  if (set) snprintf(module_dir, sizeof module_dir, "%s", set);
  else snprintf(module_dir, sizeof module_dir, "%s/tests/unit/.libs", build ? build : ".");
  char path[1024];
  snprintf(path, sizeof path, "%s/module_transport_0.so", module_dir);
  return access(path, R_OK) == 0;
}

int main(void) {
  /* modules first: what is found stays, and without forks the others find what this build has */
  const TTest *const tests[] = {modules, names, listing_ends_with_the_callers_status,
                                embedded_contexts_load_no_module};
  if (!find_modules()) {
    printf("skipped: no loadable modules in %s\n", module_dir);
    return SKIPPED;
  }
  Suite *suite = suite_create("transports");
  unit_case(suite, "transports", unit_folder_open, unit_folder_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}

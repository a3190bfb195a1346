/* The transports that are known by name: those in the library and the loadable modules of this
 * project, birkhoff_comm_NAME.so beside the backends'. A module is loaded when it is asked for, and
 * stays loaded for good: MPI cannot begin twice in a process. One that is refused is unloaded. */
#include "comm/transport.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define REASON_MAX 256

/* ends with NULL */
static const bk_transport *const compiled_in[] = {&bk_transport_threads, NULL};
static const char *const modules[] = {"mpi"};
#define N_COMPILED_IN ((int)BK_COUNT(compiled_in) - 1)
#define N_MODULES ((int)BK_COUNT(modules))

const char *bk_transport_name(int i) {
  if (i == 0) return "self";
  if (i <= N_COMPILED_IN) return compiled_in[i - 1]->name;
  i -= 1 + N_COMPILED_IN;
  return i < N_MODULES ? modules[i] : NULL;
}

static const bk_transport *find_compiled_in(const char *name) {
  for (int i = 0; i < N_COMPILED_IN; i++)
    if (strcmp(compiled_in[i]->name, name) == 0) return compiled_in[i];
  return NULL;
}

/* The number of a module of this project, or -1. */
static int find_module(const char *name) {
  for (int i = 0; i < N_MODULES; i++)
    if (strcmp(modules[i], name) == 0) return i;
  return -1;
}

#ifdef HAVE_DLOPEN

#include <dlfcn.h>

#include "base/signals.h"

/* Behind another ABI number nothing is as this library expects, and no more is read. */
static bk_status verify(const bk_transport *t, const char *name, char *reason, size_t size) {
  if (!t) snprintf(reason, size, "its " BK_TRANSPORT_MODULE_SYMBOL " returns NULL");
  else if (t->abi != BK_COMM_ABI)
    snprintf(reason, size, "it was built for ABI %u of transports, this library has ABI %u",
             (unsigned)t->abi, BK_COMM_ABI);
  else if (!t->name || !t->probe || !t->open) snprintf(reason, size, "its table has a hole");
  else if (strcmp(t->name, name) != 0)
    snprintf(reason, size, "it gives the transport %.32s and not %s", t->name, name);
  else return BK_OK;
  return BK_ERR_ABI;
}

/* Entries are never removed: a wire may be open, and a pointer that was given out stays good
 * without the lock. */
static struct {
  pthread_mutex_t lock;
  const bk_transport *transports[BK_COUNT(modules)];
} loaded = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* See entry_of in core/runtime/loader.c. */
static bk_transport_module_fn entry_of(void *library) {
  void *symbol = dlsym(library, BK_TRANSPORT_MODULE_SYMBOL);
  bk_transport_module_fn entry;
  _Static_assert(sizeof entry == sizeof symbol,
                 "function pointers must have the size of object pointers");
  memcpy(&entry, &symbol, sizeof entry);
  return entry;
}

/* What a module needs is loaded with it, and may set handlers of signals and start threads. */
static void *open_library(bk_context *ctx, const char *path) {
  bk_signals kept;
  bk_signals_keep(&kept);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  bk_signals_restore(ctx, &kept);
  return library;
}

static bk_status load_file(bk_context *ctx, const char *path, const char *name,
                           const bk_transport **transport, char *reason, size_t size) {
  void *library = open_library(ctx, path);
  if (!library) {
    const char *cause = dlerror();
    snprintf(reason, size, "%s", cause ? cause : "dlopen failed");
    return BK_ERR_ABSENT;
  }
  bk_transport_module_fn entry = entry_of(library);
  const bk_transport *found = entry ? entry() : NULL;
  bk_status status = BK_ERR_ABI;
  if (!entry) snprintf(reason, size, "it does not export " BK_TRANSPORT_MODULE_SYMBOL);
  else status = verify(found, name, reason, size);
  if (status != BK_OK) dlclose(library);
  else *transport = found;
  return status;
}

/* A build with MPI has the module, so that it is then the installation that lacks it. */
static void say_missing(const char *file, const char *name, const char *folder, char *reason,
                        size_t size) {
#ifdef HAVE_MPI
  bool built = strcmp(name, "mpi") == 0;
#else
  bool built = false;
#endif
  if (!built && strcmp(name, "mpi") == 0)
    snprintf(reason, size, "this build has no MPI (configure --with-mpi)");
  else snprintf(reason, size, "%s is not installed in %.160s", file, folder);
}

static bk_status load_from(bk_context *ctx, const char *name, const bk_transport **transport,
                           char *reason, size_t size) {
  const char *asked = bk_context_environment(ctx, "BIRKHOFF_BACKEND_DIR");
  const char *folder = asked && *asked ? asked : BK_BACKEND_DIR;
  char file[64];
  snprintf(file, sizeof file, BK_TRANSPORT_FILE_PREFIX "%.32s.so", name);
  char *path = bk_path_join(ctx, folder, file);
  if (!path) return BK_ERR_MEMORY;
  bk_status status = BK_ERR_ABSENT;
  if (bk_path_exists(ctx, path)) status = load_file(ctx, path, name, transport, reason, size);
  else say_missing(file, name, folder, reason, size);
  if (status == BK_ERR_ABI) bk_debug(ctx, "module %s is refused: %s", path, reason);
  bk_free(ctx, path);
  return status;
}

static bk_status load(bk_context *ctx, int module, const bk_transport **transport, char *reason,
                      size_t size) {
  if (!ctx->os) {
    snprintf(reason, size, "a context without an operating system loads no modules");
    return BK_ERR_ABSENT;
  }
  pthread_mutex_lock(&loaded.lock);
  const bk_transport **entry = &loaded.transports[module];
  bk_status status = *entry ? BK_OK : load_from(ctx, modules[module], entry, reason, size);
  *transport = *entry;
  pthread_mutex_unlock(&loaded.lock);
  return status;
}

#else

static bk_status load(bk_context *ctx, int module, const bk_transport **transport, char *reason,
                      size_t size) {
  (void)ctx, (void)module, (void)transport;
  snprintf(reason, size, "this library was built without loadable modules");
  return BK_ERR_ABSENT;
}

#endif

/* The transport of a name that is known, once its probe has said that it can be used; why not is in
 * the report, without a message. */
static bk_status probe(bk_context *ctx, const char *name, const bk_transport **transport,
                       bk_transport_report *report) {
  const bk_transport *found = find_compiled_in(name);
  int module = find_module(name);
  bk_status status = BK_OK;
  *report = (bk_transport_report){.usable = false};
  snprintf(report->name, sizeof report->name, "%s", name);
  if (strcmp(name, "self") == 0)
    snprintf(report->description, sizeof report->description, "one rank alone");
  else if (!found && module >= 0)
    status = load(ctx, module, &found, report->reason, sizeof report->reason);
  if (status == BK_OK && found)
    status = found->probe(ctx, report->reason, sizeof report->reason, report->description,
                          sizeof report->description);
  report->usable = status == BK_OK;
  if (report->usable) report->reason[0] = '\0';
  else {
    report->description[0] = '\0';
    if (!report->reason[0]) snprintf(report->reason, sizeof report->reason, "no reason given");
  }
  *transport = report->usable ? found : NULL;
  return status;
}

static bk_status unknown_name(bk_context *ctx, const char *name) {
  char names[128] = "";
  const char *known;
  for (int i = 0; (known = bk_transport_name(i)) != NULL; i++) {
    size_t used = strlen(names);
    snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", known);
  }
  return bk_fail(ctx, BK_ERR_NOT_FOUND, "there is no transport \"%s\"; transports are: %s", name,
                 names);
}

bk_status bk_transport_find(bk_context *ctx, const char *name, const bk_transport **transport) {
  bk_transport_report report;
  const char *known;
  for (int i = 0; (known = bk_transport_name(i)) != NULL; i++) {
    if (strcmp(known, name) != 0) continue;
    bk_status status = probe(ctx, known, transport, &report);
    return status == BK_OK
               ? BK_OK
               : bk_fail(ctx, status, "transport %s cannot be used: %s", known, report.reason);
  }
  return unknown_name(ctx, name);
}

bk_status bk_transports(bk_context *ctx, bk_transport_fn each, void *user) {
  const char *name;
  for (int i = 0; (name = bk_transport_name(i)) != NULL; i++) {
    const bk_transport *transport;
    bk_transport_report report;
    if (probe(ctx, name, &transport, &report) == BK_ERR_MEMORY) return BK_ERR_MEMORY;
    BK_TRY(each(user, &report));
  }
  return BK_OK;
}

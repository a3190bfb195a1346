/* Backends as loadable modules: shared objects that export bk_backend_module (backend.h). A module
 * that has been registered stays loaded for good, since its devices and threads may be in use; one
 * that is refused is unloaded. A fault of a module is a warning, and is remembered for the command
 * `devices`; the program goes on with the backends that it has. */
#include "runtime/registry_priv.h"

#ifdef HAVE_DLOPEN

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODULE_PREFIX "birkhoff_"
#define TRANSPORT_PREFIX "birkhoff_comm_"
#define MODULE_SUFFIX ".so"

static bk_status refuse(bk_context *ctx, const char *path, bk_status status, const char *reason) {
  bk_warn(ctx, "module %s is refused: %s", path, reason);
  bk_registry_note_refused(path, reason);
  return status;
}

/* ISO C has no conversion from an object pointer to a function pointer; POSIX promises that the
 * bytes are the same. */
static bk_backend_module_fn entry_of(void *library) {
  void *symbol = dlsym(library, BK_BACKEND_MODULE_SYMBOL);
  bk_backend_module_fn entry;
  _Static_assert(sizeof entry == sizeof symbol,
                 "function pointers must have the size of object pointers");
  memcpy(&entry, &symbol, sizeof entry);
  return entry;
}

/* RTLD_LOCAL keeps the symbols of a module and of its driver from meeting those of another module.
 * RTLD_NOW makes a missing symbol an error here and not in the middle of a step. */
bk_status bk_loader_load(bk_context *ctx, const char *path) {
  char reason[BK_REASON_MAX];
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *cause = dlerror();
    return refuse(ctx, path, BK_ERR_IO, cause ? cause : "dlopen failed");
  }
  bk_backend_module_fn entry = entry_of(library);
  if (!entry) {
    dlclose(library);
    return refuse(ctx, path, BK_ERR_ABI, "it does not export " BK_BACKEND_MODULE_SYMBOL);
  }
  const bk_backend *backend = entry();
  bk_status status = bk_registry_add(backend, reason, sizeof reason);
  if (status != BK_OK) {
    dlclose(library);
    return refuse(ctx, path, status, reason);
  }
  bk_debug(ctx, "module %s gives backend %s", path, backend->name);
  return BK_OK;
}

/* Transports lie in the same folder; core/comm/transports.c loads them when they are asked for. */
static bool is_module(const char *name) {
  size_t length = strlen(name), suffix = strlen(MODULE_SUFFIX);
  return strncmp(name, MODULE_PREFIX, strlen(MODULE_PREFIX)) == 0 &&
         strncmp(name, TRANSPORT_PREFIX, strlen(TRANSPORT_PREFIX)) != 0 && length > suffix &&
         strcmp(name + length - suffix, MODULE_SUFFIX) == 0;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of names, so that the outcome does not depend on the file system. */
static bk_status load_list(bk_context *ctx, const char *folder, char **names, size_t count) {
  if (count) qsort(names, count, sizeof *names, by_name);
  for (size_t i = 0; i < count; i++) {
    if (!is_module(names[i])) continue;
    char *path = bk_path_join(ctx, folder, names[i]);
    if (!path) return BK_ERR_MEMORY;
    /* A bad module has been warned about and does not stop the others. */
    (void)bk_loader_load(ctx, path);
    bk_free(ctx, path);
  }
  return BK_OK;
}

/* The installed folder may be missing, since modules are optional. A folder that the user named in
 * BIRKHOFF_BACKEND_DIR may not, and is warned about. */
bk_status bk_loader_load_all(bk_context *ctx) {
  const char *asked = getenv("BIRKHOFF_BACKEND_DIR");
  const char *folder = asked && *asked ? asked : BK_BACKEND_DIR;
  char **names;
  size_t count;
  int error;
  BK_TRY(bk_folder_list(ctx, folder, &names, &count, &error));
  if (error < 0 && folder == asked)
    bk_warn(ctx, "BIRKHOFF_BACKEND_DIR: cannot list %s: %s", folder, strerror(-error));
  bk_status status = load_list(ctx, folder, names, count);
  bk_names_free(ctx, names, count);
  return status;
}

#else

bk_status bk_loader_load(bk_context *ctx, const char *path) {
  return bk_fail(ctx, BK_ERR_UNSUPPORTED,
                 "module %s: this library was built without loadable modules", path);
}

bk_status bk_loader_load_all(bk_context *ctx) {
  (void)ctx;
  return BK_OK;
}

#endif

/* Backends as loadable modules. A module stays loaded for good once it is registered. What a
 * module does wrong is a warning and is remembered for `devices`; the program goes on with the
 * backends that it has. */
#include "runtime/registry_priv.h"

#ifdef HAVE_DLOPEN

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODULE_PREFIX "birkhoff_"
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

typedef struct module_list {
  bk_context *ctx;
  char **names;
  size_t count, capacity;
  bk_status status;
} module_list;

static bool is_module(const char *name) {
  size_t length = strlen(name), suffix = strlen(MODULE_SUFFIX);
  return strncmp(name, MODULE_PREFIX, strlen(MODULE_PREFIX)) == 0 && length > suffix &&
         strcmp(name + length - suffix, MODULE_SUFFIX) == 0;
}

static void module_list_add(void *arg, const char *name) {
  module_list *list = arg;
  if (list->status != BK_OK || !is_module(name)) return;
  list->status =
      bk_grow(list->ctx, (void **)&list->names, &list->capacity, list->count + 1, sizeof(char *));
  if (list->status != BK_OK) return;
  char *copy = bk_strdup(list->ctx, name);
  if (copy) list->names[list->count++] = copy;
  else list->status = BK_ERR_MEMORY;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of names, so that the outcome does not depend on the file system. */
static bk_status load_list(module_list *list, const char *folder) {
  if (list->count) qsort(list->names, list->count, sizeof *list->names, by_name);
  for (size_t i = 0; i < list->count; i++) {
    char *path = list->status == BK_OK ? bk_path_join(list->ctx, folder, list->names[i]) : NULL;
    /* a bad module has been warned about and stops nobody */
    if (path) (void)bk_loader_load(list->ctx, path);
    else if (list->status == BK_OK) list->status = BK_ERR_MEMORY;
    bk_free(list->ctx, path);
    bk_free(list->ctx, list->names[i]);
  }
  bk_free(list->ctx, list->names);
  return list->status;
}

bk_status bk_loader_load_all(bk_context *ctx) {
  const char *asked = getenv("BIRKHOFF_BACKEND_DIR");
  const char *folder = asked && *asked ? asked : BK_BACKEND_DIR;
  module_list list = {.ctx = ctx, .status = BK_OK};
  int rc = ctx->fs.list(ctx->fs.user, folder, module_list_add, &list);
  if (rc < 0 && folder == asked)
    bk_warn(ctx, "BIRKHOFF_BACKEND_DIR: cannot list %s: %s", folder, strerror(-rc));
  return load_list(&list, folder);
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

/* The process's list of backends: the only mutable global of the library. Entries are never
 * removed and never changed, because a device or a worker thread may still be using them; a
 * pointer that was given out stays good without the lock.
 *
 * There are two locks. `lock` guards the lists and is held for a moment only. `init_lock` is held
 * while the compiled-in backends and the modules are registered, which takes `lock` in turn: two
 * threads that open a device at the same time both wait for the whole list. */
#include "runtime/registry_priv.h"

#include "base/signals.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define BACKENDS_MAX 16
#define REFUSED_MAX 16

/* Compiled-in backends. A new one adds its line here. */
#ifdef BK_STATIC_BACKEND /* bk_backend_NAME, linked in rather than loaded: tools/gpu-check.sh */
extern const bk_backend BK_STATIC_BACKEND;
#endif
static const bk_backend *const compiled_in[] = {
    &bk_backend_ref,
    &bk_backend_cpu,
#ifdef BK_STATIC_BACKEND
    &BK_STATIC_BACKEND,
#endif
};
/* Those of them that any machine has, the fast one first: what other devices fall back on. */
static const bk_backend *const hosts[] = {&bk_backend_cpu, &bk_backend_ref};
/* Backends of this project that are modules: where one is not installed, its devices are absent
 * and their names are not wrong. */
static const char *const modules[] = {"cuda", "opencl", "vulkan"};

static struct {
  pthread_mutex_t lock;      /* guards the lists */
  pthread_mutex_t init_lock; /* held while bk_registry_init runs */
  pthread_mutex_t drivers;   /* bk_registry_hold_drivers */
  bk_signals signals;        /* of the program, while it is held */
  bool initialised;
  const bk_backend *backends[BACKENDS_MAX];
  int n_backends;
  bk_refused_module refused[REFUSED_MAX];
  int n_refused;
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER,
              .init_lock = PTHREAD_MUTEX_INITIALIZER,
              .drivers = PTHREAD_MUTEX_INITIALIZER};

/* Called with the lock held. The same table twice is no error: a program may register it itself. */
static bk_status insert(const bk_backend *b, char *reason, size_t reason_size) {
  for (int i = 0; i < registry.n_backends; i++) {
    if (registry.backends[i] == b) return BK_OK;
    if (strcmp(registry.backends[i]->name, b->name) != 0) continue;
    snprintf(reason, reason_size, "another backend has the name %s", b->name);
    return BK_ERR_ARGUMENT;
  }
  if (registry.n_backends == BACKENDS_MAX) {
    snprintf(reason, reason_size, "%d backends are registered, there is no room for more",
             BACKENDS_MAX);
    return BK_ERR_MEMORY;
  }
  registry.backends[registry.n_backends++] = b;
  return BK_OK;
}

bk_status bk_registry_add(const bk_backend *backend, char *reason, size_t reason_size) {
  BK_TRY(bk_backend_verify(backend, reason, reason_size));
  pthread_mutex_lock(&registry.lock);
  bk_status status = insert(backend, reason, reason_size);
  pthread_mutex_unlock(&registry.lock);
  return status;
}

/* The name of a table with another ABI may lie anywhere, so that it is not read for the message. */
bk_status bk_backend_register(bk_context *ctx, const bk_backend *backend) {
  char reason[BK_REASON_MAX];
  bk_status status = bk_registry_add(backend, reason, sizeof reason);
  if (status == BK_OK) return BK_OK;
  const char *name =
      backend && backend->abi == BK_BACKEND_ABI && backend->name ? backend->name : "?";
  return bk_fail(ctx, status, "backend %s is refused: %s", name, reason);
}

int bk_backend_count(void) {
  pthread_mutex_lock(&registry.lock);
  int n = registry.n_backends;
  pthread_mutex_unlock(&registry.lock);
  return n;
}

const bk_backend *bk_backend_get(int i) {
  pthread_mutex_lock(&registry.lock);
  const bk_backend *b = i >= 0 && i < registry.n_backends ? registry.backends[i] : NULL;
  pthread_mutex_unlock(&registry.lock);
  return b;
}

const bk_backend *bk_backend_find(const char *name) {
  for (int i = 0; name && i < bk_backend_count(); i++) {
    const bk_backend *b = bk_backend_get(i);
    if (strcmp(b->name, name) == 0) return b;
  }
  return NULL;
}

const bk_backend *bk_registry_host(size_t i) { return i < BK_COUNT(hosts) ? hosts[i] : NULL; }

bool bk_registry_is_module(const char *name) {
  for (size_t i = 0; i < BK_COUNT(modules); i++)
    if (strcmp(name, modules[i]) == 0) return true;
  return false;
}

void bk_registry_note_refused(const char *path, const char *reason) {
  pthread_mutex_lock(&registry.lock);
  if (registry.n_refused < REFUSED_MAX) {
    bk_refused_module *r = &registry.refused[registry.n_refused++];
    snprintf(r->path, sizeof r->path, "%s", path);
    snprintf(r->reason, sizeof r->reason, "%s", reason);
  }
  pthread_mutex_unlock(&registry.lock);
}

int bk_loader_refused_count(void) {
  pthread_mutex_lock(&registry.lock);
  int n = registry.n_refused;
  pthread_mutex_unlock(&registry.lock);
  return n;
}

/* Entries are never changed once they are counted, so the pointer stays good. */
const bk_refused_module *bk_loader_refused_get(int i) {
  return i >= 0 && i < bk_loader_refused_count() ? &registry.refused[i] : NULL;
}

static bk_status register_all(bk_context *ctx) {
  for (size_t i = 0; i < BK_COUNT(compiled_in); i++)
    BK_TRY(bk_backend_register(ctx, compiled_in[i]));
  return ctx->os ? bk_loader_load_all(ctx) : BK_OK;
}

void bk_registry_hold_drivers(void) {
  pthread_mutex_lock(&registry.drivers);
  bk_signals_keep(&registry.signals);
}

void bk_registry_release_drivers(bk_context *ctx) {
  bk_signals_restore(ctx, &registry.signals);
  pthread_mutex_unlock(&registry.drivers);
}

bk_status bk_registry_init(bk_context *ctx) {
  pthread_mutex_lock(&registry.init_lock);
  bk_status status = registry.initialised ? BK_OK : register_all(ctx);
  /* An embedded context loads no modules, but a later context may: only the latter ends the
   * matter. */
  if (status == BK_OK && ctx->os) registry.initialised = true;
  pthread_mutex_unlock(&registry.init_lock);
  return status;
}

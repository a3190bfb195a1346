/* What devices there are, and why others cannot be used: `birkhoff devices`. */
#include "runtime/registry_priv.h"

#include <stdio.h>
#include <string.h>

typedef struct listing {
  bk_context *ctx;
  bk_device_fn each;
  void *user;
} listing;

/* A report for each line of what a probe said: devices that cannot be used, or why there is none.
 */
static bk_status list_reasons(const listing *l, const char *name, bk_device_state state,
                              const char *lines) {
  for (const char *end; *lines; lines = *end ? end + 1 : end) {
    bk_device_report r = {.state = state};
    end = lines + strcspn(lines, "\n");
    snprintf(r.name, sizeof r.name, "%s", name);
    snprintf(r.reason, sizeof r.reason, "%.*s", (int)(end - lines), lines);
    BK_TRY(l->each(l->user, &r));
  }
  return BK_OK;
}

/* There is one device of a backend that every build has, so its name needs no number. */
static bool is_host(const bk_backend *b) {
  const bk_backend *host;
  for (size_t i = 0; (host = bk_registry_host(i)) != NULL; i++)
    if (host == b) return true;
  return false;
}

static bk_status list_device(const listing *l, const bk_backend *b, int index, bool is_default) {
  bk_device_report r = {.state = BK_DEVICE_OK, .is_default = is_default};
  if (is_host(b)) snprintf(r.name, sizeof r.name, "%s", b->name);
  else snprintf(r.name, sizeof r.name, "%s:%d", b->name, index);
  bk_registry_hold_drivers();
  bk_status status = b->describe(l->ctx, index, &r.props, &r.memory_bytes);
  bk_registry_release_drivers(l->ctx);
  if (status != BK_OK) {
    r.state = BK_DEVICE_REFUSED;
    snprintf(r.reason, sizeof r.reason, "the device does not describe itself");
  }
  return l->each(l->user, &r);
}

static bk_status list_backend(const listing *l, const bk_backend *b, bool best) {
  char reason[1024] = "";
  bk_registry_hold_drivers();
  bool found = b->probe(l->ctx, reason, sizeof reason) == BK_OK;
  int n = found ? b->device_count(l->ctx) : 0;
  bk_registry_release_drivers(l->ctx);
  if (found && n <= 0 && !reason[0]) snprintf(reason, sizeof reason, "%s finds no device", b->name);
  if (n <= 0)
    return list_reasons(l, b->name, BK_DEVICE_ABSENT, reason[0] ? reason : "no reason given");
  for (int i = 0; i < n; i++) BK_TRY(list_device(l, b, i, best && i == 0));
  return list_reasons(l, b->name, BK_DEVICE_REFUSED, reason);
}

static bk_status list_modules(const listing *l) {
  for (int i = 0; i < bk_loader_refused_count(); i++) {
    const bk_refused_module *m = bk_loader_refused_get(i);
    const char *slash = strrchr(m->path, '/');
    bk_device_report r = {.state = BK_DEVICE_REFUSED};
    snprintf(r.name, sizeof r.name, "%.*s", (int)sizeof r.name - 1, slash ? slash + 1 : m->path);
    snprintf(r.reason, sizeof r.reason, "%s", m->reason);
    BK_TRY(l->each(l->user, &r));
  }
  return BK_OK;
}

bk_status bk_devices(bk_context *ctx, bk_device_fn each, void *user) {
  listing l = {ctx, each, user};
  BK_TRY(bk_registry_init(ctx));
  bk_registry_hold_drivers();
  const bk_backend *best = bk_device_best_backend(ctx);
  bk_registry_release_drivers(ctx);
  for (int i = 0; i < bk_backend_count(); i++) {
    const bk_backend *b = bk_backend_get(i);
    BK_TRY(list_backend(&l, b, b == best));
  }
  return list_modules(&l);
}

const char *bk_backend_name(bk_context *ctx, int i) {
  if (bk_registry_init(ctx) != BK_OK) return NULL;
  const bk_backend *b = bk_backend_get(i);
  return b ? b->name : NULL;
}

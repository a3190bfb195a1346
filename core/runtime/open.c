/* Opening devices by name ("cpu", "cuda:1", or none for the best). It is the one place where
 * devices meet the registry.
 *
 * A name that can be right on another machine is BK_ERR_ABSENT, so that a test can skip; a name
 * that is no backend at all is BK_ERR_NOT_FOUND. Both messages list the devices that are there. */
#include "runtime/registry_priv.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define NAME_MAX_BYTES 64

/* Takes "name[:index]" apart; *index is -1 where it is not given. False: it is no such name. */
static bool parse_name(const char *text, char name[NAME_MAX_BYTES], int *index) {
  const char *colon = strchr(text, ':');
  size_t length = colon ? (size_t)(colon - text) : strlen(text);
  if (length == 0 || length >= NAME_MAX_BYTES) return false;
  memcpy(name, text, length);
  name[length] = '\0';
  *index = -1;
  if (!colon) return true;
  int64_t value;
  if (colon[1] < '0' || colon[1] > '9' || !bk_parse_int64(colon + 1, &value) || value > INT_MAX)
    return false;
  *index = (int)value;
  return true;
}

static void append(char *text, size_t size, const char *more) {
  size_t used = strlen(text);
  snprintf(text + used, size - used, "%s", more);
}

static bool probes(bk_context *ctx, const bk_backend *b) {
  char reason[BK_REASON_MAX] = "";
  return b->probe(ctx, reason, sizeof reason) == BK_OK && b->device_count(ctx) > 0;
}

/* "cpu, cuda:0, cuda:1": the devices that are there. */
static void list_present(bk_context *ctx, char *text, size_t size) {
  text[0] = '\0';
  for (int i = 0; i < bk_backend_count(); i++) {
    const bk_backend *b = bk_backend_get(i);
    int n = probes(ctx, b) ? b->device_count(ctx) : 0;
    for (int d = 0; d < n; d++) {
      char index[16] = "";
      if (n > 1) snprintf(index, sizeof index, ":%d", d);
      if (text[0]) append(text, size, ", ");
      append(text, size, b->name);
      append(text, size, index);
    }
  }
  if (!text[0]) snprintf(text, size, "none");
}

static bk_status fail_unknown(bk_context *ctx, const char *name, const char *what) {
  char present[512];
  list_present(ctx, present, sizeof present);
  return bk_fail(ctx, BK_ERR_NOT_FOUND, "device %s: %s; devices that are there: %s", name, what,
                 present);
}

/* One of the library's own backends whose module is not installed: the name is right, but its
 * device is absent. */
static bk_status fail_not_registered(bk_context *ctx, const char *name, const char *family) {
  char present[512];
  if (!bk_registry_is_module(family)) return fail_unknown(ctx, name, "there is no such backend");
  list_present(ctx, present, sizeof present);
  return bk_fail(
      ctx, BK_ERR_ABSENT,
      "device %s is not here: the %s backend is not installed; devices that are there: %s", name,
      family, present);
}

/* Of equal priorities the first one registered wins. */
const bk_backend *bk_device_best_backend(bk_context *ctx) {
  const bk_backend *best = NULL;
  for (int i = 0; i < bk_backend_count(); i++) {
    const bk_backend *b = bk_backend_get(i);
    if ((!best || b->priority > best->priority) && probes(ctx, b)) best = b;
  }
  return best;
}

/* Each way in which a device can be absent has its own message: the driver's reason, no device at
 * all, or a number that is too high. */
static bk_status check_present(bk_context *ctx, const bk_backend *b, const char *name, int index) {
  char reason[BK_REASON_MAX] = "";
  bk_status status = b->probe(ctx, reason, sizeof reason);
  if (status != BK_OK)
    return bk_fail(ctx, status, "device %s is not here: %s", name,
                   reason[0] ? reason : "no reason given");
  int n = b->device_count(ctx);
  if (n <= 0)
    return bk_fail(ctx, BK_ERR_ABSENT, "device %s is not here: %s finds no device", name, b->name);
  if (index >= n)
    return bk_fail(ctx, BK_ERR_ABSENT,
                   "device %s is not here: %s has %d device%s, the last is %s:%d", name, b->name, n,
                   n == 1 ? "" : "s", b->name, n - 1);
  return BK_OK;
}

static bk_status select_backend(bk_context *ctx, const char *name, const bk_backend **backend,
                                int *index) {
  if (!name) {
    *index = 0;
    *backend = bk_device_best_backend(ctx);
    if (*backend) return BK_OK;
    return bk_fail(ctx, BK_ERR_ABSENT, "no device is here: none of the %d backends finds one",
                   bk_backend_count());
  }
  char family[NAME_MAX_BYTES];
  if (!parse_name(name, family, index))
    return fail_unknown(ctx, name, "a name is BACKEND or BACKEND:NUMBER");
  *backend = bk_backend_find(family);
  if (!*backend) return fail_not_registered(ctx, name, family);
  if (*index < 0) *index = 0;
  return check_present(ctx, *backend, name, *index);
}

/* The device to fall back on is the other host backend, with cpu, the faster of the two, first. */
static bk_status open_fallback(const bk_device *device, bk_device **fallback) {
  bk_device_options options = {.threads = device->options.threads};
  const bk_backend *backend;
  for (size_t i = 0; (backend = bk_registry_host(i)) != NULL; i++)
    if (backend != device->backend)
      return bk_device_open(device->ctx, backend->name, &options, fallback);
  return BK_OK;
}

/* With the drivers held. */
static bk_status open_named(bk_context *ctx, const char *name, const bk_device_options *options,
                            bk_device **device) {
  const bk_backend *backend = NULL;
  int index = 0;
  BK_TRY(select_backend(ctx, name, &backend, &index));
  return bk_device_open_from(ctx, backend, index, options, device);
}

bk_status bk_device_open(bk_context *ctx, const char *name, const bk_device_options *options,
                         bk_device **device) {
  bk_device *opened = NULL;
  BK_TRY(bk_registry_init(ctx));
  bk_registry_hold_drivers();
  bk_status status = open_named(ctx, name, options, &opened);
  bk_registry_release_drivers(ctx);
  BK_TRY(status);
  opened->open_fallback = open_fallback;
  *device = opened;
  return BK_OK;
}

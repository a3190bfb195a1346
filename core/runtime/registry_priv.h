/* What registry.c, loader.c, verify.c, device.c, open.c and report.c share: how a backend is
 * checked, added to the process's list and opened. */
#ifndef BK_REGISTRY_PRIV_H
#define BK_REGISTRY_PRIV_H

#include "runtime/backend.h"

#define BK_REASON_MAX 256

/* verify.c: ABI number, name, no hole in a table; `reason` says what is wrong. NULL is refused
 * too. */
bk_status bk_backend_verify(const bk_backend *backend, char *reason, size_t reason_size);
/* device.c: opens a verified backend's device; a hole in its table is BK_ERR_ABI. */
bk_status bk_device_open_from(bk_context *ctx, const bk_backend *backend, int index,
                              const bk_device_options *options, bk_device **device);
/* Verifies and adds a backend without a message; `reason` says why not. Adding one twice is
 * BK_OK. */
bk_status bk_registry_add(const bk_backend *backend, char *reason, size_t reason_size);
/* registry.c: the backends that every build has, the one to fall back on first; NULL past the
 * last. */
const bk_backend *bk_registry_host(size_t i);
/* Whether this project has a module of that name, installed or not. */
bool bk_registry_is_module(const char *name);
/* open.c: the backend whose first device is opened where none is named, or NULL. */
const bk_backend *bk_device_best_backend(bk_context *ctx);
/* Between these two calls this thread is the only one of the process that asks drivers what there
 * is, or opens a device: ranks that are threads begin at the same moment, and neither drivers nor
 * what loads them is made for that. What a driver's libraries make of the program's signals
 * meanwhile is undone: LLVM takes SIGUSR1 for itself. They do not nest. */
void bk_registry_hold_drivers(void);
void bk_registry_release_drivers(bk_context *ctx);
/* Remembers a module that was refused; past the capacity it is only logged. */
void bk_registry_note_refused(const char *path, const char *reason);
/* True if one of the function pointers that a vtable of `bytes` bytes consists of is NULL. */
bool bk_vtable_has_hole(const void *vtable, size_t bytes);

#endif

/* Transports: what moves data between the ranks of a job. "self" and "threads" are in the library;
 * others are loadable modules, birkhoff_comm_NAME.so beside the backends', which are loaded when
 * they are asked for by name or listed, and not before. */
#ifndef BK_TRANSPORT_H
#define BK_TRANSPORT_H

#include <birkhoff/parallel.h>

#include "comm/wire.h"

#define BK_COMM_ABI 2u /* raise on any change of this header, wire.h or comm.h */

typedef struct bk_transport {
  uint32_t abi; /* BK_COMM_ABI */
  const char *name;
  /* BK_OK, with a line of what it is ("Open MPI 4.1.4, MPI 3.1"), or why it cannot be used. */
  bk_status (*probe)(bk_context *ctx, char *reason, size_t reason_size, char *description,
                     size_t description_size);
  /* Collective. Called in the engine's thread while the caller of bk_engine_open waits, so that it
   * may use the context. Where the transport itself knows rank, size, local rank and local size
   * (MPI) it writes them to *options; where these were given and differ, that is
   * BK_ERR_ARGUMENT. */
  bk_status (*open)(bk_context *ctx, bk_job_options *options, bk_wire **wire);
} bk_transport;

/* A loadable module defines this function; the symbol is all that it exports. */
#define BK_TRANSPORT_MODULE_SYMBOL "bk_transport_module"
BK_API const bk_transport *bk_transport_module(void);
typedef const bk_transport *(*bk_transport_module_fn)(void);

/* threads.c */
extern const bk_transport bk_transport_threads;
/* transports.c: by name, loading its module at need. BK_ERR_NOT_FOUND for a name that is none,
 * with the names that are; BK_ERR_ABSENT, with the reason, where it cannot be used. "self" has no
 * transport: *transport is NULL. */
bk_status bk_transport_find(bk_context *ctx, const char *name, const bk_transport **transport);

#endif

/* The engine: one thread for each rank of a job that works on a wire (wire.h) and makes of its
 * messages all operations of comm.h. It allocates nothing after bk_comm_reserve, never uses the
 * context while the rank runs, and logs nothing: reasons lie in requests and are logged by who
 * waits for them.
 *
 * Memory of devices that is not the host's passes through pinned staging. All calls of the device
 * are made by the rank's own thread, in post and wait: a download on a stream of the comm's own,
 * behind what the tensor's stream has been given; what has arrived on the host is then handed to
 * the engine; and an upload in wait. */
#ifndef BK_ENGINE_H
#define BK_ENGINE_H

#include "comm/comm.h"
#include "comm/transport.h"

typedef struct bk_engine bk_engine;

/* Collective. Starts the thread, which opens the wire; *options has rank and size afterwards. */
bk_status bk_engine_open(bk_context *ctx, const bk_transport *transport, bk_job_options *options,
                         bk_engine **engine);
/* All comms were destroyed before. `abandon`: waits for no other rank. */
void bk_engine_close(bk_engine *engine, bool abandon);
/* bk_comm_gather over all ranks of the job, before there is a comm. */
bk_status bk_engine_gather(bk_engine *engine, const void *src, size_t bytes, void *dst);
/* Collective: the group of all ranks on a device. */
bk_status bk_engine_comm(bk_engine *engine, bk_device *device, bk_comm **comm);
/* From any thread: what is under way and all that comes later ends with BK_ERR_COMM and this
 * reason. The first reason counts. */
void bk_engine_fail(bk_engine *engine, const char *reason);
/* `call` is called once, from the engine's thread, when an operation has failed by itself: a
 * time-out ("rank 2 has not come to reduce_scatter 17 for 120 s"), ranks that disagree, a wire
 * that broke. */
typedef void (*bk_engine_fail_fn)(void *user, const char *reason);
void bk_engine_on_fail(bk_engine *engine, bk_engine_fail_fn call, void *user);

#endif

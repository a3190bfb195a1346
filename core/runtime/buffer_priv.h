/* What buffer.c and memory.c share. A buffer's life has two halves: the object, to which tensors
 * may point from the time of planning, and its memory, which is bound to it later. */
#ifndef BK_BUFFER_PRIV_H
#define BK_BUFFER_PRIV_H

#include "runtime/backend.h"

/* A buffer object without memory. */
bk_status bk_buffer_create(bk_device *device, bk_memory_class c, bk_buffer **buffer);
/* Gives it `bytes` bytes of zeroed device memory. */
bk_status bk_buffer_bind(bk_buffer *buffer, size_t bytes);
void bk_buffer_unbind(bk_buffer *buffer); /* safe on one without memory */

#endif

/* A backend for tests whose memory the host cannot look at: a handle is an object, not an
 * address, and every copy goes through the stream. What it does can be set and is counted in
 * `fake`. */
#ifndef BK_TESTS_FAKE_DEVICE_H
#define BK_TESTS_FAKE_DEVICE_H

#include "runtime/backend.h"

typedef struct fake_state {
  bk_status probe_status;
  int n_devices;
  size_t max_alloc;
  int allocs_left;  /* buffer allocations that succeed; negative: all */
  bool host_memory; /* handles are addresses after all */
  bool holed_device, holed_stream;
  int uploads, downloads, copies, fills, syncs, buffers; /* counts; buffers: now held */
} fake_state;

extern fake_state fake;
extern const bk_backend fake_backend;

void fake_reset(void); /* one device, no limits */

#endif

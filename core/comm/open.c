/* bk_comm_open, in a file of its own: it alone refers to jobs and their engines. A program that
 * links statically and opens no comm is free of threads and sockets. */
#include "comm/comm.h"
#include "comm/engine.h"
#include "comm/job.h"

bk_status bk_comm_open(bk_job *job, bk_device *device, bk_comm **comm) {
  return job->engine ? bk_engine_comm(job->engine, device, comm) : bk_comm_self(device, comm);
}

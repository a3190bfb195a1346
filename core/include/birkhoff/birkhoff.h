/* All installed headers of libbirkhoff:
 *
 *   version.h      the version, and what is exported
 *   status.h       what functions return
 *   context.h      memory, log and files; everything is made from a context
 *   types.h        types of elements, kinds of residual connections
 *   device.h       opening a device, listing all of them
 *   config.h       the model's configuration, the training recipe, presets
 *   data.h         data for training, tokens for one pass
 *   model.h        models, their parameters, checkpoints
 *   parallel.h     many processes that train one model
 *   schedule.h     who does what in a pipeline of ranks, in which order
 *   train.h        training, evaluation, gains, generation
 *   forward.h      single passes, with logits, maps and gradients
 *   residual.h     the residual connection alone, for other training code
 *   verify.h       comparing a device with a trusted one
 *   bench.h        timing a device and its ops
 *   profile.h      where the time of a step goes
 *   metrics.h      metrics.jsonl
 *   safetensors.h  safetensors files
 *
 * doc/embedding.md shows how to use them, and says who owns what and what each error code means. */
#ifndef BIRKHOFF_BIRKHOFF_H
#define BIRKHOFF_BIRKHOFF_H

#include <birkhoff/bench.h>
#include <birkhoff/config.h>
#include <birkhoff/context.h>
#include <birkhoff/data.h>
#include <birkhoff/device.h>
#include <birkhoff/forward.h>
#include <birkhoff/metrics.h>
#include <birkhoff/model.h>
#include <birkhoff/parallel.h>
#include <birkhoff/profile.h>
#include <birkhoff/residual.h>
#include <birkhoff/safetensors.h>
#include <birkhoff/schedule.h>
#include <birkhoff/status.h>
#include <birkhoff/train.h>
#include <birkhoff/types.h>
#include <birkhoff/verify.h>
#include <birkhoff/version.h>

#endif

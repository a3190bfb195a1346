/* All installed headers of libbirkhoff. */
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
#include <birkhoff/profile.h>
#include <birkhoff/residual.h>
#include <birkhoff/safetensors.h>
#include <birkhoff/status.h>
#include <birkhoff/train.h>
#include <birkhoff/types.h>
#include <birkhoff/verify.h>
#include <birkhoff/version.h>

#endif

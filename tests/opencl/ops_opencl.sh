#!/bin/sh
device=opencl also=BIRKHOFF_OPENCL_AS_GPU=1 # the kernels for GPUs, on a processor too
. "$(dirname "$0")/../gpu/ops.sh"

#!/bin/sh
device=opencl
. "$(dirname "$0")/../gpu/ops.sh"

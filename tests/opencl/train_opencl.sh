#!/bin/sh
device=opencl
. "$(dirname "$0")/../gpu/train.sh"

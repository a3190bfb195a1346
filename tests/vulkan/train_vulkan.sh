#!/bin/sh
device=vulkan
. "$(dirname "$0")/../gpu/train.sh"

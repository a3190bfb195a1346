#!/bin/sh
# The harness on vulkan, with small shapes, because lavapipe is slow: operands by address; then by bindings, in groups of at most 128 work
# items, under the validation layer with synchronisation validation where it is installed: it has to find nothing.
device=vulkan
. "$(dirname "$0")/../gpu/lib.sh"
needs tests/ops/test_ops
GALLIVM_PERF=nopt # lavapipe: most of the time is its compiler's
export GALLIVM_PERF
harness BK_TEST_QUICK=1 BIRKHOFF_VULKAN_BINDINGS=address
harness BK_TEST_QUICK=1 BIRKHOFF_VULKAN_BINDINGS=split BIRKHOFF_VULKAN_MAX_GROUP=128 VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation \
  VK_LAYER_ENABLES=VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
if grep -E 'VUID|SYNC-HAZARD|UNASSIGNED' "$W/log" >"$W/found"; then
  failed=$((failed + 1))
  sort "$W/found" | uniq -c | head -n 20 | cut -c 1-400
fi
finish

#!/bin/sh
# The harness on vulkan, with small shapes, because lavapipe is slow: operands by address; then by bindings, in groups of at most 128 work
# items (in very small shapes and of the ops on streams alone, but at the long level); streams, captures and two steps of training. All under the validation layer with synchronisation validation, where it is
# installed: it has to find nothing.
device=vulkan
. "$(dirname "$0")/../gpu/lib.sh"
needs tests/ops/test_ops
GALLIVM_PERF=nopt # lavapipe: most of the time is its compiler's
export GALLIVM_PERF
layer="VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LAYER_ENABLES=VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT"
env $layer VK_LOADER_DEBUG=all "$BIRKHOFF" devices >out 2>&1 </dev/null
if grep -q 'Insert instance layer.*VK_LAYER_KHRONOS_validation' out; then pass
else
  echo "the validation layer is not installed (Debian: vulkan-validationlayers): nothing is validated"
  skipped=$((skipped + 1)) layer=
fi

# valid LOG WHAT: the layer has said nothing in it
valid() {
  [ -n "$layer" ] || return 0
  if grep -E 'VUID|SYNC-HAZARD|UNASSIGNED' "$1" >"$W/found"; then
    sort "$W/found" | uniq -c | cut -c 1-400 >"$W/each"
    fail "$2: the validation layer complains" "$W/each"
  else pass; fi
}
harness BK_TEST_QUICK=1 BIRKHOFF_VULKAN_BINDINGS=address $layer
valid "$W/log" "the harness by address"
small=BK_TEST_TINY=1 only='--case hc_'
[ -z "${BK_TEST_LONG:-}" ] || small=BK_TEST_QUICK=1 only=
harness $small BIRKHOFF_VULKAN_BINDINGS=split BIRKHOFF_VULKAN_MAX_GROUP=128 $layer -- $only
valid "$W/log" "the harness by bindings"
if [ -x "$TOP_BUILDDIR/tests/vulkan/test_vulkan" ] && [ -n "$layer" ]; then
  env $layer "$TOP_BUILDDIR/tests/vulkan/test_vulkan" >"$W/log" 2>&1 </dev/null
  valid "$W/log" "streams and captures"
fi
text data.txt 600
ok "two steps" env $layer "$BIRKHOFF" train --model tiny --batch-size 1 --seq-len 16 --steps 2 --data data.txt --device vulkan:0 --out run --set warmup_steps=0
cat out err >"$W/log"
valid "$W/log" "training"
finish

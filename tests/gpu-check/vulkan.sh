#!/bin/sh
device=vulkan
. "$(dirname "$0")/check.sh"

# No kernel can be made: every op fails, in all processes.
fake=$TOP_BUILDDIR/tests/vulkan/.libs/fake_vulkan.so
if [ -e "$fake" ]; then
  BIRKHOFF_VULKAN_LIBRARY=$fake BK_FAKE_VULKAN=no_build gpu_check --stage harness --stage devices --out broken
  equal "no kernel can be made: exit status" $rc 1
  says "no kernel can be made" '^- \*\*failed\*\*: harness, small shapes: exit status 1'
  says "how many" '^  - op by op, each in a process of its own: 0 of 2 pass$'
  says "the next stage runs" '^- passed: vulkan:0 is here and tells its limits$'
  archived broken/gpu-check-vulkan-0.tar.gz report.md harness-0.log harness-op.log
else left_out "no kernel can be made: fake_vulkan.so was not built"
fi

# Compiled kernels that are not those of the sources do not serve; glslc would make them again.
if [ "$TREE" != "$TOP_SRCDIR" ]; then
  echo "// another" >>"$TREE/backends/gpu/kernels/rope.k"
  gpu_check --stage build --stage harness --out none
  equal "no glslc: exit status" $rc 1
  says "no glslc" '^- \*\*failed\*\*: build: missing here: /no/glslc, which compiles the kernels (Debian: glslc'
  equal "and nothing was compiled" "$(ls work/obj)" ""
  says "the stage behind it" '^- skipped: harness: nothing is built$'
else left_out "compiled kernels of other sources, in the tree of the tarball: $NO_PACK"
fi
finish

#!/bin/sh
device=vulkan
. "$(dirname "$0")/check.sh"

# No kernel can be made: every op fails, in all processes.
if broken "no kernel can be made" broken no_build; then
  says "how many" '^  - op by op, each in a process of its own: 0 of 2 pass$'
  says "the next stage runs" '^- passed: vulkan:0 is here and tells its limits$'
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

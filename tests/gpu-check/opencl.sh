#!/bin/sh
device=opencl
. "$(dirname "$0")/check.sh"

# A device that is lost after some launches: what follows in the process fails too. Alone, an op of few launches passes.
if broken "a device is lost" lost lost=10; then
  says "each op alone" '^  - hc_pre_norm alone: exit status 1'
  says "how many" '^  - op by op, each in a process of its own: [01] of 2 pass$'
  says "the next stage runs" '^## devices$'
fi

# A kernel that is wrong by far: the harness finds it, and so do training and verify.
if [ "$TREE" != "$TOP_SRCDIR" ]; then
  sed 's/u\[j\] \*= g\[j\] \* sigmoid_f/u[j] *= 100.0f * g[j] * sigmoid_f/' "$TOP_SRCDIR/backends/gpu/kernels/layers.k" >"$TREE/backends/gpu/kernels/layers.k"
  equal "one line is another" "$(cmp -s "$TOP_SRCDIR/backends/gpu/kernels/layers.k" "$TREE/backends/gpu/kernels/layers.k"; echo $?)" 1
  GPU_CHECK_CASE=swiglu:fp32 gpu_check --stage build --stage harness --stage train --out wrong
  equal "a wrong kernel: exit status" $rc 1
  says "built" '^- passed: build for opencl'
  says "the harness" '^- \*\*failed\*\*: harness, small shapes: exit status 1'
  says "its op" '^FAIL swiglu:fp32'
  says "the losses" '^- \*\*failed\*\*: losses of steps 1 to 5.* fp32'
  says "verify" '^- \*\*failed\*\*: verify tiny, mhc: exit status 1'
else left_out "a kernel that is wrong, in the tree of the tarball: $NO_PACK"
fi

JANSSON=nowhere BIRKHOFF_OPENCL_LIBRARY=$W/libOpenCL.so.1 gpu_check --stage build --out none
says "all that is missing" "^- \*\*failed\*\*: build: missing here: jansson (.*; $W/libOpenCL.so.1 (Debian: ocl-icd-libopencl1)$"
BIRKHOFF_OPENCL_LIBRARY=$W/libOpenCL.so.1 gpu_check --stage build --stage harness --out none
equal "no OpenCL: exit status" $rc 1
says "no OpenCL" "^- \*\*failed\*\*: build: missing here: $W/libOpenCL.so.1 (Debian: ocl-icd-libopencl1)$"
equal "and nothing was compiled" "$(ls work/obj)" ""
says "the stage behind it" '^- skipped: harness: nothing is built$'
finish

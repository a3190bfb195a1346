#!/bin/sh
# test_ops: the cuda backend's kernels on the host, through the stand-in for cuBLASLt and without it, threads in two orders; products on
# the instructions of capability 9.0, whose cases a quick run leaves out.
. "$(dirname "$0")/on_host.sh"
harness() {
  echo "== $*"
  env "$@" "$TOP_BUILDDIR/tests/ops/test_ops" --device cuda $only >"$W/log" 2>&1
  rc=$?
  tail -n 40 "$W/log"
  p=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$W/log") f=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$W/log")
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-1}))
  [ $rc -eq 0 ] || [ "${f:-0}" -gt 0 ] || failed=$((failed + 1))
}
only=
harness BK_CUDA_SEED=0
only='--case bf16,tiles'
harness BK_CUDA_SEED=3 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=90
only=
BK_TEST_QUICK=1
export BK_TEST_QUICK
harness BK_CUDA_SEED=7 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=80
harness BK_CUDA_SEED=11 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=90
finish

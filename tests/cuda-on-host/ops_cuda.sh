#!/bin/sh
# test_ops: the cuda backend's kernels on the host, through the stand-in for cuBLASLt and without it, threads in two orders.
. "$(dirname "$0")/on_host.sh"
harness() {
  echo "== $*"
  env "$@" "$TOP_BUILDDIR/tests/ops/test_ops" --device cuda >"$W/log" 2>&1
  rc=$?
  tail -n 40 "$W/log"
  p=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$W/log") f=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$W/log")
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-1}))
  [ $rc -eq 0 ] || [ "${f:-0}" -gt 0 ] || failed=$((failed + 1))
}
harness BK_CUDA_SEED=0
BK_TEST_QUICK=1
export BK_TEST_QUICK
harness BK_CUDA_SEED=7 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=80
harness BK_CUDA_SEED=11 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=90
finish

#!/bin/sh
# test_ops: the cuda backend's kernels on the host, through the stand-in for cuBLASLt and without it, with TF32, threads in several orders.
. "$(dirname "$0")/on_host.sh"
needs tests/ops/test_ops
options=
harness() {
  echo "== $* $options"
  env "$@" "$TOP_BUILDDIR/tests/ops/test_ops" --device cuda $options >"$W/log" 2>&1
  rc=$?
  tail -n 40 "$W/log" | sed 's/^/    /' # so that only the sum of all counts
  p=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$W/log") f=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$W/log")
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-1}))
  [ $rc -eq 0 ] || [ "${f:-0}" -gt 0 ] || failed=$((failed + 1))
}
harness BK_CUDA_SEED=0
# Products on the instructions of capability 9.0, also in a quick run, which leaves these cases out by itself.
options="--case bf16,tiles"
harness -u BK_TEST_QUICK BK_CUDA_SEED=3 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=90
for op in attention attention_bwd; do
  options="--op $op --case bf16,B=1,T=257" # cuDNN is given 256 tokens or more, which a quick run leaves out
  harness -u BK_TEST_QUICK BK_CUDA_SEED=0 BK_CUDA_CUDNN=1
done
if [ -z "${BK_TEST_QUICK:-}" ]; then
  # Our own products at all sizes: above, cuBLASLt's stand-in has most dense ones.
  options="--op gemm"
  harness BK_CUDA_SEED=3 BK_CUDA_BLASLT=no
  for op in gemm grouped_gemm grouped_wgrad; do
    options="--tf32 --op $op --case $op:fp32," # bf16 knows nothing of it
    harness BK_CUDA_SEED=5 BK_CUDA_BLASLT=no
  done
fi
# What many blocks come to on a card: attention by tiles of 128 rows, wide tiles of products; the shapes of real models in small.
if [ -z "${BK_TEST_QUICK:-}" ]; then
  for op in attention attention_bwd; do
    options="--op $op --case $op:bf16"
    harness BK_CUDA_SEED=3 BK_CUDA_LARGE_TILES=1
  done
fi
options=
harness BK_CUDA_SEED=3 BK_CUDA_LARGE_TILES=1 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=90 BK_TEST_LARGE=1 BK_TEST_QUICK=1
BK_TEST_QUICK=1
options=--like-composed
harness BK_CUDA_SEED=0
options=
export BK_TEST_QUICK
harness BK_CUDA_SEED=7 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=80
harness BK_CUDA_SEED=11 BK_CUDA_BLASLT=no BK_CUDA_CAPABILITY=90
finish

#!/bin/sh
# Every op at very small shapes in Oclgrind, which interprets the kernels: any race between work items, any access out of bounds is a line in
# its log. It comes into the process by LD_PRELOAD, and the backend goes on with what a process has (backends/opencl/library.c).
device=opencl
[ -n "$(command -v oclgrind)" ] || { echo "SKIP: there is no oclgrind"; exit 77; }
. "$(dirname "$0")/../gpu/lib.sh"
needs tests/ops/test_ops
BIRKHOFF_CACHE=off # what is interpreted is compiled from source each time
export BIRKHOFF_CACHE

# check OPTIONS...: of oclgrind; the harness, and nothing in the log
check() {
  : >"$W/found"
  echo "== oclgrind --data-races $*"
  oclgrind --data-races "$@" --log "$W/found" "$TOP_BUILDDIR/tests/ops/test_ops" --device opencl >"$W/log" 2>&1 </dev/null
  rc=$?
  p=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$W/log") f=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$W/log")
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-1}))
  [ $rc -eq 0 ] || [ "${f:-0}" -gt 0 ] || failed=$((failed + 1))
  [ $rc -eq 0 ] || tail -n 40 "$W/log" | sed 's/^/    /'
  if [ -s "$W/found" ]; then fail "Oclgrind found something" "$W/found"; else pass; fi
}
BK_TEST_TINY=1
export BK_TEST_TINY
oclgrind "$BIRKHOFF" devices >out 2>err </dev/null
has "Oclgrind's device is the one that is used" '^opencl:0 *ok *Oclgrind Simulator' out
# Kernels and groups as on a GPU, then at the long level (it says that it is a processor too) those for processors, which have few barriers, and
# tensors of more than 2 GiB.
BIRKHOFF_OPENCL_AS_GPU=1
export BIRKHOFF_OPENCL_AS_GPU
check --max-wgsize 256
if [ -n "${BK_TEST_LONG:-}" ]; then
  unset BIRKHOFF_OPENCL_AS_GPU
  check --max-wgsize 64
  # Where memory is there: PoCL gives no buffer of more than 2 GiB.
  if [ -x "$TOP_BUILDDIR/tests/opencl/test_opencl" ] && awk '/MemAvailable/ { exit !($2 > 6000000) }' /proc/meminfo 2>/dev/null; then
    ok "beyond 2 GiB" oclgrind --global-mem-size 3000000000 "$TOP_BUILDDIR/tests/opencl/test_opencl"
    if grep -q 'left out' out; then fail "beyond 2 GiB: left out" out; else pass; fi
  else skipped=$((skipped + 1)); fi
fi
finish

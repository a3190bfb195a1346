#!/bin/sh
# Every op at very small shapes in Oclgrind, which interprets the kernels: any race between work items, any access out of bounds is a line in
# its log. It comes into the process by LD_PRELOAD, and the backend goes on with what a process has (backends/opencl/library.c).
device=opencl
[ -n "$(command -v oclgrind)" ] || { echo "SKIP: there is no oclgrind"; exit 77; }
. "$(dirname "$0")/../gpu/lib.sh"
needs tests/ops/test_ops
BIRKHOFF_CACHE=off # what is interpreted is compiled from source each time
export BIRKHOFF_CACHE

# check GROUP: devices with large groups run as on a GPU
check() {
  : >"$W/found"
  echo "== oclgrind --data-races, groups up to $1"
  oclgrind --data-races --max-wgsize "$1" --log "$W/found" "$TOP_BUILDDIR/tests/ops/test_ops" --device opencl >"$W/log" 2>&1 </dev/null
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
check 256
check 64
finish

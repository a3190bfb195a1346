# Shared by the shell tests of the opencl and vulkan backends; `device` is the backend's name. Skips where its module was not built or
# finds no device.
. "$(dirname "$0")/../cli/lib.sh"
BIRKHOFF_BACKEND_DIR=${BIRKHOFF_BACKEND_DIR:-$TOP_BUILDDIR/.libs}
export BIRKHOFF_BACKEND_DIR

skip() {
  echo "SKIP: $1"
  exit 77
}
# needs PROGRAM: of the build folder; without libcheck there are no test programs
needs() { [ -x "$TOP_BUILDDIR/$1" ] || skip "$1 was not built"; }

needs birkhoff
"$BIRKHOFF" devices >devices 2>&1 </dev/null
grep -q "^$device:0 *ok" devices || skip "no $device device: $(sed -n "s/^$device *[a-z]* *//p" devices | head -n 1)"

# harness [NAME=VALUE...] [-- OPTION...]: test_ops on the device; its counts are added to those of this script.
harness() {
  vars=
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    vars="$vars $1"
    shift
  done
  [ $# -eq 0 ] || shift
  echo "== test_ops --device $device $*$vars"
  env $vars "$TOP_BUILDDIR/tests/ops/test_ops" --device "$device" "$@" >"$W/log" 2>&1 </dev/null
  rc=$?
  grep -v '^PASS' "$W/log" | tail -n 40 | sed 's/^/    /' # so that only the sum of all counts
  p=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$W/log") f=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$W/log")
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-1}))
  [ $rc -eq 0 ] || [ "${f:-0}" -gt 0 ] || failed=$((failed + 1))
}

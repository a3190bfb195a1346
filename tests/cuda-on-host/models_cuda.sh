#!/bin/sh
# The model tests that compare a backend with ref, on the cuda backend on the host: logits and gradients, fixtures, generation; at the long
# level recompute too.
. "$(dirname "$0")/on_host.sh"
needs tests/models/test_model_cpu
BK_TEST_DEVICE=cuda
export BK_TEST_DEVICE
programs="test_model_cpu test_model_runner test_model_fixtures test_generator test_gain"
[ -z "${BK_TEST_LONG:-}" ] || programs="$programs test_recompute"
[ -z "${BK_TEST_QUICK:-}" ] || programs="test_model_cpu test_model_runner"
for one in $programs; do
  echo "== $one"
  "$TOP_BUILDDIR/tests/models/$one" >"$W/log" 2>&1
  rc=$?
  grep -v ':P:\|Checks:' "$W/log" | tail -n 40 # only the sum of all counts
  n=$(sed -n 's/.*Checks: \([0-9]*\), .*/\1/p' "$W/log") bad=$(sed -n 's/.*Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 + \2/p' "$W/log")
  bad=$((${bad:-1}))
  [ $rc -eq 0 ] || [ $bad -gt 0 ] || bad=1
  passed=$((passed + (${n:-0} > bad ? ${n:-0} - bad : 0))) failed=$((failed + bad))
done
finish

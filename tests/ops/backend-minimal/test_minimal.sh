#!/bin/sh
# The example of doc/porting-a-backend.md is what the guide says: small, right for its ops, clear about those it lacks, and enough for a
# whole training step where it may fall back.
. "${TOP_SRCDIR:-$(cd "$(dirname "$0")/../../.." && pwd)}/tests/cli/lib.sh"
SOURCE=$TOP_SRCDIR/tests/ops/backend-minimal/minimal.c
GUIDE=$TOP_SRCDIR/doc/porting-a-backend.md
TEST_OPS=$TOP_BUILDDIR/tests/ops/test_ops
BIRKHOFF_BACKEND_DIR=$TOP_BUILDDIR/tests/ops/backend-minimal/.libs
export BIRKHOFF_BACKEND_DIR
if [ ! -e "$BIRKHOFF_BACKEND_DIR/birkhoff_minimal.so" ]; then
  echo "SKIP: the example was not built (it takes modules and shared libraries)"
  exit 77
fi
lines=$(wc -l <"$SOURCE")
holds "it is small: $lines lines" "$lines < 340"

# ---- the harness, op by op ----
for op in add rmsnorm gemm; do
  ok "harness: $op" "$TEST_OPS" --device minimal --op $op
  has "harness: $op" '^[1-9][0-9]* passed, 0 failed' out
done
"$TEST_OPS" --device minimal --op swiglu >out 2>err
equal "an op that it lacks fails the harness" $? 1
has "with the reason" 'minimal has no kernel for swiglu (gate \[1,31\] fp32, up \[1,31\] fp32, y \[1,31\] fp32)' err

# ---- the command ----
ok devices "$BIRKHOFF" devices --json
equal "it is listed" "$(json name=minimal:0/status)" ok
has "it is never the default" '"name": "cpu"' out
equal "it is never the default" "$(json name=cpu/default)" true
BIRKHOFF_MINIMAL=off "$BIRKHOFF" devices >out 2>err
has "absent: the reason" '^minimal  *absent .*BIRKHOFF_MINIMAL' out
refused 1 'device minimal is not here: .*BIRKHOFF_MINIMAL' "absent and asked for" env BIRKHOFF_MINIMAL=off "$BIRKHOFF" verify tiny --device minimal
refused 1 'minimal has no kernel for embed (ids .* i32, table .* fp32, y .* fp32)' "a model needs more" "$BIRKHOFF" verify tiny --device minimal --seq-len 8
for dtype in fp32 bf16; do
  warned 'minimal has no kernel for [a-z_]*: it runs on cpu' "verify in $dtype, falling back" "$BIRKHOFF" verify tiny --device minimal --allow-fallback --seq-len 8 --dtype $dtype
  has "every tensor" '^\([0-9]*\) of \1 within their bounds' out
  equal "$dtype: each op is named once" "$(sort err | uniq -d | wc -l | tr -d ' ')" 0
  for op in add rmsnorm gemm; do equal "$dtype: $op is its own" "$(grep -c "no kernel for $op:" err)" 0; done
done
text data.txt 3000
tiny="--model tiny --data data.txt --steps 2 --batch-size 1 --seq-len 16 --set warmup_steps=0"
warned 'it runs on cpu' "it trains" "$BIRKHOFF" train $tiny --device minimal --allow-fallback --out minimal
ok "so does cpu" "$BIRKHOFF" train $tiny --device cpu --out cpu
ok "compare" "$BIRKHOFF" compare minimal cpu --json
holds "with the same losses" "$(json keys/key=loss/max) < 1e-4"

# ---- the command line of the guide builds it outside of the tree ----
line=$(sed -n 's/^    cc \(.*minimal\.c .*\)/\1/p' "$GUIDE")
equal "the guide has one such line" "$(echo "$line" | grep -c 'birkhoff_minimal\.so')" 1
case ${CFLAGS:-} in *-fsanitize*) skipped=$((skipped + 1)) ;; *)
  here=$PWD
  # shellcheck disable=SC2086
  (cd "$TOP_SRCDIR" && ${CC:-cc} $(echo "$line" | sed "s|-o |-o $here/|")) >log 2>&1 || fail "the guide's line" log
  BIRKHOFF_BACKEND_DIR=$here "$BIRKHOFF" devices >out 2>err
  has "what it makes loads" '^minimal:0  *ok' out
  equal "without a word" "$(cat err)" "" ;;
esac
finish

# test_ops on `device`: small shapes (at the long level, BK_TEST_LONG, all of them: each shape of its own is a kernel to compile); small
# shapes again with work groups of at most 128 and 64 items, with the fused slots composed, twice with the same bits, and at the long level
# with the variables of `also` (NAME=VALUE...).
. "$(dirname "$0")/../gpu/lib.sh"
needs tests/ops/test_ops
limit=BIRKHOFF_$(echo "$device" | tr a-z A-Z)_MAX_GROUP
# Not kept in our own cache: taking a program out of PoCL compiles it once more, and PoCL keeps what it has compiled itself.
BIRKHOFF_CACHE=off
export BIRKHOFF_CACHE
[ -n "${BK_TEST_LONG:-}" ] || export BK_TEST_QUICK=1
harness
harness BK_TEST_QUICK=1 "$limit=128"
harness BK_TEST_QUICK=1 "$limit=64" -- --bits
harness BK_TEST_QUICK=1 -- --composed
[ -z "${also:-}" ] || [ -z "${BK_TEST_LONG:-}" ] || harness BK_TEST_QUICK=1 $also
finish

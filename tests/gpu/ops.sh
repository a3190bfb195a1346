# test_ops on `device`: small shapes, twice with the same bits (at the long level, BK_TEST_LONG, all shapes: each is a kernel to compile); then again with work groups
# of at most 64 items, twice with the same bits, in very small shapes (at the long level in small ones, and with groups of at most 128); and with the composed ops composed
# (these alone, but at the long level);
# at the long level also with the variables of `also` (NAME=VALUE...).
. "$(dirname "$0")/../gpu/lib.sh"
needs tests/ops/test_ops
limit=BIRKHOFF_$(echo "$device" | tr a-z A-Z)_MAX_GROUP
# Not kept in our own cache: taking a program out of PoCL compiles it once more, and PoCL keeps what it has compiled itself.
BIRKHOFF_CACHE=off
export BIRKHOFF_CACHE
small=BK_TEST_QUICK=1
[ -n "${BK_TEST_LONG:-}" ] || { export BK_TEST_QUICK=1; small=BK_TEST_TINY=1; }
harness -- --bits
[ -z "${BK_TEST_LONG:-}" ] || harness $small "$limit=128"
harness $small "$limit=64" -- --bits
if [ -n "${BK_TEST_LONG:-}" ]; then harness $small -- --composed
else
  composed=$(sed -n 's/^COMPOSED\(_OF\)\{0,1\}([A-Z_]*, \([a-z_]*\),.*/\2/p' "$TOP_SRCDIR/core/runtime/ops.def")
  holds "ops are composed" "$(echo "$composed" | wc -l) > 5"
  for op in $composed; do harness $small -- --composed --op "$op"; done
fi
[ -z "${also:-}" ] || [ -z "${BK_TEST_LONG:-}" ] || harness BK_TEST_QUICK=1 $also
finish

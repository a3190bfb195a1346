#!/bin/sh
# usage: tests/size.sh BUILD_DIR: the size of the library of a build, stripped, shared and static (what was built of the two), and
# what weighs most; fails from 1.2 MB = 1200000 bytes on. Made for a build without optional parts. Closes with "N passed, N failed, N skipped".
LIMIT=1200000
dir=${1:?usage: tests/size.sh BUILD_DIR}/.libs
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-size.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT
seen=0 bad=0
weigh() { # WHAT BYTES
  seen=1
  echo "$1: $2 bytes, limit $LIMIT"
  [ "$2" -gt 0 ] && [ "$2" -lt $LIMIT ] || bad=1
}
if [ -e "$dir/libbirkhoff.so" ]; then
  strip -o "$W/shared" "$dir/libbirkhoff.so" || exit 1
  weigh "libbirkhoff.so, stripped" "$(wc -c <"$W/shared")"
fi
if [ -e "$dir/libbirkhoff.a" ]; then
  # An archive's file also holds a symbol table for the linker; what a program can get of it is its code and data.
  weigh "libbirkhoff.a, code and data" "$(size -t "$dir/libbirkhoff.a" | awk 'END { print $1 + $2 }')"
  echo "the heaviest objects (text, data, bss):"
  size "$dir/libbirkhoff.a" | awk 'NR > 1 { print $1, $2, $3, $6 }' | sort -rn | head -n 12
fi
[ $seen -eq 1 ] || { echo "there is no library in $dir"; bad=1; }
echo "$((1 - bad)) passed, $bad failed, 0 skipped"
exit $bad

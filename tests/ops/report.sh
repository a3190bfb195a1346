#!/bin/sh
# A table for doc/results: every op by device, the worst normalised mean squared error against ref in fp32 / bf16. Not a test.
# usage: tests/ops/report.sh DEVICE...   (TOP_BUILDDIR and BIRKHOFF_BACKEND_DIR as for the tests)
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
for device; do
  "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device "$device" --report >"$T/log" || { echo "$device: not all cases pass" >&2; tail -n 2 "$T/log" >&2; exit 1; }
  sed -n 's/^report //p' "$T/log" | awk '{ print $1, $2 " / " $3 }' | sed 's/0\.0e+00/exact/g' >"$T/$device"
done
awk 'BEGIN { printf "| op |"; for (i = 1; i < ARGC; i++) { n = ARGV[i]; sub(/.*\//, "", n); printf " %s |", n } printf "\n|---|"; for (i = 1; i < ARGC; i++) printf "---|"; printf "\n" }
  !($1 in row) { order[++count] = $1 }
  { op = $1; sub(/^[^ ]* /, ""); row[op] = row[op] " " $0 " |" }
  END { for (i = 1; i <= count; i++) print "| " order[i] " |" row[order[i]] }' $(for device; do echo "$T/$device"; done)

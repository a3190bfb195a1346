#!/bin/sh
# Birkhoff's dense products against OpenBLAS's own sgemm with all its threads, the same shapes in turn: GFLOP/s, best of three rounds.
# usage: openblas.sh [BIRKHOFF_PROGRAM]; needs cc, pkg-config and libopenblas-dev. Exit 77 where they are missing.
here=$(cd "$(dirname "$0")" && pwd)
birkhoff=${1:-${TOP_BUILDDIR:-.}/birkhoff}
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-openblas.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT
cc -O2 -o "$W/openblas" "$here/openblas.c" $(pkg-config --cflags --libs openblas) 2>"$W/log" || { cat "$W/log" >&2; exit 77; }
[ -x "$birkhoff" ] || { echo "openblas.sh: no program $birkhoff" >&2; exit 77; }
unset OPENBLAS_NUM_THREADS OMP_NUM_THREADS OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
printf '%-18s %10s %10s %7s\n' 'm x n x k' OpenBLAS Birkhoff ratio
for shape in '1024 512' '1024 1280' '4096 512' '4096 2560'; do
  set -- $shape
  : >"$W/theirs" && : >"$W/ours"
  for round in 1 2 3; do
    "$W/openblas" "$1" "$2" "$2" >>"$W/theirs" || exit 1
    "$birkhoff" bench ops --op gemm --tokens "$1" --width "$2" --seconds 0.5 | awk '$1 == "gemm" { print $6 }' >>"$W/ours" || exit 1
  done
  theirs=$(sort -n "$W/theirs" | tail -n 1) ours=$(sort -n "$W/ours" | tail -n 1)
  printf '%-18s %10s %10s %7s\n' "$1 x $2 x $2" "$theirs" "$ours" "$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }')"
done

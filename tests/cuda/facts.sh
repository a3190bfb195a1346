#!/bin/sh
# What the compiler says of the cuda backend and needs no GPU: no kernel spills registers, streaming kernels move 16 bytes at a time,
# how large the module is.
set -u
TOP_SRCDIR=${TOP_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}
TOP_BUILDDIR=${TOP_BUILDDIR:-$TOP_SRCDIR}
logs=$TOP_BUILDDIR/backends/cuda/kernels module=$TOP_BUILDDIR/.libs/birkhoff_cuda.so
if [ ! -e "$module" ]; then
  echo "SKIP: the cuda backend was not built (no toolkit)"
  exit 77
fi
passed=0 failed=0 skipped=0
BK_NVCC=${BK_NVCC:-}
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-facts.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT

# ---- registers: one line a kernel and target: name, target, spilled bytes, registers ----
cat "$logs"/*.log | awk '
  /Compiling entry function/ { split($0, q, "\047"); name = q[2]; target = q[4] }
  /bytes spill stores/ && name != "" { match($0, /[0-9]+ bytes spill stores/); spill = substr($0, RSTART, RLENGTH) + 0 }
  /Used [0-9]+ registers/ && name != "" { match($0, /Used [0-9]+/); print name, target, spill, substr($0, RSTART + 5, RLENGTH - 5); name = "" }' >"$W/kernels"
n=$(wc -l <"$W/kernels" | tr -d ' ')
[ "$n" -gt 50 ] || { echo "FAIL: only $n kernels in the compiler's reports"; failed=$((failed + 1)); }
spilling=$(awk '$3 > 0' "$W/kernels")
if [ -z "$spilling" ]; then passed=$((passed + n)); else
  echo "FAIL: these kernels spill (name, target, bytes, registers):"
  echo "$spilling"
  failed=$((failed + $(echo "$spilling" | wc -l)))
fi
echo "kernels and targets: $n; most registers: $(sort -k4,4n "$W/kernels" | tail -n 1 | awk '{ print $4, $1, $2 }')"

# ---- 16-byte accesses, in the PTX that the module carries for newer cards ----
wide() { # FILE LOADS STORES [KERNEL]: at least so many of each in its PTX, or in that of the kernels whose mangled name has KERNEL in it
  [ -n "$BK_NVCC" ] || { skipped=$((skipped + 1)); return; } # run by itself, without make
  if ! sh -c "$BK_NVCC -ptx -arch=compute_90 -o '$W/$1.ptx' '$TOP_SRCDIR/backends/cuda/kernels/$1.cu'" >"$W/log" 2>&1; then
    echo "FAIL: $1: no PTX"; cat "$W/log"
    failed=$((failed + 1))
    return
  fi
  awk -v kernel="${4:-}" '/\.entry/ { wanted = index($0, kernel) || kernel == "" } wanted' "$W/$1.ptx" >"$W/ptx"
  loads=$(grep -c 'ld\.global[a-z.]*\.v4\.[bfus]32' "$W/ptx") stores=$(grep -c 'st\.global[a-z.]*\.v4\.[bfus]32' "$W/ptx")
  if [ "$loads" -ge "$2" ] && [ "$stores" -ge "$3" ]; then passed=$((passed + 1)); else
    echo "FAIL: $1${4:+, $4}: $loads loads and $stores stores of 16 bytes, expected $2 and $3"
    failed=$((failed + 1))
  fi
}
wide copy 18 14
# Eight elements from fp32 to bf16 and back: dense, and in rows that lie at multiples of 16 bytes.
wide copy 2 1 flat_kernelIf7bk_bf16Lb0E
wide copy 1 2 flat_kernelI7bk_bf16fLb0E
wide copy 2 1 rows_kernelIf7bk_bf16Lb0ELb1E
wide copy 1 2 rows_kernelI7bk_bf16fLb0ELb1E
wide moe 32 20
wide streams 64 64
wide pre_norm 200 200
wide hc_rebuild 128 192

# ---- what a user installs ----
echo "module: $(stat -c %s "$module") bytes"
exported=$(nm -D --defined-only "$module" | awk '$2 == "T" { print $3 }')
if [ "$exported" != bk_backend_module ]; then
  echo "FAIL: the module exports, instead of bk_backend_module alone: $exported"
  failed=$((failed + 1))
else
  passed=$((passed + 1))
fi
if ! ldd "$module" >"$W/ldd" || grep -q 'libcuda\.so\|libcublas\|libcudnn\|libstdc++' "$W/ldd"; then
  echo "FAIL: the module needs one of CUDA's libraries or the C++ library to load"
  cat "$W/ldd"
  failed=$((failed + 1))
else
  passed=$((passed + 1))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

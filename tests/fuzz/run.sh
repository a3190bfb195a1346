#!/bin/bash
# Looks for inputs that break a reader: every target with libFuzzer and the address and undefined-behaviour sanitizers, from the committed
# seeds. Usage: tests/fuzz/run.sh [SECONDS [TARGET...]], 60 seconds for each target. FUZZ_BUILD: build folder, kept
# (default: ${TMPDIR:-/tmp}/birkhoff-fuzz). Findings stay in FUZZ_BUILD/findings. Non-zero exit on any.
set -u
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${FUZZ_BUILD:-${TMPDIR:-/tmp}/birkhoff-fuzz}
seconds=${1:-60}
[ $# -gt 0 ] && shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors index slices config dataset tokens metrics checkpoint case store schedule)
passed=0 failed=0 skipped=0
flags='-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all'

finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ]
  exit
}

mkdir -p "$build/findings" || exit 1
if ! echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }' |
  clang -fsanitize=fuzzer,address,undefined -x c - -o "$build/probe" 2>"$build/probe.log"; then
  echo "skipped: clang cannot link libFuzzer here (Debian: clang and libclang-rt-14-dev): $(tail -n 1 "$build/probe.log")"
  skipped=${#targets[@]}
  finish
fi
[ -x "$source/configure" ] || (cd "$source" && ./bootstrap) >"$build/build.log" 2>&1
# The built-in product and no modules: everything that is run is instrumented.
if ! (cd "$build" && { [ -f Makefile ] || "$source/configure" --quiet CC=clang CFLAGS="$flags -fsanitize=fuzzer-no-link,address,undefined" \
  --disable-shared --with-blas=no --with-check=no --disable-modules; } && make -s -j"$(nproc)" libbirkhoff.la) >>"$build/build.log" 2>&1; then
  tail -n 20 "$build/build.log"
  failed=1
  finish
fi

# fuzz TARGET: one line on success.
fuzz() {
  local name=$1 log=$build/$1.log
  # jansson's flags are configure's
  if ! clang -std=c11 $flags -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -I"$source/core" -I"$source/core/include" -I"$source" \
    "$source/tests/fuzz/fuzz_$name.c" "$build/.libs/libbirkhoff.a" $(pkg-config --libs jansson) -lm -pthread -o "$build/fuzz_$name" 2>"$log"; then
    tail -n 20 "$log"
    failed=$((failed + 1))
    return
  fi
  rm -rf "$build/new_$name"
  mkdir -p "$build/new_$name"
  if ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 "$build/fuzz_$name" -seed=20 -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=2048 \
    -artifact_prefix="$build/findings/$name-" "$build/new_$name" "$source/tests/fuzz/corpus/$name" >"$log" 2>&1; then
    passed=$((passed + 1))
    echo "$name: $(grep -o 'Done [0-9]* runs.*' "$log")"
  else
    failed=$((failed + 1))
    echo "FAIL: $name"
    grep -n -A 20 'ERROR\|runtime error\|SUMMARY\|artifact' "$log" | head -n 60
  fi
}

echo "seed 20, $seconds s for each target, build folder $build"
for target in "${targets[@]}"; do fuzz "$target"; done
finish

#!/bin/bash
# Thread sanitizer: the pool, reading ahead, the trainer's threads, the control store, jobs, ranks that are threads, the operators on two threads, and
# training runs of the command. No BLAS: one that is not instrumented hides what it synchronises. usage: tests/tsan.sh [BUILD_DIR]; after
# bootstrap. CC: gcc or clang.
# The last line is "N passed, N failed, N skipped"; the exit status is non-zero on any failure.
set -u
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
DIR=${1:-$SOURCE/build-test/tsan}
passed=0 failed=0 skipped=0
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-tsan.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT
export TSAN_OPTIONS="halt_on_error=0 exitcode=66 second_deadlock_stack=1" BK_TEST_QUICK=1 CK_FORK=no CK_DEFAULT_TIMEOUT=600

finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}

# check NAME COMMAND...: status 0 and no report
check() {
  local name=$1
  shift
  if "$@" >"$W/log" 2>&1 && ! grep -q 'WARNING: ThreadSanitizer' "$W/log"; then
    passed=$((passed + 1))
    return
  fi
  failed=$((failed + 1))
  echo "---- FAILED: tsan: $name"
  grep -A 40 'WARNING: ThreadSanitizer' "$W/log" | head -n 120 || true
  tail -n 20 "$W/log"
}

printf 'int main(void) { return 0; }\n' >"$W/t.c"
if ! ${CC:-gcc} -fsanitize=thread "$W/t.c" -o "$W/t" 2>/dev/null || ! "$W/t"; then
  echo "no thread sanitizer here: ${CC:-gcc} cannot build with it, or what it builds does not run"
  skipped=1
  echo "$passed passed, $failed failed, $skipped skipped"
  exit 77
fi
programs='birkhoff tests/unit/test_threads tests/unit/test_readahead tests/models/test_watch tests/ops/test_ops tests/unit/test_store tests/unit/test_ranks tests/unit/test_job tests/models/test_parallel tests/models/test_pipeline tests/models/test_pipeline_runs'
if ! (cd "$DIR" && { [ -f Makefile ] || "$SOURCE/configure" --quiet --enable-werror --with-blas=no --disable-modules --disable-shared CC="${CC:-gcc}" \
  CFLAGS='-O1 -g -fsanitize=thread'; } && make -j"${JOBS:-2}" $programs) >"$W/build.log" 2>&1; then
  echo "---- FAILED: tsan: build"
  tail -n 40 "$W/build.log"
  failed=1
  finish
fi
cd "$W" || exit 1
awk 'BEGIN { for (i = 0; i < 1500; i++) printf "%d and %d, ", i % 17, i * i % 23 }' >text.txt
check "the pool" "$DIR/tests/unit/test_threads"
check "reading ahead" "$DIR/tests/unit/test_readahead"
check "training by ranks that are threads" "$DIR/tests/models/test_parallel"
check "pipelines of ranks that are threads" "$DIR/tests/models/test_pipeline"
check "pipelines under delays and faults" "$DIR/tests/models/test_pipeline_runs"
check "the trainer on 1, 2 and 3 threads" "$DIR/tests/models/test_watch"
check "the control store" "$DIR/tests/unit/test_store"
check "ranks that are threads" "$DIR/tests/unit/test_ranks"
check "jobs of threads" "$DIR/tests/unit/test_job"
check "operators on two threads" "$DIR/tests/ops/test_ops" --device cpu --threads 2 --bits
check "a training run" "$DIR/birkhoff" train --model tiny --data text.txt --out run --steps 3 --batch-size 2 --seq-len 32 --threads 2 --set save_every=2 eval_every=2 gain_every=2
check "a run of two rank threads" "$DIR/birkhoff" train --model tiny --data text.txt --out ranks --steps 4 --batch-size 3 --seq-len 32 --comm threads --dp 2 --set save_every=2 eval_every=2 save_async=true
check "a pipeline of two rank threads" "$DIR/birkhoff" train --model tiny --data text.txt --out pipeline --steps 4 --batch-size 4 --seq-len 32 --comm threads --pp 2 --schedule dualpipe --set save_every=2 eval_every=2 gain_every=2 save_async=true
check "its resumption, on more threads than processors" "$DIR/birkhoff" train --data text.txt --out run --resume --steps 5 --threads 5
finish

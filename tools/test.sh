#!/bin/bash
# Sets up a fresh Debian machine (root, apt), builds in several ways and passes every test.
# usage: tools/test.sh [STAGE...]   stages: gcc clang minimal sanitizers valgrind distcheck (default: all)
# The last line is "N passed, N failed, N skipped" over every test that ran; the exit status is non-zero on any failure.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
SOURCE=$PWD
. tools/setup.sh
ROOT=${BUILD_ROOT:-$SOURCE/build-test}
STAGES=("$@")
[ ${#STAGES[@]} -gt 0 ] || STAGES=(gcc clang minimal sanitizers valgrind distcheck)
passed=0 failed=0 skipped=0

install_packages "${BUILD_PACKAGES[@]}" check clang libclang-rt-14-dev valgrind xz-utils groff-base mandoc || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }

# One log: check's "Checks:" line, a line "N passed, N failed[, N skipped]", or the test as a whole.
count_log() {
  local trs=$1 log=${1%.trs}.log result p=0 f=0 s=0
  result=$(sed -n 's/^:test-result: \([A-Z]*\).*/\1/p' "$trs" | head -n 1)
  read -r p f s < <(awk '
    match($0, /Checks: [0-9]+, Failures: [0-9]+, Errors: [0-9]+/) { split(substr($0, RSTART, RLENGTH), w, /[^0-9]+/); p += w[2] - w[3] - w[4]; f += w[3] + w[4]; next }
    /^[0-9]+ passed, [0-9]+ failed/ { split($0, w, /[^0-9]+/); p += w[1]; f += w[2]; s += w[3] }
    END { print p + 0, f + 0, s + 0 }' "$log")
  case $result in
    PASS) [ $((p + f + s)) -gt 0 ] || p=1 ;;
    SKIP) [ $((p + f + s)) -gt 0 ] || s=1 ;;
    *) [ "$f" -gt 0 ] || f=1 ;;
  esac
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  if [ "$f" -gt 0 ]; then
    echo "---- FAILED: $log"
    tail -n 60 "$log"
  fi
}

note_failure() {
  echo "---- FAILED: $1"
  [ -f "${2:-}" ] && tail -n 60 "$2"
  failed=$((failed + 1))
}

# build STAGE CONFIGURE_ARGS...: configures and builds into $ROOT/STAGE, warnings are errors.
build() {
  local stage=$1 dir=$ROOT/$1
  shift
  mkdir -p "$dir"
  (cd "$dir" && { [ -f Makefile ] || "$SOURCE/configure" --quiet --enable-werror "$@"; } && make -j"$(jobs_here)" all) >"$dir/build.log" 2>&1 && return 0
  note_failure "$stage: build" "$dir/build.log"
  return 1
}

# check STAGE MAKE_ARGS...: make check in $ROOT/STAGE, counted test by test.
check() {
  local stage=$1 dir=$ROOT/$1 trs any=0
  shift
  find "$dir" -name '*.trs' -delete
  (cd "$dir" && make -k -j"$(jobs_here)" check "$@") >"$dir/check.log" 2>&1
  local rc=$? before=$failed
  while IFS= read -r trs; do
    any=1
    count_log "$trs"
  done < <(find "$dir" -name '*.trs' | sort)
  [ $any -eq 1 ] || note_failure "$stage: no test ran" "$dir/check.log"
  [ $rc -eq 0 ] || [ "$failed" -gt "$before" ] || note_failure "$stage: make check" "$dir/check.log"
}

stage_gcc() { build gcc CC=gcc CFLAGS='-O2 -g' --disable-static && check gcc; }
stage_clang() { build clang CC=clang CFLAGS='-O2 -g' --disable-static && check clang; }
# No optional dependency at all: the built-in products, no modules; small, and linked statically where firmware would be.
stage_minimal() {
  build minimal CC=gcc CFLAGS='-Os -g' --with-blas=no --disable-modules || return
  check minimal
  if tests/size.sh "$ROOT/minimal" >"$ROOT/minimal/size.log" 2>&1; then
    passed=$((passed + 1))
  else
    note_failure "minimal: size" "$ROOT/minimal/size.log"
  fi
}
stage_sanitizers() {
  # Leaks are checked too. OpenBLAS is not instrumented, the built-in product is.
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
  build sanitizers --enable-debug CC=gcc CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer' --disable-static &&
    BK_TEST_QUICK=1 check sanitizers
  unset ASAN_OPTIONS UBSAN_OPTIONS
}
stage_valgrind() {
  build valgrind CC=gcc CFLAGS='-O1 -g' --disable-static || return
  BK_TEST_QUICK=1 CK_FORK=no check valgrind LOG_COMPILER="$ROOT/valgrind/libtool --mode=execute valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite,possible --suppressions=$SOURCE/tests/valgrind.supp" \
    TESTS="$(cd "$ROOT/valgrind" && make -s print-valgrind-tests)"
}
stage_distcheck() {
  local dir=$ROOT/distcheck
  mkdir -p "$dir"
  # No run of the tests here (the other stages do that): the tarball builds, installs, uninstalls; what is installed can be used.
  if (cd "$dir" && "$SOURCE/configure" --quiet CFLAGS='-O1 -g' && make distcheck AM_DISTCHECK_CONFIGURE_FLAGS='--enable-werror --with-check=no --disable-static CFLAGS=-O1' \
    MAKEFLAGS=-j"$(jobs_here)" && make -j"$(jobs_here)" all) >"$dir/distcheck.log" 2>&1 && "$SOURCE/tests/install-check.sh" "$dir" >>"$dir/distcheck.log" 2>&1; then
    passed=$((passed + 1))
  else
    note_failure distcheck "$dir/distcheck.log"
  fi
}

begin=$SECONDS
mkdir -p "$ROOT"
if ./bootstrap >"$ROOT/bootstrap.log" 2>&1; then
  for stage in "${STAGES[@]}"; do
    at=$SECONDS
    echo "== $stage"
    "stage_$stage"
    echo "   $((SECONDS - at)) s; so far $passed passed, $failed failed, $skipped skipped"
  done
else
  note_failure bootstrap "$ROOT/bootstrap.log"
fi
echo "in $((SECONDS - begin)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

#!/bin/bash
# Sets up a fresh Debian machine (root, apt), builds in several ways and passes every test.
# usage: tools/test.sh [--long] [STAGE...]
# Stages: gcc clang minimal sanitizers valgrind distcheck (all of them by default). --long adds the long level:
#   full      clang with all that the stage of that name leaves out, it and minimal with the large shapes that are otherwise left to gcc;
#             the cuda backend for every target
#   arm64     cross-built: the operator harness, unit tests and training of `tiny` under qemu
#   tsan      thread sanitizer
#   fuzz      60 s of every fuzz target
#   kill      kill -9 at random moments of a run, and of ranks of one; then resume; two hosts that lose their link
#   memcheck  every test program and the command under valgrind
# The last line is "N passed, N failed, N skipped" over every test that ran; the exit status is non-zero on any failure.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
SOURCE=$PWD
. tools/setup.sh
ROOT=${BUILD_ROOT:-$SOURCE/build-test}
ORDINARY=(gcc clang minimal sanitizers valgrind distcheck) LONG=(full arm64 tsan fuzz kill memcheck)
STAGES=()
for word in "$@"; do
  case $word in
    --long) [ $# -gt 1 ] || STAGES=("${ORDINARY[@]}" "${LONG[@]}") ;;
    *) case " ${ORDINARY[*]} ${LONG[*]} " in *" $word "*) STAGES+=("$word") ;; *) echo "no stage $word; there are: ${ORDINARY[*]}, and long ones: ${LONG[*]}" >&2; exit 2 ;; esac ;;
  esac
done
[ ${#STAGES[@]} -gt 0 ] || STAGES=("${ORDINARY[@]}")
passed=0 failed=0 skipped=0
export BK_TEST_CACHE=$ROOT/cache # what GPU drivers compile, for all stages together
export BK_TEST_FORMAT=1 # the layout of sources is judged, not skipped

install_packages "${BUILD_PACKAGES[@]}" "${GPU_BUILD_PACKAGES[@]}" "${GPU_TEST_PACKAGES[@]}" "${MPI_PACKAGES[@]}" g++ check clang clang-format-14 libclang-rt-14-dev valgrind xz-utils groff-base mandoc || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }

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

# copy_spirv STAGE: what glslc has made for the stage gcc, if that is here, is what it would make again.
copy_spirv() {
  local from=$ROOT/gcc/backends/vulkan to=$ROOT/$1/backends/vulkan
  [ "$1" != gcc ] && [ -d "$from/spirv" ] && [ ! -e "$to/spirv" ] || return 0
  mkdir -p "$to" && cp -rp "$from/spirv" "$to/"
}

# build STAGE CONFIGURE_ARGS...: configures and builds into $ROOT/STAGE, warnings are errors.
build() {
  local stage=$1 dir=$ROOT/$1
  shift
  mkdir -p "$dir"
  copy_spirv "$stage"
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

# script NAME COMMAND...: a command that closes with "N passed, N failed, N skipped". Its other lines are shown: figures, or what failed.
script() {
  local name=$1 log=$ROOT/$1.log rc p f s
  shift
  "$@" >"$log" 2>&1
  rc=$?
  read -r p f s < <(awk '/^[0-9]+ passed, [0-9]+ failed/ { split($0, w, /[^0-9]+/); p = w[1]; f = w[2]; s = w[3] } END { print p + 0, f + 0, s + 0 }' "$log")
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  grep -v '^[0-9]* passed, [0-9]* failed' "$log" | tail -n 60 | sed 's/^/   /'
  echo "   $name: $p passed, $f failed, $s skipped"
  if [ $((p + f + s)) -eq 0 ]; then note_failure "$name: it counted nothing (status $rc)"
  elif [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then note_failure "$name: status $rc"; fi
}

# The large shapes run in gcc, and everywhere at the long level. What is slow to compile or to run is compiled and run as few times as
# serves: the cuda backend by nvcc for one target here (for all of them in full, and by tools/gpu-check.sh for the card that is there),
# its kernels on the host here and with sanitizers, opencl and vulkan here and with sanitizers, opencl's host code under valgrind at the long level,
# mpi here, in full by clang, and with sanitizers, there without the check of leaks in processes that a launcher starts: an MPI library keeps
# memory that neither sanitizers nor valgrind can tell from what is lost.
NO_GPU="--with-opencl=no --with-vulkan=no"
build_gcc() { build gcc CC=gcc CFLAGS='-O2 -g' --disable-static --with-opencl=yes --with-vulkan=yes --with-mpi=yes CUDA_ARCHS=90a; }
# No optional part: the built-in products, no modules, one fast instruction set beside portable C; small, and linked statically where
# firmware would be.
build_minimal() {
  local fast=avx2
  [ "$(uname -m)" != aarch64 ] || fast=neon
  build minimal CC=gcc CFLAGS='-Os -g' --with-blas=no --with-mpi=no --disable-modules --with-cpu-isa=$fast
}

stage_gcc() { build_gcc && check gcc; }
# Another compiler's code for the library: no modules, not the scripts that are about words and tables.
stage_clang() {
  build clang CC=clang CXX=no CFLAGS='-O2 -g' --disable-static --with-cuda=no --with-mpi=no $NO_GPU &&
    BK_TEST_QUICK=1 check clang TESTS="$(cd "$ROOT/clang" && make -s print-short-tests)"
}
stage_minimal() {
  build_minimal || return
  BK_TEST_QUICK=1 check minimal TESTS="$(cd "$ROOT/minimal" && make -s print-short-tests)"
  script size tests/size.sh "$ROOT/minimal"
  script install tests/install-check.sh "$ROOT/minimal"
}
stage_full() {
  build full CC=clang CXX=clang++ CFLAGS='-O2 -g' --disable-static --with-cuda=no --with-opencl=yes --with-vulkan=yes --with-mpi=yes && BK_TEST_LONG=1 check full
  build_minimal && check minimal
  build targets CC=gcc CXX=no CFLAGS='-O2 -g' --disable-static --with-check=no --with-mpi=no $NO_GPU CUDA_ARCHS='80 90a 100' && check targets TESTS=tests/cuda/facts.sh
}
stage_sanitizers() {
  # Leaks are checked too. OpenBLAS is not instrumented, the built-in product is. Of the kernels on the host, which take most of the time to
  # compile, what the address sanitizer finds is left to it; without -g they compile a third faster.
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 LSAN_OPTIONS=suppressions=$SOURCE/tests/lsan.supp:print_suppressions=0
  local flags='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'
  build sanitizers --enable-debug CC=gcc CFLAGS="$flags" CXXFLAGS="${flags/-g /} -fno-sanitize=null,object-size,pointer-overflow" --disable-static \
    --with-cuda=no --with-opencl=yes --with-vulkan=yes --with-mpi=yes || return
  # Without a Vulkan driver first: what lavapipe leaks in every probe cannot be told from leaks of our own. Then on it, without that check.
  VK_ICD_FILENAMES=/none BK_TEST_QUICK=1 BK_TEST_STEPS=4 check sanitizers TESTS="$(cd "$ROOT/sanitizers" && make -s print-sanitizer-tests)"
  ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 BK_TEST_QUICK=1 BK_TEST_STEPS=4 check sanitizers TESTS="$(cd "$ROOT/sanitizers" && make -s print-vulkan-tests)"
  unset ASAN_OPTIONS UBSAN_OPTIONS LSAN_OPTIONS
}
# Without a C++ compiler: the cuda backend on the host is for the sanitizers. Without vulkan: its driver is one compiler in another.
build_valgrind() { build valgrind CC=gcc CXX=no CFLAGS='-O1 -g' --disable-static --with-cuda=no --with-opencl=yes --with-vulkan=no --with-mpi=no; }
MEMCHECK="$ROOT/valgrind/libtool --mode=execute valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite,possible --suppressions=$SOURCE/tests/valgrind.supp"
stage_valgrind() {
  build_valgrind || return
  BK_TEST_QUICK=1 CK_FORK=no check valgrind LOG_COMPILER="$MEMCHECK" TESTS="$(cd "$ROOT/valgrind" && make -s print-valgrind-tests)"
}
stage_memcheck() {
  build_valgrind || return
  BK_TEST_QUICK=1 CK_FORK=no check valgrind LOG_COMPILER="$MEMCHECK" TESTS="$(cd "$ROOT/valgrind" && make -s print-programs)"
  printf '#!/bin/sh\nexec %s "%s/valgrind/birkhoff" "$@"\n' "$MEMCHECK" "$ROOT" >"$ROOT/birkhoff-memcheck"
  chmod +x "$ROOT/birkhoff-memcheck"
  BIRKHOFF=$ROOT/birkhoff-memcheck check valgrind TESTS="$(cd "$ROOT/valgrind" && make -s print-command-tests)"
}
stage_arm64() {
  local root=$ROOT/arm64.sysroot run='qemu-aarch64-static'
  install_packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static &&
    sysroot "$root" arm64 libjansson4 libjansson-dev check libsubunit0 libsubunit-dev >"$ROOT/arm64.sysroot.log" 2>&1 ||
    { note_failure "arm64: packages" "$ROOT/arm64.sysroot.log"; return; }
  build_gcc || return # to compare with
  PKG_CONFIG_LIBDIR=$root/usr/lib/aarch64-linux-gnu/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root \
    build arm64 --host=aarch64-linux-gnu PKG_CONFIG=pkg-config CC='aarch64-linux-gnu-gcc -static' CFLAGS='-O2 -g' \
    --disable-shared --disable-modules --with-blas=no || return
  BK_TEST_QUICK=1 CK_FORK=no check arm64 LOG_COMPILER=$run TESTS="$(cd "$ROOT/arm64" && make -s print-arm64-tests)"
  BK_TEST_QUICK=1 script arm64-portable $run "$ROOT/arm64/tests/ops/test_ops" --isa portable
  printf '#!/bin/sh\nexec %s "%s/arm64/birkhoff" "$@"\n' "$run" "$ROOT" >"$ROOT/birkhoff-arm64"
  chmod +x "$ROOT/birkhoff-arm64"
  TOP_SRCDIR=$SOURCE TOP_BUILDDIR=$ROOT/gcc BIRKHOFF_ARM64=$ROOT/birkhoff-arm64 script arm64-train sh tests/cli/long_arm64.sh
}
stage_tsan() { script tsan bash tests/tsan.sh "$ROOT/tsan"; }
stage_fuzz() { FUZZ_BUILD=$ROOT/fuzz script fuzz bash tests/fuzz/run.sh 60; }
stage_kill() {
  build_gcc || return
  TOP_SRCDIR=$SOURCE TOP_BUILDDIR=$ROOT/gcc script kill sh tests/cli/long_kill.sh
  TOP_SRCDIR=$SOURCE TOP_BUILDDIR=$ROOT/gcc script kill-ranks sh tests/cli/long_parallel.sh
}
stage_distcheck() {
  local dir=$ROOT/distcheck
  mkdir -p "$dir"
  # No run of the unit tests here (the other stages do that), nor of the slow scripts: the tarball builds, without glslc too, installs
  # and uninstalls. That what is installed can be used is seen in the stage minimal, which has both libraries.
  copy_spirv distcheck
  if (export BK_TEST_QUICK=1; cd "$dir" && "$SOURCE/configure" --quiet --with-cuda=no --with-opencl=no --with-vulkan=yes --with-mpi=no CXX=no CFLAGS=-O0 &&
    make -j"$(jobs_here)" distcheck TESTS="$(make -s print-dist-tests)" AM_DISTCHECK_CONFIGURE_FLAGS='--enable-werror --with-check=no --with-cuda=no --with-opencl=no --with-vulkan=yes --with-mpi=no GLSLC=/no/glslc --disable-static CXX=no CFLAGS=-O0') >"$dir/distcheck.log" 2>&1; then
    passed=$((passed + 1))
  else
    note_failure distcheck "$dir/distcheck.log"
  fi
}

# Of all that this script waited for.
cpu_seconds() { awk -v hz="$(getconf CLK_TCK)" '{ print int(($16 + $17) / hz) }' "/proc/$$/stat"; }

begin=$SECONDS
mkdir -p "$ROOT"
if ./bootstrap >"$ROOT/bootstrap.log" 2>&1; then
  for stage in "${STAGES[@]}"; do
    at=$SECONDS cpu=$(cpu_seconds)
    echo "== $stage"
    "stage_$stage"
    echo "   $((SECONDS - at)) s ($(($(cpu_seconds) - cpu)) s of processor time); so far $passed passed, $failed failed, $skipped skipped"
  done
else
  note_failure bootstrap "$ROOT/bootstrap.log"
fi
echo "in $((SECONDS - begin)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

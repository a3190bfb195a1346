#!/bin/bash
# Checks a GPU backend on a machine with such a GPU, in one go, and writes a report after each stage: cuda (reckoned at about 11 minutes on an
# H100; not yet run on a GPU), or opencl or vulkan on any device that they find.
# usage: tools/gpu-check.sh [--device cuda:0|opencl:N|vulkan:N] [--part 1|2] [--stage NAME]... [--out DIR] [--work DIR] [--limit SECONDS] [--text FILE] [--jobs N]
#        tools/gpu-check.sh --pack FILE.tar.gz [--device ...]        makes the tarball to take to that machine
# Without --device, cuda:0; CUDA_VISIBLE_DEVICES chooses another card. opencl:N and vulkan:N are numbered as `birkhoff devices` numbers them.
# Needs a C compiler there, and for cuda nvcc: no root, no network, no autotools, no packages. The one library that the command links, jansson,
# comes from JANSSON=DIR (jansson.h, libjansson.a), from the folder gpu-kit/ that --pack puts into the tarball, or is the system's. OpenCL and
# Vulkan take headers and, from a checkout, Vulkan's kernels take glslc: gpu-kit/ has the headers and the compiled kernels, where --pack was
# told such a device. What is missing is said, with its Debian package, before anything is compiled. cuDNN's header is looked for beside nvcc,
# in the system's folders and in Python's packages, or is in CUDNN=DIR.
# Two calls of at most 8 minutes each, for machines that are lent for as long: --part 1 is build to bits, --part 2 is ops to the end (and the
# build, where the programs of part 1 are gone or are of other sources). What a call found lies in --out (build-gpu; build-gpu-opencl-N,
# build-gpu-vulkan-N) and, when it ends, also in one archive there: gpu-check.tar.gz, gpu-check-part1.tar.gz, gpu-check-opencl-0.tar.gz and so
# on. Objects, programs and runs lie in --work (build-gpu/work and so on). After --limit seconds (475 with --part) nothing new is begun,
# and what runs is ended.
# Stages, in this order; without --part and --stage all of them; sanitizer, peers and ncu are cuda's alone:
#   build      cuda: for the card that is there (another: CUDA_ARCH=90a); a kernel file that does not compile leaves its ops failing, and all
#              others are checked. opencl, vulkan: gpu-check-portable.sh
#   devices    what is there: name, driver, limits; cuda: which versions of cuBLASLt and cuDNN serve a product and an attention; opencl,
#              vulkan: what clinfo and vulkaninfo say, where they are
#   harness    every op against ref; cuda: with cuBLASLt and cuDNN and without, and some at shapes of real models; opencl: small shapes, without CLBlast if it is there, all
#              shapes; vulkan: small shapes, in its other way of binding, all shapes; after a failure op by op, each in a process of its own
#   sanitizer  compute-sanitizer: memcheck, racecheck, synccheck, initcheck on small shapes, on our own kernels
#   train      100 steps of demo, fp32 and bf16, against cpu (opencl, vulkan: 40 small steps against ref): fp32 over steps 1 to 30, bf16 by
#              means of 20 steps (two right backends drift apart after that); verify tiny for each residual connection
#   bits       the same run twice, without step graphs, with merges on a stream of their own, without recompute: the same bits
#   ops        bench ops; cuda: in bf16 at 32,768 tokens of width 7,168, at 4,096 of 2,560 and at its default, against the shares that are
#              wanted; opencl, vulkan: fp32 and bf16, at its default and at 4,096 of 2,560, with the roofs
#   step       bench step, mhc against plain; cuda: at the dimensions of mhc-27b and mhc-3b with 4 layers, sequences of 4096: what mhc costs, the
#              share of the measured rate of matrix products, memory against plan; opencl, vulkan: demo; then the time of every op
#   peers      the same ops in PyTorch and in the kernel packages that are installed (tests/peers/gpu_run.sh; PEER_PYTHON)
#   ncu        Nsight Compute on the kernels of the residual connections, at the clocks that all else runs at: what limits each
# Every command has a time-out. What is not there is skipped by name. The last line is "N passed, N failed, N skipped"; each check is one.
# Goals of speed are reported as met or missed and are no checks; there are some for cuda alone.
# GPU_CHECK_ON_HOST=1 tries this script itself, on a machine without a GPU: cuda's kernels are compiled for the host (tests/cuda-on-host), opencl
# and vulkan take devices that are processors, and shapes are short; figures then mean nothing. tests/cuda-on-host/gpu_check.sh and
# tests/gpu-check do so, with GPU_CHECK_CFLAGS instead of -O2 -g, GPU_CHECK_OBJECTS=DIR (an object that lies there is taken and not
# compiled) and GPU_CHECK_CASE=TEXT (the harness has the cases whose names contain it). These count then only.
# shellcheck disable=SC2317 # main ends in exit, which makes it think that nothing is called
set -u -o pipefail
export LC_ALL=C # messages of the linker are read, and lists of files have one order
unset CDPATH
FROM=$PWD
cd "$(dirname "$0")/.." || exit 1
at() { case $1 in /*) echo "$1" ;; *) echo "$FROM/$1" ;; esac; } # names are the caller's
[ -z "${CUDNN:-}" ] || CUDNN=$(at "$CUDNN")
[ -z "${JANSSON:-}" ] || JANSSON=$(at "$JANSSON")
STAGES=() OUT='' WORK='' PART='' LIMIT='' TEXT='' JOBS=$(nproc 2>/dev/null || echo 4) PACK='' DEVICE=cuda:0
usage() { sed -n '4,5p' "$0" | sed 's/^# //' >&2; echo "${1:-stages: ${ALL[*]}}" >&2; exit 2; }
whole() { case $1 in '' | *[!0-9]*) usage "a whole number is expected, not \"$1\"" ;; esac }
# take_device NAME: DEVICE, BACKEND, and the stages that there are for it
take_device() {
  ALL=(build devices harness train bits ops step) PART1=(build devices harness train bits) PART2=(build ops step)
  case $1 in
    cuda | cuda:0) DEVICE=cuda:0 ALL=(build devices harness sanitizer train bits ops step peers ncu) PART1=(build devices harness sanitizer train bits) PART2=(build ops step peers ncu) ;;
    cuda:*) usage "--device $1: the card that is checked is cuda:0; CUDA_VISIBLE_DEVICES=${1#cuda:} makes another card cuda:0" ;;
    opencl | vulkan) DEVICE=$1:0 ;;
    opencl:*[!0-9]* | vulkan:*[!0-9]* | opencl: | vulkan:) usage "--device $1: a number is expected behind ${1%%:*}:" ;;
    opencl:* | vulkan:*) DEVICE=$1 ;;
    *) usage "--device $1: there is no such backend; cuda:0, opencl:N and vulkan:N are checked" ;;
  esac
  BACKEND=${DEVICE%%:*} LABEL=${DEVICE/:/-}
}
take_device "$DEVICE"
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --device) take_device "$2" ;;
    --out) OUT=$(at "$2") ;;
    --work) WORK=$(at "$2") ;;
    --part) case $2 in 1 | 2) PART=$2 ;; *) usage "--part $2: 1 or 2" ;; esac ;;
    --stage) STAGES+=("$2") ;;
    --limit) whole "$2"; LIMIT=$2 ;;
    --text) TEXT=$(at "$2") ;;
    --jobs) whole "$2"; JOBS=$2 ;;
    --pack) PACK=$(at "$2") ;;
    *) usage ;;
  esac
  shift 2
done
for stage in "${STAGES[@]}"; do
  case " ${ALL[*]} " in *" $stage "*) ;; *) usage "--stage $stage: the stages for $BACKEND are ${ALL[*]}" ;; esac
done
case $PART in 1) STAGES=("${PART1[@]}" "${STAGES[@]}") ;; 2) STAGES=("${PART2[@]}" "${STAGES[@]}") ;; esac
[ ${#STAGES[@]} -gt 0 ] || STAGES=("${ALL[@]}")
[ -n "$LIMIT" ] || if [ -n "$PART" ]; then LIMIT=475; else LIMIT=86400; fi
ON_HOST=${GPU_CHECK_ON_HOST:-}
SUFFIX=-$LABEL PATIENCE=4 # devices may be small, and ref is slow: time-outs are so many times as long
[ "$BACKEND" != cuda ] || SUFFIX='' PATIENCE=1
OUT=${OUT:-$PWD/build-gpu$SUFFIX} WORK=${WORK:-$PWD/build-gpu$SUFFIX/work}
# One command a line, run side by side; one that fails names itself and keeps none from running.
RUN_LIST=(xargs -P "$JOBS" -d '\n' '-I{}' sh -c '{} || { echo "failed: {}" >&2; exit 1; }')
. tools/gpu-check-portable.sh

# ---- the tarball ----
if [ -n "$PACK" ]; then
  [ -e .git ] || { echo "--pack makes a tarball of a git checkout; this is none" >&2; exit 1; }
  kit=$(mktemp -d) || exit 1
  trap 'rm -rf "$kit"' EXIT
  lib=$(pkg-config --variable=libdir jansson)/libjansson.a include=$(pkg-config --variable=includedir jansson)
  [ -f "$lib" ] || { echo "libjansson.a is not here (Debian: libjansson-dev)" >&2; exit 1; }
  mkdir -p "$kit/birkhoff/gpu-kit"
  # What is new and not ignored too, so that the tarball is the tree as it stands.
  git ls-files -z --cached --others --exclude-standard --deduplicate | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    xargs -0 cp --parents -t "$kit/birkhoff" &&
    cp "$lib" "$include/jansson.h" "$include/jansson_config.h" "$kit/birkhoff/gpu-kit" && pack_portable "$kit/birkhoff/gpu-kit" &&
    git rev-parse --short=12 HEAD >"$kit/birkhoff/gpu-kit/commit" &&
    tar -C "$kit" -czf "$PACK" birkhoff && echo "$PACK: unpack it there and run birkhoff/tools/gpu-check.sh$([ "$BACKEND" = cuda ] || echo " --device $DEVICE")"
  exit
fi

# All files of the folder go into the archive: somebody else's must not.
is_ours() { head -n 1 "$OUT/report.md" 2>/dev/null | grep -q '^# GPU check, commit '; }
[ -z "$(ls -A "$OUT" 2>/dev/null)" ] || is_ours || { echo "--out $OUT: it is not empty and has no report of an earlier check; name a folder that is new, empty or has one" >&2; exit 2; }
mkdir -p "$OUT" "$WORK/obj" || exit 1
OUT=$(cd "$OUT" && pwd) WORK=$(cd "$WORK" && pwd)
REPORT=$OUT/report.md TALLY=$WORK/tally
COMMIT=$(cat gpu-kit/commit 2>/dev/null || git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BIRKHOFF=$WORK/birkhoff OPS=$WORK/test_ops DTYPES=(fp32 bf16) CASES=()
[ -z "$ON_HOST" ] || [ -z "${GPU_CHECK_CASE:-}" ] || CASES=(--case "$GPU_CHECK_CASE")

say() { echo "$*" | tee -a "$REPORT"; }
# Figures and lists keep their shape in the report.
show() { { echo '```'; cat; echo '```'; } | tee -a "$REPORT"; }
# Stages are processes of their own, so that none takes the others with it: what they count goes through a file.
pass() { echo passed >>"$TALLY"; say "- passed: $1"; }
skip() { echo skipped >>"$TALLY"; say "- skipped: $1"; }
fail() {
  echo failed >>"$TALLY"
  say "- **failed**: $1"
  [ ! -s "${2:-}" ] || what_failed "$2" | show
}
# What went wrong first, with what was said just before; after a fault on the device every later case fails as well, so the end says little.
what_failed() {
  if grep -q '^FAIL' "$1"; then grep -m 5 -B 3 -A 5 '^FAIL' "$1"; echo ...; tail -n 3 "$1"
  elif grep -qi 'error' "$1"; then grep -i -m 5 -B 2 -A 5 'error' "$1"; echo ...; tail -n 8 "$1"
  else tail -n 30 "$1"
  fi
}
# Every kind of residual connection, from the command itself.
kinds() { "$BIRKHOFF" train --help-config | sed -n 's/^ *residual=\([a-z_]*\) .*/\1/p'; }
# Seconds that are left of the call, and a command with a time-out: within SECONDS COMMAND... It is waited for in a way that a signal ends both.
left() { echo $((LIMIT - SECONDS)); }
within() {
  local limit=$1 rest
  shift
  rest=$(left)
  [ "$rest" -gt 0 ] || return 124
  timeout -k 5 "$((limit < rest ? limit : rest))" "$@" <&0 &
  # shellcheck disable=SC2064
  trap "kill $! 2>/dev/null; exit 143" TERM
  wait $!
}
# check SECONDS NAME LOG COMMAND...
check() {
  local limit=$1 name=$2 log=$3 begin=$SECONDS rc
  shift 3
  [ "$(left)" -gt 0 ] || { skip "$name: no time is left of $LIMIT s"; return 1; }
  within "$limit" "$@" >"$log" 2>&1
  rc=$?
  case $rc in
    0) pass "$name ($((SECONDS - begin)) s)" ;;
    124 | 137) fail "$name: not done after $((SECONDS - begin)) s" "$log" ;;
    *) fail "$name: exit status $rc after $((SECONDS - begin)) s" "$log" ;;
  esac
  return "$rc"
}

# ---- build ----
defines=(-D_GNU_SOURCE -DHAVE_DLOPEN=1 -DHAVE_JANSSON=1 -DSIZEOF_SIZE_T=8 "-DBK_STATIC_BACKEND=bk_backend_$BACKEND" -DBK_COMMIT="\"$COMMIT\""
  -DBK_BACKEND_DIR='"/nowhere"' -Icore -Icore/include -I.)
optimise=(-O2 -g)
# shellcheck disable=SC2206
[ -z "$ON_HOST" ] || [ -z "${GPU_CHECK_CFLAGS:-}" ] || optimise=($GPU_CHECK_CFLAGS)
cflags=(-std=c11 "${optimise[@]}" -ffp-contract=off -fopenmp-simd -pthread -Werror=implicit-function-declaration)

# smi FIELDS [MORE FORMAT]: of the first card; a driver that hangs is not waited for
smi() { within 30 nvidia-smi --query-gpu="$1" --format="csv,noheader${2:-}" 2>/dev/null | head -n 1; }
cuda_root() {
  local nvcc
  nvcc=$(command -v nvcc) || nvcc=/usr/local/cuda/bin/nvcc
  [ -x "$nvcc" ] && (cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
}
card_arch() {
  local cc
  cc=${CUDA_ARCH:-$(smi compute_cap | tr -d .)}
  case $cc in 90) echo 90a ;; 100) echo 100a ;; '') echo 90a ;; *) echo "$cc" ;; esac
}

# Where jansson comes from: JANSSON, or of the tarball's and the system's the first that links (the tarball's may be for another processor).
# jansson_libs is empty where there is none.
jansson_flags=() jansson_libs=()
find_jansson() {
  local place places=(gpu-kit '')
  [ -z "${JANSSON:-}" ] || places=("$JANSSON")
  echo '#include <jansson.h>
int main(void) { json_decref(json_object()); return 0; }' >"$WORK/jansson.c"
  for place in "${places[@]}"; do
    jansson_flags=() jansson_libs=(-ljansson)
    [ -z "$place" ] || jansson_flags=("-I$place") jansson_libs=("$place/libjansson.a")
    "${CC:-cc}" "${jansson_flags[@]}" -o "$WORK/jansson" "$WORK/jansson.c" "${jansson_libs[@]}" >"$OUT/jansson.log" 2>&1 && return
  done
  jansson_libs=()
}

# compile NAME COMMAND...: a line of the list that makes the object NAME. In a trial on the host an object may be at hand.
compile() {
  local object=$WORK/obj/$1 given=${ON_HOST:+${GPU_CHECK_OBJECTS:-}}
  shift
  if [ -n "$given" ] && [ -f "$given/$(basename "$object")" ]; then printf '%q ' cp "$given/$(basename "$object")" "$object"
  else printf '%q ' "$@" -o "$object"
  fi
  echo
}
c_list() {
  local source isa
  # backend-minimal is a module of its own; so is each of the other test programs.
  find core models tools tests/ops backends/ref backends/cpu -path 'tests/ops/backend-*' -prune -o -name '*.c' ! -name '*_tmpl.c' ! -name 'test_[!o]*' -print | sort |
    while read -r source; do compile "$(echo "$source" | tr / _).o" "${CC:-cc}" "${cflags[@]}" "${defines[@]}" "${isa_defines[@]}" "${jansson_flags[@]}" -c "$source"; done
  for isa in portable "${isas[@]}"; do
    for source in backends/cpu/*_tmpl.c; do
      # shellcheck disable=SC2046
      compile "$(basename "$source" .c)_$isa.o" "${CC:-cc}" "${cflags[@]}" "${defines[@]}" "${isa_defines[@]}" $(isa_flags "$isa") "-DBK_ISA=$isa" -c "$source"
    done
  done
}
# The folder of cuDNN's header and that of the library: of CUDNN=DIR, beside nvcc, of the system, of a package of Python's.
find_cudnn() {
  if [ -n "${CUDNN:-}" ]; then tools/find-cudnn.sh "$CUDNN"; else tools/find-cudnn.sh "$1" /usr/local /usr || tools/find-cudnn.sh; fi
}
cuda_list() { # ARCH ROOT
  local source name arch=$1 root=$2 cuda=()
  if [ -n "$ON_HOST" ]; then cuda=(-DBK_CUDA_ON_HOST -Itests/cuda-on-host/include); else cuda=(${cudnn[0]:+"-I${cudnn[0]}" -DHAVE_CUDNN_H} "-I$root/include"); fi
  for source in backends/cuda/kernels/*.cu; do # first: they take the longest
    name=$(basename "$source").o
    if [ -n "$ON_HOST" ]; then compile "$name" "${CXX:-c++}" "${on_host[@]}" "${cuda[@]}" "${defines[@]}" -include tests/cuda-on-host/shim.h -c -x c++ "$source"
    else
      compile "$name" "$root/bin/nvcc" -std=c++17 -O3 -lineinfo "-gencode=arch=compute_$arch,code=sm_$arch" -Xptxas -v -Icore -Icore/include -I. \
        -Xcompiler -fno-exceptions,-fno-threadsafe-statics,-fno-rtti -c "$source"
    fi
  done
  for source in backends/cuda/*.c; do
    [ -z "$ON_HOST" ] || [ "$source" != backends/cuda/library.c ] || continue
    compile "$(echo "$source" | tr / _).o" "${CC:-cc}" "${cflags[@]}" "${cuda[@]}" "${defines[@]}" -c "$source"
  done
  for source in ${ON_HOST:+tests/cuda-on-host/*.cpp}; do compile "$(basename "$source").o" "${CXX:-c++}" "${on_host[@]}" "${cuda[@]}" "${defines[@]}" -c "$source"; done
}
compile_all() { # ARCH ROOT
  { if [ "$BACKEND" = cuda ]; then cuda_list "$@"; else portable_list; fi; c_list; } >"$WORK/compile.list"
  within 1200 "${RUN_LIST[@]}" <"$WORK/compile.list"
}

isa_flags() {
  case $1 in
    avx2) echo -mavx2 -mfma -ffp-contract=fast ;;
    avx512) echo -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512 -ffp-contract=fast ;;
    neon) echo -DBK_SIMD_NEON -ffp-contract=fast ;;
  esac
}

link_one() { # PROGRAM OBJECT...
  local program=$1 cuda=() shared
  shift
  case $BACKEND$ON_HOST in
    cuda) cuda=("-L$root/lib64" -lcudart_static -lrt ${cudnn[1]:+"-Wl,-rpath,${cudnn[1]}"}) ;;
    cuda?*) cuda=(-lstdc++) ;;
  esac
  mapfile -t shared < <(find "$WORK/obj" -name '*.o' ! -name 'tools_*' ! -name 'tests_ops_*')
  within 120 "${CC:-cc}" -pthread "${optimise[@]}" -o "$program" "$@" "${shared[@]}" "${jansson_libs[@]}" "${cuda[@]}" -ldl -lm
}
link_all() { link_one "$BIRKHOFF" "$WORK"/obj/tools_*.o && link_one "$OPS" "$WORK"/obj/tests_ops_*.o; }

# write_stubs MESSAGES OF THE LINKER: in the place of kernel files that did not compile. Another kernel serves their ops, or they fail by
# name, so that all else can be checked.
write_stubs() {
  local name names
  echo '#include "birkhoff/status.h"' >"$WORK/stubs.c"
  mapfile -t names < <(sed -n "s/.*undefined \(reference to [\`']\|symbol: \)\(bk_cuda_[a-z0-9_]*\).*/\2/p" "$1" | sort -u)
  for name in "${names[@]}"; do
    case $name in
      *_accepts) echo "int $name(void); int $name(void) { return 0; }" ;;
      *_release) echo "void $name(void); void $name(void) {}" ;;
      *) echo "int $name(void); int $name(void) { return BK_ERR_DEVICE; }" ;;
    esac
  done >>"$WORK/stubs.c"
  say "  What stands in these files is not there for what follows: ${names[*]}"
  "${CC:-cc}" "${cflags[@]}" "${defines[@]}" -c "$WORK/stubs.c" -o "$WORK/obj/stubs.o"
}

# What the programs are made of and with; a second call takes those of the first where it is the same.
sources_sum() { { echo "$1 ${optimise[*]} ${CC:-cc} $root ${cudnn[*]} ${jansson_flags[*]} ${jansson_libs[*]}"; find core models tools tests/ops tests/cuda-on-host backends -type f | LC_ALL=C sort | xargs cat; } | cksum; }

# Those of an earlier call must not be taken for what could not be built.
forget_programs() { rm -f "$WORK"/obj/* "$BIRKHOFF" "$OPS" "$WORK/built"; }
prepare_cuda() {
  root=$(cuda_root) || { fail "build: nvcc is not found (PATH, /usr/local/cuda/bin)"; return 1; }
  arch=$(card_arch)
  "$root/bin/nvcc" --version | tail -n 2 | show
  mapfile -t cudnn < <(find_cudnn "$root")
  if [ -n "${CUDNN:-}" ] && [ ${#cudnn[@]} -eq 0 ]; then
    fail "build: CUDNN=$CUDNN does not serve: there is no cudnn.h or include/cudnn.h of cuDNN 9.8 or a later 9, or its name has white space"
    return 1
  fi
  say "- header of cuDNN: ${cudnn[0]:-none, so our own kernels serve attention}"
}
stage_build() {
  local root='' arch=host begin=$SECONDS isas=() isa_defines=() files cudnn=()
  local on_host=(-std=c++17 "${optimise[@]}" -Wno-unknown-pragmas -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti -fno-threadsafe-statics)
  case $(uname -m) in
    x86_64) isas=(avx2 avx512) isa_defines=(-DBK_HAVE_AVX2=1 -DBK_HAVE_AVX512=1) ;;
    aarch64) isas=(neon) isa_defines=(-DBK_HAVE_NEON=1) ;;
  esac
  # The compiler first: it finds the rest.
  "${CC:-cc}" --version >/dev/null 2>&1 || { forget_programs; fail "build: missing here: a C compiler (${CC:-cc}; Debian: gcc)"; return; }
  if [ "$BACKEND" != cuda ]; then arch=$BACKEND
  elif [ -z "$ON_HOST" ]; then prepare_cuda || { forget_programs; return; }
  fi
  find_jansson
  if [ "$PART" = 2 ] && [ -x "$BIRKHOFF" ] && [ "$(cat "$WORK/built" 2>/dev/null)" = "$(sources_sum "$arch")" ]; then
    pass "build: the programs of the part before serve"
    return
  fi
  forget_programs
  if [ "$BACKEND" != cuda ]; then prepare_portable || return
  elif [ ${#jansson_libs[@]} -eq 0 ]; then
    fail "build: jansson is missing (jansson.h and its library; Debian: libjansson-dev): name a folder that has them, JANSSON=DIR, or take a tarball that --pack made" "$OUT/jansson.log"
    return
  fi
  if ! compile_all "$arch" "$root" >"$OUT/build.log" 2>&1; then
    mapfile -t files < <(sed -n 's/^failed: .* -c \(-x c++ \)\?\([^ ]*\) -o .*/\2/p' "$OUT/build.log" | sort)
    fail "build: ${#files[@]} files did not compile: ${files[*]:-none is named, time may have run out}" "$OUT/build.log"
    case "${files[*]:-.c}" in *.c | *.c\ * | *.cpp*) return ;; esac
    link_all >"$OUT/link.log" 2>&1
    write_stubs "$OUT/link.log"
    link_all >>"$OUT/build.log" 2>&1 || fail "build: does not link without them" "$OUT/build.log"
  elif link_all >>"$OUT/build.log" 2>&1; then
    sources_sum "$arch" >"$WORK/built"
    pass "build for $arch with $JOBS jobs ($((SECONDS - begin)) s)"
  else
    fail "build: does not link" "$OUT/build.log"
    return
  fi
  [ "$BACKEND$ON_HOST" != cuda ] || spilled
}
spilled() {
  local spills reports
  reports=$(grep -c 'bytes spill stores' "$OUT/build.log") spills=$(grep -c '[1-9][0-9]* bytes spill stores' "$OUT/build.log")
  if [ "$reports" -eq 0 ]; then fail "the compiler reports no kernel's registers"; elif [ "$spills" -eq 0 ]; then pass "no kernel spills registers"; else fail "$spills kernels spill registers"; fi
}

# ---- the other stages ----
stage_devices() {
  local log=$OUT/devices.log name size=(--tokens 512 --width 512)
  if [ "$BACKEND" != cuda ]; then portable_devices; return; fi
  [ -z "$ON_HOST" ] || size=(--tokens 256 --width 64)
  within 60 "$BIRKHOFF" devices 2>&1 | show
  on_device || { fail "no CUDA device"; return; }
  pass "a CUDA device is here"
  # Libraries are opened when they are first asked: a product, and an attention as long as those that cuDNN is given.
  BIRKHOFF_LOG=debug within 120 "$BIRKHOFF" bench ops --op gemm attention attention_bwd "${size[@]}" --dtype bf16 --seconds 0.01 --device cuda:0 >"$log" 2>&1 ||
    fail "a product and an attention: exit status $?" "$log"
  for name in cuBLASLt cuDNN; do say "- $name: $(library_lines "$name" <"$log")"; done
}
# What the log says of a library, each line once. Compiled without cuDNN's header there is no word of cuDNN.
library_lines() {
  grep -i "^birkhoff: debug: .*$1" | sed 's/^birkhoff: debug: //' |
    awk -v name="$1" '!seen[$0]++ { printf "%s%s", n++ ? "; " : "", $0 } END { if (!n) printf "%s", name == "cuDNN" ? "not compiled in" : "no word of it in the log" }'
}

# What needs a device says so once and is skipped without one.
on_device() { within 60 "$BIRKHOFF" devices 2>/dev/null | grep -q "^$DEVICE *ok"; }

# A line at a time, so that a process that is ended has said what it did.
by_lines=()
! command -v stdbuf >/dev/null || by_lines=(stdbuf -oL)
# Each op in a process of its own: one that faults spoils no other. rerun_by_op NAME=VALUE...: the environment
rerun_by_op() {
  local op ops log=$OUT/harness-op.log good=0 rc
  mapfile -t ops < <(within 60 env "$@" "$OPS" --device ref --list "${CASES[@]}" | cut -d: -f1 | sort -u)
  for op in "${ops[@]}"; do
    within $((120 * PATIENCE)) "${by_lines[@]}" env BIRKHOFF_CUDA_SYNC=1 "$@" "$OPS" --device "$DEVICE" --op "$op" "${CASES[@]}" >"$log" 2>&1
    rc=$?
    if [ "$rc" -eq 0 ]; then good=$((good + 1)); continue; fi
    if [ "$(left)" -le 0 ]; then say "  - $op and what follows: no time is left"; break; fi
    say "  - $op alone: exit status $rc$([ "$rc" -ne 124 ] || echo ' (its time is over)'); $(tail -n 1 "$log")"
    what_failed "$log" | head -n 40 | show
  done
  say "  - op by op, each in a process of its own: $good of ${#ops[@]} pass"
}

# harness NAME WAY NAME=VALUE...: one way through every op, its log harness-NAME.log
harness() {
  local log=$OUT/harness-$1.log way=$2
  shift 2
  check $((120 * PATIENCE)) "harness, $way" "$log" "${by_lines[@]}" env "$@" "$OPS" --device "$DEVICE" "${CASES[@]}" --verbose || rerun_by_op "$@"
  tail -n 2 "$log" | show
}
stage_harness() {
  local i quick=() ways=("with cuBLASLt and cuDNN where they are found" "own products and attention")
  [ -z "$ON_HOST" ] || quick=(BK_TEST_QUICK=1)
  if [ "$BACKEND" != cuda ]; then quick=(BK_TEST_QUICK=1) portable_harness
  else
    for i in 0 1; do
      local switches=("BIRKHOFF_CUDA_BLASLT=$((1 - i))" "BIRKHOFF_CUDA_CUDNN=$((1 - i))" "${quick[@]}")
      harness "$i" "${ways[i]}" "${switches[@]}"
      harness "large-$i" "shapes of real models, ${ways[i]}" BK_TEST_LARGE=1 "${switches[@]}"
    done
  fi
  grep 'worst share' "$OUT/harness-0.log" | show
  check $((120 * PATIENCE)) "post + res and pre have the bits of their parts" "$OUT/harness-bits.log" env "${quick[@]}" "$OPS" --device "$DEVICE" "${CASES[@]}" --like-composed
}

stage_sanitizer() {
  local tool name
  tool=$(command -v compute-sanitizer) || tool=$(cuda_root 2>/dev/null)/bin/compute-sanitizer
  if [ ! -x "$tool" ]; then skip "compute-sanitizer is not here"; return; fi
  local names=(memcheck racecheck synccheck initcheck) pids=() i
  for name in "${names[@]}"; do # side by side: they wait for the host more than for the device. NVIDIA's kernels are not ours to check.
    BIRKHOFF_CUDA_BLASLT=0 BIRKHOFF_CUDA_CUDNN=0 BK_TEST_QUICK=1 within 90 "$tool" --tool "$name" --error-exitcode 9 "$OPS" --device cuda --case 127 >"$OUT/sanitizer-$name.log" 2>&1 &
    pids+=($!)
  done
  for i in 0 1 2 3; do
    name=${names[i]}
    wait "${pids[i]}"
    case $? in
      0) pass "compute-sanitizer $name" ;;
      124 | 137) if grep -q '^========= *\(Invalid\|Error\|Race\|Barrier\|Uninit\)' "$OUT/sanitizer-$name.log"; then fail "compute-sanitizer $name" "$OUT/sanitizer-$name.log"; else skip "compute-sanitizer $name: not done within 90 s"; fi ;;
      9) fail "compute-sanitizer $name" "$OUT/sanitizer-$name.log" ;;
      *) if grep -qi '^=========.*\(not supported\|unable to\)' "$OUT/sanitizer-$name.log"; then skip "compute-sanitizer $name: it refuses the device"; else fail "compute-sanitizer $name" "$OUT/sanitizer-$name.log"; fi ;;
    esac
  done
}

# Text to train on: the caller's, or what is at hand, the sources themselves.
text() {
  if [ -n "$TEXT" ]; then cp "$TEXT" "$WORK/text.txt"
  else find core models backends tools tests doc -type f \( -name '*.[ch]' -o -name '*.md' -o -name '*.cu' \) | LC_ALL=C sort | xargs cat >"$WORK/text.txt"
  fi
  [ -z "$ON_HOST" ] || { head -c "$([ "$BACKEND" = cuda ] && echo 4000 || echo 1000)" "$WORK/text.txt" >"$WORK/short.txt" && mv "$WORK/short.txt" "$WORK/text.txt"; }
}
losses() { [ ! -f "$1/metrics.jsonl" ] || sed -n 's/.*"loss": *\([0-9.eE+-]*\).*/\1/p' "$1/metrics.jsonl"; }
# worst DIR DIR STEPS UNTIL EVERY: of two loss curves of STEPS steps, the largest relative difference of means of EVERY steps among the first
# UNTIL; 9 where they are not whole
worst() {
  paste <(losses "$1") <(losses "$2") | awk -v steps="$3" -v until="$4" -v every="$5" 'NF != 2 || !($2 > 0) { bad = 1; next }
    ++n <= until { a += $1; b += $2; if (n % every == 0) { d = a > b ? a - b : b - a; if (!(d <= w * b)) w = d / b; a = b = 0 } }
    END { if (bad || n != steps) w = 9; printf "%.3g", w + 0 }'
}
# is_whole DIR: whether a run has a number for the loss of each of its $steps steps
is_whole() { [ "$(losses "$1" | grep -c '[0-9]')" -eq "$steps" ]; }
# compare_losses DTYPE UNTIL EVERY BOUND WHAT MEASURE: with the oracle's
compare_losses() {
  local apart
  if ! is_whole "$WORK/run-$oracle"; then skip "$5, $1: no losses of $oracle to compare with"; return; fi
  if ! is_whole "$WORK/run-$1"; then fail "$5, $1: the run on $BACKEND failed or lacks the loss of some of its $steps steps"; return; fi
  apart=$(worst "$WORK/run-$1" "$WORK/run-$oracle" "$steps" "$2" "$3")
  if below "$apart" "$4"; then pass "$5, $1 against $6: within $apart (bound $4)"; else fail "$5 differ by $apart (bound $4), $1"; fi
}
below() { awk -v x="$1" -v y="$2" 'BEGIN { exit !(x < y) }'; }

# Two right backends drift apart: rounding alone takes two fp32 runs of demo past 1e-3 some time after step 40, and bf16 past 1 % in single
# steps. So fp32 is compared where they must still be together, and bf16 by means.
stage_train() {
  local model=demo steps=100 until=30 every=20 oracle=cpu dtype kind sizes=() verify_sizes=()
  [ "$BACKEND" = cuda ] || oracle=ref steps=40 sizes=(--seq-len 64 --batch-size 4)
  [ -z "$ON_HOST" ] || model=tiny steps=6 until=5 every=3 sizes=(--seq-len 16 --batch-size 1)
  case $BACKEND$ON_HOST in cuda* | opencl | vulkan) ;; *) verify_sizes=(--seq-len 16) ;; esac
  text
  local common=(train --model "$model" --data "$WORK/text.txt" --steps "$steps" "${sizes[@]}" --set adam_eps=1e-8 gain_every=50)
  rm -rf "$WORK"/run-*
  check $((150 * PATIENCE)) "$model on $oracle" "$OUT/train-$oracle.log" "$BIRKHOFF" "${common[@]}" --out "$WORK/run-$oracle" --device "$oracle"
  for dtype in "${DTYPES[@]}"; do
    check $((120 * PATIENCE)) "$model on $BACKEND, $dtype" "$OUT/train-$dtype.log" "$BIRKHOFF" "${common[@]}" --out "$WORK/run-$dtype" --device "$DEVICE" --dtype "$dtype" || continue
    tail -n 1 "$OUT/train-$dtype.log" | show
    paste <(losses "$WORK/run-$dtype") <(losses "$WORK/run-$oracle") >"$OUT/losses-$dtype.txt"
  done
  [ "$(left)" -gt 0 ] || return
  compare_losses fp32 "$until" 1 1e-3 "losses of steps 1 to $until" "$oracle"
  if [ ${#DTYPES[@]} -lt 2 ]; then skip "bf16: $DEVICE does not store it"
  else compare_losses bf16 "$steps" "$every" 1e-2 "means of $every losses" "$oracle in fp32"
  fi
  for kind in $(kinds); do
    check $((60 * PATIENCE)) "verify tiny, $kind" "$OUT/verify-$kind.log" "$BIRKHOFF" verify tiny "${verify_sizes[@]}" --device "$DEVICE" --set residual="$kind"
  done
}

stage_bits() {
  local model=demo steps=20 dtype last other sizes=() runs=(a b c d e f)
  local -A what=([b]='two runs' [c]='step graphs on and off' [d]='merges on a stream of their own' [e]='the same without step graphs' [f]='recompute or not')
  local -A keys=([a]='' [b]='' [c]='cuda_graph=false' [d]='merge_stream=true' [e]='merge_stream=true cuda_graph=false' [f]='hc_recompute=off')
  [ "$BACKEND" != opencl ] || runs=(a b d f) # it has no step graphs
  [ -z "$ON_HOST" ] || model=tiny steps=3 sizes=(--seq-len 16 --batch-size 1)
  [ -f "$WORK/text.txt" ] || text
  last=$(printf 'step-%06d' "$steps")
  for dtype in "${DTYPES[@]}"; do
    rm -rf "$WORK"/bits-*
    for other in "${runs[@]}"; do
      [ "$(left)" -gt 0 ] || { skip "$dtype: ${what[$other]:-$steps steps}: no time is left of $LIMIT s"; continue; }
      # shellcheck disable=SC2086
      within $((60 * PATIENCE)) "$BIRKHOFF" train --model "$model" --data "$WORK/text.txt" --steps $steps "${sizes[@]}" --device "$DEVICE" --dtype "$dtype" --out "$WORK/bits-$other" \
        ${keys[$other]:+--set ${keys[$other]}} >"$OUT/bits-$dtype-$other.log" 2>&1 || { fail "$dtype: $steps steps (${what[$other]:-as they are}): exit status $?" "$OUT/bits-$dtype-$other.log"; continue; }
      [ "$other" != a ] || continue
      if cmp "$WORK/bits-a/$last/model.safetensors" "$WORK/bits-$other/$last/model.safetensors" >>"$OUT/bits-$dtype-$other.log" 2>&1 &&
        cmp "$WORK/bits-a/$last/optimizer.safetensors" "$WORK/bits-$other/$last/optimizer.safetensors" >>"$OUT/bits-$dtype-$other.log" 2>&1; then
        pass "$dtype: $steps steps, ${what[$other]}: the same bits"
      else
        fail "$dtype: runs a and $other differ (${what[$other]})" "$OUT/bits-$dtype-$other.log"
      fi
    done
  done
}

# goal WHAT VALUE UNIT at-least|at-most BOUND: reported, not counted
goal() {
  local verdict=missed
  if [ "$BACKEND" != cuda ]; then say "- $1: $2 $3"; return; fi
  if [ -n "$ON_HOST" ]; then verdict='not judged on the host'
  elif [ -z "$2" ]; then verdict='not measured'
  elif [ "$4" = at-least ] && ! below "$2" "$5"; then verdict=met
  elif [ "$4" = at-most ] && ! below "$5" "$2"; then verdict=met
  fi
  say "- goal $verdict: $1: $2 $3 ($4 $5)"
}

# op_figure LOG OP share|us: of a table of bench ops
op_figure() {
  awk -v op="$2" -v what="$3" '$1 == op { if (what == "share") { sub(/%/, "", $NF); print $NF } else print $4 == "ms" ? $3 * 1000 : $3; exit }' "$1"
}

# Shares of the roof that are wanted at working sizes, and the times of the maps of 32,768 tokens.
op_goals() { # LOG TOKENS
  local pair op us
  for pair in hc_pre:85 hc_pre_bwd:85 hc_pre_norm:85 hc_pre_norm_bwd:85 hc_post_res:85 hc_post_res_bwd:80 hc_project:80 hc_project_bwd:65 hc_rebuild:80 adamw:85; do
    op=${pair%:*}
    grep -q "^$op " "$1" && goal "$op" "$(op_figure "$1" "$op" share)" '% of the roof' at-least "${pair#*:}"
  done
  [ "$2" = 32768 ] || [ -n "$ON_HOST" ] || return 0
  for pair in hc_maps:25 hc_maps_bwd:60; do
    us=$(op_figure "$1" "${pair%:*}" us)
    goal "${pair%:*}" "$us" us at-most "${pair#*:}"
  done
}

# What the card's memory can do as NVIDIA states it, in GB/s; nothing where the name is not known.
card_gb_per_s() {
  case $(smi name) in
    *GH200*) ;; *B200*) echo 8000 ;; *H200*) echo 4800 ;; *H100*PCIe*) echo 2000 ;; *H100*NVL*) echo 3900 ;; *H100*) echo 3350 ;;
    *A100*80*SXM* | *A100-SXM*80*) echo 2039 ;; *A100*80*) echo 1935 ;; *A100*) echo 1555 ;;
  esac
}
# The roof of what moves memory is a copy by a kernel of our own: a slow one would flatter every share.
copy_rate() { # LOG OF BENCH OPS
  local rate card
  rate=$(sed -n 's/^roof: .*copy.* \([0-9.]*\) GB\/s at [^,]*$/\1/p' "$1") card=$(card_gb_per_s)
  say "- copy (the roof of what moves memory, a kernel of our own): ${rate:-not measured} GB/s; the card's memory: ${card:-not known to this script}${card:+ GB/s as its maker states it, $(calc "100 * ${rate:-0} / ${card:-1}") %}"
}

stage_ops() {
  local sizes=("--tokens 32768 --width 7168" "--tokens 4096 --width 2560" "") s tokens
  if [ "$BACKEND" != cuda ]; then portable_ops; return; fi
  [ -z "$ON_HOST" ] || sizes=("--tokens 64 --width 64 --seconds 0.01")
  for s in "${sizes[@]}"; do
    # shellcheck disable=SC2086
    check 120 "bench ops, bf16, ${s:-its default sizes}" "$OUT/bench.log" "$BIRKHOFF" bench ops --device cuda:0 --dtype bf16 $s || continue
    show <"$OUT/bench.log"
    copy_rate "$OUT/bench.log"
    tokens=${s#--tokens } tokens=${tokens%% *}
    [ -z "$s" ] || op_goals "$OUT/bench.log" "$tokens"
  done
}

# figure FILE KEY [compare]: a number of the program's JSON, at its top or in the object `compare`
figure() {
  awk -v key="\"$2\":" -v part="${3:-}" '/^  "compare": \{/ { inside = 1 } $1 == key && (part != "") == (inside + 0) { sub(/,$/, "", $2); print $2; exit } /^  \}/ { inside = 0 }' "$1"
}
calc() { awk "BEGIN { printf \"%.${2:-1}f\", $1 }"; }
# Memory of the card; 0 where nobody can say.
card_bytes() {
  local bytes
  if [ "$BACKEND" != cuda ]; then bytes=$(device_figure memory); echo "${bytes:-0}"; return; fi
  awk 'NR == 1 { m = $1 + 0 } END { printf "%.0f", m * 1048576 }' < <(smi memory.total ,nounits)
}

# What `plan` says of training: bytes. plan_bytes RESIDUAL BATCH MODEL [KEY=VALUE]...
plan_bytes() {
  local residual=$1 batch=$2 model=$3
  shift 3
  within 60 "$BIRKHOFF" plan --device "$DEVICE" --dtype "$step_dtype" --json --model "$model" --batch-size "$batch" --seq-len "$sequence" \
    --set residual="$residual" micro_batch_size="$batch" "$@" >"$OUT/plan.json" 2>&1
  figure "$OUT/plan.json" bytes_total
}

# rate GFLOP/S [DIGITS]
rate() { if [ "$BACKEND" = cuda ]; then echo "$(calc "$1 / 1e3" "${2:-1}") TFLOP/s"; else echo "$(calc "$1") GFLOP/s"; fi; }
# One side of a bench step in a line. side_line LOG [compare]
side_line() {
  local log=$1 part=${2:-} name
  name=$([ -z "$part" ] && echo mhc || echo plain)
  of() { figure "$log" "$1" "$part"; }
  say "- $name: $(calc "$(of seconds) * 1e3") ms a step (forward $(calc "$(of forward_seconds) * 1e3"), backward $(calc "$(of backward_seconds) * 1e3"), optimiser" \
    "$(calc "$(of optimizer_seconds) * 1e3")), $(calc "$(of tokens_per_s)" 0) tokens/s, $(rate "$(of gflop_per_s)")," \
    "$(calc "$(of share) * 100") % of the rate of matrix products; memory $(calc "$(of bytes_used) / 1073741824" 2) GiB"
}

# bench_model MODEL [KEY=VALUE]...: the largest batch that fits by `plan`; side by side where both fit
bench_model() {
  local model=$1 batch batches=(8 4 2 1) mhc plain apart=() log="$OUT/step-$1.json" room
  shift
  room=1000000000
  if [ -n "$ON_HOST" ]; then batches=(1); else room=$(calc "$(card_bytes) * 0.9" 0); fi
  for batch in "${batches[@]}"; do
    mhc=$(plan_bytes mhc "$batch" "$model" "$@")
    [ -n "$mhc" ] || { fail "plan $model" "$OUT/plan.json"; return; }
    ! below "$mhc" "$room" || break
  done
  plain=$(plan_bytes plain "$batch" "$model" "$@")
  below "$(calc "$mhc + $plain" 0)" "$room" || apart=(--apart)
  local step=("$BIRKHOFF" bench step --device "$DEVICE" --dtype "$step_dtype" --model "$model" --batch-size "$batch" --seq-len "$sequence")
  check $((120 * PATIENCE)) "bench step, $step_dtype, $model $*, $batch sequences of $sequence${apart:+, one after the other}" "$log" "${step[@]}" --json \
    --compare plain "${apart[@]}" --seconds "$step_seconds" --set residual=mhc micro_batch_size="$batch" "$@" || return
  side_line "$log"
  side_line "$log" compare
  goal "$model: a step with mhc over one with plain" "$(calc "$(figure "$log" ratio)" 3)" times at-most 1.067
  goal "$model: plain, of the rate of matrix products ($(rate "$(figure "$log" roof_gflop_per_s)" 0)$([ "$BACKEND" != cuda ] || echo '; 45 is hoped for'))" \
    "$(calc "100 * $(figure "$log" share compare)")" % at-least 35
  goal "$model: memory with mhc over plan" "$(calc "$(figure "$log" bytes_used) / $mhc" 3)" times at-most 1.05
  goal "$model: memory with plain over plan" "$(calc "$(figure "$log" bytes_used compare) / $plain" 3)" times at-most 1.05
  check $((60 * PATIENCE)) "bench step --profile, $model" "$OUT/profile.log" "${step[@]}" --seconds 0 --profile "$WORK/trace-$model.json" \
    --set residual=mhc micro_batch_size="$batch" "$@" && show <"$OUT/profile.log"
}

stage_step() {
  local sequence=4096 step_seconds=10 step_dtype=bf16
  [ "$BACKEND" = cuda ] || sequence=256 step_dtype=fp32
  if [ -n "$ON_HOST" ]; then
    sequence=32 step_seconds=0
    bench_model tiny num_hidden_layers=2
    return
  fi
  if [ "$BACKEND" != cuda ]; then bench_model demo; return; fi
  bench_model mhc-27b num_hidden_layers=4
  bench_model mhc-3b num_hidden_layers=4
}

stage_peers() {
  local options=(--rounds 3 --json "$OUT/peers.json") rc
  [ -z "$ON_HOST" ] || options+=(--device cpu --shape 64x64 --rounds 1 --seconds 0 --vocabulary 1000 --copy-bytes 1048576 --sides eager)
  within 200 tests/peers/gpu_run.sh --birkhoff "$BIRKHOFF" "${options[@]}" >"$OUT/peers.txt" 2>"$OUT/peers.log"
  rc=$?
  [ ! -s "$OUT/peers.txt" ] || show <"$OUT/peers.txt"
  case $rc in
    0) pass "peers: the same ops in PyTorch" ;;
    77) skip "peers: $(tail -n 1 "$OUT/peers.log")" ;;
    124 | 137) skip "peers: not done within 200 s" ;;
    *) fail "peers: exit status $rc" "$OUT/peers.log" ;;
  esac
}

# Kernels of the residual connections' sources, by the names of their functions.
connection_kernels() {
  grep -hoE '[a-z0-9_]+_kernel\(' backends/cuda/kernels/{hc_,maps,perm,sinkhorn,streams,pre_norm,merge,rebuild}*.cu 2>/dev/null | tr -d '(' | sort -u | paste -sd '|'
}
NCU_METRICS=(gpu__time_duration.sum dram__bytes.sum.per_second dram__throughput.avg.pct_of_peak_sustained_elapsed lts__t_sectors.avg.pct_of_peak_sustained_elapsed
  l1tex__throughput.avg.pct_of_peak_sustained_active sm__inst_executed.avg.pct_of_peak_sustained_active sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active
  sm__warps_active.avg.pct_of_peak_sustained_active smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
  smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio smsp__average_warps_issue_stalled_lg_throttle_per_issue_active.ratio launch__registers_per_thread)

# ncu's CSV (one metric a line) as a table: means over the launches of a kernel; what limits it is what is busiest, or waiting.
ncu_table() {
  awk -F '","' '
    /^"ID"/ { for (i = 1; i <= NF; i++) { name = $i; gsub(/"/, "", name); column[name] = i } next }
    !column["Metric Value"] || NF < column["Metric Value"] { next }
    { k = $column["Kernel Name"]; m = $column["Metric Name"]; v = $column["Metric Value"]; unit = $column["Metric Unit"]; gsub(/[",]/, "", v)
      if (m ~ /^gpu__time/) v *= unit ~ /^(ns|nsecond)/ ? 1e-3 : unit ~ /^(ms|msecond)/ ? 1e3 : unit ~ /^(s|second)$/ ? 1e6 : 1
      if (m ~ /^dram__bytes/) v *= unit ~ /^T/ ? 1e3 : unit ~ /^M/ ? 1e-3 : unit ~ /^K/ ? 1e-6 : unit ~ /^byte/ ? 1e-9 : 1
      sub(/^void /, "", k); gsub(/\(anonymous namespace\)::|<unnamed>::/, "", k); sub(/>\(.*/, ">", k)
      if (!(k in seen)) { seen[k] = 1; order[++n] = k }
      sum[k, m] += v; count[k, m]++ }
    function mean(k, m, key) { for (key in count) { split(key, p, SUBSEP); if (p[1] == k && index(p[2], m) == 1) return sum[key] / count[key] } return 0 }
    END {
      print "| kernel | us | GB/s | dram % | L2 % | L1 % | issue % | tensor % | warps % | registers | stalls: memory, barrier, queue | limited by |"
      print "|---|---|---|---|---|---|---|---|---|---|---|---|"
      for (i = 1; i <= n; i++) { k = order[i]
        share["dram"] = mean(k, "dram__throughput"); share["L2"] = mean(k, "lts__"); share["L1"] = mean(k, "l1tex__")
        share["issue"] = mean(k, "sm__inst_executed.avg"); share["tensor"] = mean(k, "sm__inst_executed_pipe_tensor")
        best = "dram"
        for (s in share) if (share[s] > share[best]) best = s
        long = mean(k, "smsp__average_warps_issue_stalled_long"); bar = mean(k, "smsp__average_warps_issue_stalled_bar"); queue = mean(k, "smsp__average_warps_issue_stalled_lg")
        if (share[best] < 60) best = long >= bar && long >= queue ? "latency of memory" : bar >= queue ? "barriers" : "the queue of loads and stores"
        printf "| `%s` | %.1f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f, %.1f, %.1f | %s |\n", k, mean(k, "gpu__time"),
          mean(k, "dram__bytes"), share["dram"], share["L2"], share["L1"], share["issue"], share["tensor"], mean(k, "sm__warps"),
          mean(k, "launch__registers"), long, bar, queue, best
      }
    }'
}

# Those that this card has; names differ from one generation to the next.
ncu_metrics() {
  local m known=()
  within 60 "$1" --query-metrics >"$OUT/ncu-metrics.txt" 2>/dev/null
  for m in "${NCU_METRICS[@]}"; do
    case $m in launch__*) known+=("$m"); continue ;; esac
    grep -q "^ *${m%%.*}\\b" "$OUT/ncu-metrics.txt" && known+=("$m")
  done
  [ ${#known[@]} -gt 1 ] || known=("${NCU_METRICS[@]}")
  (IFS=,; echo "${known[*]}")
}

stage_ncu() {
  local tool root kernels metrics size=(--tokens 8192 --width 7168) ops=(hc_merge_mix hc_merge_mix_bwd) op
  for op in pre pre_norm post_res project maps; do ops+=("hc_$op" "hc_${op}_bwd"); done
  ops+=(hc_rebuild)
  tool=$(command -v ncu) || { root=$(cuda_root 2>/dev/null) && tool=$root/bin/ncu; }
  [ -x "$tool" ] || { skip "ncu: Nsight Compute is not here"; return; }
  [ -z "$ON_HOST" ] || size=(--tokens 64 --width 64)
  kernels=$(connection_kernels) metrics=$(ncu_metrics "$tool")
  # At the clocks that all else runs at: by default ncu lowers them, and its times are then not those of bench ops.
  within 120 "$tool" --clock-control none --csv --print-kernel-base demangled --kernel-name-base function --kernel-name "regex:^($kernels)$" --metrics "$metrics" \
    "$BIRKHOFF" bench ops --device cuda:0 --dtype bf16 "${size[@]}" --seconds 0 --op "${ops[@]}" >"$OUT/ncu.csv" 2>"$OUT/ncu.log"
  local rc=$?
  if grep -q 'ERR_NVGPUCTRPERM' "$OUT/ncu.csv" "$OUT/ncu.log"; then skip "ncu: the counters are not open to this user"; return; fi
  ncu_table <"$OUT/ncu.csv" >"$OUT/ncu.md"
  if [ "$(wc -l <"$OUT/ncu.md")" -gt 2 ]; then
    tee -a "$REPORT" <"$OUT/ncu.md"
    if [ "$rc" -eq 124 ]; then skip "ncu: not done within 120 s, what there is stands above"; else pass "ncu: $(($(wc -l <"$OUT/ncu.md") - 2)) kernels, ${size[*]}"; fi
  elif [ "$rc" -eq 124 ]; then skip "ncu: not done within 120 s"
  else fail "ncu: no figures, exit status $rc" "$OUT/ncu.log"
  fi
}

# ---- all of it ----
archive() {
  local name=gpu-check$SUFFIX${PART:+-part$PART}.tar.gz run
  for run in "$WORK"/run-*/metrics.jsonl; do [ ! -f "$run" ] || cp "$run" "$OUT/metrics-$(basename "$(dirname "$run")").jsonl"; done
  (cd "$OUT" && find . -maxdepth 1 -type f ! -name '*.tar.gz' -print0 | sort -z | tar --null -T - -czf "$name") && echo "archive: $OUT/$name"
}
count() { grep -c "^$1\$" "$TALLY"; }
main() {
  local stage began
  : >"$TALLY"
  if [ ! -s "$REPORT" ] || [ "$PART" = 1 ] || [ ${#STAGES[@]} -eq ${#ALL[@]} ]; then : >"$REPORT"; fi
  trap archive EXIT # also of a call that is ended
  stage_pid=''
  trap 'say "ended by a signal after $SECONDS s"; [ -z "$stage_pid" ] || kill "$stage_pid" 2>/dev/null; exit 1' HUP INT TERM
  say "# GPU check, commit $COMMIT, $(date -u +%Y-%m-%d)"
  say "Command: \`tools/gpu-check.sh --device $DEVICE ${PART:+--part $PART }--stage ${STAGES[*]}\`${ON_HOST:+ (on the host: figures mean nothing)}"
  if [ "$BACKEND" != cuda ]; then machine | show
  else { within 30 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv 2>/dev/null || echo "nvidia-smi is not here"; } | show
  fi
  for stage in "${STAGES[@]}"; do
    say "## $stage"
    if [ "$(left)" -le 0 ]; then skip "$stage: no time is left of $LIMIT s"; continue; fi
    if [ "$stage" != build ] && [ ! -x "$BIRKHOFF" ]; then skip "$stage: nothing is built"; continue; fi
    case $stage in build | devices) ;; *) on_device || { skip "$stage: no device $DEVICE"; continue; } ;; esac
    DTYPES=(fp32 bf16)
    if [ "$BACKEND" != cuda ] && [ "$stage" != build ] && on_device && ! stored_as bf16; then DTYPES=(fp32); fi
    case $BACKEND$ON_HOST:$stage in opencl?*:bits | opencl?*:ops | vulkan?*:bits | vulkan?*:ops) DTYPES=(fp32) ;; esac # a trial need not be long
    began=$SECONDS
    (trap - EXIT HUP INT TERM; "stage_$stage"; exit 0) & # waited for, so that a signal is heard at once
    stage_pid=$!
    wait "$stage_pid" || fail "$stage ended before its end"
    stage_pid=''
    say "($stage: $((SECONDS - began)) s)"
  done
  say ""
  say "report: ${REPORT#"$PWD"/}, in $SECONDS s"
  say "$(count passed) passed, $(count failed) failed, $(count skipped) skipped"
  if [ "$(count failed)" -eq 0 ] && [ "$(count passed)" -gt 0 ]; then exit 0; else exit 1; fi # not back to the file, which may have changed
}
main

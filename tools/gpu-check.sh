#!/bin/bash
# Checks the cuda backend on a machine with an NVIDIA GPU, in one go (reckoned at about 11 minutes on an H100; not yet tried there), and writes a report after each stage.
# usage: tools/gpu-check.sh [--out DIR] [--stage NAME]... [--text FILE] [--jobs N]
#        tools/gpu-check.sh --pack FILE.tar.gz        makes the tarball to take to that machine
# Needs nvcc and a C compiler there: no root, no network, no autotools, no packages. The one library that the command links, jansson,
# comes from the folder gpu-kit/ that --pack puts into the tarball, from JANSSON=DIR (jansson.h, libjansson.a), or is the system's.
# Stages, in this order; without --stage all of them:
#   build      for the card that is there (another: CUDA_ARCH=90a)
#   devices    what is there, and which of cuBLASLt and cuDNN were found
#   harness    every op against ref, with cuBLASLt and cuDNN and without
#   sanitizer  compute-sanitizer: memcheck, racecheck, synccheck, initcheck on small shapes
#   train      100 steps of demo, fp32 and bf16, against cpu; verify tiny for each residual connection
#   bits       the same run twice, without step graphs, with merges on a stream of their own, without recompute: the same bits
#   ops        bench ops in bf16 at 32,768 tokens of width 7,168, at 4,096 of 2,560 and at its default, against the shares that are wanted
#   step       bench step, mhc against plain, at the dimensions of mhc-27b and mhc-3b with 4 layers, sequences of 4096: what mhc costs, the
#              share of the measured rate of matrix products, memory against plan; then the time of every op
#   peers      the same ops in PyTorch and in the kernel packages that are installed (tests/peers/gpu_run.sh; PEER_PYTHON)
#   ncu        Nsight Compute on the kernels of the residual connections: what limits each
# What is not there is skipped by name. The last line is "N passed, N failed, N skipped"; each check is one. Goals of speed are reported
# as met or missed and are no checks.
# GPU_CHECK_ON_HOST=1 compiles the kernels for the host instead (tests/cuda-on-host), so that this script itself can be tried without a
# GPU; its figures then mean nothing.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
STAGES=() ALL=(build devices harness sanitizer train bits ops step peers ncu)
OUT=build-gpu TEXT='' JOBS=$(nproc 2>/dev/null || echo 4) PACK=''
usage() { sed -n '2,4p' "$0" | sed 's/^# //' >&2; echo "stages: ${ALL[*]}" >&2; exit 2; }
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --out) OUT=$2 ;;
    --stage) case " ${ALL[*]} " in *" $2 "*) STAGES+=("$2") ;; *) usage ;; esac ;;
    --text) TEXT=$2 ;;
    --jobs) JOBS=$2 ;;
    --pack) PACK=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ ${#STAGES[@]} -gt 0 ] || STAGES=("${ALL[@]}")
ON_HOST=${GPU_CHECK_ON_HOST:-}

# ---- the tarball ----
if [ -n "$PACK" ]; then
  kit=$(mktemp -d) || exit 1
  trap 'rm -rf "$kit"' EXIT
  lib=$(pkg-config --variable=libdir jansson)/libjansson.a include=$(pkg-config --variable=includedir jansson)
  [ -f "$lib" ] || { echo "libjansson.a is not here (Debian: libjansson-dev)" >&2; exit 1; }
  mkdir -p "$kit/birkhoff/gpu-kit"
  git ls-files -z | xargs -0 cp --parents -t "$kit/birkhoff" &&
    cp "$lib" "$include/jansson.h" "$include/jansson_config.h" "$kit/birkhoff/gpu-kit" &&
    git rev-parse --short=12 HEAD >"$kit/birkhoff/gpu-kit/commit" &&
    tar -C "$kit" -czf "$PACK" birkhoff && echo "$PACK: unpack it there and run birkhoff/tools/gpu-check.sh"
  exit
fi

mkdir -p "$OUT/obj" || exit 1
OUT=$(cd "$OUT" && pwd)
REPORT=$OUT/report.md
COMMIT=$(cat gpu-kit/commit 2>/dev/null || git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BIRKHOFF=$OUT/birkhoff OPS=$OUT/test_ops
passed=0 failed=0 skipped=0

say() { echo "$*" | tee -a "$REPORT"; }
# Figures and lists keep their shape in the report.
show() { { echo '```'; cat; echo '```'; } | tee -a "$REPORT"; }
pass() { passed=$((passed + 1)); say "- passed: $1"; }
skip() { skipped=$((skipped + 1)); say "- skipped: $1"; }
fail() {
  failed=$((failed + 1))
  say "- **failed**: $1"
  [ ! -s "${2:-}" ] || tail -n 30 "$2" | show
}
# check NAME LOG COMMAND...
check() {
  local name=$1 log=$2 begin=$SECONDS rc
  shift 2
  "$@" >"$log" 2>&1
  rc=$?
  if [ $rc -eq 0 ]; then pass "$name ($((SECONDS - begin)) s)"; else fail "$name: exit status $rc after $((SECONDS - begin)) s" "$log"; fi
  return $rc
}

# ---- build ----
defines=(-D_GNU_SOURCE -DHAVE_DLOPEN=1 -DHAVE_JANSSON=1 -DSIZEOF_SIZE_T=8 -DBK_STATIC_CUDA=1 -DBK_VERSION='"gpu-check"' -DBK_COMMIT="\"$COMMIT\""
  -DBK_BACKEND_DIR='"/nowhere"' -Icore -Icore/include -I.)
cflags=(-std=c11 -O2 -g -ffp-contract=off -fopenmp-simd -pthread)

cuda_root() {
  local nvcc
  nvcc=$(command -v nvcc) || nvcc=/usr/local/cuda/bin/nvcc
  [ -x "$nvcc" ] && (cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
}
card_arch() {
  local cc
  cc=${CUDA_ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)}
  case $cc in 90) echo 90a ;; 100) echo 100a ;; '') echo 90a ;; *) echo "$cc" ;; esac
}

# One command a line, run side by side; a file that did not compile names itself.
compile_all() {
  local source name isa arch=$1 root=$2 lines=$OUT/compile.list
  local jansson=() cuda=()
  if [ -f gpu-kit/jansson.h ]; then jansson=(-Igpu-kit); elif [ -n "${JANSSON:-}" ]; then jansson=("-I$JANSSON"); fi
  : >"$lines"
  add() { printf '%q ' "$@" >>"$lines"; echo >>"$lines"; }
  for source in $(find core models tools tests/ops backends/ref backends/cpu -name '*.c' ! -name '*_tmpl.c' ! -name 'test_[!o]*' | sort); do
    add "${CC:-cc}" "${cflags[@]}" "${defines[@]}" "${isa_defines[@]}" "${jansson[@]}" -c "$source" -o "$OUT/obj/$(echo "$source" | tr / _).o"
  done
  for isa in portable "${isas[@]}"; do
    for source in backends/cpu/*_tmpl.c; do
      # shellcheck disable=SC2046
      add "${CC:-cc}" "${cflags[@]}" "${defines[@]}" $(isa_flags $isa) -DBK_ISA=$isa -c "$source" -o "$OUT/obj/$(basename "$source" .c)_$isa.o"
    done
  done
  if [ -n "$ON_HOST" ]; then cuda=(-DBK_CUDA_ON_HOST -Itests/cuda-on-host/include); else cuda=("-I$root/include"); fi
  if [ -z "$ON_HOST" ] && [ -f "$root/include/cudnn.h" ]; then cuda+=(-DHAVE_CUDNN_H); fi
  for source in backends/cuda/*.c; do
    [ -z "$ON_HOST" ] || [ "$source" != backends/cuda/library.c ] || continue
    add "${CC:-cc}" "${cflags[@]}" "${cuda[@]}" "${defines[@]}" -c "$source" -o "$OUT/obj/$(echo "$source" | tr / _).o"
  done
  for source in backends/cuda/kernels/*.cu; do
    name=$(basename "$source" .cu)
    if [ -n "$ON_HOST" ]; then
      add "${CXX:-c++}" "${on_host[@]}" "${cuda[@]}" "${defines[@]}" -include tests/cuda-on-host/shim.h -c -x c++ "$source" -o "$OUT/obj/$name.cu.o"
    else
      add "$root/bin/nvcc" -std=c++17 -O3 -lineinfo "-gencode=arch=compute_$arch,code=sm_$arch" -Xptxas -v -Icore -Icore/include -I. \
        -Xcompiler -fno-exceptions,-fno-threadsafe-statics,-fno-rtti -c "$source" -o "$OUT/obj/$name.cu.o"
    fi
  done
  for source in ${ON_HOST:+tests/cuda-on-host/*.cpp}; do
    add "${CXX:-c++}" "${on_host[@]}" "${cuda[@]}" "${defines[@]}" -c "$source" -o "$OUT/obj/$(basename "$source").o"
  done
  # The slow ones first, so that none is left over at the end.
  { grep '\.cu' "$lines"; grep -v '\.cu' "$lines"; } >"$lines.sorted"
  xargs -P "$JOBS" -d '\n' -I{} sh -c '{} || { echo "failed: {}" >&2; exit 255; }' <"$lines.sorted"
}

isa_flags() {
  case $1 in
    avx2) echo -mavx2 -mfma -ffp-contract=fast ;;
    avx512) echo -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512 -ffp-contract=fast ;;
    neon) echo -DBK_SIMD_NEON -ffp-contract=fast ;;
  esac
}

link_all() {
  local root=$1 jansson=(-ljansson) cuda=()
  if [ -f gpu-kit/libjansson.a ]; then jansson=(gpu-kit/libjansson.a); elif [ -n "${JANSSON:-}" ]; then jansson=("$JANSSON/libjansson.a"); fi
  if [ -n "$ON_HOST" ]; then cuda=(-lstdc++); else cuda=("-L$root/lib64" -lcudart_static -lrt); fi
  local shared
  mapfile -t shared < <(find "$OUT/obj" -name '*.o' ! -name 'tools_*' ! -name 'tests_ops_*')
  "${CC:-cc}" -pthread -o "$BIRKHOFF" "$OUT"/obj/tools_*.o "${shared[@]}" "${jansson[@]}" "${cuda[@]}" -ldl -lm &&
    "${CC:-cc}" -pthread -o "$OPS" "$OUT"/obj/tests_ops_*.o "${shared[@]}" "${jansson[@]}" "${cuda[@]}" -ldl -lm
}

stage_build() {
  rm -f "$OUT"/obj/* "$BIRKHOFF" "$OPS"
  local root='' arch=host begin=$SECONDS
  on_host=(-std=c++17 -O2 -g -Wno-unknown-pragmas -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti -fno-threadsafe-statics)
  case $(uname -m) in
    x86_64) isas=(avx2 avx512) isa_defines=(-DBK_HAVE_AVX2=1 -DBK_HAVE_AVX512=1) ;;
    aarch64) isas=(neon) isa_defines=(-DBK_HAVE_NEON=1) ;;
    *) isas=() isa_defines=() ;;
  esac
  if [ -z "$ON_HOST" ]; then
    root=$(cuda_root) || { fail "build: nvcc is not found (PATH, /usr/local/cuda/bin)"; return 1; }
    arch=$(card_arch)
    "$root/bin/nvcc" --version | tail -n 2 | show
  fi
  if compile_all "$arch" "$root" >"$OUT/build.log" 2>&1 && link_all "$root" >>"$OUT/build.log" 2>&1; then
    pass "build for $arch with $JOBS jobs ($((SECONDS - begin)) s)"
  else
    fail "build" "$OUT/build.log"
    return 1
  fi
  local spills reports
  reports=$(grep -c 'bytes spill stores' "$OUT/build.log") spills=$(grep -c '[1-9][0-9]* bytes spill stores' "$OUT/build.log")
  [ -n "$ON_HOST" ] || if [ "$reports" -eq 0 ]; then fail "the compiler reports no kernel's registers"; elif [ "$spills" -eq 0 ]; then pass "no kernel spills registers"; else fail "$spills kernels spill registers"; fi
}

# ---- the other stages ----
stage_devices() {
  "$BIRKHOFF" devices | show
  BIRKHOFF_LOG=debug "$BIRKHOFF" bench ops --op copy --tokens 64 --width 64 --seconds 0.01 --device cuda:0 2>&1 | grep -i 'blas\|cudnn' | show
  if "$BIRKHOFF" devices | grep -q '^cuda:0 *ok'; then pass "a CUDA device is here"; else fail "no CUDA device"; fi
}

# What needs a device says so once and is skipped without one.
on_device() { "$BIRKHOFF" devices 2>/dev/null | grep -q '^cuda:0 *ok'; }

stage_harness() {
  local ways=("with cuBLASLt and cuDNN where they are found" "own products and attention") i
  for i in 0 1; do
    BIRKHOFF_CUDA_BLASLT=$((1 - i)) BIRKHOFF_CUDA_CUDNN=$((1 - i)) check "harness, ${ways[i]}" "$OUT/harness-$i.log" ${ON_HOST:+env BK_TEST_QUICK=1} "$OPS" --device cuda --verbose
    tail -n 2 "$OUT/harness-$i.log" | show
  done
  grep 'worst share' "$OUT/harness-0.log" | show
  check "post + res and pre have the bits of their parts" "$OUT/harness-bits.log" ${ON_HOST:+env BK_TEST_QUICK=1} "$OPS" --device cuda --like-composed
}

stage_sanitizer() {
  local tool name
  tool=$(command -v compute-sanitizer) || tool=$(cuda_root 2>/dev/null)/bin/compute-sanitizer
  if [ ! -x "$tool" ]; then skip "compute-sanitizer is not here"; return; fi
  local names=(memcheck racecheck synccheck initcheck) pids=() i
  for name in "${names[@]}"; do # side by side: they wait for the host more than for the device
    BK_TEST_QUICK=1 timeout 90 "$tool" --tool "$name" --error-exitcode 9 "$OPS" --device cuda --case 127 >"$OUT/sanitizer-$name.log" 2>&1 &
    pids+=($!)
  done
  for i in 0 1 2 3; do
    name=${names[i]}
    wait "${pids[i]}"
    case $? in
      0) pass "compute-sanitizer $name" ;;
      124) if grep -q '^========= *\(Invalid\|Error\|Race\|Barrier\|Uninit\)' "$OUT/sanitizer-$name.log"; then fail "compute-sanitizer $name" "$OUT/sanitizer-$name.log"; else skip "compute-sanitizer $name: not done within 90 s"; fi ;;
      9) fail "compute-sanitizer $name" "$OUT/sanitizer-$name.log" ;;
      *) if grep -qi '^=========.*\(not supported\|unable to\)' "$OUT/sanitizer-$name.log"; then skip "compute-sanitizer $name: it refuses the device"; else fail "compute-sanitizer $name" "$OUT/sanitizer-$name.log"; fi ;;
    esac
  done
}

# Text to train on: the caller's, or what is at hand, the sources themselves.
text() {
  [ -z "$TEXT" ] || { cp "$TEXT" "$OUT/text.txt"; return; }
  find core models backends tools tests doc -type f \( -name '*.[ch]' -o -name '*.md' -o -name '*.cu' \) | sort | xargs cat >"$OUT/text.txt"
}
losses() { sed -n 's/.*"loss": *\([0-9.eE+-]*\).*/\1/p' "$1/metrics.jsonl"; }
# worst DIR DIR STEPS: the largest relative difference of two loss curves; 9 where they are not whole
worst() {
  paste <(losses "$1") <(losses "$2") | awk -v steps="$3" 'NF != 2 || $2 <= 0 { bad = 1; next }
    { d = $1 - $2; if (d < 0) d = -d; if (d > w * $2) w = d / $2; n++ } END { if (bad || n != steps) w = 9; printf "%.3g", w + 0 }'
}
below() { awk -v x="$1" -v y="$2" 'BEGIN { exit !(x < y) }'; }

stage_train() {
  local model=demo steps=100 dtype kind bound
  [ -z "$ON_HOST" ] || model=tiny steps=5
  text
  local common=(train --model "$model" --data "$OUT/text.txt" --steps "$steps" --set adam_eps=1e-8 gain_every=50)
  rm -rf "$OUT"/run-*
  check "$model on cpu" "$OUT/train-cpu.log" "$BIRKHOFF" "${common[@]}" --out "$OUT/run-cpu" --device cpu || return
  for dtype in fp32 bf16; do
    check "$model on cuda, $dtype" "$OUT/train-$dtype.log" "$BIRKHOFF" "${common[@]}" --out "$OUT/run-$dtype" --device cuda:0 --dtype $dtype || continue
    tail -n 1 "$OUT/train-$dtype.log" | show
    bound=1e-3
    [ $dtype = fp32 ] || bound=1e-2
    kind=$(worst "$OUT/run-$dtype" "$OUT/run-cpu" "$steps")
    if below "$kind" $bound; then pass "losses of $steps steps, $dtype against fp32 on cpu: within $kind (bound $bound)"; else fail "losses differ by $kind (bound $bound), $dtype"; fi
  done
  for kind in plain hc mhc mhc_lite ihc; do
    check "verify tiny, $kind" "$OUT/verify-$kind.log" "$BIRKHOFF" verify tiny --device cuda:0 --set residual=$kind
  done
}

stage_bits() {
  local model=demo steps=20 dtype
  [ -z "$ON_HOST" ] || model=tiny steps=3
  [ -f "$OUT/text.txt" ] || text
  for dtype in fp32 bf16; do
    local common=("$BIRKHOFF" train --model "$model" --data "$OUT/text.txt" --steps $steps --device cuda:0 --dtype $dtype)
    rm -rf "$OUT"/bits-*
    "${common[@]}" --out "$OUT/bits-a" >"$OUT/bits.log" 2>&1
    "${common[@]}" --out "$OUT/bits-b" >>"$OUT/bits.log" 2>&1
    "${common[@]}" --out "$OUT/bits-c" --set cuda_graph=false >>"$OUT/bits.log" 2>&1
    "${common[@]}" --out "$OUT/bits-d" --set merge_stream=true >>"$OUT/bits.log" 2>&1
    "${common[@]}" --out "$OUT/bits-e" --set merge_stream=true cuda_graph=false >>"$OUT/bits.log" 2>&1
    "${common[@]}" --out "$OUT/bits-f" --set hc_recompute=off >>"$OUT/bits.log" 2>&1
    local last other
    local -A what=([b]='two runs' [c]='step graphs on and off' [d]='merges on a stream of their own' [e]='the same without step graphs' [f]='recompute or not')
    last=$(printf 'step-%06d' $steps)
    for other in b c d e f; do
      if cmp "$OUT/bits-a/$last/model.safetensors" "$OUT/bits-$other/$last/model.safetensors" >>"$OUT/bits.log" 2>&1 &&
        cmp "$OUT/bits-a/$last/optimizer.safetensors" "$OUT/bits-$other/$last/optimizer.safetensors" >>"$OUT/bits.log" 2>&1; then
        pass "$dtype: $steps steps, ${what[$other]}: the same bits"
      else
        fail "$dtype: runs a and $other differ" "$OUT/bits.log"
      fi
    done
  done
}

# goal WHAT VALUE UNIT at-least|at-most BOUND: reported, not counted
goal() {
  local verdict=missed
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

stage_ops() {
  local sizes=("--tokens 32768 --width 7168" "--tokens 4096 --width 2560" "") s tokens
  [ -z "$ON_HOST" ] || sizes=("--tokens 64 --width 64 --seconds 0.01")
  for s in "${sizes[@]}"; do
    # shellcheck disable=SC2086
    check "bench ops, bf16, ${s:-its default sizes}" "$OUT/bench.log" "$BIRKHOFF" bench ops --device cuda:0 --dtype bf16 $s || continue
    show <"$OUT/bench.log"
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
card_bytes() { awk 'NR == 1 { m = $1 + 0 } END { printf "%.0f", m * 1048576 }' < <(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null); }

# What `plan` says of training: bytes. plan_bytes RESIDUAL BATCH MODEL [KEY=VALUE]...
plan_bytes() {
  local residual=$1 batch=$2 model=$3
  shift 3
  "$BIRKHOFF" plan --device cuda:0 --dtype bf16 --json --model "$model" --batch-size "$batch" --seq-len "$sequence" \
    --set residual="$residual" micro_batch_size="$batch" "$@" >"$OUT/plan.json" 2>&1
  figure "$OUT/plan.json" bytes_total
}

# One side of a bench step in a line. side_line LOG [compare]
side_line() {
  local log=$1 part=${2:-} name
  name=$([ -z "$part" ] && echo mhc || echo plain)
  of() { figure "$log" "$1" "$part"; }
  say "- $name: $(calc "$(of seconds) * 1e3") ms a step (forward $(calc "$(of forward_seconds) * 1e3"), backward $(calc "$(of backward_seconds) * 1e3"), optimiser" \
    "$(calc "$(of optimizer_seconds) * 1e3")), $(calc "$(of tokens_per_s)" 0) tokens/s, $(calc "$(of gflop_per_s) / 1e3") TFLOP/s," \
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
  local step=("$BIRKHOFF" bench step --device cuda:0 --dtype bf16 --model "$model" --batch-size "$batch" --seq-len "$sequence")
  check "bench step, bf16, $model $*, $batch sequences of $sequence${apart:+, one after the other}" "$log" "${step[@]}" --json \
    --compare plain "${apart[@]}" --seconds "$step_seconds" --set residual=mhc micro_batch_size="$batch" "$@" || return
  side_line "$log"
  side_line "$log" compare
  goal "$model: a step with mhc over one with plain" "$(calc "$(figure "$log" ratio)" 3)" times at-most 1.067
  goal "$model: plain, of the rate of matrix products ($(calc "$(figure "$log" roof_gflop_per_s) / 1e3" 0) TFLOP/s; 45 is hoped for)" \
    "$(calc "100 * $(figure "$log" share compare)")" % at-least 35
  goal "$model: memory with mhc over plan" "$(calc "$(figure "$log" bytes_used) / $mhc" 3)" times at-most 1.05
  goal "$model: memory with plain over plan" "$(calc "$(figure "$log" bytes_used compare) / $plain" 3)" times at-most 1.05
  check "bench step --profile, $model" "$OUT/profile.log" "${step[@]}" --seconds 0 --profile "$OUT/trace-$model.json" \
    --set residual=mhc micro_batch_size="$batch" "$@" && show <"$OUT/profile.log"
}

stage_step() {
  local sequence=4096 step_seconds=10
  if [ -n "$ON_HOST" ]; then
    sequence=32 step_seconds=0
    bench_model tiny num_hidden_layers=2
    return
  fi
  bench_model mhc-27b num_hidden_layers=4
  bench_model mhc-3b num_hidden_layers=4
}

stage_peers() {
  local options=(--rounds 3 --json "$OUT/peers.json") rc
  [ -z "$ON_HOST" ] || options+=(--device cpu --shape 64x64 --rounds 1 --seconds 0 --vocabulary 1000 --copy-bytes 1048576 --sides eager)
  timeout 300 tests/peers/gpu_run.sh --birkhoff "$BIRKHOFF" "${options[@]}" >"$OUT/peers.txt" 2>"$OUT/peers.log"
  rc=$?
  [ ! -s "$OUT/peers.txt" ] || show <"$OUT/peers.txt"
  case $rc in
    0) pass "peers: the same ops in PyTorch" ;;
    77) skip "peers: $(tail -n 1 "$OUT/peers.log")" ;;
    124) skip "peers: not done within 300 s" ;;
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
  "$1" --query-metrics >"$OUT/ncu-metrics.txt" 2>/dev/null
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
  timeout 120 "$tool" --csv --print-kernel-base demangled --kernel-name-base function --kernel-name "regex:^($kernels)$" --metrics "$metrics" \
    "$BIRKHOFF" bench ops --device cuda:0 --dtype bf16 "${size[@]}" --seconds 0 --op "${ops[@]}" >"$OUT/ncu.csv" 2>"$OUT/ncu.log"
  local rc=$?
  if grep -q 'ERR_NVGPUCTRPERM' "$OUT/ncu.csv" "$OUT/ncu.log"; then skip "ncu: the counters are not open to this user"; return; fi
  ncu_table <"$OUT/ncu.csv" >"$OUT/ncu.md"
  if [ "$(wc -l <"$OUT/ncu.md")" -gt 2 ]; then
    tee -a "$REPORT" <"$OUT/ncu.md"
    if [ $rc -eq 124 ]; then skip "ncu: not done within 120 s, what there is stands above"; else pass "ncu: $(($(wc -l <"$OUT/ncu.md") - 2)) kernels, ${size[*]}"; fi
  elif [ $rc -eq 124 ]; then skip "ncu: not done within 120 s"
  else fail "ncu: no figures, exit status $rc" "$OUT/ncu.log"
  fi
}

# ---- all of it ----
begin=$SECONDS
if [ ! -s "$REPORT" ] || [ ${#STAGES[@]} -eq ${#ALL[@]} ]; then : >"$REPORT"; fi
say "# GPU check, commit $COMMIT, $(date -u +%Y-%m-%d)"
say "Command: \`tools/gpu-check.sh --stage ${STAGES[*]}\`${ON_HOST:+ (on the host: figures mean nothing)}"
{ nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv 2>/dev/null || echo "nvidia-smi is not here"; } | show
for stage in "${STAGES[@]}"; do
  say "## $stage"
  if [ "$stage" != build ] && [ ! -x "$BIRKHOFF" ]; then skip "$stage: nothing is built"; continue; fi
  case $stage in build | devices) ;; *) on_device || { skip "$stage: no CUDA device"; continue; } ;; esac
  "stage_$stage"
done
say ""
say "report: ${REPORT#"$PWD"/}, in $((SECONDS - begin)) s"
say "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

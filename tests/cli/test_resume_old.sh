#!/bin/sh
# Checkpoints that commit f661eb7 wrote after step 4 are resumed: three more steps give, byte for
# byte, what they gave when the numbers of a step last changed (tests/fixtures/README.md has when;
# make.sh in tests/fixtures/resume_f661eb7 made all).
#
# `ref` and the portable instruction set of `cpu` are compared bit for bit. Both are compiled
# without fused products and neither leaves the order of a sum to the compiler, so that gcc and
# clang at every level, with sanitizers too, give the same bits; OpenBLAS, which chooses its
# kernels by the processor, is left out of them. Two things remain that can be otherwise and are no
# fault: the C library's exp, log, pow and the like, which are not rounded alike by every version
# nor, in one version, with and without FMA; and options such as -march=native, which make the
# portable vectors wide and fused. `helper arithmetic` shows both. Where they are otherwise, and
# with the instruction set that `cpu` chooses here, whose products a compiler fuses as it likes,
# the losses, gradient norms and weights have to be near, and a line says which and why.
. "$(dirname "$0")/lib.sh"
old=$FIXTURES/resume_f661eb7
BIRKHOFF_CPU_BLAS=0
export BIRKHOFF_CPU_BLAS

# begin NAME DTYPE: the folder NAME is f661eb7's run, stopped after step 4
begin() {
  cp -r "$old/$2" "$1"
  chmod -R u+w "$1"
}
# resume NAME DEVICE
resume() {
  case $1 in portable-*) set -- "$@" BIRKHOFF_CPU_ISA=portable ;; esac
  ok "resume $1" env $3 "$BIRKHOFF" train --resume --data "$old/tokens.bin" --out "$1" --device "$2"
}

sum_of() {
  if command -v sha256sum >sum_of.path; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi |
    cut -d ' ' -f 1
}
# after NAME FILE: the sum of what it has to be
after() { sed -n "s/  $1 $2\$//p" "$old/after.sums"; }
# rows NAME: those of the steps after 4, without the clock
rows() { sed -n '5,$ s/"tokens_per_s": [^,}]*, //p' "$1/metrics.jsonl"; }

# bits NAME: weights, optimiser state and metrics are what they were
bits() {
  for f in model optimizer; do
    equal "$1: $f.safetensors" "$(sum_of "$1/step-000007/$f.safetensors")" "$(after "$1" $f)"
  done
  rows "$1" >"$1.rows"
  same "$1: metrics" "$old/after-$1.jsonl" "$1.rows"
  echo "$1: compared bit for bit"
}

# apart KEY FILE FILE: the largest difference of a metric, as a share of its value; nothing where
# there are not three rows of both
apart() {
  for rows in "$2" "$3"; do
    sed -n "s/.*\"$1\": *\([0-9.e+-]*\).*/\1/p" "$rows" >"$(basename "$rows").key"
  done
  paste "$(basename "$2").key" "$(basename "$3").key" | awk 'NF == 2 {
      d = ($1 - $2) / $1
      if (d < 0) d = -d
      if (d > worst) worst = d
      n++
    } END { if (n == 3) printf "%.2e", worst }'
}
# weights_apart NAME: the largest difference of any fp32 weight
weights_apart() {
  mkdir -p "$1.weights" expected
  cp "$1/step-000007/model.safetensors" "$1/step-000007/config.json" "$1.weights"
  cp "$1/step-000007/config.json" expected
  cp -f "$old/after-fp32.safetensors" expected/model.safetensors
  "$BIRKHOFF" compare --json expected "$1.weights" >compared 2>err || return
  if grep -q '"status": "\(missing\|shape\)' compared; then return; fi
  sed -n 's/.*"max_abs": *\([0-9.e+-]*\).*/\1/p' compared |
    awk '$1 > worst { worst = $1 } END { if (NR) printf "%.2e", worst }'
}

# near NAME LIKE WHY: NAME's metrics and weights are near those that LIKE had.
#
# fp32: a value is rounded by a part in 1.7e7, and builds differ by two such roundings of a loss
# or a norm; 1e-6 is ten times that. Weights differ by up to 4e-6, in those whose gradient is zero
# but for rounding; three steps of Adam move a weight by up to 9e-3.
# bf16: a value is rounded by a part in 512. Of that `ref` and `cpu`, which round in other places,
# keep 1.3e-5 in a loss, the mean over 64 tokens, and 5.3e-4 in a norm, and builds of one device
# less. Weights are rounded so coarsely that they are left to the losses.
near() {
  case $2 in *bf16) loss=2e-5 norm=1e-3 ;; *) loss=1e-6 norm=1e-6 ;; esac
  rows "$1" >"$1.rows"
  d_loss=$(apart loss "$old/after-$2.jsonl" "$1.rows")
  d_norm=$(apart grad_norm "$old/after-$2.jsonl" "$1.rows")
  said="$1: not compared bit for bit, $3; apart: losses $d_loss, norms $d_norm"
  holds "$1: losses are near: ${d_loss:-none}" "${d_loss:-1} < $loss"
  holds "$1: gradient norms are near: ${d_norm:-none}" "${d_norm:-1} < $norm"
  case $2 in
    *fp32)
      d_weights=$(weights_apart "$1")
      said="$said, weights $d_weights"
      holds "$1: weights are near: ${d_weights:-none}" "${d_weights:-1} < 2e-5"
      ;;
  esac
  echo "$said"
}

# What the bits depend on, then and here: a word for the C library, and the portable vectors.
"$HELPER" arithmetic >here || fail "helper arithmetic"
read -r there_library there_vectors <"$old/after.arithmetic"
read -r library vectors <here
unlike=
[ "$library" = "$there_library" ] || unlike="the C library computes otherwise here"

for dtype in fp32 bf16; do
  begin ref-$dtype $dtype
  resume ref-$dtype ref
  if [ -z "$unlike" ]; then bits ref-$dtype
  else
    skipped=$((skipped + 1))
    near ref-$dtype ref-$dtype "$unlike"
  fi

  begin portable-$dtype $dtype
  resume portable-$dtype cpu
  if [ -z "$unlike" ] && [ "$vectors" = "$there_vectors" ]; then bits portable-$dtype
  else
    skipped=$((skipped + 1))
    near portable-$dtype portable-$dtype "${unlike:-the portable vectors have $vectors floats here}"
  fi

  begin cpu-$dtype $dtype
  resume cpu-$dtype cpu
  near cpu-$dtype portable-$dtype "the compiler fuses products as it likes"
done

# The small files, and the metrics of the steps before. A key of the recipe that came after f661eb7
# stands beside those that it wrote.
for run in ref-fp32 ref-bf16; do
  same "$run: config.json" "$old/${run#ref-}/step-000004/config.json" $run/step-000007/config.json
  head -n 4 $run/metrics.jsonl >$run.before
  same "$run: metrics before" "$old/${run#ref-}/metrics.jsonl" $run.before
done
sed 's/,$//' "$old/after-trainer_state.json" >want
sed 's/,$//' ref-fp32/step-000007/trainer_state.json >got
equal "trainer_state.json: lines of f661eb7 that are missing" "$(grep -v -x -F -f got want)" ""

# These comparisons can fail: another lowest byte of one moment shows in the bits, and a learning
# rate that is a hundredth higher is far beyond what is near.
begin moment fp32
size=$(wc -c <moment/step-000004/optimizer.safetensors)
last=$(tail -c 4 moment/step-000004/optimizer.safetensors | od -An -t u1 | awk '{ print $1 }')
printf "\\$(printf %o $((last ^ 255)))" |
  dd of=moment/step-000004/optimizer.safetensors bs=1 seek=$((size - 4)) conv=notrunc 2>dd.err
resume moment ref
for f in model optimizer; do sum_of moment/step-000007/$f.safetensors; done >moment.sums
for f in model optimizer; do sum_of ref-fp32/step-000007/$f.safetensors; done >ref-fp32.sums
if cmp -s moment.sums ref-fp32.sums; then fail "a moment with another byte goes unnoticed"
else pass; fi
for dtype in fp32 bf16; do
  begin rate-$dtype $dtype
  warned 'resuming with lr = ' "another rate" "$BIRKHOFF" train --resume --data "$old/tokens.bin" \
    --out rate-$dtype --device ref --lr 0.0101
  (failed=0; near rate-$dtype ref-$dtype "the rate is another"; [ $failed -eq 0 ]) >rate.out
  equal "$dtype: another rate is not near" $? 1
done
finish

#!/bin/sh
# Peak memory of a training run against what birkhoff plan says for the same options: within 5 %.
# The program itself (code, libraries, the BLAS's buffers, allocator) is not part of a plan: it is measured as the peak of a run of a few
# hundred kilobytes less that run's plan, and taken off. The model is wide in experts and short in steps: 250 MB, few products.
. "$(dirname "$0")/lib.sh"
text data.txt 4000
# peak COMMAND...: bytes, in $peak
peak() {
  "$HELPER" peak "$@" >peak.txt 2>err </dev/null
  rc=$?
  if [ $rc -eq 77 ]; then
    echo "a sanitizer has memory of its own: nothing to compare"
    skipped=1
    echo "$passed passed, $failed failed, $skipped skipped"
    exit 77
  fi
  [ $rc -eq 0 ] || fail "a run under helper peak" err
  peak=$(tail -n 1 peak.txt)
}
# measure NAME OPTIONS...: $peak of a run with everything on that takes memory, $plan of the same options
measure() {
  name=$1
  shift
  peak "$BIRKHOFF" train "$@" --data data.txt --out "$name" --steps 1 --set save_every=1 eval_every=1 gain_every=1 eval_tokens=64 keep=1
  ok "plan of $name" "$BIRKHOFF" plan --json "$@" --data data.txt --set save_every=1 eval_every=1 gain_every=1 eval_tokens=64 keep=1
  plan=$(json bytes_total)
}
measure empty --model tiny --threads 1 --batch-size 1 --seq-len 16 --set num_hidden_layers=1 n_routed_experts=4
base=$((peak - plan))
echo "the program itself: $base bytes"
holds "the program is small" "$base > 0 && $base < 60e6"
# Data is not held in memory: of a file of 64 MB a run has no more than of one of some kilobytes, but for what is looked at when it is opened.
cat data.txt data.txt data.txt data.txt >part.txt && for i in 1 2 3 4 5 6; do cat part.txt part.txt part.txt part.txt >more.txt && mv more.txt part.txt; done
for data in data.txt part.txt; do
  rm -rf flat
  peak "$BIRKHOFF" train --model tiny --threads 1 --batch-size 1 --seq-len 16 --data $data --out flat --steps 2 --set warmup_steps=0 eval_tokens=64
  echo "$data, $(wc -c <$data) bytes: peak $peak"
  eval "peak_${data%.txt}=$peak"
done
holds "the file is large" "$(wc -c <part.txt) > 20e6"
holds "memory is flat" "$peak_part - $peak_data < 4e6"
rm -rf flat part.txt
for options in "--set n_routed_experts=64 moe_intermediate_size=256 hidden_size=160 --batch-size 1 --seq-len 32" \
  "--set n_routed_experts=32 moe_intermediate_size=160 hidden_size=128 --batch-size 8 --seq-len 256 --dtype bf16"; do
  measure large --model tiny --threads 1 $options
  echo "$options: peak $peak, plan $plan, share $(awk "BEGIN { print ($peak - $base) / $plan }")"
  holds "large enough to tell" "$plan > 70e6"
  holds "peak within 5 % of the plan" "($peak - $base) / $plan > 0.95 && ($peak - $base) / $plan < 1.05"
  rm -rf large
done
finish

#!/bin/sh
# --profile: tables on standard error (bench: standard output), a Chrome trace that is JSON with the keys that viewers want, the same weights
# with and without, and a file that cannot be written is said before the work begins.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
small="--model tiny --batch-size 2 --seq-len 32 --threads 1 --set micro_batch_size=1 eval_every=2 warmup_steps=0"

# table FILE: both tables and the line between them are there
table() {
  has "what was measured" "^profile: [0-9]* steps\{0,1\} of [0-9.]* ms.*; trace: " "$1"
  has "ops" '^op  *kernel  *calls  *ms  *share  *GB/s  *GFLOP/s$' "$1"
  has "a line of an op" '^gemm  *[a-z_0-9]*  *[0-9.]*  *[0-9.]*  *[0-9.]*%  *[0-9.]*  *[0-9.]*$' "$1"
  has "the rest" '^(between ops)  *[0-9.]*  *[0-9.]*%$' "$1"
  has "phases" '^phase  *calls  *ms  *share  *GB/s  *GFLOP/s$' "$1"
  has "a line of a phase" '^forward  *[0-9.]*  *[0-9.]*  *[0-9.]*%' "$1"
}
# trace FILE: one JSON value; a step and an op have every key
trace() {
  if "$HELPER" json "$1"; then pass; else fail "$1 is not JSON"; return; fi
  equal "metadata" "$(json traceEvents/0/ph "$1") $(json traceEvents/0/name "$1") $(json traceEvents/0/args/name "$1")" "M process_name cpu"
  equal "a step" "$(json traceEvents/cat=step/ph "$1")" X
  equal "an op" "$(json traceEvents/cat=forward/ph "$1") $(json traceEvents/cat=forward/args/sublayer "$1")" "X 0"
  equal "its name" "$(json traceEvents/name=embed/cat "$1") $(json traceEvents/name=embed/args/sublayer "$1")" "embed null"
  case $(json traceEvents/name=gemm/args/kernel "$1") in gemm*) pass ;; *) fail "$1: the kernel of a gemm" ;; esac
  for key in dur args/bytes args/flops pid tid; do holds "gemm: $key" "$(json traceEvents/name=gemm/$key "$1") > 0"; done
  holds "an op lies within its step" "$(json traceEvents/name=embed/ts "$1") >= $(json traceEvents/cat=step/ts "$1") && \
    $(json traceEvents/name=embed/ts "$1") + $(json traceEvents/name=embed/dur "$1") <= $(json traceEvents/cat=step/ts "$1") + $(json traceEvents/cat=step/dur "$1")"
}
# spans FILE CATEGORY
spans() { grep -c "\"cat\":\"$2\"" "$1"; }

# ---- train ----
ok "train" "$BIRKHOFF" train $small --data data.txt --out plain --steps 5
cp out want.out
ok "train with a profile" "$BIRKHOFF" train $small --data data.txt --out run --steps 5 --profile run/trace.json
equal "standard output" "$(sed s/run/plain/ out)" "$(cat want.out)"
table err
has "the first step is left out" '^profile: 4 steps of .*without the first' err
trace run/trace.json
absent "left over" run/trace.json.tmp
equal "the last three steps" "$(spans run/trace.json step) $(json traceEvents/cat=step/name run/trace.json)" "3 step 3"
equal "two micro-batches" "$(spans run/trace.json embed)" "$((2 * 3 * 2))"
equal "no validation" "$(json traceEvents/cat=step/args/ops run/trace.json)" "$((($(grep -c '"ph":"X"' run/trace.json) - 3) / 3))"
ok "the same weights" "$BIRKHOFF" compare plain run --weights --json
equal "bit for bit" "$(json equal)" true
sed 's/"tokens_per_s":[^,]*,//' plain/metrics.jsonl >a.jsonl
sed 's/"tokens_per_s":[^,]*,//' run/metrics.jsonl >b.jsonl
same "the same losses" a.jsonl b.jsonl
warned 'resuming with steps = 6' "resume" "$BIRKHOFF" train --data data.txt --out run --resume --steps 6 --threads 1 --profile one.json --json
if "$HELPER" json out; then pass; else fail "--json: not one value" out; fi
equal "--json" "$(json step)" 6
has "one step counts" '^profile: 1 step of [0-9.]* ms; trace: one.json' err
equal "one step" "$(spans one.json step)" 1
ok "nothing left to do" "$BIRKHOFF" train --data data.txt --out run --resume --threads 1 --profile none.json
has "says so" '^profile: no step was taken' err
equal "an empty trace" "$("$HELPER" json none.json traceEvents/#)" 3

# ---- two ranks ----
ok "two ranks" "$BIRKHOFF" train $small --data data.txt --out two --steps 4 --comm threads --dp 2 --profile two.json
table err
has "what goes between them" '^between ranks  *calls  *ms  *waited ms  *MB sent$' err
for kind in reduce_scatter all_reduce all_gather; do has "$kind" "^$kind  *[0-9.]*  *[0-9.]*  *[0-9.]*  *[0-9.]*$" err; done
has "what is hidden" '^hidden under the backward pass: [0-9.]*% of reduce_scatter, in profiled steps$' err
if "$HELPER" json two.json; then pass; else fail "two.json is not JSON"; fi
equal "a row for each rank" "$(grep -c '"args":{"name":"comm"}' two.json)" 2
equal "each has all of it" "$(grep '"cat":"comm"' two.json | grep -c '"pid":0')" "$(grep '"cat":"comm"' two.json | grep -c '"pid":1')"
holds "an operation has its bytes" "$(json traceEvents/name=all_gather/args/bytes two.json) > 0 && $(json traceEvents/name=all_gather/args/under_way two.json) > 0"
holds "a step has its share" "$(json traceEvents/cat=step/args/hidden_share two.json) >= 0 && $(json traceEvents/cat=step/args/hidden_share two.json) <= 1"
equal "none of one rank" "$(grep -c '"comm"\|hidden_share' run/trace.json)" 0

# ---- eval ----
ok "eval" "$BIRKHOFF" eval run --data data.txt --seq-len 64 --profile eval.json --json
holds "result" "$(json loss) > 0"
table err
trace eval.json
equal "no backward" "$(spans eval.json dgrad)" 0
has "every pass but the first" '^profile: 11 steps of ' err
equal "the last passes" "$(spans eval.json step)" 3

# ---- bench ----
step="bench step --model tiny --batch-size 1 --seq-len 16 --seconds 0 --threads 1"
ok "bench step" "$BIRKHOFF" $step --profile bench.json
table out
trace bench.json
has "beside the result" '^mhc ' out
ok "bench step as JSON" "$BIRKHOFF" $step --profile bench.json --json
if "$HELPER" json out; then pass; else fail "--json: not one value" out; fi
equal "where the trace is" "$(json profile/trace)" bench.json
equal "one rank" "$(json profile/exchanges/#) $(json profile/hidden_share)" "0 null"
holds "steps without the first" "$(json profile/steps) == $(json steps)"
for key in calls seconds share gb_per_s gflop_per_s; do
  holds "ops: $key" "$(json profile/ops/op=gemm/$key) > 0"
  holds "phases: $key" "$(json profile/phases/phase=dgrad/$key) > 0"
done
holds "sorted" "$(json profile/ops/0/seconds) >= $(json profile/ops/1/seconds) && $(json profile/phases/0/seconds) >= $(json profile/phases/1/seconds)"
holds "no op is longer than the step" "$(json profile/ops/0/seconds) < $(json profile/step_seconds) && $(json profile/between_seconds) >= 0"
awk '/"between_seconds"/ { getline }; /"seconds"/ { gsub(/[",]/, ""); if (ops) sum += $2 } /"ops"/ { ops = 1 } /"phases"/ { exit } END { printf "%.17g\n", sum }' out >sum
holds "ops and the rest make the step" "($(cat sum) + $(json profile/between_seconds)) / $(json profile/step_seconds) > 0.999999"
ok "without" "$BIRKHOFF" $step --json
equal "no profile" "$(grep -c profile out)" 0

# ---- what cannot be ----
refused 1 'none/trace.json: .*No such file' "no such folder" "$BIRKHOFF" train $small --data data.txt --out new --steps 1 --profile none/trace.json
absent "nothing was trained" new/metrics.jsonl
refused 1 'a folder is there' "a folder" "$BIRKHOFF" train $small --data data.txt --out new --steps 1 --profile plain
refused 1 'cannot be made' "under a file" "$BIRKHOFF" $step --profile data.txt/x
refused 1 'not a file' "a device" "$BIRKHOFF" eval run --data data.txt --profile /dev/null
refused 2 'needs FILE' "no name" "$BIRKHOFF" train $small --data data.txt --out new --profile
refused 2 'empty' "an empty name" "$BIRKHOFF" train $small --data data.txt --out new --steps 1 --profile=
refused 2 '--compare' "two sides" "$BIRKHOFF" $step --compare plain --profile x.json
refused 2 'bench step' "bench ops" "$BIRKHOFF" bench ops --profile x.json
absent "no file" x.json
finish

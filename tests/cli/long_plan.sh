#!/bin/sh
# The simulator against reality: what plan --measured says of a step of a pipeline of two ranks with one thread each, and what a run takes. For the
# long level: no part of `make check`, and for a machine that does nothing else. usage: long_plan.sh [ROUNDS]
# In each round the costs are measured anew, while another process measures them too, because both ranks of a pipeline compute at once; the median
# of the rounds counts.
. "$(dirname "$0")/lib.sh"
rounds=${1:-5}
text data.txt 200000
model='--model demo --seq-len 256 --threads 1'
recipe='--set micro_batch_size=1 warmup_steps=0 eval_every=0 gain_every=0 save_every=0'
bench() { "$BIRKHOFF" bench step $model --batch-size 1 --seconds 3 --json >"$1" 2>>err </dev/null; }
# median FILE: of one number a line
median() { sort -n "$1" | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }

round=1
while [ $round -le "$rounds" ]; do
  for schedule in 1f1b zb1p dualpipe dualpipev; do
    bench other.json &
    bench costs.json || fail "measuring" err
    wait
    rm -rf run
    ok "$schedule" "$BIRKHOFF" train $model $recipe --batch-size 16 --data data.txt --out run --comm threads --pp 2 --schedule $schedule --steps 9
    # the first step warms up
    sed -n '2,$ s/.*"tokens_per_s": *\([0-9.e+-]*\).*/\1/p' run/metrics.jsonl | awk '{ print 16 * 256 / $1 }' >times
    took=$(median times)
    ok "plan of $schedule" "$BIRKHOFF" plan --schedule $schedule --pp 2 --micro 16 --measured costs.json --json
    echo "$round $schedule: predicted $(json step), took $took"
    awk "BEGIN { print $(json step) / $took }" >>$schedule.ratios
  done
  round=$((round + 1))
done
for schedule in 1f1b zb1p dualpipe dualpipev; do
  ratio=$(median $schedule.ratios)
  echo "$schedule: predicted / taken $ratio, median of $rounds"
  holds "$schedule within 15 %" "$ratio > 0.85 && $ratio < 1.15"
done
finish

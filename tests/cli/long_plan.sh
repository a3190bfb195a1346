#!/bin/sh
# The simulator against reality: what it says of a step of a pipeline of two ranks with one thread each, and what that step took, with costs that were
# measured in that step (tests/models/simulate_step.c). For the long level: no part of `make check`, and for a machine that does nothing else.
# usage: long_plan.sh [ROUNDS]
# What `plan --measured` says from costs that `bench step` has measured before is printed beside it and not judged: on a shared machine the clock is
# another one a second later.
. "$(dirname "$0")/lib.sh"
rounds=${1:-5}
text data.txt 200000
simulate=$TOP_BUILDDIR/tests/models/simulate_step
schedules='1f1b zb1p dualpipe dualpipev'
# median FILE: of one number a line
median() { sort -n "$1" | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }

round=1
while [ $round -le "$rounds" ]; do
  ok "measuring" "$BIRKHOFF" bench step --model demo --seq-len 256 --threads 1 --batch-size 1 --seconds 3 --json
  cp out costs.json
  for schedule in $schedules; do
    ok "$schedule" "$simulate" data.txt $schedule 2 16 9
    awk '{ print $1 / $2 }' out >ratios
    awk '{ print $2 }' out >times
    took=$(median times)
    median ratios >>$schedule.ratios
    ok "plan of $schedule" "$BIRKHOFF" plan --schedule $schedule --pp 2 --micro 16 --measured costs.json --json
    echo "round $round, $schedule: predicted / taken $(median ratios), steps of $took s; plan --measured says $(json step) s"
  done
  round=$((round + 1))
done
for schedule in $schedules; do
  ratio=$(median $schedule.ratios)
  echo "$schedule: predicted / taken $ratio, median of $rounds"
  holds "$schedule within 15 %" "$ratio > 0.85 && $ratio < 1.15"
done
finish

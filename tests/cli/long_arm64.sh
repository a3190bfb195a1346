#!/bin/sh
# arm64 against this machine: `tiny` trains there as it does here. For the long level: no part of `make check`.
# BIRKHOFF_ARM64: a program that runs birkhoff as built for arm64 (tools/test.sh makes one around qemu). The rest as in lib.sh.
. "$(dirname "$0")/lib.sh"
[ -x "$BIRKHOFF_ARM64" ] || { fail "BIRKHOFF_ARM64 names no program"; finish; }
steps=20
text data.txt 20000

# run NAME PROGRAM OPTIONS...: 20 steps of tiny; the losses in NAME.loss
run() {
  run=$1 program=$2
  shift 2
  ok "train on $run" "$program" train --model tiny --batch-size 2 --seq-len 32 --seed 7 --data data.txt --out "$run" --steps $steps --dtype fp32 "$@"
  sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' "$run/metrics.jsonl" >"$run.loss"
  equal "losses of $run" "$(wc -l <"$run.loss")" $steps
}
# near NAME NAME: all losses within 1e-5 of each other
near() {
  worst=$(paste "$1.loss" "$2.loss" | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d / $2 > worst) worst = d / $2 } END { printf "%.2e", worst }')
  echo "$1 and $2: losses apart by at most $worst of their value"
  holds "$1 and $2 differ" "$worst < 1e-5"
}

equal "instruction set" "$("$BIRKHOFF_ARM64" devices | sed -n 's/^cpu .*\(neon\).*/\1/p')" neon

# Initial values come from integers and polynomials of our own: the same bits everywhere.
ok "init here" "$BIRKHOFF" init --model tiny --seed 7 --out here
ok "init on arm64" "$BIRKHOFF_ARM64" init --model tiny --seed 7 --out there
same "initial values" here/model.safetensors there/model.safetensors

run x86 "$BIRKHOFF" --threads 2
run ref "$BIRKHOFF" --device ref
run arm64 "$BIRKHOFF_ARM64" --threads 2
BIRKHOFF_CPU_ISA=portable
export BIRKHOFF_CPU_ISA
run arm64-portable "$BIRKHOFF_ARM64" --threads 2
unset BIRKHOFF_CPU_ISA
echo "step: x86, ref, arm64, arm64 portable"
paste x86.loss ref.loss arm64.loss arm64-portable.loss | awk '{ printf "%4d  %s  %s  %s  %s\n", NR, $1, $2, $3, $4 }'
near arm64 x86
near arm64 ref
near arm64-portable ref

# One thread gives the same bits as two there as well, and a checkpoint of one machine serves on the other.
run arm64-one "$BIRKHOFF_ARM64" --threads 1
same "one thread and two" arm64.loss arm64-one.loss
same "their weights" arm64/step-*/model.safetensors arm64-one/step-*/model.safetensors
ok "eval there" "$BIRKHOFF_ARM64" eval arm64 --data data.txt --seq-len 32 --json
there=$(json loss)
ok "eval here" "$BIRKHOFF" eval arm64 --data data.txt --seq-len 32 --json
here=$(json loss)
holds "evaluations differ: $there there, $here here" "($here - $there) / $here < 1e-5 && ($there - $here) / $here < 1e-5"
finish

#!/bin/sh
# birkhoff train when something goes wrong: what is not finite, a full disk, a signal whose save fails; how to go on is said, and works.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
# The commands that the program names start it without libtool's script around it.
LD_LIBRARY_PATH=$TOP_BUILDDIR/.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
small="--model tiny --batch-size 2 --seq-len 32 --threads 1"
steady="$small --set lr_schedule=constant warmup_steps=0 eval_every=0 gain_every=0"

# run STATUS NAME COMMAND...: only the exit status counts; the rest is looked at afterwards
run() {
  want=$1 name=$2
  shift 2
  "$@" >out 2>err </dev/null
  rc=$?
  if [ $rc -eq "$want" ]; then pass; else fail "$name: exit status $rc, expected $want" err out; fi
}
# The command that the last run said to go on with.
said() { sed -n "s/^birkhoff: .*$1[^:]*: \(.*\)$/\1/p" err | tail -n 1; }
# A float NaN in the last four bytes: the last weight of lm_head.
poison() {
  size=$(wc -c <"$1")
  printf '\000\000\300\177' | dd of="$1" bs=1 seek=$((size - 4)) conv=notrunc 2>dd.err
}

# ---- not finite ----
run 1 "a rate out of all reason" "$BIRKHOFF" train $small --data data.txt --out wild --steps 60 --set residual=hc grad_clip=0 warmup_steps=0 save_every=0 --lr 1000
equal "one error" "$(grep -c 'birkhoff: error' err)" 1
has "names step and tensor" 'step [0-9]*: loss .*not finite, first of all: the gradient of' err
has "says that there is none" 'there is no good checkpoint; to begin again .*--lr 500$' err
tail -n 1 wild/metrics.jsonl >row.json
equal "null" "$(json grad_norm row.json)" null
absent "a result" wild/step-000002
ok "good steps" "$BIRKHOFF" train $steady --data data.txt --out sick --steps 3 --set save_every=1 keep=2
poison sick/step-000003/model.safetensors
run 2 "a checkpoint that is not finite" "$BIRKHOFF" train --data data.txt --out sick --resume --steps 6 --threads 1
has "is refused" 'sick/step-000003/model.safetensors: tensor lm_head.weight is not finite: element [0-9]* is nan' err
run 1 "and goes wrong where it is loaded" "$BIRKHOFF" train --data data.txt --out sick --resume --steps 6 --threads 1 --allow-nonfinite
has "names the weight" 'step 4: loss nan, .*first of all: weight lm_head.weight (nan at element' err
there "it is moved aside" sick/step-000003.refused/model.safetensors
absent "it is moved aside" sick/step-000003
has "the last good one" 'the last good checkpoint is sick/step-000002; ' err
command=$(said 'to go on from it')
has "goes on at half the rate" '--lr 0.00[0-9]*$' err
run 0 "and it can be gone on from" sh -c "$command"
has "to the end" '^sick/step-000006$' out
equal "every step once" "$(wc -l <sick/metrics.jsonl | tr -d ' ')" 6

# ---- spikes ----
run 0 "a gain" "$BIRKHOFF" train $steady --data data.txt --out gain --steps 4 --set gain_every=1 gain_limit=0.5
equal "warned about once" "$(grep -c 'birkhoff: warning: .*composite gain' err)" 1

# ---- no room: files may not grow past 200 KiB, then they may ----
limited() { (ulimit -f "$1"; shift; exec "$@"); }
run 1 "no room for a checkpoint" limited 400 "$BIRKHOFF" train $steady --data data.txt --out full --steps 12 --set save_every=4
has "the cause" 'error: cannot write full/step-000004.tmp/.*: File too large' err
has "goes on and tries again" 'warning: step 4 is not saved; training goes on and tries again at step 5; there is no checkpoint yet' err
has "tries again" 'warning: step 5 is not saved; training goes on and tries again at step 7' err
has "the end" 'step 12 could not be saved .* there is no checkpoint yet' err
equal "all steps were trained" "$(wc -l <full/metrics.jsonl | tr -d ' ')" 12
equal "no rests" "$(ls -d full/step-* 2>/dev/null | wc -l | tr -d ' ')" 0
command=$(said 'when the cause is mended')
run 0 "the command it names" sh -c "$command"
there "saves" full/step-000012
ok "room from the start" "$BIRKHOFF" train $steady --data data.txt --out roomy --steps 12 --set save_every=4
same "the same run" full/step-000012/model.safetensors roomy/step-000012/model.safetensors

# ---- a disk that is full for a while (a small file system of its own: root only) ----
mkdir disk
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=9m tmpfs disk 2>/dev/null; then
  trap 'umount "$W/disk"; rm -rf "$W"' EXIT
  head -c 8500000 /dev/zero >disk/ballast
  "$BIRKHOFF" train $steady --data data.txt --out disk/run --steps 100000 --set save_every=2 keep=1 >out 2>err </dev/null &
  pid=$!
  wait_for err 8 $pid
  rm disk/ballast
  for i in $(seq 200); do ls -d disk/run/step-*[0-9] >saved 2>/dev/null && break; sleep 0.05; done
  kill -TERM $pid
  wait $pid
  equal "ends as asked" $? 143
  has "was full" 'cannot write disk/run/step-.*No space left on device' err
  equal "saved once there was room" "$(ls -d disk/run/step-* | wc -l | tr -d ' ')" 1
  "$HELPER" json disk/run/step-*/trainer_state.json step >at
  equal "every row, once" "$(wc -l <disk/run/metrics.jsonl | tr -d ' ')" "$(cat at)"
  sed 's/^{"step": \([0-9]*\),.*/\1/' disk/run/metrics.jsonl >steps
  seq "$(cat at)" >numbers
  same "in order" steps numbers
  umount disk
  trap 'rm -rf "$W"' EXIT
else
  skipped=$((skipped + 1))
fi

# ---- signals ----
mkdir 'a b'
"$BIRKHOFF" train $steady --data data.txt --out 'a b/run' --steps 100000 --set save_every=0 >out 2>err </dev/null &
pid=$!
wait_for 'a b/run/metrics.jsonl' 3 $pid
kill -INT $pid
wait $pid
equal "status after SIGINT" $? 130
has "says what it does" 'finishing the step and saving' err
has "the command is quoted" "--out 'a b/run'" err
command=$(said 'stopped at step')
run 0 "that command" sh -c "$command --steps $(($(wc -l <'a b/run/metrics.jsonl') + 1))"
(ulimit -f 400; exec "$BIRKHOFF" train $steady --data data.txt --out lost --steps 100000 --set save_every=0 >out 2>err </dev/null) &
pid=$!
wait_for lost/metrics.jsonl 3 $pid
kill -TERM $pid
wait $pid
equal "a save that fails at a signal" $? 1
has "is said" 'step [0-9]* could not be saved' err
finish

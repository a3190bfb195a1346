#!/bin/sh
# The lock on the folder of a run: a second run is refused and changes nothing, the lock ends with the process, readers never ask for it.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
steady="--model tiny --batch-size 2 --seq-len 32 --threads 1 --data data.txt --set lr_schedule=constant warmup_steps=0 keep=100"

# start DIR [OPTION...]: a run in the background that goes on until it is stopped; its process is $pid.
start() {
  dir=$1
  shift
  "$BIRKHOFF" train $steady save_every=5 eval_every=0 gain_every=0 --out "$dir" --steps 100000 "$@" >run.out 2>run.err </dev/null &
  pid=$!
  wait_for "$dir/metrics.jsonl" 7 $pid || fail "the run in $dir does not run" run.err
}
# held PROCESS: a copy of everything that a stopped process has in the folder
pause_and_list() {
  kill -STOP "$pid"
  while ! grep -q '^State:.T' "/proc/$pid/status" 2>/dev/null; do [ -d /proc/self ] || break; sleep 0.02; done
  (cd "$1" && find . -type f -exec cksum {} + | sort) >"$2"
}
busy='is in use by another run (host [^ ]*, process [0-9]*)'

# ---- while a run is there ----
start run
pause_and_list run before
refused 1 "run $busy" "a second run" "$BIRKHOFF" train $steady --out run --steps 10
refused 1 "run $busy" "a resume" "$BIRKHOFF" train $steady --out run --resume --steps 10
refused 1 'in use by another run' "a resume that would be wrong otherwise, too" "$BIRKHOFF" train --model demo --data data.txt --out run --resume
ln -s run link
refused 1 "link $busy" "through a link" "$BIRKHOFF" train $steady --out link --resume
mkdir sub
refused 1 "$busy" "through another path" "$BIRKHOFF" train $steady --out sub/.././run/ --resume
grep -q "process $(sed -n 's/process //p' run/.lock))" err && pass || fail "the process is the one in the file" err run/.lock
refused 1 "$busy" "with a profile" "$BIRKHOFF" train $steady --out run --resume --profile run/trace.json
(cd run && find . -type f -exec cksum {} + | sort) >after
same "nothing was changed" before after
ok "eval reads" "$BIRKHOFF" eval run --data data.txt
ok "generate reads" "$BIRKHOFF" generate run --prompt 'the ' --max-tokens 2
ok "gain reads" "$BIRKHOFF" gain run --data data.txt
ok "compare reads" "$BIRKHOFF" compare run run
ok "a dry run reads" "$BIRKHOFF" train --data data.txt --out run --resume --steps 100000 --dry-run
ok "train from it" "$BIRKHOFF" train --init run --data data.txt --out from --steps 1 --batch-size 1 --seq-len 16 --set warmup_steps=0
kill -CONT $pid
rows=$(wc -l <run/metrics.jsonl)
wait_for run/metrics.jsonl $((rows + 3)) $pid
kill -TERM $pid
wait $pid
equal "the first run ends as it would alone" $? 143
step=$(ls -d run/step-?????? | sort | tail -n 1 | sed 's/.*step-0*//')
equal "its metrics are whole" "$(wc -l <run/metrics.jsonl | tr -d ' ')" "$step"
equal "and in order" "$(sed 's/.*"step": \([0-9]*\),.*/\1/' run/metrics.jsonl | awk '$1 != NR' | wc -l | tr -d ' ')" 0
there "the lock's file stays" run/.lock
ok "bit for bit what one run gives" "$BIRKHOFF" train $steady save_every=0 eval_every=0 gain_every=0 --out alone --steps "$step"
last=$(printf 'step-%06d' "$step")
for f in model optimizer; do same "the same bits" run/$last/$f.safetensors alone/$last/$f.safetensors; done

# ---- it ends with the process ----
start killed
kill -KILL $pid
wait $pid 2>/dev/null
ok "after kill -9, at once" "$BIRKHOFF" train --data data.txt --out killed --resume --steps 100000 --dry-run
step=$(ls -d killed/step-?????? | sort | tail -n 1 | sed 's/.*step-0*//')
warned 'resuming with steps = ' "after kill -9" "$BIRKHOFF" train --data data.txt --out killed --resume --threads 1 --steps $((step + 1))
equal "the text is the newer run's" "$(grep -c "process $pid\$" killed/.lock)" 0

# ---- the text decides nothing ----
for words in "" "host elsewhere
process 1" "garbage" "host $(printf '\033')[31m process 7"; do
  rm -rf stale
  mkdir stale
  printf '%s' "$words" >stale/.lock
  ok "a lock file that nobody holds" "$BIRKHOFF" train $steady --out stale --steps 1
  has "signed anew" "^process [0-9]*$" stale/.lock
done
mkdir held
if command -v flock >/dev/null 2>&1; then
  : >held/.lock
  for words in "" "host $(printf '\033')[31mred
process 7" "$(awk 'BEGIN { for (i = 0; i < 3000; i++) printf "host x " }')"; do
    printf '%s' "$words" >held/.lock
    refused 1 'held is in use by another run$' "held, with a text that says nothing" flock held/.lock "$BIRKHOFF" train $steady --out held --steps 1
  done
  equal "nothing else is there" "$(ls -A held)" .lock
else
  skipped=$((skipped + 1))
fi

# ---- what lies in its place ----
mkdir odd
mkdir odd/.lock
refused 1 'odd/.lock' "a folder" "$BIRKHOFF" train $steady --out odd --steps 1
rmdir odd/.lock
echo precious >mine
ln -s ../mine odd/.lock
refused 1 'odd/.lock is a symbolic link' "a link" "$BIRKHOFF" train $steady --out odd --steps 1
equal "what it points to is kept" "$(cat mine)" precious
rm odd/.lock
mkfifo odd/.lock
refused 1 'odd/.lock is not a regular file' "a pipe" "$BIRKHOFF" train $steady --out odd --steps 1

# ---- a folder that is not there ----
refused 2 'batch' "a wrong option" "$BIRKHOFF" train $steady --out new --batch-size 0
refused 2 'learning_rat' "a wrong key" "$BIRKHOFF" train $steady learning_rat=1 --out new
refused 1 'nothing.txt' "no data" "$BIRKHOFF" train --model tiny --data nothing.txt --out new
refused 2 'seq_len' "a wrong recipe" "$BIRKHOFF" train $steady --out new --seq-len 5000
ok "a dry run" "$BIRKHOFF" train $steady --out new --dry-run
absent "none of these makes it" new
ok "deep" "$BIRKHOFF" train $steady --out new/a/b --steps 1
there "with its lock" new/a/b/.lock

# ---- file systems whose locks do not hold ----
fake=$TOP_BUILDDIR/tests/cli/.libs/fake_flock.so
preload() { BK_FAKE_FLOCK=$1 LD_PRELOAD=$fake "$BIRKHOFF" train $steady --out "$2" --steps 1; }
mkdir -p plain
if [ -f "$fake" ] && LD_PRELOAD=$fake "$BIRKHOFF" --version >out 2>err && ! [ -s err ] && ! preload 5 plain >out 2>err; then
  for code in 38 37 95 22 5; do # ENOSYS ENOLCK EOPNOTSUPP EINVAL EIO
    refused 1 'plain lies on a file system whose locks do not hold (.*choose an --out on another' "flock fails with $code" preload $code plain
  done
  refused 1 'whose locks do not hold (the same lock was given twice).*choose an --out on another' "flock gives a lock twice" preload granted plain
  refused 1 'in use by another run' "flock says that it is taken" preload 11 plain
  refused 1 'whose locks do not hold' "in a folder that was not there" preload 38 plain/new
  # DIR is made, and before it is locked another run has come and gone there
  BK_FAKE_COMMAND="cp -R new/a/b/step-000001 late" && export BK_FAKE_COMMAND
  refused 2 'late has checkpoints (newest: step 1)' "another run came first" preload meanwhile late
  unset BK_FAKE_COMMAND
  same "what it left stays" new/a/b/step-000001/model.safetensors late/step-000001/model.safetensors
  equal "no checkpoint, no metrics" "$(find plain -name 'step*' -o -name 'metrics*' | wc -l | tr -d ' ')" 0
else
  echo "skipped: a stand-in for flock cannot be put before the program here"
  skipped=$((skipped + 1))
fi
finish

#!/bin/sh
# Signals to a training run: SIGHUP, SIGINT and SIGTERM end it with a checkpoint, SIGUSR1 saves and goes on.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
tiny="--model tiny --batch-size 1 --seq-len 16 --threads 1 --data data.txt --set warmup_steps=0"
steady="$tiny --set lr_schedule=constant warmup_steps=0 save_every=0 eval_every=0 gain_every=0"

# ---- to end ----
# A shell that was started without hangups, as nohup does it, cannot have them back; the helper can.
hangup="$HELPER hangup"
# start DIR [OPTION...]: in the background; $pid; returns after some steps
start() {
  dir=$1
  shift
  $hangup "$BIRKHOFF" train $steady --out "$dir" --steps 1000000 "$@" >run.out 2>run.err </dev/null &
  pid=$!
  wait_for "$dir/metrics.jsonl" 3 $pid || fail "$dir does not run" run.err
}
rows() { wc -l <"$1/metrics.jsonl" | tr -d ' '; }
checkpoints() { ls -d "$1"/step-* 2>/dev/null | wc -l | tr -d ' '; }
start hangup
kill -HUP $pid
wait $pid
equal "hangup: status" $? 129
equal "hangup: checkpoints" "$(checkpoints hangup)" 1
has "says how to go on" '--resume' run.err
equal "metrics end at it" "$(rows hangup)" "$(ls -d hangup/step-* | sed 's/.*step-0*//')"
steps=$(($(rows hangup) + 1))
warned 'resuming with steps = ' "goes on" "$BIRKHOFF" train $tiny --out hangup --resume --steps $steps --set lr_schedule=constant warmup_steps=0 save_every=0 eval_every=0 gain_every=0
ok "one that nobody stopped" "$BIRKHOFF" train $steady --out straight --steps $steps
same "the same bits" hangup/$(printf 'step-%06d' $steps)/model.safetensors straight/$(printf 'step-%06d' $steps)/model.safetensors
start hangups
for i in 1 2 3 4 5; do kill -HUP $pid 2>/dev/null; done
wait $pid
equal "many hangups: status" $? 129
equal "many hangups: checkpoints" "$(checkpoints hangups)" 1
start hup_term
kill -STOP $pid
kill -HUP $pid
kill -TERM $pid
kill -CONT $pid
wait $pid
rc=$?
holds "HUP and TERM at once, in whatever order: status $rc" "$rc == 129 || $rc == 143"
equal "HUP and TERM at once: checkpoints" "$(checkpoints hup_term)" 1
start term_hup
kill -TERM $pid
# Of two signals that wait for a process, the system is free to deliver either first: the second is sent when the first has been answered.
tries=0
until grep -q 'finishing the step' run.err || [ $((tries += 1)) -gt 200 ]; do sleep 0.05; done
kill -HUP $pid 2>/dev/null
wait $pid
equal "TERM, then HUP: status" $? 143
equal "TERM, then HUP: checkpoints" "$(checkpoints term_hup)" 1
start twice
kill -STOP $pid
kill -INT $pid
kill -TERM $pid
kill -CONT $pid
wait $pid
rc=$?
holds "a second one ends the program: status $rc" "$rc == 130 || $rc == 143"
equal "at once" "$(checkpoints twice)" 0
trap '' HUP # as nohup does; the child inherits it
hangup= && start nohup
trap 'exit 1' HUP
kill -HUP $pid
before=$(rows nohup)
wait_for nohup/metrics.jsonl $((before + 20)) $pid && pass || fail "it does not go on when hangups are ignored" run.err
kill -TERM $pid
wait $pid
equal "nohup: status" $? 143

# ---- SIGUSR1 ----
steps=200
ok "without" "$BIRKHOFF" train $steady --out unasked --steps $steps
"$BIRKHOFF" train $steady --out asked --steps $steps --set keep=100 >run.out 2>run.err </dev/null &
pid=$!
for i in 3 30 90; do
  wait_for asked/metrics.jsonl $i $pid && kill -USR1 $pid
done
wait $pid
equal "asked to save: status" $? 0
holds "checkpoints on the way" "$(checkpoints asked) >= 2"
equal "a line for each" "$(grep -c '^birkhoff: a signal asked for it: step [0-9]* is saved: asked/step-[0-9]*$' run.err)" "$(($(checkpoints asked) - 1))"
equal "nothing else is said" "$(grep -c 'birkhoff: \(warning\|error\)' run.err)" 0
for f in model.safetensors optimizer.safetensors; do same "the same bits" unasked/step-000200/$f asked/step-000200/$f; done
for run in unasked asked; do sed 's/"tokens_per_s": [^,}]*//' $run/metrics.jsonl >$run.rows; done
same "the same metrics, times aside" unasked.rows asked.rows
ok "what was saved is a checkpoint" "$BIRKHOFF" eval "$(ls -d asked/step-* | head -n 1)" --data data.txt
if [ -r /proc/self/status ]; then
  ok "nobody asks" "$BIRKHOFF" train $tiny --out early --steps 3
  for i in 1 2 3; do # as early as it is caught
    "$BIRKHOFF" train $tiny --out early_$i --steps 3 >run.out 2>run.err </dev/null &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
      # the shell that is yet to become the program may catch signals too, to clean up
      case $(readlink "/proc/$pid/exe") in *sh) continue ;; esac
      caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/$pid/status 2>/dev/null)
      case ${caught#??????????} in ???[2367abefABEF]??) break ;; esac
    done
    kill -USR1 $pid 2>/dev/null
    wait $pid
    equal "asked before the first step: status" $? 0
    same "the same bits" early/step-000003/model.safetensors early_$i/step-000003/model.safetensors
  done
else
  skipped=$((skipped + 1))
fi
(ulimit -f 100 && exec "$BIRKHOFF" train $steady --out nowhere --steps 1000000 >run.out 2>run.err </dev/null) &
pid=$!
wait_for nowhere/metrics.jsonl 3 $pid
kill -USR1 $pid
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  grep -q 'is not saved' run.err && break
  sleep 0.1
done
has "a save that fails is said" 'cannot write nowhere/step-.*File too large' run.err
has "and tried again" 'is not saved; training goes on and tries again at step' run.err
equal "it is not said to be saved" "$(grep -c 'is saved' run.err)" 0
before=$(rows nowhere)
wait_for nowhere/metrics.jsonl $((before + 3)) $pid && pass || fail "training does not go on" run.err
kill -KILL $pid
wait $pid 2>/dev/null

finish

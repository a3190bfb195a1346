#!/bin/sh
# The program as a process: closed descriptors, a reader that goes away, small stacks. Signals: test_signals.sh.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
tiny="--model tiny --batch-size 1 --seq-len 16 --threads 1 --data data.txt --set warmup_steps=0"

# clean NAME DIR STEPS: metrics of steps 1 to STEPS, each a JSON object, and nothing else
clean() {
  equal "$1: rows" "$(wc -l <"$2/metrics.jsonl" | tr -d ' ')" "$3"
  seq "$3" >numbers
  while read -r i; do
    sed -n "${i}p" "$2/metrics.jsonl" >row.json
    equal "$1: row $i" "$("$HELPER" json row.json step 2>&1)" "$i"
  done <numbers
}
# closing DIGITS COMMAND...: with those descriptors closed
closing() (
  closed=$1
  shift
  case $closed in *0*) exec <&- ;; esac
  case $closed in *1*) exec >&- ;; esac
  case $closed in *2*) exec 2>&- ;; esac
  exec "$@"
)

# ---- descriptors 0 to 2 ----
ok "a model" "$BIRKHOFF" train $tiny --out whole --steps 3
clean "a model" whole 3
"$BIRKHOFF" eval whole --data data.txt >eval.out
for which in - 0 1 2 01 02 12 012; do
  closing $which "$BIRKHOFF" train $tiny --out closed_$which --steps 2 >out 2>err </dev/null
  equal "train without $which: status" $? 0
  clean "train without $which" closed_$which 2
  case $which in *1*) [ "$which" != 1 ] || has "and says so" 'warning: cannot write to standard output' err ;; *) has "its result" "closed_$which/step-000002" out ;; esac
  warned 'resuming with steps = ' "train without $which goes on" "$BIRKHOFF" train $tiny --out closed_$which --resume --steps 3
  for f in model optimizer; do same "train without $which: the same bits" whole/step-000003/$f.safetensors closed_$which/step-000003/$f.safetensors; done
  closing $which "$BIRKHOFF" eval whole --data data.txt >out 2>err </dev/null
  rc=$?
  case $which in
    *1*) equal "eval without $which: status" $rc 1 ;;
    *)
      equal "eval without $which: status" $rc 0
      same "eval without $which" out eval.out
      ;;
  esac
done
for words in "eval whole --data data.txt" "--version" "--help" "plan --model tiny" "train --help" "train --help-config"; do
  closing 1 "$BIRKHOFF" $words >out 2>err </dev/null
  equal "$words without output: status" $? 1
  equal "$words says so, once" "$(grep -c 'error: cannot write to standard output' err)" 1
done
ok "a prompt from a closed input is empty" closing 0 "$BIRKHOFF" generate whole --prompt - --max-tokens 3 --temperature 0
ok "of no bytes" closing 0 "$BIRKHOFF" generate whole --prompt - --max-tokens 3 --json

# ---- a reader that goes away, a device that is full ----
into() { ("$@" 2>err </dev/null; echo $? >rc) | :; }
into "$BIRKHOFF" train $tiny --out gone --steps 2
equal "train without a reader: status" "$(cat rc)" 0
equal "one warning" "$(grep -c 'birkhoff: warning' err)" 1
has "it says where" 'warning: cannot write to standard output; what was made is whole, in gone' err
clean "train without a reader" gone 2
into "$BIRKHOFF" train $tiny --out gone_json --steps 2 --json
equal "train --json without a reader: status" "$(cat rc)" 0
equal "one warning" "$(grep -c 'birkhoff: \(warning\|error\)' err)" 1
there "its checkpoint" gone_json/step-000002
into "$BIRKHOFF" train $tiny --out gone_plan --steps 2 --dry-run
equal "a plan is a result: status" "$(cat rc)" 1
for words in "eval whole --data data.txt" "compare whole gone" "generate whole --prompt the --temperature 0 --max-tokens 20" "devices --json" "--help"; do
  into "$BIRKHOFF" $words
  equal "$words without a reader: status" "$(cat rc)" 1
  equal "$words: one message" "$(grep -c 'error: cannot write to standard output' err)" 1
done
("$BIRKHOFF" train $tiny --out mute --steps 2 2>&1 >out </dev/null; echo $? >rc) | :
equal "train with nobody at its messages: status" "$(cat rc)" 0
has "its result" mute/step-000002 out
clean "train with nobody at its messages" mute 2
("$BIRKHOFF" train $tiny --out mute --steps 2 2>&1 </dev/null; echo $? >rc) | :
equal "refused with nobody at its messages: status" "$(cat rc)" 2
if [ -w /dev/full ]; then
  "$BIRKHOFF" train $tiny --out full --steps 2 >/dev/full 2>err </dev/null
  equal "train on a full device: status" $? 0
  has "a warning" 'warning: cannot write to standard output' err
  "$BIRKHOFF" train $tiny --out full_err --steps 2 >out 2>/dev/full </dev/null
  equal "train with messages on a full device: status" $? 0
  clean "train with messages on a full device" full_err 2
else
  skipped=$((skipped + 1))
fi
"$BIRKHOFF" generate whole --prompt 'the ' --temperature 0 --max-tokens 400 2>err </dev/null | head -c 10 >out
equal "generate | head" "$(wc -c <out | tr -d ' ')" 10

# ---- small stacks ----
"$HELPER" tokens in.safetensors input_ids i32 1x20 $(seq 20)
for kind in "" -S; do
  small() { (ulimit $kind -s 128 && exec "$@"); }
  if ! small true 2>/dev/null; then
    skipped=$((skipped + 1))
    continue
  fi
  for threads in 1 4; do
    ok "train on a small stack" small "$BIRKHOFF" train --model tiny --batch-size 1 --seq-len 16 --data data.txt --out small$kind$threads --steps 3 --threads $threads --set warmup_steps=0
    same "the same bits" whole/step-000003/model.safetensors small$kind$threads/step-000003/model.safetensors
    ok "verify on a small stack" small "$BIRKHOFF" verify tiny --device cpu --batch-size 1 --seq-len 8 --threads $threads
    ok "eval on a small stack" small "$BIRKHOFF" eval whole --data data.txt --threads $threads
    ok "generate on a small stack" small "$BIRKHOFF" generate whole --prompt the --max-tokens 5 --threads $threads
  done
  ok "bench on a small stack" small "$BIRKHOFF" bench step --model tiny --batch-size 1 --seq-len 16 --seconds 0 --threads 4
  ok "another residual on a small stack" small "$BIRKHOFF" verify tiny --device cpu --batch-size 1 --seq-len 8 --set residual=mhc_lite hc_mult=5
  ok "forward on a small stack" small "$BIRKHOFF" forward whole --tokens in.safetensors --out out$kind.safetensors --backward --maps
  ok "gain on a small stack" small "$BIRKHOFF" gain whole --data data.txt
  ok "init on a small stack" small "$BIRKHOFF" init --model tiny --out init$kind
  ok "compare on a small stack" small "$BIRKHOFF" compare whole whole
  ok "plan on a small stack" small "$BIRKHOFF" plan --model mhc-3b
  ok "devices on a small stack" small "$BIRKHOFF" devices
  refused 2 'did you mean' "an error on a small stack" small "$BIRKHOFF" trian
  (ulimit $kind -s 128 && exec "$BIRKHOFF" train $tiny --out stop$kind --steps 1000000 --set save_every=0 >run.out 2>run.err </dev/null) &
  pid=$!
  wait_for stop$kind/metrics.jsonl 3 $pid
  kill -TERM $pid
  wait $pid
  equal "a signal on a small stack: status" $? 143
  equal "a signal on a small stack: checkpoints" "$(ls -d stop$kind/step-* | wc -l | tr -d ' ')" 1
done
finish

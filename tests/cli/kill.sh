# For test_kill.sh and long_kill.sh, after lib.sh: a run that saves every step is killed at random moments, and each resume goes on bit
# for bit. KILL_SEED changes the moments.

# kills NUMBER: kills a run so often, then lets it end and compares it with one that nobody killed.
kills() {
  seed=${KILL_SEED:-20}
  echo "seed $seed (KILL_SEED)"
  text data.txt 4000
  recipe="--model tiny --batch-size 1 --seq-len 16 --threads 1 --set lr_schedule=constant warmup_steps=0 save_every=1 eval_every=0 gain_every=0"
  awk -v seed="$seed" -v n="$1" 'BEGIN { srand(seed); for (i = 0; i < n; i++) printf "%d %.3f\n", int(rand() * 4), rand() * 0.1 }' >moments
  number=0
  while read -r rows pause; do
    number=$((number + 1))
    before=$(rows_of killed)
    "$BIRKHOFF" train $recipe --data data.txt --out killed --steps 1000000 --resume >out 2>err </dev/null &
    pid=$!
    # from while it starts up to some steps later; within a step, a save or a clean-up as the pause has it
    if [ "$rows" -gt 0 ]; then wait_for killed/metrics.jsonl $((before + rows)) $pid; fi
    sleep "$pause"
    if kill -KILL $pid 2>/dev/null; then pass; else fail "kill $number: the run had ended" err; fi
    wait $pid 2>/dev/null
    if [ -s err ] && grep -q 'birkhoff: \(warning\|error\)' err; then fail "kill $number: a message" err; else pass; fi
  done <moments
  step=$(ls -d killed/step-?????? | sed 's/.*step-0*//' | sort -n | tail -n 1)
  holds "it came forward" "${step:-0} > $1 / 4"
  total=$((step + 2))
  last=$(printf 'step-%06d' $total)
  warned 'resuming with steps = ' "the last resume" "$BIRKHOFF" train $recipe --data data.txt --out killed --steps $total --resume
  ok "nobody kills this one" "$BIRKHOFF" train $recipe --data data.txt --out whole --steps $total
  for f in config.json model.safetensors optimizer.safetensors trainer_state.json; do same "killed $1 times" whole/$last/$f killed/$last/$f; done
  for run in whole killed; do sed 's/"tokens_per_s": [^,}]*//' $run/metrics.jsonl >$run.rows; done
  same "metrics, times aside" whole.rows killed.rows
  equal "a row per step" "$(rows_of killed)" $total
  equal "nothing half-written stays" "$(ls -a killed | grep -c tmp)" 0
  echo "$1 kills, $total steps"
}

rows_of() { if [ -f "$1/metrics.jsonl" ]; then wc -l <"$1/metrics.jsonl" | tr -d ' '; else echo 0; fi; }

#!/bin/sh
# birkhoff train --pp: pipelines of ranks that are threads of one process, or processes under mpirun: what is refused, the same bytes as one process,
# checkpoints of any plan in any other, stops, a stage that is killed.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/parallel.sh"
train="$BIRKHOFF train $tiny $steady micro_batch_size=1 --batch-size 8"
threads="$train --comm threads"

# ---- options ----
refused 2 '--pp 2: there is one rank; --comm threads --pp 2 runs 2' "ranks from nowhere" $train --out no --pp 2
refused 2 '--pp 2: there is one rank' "one rank by name" $train --out no --pp 2 --comm self
refused 2 '--pp 0: expected a whole number from 1' "no ranks" $threads --out no --pp 0
refused 2 'dualpipev with 4 ranks has 8 stages, the model only 6 sublayers' "more stages than sublayers" $threads --out no --pp 4 --schedule dualpipev
refused 2 '--pp: batch_size 7 .* must be a multiple of 2' "a batch that is not cut into whole micro-batches" $threads --out no --pp 2 --dp 2 --batch-size 7
refused 2 'dualpipe needs .* at least 2 for each rank: 4 for 2 ranks; there are 2' "too few micro-batches" $threads --out no --pp 2 --schedule dualpipe --batch-size 2
refused 2 'dualpipe needs an even number of ranks.*there are 3' "an odd number of ranks" $threads --out no --pp 3 --schedule dualpipe
refused 2 'there is no schedule pipedream; there are sequential, 1f1b' "an unknown schedule" $threads --out no --pp 2 --schedule pipedream
refused 2 '--stages is for pipelines' "stages of no pipeline" $train --out no --stages 3,3
for stages in 1,2 6 x 3,3, 3,-3 0,6 3,3,0; do
  refused 2 "stages $stages: expected 2 numbers, .* the 6 sublayers" "stages $stages" $threads --out no --pp 2 --stages $stages
done
refused 2 'unknown option --pp' "of another command" "$BIRKHOFF" eval run --data data.txt --pp 2

# ---- schedules from files ----
all_f="0F0 0F1 0F2 0F3" all_b="0B0 0B1 0B2 0B3"
echo "{\"schedule\": \"gpipe\", \"stages\": [[0], [1]], \"ranks\": [\"$all_f $all_b\", \"$all_f $all_b\"]}" >gpipe.json
echo "{\"schedule\": \"half\", \"stages\": [[0], [1]], \"ranks\": [\"$all_f $all_b\", \"$all_f\"]}" >half.json
head -c 60 gpipe.json >cut.json
refused 2 'half.json: rank 1: micro-batch 0 does not go backward' "a schedule that lacks a pass" $threads --out no --pp 2 --schedule half.json --batch-size 4
refused 2 'cut.json: ' "a file that is cut short" $threads --out no --pp 2 --schedule cut.json --batch-size 4
refused 1 'cannot open nothing.json' "no file" $threads --out no --pp 2 --schedule nothing.json --batch-size 4
refused 2 'gpipe.json: it is made for 4 micro-batches; .* there are 8' "of other micro-batches" $threads --out no --pp 2 --schedule gpipe.json
refused 2 '--pp 3: the schedule in gpipe.json is of 2 ranks' "of other ranks" $threads --out no --pp 3 --schedule gpipe.json --batch-size 4
refused 2 'it is of 2 ranks, and 3 ranks are no multiple' "of ranks that do not divide" $threads --out no --dp 3 --schedule gpipe.json --batch-size 12
absent "none of them has begun" no

# ---- plans ----
ok "bytes of a plan" $threads --out plan --pp 2 --dp 2 --schedule dualpipev --dry-run --json
equal "of each rank" "$(json ranks/#) $(json ranks/3/rank)" "4 3"
holds "what a rank has of the weights" "$(json ranks/0/bytes/weights) < 0.7 * $(json ranks/0/bytes/gradients) + 500000"
share=$(json ranks/3/bytes/optimizer)
ok "bytes of one rank" $train --out plan --dry-run --json
holds "a quarter, as far as stages are alike" "$share < 0.4 * $(json bytes/optimizer) && $share > 0.1 * $(json bytes/optimizer)"
ok "a plan in words" $threads --out plan --pp 2 --dry-run
has "the largest" '^ranks  *2; each has at most:$' out
absent "a plan writes nothing" plan

# ---- the numbers of one process ----
ok "one process" $train --out one --steps 4 --set eval_every=2 gain_every=2
# numbers DIR KEY: of all rows
numbers() { sed -n "s/.*\"$2\": \([^,}]*\).*/\1/p" "$1/metrics.jsonl" | tr '\n' ' '; }
count() { numbers one "$1" | wc -w | tr -d ' '; }
equal "what is compared" "$(count loss) $(count grad_norm) $(count val_loss) $(count gain_forward) $(count gain_backward) $(grep -c expert_load one/metrics.jsonl)" "4 4 2 2 2 4"
# like_one DIR: what one process has computed, to the byte
like_one() {
  ok "$1: compared" "$BIRKHOFF" compare one "$1" --weights
  has "$1: tensors" ' bit-equal, 0 different, 0 missing' out
  for key in loss grad_norm val_loss gain_forward gain_backward; do
    equal "$1: $key" "$(numbers "$1" $key)" "$(numbers one $key)"
  done
  equal "$1: loads" "$(sed 's/.*"expert_load"//' "$1/metrics.jsonl")" "$(sed 's/.*"expert_load"//' one/metrics.jsonl)"
}
ok "1f1b" $threads --out of_1f1b --pp 2 --steps 4 --set eval_every=2 gain_every=2
has "who works together" '^2 ranks over threads, pp 2 (1f1b, 8 micro-batches), dp 1: ' err
like_one of_1f1b
ok "zb1p" $threads --out of_zb1p --pp 3 --schedule zb1p --stages 1,3,2 --steps 4 --set eval_every=2 gain_every=2
like_one of_zb1p
ok "dualpipev" $threads --out of_dualpipev --pp 3 --schedule dualpipev --steps 4 --set eval_every=2 gain_every=2
like_one of_dualpipev
ok "one rank" $train --out alone --schedule dualpipev --steps 4 --set eval_every=2 gain_every=2
like_one alone
ok "dualpipe" $threads --out of_dualpipe --pp 2 --schedule dualpipe --steps 4
ok "to rounding" "$BIRKHOFF" compare one of_dualpipe --weights --json
for path in $(seq 0 5); do holds "weights" "$(json tensors/$path/nmse) < 1e-8"; done
ok "of a file" $threads --out of_file --pp 2 --schedule ./gpipe.json --batch-size 4 --steps 2
ok "and without" $train --out without --batch-size 4 --steps 2
ok "of a file: compared" "$BIRKHOFF" compare without of_file --weights
has "of a file: tensors" ' bit-equal, 0 different, 0 missing' out

# ---- a checkpoint of any plan goes on in any other ----
ok "straight on" $train --out straight --steps 8 --set save_every=4
# resumed FROM TO OPTIONS...: goes on in TO with the run in FROM, which has four steps, and comes to the bits of one process
resumed() {
  to=$2
  cp -r "$1" "$to"
  shift 2
  warned 'resuming with steps = 8' "$to" "$BIRKHOFF" train --data data.txt --threads 1 --out "$to" --resume --steps 8 "$@"
  ok "$to: compared" "$BIRKHOFF" compare straight/step-000008 "$to/step-000008" --weights
  has "$to: tensors" ' bit-equal, 0 different, 0 missing' out
}
ok "four steps" $train --out first_one --steps 4
ok "four steps in a pipeline" $threads --out first_pp --pp 2 --schedule dualpipev --steps 4
resumed first_one one_then_pp --comm threads --pp 3 --schedule zb1p
resumed first_pp pp_then_one
for f in config.json model.safetensors optimizer.safetensors; do same "as if it had been one" straight/step-000008/$f pp_then_one/step-000008/$f; done
resumed first_pp pp_then_pp --comm threads --pp 2 --stages 1,5
ok "evaluation of a pipeline's checkpoint" "$BIRKHOFF" eval first_pp --data data.txt
cp out evaluated
ok "evaluation of one process's" "$BIRKHOFF" eval first_one --data data.txt
same "are the same" out evaluated
ok "generation" "$BIRKHOFF" generate first_pp --prompt "the king" --max-tokens 8

# ---- stops of threads ----
# An interrupt, which a background process of a shell ignores unless it is told not to.
$threads --pp 2 --schedule dualpipe --out stopped --steps 1000000 --set keep=9 >run.out 2>run.err </dev/null &
pid=$!
wait_for stopped/metrics.jsonl 3 $pid || fail "it does not run" run.err
kill -INT $pid
wait $pid
equal "SIGINT: status" $? 130
equal "the metrics end at the checkpoint" "$(wc -l <stopped/metrics.jsonl | tr -d ' ')" "$(newest stopped)"
has "says how to go on" 'stopped at step .* --resume' run.err
last=$(($(newest stopped) + 2))
warned 'resuming with steps' "goes on" "$BIRKHOFF" train --data data.txt --threads 1 --out stopped --resume --steps $last --comm threads --pp 2 --schedule dualpipe
equal "to its end" "$(newest stopped)" $last

# ---- ranks that are processes ----
have_mpi || finish
run4="$MPIRUN -n 4 $train"
refused 2 '--pp 3: the number of ranks is 4; it must be a multiple of 3' "ranks that do not divide" $run4 --out no --pp 3
refused 2 '--pp 2 --dp 4: the number of ranks is 4' "another product" $run4 --out no --pp 2 --dp 4
refused 2 '\[rank 1\] what this rank is to train differs from that of rank 0' "another schedule on one rank" \
  $MPIRUN -n 1 $train --out no --steps 2 --pp 2 : -n 1 $train --out no --steps 2 --pp 2 --schedule zb1p
absent "none of them has begun" no
# both OPTIONS...: four processes and four threads write the same bytes
both() {
  rm -rf processes threads
  ok "processes: $*" $run4 --out processes --steps 4 "$@"
  ok "threads: $*" $threads --out threads --steps 4 "$@"
  same_folder "the same checkpoints: $*" processes/step-000004 threads/step-000004
  rows processes >a
  rows threads >b
  same "the same metrics: $*" a b
}
both --pp 4 --schedule zb1p
ok "compared" "$BIRKHOFF" compare one threads --weights
has "and those of one process" ' bit-equal, 0 different, 0 missing' out
both --pp 2 --dp 2 --schedule dualpipe
both --pp 2 --dp 2 --schedule dualpipev --set gain_every=2 eval_every=2

# start DIR OPTIONS...: in the background; $pid is mpirun, which would end the others itself and is told to leave them alone
start() {
  dir=$1
  shift
  $MPIRUN --enable-recovery -n 4 $train --out "$dir" --steps 1000000 "$@" >run.out 2>run.err </dev/null &
  pid=$!
  wait_for "$dir/metrics.jsonl" 3 $pid || fail "$dir does not run" run.err
}
start killed --pp 4 --comm-timeout 3 --set save_every=3
wait_for killed/metrics.jsonl 8 $pid
kill -KILL "$(pid_of killed 2)"
if gone killed 8; then pass; else fail "a stage was killed and others are still there" run.err; fi
wait $pid
for rank in '' '\[rank 1\] ' '\[rank 3\] '; do
  has "a line of who was lost" "^birkhoff: ${rank}ends .*: .*rank 2.*; the newest checkpoint is killed/step-[0-9]*\$" run.err
done
ok "the newest checkpoint is whole" "$BIRKHOFF" eval killed --data data.txt
last=$(($(newest killed) + 2))
warned 'resuming with steps' "one process goes on" "$BIRKHOFF" train --data data.txt --threads 1 --out killed --resume --steps $last
equal "to its end" "$(newest killed)" $last

# a rank that is stopped for a while is waited for, and nothing is different
$MPIRUN -n 4 $train --pp 4 --out waited --steps 150 >run.out 2>run.err </dev/null &
pid=$!
wait_for waited/metrics.jsonl 3 $pid || fail "waited does not run" run.err
stopped=$(pid_of waited 1)
kill -STOP "$stopped" && sleep 1 && kill -CONT "$stopped"
wait $pid
equal "a rank that was stopped for a while: status" $? 0
ok "the same without a stop" $threads --pp 4 --out unstopped --steps 150
same_folder "the same checkpoints" waited/step-000150 unstopped/step-000150
# one that is stopped for good is not
start hangs --pp 4 --comm-timeout 2 --set save_every=3
wait_for hangs/metrics.jsonl 8 $pid
stopped=$(pid_of hangs 1)
kill -STOP "$stopped"
if gone hangs 10; then pass; else fail "a stage hangs and others are still there" run.err; fi
kill -KILL "$stopped"
wait $pid
has "a line of who did not come" '^birkhoff: ends .*rank.*; the newest checkpoint is hangs/step-[0-9]*$' run.err

finish

#!/bin/sh
# birkhoff train on several ranks, which are threads of one process or processes under mpirun: options, results, agreements, stops, faults.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/parallel.sh"
train="$BIRKHOFF train $tiny $steady"

# ---- options ----
refused 2 '--comm threads: --dp N is needed' "threads without a number" $train --out no --comm threads
refused 2 '--dp 4: there is one rank; --comm threads --dp 4 runs 4' "ranks from nowhere" $train --out no --dp 4
refused 2 '--dp 0: expected a whole number from 1' "no ranks" $train --out no --comm threads --dp 0
refused 2 '--rank: --rank R, --world N and --rendezvous HOST:PORT go together; --world is missing' "half a rank" $train --out no --rank 1
refused 2 '--rank 4: expected a whole number from 0 to 3' "a rank beyond the world" $train --out no --rank 4 --world 4 --rendezvous localhost:1
refused 2 '--comm threads: its ranks are threads of one process; --rank' "threads with ranks" \
  $train --out no --comm threads --dp 2 --rank 0 --world 2 --rendezvous localhost:1
refused 2 '--comm-timeout is for several ranks' "a time-out alone" $train --out no --comm-timeout 5
refused 2 '--share-device is for several ranks' "sharing alone" $train --out no --share-device
refused 2 '--comm-timeout 0: expected a number' "no time" $train --out no --comm threads --dp 2 --comm-timeout 0
refused 2 'there is no transport "pigeon"' "an unknown transport" $train --out no --comm pigeon
refused 2 'unknown option --dp' "of another command" "$BIRKHOFF" eval run --data data.txt --dp 2
refused 2 'unknown option --rnak; did you mean --rank' "a slip" $train --out no --rnak 1
refused 1 'there is no transport between processes here\|not by MPI' "processes that nothing connects" \
  env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1 "$BIRKHOFF" train $tiny --out no
refused 1 'job: the transport mpi cannot be used: ' "MPI without its module" env BIRKHOFF_BACKEND_DIR=/nowhere $train --out no --comm mpi
refused 2 'WORLD_SIZE' "half an environment" env RANK=0 "$BIRKHOFF" train $tiny --out no
refused 2 '--comm threads: its ranks are threads of one process, but .* has started 2' "threads under a launcher" \
  env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1 "$BIRKHOFF" train $tiny --out no --comm threads --dp 2
refused 2 '--comm self is one rank alone, but there are 2' "alone under a launcher" \
  env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1 "$BIRKHOFF" train $tiny --out no --comm self
refused 2 '--dp 2, but the number of ranks is 1' "another number than the launcher's" \
  env RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1 "$BIRKHOFF" train $tiny --out no --dp 2
absent "none of them has begun" no
# what is wrong on every rank is said once
refused 2 'unknown .*key\|no key' "a bad key" $train --out no --comm threads --dp 3 --set no_such_key=1
refused 1 'cannot open nothing.txt' "no data" "$BIRKHOFF" train --model tiny --data nothing.txt --out no --comm threads --dp 3

# ---- ranks that are threads ----
ok "two threads" $train --out two --comm threads --dp 2 --steps 4
equal "standard output" "$(cat out)" two/step-000004
has "who works together" '^2 ranks over threads, dp 2: each has 2 of the 4 sequences of a step$' err
equal "a row a step" "$(wc -l <two/metrics.jsonl | tr -d ' ')" 4
has "what was sent" '"comm_bytes": [1-9]' two/metrics.jsonl
ok "one rank" $train --out one --steps 4
hasnt() { if grep -q -e "$2" "$3"; then fail "$1: $2 is in $3" "$3"; else pass; fi; }
hasnt "nothing is sent" comm_bytes one/metrics.jsonl
ok "the same to rounding" "$BIRKHOFF" compare one two --weights --json
for path in $(seq 0 5); do holds "weights" "$(json tensors/$path/nmse) < 1e-8"; done
has "the optimiser's state, whole and in slices" '"tensor": "v\.model' out
hasnt "and all of it" missing out
ok "one thread is a job too" $train --out single --comm threads --dp 1 --steps 4
same "the same as alone" one/step-000004/model.safetensors single/step-000004/model.safetensors
ok "uneven and empty shares" $train --out uneven --comm threads --dp 3 --steps 2 --batch-size 2 --json
has "one JSON value" '"checkpoint": "uneven/step-000002"' out
ok "bytes of a plan" $train --out plan --comm threads --dp 4 --dry-run --json
equal "of each rank" "$(json ranks/#) $(json ranks/3/rank)" "4 3"
holds "with what ranks exchange" "$(json ranks/3/bytes/comm) > 100000"

quarter=$(json ranks/0/bytes/optimizer)
ok "bytes of one rank" $train --out plan --dry-run --json
holds "of what one rank has" "$quarter < 0.26 * $(json bytes/optimizer)"
if "$HELPER" json out ranks >there 2>&1; then fail "one rank has no list" there; else pass; fi
ok "a plan in words" $train --out plan --comm threads --dp 4 --dry-run
has "the largest" '^ranks  *4; each has at most:$' out
absent "a plan writes nothing" plan
ok "a profile" $train --out profiled --comm threads --dp 2 --steps 3 --profile profiled/trace.json
if "$HELPER" json profiled/trace.json; then pass; else fail "the trace is not JSON"; fi
for pid in 0 1; do holds "rank $pid has steps" "$(grep -c "\"cat\":\"step\",\"pid\":$pid" profiled/trace.json) == 3"; done
has "the rank's name" '"name":"rank 1, cpu"' profiled/trace.json

# ---- going on with another number of ranks ----
ok "two threads to the end" $train --out straight --comm threads --dp 2 --steps 8
for dp in 2 1 4; do
  cp -r two from_two_$dp
  warned 'resuming with steps = 8' "two, then $dp" "$BIRKHOFF" train --data data.txt --threads 1 --out from_two_$dp --resume --comm threads --dp $dp --steps 8
done
same_folder "two, then two" straight/step-000008 from_two_2/step-000008
rows straight >a
rows from_two_2 >b
same "and the metrics" a b
ok "metrics without the clock" "$BIRKHOFF" compare straight from_two_2
has "are equal" '^equal$' out
for dp in 1 4; do
  ok "two, then $dp, to rounding" "$BIRKHOFF" compare straight from_two_$dp --weights --json
  for path in $(seq 0 5); do holds "weights" "$(json tensors/$path/nmse) < 1e-8"; done
done

# ---- stops of threads ----
$train --out stopped --comm threads --dp 3 --steps 1000000 --set keep=9 >run.out 2>run.err </dev/null &
pid=$!
wait_for stopped/metrics.jsonl 3 $pid || fail "it does not run" run.err
kill -USR1 $pid
tries=0
until grep -q 'is saved' run.err || [ $((tries += 1)) -gt 200 ]; do sleep 0.05; done
kill -TERM $pid
wait $pid
equal "SIGTERM: status" $? 143
equal "SIGUSR1 is answered once" "$(grep -c '^birkhoff: a signal asked for it: step [0-9]* is saved: stopped/step-[0-9]*$' run.err)" 1
equal "two checkpoints" "$(ls -d stopped/step-* | wc -l | tr -d ' ')" 2
equal "the metrics end at the last" "$(wc -l <stopped/metrics.jsonl | tr -d ' ')" "$(newest stopped)"
has "says how to go on" 'stopped at step .* --comm threads --dp 3 .*--resume' run.err
ok "saves beside the training" $train --out beside --comm threads --dp 2 --steps 8 --set save_every=2 save_async=true
for f in model-00001-of-00002 model-00002-of-00002 optimizer-00001-of-00002 optimizer-00002-of-00002; do
  same "have the same bytes" straight/step-000008/$f.safetensors beside/step-000008/$f.safetensors
done

# ---- ranks that are processes ----
have_mpi || finish
run4="$MPIRUN -n 4 $BIRKHOFF train $tiny $steady"
ok "four processes" $run4 --out processes --steps 4 --dp 4
has "who works together" '^4 ranks over mpi (mpirun), dp 4: each has 1 of the 4 sequences of a step$' err
ok "four threads" $train --out threads --comm threads --dp 4 --steps 4
same_folder "the same checkpoints" processes/step-000004 threads/step-000004
rows processes >a
rows threads >b
same "the same metrics" a b
# mpirun's own status is that of one of the ranks
refused 2 '--dp 2, but the number of ranks is 4 (mpirun)' "another number" $run4 --out no --dp 2
echo "another text, on one rank alone" | cat - data.txt >other.txt
refused 2 '\[rank 1\] the data of this rank differs from that of rank 0' "other data on one rank" $MPIRUN -n 1 $BIRKHOFF train $tiny $steady --out no --steps 2 : \
  -n 1 $BIRKHOFF train $tiny $steady --data other.txt --out no --steps 2
refused 1 '\[rank 1\] cannot open missing.txt' "a file that one rank lacks" $MPIRUN -n 1 $BIRKHOFF train $tiny $steady --out no --steps 2 : \
  -n 1 $BIRKHOFF train $tiny $steady --data missing.txt --out no --steps 2
refused 2 '\[rank 1\] what this rank is to train differs from that of rank 0: lr = ' "another recipe on one rank" \
  $MPIRUN -n 1 $BIRKHOFF train $tiny $steady --out no --steps 2 : -n 1 $BIRKHOFF train $tiny $steady --lr 0.1 --out no --steps 2
refused 2 '\[rank 1\] what this rank is to train differs from that of rank 0: with --dry-run here' "one rank that only plans" \
  $MPIRUN -n 1 $BIRKHOFF train $tiny $steady --out no --steps 2 : -n 1 $BIRKHOFF train $tiny $steady --out no --steps 2 --dry-run
absent "none of them has begun" no
refused 2 'processes has checkpoints (newest: step 4)' "a folder that is taken" $run4 --out processes --steps 5

# start DIR [OPTION...]: in the background; $pid is mpirun
start() {
  dir=$1
  shift
  $MPIRUN $recovery -n 4 $BIRKHOFF train $tiny $steady --out "$dir" --steps 1000000 "$@" >run.out 2>run.err </dev/null &
  pid=$!
  wait_for "$dir/metrics.jsonl" 3 $pid || fail "$dir does not run" run.err
}
recovery=
start term_one
kill -USR1 "$(pid_of term_one 3)"
tries=0
until grep -q 'is saved' run.err || [ $((tries += 1)) -gt 200 ]; do sleep 0.05; done
has "SIGUSR1 to one rank" '^birkhoff: a signal asked for it: step' run.err
kill -TERM "$(pid_of term_one 2)"
wait $pid
equal "SIGTERM to one rank: status" $? 143
equal "the metrics end at the checkpoint" "$(wc -l <term_one/metrics.jsonl | tr -d ' ')" "$(newest term_one)"
has "says how to go on" 'to go on, started by mpirun as before: ' run.err
start term_all
kill -TERM $pid
wait $pid
equal "SIGTERM to mpirun: the metrics end at the checkpoint" "$(wc -l <term_all/metrics.jsonl | tr -d ' ')" "$(newest term_all)"

# mpirun, which would end the others itself, is told to leave them alone
recovery=--enable-recovery
start killed --comm-timeout 3 --set save_every=3
wait_for killed/metrics.jsonl 8 $pid
kill -KILL "$(pid_of killed 2)"
if gone killed 5; then pass; else fail "a rank was killed and others are still there" run.err; fi
wait $pid
for rank in '' '\[rank 1\] ' '\[rank 3\] '; do
  has "a line of who was lost" "^birkhoff: ${rank}ends .*: .*rank 2 .*; the newest checkpoint is killed/step-[0-9]*\$" run.err
done
equal "one line each" "$(grep -c '^birkhoff: ' run.err)" 3
ok "the newest checkpoint is whole" "$BIRKHOFF" eval killed --data data.txt
start hangs --comm-timeout 2 --set save_every=3
wait_for hangs/metrics.jsonl 8 $pid
stopped=$(pid_of hangs 1)
kill -STOP "$stopped"
if gone hangs 6; then pass; else fail "a rank hangs and others are still there" run.err; fi
kill -KILL "$stopped"
wait $pid
# Under load the deadline of an operation may be over before that of the signs of life: a rank that waits for rank 1 itself is then named beside it.
has "a line of who hangs" '^birkhoff: ends .*rank\(s [0-9, ]*\)\{0,1\} *1.*; the newest checkpoint is' run.err

finish

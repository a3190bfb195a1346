#!/bin/sh
# Ranks that are processes and are killed at random moments, and two "hosts" that lose their link. For the long level: no part of
# `make check`. usage: long_parallel.sh [KILLS]; KILL_SEED changes the moments.
here=$(cd "$(dirname "$0")" && pwd)
kills=${1:-50}
. "$here/lib.sh"
. "$here/parallel.sh"
have_mpi || finish
seed=${KILL_SEED:-20}
echo "$kills kills, seed $seed (KILL_SEED)"
recipe="--set warmup_steps=0 lr_schedule=constant save_every=1 eval_every=0 gain_every=0"

# ---- kill -9 ----
# Every run saves after every step, every second one beside the training; mpirun leaves the others alone. After each kill the other ranks
# are gone in time, what was saved last loads, and the next run goes on from it.
awk -v seed="$seed" -v n="$kills" 'BEGIN { srand(seed); for (i = 1; i <= n; i++) printf "%d %d %d %.3f\n", i, int(rand() * 4), int(rand() * 3), rand() * 0.2 }' >moments
while read -r number rank rows pause <&3; do
  before=$(cat killed/metrics.jsonl 2>/dev/null | wc -l)
  async=$([ $((number % 2)) -eq 0 ] && echo true || echo false)
  $MPIRUN --enable-recovery -n 4 "$BIRKHOFF" train $tiny $recipe save_async="$async" --out killed --steps 1000000 --resume --comm-timeout 10 >out 2>err </dev/null &
  pid=$!
  if [ "$rows" -gt 0 ]; then wait_for killed/metrics.jsonl $((before + rows)) $pid; else sleep 0.3; fi
  sleep "$pause"
  victim=$(pid_of killed "$rank")
  if [ -n "$victim" ] && kill -KILL "$victim"; then pass; else fail "kill $number: rank $rank is not there" err; fi
  if gone killed 12; then pass; else fail "kill $number: rank $rank was killed and others are still there" err; fi
  for left in 0 1 2 3; do
    other=$(pid_of killed $left)
    [ -z "$other" ] || kill -KILL "$other"
  done
  wait $pid
  [ -z "$(newest killed)" ] || ok "kill $number: the newest checkpoint loads" "$BIRKHOFF" train --data data.txt --threads 1 --out killed --resume --steps 1000000 --dry-run
done 3<moments
step=$(newest killed)
holds "it came forward" "${step:-0} > $kills / 4"

# What is left is that of a run that nobody killed.
total=$((step + 2)) last=$(printf 'step-%06d' $((step + 2)))
$MPIRUN -n 4 "$BIRKHOFF" train $tiny $recipe --out killed --steps $total --resume >out 2>err </dev/null || fail "the last resume" err
ok "nobody kills this one" "$BIRKHOFF" train $tiny $recipe --out whole --steps $total --comm threads --dp 4
for f in "whole/$last"/*.safetensors; do same "killed $kills times" "$f" "killed/$last/${f##*/}"; done
rows whole >whole.rows
rows killed >killed.rows
same "the metrics" whole.rows killed.rows
echo "$kills kills, $total steps"

# ---- two hosts that lose their link ----
# Two network namespaces with a pair of interfaces between them, each with a host's name of its own. mpirun runs in the first; its "ssh"
# enters the second.
ns="birkhoff-$$"
drop() { ip netns del "$ns-a" 2>/dev/null; ip netns del "$ns-b" 2>/dev/null; }
if ! command -v ip >ip.path || ! ip netns add "$ns-a" 2>ip.err; then
  echo "network namespaces cannot be made here: a lost link is not tested"
  skipped=$((skipped + 1))
  finish
fi
trap 'drop; rm -rf "$W"' EXIT
ip netns add "$ns-b"
ip link add "va$$" netns "$ns-a" type veth peer name "vb$$" netns "$ns-b"
for end in a:1 b:2; do
  side=${end%:*}
  ip -n "$ns-$side" addr add "10.77.0.${end#*:}/24" dev "v$side$$"
  ip -n "$ns-$side" link set "v$side$$" up
  ip -n "$ns-$side" link set lo up
done
cat >agent <<AGENT
#!/bin/sh
# HOST COMMAND...
shift
exec ip netns exec "$ns-b" unshare --uts sh -c "hostname host-b; \$*"
AGENT
chmod +x agent
ip netns exec "$ns-a" unshare --uts sh -c "hostname host-a; exec $MPIRUN --enable-recovery --mca plm_rsh_agent $W/agent --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \
  --mca oob_tcp_if_include 10.77.0.0/24 -H 10.77.0.1:2,10.77.0.2:2 -n 4 -x LD_LIBRARY_PATH -x BIRKHOFF_BACKEND_DIR $BIRKHOFF train $tiny $steady --set save_every=3 \
  --out linked --steps 1000000 --comm-timeout 5" >out 2>err </dev/null &
pid=$!
if wait_for linked/metrics.jsonl 8 $pid; then pass; else fail "ranks of two hosts do not run" err; finish; fi
ip -n "$ns-a" link set "va$$" down
if gone linked 8; then pass; else fail "the link is lost and ranks are still there" err; fi
kill -KILL $pid 2>/dev/null
wait $pid
has "a rank of one host says whom it has lost" '^birkhoff: ends .*rank [23].*; the newest checkpoint is linked/step-' err
ok "the newest checkpoint loads" "$BIRKHOFF" eval linked --data data.txt
finish

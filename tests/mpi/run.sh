#!/bin/sh
# The transport mpi under a launcher: its wire, what it refuses, and what it leaves as it was. Skipped where this build has no MPI, or there
# is no mpirun. Environment: MPIRUN replaces the launcher; BK_TEST_LONG adds messages of more than 2 GiB and many rounds.
. "$(dirname "$0")/lib.sh"
seed=${BK_TEST_SEED:-$(date +%s)}
echo "seed $seed"

# case PROGRAM N CASE: the case's ranks all see what is right.
run_case() {
  name="$3 on $2 ranks ($1)"
  mpi "$2" "$TOP_BUILDDIR/tests/mpi/$1" "$3" "$seed" >out 2>err </dev/null
  rc=$?
  if [ $rc -ne 0 ]; then fail "$name: exit status $rc" err out; else pass; fi
}

for n in 1 2 4; do
  run_case wire $n messages
  run_case wire_linked $n messages # with pieces of 4 KiB
done
for name in sizes refused again signals; do run_case wire 3 $name; done
for name in multiple funneled serialized same-thread; do run_case wire_linked 2 $name; done
[ -z "${BK_TEST_LONG:-}" ] || run_case wire 2 large

# Without a launcher a program is rank 0 of 1, where the MPI can do that.
keeps "$TOP_BUILDDIR/tests/mpi/wire" messages "$seed" >out 2>err </dev/null
rc=$?
if [ $rc -eq 0 ]; then pass; else fail "one rank without a launcher: exit status $rc" err out; fi

# Ranks that abandon wait for nobody; the launcher says that they ended without MPI_Finalize.
mpi 3 "$TOP_BUILDDIR/tests/mpi/wire" abandon >out 2>err </dev/null
rc=$?
if [ $rc -ge 124 ] || grep -q '^wire.c:' err; then fail "abandon: exit status $rc" err out; else pass; fi

# The engine: every rank writes "ok" into a file. What the launcher says of ranks that gave up is not looked at.
engine() { # N CASE [NUMBER]
  name="engine: $2${3:+ $3} on $1 ranks"
  rm -rf ranks
  mkdir ranks
  mpi "$1" "$TOP_BUILDDIR/tests/mpi/engine" "$2" "$W/ranks" "${3:-0}" >out 2>err </dev/null
  cat ranks/rank.* >said 2>/dev/null
  if [ "$(grep -c '^ok$' said)" -eq "$1" ]; then pass; else fail "$name" said err; fi
}
if [ -e "$TOP_BUILDDIR/tests/mpi/engine" ]; then
  for n in 2 3; do
    engine $n reductions
    engine $n moves
  done
  engine 5 groups
  engine 3 statistics
  engine 2 disagreement 0
  engine 2 disagreement 5
  engine 3 other-group
  engine 4 late
  engine 2 no-send
  engine 3 told
  engine 2 aborted
  if [ -n "${BK_TEST_LONG:-}" ]; then
    for n in 1 4 8; do
      engine $n reductions
      engine $n moves
    done
    for number in 1 2 3 4 6; do engine 2 disagreement $number; done
  fi
else
  echo "skipped: the engine, without libcheck"
  skipped=$((skipped + 1))
fi

# The command's list.
"$BIRKHOFF" devices --transports >out 2>err </dev/null
if grep -q '^transport mpi  *ok  *[A-Z].*, MPI [3-9]' out; then pass; else fail "devices lists mpi" out err; fi
finish

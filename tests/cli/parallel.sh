# For test_parallel.sh and long_parallel.sh, after lib.sh: runs on several ranks, and their processes.
text data.txt 6000
tiny="--model tiny --batch-size 4 --seq-len 16 --threads 1 --data data.txt"
steady="--set warmup_steps=0 lr_schedule=constant save_every=0 eval_every=0 gain_every=0"
[ -e "$TOP_BUILDDIR/.libs/birkhoff_comm_mpi.so" ] && export BIRKHOFF_BACKEND_DIR="${BIRKHOFF_BACKEND_DIR:-$TOP_BUILDDIR/.libs}"
MPIRUN="env ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 mpirun --oversubscribe"
[ "$(id -u)" -ne 0 ] || MPIRUN="$MPIRUN --allow-run-as-root"

# Whether processes can be ranks here: why not is said and counted as skipped.
have_mpi() {
  if ! command -v mpirun >mpirun.path; then
    echo "mpirun is not here: ranks that are processes are not tested"
  elif ! "$BIRKHOFF" devices | grep '^transport mpi  *ok' | grep -q 'Open MPI'; then
    echo "Open MPI is not the transport here: ranks that are processes are not tested"
  else
    return 0
  fi
  skipped=$((skipped + 1))
  return 1
}

# words FILE: what a file of /proc has, one a line; nothing where the process is gone or another user's
words() { (tr '\0' '\n' <"$1") 2>/dev/null; }
# is_rank PROCESS DIR: whether that is a process of the run in DIR, and not its launcher. Another test that runs at this moment may have a DIR of
# that name in its own folder.
own_folder=$(pwd -P)
is_rank() {
  [ "$(readlink "$1/cwd" 2>/dev/null)" = "$own_folder" ] || return 1
  words "$1/cmdline" | grep -qx -e "$2" && ! words "$1/cmdline" | head -n 1 | grep -q mpirun
}

# pid_of DIR RANK: the process of that rank of the run in DIR
pid_of() {
  for process in /proc/[0-9]*; do
    if is_rank "$process" "$1" && words "$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$2"; then
      echo "${process#/proc/}"
      return
    fi
  done
}

# gone DIR SECONDS: no process of the run is left after so long; those that are stopped do not count
gone() {
  begin=$(date +%s)
  while :; do
    left=0
    for process in /proc/[0-9]*; do
      if is_rank "$process" "$1" && ! words "$process/status" | grep -q '^State:[[:space:]]*[TZ]'; then left=$((left + 1)); fi
    done
    [ "$left" -gt 0 ] || return 0
    [ $(($(date +%s) - begin)) -lt "$2" ] || return 1
    sleep 0.1
  done
}

# rows RUN: its metrics without what the clock says
rows() { sed -e 's/"tokens_per_s": [^,}]*//' -e 's/"comm_wait": [^,}]*//' -e 's/"comm_busy": [^,}]*//' "$1/metrics.jsonl"; }
# newest RUN: the number of its newest checkpoint
newest() { ls -d "$1"/step-?????? 2>/dev/null | sed 's/.*step-0*//' | sort -n | tail -n 1; }
# same_folder NAME A B: the same files with the same bytes
same_folder() { if diff -r "$2" "$3" >differ 2>&1; then pass; else fail "$1: $2 and $3 differ" differ; fi; }

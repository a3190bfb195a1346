#!/bin/sh
# Dependencies point one way: a folder's files include only headers of the folders that it may know.
#   base <- tensor <- runtime <- ops <- models <- tools;  base <- comm <- models;  base <- io <- schedule <- models.
# comm posts its operations on streams, so it also knows tensor and runtime. A backend knows base, tensor, runtime and itself; those of
# the GPU family also what they share, backends/gpu.
# io also knows what is plain data: tensor.h (dtypes and shapes in files), op.h and connection.h (the kinds of residual connection).
set -u
top=${TOP_SRCDIR:-$(dirname "$0")/../..}
cd "$top" || exit 99
bad=0
seen=0

# The quoted includes of folder $1 may only lie in the folders, or be the headers, that the remaining words name.
check() {
  folder=$1
  shift
  [ -d "$folder" ] || return 0
  files=$(find "$folder" -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | sort)
  [ -n "$files" ] || return 0
  allowed=$(for word in "$@"; do case $word in *.h) echo "$word\"" ;; *) echo "$word/[^.]" ;; esac; done | paste -sd '|' -)
  for file in $files; do
    seen=$((seen + 1))
    wrong=$(grep -En '^[[:space:]]*#[[:space:]]*include[[:space:]]*"[^"]*/' "$file" | grep -Ev "include[[:space:]]*\"($allowed)")
    hidden=$(grep -En '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]([^">]*/)?\.\./' "$file")
    for found in "$wrong" "$hidden"; do
      [ -n "$found" ] || continue
      echo "$file may include only from: $*"
      echo "$found"
      bad=1
    done
  done
}

core='base tensor runtime ops comm io schedule'
check core/include birkhoff
check core/base base
check core/tensor base tensor
check core/runtime base tensor runtime
check core/ops base tensor runtime ops
check core/comm base tensor runtime comm
check core/schedule base io/json_in.h io/json_out.h schedule
check core/io base tensor/tensor.h runtime/op.h runtime/connection.h io
for backend in backends/*/; do
  backend=${backend%/}
  case $backend in
    backends/opencl | backends/vulkan) check "$backend" base tensor runtime backends/gpu "$backend" ;;
    backends/mpi | backends/nccl) check "$backend" base tensor runtime comm "$backend" ;;
    *) check "$backend" base tensor runtime "$backend" ;;
  esac
done
check tests/ops/backend-minimal base tensor runtime
check models $core models
# The command uses what is installed, and the helpers that it compiles for itself (exports.sh looks at its symbols).
check tools base/files.h base/macros.h base/text.h tools

# The check itself must be able to fail: each of these must be found.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-arrows-XXXXXX") || exit 99
trap 'rm -rf "$scratch"' EXIT
for line in '#include "runtime/backend.h"' '# include "models/model.h"' '#include "../tensor/tensor.h"'; do
  echo "$line" >"$scratch/probe.c"
  before=$bad
  bad=0
  check "$scratch" base >/dev/null
  if [ "$bad" -eq 0 ]; then
    echo "not found: $line"
    before=1
  fi
  bad=$before
done

[ "$seen" -gt 20 ] || { echo "only $seen files were found under $top"; exit 99; }
exit "$bad"

#!/bin/sh
# Birkhoff against PyTorch, eager and compiled: the same model, the same cores, the same run (README.md in this folder).
#   run.sh [--birkhoff PROGRAM] [--check | --schedule | --pipeline [its options]] [compare.py's options, such as --rounds N, --seconds X, --json FILE]
# Environment: PEER_PYTHON  a Python that has PyTorch; otherwise one is made in PEER_VENV (default: ./peer-venv) with pip.
#              PEER_CORES   the cores for all sides, as taskset takes them (default: all that this process may use).
# Exit status: 0; 1 when a side fails; 77 when there is no program, or no Python that can have PyTorch.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
birkhoff=${TOP_BUILDDIR:-.}/birkhoff
script=
if [ "${1:-}" = --birkhoff ]; then
  birkhoff=$2
  shift 2
fi
case ${1:-} in
  --check) script=check.py ;;
  --schedule) script=schedule.py ;;
  --pipeline) script=pipeline.py ;;
esac
[ -x "$birkhoff" ] || birkhoff=$(command -v birkhoff) || { echo "run.sh: no birkhoff program; name it with --birkhoff" >&2; exit 77; }

has_torch() { "$1" -c 'import torch' 2>/dev/null; }

python=${PEER_PYTHON:-}
if [ -z "$python" ]; then
  venv=${PEER_VENV:-$PWD/peer-venv}
  python=$venv/bin/python
  if ! has_torch "$python"; then
    echo "run.sh: installing PyTorch in $venv" >&2
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet torch numpy setuptools >&2 || { echo "run.sh: cannot install PyTorch" >&2; exit 77; }
  fi
fi
has_torch "$python" || { echo "run.sh: $python has no PyTorch" >&2; exit 77; }

if [ -n "$script" ]; then
  shift
  exec "$python" "$here/$script" "$birkhoff" "$@"
fi
exec ${PEER_CORES:+taskset -c "$PEER_CORES"} "$python" "$here/compare.py" --birkhoff "$birkhoff" "$@"

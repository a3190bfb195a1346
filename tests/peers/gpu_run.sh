#!/bin/sh
# The ops of an mHC sublayer in Birkhoff, PyTorch and the kernel packages that are installed, on one card in the same run (README.md in
# this folder, "The ops on a GPU").
#   gpu_run.sh [--birkhoff PROGRAM] [gpu_compare.py's options, such as --rounds N, --shape 4096x2560, --json FILE, --device cpu]
# Environment: PEER_PYTHON  a Python that has PyTorch (default: python3). Nothing is installed: what is there is what is compared with.
# Exit status: 0; 1 when a side fails or computes something else; 77 when there is no program, no PyTorch, or no device that it finds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
birkhoff=${TOP_BUILDDIR:-.}/birkhoff
if [ "${1:-}" = --birkhoff ]; then
  birkhoff=$2
  shift 2
fi
[ -x "$birkhoff" ] || birkhoff=$(command -v birkhoff) || { echo "gpu_run.sh: no birkhoff program; name it with --birkhoff" >&2; exit 77; }
python=${PEER_PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || { echo "gpu_run.sh: $python has no PyTorch (PEER_PYTHON names another)" >&2; exit 77; }
case " $* " in
  *' --device cpu '*) ;;
  *) "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "gpu_run.sh: PyTorch finds no CUDA device" >&2; exit 77; } ;;
esac
exec "$python" "$here/gpu_compare.py" --birkhoff "$birkhoff" "$@"

#!/bin/sh
# The ops of an mHC sublayer in Birkhoff, PyTorch and the kernel packages that are installed, on one card in the same run (README.md in
# this folder, "The ops on a GPU").
#   gpu_run.sh [--birkhoff PROGRAM] [gpu_compare.py's options, such as --rounds N, --shape 4096x2560, --json FILE, --device cpu]
# Environment: PEER_PYTHON  a Python that has PyTorch (default: python3). Nothing is installed: what is there is what is compared with.
# Exit status: 0; 1 when Birkhoff or PyTorch fails or computes something else (packages are only said); 2 usage; 77 when there is no
# program, no PyTorch, or no device that it finds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
birkhoff='' device=cuda previous=''
for word; do
  case $previous in
    --birkhoff) birkhoff=$word ;;
    --device) device=$word ;;
  esac
  case $word in
    --birkhoff=*) birkhoff=${word#*=} ;;
    --device=*) device=${word#*=} ;;
    -h | --help) sed -n '2,8p' "$0" | sed 's/^# //'; exit 0 ;;
  esac
  previous=$word
done
case $previous in --birkhoff) echo "gpu_run.sh: --birkhoff names a program" >&2; exit 2 ;; esac
if [ -n "$birkhoff" ]; then
  [ -f "$birkhoff" ] && [ -x "$birkhoff" ] || { echo "gpu_run.sh: --birkhoff $birkhoff: there is no such program" >&2; exit 2; }
else
  birkhoff=${TOP_BUILDDIR:-.}/birkhoff
  [ -x "$birkhoff" ] || birkhoff=$(command -v birkhoff) || { echo "gpu_run.sh: no birkhoff program; name it with --birkhoff" >&2; exit 77; }
  set -- --birkhoff "$birkhoff" "$@"
fi
python=${PEER_PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || { echo "gpu_run.sh: $python has no PyTorch (PEER_PYTHON names another)" >&2; exit 77; }
[ "$device" = cpu ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "gpu_run.sh: PyTorch finds no CUDA device" >&2; exit 77; }
exec "$python" -u "$here/gpu_compare.py" "$@"

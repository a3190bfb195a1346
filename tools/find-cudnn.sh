#!/bin/sh
# Where cuDNN's header is, 9.8 or a later 9: prints its folder and, if it is near, that of the library. Exit status 1 where there is none.
# usage: tools/find-cudnn.sh [PATH]...
# A PATH is a folder with cudnn.h or include/cudnn.h, such as an unpacked archive of NVIDIA's; the first that serves is taken. Without a PATH the
# packages of the python3 that is there are looked at (nvidia-cudnn-cu13 and the like lie in nvidia/cudnn); without a python3 there are none.
# For configure and tools/gpu-check.sh. Folders with white space in their names are passed over, since flags are words.
set -u
unset CDPATH
# number NAME FOLDER: what its headers define by that name
number() { cat "$2/cudnn_version.h" "$2/cudnn.h" 2>/dev/null | sed -n "s/^ *# *define  *$1  *\([0-9][0-9]*\).*/\1/p" | head -n 1; }
serves() { # FOLDER
  [ -f "$1/cudnn.h" ] || return 1
  major=$(number CUDNN_MAJOR "$1") minor=$(number CUDNN_MINOR "$1")
  [ "${major:-0}" -eq 9 ] && [ "${minor:-0}" -ge 8 ]
}
take() { # FOLDER: says it and ends, if it serves
  case $1 in *[[:space:]]*) return ;; esac
  serves "$1" || return
  cd "$1" && pwd || exit 1
  for library in ../lib ../lib64; do
    if [ -e "$library/libcudnn_graph.so.9" ] || [ -e "$library/libcudnn.so.9" ]; then cd "$library" && pwd && break; fi
  done
  exit 0
}

for path; do
  take "$path"
  take "$path/include"
done
[ $# -eq 0 ] && command -v python3 >/dev/null || exit 1
python3 -c 'import sys; print("\n".join(path for path in sys.path if path))' 2>/dev/null | {
  while IFS= read -r path; do
    for folder in "$path/nvidia/cudnn/include" "$path"/nvidia/*/include; do take "$folder"; done
  done
  exit 1
}

#!/bin/sh
# C, C++ and CUDA sources are laid out as .clang-format says, in lines of at most 100 columns. Another
# version of clang-format breaks some lines in other places, so that only version 14 (Debian 12) judges;
# what is longer than a line is seen without it.
set -u
top=${TOP_SRCDIR:-$(dirname "$0")/../..}
cd "$top" || exit 99
files=$(find core backends models tools tests \
  \( -name '*.c' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -type f |
  grep -v -e gpu_kernels.h -e vulkan_spirv.h -e opencl_sources.h -e /spirv/ | sort) # not what a build makes
[ -n "$files" ] || exit 99

# shellcheck disable=SC2086 # the names have no spaces
long=$(awk 'length($0) > 100 { print FILENAME ":" FNR ": " length($0) " columns" }' $files)
if [ -n "$long" ]; then
  echo "$long"
  exit 1
fi
for clang_format in clang-format-14 clang-format; do
  case $($clang_format --version 2>/dev/null) in *" version 14."*) break ;; esac
  clang_format=
done
if [ -z "$clang_format" ]; then
  echo "skipped: clang-format 14 is not there (Debian 12: clang-format)"
  exit 77
fi
[ -f .clang-format ] || { echo "skipped: no .clang-format here"; exit 77; }
# shellcheck disable=SC2086
$clang_format --dry-run -Werror $files 2>&1 | grep 'error:' && exit 1
exit 0

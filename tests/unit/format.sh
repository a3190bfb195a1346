#!/bin/sh
# What .editorconfig promises holds: no blanks at the ends of lines, no tabs but in front of make's recipes, no
# carriage returns, a newline at the end of every file. C, C++ and CUDA sources are laid out as .clang-format says,
# in lines of at most 100 columns. Another version of clang-format breaks some lines in other places, so that only
# version 14 (Debian 12) judges; the rest is seen without it. With BK_TEST_FORMAT=1, which tools/test.sh sets, it is
# a failure and not a skip where clang-format 14 is missing.
set -u
top=${TOP_SRCDIR:-$(dirname "$0")/../..}
cd "$top" || exit 99
bad=0

# Text files that somebody wrote, one a line: not what a build makes, nor data, nor what a test installs.
written() {
  find ./*.md ./*.am LICENSE configure.ac birkhoff.pc.in bootstrap .editorconfig .clang-format core backends models tools tests doc m4 \
    \( -name venv -o -name .libs -o -name spirv -o -name corpus -o -name 'resume_*' -o -name cache \) -prune -o -type f \
    \( -name '*.[ch]' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.def' -o -name '*.k' -o -name '*.kh' -o -name '*.cl' \
    -o -name '*.glsl' -o -name '*.awk' -o -name '*.am' -o -name '*.m4' -o -name '*.sh' -o -name '*.py' -o -name '*.md' -o -name '*.[17]' -o -name '*.supp' \
    -o -name LICENSE -o -name configure.ac -o -name birkhoff.pc.in -o -name bootstrap -o -name .editorconfig -o -name .clang-format \) -print |
    grep -v -e gpu_kernels.h -e vulkan_spirv.h -e opencl_sources.h -e /libtool.m4 -e '/lt[^/]*\.m4' | sort
}

# promises FILE...: prints what does not hold.
promises() {
  awk '
    FNR == 1 { recipes = FILENAME ~ /(\.am|Makefile)$/ }
    /\r/ { print FILENAME ":" FNR ": a carriage return" }
    /[ \t]$/ { print FILENAME ":" FNR ": blanks at the end of the line" }
    { line = $0; if (recipes) sub(/^\t/, "", line); if (line ~ /\t/) print FILENAME ":" FNR ": a tab" }' "$@"
  for file in "$@"; do
    [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file")" ] || echo "$file: no newline at the end"
  done
}

files=$(written)
[ "$(echo "$files" | wc -l)" -gt 300 ] || { echo "only $(echo "$files" | wc -l) files were found under $top"; exit 99; }
# shellcheck disable=SC2086 # the names have no spaces
broken=$(promises $files)
[ -z "$broken" ] || { echo "$broken"; bad=1; }

# The check itself must be able to fail: each of these must be found, and a recipe must not.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-format-XXXXXX") || exit 99
trap 'rm -rf "$scratch"' EXIT
for text in 'int x; \n' '\tint x;\n' 'int x;\r\n' 'int x;'; do
  # shellcheck disable=SC2059 # the text is a format
  printf "$text" >"$scratch/probe.c"
  [ -n "$(promises "$scratch/probe.c")" ] || { echo "not found: $text"; bad=1; }
done
printf 'all:\n\ttrue\n' >"$scratch/Makefile.am"
[ -z "$(promises "$scratch/Makefile.am")" ] || { echo "a recipe was taken for a tab in the wrong place"; bad=1; }

sources=$(echo "$files" | grep -E '\.(c|h|cpp|cu|cuh)$')
[ -n "$sources" ] || exit 99
# shellcheck disable=SC2086
long=$(awk 'length($0) > 100 { print FILENAME ":" FNR ": " length($0) " columns" }' $sources)
[ -z "$long" ] || { echo "$long"; bad=1; }
[ "$bad" -eq 0 ] || exit 1

for clang_format in clang-format-14 clang-format; do
  case $($clang_format --version 2>/dev/null) in *" version 14."*) break ;; esac
  clang_format=
done
if [ -z "$clang_format" ]; then
  if [ "${BK_TEST_FORMAT:-0}" = 1 ]; then
    echo "clang-format 14 is not there (Debian 12: clang-format-14), and BK_TEST_FORMAT=1 asks for it"
    exit 1
  fi
  echo "skipped: clang-format 14 is not there (Debian 12: clang-format-14)"
  exit 77
fi
[ -f .clang-format ] || { echo "skipped: no .clang-format here"; exit 77; }
# shellcheck disable=SC2086
$clang_format --dry-run -Werror $sources 2>&1 | grep 'error:' && exit 1
exit 0

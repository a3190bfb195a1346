#!/bin/sh
# What others can link with. The shared library exports the functions and tables of the installed headers, those that loadable backends
# use (BK_MODULE_API, at most 60), and nothing else; every function of an installed header is exported. The command uses what is installed
# and nothing else; its own files name no header of the library but those of the helpers that it compiles in. A module exports its one
# symbol. Headers and examples compile as C11 and as C++17 with -Wpedantic.
set -u
top=${TOP_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}
build=${TOP_BUILDDIR:-$top}
CC=${CC:-cc} CXX=${CXX:-c++}
MODULE_LIMIT=60
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-exports.XXXXXX") || exit 99
trap 'rm -rf "$W"' EXIT
bad=0
fail() { # WHAT FILE: FILE has what should not be
  if [ -s "$2" ]; then
    echo "FAIL: $1:"
    sed 's/^/    /' "$2"
    bad=1
  fi
}

# marked MARK HEADER...: the names that the headers declare with the mark
marked() {
  mark=$1
  shift
  for header in "$@"; do echo "#include \"$header\""; done >"$W/all.c"
  $CC -std=c11 -E -P -I"$top/core" -I"$top/core/include" -I"$top" -D"$mark=bk_exported_mark" "$W/all.c" >"$W/all.i" || exit 99
  tr '\n' ' ' <"$W/all.i" | tr ';{}' '\n\n\n' | grep -o 'bk_exported_mark.*' | sed 's/(.*//' | tr ',' '\n' |
    sed 's/[^a-zA-Z0-9_]*$//; s/\[.*//' | grep -oE 'bk_[a-z0-9_]+$' | grep -v '^bk_exported_mark$' | sort -u
}
installed=$(cd "$top/core/include" && ls birkhoff/*.h)
# shellcheck disable=SC2086
marked BK_API $installed >"$W/public"
[ "$(wc -l <"$W/public")" -gt 50 ] || { echo "only $(wc -l <"$W/public") public names were found: this test reads the headers wrongly"; exit 99; }

# Every function that an installed header declares has the mark.
for header in $installed; do echo "#include <$header>"; done >"$W/plain.c"
$CC -std=c11 -E -P -I"$top/core/include" "$W/plain.c" | tr '\n' ' ' | tr ';{}' '\n\n\n' | grep -v 'typedef\|static\|(\*' |
  grep -oE '\bbk_[a-z0-9_]+ ?\(' | tr -d ' (' | sort -u >"$W/declared"
comm -23 "$W/declared" "$W/public" >"$W/unmarked"
fail "functions of installed headers without BK_API" "$W/unmarked"

# What modules use.
sed 's/^#define BK_MODULE_API.*//' "$top/core/base/macros.h" >"$W/macros.h"
mkdir -p "$W/core/base"
grep -rlE '\bBK_MODULE_API\b' "$top/core" --include='*.h' | while read -r file; do
  tr '\n' ' ' <"$file" | tr ';{}' '\n\n\n' | grep -o 'BK_MODULE_API [^#]*' | sed 's/^BK_MODULE_API //; s/BK_ACCEPTS(\|BK_PREPARE(\|BK_LAUNCH_FN(//' | sed 's/[()].*//' |
    grep -oE 'bk_[a-z0-9_]+$'
done | sort -u >"$W/modules"
count=$(wc -l <"$W/modules")
echo "$(wc -l <"$W/public") functions and tables for programs, $count functions for modules"
[ "$count" -gt 20 ] || { echo "only $count names of modules were found: this test reads the headers wrongly"; exit 99; }
[ "$count" -le $MODULE_LIMIT ] || { echo "FAIL: $count functions for modules, at most $MODULE_LIMIT"; bad=1; }
comm -12 "$W/public" "$W/modules" >"$W/both"
fail "names with both marks" "$W/both"

# What an earlier build with other options, or of other sources, has left in the folder is not looked at: a shared library that this build
# does not make, modules that it does not make, objects without a source.
library=$build/.libs/libbirkhoff.so
if [ -e "$library" ] && grep -q "^dlname='.\+'" "$build/libbirkhoff.la"; then
  nm -D --defined-only "$library" | awk '{ print $NF }' | grep -v '^_\|^[A-Z_]*$' | sort -u >"$W/exported"
  sort -u "$W/public" "$W/modules" >"$W/promised"
  comm -23 "$W/exported" "$W/promised" >"$W/extra"
  comm -13 "$W/exported" "$W/promised" >"$W/missing"
  case "${CFLAGS:-} $(nm -D "$library" | grep -c __asan_init)" in *" 0") fail "exported, but in no installed header" "$W/extra" ;; esac
  fail "promised, but not exported" "$W/missing"
  for module in "$build"/.libs/birkhoff_*.so; do
    name=$(basename "$module" .so)
    if ! [ -e "$module" ] || ! grep -q "^am_${name}_la_rpath" "$build/Makefile"; then continue; fi
    case $name in birkhoff_comm_*) entry=bk_transport_module ;; *) entry=bk_backend_module ;; esac
    echo "module $name: $entry"
    nm -D --defined-only "$module" | awk '{ print $NF }' | grep '^bk_' | sort -u >"$W/defined"
    echo $entry | comm -3 - "$W/defined" | tr -d '\t' >"$W/module"
    fail "$module does not export $entry and nothing else" "$W/module"
    nm -D --undefined-only "$module" | awk '{ print $NF }' | grep '^bk_' | sort -u | comm -23 - "$W/promised" >"$W/module"
    fail "$module uses what is not exported" "$W/module"
  done
else
  echo "no shared library in this build: its symbols are not looked at"
fi

# The command.
inside=$(cd "$top/core" && ls -d */ | grep -v '^include/' | tr -d '/' | tr '\n' '|')
grep -nE "^#[[:space:]]*include[[:space:]]*(\"|<(core|${inside}models|backends|tests)/)" "$top"/tools/*.[ch] |
  grep -v '"tools/\|"base/files.h"\|"base/text.h"\|"base/macros.h"' >"$W/includes"
fail "the command includes headers of the library that are not installed" "$W/includes"
objects=
for source in "$top"/tools/*.c "$top"/core/base/*.c; do
  object=$build/${source#"$top"/}
  object=${object%/*}/birkhoff-$(basename "$source" .c).o
  [ -e "$object" ] && objects="$objects $object"
done
if [ -n "$objects" ]; then
  # shellcheck disable=SC2086
  nm --undefined-only $objects | awk '{ print $NF }' | grep '^bk_' | sort -u >"$W/asked"
  # shellcheck disable=SC2086
  nm --defined-only $objects | awk '{ print $NF }' | sort -u >"$W/own"
  sort -u "$W/public" "$W/own" | comm -23 "$W/asked" - >"$W/inside"
  fail "the command uses functions that are not installed" "$W/inside"
fi

# Programs of others.
for header in $installed; do
  echo "#include <$header>" >"$W/one.c"
  echo "int main(void) { return 0; }" >>"$W/one.c"
  $CC -std=c11 -Wall -Wextra -Wpedantic -Werror -I"$top/core/include" -fsyntax-only "$W/one.c" || { echo "FAIL: $header as C11"; bad=1; }
  cp "$W/one.c" "$W/one.cpp"
  if command -v "${CXX%% *}" >/dev/null; then
    $CXX -std=c++17 -Wall -Wextra -Wpedantic -Werror -I"$top/core/include" -fsyntax-only "$W/one.cpp" || { echo "FAIL: $header as C++17"; bad=1; }
  fi
done
for example in "$top"/doc/examples/*.c; do
  $CC -std=c11 -Wall -Wextra -Wpedantic -Werror -I"$top/core/include" -fsyntax-only "$example" || { echo "FAIL: $example as C11"; bad=1; }
done
if command -v "${CXX%% *}" >/dev/null; then
  $CXX -std=c++17 -Wall -Wextra -Wpedantic -Werror -I"$top/core/include" -fsyntax-only "$top/doc/examples/forward.cpp" || { echo "FAIL: forward.cpp as C++17"; bad=1; }
fi
exit $bad

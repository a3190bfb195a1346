#!/bin/sh
# tools/find-cudnn.sh in folders that are made here: versions, where the library is, Python's packages, no Python.
TOP_SRCDIR=${TOP_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}
passed=0 failed=0
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-cudnn.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT
cd "$W" && W=$(pwd -P) || exit 1

cudnn() { # FOLDER MAJOR MINOR [LIBRARY FOLDER]
  mkdir -p "$1/include"
  echo '#include "cudnn_version.h"' >"$1/include/cudnn.h"
  printf '#define CUDNN_VERSION_H_\n#define CUDNN_MAJOR %s\n#define CUDNN_MINOR %s\n' "$2" "$3" >"$1/include/cudnn_version.h"
  [ -z "${4:-}" ] || { mkdir "$1/$4" && : >"$1/$4/libcudnn_graph.so.9"; }
}
# expect NAME WANTED PATH...: WANTED is a list of words, empty where nothing is to be found
expect() {
  name=$1 want=$2
  shift 2
  got=$("$TOP_SRCDIR/tools/find-cudnn.sh" "$@" 2>err | tr '\n' ' ')
  if [ "${got% }" = "$want" ] && [ ! -s err ]; then passed=$((passed + 1)); return; fi
  echo "FAIL: $name: \"$got\", expected \"$want\""
  cat err
  failed=$((failed + 1))
}

cudnn new 9 8 lib
cudnn wide 9 26 lib64
cudnn bare 9 19
cudnn old 9 7 lib
cudnn older 8 9 lib
cudnn next 10 9 lib
cudnn "with space" 9 19 lib
expect "9.8" "$W/new/include $W/new/lib" new
expect "9.26, lib64, by the header's folder" "$W/wide/include $W/wide/lib64" wide/include
expect "without the library" "$W/bare/include" "$W/bare"
expect "9.7" "" old
expect "8.9" "" older
expect "10.9" "" next
expect "nothing there" "" nowhere
expect "white space" "" "with space"
expect "the first that serves" "$W/new/include $W/new/lib" nowhere old next new wide

# A python3 that knows of our folders only, so that what is installed here says nothing.
mkdir -p bin empty site/nvidia other/nvidia
printf '#!/bin/sh\nprintf "%%s\\n" "%s" "%s" "%s"\n' "$W/nowhere" "$W/other" "$W/site" >bin/python3
chmod +x bin/python3
PATH=$W/bin:$PATH
expect "no package" ""
cudnn other/nvidia/cudnn 9 5 lib
expect "an old package" ""
cudnn site/nvidia/cu13 9 20 lib
expect "a package by another name" "$W/site/nvidia/cu13/include $W/site/nvidia/cu13/lib"
cudnn site/nvidia/cudnn 9 19 lib
expect "the usual name first" "$W/site/nvidia/cudnn/include $W/site/nvidia/cudnn/lib"
expect "what is named is not looked for elsewhere" "" old
printf '#!/bin/sh\necho broken >&2\nexit 1\n' >bin/python3
expect "a python3 that fails" ""
# What the script calls, and no python3.
for tool in sh cat sed head dirname; do ln -s "$(command -v $tool)" "empty/$tool"; done
got=$(PATH=$W/empty sh "$TOP_SRCDIR/tools/find-cudnn.sh" 2>err)
if [ $? -eq 1 ] && [ -z "$got" ] && [ ! -s err ]; then passed=$((passed + 1)); else
  echo "FAIL: without python3: \"$got\""
  cat err
  failed=$((failed + 1))
fi
# The real one, told of the folder in the usual way.
PATH=${PATH#"$W/bin:"}
if command -v python3 >/dev/null; then
  PYTHONPATH=$W/site
  export PYTHONPATH
  expect "PYTHONPATH" "$W/site/nvidia/cudnn/include $W/site/nvidia/cudnn/lib"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

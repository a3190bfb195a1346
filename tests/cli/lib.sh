# Shared by the shell tests of the command; POSIX sh. Environment: TOP_SRCDIR, TOP_BUILDDIR; BIRKHOFF and HELPER replace the programs.
# Every test calls `finish` at its end; it prints "N passed, N failed, N skipped".
TOP_SRCDIR=${TOP_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}
TOP_BUILDDIR=${TOP_BUILDDIR:-$TOP_SRCDIR}
BIRKHOFF=${BIRKHOFF:-$TOP_BUILDDIR/birkhoff}
HELPER=${HELPER:-$TOP_BUILDDIR/tests/cli/helper}
FIXTURES=$TOP_SRCDIR/tests/fixtures
unset BIRKHOFF_LOG
LC_ALL=C
export LC_ALL
passed=0 failed=0 skipped=0
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-cli.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT
trap 'exit 1' HUP INT TERM
cd "$W" || exit 1

# Every kind of residual connection, from the command itself.
kinds() { "$BIRKHOFF" train --help-config | sed -n 's/^ *residual=\([a-z_]*\) .*/\1/p'; }

# keeps COMMAND...: of a library that keeps memory which the leak sanitizer cannot tell from what is lost: without its check of leaks
keeps() { env ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0" "$@"; }

pass() { passed=$((passed + 1)); }

fail() {
  failed=$((failed + 1))
  echo "FAIL: $1"
  shift
  for f in "$@"; do [ -s "$f" ] && sed 's/^/    /' "$f" | head -n 20; done
  return 0
}

# ok NAME COMMAND...: status 0 and neither a warning nor an error; standard output in out, messages in err.
ok() {
  name=$1
  shift
  "$@" >out 2>err </dev/null
  rc=$?
  if [ $rc -ne 0 ]; then fail "$name: exit status $rc" err out
  elif grep -q 'birkhoff: \(warning\|error\)' err; then fail "$name: an unexpected message" err
  else pass; fi
}

# refused STATUS PATTERN NAME COMMAND...: that exit status, one error message that matches the (basic) pattern, no result.
refused() {
  want=$1 pattern=$2 name=$3
  shift 3
  "$@" >out 2>err </dev/null
  rc=$?
  if [ $rc -ne "$want" ]; then fail "$name: exit status $rc, expected $want" err out
  elif ! grep -q -e "$pattern" err; then fail "$name: no message like: $pattern" err
  elif [ "$(grep -c 'birkhoff: error' err)" -ne 1 ]; then fail "$name: not exactly one error message" err
  elif [ -s out ]; then fail "$name: a result in spite of the error" out
  else pass; fi
}

# warned PATTERN NAME COMMAND...: status 0, every warning matches, no error.
warned() {
  pattern=$1 name=$2
  shift 2
  "$@" >out 2>err </dev/null
  rc=$?
  if [ $rc -ne 0 ]; then fail "$name: exit status $rc" err out
  elif ! grep -q "birkhoff: warning: .*$pattern" err; then fail "$name: no warning like: $pattern" err
  elif grep 'birkhoff: \(warning\|error\)' err | grep -vq "$pattern"; then fail "$name: another message" err
  else pass; fi
}

# equal NAME A B
equal() { if [ "$2" = "$3" ]; then pass; else fail "$1: $2, expected $3"; fi; }
# holds NAME EXPRESSION: an awk expression over numbers
holds() { if awk "BEGIN { exit !($2) }" </dev/null; then pass; else fail "$1: not so: $2"; fi; }
# has NAME PATTERN FILE
has() { if grep -q -e "$2" "$3"; then pass; else fail "$1: no line like: $2" "$3"; fi; }
# same NAME FILE FILE: byte by byte
same() { if cmp -s "$2" "$3"; then pass; else fail "$1: $2 and $3 differ"; fi; }
there() { if [ -e "$2" ]; then pass; else fail "$1: $2 is missing"; fi; }
absent() { if [ -e "$2" ]; then fail "$1: $2 is there"; else pass; fi; }

# json PATH [FILE]: of the last command's output
json() { "$HELPER" json "${2:-out}" "$1"; }

# text FILE BYTES: English-like text, the same everywhere
text() {
  awk -v bytes="$2" 'BEGIN {
    n = split("the of and to in that he shall unto for was his they be is with not all thou thy it said them day king house lord", w, " ")
    for (i = 1; length(s) < bytes; i++) s = s w[(i * i + int(i / 7)) % n + 1] (i % 11 ? " " : ".\n")
    printf "%s", substr(s, 1, bytes)
  }' >"$1"
}

# wait_for FILE LINES PID: until the file has so many lines or the process ends
wait_for() {
  while kill -0 "$3" 2>/dev/null; do
    [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ] && return 0
    sleep 0.05
  done
  return 1
}

finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}

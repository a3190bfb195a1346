#!/bin/sh
# Every example of the manual pages, as it stands there, in the order of its page. What would take long is cut short by options that are added at
# the end: the number of steps, sizes, seconds. A page whose examples do not make "run" or "hc" finds them made.
. "$(dirname "$0")/lib.sh"
text book.txt 6000
text bible.txt 9000
"$HELPER" tokens in.safetensors input_ids i32 1x5 84 104 101 32 97
for kind in mhc hc; do
  "$BIRKHOFF" train --model tiny --set residual=$kind warmup_steps=0 --batch-size 2 --seq-len 32 --steps 3 --data book.txt --out made_$kind >out 2>err </dev/null || fail "setting up" err
done

# examples PAGE: its commands, one a line
examples() { sed -n '/^\.Sh EXAMPLES/,/^\.Sh SEE ALSO/p' "$1" | sed -n '/^birkhoff /p' | sed 's/\\e/\\/g'; }

# shorter COMMAND: options that end it soon
shorter() {
  case $1 in
    *'--resume'*) echo '--steps 4' ;;
    'birkhoff train'*) echo '--steps 3 --batch-size 2 --seq-len 64 --set warmup_steps=0' ;;
    'birkhoff bench comm'*) echo '--bytes 4096 --seconds 0' ;;
    'birkhoff bench ops'*) echo '--tokens 64 --width 64 --seconds 0' ;;
    'birkhoff bench step'*--program*) echo '--batch-size 1 --seq-len 32' ;;
    'birkhoff bench step'*) echo '--batch-size 1 --seq-len 32 --seconds 0' ;;
    *) ;;
  esac
}

birkhoff() { "$BIRKHOFF" "$@"; }

for page in "$TOP_SRCDIR"/doc/*.[17]; do
  name=$(basename "${page%.[17]}")
  examples "$page" >"$W/commands"
  [ -s "$W/commands" ] || fail "$name: no example"
  mkdir "$W/$name" && cd "$W/$name" || exit 1
  cp ../book.txt ../bible.txt ../in.safetensors .
  grep -q -e '--out run' ../commands || cp -r ../made_mhc run
  grep -q -e '--out hc' ../commands || cp -r ../made_hc hc
  while IFS= read -r line; do
    eval "$line $(shorter "$line")" >out 2>err </dev/null
    rc=$?
    if [ $rc -ne 0 ]; then fail "$name: $line: exit status $rc" err
    elif grep -q 'birkhoff: error' err; then fail "$name: $line: an error" err
    elif grep 'birkhoff: warning' err | grep -qv 'resuming with'; then fail "$name: $line: a warning" err
    elif [ ! -s out ]; then fail "$name: $line: no result" err
    else pass; fi
  done <"$W/commands"
  cd "$W" || exit 1
done
finish

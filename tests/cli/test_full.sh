#!/bin/sh
# Writes that the system refuses: beyond a limit on file sizes, and on a full device. Exit status 1, path and cause, nothing half-written.
. "$(dirname "$0")/lib.sh"
text data.txt 3000
limited() { (ulimit -f 100 && "$@"); } # 100 blocks of 512 or 1024 bytes, less than a checkpoint of tiny
ok init "$BIRKHOFF" init --model tiny --out tiny
refused 1 'cannot write no.tmp/model.safetensors: File too large' "init past the limit" limited "$BIRKHOFF" init --model tiny --out no
absent "no checkpoint" no
absent "no part of one" no.tmp
"$HELPER" tokens in.safetensors input_ids i32 1x100 $(awk 'BEGIN { for (i = 0; i < 100; i++) printf "%d ", i }')
refused 1 'cannot write out.safetensors.tmp: File too large' "forward past the limit" limited "$BIRKHOFF" forward tiny --tokens in.safetensors --out out.safetensors
absent "no result" out.safetensors
absent "no part of one" out.safetensors.tmp
ok "without the limit" "$BIRKHOFF" forward tiny --tokens in.safetensors --out out.safetensors
if [ -w /dev/full ]; then
  "$BIRKHOFF" eval tiny --data data.txt >/dev/full 2>err </dev/null
  equal "results that cannot be printed: status" $? 1
  has "and said" 'standard output' err
  : >out
else
  skipped=$((skipped + 1))
fi
finish

#!/bin/bash
# Sets up a fresh Debian machine, builds, trains the demo model on real text in at most three minutes, and shows the result.
# usage: tools/demo.sh [TEXT_FILE]   default text: the King James Bible of Debian's bible-kjv package, one verse a line
set -eu -o pipefail
cd "$(dirname "$0")/.."
SOURCE=$PWD
. tools/setup.sh
DIR=${DEMO_DIR:-$SOURCE/build-demo}
SECONDS_TO_TRAIN=${DEMO_SECONDS:-165}
TEXT=${1:-}
if [ -n "$TEXT" ] && [ ! -r "$TEXT" ]; then
  echo "$TEXT: cannot read it" >&2
  exit 2
fi
[ -z "$TEXT" ] || TEXT=$(realpath "$TEXT")

echo "== set-up and build"
packages=("${BUILD_PACKAGES[@]}" xz-utils)
[ -n "$TEXT" ] || packages+=(bible-kjv)
install_packages "${packages[@]}"
mkdir -p "$DIR"
[ -x configure ] || ./bootstrap >"$DIR/bootstrap.log" 2>&1
(cd "$DIR" && { [ -f Makefile ] || "$SOURCE/configure" --quiet --disable-shared CFLAGS='-O2 -g'; } && make -j"$(jobs_here)" birkhoff) >"$DIR/build.log" 2>&1 || {
  tail -n 30 "$DIR/build.log" >&2
  exit 1
}
BIRKHOFF=$DIR/birkhoff
"$BIRKHOFF" --version

if [ -z "$TEXT" ]; then
  TEXT=$DIR/kjv.txt
  [ -s "$TEXT" ] || { bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' >"$TEXT.tmp" && mv "$TEXT.tmp" "$TEXT"; }
fi
bytes=$(stat -c %s "$TEXT")
squeezed=$(xz -9 -c "$TEXT" | wc -c)
awk -v b="$bytes" -v x="$squeezed" 'BEGIN { printf "text: %d bytes; xz -9 packs it to %d, that is %.4f nats per byte\n", b, x, x * 8 * log(2) / b }'

echo "== training (at most $SECONDS_TO_TRAIN s)"
"$BIRKHOFF" plan --model demo
# As many steps as this machine does in the time, never more than the preset's.
speed=$("$BIRKHOFF" bench step --model demo --json | sed -n 's/.*"tokens_per_s": *\([0-9.eE+]*\).*/\1/p' | head -n 1)
read -r steps tokens < <("$BIRKHOFF" train --model demo --data "$TEXT" --out "$DIR/none" --dry-run --json |
  sed -n 's/.*"steps": *\([0-9]*\).*/\1/p; s/.*"step_tokens": *\([0-9]*\).*/\1/p' | paste -sd ' ')
fit=$(awk -v v="$speed" -v t="$tokens" -v s="$SECONDS_TO_TRAIN" -v most="$steps" 'BEGIN { n = int(v * s * 0.93 / t); print (n < most ? (n > 20 ? n : 20) : most) }')
rm -rf "$DIR/run"
"$BIRKHOFF" train --model demo --data "$TEXT" --out "$DIR/run" --steps "$fit" --set warmup_steps=$((fit / 20)) # the preset's share

echo "== the loss of the validation part (the last tenth of the text)"
"$BIRKHOFF" eval "$DIR/run" --data "$TEXT" --split val --seq-len 256
echo "== a passage (no longer than what it was trained on: 256 tokens)"
printf "And it came to pass"
"$BIRKHOFF" generate "$DIR/run" --prompt "And it came to pass" --max-tokens 230 --temperature 0.7
echo
echo "== gains of the trained residual maps"
"$BIRKHOFF" gain "$DIR/run" --data "$TEXT" --svg "$DIR/gain.svg"
echo "drawn in ${DIR#"$SOURCE"/}/gain.svg; everything took $SECONDS s"

#!/bin/sh
# cuda_graph and allow_tf32 reach the device that a command opens: from --set, and in a resumed run from its checkpoint. The device is
# module_options, which opens nothing and says what it was asked for.
. "$(dirname "$0")/lib.sh"
text data.txt 3000
small='--model tiny --batch-size 1 --seq-len 16 --set warmup_steps=0'
state=run/step-000001/trainer_state.json

# ---- the recipe's part, on any device ----
ok train "$BIRKHOFF" train $small --data data.txt --out run --steps 1 --device cpu --set allow_tf32=true
has "graphs are on" '"cuda_graph": true' "$state"
has "what was set is kept" '"allow_tf32": true' "$state"
ok "help" "$BIRKHOFF" train --help-config
has "lists cuda_graph, on" '^  cuda_graph  *true ' out
has "lists allow_tf32, off" '^  allow_tf32  *false ' out
# ---- the kinds of residual connection: README's table is what the command says ----
kinds | while read -r kind; do
  sed -n "s/^ *residual=$kind  *\(.*\); \(.*\)/| \`$kind\` | \1 | \2 |/p" out
done >kinds.table
sed -n '/^| `residual` /,/^$/p' "$TOP_SRCDIR/README.md" | sed '1,2d;/^$/d' >readme.table
ok "README has every kind" cmp kinds.table readme.table
holds "there are some" "$(wc -l <kinds.table) > 4"
refused 2 'cuda_graph must be true or false' "a value that is none" "$BIRKHOFF" eval run --data data.txt --set cuda_graph=maybe
cp -r run old
sed -e '/"allow_tf32"/d' -e '/"cuda_graph"/d' -e '/"merge_stream"/d' -e 's/\("data_dtype": "[a-z0-9]*"\),/\1/' "$state" >"old/step-000001/trainer_state.json"
hasnt() { if grep -q "$2" "$3"; then fail "$1: $2 is in $3" "$3"; else pass; fi; }
hasnt "an older state" 'cuda_graph\|allow_tf32\|merge_stream' old/step-000001/trainer_state.json
warned 'resuming with steps = 2' "an older state" "$BIRKHOFF" train --data data.txt --out old --steps 2 --device cpu --resume
warned 'resuming with \(steps = 2\|cuda_graph = false, it was true\)' "a changed key is said" \
  "$BIRKHOFF" train --data data.txt --out run --steps 2 --device cpu --resume --set cuda_graph=false
has "both are said" 'resuming with cuda_graph = false, it was true' err
has "and kept" '"cuda_graph": false' run/step-000002/trainer_state.json

# ---- the device's part ----
module=$TOP_BUILDDIR/tests/unit/.libs/module_options.so
if [ ! -r "$module" ]; then
  skipped=$((skipped + 1)) # built without loadable backends
  finish
fi
mkdir modules
cp "$module" modules/birkhoff_options.so
BIRKHOFF_BACKEND_DIR=$W/modules
export BIRKHOFF_BACKEND_DIR
opens() { # NO_GRAPH ALLOW_TF32 NAME COMMAND...
  want="opened with no_graph $1 allow_tf32 $2 " name=$3
  shift 3
  refused 1 "$want" "$name" "$BIRKHOFF" "$@" --device options
}
commands() { # NO_GRAPH ALLOW_TF32 SETS...
  g=$1 t=$2
  shift 2
  opens "$g" "$t" "train $*" train $small --data data.txt --out new "$@"
  opens "$g" "$t" "train --init $*" train --init run --data data.txt --out new "$@"
  opens "$g" "$t" "eval $*" eval run --data data.txt "$@"
  opens "$g" "$t" "forward $*" forward "$FIXTURES/mhc" --tokens "$FIXTURES/mhc/input.safetensors" --out forward.safetensors "$@"
  opens "$g" "$t" "gain $*" gain run --data data.txt "$@"
  opens "$g" "$t" "verify $*" verify tiny "$@"
  opens "$g" "$t" "generate $*" generate run --prompt a "$@"
  opens "$g" "$t" "bench ops $*" bench ops "$@"
  opens "$g" "$t" "bench step $*" bench step --model tiny "$@"
}
commands 0 0
commands 1 0 --set cuda_graph=false
commands 1 1 --set allow_tf32=true cuda_graph=false residual=mhc
opens 1 1 "a resumed run: as its checkpoint" train --data data.txt --out run --resume --steps 3
opens 0 1 "a resumed run: as newly set" train --data data.txt --out run --resume --steps 3 --set cuda_graph=true
opens 0 0 "a resumed run: both" train $small --data data.txt --out run --resume --steps 3 --set cuda_graph=true allow_tf32=false
opens 0 0 "an older state" train --data data.txt --out old --resume --steps 3
absent "nothing is written" new
finish

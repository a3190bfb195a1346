#!/bin/sh
# Trains the two models of doc/gain/hc-mhc.svg and draws it: usage: doc/gain/draw.sh BIRKHOFF TEXT FOLDER [SEED]
# BIRKHOFF is the program, TEXT is tinyshakespeare.txt, FOLDER is new. Each of the two runs takes about
# four minutes of processor time.
set -eu
birkhoff=$(realpath "$1") text=$(realpath "$2") config=$(realpath "$(dirname "$0")/deep.json") seed=${4:-1}
mkdir "$3"
cd "$3"
for kind in hc mhc; do
  "$birkhoff" train --model "$config" --data "$text" --steps 400 --batch-size 8 --seq-len 128 --lr 3e-3 --seed "$seed" \
    --set residual=$kind warmup_steps=20 eval_tokens=16384 save_every=0 --out "$kind-$seed"
done
"$birkhoff" gain "hc-$seed" "mhc-$seed" --data "$text" --svg hc-mhc.svg

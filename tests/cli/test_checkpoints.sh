#!/bin/sh
# What the commands take as a checkpoint: shards, runs with step folders that are not whole, weights that are not finite.
. "$(dirname "$0")/lib.sh"
text data.txt 3000
"$HELPER" tokens ids.safetensors input_ids i32 1x9 84 104 101 32 108 111 114 100 32
small="--batch-size 2 --seq-len 32 --threads 1 --data data.txt --set warmup_steps=0"
# A float NaN in the last four bytes: the last weight of lm_head, or of its second moment.
poison() {
  size=$(wc -c <"$1")
  printf '\000\000\300\177' | dd of="$1" bs=1 seek=$((size - 4)) conv=notrunc 2>dd.err
}

# ---- shards: every command gives what it gives for one file ----
ok init "$BIRKHOFF" init --model tiny --out whole --set residual=plain
cp -r whole parts
"$HELPER" shards parts 3 || fail "shards"
absent "no single file" parts/model.safetensors
for c in whole parts; do
  ok "eval $c" "$BIRKHOFF" eval $c --data data.txt --seq-len 64 --json
  cp out $c.eval
  ok "generate $c" "$BIRKHOFF" generate $c --prompt the --max-tokens 8 --seed 3
  cp out $c.text
  ok "forward $c" "$BIRKHOFF" forward $c --tokens ids.safetensors --out $c.out.safetensors
  ok "gain $c" "$BIRKHOFF" gain $c --data data.txt --seq-len 32 --json
  ok "verify $c" "$BIRKHOFF" verify $c --device cpu --seq-len 16 --json
  ok "init --from $c" "$BIRKHOFF" init --from $c --set residual=mhc --out $c.mhc
  ok "train --init $c" "$BIRKHOFF" train --init $c $small --out $c.run --steps 2
done
same "the same loss" whole.eval parts.eval
same "the same text" whole.text parts.text
same "the same logits" whole.out.safetensors parts.out.safetensors
same "the same conversion" whole.mhc/model.safetensors parts.mhc/model.safetensors
same "the same training" whole.run/step-000002/model.safetensors parts.run/step-000002/model.safetensors
ok "compare" "$BIRKHOFF" compare whole parts --json
equal "equal" "$(json equal)" true
rm parts/model-00002-of-00003.safetensors
for c in "eval parts --data data.txt" "generate parts --prompt the" "forward parts --tokens ids.safetensors --out no.safetensors" "gain parts --data data.txt" \
  "verify parts --device cpu" "init --from parts --set residual=mhc --out no" "train --init parts $small --out no --steps 1" "compare whole parts"; do
  refused 2 'parts/model-00002-of-00003.safetensors is missing, a part of the weights' "a shard is missing: $c" "$BIRKHOFF" $c
done
cp whole/model.safetensors parts
ok "one file has precedence" "$BIRKHOFF" eval parts --data data.txt --seq-len 64 --json
same "the same loss" whole.eval out
mkdir pickled
cp whole/config.json pickled
: >pickled/pytorch_model.bin
refused 2 'pytorch_model.bin is .*converted to safetensors' "PyTorch's own format" "$BIRKHOFF" eval pickled --data data.txt

# ---- not finite ----
cp -r whole sick
poison sick/model.safetensors
for c in "eval sick --data data.txt" "generate sick --prompt the" "forward sick --tokens ids.safetensors --out no.safetensors" "gain sick --data data.txt" \
  "verify sick --device cpu" "init --from sick --set residual=mhc --out no" "train --init sick $small --out no --steps 1"; do
  refused 2 'sick/model.safetensors: tensor lm_head.weight is not finite: element [0-9]* is nan; --allow-nonfinite' "not finite: $c" "$BIRKHOFF" $c
done
absent "nothing is written" no
warned 'tensor lm_head.weight is not finite: element [0-9]* is nan; it is loaded all the same' "init --allow-nonfinite" \
  "$BIRKHOFF" init --from sick --set residual=mhc --out sick.mhc --allow-nonfinite
"$BIRKHOFF" forward sick --tokens ids.safetensors --out no.safetensors --allow-nonfinite >out 2>err
equal "forward of it fails later" $? 1
has "warned about" 'warning: sick/model.safetensors: tensor lm_head.weight .*is loaded all the same' err
warned 'is loaded all the same' "gain --allow-nonfinite" "$BIRKHOFF" gain sick --data data.txt --seq-len 32 --allow-nonfinite
"$BIRKHOFF" eval sick --data data.txt --allow-nonfinite >out 2>err
equal "eval of it fails later" $? 1
has "says so" 'the loss is not finite' err
"$BIRKHOFF" train --init sick $small --out sick.run --steps 1 --allow-nonfinite >out 2>err
equal "training from it fails later" $? 1
has "names it" 'step 1: loss nan, .*weight lm_head.weight' err
absent "and saves nothing" sick.run/step-000001
has "and does not say to begin from it again" 'the weights that this run began with, sick, give what is not finite: begin with others$' err
equal "not in any words" "$(grep -c 'begin again' err)" 0

# ---- moments that are not finite; the checkpoint that is named as good is looked at ----
ok train "$BIRKHOFF" train --model tiny $small --out moments --steps 3 --set save_every=1 keep=3
poison moments/step-000003/optimizer.safetensors
refused 2 'step-000003/optimizer.safetensors: tensor v.lm_head.weight is not finite: element' "not finite moments" "$BIRKHOFF" train $small --out moments --resume --steps 6
ok "a reader needs no moments" "$BIRKHOFF" eval moments --data data.txt
poison moments/step-000002/model.safetensors
"$BIRKHOFF" train $small --out moments --resume --steps 6 --allow-nonfinite >out 2>err
equal "gone on from it" $? 1
has "warned about" 'warning: .*step-000003/optimizer.safetensors: tensor v.lm_head.weight is not finite' err
there "set aside" moments/step-000003.refused/model.safetensors
there "and the one before it" moments/step-000002.refused/model.safetensors
has "with the reason" 'step-000002/model.safetensors: tensor lm_head.weight is not finite: element' err
has "the last that is good" 'the last good checkpoint is moments/step-000001; to go on from it' err
ok "it is" "$BIRKHOFF" train $small --out moments --resume --steps 3
ok train "$BIRKHOFF" train --model tiny $small --out one --steps 1
poison one/step-000001/model.safetensors
"$BIRKHOFF" train --model tiny $small --out one --resume --steps 2 --allow-nonfinite >out 2>err
has "none is left" 'there is no good checkpoint left, what this run went on from was at fault: begin again with --model or --init' err

# ---- step folders that are not whole ----
ok train "$BIRKHOFF" train --model tiny $small --out run --steps 4 --set save_every=2 keep=2
mkdir run/step-000006
warned 'run/step-000006 is not a whole checkpoint and is passed over: config.json is missing, model.safetensors is missing' "an empty one" \
  "$BIRKHOFF" eval run --data data.txt
warned 'step-000006 is not a whole checkpoint\|resuming with steps' "resume" "$BIRKHOFF" train $small --out run --resume --steps 5
there "goes on" run/step-000005
there "what is kept" run/step-000004
there "and the empty one" run/step-000006
refused 2 'has checkpoints (newest: step 6)' "without --resume" "$BIRKHOFF" train --model tiny $small --out run --steps 7
rm run/step-000005/optimizer.safetensors
warned 'step-000006 is not' "a reader takes half a one" "$BIRKHOFF" eval run --data data.txt
has "that one" 'step-000006' err
size=$(wc -c <run/step-000004/model.safetensors)
warned 'step-00000[56] is not a whole checkpoint\|resuming with\|step-00000[56] lay where' "resume passes both over" "$BIRKHOFF" train $small --out run --resume --steps 6
has "names what is missing" 'step-000005 is not a whole checkpoint and is passed over: optimizer.safetensors is missing' err
there "saved over the empty one" run/step-000006/trainer_state.json
ok "whole again" "$BIRKHOFF" eval run --data data.txt
cp -r run cut
for s in 4 5 6; do [ -d cut/step-00000$s ] && head -c $((size - 1)) run/step-000006/model.safetensors >cut/step-00000$s/model.safetensors; done
refused 2 'no checkpoint there is whole; of the newest, step-000006: model.safetensors ends before its data does' "none is whole" "$BIRKHOFF" eval cut --data data.txt
refused 2 'no checkpoint there is whole; of the newest, step-000006: model.safetensors ends' "nor for --resume" "$BIRKHOFF" train $small --out cut --resume --steps 9
# ---- what an unfinished copy or a crash leaves in the newest step costs a warning, and nothing that is trained ----
text bytes.txt 3000
ok "two steps" "$BIRKHOFF" train --model tiny $small --out left --steps 2 --set save_every=1 keep=9
for what in config trainer_state model_zeros optimizer_zeros model_folder state_folder; do
  rm -rf broken && cp -r left broken && cp -r left/step-000002 broken/step-000003
  newest=broken/step-000003
  case $what in
    config) head -c 200 left/step-000002/config.json >$newest/config.json ;;
    trainer_state) head -c 200 left/step-000002/trainer_state.json >$newest/trainer_state.json ;;
    model_zeros) size=$(wc -c <$newest/model.safetensors) && head -c "$size" /dev/zero >$newest/model.safetensors ;;
    optimizer_zeros) size=$(wc -c <$newest/optimizer.safetensors) && head -c "$size" /dev/zero >$newest/optimizer.safetensors ;;
    model_folder) rm $newest/model.safetensors && mkdir $newest/model.safetensors ;;
    state_folder) rm $newest/trainer_state.json && mkdir $newest/trainer_state.json ;;
  esac
  warned 'step-000003 is not a whole checkpoint and is passed over\|resuming with\|step-000003 lay where' "resume past $what" "$BIRKHOFF" train $small --out broken --resume --steps 3
  there "$what: what lay there is kept" broken/step-000003.aside
  there "$what: and the step is saved" broken/step-000003/trainer_state.json
done
for what in partial file; do
  rm -rf odd && cp -r left odd
  if [ $what = file ]; then : >odd/step-000003; else mkdir odd/step-000003 && : >odd/step-000003/.model.safetensors.Ab12; fi
  warned 'step-000003 is not a whole checkpoint and is passed over\|resuming with\|step-000003 lay where' "what is no checkpoint at all: $what" "$BIRKHOFF" train $small --out odd --resume --steps 3
  there "$what: kept" odd/step-000003.aside
  there "$what: saved" odd/step-000003/model.safetensors
done
mkdir -p circle/step-000002
refused 2 'no checkpoint there is whole' "no advice that leads in a circle" "$BIRKHOFF" train --model tiny $small --out circle --steps 3
finish

#!/bin/sh
# birkhoff train: files, metrics, resume bit for bit, interrupts, what is refused.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
small="--model tiny --batch-size 2 --seq-len 32 --threads 1 --set warmup_steps=0"
steady="$small --set lr_schedule=constant warmup_steps=0"

# ---- files and metrics ----
ok train "$BIRKHOFF" train $small --data data.txt --out run --steps 6 --set save_every=2 keep=2 eval_every=3 gain_every=3
for f in config.json model.safetensors optimizer.safetensors trainer_state.json; do there "last step" run/step-000006/$f; done
there "newest two are kept" run/step-000004
absent "older ones go" run/step-000002
equal "steps in metrics" "$(wc -l <run/metrics.jsonl | tr -d ' ')" 6
sed -n 6p run/metrics.jsonl >last.json
sed -n 5p run/metrics.jsonl >before.json
equal step "$(json step last.json)" 6
equal tokens "$(json tokens last.json)" 384
for key in loss lr grad_norm tokens_per_s val_loss gain_forward gain_backward; do holds "$key is positive" "$(json $key last.json) > 0"; done
equal "no validation between" "$(grep -c val_loss before.json)" 0
equal "a load per layer" "$(json expert_load/# last.json)" 2
equal "and expert" "$(json expert_load/0/# last.json)" 8
holds "loads add up to 1" "$(json expert_load/1 last.json | tr -d '[]' | tr ',' '+') < 1.0001 && $(json expert_load/1 last.json | tr -d '[]' | tr ',' '+') > 0.9999"
holds "the loss falls" "$(json loss last.json) < $(sed -n 1p run/metrics.jsonl >first.json; json loss first.json)"
has "writes one line per result" '^run/step-000006$' out
ok "json result" "$BIRKHOFF" train $small --data data.txt --out run_json --steps 2 --json
equal "one value" "$("$HELPER" json out && echo yes)" yes
equal "its checkpoint" "$(json checkpoint)" run_json/step-000002

# ---- the same run again is the same, bit for bit, also with another number of threads ----
ok again "$BIRKHOFF" train --model tiny --batch-size 2 --seq-len 32 --threads 2 --data data.txt --out again --steps 6 --set warmup_steps=0 save_every=2 keep=2 eval_every=3 gain_every=3
for f in model optimizer; do same "same bits" run/step-000006/$f.safetensors again/step-000006/$f.safetensors; done
ok "another seed" "$BIRKHOFF" train $small --data data.txt --out seed --steps 1 --seed 7
ok "compare seeds" "$BIRKHOFF" compare --json seed/step-000001 run_json/step-000002
equal "another seed, other weights" "$(json equal)" false

# ---- resume ----
ok "first half" "$BIRKHOFF" train $small --data data.txt --out half --steps 6 --set save_every=3 eval_every=3 gain_every=3
rm -rf half/step-000006
ok resume "$BIRKHOFF" train $small --data data.txt --out half --resume --set save_every=3
for f in model.safetensors optimizer.safetensors config.json; do same "resumed" run/step-000006/$f half/step-000006/$f; done
equal "metrics are cut back" "$(wc -l <half/metrics.jsonl | tr -d ' ')" 6
ok "metrics agree" "$BIRKHOFF" compare --json run half
equal "metrics agree" "$(json equal)" true
ok "resume with nothing there" "$BIRKHOFF" train $small --data data.txt --out fresh --steps 2 --resume
there "begins" fresh/step-000002
ok "resume at the end" "$BIRKHOFF" train --model tiny --data data.txt --out fresh --resume
refused 2 'has checkpoints.*--resume' "a DIR with checkpoints" "$BIRKHOFF" train $small --data data.txt --out run --steps 8
refused 2 'hidden_size' "another model" "$BIRKHOFF" train $small --data data.txt --out run --resume --set hidden_size=32
text other.txt 6001
refused 2 'not the data' "other data" "$BIRKHOFF" train $small --data other.txt --out run --resume --steps 8
refused 2 'file 1, other.txt, has 6001 bytes, 6000 then' "which file, and its size" "$BIRKHOFF" train $small --data other.txt --out run --resume --steps 8
{ head -c 3000 data.txt; printf x; tail -c 2999 data.txt; } >touched.txt
refused 2 'file 1, touched.txt, has other contents' "a file of the same size" "$BIRKHOFF" train $small --data touched.txt --out run --resume --steps 8
refused 2 'it is in 2 files now, 1 then' "another number of files" "$BIRKHOFF" train $small --data data.txt data.txt --out run --resume --steps 8
refused 2 'step 6 already' "fewer steps" "$BIRKHOFF" train $small --data data.txt --out run --resume --steps 3
warned 'resuming with lr = ' "a changed recipe" "$BIRKHOFF" train $small --data data.txt --out fresh --resume --lr 0.0001
before=$(tail -n 1 fresh/metrics.jsonl >last_row.json; json tokens last_row.json)
warned 'resuming with \(steps\|batch_size\) = ' "another batch size" "$BIRKHOFF" train --data data.txt --out fresh --resume --steps 3 --batch-size 1 --set micro_batch_size=0
tail -n 1 fresh/metrics.jsonl >last_row.json
equal "tokens go on from the checkpoint's" "$(json tokens last_row.json)" $((before + 32))

# ---- many files: patterns, lists; the order is that of their names, whatever the shell would make of them ----
mkdir -p "sh ards/more" && for i in 3 1 2; do text "sh ards/s$i.txt" 120$i; done
cp data.txt "sh ards/[x]*.txt" && cp other.txt "sh ards/x.txt" && cp data.txt "sh ards/.hidden.txt" && cp other.txt "sh ards/more/s9.txt"
printf '# three of them, by name\n\ns1.txt\r\n  s2.txt  \n%s/sh ards/s3.txt' "$W" >"sh ards/list.txt"
printf 's?.txt\n' >"sh ards/pattern.txt"
ok "names" "$BIRKHOFF" train $small --data "sh ards/s1.txt" "sh ards/s2.txt" "sh ards/s3.txt" --out names --steps 2
set -- "sh ards/s*.txt" "sh*/s[1-3].txt" "@sh ards/list.txt" "@sh ards/pattern.txt" "$W/sh ards/s?.txt" "./sh?ards//s*.txt"
for word in "$@"; do
  rm -rf words
  ok "$word" "$BIRKHOFF" train $small --data "$word" --out words --steps 2
  same "$word: the same run" names/step-000002/model.safetensors words/step-000002/model.safetensors
  same "$word: the same data" names/step-000002/trainer_state.json words/step-000002/trainer_state.json
done
equal "and each of its files is kept" "$(json data_files/# words/step-000002/trainer_state.json)" 3
ok "a pattern as validation data, and one in a folder" "$BIRKHOFF" train $small --data "sh ards/s*.txt" --val-data "sh*/*/s*" --out planned --steps 2 --dry-run
has "both are counted" '^data  *3609 tokens for training, 6002 for validation' out
ok "a name that is there is no pattern" "$BIRKHOFF" train $small --data "sh ards/[x]*.txt" --out planned --steps 2 --dry-run
has "that file alone" '^data  *5400 tokens for training, 601 for validation' out
cp data.txt "@at.txt"
ok "nor a list" "$BIRKHOFF" train $small --data "@at.txt" --out planned --steps 2 --dry-run
refused 2 'sh ards/q\*.txt: no file has such a name' "a pattern without a match" "$BIRKHOFF" train $small --data "sh ards/q*.txt" --out none --steps 2
refused 2 'none/\*.txt: no file has such a name' "in a folder that is not there" "$BIRKHOFF" train $small --data "none/*.txt" --out none --steps 2
refused 1 'cannot open none.txt' "a list that is not there" "$BIRKHOFF" train $small --data "@none.txt" --out none --steps 2
printf '# nothing\n' >empty_list.txt
refused 2 'empty_list.txt names no file' "an empty list" "$BIRKHOFF" train $small --data "@empty_list.txt" --out none --steps 2
printf 's1.txt\nq*.txt\n' >"sh ards/bad.txt"
refused 2 'sh ards/bad.txt: line 2: sh ards/q\*.txt: no file has such a name' "a line without a match" "$BIRKHOFF" train $small --data "@sh ards/bad.txt" --out none --steps 2
printf 'a\0b\n' >zero_list.txt
refused 2 'zero_list.txt is not a list of files' "a byte 0" "$BIRKHOFF" train $small --data "@zero_list.txt" --out none --steps 2
# more files than a process may have open here
mkdir shards && for i in $(seq 1000 1149); do ln data.txt shards/$i.txt; done
ok "150 files, of which 64 may be open" sh -c "ulimit -n 64; exec \"\$0\" \"\$@\"" "$BIRKHOFF" train $small --data "shards/*.txt" --out shards_run --steps 2
equal "all of them" "$(json data_files/# shards_run/step-000002/trainer_state.json)" 150

# ---- a checkpoint of an older version: no list of files, and of large data another hash ----
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19; do cat other.txt other.txt other.txt; done >part.txt
for i in $(seq 60); do cat part.txt; done >large.txt
ok "large data" "$BIRKHOFF" train $small --data large.txt --out large --steps 2
state=large/step-000002/trainer_state.json
sed -e '/"data_files"/,$d' -e 's/\("data_hash": "\)[0-9a-f]*/\10123456789abcdef/' $state >older.json
sed -e '$s/},/}/' older.json >$state && echo '}' >>$state
refused 2 'not the data that the run in large began with$' "neither hash" env BIRKHOFF_LOG=info "$BIRKHOFF" train --data large.txt --out large --resume --steps 3
has "all of it was read" 'info: reading all of the data' err
old=$("$HELPER" whole-hash large.txt)
sed -e "s/0123456789abcdef/$old/" $state >older.json && cp older.json $state
warned 'resuming with steps' "the hash that older versions made" "$BIRKHOFF" train --data large.txt --out large --resume --steps 3
equal "the new one is kept from then on" "$(json data_files/# large/step-000003/trainer_state.json)" 1
rm -rf large large.txt part.txt

# ---- interrupts ----
for signal in INT TERM; do
  "$BIRKHOFF" train $steady --data data.txt --out stop_$signal --steps 100000 --set save_every=0 >out 2>err </dev/null &
  pid=$!
  wait_for stop_$signal/metrics.jsonl 3 $pid
  kill -$signal $pid
  wait $pid
  equal "status after SIG$signal" $? $([ $signal = INT ] && echo 130 || echo 143)
  has "says how to go on" '--resume' err
  equal "one checkpoint" "$(ls -d stop_$signal/step-* | wc -l | tr -d ' ')" 1
done
step=$(ls -d stop_INT/step-* | sed 's/.*step-0*//')
equal "metrics end at it" "$(wc -l <stop_INT/metrics.jsonl | tr -d ' ')" "$step"
total=$((step + 3))
warned 'resuming with steps = ' "resume after the interrupt" "$BIRKHOFF" train --data data.txt --out stop_INT --resume --steps $total --threads 1
ok "uninterrupted" "$BIRKHOFF" train $steady --data data.txt --out whole --steps $total --set save_every=0
last=$(printf 'step-%06d' $total)
for f in model.safetensors optimizer.safetensors config.json trainer_state.json; do same "interrupted and resumed" whole/$last/$f stop_INT/$last/$f; done

# ---- what will not come in so few steps is said once, at the start ----
warned 'warmup_steps 9 is longer than the run (steps 4): .*lr_schedule step never comes' "a warm-up longer than the run" "$BIRKHOFF" train --model tiny --batch-size 2 --seq-len 32 \
  --data data.txt --out long_1 --steps 4 --set warmup_steps=9
warned 'warmup_steps 100 is longer' "the recipe's own, with fewer steps" "$BIRKHOFF" train --init run --batch-size 2 --seq-len 32 --data data.txt --out long_2 --steps 3
warned 'warmup_steps 7 is longer than the run (steps 6): .* to 0.00257 of 0.003$' "without a decay" "$BIRKHOFF" train $steady --data data.txt --out long_3 --steps 6 --set warmup_steps=7
warned 'decay of lr_schedule cosine never comes: warmup_steps 5 takes' "a decay that never comes" "$BIRKHOFF" train $small --data data.txt --out long_4 --steps 5 --set lr_schedule=cosine warmup_steps=5
warned 'decay of lr_schedule cosine never comes: min_lr_ratio' "or goes nowhere" "$BIRKHOFF" train $small --data data.txt --out long_5 --steps 5 --set lr_schedule=cosine min_lr_ratio=1
warned 'eval_every 50 is beyond the last step, 5: ' "validation beyond the end" "$BIRKHOFF" train $small --data data.txt --out long_6 --steps 5 --set eval_every=50
equal "one warning" "$(grep -c 'birkhoff: warning' err)" 1
warned 'gain_every 6 is beyond the last step, 5: ' "the gain beyond the end" "$BIRKHOFF" train $small --data data.txt --out long_7 --steps 5 --set gain_every=6
ok "both at the end" "$BIRKHOFF" train $small --data data.txt --out long_8 --steps 5 --set gain_every=5 eval_every=5 lr_schedule=cosine warmup_steps=4
warned 'warmup_steps 9' "said by a dry run" "$BIRKHOFF" train $small --data data.txt --out long_9 --steps 5 --dry-run --set warmup_steps=9

# ---- ranges as they are stated ----
for range in 'lr 1000.5 0 1000' 'lr -1 0 1000' 'seed 9007199254740993 0 9007199254740992' 'seed -1 0 9007199254740992' 'seq-len 67108865 1 67108864' 'batch-size 16777217 1 16777216' \
  'steps 1000000000000001 1 1000000000000000'; do
  set -- $range
  refused 2 "--$1 $2: expected a .*number from $3 to $4\$" "--$1 $2" "$BIRKHOFF" train --model tiny --data data.txt --out no --$1=$2
done
ok "the largest seed" "$BIRKHOFF" train $small --data data.txt --out largest --steps 1 --seed 9007199254740992
ok "the largest rate" "$BIRKHOFF" train $small --data data.txt --out rate --steps 1 --lr 1000 --dry-run
refused 2 'number from 0 to 9007199254740992$' "init takes the same seeds" "$BIRKHOFF" init --model tiny --out no --seed 9007199254740993

# ---- a model like that of a checkpoint ----
ok "the model of a run" "$BIRKHOFF" train --model run --data data.txt --out like_run --steps 1 --batch-size 2 --seq-len 32 --set warmup_steps=0
same "has its configuration" run/step-000006/config.json like_run/step-000001/config.json
mkdir bare && cp run/step-000006/config.json bare
ok "of a folder with a config.json alone" "$BIRKHOFF" plan --model bare --json
ok "of a checkpoint" "$BIRKHOFF" init --model run/step-000006 --out like_it
mkdir tiny
ok "a preset's name is the preset" "$BIRKHOFF" plan --model tiny
refused 2 'neither a checkpoint' "a folder that is none" "$BIRKHOFF" plan --model ./tiny
rm -rf tiny

# ---- a damaged line in metrics.jsonl costs itself and one warning ----
cp -r half damaged
rm -rf damaged/step-000006
sed '2s/^/step 2\/6  loss 5.5  /' half/metrics.jsonl >damaged/metrics.jsonl
warned 'damaged/metrics.jsonl: 1 damaged line is (the first is line 2: .*metrics.jsonl.damaged' "resume with a damaged row" "$BIRKHOFF" train $small --data data.txt --out damaged --resume --set save_every=3
for f in model.safetensors optimizer.safetensors; do same "resumed" run/step-000006/$f damaged/step-000006/$f; done
equal "the other rows stay" "$(sed 's/^{"step": \([0-9]*\).*/\1/' damaged/metrics.jsonl | tr '\n' ' ')" "1 3 4 5 6 "
has "and the damaged line" '^step 2/6  loss 5.5  {"step": 2' damaged/metrics.jsonl.damaged
mkdir read && { head -n 3 half/metrics.jsonl; echo "{"; tail -n 3 half/metrics.jsonl; } >read/metrics.jsonl
warned 'read/metrics.jsonl: 1 damaged line is passed over (the first is line 4: ' "compare passes over it" "$BIRKHOFF" compare --json half read
equal "and compares the rest" "$(json steps_common) $(json equal)" "6 true"

# ---- other inputs ----
ok "validation data" "$BIRKHOFF" train $small --data data.txt --val-data other.txt --out val --steps 1
ok "bf16" "$BIRKHOFF" train $small --data data.txt --out bf16 --steps 2 --dtype bf16
equal "weights are stored in bf16" "$("$HELPER" tensor bf16/step-000002/model.safetensors lm_head.weight)" "bf16 $("$HELPER" tensor run/step-000006/model.safetensors lm_head.weight | cut -d' ' -f2)"
equal "maps stay fp32" "$("$HELPER" tensor bf16/step-000002/model.safetensors model.layers.0.hc_attn_base)" "fp32 24"
equal "masters are kept" "$("$HELPER" tensor bf16/step-000002/optimizer.safetensors master.lm_head.weight | cut -d' ' -f1)" fp32
rm -rf bf16/metrics.jsonl
refused 2 'bf16' "resume in another dtype" "$BIRKHOFF" train $small --data data.txt --out bf16 --resume --dtype fp32
ok "from a checkpoint" "$BIRKHOFF" train --init run --data data.txt --out more --steps 1 --batch-size 2 --seq-len 32 --set warmup_steps=0
"$HELPER" bin stream.bin 2 $(awk 'BEGIN { for (i = 0; i < 200; i++) printf "%d ", i * 7 % 256 }')
ok "a token stream" "$BIRKHOFF" train $small --data stream.bin --out bin --steps 1
equal "its last tenth is validation data" "$(grep -c val_loss bin/metrics.jsonl)" 1
has "which the state says" '"bin_validation": true' bin/step-000001/trainer_state.json
ok "how much of it" "$BIRKHOFF" train $small --data stream.bin --out dry --dry-run
has "how much of it" '^data  *180 tokens for training, 20 for validation$' out
ok "all of it for training" "$BIRKHOFF" train $small --data stream.bin --out bin_whole --steps 4 --set bin_validation=false save_every=2
equal "no validation" "$(grep -c val_loss bin_whole/metrics.jsonl)" 0
cp stream.bin UPPER.BIN
ok "a name in capital letters" "$BIRKHOFF" train $small --data UPPER.BIN --out bin_upper --steps 1
same "the same stream" bin/step-000001/model.safetensors bin_upper/step-000001/model.safetensors
ok "with validation data" "$BIRKHOFF" train $small --data stream.bin --val-data UPPER.BIN --out dry --dry-run
has "nothing is split" '^data  *200 tokens for training, 200 for validation$' out
ok "a stream and a text" "$BIRKHOFF" train $small --data stream.bin data.txt --out dry --dry-run
has "a tenth of each" '^data  *5580 tokens for training, 621 for validation$' out

# ---- streams without a tenth to spare: all for training, and it is said ----
"$HELPER" bin tight.bin 2 $(awk 'BEGIN { for (i = 0; i < 35; i++) printf "%d ", i * 7 % 256 }')
ok "a stream of little more than a sequence" "$BIRKHOFF" train $small --data tight.bin --out tight --dry-run
has "its tenth is not spared" '^data  *35 tokens for training, 0 for validation$' out
has "which is said" 'too short to spare a tenth for validation: bin_validation=false' out
ok "and trained on" env BIRKHOFF_LOG=info "$BIRKHOFF" train $small --data tight.bin --out tight --steps 2 --set save_every=1 bin_validation=true
has "which is said" 'too short to spare a tenth for validation: bin_validation=false' err
has "and kept" '"bin_validation": false' tight/step-000002/trainer_state.json
rm -rf tight/step-000002
ok "so that it is resumed" "$BIRKHOFF" train $small --data tight.bin --out tight --resume --set save_every=1
"$HELPER" bin few.bin 2 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19
ok "no two tokens to validate on" "$BIRKHOFF" train --model tiny --batch-size 1 --seq-len 4 --data few.bin --out dry --dry-run
has "all for training" '^data  *19 tokens for training, 0 for validation$' out
refused 2 'the data has 19 tokens, a sequence of seq_len 32 needs 33' "too short in any case" "$BIRKHOFF" train $small --data few.bin --out dry

# ---- a run from before streams were split: its state lacks the key, and it goes on with all of the stream, bit for bit ----
cp -r bin_whole before
rm -rf before/step-000004
sed -i.bak '/"bin_validation"/d' before/step-000002/trainer_state.json
rm before/step-000002/trainer_state.json.bak
equal "the key is gone" "$(grep -c bin_validation before/step-000002/trainer_state.json)" 0
refused 2 'with bin_validation=false a .bin file has none' "which means false to eval too" "$BIRKHOFF" eval before --data stream.bin --split val
ok "an older run goes on" "$BIRKHOFF" train $small --data stream.bin --out before --resume --set save_every=2
for f in model.safetensors optimizer.safetensors trainer_state.json; do same "bit for bit" bin_whole/step-000004/$f before/step-000004/$f; done
equal "without validation" "$(grep -c val_loss before/metrics.jsonl)" 0
rm -rf before/step-000004
warned 'bin_validation stays false: a resumed run keeps the split of its data' "the split cannot be changed" "$BIRKHOFF" train $small --data stream.bin --out before --resume --set save_every=2 bin_validation=true
same "bit for bit" bin_whole/step-000004/model.safetensors before/step-000004/model.safetensors
ok "first half" "$BIRKHOFF" train $small --data stream.bin --out bin_half --steps 4 --set save_every=2
cp -r bin_half bin_again
rm -rf bin_again/step-000004
ok "a split run goes on" "$BIRKHOFF" train $small --data stream.bin --out bin_again --resume --set save_every=2
for f in model.safetensors optimizer.safetensors trainer_state.json; do same "bit for bit" bin_half/step-000004/$f bin_again/step-000004/$f; done
ok "micro-batches" "$BIRKHOFF" train $small --data data.txt --out micro --steps 2 --set micro_batch_size=1
ok "no recompute" "$BIRKHOFF" train $small --data data.txt --out recompute_off --steps 2 --set hc_recompute=off
ok "recompute" "$BIRKHOFF" train $small --data data.txt --out recompute_3 --steps 2 --set hc_recompute=3
same "the same bits" recompute_off/step-000002/model.safetensors recompute_3/step-000002/model.safetensors
ok "recompute inside F" "$BIRKHOFF" train $small --data data.txt --out recompute_all --steps 1 --set recompute=all
has "the key is kept" '"recompute": "all"' recompute_all/step-000001/trainer_state.json
warned 'resuming with \(steps = 2\|recompute = none, it was all\)' "it may change" "$BIRKHOFF" train --data data.txt --out recompute_all --steps 2 --resume --set recompute=none
same "the same bits" recompute_off/step-000002/model.safetensors recompute_all/step-000002/model.safetensors
ok "on ref" "$BIRKHOFF" train --model tiny --batch-size 1 --seq-len 16 --data data.txt --out ref --steps 2 --device ref --set warmup_steps=0
rm -rf dry
ok "dry run" "$BIRKHOFF" train $small --data data.txt --out dry --steps 2 --dry-run
absent "a dry run writes nothing" dry
ok "help for the keys" "$BIRKHOFF" train --help-config
for key in lr_schedule warmup_steps min_lr_ratio weight_decay adam_beta1 adam_beta2 adam_eps grad_clip micro_batch_size router_bias_lr save_every keep eval_every \
  gain_every hc_recompute recompute bin_validation residual hc_mult hc_eps; do has "--help-config" "$key" out; done
finish

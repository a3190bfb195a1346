#!/bin/sh
# birkhoff eval, generate, init.
. "$(dirname "$0")/lib.sh"
text data.txt 6000

# ---- init ----
ok init "$BIRKHOFF" init --model tiny --out a
for f in config.json model.safetensors; do there init a/$f; done
absent "no optimiser" a/optimizer.safetensors
ok "init again" "$BIRKHOFF" init --model tiny --out b --device ref --json
equal "json result" "$(json checkpoint)" b
same "the same bits on every device" a/model.safetensors b/model.safetensors
ok "another seed" "$BIRKHOFF" init --model tiny --out c --seed 2
ok compare "$BIRKHOFF" compare --json a c
equal "other weights" "$(json equal)" false
ok "from its own config.json" "$BIRKHOFF" init --model a/config.json --out d
same "the same model" a/model.safetensors d/model.safetensors
same "the same configuration" a/config.json d/config.json
ok bf16 "$BIRKHOFF" init --model tiny --out e --dtype bf16
ok fp64 "$BIRKHOFF" init --model tiny --out f --dtype fp64 --device ref
equal "stored in fp64" "$("$HELPER" tensor f/model.safetensors model.norm.weight | cut -d' ' -f1)" fp64
refused 2 'is there already' "an --out that is there" "$BIRKHOFF" init --model tiny --out a
refused 2 'exactly one of' "model and from" "$BIRKHOFF" init --model tiny --from a --out g

# ---- init --from: another residual connection, the same logits ----
"$HELPER" tokens ids.safetensors input_ids i32 2x9 84 104 101 32 108 111 114 100 32 97 110 100 32 111 102 32 104 101
ok plain "$BIRKHOFF" init --model tiny --out plain --set residual=plain --seed 5
ok "forward of plain" "$BIRKHOFF" forward plain --tokens ids.safetensors --out plain.safetensors --device ref --dtype fp64
for residual in $(kinds | grep -vx plain); do
  ok "turn into $residual" "$BIRKHOFF" init --from plain --set residual=$residual --out to_$residual
  ok "forward of $residual" "$BIRKHOFF" forward to_$residual --tokens ids.safetensors --out $residual.safetensors --device ref --dtype fp64
  ok compare "$BIRKHOFF" compare --json plain.safetensors $residual.safetensors
  holds "$residual: the same logits" "$(json tensors/tensor=logits/nmse) < 1e-12"
done
ok "and it trains" "$BIRKHOFF" train --init to_mhc --data data.txt --out trained --steps 3 --batch-size 2 --seq-len 32 --set warmup_steps=0
refused 2 'not a plain one' "from mhc" "$BIRKHOFF" init --from a --set residual=ihc --out g
refused 2 'cannot change' "another size" "$BIRKHOFF" init --from plain --set residual=mhc hidden_size=32 --out g
refused 2 'residual=mhc' "no new connection" "$BIRKHOFF" init --from plain --out g
absent "nothing was written" g

# ---- eval ----
ok train "$BIRKHOFF" train --model tiny --data data.txt --out run --steps 8 --batch-size 2 --seq-len 32 --set eval_every=8 warmup_steps=1
ok eval "$BIRKHOFF" eval run --data data.txt --split val --seq-len 32 --json
equal "tokens of the last tenth, the end token with them, but the first" "$(json tokens)" 600
holds "perplexity" "$(json perplexity) / exp($(json loss)) - 1 < 1e-9 && $(json perplexity) / exp($(json loss)) - 1 > -1e-9"
sed -n '$p' run/metrics.jsonl >last.json
holds "what train measured" "($(json loss) - $(json val_loss last.json)) ^ 2 < 1e-10"
ok train-split "$BIRKHOFF" eval run --data data.txt --split train --seq-len 32 --json
equal "the other nine" "$(json tokens)" 5399
ok all "$BIRKHOFF" eval run --data data.txt --json
equal all "$(json tokens)" 6000
holds "bits per byte" "($(json bits_per_byte) - $(json loss) / log(2)) ^ 2 < 1e-12"
ok "ref agrees" "$BIRKHOFF" eval run --data data.txt --split val --seq-len 32 --device ref --json
ref=$(json loss)
ok "cpu again" "$BIRKHOFF" eval run --data data.txt --split val --seq-len 32 --json
holds "ref agrees" "($ref - $(json loss)) ^ 2 < 1e-10"
ok text "$BIRKHOFF" eval run --data data.txt --split val
has "loss in words" '^loss  *[0-9.]* nats/token' out
# one window of 34 tokens, which forward sees too
text short.txt 33
ok short "$BIRKHOFF" eval run --data short.txt --seq-len 64 --json
short=$(json loss)
equal "33 bytes and the end" "$(json tokens)" 33
"$HELPER" tokens short.safetensors input_ids i64 1x34 $(od -An -v -tu1 short.txt) 256
ok forward "$BIRKHOFF" forward run --tokens short.safetensors --out short_out.safetensors --json
holds "forward agrees" "($(json loss) - $short) ^ 2 < 1e-11"
cp short.txt twice.txt
ok "two files" "$BIRKHOFF" eval run --data short.txt twice.txt --json
equal "each ends with 256" "$(json tokens)" 67
printf '\377\376\300broken \200 utf-8\000 bytes' >bytes.txt
ok "bytes that are not UTF-8" "$BIRKHOFF" eval run --data bytes.txt --json
"$HELPER" bin stream.bin 2 1 2 3 4 5 6 7 8
ok "a stream" "$BIRKHOFF" eval run --data stream.bin --json
equal "has no bytes" "$(json bits_per_byte)" null
equal "its tokens" "$(json tokens)" 7
"$HELPER" bin wide.bin 4 1 2 3 4 5 6 7 8
ok "a wide stream" "$BIRKHOFF" eval run --data wide.bin --json --set data_dtype=uint32
equal "its tokens" "$(json tokens)" 7

# ---- the run's own window, width and split ----
ok "validated on all of its tenth" "$BIRKHOFF" train --model tiny --data data.txt --out own --steps 6 --batch-size 2 --seq-len 48 --set warmup_steps=0 eval_every=3 eval_tokens=0
val=$(tail -n 1 own/metrics.jsonl >last.json; json val_loss last.json)
ok "eval reads windows as training did" "$BIRKHOFF" eval own --data data.txt --split val
has "and says so" '^window  *48 tokens, as in training$' out
holds "the run's own val_loss, to the printed digits" "($(sed -n 's/^loss  *\([0-9.]*\) .*/\1/p' out) - $val) ^ 2 < 1e-12"
ok "as JSON" "$BIRKHOFF" eval own --data data.txt --split val --json
equal "its window" "$(json seq_len)" 48
holds "the run's own val_loss" "($(json loss) - $val) ^ 2 < 1e-13"
ok "another window" "$BIRKHOFF" eval own --data data.txt --split val --seq-len 32
has "which stands" '^window  *32 tokens, as asked for$' out
ok "by the recipe's key" "$BIRKHOFF" eval own --data data.txt --split val --set seq_len=40
has "which stands" '^window  *40 tokens, as asked for$' out
ok "no run" "$BIRKHOFF" eval a --data data.txt --split val
has "the model's longest" '^window  *1024 tokens, the model.s longest, at most 1024: no trainer_state.json tells what training took$' out
refused 2 '--seq-len 2000: the model takes at most 1024' "a window past the model's" "$BIRKHOFF" eval own --data data.txt --seq-len 2000
ok "gain takes it too" "$BIRKHOFF" gain own --data data.txt
has "and says so" ' in sequences of 48 (as in training), ' out
ok "gain of no run" "$BIRKHOFF" gain a --data data.txt --json
equal "all that the validation part has" "$(json seq_len)" 600
ok "gain, asked for" "$BIRKHOFF" gain own --data data.txt --seq-len 16
has "and says so" ' in sequences of 16 (as asked for), ' out
cp -r own torn
head -c 200 own/step-000006/trainer_state.json >torn/step-000006/trainer_state.json
refused 2 'trainer_state.json: line ' "a state that cannot be read" "$BIRKHOFF" eval torn --data data.txt
refused 2 'trainer_state.json: line ' "a state that cannot be read" "$BIRKHOFF" gain torn --data data.txt
ok "it is not needed for a window that is given" "$BIRKHOFF" eval torn --data data.txt --seq-len 48
ok "it is not needed for a window that is given" "$BIRKHOFF" gain torn --data data.txt --seq-len 48
"$HELPER" bin wide32.bin 4 $(awk 'BEGIN { for (i = 0; i < 400; i++) printf "%d ", i * 7 % 256 }')
ok "a stream of uint32" "$BIRKHOFF" train --model tiny --data wide32.bin --out own32 --steps 2 --batch-size 2 --seq-len 16 --set warmup_steps=0 data_dtype=uint32 eval_every=2 eval_tokens=0
val=$(tail -n 1 own32/metrics.jsonl >last.json; json val_loss last.json)
ok "its width and its tenth are the run's" "$BIRKHOFF" eval own32 --data wide32.bin --split val --json
equal "its tenth" "$(json tokens)" 39
holds "the run's own val_loss" "($(json loss) - $val) ^ 2 < 1e-13"
ok "the other nine" "$BIRKHOFF" eval own32 --data wide32.bin --split train --json
equal "the other nine" "$(json tokens)" 359
ok "all" "$BIRKHOFF" eval own32 --data wide32.bin --json
equal "all" "$(json tokens)" 399
ok "gain of its tenth" "$BIRKHOFF" gain own32 --data wide32.bin --split val --json
equal "windows of it" "$(json tokens)" 32
refused 2 'wide32.bin is a stream of uint32 tokens, not of uint16.*--set data_dtype=uint32' "another width" "$BIRKHOFF" eval own32 --data wide32.bin --set data_dtype=uint16
refused 2 'wide32.bin is a stream of uint32 tokens' "no run says it" "$BIRKHOFF" eval a --data wide32.bin
ok "no run says it" "$BIRKHOFF" eval a --data wide32.bin --set data_dtype=uint32 --split val --json
equal "the last tenth without a run" "$(json tokens)" 39
ok "an unsplit run" "$BIRKHOFF" train --model tiny --data wide32.bin --out whole32 --steps 1 --batch-size 2 --seq-len 16 --set warmup_steps=0 data_dtype=uint32 bin_validation=false
refused 2 'no tokens in the validation part.*with bin_validation=false a .bin file has none' "it has no validation part" "$BIRKHOFF" eval whole32 --data wide32.bin --split val
refused 2 'with bin_validation=false a .bin file has none' "it has no validation part" "$BIRKHOFF" gain whole32 --data wide32.bin --split val
ok "all is its training part" "$BIRKHOFF" eval whole32 --data wide32.bin --split train --json
equal "all is its training part" "$(json tokens)" 399
ok "gain of all" "$BIRKHOFF" gain whole32 --data wide32.bin --json
equal "gain of all" "$(json tokens)" 384

# ---- generate ----
ok generate "$BIRKHOFF" generate run --prompt "the lord " --max-tokens 40 --seed 3
cp out one
ok again "$BIRKHOFF" generate run --prompt "the lord " --max-tokens 40 --seed 3
same "the same seed, the same text" one out
ok "on one thread" "$BIRKHOFF" generate run --prompt "the lord " --max-tokens 40 --seed 3 --threads 1
same "the same text" one out
printf 'the lord ' | "$BIRKHOFF" generate run --prompt - --max-tokens 40 --seed 3 >out 2>err
same "a prompt from standard input" one out
ok "json" "$BIRKHOFF" generate run --prompt "the lord " --max-tokens 40 --seed 3 --json
holds "tokens" "$(json tokens) == $(wc -c <one)"
ok greedy "$BIRKHOFF" generate run --prompt "The lord and of he" --max-tokens 1 --temperature 0
cp out greedy
"$HELPER" tokens prompt.safetensors input_ids i32 1x18 $(printf 'The lord and of he' | od -An -v -tu1)
ok forward "$BIRKHOFF" forward run --tokens prompt.safetensors --out prompt_out.safetensors
best=$("$HELPER" values prompt_out.safetensors logits | tail -n 320 | awk -v v="$("$HELPER" tensor prompt_out.safetensors logits | sed 's/.*x//')" 'NR > 320 - v && (best == "" || $1 > best) { best = $1; at = NR - (320 - v) - 1 } END { print at }')
equal "greedy is the arg max of forward" "$(od -An -v -tu1 greedy | tr -d ' ')" "$best"
ok "an empty prompt" "$BIRKHOFF" generate run --prompt "" --max-tokens 3
ok "a long prompt" "$BIRKHOFF" generate run --prompt "$(cat short.txt)$(cat short.txt)$(cat short.txt)" --max-tokens 5 --temperature 0
refused 2 'max_position_embeddings' "too long" "$BIRKHOFF" generate run --prompt a --max-tokens 100000
text near_end.txt 1000
ok "as many tokens as fit" "$BIRKHOFF" generate run --prompt "$(cat near_end.txt)"
holds "as many tokens as fit" "$(wc -c <out) <= 24"
refused 2 '--prompt' "no prompt" "$BIRKHOFF" generate run
refused 2 'exactly one of' "two prompts" "$BIRKHOFF" generate run --prompt a --prompt-tokens 97

# ---- token ids: a model whose vocabulary is not the bytes ----
ok "ids of a byte model" "$BIRKHOFF" generate run --prompt-tokens 116,104,101,32,108,111,114,100,32 --max-tokens 40 --seed 3
mv out ids_out
ok "are the bytes of its text" "$BIRKHOFF" generate run --prompt "the lord " --max-tokens 40 --seed 3
equal "are the bytes of its text" "$(tr ',' '\n' <ids_out)" "$(od -An -v -tu1 out | tr -s ' ' '\n' | sed '/^$/d')"
ok init "$BIRKHOFF" init --model tiny --set vocab_size=5000 --out words
refused 2 'no byte\|vocabulary of its own' "text from a model that makes no text" "$BIRKHOFF" generate words --prompt "the lord" --max-tokens 40
has "says what would be right" '--prompt-tokens' err
refused 2 '--prompt-tokens' "the same as JSON" "$BIRKHOFF" generate words --prompt "the lord" --max-tokens 40 --json
ok "ids in, ids out" "$BIRKHOFF" generate words --prompt-tokens 4711,1,299 --max-tokens 12
equal "as many as asked for" "$(tr ',' '\n' <out | wc -l | tr -d ' ')" 12
equal "token 256 is one like any other" "$(tr ',' '\n' <out | awk '$1 < 0 || $1 >= 5000 || $1 != int($1)' | wc -l | tr -d ' ')" 0
printf '4711, 1\n299\n' | "$BIRKHOFF" generate words --prompt-tokens - --max-tokens 12 >piped
same "from standard input, any white space" out piped
ok "as JSON" "$BIRKHOFF" generate words --prompt-tokens 4711,1,299 --max-tokens 12 --json
equal "the same ids" "$(json ids | tr -d '[] ')" "$(cat piped)"
equal "their number" "$(json tokens)" 12
equal "and why it ended" "$(json finish_reason)" length
for bad in "" "," "1,x" "1,-2" "5000" "1.5" "99999999999999999999"; do refused 2 'prompt-tokens' "ids that are none: $bad" "$BIRKHOFF" generate words "--prompt-tokens=$bad"; done
printf '1,2\0,300' | "$BIRKHOFF" generate words --prompt-tokens - --max-tokens 2 >out 2>err
equal "a NUL among ids: status" $? 2
has "a NUL among ids" 'there is a NUL in it' err
first=$(cut -d, -f1 piped) third=$(cut -d, -f3 piped)
end_tokens() { sed "s/\"vocab_size\"/\"eos_token_id\": $1, \"vocab_size\"/" config.words >words/config.json; }
cp words/config.json config.words
end_tokens "$third"
ok "the end token of config.json" "$BIRKHOFF" generate words --prompt-tokens 4711,1,299 --max-tokens 12
equal "ends it" "$(cat out)" "$(cut -d, -f1-2 piped)"
refused 2 'vocabulary of its own.*eos_token_id' "with an end token of its own text is refused at once" "$BIRKHOFF" generate words --prompt "the lord"
end_tokens "[$third, $first]"
ok "several end tokens" "$BIRKHOFF" generate words --prompt-tokens 4711,1,299 --max-tokens 12 --json
equal "the first of them ends it" "$(json ids/#) $(json finish_reason)" "0 stop"
end_tokens null
ok "none" "$BIRKHOFF" generate words --prompt-tokens 4711,1,299 --max-tokens 12
same "goes on" out piped
finish

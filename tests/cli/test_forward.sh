#!/bin/sh
# birkhoff forward: against the fixtures of an independent implementation, and what it refuses.
. "$(dirname "$0")/lib.sh"

# worst_nmse REPORT: of the tensors that both files have
worst_nmse() { awk '$2 ~ /e[-+]/ && NF == 3 && $2 + 0 > worst + 0 { worst = $2 } END { print worst + 0 }' "$1"; }

for kind in plain plain_qlora hc mhc mhc_eps mhc_lite mhc_lite_n3 ihc kromhc; do
  f=$FIXTURES/$kind maps=--maps
  case $kind in plain*) maps= ;; esac
  ok "$kind on ref" "$BIRKHOFF" forward "$f" --tokens "$f/input.safetensors" --out $kind.safetensors --backward $maps --device ref --dtype fp64
  equal "$kind: fp64 outputs" "$("$HELPER" tensor $kind.safetensors logits | cut -d' ' -f1)" fp64
  ok compare "$BIRKHOFF" compare $kind.safetensors "$f/expected.safetensors"
  holds "$kind: logits, loss, gradients and maps on ref" "$(worst_nmse out) < 1e-24"
  equal "$kind: nothing is missing" "$(grep 'missing in a' out | grep -cv '^\(after\|route\)\.')" 0
  equal "$kind: nothing is too much" "$(grep -c 'missing in b' out)" 0
  ok "$kind on cpu" "$BIRKHOFF" forward "$f" --tokens "$f/input.safetensors" --out cpu.safetensors --backward $maps --device cpu --dtype fp32
  ok compare "$BIRKHOFF" compare cpu.safetensors $kind.safetensors --json
  holds "$kind: logits on cpu" "$(json tensors/tensor=logits/nmse) < 1e-11"
  holds "$kind: loss on cpu" "$(json tensors/tensor=loss/nmse) < 1e-12"
  equal "$kind: fp32 outputs" "$("$HELPER" tensor cpu.safetensors logits | cut -d' ' -f1)" fp32
done

# ---- keys and shapes ----
ok init "$BIRKHOFF" init --model tiny --out tiny
V=$(json vocab_size tiny/config.json) n=$(json hc_mult tiny/config.json) S=$((2 * $(json num_hidden_layers tiny/config.json)))
"$HELPER" tokens ids.safetensors input_ids i64 2x5 1 2 3 4 5 6 7 8 9 10
ok forward "$BIRKHOFF" forward tiny --tokens ids.safetensors --out o.safetensors --backward --maps --json
equal logits "$("$HELPER" tensor o.safetensors logits)" "fp32 2x5x$V"
equal loss "$("$HELPER" tensor o.safetensors loss)" "fp32 1"
equal "maps.pre" "$("$HELPER" tensor o.safetensors maps.pre)" "fp32 ${S}x2x5x$n"
equal "maps.post" "$("$HELPER" tensor o.safetensors maps.post)" "fp32 ${S}x2x5x$n"
equal "maps.res" "$("$HELPER" tensor o.safetensors maps.res)" "fp32 ${S}x2x5x${n}x$n"
equal "a gradient per weight but the router's bias" "$(json tensors)" $((5 + $("$BIRKHOFF" compare --json tiny tiny >t.json; json tensors/# t.json) - 2))
equal "an unused expert has zeros" "$("$HELPER" values o.safetensors grad.model.layers.1.mlp.experts.0.down_proj.weight | wc -l | tr -d ' ')" \
  "$("$HELPER" values tiny/model.safetensors model.layers.1.mlp.experts.0.down_proj.weight | wc -l | tr -d ' ')"
holds "rows of maps.res add up to 1" "$("$HELPER" values o.safetensors maps.res | awk -v n="$n" '{ s += $1 } NR % n == 0 { d = s - 1; if (d * d > worst) worst = d * d; s = 0 } END { print worst + 0 }') < 1e-11"
equal "loss is what it prints" "$(printf '%.5f' "$("$HELPER" values o.safetensors loss)")" "$(printf '%.5f' "$(json loss)")"
equal "kept targets" "$(json targets)" 8
ok "ihc" "$BIRKHOFF" init --model tiny --out ihc --set residual=ihc
ok "ihc maps" "$BIRKHOFF" forward ihc --tokens ids.safetensors --out i.safetensors --maps
equal "are the identity" "$("$HELPER" values i.safetensors maps.res | sort -u | tr '\n' ' ')" "0 1 "
cp o.safetensors before.safetensors
ok "again, with recompute" "$BIRKHOFF" forward tiny --tokens ids.safetensors --out o.safetensors --backward --maps --set hc_recompute=2 recompute=all
same "the same bits" before.safetensors o.safetensors
absent "no temporary file" o.safetensors.tmp

# ---- targets ----
"$HELPER" tokens default.safetensors input_ids i32 2x5 1 2 3 4 5 6 7 8 9 10 , targets i32 2x5 2 3 4 5 -100 7 8 9 10 -100
ok "the default targets, given" "$BIRKHOFF" forward tiny --tokens default.safetensors --out d.safetensors --backward --maps
same "the same file" o.safetensors d.safetensors
"$HELPER" tokens one.safetensors input_ids i32 1x5 1 2 3 4 5 , targets i64 1x5 -100 -100 9 -100 -100
ok "one target" "$BIRKHOFF" forward tiny --tokens one.safetensors --out one_out.safetensors --json
equal "one is kept" "$(json targets)" 1
"$HELPER" values one_out.safetensors logits | awk -v v="$V" -v loss="$(json loss)" 'NR > 2 * v && NR <= 3 * v { x[NR - 2 * v - 1] = $1 }
  END { for (i = 0; i < v; i++) s += exp(x[i]); d = log(s) - x[9] - loss; print (d * d < 1e-9 ? "yes" : "no " d) }' >t
equal "its loss from the logits" "$(cat t)" yes

# ---- refused ----
bad() { refused 2 "$1" "$2" "$BIRKHOFF" forward tiny --tokens t.safetensors --out bad.safetensors; }
"$HELPER" tokens t.safetensors input_ids i32 1x3 1 "$V" 3; bad "input_ids\[0\]\[1\] is $V" "an id past the vocabulary"
"$HELPER" tokens t.safetensors input_ids i64 1x3 1 -1 3; bad 'input_ids\[0\]\[1\] is -1' "a negative id"
"$HELPER" tokens t.safetensors input_ids i64 1x3 1 4294967297 3; bad 'is 4294967297' "an id past 32 bits"
"$HELPER" tokens t.safetensors input_ids fp32 1x3 1 2 3; bad 'dtype F32, expected I32 or I64' "ids that are floats"
"$HELPER" tokens t.safetensors input_ids i32 3 1 2 3; bad '1 dimensions' "ids in one dimension"
"$HELPER" tokens t.safetensors input_ids i32 0x3; bad 'no usable number of tokens' "no ids"
"$HELPER" tokens t.safetensors ids i32 1x3 1 2 3; bad 'input_ids is missing' "no input_ids"
"$HELPER" tokens t.safetensors input_ids i32 1x3 1 2 3 , targets i32 1x2 2 3; bad 'targets is \[1,2\]' "targets of another shape"
"$HELPER" tokens t.safetensors input_ids i32 1x3 1 2 3 , targets i32 1x3 2 -7 3; bad 'targets\[0\]\[1\] is -7' "a negative target"
"$HELPER" tokens t.safetensors input_ids i32 1x3 1 2 3 , targets i32 1x3 -100 -100 -100; bad 'no target is kept' "no target"
"$HELPER" tokens t.safetensors input_ids i32 2x1 1 2; bad 'no target is kept' "sequences of one token"
"$HELPER" tokens t.safetensors input_ids i32 1x100000 $(awk 'BEGIN { for (i = 0; i < 100000; i++) printf "1 " }'); bad 'max_position_embeddings' "a sequence that is too long"
absent "nothing is written" bad.safetensors
ok plain "$BIRKHOFF" init --model tiny --out plain --set residual=plain
refused 2 'plain has no maps' "maps of plain" "$BIRKHOFF" forward plain --tokens ids.safetensors --out bad.safetensors --maps
refused 1 'data.txt/out.safetensors' "a folder that cannot be" sh -c "echo x >data.txt; exec '$BIRKHOFF' forward tiny --tokens ids.safetensors --out data.txt/out.safetensors"
refused 1 'none.safetensors' "no input" "$BIRKHOFF" forward tiny --tokens none.safetensors --out bad.safetensors
finish

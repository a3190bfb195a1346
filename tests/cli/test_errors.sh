#!/bin/sh
# Bad input: exit status, one message that says what is wrong and what would be right, nothing written.
. "$(dirname "$0")/lib.sh"
text data.txt 3000
train() { pattern=$1 name=$2; shift 2; refused 2 "$pattern" "$name" "$BIRKHOFF" train --model tiny --data data.txt --out no --steps 1 --batch-size 1 --seq-len 16 "$@"; }
ok init "$BIRKHOFF" init --model tiny --out tiny

# ---- options and keys ----
train 'hc_mul.*hc_mult' "an unknown key: the nearest" --set hc_mul=4
train 'warmup_step.*warmup_steps' "an unknown recipe key" --set warmup_step=4
train 'hc_mult' "no streams" --set hc_mult=0
train 'hc_mult must be .*, not empty' "no value" --set hc_mult=
train 'hc_mult' "nine streams" --set hc_mult=9
train 'hc_mult' "six streams of mhc_lite" --set residual=mhc_lite hc_mult=6
train 'hc_mult' "a number that is none" --set hc_mult=four
train 'hc_sinkhorn_iters' "no iterations" --set hc_sinkhorn_iters=0
train 'residual.*plain' "an unknown connection" --set residual=mhcc
train 'KEY=VALUE\|hc_mult' "a key without a value" --set hc_mult
train 'num_experts_per_tok' "top-k above the experts" --set num_experts_per_tok=9
train 'n_group' "experts that do not divide" --set n_routed_experts=6 n_group=4
train 'n_group\|n_routed_experts' "one expert a group" --set n_group=8
train 'topk_group' "more groups kept than there are" --set n_group=2 topk_group=3
train 'qk_rope_head_dim' "an odd rotary width" --set qk_rope_head_dim=7
train 'micro_batch_size' "micro-batches that do not divide" --set micro_batch_size=2
train 'lr' "a rate below 0" --lr -1
train 'steps' "no steps" --steps 0
train 'seed' "a seed below 0" --seed -3
train 'max_position_embeddings' "positions past the model's" --seq-len 100000
train 'expected fp32' "an unknown dtype" --dtype fp16
train 'fp64' "fp64 on cpu" --dtype fp64 --device cpu
train 'threads' "no threads" --threads 0
absent "nothing is written" no
refused 2 'devices that are there: .*ref.*cpu\|devices that are there: .*cpu.*ref' "an unknown device: those that are there" "$BIRKHOFF" plan --model tiny --device gpu
refused 1 'cuda backend is not installed; devices that are there: ' "a backend whose module is not installed" env BIRKHOFF_BACKEND_DIR="$W" "$BIRKHOFF" plan --model tiny --device cuda:0
refused 2 '--out' "no --out" "$BIRKHOFF" train --model tiny --data data.txt
refused 2 'exactly one of' "no model" "$BIRKHOFF" train --data data.txt --out no
refused 2 '--data' "no data" "$BIRKHOFF" train --model tiny --out no

# ---- data ----
: >empty.txt
refused 2 'empty.txt' "empty data" "$BIRKHOFF" train --model tiny --data empty.txt --out no
: >empty.bin
refused 2 'empty.bin' "an empty stream" "$BIRKHOFF" eval tiny --data empty.bin
text short.txt 40
refused 2 'seq_len\|sequence' "a sequence longer than the data" "$BIRKHOFF" train --model tiny --data short.txt --out no --seq-len 64
"$HELPER" bin big.bin 2 1 2 3 60000 5 6
refused 2 'big.bin.*60000\|60000.*big.bin' "a token past the vocabulary" "$BIRKHOFF" eval tiny --data big.bin
printf '\001\000\002' >odd.bin
refused 2 'odd.bin' "half a token" "$BIRKHOFF" eval tiny --data odd.bin
refused 1 'none.txt' "no such file" "$BIRKHOFF" eval tiny --data none.txt
refused 2 'vocab_size\|260\|token 256' "text needs the end token" "$BIRKHOFF" train --model tiny --data data.txt --out no --set vocab_size=200

# ---- files of another kind, by their contents ----
wrong() { # PATTERN NAME FILE: as data of train and eval
  refused 2 "$1" "$2" "$BIRKHOFF" train --model tiny --data "$3" --out no --steps 1 --batch-size 1 --seq-len 16
  refused 2 "$1" "$2" "$BIRKHOFF" eval tiny --data "$3"
}
gzip -c data.txt >data.txt.gz
wrong 'data.txt.gz is a gzip archive; unpack it first (gunzip)' "a packed text" data.txt.gz
cp data.txt.gz packed.bin
wrong 'packed.bin is a gzip archive' "a packed stream" packed.bin
tar -cf data.tar data.txt
wrong 'data.tar is a tar archive' "an archive" data.tar
printf '\223NUMPY\001\000\166\000{"descr": "<u2"}' >ids.npy
wrong 'ids.npy is a NumPy array (.npy).*tofile("NAME.bin")' "an array" ids.npy
wrong 'model.safetensors is a safetensors file; it holds a model.s weights' "weights" tiny/model.safetensors
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n' >lfs.txt
wrong 'lfs.txt is a pointer of Git LFS.*git lfs pull' "a pointer" lfs.txt
"$HELPER" bin llmc.bin 4 20240520 1 200 $(awk 'BEGIN { for (i = 0; i < 253; i++) printf "0 "; for (i = 0; i < 100; i++) printf "%d ", (i * 7 % 256) * 65537 }')
wrong 'llmc.bin is a token file of llm.c.*says 200 tokens of uint16; cut the header off: tail -c +1025' "a header of llm.c" llmc.bin
tail -c +1025 llmc.bin >cut.bin
ok "cut off as was said" "$BIRKHOFF" eval tiny --data cut.bin --json
equal "its tokens" "$(json tokens)" 199
cp data.txt named.bin
wrong 'named.bin is text; under a name that does not end in .bin its bytes are the tokens' "a text named .bin" named.bin
"$HELPER" bin wide.bin 4 $(awk 'BEGIN { for (i = 0; i < 200; i++) printf "%d ", i % 250 + 1 }')
wrong 'wide.bin is a stream of uint32 tokens, not of uint16.*--set data_dtype=uint32' "a stream of uint32" wide.bin
refused 2 'wide.bin is a stream of uint32 tokens' "in spite of the setting" "$BIRKHOFF" eval tiny --data wide.bin --set data_dtype=uint16
ok "as was said" "$BIRKHOFF" eval tiny --data wide.bin --set data_dtype=uint32
"$HELPER" bin wider.bin 8 $(awk 'BEGIN { for (i = 0; i < 200; i++) printf "%d ", i % 250 + 1 }')
wrong 'wider.bin is a stream of 64-bit integers, not of uint16' "a stream of int64" wider.bin
refused 2 'wider.bin is a stream of 64-bit integers, not of uint32' "as uint32" "$BIRKHOFF" eval tiny --data wider.bin --set data_dtype=uint32
"$HELPER" bin tokens.dat 2 $(awk 'BEGIN { for (i = 0; i < 200; i++) printf "%d ", i * 7 % 256 }')
wrong 'tokens.dat is not text.*a name that ends in .bin' "a stream under another name" tokens.dat

# ---- no regular files: none of these may wait, or be taken for an empty one ----
mkfifo fifo
wrong 'fifo is not a regular file but a pipe' "a pipe with a name" fifo
wrong '/dev/null is not a regular file' "a device" /dev/null
sh -c 'cat data.txt | "$1" eval tiny --data /dev/stdin' sh "$BIRKHOFF" >out 2>err
equal "a pipe on standard input" $? 2
has "a pipe on standard input" '/dev/stdin is not a regular file' err
if command -v bash >/dev/null 2>&1; then
  bash -c '"$1" eval tiny --data <(cat data.txt)' bash "$BIRKHOFF" >out 2>err
  equal "the output of a command" $? 2
  has "the output of a command" '/dev/fd/[0-9]* is not a regular file' err
fi
absent "nothing is written" no

# ---- folders ----
refused 1 'data.txt' "a folder below a file" "$BIRKHOFF" train --model tiny --data data.txt --out data.txt/run --steps 1 --batch-size 1 --seq-len 16
refused 1 'data.txt' "init below a file" "$BIRKHOFF" init --model tiny --out data.txt/c
refused 1 '/proc' "a folder that nobody may write" "$BIRKHOFF" init --model tiny --out /proc/birkhoff-test
refused 1 'none' "no such checkpoint" "$BIRKHOFF" eval none --data data.txt
refused 2 'data.txt' "a file is no checkpoint" "$BIRKHOFF" eval data.txt --data data.txt
mkdir hollow
refused 2 'hollow' "an empty folder" "$BIRKHOFF" eval hollow --data data.txt

# ---- config.json ----
config() { # PATTERN NAME SED-EXPRESSION
  mkdir -p cfg
  sed "$3" tiny/config.json >cfg/config.json
  refused 2 "$1" "$2" "$BIRKHOFF" plan --model cfg/config.json
}
sed 's/"vocab_size"/"my_key": 1, "vocab_size"/' tiny/config.json >unknown.json
warned 'my_key' "an unknown key in config.json" "$BIRKHOFF" plan --model ./unknown.json
config 'rope_scaling' "rope scaling" 's/"vocab_size"/"rope_scaling": {"type": "yarn", "factor": 4}, "vocab_size"/'
config 'tie_word_embeddings' "tied embeddings" 's/"tie_word_embeddings": false/"tie_word_embeddings": true/'
config 'quantization_config' "quantization" 's/"vocab_size"/"quantization_config": {"bits": 8}, "vocab_size"/'
config 'hidden_act' "another activation" 's/"hidden_act": "silu"/"hidden_act": "gelu"/'
config 'hidden_size' "a size that is a string" 's/"hidden_size": \([0-9]*\)/"hidden_size": "\1"/'
config 'hidden_size' "a size that is a fraction" 's/"hidden_size": \([0-9]*\)/"hidden_size": \1.5/'
config 'config.json' "no JSON" 's/{/[/'
cp lfs.txt cfg/config.json
refused 2 'not JSON: it is a pointer of Git LFS.*git lfs pull' "a pointer" "$BIRKHOFF" plan --model cfg/config.json
config 'duplicate\|vocab_size' "a key twice" 's/"vocab_size"/"vocab_size": 300, "vocab_size"/'
config 'model_type "llama": another architecture.*must be deepseek_v3 or birkhoff' "another model_type" 's/"model_type": "[a-z0-9_]*"/"model_type": "llama"/'
config 'architectures with "LlamaForCausalLM"' "other architectures" 's/"architectures": \[[^]]*\]/"architectures": ["LlamaForCausalLM"]/'
config 'missing: kv_lora_rank; add' "no name, and a key too few" '/"model_type"\|"architectures"\|"kv_lora_rank"/d'
config 'num_nextn_predict_layers must be' "a number of further layers that is none" 's/"num_nextn_predict_layers": 0/"num_nextn_predict_layers": -1/'
config 'eos_token_id must be' "an end token that is a text" 's/"vocab_size"/"eos_token_id": "end", "vocab_size"/'
cat >llama.json <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000}
END
refused 2 'llama.json: model_type "llama" and architectures with "LlamaForCausalLM"' "a Llama" "$BIRKHOFF" plan --model llama.json
sed '/"model_type"\|"architectures"/d' tiny/config.json >nameless.json
ok "no name, but all that the family has" "$BIRKHOFF" plan --model ./nameless.json
printf '\357\273\277' | cat - tiny/config.json >mark.json
ok "a byte order mark" "$BIRKHOFF" plan --model ./mark.json
sed 's/"num_nextn_predict_layers": 0/"num_nextn_predict_layers": 1, "eos_token_id": [1, 2]/' tiny/config.json >further.json
warned 'multi-token prediction layer, whose tensors' "further layers" "$BIRKHOFF" plan --model ./further.json
"$BIRKHOFF" init --model ./further.json --out further 2>/dev/null
equal "end tokens are kept" "$(sed -n 's/.*"eos_token_id": \(.*[^,]\),*$/\1/p' further/config.json)" "[1, 2]"
equal "further layers are not" "$(json num_nextn_predict_layers further/config.json)" 0
# every reason at once, a line for each
sed 's/"vocab_size"/"quantization_config": {"quant_method": "fp8"}, "rope_scaling_": 1, "vocab_size"/; s/"rope_scaling": null/"rope_scaling": {"type": "yarn", "factor": 40}/; s/"hidden_size": [0-9]*/"hidden_size": 0/' \
  tiny/config.json >three.json
"$BIRKHOFF" plan --model ./three.json >out 2>err </dev/null
equal "every reason: the exit status" $? 2
equal "every reason: no result" "$(cat out)" ""
equal "every reason: their number" "$(grep -c 'birkhoff: error: ./three.json: ' err)" 3
equal "every reason: nothing else" "$(wc -l <err | tr -d ' ')" 3
for reason in quantization_config 'rope_scaling: type must be default, not yarn' 'hidden_size must be'; do has "every reason" "$reason" err; done

# ---- checkpoints ----
cp -r tiny other
sed 's/"hidden_size": [0-9]*/"hidden_size": 32/' tiny/config.json >other/config.json
refused 2 'shape' "weights of another shape" "$BIRKHOFF" eval other --data data.txt
sed 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 2/' tiny/config.json >other/config.json
refused 2 'does not belong' "weights too many" "$BIRKHOFF" eval other --data data.txt
sed 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 4/' tiny/config.json >other/config.json
refused 2 'missing' "weights too few" "$BIRKHOFF" eval other --data data.txt

# ---- hostile safetensors ----
hostile() { refused 2 "$1" "$2" "$BIRKHOFF" forward tiny --tokens h.safetensors --out no.safetensors; }
# header JSON DATA-BYTES: 8 bytes of length, header, zeros
header() {
  length=${#1}
  printf "\\$(printf %03o $((length % 256)))\\$(printf %03o $((length / 256)))\000\000\000\000\000\000" >h.safetensors
  printf '%s' "$1" >>h.safetensors
  head -c "$2" /dev/zero >>h.safetensors
}
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]}}' 12
ok "the form that is right" "$BIRKHOFF" forward tiny --tokens h.safetensors --out yes.safetensors
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]}}' 8; hostile 'input_ids\|h.safetensors' "truncated"
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]}}' 20; hostile 'h.safetensors' "trailing bytes"
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[0,16]}}' 16; hostile 'input_ids' "offsets that disagree with the shape"
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[12,0]}}' 12; hostile 'input_ids' "offsets in reverse"
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[4,16]}}' 16; hostile 'input_ids\|h.safetensors' "a hole"
header '{"input_ids":{"dtype":"I32","shape":[-1,-3],"data_offsets":[0,12]}}' 12; hostile 'input_ids' "a negative size"
header '{"input_ids":{"dtype":"I32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}' 0; hostile 'input_ids' "a size that overflows"
header '{"input_ids":{"dtype":"I99","shape":[1,3],"data_offsets":[0,12]}}' 12; hostile 'input_ids' "an unknown dtype"
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]},"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[12,24]}}' 24; hostile 'input_ids\|duplicate' "a name twice"
header '{"input_ids":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]},"b":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]}}' 12; hostile 'overlap\|input_ids\|tensor b' "two in one place"
header '{"input_ids":' 12; hostile 'h.safetensors' "no JSON"
printf '\377\377\377\377\377\377\377\377{}' >h.safetensors; hostile 'h.safetensors' "a header longer than the file"
cp lfs.txt h.safetensors; hostile 'not a safetensors file: it is a pointer of Git LFS' "a pointer"
printf 'abc' >h.safetensors; hostile 'h.safetensors' "three bytes"
: >h.safetensors; hostile 'h.safetensors' "no bytes"
cp -r tiny cut
head -c 1000 tiny/model.safetensors >cut/model.safetensors
refused 2 'cut/model.safetensors' "a checkpoint cut short" "$BIRKHOFF" eval cut --data data.txt
absent "nothing is written" no.safetensors
finish

#!/bin/sh
# birkhoff gain, verify, compare, plan, devices, bench; help and version.
. "$(dirname "$0")/lib.sh"
text data.txt 6000
small="--model tiny --batch-size 2 --seq-len 32 --data data.txt --set warmup_steps=0"

# ---- plan: the paper's table ----
plan() {
  ok "plan $1" "$BIRKHOFF" plan --model "$1" --json
  holds "$1: total" "$(json parameters_total) > $2 * 0.999 && $(json parameters_total) < $2 * 1.005"
  holds "$1: active" "$(json parameters_active) > $3 * 0.995 && $(json parameters_active) < $3 * 1.005"
  ok "plan $1" "$BIRKHOFF" plan --model "$1"
  has "$1: in words" "$4 total, $5 active" out
}
plan mhc-3b 2.97e9 612e6 2.97B 612M
plan mhc-9b 9.18e9 1.66e9 9.18B 1.66B
plan mhc-27b 27.0e9 4.14e9 27.0B 4.14B
ok "plan tiny" "$BIRKHOFF" plan --model tiny --json --batch-size 2 --seq-len 32
ok "init tiny" "$BIRKHOFF" init --model tiny --out first
"$BIRKHOFF" plan --model tiny --json --batch-size 2 --seq-len 32 >plan.json
for class in weights gradients optimizer activations workspace; do holds "bytes of $class" "$(json bytes/$class plan.json) > 0"; done
holds "weights hold the parameters" "$(json bytes/weights plan.json) >= 4 * $(json parameters_total plan.json)"
holds "so do the gradients" "$(json bytes/gradients plan.json) >= 4 * ($(json parameters_total plan.json) - 1000)"
holds "flops" "$(json flops_per_token plan.json) > 6 * $(json parameters_active plan.json) * 0.5"
ok "dry run" "$BIRKHOFF" train $small --out dry --steps 1 --dry-run --json --set eval_every=0
for class in weights gradients optimizer activations; do equal "train --dry-run plans the same $class" "$(json bytes/$class)" "$(json bytes/$class plan.json)"; done
ok "half the micro-batch" "$BIRKHOFF" plan --model tiny --json --batch-size 2 --seq-len 32 --set micro_batch_size=1
holds "takes less" "$(json bytes/activations) < $(json bytes/activations plan.json)"
equal "nothing inside F is recomputed" "$(json recompute plan.json)" none
for what in attention experts all; do
  ok "recompute=$what" "$BIRKHOFF" plan --model tiny --json --batch-size 2 --seq-len 32 --set recompute=$what
  equal "recompute=$what is said" "$(json recompute)" $what
  holds "recompute=$what keeps less" "$(json bytes/activations) < $(json bytes/activations plan.json) * 0.9"
done
ok "in words" "$BIRKHOFF" plan --model tiny --set recompute=all
has "a line of it" '^recompute  *all$' out
refused 2 'recompute must be one of none, attention, experts, all, not some' "a setting that is none" "$BIRKHOFF" plan --model tiny --set recompute=some
ok "bf16" "$BIRKHOFF" plan --model tiny --json --batch-size 2 --seq-len 32 --dtype bf16
holds "smaller weights" "$(json bytes/weights) < $(json bytes/weights plan.json)"
holds "and masters" "$(json bytes/masters) > 0"
refused 2 'preset' "an unknown preset" "$BIRKHOFF" plan --model tine
refused 2 'micro_batch_size (5) is above batch_size' "micro-batches larger than the batch" "$BIRKHOFF" plan --model tiny --batch-size 4 --set micro_batch_size=5

# ---- plan --schedule ----
ok "a schedule" "$BIRKHOFF" plan --schedule dualpipe --pp 8 --micro 20 --json
equal "its first rank" "$(json ranks/0 | cut -c1-23)" "0F0 0F1 0F2 0F3 0F4 0F5"
equal "its bubble" "$(json bubble)" "6.0"
equal "its peak" "$(json peak_activations/7)" 9
cp out mine.json
ok "read back" "$BIRKHOFF" plan --schedule mine.json --json
if cmp -s out mine.json; then pass; else fail "a schedule read back is another one" out; fi
ok "costs" "$BIRKHOFF" plan --schedule mine.json --costs F=2,B=4,W=2 --json
equal "twice the time" "$(json bubble)" "12.0"
ok "in words" "$BIRKHOFF" plan --schedule zb1p --pp 4 --micro 8
has "its time" '^time  *27$' out
has "and a row a rank" '^  *3 3  *8  *0  *8  *8  *0  *4  *24  *3$' out
refused 2 'did you mean zb1p' "an unknown schedule" "$BIRKHOFF" plan --schedule zb1 --pp 4 --micro 8
refused 2 '16 for 8 ranks; there are 10' "too few micro-batches" "$BIRKHOFF" plan --schedule dualpipe --pp 8 --micro 10
refused 2 'needs --pp P and --micro M' "no sizes" "$BIRKHOFF" plan --schedule 1f1b
refused 2 'the schedule in mine.json has 8 ranks' "the sizes of a file" "$BIRKHOFF" plan --schedule mine.json --pp 4
refused 2 'has a meaning with --schedule alone' "a size without a schedule" "$BIRKHOFF" plan --model tiny --pp 4
refused 2 'W=3 must not be above B=2' "costs that cannot be" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 2 --costs W=3
refused 2 'is planned without a model' "a schedule and a model" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 2 --model tiny
sed 's/ 0W9"/"/' mine.json >broken.json
refused 2 'rank 0: micro-batch 9 has no W on chunk 0' "a list without a W" "$BIRKHOFF" plan --schedule broken.json
refused 1 'cannot open nowhere.json' "a schedule that is not there" "$BIRKHOFF" plan --schedule nowhere.json

# ---- devices ----
ok devices "$BIRKHOFF" devices --json
for d in ref cpu; do
  equal "$d is there" "$(json name=$d/status)" ok
  equal "$d: no reason" "$(json name=$d/reason)" null
  holds "$d: memory" "$(json name=$d/memory) > 1e6"
done
equal "cpu is the default" "$(json name=cpu/default)" true
ok "devices" "$BIRKHOFF" devices
has "in words" '^cpu .* ok .*(default)' out
has "and the transports" '^transport self  *ok ' out
ok "transports alone" "$BIRKHOFF" devices --transports
if grep -q '^cpu' out; then fail "no device among transports" out; else pass; fi
ok "transports as JSON" "$BIRKHOFF" devices --transports --json
for t in self threads; do equal "$t can be used" "$(json name=$t/status)" ok; done
mkdir modules
BIRKHOFF_BACKEND_DIR=$W/modules "$BIRKHOFF" devices --transports --json >out 2>err
equal "no module of mpi" "$(json name=mpi/status)" absent
equal "what it would be is not known" "$(json name=mpi/description)" null
if [ -s err ]; then fail "an absent transport is no warning" err; else pass; fi
echo "no module" >modules/birkhoff_broken.so
if ! BIRKHOFF_BACKEND_DIR=$W/modules "$BIRKHOFF" devices 2>/dev/null | grep -q broken; then
  skipped=$((skipped + 1)) # built without loadable backends
else
  BIRKHOFF_BACKEND_DIR=$W/modules "$BIRKHOFF" devices --json >out 2>err
  equal "a broken module is refused" "$(json name=birkhoff_broken.so/status)" refused
  has "with a warning" 'birkhoff: warning: .*birkhoff_broken.so' err
fi

# ---- gain ----
ok train "$BIRKHOFF" train $small --out mhc --steps 6 --lr 0.01
ok gain "$BIRKHOFF" gain mhc --data data.txt --json --svg gain.svg --seq-len 64
equal "a row per sublayer" "$(json sublayers/#)" 6
equal "and composite" "$(json composite/#)" 6
equal "whole windows of the last tenth" "$(json tokens)" 576
for i in 0 1 2 3 4 5; do
  holds "single maps: rows add up to 1" "($(json sublayers/$i/forward) - 1) ^ 2 < 1e-12"
  holds "single maps: no column above the mean's maximum" "$(json sublayers/$i/backward) <= $(json sublayers/$i/backward_max)"
done
holds "composite forward is 1" "($(json composite/5/forward) - 1) ^ 2 < 1e-12"
equal "the first composite is the first map" "$(json composite/0/forward)" "$(json sublayers/0/forward)"
equal "the last composite backward is the last map" "$(json composite/5/backward)" "$(json sublayers/5/backward)"
has "an SVG" '^<svg xmlns=' gain.svg
has "that ends" '^</svg>$' gain.svg
equal "as many texts opened as closed" "$(grep -o '<text' gain.svg | wc -l)" "$(grep -o '</text>' gain.svg | wc -l)"
equal "four curves" "$(grep -c '<polyline' gain.svg)" 4
if command -v xmllint >/dev/null 2>&1; then ok "well formed" xmllint --noout gain.svg; fi
ok "most tokens" "$BIRKHOFF" gain mhc --data data.txt --json --seq-len 64 --tokens 128
equal "most tokens" "$(json tokens)" 128
ok "as a table" "$BIRKHOFF" gain mhc --data data.txt --seq-len 64
equal "a line per sublayer" "$(grep -c '^ *[0-9]* \(attn\|ffn\)' out)" 6
for residual in plain ihc; do
  ok "train $residual" "$BIRKHOFF" train $small --out $residual --steps 2 --set residual=$residual
  ok "gain of $residual" "$BIRKHOFF" gain $residual --data data.txt --json --seq-len 64
  equal "$residual is exactly 1" "$(json sublayers/3/forward) $(json sublayers/3/backward_max) $(json composite/5/forward_max) $(json composite/0/backward)" "1.0 1.0 1.0 1.0"
done
ok "as many streams as there are" "$BIRKHOFF" gain plain --data data.txt --seq-len 64
has "plain has one" 'residual plain, 1 stream$' out
ok "the map of one stream" "$BIRKHOFF" gain plain --data data.txt --seq-len 64 --json
equal "is a number" "$(json mean_composite)" "[[1.0]]"
ok "train hc" "$BIRKHOFF" train $small --out hc --steps 6 --lr 0.01 --set residual=hc
ok "gain of hc" "$BIRKHOFF" gain hc --data data.txt --json --seq-len 64 --svg hc.svg
holds "hc is not bounded" "$(json composite/5/forward) > 1.001 || $(json composite/5/forward) < 0.999"
# ---- gain of several runs ----
ok "train a deeper one" "$BIRKHOFF" train $small --out deep --steps 2 --set num_hidden_layers=5
ok "gain of three" "$BIRKHOFF" gain hc mhc deep --data data.txt --json --seq-len 64 --svg both.svg
equal "three runs" "$(json runs/#)" 3
equal "under their names" "$(json runs/0/run) $(json runs/1/run) $(json runs/2/run)" "hc mhc deep"
equal "with their kinds" "$(json runs/0/residual) $(json runs/1/residual) $(json runs/2/residual)" "hc mhc mhc"
equal "and depths" "$(json runs/0/composite/#) $(json runs/1/composite/#) $(json runs/2/composite/#)" "6 6 10"
several=$(json runs/0/total_backward)
ok "hc alone" "$BIRKHOFF" gain hc --data data.txt --json --seq-len 64
equal "the same numbers as alone" "$several" "$(json total_backward)"
equal "one run has no list and no name" "$(grep -c '"runs*"' out)" 0
equal "two curves for each run" "$(grep -c '<polyline' both.svg)" 6
equal "as many points as sublayers" "$(sed -n 's/.*points="//p' both.svg | tr -cd ',\n' | awk '{ print length }' | paste -sd ' ' -)" "6 6 6 6 10 10"
for label in hc mhc deep; do has "the legend has $label" ">$label</text>" both.svg; done
has "its residual connection and gains" '>10 sublayers, forward 1, backward [0-9.]*</text>' both.svg
equal "as many texts opened as closed" "$(grep -o '<text' both.svg | wc -l)" "$(grep -o '</text>' both.svg | wc -l)"
if command -v xmllint >/dev/null 2>&1; then ok "well formed" xmllint --noout both.svg; fi
ok "as tables" "$BIRKHOFF" gain hc mhc --data data.txt --seq-len 64
equal "each under its name" "$(grep -c -x 'hc:\|mhc:' out)" 2
equal "and a line for each" "$(grep -c '^m*hc  *6  *[0-9.]*  *[0-9.]*  m*hc$' out)" 2
ok "train with another window" "$BIRKHOFF" train $small --out short --steps 1 --seq-len 16
warned 'sequences of 32, short on 592 in sequences of 16; --seq-len and --split' "other windows" "$BIRKHOFF" gain mhc short --data data.txt
cp -r mhc 'a long name & more of it <which> no legend has room for'
ok "any name" "$BIRKHOFF" gain hc 'a long name & more of it <which> no legend has room for' --data data.txt --seq-len 64 --svg named.svg
has "is cut and escaped" '>[.][.][.]ore of it &lt;which&gt; no legend has room for</text>' named.svg
refused 2 'mhc is given twice' "the same run twice" "$BIRKHOFF" gain mhc hc mhc --data data.txt
refused 2 '9 checkpoints are given, it takes at most 8' "more than there are colours" "$BIRKHOFF" gain 1 2 3 4 5 6 7 8 9 --data data.txt
refused 1 'nowhere' "one that is not there" "$BIRKHOFF" gain mhc nowhere --data data.txt --svg none.svg
absent "nothing is drawn then" none.svg
refused 2 '--data' "no data" "$BIRKHOFF" gain mhc
refused 1 'data.txt/g.svg' "an SVG that cannot be" "$BIRKHOFF" gain mhc --data data.txt --svg data.txt/g.svg --seq-len 64

# ---- verify ----
for residual in $(kinds); do
  ok "verify $residual" "$BIRKHOFF" verify tiny --device cpu --set residual=$residual --seq-len 24 --json
  equal "$residual: no failures" "$(grep -c '"pass": false' out)" 0
  holds "$residual: logits, loss, choices, gradients, steps" "$(json '#') > 150"
  equal "$residual: same choices" "$(json tensor=choices/nmse)" 0.0
done
holds "not the same bits: it did run twice" "$(json tensor=logits/nmse) > 0"
ok "verify in bf16" "$BIRKHOFF" verify tiny --device cpu --dtype bf16 --seq-len 24 --seed 3
has "counts" '^\([0-9]*\) of \1 within' out
ok "verify a run" "$BIRKHOFF" verify mhc --device cpu --seq-len 24
ok "ref against itself" "$BIRKHOFF" verify tiny --device ref --seq-len 8 --json
equal "has no error" "$(json tensor=logits/nmse) $(json tensor=grad.lm_head.weight/max_abs)" "0.0 0.0"
"$BIRKHOFF" verify tiny --device cpu --seq-len 8 --bounds 1e-6 --json >out 2>err
equal "past the bounds" $? 1
has "says so" 'past their bounds' err
holds "and shows which" "$(grep -c '"pass": false' out) > 10"
refused 2 '--device' "verify without a device" "$BIRKHOFF" verify tiny
refused 2 'devices that are there' "against an unknown device" "$BIRKHOFF" verify tiny --device cpu --against gpu

# ---- compare ----
ok "the same run" "$BIRKHOFF" compare mhc mhc --json
equal "is equal" "$(json equal) $(json kind) $(json keys/key=loss/max) $(json keys/key=loss/first_step)" "true metrics 0.0 null"
ok "two runs" "$BIRKHOFF" compare mhc hc --json
equal "differ" "$(json equal)" false
equal "from some step on" "$([ "$(json keys/key=loss/first_step)" -ge 1 ] && echo yes)" yes
sed -n '$p' mhc/metrics.jsonl >last.json
equal "final value" "$(json keys/key=loss/final_a)" "$(json loss last.json)"
ok "files" "$BIRKHOFF" compare mhc/metrics.jsonl hc/metrics.jsonl
has "a line per key" '^expert_load ' out
ok "weights of runs" "$BIRKHOFF" compare mhc mhc --weights --json
equal "checkpoints" "$(json kind) $(json equal)" "checkpoints true"
ok "two checkpoints" "$BIRKHOFF" compare mhc/step-000006 plain/step-000002
has "names what is missing" 'model.layers.0.hc_attn_fn *missing in b' out
has "and what differs" '^lm_head.weight .*e' out
ok "weights and optimiser" "$BIRKHOFF" compare mhc/step-000006 first --json
equal "no optimiser in one" "$(json tensors/tensor=optimizer.safetensors/status)" "missing in b"
refused 1 'no such' "nothing there" "$BIRKHOFF" compare mhc none
echo '{"loss": 1}' >broken.jsonl
refused 2 'line 1' "no step" "$BIRKHOFF" compare broken.jsonl broken.jsonl

# ---- bench ----
ok "bench ops" "$BIRKHOFF" bench ops --seconds 0 --tokens 16 --width 64 --json
equal "every op, attention in two shapes" "$(json ops/#)" "$(($(grep -Ec '^(OP|COMPOSED|COMPOSED_OF)\(' "$TOP_SRCDIR/core/runtime/ops.def") + 2))"
for op in attention attention_bwd; do
  holds "$op: heads of 192 and 128" "$(json ops/op=${op}_192/gflop_per_s) > 0"
done
for key in seconds gb_per_s share; do holds "gemm: $key" "$(json ops/op=gemm/$key) > 0"; done
ok "one op, on ref" "$BIRKHOFF" bench ops --op sinkhorn --seconds 0 --tokens 8 --device ref
has "a line" '^sinkhorn ' out
ok "some ops" "$BIRKHOFF" bench ops --op hc_pre cross_entropy --vocabulary 1000 --seconds 0 --tokens 8 --width 64 --json
equal "as many" "$(json ops/#)" 2
holds "a vocabulary of its own" "$(json ops/op=cross_entropy/seconds) * $(json ops/op=cross_entropy/gb_per_s) * 1e9 > 8 * 1000 * 8"
refused 2 'did you mean sinkhorn?' "an unknown op" "$BIRKHOFF" bench ops --op sinkhor
ok "bench step" "$BIRKHOFF" bench step --model tiny --batch-size 1 --seq-len 16 --seconds 0 --compare plain --json
holds "tokens per second" "$(json tokens_per_s) > 0 && $(json compare/tokens_per_s) > 0"
holds "ratio" "$(json ratio) / ($(json seconds) / $(json compare/seconds)) < 1.000001"
holds "the parts make the whole" "$(json forward_seconds) + $(json backward_seconds) < 3 * $(json seconds)"
holds "memory as planned, within 15 %" "$(json bytes_used) >= $(json bytes_planned) && $(json bytes_used) < 1.15 * $(json bytes_planned)"
ok "one after the other" "$BIRKHOFF" bench step --model tiny --batch-size 1 --seq-len 16 --seconds 0 --compare plain --apart --json
holds "ratio, apart" "$(json ratio) / ($(json seconds) / $(json compare/seconds)) < 1.000001 && $(json compare/bytes_used) > 0"
holds "plain is smaller" "$(json compare/bytes_planned) < $(json bytes_planned)"
refused 2 'goes with --compare' "nothing to be apart from" "$BIRKHOFF" bench step --model tiny --apart
ok "as a table" "$BIRKHOFF" bench step --model tiny --batch-size 1 --seq-len 16 --seconds 0
ok "what a step does" "$BIRKHOFF" bench step --model tiny --set micro_batch_size=2 batch_size=8 --program
has "its lines" '^ *[0-9]* *backward, first *compute *attention\.W *wgrad *2 *gemm ' out
has "and the next micro-batch" '^ *[0-9]* *backward, next ' out
equal "attention is run once" "$(grep -c 'rebuild\.D *rebuild *[0-9]* *attention ' out)" 0
equal "one lane" "$(grep -c 'urgent\|(signal)\|(wait)' out)" 0
ok "with recompute" "$BIRKHOFF" bench step --model tiny --batch-size 1 --program --set recompute=attention
equal "attention is run again, in pieces of its own" "$(grep -c '^ *[0-9]* *backward, first *compute *rebuild\.D *rebuild *[0-9]* *attention ' out)" 3
ok "on two lanes, as JSON" "$BIRKHOFF" bench step --model tiny --batch-size 1 --program --json --set merge_stream=true
equal "an urgent merge" "$(json 22/lane) $(json 22/piece) $(json 22/sublayer) $(json 22/op)" "urgent merge 1 hc_merge_mix"
equal "that is waited for" "$(json 24/lane) $(json 24/piece) $(json 24/op) $(json 24/kernel)" "compute attention (wait) urgent"
equal "a single micro-batch" "$(grep -c next out)" 0
refused 2 'does not go with --seconds' "times nothing" "$BIRKHOFF" bench step --model tiny --program --seconds 1
refused 2 '--program is for bench step' "of steps alone" "$BIRKHOFF" bench ops --program
ok "bench comm" "$BIRKHOFF" bench comm --comm threads --dp 3 --threads 1 --bytes 60000 --seconds 0 --json
equal "what was measured" "$(json transport) $(json ranks) $(json ops/#) $(json ops/op=all_reduce/bytes) $(json ops/op=copy/share)" "threads 3 4 4.0 1.0"
for op in copy reduce_scatter all_gather; do holds "$op" "$(json ops/op=$op/seconds) > 0 && $(json ops/op=$op/gb_per_s) > 0 && $(json ops/op=$op/bytes) == 60000"; done
equal "no rate of 4 bytes" "$(json ops/op=all_reduce/gb_per_s) $(json ops/op=all_reduce/share)" "null null"
ok "as a table" "$BIRKHOFF" bench comm --comm threads --dp 2 --threads 1 --bytes 60000 --seconds 0
has "a line of it" '^reduce_scatter  *[0-9.]* KiB  *[0-9.]* [mu]s  *[0-9.]*  *[0-9.]*%$' out
refused 2 'nobody to send to' "one rank" "$BIRKHOFF" bench comm
refused 2 '--dp is for bench comm' "ranks of ops" "$BIRKHOFF" bench ops --dp 2
refused 2 '--op is for bench ops' "ops of ranks" "$BIRKHOFF" bench comm --op gemm
refused 2 'ops, step or comm' "bench what" "$BIRKHOFF" bench all
refused 2 '--op is for bench ops' "an option of the other bench" "$BIRKHOFF" bench step --model tiny --op hc_pre
refused 2 '--apart is for bench step' "and the other way round" "$BIRKHOFF" bench ops --apart

# ---- help, version, standard output ----
ok version "$BIRKHOFF" --version
has version '^birkhoff [0-9.]* (' out
has backends '^backends: .*ref.*cpu' out
ok help "$BIRKHOFF" --help
for c in train eval generate init forward gain verify compare bench plan devices; do
  has "help lists $c" "^  $c " out
  "$BIRKHOFF" $c --help >help.txt 2>err
  equal "$c --help" $? 0
  has "$c --help" "^usage: birkhoff $c " help.txt
  has "$c --help" '--device NAME' help.txt
  for option in $(sed -n 's/^  --\([a-z-]*\) .*/\1/p' help.txt); do
    if grep -q -e "Fl -$option\\>" "$TOP_SRCDIR/doc/birkhoff-$c.1" "$TOP_SRCDIR/doc/birkhoff.1"; then pass; else fail "birkhoff-$c(1) does not explain --$option"; fi
  done
done
refused 2 'did you mean train' "an unknown command" "$BIRKHOFF" trian
refused 2 'did you mean --model' "an unknown option" "$BIRKHOFF" plan --modle tiny
refused 2 'needs' "an option without its value" "$BIRKHOFF" plan --model
refused 2 'usage' "too many words" "$BIRKHOFF" plan tiny
if [ -w /dev/full ]; then
  "$BIRKHOFF" plan --model tiny >/dev/full 2>err
  equal "a full disk" $? 1
  "$BIRKHOFF" --help >/dev/full 2>err
  equal "a full disk for the help" $? 1
fi
finish

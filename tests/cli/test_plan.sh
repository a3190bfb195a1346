#!/bin/sh
# birkhoff plan --gpus, and --schedule with --svg and --measured. The lists of --schedule: test_schedule.c and test_tools.sh.
. "$(dirname "$0")/lib.sh"
network='--bandwidth 450G,50G'
# choices FILE: how many choices there were in all: the kept ones and what the dropped ones stand for
choices() { awk '/"plans"/ { kept = 1 } /"dropped"/ { kept = 0 } kept && /"seconds"/ { n++ } /"count"/ { gsub(/[^0-9]/, ""); n += $0 } END { print n + 0 }' "$1"; }
# reasons FILE: the reasons that there are, one a line
reasons() { sed -n 's/.*"reason": "\([a-z]*\)".*/\1/p' "$1" | sort -u; }
drawn() {
  has "$1 is an SVG" '^<svg xmlns=' "$2"
  has "$1 ends" '^</svg>$' "$2"
  equal "$1: as many texts opened as closed" "$(grep -o '<text' "$2" | wc -l)" "$(grep -o '</text>' "$2" | wc -l)"
  if command -v xmllint >/dev/null 2>&1; then ok "$1 is well formed" xmllint --noout "$2"; fi
}

# ---- a small search, counted by hand ----
# Of 4 GPUs: pp 1 has one schedule, 2 sizes of micro-batches and 3 ways to share 8 experts of which 2 are chosen; pp 2 has 4, 3 and 2, pp 4 has
# 4, 4 and 1; each with 8 kinds of recompute.
small="--gpus 4 --gpus-per-node 2 $network --model tiny --batch-size 8 --dtype fp32"
ok "a small search" "$BIRKHOFF" plan $small --memory 1T --json
cp out small.json
equal "every choice is there once" "$(choices small.json)" $((8 * (1 * 2 * 3 + 4 * 3 * 2 + 4 * 4 * 1)))
equal "every dropped one has a reason" "$(grep -c '"reason"' small.json)" "$(grep -c '"count"' small.json)"
equal "and says it" "$(grep -c '"text": "..*"' small.json)" "$(grep -c '"count"' small.json)"
for r in $(reasons small.json); do case $r in layers | schedule | recompute | slower) pass ;; *) fail "an unexpected reason: $r" ;; esac; done
# ten plans, from the fastest on
i=0 before=0
while [ $i -lt 10 ]; do
  now=$(json plans/$i/seconds small.json)
  holds "plan $i is no faster than the one before" "$now >= $before"
  before=$now i=$((i + 1))
done
if "$HELPER" json small.json plans/10/seconds >out 2>&1; then fail "there is an eleventh" out; else pass; fi
flops=$("$BIRKHOFF" plan --model tiny --json | sed -n 's/.*"flops_per_token": \([0-9.e+]*\).*/\1/p')
holds "the share of the roof is that of the model's flops" "$(json plans/0/tokens_per_s small.json) * $flops / (4 * 400e12) / $(json plans/0/share small.json) - 1 < 1e-9 && $(json plans/0/tokens_per_s small.json) * $flops / (4 * 400e12) / $(json plans/0/share small.json) - 1 > -1e-9"
holds "tokens of a step" "$(json plans/0/tokens_per_s small.json) * $(json plans/0/seconds small.json) / (8 * 64) - 1 < 1e-9"
ok "in words" "$BIRKHOFF" plan $small --memory 1T --svg best.svg
equal "ten rows" "$(grep -c '%$' out)" 10
has "says where memory goes" 'needs most memory: weights' out
drawn "the best plan" best.svg
ok "one schedule, one length" "$BIRKHOFF" plan $small --memory 1T --schedule dualpipe --pp 2 --json
equal "its schedule" "$(json plans/0/schedule)" dualpipe
equal "its length" "$(json plans/0/pp)" 2
ok "plans that can be run" "$BIRKHOFF" plan $small --memory 1T --ep 1 --json
equal "fewer choices" "$(choices out)" $((8 * (1 * 2 + 4 * 3 + 4 * 4)))
if grep -q '"ep": [2-9]' out; then fail "ep above 1" out; else pass; fi

# ---- memory ----
most=$(json plans/0/bytes_total small.json)
ok "less memory" "$BIRKHOFF" plan $small --memory "$(awk "BEGIN { print int($most * 0.75) }")" --json
holds "plans obey it" "$(json plans/0/bytes_total) <= $most * 0.75"
i=1
while [ $i -lt 10 ] && [ "$("$HELPER" json out plans/$i/pp 2>/dev/null)" ]; do
  holds "plan $i obeys it" "$(json plans/$i/bytes_total) <= $most * 0.75"
  i=$((i + 1))
done
has "some are dropped for it" '"reason": "memory"' out
has "with what they need" '"text": "a rank needs .* of ' out
ok "next to none" "$BIRKHOFF" plan $small --memory 1k
has "nothing fits" '^nothing fits' out
ok "next to none, for programs" "$BIRKHOFF" plan $small --memory 1k --json
has "no plans" '"plans": \[\]' out
refused 2 'no plan fits' "a drawing of nothing" sh -c '"$0" plan "$@" >/dev/null' "$BIRKHOFF" $small --memory 1k --svg none.svg
absent "it" none.svg
# One GPU is the run that birkhoff plan describes.
one='--gpus 1 --memory 1T --bandwidth 1G --model tiny --dtype fp32 --batch-size 2 --seq-len 32'
ok "one GPU" "$BIRKHOFF" plan $one --json
cp out one.json
ok "the same run" "$BIRKHOFF" plan --model tiny --dtype fp32 --batch-size 2 --seq-len 32 --set micro_batch_size="$(json plans/0/micro_batch_size one.json)" hc_recompute="$(json plans/0/hc_recompute one.json)" recompute="$(json plans/0/recompute one.json)" --json
for class in weights gradients optimizer activations; do equal "$class" "$(json plans/0/bytes/$class one.json | cut -d. -f1)" "$(json bytes/$class)"; done

# Each rank of a pipeline has what a training run plans for it; that run's comm and staging are memory of the host.
text data.txt 4000
bytes_of() { for class in weights masters gradients optimizer activations workspace; do json $1/$class $2; done | paste -sd+ - | bc; }
for schedule in 1f1b zb1p dualpipe dualpipev; do
  sizes='--model tiny --dtype bf16 --batch-size 8 --seq-len 32 --threads 1'
  ok "$schedule on a cluster" "$BIRKHOFF" plan --gpus 2 --memory 1T --bandwidth 1G --pp 2 --schedule $schedule $sizes --json
  cp out cluster.json
  i=0
  while [ "$(json plans/$i/micro_batch_size cluster.json)" != 1 ] && [ $i -lt 10 ]; do i=$((i + 1)); done
  ok "$schedule as a run" "$BIRKHOFF" train $sizes --data data.txt --out none --comm threads --pp 2 --schedule $schedule --dry-run --json \
    --set micro_batch_size=1 hc_recompute="$(json plans/$i/hc_recompute cluster.json)" recompute="$(json plans/$i/recompute cluster.json)"
  planned=$(bytes_of plans/$i/bytes cluster.json) first=$(bytes_of ranks/0/bytes out) last=$(bytes_of ranks/1/bytes out)
  most=$(printf '%s\n' "$first" "$last" | sort -n | tail -n 1)
  holds "$schedule: bytes within 0.5 % of the run's" "$planned / $most < 1.005 && $planned / $most > 0.995"
done

# ---- the paper's model on a cluster: within seconds ----
begin=$(date +%s)
ok "1,024 GPUs" "$BIRKHOFF" plan --gpus 1024 --memory 141G $network --model mhc-27b --json
holds "in under 10 seconds" "$(date +%s) - $begin <= 10"
equal "a boundary of 4 streams" "$(json plans/0/edge_bytes)" 83886080.0
for r in layers batch schedule; do has "some are dropped for $r" "\"reason\": \"$r\"" out; done
ok "one stream" "$BIRKHOFF" plan --gpus 64 --memory 141G $network --model mhc-27b --pp 8 --schedule dualpipe --set residual=plain --json
equal "a boundary of one stream" "$(json plans/0/edge_bytes)" 20971520.0

# ---- what is refused ----
gpus="--gpus 8 --memory 80G $network --model tiny"
refused 2 '--gpus needs --memory' "no memory" "$BIRKHOFF" plan --gpus 8 $network --model tiny
refused 2 '--gpus needs --bandwidth' "no network" "$BIRKHOFF" plan --gpus 8 --memory 80G --model tiny
refused 2 '--gpus needs --model' "no model" "$BIRKHOFF" plan --gpus 8 --memory 80G $network
refused 2 '--memory 80Q: expected a number above 0' "a unit that is none" "$BIRKHOFF" plan $gpus --memory 80Q
refused 2 '--memory -1: expected' "negative memory" "$BIRKHOFF" plan $gpus --memory=-1
refused 2 '--bandwidth 450G,: expected bytes a second' "half a bandwidth" "$BIRKHOFF" plan $gpus --bandwidth 450G,
refused 2 '--bandwidth 1G,2G,3G: expected' "three bandwidths" "$BIRKHOFF" plan $gpus --bandwidth 1G,2G,3G
refused 2 '--flops fast: expected a number' "a rate that is none" "$BIRKHOFF" plan $gpus --flops fast
refused 2 '--gpus 12: nodes have 8 each' "nodes that are not full" "$BIRKHOFF" plan $gpus --gpus 12
refused 2 '--gpus 0: expected' "no GPUs" "$BIRKHOFF" plan $gpus --gpus 0
refused 2 '--pp 3 does not divide --gpus 8' "a length that does not divide" "$BIRKHOFF" plan $gpus --pp 3
refused 2 '--schedule gpipe: a search knows sequential, 1f1b' "an unknown schedule" "$BIRKHOFF" plan $gpus --schedule gpipe
refused 2 '--micro has no meaning with --gpus' "micro-batches" "$BIRKHOFF" plan $gpus --micro 4
refused 2 'with --gpus hc_recompute is what the search looks for' "a key that is searched" "$BIRKHOFF" plan $gpus --set hc_recompute=off
refused 2 '--memory has a meaning with --gpus alone' "memory of nothing" "$BIRKHOFF" plan --model tiny --memory 80G
refused 2 '--ep has a meaning with --gpus alone' "experts of nothing" "$BIRKHOFF" plan --model tiny --ep 2
refused 2 '--svg has a meaning with --schedule alone' "a drawing of nothing" "$BIRKHOFF" plan --model tiny --svg a.svg
refused 2 'messages take no time' "bandwidth without costs" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --bandwidth 1G

# ---- timelines ----
ok "a large timeline" "$BIRKHOFF" plan --schedule dualpipe --pp 16 --micro 40 --svg large.svg
drawn "a large timeline" large.svg
equal "a row for each rank" "$(grep -c '>rank [0-9]*</text>' large.svg)" 16
has "the legend has both streams" '>F, stream 1</text>' large.svg
has "a dark scheme" 'prefers-color-scheme: dark' large.svg
# each rank: 20 micro-batches of each stream forward and backward, each with its number, and as many W as I
ok "the same in words" "$BIRKHOFF" plan --schedule dualpipe --pp 16 --micro 40
weights=$(awk '$1 ~ /^[0-9]+$/ && NF > 8 { n += $6 } END { print n }' out)
equal "every pass has its box and number" "$(grep -c 'fill="#1a1a1a">[0-9]*</text>' large.svg)" $((16 * 80 + weights))

# ---- measured costs ----
ok "measuring" "$BIRKHOFF" bench step --model tiny --threads 1 --batch-size 1 --seq-len 32 --seconds 0.1 --json
cp out measured.json
equal "its parts" "$(grep -c '"W"' measured.json)" 8
f=$(sed -n 's/.*"F": \([0-9.e+-]*\).*/\1/p' measured.json | awk '{ s += $1 } END { print s }')
b=$(sed -n 's/.*"B": \([0-9.e+-]*\).*/\1/p' measured.json | awk '{ s += $1 } END { print s }')
holds "they take as long as the forward pass" "$f / $(json forward_seconds) > 0.999 && $f / $(json forward_seconds) < 1.001"
holds "and the backward pass" "$b / $(json backward_seconds) > 0.999 && $b / $(json backward_seconds) < 1.001"
ok "one rank" "$BIRKHOFF" plan --schedule sequential --pp 1 --micro 3 --measured measured.json --json
step=$(json step)
holds "is three micro-batches and the optimiser" "$step / (3 * $(json forward_seconds measured.json) + 3 * $(json backward_seconds measured.json) + $(json optimizer_seconds measured.json)) - 1 < 1e-3"
for schedule in 1f1b zb1p dualpipe dualpipev; do
  ok "$schedule of what was measured" "$BIRKHOFF" plan --schedule $schedule --pp 2 --micro 8 --measured measured.json --bandwidth 1G --latency 1e-6 --json --svg $schedule.svg
  holds "$schedule: two ranks take more than half as long as one" "$(json step) > 8 * ($f + $b) / 2 && $(json step) < 8 * ($f + $b)"
  drawn $schedule $schedule.svg
done
sed 's/"W": [0-9.e+-]*/"W": 5e9/' measured.json >bad.json
refused 2 'has no times F, B and W' "times that cannot be" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --measured bad.json
echo '{}' >bad.json
refused 2 'bad.json: there is no "config"; it is to be what birkhoff bench step' "another file" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --measured bad.json
echo '[' >bad.json
refused 2 'bad.json: it is no JSON object' "no JSON" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --measured bad.json
refused 1 'nothing.json' "no file" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --measured nothing.json
refused 2 'one of them is enough' "both costs" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --measured measured.json --costs F=1
# the first sublayer is made to cost more than all others: it is a stage by itself, in plans and in runs
awk '/"F":/ && ++n == 2 { sub(/"F": [0-9.e+-]*/, "\"F\": 1000") } { print }' measured.json >slow.json
ok "stages by measured costs" "$BIRKHOFF" plan --schedule 1f1b --pp 2 --micro 4 --measured slow.json --json
equal "the slow sublayer alone" "$(json sublayers/0 out) $(json sublayers/1 out)" "1 5"
text data.txt 4000
cut="--device cpu --data data.txt --out cut --steps 1 --batch-size 2 --seq-len 16 --set warmup_steps=0 --comm threads --pp 2 --dry-run --json"
ok "a run with these stages" "$BIRKHOFF" train --model tiny $cut --stages slow.json
slow=$(json ranks/0/bytes/weights out)
ok "a run with the same stages" "$BIRKHOFF" train --model tiny $cut --stages 1,5
equal "has the same weights" "$(json ranks/0/bytes/weights out)" "$slow"
ok "a run with stages as they are" "$BIRKHOFF" train --model tiny $cut
holds "has others" "$(json ranks/0/bytes/weights out) > $slow"
refused 2 'measured with a model of 3 layers, this one has 4' "costs of another model" "$BIRKHOFF" train --model demo $cut --stages slow.json
refused 2 'bad.json: it is no JSON object' "no costs" "$BIRKHOFF" train --model tiny $cut --stages ./bad.json
refused 2 'only 6 sublayers' "more stages than the model has" "$BIRKHOFF" plan --schedule 1f1b --pp 8 --micro 8 --measured measured.json
finish

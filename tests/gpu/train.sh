# birkhoff on `device`: training of tiny with each residual connection against ref, the same bits in two runs, bf16 near fp32, verify,
# eval, generate, a run that goes on. A quick run takes fewer tokens (BK_TEST_STEPS says how many steps), two connections, and compares
# with cpu. The driver of vulkan that runs here is slow.
. "$(dirname "$0")/../gpu/lib.sh"
steps=12
[ "$device" != vulkan ] || steps=6
[ -z "${BK_TEST_LONG:-}" ] || steps=20
STEPS=${BK_TEST_STEPS:-$steps} oracle=ref sizes="--batch-size 2 --seq-len 24" bytes=4000
kinds=$(kinds)
[ -z "${BK_TEST_QUICK:-}" ] || oracle=cpu sizes="--batch-size 1 --seq-len 16" bytes=1000 kinds="mhc plain"
. "$TOP_SRCDIR/tests/gpu/curves.sh"

# Of the last comparison: the largest nmse of a weight. The connection of the first sublayer aside: its streams are equal, so that gradients
# are zero in theory and what moves is rounding alone (design: comparing); a wider bound is for these.
weights() {
  awk '/"tensor":/ { split($0, w, "\""); name = w[4] } /"nmse":/ { gsub(/[^0-9.eE+-]/, "", $2); print name, $2 }' out | grep -v '^[mv]\.'
}
worst_weight() { weights | grep -v 'layers\.0\.hc_attn' | awk '{ if ($2 > w) w = $2; n++ } END { printf "%.3e", n ? w : 9 }'; }
worst_tensor() { weights | awk '{ if ($2 > w) w = $2; n++ } END { printf "%.3e", n ? w : 9 }'; }

for kind in $kinds; do
  ok "$kind on $oracle" "$BIRKHOFF" $small residual=$kind --device $oracle --out $oracle-$kind
  ok "$kind on $device" "$BIRKHOFF" $small residual=$kind --device $device:0 --out gpu-$kind
  holds "$kind: losses agree" "$(worst gpu-$kind $oracle-$kind) < 1e-5"
  ok "$kind: compare weights" "$BIRKHOFF" compare --json gpu-$kind/$last $oracle-$kind/$last
  holds "$kind: weights agree" "$(worst_weight) < 1e-8"
  holds "$kind: all tensors are near" "$(worst_tensor) < 1e-4"
done
ok "mhc again" "$BIRKHOFF" $small residual=mhc --device $device:0 --out again
for f in model optimizer; do same "two runs, $f" gpu-mhc/$last/$f.safetensors again/$last/$f.safetensors; done
ok "bf16" "$BIRKHOFF" $small residual=mhc --device $device:0 --dtype bf16 --out bf16
holds "bf16 is near fp32" "$(worst bf16 $oracle-mhc) < 0.01"
for kind in mhc hc; do ok "verify $kind" "$BIRKHOFF" verify tiny --seq-len 16 --device $device:0 --set residual=$kind; done
ok "eval" "$BIRKHOFF" eval gpu-mhc --data data.txt --seq-len 16 --device $device:0 --json
loss=$(json loss)
ok "eval on cpu" "$BIRKHOFF" eval gpu-mhc --data data.txt --seq-len 16 --device cpu --json
holds "eval agrees" "($loss - $(json loss)) ^ 2 < 1e-10"
ok "generate" "$BIRKHOFF" generate gpu-mhc --prompt "the of" --max-tokens 8 --temperature 0 --device $device:0
cp out gpu.txt
ok "generate on cpu" "$BIRKHOFF" generate gpu-mhc --prompt "the of" --max-tokens 8 --temperature 0 --device cpu
same "the same words" gpu.txt out
ok "limits" "$BIRKHOFF" devices --json
holds "work groups" "$(json name=$device:0/max_group) >= 64"
holds "local memory" "$(json name=$device:0/local_memory) >= 16384"
equal "its kind comes first" "$(json name=$device:0/features | cut -d, -f1 | grep -c '^cpu$\|gpu\|accelerator\|kind')" 1
equal "ref has no work groups" "$(json name=ref/max_group)" null
refused 1 "device $device:9 is not here: $device has" "a device that is not there" "$BIRKHOFF" $small --device $device:9 --out none
finish

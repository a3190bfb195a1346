#!/bin/sh
# birkhoff on the cuda backend, on the host: training of tiny with each residual connection against cpu, the same bits in two runs and
# with step graphs on and off, two ranks on one device, bf16 near fp32, verify, what devices says.
. "$(dirname "$0")/on_host.sh"
# A quick run takes fewer steps (BK_TEST_STEPS says how many) of fewer tokens and compares step graphs with single launches for mhc alone.
[ -n "${BK_TEST_LONG:-}" ] && steps=20 || steps=12
STEPS=${BK_TEST_STEPS:-$steps} also="plain mhc" sizes="--batch-size 2 --seq-len 16" bytes=4000
[ -z "${BK_TEST_QUICK:-}" ] || STEPS=${BK_TEST_STEPS:-4} also=mhc sizes="--batch-size 1 --seq-len 16" bytes=1000
. "$TOP_SRCDIR/tests/gpu/curves.sh"

# worst_tensor: the largest nmse in the last comparison. Tensors whose gradient is zero in theory move by rounding alone, so this is no
# measure of accuracy (verify is); another model has about 1.
worst_tensor() { sed -n 's/.*"nmse": *\([0-9.eE+-]*\).*/\1/p' out | awk '{ if ($1 > w) w = $1; n++ } END { printf "%.12f", n ? w : 9 }'; }

ok devices "$BIRKHOFF" devices --json
has "the device is there" '"name": *"cuda:0"' out
for kind in $(kinds); do
  ok "$kind on cpu" "$BIRKHOFF" $small residual=$kind --device cpu --out cpu-$kind
  ok "$kind on cuda" "$BIRKHOFF" $small residual=$kind --device cuda:0 --out cuda-$kind
  holds "$kind: losses agree" "$(worst cuda-$kind cpu-$kind) < 1e-5"
  ok "$kind: compare weights" "$BIRKHOFF" compare --json cuda-$kind/$last cpu-$kind/$last
  holds "$kind: weights agree" "$(worst_tensor) < 1e-4"
  case " $also " in *" $kind "*) ;; *) continue ;; esac
  ok "$kind: eager" "$BIRKHOFF" $small residual=$kind cuda_graph=false --device cuda:0 --out eager-$kind
  for f in model optimizer; do same "$kind: graphs on and off, $f" cuda-$kind/$last/$f.safetensors eager-$kind/$last/$f.safetensors; done
done
ok "mhc again, threads in another order, merges on another stream" env BK_CUDA_SEED=5 "$BIRKHOFF" $small residual=mhc merge_stream=true --device cuda:0 --out again
for f in model optimizer; do same "two runs, $f" cuda-mhc/$last/$f.safetensors again/$last/$f.safetensors; done
# Data of ranks goes through pinned memory of the host; buckets are posted behind both lanes. Ranks are processes, since the stand-in
# serves one thread of a process.
# MPI keeps memory that a checker of leaks cannot tell from what is lost.
MPIRUN="env ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 mpirun --oversubscribe"
[ "$(id -u)" -ne 0 ] || MPIRUN="$MPIRUN --allow-run-as-root"
if [ -e "$TOP_BUILDDIR/.libs/birkhoff_comm_mpi.so" ] && command -v mpirun >/dev/null; then
  mkdir modules
  ln -s "$BIRKHOFF_BACKEND_DIR/birkhoff_cuda.so" "$TOP_BUILDDIR/.libs/birkhoff_comm_mpi.so" modules/
  ok "two ranks on cpu" "$BIRKHOFF" $small residual=mhc --batch-size 3 --comm threads --dp 2 --device cpu --out ranks-cpu
  ok "two ranks that share the device" env BIRKHOFF_BACKEND_DIR="$PWD/modules" $MPIRUN -n 2 "$BIRKHOFF" $small residual=mhc merge_stream=true \
    --batch-size 3 --device cuda:0 --share-device --out ranks
  holds "ranks: losses agree" "$(worst ranks ranks-cpu) < 1e-5"
fi
ok "bf16" "$BIRKHOFF" $small residual=mhc --device cuda:0 --dtype bf16 --out bf16
holds "bf16 is near fp32" "$(worst bf16 cpu-mhc) < 0.01"
if [ -z "${BK_TEST_QUICK:-}" ]; then
  ok "recompute" "$BIRKHOFF" $small residual=mhc hc_recompute=2 --device cuda:0 --out recompute
  ok "no recompute" "$BIRKHOFF" $small residual=mhc hc_recompute=off --device cuda:0 --out kept
  same "recompute or not" recompute/$last/model.safetensors kept/$last/model.safetensors
fi
for kind in mhc hc; do ok "verify $kind" "$BIRKHOFF" verify tiny --seq-len 16 --device cuda:0 --set residual=$kind; done
ok "eval" "$BIRKHOFF" eval cuda-mhc --data data.txt --seq-len 24 --device cuda:0 --json
loss=$(json loss)
ok "eval on cpu" "$BIRKHOFF" eval cuda-mhc --data data.txt --seq-len 24 --device cpu --json
holds "eval agrees" "($loss - $(json loss)) ^ 2 < 1e-10"
ok "generate" "$BIRKHOFF" generate cuda-mhc --prompt "the of" --max-tokens 8 --temperature 0 --device cuda:0
cp out cuda.txt
ok "generate on cpu" "$BIRKHOFF" generate cuda-mhc --prompt "the of" --max-tokens 8 --temperature 0 --device cpu
same "the same words" cuda.txt out
refused 1 'cuda has 1 device' "a device that is not there" "$BIRKHOFF" $small --device cuda:3 --out none
finish

# Shared by the training tests of GPU backends, which set STEPS, sizes and bytes: the data, the options of a small run, and how far the
# loss curves of two runs are apart.
text data.txt $bytes
# The rate of the preset's warm-up, which a short run does not get to the end of.
rate=
[ "$STEPS" -gt 10 ] || rate="--lr $(awk "BEGIN { print 3e-4 * $STEPS }") --set lr_schedule=constant warmup_steps=$STEPS"
small="train --model tiny $sizes --steps $STEPS --data data.txt $rate --set adam_eps=1e-8"
last=$(printf 'step-%06d' "$STEPS")

# worst RUN RUN: the largest relative difference of two loss curves
worst() {
  sed -n 's/.*"loss": *\([0-9.eE+-]*\).*/\1/p' "$1/metrics.jsonl" >a.loss
  sed -n 's/.*"loss": *\([0-9.eE+-]*\).*/\1/p' "$2/metrics.jsonl" >b.loss
  paste a.loss b.loss | awk -v steps="$STEPS" '{ d = $1 - $2; if (d < 0) d = -d; if (d > w * $2) w = d / $2; n++ } END { if (n != steps) w = 9; printf "%.9f", w + 0 }'
}

#!/bin/sh
# README says what is so: every command of its ```console blocks is run, as a user would in a built checkout, and prints what stands there; its
# C example and the whole program beside it compile, link and train.
# What may differ between machines and runs, and no more:
# - numbers before "tok/s" and times before "left";
# - progress lines of the steps between the first and the last, which a slow machine prints and a fast one does not;
# - numbers with an exponent, which are rounding errors and bounds of such: each must be below 1e-5;
# - other numbers with a decimal point, by 0.002 of their value, or by 0.002 where they are below 1: the last digits of another instruction set;
# - the number of spaces between words.
. "$(dirname "$0")/lib.sh"
README=${README:-$TOP_SRCDIR/README.md}
EXAMPLE_TEXT=$TOP_SRCDIR/doc/examples/coriolanus.txt

# console: the lines of the ```console blocks, each block in the order of the page
console() { sed -n '/^```console$/,/^```$/p' "$README" | grep -v '^```'; }

# agree EXPECTED ACTUAL: whether they are the same by the rules above; says the first line that is not
agree() {
  awk '
    function near(a, b, most) { most = 0.002 * (a > 1 ? a : 1); return a - b <= most && b - a <= most }
    function same(a, b, after) {
      if (a == b) return 1
      if (after == "tok/s") return a ~ /^[0-9.]+[kM]?$/ && b ~ /^[0-9.]+[kM]?$/
      if (after == "left") return a ~ /^[0-9:]+$/ && b ~ /^[0-9:]+$/
      if (a ~ /^[0-9.]+e[-+][0-9]+$/) return b ~ /^[0-9.]+e[-+][0-9]+$/ && a < 1e-5 && b < 1e-5
      return a ~ /^-?[0-9]+[.][0-9]+$/ && b ~ /^-?[0-9]+([.][0-9]+)?$/ && near(a + 0, b + 0)
    }
    function middle(step) { split(step, part, "/"); return part[1] > 1 && part[1] < part[2] }
    NR == FNR { want[++wanted] = $0; next }
    $1 == "step" && middle($2) { next }
    {
      n = split(want[++seen], words)
      bad = n != NF
      for (i = 1; i <= n && !bad; i++) bad = !same(words[i], $i, words[i + 1])
      if (bad) { print "README has: " want[seen]; print "printed is: " $0; wrong = 1; exit }
    }
    END { if (!wrong && seen != wanted) { print "README has " wanted " lines, " seen + 0 " are printed"; wrong = 1 }; exit wrong }' "$1" "$2"
}

# ---- links ----
grep -o '](\([^)#]*\)' "$README" | sed 's/^](//' | grep -v '^https*:' | sort -u >links
holds "README has links" "$(wc -l <links) > 10"
while IFS= read -r link; do there "README links to $link" "$TOP_SRCDIR/$link"; done <links

# ---- the rules: what they let pass and what not ----
cat >page <<'EOF'
step 1/9  loss 2.5084  20.1k tok/s  0:01 left
logits  3.43e-14 ok
run/step-000009
EOF
agrees() { # 0|1 NAME SED_SCRIPT
  sed "$3" page >changed
  agree page changed >why
  equal "rules: $2" $? "$1"
}
agrees 0 "the same" ''
agrees 0 "time and speed" 's/20.1k/998/; s/0:01/1:10/'
agrees 0 "a slow machine" '1s/$/\nstep 4\/9  loss 2.5  1.0k tok\/s  0:01 left/'
agrees 0 "last digits" 's/2.5084/2.5080/; s/3.43e-14/1.9e-14/'
agrees 1 "another loss" 's/2.5084/2.52/'
agrees 1 "a large error" 's/3.43e-14/3.43e-04/'
agrees 1 "another word" 's/ok/BAD/'
agrees 1 "a word more" '2s/$/ ok/'
agrees 1 "another step" 's/000009/000010/'
agrees 1 "a line less" 2d
agrees 1 "a line more" '2p'

# ---- the commands, in a folder that has of the checkout what they may use ----
mkdir checkout && cd checkout || exit 1
ln -s "$TOP_SRCDIR/doc" doc
printf '#!/bin/sh\nexec "%s" "$@"\n' "$BIRKHOFF" >birkhoff
chmod +x birkhoff
console >../console
awk '/^\$ / { n++; print substr($0, 3) >("../command" n); printf "" >("../expected" n); next } { print >("../expected" n) }' ../console
n=0
while [ -f "../command$((n + 1))" ]; do
  n=$((n + 1))
  command=$(cat "../command$n")
  sh -c "$command" >"../printed$n" 2>&1 </dev/null
  rc=$?
  if [ $rc -ne 0 ]; then fail "README: $command: exit status $rc" "../printed$n"
  elif agree "../expected$n" "../printed$n" >../why; then pass
  else fail "README: $command" ../why "../printed$n"; fi
done
cd "$W" || exit 1
equal "three commands" "$n" 3
equal "no line of the blocks is left out" "$(cat command? expected? | wc -l)" "$(wc -l <console)"

# ---- the C example ----
cat >shown.c <<'EOF'
#include <birkhoff/birkhoff.h>
#include <stdio.h>
int main(int argc, char **argv) {
  const char *path = argv[argc - 1];
  bk_context *ctx = NULL;
  bk_device *device = NULL;
  bk_dataset *data = NULL;
  bk_model *model = NULL;
  bk_trainer *trainer = NULL;
  bk_model_config config;
  bk_train_config recipe;
  bk_metrics_row row;
  if (bk_context_create(NULL, &ctx) != BK_OK) return 1;
EOF
sed -n '/^```c$/,/^```$/p' "$README" | sed '/^```/d; s/^/  /' >heart.c
cat heart.c >>shown.c
cat >>shown.c <<'EOF'
  bk_trainer_destroy(trainer);
  bk_model_destroy(model);
  bk_dataset_close(data);
  bk_device_close(device);
  bk_context_destroy(ctx);
  return 0;
}
EOF
# build PROGRAM SOURCE: against the library of this build, installed or not
build() {
  # shellcheck disable=SC2086 # CFLAGS are words
  "$TOP_BUILDDIR/libtool" --quiet --tag=CC --mode=link ${CC:-cc} -std=c11 -Wall -Wextra -Werror ${CFLAGS-} -I"$TOP_SRCDIR/core/include" "$2" "$TOP_BUILDDIR/libbirkhoff.la" -o "$1"
}
holds "README has a C example" "$(wc -l <heart.c) > 5"
ok "it compiles" build shown shown.c
ok "and trains" ./shown "$EXAMPLE_TEXT"
equal "for as many steps as it says" "$(tail -n 1 out | cut -d ' ' -f 1)" 200
holds "to a smaller loss" "$(tail -n 1 out | cut -d ' ' -f 2) < 0.5 * $(head -n 1 out | cut -d ' ' -f 2)"
ok "doc/examples/train.c compiles" build train "$TOP_SRCDIR/doc/examples/train.c"
ok "and trains" ./train "$EXAMPLE_TEXT"
equal "prints as it says" "$(sed 's/  loss [0-9.]*  gain [0-9.]*$//' out | paste -sd ' ' -)" "step 1 step 10 step 20"
finish

#!/bin/sh
# birkhoff verify --bisect: a wrong kernel is named, whichever it is, and the case that is written fails on its device alone; a right
# device has none. backend-broken is cpu with one wrong kernel.
. "${TOP_SRCDIR:-$(cd "$(dirname "$0")/../../.." && pwd)}/tests/cli/lib.sh"
TEST_OPS=$TOP_BUILDDIR/tests/ops/test_ops
BIRKHOFF_BACKEND_DIR=$TOP_BUILDDIR/tests/ops/backend-broken/.libs
export BIRKHOFF_BACKEND_DIR BIRKHOFF_BROKEN BIRKHOFF_BROKEN_WIDTH
BIRKHOFF_BROKEN='' BIRKHOFF_BROKEN_WIDTH=0
small="--batch-size 1 --seq-len 12"

# ---- right devices ----
for kind in $(kinds); do
  for dtype in fp32 bf16; do
    ok "cpu, $kind in $dtype" "$BIRKHOFF" verify tiny --device cpu --bisect $small --set residual=$kind --dtype $dtype
    has "all calls" '^no call differs past its bound: 4[0-9][0-9] calls compared$' out
  done
done
ok "ref against cpu" "$BIRKHOFF" verify tiny --device ref --against cpu --bisect $small --json
equal "as JSON" "$(json found)" false
holds "with all calls" "$(json calls) > 300"
absent "no case without a difference" bisect-case.safetensors

# ---- options ----
refused 2 '--case FILE is for --bisect' "a case without --bisect" "$BIRKHOFF" verify tiny --device cpu --case x.safetensors
refused 2 'has to end in .safetensors' "a case that test_ops would not take" "$BIRKHOFF" verify tiny --device cpu --bisect --case x.st
refused 2 'max_position_embeddings' "a sequence that is too long" "$BIRKHOFF" verify tiny --device cpu --bisect --seq-len 100000

# ---- wrong ones ----
if [ ! -e "$BIRKHOFF_BACKEND_DIR/birkhoff_broken.so" ]; then
  echo "SKIP: the broken backend was not built (it takes modules and shared libraries)"
  skipped=$((skipped + 1))
  finish
fi
ok "the module with nothing broken" "$BIRKHOFF" verify tiny --device broken --bisect $small
has "nothing is found" '^no call differs past its bound' out

# found OP CAUSE OPERAND MICRO STAGE [OPTION...]: what is named, with BIRKHOFF_BROKEN=OP; the case fails on the device and passes on cpu.
found() {
  BIRKHOFF_BROKEN=$1 cause=$2 operand=$3 micro=$4 stage=$5
  shift 5
  name="$BIRKHOFF_BROKEN $*" case=$BIRKHOFF_BROKEN.safetensors
  "$BIRKHOFF" verify tiny --device broken --bisect $small --json --case $case "$@" >out 2>err
  equal "$name: exit status" $? 1
  has "$name: message" "^birkhoff: error: verify: $BIRKHOFF_BROKEN differs in $stage\$" err
  equal "$name: call" "$(json op) $(json kernel) $(json operand) $(json cause) $(json micro_batch)" \
    "$BIRKHOFF_BROKEN broken $operand $cause $micro"
  if [ $cause = changed ]; then absent "$name: no case" $case; return; fi
  equal "$name: case" "$(json case)" $case
  "$TEST_OPS" --case $case --device broken >out 2>err
  equal "$name: the case on the broken device" $? 1
  has "$name: it fails" '^0 passed, 1 failed$' out
  for device in cpu ref; do
    "$TEST_OPS" --case $case --device $device >out 2>err
    equal "$name: the case on $device" $? 0
    has "$name: it passes on $device" '^1 passed, 0 failed$' out
    equal "$name: without a word on $device" "$(cat err)" ""
  done
}
for dtype in fp32 bf16; do
  found rmsnorm value y 1 'layers.0 attention, F' --dtype $dtype
  found rmsnorm_bwd value dx 1 'head, D' --dtype $dtype
  found grouped_wgrad value c 2 'layers.2 feed-forward, experts, W' --dtype $dtype
done
found router value index 1 'layers.1 feed-forward, route, F'
found swiglu wrote up 1 'layers.0 feed-forward, F'
found adamw changed p 0 optimizer
BIRKHOFF_BROKEN_WIDTH=64
found rmsnorm value y 1 'head, F' --set residual=mhc
BIRKHOFF_BROKEN_WIDTH=0

# ---- in words, and where the case cannot be written ----
BIRKHOFF_BROKEN=rmsnorm_bwd
"$BIRKHOFF" verify tiny --device broken --bisect $small >out 2>err
has "words: the call" '^call [0-9]* differs: rmsnorm_bwd, kernel broken$' out
has "words: the stage" '^in  *head, D (micro-batch 1)$' out
has "words: the element" '^output  *dx\[0,5\] is .*, should be ' out
has "words: the error" '^nmse .*, bound 1e-10' out
there "the case has a default name" bisect-case.safetensors
"$BIRKHOFF" verify tiny --device broken --bisect $small --case no/such/folder.safetensors >out 2>err
equal "a folder that is not there" $? 1
has "is said" 'cannot create no/such/folder.safetensors' err

# ---- files that are no cases ----
cp grouped_wgrad.safetensors good.safetensors
wrong() { # NAME PATTERN: bad.safetensors is refused
  "$TEST_OPS" --case bad.safetensors >out 2>err
  equal "$1: exit status" $? 2
  has "$1" "$2" err
}
# edit SED-SCRIPT: of the header, which keeps its length
edit() { LC_ALL=C sed "$1" good.safetensors >bad.safetensors; }
edit 's/"birkhoff_case":"1"/"birkhoff_case":"2"/'; wrong "another format" 'no case'
edit 's/"op":"grouped_wgrad"/"op":"grouped_wgrax"/'; wrong "no op" 'no such op'
edit 's/"param.overwrite":"0"/"param.overwrite":"7"/'; wrong "no flag" 'overwrite'
edit 's/"param.overwrite"/"param.overwritf"/'; wrong "no parameter" 'overwrite: the parameter is missing'
edit 's/"in.a"/"in.q"/'; wrong "no operand" 'a: the operand is missing'
edit 's/"in.offsets":{"dtype":"I32"/"in.offsets":{"dtype":"F32"/'; wrong "another type" 'offsets'
edit 's/"out.c":{"dtype":"F32"/"out.c":{"dtype":"I32"/'; wrong "another type after" 'alike'
edit 's/"op":"grouped_wgrad"/"op":"rmsnorm_bwd"  /'; wrong "another op" 'is missing'
head -c 2000 good.safetensors >bad.safetensors; wrong "cut short" 'bad.safetensors'
echo nothing >bad.safetensors; wrong "nothing" 'bad.safetensors'
header=$(od -An -tu1 -N2 good.safetensors | awk '{ print $1 + 256 * $2 }')
begin=$(LC_ALL=C sed -n '1s/.*"in.offsets":{[^}]*"data_offsets":\[\([0-9]*\),.*/\1/p' good.safetensors)
cp good.safetensors bad.safetensors
printf '\377\377\377\177' | dd of=bad.safetensors bs=1 seek=$((8 + header + begin + 4)) conv=notrunc 2>/dev/null
wrong "a place past the end" 'offsets: a number points past'
finish

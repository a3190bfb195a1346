# tools/gpu-check.sh --device $device:0 from its first stage to its last, with short shapes and the few cases of two ops in the harness: what it
# compiles and links by its own list of files, what each stage says, the archive; from the tarball that --pack makes, where this is a
# repository. What follows for a backend alone is in the scripts that read this. The objects that opencl and vulkan have no part in are those
# of this build, and so is Vulkan's SPIR-V but for one file.
. "$(dirname "$0")/../gpu/lib.sh"
unset BIRKHOFF_BACKEND_DIR
[ -n "$(command -v bash)" ] || skip "there is no bash"
GPU_CHECK_ON_HOST=1 GPU_CHECK_CFLAGS=-O0 GPU_CHECK_OBJECTS=$W/objects GPU_CHECK_CASE=norm:fp32 BK_TEST_TINY=1
for flag in ${CFLAGS:-}; do
  case $flag in -O* | -g* | -W*) ;; *) GPU_CHECK_CFLAGS="$GPU_CHECK_CFLAGS $flag" ;; esac # coverage
done
export GPU_CHECK_ON_HOST GPU_CHECK_CFLAGS GPU_CHECK_OBJECTS GPU_CHECK_CASE BK_TEST_TINY

# Links under the names that gpu-check.sh gives its objects. The registry is compiled otherwise there, and BLAS is not linked.
mkdir objects
find "$TOP_BUILDDIR"/core "$TOP_BUILDDIR"/models "$TOP_BUILDDIR"/tools "$TOP_BUILDDIR"/backends/ref "$TOP_BUILDDIR"/backends/cpu \
  "$TOP_BUILDDIR"/tests/ops -name '*.o' | while IFS= read -r object; do
  name=$(basename "$object" .o) folder=$(dirname "${object#"$TOP_BUILDDIR"/}")
  case $name in
    registry | *-registry | blas | *-blas) ;;
    libcpu_*_la-*) isa=${name#libcpu_} && ln -sf "$object" "objects/${name##*-}_${isa%%_la-*}.o" ;;
    *) ln -sf "$object" "objects/$(echo "${folder%/.libs}" | tr / _)_${name##*-}.c.o" ;;
  esac
done
for header in "$TOP_BUILDDIR"/backends/vulkan/spirv/*.h; do [ ! -e "$header" ] || ln -s "$header" objects/; done
[ -z "$(command -v glslc)" ] || rm -f objects/rope.h # this one is compiled

# Stand-ins for what tells all of a driver.
mkdir bin
for tool in clinfo vulkaninfo; do printf '#!/bin/sh\necho "%s was here $*"\n' $tool >bin/$tool && chmod +x bin/$tool; done
PATH=$W/bin:$PATH

with= # NAME=VALUE..., for the calls that follow
# gpu_check OPTION...: exit status in rc, what it says in said
gpu_check() {
  env $with "$TREE/tools/gpu-check.sh" --device "${number:-$device:0}" --work "$W/work" --jobs 2 "$@" >said 2>&1 </dev/null
  rc=$?
}
# says NAME PATTERN: of said
says() { if grep -q -e "$2" said; then pass; else fail "$1: nothing like: $2" said; fi; }
archived() { # ARCHIVE FILE...
  archive=$1
  shift
  tar -tzf "$archive" >list 2>&1
  for file; do if grep -qx "./$file" list; then pass; else fail "$archive has no $file" list; fi; done
}

# left_out WHAT: it is counted as skipped
left_out() { skipped=$((skipped + 1)); echo "skipped: $1"; }
NO_PACK="--pack needs a git checkout, git and libjansson.a, which are not all here"

TREE=$TOP_SRCDIR
if [ -e "$TOP_SRCDIR/.git" ] && [ -n "$(command -v git)" ] && [ -f "$(pkg-config --variable=libdir jansson 2>/dev/null)/libjansson.a" ]; then
  "$TOP_SRCDIR/tools/gpu-check.sh" --pack "$W/pack.tar.gz" --device "$device:0" >said 2>&1
  equal "--pack" $? 0
  says "--pack says how it goes on" "run birkhoff/tools/gpu-check.sh --device $device:0\$"
  tar -xzf pack.tar.gz && TREE=$W/birkhoff
  case $device in
    opencl) there "the headers are in it" birkhoff/gpu-kit/include/CL/cl.h ;;
    vulkan)
      there "the headers are in it" birkhoff/gpu-kit/include/vulkan/vulkan.h
      equal "so is every compiled kernel" "$(ls birkhoff/gpu-kit/spirv/*.h | wc -l)" "$(ls "$TOP_SRCDIR"/backends/gpu/kernels/*.k | wc -l)"
      ;;
  esac
  GLSLC=/no/glslc # what the tarball has must do
  export GLSLC
else left_out "the tarball: $NO_PACK"
fi

gpu_check --out all
equal "all stages: exit status" $rc 0
says "all stages" '^[1-9][0-9]* passed, 0 failed, 0 skipped$'
for stage in build devices harness train bits ops step; do says "all stages" "^## $stage\$"; done
says "build" "^- passed: build for $device with 2 jobs"
says "limits" '^    "max_group": [1-9][0-9]*,$'
says "limits" '^    "local_memory": [1-9][0-9]*,$'
says "devices" "^- passed: $device:0 is here and tells its limits\$"
case $device in opencl) tool=clinfo ;; vulkan) tool=vulkaninfo && says "its summary" '^vulkaninfo was here --summary$' ;; esac
equal "what $tool says" "$(cat all/$tool.txt)" "$tool was here "
says "harness" '^- passed: harness, small shapes ('
says "bits of the parts" '^- passed: post + res and pre have the bits of their parts'
says "train: ref" '^- passed: tiny on ref ('
says "train: fp32" '^- passed: losses of steps 1 to 5, fp32 against ref: within '
says "train: bf16 by means" '^- passed: means of 3 losses, bf16 against ref in fp32: within '
for kind in $(kinds); do says "verify" "^- passed: verify tiny, $kind ("; done
for what in 'two runs' 'merges on a stream of their own' 'recompute or not'; do says "bits" "^- passed: fp32: 3 steps, $what: the same bits\$"; done
says "ops" '^hc_pre  '
says "roofs" '^- roofs, fp32: a copy moves [0-9.]* GB/s at .*, a product makes [0-9.]* GFLOP/s$'
says "step" '^- tiny: a step with mhc over one with plain: [0-9.]* times$'
says "profile" '^- passed: bench step --profile, tiny'
archived "all/gpu-check-$device-0.tar.gz" report.md devices.txt "$tool.txt" harness-0.log train-ref.log train-fp32.log losses-fp32.txt metrics-run-ref.jsonl bench-fp32.log step-tiny.json profile.log
equal "the report ends with the sum" "$(tail -n 1 all/report.md)" "$(grep '^[0-9]* passed, ' said | tail -n 1)"

number=$device:9
gpu_check --stage devices --stage harness --out nine
equal "a device that is not here: exit status" $rc 1
says "its name" "^- \*\*failed\*\*: $device:9 is not here; devices that are there: ref cpu $device:0"
says "the stage behind it" "^- skipped: harness: no device $device:9\$"
archived "nine/gpu-check-$device-9.tar.gz" report.md
number=metal:0
gpu_check --out none
equal "another backend: exit status" $rc 2
says "what would be right" '^--device metal:0: there is no such backend; cuda:0, opencl:N and vulkan:N are checked$'
number=$device:x
gpu_check --out none
equal "no number: exit status" $rc 2
says "a number" "^--device $device:x: a number is expected behind $device:\$"
number=
mkdir other && echo "not ours" >other/notes
gpu_check --stage devices --out other
equal "a folder with something else: exit status" $rc 2
says "which folder" "^--out $W/other: it is not empty and has no report of an earlier check"
equal "and it is as it was" "$(ls other)" notes
gpu_check --stage ncu --out none
equal "a stage of cuda: exit status" $rc 2
says "which there are" "^--stage ncu: the stages for $device are build devices harness train bits ops step\$"
gpu_check --part 2 --limit 0 --out part
equal "no time: exit status" $rc 1
for stage in build ops step; do says "part 2" "^- skipped: $stage: no time is left of 0 s\$"; done
archived "part/gpu-check-$device-0-part2.tar.gz" report.md

# broken NAME OUT FAULT: the harness, then another stage, on a stand-in of the driver that fails so. It is 1 where that stand-in was not built.
broken() {
  fake=$TOP_BUILDDIR/tests/$device/.libs/fake_$device.so upper=$(echo "$device" | tr a-z A-Z)
  [ -e "$fake" ] || { left_out "$1: fake_$device.so was not built"; return 1; }
  with="BIRKHOFF_${upper}_LIBRARY=$fake BK_FAKE_$upper=$3"
  gpu_check --stage harness --stage devices --out "$2"
  with=
  equal "$1: exit status" $rc 1
  says "$1" '^- \*\*failed\*\*: harness, small shapes: exit status 1'
  archived "$2/gpu-check-$device-0.tar.gz" report.md harness-0.log harness-op.log
}

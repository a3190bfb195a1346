#!/bin/sh
# tools/gpu-check.sh from its first stage to its last, with the kernels on the host and short shapes: what it compiles and links by its own
# list of files, what each stage runs, what it says after a failure, the archives; from the tarball that --pack makes, where this is a
# repository. The objects of the kernels and of the stand-ins are those of this build, since they take longest; compute-sanitizer and ncu are stand-ins
# that look at how they are called.
. "$(dirname "$0")/on_host.sh"
unset BIRKHOFF_BACKEND_DIR
command -v bash >/dev/null || { echo "SKIP: there is no bash"; exit 77; }
CXX=$(sed -n 's/^CXX = //p' "$TOP_BUILDDIR/Makefile")
GPU_CHECK_ON_HOST=1 GPU_CHECK_CFLAGS=-O0 GPU_CHECK_OBJECTS=$W/objects
for flag in ${CFLAGS:-}; do
  case $flag in -O* | -g* | -W*) ;; *) GPU_CHECK_CFLAGS="$GPU_CHECK_CFLAGS $flag" ;; esac # sanitizers, coverage
done
export CXX GPU_CHECK_ON_HOST GPU_CHECK_CFLAGS GPU_CHECK_OBJECTS
mkdir objects bin
for object in "$TOP_BUILDDIR"/tests/cuda-on-host/kernels/.libs/*.o; do ln -s "$object" "objects/$(basename "$object" .o).cu.o"; done
for object in "$TOP_BUILDDIR"/tests/cuda-on-host/.libs/*-*.o; do
  name=$(basename "$object" .o)
  [ ! -e "$TOP_SRCDIR/tests/cuda-on-host/${name##*-}.cpp" ] || ln -s "$object" "objects/${name##*-}.cpp.o"
done

cat >bin/compute-sanitizer <<'EOF'
#!/bin/sh
# --tool NAME --error-exitcode N PROGRAM ...
[ "$1" = --tool ] && [ "$3" = --error-exitcode ] || { echo "called with $*" >&2; exit 3; }
[ "$BIRKHOFF_CUDA_BLASLT$BIRKHOFF_CUDA_CUDNN" = 00 ] || { echo "with NVIDIA's libraries" >&2; exit 4; }
shift 4
exec "$@"
EOF
cat >bin/ncu <<'EOF'
#!/bin/sh
[ "$1" != --query-metrics ] || { echo "dram__throughput"; exit; }
case " $* " in *" --clock-control none "*) ;; *) echo "at other clocks" >&2; exit 3 ;; esac
while [ $# -gt 0 ]; do case $1 in */birkhoff) break ;; esac; shift; done
"$@" >&2 || exit
echo '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
echo '"0","void pre_kernel<float>(int)","gpu__time_duration.sum","ns","2,000"'
EOF
chmod +x bin/*
PATH=$W/bin:$PATH

# gpu_check OPTION...: exit status in rc, what it says in said
gpu_check() {
  "$TREE/tools/gpu-check.sh" --work "$W/work" --jobs 2 "$@" >said 2>&1 </dev/null
  rc=$?
}
# says NAME PATTERN; silent NAME PATTERN: of said
says() { if grep -q -e "$2" said; then pass; else fail "$1: nothing like: $2" said; fi; }
silent() { if grep -q -e "$2" said; then fail "$1: it says: $(grep -m 1 -e "$2" said)" said; else pass; fi; }
archived() { # ARCHIVE FILE...
  archive=$1
  shift
  tar -tzf "$archive" >list 2>&1
  for file; do if grep -qx "./$file" list; then pass; else fail "$archive has no $file" list; fi; done
}

TREE=$TOP_SRCDIR
if [ -e "$TOP_SRCDIR/.git" ] && command -v git >/dev/null && [ -f "$(pkg-config --variable=libdir jansson 2>/dev/null)/libjansson.a" ]; then
  "$TOP_SRCDIR/tools/gpu-check.sh" --pack "$W/pack.tar.gz" >said 2>&1
  equal "--pack" $? 0
  tar -xzf pack.tar.gz && TREE=$W/birkhoff
  git -C "$TOP_SRCDIR" ls-files | while IFS= read -r file; do [ ! -e "$TOP_SRCDIR/$file" ] || echo "$file"; done | sort >want
  (cd birkhoff && find . ! -type d | sed 's,^\./,,' | sort) >packed
  equal "what --pack left out" "$(comm -23 want packed | head -n 5)" ""
  equal "jansson is in it" "$(grep -c '^gpu-kit/' packed)" 4
fi

gpu_check --part 1 --out one
equal "part 1: exit status" $rc 0
says "part 1" '^[1-9][0-9]* passed, 0 failed, 0 skipped$'
for stage in build devices harness sanitizer train bits; do says "part 1" "^## $stage\$"; done
says "devices: which cuBLASLt" '^- cuBLASLt: .*libcublasLt.so.12 (version [0-9]*) serves dense products'
says "devices: no cuDNN" '^- cuDNN: .*libcudnn.so.9 is not found$'
says "sanitizers" '^- passed: compute-sanitizer racecheck$'
says "train: fp32" '^- passed: losses of steps 1 to 5, fp32'
says "train: bf16 by means" '^- passed: means of 3 losses, bf16'
archived one/gpu-check-part1.tar.gz report.md devices.log harness-0.log sanitizer-memcheck.log train-cpu.log metrics-run-cpu.jsonl
if [ "$TREE" != "$TOP_SRCDIR" ] && command -v ldd >/dev/null; then equal "jansson is the tarball's" "$(ldd work/birkhoff | grep -c jansson)" 0; fi

gpu_check --part 2 --out two
equal "part 2: exit status" $rc 0
says "part 2" '^[1-9][0-9]* passed, 0 failed, [01] skipped$'
for stage in build ops step peers ncu; do says "part 2" "^## $stage\$"; done
says "part 2 takes the programs of part 1" '^- passed: build: the programs of the part before serve$'
says "ops: attention at 192/128" '^attention_bwd_192 '
says "ops: what a copy moves" '^- copy (the roof of what moves memory, a kernel of our own): [0-9.]* GB/s'
says "ncu" '^| `pre_kernel<float>` | 2.0 '
grep '^- skipped' said | grep -v ': peers: ' >others # PyTorch need not be here
equal "nothing else is skipped" "$(cat others)" ""
archived two/gpu-check-part2.tar.gz report.md bench.log step-tiny.json ncu.csv

# A kernel that faults: what follows in the process fails too, and alone only its op does.
BK_TEST_TINY=1 BK_CUDA_FAULT=rope_kernel gpu_check --stage harness --stage devices --out fault
equal "a kernel faults: exit status" $rc 1
says "the first failure" '^FAIL rope:fp32'
says "the op alone" '^  - rope alone: exit status 1'
ops=$("$W/work/test_ops" --device ref --list | cut -d: -f1 | sort -u | wc -l)
says "no other op" "^  - op by op, each in a process of its own: $((ops - 1)) of $ops pass"
says "the next stage runs" '^- passed: a CUDA device is here'
archived fault/gpu-check.tar.gz report.md harness-0.log

# A kernel file that does not compile: the others are checked.
rm -f objects/*
ln -s "$W"/work/obj/*.o objects/
rm objects/rope.cu.o
cp -R work/obj kept
rm objects/*
ln -s "$W"/kept/*.o objects/
rm objects/rope.cu.o
BK_TEST_TINY=1 CXX=false gpu_check --stage build --stage devices --stage ops --out broken
equal "a file does not compile: exit status" $rc 1
says "which one" '^- \*\*failed\*\*: build: 1 files did not compile: backends/cuda/kernels/rope.cu$'
says "what is not there" 'bk_cuda_rope'
says "the stages run" '^- passed: a CUDA device is here'

rm objects/*
TREE=$TOP_SRCDIR
JANSSON=$W/nowhere gpu_check --stage build --stage devices --out none
equal "no jansson: exit status" $rc 1
says "no jansson" '^- \*\*failed\*\*: build: jansson is missing'
equal "and nothing was compiled" "$(ls work/obj)" ""
says "the stages behind it" '^- skipped: devices: nothing is built'
timeout 3 "$TREE/tools/gpu-check.sh" --work "$W/work" --jobs 1 --stage build --out "$W/cut" >said 2>&1 </dev/null
says "a call that is ended" '^ended by a signal after [1-4] s$'
archived cut/gpu-check.tar.gz report.md build.log
gpu_check --limit 0 --stage devices --out late
says "no time" '^- skipped: devices: no time is left of 0 s'
finish

#!/bin/sh
# The command and the cuda backend (on the host: README.md): what `devices` says when the driver or the device is not what it should be,
# and what a run says that lacks memory or meets a kernel that faults.
. "$(dirname "$0")/on_host.sh"

# ---- devices ----
ok devices "$BIRKHOFF" devices --json
equal "the device is there" "$(json name=cuda:0/status)" ok
equal "no reason" "$(json name=cuda:0/reason)" null
equal "its instruction set" "$(json name=cuda:0/isa)" sm_80
holds "its memory" "$(json name=cuda:0/memory) == 17179869184"
equal "it is the default" "$(json name=cuda:0/default)" true
ok "two devices" env BK_CUDA_DEVICES=2 "$BIRKHOFF" devices --json
equal "the second is there" "$(json name=cuda:1/status)" ok
equal "and not the default" "$(json name=cuda:1/default)" false

# broken DRIVER REASON: in JSON, in words, and when the device is asked for
broken() {
  ok "$1: devices" env BK_CUDA_DRIVER="$1" "$BIRKHOFF" devices --json
  equal "$1: status" "$(json name=cuda/status)" absent
  equal "$1: reason" "$(json name=cuda/reason)" "$2"
  equal "$1: another is the default" "$(json name=cpu/default)" true
  ok "$1: devices in words" env BK_CUDA_DRIVER="$1" "$BIRKHOFF" devices
  has "$1: in words" "^cuda *absent *$2\$" out
  refused 1 "device cuda:0 is not here: $2" "$1: asked for" env BK_CUDA_DRIVER="$1" "$BIRKHOFF" plan --model tiny --device cuda:0
}
broken none 'there is no NVIDIA driver (libcuda.so.1 is not found or cannot start)'
broken old 'the NVIDIA driver is too old: it serves CUDA 11.4, this module was built with CUDA 13.0'
broken nodevice 'the NVIDIA driver finds no device'
broken ancient 'no device has compute capability 8.0 or newer; CUDA kernels on the host (test equipment) has 7.0'
refused 1 'device cuda:1 is not here: cuda has 1 device, the last is cuda:0' "a number beyond" "$BIRKHOFF" plan --model tiny --device cuda:1
refused 2 'devices that are there: .*cuda' "an unknown name lists the device" "$BIRKHOFF" plan --model tiny --device gpu

# ---- runs ----
text data.txt 20000
small="--model tiny --data data.txt --seq-len 32 --batch-size 2 --steps 2 --device cuda:0 --set warmup_steps=0"
env BK_CUDA_MEMORY=100000 "$BIRKHOFF" train $small --out short >out 2>err </dev/null
equal "too little memory: exit status" $? 1
has "too little memory: how much" 'error: cuda:0: cannot allocate [0-9]* bytes of device memory; [0-9]* of 100000 bytes are free' err
has "too little memory: what for" 'memory: [a-z]* needs [0-9]* bytes' err
equal "too little memory: one error" "$(grep -c 'birkhoff: error' err)" 1
"$BIRKHOFF" train $small --out enough >out 2>err </dev/null
equal "enough memory: exit status" $? 0
env BK_CUDA_FAULT=kernel "$BIRKHOFF" train $small --out fault >out 2>err </dev/null
equal "a kernel faults: exit status" $? 1
has "a kernel faults: what CUDA calls it" 'error: cuda: .*failed on the device: an illegal memory access was encountered (cudaErrorIllegalAddress)' err
equal "a kernel faults: one error" "$(grep -c 'birkhoff: error' err)" 1
env BK_CUDA_FAULT=kernel BIRKHOFF_CUDA_SYNC=1 "$BIRKHOFF" train $small --out fault >out 2>err </dev/null
equal "a kernel faults while every launch is waited for: exit status" $? 1
has "a kernel faults while every launch is waited for: the op" 'error: cuda: cuda_[a-z0-9_]* failed on the device: ' err
finish

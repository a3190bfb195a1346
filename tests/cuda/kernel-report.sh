#!/bin/bash
# What the compiler made of the kernels of the residual connections, as a Markdown table: registers, stack, static shared memory, blocks
# and warps that fit a multiprocessor, and instructions by kind in the machine code. Needs no GPU, but cuobjdump and nvdisasm of a toolkit.
# usage: tests/cuda/kernel-report.sh [--kernels REGEX] [--not REGEX] [--arch 90a]... [--threads REGEX=N]... [--dynamic REGEX=BYTES]...
#                                    birkhoff_cuda.so | OBJECT...
#   --kernels, --not  which kernels, by "file:kernel<arguments>"; default: the residual connections' files, without those for fp32 streams
#   --arch            the targets (default: all that the file holds)
#   --threads         threads of a block where a launch takes fewer than the kernel's bound (__launch_bounds__), which is taken otherwise
#   --dynamic         dynamic shared memory of a block, which the compiler does not know (default: none)
# CUOBJDUMP names the program (default: the PATH's, then /usr/local/cuda/bin/cuobjdump).
# Blocks that fit: 64 Ki registers, given to a warp in units of 256 and to four schedulers alike; 2048 threads; 32 blocks; shared memory of
# 164 KiB (sm_80) or 228 KiB (sm_90, sm_100), 1 KiB of it the system's in each block. What sets the number stands beside it.
# Columns: stack: bytes of local memory a thread (spills and indexed arrays); local: loads and stores of it; tensor: HMMA, HGMMA, UTCHMMA;
# FFMA: with FFMA2; LDG, STG: loads and stores of global memory, and the share that moves 16 bytes or more a thread; async: LDGSTS and bulk
# copies; LDS: with LDSM and STS; MUFU: exp2, log2, 1/x and the like. Counts are of the code, not of what runs.
# Exit status: 0; 1 where nothing matches, or a kernel in the table uses the stack; 2 usage; 77 without cuobjdump.
set -u -o pipefail
kernels='^(hc_|maps|perm|sinkhorn|streams|pre_norm|merge|rebuild)' without='<float' archs=() threads=() dynamic=()
usage() { sed -n '4,5p' "$0" | sed 's/^# //' >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in --*) [ $# -ge 2 ] || usage ;; *) break ;; esac
  case $1 in
    --kernels) kernels=$2 ;;
    --not) without=$2 ;;
    --arch) archs+=("${2#sm_}") ;;
    --threads) threads+=("$2") ;;
    --dynamic) dynamic+=("$2") ;;
    *) usage ;;
  esac
  shift 2
done
[ $# -gt 0 ] || usage
for file; do [ -r "$file" ] && [ -f "$file" ] || { echo "kernel-report.sh: cannot read $file" >&2; exit 2; }; done
for pair in "${threads[@]}" "${dynamic[@]}"; do
  [[ $pair =~ =[0-9]+$ ]] || { echo "kernel-report.sh: $pair: expected REGEX=NUMBER" >&2; exit 2; }
done
dump=${CUOBJDUMP:-$(command -v cuobjdump || echo /usr/local/cuda/bin/cuobjdump)}
[ -x "$dump" ] || { echo "kernel-report.sh: no cuobjdump (CUOBJDUMP names one)" >&2; exit 77; }
PATH=$(dirname "$dump"):$PATH # for nvdisasm
W=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-kernels.XXXXXX") || exit 1
trap 'rm -rf "$W"' EXIT

# ---- names: mangled, and as file:kernel<arguments> ----
named() { # FILE: its kernels
  "$dump" -res-usage "$1" 2>/dev/null | sed -n 's/^ *Function \(.*\):$/\1/p' | sort -u >"$W/mangled"
  c++filt <"$W/mangled" | sed 's/(anonymous namespace):://g; s/^void //; s/\([^(]\)(.*/\1/' >"$W/plain"
  sed -n 's/.*_GLOBAL__N__[0-9a-f]\{8\}_[0-9]*_\(.*\)_cu_[0-9a-f]\{8\}.*/\1/p; t; s/.*/-/p' "$W/mangled" >"$W/source"
  paste -d ' ' "$W/mangled" <(paste -d : "$W/source" "$W/plain" | tr -d ' ')
}
for file; do
  named "$file" | awk -v want="$kernels" -v without="$without" '$2 ~ want && (without == "" || $2 !~ without)' >"$W/names"
  [ -s "$W/names" ] || continue
  cat "$W/names" >>"$W/all"
  functions=$(cut -d ' ' -f 1 "$W/names" | paste -sd ,)
  targets=("${archs[@]}")
  [ ${#targets[@]} -gt 0 ] || mapfile -t targets < <("$dump" --list-elf "$file" | sed -n 's/.*\.sm_\([0-9a-z]*\)\.cubin.*/\1/p' | sort -u)
  for arch in "${targets[@]}"; do
    "$dump" -res-usage -arch "sm_$arch" "$file" 2>/dev/null | sed "s/^/$arch /" >>"$W/usage"
    "$dump" -elf -arch "sm_$arch" "$file" 2>/dev/null | awk -v arch="$arch" '
      /^\.nv\.info\._Z|^\.nv\.info\.[a-z]/ { name = substr($1, 10); next }
      /^\./ { name = "" }
      /EIATTR_MAX_THREADS|EIATTR_REQNTID/ { bound = 1; next }
      bound && /Value:/ { if (name != "") print arch, name, $2, $3, $4; bound = 0 }' >>"$W/bounds"
    "$dump" -sass -arch "sm_$arch" -fun "$functions" "$file" 2>/dev/null | sed "s/^/$arch /" >>"$W/sass"
  done
done
[ -s "$W/all" ] || { echo "kernel-report.sh: no kernel matches $kernels" >&2; exit 1; }
printf '%s\n' "${threads[@]}" >"$W/threads"
printf '%s\n' "${dynamic[@]}" >"$W/dynamic"

# ---- the table ----
awk -v W="$W" '
function hex(text, value, i) {
  text = tolower(substr(text, 3))
  for (i = 1; i <= length(text); i++) value = value * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
  return value
}
function least(a, b) { return a < b ? a : b }
function given(list, count, label, otherwise, i, at) {
  for (i = 1; i <= count; i++) {
    at = match(list[i], /=[0-9]+$/)
    if (at && label ~ substr(list[i], 1, at - 1)) otherwise = substr(list[i], at + 1) + 0
  }
  return otherwise
}
# Blocks of `block` threads that fit, in `blocks`; what sets it, in `limit`.
function occupancy(arch, block, registers, bytes, warps, per_warp, total, by) {
  warps = int((block + 31) / 32)
  per_warp = int((registers * 32 + 255) / 256) * 256
  total = (arch ~ /^(80|87)/ ? 164 : arch ~ /^(86|89|12)/ ? 100 : 228) * 1024
  blocks = least(32, int(2048 / (warps * 32)))
  limit = blocks == 32 ? "blocks" : "threads"
  by = per_warp ? int(int(65536 / per_warp / 4) * 4 / warps) : 32
  if (by < blocks) { blocks = by; limit = "registers" }
  by = int(total / (bytes + 1024))
  if (by < blocks) { blocks = by; limit = "shared" }
}
function share(part, whole) { return whole ? sprintf("%d (%d %%)", whole, 100 * part / whole + 0.5) : "0" }
BEGIN {
  while ((getline < (W "/all")) > 0) label[$1] = $2
  while ((getline line < (W "/threads")) > 0) if (line != "") threads[++n_threads] = line
  while ((getline line < (W "/dynamic")) > 0) if (line != "") dynamic[++n_dynamic] = line
  while ((getline < (W "/bounds")) > 0) bound[$1, $2] = hex($3) * hex($4) * hex($5)
  while ((getline < (W "/usage")) > 0) {
    if ($2 == "Function") { name = substr($3, 1, length($3) - 1); continue }
    if ($2 !~ /^REG:/ || !(name in label)) continue
    split($2, r, ":"); split($3, s, ":"); split($4, m, ":")
    registers[$1, name] = r[2]; stack[$1, name] = s[2]
    shared[$1, name] = m[2] >= 1024 && $1 !~ /^[78]/ ? m[2] - 1024 : m[2] # from sm_90 on it has the system part in it
    key[++n] = $1 SUBSEP name
  }
  while ((getline < (W "/sass")) > 0) {
    if ($2 == "Function") { at = $1 SUBSEP $4; continue }
    if ($2 !~ /^\/\*[0-9a-f]+\*\/$/ || $3 == ";") continue
    op = $3 ~ /^@/ ? $4 : $3
    if (op ~ /^NOP/) continue
    wide = op ~ /\.(128|256)/
    total[at]++
    if (op ~ /^(HMMA|HGMMA|UTC[A-Z]*MMA)/) tensor[at]++
    else if (op ~ /^FFMA/) ffma[at]++
    else if (op ~ /^LDG\.|^LDG$/) { ldg[at]++; ldg_wide[at] += wide }
    else if (op ~ /^STG/) { stg[at]++; stg_wide[at] += wide }
    else if (op ~ /^(LDGSTS|UBLKCP|UTMALDG)/) async[at]++
    else if (op ~ /^(LDS|LDSM|STS)(\.|$)/) lds[at]++
    else if (op ~ /^(SHFL|REDUX|CREDUX)/) shfl[at]++
    else if (op ~ /^MUFU/) mufu[at]++
    else if (op ~ /^BAR/) bar[at]++
    else if (op ~ /^(LDL|STL)/) lcl[at]++
  }
  for (i = 1; i <= n; i++) {
    k = key[i]; split(k, p, SUBSEP); text = label[p[2]]; sub(/^-:/, "", text)
    block = given(threads, n_threads, label[p[2]], bound[k] ? bound[k] : 1024)
    bytes = shared[k] + given(dynamic, n_dynamic, label[p[2]], 0)
    occupancy(p[1], block, registers[k], bytes)
    warps = int((block + 31) / 32)
    printf "%s\t%s\t| `%s` | %s | %d%s | %d | %d | %d | %d, %d (%s) | %d | %d | %d | %s | %s | %d | %d | %d | %d | %d | %d |\n", text, p[1], text, p[1], block,
      bound[k] ? "" : " (no bound)", registers[k], stack[k], bytes, blocks, blocks * warps, limit, total[k], tensor[k], ffma[k], share(ldg_wide[k], ldg[k]),
      share(stg_wide[k], stg[k]), async[k], lds[k], shfl[k], mufu[k], bar[k], lcl[k]
  }
}' | sort -t "$(printf '\t')" -k1,1 -k2,2n | cut -f 3 >"$W/rows"
[ -s "$W/rows" ] || { echo "kernel-report.sh: cuobjdump reports no resources" >&2; exit 1; }
echo '| kernel | sm | threads | registers | stack | shared | blocks, warps that fit | code | tensor | FFMA | LDG (16 B) | STG (16 B) | async | LDS | SHFL | MUFU | BAR | local |'
echo '|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|'
cat "$W/rows"
if awk -F '|' '$6 + 0 > 0 { exit 1 }' "$W/rows"; then exit 0; fi
echo "kernel-report.sh: kernels in this table use the stack" >&2
exit 1

#!/bin/sh
# Compiles every kernel (or those of the named files) as GLSL in all variants that the vulkan backend has. usage: check-glsl.sh [NAME...]
cd "$(dirname "$0")" || exit 1
T=$(mktemp -d) bad=0 n=0
trap 'rm -rf "$T"' EXIT
[ $# -gt 0 ] || set -- $(ls kernels/*.k | sed 's,kernels/,,; s,\.k$,,')
for file; do
  for kernel in $(awk -f kernels.awk -v mode=list "kernels/$file.k"); do
    awk -f kernels.awk -v mode=glsl -v kernel="$kernel" "kernels/$file.k" >"$T/k.comp" || bad=$((bad + 1))
    for options in "" -DBK_BDA -DBK_NO_16BIT; do
      n=$((n + 1))
      glslc --target-env=vulkan1.2 -O $options "$T/k.comp" -o "$T/k.spv" >"$T/log" 2>&1 && spirv-val "$T/k.spv" >>"$T/log" 2>&1 || { bad=$((bad + 1)); echo "$file.k, kernel $kernel $options:"; cat "$T/log"; }
    done
  done
done
echo "$((n - bad)) passed, $bad failed, 0 skipped"
[ $bad -eq 0 ]

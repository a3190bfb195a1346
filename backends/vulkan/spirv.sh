#!/bin/sh
# Compiles the kernels of one kernel file to SPIR-V, in the three variants that vulkan.h names, and writes them as a C header:
# arrays of words, and the macro BK_VK_SPIRV_name with a row of bk_vk_spirv for each kernel. Variants that come out alike are there once.
# usage: AWK=awk GLSLC=glslc spirv.sh FILE.k OUT.h
set -eu
file=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
name=$(basename "$file" .k)
: "${AWK:=awk}" "${GLSLC:=glslc}"
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
trap 'exit 1' HUP INT TERM

# One run of the compiler for all kernels of a variant: starting it is most of its time.
compile() { # variant options
  mkdir "$T/$1"
  variant=$1
  shift
  (cd "$T/$variant" && $GLSLC --target-env=vulkan1.2 -O -mfmt=num "$@" -c $sources) 2>"$T/log" || {
    echo "$name.k, variant $variant:" >&2
    cat "$T/log" >&2
    exit 1
  }
}

kernels=$($AWK -f "$here/../gpu/kernels.awk" -v mode=list "$file")
sources=
for k in $kernels; do
  $AWK -f "$here/../gpu/kernels.awk" -v mode=glsl -v kernel="$k" "$file" >"$T/$k.comp"
  sources="$sources ../$k.comp"
done
if [ -n "$sources" ]; then
  compile split
  compile address -DBK_BDA
  compile split_32 -DBK_NO_16BIT
fi

mkdir -p "$(dirname "$out")"
{
  echo "/* Made by backends/vulkan/spirv.sh from backends/gpu/kernels/$name.k: do not edit. */"
  rows=
  for k in $kernels; do
    row="{\"$k\", {"
    for variant in split address split_32; do
      array=bk_vk_${k}_$variant
      if [ $variant = split_32 ] && cmp -s "$T/split/$k.comp.spv" "$T/split_32/$k.comp.spv"; then array=bk_vk_${k}_split
      else
        echo "static const uint32_t $array[] = {"
        $AWK -f "$here/spirv.awk" "$T/$variant/$k.comp.spv"
        echo "};"
      fi
      row="$row{$array, sizeof $array}, "
    done
    rows="$rows $row}},"
  done
  echo "#define BK_VK_SPIRV_$name$rows"
} >"$out.tmp"
mv "$out.tmp" "$out"

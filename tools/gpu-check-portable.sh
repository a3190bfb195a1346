# shellcheck shell=bash disable=SC2154 # read by gpu-check.sh, which has the rest
# What gpu-check.sh does for opencl and vulkan alone. Like all else they are compiled by a list of files and linked into the command, without
# make and autotools; what the Makefile makes of the kernel files is made here too: C and OpenCL C by awk, SPIR-V by glslc. The libraries of
# OpenCL and Vulkan are found at run time; their headers are the system's or the tarball's.

# ---- what it takes ----
kit_include=()
[ ! -d gpu-kit/include ] || kit_include=(-Igpu-kit/include)
# header_folder NAME: where the compiler finds <NAME>; nothing where it does not
header_folder() {
  printf '#include <%s>\n' "$1" | "${CC:-cc}" -DCL_TARGET_OPENCL_VERSION=120 "${kit_include[@]}" -E -x c - 2>/dev/null | sed -n "s,^# 1 \"\\(.*\\)/$1\".*,\\1,p" | head -n 1
}
# loads LIBRARY: whether a program can open it at run time, as the backends do
loads() {
  if [ ! -x "$WORK/loads" ]; then
    printf '#include <dlfcn.h>\nint main(int n, char **v) { return !(n > 1 && dlopen(v[1], RTLD_NOW)); }\n' >"$WORK/loads.c"
    "${CC:-cc}" -o "$WORK/loads" "$WORK/loads.c" -ldl || return
  fi
  within 30 "$WORK/loads" "$1" 2>/dev/null
}
# Compiled kernels that are kept: the tarball's, where the sources are still those that they were made of, or a release's.
spirv_sum() { # in the order of LC_ALL=C, which gpu-check.sh sets
  local folder=backends/gpu/kernels
  cat $folder/*.k $folder/*.kh $folder/vulkan.glsl backends/gpu/kernels.awk backends/vulkan/spirv.sh backends/vulkan/spirv.awk | cksum
}
kept_spirv() {
  if [ "$(cat gpu-kit/spirv/sum 2>/dev/null)" = "$(spirv_sum)" ]; then echo gpu-kit/spirv
  elif [ ! -e .git ] && [ -f backends/vulkan/spirv/basic.h ]; then echo backends/vulkan/spirv
  fi
}
# What is not here, each with what helps: said before anything is compiled, all at once.
what_is_missing() {
  [ ${#jansson_libs[@]} -gt 0 ] || echo "jansson (jansson.h and its library; Debian: libjansson-dev, or JANSSON=DIR, a folder that has them)"
  if [ "$BACKEND" = opencl ]; then
    [ -n "$(header_folder CL/cl.h)" ] || echo "CL/cl.h (Debian: opencl-headers, or a tarball that --pack made for --device opencl:0)"
    loads "${BIRKHOFF_OPENCL_LIBRARY:-libOpenCL.so.1}" || echo "${BIRKHOFF_OPENCL_LIBRARY:-libOpenCL.so.1} (Debian: ocl-icd-libopencl1)"
  else
    [ -n "$(header_folder vulkan/vulkan.h)" ] || echo "vulkan/vulkan.h (Debian: libvulkan-dev, or a tarball that --pack made for --device vulkan:0)"
    [ -n "$(kept_spirv)" ] || "${GLSLC:-glslc}" --version >/dev/null 2>&1 ||
      echo "${GLSLC:-glslc}, which compiles the kernels (Debian: glslc, or a tarball that --pack made for --device vulkan:0)"
    loads "${BIRKHOFF_VULKAN_LIBRARY:-libvulkan.so.1}" || echo "${BIRKHOFF_VULKAN_LIBRARY:-libvulkan.so.1} (Debian: libvulkan1)"
  fi
}

# ---- build ----
kernel_files() { local k; for k in backends/gpu/kernels/*.k; do basename "$k" .k; done; }
of_kernels() { awk -f backends/gpu/kernels.awk -v mode="$1" "${@:2}"; }
# The text of the kernels as C strings, one for each file.
opencl_sources() {
  local k folder=backends/gpu/kernels
  echo 'static const char bk_cl_prelude[] ='
  of_kernels text $folder/opencl.cl || return
  of_kernels cl $folder/math.kh || return
  echo ';'
  for k in $(kernel_files); do
    echo "static const char bk_cl_text_${k}[] ="
    of_kernels cl "$folder/$k.k" || return
    echo ';'
  done
  echo 'static const struct { const char *file, *text; } bk_cl_files[] = {'
  for k in $(kernel_files); do echo "  {\"$k.k\", bk_cl_text_$k},"; done
  echo '};'
}
# spirv FOLDER [within SECONDS]: every kernel file, side by side. FOLDER.list has the commands: behind a pipe no signal would end them.
spirv() {
  local k given=${ON_HOST:+${GPU_CHECK_OBJECTS:-}}
  mkdir -p "$1"
  for k in $(kernel_files); do
    if [ -n "$given" ] && [ -f "$given/$k.h" ]; then printf 'cp %q %q\n' "$given/$k.h" "$1/$k.h"
    else printf 'sh backends/vulkan/spirv.sh %q %q\n' "backends/gpu/kernels/$k.k" "$1/$k.h"
    fi
  done >"$1.list"
  "${@:2}" "${RUN_LIST[@]}" <"$1.list"
}
vulkan_sources() {
  local k
  for k in $(kernel_files); do echo "#include \"spirv/$k.h\""; done
  printf '#define BK_VK_SPIRV_ROWS'
  for k in $(kernel_files); do printf ' BK_VK_SPIRV_%s' "$k"; done
  echo
}
generate() {
  local to=$WORK/generated kept
  rm -rf "$to"
  mkdir -p "$to" && of_kernels c backends/gpu/kernels/*.k >"$to/gpu_kernels.h" || return
  if [ "$BACKEND" = opencl ]; then opencl_sources >"$to/opencl_sources.h"
  else
    kept=$(kept_spirv)
    vulkan_sources >"$to/vulkan_spirv.h" && if [ -n "$kept" ]; then cp -r "$kept" "$to/spirv"; else spirv "$to/spirv" within 300; fi
  fi
}
prepare_portable() {
  local missing
  mapfile -t missing < <(what_is_missing)
  if [ ${#missing[@]} -gt 0 ]; then fail "build: missing here: $(printf '%s; ' "${missing[@]}" | sed 's/; $//')"; return 1; fi
  generate >"$OUT/build.log" 2>&1 || { fail "build: what is made of the kernel files cannot be made" "$OUT/build.log"; return 1; }
}
portable_list() {
  local source
  for source in "backends/$BACKEND"/*.c backends/gpu/*.c; do
    compile "$(echo "$source" | tr / _).o" "${CC:-cc}" "${cflags[@]}" "${kit_include[@]}" "-I$WORK/generated" "${defines[@]}" -c "$source"
  done
}

# pack_portable KIT: what --pack puts into the tarball for the backend of --device
pack_portable() {
  local kit=$1 name=CL/cl.h package=opencl-headers folder part
  [ "$BACKEND" != cuda ] || return 0
  [ "$BACKEND" = opencl ] || name=vulkan/vulkan.h package=libvulkan-dev
  folder=$(header_folder "$name")
  [ -n "$folder" ] || { echo "$name is not here (Debian: $package)" >&2; return 1; }
  for part in CL vulkan vk_video; do
    case $BACKEND:$part in opencl:v* | vulkan:CL) continue ;; esac
    [ -d "$folder/$part" ] || continue
    mkdir -p "$kit/include/$part" && cp "$folder/$part"/*.h "$kit/include/$part/" || return
  done
  [ "$BACKEND" = vulkan ] || return 0
  "${GLSLC:-glslc}" --version >/dev/null 2>&1 || { echo "${GLSLC:-glslc} is not here (Debian: glslc)" >&2; return 1; }
  spirv "$kit/spirv" && rm "$kit/spirv.list" && spirv_sum >"$kit/spirv/sum"
}

# ---- the device ----
machine() {
  uname -srm
  sed -n 's/^model name[^:]*: /processor: /p' /proc/cpuinfo 2>/dev/null | head -n 1
}
# Its row of `devices --json`, and one number of that.
device_row() { within 60 "$BIRKHOFF" devices --json 2>/dev/null | awk -v name="\"$DEVICE\"," '$1 == "\"name\":" { inside = $2 == name } inside && /^    / { print }'; }
device_figure() { device_row | sed -n "s/^ *\"$1\": \\([0-9]*\\),\\{0,1\\}$/\\1/p"; }
stored_as() { device_row | grep -q "^ *\"$1\",\\{0,1\\}\$"; }
is_processor() { device_row | grep -q '"features": "cpu'; }

portable_devices() {
  local tool
  within 60 "$BIRKHOFF" devices 2>&1 | show
  if ! on_device; then
    fail "$DEVICE is not here; devices that are there: $(within 60 "$BIRKHOFF" devices 2>/dev/null | sed -n 's/^\([a-z]*:*[0-9]*\) *ok.*/\1/p' | paste -sd ' ')"
    return
  fi
  device_row >"$OUT/devices.txt"
  show <"$OUT/devices.txt"
  if [ -n "$(device_figure memory)" ] && [ -n "$(device_figure max_group)" ]; then pass "$DEVICE is here and tells its limits"; else fail "$DEVICE does not tell its memory and its work groups" "$OUT/devices.txt"; fi
  # For whoever reads the report: all that the drivers say.
  tool=clinfo
  [ "$BACKEND" = opencl ] || tool=vulkaninfo
  if ! command -v $tool >/dev/null; then say "- $tool is not here (Debian: $([ $tool = clinfo ] && echo clinfo || echo vulkan-tools)): what it says is not in the archive"; return; fi
  within 60 $tool >"$OUT/$tool.txt" 2>&1 || say "- $tool: exit status $?"
  [ $tool = clinfo ] || within 60 $tool --summary 2>&1 | show
}

# Each shape of its own is a kernel that the driver compiles: small ones first, so that there is a result early.
portable_harness() {
  local switch=() what
  if [ "$BACKEND" = opencl ]; then
    what='without CLBlast'
    is_processor || ! loads libclblast.so.1 || switch=(BIRKHOFF_OPENCL_CLBLAST=0) # on processors it does not serve
  else
    what='operands by bindings'
    ! device_row | grep -q 'operands by address' || switch=(BIRKHOFF_VULKAN_BINDINGS=split)
  fi
  harness 0 "small shapes" BK_TEST_QUICK=1
  [ ${#switch[@]} -eq 0 ] || harness 1 "small shapes, $what" BK_TEST_QUICK=1 "${switch[@]}"
  [ -n "$ON_HOST" ] || harness 2 "all shapes"
}

# What a copy and a product reach: the roofs that the shares of the table are of.
roofs() { # LOG DTYPE
  say "- roofs, $2: a copy moves $(sed -n 's/^roof: .* \([0-9.]* GB\/s at [^,]*\)$/\1/p' "$1"), a product makes $(sed -n 's/^roof: \([0-9.]*\) GFLOP.*/\1/p' "$1") GFLOP/s"
}
# Why the larger shapes are not for the device; nothing where they are.
why_small_alone() {
  local bytes
  bytes=$(card_bytes)
  if [ "$bytes" = 0 ]; then echo "the device's memory is not known"; elif below "$bytes" 4e9; then echo "the device has less than 4 GB"; fi
}
portable_ops() {
  local sizes=("" "--tokens 4096 --width 2560") s dtype log why
  [ -z "$ON_HOST" ] || sizes=("--tokens 64 --width 64 --seconds 0.01 --op copy gemm rmsnorm hc_pre hc_post_res_bwd")
  for dtype in "${DTYPES[@]}"; do
    for s in "${sizes[@]}"; do
      log=$OUT/bench-$dtype.log
      case $s in
        *2560)
          log=$OUT/bench-$dtype-large.log why=$(why_small_alone)
          [ -z "$why" ] || { skip "bench ops, $dtype, $s: $why"; continue; }
          ;;
      esac
      # shellcheck disable=SC2086
      check $((120 * PATIENCE)) "bench ops, $dtype, ${s:-its default sizes}" "$log" "$BIRKHOFF" bench ops --device "$DEVICE" --dtype "$dtype" $s || continue
      show <"$log"
      roofs "$log" "$dtype"
    done
  done
}

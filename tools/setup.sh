# Sourced by test.sh and demo.sh: Debian packages, of this machine and of others, and processors.

# install_packages NAME...: those that are missing, through apt (root).
install_packages() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing: ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    echo "these Debian packages are missing and need root to install: ${missing[*]}" >&2
    return 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# sysroot DIR ARCH NAME...: unpacks Debian packages of another architecture into DIR. Nothing on the machine changes: apt works with
# lists and a state of its own in DIR.apt.
sysroot() {
  local dir=$1 arch=$2 apt=$1.apt
  shift 2
  [ -e "$dir/complete" ] && return 0
  mkdir -p "$dir" "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs" && : >"$apt/status" || return 1
  cat >"$apt/apt.conf" <<EOF
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
EOF
  APT_CONFIG=$apt/apt.conf apt-get update -qq && (cd "$apt/debs" && APT_CONFIG=$apt/apt.conf apt-get download -qq "$@") || return 1
  local deb
  for deb in "$apt"/debs/*.deb; do dpkg-deb -x "$deb" "$dir" || return 1; done
  touch "$dir/complete"
}

jobs_here() { nproc 2>/dev/null || echo 2; }
BUILD_PACKAGES=(gcc libc6-dev make autoconf automake libtool pkg-config libopenblas-dev libjansson-dev)
# The transport mpi: Open MPI to build with, and its launcher for tests.
MPI_PACKAGES=(libopenmpi-dev openmpi-bin)
# The opencl and vulkan backends: what building takes, then what running them on a processor and checking them takes.
GPU_BUILD_PACKAGES=(opencl-headers libvulkan-dev glslc)
GPU_TEST_PACKAGES=(ocl-icd-libopencl1 pocl-opencl-icd libclblast1 oclgrind mesa-vulkan-drivers vulkan-validationlayers spirv-tools)

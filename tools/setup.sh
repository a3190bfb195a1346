# Sourced by test.sh and demo.sh: Debian packages and processors.

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

jobs_here() { nproc 2>/dev/null || echo 2; }
BUILD_PACKAGES=(gcc libc6-dev make autoconf automake libtool pkg-config libopenblas-dev libjansson-dev)

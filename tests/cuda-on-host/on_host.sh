# Shared by the shell tests of the cuda backend on the host: points the module loader there, skips where it was not built.
TOP_SRCDIR=${TOP_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}
. "$TOP_SRCDIR/tests/cli/lib.sh"
BIRKHOFF_BACKEND_DIR=$TOP_BUILDDIR/tests/cuda-on-host/.libs
export BIRKHOFF_BACKEND_DIR
if [ ! -e "$BIRKHOFF_BACKEND_DIR/birkhoff_cuda.so" ]; then
  echo "SKIP: the cuda backend was not built for the host (it takes a C++17 compiler, modules and shared libraries)"
  exit 77
fi
# needs PROGRAM: of the build folder; without libcheck there are no test programs
needs() {
  [ -x "$TOP_BUILDDIR/$1" ] && return
  echo "SKIP: $1 was not built"
  exit 77
}

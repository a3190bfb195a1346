# Sourced by the tests under a launcher of MPI. mpi N COMMAND... runs N ranks; the script ends here, skipped, where that cannot be.
# Environment: MPIRUN, BK_MPI_SECONDS (how long a run may take).
. "$(dirname "$0")/../cli/lib.sh"
MPIRUN=${MPIRUN:-mpirun}
BIRKHOFF_BACKEND_DIR=${BIRKHOFF_BACKEND_DIR:-$TOP_BUILDDIR/.libs}
export BIRKHOFF_BACKEND_DIR
skip_all() {
  echo "skipped: $1"
  echo "0 passed, 0 failed, 1 skipped"
  exit 77
}
[ -e "$BIRKHOFF_BACKEND_DIR/birkhoff_comm_mpi.so" ] && [ -e "$TOP_BUILDDIR/tests/mpi/wire" ] || skip_all "this build has no MPI"
command -v "$MPIRUN" >/dev/null || skip_all "there is no $MPIRUN"

# Of Open MPI: ranks share cores here and are not bound to one; root is refused without being told, and in some containers a process may not
# read the memory of another, which Open MPI would try and complain about.
case $("$MPIRUN" --version 2>&1) in
  *"Open MPI"* | *OpenRTE*)
    mpi_flags="--oversubscribe --bind-to none"
    [ "$(id -u)" -ne 0 ] || mpi_flags="$mpi_flags --allow-run-as-root"
    OMPI_MCA_btl_vader_single_copy_mechanism=none
    export OMPI_MCA_btl_vader_single_copy_mechanism
    ;;
  *) mpi_flags= ;;
esac
mpi() {
  ranks=$1
  shift
  # shellcheck disable=SC2086
  keeps timeout "${BK_MPI_SECONDS:-100}" "$MPIRUN" $mpi_flags -n "$ranks" "$@"
}

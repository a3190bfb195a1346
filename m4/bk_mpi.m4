# BK_MPI: the transport mpi, a loadable module. --with-mpi=guess|no|yes|PATH. Open MPI or MPICH of MPI-3 (Debian: libopenmpi-dev or
# libmpich-dev). PATH is an installation, whose bin/mpicc is asked what to compile and link with, or such an mpicc itself; without one,
# pkg-config is asked, and then the mpicc of the search path. Launchers (mpirun, srun) are found at run time, or not.

# BK_MPI_TRY(WHERE): do a header of MPI-3 and the library serve that MPI_CFLAGS and MPI_LIBS name?
AC_DEFUN([BK_MPI_TRY],[AS_IF([test "x$bk_happy_mpi" = xno],[
  AC_MSG_CHECKING([for MPI-3 by $1])
  bk_mpi_cppflags=$CPPFLAGS bk_mpi_libs=$LIBS
  CPPFLAGS="$CPPFLAGS $MPI_CFLAGS" LIBS="$MPI_LIBS $LIBS"
  AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <mpi.h>
#if MPI_VERSION < 3
#error MPI-3 is needed
#endif]],[[MPI_Comm node; int given;
    return MPI_Init_thread(0, 0, MPI_THREAD_FUNNELED, &given) || MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);]])],
    [bk_happy_mpi=yes])
  CPPFLAGS=$bk_mpi_cppflags LIBS=$bk_mpi_libs
  AC_MSG_RESULT([$bk_happy_mpi])])])

# BK_MPI_MPICC(MPICC): what it says of itself, in the words of Open MPI, else of MPICH: the command that it would call, with flags for the
# linker in both cases, of which compilers other than gcc complain.
AC_DEFUN([BK_MPI_MPICC],[AS_IF([test "x$bk_happy_mpi" = xno && test -x "$1"],[
  bk_mpi_compile=`"$1" -showme:compile 2>/dev/null` && MPI_LIBS=`"$1" -showme:link 2>/dev/null` ||
    { bk_mpi_compile=`"$1" -compile_info 2>/dev/null`; MPI_LIBS=`"$1" -link_info 2>/dev/null | sed 's/^@<:@^ @:>@* *//'`; }
  MPI_CFLAGS=
  for bk_mpi_word in $bk_mpi_compile; do
    AS_CASE([$bk_mpi_word],[-I*|-D*|-pthread],[MPI_CFLAGS="$MPI_CFLAGS $bk_mpi_word"])
  done
  BK_MPI_TRY([$1])])])

AC_DEFUN([BK_MPI],[
AC_ARG_WITH([mpi],[AS_HELP_STRING([--with-mpi=guess|no|yes|PATH],[the transport mpi; PATH: an installation or its mpicc @<:@guess@:>@])],[],[with_mpi=guess])
bk_happy_mpi=no
AS_IF([test "x$with_mpi" != xno && test "x$bk_happy_dl" = xyes && test "x$enable_shared" = xyes],[
  AS_CASE([$with_mpi],
    [guess|yes],[
      for bk_mpi_name in ompi-c ompi mpich; do
        AS_IF([test "x$bk_happy_mpi" = xno && $PKG_CONFIG --exists $bk_mpi_name 2>/dev/null],[
          MPI_CFLAGS=`$PKG_CONFIG --cflags $bk_mpi_name` MPI_LIBS=`$PKG_CONFIG --libs $bk_mpi_name`
          BK_MPI_TRY([pkg-config $bk_mpi_name])])
      done
      AS_IF([test "x$bk_happy_mpi" = xno && test "x$cross_compiling" != xyes],[
        AC_PATH_PROG([MPICC],[mpicc],[no])
        BK_MPI_MPICC([$MPICC])])],
    [AS_IF([test -d "$with_mpi"],[BK_MPI_MPICC([$with_mpi/bin/mpicc])],[BK_MPI_MPICC([$with_mpi])])])])
AS_IF([test "x$with_mpi" != xno && test "x$with_mpi" != xguess && test "x$bk_happy_mpi" = xno],
  [AC_MSG_ERROR([--with-mpi=$with_mpi: no MPI-3 is found there (Debian: libopenmpi-dev or libmpich-dev), or modules or shared libraries are disabled])])
AS_IF([test "x$bk_happy_mpi" = xyes],[AC_DEFINE([HAVE_MPI],[1],[the transport mpi is built])])
AC_SUBST([MPI_CFLAGS]) AC_SUBST([MPI_LIBS])
AM_CONDITIONAL([HAVE_MPI],[test x$bk_happy_mpi = xyes])
])

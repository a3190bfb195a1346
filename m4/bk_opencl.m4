# BK_OPENCL: the opencl backend, a loadable module. --with-opencl=guess|no|yes. Headers are needed to build (Debian: opencl-headers); the
# loader (ocl-icd-libopencl1) and a platform (pocl-opencl-icd, or a GPU's driver) are found at run time, or not.
AC_DEFUN([BK_OPENCL],[
AC_ARG_WITH([opencl],[AS_HELP_STRING([--with-opencl=guess|no|yes],[the opencl backend @<:@guess@:>@])],[],[with_opencl=guess])
bk_happy_opencl=no
AS_IF([test "x$with_opencl" != xno && test "x$bk_happy_dl" = xyes && test "x$enable_shared" = xyes],
  [AC_CHECK_HEADER([CL/cl.h],[bk_happy_opencl=yes],[],[#define CL_TARGET_OPENCL_VERSION 120])])
AS_IF([test "x$with_opencl" = xyes && test "x$bk_happy_opencl" = xno],
  [AC_MSG_ERROR([--with-opencl: CL/cl.h is not here (Debian: opencl-headers), or modules or shared libraries are disabled])])
AM_CONDITIONAL([HAVE_OPENCL],[test x$bk_happy_opencl = xyes])
])

# BK_BLAS: dense products of the cpu backend through CBLAS (OpenBLAS; Debian: libopenblas-dev).
# --with-blas=guess|no|yes. Without it a built-in blocked product serves.
AC_DEFUN([BK_BLAS],[
AC_ARG_WITH([blas],[AS_HELP_STRING([--with-blas=guess|no|yes],[CBLAS for dense products @<:@guess@:>@])],[],[with_blas=guess])
bk_happy_blas=no
AS_IF([test "x$with_blas" != xno],[
  PKG_CHECK_MODULES([CBLAS],[openblas],[bk_happy_blas=yes],[
    AC_CHECK_HEADER([cblas.h],[AC_CHECK_LIB([openblas],[cblas_sgemm],[bk_happy_blas=yes; CBLAS_LIBS=-lopenblas])])])
  AS_IF([test "x$with_blas" = xyes && test "x$bk_happy_blas" = xno],
    [AC_MSG_ERROR([--with-blas: no OpenBLAS with cblas.h found (Debian: libopenblas-dev)])])])
AS_IF([test "x$bk_happy_blas" = xyes],[AC_DEFINE([HAVE_CBLAS],[1],[dense products through CBLAS])],[CBLAS_CFLAGS=; CBLAS_LIBS=])
AC_SUBST([CBLAS_CFLAGS]) AC_SUBST([CBLAS_LIBS])
AM_CONDITIONAL([HAVE_CBLAS],[test x$bk_happy_blas = xyes])
])

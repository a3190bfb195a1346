# BK_DL: loadable backend modules through dlopen. --disable-modules builds without.
AC_DEFUN([BK_DL],[
AC_ARG_ENABLE([modules],[AS_HELP_STRING([--disable-modules],[no loadable backends])],[],[enable_modules=guess])
bk_happy_dl=no
AS_IF([test "x$enable_modules" != xno],[AC_SEARCH_LIBS([dlopen],[dl],[bk_happy_dl=yes])
  AS_IF([test "x$enable_modules" = xyes && test "x$bk_happy_dl" = xno],[AC_MSG_ERROR([--enable-modules: no dlopen])])])
AS_IF([test "x$bk_happy_dl" = xyes],[AC_DEFINE([HAVE_DLOPEN],[1],[loadable backends])])
AM_CONDITIONAL([HAVE_DLOPEN],[test x$bk_happy_dl = xyes])
])

# BK_CHECK: the unit test framework (Debian: check). --with-check=guess|no|yes; without it `make check` runs no test.
AC_DEFUN([BK_CHECK],[
AC_ARG_WITH([check],[AS_HELP_STRING([--with-check=guess|no|yes],[unit tests with libcheck @<:@guess@:>@])],[],[with_check=guess])
bk_happy_check=no
AS_IF([test "x$with_check" != xno],[
  PKG_CHECK_MODULES([CHECK],[check >= 0.15],[bk_happy_check=yes],[:])
  AS_IF([test "x$with_check" = xyes && test "x$bk_happy_check" = xno],[AC_MSG_ERROR([--with-check: libcheck not found (Debian: check)])])])
AM_CONDITIONAL([HAVE_CHECK],[test x$bk_happy_check = xyes])
])

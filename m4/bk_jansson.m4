# BK_JANSSON: JSON (config.json, trainer state); needed. Debian: libjansson-dev.
AC_DEFUN([BK_JANSSON],[
PKG_CHECK_MODULES([JANSSON],[jansson >= 2.9],[bk_happy_jansson=yes],
  [AC_MSG_ERROR([jansson is needed (Debian: libjansson-dev)])])
AC_DEFINE([HAVE_JANSSON],[1],[JSON through jansson])
])

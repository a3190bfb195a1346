# BK_VULKAN: the vulkan backend, a loadable module. --with-vulkan=guess|no|yes. Headers (Debian: libvulkan-dev) are needed to build, and
# glslc (Debian: glslc) where the source tree has no SPIR-V in it, as a release has. The loader (libvulkan1) and a driver (mesa-vulkan-drivers)
# are found at run time, or not.
AC_DEFUN([BK_VULKAN],[
AC_ARG_WITH([vulkan],[AS_HELP_STRING([--with-vulkan=guess|no|yes],[the vulkan backend @<:@guess@:>@])],[],[with_vulkan=guess])
AC_ARG_VAR([GLSLC],[compiler of GLSL to SPIR-V])
bk_happy_vulkan=no
AS_IF([test "x$with_vulkan" != xno && test "x$bk_happy_dl" = xyes && test "x$enable_shared" = xyes],[
  AC_PATH_PROG([GLSLC],[glslc],[no])
  AC_CHECK_HEADER([vulkan/vulkan.h],[AS_IF([test "x$GLSLC" != xno || test -f "$srcdir/backends/vulkan/spirv/basic.h"],[bk_happy_vulkan=yes])])])
AS_IF([test "x$with_vulkan" = xyes && test "x$bk_happy_vulkan" = xno],
  [AC_MSG_ERROR([--with-vulkan: vulkan/vulkan.h (Debian: libvulkan-dev) or glslc (Debian: glslc) is not here, or modules or shared libraries are disabled])])
AM_CONDITIONAL([HAVE_GLSLC],[test "x$bk_happy_vulkan" = xyes && test "x$GLSLC" != xno])
AM_CONDITIONAL([HAVE_VULKAN],[test x$bk_happy_vulkan = xyes])
AM_CONDITIONAL([HAVE_GPU],[test x$bk_happy_opencl = xyes || test x$bk_happy_vulkan = xyes])
])

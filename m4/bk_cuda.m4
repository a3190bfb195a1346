# BK_CUDNN: cuDNN's header for the cuda backend, 9.8 or a later 9 (its device properties came with that). --with-cudnn=guess|no|yes|PATH.
# guess: the toolkit's or the compiler's, else that of NVIDIA's packages for Python, if there is a python3 (tools/find-cudnn.sh). The library is
# looked for at run time, also in the folder where it lies beside such a header.
AC_DEFUN([BK_CUDNN],[
AC_ARG_WITH([cudnn],[AS_HELP_STRING([--with-cudnn=guess|no|yes|PATH],[cuDNN for attention in the cuda backend @<:@guess@:>@])],[],[with_cudnn=guess])
bk_happy_cudnn=no CUDNN_LDFLAGS=
AS_IF([test "x$bk_happy_cuda" = xyes && test "x$with_cudnn" != xno],[
  AC_MSG_CHECKING([for cudnn.h, 9.8 or newer])
  bk_cudnn_folder= bk_cudnn_path=
  AS_CASE([$with_cudnn],[guess|yes],[],[bk_cudnn_path=$with_cudnn])
  AS_IF([test -z "$bk_cudnn_path"],[BK_CUDNN_TRY([])])
  AS_IF([test "x$bk_happy_cudnn" = xno && bk_found=`sh "$srcdir/tools/find-cudnn.sh" ${bk_cudnn_path:+"$bk_cudnn_path"}`],[
    bk_cudnn_folder=`AS_ECHO(["$bk_found"]) | sed -n 1p`
    bk_cudnn_library=`AS_ECHO(["$bk_found"]) | sed -n 2p`
    BK_CUDNN_TRY([-I$bk_cudnn_folder ])
    AS_IF([test "x$bk_happy_cudnn" = xyes && test -n "$bk_cudnn_library"],[CUDNN_LDFLAGS="-R $bk_cudnn_library"])])
  AC_MSG_RESULT([$bk_happy_cudnn${bk_cudnn_folder:+, $bk_cudnn_folder}])
  AS_IF([test "x$bk_happy_cudnn" = xyes],[CUDA_CPPFLAGS="${bk_cudnn_folder:+-I$bk_cudnn_folder }$CUDA_CPPFLAGS -DHAVE_CUDNN_H"])])
AS_IF([test "x$with_cudnn" != xguess && test "x$with_cudnn" != xno && test "x$bk_happy_cudnn" = xno],
  [AC_MSG_ERROR([--with-cudnn: there is no cudnn.h of cuDNN 9.8 or a later 9, or no cuda backend that would use it])])
AC_SUBST([CUDNN_LDFLAGS])
])
# BK_CUDNN_TRY(FLAGS): bk_happy_cudnn=yes where the header is found with them.
AC_DEFUN([BK_CUDNN_TRY],[
  bk_save_cppflags=$CPPFLAGS
  CPPFLAGS="$1$CPPFLAGS $CUDA_CPPFLAGS"
  AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[#include <cudnn.h>
#if CUDNN_MAJOR != 9 || CUDNN_VERSION < 90800
#error cuDNN 9.8 or a later 9 is needed
#endif]],[[]])],[bk_happy_cudnn=yes])
  CPPFLAGS=$bk_save_cppflags])
# BK_CUDA: the cuda backend, a loadable module. --with-cuda=guess|no|yes|PATH (of the toolkit, /usr/local/cuda by default).
# The toolkit is needed to build (nvcc, headers, libcudart_static); a driver, cuBLASLt and cuDNN are found at run time, or not.
# CUDA_ARCHS: compute capabilities to build for; the last one is there as PTX too, for what is newer.
AC_DEFUN([BK_CUDA],[
AC_ARG_WITH([cuda],[AS_HELP_STRING([--with-cuda=guess|no|yes|PATH],[CUDA toolkit for the cuda backend @<:@guess@:>@])],[],[with_cuda=guess])
AC_ARG_VAR([CUDA_ARCHS],[what the cuda backend is built for @<:@"80 90a 100"@:>@])
AC_ARG_VAR([NVCCFLAGS],[flags for nvcc @<:@-O3@:>@])
: ${CUDA_ARCHS="80 90a 100"}
: ${NVCCFLAGS="-O3"}
bk_happy_cuda=no bk_cuda_root=/usr/local/cuda
AS_CASE([$with_cuda],[guess|no|yes],[],[bk_cuda_root=$with_cuda])
AS_IF([test "x$with_cuda" != xno && test "x$bk_happy_dl" = xyes && test "x$enable_shared" = xyes],[
  AC_PATH_PROG([NVCC],[nvcc],[no],[$bk_cuda_root/bin$PATH_SEPARATOR$PATH])
  AS_IF([test "x$NVCC" != xno && test "x$bk_cuda_root" = x/usr/local/cuda && test ! -d /usr/local/cuda],
    [bk_cuda_root=`AS_DIRNAME(["$NVCC"])`/..])
  AS_IF([test "x$NVCC" != xno && test -f "$bk_cuda_root/include/cublasLt.h" && test -f "$bk_cuda_root/lib64/libcudart_static.a"],[bk_happy_cuda=yes])])
AS_IF([test "x$with_cuda" != xguess && test "x$with_cuda" != xno && test "x$bk_happy_cuda" = xno],
  [AC_MSG_ERROR([--with-cuda: under $bk_cuda_root there is no toolkit (nvcc, include/cublasLt.h, lib64/libcudart_static.a), or modules or shared libraries are disabled])])
CUDA_CPPFLAGS="-I$bk_cuda_root/include"
BK_CUDNN
CUDA_LIBS="-L$bk_cuda_root/lib64 -lcudart_static -ldl -lrt -lpthread"
CUDA_GENCODE=
for bk_arch in $CUDA_ARCHS; do CUDA_GENCODE="$CUDA_GENCODE -gencode arch=compute_$bk_arch,code=sm_$bk_arch"; bk_last_arch=$bk_arch; done
CUDA_GENCODE="$CUDA_GENCODE -gencode arch=compute_$bk_last_arch,code=compute_$bk_last_arch"
AC_SUBST([CUDA_CPPFLAGS]) AC_SUBST([CUDA_ROOT],[$bk_cuda_root]) AC_SUBST([CUDA_LIBS]) AC_SUBST([CUDA_GENCODE])
AM_CONDITIONAL([HAVE_CUDA],[test x$bk_happy_cuda = xyes])
dnl The tests compile the same sources for the host: a C++17 compiler, the module loader, shared libraries.
AC_LANG_PUSH([C++])
bk_save_cxxflags=$CXXFLAGS
CXXFLAGS="$CXXFLAGS -std=c++17"
AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[#if __cplusplus < 201703L
#error C++17 is needed
#endif
#include <functional>]],[[std::function<int()> f = [] { return 1; }; return f();]])],[bk_have_cxx=yes],[bk_have_cxx=no])
CXXFLAGS=$bk_save_cxxflags
AC_LANG_POP([C++])
AM_CONDITIONAL([CUDA_ON_HOST],[test x$bk_have_cxx = xyes && test x$bk_happy_dl = xyes && test x$enable_shared = xyes])
])

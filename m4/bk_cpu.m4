# BK_CPU: the instruction sets of the cpu backend beside portable C. --with-cpu-isa=no builds none, for small size;
# --with-cpu-isa=avx2,... only those named. Sets bk_cpu_isas.
AC_DEFUN([BK_CPU],[
AC_ARG_WITH([cpu-isa],[AS_HELP_STRING([--with-cpu-isa=LIST],[instruction sets beside portable C, separated by commas: avx2, avx512 (x86-64), neon (arm64); all, no @<:@all@:>@])],[],[with_cpu_isa=all])
AS_CASE([$host_cpu],[x86_64|amd64],[bk_cpu_known="avx2 avx512"],[aarch64],[bk_cpu_known="neon"],[bk_cpu_known=])
AS_CASE([$with_cpu_isa],[all|yes],[bk_cpu_isas=$bk_cpu_known],[no|portable],[bk_cpu_isas=],[bk_cpu_isas=`AS_ECHO(["$with_cpu_isa"]) | tr , ' '`])
for bk_isa in $bk_cpu_isas; do
  AS_CASE([" $bk_cpu_known "],[*" $bk_isa "*],[],[AC_MSG_ERROR([--with-cpu-isa: $bk_isa is none of: $bk_cpu_known])])
done
BK_CPU_SET([avx2],[AVX2])
BK_CPU_SET([avx512],[AVX512])
BK_CPU_SET([neon],[NEON])
])
# BK_CPU_SET(SET, SET IN CAPITALS)
AC_DEFUN([BK_CPU_SET],[
bk_isa_on=no
AS_CASE([" $bk_cpu_isas "],[*" $1 "*],[bk_isa_on=yes; AC_DEFINE([BK_HAVE_$2],[1],[the cpu backend's kernels for $1])])
AM_CONDITIONAL([CPU_$2],[test x$bk_isa_on = xyes])
])

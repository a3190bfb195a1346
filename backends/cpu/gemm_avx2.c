#include "backends/cpu/cpu.h"
#if BK_HAVE_AVX2
#define BK_ISA avx2
#include "backends/cpu/gemm_tmpl.c"
#endif

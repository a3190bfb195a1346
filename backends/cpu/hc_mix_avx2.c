#include "backends/cpu/cpu.h"
#if BK_HAVE_AVX2
#define BK_ISA avx2
#include "backends/cpu/hc_mix_tmpl.c"
#endif

#include "backends/cpu/cpu.h"
#if BK_HAVE_AVX2
#define BK_ISA avx2
#include "backends/cpu/loss_tmpl.c"
#endif

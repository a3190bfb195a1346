#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/gemm_tmpl.c"

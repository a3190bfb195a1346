#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/norm_tmpl.c"

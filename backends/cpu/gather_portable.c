#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/gather_tmpl.c"

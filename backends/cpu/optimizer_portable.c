#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/optimizer_tmpl.c"

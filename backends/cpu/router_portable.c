#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/router_tmpl.c"

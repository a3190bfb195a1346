#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/hc_maps_tmpl.c"

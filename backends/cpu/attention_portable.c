#include "backends/cpu/cpu.h"
#define BK_ISA portable
#include "backends/cpu/attention_tmpl.c"

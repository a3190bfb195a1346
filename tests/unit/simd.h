/* What simd_tmpl.c exports for each instruction set: NULL, or what is wrong with the vector
 * layer there. */
#ifndef TESTS_UNIT_SIMD_H
#define TESTS_UNIT_SIMD_H

#include "backends/cpu/cpu.h"

#define SIMD_CHECK(isa, ISA, ...) const char *simd_check_##isa(void);
BK_CPU_ISAS(SIMD_CHECK, 0)

#endif

/* RoPE's tables: cosines and sines by position, in the layout of the interleaved rotation: row p
 * holds D cosines (each twice) and D signed sines (-s, s), so that y = x * cos + swap_pairs(x) *
 * sin. Computed in double, rounded once. One table per (D, theta) serves all plans of a device. */
#ifndef BK_CPU_ROPE_H
#define BK_CPU_ROPE_H

#include "backends/cpu/cpu.h"

struct bk_cpu_rope_table {
  bk_cpu_rope_table *next;
  double theta;
  int64_t width, positions;
  double *frequency; /* [width / 2] */
  float *rows;       /* [positions, 2 * width] */
};
typedef struct bk_cpu_rope_state {
  const bk_cpu_rope_table *table;
} bk_cpu_rope_state;

/* Writes the row of one position, 2 * width floats. */
void bk_cpu_rope_row(const bk_cpu_rope_table *table, int64_t position, float *row);
void bk_cpu_rope_tables_free(bk_cpu_device *cpu);

#endif

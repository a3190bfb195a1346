#include "backends/cpu/rope.h"
#include "backends/cpu/kernels.h"
#include <math.h>

void bk_cpu_rope_row(const bk_cpu_rope_table *table, int64_t position, float *row) {
  float *cosines = row, *sines = row + table->width;
  for (int64_t i = 0; i < table->width / 2; i++) {
    double angle = (double)position * table->frequency[i];
    cosines[2 * i] = cosines[2 * i + 1] = (float)cos(angle);
    sines[2 * i + 1] = (float)sin(angle);
    sines[2 * i] = -sines[2 * i + 1];
  }
}

static void table_free(bk_context *ctx, bk_cpu_rope_table *table) {
  if (!table) return;
  bk_free(ctx, table->frequency);
  bk_free(ctx, table->rows);
  bk_free(ctx, table);
}

void bk_cpu_rope_tables_free(bk_cpu_device *cpu) {
  while (cpu->rope_tables) {
    bk_cpu_rope_table *next = cpu->rope_tables->next;
    table_free(cpu->base.ctx, cpu->rope_tables);
    cpu->rope_tables = next;
  }
}

static bk_cpu_rope_table *table_make(bk_context *ctx, int64_t width, double theta,
                                     int64_t positions) {
  bk_cpu_rope_table *table = bk_alloc(ctx, sizeof *table);
  if (!table) return NULL;
  table->width = width, table->theta = theta, table->positions = positions;
  table->frequency = bk_alloc_array(ctx, (size_t)width / 2, sizeof(double));
  table->rows = bk_alloc_array(ctx, (size_t)positions, 2 * (size_t)width * sizeof(float));
  if (!table->frequency || !table->rows) {
    table_free(ctx, table);
    return NULL;
  }
  for (int64_t i = 0; i < width / 2; i++)
    table->frequency[i] = pow(theta, -2.0 * (double)i / (double)width);
  for (int64_t p = 0; p < positions; p++) bk_cpu_rope_row(table, p, table->rows + p * 2 * width);
  return table;
}

/* A table too short for a new plan stays, since older plans point at it, and a longer one is
 * made beside it. */
BK_PREPARE(bk_cpu_rope_prepare) {
  const bk_rope_args *a = args;
  bk_cpu_device *cpu = (bk_cpu_device *)device;
  int64_t width = a->x.shape[3], positions = a->x.shape[1];
  bk_cpu_rope_table *table = cpu->rope_tables;
  while (table &&
         !(table->width == width && table->theta == a->theta && table->positions >= positions))
    table = table->next;
  if (!table) {
    table = table_make(device->ctx, width, a->theta, positions);
    if (!table) return BK_ERR_MEMORY;
    table->next = cpu->rope_tables;
    cpu->rope_tables = table;
  }
  bk_cpu_rope_state *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  s->table = table;
  *state = s;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * 2 * (size_t)width * sizeof(float);
  return BK_OK;
}

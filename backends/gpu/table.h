/* All rows that the portable GPU backends share. One family a line: branches meet here. */
#ifndef BK_GPU_TABLE_H
#define BK_GPU_TABLE_H

#include "backends/gpu/basic.h"
#include "backends/gpu/fused.h"
#include "backends/gpu/layers.h"

#define BK_GPU_ROWS(ROW)    \
  BK_GPU_ROWS_BASIC(ROW)    \
  BK_GPU_ROWS_FUSED(ROW)    \
  BK_GPU_ROWS_LAYERS(ROW)

#endif

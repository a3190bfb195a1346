/* All rows that the portable GPU backends share. One family a line: branches meet here. */
#ifndef BK_GPU_TABLE_H
#define BK_GPU_TABLE_H

#include "backends/gpu/attention.h"
#include "backends/gpu/basic.h"
#include "backends/gpu/experts.h"
#include "backends/gpu/fused.h"
#include "backends/gpu/gemm.h"
#include "backends/gpu/layers.h"
#include "backends/gpu/maps.h"
#include "backends/gpu/streams.h"

#define BK_GPU_ROWS(ROW, MAPS) \
  BK_GPU_ROWS_BASIC(ROW)       \
  BK_GPU_ROWS_GEMM(ROW)        \
  BK_GPU_ROWS_LAYERS(ROW)      \
  BK_GPU_ROWS_ATTENTION(ROW)   \
  BK_GPU_ROWS_EXPERTS(ROW)     \
  BK_GPU_ROWS_STREAMS(ROW)     \
  BK_GPU_ROWS_MAPS(ROW, MAPS)  \
  BK_GPU_ROWS_FUSED(ROW)

#endif

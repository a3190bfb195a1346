#!/bin/sh
# test_ops: dense products through CBLAS, where the build has it
BIRKHOFF_CPU_BLAS=1
export BIRKHOFF_CPU_BLAS
exec "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device cpu --op gemm

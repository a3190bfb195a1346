#!/bin/sh
# test_ops: cpu with AVX2 at most, where the plain run takes something better
exec "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device cpu --isa avx2

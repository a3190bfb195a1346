#!/bin/sh
# test_ops: the fused slots composed of cpu's primitives
exec "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device cpu --composed

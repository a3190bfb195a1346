#!/bin/sh
# test_ops: cpu without vector instructions
exec "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device cpu --isa portable

#!/bin/sh
# test_ops: one thread and two give the same bits
exec "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device cpu --threads 2 --bits

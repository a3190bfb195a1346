#!/bin/sh
# test_ops: ref's own storage types against its double result
exec "${TOP_BUILDDIR:-.}/tests/ops/test_ops" --device ref

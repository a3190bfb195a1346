#!/bin/sh
# test_ops: the composed ops composed of cpu's primitives; its own post + res and pre have the bits of their parts
test_ops=${TOP_BUILDDIR:-.}/tests/ops/test_ops
"$test_ops" --device cpu --composed && exec "$test_ops" --device cpu --like-composed

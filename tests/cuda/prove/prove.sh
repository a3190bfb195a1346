#!/bin/sh
# Races proved absent in the PTX of the cuda backend's kernels, without a GPU: prove.py says how, doc/cuda.md what it shows. The quick rows of its tables;
# with BK_TEST_LONG all of them (some eight minutes on two cores). Skipped by name where something is missing.
TOP_SRCDIR=${TOP_SRCDIR:-$(cd "$(dirname "$0")/../../.." && pwd)}
. "$TOP_SRCDIR/tests/cuda-on-host/on_host.sh"
skip() {
  echo "SKIP: $1"
  exit 77
}
needs tests/ops/test_ops
nvcc=${BK_NVCC%% *} # configure's, where there is one
[ -n "$nvcc" ] || nvcc=$(command -v nvcc) || nvcc=/usr/local/cuda/bin/nvcc
[ -x "$nvcc" ] || skip "no nvcc, which makes the PTX"
"$nvcc" --list-gpu-arch 2>/dev/null | grep -qx compute_100 || skip "this nvcc does not know compute_100, which the verifier wants (CUDA 12.8 or newer)"
command -v c++filt >/dev/null || skip "no c++filt"
python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "no python3 (3.10 or newer) with venv"

# The verifier, in the version that the verdicts are of, in an environment of its own.
here=$TOP_SRCDIR/tests/cuda/prove wanted=$TOP_SRCDIR/tests/cuda/prove/requirements.txt
venv=$TOP_BUILDDIR/tests/cuda/prove/venv
if ! cmp -s "$wanted" "$venv/made-of"; then
  rm -rf "$venv"
  python3 -m venv "$venv" >log 2>&1 && "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 30 --require-hashes -r "$wanted" >>log 2>&1 ||
    { grep -q 'HASHES' log && { cat log; exit 1; }; skip "sentryward cannot be had from PyPI: $(tail -n 1 log)"; }
  cp "$wanted" "$venv/made-of"
fi
# PyTorch is large: it is fetched at the long level alone, and where it cannot be had the comparisons with formulas are skipped.
if [ -n "${BK_TEST_LONG:-}" ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 60 torch==2.15.0 >log 2>&1 || echo "PyTorch cannot be had from PyPI: $(tail -n 1 log)"
fi

"$venv/bin/python" "$here/prove.py" --build "$TOP_BUILDDIR" --work "$W/work" --nvcc "$nvcc" --verifier "$venv/bin/sentryward" ${BK_TEST_LONG:+--long}

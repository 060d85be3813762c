#!/usr/bin/env bash
# miri.sh [FILTER...]: the tests of the embedder's kernels, plain and AVX2, interpreted by Miri, which ends them at the first
# undefined behaviour: what AddressSanitizer sees, and reads of memory nobody wrote, wrong alignment and broken borrows besides.
# It knows no AMX and no AVX512-BF16; of properties two cases are tried, with smaller sizes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/weir/target}
export PATH="$HOME/.cargo/bin:$PATH"

toolchain=${WEIR_NIGHTLY:-nightly}
if ! cargo "+$toolchain" miri --version 2>/dev/null; then
    echo "Miri comes with a nightly compiler: rustup toolchain install $toolchain --profile minimal --component miri,rust-src" >&2
    exit 1
fi
# Those of kernels. What runs the whole model takes hours.
[[ $# -gt 0 ]] || set -- bert::{product,kernels,simd,attention,approximate,aligned,lines,bf16,int8}::
# A processor is what the compiler is told here, for Miri has none.
features=+avx2,+fma,+bmi1,+bmi2,+lzcnt,+popcnt,+f16c
MIRIFLAGS="-Zmiri-disable-isolation" RUSTFLAGS="-Ctarget-feature=$features" \
    cargo "+$toolchain" miri test --package weir-models --lib --target-dir "$CARGO_TARGET_DIR/miri" -- "$@"

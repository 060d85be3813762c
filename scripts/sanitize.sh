#!/usr/bin/env bash
# sanitize.sh [FILTER...]: the tests of the embedder's kernels, compiled anew under AddressSanitizer, which ends them at the
# first access outside of what was allocated. Instructions of AMX are written in assembly, which it does not see.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/weir/target}
export PATH="$HOME/.cargo/bin:$PATH"

toolchain=${WEIR_NIGHTLY:-nightly}
if ! rustup run "$toolchain" rustc --version 2>/dev/null; then
    echo "Sanitizers need a nightly compiler: rustup toolchain install $toolchain --profile minimal" >&2
    exit 1
fi
# Named outright, so that build scripts and macros are compiled without it.
target=$(rustup run "$toolchain" rustc -vV | sed -n 's/^host: //p')
[[ $# -gt 0 ]] || set -- bert::
RUSTFLAGS="-Zsanitizer=address" cargo "+$toolchain" test --package weir-models --lib --target "$target" \
    --target-dir "$CARGO_TARGET_DIR/sanitize" -- "$@"

#!/usr/bin/env bash
# Compiles all programs. One build serves `make demo` and `make test`: both select the same packages, so that cargo
# settles on the same features and compiles every dependency once. The benchmarks bring models to compare with, which
# nobody else needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/weir/target}
export PATH="$HOME/.cargo/bin:$PATH"

if [[ ! -x $CARGO_TARGET_DIR/debug/weir ]]; then
    cat <<NOTE
First build: about 800 crates, among them Kafka's C client, Qdrant's engine and candle, all optimised.
This takes a while (on two cores about half an hour, on sixteen a few minutes) and happens once:
the result stays in $CARGO_TARGET_DIR.
NOTE
fi
cargo build --workspace --exclude weir-benches --bins "$@"

#!/usr/bin/env bash
# bench.sh PROFILE [NAME...]: builds the programs and the benchmarks with PROFILE and runs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/weir/target}
export PATH="$HOME/.cargo/bin:$PATH"

profile=$1
shift
folder=$profile
[[ $profile == dev ]] && folder=debug
if [[ ! -x $CARGO_TARGET_DIR/$folder/weir-benches ]]; then
    echo "First build with profile $profile: all dependencies are compiled again, fully optimised. This takes a while."
fi
features=()
# With a GPU and what compiles for it, the embedder is measured there, too.
if [[ " $* " == *" embed "* ]] && command -v nvcc >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
    features=(--features weir-benches/cuda)
fi
cargo build --workspace --bins --profile "$profile" ${features[@]+"${features[@]}"}
exec "$CARGO_TARGET_DIR/$folder/weir-benches" "$@"

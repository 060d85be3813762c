#!/usr/bin/env bash
# embed_peers.sh: makes the virtual environment of the embedder's peers (sentence-transformers on torch, OpenVINO, ONNX
# Runtime) if it is not there yet, and prints the path of its Python. WEIR_PEERS names the folder. Some gigabytes where
# only the build of torch with CUDA is to be had.
set -euo pipefail

folder=${WEIR_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/weir/peers}
python=$folder/bin/python
# Moved when this list changes: an environment made from another list is made again.
stamp=$folder/peers-1
nvidia-smi --list-gpus >/dev/null 2>&1 && stamp=$stamp-gpu

if [[ ! -e $stamp ]]; then
    rm -rf "$folder"
    python3 -m venv "$folder" >&2
    pip=("$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check)
    # Without a GPU the processor's build does, which is a tenth of the size; some registries do not have it.
    [[ $stamp != *-gpu ]] && "${pip[@]}" --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu torch >&2 2>/dev/null ||
        "${pip[@]}" torch >&2
    "${pip[@]}" sentence-transformers openvino onnxruntime onnx onnxscript >&2
    touch "$stamp"
fi
echo "$python"

#!/bin/sh
# Make a Python environment with the project at the versions of constraints.txt, as the image has it.
# From the root of a checkout: deploy/install.sh FOLDER [EXTRAS] [INDEX OF TORCH]
set -eu
environment=$1
extras=${2:-}
torch_index=${3:-}

python3 -m venv "$environment"
install() {
    "$environment/bin/python" -m pip install --no-cache-dir --constraint constraints.txt "$@"
}
if [ -n "$torch_index" ]; then
    # Found first, they stay: "2.15.0+cpu" fits the pinned "2.15.0".
    install --index-url "$torch_index" torch torchvision
fi
install --editable ".${extras:+[$extras]}"

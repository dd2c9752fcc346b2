#!/usr/bin/env bash
# Installs into .venv if needed and runs the tests, on all cores. With arguments: pytest with these.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
[ $# -gt 0 ] || set -- -n auto --dist loadfile
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the tests' tensors are tiny
exec python -m pytest -q "$@"

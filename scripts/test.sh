#!/usr/bin/env bash
# Installs into .venv if needed and runs the tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
exec python -m pytest -q "$@"

#!/usr/bin/env bash
# Sourced by the other scripts: makes .venv in the repository, installs the project into it, and activates it.
# Does nothing twice: a stamp says which requirements are installed. PYTHON chooses the interpreter (3.10 or newer).
set -euo pipefail

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$repository"
venv="${VENV:-$repository/.venv}"
stamp="$venv/installed-$(cat requirements.txt setup.py | sha256sum | cut -c1-16)"
if [ ! -f "$stamp" ]; then
  echo "installing into $venv ..."
  "${PYTHON:-python3}" -m venv "$venv"
  # torch alone and first, so that no other package chooses its build
  "$venv/bin/pip" install --quiet "$(grep '^torch==' requirements.txt)"
  "$venv/bin/pip" install --quiet -r requirements.txt
  "$venv/bin/pip" install --quiet --no-deps -e .
  touch "$stamp"
fi
export PATH="$venv/bin:$PATH"

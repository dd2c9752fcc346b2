#!/usr/bin/env bash
# Build Horovod for the installed torch and install it: bash scripts/install_horovod.sh   (about 5 minutes on 2 cores)
#
# The last release, 0.28.1, asks for C++14, and its gloo for C++11; torch needs C++17. The source is fetched by pip,
# those settings raised, and a wheel built with Gloo, and with NCCL where nvcc is found. The wheel is kept in
# HOROVOD_WHEELS (default: .cache/horovod) under a name that tells torch and Python, so that it is built once.
set -euo pipefail

version=0.28.1
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$repository/scripts/setup_venv.sh"
cd "$repository"
identity="$(python -c 'import sys, torch; print(f"torch{torch.__version__}-py{sys.version_info[0]}{sys.version_info[1]}")')"
wheels="${HOROVOD_WHEELS:-$repository/.cache/horovod}/$identity"
if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
  command -v cmake >/dev/null || { echo "error: Horovod is built with cmake, which is not installed" >&2; exit 2; }
  build="$(mktemp -d)"
  trap 'rm -rf "$build"' EXIT
  pip install --quiet "setuptools<81" wheel cloudpickle psutil packaging
  pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest "$build" "horovod==$version"
  tar -xzf "$build/horovod-$version.tar.gz" -C "$build"
  cd "$build/horovod-$version"
  sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD 17/' CMakeLists.txt horovod/torch/CMakeLists.txt
  sed -i 's/-std=c++11 -fPIC/-std=c++17 -fPIC/' third_party/gloo/CMakeLists.txt
  export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_TENSORFLOW=1 \
    HOROVOD_WITHOUT_MXNET=1 MAKEFLAGS="-j$(nproc)"
  if command -v nvcc >/dev/null && python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    export HOROVOD_GPU_OPERATIONS=NCCL
  fi
  echo "building Horovod $version for $identity ..."
  pip wheel --no-deps --no-build-isolation --wheel-dir "$build/wheel" . >"$build/log" 2>&1 ||
    { tail -n 40 "$build/log" >&2; echo "error: Horovod could not be built" >&2; exit 1; }
  mkdir -p "$wheels"
  mv "$build"/wheel/horovod-*.whl "$wheels/"
  cd "$repository"
fi
pip install --quiet cloudpickle psutil packaging pyyaml
pip install --quiet --no-deps --force-reinstall "$wheels"/horovod-*.whl
python -c 'import horovod.torch as hvd; hvd.init(); print("Horovod", __import__("horovod").__version__, "works")'

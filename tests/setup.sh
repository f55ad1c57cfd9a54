#!/bin/bash
# Sets up a fresh Debian machine and builds Coppice into build/: packages, LibTorch, program and tests. A second call does no
# work twice. Called by tests/run.sh and examples/quickstart.sh.
#
#   LIBTORCH=/path/to/libtorch tests/setup.sh [cmake target ...]     use that LibTorch instead of the wheel in .venv
#   COPPICE_PRESET=ci                                                the preset of CMakePresets.json; release by default
set -euo pipefail
cd "$(dirname "$0")/.."

libtorch_version=2.15.0
packages=(g++ clang-14 cmake ninja-build ccache python3-venv libcxxopts-dev libyaml-cpp-dev nlohmann-json3-dev libgtest-dev libgmock-dev
          zlib1g-dev dataset-fashion-mnist)

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing Debian packages: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

arguments=()
if [ -n "${LIBTORCH:-}" ]; then
    arguments+=("-DCMAKE_PREFIX_PATH=$LIBTORCH")
elif ! ls .venv/lib/python3*/site-packages/"torch-$libtorch_version"*.dist-info >/dev/null 2>&1; then
    # The wheel holds the same LibTorch as the zip. On the CPU it needs only two small libraries of the CUDA runtime.
    echo "setup: installing LibTorch $libtorch_version into .venv"
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install -q --no-deps "torch==$libtorch_version" "nvidia-cuda-runtime==13.2.*" "nvidia-cuda-cupti==13.2.*"
fi

preset=${COPPICE_PRESET:-release}
cmake --preset "$preset" "${arguments[@]}" >build-configure.log 2>&1 || { cat build-configure.log; exit 1; }
rm -f build-configure.log
echo "setup: building"
targets=()
[ $# -gt 0 ] && targets=(--target "$@")
cmake --build --preset "$preset" "${targets[@]}"

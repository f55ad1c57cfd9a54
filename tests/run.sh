#!/bin/bash
# Sets up this machine, builds, and runs all tests. COPPICE_PRESET=sanitize runs the unit tests under ASan and UBSan.
set -euo pipefail
cd "$(dirname "$0")/.."
# The page of the report is tested in a real browser where there is one.
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
            echo "tests: no Chromium here; the tests of the page will be skipped"
    fi
fi
tests/setup.sh
case ${COPPICE_PRESET:-release} in
    sanitize) folder=build-sanitize ;;
    clang) folder=build-clang ;;
    *) folder=build ;;
esac
exec ctest --test-dir "$folder" --output-on-failure --parallel "$(nproc)" "$@"

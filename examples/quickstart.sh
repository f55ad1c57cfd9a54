#!/bin/bash
# The main job from nothing: sets up this machine, trains a small network on Fashion-MNIST, compresses it by
# examples/fashion.yaml (prune, fine-tune with distillation, int8) and reports. A finished run is kept: a second call makes a
# new folder beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh coppice train_fashion_cnn
mkdir -p runs
run=runs/quickstart
for ((number = 2; ; number++)); do
    [ -e "$run" ] || break
    run=runs/quickstart-$number
done
if [ ! -f runs/fashion_cnn.pt ]; then
    build/bin/train_fashion_cnn runs/fashion_cnn.pt 2
fi
cp examples/fashion.yaml runs/fashion.yaml
build/bin/coppice compress runs/fashion.yaml --out "$run"
echo "Report: $PWD/$run/report.html"

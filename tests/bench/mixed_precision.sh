#!/bin/bash
# Quality and size of quantize.mixed on real models, each stage alone on the float model.
#   tests/bench/mixed_precision.sh COPPICE DATA OUT [MODEL ...]     models: resnet20 minilm_l6
# Prints one line per stage; runs and their reports stay in OUT.
set -u
coppice=$1 data=$2 out=$3
shift 3
mkdir -p "$out"
. "$(dirname "$0")/run_once.sh"

resnet20_head=$(resnet20_with "{path: $data/cifar10/test.bin, rows: [0, 2000]}" 512)

run() {  # model name, head, options
    local folder="$out/$1-$(name_of "$3")"
    run_once "$folder" "$2
stages:
  - quantize.mixed: $3
measure: {profile: off}" "$1 | \`$3\`" || return
    python3 - "$1" "$3" "$folder" <<'PY'
import glob, json, sys
model, options, folder = sys.argv[1:]
def read(pattern):
    return json.load(open(sorted(glob.glob(f"{folder}/{pattern}/measurement.json"))[0]))
before, after = read("00-*"), read("01-*")
facts = json.load(open(sorted(glob.glob(f"{folder}/01-*/stage.json"))[0]))
facts = facts.get("facts", facts)
quality = [tree["quality"]["value"] for tree in (before, after)]
size = [tree["figures"]["file_bytes"]["value"] / 1e3 for tree in (before, after)]
layers = ", ".join(f"{count} {name}" for name, count in sorted(facts["precisions"].items()))
print(f"| {model} | `{options}` | {quality[0]:.4f} | {quality[1]:.4f} | {layers} | {facts['weight_bytes'] / facts['float_weight_bytes']:.3f} | "
      f"{facts['bops'] / facts['float_bops']:.3f} | {facts['loss']:.3g} | {size[0]:.0f} / {size[1]:.0f} |")
PY
}

[ $# -gt 0 ] || set -- resnet20 minilm_l6
for model in "$@"; do
    case $model in
    resnet20)
        for options in '{precisions: [int4, int8, static], ratio: 0.2}' \
            '{precisions: [int4, int8, static], ratio: 0.2, sensitivity: hessian}' \
            '{precisions: [int4, int8, static], ratio: 0.2, sensitivity: mse}' \
            '{precisions: [int4, int8, static], ratio: 0.2, allocation: greedy}' \
            '{precisions: [int4, int8, static], ratio: 0, max_drop: 0.5}' \
            '{precisions: [static], budget: bops, ratio: 0.2}'; do
            run "$model" "$resnet20_head" "$options"
        done ;;
    minilm_l6)
        for options in '{precisions: [dynamic, int4], ratio: 0.2}' '{precisions: [dynamic, int4], ratio: 0, max_drop: 0.1}'; do
            run "$model" "$minilm_l6_head" "$options"
        done ;;
    esac
done

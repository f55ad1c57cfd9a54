#!/bin/bash
# Quality, size and time of quantize.codebook on real models, each line one run on the float model.
#   tests/bench/codebook.sh COPPICE DATA OUT [MODEL ...]     models: mlp resnet20
# PROFILE=off leaves time out. Prints one line per run, after its last stage; runs and their reports stay in OUT.
set -u
coppice=$1 data=$2 out=$3
shift 3
mkdir -p "$out"
. "$(dirname "$0")/run_once.sh"

mlp_head='model: {path: '$data'/fashion/mlp.pt}
data: {format: idx, test: '$data'/fashion/t10k-images-idx3-ubyte}
task: {type: classification, metric: top1}'
resnet20_head=$(resnet20_with "{path: $data/cifar10/test.bin, rows: [0, 2000]}" 128)

run() {  # model name, head, stages
    local folder="$out/$1-$(name_of "$3" 120)"
    run_once "$folder" "$2
stages: [{$3}]
measure: {profile: ${PROFILE:-quick}}" "$1 | \`$3\`" || return
    python3 - "$1" "$3" "$folder" <<'PY'
import glob, json, sys
model, stages, folder = sys.argv[1:]
trees = [json.load(open(path)) for path in sorted(glob.glob(f"{folder}/0*/measurement.json"))]
before, after = trees[0], trees[-1]
def latency(tree):
    return "/".join(f"{row['p50_s']['value'] * 1e3:.3g}" for row in tree.get("latency") or []) or "-"
quality = [tree["quality"]["value"] for tree in (before, after)]
size = [tree["figures"]["file_bytes"]["value"] / 1e3 for tree in (before, after)]
print(f"| {model} | `{stages}` | {quality[0]:.4f} | {quality[1]:.4f} | {size[0]:.0f} | {size[1]:.0f} | {size[0] / size[1]:.1f} | {latency(before)} | {latency(after)} |")
PY
}

[ $# -gt 0 ] || set -- mlp resnet20
for model in "$@"; do
    case $model in
    mlp)
        for stages in 'quantize.codebook: {bits: 4}' 'quantize.codebook: {bits: 4, storage: indices}' \
            'quantize.codebook: {bits: 2, storage: indices, min_sqnr_db: 0}' 'quantize.codebook: {bits: 3, storage: indices}' \
            'quantize.codebook: {bits: 8}' 'quantize.codebook: {bits: 8, storage: indices}'; do
            run "$model" "$mlp_head" "$stages"
        done ;;
    resnet20)
        tune='train.finetune: {keep_shared: true, epochs: 1, optimizer: adamw, lr: 0.0005, weight_decay: 0}'
        for stages in 'quantize.codebook: {bits: 4}' 'quantize.codebook: {bits: 4, storage: indices}' \
            'quantize.codebook: {bits: 3, min_sqnr_db: 0}' "quantize.codebook: {bits: 3, min_sqnr_db: 0}}, {$tune" \
            'quantize.codebook: {bits: 4, init: density}' 'quantize.codebook: {bits: 5}'; do
            run "$model" "$resnet20_head" "$stages"
        done ;;
    esac
done

#!/bin/bash
# Fourteen variants of one network, made by as many short recipes, measured side by side, in one report:
#   examples/resnet20_variants/run.sh COPPICE DATA OUT
# COPPICE is the program, DATA a folder with resnet20.pt, train.bin and test.bin (CIFAR-10 binary layout). Goes on where it was
# stopped. PROFILE=standard measures longer than the default, quick; EPOCHS (2) is what each trained variant gets; quality is that
# on the first IMAGES (10000) of test.bin; THREADS (2) of LibTorch.
set -eu
coppice=$(realpath "$1") data=$(realpath "$2") out=$3
epochs=${EPOCHS:-2}
mkdir -p "$out"
cd "$out"

cat >task.yaml <<YAML
data: {format: cifar10, train: $data/train.bin, test: {path: $data/test.bin, rows: [0, ${IMAGES:-10000}]}, calibration: 512}
task: {type: classification, metric: top1}
threads: ${THREADS:-2}
measure: {profile: ${PROFILE:-quick}, batch: [1, 128], grid: ${GRID:-WORLD}}
YAML

# The model's own answers are the teacher of everything that is trained. The recipes do not see the test data: those are for the
# report alone.
train="train.finetune: {epochs: $epochs, batch_size: 128, lr: 0.02, warmup_epochs: 0.2, crop_padding: 4, flip: true, autocast: auto, evaluate: false, loss: {distill.logits: {temperature: 4, alpha: 0.9}}}"

variant() {  # name, model, stages ...
    local name=$1 model=$2
    shift 2
    [ -f "$name/model.pt" ] && [ -f "$name/done" ] && return
    {
        printf 'model: {path: %s}\ndata: {format: cifar10, train: %s, calibration: 512}\ntask: classification\n' "$model" "$data/train.bin"
        printf 'threads: %s\ndeploy: off\nmeasure: {profile: off}\nreport: {formats: [json]}\nstages:\n' "${THREADS:-2}"
        printf '  - %s\n' "$@"
    } >"$name.yaml"
    echo "== $name"
    "$coppice" compress "$name.yaml" --out "$name" --resume --quiet
    touch "$name/done"
}

float=$data/resnet20.pt
variant fp32-deployed "$float" 'deploy: {form: auto}'
variant bf16 "$float" 'quantize.weight_only: {type: bf16}'
variant int8-weights "$float" 'quantize.weight_only: {type: int8}'
variant int8-minmax "$float" 'quantize.static: {observer: minmax}'
variant int8-histogram "$float" 'quantize.static: {observer: histogram}'
variant int8-adaround "$float" 'quantize.static: {observer: histogram, rounding: adaround, bias_correction: true}'
variant prune-75 "$float" 'prune.channel: {criterion: taylor, macs_ratio: 0.75, round_to: 8}' "$train" 'deploy: {form: auto}'
variant prune-50 "$float" 'prune.channel: {criterion: taylor, macs_ratio: 0.5, round_to: 8}' "$train" 'deploy: {form: auto}'
variant prune-30 "$float" 'prune.channel: {criterion: taylor, macs_ratio: 0.3, round_to: 8}' "$train" 'deploy: {form: auto}'
variant svd-70 "$float" 'lowrank.svd: {rank: {ratio: {keep: 0.7}}}' "$train" 'deploy: {form: auto}'
variant svd-40 "$float" 'lowrank.svd: {rank: {ratio: {keep: 0.4}}}' "$train" 'deploy: {form: auto}'
variant student "$float" 'prune.depth: {criterion: similarity, blocks: 3}' "$train" 'deploy: {form: auto}'
variant prune-50-int8 prune-50/02-train.finetune/model.pt 'quantize.static: {observer: histogram}'
variant prune-30-int8 prune-30/02-train.finetune/model.pt 'quantize.static: {observer: histogram}'

"$coppice" eval fp32-deployed bf16 int8-weights int8-minmax int8-histogram int8-adaround prune-75 prune-50 prune-30 svd-70 svd-40 \
    student prune-50-int8 prune-30-int8 --baseline "$float" --data task.yaml --out comparison --title 'Fourteen variants of ResNet-20, CIFAR-10 (JPEG copy)'
"$coppice" report comparison --format svg --title 'Fourteen variants of ResNet-20, CIFAR-10 (JPEG copy)'

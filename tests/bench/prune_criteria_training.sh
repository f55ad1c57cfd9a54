#!/bin/bash
# Fills results/prune_criteria_training.md: prune_criteria_training.sh COPPICE DATA TRAIN OUT [CRITERION/KEEP...]. DATA is the folder of the
# development data, TRAIN the file with all 50,000 training images, KEEP the share of the multiply-adds that stays. One cut by each criterion,
# then ten epochs with knowledge distillation; the accuracy is that of the last epoch. Finished runs in OUT are not repeated, so that
# two calls with other runs can share OUT.
set -euo pipefail
coppice=$1 data=$2 train=$3 out=$4
shift 4
mkdir -p "$out"

# Scores that stand for a loss are weighed against the multiply-adds that they save; others are only comparable within a group, or
# divided by its mean.
declare -A cut=(
    [reconstruction]="criterion: reconstruction, scope: {greedy: {normaliser: none}}"
    [taylor_gates]="criterion: {taylor: {at: gates}}, scope: {greedy: {normaliser: none}}"
    [mean_activation]="criterion: mean_activation, scope: {global: {normaliser: mean}}"
    [wanda]="criterion: wanda, scope: {global: {normaliser: mean}}"
    [apoz]="criterion: apoz, scope: {global: {normaliser: mean}}"
    [magnitude]="criterion: magnitude, scope: {global: {normaliser: mean}}"
)
keeps="0.5 0.3333 0.6667"
[ $# -gt 0 ] || for keep in $keeps; do for name in "${!cut[@]}"; do set -- "$@" "$name/$keep"; done; done

echo "| criterion | multiply-adds | before training | after ten epochs |"
echo "| --- | --- | --- | --- |"
for item in "$@"; do
    name=${item%/*} keep=${item#*/} run=$out/${item/\//-}
    if [ ! -f "$run/report.json" ]; then
        cat >"$run.yaml" <<YAML
model: {path: $data/cifar10/resnet20.pt}
data: {format: cifar10, train: $train, test: $data/cifar10/test.bin, calibration: 512}
task: {type: classification, metric: top1}
threads: 1
stages:
  - prune.channel: {${cut[$name]}, macs_ratio: $keep, round_to: 1, refit: least_squares}
  - train.finetune: {epochs: 10, batch_size: 128, lr: 0.05, weight_decay: 0.0005, warmup_epochs: 0.2, crop_padding: 4, flip: true, autocast: auto, loss: {distill.logits: {temperature: 4, alpha: 0.9}}}
deploy: off
measure: {profile: off}
report: {formats: [json]}
YAML
        # A run that was stopped goes on from its last epoch.
        resume=()
        [ -d "$run" ] && resume=(--resume)
        "$coppice" compress "$run.yaml" --out "$run" "${resume[@]}" >>"$run.log" 2>&1
    fi
    python3 - "$name" "$run" <<'PYTHON'
import glob, json, sys
name, run = sys.argv[1:]
stages = sorted(glob.glob(run + "/0[12]-*/"))
macs = json.load(open(stages[0] + "stage.json"))["facts"]["macs_after"]
before, after = (json.load(open(s + "measurement.json"))["quality"]["points"] for s in stages)
print("| %s | %.1f M | %.2f | %.2f |" % (name, macs / 1e6, before, after), flush=True)
PYTHON
done

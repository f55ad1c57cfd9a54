#!/bin/bash
# Fills results/prune_training.md: prune_training.sh COPPICE DATA OUT [PART...]. DATA is the folder of the development data; finished
# runs in OUT are not repeated. Parts: schedules (same epochs, same half of the multiply-adds), sparse (the drop before fine-tuning).
set -euo pipefail
coppice=$1 data=$2 out=$3
shift 3
parts=${*:-schedules sparse}
seeds=${SEEDS:-1 2 3}
epochs=${EPOCHS:-3}
mkdir -p "$out"

# One run per seed; prints the metric after each stage and its mean over the seeds.
row() { # row LABEL NAME STAGES
    local label=$1 name=$2 stages=$3 runs=()
    for seed in $seeds; do
        local run=$out/$name-$seed
        runs+=("$run")
        [ -f "$run/report.json" ] && continue
        rm -rf "$run"
        cat >"$run.yaml" <<YAML
model: {path: $data/cifar10/resnet20.pt}
data: {format: cifar10, train: $data/cifar10/train.bin, test: $data/cifar10/test.bin, calibration: 512}
task: {type: classification, metric: top1}
threads: 2
seed: $seed
stages: $stages
deploy: off
measure: {profile: off}
report: {formats: [json]}
YAML
        "$coppice" compress "$run.yaml" --quiet --out "$run" >"$run.log" 2>&1
    done
    python3 - "$label" "${runs[@]}" <<'PYTHON'
import glob, json, sys
label, runs = sys.argv[1], sys.argv[2:]
columns, macs, weaker = [], [], []
for run in runs:
    stages = sorted(glob.glob(run + "/[0-9][0-9]-*/"))
    columns.append([json.load(open(s + "measurement.json"))["quality"]["points"] for s in stages[1:]])
    for stage in stages[1:]:
        facts = json.load(open(stage + "stage.json"))["facts"]
        if "macs_after" in facts: macs.append(facts["macs_after"] / 1e6)
        if "weaker_half_after" in facts: weaker.append(facts["weaker_half_after"])
cells = ["%.2f (%s)" % (sum(c) / len(c), ", ".join("%.2f" % x for x in c)) for c in zip(*columns)]
extra = "%.1f M" % (sum(macs) / len(macs)) + (", weaker half %.3f" % (sum(weaker) / len(weaker)) if weaker else "")
print("| %s | %s | %s |" % (label, extra, " | ".join(cells)), flush=True)
PYTHON
}

train="epochs: $epochs, batch_size: 128, lr: 0.05, weight_decay: 0.0005, warmup_epochs: 0.3, crop_padding: 4, flip: true, autocast: auto, evaluate: false, loss: {distill.logits: {temperature: 4, alpha: 0.9}}"
goal="macs_ratio: 0.5, round_to: 4"

for part in $parts; do
    if [ "$part" = schedules ]; then
        for criterion in magnitude taylor; do
            echo
            echo "| $criterion | multiply-adds | top-1 after each stage, %: mean (seeds) | |"
            echo "| --- | --- | --- | --- |"
            choice="criterion: $criterion, $goal"
            row "prune.channel, then train.finetune" "once-$criterion" "[prune.channel: {$choice}, train.finetune: {$train}]"
            row "prune.channel in 5 linear steps, batch norm anew, then train.finetune" "steps-$criterion" \
                "[prune.channel: {$choice, schedule: linear, steps: 5, bn_batches: 4}, train.finetune: {$train}]"
            row "prune.gradual, cubic over the first half" "gradual-$criterion" "[prune.gradual: {$train, $choice, every_steps: 10}]"
            row "prune.gradual, soft, linear over all epochs" "soft-$criterion" \
                "[prune.gradual: {$train, $choice, soft: true, every_steps: 47, pruning_schedule: linear, end_epoch: $epochs}]"
        done
    else
        echo
        echo "| $epochs epochs of training, then prune.channel (magnitude), then train.finetune | multiply-adds | after training | after the cut | after fine-tuning |"
        echo "| --- | --- | --- | --- | --- |"
        sparse="epochs: $epochs, batch_size: 128, lr: 0.05, warmup_epochs: 0.3, crop_padding: 4, flip: true, autocast: auto, evaluate: false, loss: {distill.logits: {temperature: 4, alpha: 0.9}}"
        rest="prune.channel: {criterion: magnitude, $goal}, train.finetune: {$train}"
        row "train.finetune, no penalty" plain "[train.finetune: {$sparse, weight_decay: 0.0005}, $rest]"
        for strength in 0.0005 0.002 0.005; do
            row "group_norm $strength" "group_norm-$strength" \
                "[prune.sparse_learning: {$sparse, weight_decay: 0, regulariser: {group_norm: {strength: $strength}}}, $rest]"
        done
        for strength in 0.0005 0.002; do
            row "group_lasso $strength" "group_lasso-$strength" \
                "[prune.sparse_learning: {$sparse, weight_decay: 0.0005, regulariser: {group_lasso: {strength: $strength}}}, $rest]"
        done
        row "bn_slimming 0.001" bn_slimming-0.001 \
            "[prune.sparse_learning: {$sparse, weight_decay: 0.0005, regulariser: {bn_slimming: {strength: 0.001}}}, prune.channel: {criterion: bn_scale, $goal}, train.finetune: {$train}]"
        row "greg, to 0.07" greg-0.005 \
            "[prune.sparse_learning: {$sparse, weight_decay: 0.0005, regulariser: {greg: {$goal, increment: 0.005, every_steps: 10}}}, $rest]"
    fi
done

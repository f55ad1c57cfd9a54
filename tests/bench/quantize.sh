#!/bin/bash
# Quality, size and time of the stages of quantize on real models, each stage alone on the float model.
#   tests/bench/quantize.sh COPPICE DATA OUT [MODEL ...]     models: minilm_l6 resnet20 cnn_gru light_ts gcn
# and minilm_l6_smooth: static with and without SmoothQuant (see output_noise.py, too); resnet20_bits: few bits by every rounding; resnet20_in_turn: layers in turn, and AdaRound with more steps; resnet20_no_data: calibrated on inputs made from batch norms
# resnet20_observers, minilm_l6_observers: ranges of activations by every observer; minilm_l6_int4: 4-bit weights by every rounding
# PROFILE=off leaves time out; TEST=FILE judges resnet20 on other images.
# Prints one line per stage; runs and their reports stay in OUT. Columns: model, stage, metric before and after, their paired difference with its 95 % interval,
# agreement (of pairs of sentences: correlation of the similarities with the float model's), layers treated / left in float, signal to noise of the noisiest layer and its mean over layers (dB, each layer by itself), file before / after (kB), median ms
# before and after.
set -u
coppice=$1 data=$2 out=$3
shift 3
mkdir -p "$out"
. "$(dirname "$0")/run_once.sh"

resnet20_head=$(resnet20_with "${TEST:-$data/cifar10/test.bin}" 512)
resnet20_no_data_head='model: {path: '$data'/cifar10/resnet20.pt, input: [1, 3, 32, 32]}
data: {format: cifar10, test: '$data'/cifar10/test.bin}
task: {type: classification, metric: top1}'
cnn_gru_head='model: {path: '$data'/fsdd/cnn_gru.pt}
data: {format: tensors, inputs: waveform, divide: 32768, unsqueeze: 1, target: label, train: '$data'/fsdd/train.pt, test: '$data'/fsdd/test.pt, calibration: 128}
task: {type: classification, metric: top1}'
light_ts_head='model: {path: '$data'/etth1/light_ts.pt}
data: {format: csv, path: '$data'/etth1/ETTh1.csv, standardise: [0, 8640], train: {rows: [96, 8640]}, test: {rows: [11520, 14400]}, calibration: 512}
task: {type: regression, metric: mse}'
gcn_head='model: {path: '$data'/cora/gcn.pt}
data: {format: tensors, inputs: [x, edges, weight], target: y, path: '$data'/cora/graph.pt, train: {output_rows: train}, test: {output_rows: test}}
task: {type: classification, metric: top1}'

run() {  # model name, head, stage
    local folder="$out/$1-$(name_of "$3")"
    run_once "$folder" "$2
stages:
  - $3
measure: {profile: ${PROFILE:-quick}}" "$1 | $3" || return
    python3 - "$1" "$3" "$folder" <<'PY'
import glob, json, sys
model, stage, folder = sys.argv[1:]
def read(pattern):
    return json.load(open(sorted(glob.glob(f"{folder}/{pattern}/measurement.json"))[0]))
before, after = read("00-*"), read("01-*")
def latency(tree):
    rows = tree.get("latency") or []
    return "/".join(f"{row['p50_s']['value'] * 1e3:.3g}" for row in rows if row["p50_s"]["value"]) or "-"
facts = json.load(open(sorted(glob.glob(f"{folder}/01-*/stage.json"))[0]))
facts = facts.get("facts", facts)
layers = facts.get("quantized_layers", facts.get("int8_layers"))
kept = facts.get("float_layers")
quality = [tree["quality"]["value"] for tree in (before, after)]
size = [tree["figures"]["file_bytes"]["value"] / 1e3 for tree in (before, after)]
noise = [row["sqnr_db"] for row in facts.get("layers", []) if row.get("precision") != "float32" and row.get("sqnr_db")]
paired = after["quality"].get("paired") or {}
low, high = paired.get("interval", (None, None))
difference = f"{paired['difference']:+.4f}" if paired else "-"
if low is not None:
    difference += f" ({low:+.4f} to {high:+.4f})"
metrics = after.get("metrics", {})
agreement = metrics.get("agreement", metrics.get("baseline_correlation", {})).get("value")
print(f"| {model} | `{stage}` | {quality[0]:.4f} | {quality[1]:.4f} | {difference} | {'-' if agreement is None else f'{agreement:.4f}'} | "
      f"{layers} / {kept} | {f'{min(noise):.1f} / {sum(noise) / len(noise):.1f}' if noise else '-'} | {size[0]:.0f} / {size[1]:.0f} | "
      f"{latency(before)} | {latency(after)} |")
PY
}

[ $# -gt 0 ] || set -- minilm_l6 resnet20 cnn_gru light_ts gcn
for model in "$@"; do
    case $model in
    minilm_l6)
        for stage in 'quantize.dynamic: {}' 'quantize.static: {}' 'quantize.weight_only: {type: int8}' \
            'quantize.weight_only: {type: int4, group: 32}' 'quantize.weight_only: {type: int4, group: 32, rounding: gptq}' \
            'quantize.weight_only: {type: int4, group: 64, rounding: hqq}' 'quantize.weight_only: {type: bf16}' 'quantize.auto: {}'; do
            run "$model" "$minilm_l6_head" "$stage"
        done ;;
    minilm_l6_smooth)
        for bits in '' 'weight_bits: 4' 'weight_bits: 4, rounding: gptq'; do
            for smooth in '' 'smooth: 0.5' 'smooth: 0.5, smooth_norms: all'; do
                both="$bits${bits:+${smooth:+, }}$smooth"
                run minilm_l6 "$minilm_l6_head" "quantize.static: {$both}"
            done
        done ;;
    resnet20)
        for stage in 'quantize.static: {}' 'quantize.static: {equalize: true, bias_correction: true}' \
            'quantize.static: {weight_bits: 4}' 'quantize.static: {weight_bits: 4, rounding: gptq}' \
            'quantize.static: {weight_bits: 4, rounding: gptq, bias_correction: true}' \
            'quantize.static: {weight_bits: 4, rounding: adaround, bias_correction: true}' 'quantize.auto: {}'; do
            run "$model" "$resnet20_head" "$stage"
        done ;;
    resnet20_bits)  # layers stay in int8 however noisy
        for bits in 4 3 2; do
            for rest in '' ', rounding: gptq' ', rounding: adaround' ', rounding: {brecq: {steps: 300}}' \
                ', rounding: {brecq: {steps: 300, loss: mse}}'; do
                run resnet20 "$resnet20_head" "quantize.static: {weight_bits: $bits$rest, fit_weights: true, min_sqnr_db: -100}"
            done
        done ;;
    resnet20_observers)
        for rest in '' ', weight_bits: 4, rounding: gptq, bias_correction: true'; do
            for observer in minmax moving_average percentile histogram entropy; do
                run resnet20 "$resnet20_head" "quantize.static: {observer: $observer$rest}"
            done
        done ;;
    minilm_l6_observers)
        for observer in minmax moving_average percentile histogram entropy; do
            run minilm_l6 "$minilm_l6_head" "quantize.static: {observer: $observer}"
        done ;;
    minilm_l6_int4)
        for rest in '' ', embeddings: false'; do
            for group in 32 128; do
                for rounding in nearest gptq awq hqq; do
                    run minilm_l6 "$minilm_l6_head" "quantize.weight_only: {type: int4, group: $group, rounding: $rounding$rest}"
                done
            done
        done ;;
    resnet20_in_turn)
        for bits in 4 3 2; do
            for rest in ', rounding: gptq, in_turn: true' ', rounding: {adaround: {steps: 2000}}' \
                ', rounding: {adaround: {steps: 2000}}, in_turn: true'; do
                run resnet20 "$resnet20_head" "quantize.static: {weight_bits: $bits$rest, fit_weights: true, min_sqnr_db: -100}"
            done
        done ;;
    resnet20_no_data)
        for stage in 'quantize.static: {synthetic_steps: 1}' 'quantize.static: {}' \
            'quantize.static: {weight_bits: 4, rounding: gptq, bias_correction: true}'; do
            run resnet20_no_data "$resnet20_no_data_head" "$stage"
        done ;;
    light_ts)
        for stage in 'quantize.dynamic: {}' 'quantize.static: {}' 'quantize.auto: {}'; do
            run "$model" "$light_ts_head" "$stage"
        done ;;
    gcn)
        for stage in 'quantize.dynamic: {}' 'quantize.static: {}' 'quantize.auto: {}'; do
            run "$model" "$gcn_head" "$stage"
        done ;;
    cnn_gru)
        for stage in 'quantize.dynamic: {}' 'quantize.static: {}' 'quantize.auto: {}'; do
            run "$model" "$cnn_gru_head" "$stage"
        done ;;
    esac
done

#!/bin/bash
# Fills results/qat.md: quantize.qat of ResNet-20 by every quantizer and number of bits, all from the same file, data and seed.
#   tests/bench/qat.sh COPPICE DATA OUT [PART ...]     parts: methods (W4A4 by each quantizer) bits (LSQ and LSQ+, W8A8 to W2A2)
# EPOCHS (1) of the 6,000 training images of the development data, SEED (0); judged on all 10,000 test images after the last epoch, by which
# nothing is chosen. Learning rate and the like are the defaults of the stage. Prints one line per training; finished ones in OUT are not repeated.
set -u
coppice=$1 data=$2 out=$3
shift 3
mkdir -p "$out"
. "$(dirname "$0")/run_once.sh"
epochs=${EPOCHS:-1} seed=${SEED:-0}

run() {  # quantizer, bits
    local name=$1-W$2A$2-epochs$epochs-seed$seed
    run_once "$out/$name" "$(resnet20_with "$data/cifar10/test.bin" 512)
seed: $seed
stages:
  - quantize.qat: {quantizer: $1, weight_bits: $2, activation_bits: $2, epochs: $epochs, batch_size: 16, crop_padding: 4, flip: true, evaluate: false, loss: {distill.logits: {temperature: 4, alpha: 0.9}}}
measure: {profile: off}" "$1 W$2A$2" || return
    python3 - "$1" "$2" "$out/$name" <<'PY'
import glob, json, sys
quantizer, bits, folder = sys.argv[1:]
def read(pattern):
    return json.load(open(sorted(glob.glob(f"{folder}/{pattern}"))[0]))
before, after = read("00-*/measurement.json"), read("01-*/measurement.json")
facts = read("01-*/stage.json")["facts"]
noise = [row["sqnr_db"] for row in facts["layers"] if row.get("sqnr_db")]
paired = after["quality"].get("paired", {})
interval = "({:+.2f} to {:+.2f})".format(*(100 * end for end in paired["interval"])) if paired.get("interval") else ""
print(f"| {quantizer} | W{bits}A{bits} | {after['quality']['points']:.2f} | {after['quality']['points'] - before['quality']['points']:+.2f} {interval} | "
      f"{after['metrics']['agreement']['value']:.4f} | {' '.join('%.3g' % loss for loss in facts['train_loss'])} | {min(noise):.1f} | "
      f"{facts['train_seconds'] / facts['epochs']:.0f} |", flush=True)
PY
}

echo "| quantizer | bits | top-1, % | difference to float (95 %, paired) | agreement | loss of each epoch | noisiest layer, dB | s an epoch |"
echo "|---|---|---|---|---|---|---|---|"
[ $# -gt 0 ] || set -- methods bits
for part in "$@"; do
    case $part in
    methods) for quantizer in lsq lsq_plus pact minmax; do run $quantizer 4; done ;;
    bits) for bits in 8 3 2; do for quantizer in lsq lsq_plus; do run $quantizer $bits; done; done ;;
    esac
done

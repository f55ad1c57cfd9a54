# Sourced by the benchmarks that run many short recipes: heads of recipes, and one run per recipe.
#   run_once FOLDER TEXT [LABEL]    runs recipe TEXT unless FOLDER has its result; on a failure prints a row with LABEL and is false
# Needs $coppice and $data.

minilm_l6_head='model: {path: '$data'/stsb/minilm_l6.pt}
data: {format: tensors, inputs: ids, mask: ids, pairs: true, target: score, train: '$data'/stsb/train.pt, test: '$data'/stsb/test.pt, calibration: 128}
task: {type: similarity, metric: spearman}'

resnet20_with() {  # test data, number of calibration examples
    printf '%s\n' "model: {path: $data/cifar10/resnet20.pt}" \
        "data: {format: cifar10, train: $data/cifar10/train.bin, test: $1, calibration: $2}" \
        'task: {type: classification, metric: top1}'
}

run_once() {
    [ -f "$1/measured" ] && return
    printf '%s\ndeploy: off\nthreads: 1\nreport: {formats: [json]}\n' "$2" >"$1.yaml"
    "$coppice" compress "$1.yaml" --out "$1" >"$1.log" 2>&1 || {
        echo "| $3 | failed: $(tail -1 "$1.log") |"
        return 1
    }
    touch "$1/measured"
}

name_of() {  # what a recipe's options look like as a file name
    echo "$1" | tr -c 'a-zA-Z0-9_.\n' '_' | cut -c1-"${2:-100}"
}

#!/bin/bash
# Kills a run with -9 at several moments, resumes it, and compares the final model with that of an uninterrupted run.
#   tests/bench/resume_check.sh COPPICE RECIPE FOLDER [--set KEY=VALUE ...]
set -euo pipefail
coppice=$1 recipe=$2 folder=$3
shift 3
rm -rf "$folder" && mkdir -p "$folder"
start=$SECONDS
"$coppice" compress "$recipe" --quiet --out "$folder/whole" "$@" >/dev/null
whole_s=$((SECONDS - start))
echo "uninterrupted: $whole_s s"
resume=()
for delay in $((whole_s / 10 + 1)) $((whole_s / 4 + 1)) $((whole_s / 4 + 1)); do
    "$coppice" compress "$recipe" --quiet --out "$folder/killed" "${resume[@]}" "$@" >/dev/null &
    sleep "$delay"
    kill -9 $! 2>/dev/null && echo "killed after $delay s: finished $(cd "$folder/killed" && echo [0-9][0-9]-*)"
    wait $! 2>/dev/null || true
    resume=(--resume)
done
"$coppice" compress "$recipe" --quiet --out "$folder/killed" --resume "$@" >/dev/null
for stage in "$folder"/whole/[0-9][0-9]-*; do
    name=$(basename "$stage")
    cmp "$stage/model.pt" "$folder/killed/$name/model.pt" && echo "$name: the same bytes"
done

#!/usr/bin/env bash
# Continue a training run for some minutes on a machine with a GPU that is lent for a short time.
#
#   scripts/gpu_training.sh CONFIG CHECKPOINT IMAGES OUT MINUTES [KEY=VALUE ...]
#
# Trains CONFIG from the weights in CHECKPOINT on the folder IMAGES, in large batches with decoded images in memory, and
# writes to OUT: metrics.jsonl, and the averaged weights in parts of 15 MiB. Join them with
# cat OUT/model.part.* > model.safetensors. Further KEY=VALUE override the configuration, for example data.batch=8
# data.workers=2 to rehearse on a CPU.
set -euo pipefail
if [ $# -lt 5 ]; then sed -n '2,10p' "$0" | cut -c3-; exit 2; fi
config=$1 checkpoint=$2 images=$3 out=$4 minutes=$5
shift 5
run=$(mktemp -d)/run
python3 scripts/train.py -c "$config" --set \
    init_from="$checkpoint" data.train="[$images]" data.cache=ram data.batch=64 data.workers=14 \
    run.dir="$run" run.threads=0 run.max_minutes="$minutes" run.log_every=100 optim.lr=1.5e-3 optim.ema=0.998 \
    validation.every=1000000 "$@"
mkdir -p "$out"
cp "$run/metrics.jsonl" "$out"
split -b 15M -d "$run/model.safetensors" "$out/model.part."
ls -l "$out"

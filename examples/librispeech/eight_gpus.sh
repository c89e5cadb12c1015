#!/usr/bin/env bash
# All of LibriSpeech on eight GPUs of one machine, by DDP; otherwise as one_gpu.sh.
set -euo pipefail
HERE=$(dirname "$0")
export SPLITS=${SPLITS:-train-clean-100 train-clean-360 train-other-500}
export LAUNCH=${LAUNCH:-accelerate launch --config_file training/distributed/ddp.yaml --num_processes 8 -m}
exec bash "$HERE/one_gpu.sh"

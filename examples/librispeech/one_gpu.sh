#!/usr/bin/env bash
# 100 hours of LibriSpeech on one GPU. Every command goes on where it was interrupted. MORE is added to each training.
set -euo pipefail
LLAMA=${LLAMA:-meta-llama/Llama-3.2-3B-Instruct}
WHISPER=${WHISPER:-openai/whisper-large-v3-turbo}
SPLITS=${SPLITS:-train-clean-100}
DATA=${DATA:-data/librispeech}
RUNS=${RUNS:-runs/librispeech}
MORE=${MORE:---bf16 --max_tokens_per_batch 16384}

audiollm prepare librispeech --splits $SPLITS --output "$DATA" ${SOURCE:+--source_path "$SOURCE"}
examples=("$DATA"/instruction_examples*.json)

train() { ${LAUNCH:-python -m} audiollm.training.train --data_path "${examples[@]}" --audio_dir "$DATA" $MORE "$@"; }
train --stage align --llama_path "$LLAMA" --whisper_path "$WHISPER" --projector_readout pieces --output_dir "$RUNS/aligned"
train --stage instruct --model_path "$RUNS/aligned" --num_epochs 2 --output_dir "$RUNS/adapter"

audiollm evaluate --model "$RUNS/adapter" --tasks ${TASKS:-librispeech_clean,librispeech_other} --output_dir "$RUNS/evaluation"

#!/usr/bin/env bash
# Train from nothing, on a CPU: Whisper tiny.en and SmolLM2-135M-Instruct, the studio prompts and sentences read by a
# synthetic voice. Each command goes on where it was interrupted. Record: benchmarks/time_to_hear.md.
set -euo pipefail
OUT=${1:-runs/time_to_hear}

audiollm prompts --split train --task transcribe --output_dir "$OUT/prompts"
audiollm prepare synthesize --texts corpora/sentences.txt --voices hibari --output "$OUT/voice"
DATA=("$OUT/prompts/train.json" "$OUT/voice/instruction_examples.json")

audiollm train --stage align --output_dir "$OUT/aligned" --whisper_path pypi:whisper-tiny.en --projector_readout pieces \
    --data_path "${DATA[@]}" --augment --num_epochs 7 --learning_rate 3e-3 --batch_size 28 --adam_beta2 0.98
audiollm train --stage instruct --model_path "$OUT/aligned" --output_dir "$OUT/adapter" \
    --data_path "${DATA[@]}" --augment --max_steps 370 --max_tokens_per_batch 900 \
    --learning_rate 1.5e-3 --projector_learning_rate 3e-5 --adam_beta2 0.98
audiollm evaluate --model "$OUT/adapter" --tasks prompts,unseen --output_dir "$OUT/evaluation"

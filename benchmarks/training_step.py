"""
One training step on 8 short clips, against transformers' own Voxtral class built from the same two bases.

    python benchmarks/training_step.py            # writes benchmarks/results/training_step.json and prints a table

Both sides train the same things (projector and LoRA of the same rank on the same layers, AdamW) on frozen bases of the
same precision, on the same clips and the same question and answer. Each side runs in a process of its own, so that
its peak memory is its own; the processes take turns, so that a machine that slows down slows both.

What differs is what each design does by default. Voxtral's class pads every clip to 30 s, encodes it in every step, and
runs the head on every position. AudioLLM encodes what is there, once, and runs the head where there are labels. The
row "no cache" encodes in every step too.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch

AUDIO_BASE, TEXT_BASE = "pypi:whisper-tiny.en", "pypi:smollm2-135m-instruct"
SIDES = ("audiollm", "audiollm, no cache", "voxtral")
LORA_RANK, LORA_ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_CLIPS = 8
MEDIAN_PROMPT_SECONDS = 1.4
QUESTION = "Transcribe the speech."
RESULTS = Path(__file__).parent / "results" / "training_step.json"
BYTES_PER_MIB = 1 << 20
KIB_PER_MIB = 1 << 10


def short_clips() -> list[dict[str, Any]]:
    """The training prompts whose length is nearest to the corpus' median."""
    from audiollm.corpora.prompts import load_studio_prompts

    rows = list(load_studio_prompts("train"))
    return sorted(rows, key=lambda row: (abs(row["duration_s"] - MEDIAN_PROMPT_SECONDS), row["id"]))[:NUM_CLIPS]


def audiollm_side(dtype: torch.dtype, cached: bool):
    """Our model, and its batch with or without encoder output computed before."""
    from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        AUDIO_BASE, TEXT_BASE, dtype=dtype, lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA, lora_target_modules=TARGETS
    ).train()
    processor = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "audio", "audio": clip["audio"]}, {"type": "text", "text": QUESTION}],
            },
            {"role": "assistant", "content": clip["text"]},
        ]
        for clip in short_clips()
    ]
    batch = processor.apply_chat_template(conversations, tokenize=True, return_labels=True, padding_side="right")
    if cached:
        with torch.no_grad():
            frames, lengths = model.model.encode_audio(batch.pop("input_features"), batch.pop("input_features_mask"))
        batch.update({"encoded_audio": frames, "encoded_audio_lengths": lengths})
    return model, dict(batch)


def voxtral_side(dtype: torch.dtype):
    """transformers' Voxtral class with the weights of the same bases, and its batch padded as it demands."""
    from audiollm import AudioLlmProcessor
    from audiollm.base_models import resolve_base
    from audiollm.checkpoints import load_audio_base, load_text_base
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoTokenizer,
        VoxtralConfig,
        VoxtralEncoderConfig,
        VoxtralForConditionalGeneration,
    )

    audio_folder, text_folder = resolve_base(AUDIO_BASE, "audio"), resolve_base(TEXT_BASE, "text")
    whisper, llama = AutoConfig.from_pretrained(audio_folder), AutoConfig.from_pretrained(text_folder)
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    # Voxtral's slot is a token of the vocabulary; SmolLM2 has reserved ones that no text uses.
    slot = "<reponame>"
    audio_config = VoxtralEncoderConfig(
        hidden_size=whisper.d_model,
        intermediate_size=4 * whisper.d_model,
        num_hidden_layers=whisper.encoder_layers,
        num_attention_heads=whisper.encoder_attention_heads,
        num_mel_bins=whisper.num_mel_bins,
        max_source_positions=whisper.max_source_positions,
    )
    config = VoxtralConfig(
        audio_config=audio_config, text_config=llama, audio_token_id=cast(int, tokenizer.convert_tokens_to_ids(slot))
    )
    config.tie_word_embeddings = llama.tie_word_embeddings
    model = VoxtralForConditionalGeneration(config)
    audio = load_audio_base(AUDIO_BASE, whisper)
    text = load_text_base(TEXT_BASE)
    state = {f"model.audio_tower.{key}": value for key, value in audio.items()} | text
    state["lm_head.weight"] = text["model.language_model.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    not_loaded = [key for key in missing if "multi_modal_projector" not in key]
    if not_loaded or unexpected:
        raise RuntimeError(f"Voxtral was not built from the bases: missing {not_loaded}, unexpected {unexpected}.")
    model.tie_weights()
    model = model.to(dtype)  # type: ignore[arg-type]  # transformers wraps `to`; mypy takes it for a plain function
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=TARGETS), model.model.language_model
    )
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.requires_grad_(True)
    model.model.audio_tower.eval()

    extractor = AutoFeatureExtractor.from_pretrained(audio_folder)
    processor = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
    clips = short_clips()
    waveforms = [processor.load_audio(clip["audio"]) for clip in clips]
    features = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    slots_per_clip = whisper.max_source_positions // 4
    rows = []
    for clip in clips:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": slot * slots_per_clip + QUESTION}], tokenize=False, add_generation_prompt=True
        )
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(clip["text"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append((prompt_ids, answer_ids))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[index, :end] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : end] = torch.tensor(answer)
        mask[index, :end] = 1
    return model, {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": labels,
        "input_features": features.to(dtype),
    }


def run_side(side: str, precision: str, steps: int) -> dict[str, Any]:
    """Times `steps` training steps after a warm-up one; seconds each, and the process' peak memory."""
    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    model, batch = voxtral_side(dtype) if side == "voxtral" else audiollm_side(dtype, "no cache" not in side)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    seconds, losses = [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    # Linux reports KiB, macOS bytes.
    unit = BYTES_PER_MIB if sys.platform == "darwin" else KIB_PER_MIB
    return {
        "side": side,
        "precision": precision,
        "seconds": seconds[1:],
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "tokens_per_row": int(batch["input_ids"].shape[1]),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "losses": losses,
    }


def main() -> None:
    """Runs both sides in turn and writes what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes per side and precision")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, precision = options.worker
        print(json.dumps(run_side(side, precision, options.steps)))
        return
    runs = []
    for round_index in range(options.rounds):
        for precision in options.precisions:
            for side in SIDES:
                command = [sys.executable, __file__, "--steps", str(options.steps), "--worker", side, precision]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                run = json.loads(output.strip().splitlines()[-1])
                runs.append({"round": round_index, **run})
                print(f"round {round_index} {precision:9} {side:19} {statistics.median(run['seconds']):7.2f} s")
    table = summarize(runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    options.output.write_text(
        json.dumps({"machine": machine, "torch": torch.__version__, "summary": table, "runs": runs}, indent=1)
    )
    print(f"\n{'precision':10}{'side':21}{'s/step':>8}{'times faster':>14}{'peak MiB':>10}{'of Voxtral':>12}")
    for row in table:
        print(
            f"{row['precision']:10}{row['side']:21}{row['median_seconds']:8.2f}{row['times_faster_than_voxtral']:14.1f}"
            f"{row['peak_memory_mib']:10.0f}{row['memory_share_of_voxtral']:12.0%}"
        )


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds, and ratios to Voxtral at the same precision."""
    table = []
    for precision in dict.fromkeys(run["precision"] for run in runs):
        medians, memory = {}, {}
        for side in SIDES:
            chosen = [run for run in runs if run["side"] == side and run["precision"] == precision]
            medians[side] = statistics.median(second for run in chosen for second in run["seconds"])
            memory[side] = statistics.median(run["peak_memory_mib"] for run in chosen)
        for side in SIDES:
            table.append(
                {
                    "precision": precision,
                    "side": side,
                    "median_seconds": medians[side],
                    "times_faster_than_voxtral": medians["voxtral"] / medians[side],
                    "peak_memory_mib": memory[side],
                    "memory_share_of_voxtral": memory[side] / memory["voxtral"],
                }
            )
    return table


if __name__ == "__main__":
    main()

"""
Check on one GPU what tests on a CPU cannot: precision, attention kernels, few bits, compiled decoding, speed and memory.

    python benchmarks/gpu_check.py --output gpu_check.json     # under eight minutes, no network
    python benchmarks/gpu_check.py --tiny                      # the same at tiny shapes, on a CPU too

Weights are random. Small models serve the checks of right and wrong; speed and memory are those of Llama-3.2-3B with
whisper-large-v3-turbo, beside transformers' Voxtral class at the same shapes, with LoRA on the same layers. A check whose package or
device is missing is skipped, with the reason. The exit status is 1 where a check fails.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from common import write_result
from memory import audio_config, model_config, text_config
from training_peers import IGNORED_LABEL, TARGETS, VOXTRAL_STACK, add_lora, peer_config
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    VoxtralForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

MEL_FRAMES_PER_S, MEL_PER_FRAME = 100, 2
STEPS, NEW_TOKENS = 8, 32
MIB = 1 << 20
#: Shapes of the models that serve the checks of right and wrong.
SMALL_TEXT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
SMALL_TEXT |= {"num_attention_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 4096}
SMALL_LLAMA = LlamaConfig(**SMALL_TEXT, pad_token_id=0, eos_token_id=1, bos_token_id=2)
SMALL_AUDIO: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
}
SMALL_WHISPER = WhisperConfig(**SMALL_AUDIO, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=256)


class Skipped(Exception):
    """A check that cannot be made here; the message says why."""


class Check:
    """The device, and models to check on it."""

    def __init__(self, folder: Path, tiny: bool):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder, self.tiny = folder, tiny
        shapes = (SMALL_WHISPER, SMALL_LLAMA) if tiny else (audio_config(), text_config("Llama-3.2-3B"))
        self.config = model_config(*shapes)
        self.rows, self.seconds = (2, 1.0) if tiny else (8, 30.0)
        torch.manual_seed(0)
        WhisperForConditionalGeneration(SMALL_WHISPER).save_pretrained(folder / "audio")
        LlamaForCausalLM(SMALL_LLAMA).save_pretrained(folder / "text")

    def small(self, dtype: torch.dtype, **options: Any) -> Any:
        """Return the small pair from its saved bases, with LoRA that is not zero."""
        bases = str(self.folder / "audio"), str(self.folder / "text")
        model: Any = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
            *bases, dtype=dtype, lora_rank=4, lora_target_modules=TARGETS, **options
        )
        model = model if options else model.to(self.device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name:
                    parameter.normal_(std=0.1)
        return model

    def batch(
        self, config: AudioLlmConfig, rows: int, seconds: float, dtype: torch.dtype, audio: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return random rows of a prompt, one recording and an answer; `audio` are other ids in the recording's place."""
        frames = int(seconds * MEL_FRAMES_PER_S)
        slots = math.ceil(math.ceil(frames / MEL_PER_FRAME) / config.stack_factor)
        audio = audio or [config.audio_begin_token_id, *[config.audio_token_id] * slots, config.audio_end_token_id]
        before, after = (torch.randint(5, config.text_config.vocab_size, (rows, count)) for count in (20, 40))
        ids = torch.cat([before, torch.tensor(audio).expand(rows, -1), after], dim=1)
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 30, IGNORED_LABEL),
            "input_features": torch.randn(rows, config.audio_config.num_mel_bins, frames).to(dtype),
            "input_features_mask": torch.ones(rows, frames, dtype=torch.long),
        }
        return {name: value.to(self.device) for name, value in batch.items()}

    # ---- right and wrong --------------------------------------------------------------------------------------------

    def training(self, dtype: torch.dtype) -> dict[str, Any]:
        """Train on one batch, whose loss falls without NaN; fp16 with a loss scale, as the Trainer has it."""
        model = self.small(dtype).train()
        batch = self.batch(model.config, 2, 1.0, dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        losses = []
        for _ in range(STEPS):
            with torch.autocast(self.device.type, dtype=dtype):
                loss = model(**batch).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses
        return {"losses": losses}

    def text_rows(self) -> dict[str, Any]:
        """Compare rows of text with the base's, to the last bit, in every precision."""
        dtypes = [torch.float32, torch.bfloat16, torch.float16]
        for dtype in dtypes:
            model = self.small(dtype).eval()
            base: Any = AutoModelForCausalLM.from_pretrained(self.folder / "text", dtype=dtype)
            base = base.to(self.device).eval()
            ids = torch.randint(5, 256, (3, 17), device=self.device)
            with torch.no_grad():
                assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits), dtype
        return {"precisions": [str(dtype) for dtype in dtypes]}

    def flash_attention(self) -> dict[str, Any]:
        """Compare the loss with flash attention with that with sdpa."""
        if self.device.type != "cuda" or not is_flash_attn_2_available():
            raise Skipped("flash attention needs a GPU and the package flash-attn")
        losses = []
        for name in ("sdpa", "flash_attention_2"):
            model = self.small(torch.bfloat16, attn_implementation=name).to(self.device).eval()
            torch.manual_seed(1)
            with torch.no_grad():
                losses.append(model(**self.batch(model.config, 2, 1.0, torch.bfloat16)).loss.item())
        assert abs(losses[0] - losses[1]) < 0.02 * losses[0], losses
        return {"losses": losses}

    def four_bits(self) -> dict[str, Any]:
        """Train with a base in 4 bits: finite loss, gradients in LoRA."""
        if self.device.type != "cuda" or not is_bitsandbytes_available():
            raise Skipped("4 bits need a GPU and the package bitsandbytes")
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        model = self.small(torch.bfloat16, quantization_config=settings, device_map={"": 0}).train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = model(**self.batch(model.config, 2, 1.0, torch.bfloat16)).loss
        loss.backward()
        assert torch.isfinite(loss) and any(p.grad is not None for n, p in model.named_parameters() if "lora" in n)
        return {"loss": loss.item()}

    def compiled_decoding(self) -> dict[str, Any]:
        """Compare the tokens of a static cache, which transformers compiles on a GPU, with those of the dynamic one."""
        model = self.small(torch.float32).eval()
        inputs = self.batch(model.config, 2, 1.0, torch.float32)
        tokens = answered(model, inputs, 8)
        assert torch.equal(tokens, answered(model, inputs, 8, cache_implementation="static"))
        return {"tokens": tokens.shape[1]}

    def waiting(self) -> dict[str, Any]:
        """Count how often a training step and an answer make the host wait for the GPU."""
        if self.device.type != "cuda":
            raise Skipped("waits are those for a GPU")
        model = self.small(torch.float32).train()
        batch = self.batch(model.config, 2, 1.0, torch.float32)
        works: dict[str, Callable[[], object]] = {
            "training step": lambda: model(**batch).loss.backward(),
            "answer of 4 tokens": lambda: answered(model.eval(), batch, 4),
            "answer of 8 tokens": lambda: answered(model, batch, 8),
        }
        counts = {}
        for name, work in works.items():
            work()  # the first is unlike all others
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                work()
            torch.cuda.set_sync_debug_mode("default")
            counts[name] = len(seen)
        return counts

    # ---- speed and memory -------------------------------------------------------------------------------------------

    def speed(self, name: str) -> dict[str, Any]:
        """Measure seconds and peak memory of a training step, and tokens per second of an answer."""
        on_gpu = self.device.type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        with self.device:
            if name == "audiollm":
                model: Any = AudioLlmForConditionalGeneration(self.config).train()
                batch = self.batch(self.config, self.rows, self.seconds, dtype)
            else:  # every clip is padded to 30 s, and all of that becomes tokens
                kind, bases = VoxtralForConditionalGeneration, (self.config.audio_config, self.config.text_config)
                model = add_lora(kind(peer_config(kind, *bases, audio_token_id=4)).requires_grad_(False))
                slots = self.config.audio_config.max_source_positions // VOXTRAL_STACK
                batch = self.batch(self.config, self.rows, 30.0, dtype, [model.config.audio_token_id] * slots)
                batch.pop("input_features_mask")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            with torch.autocast(self.device.type, dtype=dtype, enabled=on_gpu):
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = [self.timed(step) for _ in range(2 if self.tiny else 6)][1:]
        peak = torch.cuda.max_memory_allocated() / MIB if on_gpu else None
        inputs = {key: value[:1] for key, value in batch.items()}
        tokens = 4 if self.tiny else NEW_TOKENS
        model.eval()

        def answer() -> None:
            with torch.no_grad(), torch.autocast(self.device.type, dtype=dtype, enabled=on_gpu):
                answered(model, inputs, tokens)

        answer()
        return {
            "step_seconds": statistics.median(seconds),
            "step_peak_mib": peak,
            "tokens_per_second": tokens / self.timed(answer),
            "prompt_tokens": inputs["input_ids"].shape[1],
        }

    def timed(self, work: Callable[[], None]) -> float:
        """Return the seconds that the device takes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def answered(model: Any, batch: dict[str, torch.Tensor], tokens: int, **options: Any) -> torch.Tensor:
    """Return the greedy answers to a batch's prompts, all of so many tokens."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)


def run(tiny: bool) -> dict[str, Any]:
    """Make all checks, in order; one that fails stops no other."""
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), tiny)
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            "training in bfloat16": lambda: check.training(torch.bfloat16),
            "training in float16": lambda: check.training(torch.float16),
            "text rows": check.text_rows,
            "flash attention": check.flash_attention,
            "4 bits": check.four_bits,
            "compiled decoding": check.compiled_decoding,
            "waiting for the device": check.waiting,
            "speed, audiollm": lambda: check.speed("audiollm"),
            "speed, voxtral": lambda: check.speed("voxtral"),
        }
        results: dict[str, Any] = {}
        for name, work in checks.items():
            start = time.perf_counter()
            try:
                results[name] = {"status": "passed", **work()}
            except Skipped as reason:
                results[name] = {"status": "skipped", "reason": str(reason)}
            except Exception:  # a check that fails, with its whole traceback in the report, stops no other
                results[name] = {"status": "failed", "error": traceback.format_exc()}
            results[name]["seconds"] = round(time.perf_counter() - start, 2)
            print(f"{name:24} {results[name]['status']:8} {results[name]['seconds']:7.2f} s", flush=True)
            if check.device.type == "cuda":
                torch.cuda.empty_cache()
    return {"tiny": tiny, "checks": results}


def main(argv: list[str] | None = None) -> None:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes for speed as well")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args(argv)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; give --tiny to run the checks at tiny shapes on the CPU.")
    report = run(options.tiny)
    if options.output:
        write_result(options.output, report)
    for name, result in report["checks"].items():
        if result["status"] == "failed":
            print(f"\n{name}:\n{result['error']}", file=sys.stderr)
    sys.exit(any(result["status"] == "failed" for result in report["checks"].values()))


if __name__ == "__main__":
    main()

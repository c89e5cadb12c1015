"""`benchmarks/limit.py`: what is counted of a tiny model is what the formula says, and its results have their fields."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import limit  # noqa: E402
import limit_counting  # noqa: E402
from audiollm import AudioLlmForConditionalGeneration, cpu_speed  # noqa: E402
from audiollm.cpu_speed import use_cpu_speed  # noqa: E402

ROWS, SLOTS, FRAMES_PER_SLOT, WIDTH = 3, 4, 4, 32
#: Rows of so many rows of a product, and a weight as small, go to oneDNN in this file.
ANY_SIZE = 1


@pytest.fixture(scope="module")
def model(tiny_bases):
    return AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)


def batch_of(model, text_length: int = 9) -> dict[str, torch.Tensor]:
    """Rows of one length: shared text, audio, and an answer of its own for each."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    question = torch.arange(10, 10 + text_length).expand(ROWS, -1)
    audio = [config.audio_begin_token_id, *[config.audio_token_id] * SLOTS, config.audio_end_token_id]
    answer = torch.randint(20, 90, (ROWS, 5), generator=generator)
    input_ids = torch.cat([question, torch.tensor(audio).expand(ROWS, -1), answer], dim=1)
    labels = input_ids.clone()
    labels[:, :-5] = limit_counting.IGNORED_LABEL
    frames = torch.randn(ROWS, SLOTS * FRAMES_PER_SLOT, WIDTH, generator=generator)
    lengths = torch.full((ROWS,), SLOTS * FRAMES_PER_SLOT)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "encoded_audio": frames,
        "encoded_audio_lengths": lengths,
    }


@pytest.mark.parametrize("by_onednn", [False, True], ids=["torch's choice", "oneDNN"])
@pytest.mark.parametrize("text_length", [0, 9], ids=["nothing shared", "beginning shared"])
def test_training_step_is_counted_as_the_formula_says(model, monkeypatch, by_onednn: bool, text_length: int) -> None:
    monkeypatch.setattr(cpu_speed, "onednn_is_faster", lambda: by_onednn)
    monkeypatch.setattr(cpu_speed, "MIN_ROWS", ANY_SIZE)
    monkeypatch.setattr(cpu_speed, "MIN_SIZE", ANY_SIZE)
    batch = batch_of(model, text_length)
    use_cpu_speed(model.train())
    # Of rows without text, <audio> alone is shared: too little to be run by itself.
    shared = text_length and limit_counting.shared_text(model, batch)
    counted, _ = limit_counting.count(lambda: model(**batch).loss.backward())
    positions = limit_counting.positions_of(model, batch, shared, padded=False)
    assert counted == limit_counting.language_model_flops(model, positions, trains=True)


def test_prefill_is_counted_as_the_formula_says(model) -> None:
    batch = batch_of(model)
    del batch["labels"]
    model.eval()
    with torch.no_grad():
        counted, _ = limit_counting.count(lambda: model(**batch, logits_to_keep=1))
    positions = limit_counting.positions_of(model, batch, 0, padded=False, supervised=ROWS)
    assert counted == limit_counting.language_model_flops(model, positions, trains=False)


def test_padding_does_not_count(model) -> None:
    batch = batch_of(model)
    batch["attention_mask"][0, -2:] = 0
    useful, executed = (
        limit_counting.language_model_flops(
            model, limit_counting.positions_of(model, batch, 0, padded=padded), trains=True
        )
        for padded in (False, True)
    )
    assert useful < executed


@pytest.mark.parametrize("mel_frames", [37, 100])
def test_encoding_is_counted_as_the_formula_says(model, mel_frames: int) -> None:
    features = torch.randn(1, 80, mel_frames)
    counted, _ = limit_counting.count(lambda: model.model.encode_audio(features))
    assert counted == limit_counting.encoder_flops(model.config.audio_config, [mel_frames])


def test_bytes_are_those_read_and_written_once() -> None:
    x, weight = torch.randn(4, 8), torch.randn(16, 8)
    with torch.no_grad():
        _, read_and_written = limit_counting.count(lambda: x @ weight.T)
    assert read_and_written == 4 * (4 * 8 + 16 * 8 + 4 * 16)


def test_fraction_is_flops_over_seconds_over_rate(monkeypatch) -> None:
    clock = iter([0.0, 2.0, 2.0, 10.0, 14.0, 14.0])
    monkeypatch.setattr(limit.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(limit, "operations", lambda run: [])
    rates = iter([10.0, 30.0, 10.0])

    class Rate:
        def measure(self) -> float:
            return next(rates)

    case = limit.Case("a case", lambda: None, 40, 40, 8, {"log_mel_seconds": 1.0})
    found = limit.measure(case, Rate(), rounds=2)
    assert found["seconds"] == 3.0 and found["matrix_rate_flops_per_s"] == 20.0
    assert found["fraction"] == 0.75 and found["range"] == [0.5, 1.0]
    assert found["flops_per_byte"] == 5.0 and found["log_mel_seconds"] == 1.0


def test_what_is_short_is_repeated_within_a_round(monkeypatch) -> None:
    clock = iter([0.0, 0.2, 0.4, limit.ROUND_SECONDS, 0.6])
    monkeypatch.setattr(limit.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(limit, "operations", lambda run: [])
    runs: list[int] = []

    class Rate:
        def measure(self) -> float:
            return 1.0

    found = limit.measure(limit.Case("a case", lambda: runs.append(1), 1, 1, 1, {}), Rate(), rounds=1)
    assert len(runs) == 3 and found["seconds"] == pytest.approx(0.2)


def test_result_file_has_its_fields() -> None:
    if not limit.RESULTS.exists():
        pytest.skip("benchmarks/limit.py has not been run")
    results = json.loads(limit.RESULTS.read_text(encoding="utf-8"))
    assert results["machine"]["threads"] > 0 and results["copy_bytes_per_s"] > 0
    kinds = {name.rpartition(" ")[0] for name in results["fractions"]}
    assert kinds == set(limit.CASES)
    for by_precision in results["fractions"].values():
        assert set(by_precision) == set(limit.PRECISIONS)
        for found in by_precision.values():
            low, high = found["range"]
            assert 0 < low <= found["fraction"] <= high
            assert {"flops", "bytes", "seconds", "matrix_rate_flops_per_s"} <= set(found)
            assert found["operations"]


def test_options_are_read() -> None:
    options = limit.read_options(
        ["--cases", "encoding", "--shapes", "short", "--precisions", "float32", "--rounds", "1"]
    )
    assert isinstance(options, argparse.Namespace)
    assert (options.cases, options.shapes, options.precisions, options.rounds) == (
        ["encoding"],
        ["short"],
        ["float32"],
        1,
    )
    with pytest.raises(SystemExit):
        limit.read_options(["--repeats", "0"])

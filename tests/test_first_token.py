"""The comparison of times to the first token: what each side hears, what is counted, and what the table says of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import first_token
import inference_peers
from inference_peers import OURS, PEERS, Side
from joined_speech import joined_speech
from training_peers import AUDIO_BASE, TEXT_BASE
from versions import PEERS_RUN

RATE = 16_000


def seen(side: str, seconds: float, first: float, heard: float | None = None, memory: float = 100.0) -> dict:
    return {
        "side": side,
        "recording_s": seconds,
        "precision": "float32",
        "first_token_s": first,
        "processor_s": 0.1,
        "tokens_per_s": 10 / first,
        "peak_memory_mib": memory,
        "prompt_tokens": 50,
        "heard_s": seconds if heard is None else heard,
        "encoded_s": 30.0,
    }


def test_ratios_are_of_medians_and_of_peers_that_heard_all(capsys) -> None:
    runs = [
        *[seen("audiollm", 4.0, first, memory=memory) for first, memory in ((1.0, 50), (2.0, 70), (9.0, 60))],
        seen("voxtral", 4.0, 10.0),
        seen("qwen2_audio", 4.0, 8.0),
        seen("audiollm", 600.0, 20.0),
        seen("qwen2_audio", 600.0, 3.0, heard=30.0),
    ]
    table = first_token.summarize(runs)
    ours, voxtral, qwen, long, deaf = table
    assert ours["first_token_s"] == 2.0 and ours["rounds"] == 3 and ours["peak_memory_mib"] == 70
    assert ours["first_token_times_faster_than_voxtral"] == 5.0 and ours["meets_target_over_voxtral"] is True
    assert ours["first_token_times_faster_than_qwen2_audio"] == 4.0 and ours["meets_target_over_qwen2_audio"] is False
    assert ours["decode_times_faster_than_voxtral"] == 5.0 and ours["memory_share_of_voxtral"] == 0.7
    assert not deaf["hears_all"] and qwen["hears_all"]
    assert not [name for row in (long, voxtral, qwen, deaf) for name in row if "_than_" in name or "meets" in name]
    first_token.print_table(table, list(PEERS))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "hears 30 s of it" in line] == [line for line in lines if " 600  qwen2" in line]


@pytest.mark.parametrize(
    ("name", "seconds", "heard", "encoded"),
    [("voxtral", 1.0, 1.0, 30.0), ("voxtral", 31.0, 31.0, 60.0), ("qwen2_audio", 31.0, 30.0, 30.0)],
)
def test_what_peers_hear_of_a_recording(real_bases, peers, name, seconds, heard, encoded) -> None:
    side = peers[name]
    waveform = np.zeros(int(seconds * RATE), dtype=np.float32)
    inputs = side.prepare(waveform)
    assert side.heard_s(waveform, inputs) == heard and side.encoded_s(inputs) == encoded
    assert int(inputs["attention_mask"].sum()) == inputs["input_ids"].shape[1]


def test_peers_answer_in_as_many_tokens_as_asked_for(peers, real_processor) -> None:
    for side in peers.values():
        row = first_token.measure(side, joined_speech(1.0, real_processor), 2)
        assert 0 < row["processor_s"] < row["first_token_s"] and row["tokens_per_s"] > 0


def test_ours_is_asked_like_the_peers(tiny_model, tiny_processor) -> None:
    def prepare(waveform):
        question = inference_peers.ask("What?", waveform)
        return dict(tiny_processor.apply_chat_template(question, tokenize=True, add_generation_prompt=True))

    side = Side(tiny_model.eval(), prepare, inference_peers._heard_by_mask, inference_peers._encoded_s)
    row = first_token.measure(side, joined_speech(2.0, tiny_processor), 5)
    assert row["heard_s"] == row["encoded_s"] == 2.0 and row["peak_memory_mib"] > 0


def test_other_bases_than_the_peers_are_refused(tiny_model, tiny_processor, tmp_path) -> None:
    for one in (tiny_model, tiny_processor):
        one.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"stands on .*; expected"):
        OURS["audiollm"](str(tmp_path), "float32")


@pytest.mark.parametrize("option", ["--rounds 0", "--long_rounds 0", "--new_tokens 1", "--lengths 4 0"])
def test_options_that_measure_nothing_are_refused(option: str) -> None:
    with pytest.raises(SystemExit):
        first_token.read_options(option.split())


def test_recordings_are_as_long_as_said_and_hold_speech(tiny_processor) -> None:
    short, long = (joined_speech(seconds, tiny_processor) for seconds in (3.5, 20.0))
    assert (len(short), len(long)) == (3.5 * RATE, 20 * RATE)
    assert np.array_equal(long[: len(short)], short)
    seconds = long.reshape(-1, RATE)
    assert (np.abs(seconds).max(axis=1) > 0).all()
    paused = joined_speech(20.0, tiny_processor, pauses=True)
    assert len(paused) == len(long) and np.square(paused).sum() < np.square(long).sum()


@pytest.fixture(scope="module")
def peers(real_bases) -> dict[str, Side]:
    if not PEERS_RUN:
        pytest.skip("the peers are built with classes of transformers 5.23")
    return {name: make(None, "float32") for name, make in PEERS.items()}


@pytest.mark.slow
def test_all_sides_in_processes_of_their_own(tmp_path, monkeypatch, capsys) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
    for one in (model, AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)):
        one.save_pretrained(tmp_path / "model")
    output = tmp_path / "report.json"
    command = "--lengths 1 2 --rounds 2 --long_rounds 1 --new_tokens 3 --precisions bfloat16"
    monkeypatch.setattr(first_token, "LONG_S", 1.5)
    monkeypatch.setattr(
        sys, "argv", ["first_token.py", *command.split(), "--model", str(tmp_path / "model"), "--output", str(output)]
    )
    first_token.main()
    report = json.loads(output.read_text())
    sides = [*OURS, *PEERS]
    order = [(run["recording_s"], run["round"], run["side"]) for run in report["runs"]]
    assert order == [
        *[(1.0, 0, side) for side in sides],
        *[(1.0, 1, side) for side in reversed(sides)],
        *[(2.0, 0, side) for side in sides],
    ]
    assert {row["rounds"] for row in report["summary"] if row["recording_s"] == 1.0} == {2}
    assert all(f"first_token_times_faster_than_{peer}" in report["summary"][0] for peer in PEERS)
    assert "bfloat16" in capsys.readouterr().out

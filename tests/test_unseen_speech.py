"""The benchmark on unseen speech: what it composes, scores and writes, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from audiollm.corpora.unseen import load_unseen_speech
from tiny_models import randomise_trainables

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import unseen_speech


@pytest.fixture(scope="module")
def checkpoint(tiny_bases, tiny_processor, tmp_path_factory) -> str:
    """A tiny adapter whose configuration is nowhere the default."""
    folder = tmp_path_factory.mktemp("adapter")
    fields = {"lora_rank": 2, "stack_factor": 8, "projector_type": "mlp"}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, **fields)
    randomise_trainables(model).save_pretrained(folder)
    processor = type(tiny_processor).from_audio_text_pretrained(*tiny_bases, stack_factor=8)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("untrained", [False, True])
def test_every_figure_is_that_of_the_transcripts_beside_it(checkpoint, untrained, tmp_path, capsys) -> None:
    output = tmp_path / "unseen.json"
    unseen_speech.main(["--model", checkpoint, "--output", str(output), *(["--untrained"] if untrained else [])])
    report = json.loads(output.read_text(encoding="utf-8"))
    names = [name for name in unseen_speech.LABELS if untrained or not name.startswith("untrained")]
    clips = {row["id"]: row for row in load_unseen_speech()}
    assert {clip["id"]: clip["reference"] for clip in report["clips"]} == {i: row["text"] for i, row in clips.items()}
    assert list(report["scores"]) == ["cards", "librivox", "both"]
    printed = capsys.readouterr().out
    for source, scores in report["scores"].items():
        chosen = [clip for clip in report["clips"] if source in (clips[clip["id"]]["source"], "both")]
        assert list(scores) == names
        for name in names:
            expected = unseen_speech.score([clip["reference"] for clip in chosen], [clip[name] for clip in chosen])
            assert scores[name] == expected.to_dict() and expected.clips == len(chosen)
            assert f"{expected.word_error:.3f}" in printed
    assert all(clip["reference"] in printed for clip in report["clips"])
    assert ("before training" in printed) == untrained
    if untrained:
        assert any(clip["untrained"] != clip["adapter"] for clip in report["clips"])


def test_the_wrong_recording_is_another_of_the_same_source(checkpoint) -> None:
    clips = unseen_speech.run(checkpoint, progress=False)["clips"]
    for source in unseen_speech.SOURCES:
        rows = [clip for clip in clips if clip["id"].startswith(source)]
        own, wrong = ([row[name] for row in rows] for name in ("adapter", "adapter_wrong_audio"))
        half = len(own) // 2
        assert wrong == [*own[half:], *own[:half]] != own


def test_the_untrained_model_has_the_same_bases_and_configuration_and_adds_nothing(checkpoint) -> None:
    config = AudioLlmConfig.from_pretrained(checkpoint)
    model = unseen_speech.compose_untrained(config)
    trained = AudioLlmForConditionalGeneration.from_pretrained(checkpoint)
    assert model.config.base_fingerprint == config.base_fingerprint
    chosen = ("lora_rank", "stack_factor", "projector_type", "lora_adapters", "projector_hidden_size")
    assert all(getattr(model.config, name) == getattr(config, name) for name in chosen)
    weights, after = model.state_dict(), trained.state_dict()
    assert {name: value.shape for name, value in weights.items()} == {n: value.shape for n, value in after.items()}
    learned = set(model.trainable_names())
    assert all(torch.equal(value, after[name]) for name, value in weights.items() if name not in learned)
    assert not any(value.any() for name, value in weights.items() if "lora_B" in name)


def test_a_checkpoint_that_names_no_bases_is_refused() -> None:
    with pytest.raises(ValueError, match=r"None and None.*--untrained"):
        unseen_speech.compose_untrained(AudioLlmConfig())


def test_an_output_that_cannot_be_written_is_named_before_listening(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        unseen_speech.main(["--model", "none", "--output", str(tmp_path / "none" / "out.json")])
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["5 5", "5, 5.", "Five, five.", "five five", "55"])
def test_a_number_said_twice_is_no_error_however_it_is_written(written: str) -> None:
    assert unseen_speech.score(["Five, five."], [written]).word_error == 0


@pytest.mark.parametrize("text", ["10 of clubs", "3.5", "1,000", "x2"])
def test_other_digits_stay(text: str) -> None:
    assert unseen_speech.digits_as_words(text) == text

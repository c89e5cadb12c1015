"""The benchmark of transcripts that CTC helps to choose: what it reports, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.word_error import score_word_error
from tiny_models import randomise_trainables

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import hearing_twice


def save(folder: Path, bases, processor, **fields) -> str:
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=2, **fields)
    randomise_trainables(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_both_ways_are_scored_and_other_rows_stay(tiny_bases, tiny_processor, tmp_path, capsys) -> None:
    model = save(tmp_path / "model", tiny_bases, tiny_processor, projector_readout="pieces")
    output = tmp_path / "report.json"
    output.write_text(json.dumps({"other": {}}))
    options = ["--limit", "2", "--splits", "validation", "--ctc_weight", "1000000"]
    hearing_twice.main(["--model", model, "--label", "tiny", "--output", str(output), *options])
    report = json.loads(output.read_text())
    assert list(report) == ["other", "tiny"] and report["tiny"]["ctc_weight"] == 1e6
    found = report["tiny"]["validation"]
    references = load_studio_prompts("validation").select(range(2))["text"]
    for name in ("greedy", "twice"):
        score = score_word_error(list(references), found[name]["transcripts"]).to_dict()
        assert {key: found[name][key] for key in score} == score
        assert found[name]["cpu_seconds"] > 0
    assert found["greedy"]["transcripts"] != found["twice"]["transcripts"]
    assert found["times_greedy"] == found["twice"]["cpu_seconds"] / found["greedy"]["cpu_seconds"]
    assert "greedy" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tiny_bases, tiny_processor, tmp_path) -> None:
    model = save(tmp_path, tiny_bases, tiny_processor)
    for weight, message in (("0", "expected more than 0"), ("1.5", "projector_readout is 'direct'")):
        with pytest.raises(SystemExit, match=message):
            hearing_twice.main(["--model", model, "--limit", "1", "--ctc_weight", weight])

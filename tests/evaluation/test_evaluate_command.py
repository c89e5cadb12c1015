"""`audiollm evaluate` on one's own data: what it prints and writes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
from audiollm.evaluation.evaluate import main
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from small_corpus import example_rows, write_recordings, write_rows


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> tuple[str, str, list[dict]]:
    """Examples file, audio folder, and the rows: four, the last without a word to say."""
    folder = tmp_path_factory.mktemp("test_set")
    rows = example_rows(write_recordings(folder / "recordings", 4))[:4]
    rows[1]["text"] = "<audio>\nWhat do you hear?"
    rows[3]["response"] = "..."
    return write_rows(folder / "test.json", rows), str(folder / "recordings"), rows


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluate(checkpoint: Path, test_set, *extra: str) -> None:
    data_path, audio_dir, _ = test_set
    main(
        [
            "--model",
            str(checkpoint),
            "--data_path",
            data_path,
            "--audio_dir",
            audio_dir,
            "--max_new_tokens",
            "8",
            *extra,
        ]
    )


def test_scores_and_transcripts_are_written(
    checkpoint, test_set, tiny_model, tiny_processor, tmp_path, capsys
) -> None:
    _, audio_dir, rows = test_set
    evaluate(checkpoint, test_set, "--output", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    clips = report["clips"]
    assert [clip["reference"] for clip in clips] == [row["response"] for row in rows]
    assert [clip["audio"] for clip in clips] == [f"{audio_dir}/{row['audio_paths']}" for row in rows]
    assert [clip["prompt"] for clip in clips] == [row["text"] for row in rows]
    expected = [
        answer(tiny_model, tiny_processor, [ask(row["text"], f"{audio_dir}/{row['audio_paths']}")], max_new_tokens=8)[
            0
        ]
        for row in rows
    ]
    assert [clip["hypothesis"] for clip in clips] == expected
    for part, key in (
        ("word_error", "hypothesis"),
        ("wrong_audio_control", "wrong_audio_hypothesis"),
        ("whisper_own_decoder", "whisper_hypothesis"),
    ):
        score = score_word_error([clip["reference"] for clip in clips], [clip[key] for clip in clips])
        assert report[part] == score.to_dict() and score.skipped == 1
    printed = capsys.readouterr().out
    assert all(
        re.search(
            rf"^local  word_error \(fraction\) +{name} +{report[part]['word_error']:.3g} \[.*\]  \(3 scored\)$",
            printed,
            re.MULTILINE,
        )
        for part, name in (
            ("word_error", "this model"),
            ("wrong_audio_control", "given the wrong recordings"),
            ("whisper_own_decoder", "Whisper's own decoder"),
        )
    )
    assert "1 of 4 left out" in printed


def test_limit_and_no_decoder(checkpoint, test_set, tmp_path, capsys) -> None:
    evaluate(checkpoint, test_set, "--limit", "2", "--no_decoder", "--output", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(report["clips"]) == 2 and report["whisper_own_decoder"] is None
    assert {clip["whisper_hypothesis"] for clip in report["clips"]} == {None}
    assert "Whisper's" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--limit", "1"], "gives 1 clips of one recording"),
        (["--output", "/no/such/folder/report.json"], "there is no folder /no/such/folder"),
        (["--data_path", "/no/data.json"], "/no/data.json"),
        (["--audio_dir", "/no/folder"], "'/no/folder' is not a folder"),
        (["--dtype", "int3"], "invalid choice: 'int3'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(test_set, extra, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate(Path("/no/model"), test_set, *extra)
    assert caught.value.code != 0
    assert message in f"{caught.value.code} {capsys.readouterr().err}"

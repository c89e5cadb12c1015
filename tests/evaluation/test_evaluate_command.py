"""`audiollm evaluate` on one's own data: what it prints and writes, and what it refuses."""

import re
from pathlib import Path

import pytest
from audiollm.evaluation.evaluate import main
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from evaluation_runs import rows_of
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


SYSTEMS = {
    "model": "this model",
    "wrong_audio": "given the wrong recordings",
    "whisper": "Whisper's own decoder",
}


def test_scores_and_transcripts_are_written(
    checkpoint, test_set, tiny_model, tiny_processor, tmp_path, capsys
) -> None:
    _, audio_dir, rows = test_set
    evaluate(checkpoint, test_set, "--output_dir", str(tmp_path / "run"))
    answers = rows_of(tmp_path / "run", "local", "model")
    assert [row["audio"] for row in answers] == [[f"{audio_dir}/{row['audio_paths']}"] for row in rows]
    assert [row["prompt"] for row in answers] == [row["text"] for row in rows]
    asked = [[ask(row["text"], f"{audio_dir}/{row['audio_paths']}")] for row in rows]
    expected = [answer(tiny_model, tiny_processor, one, max_new_tokens=8)[0] for one in asked]
    assert [row["output"] for row in answers] == expected
    printed = capsys.readouterr().out
    for system, name in SYSTEMS.items():
        outputs = [row["output"] for row in rows_of(tmp_path / "run", "local", system)]
        score = score_word_error([row["response"] for row in rows], outputs)
        figure = rf"^local  word_error \(fraction\) +{name} +{score.word_error:.3g} \[.*\]  \(3 scored\)$"
        assert score.skipped == 1 and re.search(figure, printed, re.MULTILINE)
    assert "1 of 4 left out" in printed


def test_limit_and_systems(checkpoint, test_set, tmp_path, capsys) -> None:
    chosen = ("--limit", "2", "--systems", "model,wrong_audio")
    evaluate(checkpoint, test_set, *chosen, "--output_dir", str(tmp_path / "run"))
    assert len(rows_of(tmp_path / "run", "local", "model")) == 2
    assert "Whisper's" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--limit", "1"], "gives 1 clips of one recording"),
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

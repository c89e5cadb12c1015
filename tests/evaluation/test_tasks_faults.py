"""Faults of a benchmark's copy are named: rows all at once, columns with those that were found, missing places."""

import json
import tarfile
from pathlib import Path

import datasets
import pytest
import soundfile
from audiollm.evaluation.readers import read_local_set
from audiollm.evaluation.tasks import Item, TaskDataError, TaskError, find_task
from audiollm.processing import load_waveform
from benchmark_copies import (
    air_bench,
    common_voice,
    earnings22,
    fleurs,
    fleurs_pair,
    leaderboard,
    recordings,
    table,
    texts,
    voicebench,
    write_lines,
)
from small_corpus import write_recordings

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def read(name: str, data: Path | None) -> list[Item]:
    return list(find_task(name).items(None if data is None else str(data)))


def problems_of(name: str, data: Path) -> dict[str, str]:
    with pytest.raises(TaskDataError) as error:
        read(name, data)
    assert all(reason in str(error.value) for _, reason in error.value.problems)
    return dict(error.value.problems)


def test_bad_rows_are_all_named(tmp_path) -> None:
    """A list's, a stream's, and those whose answer, translation or call is missing."""
    meta = air_bench(tmp_path / "air") / "Foundation" / "Foundation_meta.json"
    rows = json.loads(meta.read_text())
    rows[0]["answer_gt"], rows[1]["path"], rows[2]["path"] = "a fish", "../../secret.wav", "gone.wav"
    meta.write_text(json.dumps(rows))
    found = problems_of("air_bench_foundation", tmp_path / "air")
    assert list(found) == [f"Foundation_meta.json row {index}" for index in range(3)]
    reasons = ("its answer 'a fish' is none of its choices", "leads out of", "does not exist")
    assert all(reason in told for reason, told in zip(reasons, found.values()))

    clips = sorted((common_voice(tmp_path / "cv") / "en" / "clips").iterdir())
    clips[0].unlink()
    clips[2].unlink()
    found = problems_of("common_voice:en", tmp_path / "cv")
    assert list(found) == ["common_voice_en_0.ogg", "common_voice_en_2.ogg"]
    assert all("does not exist" in reason for reason in found.values())

    voicebench("openbookqa", answers=("A", "E", ""))(tmp_path / "voicebench")
    expected = [f"its answer is {letter!r}; expected one of A, B, C, D" for letter in ("E", "")]
    assert list(problems_of("voicebench_openbookqa", tmp_path / "voicebench").values()) == expected

    fleurs(fleurs_pair(tmp_path / "fleurs"), "en_us", "English", (7, 8, 9))
    found = problems_of("fleurs_translation:en_us-ja_jp", tmp_path / "fleurs")
    assert list(found.values()) == ["its sentence 8 is not in ja_jp"]

    chunks = earnings22(tmp_path / "calls") / "Earnings22-Cleaned-AA-chunked" / "chunks.jsonl"
    rows = [json.loads(line) for line in chunks.read_text().splitlines()]
    rows[0]["parent_id"], rows[1]["file_name"] = "4469660", "../../../chunk.wav"
    write_lines(chunks, rows, "test")
    first, second = problems_of("earnings22", tmp_path / "calls").values()
    assert "no transcript of '4469660', perhaps '4469669'?" in first and "leads out of" in second


def test_missing_columns_are_named_with_those_that_were_found(tmp_path) -> None:
    table("ami_cleaned", "test", texts("words"), lambda number, text: {"words": text})(tmp_path)
    with pytest.raises(TaskError) as error:
        read("ami", tmp_path)
    message = str(error.value)
    assert "there is no column 'id'" in message and "'text'" in message
    assert "Its columns are: audio (audio), words (text)." in message and "--columns" not in message
    calls = earnings22(tmp_path / "calls") / "Earnings22-Cleaned-AA" / "earnings22_cleaned_aa_v1.jsonl"
    write_lines(calls, [{"id": "1", "words": "x"}], "test")
    with pytest.raises(TaskError, match=r"for 'transcript'\. Its columns are: id, words"):
        read("earnings22", tmp_path / "calls")


@pytest.mark.parametrize("name", ["ami", "air_bench_foundation", "earnings22"])
def test_what_cannot_be_downloaded_is_asked_for(name: str, monkeypatch) -> None:
    with pytest.raises(TaskError, match=r"Mozilla Data Collective.*Give your copy with --data"):
        read("common_voice:en", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=f"Task '{name}'"):
        read(name, None)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("fleurs:de_de", ".", "holds en_us, but not de_de"),
        ("fleurs_translation:en_us-de_de", ".", "there is no folder de_de"),
        ("fleurs_translation:en_us-de_de", "en_us/test/0000.parquet", "expected one for each language"),
        ("fleurs:de_de", "de_de.tar.gz", "is an archive; unpack it"),
    ],
)
def test_another_language_is_not_taken_for_the_one_asked_for(tmp_path, name, place, message) -> None:
    fleurs(tmp_path, "en_us", "English")
    (tmp_path / "de_de.tar.gz").write_bytes(b"")
    with pytest.raises(TaskError, match=message):
        read(name, tmp_path / place)


def test_one_file_is_a_copy_and_columns_may_have_other_names(tmp_path) -> None:
    leaderboard("ami_cleaned")(tmp_path)
    assert len(read("ami", tmp_path / "ami_cleaned" / "test-00000-of-00001.parquet")) == 4
    meta = air_bench(tmp_path / "air") / "Chat" / "Chat_meta.json"
    assert len(read("air_bench_chat", meta)) == len(read("air_bench_chat", meta.parent)) == 3

    for name, config, column, file in (
        ("voxpopuli", "voxpopuli_cleaned_aa", "normalized_text", None),
        ("common_voice:ja", "ja", "sentence", "ja/test/0.parquet"),  # as it was on the Hub
    ):

        def row(number: int, text: str, column: str = column) -> dict:
            return {"id": f"{number}", "path": f"{number}.ogg", column: text}

        table(config, "test", texts("id", "path", "client_id", "locale", column), row, file)(tmp_path / column)
        assert [item.references for item in read(name, tmp_path / column)] == [[one["text"]] for one in recordings()]


@pytest.mark.parametrize("form", ["tree", "archive"])
def test_librispeech_as_openslr_has_it(form: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AUDIOLLM_CACHE", str(tmp_path / "cache"))
    chapter = tmp_path / "LibriSpeech" / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    lines = []
    for index, each in enumerate(recordings()):
        soundfile.write(chapter / f"61-70968-{index:04}.flac", load_waveform(each["audio"]), 16_000)
        lines.append(f"61-70968-{index:04} GO ON {'I' * (index + 1)}\n")
    (chapter / "61-70968.trans.txt").write_text("".join(lines))
    data = tmp_path
    if form == "archive":
        data = tmp_path / "part-of-it.tar.gz"
        with tarfile.open(data, "w:gz") as archive:
            archive.add(tmp_path / "LibriSpeech", "LibriSpeech")
    found = read("librispeech_clean", data)
    assert [item.references for item in found] == [["GO ON I"], ["GO ON II"], ["GO ON III"]]
    assert found[0].id == "61-70968-0000" and len(load_waveform(found[0].recordings[0])) > 1000


def test_ones_own_recordings_are_a_task_and_bad_rows_are_all_named(tmp_path) -> None:
    rows = [
        {"text": "Write down: <audio>", "audio_paths": name, "response": each["text"]}
        for name, each in zip(write_recordings(tmp_path, 3), recordings())
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    task = read_local_set(str(path))
    assert (task.kind, task.metrics, task.normaliser) == ("asr", ("word_error",), "english")
    found = list(task.items())
    assert [item.id for item in found] == ["row 0", "row 1", "row 2"]
    assert {item.prompt for item in found} == {"Write down: <audio>"}
    assert [item.references for item in found] == [[each["text"]] for each in recordings()]
    assert len(list(task.items(limit=2))) == 2 and len(load_waveform(found[0].recordings[0])) > 1000
    with pytest.raises(TaskError, match="takes no --data"):
        next(task.items("elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "test.json")
    assert len(list(read_local_set(str(moved), str(tmp_path)).items())) == 3

    rows.append({"text": "What is 2 + 2?", "response": "four"})
    rows.append({"text": "<audio> or <audio>?", "audio_paths": ["0.wav", "1.wav"], "response": "both"})
    rows.append({"text": "<audio>", "audio_paths": "gone.wav", "response": "x"})
    path.write_text(json.dumps(rows))
    with pytest.raises(TaskDataError) as error:
        read_local_set(str(path))
    assert sorted(where for where, _ in error.value.problems) == ["row 3", "row 4", "row 5"]
    path.write_text("[]")
    with pytest.raises(TaskDataError, match="holds no examples"):
        read_local_set(str(path))

"""Preparing a corpus: what is written, that it is the same every time, and what becomes of bad clips and interruptions."""

import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from audiollm.corpora.clips import BadClip, Clip, CorpusError, safe_name
from audiollm.corpora.examples import ExamplesError, read_examples
from audiollm.corpora.preparing import PrepareArguments, prepare
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.recordings import AudioSettings, load_clip
from audiollm.corpora.tasks import tasks_named
from audiollm.processing import AudioError, load_waveform
from made_clips import StudioSource
from small_corpus import contents

FLAC = AudioSettings(0.05, 80.0)
TRANSCRIBE = tasks_named(["transcribe"])


def settings(**options) -> PrepareArguments:
    return PrepareArguments(
        **{"min_seconds": FLAC.min_seconds, "max_seconds": FLAC.max_seconds, "workers": 1} | options
    )


def tone(seconds: float, hertz: float = 440.0, rate: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_every_form_holds_the_same_examples(tmp_path):
    prepared = prepare(StudioSource(), tmp_path, TRANSCRIBE, settings(formats=["json", "jsonl", "parquet"]))
    rows = load_studio_prompts("test").select(range(12))
    examples = read_examples(tmp_path / "instruction_examples.json", tmp_path)
    lines = read_examples(tmp_path / "instruction_examples.jsonl", tmp_path)
    assert [e.response for e in examples] == [text.strip() for text in rows["text"]]
    assert [(e.text, e.audio_paths, e.response) for e in examples] == [
        (e.text, e.audio_paths, e.response) for e in lines
    ]
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    found = {name: digest for name, digest in contents(tmp_path).items() if not name.startswith(".prepare")}
    assert {name: found.get(name) for name in sums} == sums and {*sums, "SHA256SUMS", "manifest.json"} == {*found}
    table = datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(table.features["audio"], datasets.Audio)
    table = table.cast_column("audio", datasets.Audio(decode=False))
    for example, row, prompt in zip(examples, table, rows):
        assert (row["text"], row["response"], row["id"]) == (example.text, example.response, prompt["id"])
        assert np.array_equal(load_waveform(row["audio"]), load_waveform(example.audio_paths[0]))
        assert np.abs(load_waveform(prompt["audio"]) - load_waveform(row["audio"])).max() <= 0.5 / 2**15 + 1e-6
    assert prepared.splits["train"].examples == len(examples) == 12
    assert len({example.text for example in examples}) > 1  # several wordings


def test_another_corpus_or_filter_is_never_read_from_a_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def read(output: Path, streaming: bool) -> list[str]:
        rows = datasets.load_dataset(str(output / "parquet"), split="train", streaming=streaming)
        return [row["id"] for row in rows.decode(False)] if streaming else rows["id"][:]

    ids = load_studio_prompts("test")["id"][:3]
    for streaming in (False, True):
        for output, kept in ((tmp_path / "a", ids), (tmp_path / "b", ids[:1]), (tmp_path / "a", ids[1:])):
            prepare(StudioSource(3), output, TRANSCRIBE, settings(), is_kept=lambda row, kept=kept: row["id"] in kept)
            assert read(output, streaming) == kept


def test_the_same_bytes_with_one_and_two_processes_and_of_any_number_of_runs(tmp_path):
    """A run that stops in the middle, as a kill would, leaves what the next one goes on from."""

    class Stopping(StudioSource):
        def clips(self, start=0):
            yield from (clip for _, clip in zip(range(40), super().clips(start)))
            raise KeyboardInterrupt

    for name, workers in (("one", 1), ("two", 2), ("one", 2)):
        prepare(StudioSource(60), tmp_path / name, TRANSCRIBE, settings(workers=workers))
    with pytest.raises(KeyboardInterrupt):
        prepare(Stopping(60), tmp_path / "three", TRANSCRIBE, settings())
    with open(tmp_path / "three" / ".prepare" / "clips.jsonl", "ab") as journal:
        journal.write(b'{"id": "torn')
    prepare(StudioSource(60), tmp_path / "three", TRANSCRIBE, settings())
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_a_finished_folder_is_not_converted_again_and_a_lost_file_is(tmp_path):
    class Counting(StudioSource):
        started: list[int] = []

        def clips(self, start=0):
            self.started.append(start)
            return super().clips(start)

    source = Counting()
    prepare(source, tmp_path, TRANSCRIBE, settings())
    before = contents(tmp_path)
    prepare(source, tmp_path, TRANSCRIBE, settings())
    assert source.started == [0]
    lost = sorted((tmp_path / "audio" / "00000").iterdir())[0]
    lost.unlink()
    prepare(source, tmp_path, TRANSCRIBE, settings())
    assert len(source.started) == 2 and contents(tmp_path) == before


def test_other_tasks_and_filters_need_no_second_conversion(tmp_path):
    class Once(StudioSource):
        def clips(self, start=0):
            assert not (tmp_path / "manifest.json").exists(), "read twice"
            return super().clips(start)

    def with_captions(rows, total):
        assert total == 12
        for row in rows:
            yield row | {"fields": row["fields"] | {"caption": "A voice.", "wer": len(row["text"])}}

    prepare(Once(), tmp_path, TRANSCRIBE, settings())
    prepared = prepare(
        Once(),
        tmp_path,
        tasks_named(["transcribe", "describe"]),
        settings(formats=["jsonl"]),
        settle=with_captions,
        is_kept=lambda row: row["fields"]["wer"] <= 20,
    )
    kept = [text for text in load_studio_prompts("test")["text"][:12] if len(text) <= 20]
    assert 0 < len(kept) < 12
    assert prepared.splits["train"].examples == 2 * len(kept)
    assert not (tmp_path / "parquet").exists() or not any((tmp_path / "parquet").iterdir())
    assert not (tmp_path / "instruction_examples.json").exists()  # of the earlier run
    table = pq.read_table(tmp_path / "clips.parquet")
    assert table.num_rows == 12 and {"caption", "wer", "speaker", "sha256"} <= set(table.column_names)


def test_another_corpus_or_format_does_not_go_on_in_the_same_folder(tmp_path):
    prepare(StudioSource(4), tmp_path, TRANSCRIBE, settings())
    with pytest.raises(CorpusError, match=r"source\.limit was 4, is 5.*--restart"):
        prepare(StudioSource(5), tmp_path, TRANSCRIBE, settings())
    shorter = {"max_seconds": 60.0}
    with pytest.raises(CorpusError, match=r"max_seconds was 80\.0, is 60\.0"):
        prepare(StudioSource(4), tmp_path, TRANSCRIBE, settings(**shorter))
    prepare(StudioSource(4), tmp_path, TRANSCRIBE, settings(**shorter, restart=True))


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").write_bytes(b"mine")
    with pytest.raises(CorpusError, match="folder 'audio' of something else"):
        prepare(StudioSource(2), tmp_path, TRANSCRIBE, settings())


BAD = {
    "missing": Clip("missing", "/nowhere/at/all.wav", "Words."),
    "empty": Clip("empty", {"bytes": b"", "path": "empty.wav"}, "Words."),
    "no audio": Clip("no audio", {"bytes": b"These are no samples.", "path": "no.wav"}, "Words."),
    "short": Clip("short", {"array": tone(0.01), "sampling_rate": 16_000}, "Words."),
    "long": Clip("long", {"array": tone(81), "sampling_rate": 16_000}, "Words."),
    "silent text": Clip("silent text", {"array": tone(1), "sampling_rate": 16_000}, " "),
    "placeholder": Clip("placeholder", {"array": tone(1), "sampling_rate": 16_000}, "Say <audio>."),
    "unreadable": BadClip("unreadable", "its row is broken"),
    "\udcff": Clip("\udcff", {"array": tone(1), "sampling_rate": 16_000}, "Words."),
    "latin": Clip("latin", {"array": tone(1), "sampling_rate": 16_000}, "Words.", fields={"speaker": "Ren\udce9"}),
}


def test_all_bad_clips_are_told_at_once_and_nothing_is_lost(tmp_path):
    twice = Clip(load_studio_prompts("test")["id"][0], {"array": tone(1), "sampling_rate": 16_000}, "Twice.")
    source = StudioSource(2, more=[*BAD.values(), twice])
    with pytest.raises(ExamplesError) as refused:
        prepare(source, tmp_path, TRANSCRIBE, settings())
    assert len(refused.value.problems) == len(BAD) + 1
    assert not list(tmp_path.glob("instruction_examples*")) and not (tmp_path / "parquet").exists()
    problems = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    reasons = {problem["id"]: problem["problem"] for problem in problems}
    assert set(reasons) == {*BAD, twice.id}
    for name, expected in {
        "missing": "does not exist",
        "short": "--min_seconds",
        "long": "--max_seconds",
        "silent text": "needs 'text'",
        "placeholder": "<audio>",
        "unreadable": "its row is broken",
        twice.id: "same id",
        "\udcff": "Unicode",
        "latin": "UTF-8",
    }.items():
        assert expected in reasons[name], (name, reasons[name])
    prepared = prepare(source, tmp_path, TRANSCRIBE, settings(on_bad_example="skip"))
    assert prepared.splits["train"].examples == 2 and prepared.problems == len(BAD) + 1


def test_a_header_of_ten_hours_is_refused_before_it_is_decoded():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(36_000 * 100, np.int16), 100 * 10, format="FLAC")  # an hour at 1 kHz
    with pytest.raises(AudioError, match=r"lasts 3600.0 s, longer than --max_seconds 80"):
        load_clip(Clip("long", {"bytes": buffer.getvalue(), "path": "long.flac"}), FLAC)


def test_parts_of_a_recording_are_cut_out_exactly(tmp_path):
    whole = np.concatenate([tone(1, 300), tone(1, 500), tone(1, 700)])
    path = tmp_path / "whole.wav"
    soundfile.write(path, whole, 16_000, subtype="FLOAT")
    part = load_clip(Clip("part", str(path), start_seconds=1.0, end_seconds=2.0), FLAC)
    assert np.array_equal(part, whole[16_000:32_000])
    assert np.array_equal(load_clip(Clip("end", str(path), start_seconds=2.0), FLAC), whole[32_000:])
    from_array = Clip("a", {"array": whole, "sampling_rate": 16_000}, start_seconds=1.0, end_seconds=2.0)
    assert np.array_equal(load_clip(from_array, FLAC), whole[16_000:32_000])
    for start, end in ((2.0, 3.5), (2.0, 2.0), (-1.0, 1.0), (5.0, None)):
        with pytest.raises(AudioError, match="no part of its recording"):
            load_clip(Clip("bad", str(path), start_seconds=start, end_seconds=end), FLAC)


@pytest.mark.parametrize("identity", ["../../etc/passwd", "..", ".hidden", "", "a/b\\c:d", "🎤", "x" * 500, "nul\0"])
def test_no_id_becomes_a_path(identity, tmp_path):
    name = safe_name(identity)
    assert name and not name.startswith((".", "-")) and "/" not in name and "\0" not in name
    assert len(os.fsencode(name)) < 200
    (tmp_path / name).touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_fields_of_two_types_share_a_column(tmp_path):
    audio = {"array": tone(1), "sampling_rate": 16_000}
    clips = [Clip(str(n), audio, "Words.", fields={"wer": wer, "age": age, "none": None})
             for n, (wer, age) in enumerate([(0, "12"), (1.5, 7), (None, None)])]  # fmt: skip
    prepare(StudioSource(0, more=clips), tmp_path, TRANSCRIBE, settings())
    table = pq.read_table(tmp_path / "clips.parquet").to_pydict()
    assert table["wer"] == [0.0, 1.5, None] and table["age"] == ["12", "7", None] and table["none"] == [None] * 3


def test_splits_have_files_of_their_own(tmp_path):
    audio = {"array": tone(1), "sampling_rate": 16_000}
    clips = [Clip(split, audio, split, split=split) for split in ("dev-clean", "train-clean-100")]
    prepare(StudioSource(0, more=clips), tmp_path, TRANSCRIBE, settings())
    for split in ("dev-clean", "train-clean-100"):
        (example,) = read_examples(tmp_path / f"instruction_examples.{split}.json", tmp_path)
        assert example.response == split
    splits = datasets.load_dataset(str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"))
    assert {name: rows["response"][:] for name, rows in splits.items()} == {
        "dev.clean": ["dev-clean"],
        "train.clean.100": ["train-clean-100"],
    }


def test_lists_in_the_output_that_are_corrupt_or_lie_are_made_anew_and_touch_nothing_outside(tmp_path):
    output, kept = tmp_path / "out", tmp_path / "kept.txt"
    kept.write_text("kept")
    prepare(StudioSource(4), output, TRANSCRIBE, settings())
    before = contents(output)
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["files"] += ["../kept.txt", str(kept)]
    (output / "manifest.json").write_text(json.dumps(manifest))
    journal = output / ".prepare" / "clips.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lies = [json.dumps(json.loads(lines[1]) | {"audio": name, "bytes": 4}) for name in ("../kept.txt", str(kept))]
    for line in (b"{\x00", b"[1]", b'{"id": "a"}', b"", *(lie.encode() for lie in lies)):
        for restart in (False, True):
            journal.write_bytes(b"\n".join([*lines[:1], line, *lines[2:]]))
            prepare(StudioSource(4), output, TRANSCRIBE, settings(restart=restart))
            assert contents(output) == before and kept.read_text() == "kept"

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
from audiollm.corpora.preparing import PrepareArguments, Prepared, prepare
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.recordings import AudioSettings, load_clip
from audiollm.corpora.tasks import known_tasks
from audiollm.processing import AudioError, load_waveform
from made_clips import StudioSource
from small_corpus import contents

LIMITS = {"min_seconds": 0.05, "max_seconds": 80.0}


def prepared(source: StudioSource, output: Path, tasks: tuple[str, ...] = ("transcribe",), **options) -> Prepared:
    filters = {name: options.pop(name) for name in ("settle", "is_kept") if name in options}
    settings = PrepareArguments(**LIMITS | {"workers": 1} | options)
    return prepare(source, output, [known_tasks()[name] for name in tasks], settings, **filters)


def tone(seconds: float, hertz: float = 440.0) -> dict:
    waveform = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000)
    return {"array": waveform.astype(np.float32), "sampling_rate": 16_000}


def test_every_form_holds_the_same_examples(tmp_path):
    made = prepared(StudioSource(), tmp_path, formats=["json", "jsonl", "parquet"])
    rows = load_studio_prompts("test").select(range(12))
    examples = read_examples(tmp_path / "instruction_examples.json", tmp_path)
    assert [example.response for example in examples] == [text.strip() for text in rows["text"]]
    assert examples == read_examples(tmp_path / "instruction_examples.jsonl", tmp_path)
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    found = {name: digest for name, digest in contents(tmp_path).items() if not name.startswith(".prepare")}
    assert {name: found.get(name) for name in sums} == sums and {*sums, "SHA256SUMS", "manifest.json"} == {*found}
    table = datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(table.features["audio"], datasets.Audio)
    for example, row, prompt in zip(examples, table.cast_column("audio", datasets.Audio(decode=False)), rows):
        assert (row["text"], row["response"], row["id"]) == (example.text, example.response, prompt["id"])
        assert np.array_equal(load_waveform(row["audio"]), load_waveform(example.audio_paths[0]))
        assert np.abs(load_waveform(prompt["audio"]) - load_waveform(row["audio"])).max() <= 0.5 / 2**15 + 1e-6
    assert made.splits["train"].examples == len(examples) == 12
    assert len({example.text for example in examples}) > 1  # several wordings


def test_another_corpus_or_filter_is_never_read_from_a_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    ids = load_studio_prompts("test")["id"][:3]
    for streaming in (False, True):
        for output, kept in ((tmp_path / "a", ids), (tmp_path / "b", ids[:1]), (tmp_path / "a", ids[1:])):
            prepared(StudioSource(3), output, is_kept=lambda row, kept=kept: row["id"] in kept)
            rows = datasets.load_dataset(str(output / "parquet"), split="train", streaming=streaming)
            assert [row["id"] for row in rows.select_columns(["id"])] == kept


def test_the_same_bytes_with_one_and_two_processes_and_of_any_number_of_runs(tmp_path):
    """A run that stops in the middle, as a kill would, leaves what the next one goes on from."""

    class Stopping(StudioSource):
        def clips(self, start=0):
            yield from (clip for _, clip in zip(range(40), super().clips(start)))
            raise KeyboardInterrupt

    for name, workers in (("one", 1), ("two", 2)):
        prepared(StudioSource(60), tmp_path / name, workers=workers)
    with pytest.raises(KeyboardInterrupt):
        prepared(Stopping(60), tmp_path / "three")
    with open(tmp_path / "three" / ".prepare" / "clips.jsonl", "ab") as journal:
        journal.write(b'{"id": "torn')
    prepared(StudioSource(60), tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_a_finished_folder_is_not_converted_again_but_for_a_lost_file(tmp_path):
    """Whatever tasks, formats and filters are asked for."""

    class Counting(StudioSource):
        started: list[int] = []

        def clips(self, start=0):
            self.started.append(start)
            return super().clips(start)

    def with_captions(rows, total):
        assert total == 12
        for row in rows:
            yield row | {"fields": row["fields"] | {"caption": "A voice.", "wer": len(row["text"])}}

    source = Counting()
    prepared(source, tmp_path)
    before = contents(tmp_path)
    filters = {"settle": with_captions, "is_kept": lambda row: row["fields"]["wer"] <= 20}
    made = prepared(source, tmp_path, ("transcribe", "describe"), formats=["jsonl"], **filters)
    kept = [text for text in load_studio_prompts("test")["text"][:12] if len(text) <= 20]
    assert 0 < len(kept) < 12 and made.splits["train"].examples == 2 * len(kept)
    assert not any((tmp_path / "parquet").glob("*")) and not (tmp_path / "instruction_examples.json").exists()
    table = pq.read_table(tmp_path / "clips.parquet")
    assert table.num_rows == 12 and {"caption", "wer", "speaker", "sha256"} <= set(table.column_names)
    prepared(source, tmp_path)
    assert source.started == [0]
    min((tmp_path / "audio" / "00000").iterdir()).unlink()
    prepared(source, tmp_path)
    assert len(source.started) == 2 and contents(tmp_path) == before


def test_another_corpus_or_format_does_not_go_on_in_the_same_folder(tmp_path):
    prepared(StudioSource(4), tmp_path)
    with pytest.raises(CorpusError, match=r"source\.limit was 4, is 5.*--restart"):
        prepared(StudioSource(5), tmp_path)
    with pytest.raises(CorpusError, match=r"max_seconds was 80\.0, is 60\.0"):
        prepared(StudioSource(4), tmp_path, max_seconds=60.0)
    (tmp_path / "other" / "audio").mkdir(parents=True)
    with pytest.raises(CorpusError, match="folder 'audio' of something else"):
        prepared(StudioSource(4), tmp_path / "other")


#: Clips that cannot be used, with a part of the reason.
BAD = [
    (Clip("missing", "/nowhere/at/all.wav", "Words."), "does not exist"),
    (Clip("empty", {"bytes": b"", "path": "empty.wav"}, "Words."), ""),
    (Clip("no audio", {"bytes": b"These are no samples.", "path": "no.wav"}, "Words."), ""),
    (Clip("short", tone(0.01), "Words."), "--min_seconds"),
    (Clip("long", tone(81), "Words."), "--max_seconds"),
    (Clip("silent text", tone(1), " "), "needs 'text'"),
    (Clip("placeholder", tone(1), "Say <audio>."), "<audio>"),
    (BadClip("unreadable", "its row is broken"), "its row is broken"),
    (Clip("\udcff", tone(1), "Words."), "Unicode"),
    (Clip("latin", tone(1), "Words.", fields={"speaker": "Ren\udce9"}), "UTF-8"),
    (Clip(load_studio_prompts("test")["id"][0], tone(1), "Twice."), "same id"),
]


def test_all_bad_clips_are_told_at_once_and_nothing_is_lost(tmp_path):
    source = StudioSource(2, more=[clip for clip, _ in BAD])
    with pytest.raises(ExamplesError) as refused:
        prepared(source, tmp_path)
    assert len(refused.value.problems) == len(BAD)
    assert not list(tmp_path.glob("instruction_examples*")) and not (tmp_path / "parquet").exists()
    problems = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    reasons = {problem["id"]: problem["problem"] for problem in problems}
    assert set(reasons) == {clip.id for clip, _ in BAD}
    assert all(expected in reasons[clip.id] for clip, expected in BAD), reasons
    made = prepared(source, tmp_path, on_bad_example="skip")
    assert made.splits["train"].examples == 2 and made.problems == len(BAD)


def test_parts_of_a_recording_are_cut_out_exactly_and_hours_are_not_decoded(tmp_path):
    limits, path = AudioSettings(**LIMITS), tmp_path / "whole.wav"
    whole = np.concatenate([tone(1, hertz)["array"] for hertz in (300, 500, 700)])
    soundfile.write(path, whole, 16_000, subtype="FLOAT")
    for recording in (str(path), {"array": whole, "sampling_rate": 16_000}):
        part = load_clip(Clip("part", recording, start_seconds=1.0, end_seconds=2.0), limits)
        assert np.array_equal(part, whole[16_000:32_000])
        assert np.array_equal(load_clip(Clip("end", recording, start_seconds=2.0), limits), whole[32_000:])
        for start, end in ((2.0, 3.5), (2.0, 2.0), (-1.0, 1.0), (5.0, None)):
            with pytest.raises(AudioError, match="no part of its recording"):
                load_clip(Clip("bad", recording, start_seconds=start, end_seconds=end), limits)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(3_600_000, np.int16), 1000, format="FLAC")
    with pytest.raises(AudioError, match=r"lasts 3600.0 s, longer than --max_seconds 80"):
        load_clip(Clip("long", {"bytes": buffer.getvalue(), "path": "long.flac"}), limits)


def test_no_id_becomes_a_path(tmp_path):
    for identity in ("../../etc/passwd", "..", ".hidden", "", "a/b\\c:d", "🎤", "x" * 500, "nul\0"):
        name = safe_name(identity)
        assert name and not name.startswith((".", "-")) and "/" not in name and len(os.fsencode(name)) < 200
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 8


def test_splits_have_files_of_their_own_and_fields_of_two_types_share_a_column(tmp_path):
    fields = [{"wer": 0, "age": "12", "none": None}, {"wer": 1.5, "age": 7}, {"wer": None}]
    splits = ["dev-clean", "train-clean-100", "test"]
    clips = [Clip(split, tone(1), split, split, each) for split, each in zip(splits, fields)]
    prepared(StudioSource(0, more=clips), tmp_path)
    for split in splits:
        (example,) = read_examples(tmp_path / f"instruction_examples.{split}.json", tmp_path)
        assert example.response == split
    found = datasets.load_dataset(str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"))
    assert {name: rows["response"][:] for name, rows in found.items()} == {s.replace("-", "."): [s] for s in splits}
    table = pq.read_table(tmp_path / "clips.parquet").to_pydict()
    assert table["wer"] == [0.0, 1.5, None] and table["age"] == ["12", "7", None] and table["none"] == [None] * 3


def test_lists_in_the_output_that_are_corrupt_or_lie_are_made_anew_and_touch_nothing_outside(tmp_path):
    output, kept = tmp_path / "out", tmp_path / "kept.txt"
    kept.write_text("kept")
    prepared(StudioSource(4), output)
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
            prepared(StudioSource(4), output, restart=restart)
            assert contents(output) == before and kept.read_text() == "kept"

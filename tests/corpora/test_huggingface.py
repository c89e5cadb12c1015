"""Datasets of every form become the same clips: on disk, in files, of a Hub; whole, streamed, from the middle on."""

import json
from pathlib import Path
from typing import Any

import datasets
import prepared_python
import pytest
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.huggingface import HuggingFaceArguments, open_source
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing.audio import load_waveform
from corpus_copies import stored
from loopback_hub import LoopbackHub

ROWS = 5


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Real speech, with a hypothesis, a word error and other things that datasets have."""
    return [
        {
            "audio": prompt["audio"],
            "sentence": prompt["text"],
            "raw_text": prompt["text"].upper(),
            "pred_text": prompt["text"].lower(),
            "wer": 12.5 * number,
            "speaker_id": number,
            "note": None if number % 2 else "odd",
        }
        for number, prompt in enumerate(load_studio_prompts("test").select(range(ROWS)))
    ]


def as_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    # As they come from the Hub: a column that would be decoded, by torchcodec, if it were read as datasets reads it.
    return datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(sampling_rate=16_000))


def written(form: str, folder: Path, rows: list[dict[str, Any]]) -> str:
    if form in ("parquet", "shards", "saved", "splits"):
        return stored(form, folder, as_dataset(rows))
    for row in rows:
        (folder / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])
    column = "file_name" if form == "audiofolder" else "audio"
    plain = [{column: row["audio"]["path"], **{n: row[n] for n in row if n != "audio"}} for row in rows]
    if form == "csv":
        datasets.Dataset.from_list(plain).to_csv(folder / "data.csv")
        return str(folder / "data.csv")
    path = folder / ("metadata.jsonl" if form == "audiofolder" else "data.jsonl")
    path.write_text("\n".join(map(json.dumps, plain)))
    return str(folder if form == "audiofolder" else path)


def source_of(dataset: str, **options: Any):
    return open_source(HuggingFaceArguments(dataset, **options))


@pytest.mark.parametrize("form", ["parquet", "shards", "saved", "splits", "audiofolder", "jsonl", "csv"])
def test_datasets_of_every_form_become_the_same_clips(form: str, rows, tmp_path) -> None:
    name = written(form, tmp_path, rows)
    source = source_of(name)
    clips = list(source.clips())
    fields = [{"pred_text": row["pred_text"], "wer": row["wer"], "speaker": row["speaker_id"]} for row in rows]
    assert [(clip.text, dict(clip.fields)) for clip in clips] == [(r["sentence"], f) for r, f in zip(rows, fields)]
    assert [clip.id for clip in clips] == [f"train-{number:08d}" for number in range(ROWS)]
    lengths = [len(load_waveform(row["audio"]["bytes"])) for row in rows]
    assert [len(load_waveform(clip.recording)) for clip in clips] == lengths
    assert source.count() == (None if form == "audiofolder" else ROWS) and source.name == name
    streamed = source_of(name, streaming=True)
    assert list(streamed.clips()) == clips and streamed.count() is None
    for start in (1, ROWS, ROWS + 1):
        assert list(source.clips(start)) == clips[start:] == list(streamed.clips(start))
    assert source.identity == streamed.identity and json.loads(json.dumps(source.identity)) == source.identity


def test_options_change_the_clips_and_the_identity(rows, tmp_path) -> None:
    name = written("parquet", tmp_path, rows)
    plain = source_of(name)
    columns = source_of(name, columns=["text=raw_text", "wer=", "remark=note"])
    first = next(columns.clips())
    assert first.text == rows[0]["sentence"].upper() and "wer" not in first.fields and first.fields["remark"] == "odd"
    assert [("remark" in clip.fields) for clip in columns.clips()] == [True, False, True, False, True]
    limited = source_of(name, limit=2)
    assert list(limited.clips()) == list(plain.clips())[:2] and limited.count() == 2
    assert list(source_of(name, limit=2, streaming=True).clips(1)) == list(plain.clips())[1:2]
    other_split = source_of(name, splits=["dev"])
    assert {clip.split for clip in other_split.clips()} == {"dev"}
    as_dataset([{**row, "id": f"utt {number}"} for number, row in enumerate(rows)]).to_parquet(name)
    named = source_of(name)
    assert [clip.id for clip in named.clips()][:2] == ["utt 0", "utt 1"]
    sources = [plain, columns, limited, other_split, named]
    assert len({json.dumps(source.identity) for source in sources}) == len(sources)
    with pytest.raises(CorpusError, match="no column of word errors"):
        source_of(name, columns=["wer="], wer_unit="percent")


def test_several_splits_follow_each_other(rows, tmp_path) -> None:
    saved = {"train": as_dataset(rows[:2]), "empty.ish": as_dataset(rows[2:3]), "test": as_dataset(rows[3:])}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path))
    for streaming in (False, True):
        source = source_of(str(tmp_path), splits=["test,train", "empty.ish"], streaming=streaming)
        clips = list(source.clips())
        assert [clip.split for clip in clips] == ["test", "test", "train", "train", "empty.ish"]
        assert [clip.text for clip in clips] == [rows[number]["sentence"] for number in (3, 4, 0, 1, 2)]
        assert len({clip.id for clip in clips}) == ROWS
        for start in range(ROWS + 2):
            assert list(source.clips(start)) == clips[start:]


def test_rows_that_cannot_become_clips_say_why(rows, tmp_path) -> None:
    secret, folder = tmp_path / "secret.wav", tmp_path / "data"
    secret.write_bytes(b"x")
    folder.mkdir()
    (folder / "link.wav").symlink_to(secret)
    (folder / "good.ogg").write_bytes(rows[0]["audio"]["bytes"])
    bad = [
        ("x.wav", None, "'text' of column 'text' is empty"),
        ("../secret.wav", "x", "leads out of"),
        (str(secret), "x", "leads out of"),
        ("link.wav", "x", "leads out of"),
        ("https://host/a.wav", "x", "an address elsewhere"),
        ("file:///etc/passwd", "x", "an address elsewhere"),
        ("", "x", "has no audio"),
        ("a\0.wav", "x", "no path"),
        ("y.wav", " ", "is empty"),
    ]
    lines = [{"audio": path, "text": text} for path, text, _ in [*bad, ("good.ogg", "one", "")]]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    *clips, last = source_of(str(folder / "data.jsonl"), columns=["audio=audio"]).clips()
    assert isinstance(last, Clip) and len(load_waveform(last.recording)) > 0 and clips[0].id == "train-00000000"
    for clip, (_, _, reason) in zip(clips, bad, strict=True):
        assert isinstance(clip, BadClip) and reason in clip.reason


def test_words_that_look_like_missing_values_are_words(tmp_path) -> None:
    (tmp_path / "data.tsv").write_text('audio\ttext\na.wav\tnull\na.wav\tNA\na.wav\t"quoted\na.wav\t\n')
    *clips, missing = source_of(str(tmp_path / "data.tsv")).clips()
    assert [clip.text for clip in clips] == ["null", "NA", '"quoted'] and isinstance(missing, BadClip)


def test_places_that_are_no_dataset_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("data.pkl", "x"),
        ("data.parquet", "not parquet"),
        ("program/program.py", "open('ran', 'w')"),
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    Path("folder").mkdir()
    for given, message in (
        ("data.pkl", "ends in one of .parquet"),
        ("folder", "cannot be read"),
        ("program", "cannot be read"),
        ("data.parquet", "cannot be read"),
        ("nowhere", "no file or folder here, no corpus of the table"),
        ("./nowhere/data", "no file or folder here"),
        ("common_voice:en", "Mozilla Data Collective.*--source_path"),
        ("librispeech:other", "no config 'other'"),
    ):
        with pytest.raises(CorpusError, match=message):
            source_of(given)
    assert not list(tmp_path.rglob("ran"))


# ---------------------------------------------------------------------------------------------------------------- a Hub

HUB_SCRIPT = """
import sys, datasets, huggingface_hub
from audiollm.corpora import catalogue
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.huggingface import HuggingFaceArguments, open_source
from audiollm.corpora.sources import StreamedRows, parse_source, read_sources
from audiollm.processing.audio import load_waveform

table = datasets.Dataset.from_parquet(sys.argv[1])
api, name = huggingface_hub.HfApi(), "loopback-user/rows"
table.select(range(2)).push_to_hub(name, config_name="clean", split="dev")
api.create_tag(name, tag="old", repo_type="dataset")
table.push_to_hub(name, config_name="clean", split="dev")

def clips(start=0, **options):
    source = open_source(HuggingFaceArguments(name, config="clean", splits=["dev"], **options))
    assert source.identity["revision"] == api.dataset_info(name, revision=options.get("revision")).sha
    return [(clip.id, clip.text, len(load_waveform(clip.recording))) for clip in source.clips(start)]

new = clips()
assert len(new) == 5 and clips(streaming=True) == new and clips(3, streaming=True) == new[3:]
assert clips(revision="old") == new[:2]

# A ready corpus whose files lie in a pattern, at a branch of their own.
entry = catalogue.corpus_named("fleurs:de_de")
api.create_branch(name, branch="refs-parquet", repo_type="dataset")
api.upload_file(path_or_fileobj=sys.argv[2], path_in_repo="de_de/test/0000.parquet", repo_id=name, repo_type="dataset",
                revision="refs-parquet")
object.__setattr__(catalogue.load_catalogue()["fleurs"], "hub", name)
object.__setattr__(catalogue.load_catalogue()["fleurs"], "revision", "refs-parquet")
source = open_source(HuggingFaceArguments("fleurs:de_de", splits=["test"]))
assert [clip.text for clip in source.clips()] == [text for _, text, _ in new]
for options in ({"dataset": "fleurs:de_de", "splits": ["dev"]}, {"dataset": name, "config": "clean", "splits": ["test"]},
                {"dataset": "loopback-user/nothing"}):
    try:
        open_source(HuggingFaceArguments(**options))
    except CorpusError as error:
        print("REFUSED", error)

# Recordings beside a table of their transcripts.
folder = "loopback-user/folder"
api.create_repo(folder, repo_type="dataset")
recording = table.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]["bytes"]
files = {"train/a.ogg": recording, "train/metadata.jsonl": b'{"file_name": "a.ogg", "text": "one"}'}
for path, content in files.items():
    api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=folder, repo_type="dataset")
(clip,) = open_source(HuggingFaceArguments(folder)).clips()
assert (clip.text, len(load_waveform(clip.recording))) == ("one", new[0][2])

# As data to train on.
rows = [{"text": "a", "response": "one"}, {"text": "b", "response": "two"}]
datasets.Dataset.from_list(rows).push_to_hub("loopback-user/examples", config_name="clean", split="dev")
examples = "hub:loopback-user/examples?config=clean&split=dev&revision=main"
(read,) = read_sources(examples)
assert [each.messages[1]["content"] for each in read] == ["one", "two"]
assert [read().messages[1]["content"] for _, read in StreamedRows(parse_source(examples)).rows(0)] == ["one", "two"]
for wrong in ("hub:loopback-user/examples?config=clean&split=test", "hub:loopback-user/nothing"):
    try:
        read_sources(wrong)
    except ExamplesError as error:
        print("REFUSED", " ".join(str(error).split()))

# A dataset that is a program.
api.create_repo("loopback-user/program", repo_type="dataset")
api.upload_file(path_or_fileobj=b"raise SystemExit(3)", path_in_repo="program.py", repo_id="loopback-user/program",
                repo_type="dataset")
try:
    open_source(HuggingFaceArguments("loopback-user/program"))
except CorpusError as error:
    print("REFUSED", error)
"""


def test_a_hub_dataset_is_read_at_its_revision(rows, tmp_path) -> None:
    as_dataset(rows).to_parquet(tmp_path / "rows.parquet")
    fleurs = {"id": 1, "language": "German", "gender": "female"}
    made = [fleurs | {"audio": row["audio"], "raw_transcription": row["sentence"]} for row in rows]
    as_dataset(made).to_parquet(tmp_path / "fleurs.parquet")
    with LoopbackHub() as hub:
        files = (tmp_path / "rows.parquet", tmp_path / "fleurs.parquet")
        done = prepared_python.run(HUB_SCRIPT, *files, env=hub.environment(tmp_path / "home"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert "no split 'dev'; expected some of train, validation, test" in refused[0]
    assert 'Unknown split "test"' in refused[1] and "loopback-user/nothing" in refused[2]
    assert 'Unknown split "test"' in refused[3] and "loopback-user/nothing" in refused[4]
    assert "--revision refs/convert/parquet" in refused[5]

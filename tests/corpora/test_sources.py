"""Every form of training data is read as the same conversations; what cannot be used is named by source, row and reason."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from audiollm.corpora.dataset_places import Place, load_split
from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.rows import RowError, RowReader
from audiollm.corpora.sources import StreamedRows, parse_source, read_sources, settle_problems
from corpus_copies import stored

RATE_HZ = 16_000


def wav_bytes(samples: int = 800) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(samples), RATE_HZ, format="WAV")
    return buffer.getvalue()


AUDIO_ROWS = [
    {"text": "Say: <audio>", "audio": {"bytes": wav_bytes(), "path": "a.wav"}, "response": "one", "speaker": 1},
    {"text": "2 + 2?", "audio": None, "response": "four", "speaker": 2},
]
TURNS = [
    {"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "One."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "audio", "audio": "b.wav"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
]
FLAT_TURNS = [
    {"role": "user", "content": "<audio>What?"},
    {"role": "assistant", "content": "One."},
    {"role": "user", "content": "And <audio>"},
    {"role": "assistant", "content": "Two."},
]


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(wav_bytes())
    return tmp_path


@pytest.fixture
def table(folder: Path) -> datasets.Dataset:
    # As they come from the Hub: a column that would be decoded, by torchcodec, if it were read as datasets reads it.
    return datasets.Dataset.from_list(AUDIO_ROWS).cast_column("audio", datasets.Audio(sampling_rate=RATE_HZ))


def test_a_folder_of_shards_is_read_as_it_is_now_with_the_types_of_its_card(tmp_path) -> None:
    """Although `datasets` caches folders with cards by name and card."""
    names = {"class_label": {"names": {"0": "de", "1": "en"}}}
    features = [{"name": name, "dtype": "string"} for name in ("text", "response")]
    card = {"dataset_info": {"features": [*features, {"name": "language", "dtype": names}]}}
    for parent, response in (("a", "one"), ("b", "two")):
        folder = tmp_path / parent / "parquet"
        folder.mkdir(parents=True)
        pq.write_table(
            pa.table({"text": ["Say."], "response": [response], "language": [1]}), folder / "train-0.parquet"
        )
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
        (examples,) = read_sources(str(folder))
        assert [example.messages[1]["content"] for example in examples] == [response]
        rows, _ = load_split(Place(str(folder), "folder", str(folder)), "train", streaming=False)
        assert rows.features["language"].names == ["de", "en"]


@pytest.mark.parametrize("form", ["parquet", "saved", "splits", "shards"])
def test_tables_with_audio_columns_are_read_undecoded(folder, table, form: str, capsys) -> None:
    name = stored(form, folder / form, table, "test") + ("?split=test" if form in ("splits", "shards") else "")
    (examples,) = read_sources(name)
    assert not examples.problems
    assert [example.messages[0]["content"] for example in examples] == ["Say: <audio>", "2 + 2?"]
    assert [example.messages[1]["content"] for example in examples] == ["one", "four"]
    assert examples[0].recordings[0]["bytes"] == AUDIO_ROWS[0]["audio"]["bytes"] and examples[1].recordings == ()
    assert [example.where for example in examples] == ["row 0", "row 1"]
    assert "columns that are not read: speaker" in capsys.readouterr().out
    streamed = [read() for _, read in StreamedRows(parse_source(name)).rows(0)]
    assert streamed == list(examples)


def test_json_lines_and_parquet_of_messages_are_the_same_conversation(folder) -> None:
    (folder / "chat.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    contents = [c if isinstance(c := turn["content"], list) else [{"type": "text", "text": c}] for turn in TURNS]
    turns = [{**turn, "content": content} for turn, content in zip(TURNS, contents)]
    datasets.Dataset.from_list([{"messages": turns}]).to_parquet(folder / "chat.parquet")
    for name in ("chat.jsonl", "chat.parquet"):
        ((example,),) = read_sources(str(folder / name))
        assert example.messages == FLAT_TURNS
        assert example.recordings == (str(folder / "a.wav"), str(folder / "b.wav"))


def test_json_may_mix_instructions_messages_and_text(folder) -> None:
    rows = [
        {"text": "<audio>", "audio_paths": "a.wav", "response": "x"},
        {"messages": TURNS},
        {"text": "hello", "response": "hi"},
        {"messages": FLAT_TURNS, "audio_paths": ["a.wav", "b.wav"]},
        {"text": "<audio>", "audio_paths": "https://host/a.wav", "response": "x"},
    ]
    (folder / "data.json").write_text(json.dumps(rows))
    (examples,) = read_sources([str(folder / "data.json")])
    assert not examples.problems and [len(example.recordings) for example in examples] == [1, 2, 0, 2, 1]
    assert examples[1].recordings == examples[3].recordings
    assert examples[4].recordings == ("https://host/a.wav",)


TEXT = {"text": "<audio>", "response": "x"}
BAD_ROWS = [
    ({"messages": "hello"}, "expected a list of messages"),
    ({"messages": FLAT_TURNS[:1], "audio_paths": "a.wav"}, "no message of role 'assistant'"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}, "message is empty"),
    ({"messages": TURNS, "extra": 1}, "unknown field 'extra'"),
    ({"messages": TURNS, "audio_paths": "a.wav"}, "both in the messages and in"),
    ({"messages": FLAT_TURNS, "audio_paths": "a.wav"}, "'messages' has 2 <audio> for 1 recordings"),
    ({"messages": [{"role": "user", "content": [{"type": "picture"}]}]}, "type 'text' or 'audio'"),
    ({"messages": [{"role": "assistant", "content": TURNS[0]["content"]}]}, "'assistant' message holds a recording"),
    ({"messages": [{"role": "user", "content": [{"type": "audio", "path": "../a.wav"}]}]}, "leads out of audio_dir"),
    (TEXT | {"audio": {"array": [0.0]}}, "neither 'bytes' nor 'path'"),
    (TEXT | {"audio": "a.wav", "audio_paths": "a.wav"}, "leave one out"),
    (TEXT | {"audio": "file:///a.wav"}, "expected a path or a URL"),
    (TEXT | {"audio": [[0.0]]}, "must hold strings"),
]


def test_a_bad_row_says_why(folder) -> None:
    for row, reason in BAD_ROWS:
        with pytest.raises(RowError) as caught:
            RowReader(folder, folder).read(row, "row 0")
        assert any(reason in found for found in caught.value.reasons), caught.value.reasons


def test_bad_rows_of_all_sources_are_reported_at_once(folder, capsys) -> None:
    (folder / "one.json").write_text(json.dumps([{"text": "x"}, {"text": "a", "response": "b"}]))
    (folder / "two.jsonl").write_text('{"text": "a", "response": "b"}\n{broken\n{"messages": []}\n')
    sources = read_sources([str(folder / "one.json"), str(folder / "two.jsonl")])
    assert [len(source) for source in sources] == [1, 1]
    problems = [(source.source.name, source.problems) for source in sources]
    with pytest.raises(ExamplesError) as caught:
        settle_problems(problems, skip=False)
    for where in ("one.json row 0: field 'response'", "two.jsonl line 2: is not JSON", "two.jsonl line 3: The conv"):
        assert where in str(caught.value)
    settle_problems(problems, skip=True)
    assert "3 bad examples are left out" in capsys.readouterr().out


def test_a_source_that_cannot_be_read_is_named(folder, table, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    stored("splits", folder / "splits", table, "test")
    (folder / "bad.parquet").write_bytes(b"PAR1 or not")
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(folder / "other.parquet")
    (folder / "empty.json").write_text("[]")
    (folder / "empty").mkdir()
    for given, reason in (
        ("nothing.json", "does not exist"),
        ("empty", "not one that save_to_disk"),
        ("hub:a/b?splits=x", "has the option 'splits'; expected one of config, split, revision"),
        ("splits?split=dev", "there is no split 'dev', only train, test"),
        ("bad.parquet", "cannot be read"),
        ("other.parquet", "has the columns x; expected some of text"),
        ("empty.json", "holds no examples"),
    ):
        with pytest.raises((ExamplesError, FileNotFoundError, ValueError)) as caught:
            (examples,) = read_sources(given)
            settle_problems([(given, examples.problems)], skip=False)
        assert reason in str(caught.value) and given in str(caught.value)


def test_a_stream_shuffles_each_pass_anew_and_alike_for_a_seed(folder) -> None:
    rows = [{"text": str(index), "response": "x"} for index in range(30)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def order(epoch: int, seed: int, shuffle_rows: int = 10) -> list[str]:
        stream = StreamedRows(parse_source(str(folder / "data.jsonl")), shuffle_rows=shuffle_rows)
        return [where for where, _ in stream.rows(epoch, seed)]

    in_order = [f"line {number}" for number in range(1, 31)]
    assert order(0, 0, shuffle_rows=0) == in_order
    orders = [order(0, 0), order(1, 0), order(0, 1)]
    assert all(sorted(one) == sorted(in_order) and one != in_order for one in orders)
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[0] == order(0, 0)


def test_a_stream_gives_bad_rows_where_they_are(folder) -> None:
    (folder / "data.jsonl").write_text('{"text": "a", "response": "b"}\n{broken\n{"text": "c"}\n')
    read = dict(StreamedRows(parse_source(str(folder / "data.jsonl"))).rows(0))
    assert list(read) == ["line 1", "line 2", "line 3"] and read["line 1"]().messages[0]["content"] == "a"
    with pytest.raises(RowError, match="is not JSON"):
        read["line 2"]()
    with pytest.raises(RowError, match="'response' is missing"):
        read["line 3"]()
    (folder / "data.json").write_text("[]")
    with pytest.raises(ValueError, match=r"name the file \*.jsonl"):
        StreamedRows(parse_source(str(folder / "data.json")))

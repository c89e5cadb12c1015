"""Lists of recordings in any form and encoding: what is in them comes row by row, what is wrong is named by its line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.disk_table import DiskTable
from audiollm.corpora.manifest_columns import Columns, RowError, parse_columns
from audiollm.corpora.manifests import (
    MAX_LINE_CHARACTERS,
    encoding_of,
    fingerprint,
    json_rows,
    lines_of,
    parquet_rows,
    printable,
    table_rows,
    text_problem,
)

TABLE = 'path,text\na.wav,one\nb.wav,"two, and\nmore"\n'


def values_of(rows) -> list[dict]:
    rows = list(rows)
    assert not any(row.problem for row in rows)
    return [row.values for row in rows]


@pytest.mark.parametrize(
    ("encoding", "given"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-8-sig", "utf-8"),
        ("utf-16", None),
        ("utf-32", None),
        ("utf-16-le", "utf-16-le"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_of_any_encoding_and_ends_of_lines(tmp_path: Path, encoding: str, given: str | None, newline: str):
    path = tmp_path / "t.csv"
    path.write_bytes("path,text\na.wav,Café سلام 🎵\n".replace("\n", newline).encode(encoding))
    assert values_of(table_rows(str(path), ",", given)) == [{"path": "a.wav", "text": "Café سلام 🎵"}]


def test_zero_bytes_without_a_mark_name_the_option(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(TABLE.encode("utf-16-le"))
    with pytest.raises(CorpusError, match="--encoding utf-16-le"):
        encoding_of(str(path))


def test_latin_1_is_named_by_row_and_read_when_told(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes("path,text\na.wav,caf\u00e9\nb.wav,plain\n".encode("latin-1"))
    (row, plain) = values_of(table_rows(str(path), ","))
    assert "0xe9" in (text_problem(row["text"], None) or "") and "--encoding latin-1" in text_problem(
        row["text"], None
    )
    with pytest.raises(RowError, match="--encoding"):
        Columns().read(row)
    assert Columns().read(plain).text == "plain"
    assert [row["text"] for row in values_of(table_rows(str(path), ",", "latin-1"))] == ["café", "plain"]


def test_a_file_that_stops_being_of_its_encoding_is_named(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes("path,text\n".encode("utf-16") + b"\x00")
    with pytest.raises(CorpusError, match=r"t\.csv.*not utf-16 text"):
        list(lines_of(str(path), None))


def test_gzip_and_damaged_gzip(tmp_path: Path):
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"n": n, "filler": str(n) * 50}) + "\n" for n in range(300))
    assert [row["n"] for row in values_of(json_rows(str(path)))] == list(range(300))
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:200] + bytes(200) + whole[400:], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"t\.jsonl\.gz.* cannot be read"):
            list(json_rows(str(path)))


def test_any_change_is_another_file(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\r\n\n{"a": 2}')
    digest = fingerprint(str(path))
    path.write_text('{"a": 1}\r\n\n{"a": 3}')
    assert fingerprint(str(path)) != digest


def test_csv_columns_hold_delimiters_and_ends_of_lines(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text(TABLE + 'c.wav,"say ""hi"""\n')
    rows = values_of(table_rows(str(path), ","))
    assert [row["text"] for row in rows] == ["one", "two, and\nmore", 'say "hi"']


def test_lenient_quotes_of_common_voice(tmp_path: Path):
    """Rows as Common Voice's releases have them: enclosed as CSV does, and with marks that do not pair."""
    path = tmp_path / "t.tsv"
    path.write_text('path\tsentence\na\t"""Good-bye,"" said he."\nb\t"Good-bye" said he.\nc\t"Open\nd\tplain\n')
    texts = [row["sentence"] for row in values_of(table_rows(str(path), "\t", quotes="lenient"))]
    assert texts == ['"Good-bye," said he.', '"Good-bye" said he.', '"Open', "plain"]
    texts = [row["sentence"] for row in values_of(table_rows(str(path), "\t", quotes="none"))]
    assert texts == ['"""Good-bye,"" said he."', '"Good-bye" said he.', '"Open', "plain"]


def test_marks_that_do_not_pair_lose_no_row_unsaid(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text('path,text\na,"Go" he said\nb,fine\nc,"open\nd,lost\n')
    rows = list(table_rows(str(path), ","))
    assert [row.where for row in rows] == ["line 2", "line 3", "lines 4 to 5"]
    assert "--quotes none" in rows[0].problem and not rows[1].problem and "--quotes none" in rows[2].problem


def test_columns_too_large_or_too_many_are_named(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text(f"path,text\na,{'x' * 200_000}\nb,1,2\nc\nd,fine\n")
    rows = list(table_rows(str(path), ","))
    assert "field limit" in rows[0].problem
    assert rows[1].problem == "has 3 columns; expected 2" and rows[2].problem == "has 1 columns; expected 2"
    assert rows[3].values == {"path": "d", "text": "fine"}


def test_endless_lines_are_refused(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_CHARACTERS + 1))
    with pytest.raises(CorpusError, match="line 1 is longer"):
        list(json_rows(str(path)))


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("path,text,text\na,b,c\n")
    with pytest.raises(CorpusError, match="more than one column 'text'"):
        list(table_rows(str(path), ","))


def test_json_lines_name_what_is_not_an_object(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    nines, nested = "9" * 5000, "[" * 100_000
    path.write_text(f'{{"a": 1}}\n{{"a": \n[1]\n{{"a": 1, "a": 2}}\n{{"n": {nines}}}\n{nested}\n{{"a": 2}}\n')
    rows = list(json_rows(str(path)))
    assert [row.where for row in rows] == [f"line {n}" for n in range(1, 8)]
    assert [bool(row.problem) for row in rows] == [False, True, True, True, True, True, False]
    assert "not JSON" in rows[1].problem and "expected a JSON object" in rows[2].problem and "'a'" in rows[3].problem


def test_parquet_rows_and_damage(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a", "b"], "n": [1, 2]}), path)
    rows = list(parquet_rows(str(path)))
    assert [(row.where, row.values["n"]) for row in rows] == [("row 0", 1), ("row 1", 2)]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorpusError, match="Parquet"):
        list(parquet_rows(str(path)))


def test_a_long_table_takes_little_memory(tmp_path: Path):
    path = tmp_path / "t.csv"
    line = "clips/{}.wav,a transcript of some words that says the same every time\n"
    path.write_text("path,text\n" + "".join(map(line.format, range(30_000))))
    tracemalloc.start()
    assert sum(1 for _ in table_rows(str(path), ",")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


# ------------------------------------------------------------------------------------------------------------ columns


def test_columns_are_guessed_by_usual_names():
    names = ("client_id", "path", "Sentence", "locale", "up_votes")
    assert Columns().mapping(names) == {
        "audio": "path",
        "text": "Sentence",
        "speaker": "client_id",
        "language": "locale",
    }


def test_columns_that_are_told_win_and_the_others_are_kept():
    columns = Columns(parse_columns(["text=raw", "mood=tone"]))
    reading = columns.read({"path": "a", "text": "not this", "raw": "this", "tone": "glad", "sha256": "x"})
    assert reading.text == "this"
    assert reading.fields == {"original_text": "not this", "mood": "glad", "original_sha256": "x"}


def test_fields_have_the_kinds_that_tasks_expect():
    values = {
        **{"audio_filepath": "a.wav", "text": "t", "duration": "2.5", "wer": "12.5", "speaker": 7, "tags": ["a"]},
        **{"snr": 1.5, "big": 2**70, "none": None, "lang": "en", "split": "dev"},
    }
    reading = Columns().read(values)
    assert reading.fields == {
        **{"wer": 12.5, "speaker": "7", "tags": '["a"]', "snr": 1.5, "big": str(2**70), "none": None},
        **{"language": "en", "declared_seconds": 2.5},
    }
    assert (reading.start, reading.end, reading.split) == (0.0, None, "dev")


def test_parts_of_recordings():
    row = {"path": "a", "text": "t"}
    assert (Columns().read({**row, "offset": 1.5, "duration": 2}).start, 3.5) == (1.5, 3.5)
    assert Columns().read({**row, "offset": 1.5, "duration": 2}).end == 3.5
    assert Columns().read({**row, "start": "1", "end": "4"}).end == 4.0
    with pytest.raises(RowError, match="not after its start"):
        Columns().read({**row, "start": 4, "end": 1})


@pytest.mark.parametrize("wrong", [-1, "soon", float("nan"), float("inf"), True, [1]])
@pytest.mark.parametrize("name", ["offset", "duration", "wer"])
def test_numbers_that_are_none_are_named(name: str, wrong):
    with pytest.raises(RowError, match="expected a number"):
        Columns().read({"path": "a", "text": "t", name: wrong})


@pytest.mark.parametrize("given", ["text", "=a", "text=", "te xt=a"])
def test_columns_of_another_form_are_refused(given: str):
    with pytest.raises(ValueError, match="text=sentence"):
        parse_columns([given])


def test_columns_said_twice_are_refused():
    with pytest.raises(ValueError, match="twice"):
        parse_columns(["text=a", "text=b"])


def test_missing_columns_are_named_with_those_that_are_there():
    with pytest.raises(CorpusError, match=r"no column 'words'.*'path', 'text'"):
        Columns((("text", "words"),)).check(["path", "text"], "t.csv")
    with pytest.raises(CorpusError, match="--columns audio=NAME"):
        Columns().check(["where", "text"], "t.csv")
    with pytest.raises(CorpusError, match="--columns text=NAME"):
        Columns().check(["path", "words"], "t.csv")


# --------------------------------------------------------------------------------------------------------- disk table


def test_disk_table_keeps_the_first_of_any_text():
    with DiskTable() as table:
        assert table.add("a\udce9\n", "one\ud800") and not table.add("a\udce9\n", "two")
        assert table.get("a\udce9\n") == "one\ud800" and table.get("b") is None and "a\udce9\n" in table


def test_printable_goes_into_any_file():
    assert printable("caf\udce9").encode() == b"caf\\udce9"

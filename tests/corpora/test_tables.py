"""Lists of recordings in any form and encoding: what is in them comes row by row, what is wrong is named by its line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.tables import (
    MAX_LINE_CHARACTERS,
    encoding_of,
    lines_of,
    parse_json,
    rows_of,
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
    assert values_of(rows_of(str(path), given)) == [{"path": "a.wav", "text": "Café سلام 🎵"}]


def test_zero_bytes_without_a_mark_name_the_option(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(TABLE.encode("utf-16-le"))
    with pytest.raises(CorpusError, match="--encoding utf-16-le"):
        encoding_of(str(path))


def test_latin_1_is_named_by_row_and_read_when_told(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes("path,text\na.wav,caf\u00e9\nb.wav,plain\n".encode("latin-1"))
    (row, plain) = values_of(rows_of(str(path)))
    assert "0xe9" in (text_problem(row["text"], None) or "") and "--encoding latin-1" in text_problem(
        row["text"], None
    )
    assert text_problem(plain["text"]) is None and "lone surrogate" in (text_problem("\ud800") or "")
    assert [row["text"] for row in values_of(rows_of(str(path), "latin-1"))] == ["café", "plain"]


def test_a_file_that_stops_being_of_its_encoding_is_named(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes("path,text\n".encode("utf-16") + b"\x00")
    with pytest.raises(CorpusError, match=r"t\.csv.*not utf-16 text"):
        list(lines_of(str(path), None))


def test_gzip_and_damaged_gzip(tmp_path: Path):
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"n": n, "filler": str(n) * 50}) + "\n" for n in range(300))
    assert [row["n"] for row in values_of(rows_of(str(path)))] == list(range(300))
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:200] + bytes(200) + whole[400:], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"t\.jsonl\.gz.* cannot be read"):
            list(rows_of(str(path)))


def test_csv_columns_hold_delimiters_and_ends_of_lines(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text(TABLE + 'c.wav,"say ""hi"""\n')
    rows = values_of(rows_of(str(path)))
    assert [row["text"] for row in rows] == ["one", "two, and\nmore", 'say "hi"']


def test_quotation_marks_between_tabs(tmp_path: Path):
    """Rows as Common Voice's releases have them: enclosed as CSV does, and with marks that do not pair."""
    path = tmp_path / "t.tsv"
    path.write_text('path\tsentence\na\t"""Good-bye,"" said he."\nb\t"Good-bye" said he.\nc\t"Open\nd\tplain\n')
    texts = [row["sentence"] for row in values_of(rows_of(str(path)))]
    assert texts == ['"Good-bye," said he.', '"Good-bye" said he.', '"Open', "plain"]


def test_marks_that_do_not_pair_lose_no_row_unsaid(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text('path,text\na,"Go" he said\nb,fine\nc,"open\nd,lost\n')
    rows = list(rows_of(str(path)))
    assert [row.where for row in rows] == ["line 2", "line 3", "lines 4 to 5"]
    assert "quotation marks" in rows[0].problem and not rows[1].problem and "quotation marks" in rows[2].problem


def test_columns_too_large_or_too_many_are_named(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text(f"path,text\na,{'x' * 200_000}\nb,1,2\nc\nd,fine\n")
    rows = list(rows_of(str(path)))
    assert "field limit" in rows[0].problem
    assert rows[1].problem == "has 3 columns; expected 2" and rows[2].problem == "has 1 columns; expected 2"
    assert rows[3].values == {"path": "d", "text": "fine"}


def test_endless_lines_are_refused(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_CHARACTERS + 1))
    with pytest.raises(CorpusError, match="line 1 is longer"):
        list(rows_of(str(path)))


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("path,text,text\na,b,c\n")
    with pytest.raises(CorpusError, match="more than one column 'text'"):
        list(rows_of(str(path)))


def test_json_lines_name_what_is_not_an_object(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    nines, nested = "9" * 5000, "[" * 100_000
    path.write_text(f'{{"a": 1}}\n{{"a": \n[1]\n{{"a": 1, "a": 2}}\n{{"n": {nines}}}\n{nested}\n{{"a": 2}}\n')
    rows = list(rows_of(str(path)))
    assert [row.where for row in rows] == [f"line {n}" for n in range(1, 8)]
    assert [bool(row.problem) for row in rows] == [False, True, True, True, True, True, False]
    assert "not JSON" in rows[1].problem and "expected a JSON object" in rows[2].problem and "'a'" in rows[3].problem


def test_a_json_list_and_what_it_lacks(tmp_path: Path):
    path = tmp_path / "t.json"
    path.write_text('[{"a": 1},\n3]')
    one, two = rows_of(str(path))
    assert (one.where, one.values, two.where) == (
        "row 0",
        {"a": 1},
        "row 1",
    ) and "expected a JSON object" in two.problem
    path.write_text('[{"a": 1},')
    with pytest.raises(CorpusError, match=r"t\.json.*is not JSON"):
        list(rows_of(str(path)))
    with pytest.raises(ValueError, match="'a' is given more than once"):
        parse_json('{"a": 1, "a": 2}')


def test_lines_of_text(tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text("\ufeffone\n \ntwo, three\n", encoding="utf-8")
    assert [(row.where, row.values) for row in rows_of(str(path))] == [
        ("line 1", {"text": "one"}),
        ("line 3", {"text": "two, three"}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_delimiters(tmp_path: Path, delimiter: str):
    path = tmp_path / ("t.tsv" if delimiter == "\t" else "t.csv")
    path.write_text(f" path {delimiter}text\na{delimiter}b c\n\n")
    assert values_of(rows_of(str(path))) == [{"path": "a", "text": "b c"}]


def test_parquet_rows_and_damage(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a", "b"], "n": [1, 2]}), path)
    rows = list(rows_of(str(path)))
    assert [(row.where, row.values["n"]) for row in rows] == [("row 0", 1), ("row 1", 2)]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorpusError, match="Parquet"):
        list(rows_of(str(path)))


def test_a_long_table_takes_little_memory(tmp_path: Path):
    path = tmp_path / "t.csv"
    line = "clips/{}.wav,a transcript of some words that says the same every time\n"
    path.write_text("path,text\n" + "".join(map(line.format, range(30_000))))
    tracemalloc.start()
    assert sum(1 for _ in rows_of(str(path))) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4

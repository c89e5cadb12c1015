"""Lists of recordings in any form and encoding: what is in them comes row by row, what is wrong is named by its line."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.tables import rows_of


def values_of(rows) -> list[dict]:
    rows = list(rows)
    assert not any(row.problem for row in rows)
    return [row.values for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_any_encoding_and_ends_of_lines(tmp_path: Path, encoding: str):
    path = tmp_path / "t.csv"
    path.write_bytes("path,text\r\na.wav,Café سلام 🎵\n".encode(encoding))
    assert values_of(rows_of(str(path))) == [{"path": "a.wav", "text": "Café سلام 🎵"}]


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


def test_quotation_marks_enclose_columns_of_csv_and_are_text_between_tabs(tmp_path: Path):
    """TSV as Common Voice's releases have it: enclosed as CSV does, and with marks that do not pair."""
    path = tmp_path / "t.csv"
    path.write_text('path,text\na.wav,one\nb.wav,"two, and\nmore"\nc.wav,"say ""hi"""\n')
    assert [row["text"] for row in values_of(rows_of(str(path)))] == ["one", "two, and\nmore", 'say "hi"']
    path = tmp_path / "t.tsv"
    path.write_text('path\tsentence\na\t"""Good-bye,"" said he."\nb\t"Good-bye" said he.\nc\t"Open\nd\tplain\n')
    texts = [row["sentence"] for row in values_of(rows_of(str(path)))]
    assert texts == ['"Good-bye," said he.', '"Good-bye" said he.', '"Open', "plain"]


def test_json_names_what_is_not_an_object(tmp_path: Path):
    path = tmp_path / "t.json"
    path.write_text('[{"a": 1},\n3]')
    one, two = rows_of(str(path))
    assert (one.where, one.values, two.where) == ("row 0", {"a": 1}, "row 1")
    assert "expected a JSON object" in two.problem
    path.write_text('[{"a": 1},')
    with pytest.raises(CorpusError, match=r"t\.json.*is not JSON"):
        list(rows_of(str(path)))
    path = tmp_path / "t.jsonl"
    nines, nested = "9" * 5000, "[" * 100_000
    path.write_text(f'{{"a": 1}}\n{{"a": \n[1]\n{{"a": 1, "a": 2}}\n{{"n": {nines}}}\n{nested}\n{{"a": 2}}\n')
    rows = list(rows_of(str(path)))
    assert [row.where for row in rows] == [f"line {n}" for n in range(1, 8)]
    assert [bool(row.problem) for row in rows] == [False, True, True, True, True, True, False]
    assert "not JSON" in rows[1].problem and "expected a JSON object" in rows[2].problem and "'a'" in rows[3].problem


def test_parquet_rows_and_damage(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a", "b"], "n": [1, 2]}), path)
    rows = list(rows_of(str(path)))
    assert [(row.where, row.values["n"]) for row in rows] == [("row 0", 1), ("row 1", 2)]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorpusError, match="Parquet"):
        list(rows_of(str(path)))

"""The instruction format: what is read, what is refused and how, and that writing and reading are inverse."""

import json
from pathlib import Path
from typing import Any

import pytest
from audiollm.corpora.examples import Example, ExamplesError, read_examples, write_examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = {"text": "Describe the audio: <audio>", "audio_paths": "a.wav", "response": "A piano."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav", "deeper/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def save(folder: Path, rows: object, name: str = "examples.json") -> Path:
    (folder / name).write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return folder / name


def problems(path: Path, audio_dir: Path | None = None) -> list[tuple[str, str]]:
    with pytest.raises(ExamplesError) as caught:
        read_examples(path, audio_dir)
    for where, reason in caught.value.problems:
        assert where in str(caught.value) and reason in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value.problems


def test_one_path_a_list_of_paths_and_no_audio_are_all_read(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        GOOD,
        {"text": "<audio> or <audio>?", "audio_paths": ["b.wav", "deeper/c.wav"], "response": "The second."},
        {"text": "What is 2 + 2?", "response": "4"},
        {"text": "And 3 + 3?", "audio_paths": [], "response": "6"},
    ]
    examples = read_examples(save(folder, rows))
    paths = [["a.wav"], ["b.wav", "deeper/c.wav"], [], []]
    assert examples == [
        Example(row["text"], tuple(str(folder / path) for path in paths[index]), row["response"], index)
        for index, row in enumerate(rows)
    ]


BAD_ROWS = [
    ({"audio_paths": "a.wav", "response": "x"}, "field 'text' is missing"),
    ({"text": "<audio>", "audio_paths": "a.wav"}, "field 'response' is missing"),
    (GOOD | {"audio": "a.wav"}, "unknown field 'audio'"),
    (GOOD | {"response": None}, "'response' must be a string, found null"),
    (GOOD | {"response": " \n"}, "'response' is empty"),
    (GOOD | {"text": ""}, "'text' is empty"),
    (GOOD | {"audio_paths": {"path": "a.wav"}}, "must be a string or a list of strings, found an object"),
    (GOOD | {"audio_paths": [7]}, "must hold strings, found a number: 7"),
    (GOOD | {"audio_paths": ["a.wav", "b.wav"]}, "'text' has 1 <audio> for 2 recordings"),
    ({"text": "<audio>", "response": "x"}, "'text' has 1 <audio> for 0 recordings"),
    (GOOD | {"audio_paths": "missing.wav"}, "audio file 'missing.wav' does not exist"),
    (GOOD | {"audio_paths": "deeper"}, "is a folder"),
    ("<audio>", "expected an object with 'text', 'audio_paths', 'response', found a string"),
]


def test_bad_rows_are_refused_by_index_and_reason_all_at_once(folder: Path) -> None:
    found = problems(save(folder, [GOOD, *(row for row, _ in BAD_ROWS), GOOD]))
    for number, (_, reason) in enumerate(BAD_ROWS, start=1):
        assert any(where == f"row {number}" and reason in what for where, what in found), found
    assert {where for where, _ in found} == {f"row {number + 1}" for number in range(len(BAD_ROWS))}


def test_what_is_not_a_json_list_is_refused(folder: Path) -> None:
    for content, reason in (
        (b"{}", "expected a JSON list of examples, found an object"),
        (b'[\n  {"text": "a",,}\n]', "line 2, column 16"),
        (b'[{"text": "caf\xe9"}]', "is not UTF-8 text: invalid continuation byte at byte 14"),
        (b'{"text": "a"}\n{"text": "b"}', "*.jsonl"),
        (b'[{"text": "a", "text": "b", "response": "c"}]', "'text' is given more than once"),
    ):
        (folder / "examples.json").write_bytes(content)
        [(_, found)] = problems(folder / "examples.json")
        assert reason in found


def test_json_lines_are_read_and_reported_by_line_number(folder: Path) -> None:
    good = json.dumps(GOOD)
    assert len(read_examples(save(folder, f"{good}\n\n{good}\n", "good.jsonl"))) == 2
    path = save(folder, f"{good}\n\n{{broken\n{json.dumps({'text': 'x'})}\n{good}", "bad.jsonl")
    assert sorted(where for where, _ in problems(path)) == ["line 3", "line 4"]


def test_audio_dir_is_where_paths_start_and_what_they_may_not_leave(folder: Path) -> None:
    def located(audio_path: str) -> tuple[str, ...]:
        path = save(folder, [GOOD | {"audio_paths": audio_path}])
        return read_examples(path, folder / "deeper")[0].audio_paths

    inside = str(folder / "deeper" / "c.wav")
    assert located("c.wav") == located("../deeper/c.wav") == located(inside) == (inside,)
    assert read_examples(save(folder, [GOOD | {"audio_paths": inside}]))[0].audio_paths == (inside,)
    for outside in ("../a.wav", str(folder / "a.wav"), "x/../../a.wav", ".."):
        path = save(folder, [GOOD | {"audio_paths": outside}])
        [(where, reason)] = problems(path, folder / "deeper")
        assert where == "row 0" and "leads out of audio_dir" in reason


@pytest.mark.parametrize("name", ["examples.json", "examples.jsonl"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
                lambda text: text.strip() and "<audio>" not in text
            ),
            st.lists(st.sampled_from(["a.wav", "b.wav", "deeper/c.wav"]), max_size=3),
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_back(folder: Path, name: str, rows: list[tuple[str, list[str]]]) -> None:
    examples = [
        Example(text + "<audio>" * len(paths), tuple(str(folder / path) for path in paths), text, index)
        for index, (text, paths) in enumerate(rows)
    ]
    write_examples(folder / name, examples)
    assert read_examples(folder / name) == examples

"""Text, JSON and subtitles: exact forms, awkward text, whole files; partial transcripts that survive a crash."""

import json

from audiollm.inference.transcribing import PartialTranscript, Phrase
from audiollm.inference.transcripts import (
    Passage,
    Skipped,
    Transcript,
    add_skipped,
    as_json,
    as_srt,
    as_text,
    as_vtt,
    write_transcript,
)

TRANSCRIPT = Transcript(
    "é 1.wav",
    3_700.5,
    [
        Passage(0.0, 1.25, "Bonjour,\n\nça va? --> <b> & so on"),
        Passage(1.25, 2.0, ""),
        Passage(3_661.0, 3_700.4996, "End.", is_cut_off=True),
    ],
    [Skipped(2.0, 3_661.0, "silence")],
    {"model": "m"},
)


def test_the_forms_are_exact() -> None:
    assert as_text(TRANSCRIPT) == "Bonjour, ça va? --> <b> & so on\nEnd.\n"
    assert as_srt(TRANSCRIPT) == (
        "1\n00:00:00,000 --> 00:00:01,250\nBonjour, ça va? -> <b> & so on\n\n2\n01:01:01,000 --> 01:01:40,500\nEnd.\n"
    )
    assert as_vtt(TRANSCRIPT) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nBonjour, ça va? -&gt; &lt;b&gt; &amp; so on\n\n"
        "01:01:01.000 --> 01:01:40.500\nEnd.\n"
    )
    content = json.loads(as_json(TRANSCRIPT))
    assert content["text"] == "Bonjour, ça va? --> <b> & so on End." and content["audio"] == "é 1.wav"
    assert [window.get("is_cut_off", False) for window in content["windows"]] == [False, False, True]
    assert content["skipped"] == [{"start_s": 2.0, "end_s": 3661.0, "reason": "silence"}]
    empty = Transcript("a", 1.0)
    assert (as_text(empty), as_srt(empty), as_vtt(empty)) == ("", "", "WEBVTT\n")


def test_formats_are_written(tmp_path) -> None:
    stem = tmp_path / "a folder" / "v1.2 é"
    write_transcript(TRANSCRIPT, stem, ["txt"])
    (path,) = stem.parent.iterdir()
    assert path.name == "v1.2 é.txt" and path.read_text(encoding="utf-8") == as_text(TRANSCRIPT)


def test_stretches_without_a_voice_are_joined() -> None:
    skipped: list[Skipped] = []
    for one in (Skipped(0, 1, "silence"), Skipped(1, 2, "silence"), Skipped(2, 3, "hum"), Skipped(5, 6, "silence")):
        add_skipped(skipped, one)
    assert skipped == [Skipped(0, 3, "silence; hum"), Skipped(5, 6, "silence")]


def test_partial_transcripts_drop_a_torn_line_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "a.partial.jsonl"
    partial = PartialTranscript(path, {"x": 1})
    partial.add({(0, 5): [Phrase("one\ntwo é", False)]})
    partial.add({(5, 9): [Phrase("three", True)]})
    whole = path.read_bytes()
    for torn in range(len(whole) - 20, len(whole)):
        path.write_bytes(whole[:torn])
        again = PartialTranscript(path, {"x": 1})
        assert again.get(0, 5) == [Phrase("one\ntwo é", False)] and again.get(5, 9) is None
        again.add({(5, 9): [Phrase("three", True)]})
        assert path.read_bytes() == whole
    assert PartialTranscript(path, {"x": 1}).get(5, 9) == [Phrase("three", True)]
    other = PartialTranscript(path, {"x": 2})
    assert len(other) == 0
    other.add({(0, 1): [Phrase("new", False)]})
    assert len(PartialTranscript(path, {"x": 1})) == 0 and len(PartialTranscript(path, {"x": 2})) == 1

"""Text, JSON and subtitles: exact forms, awkward text, whole files; partial transcripts that survive a crash."""

import json

from audiollm.inference.transcribing import PartialTranscript, Phrase
from audiollm.inference.transcripts import Passage, Skipped, Transcript, Word, add_skipped, write_transcript

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


def written(transcript: Transcript, folder) -> dict[str, str]:
    """Return what is in the files of a transcript, by their endings."""
    stem = folder / "a folder" / "v1.2 é"
    write_transcript(transcript, stem, ["txt", "srt", "vtt", "json"])
    return {path.name.removeprefix("v1.2 é."): path.read_text(encoding="utf-8") for path in stem.parent.iterdir()}


def test_the_forms_are_exact(tmp_path) -> None:
    files = written(TRANSCRIPT, tmp_path)
    assert files["txt"] == "Bonjour, ça va? --> <b> & so on\nEnd.\n"
    assert files["srt"] == (
        "1\n00:00:00,000 --> 00:00:01,250\nBonjour, ça va? -> <b> & so on\n\n2\n01:01:01,000 --> 01:01:40,500\nEnd.\n"
    )
    assert files["vtt"] == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nBonjour, ça va? -&gt; &lt;b&gt; &amp; so on\n\n"
        "01:01:01.000 --> 01:01:40.500\nEnd.\n"
    )
    content = json.loads(files["json"])
    assert content["text"] == "Bonjour, ça va? --> <b> & so on End." and content["audio"] == "é 1.wav"
    assert [window.get("is_cut_off", False) for window in content["windows"]] == [False, False, True]
    assert content["skipped"] == [{"start_s": 2.0, "end_s": 3661.0, "reason": "silence"}]
    files = written(Transcript("a", 1.0), tmp_path)
    assert (files["txt"], files["srt"], files["vtt"]) == ("", "", "WEBVTT\n")


def test_subtitles_by_words_are_short_lines_that_end_at_pauses(tmp_path) -> None:
    starts = [0.25 * number for number in range(12)] + [4.0, 4.25]
    words = tuple(Word(f"word{start:g}", start, start + 0.2, 0.5) for start in starts)
    text = " ".join(word.text for word in words)
    srt = written(Transcript("a", 5.0, [Passage(0.0, 5.0, text, words=words)], timestamps="word"), tmp_path)["srt"]
    assert [cue.splitlines()[1:] for cue in srt.split("\n\n")] == [
        ["00:00:00,000 --> 00:00:01,200", "word0 word0.25 word0.5 word0.75 word1"],
        ["00:00:01,250 --> 00:00:02,450", "word1.25 word1.5 word1.75 word2 word2.25"],
        ["00:00:02,500 --> 00:00:02,950", "word2.5 word2.75"],
        ["00:00:04,000 --> 00:00:04,450", "word4 word4.25"],
    ]


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

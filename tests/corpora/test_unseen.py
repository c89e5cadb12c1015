"""The unseen speech: real audio behind every transcript, nothing of it in what is trained on, and its licence beside it."""

import io
import json
import re

import numpy as np
import pytest
import soundfile
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.corpora.normalisers import normalize_english
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.unseen import CLIPS_FILE, SOURCES, UNSEEN_FOLDER, load_unseen_speech
from audiollm.evaluation.word_error import score_word_error

SENTENCES = UNSEEN_FOLDER.parent / "sentences.txt"
#: Whisper tiny.en gets four of the five sentences right; one swapped or broken clip alone would cost about this much.
MAX_WHISPER_WORD_ERROR = 0.1


def test_every_clip_is_16_khz_mono_speech_of_the_stated_length() -> None:
    clips = load_unseen_speech()
    assert len(set(clips["id"])) == len(clips) == 10
    for row in clips:
        waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert (rate, waveform.ndim) == (16_000, 1), row["id"]
        assert len(waveform) / rate == pytest.approx(row["duration_s"]), row["id"]
        assert np.isfinite(waveform).all() and np.abs(waveform).max() > 0.05, f"{row['id']} is silent"
        assert row["speaker"] and row["text"][0].isupper() and row["text"].endswith("."), row["id"]


def test_every_file_is_listed_and_every_listed_file_is_there() -> None:
    listed = [clip["file"] for clip in json.loads(CLIPS_FILE.read_text(encoding="utf-8"))]
    assert sorted(listed) == sorted(path.name for path in UNSEEN_FOLDER.glob("*.flac"))


def test_sources_part_the_clips() -> None:
    everything = load_unseen_speech()
    parts = {source: load_unseen_speech(source) for source in SOURCES}
    assert all(set(rows["source"]) == {source} for source, rows in parts.items())
    assert sorted(everything["id"]) == sorted(each for rows in parts.values() for each in rows["id"])
    with pytest.raises(ValueError, match=r"'tidigits'.*cards, librivox"):
        load_unseen_speech("tidigits")


def test_no_transcript_is_trained_on() -> None:
    trained_on = {
        normalize_english(text)
        for text in [*load_studio_prompts()["text"], *SENTENCES.read_text(encoding="utf-8").splitlines()]
    }
    assert not trained_on & {normalize_english(text) for text in load_unseen_speech()["text"]}
    assert set(load_unseen_speech()["speaker"]).isdisjoint(load_studio_prompts()["speaker"])


def test_card_and_licence_travel_with_the_data() -> None:
    card = (UNSEEN_FOLDER / "README.md").read_text(encoding="utf-8")
    for source in SOURCES:
        rows = load_unseen_speech(source)
        words = sum(len(re.findall(r"\w+", text)) for text in rows["text"])  # hyphens part words, as when scored
        assert f"| `{source}` | {len(rows)} | {sum(rows['duration_s']):.1f} | {words} |" in card
    licence = (UNSEEN_FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    assert "Carnegie Mellon University" in licence and "public\n  domain" in licence and "THIS SOFTWARE IS" in licence


def test_the_transcripts_are_what_is_said(real_bases, real_processor) -> None:
    clips = load_unseen_speech("librivox")
    heard = WhisperDecoder(real_bases[0]).hear([[real_processor.load_audio(each)] for each in clips["audio"]], 8)
    assert score_word_error(clips["text"], heard).word_error < MAX_WHISPER_WORD_ERROR

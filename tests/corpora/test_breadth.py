"""Joined clips and the synthetic voice: what is said in them is what they are labelled with, and runs repeat."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.breadth import join_clips, read_aloud, read_sentences, word_lists
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform


def test_joined_clips_hold_their_parts_in_order(tmp_path: Path) -> None:
    clips = [np.full(1600, value, dtype=np.float32) for value in (0.1, 0.2, 0.3)]
    paths, texts = join_clips(clips, ["one", "two", "three"], tmp_path, count=6, clips=3, seed=1)
    values = {0.1: "one", 0.2: "two", 0.3: "three"}
    for path, text in zip(paths, texts):
        waveform, rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000
        levels = [value for value in np.round(waveform, 3) if value > 0]
        heard = [values[float(round(float(level), 1))] for level in dict.fromkeys(levels)]
        assert " ".join(heard) == text
        assert np.count_nonzero(waveform) == 1600 * len(heard)
        assert 2 <= len(heard) <= 3


def test_joined_clips_repeat_by_seed_and_are_kept(tmp_path: Path) -> None:
    rows = load_studio_prompts("test").select(range(6))
    first = join_clips(rows["audio"], rows["text"], tmp_path, count=4, seed=3)
    before = {path: Path(path).stat().st_mtime_ns for path in first[0]}
    assert join_clips(rows["audio"], rows["text"], tmp_path, count=4, seed=3) == first
    assert {path: Path(path).stat().st_mtime_ns for path in first[0]} == before
    assert join_clips(rows["audio"], rows["text"], tmp_path, count=4, seed=4) != first


def test_sentences_are_clean_and_unlike_the_held_out_prompts() -> None:
    sentences = read_sentences()
    assert len(sentences) == len(set(sentences)) == 1159
    assert all(3 <= len(sentence.split()) <= 12 for sentence in sentences)
    held_out = {
        text.lower().strip(" .") for split in ("validation", "test") for text in load_studio_prompts(split)["text"]
    }
    assert not held_out & {sentence.lower().strip(" .") for sentence in sentences}
    assert read_sentences(5) == sentences[:5]


@pytest.mark.skipif(importlib.util.find_spec("hibari") is None, reason="the voice is an optional extra")
def test_sentences_are_read_aloud_once_and_differ_in_pitch(tmp_path: Path) -> None:
    sentences = read_sentences(3)
    paths = read_aloud(sentences, tmp_path, progress=False)
    waveforms = [load_waveform(path) for path in paths]
    assert all(len(waveform) > 8_000 and 0.25 < np.abs(waveform).max() <= 0.95 for waveform in waveforms)
    before = [Path(path).stat().st_mtime_ns for path in paths]
    assert read_aloud(sentences, tmp_path, progress=False) == paths
    assert [Path(path).stat().st_mtime_ns for path in paths] == before
    other = read_aloud(sentences[:1], tmp_path, seed=1, progress=False)
    assert len(load_waveform(other[0])) != len(waveforms[0])


def test_word_lists_are_different_repeatable_and_short() -> None:
    lists = word_lists(60, seed=3)
    assert lists == word_lists(60, seed=3) != word_lists(60, seed=4)
    assert len(set(lists)) == 60
    assert all(2 <= len(words.split(", ")) <= 5 and words.endswith(".") for words in lists)
    everything = " ".join(word_lists(500))
    assert all(word in everything for word in ("thirteen", "eightieth", "Saturday", "underscore", "yankee"))

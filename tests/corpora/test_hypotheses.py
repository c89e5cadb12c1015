"""Transcripts by Whisper: the order, nothing heard twice, nothing lost, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.command_line.files import sha256_of
from audiollm.corpora import word_error
from audiollm.corpora.hypotheses import (
    MAX_TOKENS_PER_SECOND,
    SPARE_TOKENS,
    WhisperDecoder,
    WhisperModelError,
    WhisperTranscriber,
)
from audiollm.corpora.word_error import WordErrorArguments, WordErrorFilter
from audiollm.processing.audio import AudioError, load_waveform
from tiny_models import save_talking_whisper

RATE_HZ = 16_000
SECONDS = (0.9, 0.3, 2.1, 0.6, 1.5, 0.4, 1.2)


def save_noise(path: Path, seconds: float, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    loudness = generator.uniform(0.001, 0.2) * np.abs(np.sin(np.arange(int(seconds * RATE_HZ)) / 900 / (seed + 1)))
    soundfile.write(path, loudness * generator.standard_normal(len(loudness)), RATE_HZ)
    return path


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> str:
    return save_talking_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [save_noise(folder / f"{index}.flac", seconds, index) for index, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def expected(whisper, clips) -> list[str]:
    """Return what is heard in each clip alone."""
    decoder = WhisperDecoder(whisper)
    texts = [decoder.hear([[load_waveform(path)]], 1)[0] for path in clips]
    assert len(set(texts)) > 2 and all(texts)
    return texts


def heard(ears: WhisperTranscriber, clips: list[Path]) -> list[str]:
    texts: dict[str, str] = {}
    for batch in ears.transcribe({sha256_of(path): path for path in clips}):
        texts |= batch
    return [texts[sha256_of(path)] for path in clips]


def counts(ears: WhisperTranscriber) -> tuple[int, int]:
    return ears.journal.made, ears.journal.recalled


def test_rows_that_must_be_heard_are_in_their_order(whisper, clips, expected, tmp_path, monkeypatch) -> None:
    """In any number of windows, with rows among them that have a hypothesis, and a recording twice."""
    monkeypatch.setattr(word_error, "BATCHES_AT_ONCE", 1)
    arguments = WordErrorArguments(max_wer=1e9, whisper_path=whisper, whisper_batch_size=3)
    given = [*zip(clips, expected), (clips[0], expected[0])]
    rows = [
        {"audio": str(path), "sha256": sha256_of(path), "duration": path.stat().st_size, "text": "words"}
        | {"fields": {"pred_text": "own"} if index == 1 else {}}
        for index, (path, _) in enumerate(given)
    ]
    found = [row["fields"]["pred_text"] for row in WordErrorFilter(arguments, tmp_path).settle(iter(rows), len(rows))]
    assert found == ["own" if index == 1 else text for index, (_, text) in enumerate(given)]


def test_a_second_run_hears_nothing_but_what_was_lost(whisper, clips, expected, tmp_path) -> None:
    """Whatever the order; a pass that is interrupted goes on with the next batch."""
    broken = [*clips[:2], tmp_path / "broken.flac", *clips[2:]]
    broken[2].write_bytes(clips[2].read_bytes()[:-2000])
    first = WhisperTranscriber(whisper, tmp_path, batch_size=2)
    with pytest.raises(AudioError, match=r"broken\.flac"):
        heard(first, broken)
    assert counts(first) == (2, 0)
    for batch_size, order, made in ((3, 1, 5), (8, -1, 0)):
        again = WhisperTranscriber(whisper, tmp_path, batch_size=batch_size)
        assert heard(again, clips[::order]) == expected[::order] and counts(again) == (made, 7 - made)
    (journal,) = tmp_path.glob("*.jsonl")
    settings, *lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert settings["made_with"]["model"] == whisper and len(lines) == len(clips)
    for lost_bytes in (1, 30):
        journal.write_bytes(journal.read_bytes()[:-lost_bytes])
        again = WhisperTranscriber(whisper, tmp_path)
        assert heard(again, clips) == expected and again.journal.made == 1


def test_what_another_model_heard_is_not_recalled(clips, tmp_path) -> None:
    for seed in (0, 5):  # other weights under the same name
        ears = WhisperTranscriber(save_talking_whisper(tmp_path / "whisper", seed=seed), tmp_path)
        heard(ears, clips[:2])
        assert ears.journal.made == 2 and len(list(tmp_path.glob("*.jsonl"))) == 1


def test_recordings_of_any_length_are_heard_to_their_end(whisper, tmp_path) -> None:
    long, short = save_noise(tmp_path / "long.flac", 61.0, 3), save_noise(tmp_path / "short.flac", 0.1, 4)
    decoder = WhisperDecoder(whisper)
    windows = decoder.windows(load_waveform(long))
    assert len(windows) >= 3 and max(map(len, windows)) <= 30 * RATE_HZ
    assert np.array_equal(np.concatenate(windows), load_waveform(long))
    texts = [decoder.hear([[window]], 1)[0] for window in windows]
    found, looping = heard(WhisperTranscriber(whisper, tmp_path), [long, short])
    assert found == " ".join(filter(None, texts))
    assert len(looping) <= SPARE_TOKENS + MAX_TOKENS_PER_SECOND * 0.1, "a loop ends with its clip"


def test_the_language_decides_what_is_heard(whisper, clips, expected, tmp_path) -> None:
    english = WhisperTranscriber(whisper, tmp_path / "english", language="English")
    assert heard(english, clips[:1]) == expected[:1]
    with pytest.raises(WhisperModelError, match=r"hears English only.*'fr'"):
        WhisperTranscriber(whisper, tmp_path, language="fr")
    whisper = save_talking_whisper(tmp_path / "multilingual", languages={"en": 10, "fr": 20, "de": 30})
    languages = ("en", "french", "fr", "de", None)
    ears = {name: WhisperTranscriber(whisper, tmp_path, language=name) for name in languages}
    texts = {name: tuple(heard(ears[name], clips[:2])) for name in languages}
    assert len(set(texts.values())) >= 3 and texts["fr"] == texts["french"]
    with pytest.raises(WhisperModelError, match="language 'klingon'"):
        WhisperTranscriber(whisper, tmp_path, language="klingon")


def test_what_is_no_whisper_is_refused_by_name(tiny_bases, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AUDIOLLM_CACHE", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for model, message in (
        (tiny_bases[1], "is of type 'llama', not a Whisper"),
        ("pypi:whisper-tiny.en", "'pypi:whisper-tiny.en' is not on this machine. Fetch .* `audiollm bases`"),
        (str(tmp_path / "nowhere"), "nowhere' is not on this machine. Pass a Whisper's Hub id"),
        (str(tmp_path / "empty"), "empty' cannot be read"),
    ):
        with pytest.raises(WhisperModelError, match=message):
            WhisperTranscriber(model, tmp_path)

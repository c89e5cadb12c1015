"""Transcripts by Whisper: the order, nothing heard twice, nothing lost, and what is refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.hypotheses import (
    MAX_TOKENS_PER_SECOND,
    SPARE_TOKENS,
    WhisperDecoder,
    WhisperModelError,
    WhisperTranscriber,
)
from audiollm.corpora.transcript_journal import TranscriptJournal
from audiollm.processing.audio import AudioError, load_waveform
from tiny_models import save_talking_whisper

SAMPLING_RATE_HZ = 16_000
SECONDS = (0.9, 0.3, 2.1, 0.6, 1.5, 0.4, 1.2)


def save_noise(path: Path, seconds: float, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    loudness = generator.uniform(0.001, 0.2) * np.abs(
        np.sin(np.arange(int(seconds * SAMPLING_RATE_HZ)) / 900 / (seed + 1))
    )
    soundfile.write(path, loudness * generator.standard_normal(len(loudness)), SAMPLING_RATE_HZ)
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


def transcriber(whisper: str, folder: Path | None = None, batch_size: int = 2, **options) -> WhisperTranscriber:
    return WhisperTranscriber(whisper, batch_size=batch_size, journal_folder=folder, **options)


def journal_file(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


def test_transcripts_come_in_order_whatever_the_batches(whisper, clips, expected, tmp_path) -> None:
    for batch_size in (3, 8):
        assert list(transcriber(whisper, batch_size=batch_size).transcribe(clips)) == expected
    short = save_noise(tmp_path / "short.flac", 0.1, 4)
    (heard,) = transcriber(whisper).transcribe([short])
    assert len(heard) <= SPARE_TOKENS + MAX_TOKENS_PER_SECOND * 0.1, "a loop ends with its clip"


def test_a_second_run_hears_nothing_but_what_was_lost(whisper, clips, expected, tmp_path) -> None:
    first, second = transcriber(whisper, tmp_path), transcriber(whisper, tmp_path)
    assert list(first.transcribe(clips)) == expected and (first.journal.made, first.journal.recalled) == (
        len(clips),
        0,
    )
    kept = journal_file(tmp_path).read_bytes()
    assert list(second.transcribe(reversed(clips))) == expected[::-1]
    assert (second.journal.made, second.journal.recalled) == (0, len(clips))
    assert journal_file(tmp_path).read_bytes() == kept
    settings, *lines = [json.loads(line) for line in kept.splitlines()]
    assert settings["made_with"]["model"] == whisper and len(lines) == len(clips)
    for lost_bytes in (1, 30):
        journal_file(tmp_path).write_bytes(journal_file(tmp_path).read_bytes()[:-lost_bytes])
        again = transcriber(whisper, tmp_path)
        assert list(again.transcribe(clips)) == expected and again.journal.made == 1


def test_an_interrupted_pass_goes_on_with_the_next_batch(whisper, clips, expected, tmp_path) -> None:
    mine = [Path(shutil.copy(path, tmp_path)) for path in clips]
    longest = mine[2].read_bytes()
    mine[2].write_bytes(longest[: len(longest) // 2])  # its header still says how long it was
    ears = transcriber(whisper, tmp_path / "journal")
    with pytest.raises(AudioError, match=r"2\.flac"):
        list(ears.transcribe(mine))
    assert ears.journal.made == 6
    mine[2].write_bytes(longest)
    again = transcriber(whisper, tmp_path / "journal")
    assert list(again.transcribe(mine)) == expected and (again.journal.made, again.journal.recalled) == (1, 6)


def test_what_another_model_heard_is_not_recalled(clips, tmp_path) -> None:
    whisper = save_talking_whisper(tmp_path / "whisper")
    list(transcriber(whisper, tmp_path).transcribe(clips))
    save_talking_whisper(tmp_path / "whisper", seed=5)  # other weights under the same name
    other = transcriber(whisper, tmp_path)
    list(other.transcribe(clips[:2]))
    assert other.journal.made == 2 and len(list(tmp_path.glob("*.jsonl"))) == 1


def test_many_writers_lose_nothing(tmp_path) -> None:
    digests = [f"{index:064x}" for index in range(200)]

    def write(part: int) -> None:
        journal = TranscriptJournal(tmp_path / "journal.jsonl", {"model": "a"})
        for index in range(part, len(digests), 4):
            journal.add([(digests[index], f"text {index}\n")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    journal = TranscriptJournal(tmp_path / "journal.jsonl", {"model": "a"})
    assert [journal.get(digest) for digest in digests] == [f"text {index}\n" for index in range(200)]
    assert TranscriptJournal(tmp_path / "journal.jsonl", {"model": "b"}).get(digests[0]) is None


def test_a_long_recording_is_heard_to_its_end(whisper, tmp_path) -> None:
    long = save_noise(tmp_path / "long.flac", 61.0, 3)
    decoder = WhisperDecoder(whisper)
    windows = decoder.windows(load_waveform(long))
    assert len(windows) >= 3 and max(map(len, windows)) <= 30 * SAMPLING_RATE_HZ
    assert np.array_equal(np.concatenate(windows), load_waveform(long))
    texts = [decoder.hear([[window]], 1)[0] for window in windows]
    assert list(transcriber(whisper).transcribe([long])) == [" ".join(filter(None, texts))]


def test_the_language_decides_what_is_heard(whisper, clips, expected, tmp_path) -> None:
    assert list(transcriber(whisper, language="English").transcribe(clips[:1])) == expected[:1]
    with pytest.raises(WhisperModelError, match=r"hears English only.*'fr'"):
        transcriber(whisper, language="fr")
    whisper = save_talking_whisper(tmp_path / "multilingual", languages={"en": 10, "fr": 20, "de": 30})
    heard = {
        language: tuple(transcriber(whisper, tmp_path, language=language).transcribe(clips[:2]))
        for language in ("en", "french", "de", None)
    }
    assert len(set(heard.values())) >= 3
    assert tuple(transcriber(whisper, language="fr").transcribe(clips[:2])) == heard["french"]
    with pytest.raises(WhisperModelError, match="language 'klingon'"):
        transcriber(whisper, language="klingon")


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
            transcriber(model)

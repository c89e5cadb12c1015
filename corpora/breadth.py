"""
More speech than was recorded: clips joined to new sequences, and sentences read by a synthetic voice.

Twenty minutes of one speaker hold few words, in few orders, and a language model learns the phrases by heart instead of
listening. Joined clips break the phrases up; a synthetic voice brings words that no recording has.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.processing import load_waveform
from audiollm.processing.audio import SAMPLING_RATE_HZ
from tqdm.auto import tqdm

from .neural_engines import HIBARI
from .voices import SpokenText, voice_named

#: Sentences that SmolLM2-135M-Instruct (Apache-2.0) wrote, one for each of some thousand words of its vocabulary.
SENTENCES_FILE = Path(__file__).parent / "sentences.txt"
#: Words that are said by themselves and that sentences rarely hold: numbers, days, letters, names of characters.
WORDS_FILE = Path(__file__).parent / "spoken_words.json"
#: How many words a list of [`word_lists`] has, and the share of lists whose words are of one kind.
LIST_WORDS = (2, 5)
SHARE_OF_ONE_KIND = 0.7
#: Silence between joined clips, in seconds.
JOIN_GAP_SECONDS = (0.05, 0.4)
#: The synthetic voice is played slower or faster by so much, which shifts its pitch: other speakers for free.
PITCH_FACTORS = (0.84, 1.15)
SPEED_FACTORS = (0.85, 1.2)
PEAKS = (0.3, 0.9)


def read_sentences(limit: int | None = None) -> list[str]:
    """Return the sentences that ship with the package, the first `limit` of them."""
    return SENTENCES_FILE.read_text(encoding="utf-8").splitlines()[:limit]


def word_lists(count: int, seed: int = 0) -> list[str]:
    """
    Return different lists of two to five random words that are said by themselves: "twelfth, Friday, seven."

    Args:
        count: how many.
        seed: same seed, same lists.
    """
    kinds = list(json.loads(WORDS_FILE.read_text(encoding="utf-8")).values())
    everything = [word for kind in kinds for word in kind]
    generator = random.Random(seed)
    lists: dict[str, None] = {}
    while len(lists) < count:
        words = generator.choice(kinds) if generator.random() < SHARE_OF_ONE_KIND else everything
        chosen = [generator.choice(words) for _ in range(generator.randint(*LIST_WORDS))]
        lists[", ".join(chosen) + "."] = None
    return list(lists)


def join_clips(
    recordings: Sequence[Any], transcripts: Sequence[str], folder: Path, count: int, clips: int = 3, seed: int = 0
) -> tuple[list[str], list[str]]:
    """
    Write `count` recordings of two to `clips` random clips one after the other, as FLAC.

    Args:
        recordings, transcripts: the clips and what is said in them.
        folder: where to write; files that are there already are kept.
        count: how many to make.
        clips: most clips in one.
        seed: same seed, same files.

    Returns:
        The files, and what is said in each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    paths, texts = [], []
    for _ in range(count):
        chosen = generator.sample(range(len(recordings)), generator.randint(2, clips))
        gaps = [generator.uniform(*JOIN_GAP_SECONDS) for _ in chosen]
        path = folder / f"{_name(seed, *chosen)}.flac"
        if not path.exists():
            pieces = []
            for index, gap in zip(chosen, gaps):
                pieces += [load_waveform(recordings[index]), np.zeros(int(gap * SAMPLING_RATE_HZ), dtype=np.float32)]
            _write(path, np.concatenate(pieces))
        paths.append(str(path))
        texts.append(" ".join(transcripts[index].strip() for index in chosen))
    return paths, texts


def read_aloud(sentences: Sequence[str], folder: Path, seed: int = 0, progress: bool = True) -> list[str]:
    """
    Write every sentence as read by a synthetic voice, each at a pitch and pace of its own, as FLAC.

    The voice is hibari's, which comes inside its package.

    Args:
        sentences: what to read.
        folder: where to write; files that are there already are kept.
        seed: same seed, same pitch and pace.
        progress: shows a bar.

    Returns:
        One file per sentence.

    Raises:
        CorpusError: hibari-tts is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{_name(seed, sentence)}.flac" for sentence in sentences]
    missing = [(path, sentence) for path, sentence in zip(paths, sentences) if not path.exists()]
    if not missing:
        return [str(path) for path in paths]
    voice = voice_named(HIBARI)
    for path, sentence in tqdm(missing, desc="Reading aloud", unit="sentence", disable=not progress):
        generator = random.Random(_name(seed, sentence))
        pitch = generator.uniform(*PITCH_FACTORS)
        spoken = SpokenText(
            voice, sentence, pitch, generator.uniform(*SPEED_FACTORS), seed, peak=generator.uniform(*PEAKS)
        )
        _write(path, spoken.load()[0])
    return [str(path) for path in paths]


def _name(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _write(path: Path, waveform: np.ndarray) -> None:
    """Writes aside, then renames, so that a file that is there is whole."""
    part = path.with_suffix(".part")
    soundfile.write(part, waveform, SAMPLING_RATE_HZ, format="FLAC")
    part.replace(path)

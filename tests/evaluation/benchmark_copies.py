"""Small copies of every benchmark in its own format, made by code: the same files and columns, three short recordings."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import soundfile
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform
from corpus_copies import write_card, write_table
from datasets import Audio, ClassLabel, Value

ROWS = 3
TEXT, INTEGER, REAL = Value("string"), Value("int32"), Value("float64")
Row = dict[str, Any]
Write = Callable[[Path], Path]


@lru_cache(maxsize=1)
def recordings() -> list[Row]:
    """The shortest held-out studio prompts: `id`, `text` and `audio`."""
    rows = sorted(load_studio_prompts("test"), key=lambda row: row["duration_s"])
    return rows[:ROWS]


def table(
    config: str, split: str, features: Row, row: Callable[[int, str], Row], file: str | None = None, count: int = ROWS
) -> Write:
    """A table of the recordings; `row` gives the other columns of each by its number and text."""

    def write(folder: Path) -> Path:
        rows = []
        for number in range(count):
            each = recordings()[number % ROWS]
            rows.append({**dict.fromkeys(features), "audio": each["audio"], **row(number, each["text"])})
        return write_table(folder, config, split, {"audio": Audio(16_000), **features}, rows, file)

    return write


def texts(*names: str) -> Row:
    return dict.fromkeys(names, TEXT)


def leaderboard(config: str, split: str = "test") -> Write:
    """hf-audio/open-asr-leaderboard. The last two rows have nothing to be recognised."""
    said = {2: "ignore time segment in scoring", 3: ""}
    features = {**texts("dataset", "text", "id"), "audio_length_s": REAL}
    return table(config, split, features, lambda n, text: {"text": said.get(n, text), "id": f"{n}"}, count=4)


def earnings22(folder: Path) -> Path:
    """ArtificialAnalysis/Earnings22-Cleaned-AA-chunked beside its parent: JSON Lines, and chunks that it names."""
    chunked, parent = folder / "Earnings22-Cleaned-AA-chunked", folder / "Earnings22-Cleaned-AA"
    (chunked / "audio").mkdir(parents=True)
    parent.mkdir()
    lines = []
    for number, each in enumerate(reversed(recordings())):  # out of order
        file = f"4469669_{number}.wav"
        soundfile.write(chunked / "audio" / file, load_waveform(each["audio"]), 16_000)
        index = ROWS - 1 - number
        lines.append({"file_name": file, "parent_id": "4469669", "chunk_index": index, "start_s": 0.0})
    text = " ".join(each["text"] for each in recordings())
    write_lines(chunked / "chunks.jsonl", lines, "test")
    write_lines(parent / "earnings22_cleaned_aa_v1.jsonl", [{"id": "4469669", "transcript": text, "url": "x"}], "test")
    return folder


def write_lines(path: Path, rows: list[Row], split: str) -> None:
    """JSON Lines, with a card that says which split they are."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_card(path.parent, None, split, path.name)


def common_voice(folder: Path) -> Path:
    """A release of Mozilla's: test.tsv beside clips/."""
    (folder / "en" / "clips").mkdir(parents=True)
    lines = ["client_id path sentence up_votes down_votes age gender accents locale segment".replace(" ", "\t")]
    for number, each in enumerate(recordings()):
        file = f"common_voice_en_{number}.ogg"
        (folder / "en" / "clips" / file).write_bytes(each["audio"]["bytes"])
        lines.append("\t".join(["c0ffee", file, each["text"], "2", "0", "", "", "", "en", ""]))
    (folder / "en" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def fleurs(
    folder: Path, config: str = "de_de", language: str = "German", sentences: Sequence[int] = (7, 7, 9)
) -> Path:
    """google/fleurs, converted; one sentence is read by two people."""
    features = {
        **{"id": INTEGER, "num_samples": INTEGER, **texts("path", "transcription", "raw_transcription", "language")},
        **{"gender": ClassLabel(names=["male", "female", "other"]), "lang_id": ClassLabel(names=["de_de", "en_us"])},
    }

    def row(number: int, text: str) -> Row:
        known = {"num_samples": 16_000, "path": "x.wav", "gender": 1, "lang_id": 0, "transcription": "klein"}
        sentence = sentences[number]
        return {**known, "id": sentence, "raw_transcription": f"{language} Satz {sentence}.", "language": language}

    return table(config, "test", features, row, f"{config}/test/0000.parquet")(folder)


def fleurs_pair(folder: Path) -> Path:
    """FLEURS in two languages."""
    fleurs(folder, "ja_jp", "Japanese", (9, 7, 9))
    return fleurs(folder, "en_us", "English")


def air_bench(folder: Path) -> Path:
    """AIR-Bench's folders Foundation and Chat, each with its list of questions."""
    foundation = [
        ("Speech_Grounding", "librispeech"),
        ("Audio_Grounding", "AudioGrounding"),
        ("Speaker_Gender", "meld"),
    ]
    chat = [(task, "common_voice") for task in ("speech_QA", "sound_QA", "speech_and_music_QA")]
    choices = {"choice_a": "a dog", "choice_b": "a cat", "choice_c": "a bird", "choice_d": "a horse"}
    closed = {"question": "Which of these is it?", **choices, "answer_gt": "a cat", "uniq_id": 0}
    opened = {"question": "Who speaks?", "answer_gt": "A woman.", "meta_info": "A woman says a few words."}
    for part, kinds, known in (("Foundation", foundation, closed), ("Chat", chat, opened)):
        rows = []
        for index, (each, (task, dataset)) in enumerate(zip(recordings(), kinds)):
            suffix = "flac" if task == "Audio_Grounding" else "wav"
            path = folder / part / f"{task}_{dataset}" / f"{index}.{suffix}"
            path.parent.mkdir(parents=True)
            soundfile.write(path, load_waveform(each["audio"]), 16_000)
            named = {"path": f"{index}.wav", "task_name": task, "dataset_name": dataset}
            rows.append({"uniq_id": index, **known, **named})
        if part == "Foundation":
            del rows[2]["choice_c"], rows[2]["choice_d"]
        (folder / part / f"{part}_meta.json").write_text(json.dumps(rows))
    return folder


def voicebench(config: str, split: str = "test", answers: Sequence[str] = ()) -> Write:
    """hlt-lab/voicebench."""
    features = texts("prompt", *(["reference"] if answers else []))
    known = [{"reference": answer} for answer in answers] or [{}] * ROWS
    return table(config, split, features, lambda number, text: {"prompt": text, **known[number]})


def no_speech(folder: Path) -> Path:
    """A folder of one's own recordings."""
    (folder / "office").mkdir()
    for index, each in enumerate(recordings()):
        soundfile.write(folder / "office" / f"{index}.wav", 0.01 * load_waveform(each["audio"]), 16_000)
    (folder / "notes.txt").write_text("not a recording")
    return folder


#: A task of every family, and what writes its copy.
COPIES: dict[str, Write] = {
    "ami": leaderboard("ami_cleaned"),
    "earnings22": earnings22,
    "gigaspeech": leaderboard("gigaspeech_cleaned"),
    "librispeech_clean": leaderboard("librispeech", "test.clean"),
    "librispeech_other": leaderboard("librispeech", "test.other"),
    "spgispeech": leaderboard("spgispeech"),
    "voxpopuli": leaderboard("voxpopuli_cleaned_aa"),
    "common_voice:en": common_voice,
    "mls:german": table(
        *("german", "test"),
        texts("original_path", "transcript", "speaker_id", "chapter_id", "file", "id") | {"audio_duration": REAL},
        lambda number, text: {"transcript": text.lower(), "speaker_id": "2156", "id": f"2156_{number}"},
    ),
    "fleurs:de_de": fleurs,
    "covost2:en_zh-CN": table(
        *("en_zh-CN", "test"),
        texts("client_id", "file", "sentence", "translation", "id"),
        lambda number, text: {
            "client_id": "c0ffee",
            "sentence": text,
            "translation": f"句子{number}。",
            "id": f"{number}",
        },
    ),
    "fleurs_translation:en_us-ja_jp": fleurs_pair,
    "air_bench_foundation": air_bench,
    "air_bench_chat": air_bench,
    "voicebench:commoneval": voicebench("commoneval"),
    "voicebench_sd_qa:usa": voicebench("sd-qa", "usa", ("Paris", "1969", "salt")),
    "voicebench_openbookqa": voicebench("openbookqa", answers=("A", "D", "b")),
    "voicebench_mmsu:law": voicebench("mmsu", "law", ("C", "A", "B")),
    "slue_ted": table(
        *("ted", "validation"),
        texts("id", "speaker", "transcript", "title", "abstract"),
        lambda number, text: {"id": f"Talk{number}", "transcript": text, "abstract": f"A talk, number {number}."},
    ),
    "no_speech": no_speech,
}
#: Families that ship with the package and take no copy.
EMBEDDED = ("prompts", "unseen", "text_retention", "text_choice")

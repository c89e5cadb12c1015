"""Small copies of every benchmark in its own format, made by code: the same files and columns, three short recordings."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import soundfile
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform
from corpus_copies import write_card, write_table
from datasets import Audio, ClassLabel, Value

ROWS = 3
TEXT, INTEGER, LONG, REAL = Value("string"), Value("int32"), Value("int64"), Value("float64")
Row = dict[str, Any]


@lru_cache(maxsize=1)
def recordings() -> list[Row]:
    """The shortest held-out studio prompts: `id`, `text` and `audio`."""
    rows = sorted(load_studio_prompts("test"), key=lambda row: row["duration_s"])
    return rows[:ROWS]


def leaderboard(config: str, split: str = "test") -> Callable[[Path], Path]:
    """hf-audio/open-asr-leaderboard. The last row has nothing to be recognised."""
    features = {"audio": Audio(16_000), "dataset": TEXT, "text": TEXT, "id": TEXT, "audio_length_s": REAL}

    def write(folder: Path) -> Path:
        rows = [
            {"audio": each["audio"], "dataset": config, "text": each["text"], "id": each["id"], "audio_length_s": 1.0}
            for each in recordings()
        ]
        rows[-1]["text"] = "ignore time segment in scoring"
        rows.append({**rows[0], "text": "", "id": "empty"})
        return write_table(folder, config, split, features, rows)

    return write


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


def common_voice(folder: Path, language: str = "en") -> Path:
    """A release of Mozilla's: test.tsv beside clips/."""
    names = [
        "client_id",
        "path",
        "sentence",
        "up_votes",
        "down_votes",
        "age",
        "gender",
        "accents",
        "locale",
        "segment",
    ]
    (folder / language / "clips").mkdir(parents=True)
    lines = ["\t".join(names)]
    for number, each in enumerate(recordings()):
        file = f"common_voice_{language}_{number}.ogg"
        (folder / language / "clips" / file).write_bytes(each["audio"]["bytes"])
        lines.append("\t".join(["c0ffee", file, each["text"], "2", "0", "", "", "", language, ""]))
    (folder / language / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def mls(folder: Path) -> Path:
    """facebook/multilingual_librispeech."""
    features = {
        **{"audio": Audio(), "original_path": TEXT, "begin_time": REAL, "end_time": REAL, "transcript": TEXT},
        **{"audio_duration": REAL, "speaker_id": TEXT, "chapter_id": TEXT, "file": TEXT, "id": TEXT},
    }
    rows = []
    for index, each in enumerate(recordings()):
        known = {"audio": each["audio"], "transcript": each["text"].lower(), "speaker_id": "2156"}
        rows.append({**dict.fromkeys(features), **known, "id": f"2156_{index}"})
    return write_table(folder, "german", "test", features, rows)


FLEURS = {
    **{"id": INTEGER, "num_samples": INTEGER, "path": TEXT, "audio": Audio(16_000), "transcription": TEXT},
    **{"raw_transcription": TEXT, "gender": ClassLabel(names=["male", "female", "other"])},
    **{"lang_id": ClassLabel(names=["de_de", "en_us"]), "language": TEXT},
}


def fleurs(
    folder: Path, config: str = "de_de", language: str = "German", sentences: tuple[int, ...] = (7, 7, 9)
) -> Path:
    """google/fleurs, converted; one sentence is read by two people."""
    known = {"num_samples": 16_000, "path": "x.wav", "gender": 1, "lang_id": 0, "transcription": "klein"}
    rows = []
    for sentence, each in zip(sentences, recordings()):
        raw = {"id": sentence, "audio": each["audio"], "raw_transcription": f"{language} Satz {sentence}."}
        rows.append({**known, **raw, "language": language})
    return write_table(folder, config, "test", FLEURS, rows, f"{config}/test/0000.parquet")


def fleurs_pair(folder: Path) -> Path:
    """FLEURS in two languages."""
    fleurs(folder, "ja_jp", "Japanese", (9, 7))
    return fleurs(folder, "en_us", "English")


def covost2(folder: Path) -> Path:
    """fixie-ai/covost2."""
    features = dict.fromkeys(("client_id", "file", "sentence", "translation", "id"), TEXT) | {"audio": Audio(16_000)}
    rows = []
    for index, each in enumerate(recordings()):
        known = {"client_id": "c0ffee", "file": "x.mp3", "audio": each["audio"], "sentence": each["text"]}
        rows.append({**known, "translation": f"句子{index}。", "id": f"common_voice_en_{index}"})
    return write_table(folder, "en_zh-CN", "test", features, rows)


def air_bench(folder: Path) -> Path:
    """AIR-Bench's folders Foundation and Chat, each with its list of questions."""
    foundation, chat = [], []
    parts = [("Speech_Grounding", "librispeech"), ("Audio_Grounding", "AudioGrounding"), ("Speaker_Gender", "meld")]
    for index, (each, (task, dataset)) in enumerate(zip(recordings(), parts)):
        suffix = "flac" if task == "Audio_Grounding" else "wav"
        path = folder / "Foundation" / f"{task}_{dataset}" / f"{index}.{suffix}"
        path.parent.mkdir(parents=True)
        soundfile.write(path, load_waveform(each["audio"]), 16_000)
        row = {
            **{"path": f"{index}.wav", "question": "Which of these is it?", "choice_a": "a dog", "choice_b": "a cat"},
            **{"choice_c": "a bird", "choice_d": "a horse", "answer_gt": "a cat", "task_name": task},
            **{"dataset_name": dataset, "uniq_id": 0},
        }
        foundation.append(row)
    del foundation[2]["choice_c"], foundation[2]["choice_d"]
    for index, (each, task) in enumerate(zip(recordings(), ("speech_QA", "sound_QA", "speech_and_music_QA"))):
        path = folder / "Chat" / f"{task}_common_voice" / f"{index}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, load_waveform(each["audio"]), 16_000)
        row = {
            **{"path": f"{index}.wav", "question": "Who speaks?", "answer_gt": "A woman.", "task_name": task},
            **{"dataset_name": "common_voice", "uniq_id": index, "meta_info": "A woman says a few words."},
        }
        chat.append(row)
    (folder / "Foundation" / "Foundation_meta.json").write_text(json.dumps(foundation))
    (folder / "Chat" / "Chat_meta.json").write_text(json.dumps(chat))
    return folder


def voicebench(config: str, split: str = "test", answers: tuple[str, ...] = ()) -> Callable[[Path], Path]:
    """hlt-lab/voicebench."""
    features = {"audio": Audio(), "prompt": TEXT, **({"reference": TEXT} if answers else {})}

    def write(folder: Path) -> Path:
        rows = [{"audio": each["audio"], "prompt": each["text"]} for each in recordings()]
        for row, answer in zip(rows, answers):
            row["reference"] = answer
        return write_table(folder, config, split, features, rows)

    return write


def slue_ted(folder: Path) -> Path:
    """asapp/slue-phase-2, config ted."""
    features = dict.fromkeys(("id", "speaker", "transcript", "title", "abstract"), TEXT) | {"audio": Audio()}
    rows = []
    for index, each in enumerate(recordings()):
        known = {"audio": each["audio"], "speaker": "A B", "transcript": each["text"], "title": "On talking"}
        rows.append({**known, "id": f"Talk{index}", "abstract": f"A talk, number {index}."})
    return write_table(folder, "ted", "validation", features, rows)


def no_speech(folder: Path) -> Path:
    """A folder of one's own recordings."""
    for index, each in enumerate(recordings()):
        path = folder / "office" / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.01 * load_waveform(each["audio"]), 16_000)
    (folder / "notes.txt").write_text("not a recording")
    return folder


#: A task of every family, and what writes its copy.
COPIES: dict[str, Callable[[Path], Path]] = {
    "ami": leaderboard("ami_cleaned"),
    "earnings22": earnings22,
    "gigaspeech": leaderboard("gigaspeech_cleaned"),
    "librispeech_clean": leaderboard("librispeech", "test.clean"),
    "librispeech_other": leaderboard("librispeech", "test.other"),
    "spgispeech": leaderboard("spgispeech"),
    "voxpopuli": leaderboard("voxpopuli_cleaned_aa"),
    "common_voice:en": common_voice,
    "mls:german": mls,
    "fleurs:de_de": fleurs,
    "covost2:en_zh-CN": covost2,
    "fleurs_translation:en_us-ja_jp": fleurs_pair,
    "air_bench_foundation": air_bench,
    "air_bench_chat": air_bench,
    "voicebench:commoneval": voicebench("commoneval"),
    "voicebench_sd_qa:usa": voicebench("sd-qa", "usa", ("Paris", "1969", "salt")),
    "voicebench_openbookqa": voicebench("openbookqa", answers=("A", "D", "b")),
    "voicebench_mmsu:law": voicebench("mmsu", "law", ("C", "A", "B")),
    "slue_ted": slue_ted,
    "no_speech": no_speech,
}
#: Families that ship with the package and take no copy.
EMBEDDED = ("prompts", "unseen", "text_retention", "text_choice")

"""Every ready corpus is read from a small copy in that corpus' real schema; the table itself is checked."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from audiollm.corpora.catalogue import CATALOGUE_FILE, corpus_named, load_catalogue
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.huggingface import HuggingFaceArguments, HuggingFaceSource
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing.audio import load_waveform
from corpus_copies import as_table, write_table
from datasets import Audio, ClassLabel, List, Value

ROWS = 3
#: Identifiers of licences as SPDX has them, or in its form for others.
LICENCE = re.compile(r"[A-Z][A-Za-z0-9]*(-[A-Za-z0-9.]+)*|LicenseRef-[A-Za-z0-9.-]+")
STRING, INTEGER, LONG, REAL, TRUTH = Value("string"), Value("int32"), Value("int64"), Value("float32"), Value("bool")
LANGUAGES = re.findall(r"\w+", "en de fr es pl it ro hu cs nl fi hr sk sl et lt en_accented")
CAPTIONS = [f"a caption, number {number}" for number in range(1, 6)]
Prompt = dict[str, Any]
#: Text and fields of a clip.
Known = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Schema:
    """Form of a corpus where it comes from."""

    features: dict[str, Any]  # all its columns and their types
    row: Callable[[Prompt, int], dict[str, Any]]  # the columns that matter, made of a studio prompt and a number
    expected: Callable[[Prompt, int], list[Known]]  # the row's clips
    config: str | None = None
    split: str = "train"
    files: str | None = None  # the split's table in a copy; None for files that a README names, as on the Hub


def columns(kind: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


def librispeech(config: str, split: str) -> Schema:
    return Schema(
        columns(STRING, "file text id") | columns(LONG, "speaker_id chapter_id") | {"audio": Audio(16_000)},
        lambda prompt, number: {
            **{"audio": prompt["audio"], "text": "I'LL SAY WHAT I HEARD"},
            **{"speaker_id": 1272, "id": f"1272-128104-{number:04d}"},
        },
        lambda prompt, number: [("I'll say what I heard", {"language": "English", "speaker": 1272})],
        config,
        split,
    )


def common_voice(features: dict[str, Any], split: str, files: str) -> Schema:
    return Schema(
        columns(STRING, "client_id path sentence age gender locale segment variant")
        | columns(LONG, "up_votes down_votes")
        | features,
        lambda prompt, number: {
            **{"client_id": "c0ffee", "path": f"common_voice_en_{number}.ogg", "locale": "en", "up_votes": 2},
            "sentence": f'"{prompt["text"]}',  # in TSV, a quotation mark is one
            **({"audio": prompt["audio"]} if "audio" in features else {}),
        },
        lambda prompt, number: [(f'"{prompt["text"]}', {"language": "en", "speaker": "c0ffee"})],
        "en",
        split,
        files,
    )


def voxpopuli(
    config: str, split: str, given: dict[str, Any], expected: Callable[[Prompt, int], list[Known]]
) -> Schema:
    return Schema(
        columns(STRING, "audio_id raw_text normalized_text gender speaker_id accent")
        | {"language": ClassLabel(names=LANGUAGES), "audio": Audio(16_000), "is_gold_transcript": TRUTH},
        lambda prompt, number: {
            **{"audio_id": f"2018-{number}", "audio": prompt["audio"], "raw_text": prompt["text"]},
            **{"normalized_text": prompt["text"].lower(), "speaker_id": "7", **given},
        },
        expected,
        config,
        split,
        f"{config}/{split}/0000.parquet",
    )


SCHEMAS: dict[str, Schema] = {
    "librispeech": librispeech("clean", "train.100"),
    "librispeech_other": librispeech("other", "train.500"),
    "librispeech_all": librispeech("all", "train.clean.100"),
    "common_voice": common_voice(columns(STRING, "sentence_id sentence_domain accents"), "dev", "en/dev.tsv"),
    "common_voice_17": common_voice(
        {"audio": Audio(48_000), "accent": STRING},
        "train",
        "en/train/chunk-range-000000000-000000003/train-00000-of-00001.parquet",
    ),
    "fleurs": Schema(
        columns(STRING, "path transcription raw_transcription language")
        | columns(INTEGER, "id num_samples")
        | {"audio": Audio(16_000), "gender": ClassLabel(names=["male", "female", "other"])}
        | {"lang_id": ClassLabel(names=["af_za"]), "lang_group_id": ClassLabel(names=["western_european_we"])},
        lambda prompt, number: {
            **{"id": 7, "audio": prompt["audio"], "gender": 1, "transcription": prompt["text"].lower()},
            **{"raw_transcription": prompt["text"], "language": "German"},
        },
        lambda prompt, number: [(prompt["text"], {"sentence": 7, "language": "German", "gender": "female"})],
        "de_de",
        "validation",
        "de_de/validation/0000.parquet",
    ),
    "voxpopuli": voxpopuli(
        "de", "train", {"language": 1}, lambda prompt, number: [(prompt["text"], {"language": "de", "speaker": "7"})]
    ),
    "voxpopuli_accented": voxpopuli(
        "en_accented",
        "test",
        {"language": 16, "raw_text": "", "accent": "en_nl"},
        lambda prompt, number: [
            (prompt["text"].lower(), {"language": "en_accented", "speaker": "7", "accent": "en_nl"})
        ],
    ),
    "gigaspeech": Schema(
        columns(STRING, "segment_id speaker text audio_id title url original_full_path")
        | columns(REAL, "begin_time end_time")
        | {"audio": Audio(16_000), "source": ClassLabel(names=["audiobook", "podcast", "youtube"])}
        | {"category": ClassLabel(names=["People  and  Blogs", "N/A"])},
        lambda prompt, number: {
            **{"segment_id": f"YOU{number}", "speaker": "N/A", "audio": prompt["audio"], "source": 2},
            "text": "AS THEY LEAVE <COMMA> CAN I ASK <QUESTIONMARK> NO <PERIOD>",
        },
        lambda prompt, number: [
            ("As they leave, can I ask? No.", {"language": "English", "speaker": "N/A", "source": "youtube"})
        ],
        "xs",
        "train",
    ),
    "covost2": Schema(
        columns(STRING, "client_id file sentence translation id") | {"audio": Audio(16_000)},
        lambda prompt, number: {
            **{"client_id": "c0ffee", "audio": prompt["audio"], "sentence": prompt["text"]},
            **{"translation": f"Satz {number}", "id": f"common_voice_en_{number}"},
        },
        lambda prompt, number: [
            (
                prompt["text"],
                {"language": "English", "target_language": "German"}
                | {"translation": f"Satz {number}", "speaker": "c0ffee"},
            )
        ],
        "en_de",
        "test",
    ),
    "audiocaps": Schema(
        columns(LONG, "audiocap_id start_time") | columns(STRING, "youtube_id caption") | {"audio": Audio(16_000)},
        lambda prompt, number: {
            **{"audiocap_id": number, "youtube_id": "vid", "start_time": 30, "caption": "A woman speaks"},
            "audio": prompt["audio"],
        },
        lambda prompt, number: [("", {"caption": "A woman speaks", "video": "vid", "start_time": 30})],
        split="test",
    ),
    "clotho": Schema(
        columns(STRING, "index datasetname text") | {"audio": Audio(), "audio_len": REAL, "raw_text": List(STRING)},
        lambda prompt, number: {"index": str(number), "audio": prompt["audio"], "text": "x", "raw_text": CAPTIONS},
        lambda prompt, number: [("", {"caption": caption}) for caption in CAPTIONS],
        split="validation",
    ),
    "clotho_csv": Schema(
        columns(STRING, "file_name caption_1 caption_2 caption_3 caption_4 caption_5"),
        lambda prompt, number: {
            "file_name": f"Some sound {number}.ogg",
            **{f"caption_{index}": caption for index, caption in enumerate(CAPTIONS, start=1)},
        },
        lambda prompt, number: [("", {"caption": caption}) for caption in CAPTIONS],
        split="development",
        files="clotho_captions_development.csv",
    ),
    "voice_assistant": Schema(
        columns(STRING, "split_name index round question answer answer_snac") | {"question_audio": Audio()},
        lambda prompt, number: {
            **{"split_name": "alpaca", "index": str(number), "round": "1", "question": prompt["text"]},
            **{"question_audio": prompt["audio"], "answer": "Certainly."},
        },
        lambda prompt, number: [
            (prompt["text"], {"language": "English", "response": "Certainly.", "subset": "alpaca"})
        ],
    ),
    "spoken_web_questions": Schema(
        columns(STRING, "url question") | {"answers": List(STRING), "audio": Audio()},
        lambda prompt, number: {
            **{"question": prompt["text"], "answers": ["Jazmyn", "Maddison"], "audio": prompt["audio"]}
        },
        lambda prompt, number: [(prompt["text"], {"language": "English", "response": "Jazmyn"})],
    ),
    "boolq_audio": Schema(
        columns(STRING, "question passage explanation") | {"answer": TRUTH, "audio": Audio(16_000)},
        lambda prompt, number: {
            **{"question": prompt["text"], "answer": number % 2 == 0, "passage": "A passage."},
            "audio": prompt["audio"],
        },
        lambda prompt, number: [
            (
                prompt["text"],
                {"language": "English", "passage": "A passage.", "response": "No." if number % 2 else "Yes."},
            )
        ],
        split="validation",
    ),
    "spoken_squad": Schema(
        {"context": Audio(), "instruction": STRING, "answer": STRING},
        lambda prompt, number: {"context": prompt["audio"], "instruction": "Who won?", "answer": "Denver"},
        lambda prompt, number: [("", {"language": "English", "question": "Who won?", "answer": "Denver"})],
        split="test",
    ),
}


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [dict(row) for row in load_studio_prompts("test").select(range(ROWS))]


def write_copy(folder: Path, schema: Schema, prompts: list[Prompt], renamed: dict[str, str] | None = None) -> None:
    """A corpus of three rows as it lies on disk after a download."""
    rows = [dict.fromkeys(schema.features) | schema.row(prompt, number) for number, prompt in enumerate(prompts)]
    if schema.files is None or schema.files.endswith(".parquet"):
        names = {name: (renamed or {}).get(name, name) for name in schema.features}
        features = {names[name]: kind for name, kind in schema.features.items()}
        rows = [{names[name]: value for name, value in row.items()} for row in rows]
        write_table(folder, schema.config, schema.split, features, rows, schema.files)
        return
    path, table = folder / schema.files, as_table(rows, schema.features)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tsv":
        lines = ["\t".join("" if value is None else str(value) for value in row.values()) for row in table]
        path.write_text("\n".join(["\t".join(table.column_names), *lines]) + "\n")
    else:
        table.to_csv(path, index=False)
    for row, prompt in zip(rows, prompts):
        for audio_folder, column in (("clips", "path"), (schema.split, "file_name")):
            if column in row:
                recording = path.parent / audio_folder / row[column]
                recording.parent.mkdir(exist_ok=True)
                recording.write_bytes(prompt["audio"]["bytes"])


def read_copy(name: str, folder: Path, **options: Any) -> HuggingFaceSource:
    schema = SCHEMAS[name]
    return HuggingFaceSource(
        HuggingFaceArguments(name, config=schema.config, splits=[schema.split], source_path=str(folder), **options)
    )


def test_every_corpus_of_the_table_has_a_fixture() -> None:
    assert set(SCHEMAS) == set(load_catalogue())


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_corpus_is_read_in_its_own_schema(name: str, prompts, tmp_path) -> None:
    schema = SCHEMAS[name]
    write_copy(tmp_path, schema, prompts)
    source = read_copy(name, tmp_path)
    clips = list(source.clips())
    expected = [each for number, prompt in enumerate(prompts) for each in schema.expected(prompt, number)]
    assert not [clip for clip in clips if isinstance(clip, BadClip)]
    assert [(clip.text, dict(clip.fields)) for clip in clips] == expected
    assert {clip.split for clip in clips} == {schema.split} and len({clip.id for clip in clips}) == len(clips)
    assert source.tasks == load_catalogue()[name].tasks
    waveforms = [load_waveform(clip.recording) for clip in (clips[0], clips[-1])]
    assert list(map(len, waveforms)) == [len(load_waveform(each["audio"])) for each in (prompts[0], prompts[-1])]
    for task in source.tasks:
        for clip in clips:
            fields = {"text": clip.text, **clip.fields}
            prompt, response = task.ask(clip.id, fields)
            assert not task.missing(fields) and prompt.count("<audio>") == 1 and response
    assert list(source.clips(1)) == clips[1:] and list(source.clips(len(clips))) == []


def test_a_renamed_column_is_named(prompts, tmp_path) -> None:
    write_copy(tmp_path, SCHEMAS["fleurs"], prompts, {"raw_transcription": "raw_transcription_new"})
    with pytest.raises(CorpusError, match=r"no column 'raw_transcription'.* --columns") as caught:
        read_copy("fleurs", tmp_path)
    there = {*SCHEMAS["fleurs"].features, "raw_transcription_new"} - {"raw_transcription"}
    assert all(f"{other} (" in str(caught.value) for other in there)


def test_columns_given_by_name_change_what_a_corpus_becomes(prompts, tmp_path) -> None:
    write_copy(tmp_path, SCHEMAS["fleurs"], prompts)
    clips = list(read_copy("fleurs", tmp_path, columns=["text=transcription", "gender="]).clips())
    assert [clip.text for clip in clips] == [prompt["text"].lower() for prompt in prompts]
    assert all(set(clip.fields) == {"sentence", "language"} for clip in clips)


def test_what_is_not_speech_is_a_bad_clip(prompts, tmp_path) -> None:
    schema = SCHEMAS["gigaspeech"]
    rows = [dict.fromkeys(schema.features) | schema.row(prompt, number) for number, prompt in enumerate(prompts)]
    rows[1]["text"] = "<MUSIC>"
    as_table(rows, schema.features).to_parquet(tmp_path / "train-00000.parquet")
    first, second, third = read_copy("gigaspeech", tmp_path).clips()
    assert isinstance(second, BadClip) and second.id == "YOU1" and "<MUSIC>" in second.reason
    assert isinstance(first, Clip) and isinstance(third, Clip)


# ----------------------------------------------------------------------------------------------------------- the table


def test_configs_and_names_are_looked_up() -> None:
    assert corpus_named("covost2:en_de").constants["target_language"] == "German"
    assert corpus_named("covost2", "fr_en").name == "covost2:fr_en"
    assert corpus_named("librispeech").config == "clean"
    assert corpus_named("common_voice:zh-CN").config == "zh-CN"
    for given, message in (
        (("covost3:en_de",), "no corpus 'covost3'.*Perhaps 'covost2'"),
        (("covost2",), "several configs; name one as covost2:CONFIG"),
        (("covost2:en_dee",), "no config 'en_dee'.*Perhaps 'en_de'"),
        (("covost2:en_de", "de_en"), "names the config 'en_de', and --config another"),
        (("common_voice:../en",), "no config '../en'"),
        (("audiocaps:x",), "no configs"),
    ):
        with pytest.raises(CorpusError, match=message):
            corpus_named(*given)


def test_every_entry_is_sound() -> None:
    raw = yaml.safe_load(CATALOGUE_FILE.read_text(encoding="utf-8"))
    for name, corpus in load_catalogue().items():
        assert LICENCE.fullmatch(corpus.licence) and (corpus.terms or not corpus.licence.startswith("LicenseRef-"))
        assert (corpus.hub or corpus.withdrawn) and "audio" in corpus.columns, name
        assert corpus.default_splits and set(corpus.default_splits) <= set(corpus.splits)
        configs = corpus.configs.values() if isinstance(corpus.configs, dict) else ()
        given = {*corpus.columns, *corpus.constants, *(set.intersection(*map(set, configs)) if configs else ())}
        assert corpus.tasks and all(set(task.fields) <= given for task in corpus.tasks), name
        assert set(raw[name]) <= {*vars(corpus), "inherits", "letter_case", "prompts"} - {"name", "config"}

"""Every ready corpus is read from a small copy in that corpus' real schema; the table itself is checked."""

import re
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
SCHEMAS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("catalogue_rows.yaml").read_text())
for _schema in SCHEMAS.values():
    _schema |= SCHEMAS.get(_schema.get("inherits", ""), {}) | _schema

Prompt = dict[str, Any]
pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [dict(row) for row in load_studio_prompts("test").select(range(ROWS))]


def features_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The columns of a corpus with their types."""
    types = {"audio": Audio(16_000), "strings": List(Value("string"))}
    labels = {name: ClassLabel(names=names.split()) for name, names in schema.get("labels", {}).items()}
    kinds = {name: kind for kind, names in schema["features"].items() for name in names.split()}
    return {name: labels.get(name) or types.get(kind) or Value(kind) for name, kind in kinds.items()}


def filled(given: dict[str, Any], prompt: Prompt, number: int) -> dict[str, Any]:
    """A row or clip with a prompt in place of the placeholders."""
    words = {"text": prompt["text"], "lower": prompt["text"].lower(), "number": number}
    return {name: value.format(**words) if isinstance(value, str) else value for name, value in given.items()}


def rows_of(schema: dict[str, Any], prompts: list[Prompt]) -> list[dict[str, Any]]:
    audio = schema["features"].get("audio", "").split()
    return [
        dict.fromkeys(features_of(schema))
        | dict.fromkeys(audio, prompt["audio"])
        | filled(schema["row"], prompt, number)
        for number, prompt in enumerate(prompts)
    ]


def write_copy(folder: Path, schema: dict[str, Any], prompts: list[Prompt]) -> None:
    """A corpus of three rows as it lies on disk after a download."""
    rows, features, files = rows_of(schema, prompts), features_of(schema), schema.get("files")
    if files is None or files.endswith(".parquet"):
        write_table(folder, schema.get("config"), schema["split"], features, rows, files)
        return
    path, table = folder / files, as_table(rows, features)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tsv":
        lines = ["\t".join("" if value is None else str(value) for value in row.values()) for row in table]
        path.write_text("\n".join(["\t".join(table.column_names), *lines]) + "\n")
    else:
        table.to_csv(path, index=False)
    for row, prompt in zip(rows, prompts):
        for audio_folder, column in (("clips", "path"), (schema["split"], "file_name")):
            if column in row:
                recording = path.parent / audio_folder / row[column]
                recording.parent.mkdir(exist_ok=True)
                recording.write_bytes(prompt["audio"]["bytes"])


def read_copy(name: str, folder: Path, **options: Any) -> HuggingFaceSource:
    config, split = SCHEMAS[name].get("config"), SCHEMAS[name]["split"]
    return HuggingFaceSource(
        HuggingFaceArguments(name, config=config, splits=[split], source_path=str(folder), **options)
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_corpus_is_read_in_its_own_schema(name: str, prompts, tmp_path) -> None:
    schema = SCHEMAS[name]
    write_copy(tmp_path, schema, prompts)
    source = read_copy(name, tmp_path)
    clips = list(source.clips())
    assert not [clip for clip in clips if isinstance(clip, BadClip)]
    expected = [filled(clip, prompt, number) for number, prompt in enumerate(prompts) for clip in schema["clips"]]
    assert [{"text": clip.text, **clip.fields} for clip in clips] == [{"text": "", **clip} for clip in expected]
    assert {clip.split for clip in clips} == {schema["split"]} and len({clip.id for clip in clips}) == len(clips)
    assert source.tasks == load_catalogue()[name].tasks
    waveforms = [load_waveform(clip.recording) for clip in (clips[0], clips[-1])]
    assert list(map(len, waveforms)) == [len(load_waveform(each["audio"])) for each in (prompts[0], prompts[-1])]
    for task in source.tasks:
        for clip in clips:
            fields = {"text": clip.text, **clip.fields}
            prompt, response = task.ask(clip.id, fields)
            assert not task.missing(fields) and prompt.count("<audio>") == 1 and response
    assert list(source.clips(1)) == clips[1:] and list(source.clips(len(clips))) == []


def test_a_renamed_column_is_named_and_may_be_given(prompts, tmp_path) -> None:
    renamed = yaml.safe_dump(SCHEMAS["fleurs"]).replace("raw_transcription", "raw_transcription_new")
    write_copy(tmp_path, yaml.safe_load(renamed), prompts)
    with pytest.raises(CorpusError, match=r"no column 'raw_transcription'.* --columns") as caught:
        read_copy("fleurs", tmp_path)
    there = {*features_of(SCHEMAS["fleurs"]), "raw_transcription_new"} - {"raw_transcription"}
    assert all(f"{other} (" in str(caught.value) for other in there)
    clips = list(read_copy("fleurs", tmp_path, columns=["text=transcription", "gender="]).clips())
    assert [clip.text for clip in clips] == [prompt["text"].lower() for prompt in prompts]
    assert all(set(clip.fields) == {"sentence", "language"} for clip in clips)


def test_what_is_not_speech_is_a_bad_clip(prompts, tmp_path) -> None:
    rows = rows_of(SCHEMAS["gigaspeech"], prompts)
    rows[1]["text"] = "<MUSIC>"
    as_table(rows, features_of(SCHEMAS["gigaspeech"])).to_parquet(tmp_path / "train-00000.parquet")
    first, second, third = read_copy("gigaspeech", tmp_path).clips()
    assert isinstance(second, BadClip) and second.id == "YOU1" and "<MUSIC>" in second.reason
    assert isinstance(first, Clip) and isinstance(third, Clip)


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


def test_every_entry_is_sound_and_has_a_fixture() -> None:
    assert set(SCHEMAS) == set(load_catalogue())
    raw = yaml.safe_load(CATALOGUE_FILE.read_text(encoding="utf-8"))
    for name, corpus in load_catalogue().items():
        assert LICENCE.fullmatch(corpus.licence) and (corpus.terms or not corpus.licence.startswith("LicenseRef-"))
        assert (corpus.hub or corpus.withdrawn) and "audio" in corpus.columns, name
        assert corpus.default_splits and set(corpus.default_splits) <= set(corpus.splits)
        configs = corpus.configs.values() if isinstance(corpus.configs, dict) else ()
        given = {*corpus.columns, *corpus.constants, *(set.intersection(*map(set, configs)) if configs else ())}
        assert corpus.tasks and all(set(task.fields) <= given for task in corpus.tasks), name
        assert set(raw[name]) <= {*vars(corpus), "inherits", "letter_case", "prompts"} - {"name", "config"}

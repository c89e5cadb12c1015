"""Properties that hold for anything that a user may hand over: texts, recordings, rows, configurations, options."""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from audiollm import AudioLlmConfig
from audiollm.corpora.audio_rows import read_audio_rows
from audiollm.corpora.examples import ExamplesError, read_examples
from audiollm.corpora.sources import Examples, parse_source
from audiollm.processing import AudioError, load_waveform
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, IGNORED_LABEL
from audiollm.training.collator import AudioLlmCollator
from audiollm.training.command_line import parse_arguments
from audiollm.training.rows import build_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from small_corpus import write_recordings, write_rows
from tiny_models import llama_config, whisper_config

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
RESERVED = ("<audio>", "</audio>", "<|audio_slot|>", "<|im_end|>", "<|im_start|>", "<s>", "<|audiollm_unused_0|>")
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(RESERVED)), max_size=6).map("".join)
#: Texts that are paths and URLs, or nearly.
PLACES = ("0.wav", "../0.wav", "/etc/passwd", "zzz://", "file:///etc/passwd", "data:,", "\0", "\ud800")
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**301), st.floats(), st.text(max_size=6),
    st.sampled_from(PLACES),
)  # fmt: skip
KEYS = st.sampled_from(("type", "text", "path", "audio", "bytes", "role", "content", "x"))
#: All that JSON can hold, and a little more.
JSON_VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
SHAPES = st.one_of(
    st.just(()), st.tuples(st.integers(0, 500)), st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
)  # fmt: skip
DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", ">i4", "int64", "uint64", "bool", "complex64")
ARRAYS = st.tuples(st.sampled_from(DTYPES), SHAPES).flatmap(lambda kind: st_numpy.arrays(kind[0], kind[1]))
RATES = st.one_of(
    st.none(), st.integers(), st.floats(), st.sampled_from((8_000, 16_000, 44_100, 1_000, 768_000, True, "16000"))
)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(40_000).astype(np.float32)


# ---- recordings ------------------------------------------------------------------------------------------------------


AUDIO_KEYS = st.sampled_from(("array", "bytes", "path", "sampling_rate"))
ANYTHING = ARRAYS | JSON_VALUES | st.binary(max_size=40) | st.dictionaries(AUDIO_KEYS, JSON_VALUES)


@settings(QUICK, max_examples=50)
@given(ANYTHING, RATES)
def test_anything_is_a_waveform_or_refused_by_name(given_audio: Any, rate: Any) -> None:
    is_array = isinstance(given_audio, np.ndarray)
    for audio in (given_audio, {"array": given_audio, "sampling_rate": rate}):
        try:
            waveform = load_waveform(audio, rate, name="question 7")
        except (AudioError, FileNotFoundError) as error:
            assert "question 7" in str(error) or not is_array
        else:
            assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform)
            assert np.isfinite(waveform).all()


@QUICK
@given(
    st.sampled_from(("audio/wav", "", "text/html", "audio/x;codecs=a", "AUDIO/MPEG", "\0")),
    st.sampled_from((";base64,", ",", ";base64", ";BASE64,", ";base64,,")),
    st.text(max_size=30) | st.binary(max_size=30).map(lambda data: base64.b64encode(data).decode()) | st.just("%"),
)
def test_any_data_url_is_refused_or_read_without_showing_its_data(kind: str, mark: str, data: str) -> None:
    with pytest.raises(AudioError) as raised:
        load_waveform(f"data:{kind}{mark}{data}")
    assert "data: URL" in str(raised.value)


# ---- processor -------------------------------------------------------------------------------------------------------


@QUICK
@given(st.lists(TEXTS, min_size=1, max_size=4), st.data())
def test_any_text_is_encoded_with_as_many_slots_as_its_recordings_take(tiny_processor, texts: list[str], data) -> None:
    processor = tiny_processor
    counts = [text.count(AUDIO_PLACEHOLDER) for text in texts]
    lengths = [data.draw(st.lists(st.integers(1, 4_000), min_size=count, max_size=count)) for count in counts]
    recordings = [[NOISE[:length] for length in row] for row in lengths]
    if any("<|audio_slot|>" in text for text in texts):
        with pytest.raises(ValueError, match="which stands for a stretch of a recording"):
            processor(text=texts, audio=[clip for row in recordings for clip in row] or None)
        return
    batch = processor(text=texts, audio=[clip for row in recordings for clip in row] or None)
    windows = 0
    for index, row in enumerate(lengths):
        ids = batch["input_ids"][index][batch["attention_mask"][index].bool()]
        expected = sum(processor.num_audio_slots(length) for length in row)
        assert int((ids == processor.audio_token_id).sum()) == expected
        assert int((ids == processor.audio_begin_token_id).sum()) == len(row)
        alone = processor(text=texts[index], audio=recordings[index] or None)  # batched equals single
        assert torch.equal(alone["input_ids"][0], ids)
        for one in range(len(row)):
            ours = int(batch["input_features_mask"][windows].sum())
            assert ours == alone["input_features_mask"][one].sum()
            assert torch.equal(batch["input_features"][windows, :, :ours], alone["input_features"][one, :, :ours])
            windows += 1


@QUICK
@given(JSON_VALUES)
def test_any_conversation_is_rendered_or_refused(tiny_processor, messages: Any) -> None:
    for conversation in (messages, [messages], [{"role": "user", "content": messages}]):
        with contextlib.suppress(ValueError, FileNotFoundError):
            tiny_processor.apply_chat_template(conversation, tokenize=True)


# ---- collator --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_recordings(folder, 4)
    return folder


ANSWERS = st.text(st.sampled_from("abc .,?!"), min_size=1, max_size=12).filter(str.strip)


@settings(QUICK, max_examples=15)
@given(st.lists(st.tuples(ANSWERS, st.lists(st.integers(0, 3), max_size=2)), min_size=1, max_size=4), st.data())
def test_labels_are_the_answer_and_nothing_else(tiny_processor, corpus: Path, rows: list, data) -> None:
    written = [
        {
            "text": "Say" + AUDIO_PLACEHOLDER * len(clips),
            "audio_paths": [f"{n}.wav" for n in clips],
            "response": answer,
        }
        for answer, clips in rows
    ]
    path = write_rows(corpus / "data.json", written)
    encoded_rows = list(build_dataset(read_examples(path), tiny_processor, None, progress=False))
    batch = AudioLlmCollator(tiny_processor)(encoded_rows)
    supervised = batch["labels"] != IGNORED_LABEL
    assert not (supervised & (batch["attention_mask"] == 0)).any()
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    for index, (answer, _) in enumerate(rows):
        said = tiny_processor.decode(batch["input_ids"][index][supervised[index]], skip_special_tokens=True)
        assert said == answer
    order = data.draw(st.permutations(range(len(rows))))
    permuted = AudioLlmCollator(tiny_processor)([encoded_rows[index] for index in order])
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(permuted[name], batch[name][list(order)])


# ---- rows of data ----------------------------------------------------------------------------------------------------

FIELDS = ("text", "audio_paths", "response", "messages", "audio", "transcripts", "chosen", "rejected", "extra")
ROWS = st.one_of(JSON_VALUES, st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4))


@QUICK
@given(st.lists(ROWS, max_size=3), st.sampled_from((".json", ".jsonl")))
def test_any_rows_are_read_or_refused_by_number(corpus: Path, rows: list[Any], ending: str) -> None:
    path = corpus / f"any{ending}"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if ending == ".jsonl" else f"[{','.join(lines)}]")
    places = {"", *(f"line {index + 1}" if ending == ".jsonl" else f"row {index}" for index in range(len(rows)))}
    for read in (
        lambda: read_examples(path, corpus),
        lambda: read_audio_rows(path, corpus, ("chosen", "rejected")),
        lambda: read_audio_rows(rows, corpus, ("response",), ("transcripts",)),
    ):
        try:
            read()
        except ExamplesError as error:
            numbered = places | {f"row {index}" for index in range(len(rows))}
            assert {where for where, _ in error.problems} <= numbered and all(reason for _, reason in error.problems)
    source = Examples(parse_source(str(path)), corpus)
    assert {where for where, _ in source.problems} <= places
    for example in source:
        assert all(isinstance(each, (str, dict)) for each in example.recordings)


@QUICK
@given(st.binary(max_size=60), st.sampled_from((".json", ".jsonl")))
def test_any_bytes_are_a_file_of_rows_or_refused(corpus: Path, content: bytes, ending: str) -> None:
    path = corpus / f"bytes{ending}"
    path.write_bytes(content)
    try:
        read_examples(path, corpus)
    except ExamplesError as error:
        assert str(path) in str(error)


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", AudioLlmConfig.__annotations__)
@settings(QUICK, max_examples=12)
@given(value=JSON_VALUES)
def test_any_value_of_a_field_is_kept_or_refused_by_name(field: str, value: Any) -> None:
    good = {"audio_config": whisper_config(), "text_config": llama_config()}
    try:
        config = AudioLlmConfig(**{**good, field: value})
    except ValueError as error:
        assert field.removeprefix("lora_").removesuffix("_id") in str(error), error
        return
    again = AudioLlmConfig.from_dict(json.loads(config.to_json_string()))
    if field not in ("audio_config", "text_config"):  # whose further fields are transformers' own
        assert again.to_dict() == config.to_dict()


# ---- options ---------------------------------------------------------------------------------------------------------


OPTIONS = st.sampled_from(("batch_size", "learning_rate", "stage", "bf16", "data_path"))


@settings(QUICK, max_examples=12)
@given(JSON_VALUES | st.dictionaries(OPTIONS, JSON_VALUES))
def test_any_recipe_is_read_or_refused(corpus: Path, recipe: Any) -> None:
    path = corpus / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with contextlib.suppress(ValueError, SystemExit):
        parse_arguments(["--config", str(path), "--output_dir", str(corpus / "run"), "--data_path", "data.json"])


BAD_RECIPES = (
    "!!python/object/apply:os.system ['touch MARKER']", "batch_size: !!python/object/new:pathlib.Path [x]",
    "a: &a [*a]", "[" * 1_200, "\0", "a: b: c", "- 1", "1: 2",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_RECIPES)
def test_recipes_hold_values_and_nothing_that_runs(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError):
        parse_arguments(["--config", "recipe.yaml", "--output_dir", "run", "--data_path", "data.json"])
    assert not (tmp_path / "MARKER").exists()

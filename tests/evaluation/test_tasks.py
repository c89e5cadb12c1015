"""Every task is read from a small copy in its benchmark's own format; names, aliases and the table itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from audiollm.evaluation.measures import Convention, bleu_metric
from audiollm.evaluation.systems import DEFAULT_SYSTEMS
from audiollm.evaluation.tasks import (
    Item,
    TaskError,
    families,
    find_task,
    group_tasks,
    tables,
    task_table,
    tasks_named,
)
from audiollm.inference.transcribing import TRANSCRIBE_PROMPT
from audiollm.processing import load_waveform
from benchmark_copies import COPIES, EMBEDDED, ROWS, TEXT, recordings
from corpus_copies import write_table
from datasets import Audio
from evaluation_runs import evaluate, rows_of, scores_of

PROMPTS = [row["text"] for row in recordings()]
pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def copies(own_datasets_cache, tmp_path_factory) -> dict[str, str]:
    """Folders with a copy of a task of every family that takes one."""
    return {name: str(write(tmp_path_factory.mktemp("copy"))) for name, write in COPIES.items()}


@pytest.fixture(scope="module")
def items(copies) -> dict[str, list[Item]]:
    """The questions of a task of every family."""
    return {name: list(find_task(name).items(copies.get(name))) for name in (*EMBEDDED, *COPIES)}


def test_questions_are_whole(items) -> None:
    """Ids are unique, there is one <audio> for each recording, recordings can be heard, and the rest is JSON."""
    assert {name.partition(":")[0] for name in items} == set(families())
    for name, found in items.items():
        task = find_task(name)
        assert len({item.id for item in found}) == len(found) >= ROWS, name
        for item in found:
            assert item.prompt.count("<audio>") == len(item.recordings) and item.prompt.strip()
            assert "{" not in item.prompt or task.kind == "text_retention"
            assert json.loads(json.dumps(item.extra)) == item.extra
            assert all(isinstance(reference, str) for reference in item.references)
        recording = next(iter(found[0].recordings), None)
        assert recording is None or len(load_waveform(recording)) > 1000
        assert json.loads(json.dumps(dict(task.source))) == task.source
        assert task.language and task.source["licence"] and task.source["title"]


# ------------------------------------------------------------------------------------------------------ what each one asks


def test_the_leaderboards_sets(items) -> None:
    """References are as they are written; what the leaderboard drops is there for scoring to drop and count."""
    for name in group_tasks("open_asr"):
        task = find_task(name)
        assert (task.kind, task.metrics, task.normaliser, task.language) == ("asr", ("word_error",), "english", "en")
        assert all(item.prompt == TRANSCRIBE_PROMPT for item in items[name])
        if name != "earnings22":
            references = [item.references for item in items[name]]
            assert references == [[PROMPTS[0]], [PROMPTS[1]], ["ignore time segment in scoring"], [""]]
            assert items[name][-1].id == "empty"


def test_columns_of_the_leaderboard_may_have_other_names(tmp_path) -> None:
    rows = [{"audio": each["audio"], "id": each["id"], "normalized_text": each["text"]} for each in recordings()]
    features = {"audio": Audio(16_000), "id": TEXT, "normalized_text": TEXT}
    write_table(tmp_path, "voxpopuli_cleaned_aa", "test", features, rows)
    found = list(find_task("voxpopuli").items(str(tmp_path)))
    assert [item.references for item in found] == [[text] for text in PROMPTS]


def test_chunks_know_their_call(items) -> None:
    """Put together in the order of their indices, chunks are what their call's transcript says."""
    found = sorted(items["earnings22"], key=lambda item: item.extra["chunk_index"])
    assert {item.extra["session"] for item in found} == {"4469669"}
    assert [item.extra["chunk_index"] for item in found] == [0, 1, 2]
    assert all(item.references == [" ".join(PROMPTS)] for item in found)
    assert len(load_waveform(found[0].recordings[0])) == len(load_waveform(recordings()[0]["audio"]))


def test_recognition_in_many_languages(items) -> None:
    assert [item.references for item in items["common_voice:en"]] == [[text] for text in PROMPTS]
    assert items["common_voice:en"][0].extra == {"language": "en", "speaker": "c0ffee"}
    assert [item.references for item in items["mls:german"]] == [[text.lower()] for text in PROMPTS]
    spoken = items["fleurs:de_de"]
    assert [item.references[0] for item in spoken] == ["German Satz 7.", "German Satz 7.", "German Satz 9."]
    assert spoken[0].extra["language"] == "German" and spoken[0].extra["gender"] == "female"


@pytest.mark.parametrize(
    ("name", "language", "normaliser", "metric"),
    [
        ("fleurs:de_de", "de", "basic", "word_error"),
        ("fleurs:cmn_hans_cn", "zh", "characters", "character_error"),
        ("fleurs:yue_hant_hk", "yue", "characters", "character_error"),
        ("fleurs:en_us", "en", "english", "word_error"),
        ("common_voice:ja", "ja", "characters", "character_error"),
        ("common_voice:sv-SE", "sv", "basic", "word_error"),
        ("mls:polish", "pl", "basic", "word_error"),
        ("covost2:en_sv-SE", "sv", "basic", "bleu"),
        ("covost2:zh-CN_en", "en", "english", "bleu"),
        ("fleurs_translation:en_us-cmn_hans_cn", "zh", "characters", "bleu"),
    ],
)
def test_languages_decide_how_answers_are_scored(name: str, language: str, normaliser: str, metric: str) -> None:
    task = find_task(name)
    assert (task.language, task.normaliser, task.metrics) == (language, normaliser, (metric,))


def test_the_tokenizer_of_bleu_is_the_targets() -> None:
    """And what is spoken is known, for Whisper's own decoder."""
    expected = {
        **{"covost2:en_zh-CN": ("en", "zh"), "covost2:en_ja": ("en", "ja-mecab"), "covost2:zh-CN_en": ("zh", "13a")},
        **{"covost2:en_de": ("en", "13a"), "fleurs_translation:en_us-yue_hant_hk": ("en", "zh")},
    }
    for name, found in expected.items():
        task = find_task(name)
        tokenizer = bleu_metric(Convention(language=task.language)).tokenizer.signature()
        assert (task.source["source_language"], tokenizer[: len(found[1])]) == found, name


def test_translations(items) -> None:
    found = items["covost2:en_zh-CN"]
    assert [item.references for item in found] == [["句子0。"], ["句子1。"], ["句子2。"]]
    assert found[0].prompt == "Translate what is said into Chinese: <audio>"
    assert found[0].extra == {
        **{"language": "English", "target_language": "Chinese", "transcript": PROMPTS[0], "speaker": "c0ffee"}
    }
    spoken = items["fleurs_translation:en_us-ja_jp"]
    assert [item.references for item in spoken] == [["Japanese Satz 7."], ["Japanese Satz 7."], ["Japanese Satz 9."]]
    assert spoken[0].prompt == "Translate what is said into Japanese: <audio>"
    assert spoken[0].extra["transcript"] == "English Satz 7."


def test_air_bench(items) -> None:
    """Prompts are the benchmark's own; what it calls wav and has as FLAC is found; answers become letters."""
    first, grounding, two_answers = items["air_bench_foundation"]
    assert first.prompt == (
        "<audio>\nChoose the most suitable answer from options A, B, C, and D to respond the question in next line, you "
        "may only choose A or B or C or D.\nWhich of these is it?\nA. a dog\nB. a cat\nC. a bird\nD. a horse"
    )
    assert first.references == ["B"] and first.extra["category"] == "Speech_Grounding"
    assert first.extra["choices"] == {"A": "a dog", "B": "a cat", "C": "a bird", "D": "a horse"}
    assert grounding.recordings[0].endswith("Audio_Grounding_AudioGrounding/1.flac")
    assert two_answers.prompt.endswith("C. None\nD. None") and set(two_answers.extra["choices"]) == {"A", "B"}
    spoken, sound, mixed = items["air_bench_chat"]
    assert spoken.prompt == "<audio>\nWho speaks?" and spoken.references == ["A woman."]
    assert spoken.extra["meta_info"] == "A woman says a few words." and spoken.extra["question"] == "Who speaks?"
    assert [item.extra["category"] for item in (spoken, sound, mixed)] == ["speech", "sound", "speech_and_music"]
    assert find_task("air_bench_chat").source["judge"] == "air_bench"


def test_voicebench(items) -> None:
    """The question is spoken and nothing else is said; the judge is shown what was asked."""
    opened, asked = items["voicebench:commoneval"], items["voicebench_sd_qa:usa"]
    assert {item.prompt for item in opened} == {"<audio>"}
    assert [item.extra["question"] for item in opened] == PROMPTS and not opened[0].references
    assert [item.references for item in asked] == [["Paris"], ["1969"], ["salt"]]
    judges = [find_task(name).source["judge"] for name in ("voicebench:commoneval", "voicebench_sd_qa:usa")]
    assert judges == ["voicebench_open", "voicebench_qa"]
    assert [item.references for item in items["voicebench_openbookqa"]] == [["A"], ["D"], ["B"]]
    assert set(items["voicebench_mmsu:law"][0].extra["choices"]) == {"A", "B", "C", "D"}


def test_recordings_without_speech(items) -> None:
    """Made ones are the same every time, as loud as they are said to be; or they are all that lie in a folder."""
    made = list(find_task("no_speech").items())
    again = list(find_task("no_speech").items())
    for item, twin in zip(made, again, strict=True):
        waveform = item.recordings[0]["array"]
        assert np.array_equal(waveform, twin.recordings[0]["array"]) and waveform.dtype == np.float32
        assert len(waveform) == item.extra["duration_s"] * 16_000 and not item.references
        loudness = float(np.sqrt(np.mean(np.square(waveform))))
        quiet = "quiet" in item.extra["category"] or item.extra["category"] == "clicks"
        expected = 0.0 if item.extra["category"] == "silence" else 0.003 if quiet else 0.1
        assert loudness == pytest.approx(expected, rel=0.05)
        assert np.array_equal(load_waveform(item.recordings[0]), waveform)
    assert {item.extra["category"] for item in made} >= {"silence", "white noise", "brown noise", "hum", "clicks"}
    assert [item.id for item in items["no_speech"]] == ["office/0.wav", "office/1.wav", "office/2.wav"]
    assert {item.extra["category"] for item in items["no_speech"]} == {"office"}


def test_texts_written_choices_and_embedded_speech(items) -> None:
    assert all(not item.recordings for item in (*items["text_retention"], *items["text_choice"]))
    letters = [item.references[0] for item in items["text_choice"]]
    assert all(letters.count(letter) == len(letters) // 4 for letter in "ABCD")
    for item in items["text_choice"]:
        assert all(f"\n{letter}. {text}" in item.prompt for letter, text in item.extra["choices"].items())
    assert {item.extra["category"] for item in items["text_retention"]} >= {"prose", "code", "languages"}
    assert [item.references for item in items["slue_ted"]] == [[f"A talk, number {index}."] for index in range(ROWS)]
    assert len(items["unseen"]) == 10 and items["unseen"][0].references == ["Ten of clubs."]
    assert items["prompts"][0].prompt == TRANSCRIBE_PROMPT and items["prompts"][0].extra["duration_s"] > 0


# -------------------------------------------------------------------------------------------------------- names and table


def test_names_stand_for_tasks() -> None:
    """An alias for its tasks, a family for its usual configs, `family:*` for all of them."""
    assert [task.name for task in tasks_named(["asr"])] == group_tasks("open_asr") and len(
        group_tasks("open_asr")
    ) == 7
    assert [task.name for task in tasks_named(["unseen", "embedded"])][:2] == ["unseen", "prompts"]
    assert (
        len(tasks_named(["mls"])) == 7 and len(tasks_named(["fleurs"])) == 8 and len(tasks_named(["fleurs:*"])) == 102
    )
    assert len(tasks_named(["covost2:*"])) == 36 and len(tasks_named(["fleurs_translation:*"])) == 202
    assert {task.name for task in tasks_named(["air-bench"])} == {"air_bench_foundation", "air_bench_chat"}
    for alias in tables()["aliases"]:
        assert tasks_named([alias])


def test_a_language_names_a_config() -> None:
    expected = {
        **{"fleurs:de": "fleurs:de_de", "fleurs:zh": "fleurs:cmn_hans_cn", "mls:de": "mls:german"},
        **{"covost2:de-en": "covost2:de_en", "fleurs_translation:en-hi": "fleurs_translation:en_us-hi_in"},
        "common_voice:ta": "common_voice:ta",
    }
    assert {name: find_task(name).name for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("librispeech_claen", "Perhaps 'librispeech_clean'"),
        ("libri", "Perhaps 'librispeech_clean' or 'librispeech_other'"),
        ("fleurs", "comes in en_us, "),
        ("fleurs:xx", "no config 'xx'"),
        ("covost2:en_fr", "no config 'en_fr'"),
        ("prompts:de", "has no configs"),
        ("nonsense", "There are: prompts"),
    ],
)
def test_unknown_names_get_near_ones(name: str, hint: str) -> None:
    with pytest.raises(TaskError, match=hint):
        find_task(name)


def test_the_table_says_what_is_known_of_each() -> None:
    """Of every family: a kind, and where its facts were read or that they are unknown."""
    assert {entry["kind"] for entry in families().values()} == set(tables()["kinds"])
    for name, entry in tables()["datasets"].items():
        assert entry.get("checked") or entry.get("inherits"), name
        assert (entry.get("licence") == "unknown") == ("licence" in entry.get("unknown", [])), name
    shown = task_table()
    assert all(f"\n{family}" in f"\n{shown}" for family in families())
    assert "licence: CC-BY-NC-4.0" in shown and "unknown: licence" in shown


# ------------------------------------------------------------------------------------------------- the whole command

LIMIT = 2
#: A task of each kind, and of each way to read one.
SOME = ("ami", "earnings22", "fleurs_translation:en_us-ja_jp", "air_bench_foundation", "voicebench:commoneval")
SOME += ("slue_ted", "no_speech", "text_retention", "text_choice")
#: Systems that cannot answer, with a Whisper that hears English only, and what is said of them.
LEFT_OUT = {
    "fleurs:de_de": {"whisper": "hears English only, and de is spoken"},
    "mls:german": {"whisper": "hears English only, and de is spoken"},
    "covost2:en_zh-CN": {"whisper": "translates into English only, not into zh"},
    "fleurs_translation:en_us-ja_jp": {"whisper": "translates into English only, not into ja"},
    "text_choice": dict.fromkeys(("wrong_audio", "cascade"), "its questions have no recordings"),
}


def run(checkpoint: Path, folder: Path, tasks: tuple[str, ...], copies: dict[str, str], *options: object) -> None:
    given = [f"{task}={copies[task]}" for task in tasks if task in copies]
    common = ("--tasks", ",".join(tasks), "--data", *given, "--limit", LIMIT, "--max_new_tokens", 3)
    evaluate(checkpoint, folder, *common, *options)


def assert_answered(folder: Path, task: str, systems: set[str]) -> None:
    scores = scores_of(folder, task)
    assert set(scores) == systems
    for system, scored in scores.items():
        rows = rows_of(folder, task, system)
        assert rows and all(row["error"] is None for row in rows), rows
        assert len(rows) == scored["counts"]["items"] <= LIMIT
        assert set(scored["metrics"]) - {"rtfx"}


def test_tasks_of_every_kind_are_answered_and_scored(checkpoint, copies, tmp_path) -> None:
    run(checkpoint, tmp_path, SOME, copies, "--systems", "model")
    for task in SOME:
        assert_answered(tmp_path, task, {"model"})


@pytest.mark.slow
def test_every_system_that_can_answers_every_task(checkpoint, copies, tmp_path, capsys) -> None:
    every = (*COPIES, *EMBEDDED)
    run(checkpoint, tmp_path, every, copies)
    printed = capsys.readouterr().out
    for task in every:
        left_out = json.loads((tmp_path / "run.json").read_text())["tasks"][task]["left_out"]
        assert set(left_out) == set(LEFT_OUT.get(task, {}))
        for system, reason in LEFT_OUT.get(task, {}).items():
            assert reason in left_out[system] and f"{task}: {system} is left out: {left_out[system]}." in printed
        assert_answered(tmp_path, task, set(DEFAULT_SYSTEMS[find_task(task).kind]) - set(left_out))

"""Every task is read from a small copy in its benchmark's own format; names, aliases and the table itself."""

import json

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
from benchmark_copies import COPIES, EMBEDDED, ROWS, recordings
from evaluation_runs import evaluate, rows_of, scores_of

PROMPTS = [row["text"] for row in recordings()]
LEADERBOARD = [name for name in group_tasks("open_asr") if name != "earnings22"]
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


#: References of questions, in order.
REFERENCES = {
    **{name: [PROMPTS[0], PROMPTS[1], "ignore time segment in scoring", ""] for name in LEADERBOARD},
    "earnings22": [" ".join(PROMPTS)] * ROWS,
    "common_voice:en": PROMPTS,
    "mls:german": [text.lower() for text in PROMPTS],
    "fleurs:de_de": ["German Satz 7.", "German Satz 7.", "German Satz 9."],
    "covost2:en_zh-CN": ["句子0。", "句子1。", "句子2。"],
    "fleurs_translation:en_us-ja_jp": ["Japanese Satz 7.", "Japanese Satz 7.", "Japanese Satz 9."],
    "air_bench_foundation": ["B", "B", "B"],
    "air_bench_chat": ["A woman."] * ROWS,
    "voicebench_sd_qa:usa": ["Paris", "1969", "salt"],
    "voicebench_openbookqa": ["A", "D", "B"],
    "slue_ted": [f"A talk, number {index}." for index in range(ROWS)],
}
#: Prompt of the first question.
FIRST_PROMPTS = {
    **dict.fromkeys([*LEADERBOARD, "earnings22", "prompts"], TRANSCRIBE_PROMPT),
    "covost2:en_zh-CN": "Translate what is said into Chinese: <audio>",
    "fleurs_translation:en_us-ja_jp": "Translate what is said into Japanese: <audio>",
    "air_bench_foundation": "<audio>\nChoose the most suitable answer from options A, B, C, and D to respond the question in "
    "next line, you may only choose A or B or C or D.\nWhich of these is it?\nA. a dog\nB. a cat\nC. a bird\nD. a horse",
    "air_bench_chat": "<audio>\nWho speaks?",
    "voicebench:commoneval": "<audio>",
}
#: Facts about the first question, among others.
FIRST_EXTRAS = {
    "common_voice:en": {"language": "en", "speaker": "c0ffee"},
    "fleurs:de_de": {"language": "German", "gender": "female"},
    "covost2:en_zh-CN": {"language": "English", "target_language": "Chinese", "transcript": PROMPTS[0]},
    "fleurs_translation:en_us-ja_jp": {"target_language": "Japanese", "transcript": "English Satz 7."},
    "air_bench_foundation": {
        "category": "Speech_Grounding",
        "choices": {"A": "a dog", "B": "a cat", "C": "a bird", "D": "a horse"},
    },
    "air_bench_chat": {"meta_info": "A woman says a few words.", "question": "Who speaks?", "category": "speech"},
    "voicebench:commoneval": {"question": PROMPTS[0]},
    "voicebench_mmsu:law": {"choices": dict.fromkeys("ABCD", "")},
}


def test_questions_are_those_of_the_benchmark(items) -> None:
    """References are as they are written; what the leaderboard drops is there for scoring to drop and count."""
    for name, references in REFERENCES.items():
        assert [item.references for item in items[name]] == [[text] for text in references], name
    for name, prompt in FIRST_PROMPTS.items():
        assert items[name][0].prompt == prompt, name
    for name, extra in FIRST_EXTRAS.items():
        assert extra.items() <= items[name][0].extra.items(), name
    for name in (*LEADERBOARD, "earnings22"):
        task = find_task(name)
        assert (task.kind, task.metrics, task.normaliser, task.language) == ("asr", ("word_error",), "english", "en")
    judges = {"air_bench_chat": "air_bench", "voicebench:commoneval": "voicebench_open"}
    judges["voicebench_sd_qa:usa"] = "voicebench_qa"
    assert {name: find_task(name).source["judge"] for name in judges} == judges
    chunks = sorted(items["earnings22"], key=lambda item: item.extra["chunk_index"])
    assert [(item.extra["session"], item.extra["chunk_index"]) for item in chunks] == [
        ("4469669", n) for n in range(3)
    ]
    assert len(load_waveform(chunks[0].recordings[0])) == len(load_waveform(recordings()[0]["audio"]))
    _, grounding, two_answers = items["air_bench_foundation"]
    assert grounding.recordings[0].endswith("Audio_Grounding_AudioGrounding/1.flac")
    assert two_answers.prompt.endswith("C. None\nD. None") and set(two_answers.extra["choices"]) == {"A", "B"}
    categories = [item.extra["category"] for item in items["air_bench_chat"]]
    assert categories == ["speech", "sound", "speech_and_music"]
    assert all(not item.recordings for item in (*items["text_retention"], *items["text_choice"]))
    for item in items["text_choice"]:
        assert all(f"\n{letter}. {text}" in item.prompt for letter, text in item.extra["choices"].items())
    assert len(items["unseen"]) == 10 and items["unseen"][0].references == ["Ten of clubs."]


@pytest.mark.parametrize(
    ("name", "spoken", "language", "normaliser", "metric", "tokenizer"),
    [
        ("fleurs:de_de", None, "de", "basic", "word_error", "13a"),
        ("fleurs:cmn_hans_cn", None, "zh", "characters", "character_error", "zh"),
        ("fleurs:en_us", None, "en", "english", "word_error", "13a"),
        ("common_voice:ja", None, "ja", "characters", "character_error", "ja-mecab"),
        ("mls:polish", None, "pl", "basic", "word_error", "13a"),
        ("covost2:en_sv-SE", "en", "sv", "basic", "bleu", "13a"),
        ("covost2:zh-CN_en", "zh", "en", "english", "bleu", "13a"),
        ("fleurs_translation:en_us-cmn_hans_cn", "en", "zh", "characters", "bleu", "zh"),
    ],
)
def test_languages_decide_how_answers_are_scored(name, spoken, language, normaliser, metric, tokenizer) -> None:
    """BLEU's tokenizer is the target's; what is spoken is known, for Whisper's own decoder."""
    task = find_task(name)
    assert (task.language, task.normaliser, task.metrics) == (language, normaliser, (metric,))
    assert task.source.get("source_language") == spoken
    assert bleu_metric(Convention(language=task.language)).tokenizer.signature().startswith(tokenizer)


def test_recordings_without_speech(items) -> None:
    """Made ones are the same every time, as loud as they are said to be; or they are all that lie in a folder."""
    made = list(find_task("no_speech").items())
    for item, twin in zip(made, find_task("no_speech").items(), strict=True):
        waveform = item.recordings[0]["array"]
        assert np.array_equal(waveform, twin.recordings[0]["array"]) and waveform.dtype == np.float32
        assert len(waveform) == item.extra["duration_s"] * 16_000 and not item.references
        quiet = "quiet" in item.extra["category"] or item.extra["category"] == "clicks"
        expected = 0.0 if item.extra["category"] == "silence" else 0.003 if quiet else 0.1
        assert float(np.sqrt(np.mean(np.square(waveform)))) == pytest.approx(expected, rel=0.05)
        assert np.array_equal(load_waveform(item.recordings[0]), waveform)
    assert {item.extra["category"] for item in made} >= {"silence", "white noise", "brown noise", "hum", "clicks"}
    found = [(item.id, item.extra["category"]) for item in items["no_speech"]]
    assert found == [(f"office/{number}.wav", "office") for number in range(3)]


def test_names_stand_for_tasks() -> None:
    """An alias for its tasks, a family for its usual configs, `family:*` for all of them, a language for a config."""
    counts = {"asr": 7, "mls": 7, "fleurs": 8, "fleurs:*": 102, "covost2:*": 36, "fleurs_translation:*": 202}
    assert {name: len(tasks_named([name])) for name in counts} == counts
    assert [task.name for task in tasks_named(["asr"])] == group_tasks("open_asr")
    assert [task.name for task in tasks_named(["unseen", "embedded"])][:2] == ["unseen", "prompts"]
    assert all(tasks_named([alias]) for alias in tables()["aliases"])
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
        ("fleurs", "comes in en_us, "),
        ("fleurs:xx", "no config 'xx'"),
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


LIMIT = 2
#: A task of each kind, and of each way to read one.
SOME = ("ami", "earnings22", "fleurs_translation:en_us-ja_jp", "air_bench_foundation", "voicebench:commoneval")
SOME += ("slue_ted", "no_speech", "text_retention", "text_choice")
#: Systems that cannot answer, with a Whisper that hears English only, and what is said of them.
LEFT_OUT = {
    **{name: {"whisper": "hears English only, and de is spoken"} for name in ("fleurs:de_de", "mls:german")},
    "covost2:en_zh-CN": {"whisper": "translates into English only, not into zh"},
    "fleurs_translation:en_us-ja_jp": {"whisper": "translates into English only, not into ja"},
    "text_choice": dict.fromkeys(("wrong_audio", "cascade"), "its questions have no recordings"),
}


@pytest.mark.parametrize("tasks", [SOME, pytest.param((*COPIES, *EMBEDDED), marks=pytest.mark.slow)])
def test_every_system_that_can_answers_tasks_of_every_kind(tiny_checkpoint, copies, tmp_path, capsys, tasks) -> None:
    given = [f"{task}={copies[task]}" for task in tasks if task in copies]
    common = ("--tasks", ",".join(tasks), "--data", *given, "--limit", LIMIT, "--max_new_tokens", 3)
    evaluate(tiny_checkpoint, tmp_path, *common)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "run.json").read_text())["tasks"]
    for task in tasks:
        left_out, scores = record[task]["left_out"], scores_of(tmp_path, task)
        assert left_out.keys() == LEFT_OUT.get(task, {}).keys()
        for system, reason in LEFT_OUT.get(task, {}).items():
            assert reason in left_out[system] and f"{task}: {system} is left out: {left_out[system]}." in printed
        assert set(scores) == set(DEFAULT_SYSTEMS[find_task(task).kind]) - set(left_out)
        for system, scored in scores.items():
            rows = rows_of(tmp_path, task, system)
            assert rows and all(row["error"] is None for row in rows), rows
            assert len(rows) == scored["counts"]["items"] <= LIMIT
            assert set(scored["metrics"]) - {"rtfx"}

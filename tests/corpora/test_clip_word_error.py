"""Word error of single clips: where it comes from, what it is in, and that exactly the wrong transcripts go."""

import math
from pathlib import Path

import pytest
import soundfile
from audiollm.corpora.hypotheses import WhisperTranscriber
from audiollm.corpora.normalisers import normaliser_for
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.word_error import WordErrorArguments, WordErrorFilter, clip_word_error, settle_word_errors
from audiollm.processing.audio import load_waveform

#: Prompts that tiny.en transcribes without an error, so that whatever is wrong with them is the test's own doing.
HEARD_RIGHT = (
    "at-tone-time-exactly",
    "cannot-complete-as-dialed",
    "conf-extended",
    "conf-invalidpin",
    "conf-now-recording",
    "confbridge-invalid",
    "num-was-successfully",
    "transfer",
    "vm-msgforwarded",
    "vm-starmain",
    "vm-tocallback",
    "vm-toreply",
)
#: What some of them are said to say, and the word error that must be found.
WRONG = {
    "conf-extended": ("The conference has been ended.", 20.0),
    "conf-invalidpin": ("Your mailbox is full.", 150.0),
    "transfer": ("Please hold while I try.", 40.0),
    "vm-toreply": ("press 2 to send a reply", 100 / 6),
}


def settle(rows, **options):
    return list(settle_word_errors(rows, options.pop("audio_folder", "."), **options))


def row(text: str, **fields):
    return {"id": "a", "audio": "audio/a.flac", "text": text, "duration": 1.0, **fields}


def filter_of(limit: float) -> WordErrorFilter:
    return WordErrorFilter(WordErrorArguments(max_wer=limit), Path("."))


def is_kept(wer: float | None, limit: float) -> bool:
    return filter_of(limit).is_kept({"fields": {"wer": wer}})


# ---------------------------------------------------------------------------------------------------------- one clip


@pytest.mark.parametrize(
    ("reference", "hypothesis", "normaliser", "percent"),
    [
        ("the cat sat", "the cat sat", "english", 0.0),
        ("The cat, sat!", "the CAT sat.", "english", 0.0),
        ("the cat sat", "the hat sat down", "english", 200 / 3),
        ("the cat sat", "", "english", 100.0),
        ("yes", "no no no", "english", 300.0),
        ("Ten dollars.", "$10", "english", 0.0),
        ("Ten dollars.", "$10", "basic", 100.0),
        ("The cat, sat!", "the CAT sat.", "none", 100.0),
        ("Oui, été!", "oui été", "basic", 0.0),
        ("Oui, été!", "oui été", "none", 100.0),
        ("<unk> the cat [noise] sat", "the cat sat", "english", 0.0),
        ("<unk> the cat", "a the cat", "none", 100 / 3),
        ("今天天气很好。", "今天天氣很好", "basic", 100.0),
        ("今天天气很好。", "今天天氣很好", "characters", 100 / 6),
        ("今天 天气", "今天天气", "characters", 0.0),
    ],
)
def test_percent_by_hand(reference, hypothesis, normaliser, percent) -> None:
    assert clip_word_error(reference, hypothesis, normaliser) == pytest.approx(percent)


@pytest.mark.parametrize("reference", ["", "...", "[noise]", "<sil>", "-"])
def test_a_transcript_without_a_word_cannot_be_scored(reference) -> None:
    with pytest.raises(ValueError, match="no word left"):
        clip_word_error(reference, "something")
    (settled,) = settle([row(reference, pred_text="something")])
    assert settled["wer"] is None and settled["wer_source"] is None and settled["pred_text"] == "something"
    assert "no word left" in settled["wer_problem"] and not is_kept(settled["wer"], 1000.0)


@pytest.mark.parametrize(
    ("language", "normaliser"),
    [
        (None, "english"), ("en", "english"), ("en-GB", "english"), ("en_us", "english"), ("English", "english"),
        ("fr", "basic"), ("ko_kr", "basic"), ("german", "basic"), ("zh-CN", "characters"), ("cmn_hans_cn", "characters"),
        ("yue_hant_hk", "characters"), ("japanese", "characters"), ("th_th", "characters"),
    ],
)  # fmt: skip
def test_each_language_has_its_normaliser(language, normaliser) -> None:
    assert normaliser_for(language) == normaliser
    (settled,) = settle([row("été 好", pred_text="été 好", language=language)])
    assert (settled["normaliser"], settled["wer"]) == (normaliser, 0.0)


# --------------------------------------------------------------------------------------------------------- the limit


def test_the_limit_itself_is_kept() -> None:
    assert [is_kept(wer, 5.0) for wer in (0.0, 5.0, 5.0001, None)] == [True, True, False, False]
    assert is_kept(0.0, 0.0) and not is_kept(0.1, 0.0)


@pytest.mark.parametrize("limit", [-1, math.nan, math.inf])
def test_a_limit_is_a_number_of_percent(limit) -> None:
    with pytest.raises(ValueError, match=r"--max_wer is .*percent"):
        WordErrorArguments(max_wer=limit)


# ----------------------------------------------------------------------------------------- the corpus' own knowledge


def test_the_corpus_own_word_error_is_kept_as_it_is() -> None:
    settled = settle([row("a b c d", wer=25, pred_text="x y z"), row("a b", wer="50.0"), row("a", wer=0.0)])
    assert [one["wer"] for one in settled] == [25.0, 50.0, 0.0]
    assert {(one["model"], one["normaliser"], one["wer_source"], one["wer_problem"]) for one in settled} == {
        (None, None, "dataset", None)
    }
    assert [one["pred_text"] for one in settled] == ["x y z", None, None]
    assert [is_kept(one["wer"], 25.0) for one in settled] == [True, False, True]


def test_a_hypothesis_is_scored_against_the_transcript() -> None:
    rows = [row("The cat sat.", pred_text=text) for text in ("the cat sat", "the hat sat", "")]
    settled = settle(rows)
    assert [one["wer"] for one in settled] == pytest.approx([0.0, 100 / 3, 100.0])
    assert {(one["model"], one["normaliser"], one["wer_source"]) for one in settled} == {
        (None, "english", "hypothesis")
    }
    assert all("wer" not in one for one in rows)  # what was given stays as it was


def test_each_row_takes_what_it_has() -> None:
    rows = [row("a b", wer=math.nan, pred_text="a b"), row("a b", wer=None), row("a b", wer="", pred_text="a")]
    rows += [row("a b", wer=value) for value in (-1.0, math.inf, "much", True)]
    settled = settle(rows)
    assert [one["wer_source"] for one in settled[:3]] == ["hypothesis", None, "hypothesis"]
    assert "no 'wer', no 'pred_text', and no Whisper" in settled[1]["wer_problem"]
    for one in settled[3:]:
        assert one["wer"] is None and "expected a number of percent" in one["wer_problem"]


def test_fractions_become_percent() -> None:
    rows = [row("one two three four", wer=wer) for wer in (0.0, 0.25, 0.5, 0.07, 1.0)]
    settled = settle(rows, unit="fraction")
    assert [one["wer"] for one in settled] == [0.0, 25.0, 50.0, 7.0, 100.0]
    assert [one["wer"] for one in settle(rows, unit="percent")] == [0.0, 0.25, 0.5, 0.07, 1.0]


# ---------------------------------------------------------------------------------------------------- what is heard


@pytest.fixture(scope="module")
def clips(real_bases, tmp_path_factory):
    """Folder and rows of real clips, some with wrong transcripts and one with none; the folder keeps what is heard."""
    folder = tmp_path_factory.mktemp("clips")
    prompts = {one["id"]: one for one in load_studio_prompts("test")}
    rows = []
    for name in HEARD_RIGHT:
        soundfile.write(folder / f"{name}.flac", load_waveform(prompts[name]["audio"]), 16_000)
        text = WRONG[name][0] if name in WRONG else prompts[name]["text"]
        rows.append({"id": name, "audio": f"{name}.flac", "text": text, "duration": prompts[name]["duration_s"]})
    return folder, [*rows, {**rows[0], "id": "said nothing", "text": ""}]


def ears(real_bases, folder) -> WhisperTranscriber:
    return WhisperTranscriber(real_bases[0], batch_size=4, journal_folder=folder / "hypotheses", progress=False)


def test_exactly_the_wrong_transcripts_go(real_bases, clips) -> None:
    folder, rows = clips
    whisper = ears(real_bases, folder)
    settled = settle(rows, audio_folder=folder, whisper=whisper, total=len(rows))
    assert [one["id"] for one in settled] == [one["id"] for one in rows] and whisper.heard == len(HEARD_RIGHT)
    for one in settled[:-1]:
        assert one["wer"] == pytest.approx(WRONG[one["id"]][1] if one["id"] in WRONG else 0.0), one
        assert (one["model"], one["normaliser"], one["wer_source"]) == (real_bases[0], "english", "whisper")
        assert one["pred_text"] and one["wer_problem"] is None
    assert settled[-1]["wer"] is None and "no word left" in settled[-1]["wer_problem"]
    for limit, gone in ((5.0, set(WRONG)), (20.0, {"conf-invalidpin", "transfer"}), (200.0, set())):
        kept = {one["id"] for one in settled if is_kept(one["wer"], limit)}
        assert kept == set(HEARD_RIGHT) - gone, limit

    # The same question once more hears nothing again.
    again = ears(real_bases, folder)
    assert settle(rows, audio_folder=folder, whisper=again) == settled and again.heard == 0

    # Only what brings neither is heard, and the order stays.
    mixed = [
        {**rows[0], "wer": 3.0},
        rows[1],
        {**rows[2], "pred_text": rows[2]["text"]},
        rows[3],
        {**rows[4], "wer": 0},
    ]
    assert [(one["wer_source"], one["wer"]) for one in settle(mixed, audio_folder=folder, whisper=again)] == [
        ("dataset", 3.0),
        ("whisper", 0.0),
        ("hypothesis", 0.0),
        ("whisper", 150.0),
        ("dataset", 0.0),
    ]
    assert again.heard == 0

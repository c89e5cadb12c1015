"""Word times and confidence: CTC's alignment, across windows, the same from command, Python and server."""

import itertools
import json
import math
from pathlib import Path

import httpx
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.inference.ctc_alignment import align_words, confidence_of, viterbi_states
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.serving.service import ServingSettings
from audiollm.inference.spoken_pieces import SpokenLexicon
from audiollm.inference.transcribe import main
from audiollm.inference.transcribing import Transcriber, TranscribingSettings
from long_recordings import RATE, in_a_row, prompts
from servers import in_thread
from tiny_models import character_tokenizer, hearing_model

LETTERS = " abcdefghijklmnopqrstuvwxyz"
SECONDS_PER_SLOT = 0.08
SETTINGS = {"max_new_tokens": 12, "window_seconds": 2.0, "timestamps": "word"}
OPTIONS = ["--max_new_tokens", "12", "--window_seconds", "2", "--timestamps", "word", "--no_progress"]


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor) -> AudioLlmForConditionalGeneration:
    return hearing_model(tiny_bases, tiny_processor)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Several windows of speech, with long pauses."""
    path = tmp_path_factory.mktemp("sounds") / "row.wav"
    soundfile.write(path, in_a_row(prompts(3), [0.5, 3.0, 0.5, 0.5]), RATE, subtype="FLOAT")
    return path


# ------------------------------------------------------------------------------------------------------- the alignment


@pytest.mark.parametrize("seed", range(4))
def test_alignments_are_the_likeliest(seed: int) -> None:
    torch.manual_seed(seed)
    targets = [[1, 2], [1, 1], [2], [3, 1, 1]][seed]
    scores = (2 * torch.randn(6, 4)).log_softmax(dim=-1)
    extended = [0, *itertools.chain.from_iterable((one, 0) for one in targets)]

    def score(path) -> float:
        return sum(float(scores[slot, extended[state]]) for slot, state in enumerate(path))

    def allowed(path) -> bool:
        steps = [(one, two - one) for one, two in itertools.pairwise(path)]
        return (
            path[0] <= 1
            and path[-1] >= len(extended) - 2
            and all(
                step in (0, 1) or (step == 2 and one % 2 and extended[one + 2] != extended[one]) for one, step in steps
            )
        )

    paths = filter(allowed, itertools.product(range(len(extended)), repeat=len(scores)))
    best = max(map(score, paths))
    states = viterbi_states(scores, targets)
    assert states is not None and allowed(states.tolist())
    assert score(states.tolist()) == pytest.approx(best)


def test_too_few_slots_have_no_alignment() -> None:
    scores = torch.zeros(2, 3).log_softmax(dim=-1)
    assert viterbi_states(scores, [1, 2]) is not None and viterbi_states(scores, [1, 1]) is None


@pytest.fixture(scope="module")
def lexicon() -> SpokenLexicon:
    """Pieces are letters, and the space before a word."""
    tokenizer = character_tokenizer()
    return SpokenLexicon(tokenizer, sorted(tokenizer(LETTERS, add_special_tokens=False)["input_ids"]))


def heard(lexicon: SpokenLexicon, slots: str, certainty: float = 0.9) -> torch.Tensor:
    """Posteriors of one letter in each slot, "-" for the blank."""
    scores = torch.full((len(slots), 1 + len(lexicon.token_ids)), (1 - certainty) / len(lexicon.token_ids))
    for slot, letter in enumerate(slots):
        (token_id,) = lexicon.tokenizer(letter, add_special_tokens=False)["input_ids"]
        scores[slot, 0 if letter == "-" else 1 + lexicon.token_ids.index(token_id)] = certainty
    return scores.log()


def test_words_keep_their_marks_and_lie_around_their_spikes(lexicon) -> None:
    scores = heard(lexicon, "-" * 10 + " ah-- oh" + "-" * 10)
    ah, oh = align_words(lexicon, scores, "\u2014 Ah, OH! \u2026", SECONDS_PER_SLOT)
    assert (ah.text, oh.text) == ("\u2014 Ah,", "OH! \u2026")
    assert ah.confidence == oh.confidence == confidence_of(3 * math.log(0.9))
    spikes = [(number + 0.5) * SECONDS_PER_SLOT for number in (10, 12, 15, 17)]
    assert 0 < spikes[0] - ah.start_s < 0.4 and ah.end_s == oh.start_s
    assert spikes[1] - 0.1 < ah.end_s < spikes[2] and spikes[3] < oh.end_s < spikes[3] + 0.4
    for nothing in ("\u2026", ""):
        assert align_words(lexicon, scores, nothing, SECONDS_PER_SLOT) == ()


def test_confidence_grows_with_the_probability_and_figures_have_none(lexicon) -> None:
    sure = [confidence_of(math.log(one)) for one in (1e-9, 0.01, 0.3, 0.7, 0.99, 1.0)]
    assert sure == sorted(sure) and 0 < sure[0] < 0.4 and 0.9 < sure[-1] < 1
    scores = heard(lexicon, "-- a" + "-" * 12 + " o--")
    a, number, u = align_words(lexicon, scores, "a 1984 u", SECONDS_PER_SLOT)
    assert a.confidence > 0.6 > 0.4 > u.confidence and number.confidence is None
    assert a.end_s == number.start_s < number.end_s == u.start_s
    crowded = align_words(lexicon, heard(lexicon, "ab"), "many more letters", SECONDS_PER_SLOT)
    assert [word.confidence for word in crowded] == [0, 0, 0]
    assert crowded[0].start_s == 0 and crowded[-1].end_s == pytest.approx(2 * SECONDS_PER_SLOT)


# ------------------------------------------------------------------------------------------- through what people use


@pytest.mark.parametrize("ctc_weight", [0.0, 2.0])
def test_times_are_of_the_recording_across_windows(model, tiny_processor, recording, ctc_weight, tmp_path) -> None:
    settings = TranscribingSettings(**SETTINGS, ctc_weight=ctc_weight)
    transcriber = Transcriber(model, tiny_processor, settings, progress=False)
    (result,) = transcriber.transcribe([str(recording)], [tmp_path / "partial.jsonl"])
    assert len(result.passages) > 3 and len(result.words) > 3
    assert " ".join(word.text for word in result.words) == result.text
    times = [time for word in result.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    for passage in result.passages:
        inside = [passage.start_s <= one.start_s <= one.end_s <= passage.end_s + 1e-3 for one in passage.words]
        assert all(inside) and len(inside) == len(passage.text.split())
    assert all(0 <= word.confidence <= 1 for word in result.words)
    # The last window alone has the same words, earlier by its beginning.
    last = result.passages[-1]
    samples, _ = soundfile.read(recording, dtype="float32")
    part = samples[round(last.start_s * RATE) : round(last.end_s * RATE)]
    alone = AudioLlm(model, tiny_processor).transcribe(part, **SETTINGS, ctc_weight=ctc_weight, voice_activity=False)
    assert [word.text for word in alone.words] == [word.text for word in last.words]
    shifted = [word.start_s + last.start_s for word in alone.words]
    assert shifted == pytest.approx([word.start_s for word in last.words], abs=2e-3)
    # Words survive an interruption.
    transcriber._hear = lambda *args: pytest.fail("everything is known")
    assert list(transcriber.transcribe([str(recording)], [tmp_path / "partial.jsonl"])) == [result]


def test_command_python_and_server_give_the_same(model, tiny_processor, recording, tmp_path, run) -> None:
    for part in (model, tiny_processor):
        part.save_pretrained(tmp_path / "pieces")
    expected = AudioLlm(model, tiny_processor).transcribe(recording, **SETTINGS)
    call = [recording, "--model", tmp_path / "pieces", *OPTIONS]
    run(main, *call, "--output_dir", tmp_path / "o", "--output_format", "all")
    written = json.loads((tmp_path / "o/row.json").read_text())
    rows = [(one.text, one.start_s, one.end_s, one.confidence) for one in expected.words]
    assert [(one["word"], one["start_s"], one["end_s"], one["confidence"]) for one in written["words"]] == rows
    mean = pytest.approx(sum(row[3] for row in rows) / len(rows), abs=1e-3)
    assert written["confidence"] == expected.confidence == mean
    lines = [line.split("\t") for line in run(main, *call).out.splitlines()]
    assert [line[3] for line in lines] == [row[0] for row in rows]
    assert [float(line[0]) for line in lines] == pytest.approx([row[1] for row in rows], abs=0.0051)

    transcribing = TranscribingSettings(max_new_tokens=12, window_seconds=2.0)
    with in_thread(model, tiny_processor, ServingSettings("tiny", transcribing=transcribing)) as (url, _):

        def asked(*granularities: str, response_format: str = "verbose_json") -> httpx.Response:
            return httpx.post(
                f"{url}/v1/audio/transcriptions",
                data={"response_format": response_format, "timestamp_granularities[]": list(granularities)},
                files={"file": recording.read_bytes()},
                timeout=60,
            )

        both = asked("word", "segment").json()
        assert [(one["word"], one["start"], one["end"], one["confidence"]) for one in both["words"]] == rows
        assert [one["text"] for one in both["segments"]] == [" ".join(one.text.split()) for one in expected.passages]
        assert "segments" not in asked("word").json() and "words" not in asked("segment").json()
        assert asked("word", response_format="json").status_code == 400
        assert asked("letter").status_code == 400


def test_a_model_without_pieces_says_what_is_missing(checkpoint, recording, run) -> None:
    said = run(main, recording, "--model", checkpoint, *OPTIONS, code=2).err
    assert "CTC" in said and "--projector_readout pieces" in said

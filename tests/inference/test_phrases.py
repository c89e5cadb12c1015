"""Phrases of a window: where they end, what each is chosen from, and their times."""

import itertools
import re

import pytest
import soundfile
import torch
from audiollm.inference import phrases, transcribing
from audiollm.inference.answering import ask
from audiollm.inference.ctc_rescoring import CtcRescorer
from audiollm.inference.phrases import phrase_ends
from audiollm.inference.recording_encoder import RecordingEncoder
from audiollm.inference.transcribing import Transcriber, TranscribingSettings
from long_recordings import RATE, in_a_row, prompts
from tiny_models import hearing_model

STACK = 4
MAX_SLOTS = 12


def bare(text: str) -> str:
    """Return a text without the marks and capitals that the language model has added."""
    return re.sub(r"[,.?!]", "", text).lower()


def heard(num_slots: int, *quiet: tuple[int, int]) -> torch.Tensor:
    """CTC's log-probabilities that hear a piece in every slot, but none in stretches."""
    scores = torch.full((num_slots, 4), 0.02)
    scores[:, 2] = 0.94
    for first, end in quiet:
        scores[first:end] = torch.tensor([0.94, 0.02, 0.02, 0.02])
    return scores.log()


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor):
    return hearing_model(tiny_bases, tiny_processor)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "row.wav"
    soundfile.write(path, in_a_row(prompts(5), [0.3] * 6), RATE, subtype="FLOAT")
    return path


def test_a_phrase_ends_in_the_longest_gap_that_leaves_it_short_enough() -> None:
    assert phrase_ends(heard(MAX_SLOTS), None, STACK, MAX_SLOTS) == [MAX_SLOTS]
    assert phrase_ends(heard(20, (6, 7), (8, 11), (14, 19)), None, STACK, MAX_SLOTS) == [10, 20]
    # The first third of a phrase is not searched, and where nothing is quiet, the likeliest slot ends it.
    scores = heard(20, (1, 4))
    scores[7, 0] += 1
    assert phrase_ends(scores, None, STACK, MAX_SLOTS)[0] == 7


def test_letters_say_that_a_gap_between_pieces_is_none() -> None:
    pieces = heard(20, (5, 11))
    letters = torch.full((40, 5), 0.02)
    letters[:, 0] = 0.92
    assert phrase_ends(pieces, letters.log(), STACK, MAX_SLOTS) == [8, 20]
    spelled = letters.clone()
    spelled[2 * 6 : 2 * 10] = torch.tensor([0.02, 0.02, 0.92, 0.02, 0.02])
    assert phrase_ends(pieces, spelled.log(), STACK, MAX_SLOTS) == [6, 11, 20]
    spelled[2 * 10, :] = torch.tensor([0.02, 0.92, 0.02, 0.02, 0.02])  # a space is a gap as well
    assert phrase_ends(pieces, spelled.log(), STACK, MAX_SLOTS) == [6, 11, 20]


@pytest.mark.parametrize("length", [1, 13, 150, 375])
def test_phrases_cover_a_window_whatever_is_heard(length: int) -> None:
    torch.manual_seed(length)
    scores = (3 * torch.randn(length, 5)).log_softmax(dim=-1)
    ends = phrase_ends(scores, (3 * torch.randn(2 * length - 1, 6)).log_softmax(dim=-1), STACK, MAX_SLOTS)
    lengths = [end - first for first, end in zip([0, *ends], ends)]
    assert ends[-1] == length and all(0 < one <= MAX_SLOTS for one in lengths)


def transcribed(model, processor, recording, **settings):
    transcriber = Transcriber(model, processor, TranscribingSettings(**settings), progress=False)
    (transcript,) = transcriber.transcribe([str(recording)])
    return transcript


def test_a_window_is_heard_as_a_whole_and_written_phrase_by_phrase(
    model, tiny_processor, recording, monkeypatch
) -> None:
    monkeypatch.setattr(phrases, "PHRASE_SECONDS", 2.0)
    befores, frames = [], []
    choose, encode = CtcRescorer.best, model.model.encode_audio

    def choosing(self, *args, before, **kwargs):
        befores.extend(before)
        return choose(self, *args, before=before, **kwargs)

    def encoding(features, mask):
        frames.append(int(mask.sum()))
        return encode(features, mask)

    monkeypatch.setattr(CtcRescorer, "best", choosing)
    monkeypatch.setattr(model.model, "encode_audio", encoding)
    whole = transcribed(model, tiny_processor, recording, voice_activity=False, max_new_tokens=12, timestamps="word")
    assert frames == [round(whole.seconds * 100)]
    times = [(one.start_s, one.end_s) for one in whole.passages]
    assert len(times) >= whole.seconds / 2 and times[0][0] == 0 and times[-1][1] == whole.seconds
    assert all(first[1] == second[0] for first, second in itertools.pairwise(times))
    assert all(end - start <= 2.0 + 0.001 for start, end in times)
    texts = [bare(one.text) for one in whole.passages]
    assert list(map(bare, befores)) == [" ".join(filter(None, texts[:number])) for number in range(len(texts))]
    for passage in whole.passages:
        for word in passage.words:
            assert passage.start_s - 0.001 <= word.start_s <= word.end_s <= passage.end_s + 0.001
    assert whole.words


def test_no_pass_of_the_encoder_hears_more_than_its_bound(model, tiny_processor, recording, monkeypatch) -> None:
    frames, encode = [], model.model.encode_audio

    def encoding(features, mask):
        frames.append(mask.numel())
        return encode(features, mask)

    monkeypatch.setattr(model.model, "encode_audio", encoding)
    options = {"window_seconds": 2.0, "max_new_tokens": 8, "voice_activity": False, "batch_size": 8}
    at_once = transcribed(model, tiny_processor, recording, **options)
    monkeypatch.setattr(transcribing, "ENCODED_SECONDS", 5.0)
    (most_at_once, *_), passes = frames[:], len(frames)
    assert transcribed(model, tiny_processor, recording, **options).text == at_once.text
    assert max(frames[passes:]) < most_at_once and len(frames) > 2 * passes


def test_windows_of_a_model_without_ctc_stay_short_and_whole(model, tiny_model, tiny_processor, recording) -> None:
    direct = transcribed(tiny_model, tiny_processor, recording, max_new_tokens=4)
    assert direct.made_with["window_seconds"] == transcribing.SHORT_WINDOW_SECONDS
    assert max(one.end_s - one.start_s for one in direct.passages) > phrases.PHRASE_SECONDS / 2
    pieces = transcribed(model, tiny_processor, recording, max_new_tokens=4)
    assert pieces.made_with["window_seconds"] == transcribing.WINDOW_SECONDS
    greedy = transcribed(model, tiny_processor, recording, max_new_tokens=4, ctc_weight=0.0)
    assert [one.end_s for one in greedy.passages] == [one.end_s for one in pieces.passages]


def test_the_language_model_reads_what_was_said_before(model, tiny_processor) -> None:
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    candidates = [[rescorer._heard("ab"), rescorer._heard("cd")]]
    (alone,), (behind,) = rescorer._with_language(candidates), rescorer._with_language(candidates, ["fg hi"])
    assert behind[0].num_lm_tokens > alone[0].num_lm_tokens
    assert behind[0].lm_logprob - behind[1].lm_logprob != pytest.approx(alone[0].lm_logprob - alone[1].lm_logprob)


def test_a_long_clip_is_chosen_as_its_phrases_are(model, tiny_processor, recording, monkeypatch) -> None:
    waveform = tiny_processor.load_audio(str(recording))[: 7 * RATE]
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    encoder = RecordingEncoder(model, tiny_processor)

    def chosen(*clips) -> list[str]:
        inputs = tiny_processor.apply_chat_template(
            [ask("<audio>\nTranscribe.", clip) for clip in clips],
            tokenize=True,
            add_generation_prompt=True,
            padding_side="left",
        )
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return [one.text for one in rescorer.choose(**texts, **encoder(clips), bounds=[8] * len(clips))]

    monkeypatch.setattr(phrases, "PHRASE_SECONDS", 30.0)
    whole, short = chosen(waveform, waveform[:RATE])
    monkeypatch.setattr(phrases, "PHRASE_SECONDS", 2.0)
    parts, still_short = chosen(waveform, waveform[:RATE])
    assert parts != whole and still_short == short
    settings = TranscribingSettings(
        voice_activity=False, max_new_tokens=8, ctc_weight=1.0, prompt="<audio>\nTranscribe."
    )
    soundfile.write(recording.with_name("part.wav"), waveform, RATE, subtype="FLOAT")
    (transcript,) = Transcriber(model, tiny_processor, settings, progress=False).transcribe(
        [str(recording.with_name("part.wav"))]
    )
    assert bare(parts) == " ".join(bare(one.text) for one in transcript.passages if one.text)

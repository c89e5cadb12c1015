"""The listening report: its parts, its control, and Whisper's own decoder on what the adapter heard."""

import numpy as np
import pytest
import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.listening import evaluate_listening, swapped, transcribe, whisper_transcripts
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.processing.audio import load_waveform
from tiny_models import character_tokenizer, save_audio_base
from transformers import WhisperFeatureExtractor

SAMPLING_RATE_HZ = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(int(seconds * SAMPLING_RATE_HZ))).astype(np.float32)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 50])
def test_every_clip_gets_another_and_each_is_used_once(count: int) -> None:
    clips = list(range(count))
    wrong = swapped(clips)
    assert sorted(wrong) == clips
    assert all(one != other for one, other in zip(clips, wrong))


@pytest.mark.parametrize("clips", [[], ["a"]])
def test_fewer_than_two_cannot_be_swapped(clips) -> None:
    with pytest.raises(ValueError, match="at least two clips"):
        swapped(clips)


def test_the_report_has_all_its_parts(tiny_model, tiny_processor) -> None:
    clips = [noise(0.3 + 0.2 * index, index) for index in range(5)]
    references = ["yes", "the star", "...", "goodbye", "hello"]
    report = evaluate_listening(
        tiny_model, tiny_processor, references, clips, max_new_tokens=6, batch_size=2, progress=False
    )
    assert report.hypotheses == transcribe(
        tiny_model, tiny_processor, clips, max_new_tokens=6, batch_size=2, progress=False
    )
    assert report.control_hypotheses == transcribe(
        tiny_model, tiny_processor, swapped(clips), max_new_tokens=6, batch_size=2, progress=False
    )
    assert report.hypotheses != report.control_hypotheses
    assert len(report.decoder_hypotheses) == 5
    for score, hypotheses in (
        (report.adapter, report.hypotheses),
        (report.control, report.control_hypotheses),
        (report.decoder, report.decoder_hypotheses),
    ):
        assert score == score_word_error(references, hypotheses)
        assert (score.clips, score.skipped, score.reference_words) == (4, 1, 5)
    assert report.to_dict() == {
        "word_error": report.adapter.to_dict(),
        "wrong_audio_control": report.control.to_dict(),
        "whisper_own_decoder": report.decoder.to_dict(),
    }


def test_the_decoder_may_be_left_out(tiny_model, tiny_processor) -> None:
    report = evaluate_listening(
        tiny_model, tiny_processor, ["a", "b"], [noise(0.3), noise(0.4)], with_decoder=False, progress=False
    )
    assert report.decoder is None and report.decoder_hypotheses is None
    assert report.to_dict()["whisper_own_decoder"] is None


def test_each_clip_may_have_its_own_prompt(tiny_model, tiny_processor) -> None:
    clips, prompts = [noise(0.3), noise(0.4, 1)], ["Say: <audio>", "<audio>\nWhat?"]
    both = transcribe(tiny_model, tiny_processor, clips, prompts, max_new_tokens=6, progress=False)
    one_by_one = [
        answer(tiny_model, tiny_processor, [ask(prompt, clip)], max_new_tokens=6)[0]
        for prompt, clip in zip(prompts, clips)
    ]
    assert both == one_by_one
    with pytest.raises(ValueError, match="1 prompts for 2 clips"):
        transcribe(tiny_model, tiny_processor, clips, prompts[:1], progress=False)


def test_what_cannot_be_scored_is_refused_before_listening(tiny_model, tiny_processor) -> None:
    clips = [noise(0.3), noise(0.4)]
    for references, message in ((["a"], "1 references for 2 clips"), (["...", "-"], "No reference has a word")):
        with pytest.raises(ValueError, match=message):
            evaluate_listening(tiny_model, tiny_processor, references, clips)


def test_a_long_clip_is_cut_where_the_adapters_windows_are(tmp_path, tiny_processor) -> None:
    whisper = save_audio_base(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    long = noise(61.0)
    pieces = [
        long[: 30 * SAMPLING_RATE_HZ],
        long[30 * SAMPLING_RATE_HZ : 60 * SAMPLING_RATE_HZ],
        long[60 * SAMPLING_RATE_HZ :],
    ]
    clips = [noise(0.5, 1), long, noise(0.7, 2)]
    heard = whisper_transcripts(whisper, tiny_processor, clips, batch_size=2, progress=False)
    expected = whisper_transcripts(whisper, tiny_processor, [clips[0], *pieces, clips[2]], progress=False)
    assert all(expected) and len(set(expected)) > 1
    assert heard == [expected[0], " ".join(expected[1:4]), expected[4]]


# --------------------------------------------------------------------------------------------------- the real pair


@pytest.fixture(scope="module")
def prompts():
    rows = load_studio_prompts("validation").filter(lambda row: len(row["text"].split()) > 2).sort("duration_s")
    return rows.select(range(3))


def test_whispers_own_decoder_transcribes(real_bases, real_processor, prompts) -> None:
    heard = whisper_transcripts(real_bases[0], real_processor, list(prompts["audio"]), progress=False)
    assert score_word_error(prompts["text"], heard).word_error <= 0.2


def test_real_speech_past_thirty_seconds_is_heard(real_bases, real_processor, prompts) -> None:
    extractor = real_processor.feature_extractor
    assert isinstance(extractor, WhisperFeatureExtractor)
    spoken = [load_waveform(audio) for audio in prompts["audio"]]
    gap = np.zeros(extractor.n_samples - len(spoken[0]), dtype=np.float32)
    (heard,) = whisper_transcripts(
        real_bases[0], real_processor, [np.concatenate([spoken[0], gap, spoken[1]])], progress=False
    )
    expected = f"{prompts[0]['text']} {prompts[1]['text']}"
    assert score_word_error([expected], [heard]).word_error <= 0.3
    assert torch.is_grad_enabled()


def test_a_transcript_is_no_longer_than_its_clip_allows(tiny_model, tiny_processor) -> None:
    clips = [
        np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)
        for seed, length in ((0, 1600), (1, 48_000))
    ]
    tiny_model.generation_config.eos_token_id = None  # it would talk for ever
    heard = [transcribe(tiny_model, tiny_processor, [clip], progress=False)[0] for clip in clips]
    lengths = [len(tiny_processor.tokenizer(text)["input_ids"]) for text in heard]
    assert lengths[0] <= 8 + 1 and lengths[1] > lengths[0]
    (unbounded,) = answer(tiny_model, tiny_processor, [ask("<audio>", clips[0])], max_new_tokens=40)
    assert len(tiny_processor.tokenizer(unbounded)["input_ids"]) > 20

"""Transcripts that the language model and CTC choose together: scores that are what they say, and options that bite."""

import copy
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmPipeline
from audiollm.inference import ctc_rescoring, text_likelihood
from audiollm.inference.answering import answer, ask
from audiollm.inference.ctc_rescoring import (
    DEFAULT_CTC_WEIGHT,
    STORED_SETTINGS,
    WRITTEN_CANDIDATE,
    Candidate,
    CtcRescorer,
    answer_end,
    best_of,
    generation_prompt,
)
from audiollm.inference.letter_search import add_words
from audiollm.inference.recording_encoder import RecordingEncoder
from audiollm.inference.spoken_pieces import SpokenLetters, spoken_form
from audiollm.inference.streaming import StopWhenSet
from audiollm.inference.text_likelihood import text_logprobs
from audiollm.inference.transcribing import Transcriber, TranscribingSettings
from tiny_models import hearing_model

RATE_HZ = 16_000
PROMPT = "<audio>\nTranscribe the speech."
#: So much that the language model has no say, and so little that CTC has none.
MUCH, LITTLE = 1e6, 1e-9
SECONDS = (0.9, 0.4, 1.6)
BOUNDS = [9, 5, 14]


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor) -> AudioLlmForConditionalGeneration:
    return hearing_model(tiny_bases, tiny_processor)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def checkpoint(model, tiny_processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def noise(seconds: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(int(seconds * RATE_HZ))).astype(np.float32)


def inputs_of(model, processor, clips, prompt: str = PROMPT) -> dict[str, torch.Tensor]:
    """Return the rescorer's inputs for clips, a row each."""
    inputs = processor.apply_chat_template(
        [ask(prompt, clip) for clip in clips], tokenize=True, add_generation_prompt=True, padding_side="left"
    )
    return {name: inputs[name] for name in ("input_ids", "attention_mask")} | RecordingEncoder(model, processor)(clips)


def slots_of(model, inputs) -> torch.Tensor:
    """CTC's log-probabilities of one row, by the projector's own parts."""
    projector = model.model.multi_modal_projector
    audio = (inputs["encoded_audio"], inputs["encoded_audio_lengths"])
    return projector.log_probabilities(*audio, model.get_input_embeddings().weight)


@torch.inference_mode()
def plain_logprob(model, tokenizer, beginning: list[int], candidate: Candidate) -> float:
    """Return the base's log-probability of a candidate's spoken form as a sentence, behind a beginning."""
    sentence = spoken_form(candidate.text)
    sentence = sentence[:1].upper() + sentence[1:] + "." * bool(sentence)
    said = torch.tensor([tokenizer(sentence, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    ids = torch.cat([torch.tensor([beginning]), said], dim=1)
    scores = model(input_ids=ids).logits[0, len(beginning) - 1 : -1].log_softmax(dim=-1)
    return float(scores.gather(-1, said[0, :, None]).sum())


def test_scores_are_those_of_a_plain_forward_and_of_ctc_loss(model, tiny_processor, clips) -> None:
    inputs = inputs_of(model, tiny_processor, clips[:1])
    (candidates,) = CtcRescorer(model, tiny_processor.tokenizer, 1.0).candidates(**inputs, bounds=[9])
    slots = slots_of(model, inputs)
    lexicon = model.model.multi_modal_projector.readout.lexicon.nonzero().flatten().tolist()
    assert len(candidates) > 6 and len({one.text for one in candidates}) == len(candidates)
    assert {one.is_finished for one in candidates} == {True, False}
    asked, begun = (
        tiny_processor.apply_chat_template(ask(PROMPT, clips[0]), tokenize=True, add_generation_prompt=begins)
        for begins in (False, True)
    )
    beginning = begun["input_ids"][0, asked["input_ids"].shape[1] :].tolist()
    for one in candidates:
        assert one.lm_logprob == pytest.approx(
            plain_logprob(model, tiny_processor.tokenizer, beginning, one), abs=1e-3
        )
        letters = (
            [] if not spoken_form(one.text) else tiny_processor.tokenizer(" " + spoken_form(one.text))["input_ids"]
        )
        target = [lexicon.index(letter) + 1 for letter in letters if letter in lexicon]
        loss = torch.nn.functional.ctc_loss(
            slots[:, None], torch.tensor([target], dtype=torch.long), [len(slots)], [len(target)], reduction="sum"
        )
        assert one.ctc_logprob == pytest.approx(-loss.item(), abs=1e-3)


def test_letters_have_a_say_where_the_model_reads_them(model, tiny_bases, tiny_processor, clips, monkeypatch) -> None:
    spelling = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=4, projector_readout="pieces", projector_letters="abcdefghijklmnopqrstuvwxyz'"
    )
    spelling.load_state_dict(model.state_dict(), strict=False)
    inputs = inputs_of(model, tiny_processor, clips)
    plain = CtcRescorer(model, tiny_processor.tokenizer, 1.0).candidates(**inputs, bounds=BOUNDS)
    assert {one.letter_logprob for row in plain for one in row} == {None}
    rescorer = CtcRescorer(spelling, tiny_processor.tokenizer, 1.0)
    rows = rescorer.candidates(**inputs, bounds=BOUNDS)
    for row, clip in zip(rows, clips):  # as those of the clip alone
        (alone,) = rescorer.candidates(**inputs_of(model, tiny_processor, [clip]), bounds=BOUNDS[:1])
        own = {one.text: one.letter_logprob for one in alone}
        assert all(one.letter_logprob == pytest.approx(own[one.text], abs=1e-2) for one in row if one.text in own)
    readout = spelling.model.multi_modal_projector.letters
    with torch.inference_mode():
        scores, slots = readout(inputs["encoded_audio"][:1], inputs["encoded_audio_lengths"][:1])
    own_scores = scores[0, : int(slots[0])]
    for one in rows[0]:
        known = " abcdefghijklmnopqrstuvwxyz'"
        target = [1 + known.index(letter) for letter in spoken_form(one.text) if letter in known]
        loss = torch.nn.functional.ctc_loss(
            own_scores[:, None], torch.tensor([target]), [len(own_scores)], [len(target)], reduction="sum"
        )
        assert one.letter_logprob == pytest.approx(-loss.item() if loss.isfinite() else -5.0 * len(target), abs=1e-2)
    # Fewer are the likeliest of all that the search has followed, letters counted, behind what the model has written.
    written, *own = rescorer.candidates(**inputs_of(spelling, tiny_processor, clips[:1]), bounds=BOUNDS[:1])[0]
    monkeypatch.setattr(ctc_rescoring, "NUM_CTC_CANDIDATES", 3)
    fewer = rescorer.candidates(**inputs_of(spelling, tiny_processor, clips[:1]), bounds=BOUNDS[:1])[0]
    assert [one.text for one in fewer] == [one.text for one in (written, *own[:3])]
    assert own == sorted(own, key=lambda one: one.heard_logprob, reverse=True) and len(own) > 3
    monkeypatch.setattr(ctc_rescoring, "LETTER_SHARE", MUCH)
    heard = [one for one in rows[0] if spoken_form(one.text)]
    assert best_of(rows[0], 1.0).text in ("", max(heard, key=lambda one: one.letter_logprob).text)


def test_texts_of_known_words_are_candidates(model, tiny_bases, tiny_processor, clips, monkeypatch) -> None:
    monkeypatch.setattr(ctc_rescoring, "LETTER_SHARE", MUCH)
    spelling = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=4, projector_readout="pieces", projector_letters="abcdefghijklmnopqrstuvwxyz'"
    )
    spelling.load_state_dict(model.state_dict(), strict=False)
    inputs = inputs_of(model, tiny_processor, clips[:1])
    before = CtcRescorer(spelling, tiny_processor.tokenizer, 1.0).candidates(**inputs, bounds=[9])
    add_words(spelling, ["zigzag"])
    readout = spelling.model.multi_modal_projector.letters
    with torch.no_grad():  # which hears nothing but letters of that word
        readout.linear_out.weight.zero_()
        readout.linear_out.bias.fill_(-20.0)
        readout.linear_out.bias[[0, *SpokenLetters(spelling.config.projector_letters).encode("zigzag")]] = 0.0
    rescorer = CtcRescorer(spelling, tiny_processor.tokenizer, MUCH)
    after = rescorer.candidates(**inputs, bounds=[9])
    assert "Zigzag" in {one.text for one in after[0]} - {one.text for one in before[0]}
    scores = rescorer._heard_by_ctc(
        *(inputs[name] for name in ("input_ids", "encoded_audio", "encoded_audio_lengths"))
    )
    silent = torch.full_like(scores[0][0], -30.0)
    silent[:, rescorer.lexicon.encode("zigzag")] = 0.0
    assert "zigzag" in rescorer.text_of(silent, num_texts=2, num_prefixes=2, letters=scores[0].letters)


def test_texts_that_ctc_finds_hopeless_are_not_read(model, tiny_processor, clips, monkeypatch) -> None:
    monkeypatch.setattr(ctc_rescoring, "HOPELESS_NATS", 0.0)
    inputs = inputs_of(model, tiny_processor, clips[:1])
    (candidates,) = CtcRescorer(model, tiny_processor.tokenizer, 1.0).candidates(**inputs, bounds=[9])
    best = max(one.ctc_logprob for one in candidates)
    assert [math.isfinite(one.lm_logprob) for one in candidates] == [one.ctc_logprob == best for one in candidates]


def test_several_passes_score_as_one(model, tiny_processor, clips, monkeypatch) -> None:
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    inputs = inputs_of(model, tiny_processor, clips)
    expected = rescorer.candidates(**inputs, bounds=BOUNDS)
    monkeypatch.setattr(text_likelihood, "MAX_SCORED_POSITIONS", 1)
    monkeypatch.setattr(text_likelihood, "MAX_HEAD_POSITIONS", 3)
    assert_alike(rescorer.candidates(**inputs, bounds=BOUNDS), expected)
    monkeypatch.setattr(text_likelihood, "TAKES_ANY_MASK", ())
    assert_alike(rescorer.candidates(**inputs, bounds=BOUNDS), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_texts_that_begin_alike_score_as_each_alone(attention: str, model, monkeypatch) -> None:
    monkeypatch.setattr(model.config.text_config, "_attn_implementation", attention)
    group = [[5, 6, 7, 8], [5, 6, 9], [5, 10, 11, 12, 13]]
    (together,) = text_logprobs(model, [[1, 2]], [group])
    alone = [text_logprobs(model, [[1, 2]], [[text]])[0][0] for text in group]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_chat_begins_and_answers_end_as_in_the_template(tiny_processor) -> None:
    tokenizer = copy.deepcopy(tiny_processor.tokenizer)
    first, last, other = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    tokenizer.bos_token = "a"
    tokenizer.chat_template = (
        "a{% for one in messages %}[{{ one.role }}]{{ one.content }}b{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert generation_prompt(tokenizer) == tokenizer("a[assistant]", add_special_tokens=False)["input_ids"]
    assert answer_end(tokenizer, [other, last]) == last
    assert (answer_end(tokenizer, [other, first]), answer_end(tokenizer, [])) == (other, None)


def test_lengths_are_rounded_up_to_few() -> None:
    rounded = [text_likelihood.rounded_up(length) for length in range(1, 1025)]
    assert all(length <= one <= 1.125 * length for length, one in enumerate(rounded, start=1))
    assert rounded[:16] == list(range(1, 17)) and len(set(rounded)) == 16 + 6 * 8


def assert_alike(found: list[list[Candidate]], expected: list[list[Candidate]]) -> None:
    for some, others in zip(found, expected, strict=True):
        assert [(one.text, one.token_ids, one.is_finished) for one in some] == [
            (one.text, one.token_ids, one.is_finished) for one in others
        ]
        for one, other in zip(some, others):
            assert one.lm_logprob == pytest.approx(other.lm_logprob, abs=1e-3)
            assert one.ctc_logprob == pytest.approx(other.ctc_logprob, abs=1e-3)


def test_a_row_is_what_it_is_alone(model, tiny_processor, clips) -> None:
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    together = rescorer.candidates(**inputs_of(model, tiny_processor, clips), bounds=BOUNDS)
    alone = [
        rescorer.candidates(**inputs_of(model, tiny_processor, [clip]), bounds=[bound])[0]
        for clip, bound in zip(clips, BOUNDS)
    ]
    assert_alike(together, alone)
    for row, bound in zip(together, BOUNDS):
        written = [one for one in row if not one.is_finished]
        assert written and all(len(one.token_ids) == bound for one in written)


def test_little_weight_leaves_it_to_the_language_model_and_much_to_ctc(model, tiny_processor, clips) -> None:
    inputs = inputs_of(model, tiny_processor, clips[:1])
    by_ctc = CtcRescorer(model, tiny_processor.tokenizer, MUCH)
    (row,) = by_ctc.candidates(**inputs, bounds=[9])
    (best,) = by_ctc.choose(**inputs, bounds=[9])
    assert best.ctc_logprob == max(one.ctc_logprob for one in row)
    by_lm = CtcRescorer(model, tiny_processor.tokenizer, LITTLE)
    (row,) = by_lm.candidates(**inputs, bounds=[9])
    (best,) = by_lm.choose(**inputs, bounds=[9])
    likely = {one.text: one.language_score for one in row if one.ctc_logprob > -math.inf}
    assert best.text == max(likely, key=lambda text: likely[text])


def test_no_weight_is_generate_alone(model, tiny_processor, clips) -> None:
    asked = [ask(PROMPT, clip) for clip in clips]
    greedy = answer(model, tiny_processor, asked, max_new_tokens=8)
    assert answer(model, tiny_processor, asked, max_new_tokens=8, ctc_weight=0.0) == greedy
    heard = answer(model, tiny_processor, asked, max_new_tokens=8, ctc_weight=MUCH)
    assert heard != greedy
    one_by_one = [answer(model, tiny_processor, [one], max_new_tokens=8, ctc_weight=MUCH)[0] for one in asked]
    assert heard == one_by_one


def test_adapters_and_rows_of_several_windows(model, tiny_processor) -> None:
    clip = noise(31.0, 5)
    inputs = inputs_of(model, tiny_processor, [clip])
    assert len(inputs["encoded_audio"]) == 2
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    (row,) = rescorer.candidates(**inputs, bounds=[4])
    (without,) = rescorer.candidates(**inputs, bounds=[4], adapter_names=[None])
    assert row[0].token_ids != without[0].token_ids, "the adapter acts on what the language model writes"
    assert row[-1].ctc_logprob == pytest.approx(without[-1].ctc_logprob, abs=1e-3), "CTC comes before any adapter"


@pytest.mark.parametrize("writes", [True, False])
def test_what_is_stopped_is_not_scored(writes: bool, model, tiny_processor, clips, monkeypatch) -> None:
    monkeypatch.setattr(model.generation_config, STORED_SETTINGS, {WRITTEN_CANDIDATE: writes}, raising=False)
    stopped = threading.Event()
    stopped.set()
    inputs = inputs_of(model, tiny_processor, clips)
    rows = CtcRescorer(model, tiny_processor.tokenizer, 1.0).candidates(
        **inputs, bounds=BOUNDS, stop=StopWhenSet(stopped)
    )
    assert [len(row) for row in rows] == [1] * len(clips)
    assert all(len(one.token_ids) <= 1 and math.isnan(one.lm_logprob) for (one,) in rows)


# ------------------------------------------------------------------------------------------------ what is refused


def test_rows_without_audio_and_other_audio_are_refused(model, tiny_processor, clips) -> None:
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    inputs = inputs_of(model, tiny_processor, clips[:1])
    twice = {name: inputs[name].repeat(2, 1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="audio slots, but the audio gives"):
        rescorer.candidates(**{**inputs, **twice}, bounds=[4, 4])
    twice["input_ids"][1].masked_fill_(twice["input_ids"][1] == model.config.audio_token_id, 10)
    with pytest.raises(ValueError, match="Row 1 has no audio"):
        rescorer.candidates(**{**inputs, **twice}, bounds=[4, 4])
    with pytest.raises(ValueError, match="ctc_weight is 0: there is nothing to choose by"):
        CtcRescorer(model, tiny_processor.tokenizer, 0.0)


@pytest.mark.parametrize("weight", [-1, math.nan, "1.5"])
def test_weights_are_numbers(model, tiny_processor, clips, weight) -> None:
    with pytest.raises(ValueError, match="ctc_weight is"):
        answer(model, tiny_processor, [ask(PROMPT, clips[0])], ctc_weight=weight)


def test_a_model_without_pieces_says_so(tiny_model, tiny_processor, clips) -> None:
    with pytest.raises(ValueError, match=r"projector_readout is 'direct'.*--projector_readout pieces"):
        answer(tiny_model, tiny_processor, [ask(PROMPT, clips[0])], ctc_weight=1.5)
    with pytest.raises(ValueError, match="projector_readout is 'direct'"):
        Transcriber(tiny_model, tiny_processor, TranscribingSettings(ctc_weight=1.5))


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (ask("hello"), {}, "there is no audio"),
        ([*ask(PROMPT, noise(0.3, 0)), {"role": "assistant", "content": "It"}], {}, "the beginning of one"),
        (ask(PROMPT, noise(0.3, 0)), {"num_beams": 4, "do_sample": True}, "with do_sample, num_beams"),
        (ask(PROMPT, noise(0.3, 0)), {"max_new_tokens": None}, "needs max_new_tokens"),
    ],
)
def test_what_is_no_transcript_is_refused(model, tiny_processor, asked, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        answer(model, tiny_processor, [asked], ctc_weight=1.0, **options)


# ------------------------------------------------------------------------------------------ through what people use


def test_pipelines_and_commands_rescore(model, checkpoint, tiny_processor, clips, tmp_path, capsys) -> None:
    from audiollm.evaluation.evaluate import main as evaluate
    from audiollm.inference.transcribe import main as transcribe_command

    asked, options = [ask(PROMPT, clip) for clip in clips], {"max_new_tokens": 6}
    greedy = answer(model, tiny_processor, asked, **options)
    twice = answer(model, tiny_processor, asked, **options, ctc_weight=MUCH)
    assert all(one != other for one, other in zip(greedy, twice))
    pipe = AudioLlmPipeline(model=model, processor=tiny_processor)
    assert [row[0]["generated_text"] for row in pipe(clips, max_new_tokens=6, ctc_weight=MUCH)] == twice

    files = [tmp_path / f"{index}.wav" for index in range(len(clips))]
    for file, clip in zip(files, clips):
        soundfile.write(file, clip, RATE_HZ, subtype="FLOAT")
    call = ["--model", str(checkpoint), "--max_new_tokens", "6", "--no_progress", "--voice_activity", "off"]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"text": PROMPT, "audio_paths": file.name, "response": "a"} for file in files]))
    measured = ["--model", str(checkpoint), "--data_path", str(data), "--max_new_tokens", "6", "--systems", "model"]

    for weight, given in ((DEFAULT_CTC_WEIGHT, []), (MUCH, ["--ctc_weight", str(MUCH)])):
        expected = answer(model, tiny_processor, asked, **options, ctc_weight=weight)
        transcribe_command([*call, *given, *map(str, files)])
        assert capsys.readouterr().out.splitlines() == [
            f"{file}: {' '.join(text.split())}" for file, text in zip(files, expected)
        ]
        outputs = tmp_path / f"out {weight}"
        evaluate([*measured, *given, "--output_dir", str(outputs), "--no_report"])
        capsys.readouterr()
        (rows,) = (outputs / "outputs").rglob("model.jsonl")
        assert [json.loads(line)["output"] for line in rows.read_text().splitlines()] == expected
    with pytest.raises(SystemExit, match=r"ctc_weight was 1000000\.0 and is 2\.0"):
        evaluate([*measured, "--output_dir", str(outputs)])


def test_commands_refuse_what_cannot_be(checkpoint, tmp_path, capsys) -> None:
    from audiollm.evaluation.evaluate import main as evaluate
    from audiollm.inference.transcribe import main as transcribe_command

    for options, message in ((["--ctc_weight", "-1"], "--ctc_weight is -1"),):
        with pytest.raises(SystemExit):
            transcribe_command(["--model", str(checkpoint), "a.wav", *options])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no task is of the kind asr"):
        options = ["--tasks", "no_speech", "--output_dir", str(tmp_path / "o"), "--ctc_weight", "1"]
        evaluate(["--model", str(checkpoint), *options])


def test_a_window_that_is_not_sure_is_left_out(model, tiny_processor, tmp_path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.8, 3), RATE_HZ)
    settings = {"voice_activity": False, "max_new_tokens": 6, "ctc_weight": 1.0}
    for least, is_there in ((-1e-4, False), (-1e4, True)):
        (result,) = Transcriber(
            model, tiny_processor, TranscribingSettings(**settings, min_logprob=least), progress=False
        ).transcribe([str(tmp_path / "a.wav")])
        assert bool(result.text) is is_there


def test_silence_and_what_slots_cannot_hold_are_for_ctc_to_say() -> None:
    nothing = Candidate("", (), True, -9.0, 0, 0.0, 0)
    word = Candidate("b", (2,), True, -1.0, 1, -80.0, 2)
    assert best_of([nothing, word], 2.0) is word
    mark = Candidate("...", (5,), True, -0.5, 0, 0.0, 0)
    assert best_of([mark, word], 2.0).text == ""
    too_long = Candidate("a" * 90, (1,) * 90, True, -math.inf, 90, -1.0)
    unlikely = Candidate("b", (2,), True, -500.0, 1, -80.0)
    assert max([too_long, unlikely], key=lambda one: one.score(1.0)) is unlikely

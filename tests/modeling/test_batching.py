"""Batched equals single: what stands beside a row, and on which side it is padded, changes nothing for it."""

import pytest
import torch
from audiollm.modeling_audiollm import CACHE_NAME
from batches import MIXED_TEXT_ROWS, TOLERANCE, Row, collate, composed, make_row, mixed_rows, new_tokens

GENERATION = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}


def positions_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions that count real tokens only, as `generate` gives them."""
    return (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)


@pytest.mark.quick
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
@torch.no_grad()
def test_logits(tiny_model, padding_side: str, dtype, tolerance: float) -> None:
    tiny_model.to(dtype)
    rows = mixed_rows(tiny_model.config)
    batch = collate(tiny_model.config, rows, padding_side)
    logits = tiny_model(**batch, position_ids=positions_of(batch)).logits
    for index, row in enumerate(rows):
        alone = tiny_model(**collate(tiny_model.config, [row])).logits[0]
        real = batch["attention_mask"][index].bool()
        torch.testing.assert_close(logits[index][real], alone, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_encoder_frames_and_audio_tokens(shared_tiny_model) -> None:
    """Of clips from 10 ms to 35 s, which is a full window of 3000 frames and one of 500."""
    model, config = shared_tiny_model, shared_tiny_model.config
    rows = [make_row(config, (frames,), seed=frames) for frames in (1, 2, 3, 99, 150, 400)]
    rows.append(make_row(config, 3, (3000, 500), 2, seed=1))
    batch = collate(config, rows)
    frames, lengths = model.model.encode_audio(batch["input_features"], batch["input_features_mask"])
    windows, tokens = iter(zip(frames, lengths.tolist())), []
    out = model(**batch, position_ids=positions_of(batch))
    for index, row in enumerate(rows):
        alone = collate(config, [row])
        expected, counts = model.model.encode_audio(alone["input_features"], alone["input_features_mask"])
        for one, count in zip(expected, counts.tolist()):
            window, length = next(windows)
            assert length == count
            torch.testing.assert_close(window[:count], one[:count], **TOLERANCE)
        single = model(**alone)
        tokens.append(single.audio_hidden_states)
        real = batch["attention_mask"][index].bool()
        torch.testing.assert_close(out.logits[index][real], single.logits[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(out.audio_hidden_states, torch.cat(tokens), **TOLERANCE)


@torch.no_grad()
def test_encoded_audio_and_audio_embeds_stand_for_features(shared_tiny_model, batch) -> None:
    """For all rows, or audio tokens for the first ones."""
    model, config = shared_tiny_model, shared_tiny_model.config
    features = {name: batch.pop(name) for name in ("input_features", "input_features_mask")}
    expected = model(**batch, **features).logits
    frames, lengths = model.model.encode_audio(**features)
    tokens = model.get_audio_features(encoded_audio=frames, encoded_audio_lengths=lengths).pooler_output
    for index, length in enumerate(lengths.tolist()):
        frames[index, length:] = float("nan")  # a cache may hold anything there
    encoded, embeds = {"encoded_audio": frames, "encoded_audio_lengths": lengths}, {"audio_embeds": tokens}
    for audio in (encoded, embeds):
        assert torch.equal(model(**batch, **audio).logits, expected)
    first = int((batch["input_ids"][0] == config.audio_token_id).sum())
    mixed = {"audio_embeds": tokens[:first], **{name: value[1:] for name, value in encoded.items()}}
    torch.testing.assert_close(model(**batch, **mixed).logits, expected)
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        said = []
        for audio in (features, encoded, embeds):
            torch.manual_seed(0)
            said.append(model.generate(**batch, **audio, max_new_tokens=4, **options))
        assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])
    with pytest.raises(ValueError, match="input_ids has"):
        model(**batch, audio_embeds=tokens[1:])


# ---- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.5, "bad_words_ids": [[17]], "suppress_tokens": [20]},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_generation(shared_tiny_model, options) -> None:
    rows = mixed_rows(shared_tiny_model.config)
    batched = new_tokens(shared_tiny_model, rows, **options)
    assert batched == [new_tokens(shared_tiny_model, [row], **options)[0] for row in rows]
    assert all(token < shared_tiny_model.config.vocab_size for row in batched for token in row)


@pytest.mark.quick
@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_caches_agree(tiny_model, options) -> None:
    """The static cache is kept and used again: what it held before is no matter."""
    rows = mixed_rows(tiny_model.config)
    texts = [rows[index] for index in MIXED_TEXT_ROWS]
    for each in (rows, texts, rows[:1], [make_row(tiny_model.config, 1)]):
        assert new_tokens(tiny_model, each, **options) == new_tokens(tiny_model, each)


@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores(shared_tiny_model, beams: int, batch) -> None:
    model = shared_tiny_model
    out = model.generate(**batch, **GENERATION, num_beams=beams, output_scores=True, return_dict_in_generate=True)
    transition = model.compute_transition_scores(
        out.sequences, out.scores, getattr(out, "beam_indices", None), normalize_logits=beams == 1
    )
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    assert transition.shape == new.shape and bool(transition.isfinite().all())
    if beams == 1:
        chosen = torch.stack(out.scores, dim=1).log_softmax(dim=-1).gather(2, new[:, :, None])[..., 0]
        torch.testing.assert_close(transition, chosen)


@pytest.mark.parametrize(("where", "penalty"), [("before-audio", None), ("before-audio", 1.2), ("in-text", None)])
def test_prompt_lookup(tiny_model, where: str, penalty: float | None) -> None:
    """Drafts are cut from the prompt and may hold audio slots; what comes out is what greedy decoding says."""
    config = tiny_model.config
    row = make_row(config, 3, (60,), 2, seed=9)
    if where == "before-audio":
        # The answer's likely tokens stand before the audio, so that a draft goes on with `<audio>` and slots.
        answer = torch.tensor(new_tokens(tiny_model, [row])[0])
        row = Row(torch.cat([answer, row.ids[3:]]), row.windows)
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "repetition_penalty": penalty}
    expected = new_tokens(tiny_model, [row], **options)
    drafted = []
    forward = tiny_model.model.embed_text
    tiny_model.model.embed_text = lambda ids: drafted.append(ids) or forward(ids)
    assert new_tokens(tiny_model, [row], **options, prompt_lookup_num_tokens=5, max_matching_ngram_size=1) == expected
    if where == "before-audio" and penalty is None:
        assert any(bool((ids >= config.vocab_size).any()) for ids in drafted[1:])


@pytest.mark.parametrize("seed", [2, 5])
def test_drafts_of_an_assistant(tiny_model, tiny_bases, seed: int) -> None:
    """The model itself (seed 2) drafts what it would say; another one, what it would not."""
    assistant = composed(tiny_bases, seed=seed)
    # Random models are sure of nothing; by default an assistant stops drafting where it is not.
    assistant.generation_config.assistant_confidence_threshold = 0.0
    row = make_row(tiny_model.config, 3, (60,), 2, seed=9)
    options = {"max_new_tokens": 16, "min_new_tokens": 16}
    expected = new_tokens(tiny_model, [row], **options)
    runs = []
    hook = tiny_model.get_decoder().register_forward_pre_hook(lambda *_: runs.append(1))
    assert new_tokens(tiny_model, [row], **options, assistant_model=assistant) == expected
    hook.remove()
    if seed == 2:
        assert len(runs) < 16  # drafts were taken: the assistant heard the audio too


@pytest.mark.quick
def test_later_turns_continue_the_cache(shared_tiny_model) -> None:
    """A conversation goes on in its cache: text after audio, then another recording."""
    model, config = shared_tiny_model, shared_tiny_model.config
    options = {**GENERATION, "return_dict_in_generate": True}
    turns = [make_row(config, 3, (60,), 2, seed=1), make_row(config, 4, seed=2), make_row(config, 2, (90,), 2, seed=3)]
    said, windows, cache = torch.tensor([], dtype=torch.long), (), {}
    for turn in turns:
        history, windows = torch.cat([said, turn.ids]), windows + turn.windows
        whole = collate(config, [Row(history, windows)])
        expected = model.generate(**whole, **GENERATION)
        # Beside the cache only what is new is heard.
        new = {**collate(config, [turn]), "input_ids": whole["input_ids"], "attention_mask": whole["attention_mask"]}
        continued = model.generate(**new, **cache, **options)
        assert torch.equal(continued.sequences, expected)
        said, cache = continued.sequences[0], {CACHE_NAME: continued[CACHE_NAME]}

"""Batched equals single: what stands beside a row, and on which side it is padded, changes nothing for it."""

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.modeling_audiollm import CACHE_NAME
from batches import MIXED_TEXT_ROWS, Row, collate, make_row, mixed_rows
from tiny_models import randomised

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
GENERATION = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}


def new_tokens(model, rows, padding_side: str = "left", **options) -> list[list[int]]:
    batch = collate(model.config, rows, padding_side)
    out = model.generate(**batch, **{**GENERATION, **options})
    return out[:, batch["input_ids"].shape[1] :].tolist()


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
def test_encoder_frames_and_audio_tokens(tiny_model) -> None:
    config = tiny_model.config
    rows = [make_row(config, (frames,), seed=frames) for frames in (1, 2, 3, 99, 150, 400)]
    batch = collate(config, rows)
    frames, lengths = tiny_model.model.encode_audio(batch["input_features"], batch["input_features_mask"])
    tokens = tiny_model(**batch).audio_hidden_states
    used = 0
    for index, row in enumerate(rows):
        alone = collate(config, [row])
        expected, [count] = tiny_model.model.encode_audio(alone["input_features"], alone["input_features_mask"])
        assert lengths[index] == count == expected.shape[1]
        torch.testing.assert_close(frames[index, :count], expected[0], **TOLERANCE)
        expected = tiny_model(**alone).audio_hidden_states
        torch.testing.assert_close(tokens[used : used + len(expected)], expected, **TOLERANCE)
        used += len(expected)
    assert used == len(tokens)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_full_windows(tiny_model, padding_side: str) -> None:
    """35 s beside 1 s: windows of 3000 and 500 frames in one row, of 100 in the other."""
    config = tiny_model.config
    rows = [make_row(config, 3, (3000, 500), 2, seed=1), make_row(config, 2, (100,), 2, seed=2)]
    batch = collate(config, rows, padding_side)
    assert int((batch["input_ids"] == config.audio_token_id).sum()) == 375 + 63 + 13
    logits = tiny_model(**batch).logits
    for index, row in enumerate(rows):
        alone = tiny_model(**collate(config, [row])).logits[0]
        torch.testing.assert_close(logits[index][batch["attention_mask"][index].bool()], alone, **TOLERANCE)


@torch.no_grad()
def test_encoded_audio_stands_for_features(tiny_model) -> None:
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config))
    expected = tiny_model(**batch).logits
    generated = tiny_model.generate(**batch, **GENERATION)
    frames, lengths = tiny_model.model.encode_audio(batch.pop("input_features"), batch.pop("input_features_mask"))
    for index, length in enumerate(lengths.tolist()):
        frames[index, length:] = float("nan")  # a cache may hold anything there
    cached = {**batch, "encoded_audio": frames, "encoded_audio_lengths": lengths}
    assert torch.equal(tiny_model(**cached).logits, expected)
    assert torch.equal(tiny_model.generate(**cached, **GENERATION), generated)
    beams = tiny_model.generate(**cached, **GENERATION, num_beams=2)
    assert beams.shape == generated.shape


@pytest.mark.quick
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.5},
        {"bad_words_ids": [[17]], "suppress_tokens": [20]},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_generation(tiny_model, options) -> None:
    rows = mixed_rows(tiny_model.config)
    batched = new_tokens(tiny_model, rows, **options)
    assert batched == [new_tokens(tiny_model, [row], **options)[0] for row in rows]
    assert all(token < tiny_model.config.vocab_size for row in batched for token in row)


@pytest.mark.quick
@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_caches_agree(tiny_model, options) -> None:
    rows = mixed_rows(tiny_model.config)
    assert new_tokens(tiny_model, rows, **options) == new_tokens(tiny_model, rows)
    # The static cache is kept and used again: what it held before is no matter.
    texts = [rows[index] for index in MIXED_TEXT_ROWS]
    assert new_tokens(tiny_model, texts, **options) == new_tokens(tiny_model, texts)
    one_token = [make_row(tiny_model.config, 1)]
    audio = [rows[0]]
    new_tokens(tiny_model, audio, **options)
    assert new_tokens(tiny_model, one_token, **options) == new_tokens(tiny_model, one_token)


@pytest.mark.parametrize("beams", [1, 3])
def test_num_return_sequences(tiny_model, beams: int) -> None:
    """Rows that own several windows are repeated with all of them, in order."""
    rows = mixed_rows(tiny_model.config)
    options = {
        "num_return_sequences": 3,
        "num_beams": beams,
        "do_sample": beams == 1,
        "top_k": 1 if beams == 1 else None,
    }
    together = new_tokens(tiny_model, rows, **options)
    for index, row in enumerate(rows):
        assert together[3 * index : 3 * index + 3] == new_tokens(tiny_model, [row], **options)


def test_sampling_follows_the_seed(tiny_model) -> None:
    rows = mixed_rows(tiny_model.config)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(new_tokens(tiny_model, rows, do_sample=True, temperature=3.0, top_k=0))
    assert draws[0] == draws[1] != draws[2]
    assert all(token < tiny_model.config.vocab_size for row in draws[2] for token in row)


@pytest.mark.parametrize(
    "options", [{"min_p": 0.01}, {"typical_p": 0.9}, {"top_p": 0.9, "top_k": 5}, {"eta_cutoff": 1e-3}], ids=str
)
def test_sampling_filters_take_audio(tiny_model, options) -> None:
    tokens = new_tokens(tiny_model, mixed_rows(tiny_model.config), do_sample=True, **options)
    assert all(token < tiny_model.config.vocab_size for row in tokens for token in row)


@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores(tiny_model, beams: int) -> None:
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config))
    out = tiny_model.generate(**batch, **GENERATION, num_beams=beams, output_scores=True, return_dict_in_generate=True)
    transition = tiny_model.compute_transition_scores(
        out.sequences, out.scores, getattr(out, "beam_indices", None), normalize_logits=beams == 1
    )
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    assert transition.shape == new.shape and bool(transition.isfinite().all())
    if beams == 1:
        chosen = torch.stack(out.scores, dim=1).log_softmax(dim=-1).gather(2, new[:, :, None])[..., 0]
        torch.testing.assert_close(transition, chosen)


@pytest.mark.parametrize("penalty", [None, 1.2])
@pytest.mark.parametrize("where", ["before-audio", "in-text"])
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


@pytest.mark.quick
def test_second_turn_continues_the_cache(tiny_model) -> None:
    """A conversation goes on in its cache: text after audio, then another recording."""
    config = tiny_model.config
    first = make_row(config, 3, (60,), 2, seed=1)
    options = {**GENERATION, "return_dict_in_generate": True}
    inputs = collate(config, [first])
    turn = tiny_model.generate(**inputs, **options)
    second = make_row(config, 4, seed=2)
    history = torch.cat([turn.sequences[0], second.ids])
    whole = {**inputs, "input_ids": history[None], "attention_mask": torch.ones(1, len(history), dtype=torch.long)}
    expected = tiny_model.generate(**whole, **GENERATION)
    continued = tiny_model.generate(
        input_ids=whole["input_ids"],
        attention_mask=whole["attention_mask"],
        **{CACHE_NAME: turn[CACHE_NAME]},
        **options,
    )
    assert torch.equal(continued.sequences, expected)

    third = make_row(config, 2, (90,), 2, seed=3)
    history = torch.cat([continued.sequences[0], third.ids])
    mask = torch.ones(1, len(history), dtype=torch.long)
    both = collate(config, [Row(history, first.windows + third.windows)])
    expected = tiny_model.generate(**both, **GENERATION)
    only_new = collate(config, [third])
    continued = tiny_model.generate(
        input_ids=history[None],
        attention_mask=mask,
        input_features=only_new["input_features"],
        input_features_mask=only_new["input_features_mask"],
        **{CACHE_NAME: continued[CACHE_NAME]},
        **GENERATION,
    )
    assert torch.equal(continued, expected)


def test_audio_ids_in_any_order_past_the_vocabulary(tiny_bases) -> None:
    ids = {"audio_begin_token_id": 140, "audio_token_id": 135, "audio_end_token_id": 131}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, **ids)
    tokens = new_tokens(model, mixed_rows(model.config), repetition_penalty=1.3)
    assert all(token < model.config.vocab_size for row in tokens for token in row)


@torch.no_grad()
def test_real_pair(real_model) -> None:
    config = real_model.config
    rows = [
        make_row(config, 4, (150,), 3, seed=1),
        make_row(config, 2, (300, 61), 3, seed=3),
    ]
    with randomised(real_model, std=0.02):
        batch = collate(config, rows)
        logits = real_model(**batch, position_ids=positions_of(batch)).logits
        for index, row in enumerate(rows):
            alone = real_model(**collate(config, [row])).logits[0]
            # Logits reach 30, and rounding grows through 30 layers; in float64 the difference is below 1e-12.
            torch.testing.assert_close(logits[index, -len(row.ids) :], alone, atol=1e-2, rtol=0)
        together = new_tokens(real_model, rows, max_new_tokens=3, min_new_tokens=3)
        assert together == [new_tokens(real_model, [row], max_new_tokens=3, min_new_tokens=3)[0] for row in rows]


def test_audio_embeds_stand_for_features(tiny_model) -> None:
    """Tokens given in place of features, for all rows or the first ones, change nothing."""
    config = tiny_model.config
    rows = [make_row(config, 3, (80,), 2, seed=1), make_row(config, 2, (60,), 4, seed=2), make_row(config, 6, seed=3)]
    batch = collate(config, rows)
    features = {name: batch.pop(name) for name in ("input_features", "input_features_mask")}
    frames, lengths = tiny_model.model.encode_audio(**features)
    tokens = tiny_model.get_audio_features(encoded_audio=frames, encoded_audio_lengths=lengths).pooler_output
    expected = tiny_model(**batch, **features).logits
    assert torch.equal(tiny_model(**batch, audio_embeds=tokens).logits, expected)
    first = int((batch["input_ids"][0] == config.audio_token_id).sum())
    mixed = {"audio_embeds": tokens[:first], "encoded_audio": frames[1:], "encoded_audio_lengths": lengths[1:]}
    torch.testing.assert_close(tiny_model(**batch, **mixed).logits, expected)
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        said = []
        for audio in (features, {"audio_embeds": tokens}):
            torch.manual_seed(0)
            said.append(tiny_model.generate(**batch, **audio, max_new_tokens=4, **options))
        assert torch.equal(*said)
    with pytest.raises(ValueError, match="input_ids has"):
        tiny_model(**batch, audio_embeds=tokens[1:])

"""The CTC warm start: the projector learns to be read, nothing else changes, and its tokens end among the embeddings."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation import normalize_english
from audiollm.inference.spoken_pieces import spoken_form
from audiollm.training.align import (
    CtcAligner,
    PieceVocabulary,
    align,
    build_alignment_dataset,
    greedy_transcripts,
)
from audiollm.training.augment import FeatureAugmentation
from audiollm.training.dataset import pad_windows
from audiollm.training.feature_cache import FeatureCache
from tiny_models import randomise_trainables
from transformers import TrainingArguments

NUM_CLIPS, NUM_STEPS = 8, 60
#: Short enough for the shortest clip's four slots: a character is a token, and so is the space before it.
TRANSCRIPTS = ["ab", "c", "da", "bd", "cd", "a", "db", "b", "ca", "d"]


def arguments(folder: Path, **options) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**settings, **options})


# --------------------------------------------------------------------------------------------------- the real pair


@pytest.fixture(scope="module")
def real_alignment(real_bases, real_processor, tmp_path_factory):
    """The real pair aligned on a handful of short clips, its state dict before, keys and transcripts."""
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*real_bases, lora_rank=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder = tmp_path_factory.mktemp("align")
    clips = load_studio_prompts("train").filter(lambda row: len(row["text"].split()) > 1).sort("duration_s")
    clips = clips.select(range(NUM_CLIPS))
    cache = FeatureCache(model, real_processor, folder / "features")
    keys = cache.add(list(clips["audio"]), progress=False)
    transcripts = [normalize_english(text) for text in clips["text"]]
    options = {"max_steps": NUM_STEPS, "per_device_train_batch_size": NUM_CLIPS}
    alignment = align(model, cache, keys, transcripts, arguments(folder / "run", **options))
    return model, before, cache, keys, transcripts, alignment


def test_the_loss_falls_and_the_clips_are_read_right(real_alignment) -> None:
    _, _, cache, keys, transcripts, alignment = real_alignment
    losses = [loss for _, loss in alignment.losses]
    assert len(losses) == NUM_STEPS
    assert losses[-1] < 0.1 * losses[0]
    assert greedy_transcripts(alignment, cache, keys) == transcripts
    assert greedy_transcripts(alignment, cache, keys[::-1], batch_size=3) == transcripts[::-1]


def test_only_the_projector_changes(real_alignment) -> None:
    model, before, *_ = real_alignment
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if "multi_modal_projector" in name}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(model.trainable_names())


def test_tokens_are_handed_over_among_the_embeddings(real_alignment) -> None:
    model, _, cache, keys, _, _ = real_alignment
    embeddings = model.get_input_embeddings().weight.detach()
    frames = [cache.load(key)[0] for key in keys]
    with torch.no_grad():
        tokens = torch.cat([model.model.multi_modal_projector(f[None], torch.tensor([len(f)])) for f in frames])
    rms, expected = tokens.square().mean().sqrt(), embeddings.square().mean().sqrt()
    assert 0.8 < rms / expected < 1.25
    common = embeddings.mean(dim=0)
    # Of what all embeddings have in common, tokens hold as much; blanks add what is their piece's own.
    assert 0.6 < (tokens.mean(dim=0) @ common) / common.square().sum() < 1.6


def test_a_readout_of_pieces_says_what_was_aligned(real_bases, real_processor, real_alignment, tmp_path) -> None:
    _, _, cache, keys, transcripts, _ = real_alignment
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *real_bases, lora_rank=2, projector_readout="pieces"
    )
    options = {"max_steps": NUM_STEPS, "per_device_train_batch_size": NUM_CLIPS}
    alignment = align(model, cache, keys, transcripts, arguments(tmp_path / "run", **options))
    assert greedy_transcripts(alignment, cache, keys) == transcripts
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(model.trainable_names())
    projector, embeddings = model.model.multi_modal_projector, model.get_input_embeddings().weight.detach()
    assert projector.readout.lexicon.nonzero().flatten().tolist() == alignment.vocabulary.token_ids
    assert real_processor.tokenizer.decode([alignment.vocabulary.blank_id]) == "_"
    model.save_pretrained(tmp_path / "saved")
    again = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for index, key in enumerate(keys):
        frames = cache.load(key)[0]
        with torch.no_grad():
            inputs = {"encoded_audio": frames[None], "encoded_audio_lengths": torch.tensor([len(frames)])}
            tokens = model.get_audio_features(**inputs).pooler_output
            assert torch.equal(tokens, again.get_audio_features(**inputs).pooler_output)
        nearest = torch.cdist(tokens, embeddings).argmin(dim=1)
        said = [
            piece for piece in torch.unique_consecutive(nearest).tolist() if piece != alignment.vocabulary.blank_id
        ]
        assert real_processor.tokenizer.decode(said).strip() == transcripts[index]


# --------------------------------------------------------------------------------------------------- the tiny pair


@pytest.fixture
def keys(cache, corpus) -> list[str]:
    return cache.add(corpus.paths, progress=False)


def fresh_model(tiny_bases) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    return randomise_trainables(AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4))


def test_classes_are_the_pieces_of_the_words(tiny_processor) -> None:
    vocabulary = PieceVocabulary(tiny_processor.tokenizer, ["ab ba", "c"])
    assert sorted(tiny_processor.tokenizer.decode([id_]) for id_ in vocabulary.token_ids) == [" ", "a", "b", "c"]
    assert vocabulary.decode(vocabulary.encode("c ab")) == "c ab"
    assert 0 not in vocabulary.encode("ab ba c")
    with pytest.raises(KeyError):
        vocabulary.encode("d")


def test_a_blank_looks_like_a_piece_that_no_transcript_has(tiny_processor) -> None:
    tokenizer = tiny_processor.tokenizer
    for transcripts in (["ab ba", "c"], ["a_b", "-"]):
        vocabulary = PieceVocabulary(tokenizer, transcripts)
        assert vocabulary.blank_id not in vocabulary.token_ids
        assert vocabulary.blank_id not in tokenizer.all_special_ids


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Press 1, or #!", "press one or"),
        ("You\u2019ve 12 new_messages.", "you've 12 new messages"),
        ("  Où est-il ? ", "où est il"),
        ("3D audio", "3d audio"),
        ("...", ""),
    ],
)
def test_transcripts_are_aligned_in_their_spoken_form(written, spoken) -> None:
    assert spoken_form(written) == spoken


def test_aligning_again_keeps_the_pieces_known_before(cache, keys, tiny_bases, tiny_processor, tmp_path) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, projector_readout="pieces")
    first = align(model, cache, keys, ["a"] * len(keys), arguments(tmp_path / "1", max_steps=1))
    second = align(model, cache, keys, ["b"] * len(keys), arguments(tmp_path / "2", max_steps=1))
    assert set(first.vocabulary.token_ids) < set(second.vocabulary.token_ids)
    said = tiny_processor.tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert set(said) <= set(second.vocabulary.token_ids)


def test_padding_does_not_change_a_clips_scores(cache, keys, tiny_model) -> None:
    aligner = CtcAligner(tiny_model, [7, 9, 30], 11)
    short, long = (cache.load(key)[0] for key in (keys[0], keys[-1]))
    batch = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    with torch.no_grad():
        scores, slots = aligner.scores(batch, torch.tensor([len(short), len(long)]))
        alone, _ = aligner.scores(short[None], torch.tensor([len(short)]))
    assert slots.tolist() == [-(-len(short) // 4), -(-len(long) // 4)]
    torch.testing.assert_close(scores[0, : slots[0]], alone[0])
    torch.testing.assert_close(scores.exp().sum(dim=-1), torch.ones(scores.shape[:2]))


def test_clips_that_cannot_be_aligned_are_left_out_and_counted(
    cache, keys, tiny_bases, tiny_processor, tmp_path, capsys
) -> None:
    (two_windows,) = cache.add([torch.randn(31 * 16_000).clamp(-1, 1).numpy() * 0.1], progress=False)
    keys = [*keys, two_windows]
    transcripts = ["a", "ab " * 40, "", *["b"] * 7, "a"]
    vocabulary = PieceVocabulary(tiny_processor.tokenizer, transcripts)
    dataset, left_out = build_alignment_dataset(keys, transcripts, cache, vocabulary)
    assert left_out == [keys[1], keys[2], two_windows]
    assert dataset["audio"] == [key for key in keys if key not in left_out]
    align(fresh_model(tiny_bases), cache, keys, transcripts, arguments(tmp_path / "run", max_steps=1))
    assert "3 of 11 clips are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="No clip can be aligned"):
        align(fresh_model(tiny_bases), cache, keys[1:2], transcripts[1:2], arguments(tmp_path / "none"))


def test_recordings_without_speech_are_heard_as_nothing(cache, keys, tiny_bases, tmp_path) -> None:
    noise = np.random.default_rng(0).standard_normal((6, 16_000)).astype(np.float32) * 0.05
    without = cache.add(noise, progress=False)
    blanks = []
    for name, more in (("speech", []), ("both", without)):
        options = arguments(tmp_path / name, max_steps=40, learning_rate=1e-2)
        torch.manual_seed(0)
        transcripts = [*TRANSCRIPTS, *[None] * len(more)]
        alignment = align(fresh_model(tiny_bases), cache, [*keys, *more], transcripts, options)
        scores, _ = alignment.aligner.scores(**pad_windows([cache.load(key)[0] for key in without]))
        blanks.append(float(scores[..., 0].detach().exp().mean()))
        assert alignment.vocabulary.token_ids == PieceVocabulary(cache.processor.tokenizer, TRANSCRIPTS).token_ids
    assert blanks[1] > max(0.9, blanks[0])
    assert greedy_transcripts(alignment, cache, without) == [""] * len(without)
    with pytest.raises(ValueError, match="No clip can be aligned"):
        align(fresh_model(tiny_bases), cache, without, [None] * len(without), arguments(tmp_path / "none"))


def test_as_much_text_as_slots_is_kept_and_one_more_is_not(cache, keys, tiny_processor) -> None:
    frames, _ = cache.load(keys[0])
    slots = -(-len(frames) // tiny_processor.stack_factor)
    pieces = "abcdefghijklmnopqrstuvwxyz"
    # A leading space is a piece of its own here; a repeated letter needs a blank between.
    texts = {pieces[: slots - 1]: True, pieces[:slots]: False, pieces[: slots - 3] + "zz": False}
    for text, fits in texts.items():
        vocabulary = PieceVocabulary(tiny_processor.tokenizer, [text])
        dataset, _ = build_alignment_dataset(keys[:1], [text], cache, vocabulary)
        assert (len(dataset) == 1) == fits, text


def cut_off(
    tiny_bases, cache: FeatureCache, keys: list[str], folder: Path, augmentation: FeatureAugmentation | None, **options
) -> tuple[dict, dict]:
    """State dicts of a projector aligned in one go, and of one that went on from a checkpoint within an epoch."""
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 4, **options}
    states = []
    for name in ("whole", "resumed"):
        if name == "resumed":
            shutil.copytree(folder / "whole" / "checkpoint-4", folder / "resumed" / "checkpoint-4")
        model = fresh_model(tiny_bases)
        align(model, cache, keys, TRANSCRIPTS, arguments(folder / name, **options), augmentation)
        states.append(model.model.multi_modal_projector.state_dict())
    return states[0], states[1]


def test_a_run_that_was_cut_off_ends_alike(tiny_bases, cache, keys, tmp_path, capsys) -> None:
    whole, resumed = cut_off(tiny_bases, cache, keys, tmp_path, None)
    assert "left out" not in capsys.readouterr().out
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_of_grouped_and_augmented_clips_that_was_cut_off_ends_alike(tiny_bases, cache, keys, tmp_path) -> None:
    options = {"train_sampling_strategy": "group_by_length"}
    whole, resumed = cut_off(tiny_bases, cache, keys, tmp_path, FeatureAugmentation(), **options)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

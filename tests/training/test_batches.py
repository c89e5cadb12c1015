"""Examples to batches: exact ids and labels, slots as many as audio tokens, augmented, packed, and within a budget."""

import pickle
from itertools import chain

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.examples import Example
from audiollm.training.align import AlignmentCollator
from audiollm.training.augmentation import BatchAugmentation, FeatureAugmentation
from audiollm.training.batching import BatchBudget, BudgetBatchSampler
from audiollm.training.collator import AudioLlmCollator, unpadded
from audiollm.training.rows import build_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import differing, logged, run
from torch.testing import assert_close

IGNORED = -100
#: Changes the length of every recording that may change.
ALWAYS = FeatureAugmentation(tempo_probability=1.0, tempo_range=(1.3, 1.6))


@pytest.fixture
def batch(dataset, cache, tiny_processor):
    """The last four rows: two with one recording, one with two, one with none."""
    return AudioLlmCollator(tiny_processor, cache)(list(dataset)[-4:])


def without(tokens: list[int], left_out: int) -> list[int]:
    return [one for one in tokens if one != left_out]


def test_training_and_the_processor_encode_alike(corpus, real_processor) -> None:
    example = Example("First <audio>, then <audio>?", tuple(corpus.paths[:2]), "The second.")
    (row,) = build_dataset([example], real_processor, None, progress=False)
    messages = [{"role": "user", "content": example.text}, {"role": "assistant", "content": example.response}]
    audio = list(example.audio_paths)
    batch = real_processor.apply_chat_template(messages, audio=audio, tokenize=True, return_labels=True)
    assert all(row[name] == batch[name][0].tolist() for name in ("input_ids", "labels"))
    assert real_processor.tokenizer.decode(without(row["labels"], IGNORED)) == "The second.<|im_end|>"


def test_a_mixed_batch_is_padded_on_the_right(batch, dataset, cache, tiny_model, tiny_processor) -> None:
    rows = list(dataset)[-4:]
    assert unpadded(batch) == [(row["input_ids"], row["labels"]) for row in rows]
    padding = ~batch["attention_mask"].bool()
    assert (padding.diff(dim=1) >= 0).all() and (batch["labels"][padding] == IGNORED).all()
    assert (batch["input_ids"][padding] == tiny_processor.tokenizer.pad_token_id).all()
    windows = [cache.load(key)[0] for row in rows for key in row["audio"]]  # of one each
    assert batch["encoded_audio_lengths"].tolist() == [len(window) for window in windows]
    for padded, window in zip(batch["encoded_audio"], windows):
        assert torch.equal(padded[: len(window)], window) and not padded[len(window) :].any()
    text_only = AudioLlmCollator(tiny_processor, cache)([dataset[-1]])
    assert set(text_only) == {"input_ids", "attention_mask", "labels"}
    for each in (batch, text_only):
        assert torch.isfinite(tiny_model(**each).loss)


def test_a_recording_of_several_windows_runs_through_the_model(
    cache, tiny_model, tiny_processor, corpus, tmp_path
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal(31 * 16_000), 16_000)
    examples = [Example("<audio> after <audio>", (str(path), corpus.paths[0]), "yes")]
    dataset = build_dataset(examples, tiny_processor, cache, progress=False)
    batch = AudioLlmCollator(tiny_processor, cache)(list(dataset))
    assert batch["encoded_audio_lengths"].tolist() == [1500, 50, *cache.lengths(dataset[0]["audio"][1])]
    varied = BatchAugmentation(tiny_processor, ALWAYS)(batch)
    assert varied["encoded_audio_lengths"].tolist()[:2] == [1500, 50]  # of several windows: may not change
    assert varied["encoded_audio_lengths"][2] > batch["encoded_audio_lengths"][2]
    with torch.no_grad():
        assert torch.isfinite(tiny_model(**varied).loss)


def test_augmentation_changes_lengths_and_slots_together(batch, tiny_model, tiny_processor) -> None:
    torch.manual_seed(3)
    varied = BatchAugmentation(tiny_processor, ALWAYS)(batch)
    assert (varied["encoded_audio_lengths"] > batch["encoded_audio_lengths"]).all()
    slot_id, stack = tiny_processor.audio_token_id, tiny_processor.stack_factor
    expected = sum(-(-length // stack) for length in varied["encoded_audio_lengths"].tolist())
    assert int((varied["input_ids"] == slot_id).sum()) == expected > int((batch["input_ids"] == slot_id).sum())
    assert torch.isfinite(tiny_model(**varied).loss)
    for (ids, labels), (new_ids, new_labels) in zip(unpadded(batch), unpadded(varied)):
        assert without(ids, slot_id) == without(new_ids, slot_id)
        assert without(labels, IGNORED) == without(new_labels, IGNORED)


def test_augmentation_draws_from_torch_and_leaves_batch_and_cache_as_they_are(
    batch, dataset, cache, tiny_processor
) -> None:
    before = {name: tensor.clone() for name, tensor in batch.items()}
    frames = [cache.load(key)[0].clone() for key in dataset[0]["audio"]]
    varied = []
    for _ in range(2):
        torch.manual_seed(5)
        varied.append(BatchAugmentation(tiny_processor)(batch))
    assert not differing(*varied) and not differing(before, batch)
    assert not torch.equal(varied[0]["encoded_audio"], before["encoded_audio"])
    assert all(torch.equal(cache.load(key)[0], kept) for key, kept in zip(dataset[0]["audio"], frames))


def test_masks_are_as_large_as_they_say_at_most_and_tempo_changes_only_where_it_may() -> None:
    augment = FeatureAugmentation(time_masks=1, max_time_share=0.2, channel_masks=1, max_channel_share=0.25)
    torch.manual_seed(0)
    shares = []
    for _ in range(100):
        masked = augment(torch.ones(50, 32)) == 0
        silent_frames, silent_channels = masked.all(dim=1), masked.all(dim=0)
        assert torch.equal(masked, silent_frames[:, None] | silent_channels[None])
        shares.append((int(silent_frames.sum()), int(silent_channels.sum())))
    for found, most in zip(zip(*shares), (10, 8)):
        assert {0, most} <= set(found) and max(found) == most
    frames = torch.arange(100.0)[:, None].expand(100, 4)
    slower = FeatureAugmentation(0, 0, 0, 0, tempo_probability=1.0, tempo_range=(1.5, 1.5))
    assert torch.equal(slower(frames), frames)
    stretched = slower(frames, may_change_length=True)
    assert stretched.shape == (150, 4) and slower(frames[:1], may_change_length=True).shape == (2, 4)
    assert (stretched.diff(dim=0) >= 0).all() and stretched[0, 0] == 0 and stretched[-1, 0] == 99


def test_what_workers_are_sent_holds_no_model(tiny_processor, cache, dataset) -> None:
    rows = [{**row, "targets": [1]} for row in list(dataset)[:3]]
    for collator in (AudioLlmCollator(tiny_processor, cache), AlignmentCollator(cache)):
        sent = pickle.dumps(collator)
        assert b"AudioLlmForConditionalGeneration" not in sent
        assert not differing(collator(rows), pickle.loads(sent)(rows))


@pytest.mark.parametrize(
    "extra",
    [
        "--augment",
        "--feature_cache off --gradient_accumulation_steps 2",
        pytest.param("--bf16", marks=pytest.mark.slow),
    ],
)
def test_a_packed_run_is_the_padded_one(options, tmp_path, monkeypatch, extra: str) -> None:
    shapes = []
    forward = AudioLlmForConditionalGeneration.forward

    def watched(self, input_ids=None, **kwargs):
        if self.training:
            shapes.append((input_ids.shape[0], kwargs.get("attention_mask") is None))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(AudioLlmForConditionalGeneration, "forward", watched)
    steps = f"{extra} --max_steps 4 --logging_steps 1 --lora_dropout 0 --learning_rate 0.01 --warmup_steps 0"
    options = [*options, *steps.split(), "--save_strategy", "no"]
    padded = run([*options, "--output_dir", str(tmp_path / "padded")])
    assert {rows for rows, _ in shapes} == {4}
    shapes.clear()
    packed = run([*options, "--output_dir", str(tmp_path / "packed"), "--packing"])
    assert set(shapes) == {(1, True)}
    if extra == "--bf16":
        assert logged(packed) == pytest.approx(logged(padded), rel=2e-2)
        return
    assert logged(packed) == pytest.approx(logged(padded), rel=1e-4)
    for name in padded.model.trainable_names():
        assert_close(
            packed.model.get_parameter(name), padded.model.get_parameter(name), rtol=1e-2, atol=1e-3, msg=name
        )


SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=60)
BUDGET = BatchBudget(max_tokens=800)


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 5), packed=st.booleans())
def test_every_row_comes_once_within_the_budget_and_epochs_are_equally_long(sizes, seed, packed) -> None:
    made = BudgetBatchSampler(sizes, BatchBudget(800, packed), seed=seed)
    for epoch in range(3):
        batches = made.batches(epoch)
        assert len(batches) == len(made) and sorted(chain.from_iterable(batches)) == list(range(len(sizes)))
        for tokens in ([sizes[index] for index in batch] for batch in batches):
            assert (sum(tokens) if packed else max(tokens) * len(tokens)) <= 800


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, processes=st.integers(2, 5))
def test_the_steps_of_several_processes_hold_what_one_with_accumulation_does(sizes, processes) -> None:
    alone = BudgetBatchSampler(sizes, BUDGET)
    shared = BudgetBatchSampler(sizes, BUDGET, num_processes=processes)
    if left := len(shared) % processes:  # so few rows that some process goes without one of its own
        assert all(len(batch) == 1 for batch in shared.batches(0)[-left:])
        return
    one, many = (
        [
            sorted(chain.from_iterable(batches[start : start + processes]))
            for start in range(0, len(batches), processes)
        ]
        for batches in (alone.batches(1), shared.batches(1))
    )
    # Where the last step has fewer rows than processes, larger batches take its place.
    whole = len(one[-1]) >= processes
    assert one == many if whole else sorted(chain.from_iterable(one)) == sorted(chain.from_iterable(many))


def test_the_order_depends_on_seed_and_epoch_alone_and_like_lengths_come_together() -> None:
    sizes = [8, 400] * 20
    one, again, *others = [
        BudgetBatchSampler(sizes, BUDGET, seed=seed).batches(epoch) for seed, epoch in ((1, 2), (1, 2), (1, 3), (2, 2))
    ]
    assert one == again != others[0] != others[1] != one
    assert all(len({sizes[index] for index in batch}) == 1 for batch in one)
    epoch = 0
    made = BudgetBatchSampler(sizes, BUDGET, seed=1, current_epoch=lambda: epoch)
    first = list(made)
    epoch = 1
    assert list(made) == made.batches(1) != first == made.batches(0)


def test_a_row_that_fills_the_budget_is_a_batch_and_one_more_is_refused() -> None:
    assert BudgetBatchSampler([800], BUDGET).batches(0) == [[0]]
    with pytest.raises(ValueError, match=r"Row 1 takes 801 tokens, more than --max_tokens_per_batch 800"):
        BudgetBatchSampler([1, 801], BUDGET)

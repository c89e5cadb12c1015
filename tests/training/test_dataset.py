"""Examples to batches: exact ids and labels, slots as many as audio tokens, and augmentation that keeps it so."""

import pickle

import numpy as np
import pytest
import soundfile
import torch
from audiollm.corpora.examples import Example
from audiollm.training.align import AlignmentCollator
from audiollm.training.augmentation import BatchAugmentation, FeatureAugmentation
from audiollm.training.collator import AudioLlmCollator, cached_windows, unpadded
from audiollm.training.distill import DistillCollator
from audiollm.training.rows import build_dataset
from runs import differing

IGNORED = -100
#: Changes the length of every recording that may change.
ALWAYS = FeatureAugmentation(tempo_probability=1.0, tempo_range=(1.3, 1.6))


@pytest.fixture
def batch(dataset, cache, tiny_processor):
    """The last four rows: two with one recording, one with two, one with none."""
    return AudioLlmCollator(tiny_processor, cache)(list(dataset)[-4:])


def learned(labels: list[int]) -> list[int]:
    return [label for label in labels if label != IGNORED]


def test_training_and_the_processor_encode_alike(corpus, real_processor) -> None:
    example = Example("First <audio>, then <audio>?", tuple(corpus.paths[:2]), "The second.")
    (row,) = build_dataset([example], real_processor, None, progress=False)
    messages = [{"role": "user", "content": example.text}, {"role": "assistant", "content": example.response}]
    batch = real_processor.apply_chat_template(
        messages, audio=list(example.audio_paths), tokenize=True, return_labels=True
    )
    assert row["input_ids"] == batch["input_ids"][0].tolist()
    assert row["labels"] == batch["labels"][0].tolist()
    assert real_processor.tokenizer.decode(learned(row["labels"])) == "The second.<|im_end|>"


def test_a_mixed_batch_is_padded_on_the_right(batch, dataset, cache, tiny_model, tiny_processor) -> None:
    rows = list(dataset)[-4:]
    assert unpadded(batch) == [(row["input_ids"], row["labels"]) for row in rows]
    padding = ~batch["attention_mask"].bool()
    assert (padding.diff(dim=1) >= 0).all() and (batch["labels"][padding] == IGNORED).all()
    assert (batch["input_ids"][padding] == tiny_processor.tokenizer.pad_token_id).all()
    windows = [window for row in rows for key in row["audio"] for window in cached_windows(cache, key)]
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
    assert batch["encoded_audio_lengths"].tolist() == [1500, 50, len(cached_windows(cache, dataset[0]["audio"][1])[0])]
    varied = BatchAugmentation(tiny_processor, ALWAYS)(batch)
    assert varied["encoded_audio_lengths"].tolist()[:2] == [1500, 50]  # of several windows: may not change
    assert varied["encoded_audio_lengths"][2] > batch["encoded_audio_lengths"][2]
    with torch.no_grad():
        assert torch.isfinite(tiny_model(**varied).loss)


# ------------------------------------------------------------------------------------------------------ augmentation


def test_augmentation_changes_lengths_and_slots_together(batch, tiny_model, tiny_processor) -> None:
    torch.manual_seed(3)
    varied = BatchAugmentation(tiny_processor, ALWAYS)(batch)
    assert (varied["encoded_audio_lengths"] > batch["encoded_audio_lengths"]).all()
    slot_id, stack = tiny_processor.audio_token_id, tiny_processor.stack_factor
    expected = sum(-(-length // stack) for length in varied["encoded_audio_lengths"].tolist())
    assert int((varied["input_ids"] == slot_id).sum()) == expected > int((batch["input_ids"] == slot_id).sum())
    assert torch.isfinite(tiny_model(**varied).loss)
    for (ids, labels), (new_ids, new_labels) in zip(unpadded(batch), unpadded(varied)):
        assert [one for one in ids if one != slot_id] == [one for one in new_ids if one != slot_id]
        assert learned(labels) == learned(new_labels)


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


def test_what_workers_are_sent_holds_no_model(tiny_model, tiny_processor, cache, dataset) -> None:
    rows = [dataset[index] for index in range(3)]
    targets = [{"audio": row["audio"][:1], "targets": [1]} for row in rows]
    pair = [{**row, "teacher_input_ids": row["input_ids"], "teacher_labels": row["labels"]} for row in rows]
    for collator, given in (
        (AudioLlmCollator(tiny_processor, cache), rows),
        (DistillCollator(tiny_processor, cache), pair),
        (AlignmentCollator(cache), targets),
    ):
        sent = pickle.dumps(collator)
        assert b"AudioLlmForConditionalGeneration" not in sent
        batch, again = collator(given), pickle.loads(sent)(given)
        assert batch.keys() == again.keys() and not differing(batch, again)

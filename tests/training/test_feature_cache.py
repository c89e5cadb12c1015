"""The feature cache: what it tells apart, that it gives back what was computed, and that nothing bad stays in it."""

import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.arguments import DataArguments
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.preparing import caches_features
from safetensors.torch import save
from tiny_models import save_audio_base


def test_the_same_content_has_the_same_key_however_it_is_given(cache, corpus, tmp_path) -> None:
    path = Path(corpus.paths[0])
    content = path.read_bytes()
    copy = tmp_path / "renamed.wav"
    copy.write_bytes(content)
    given = [path, str(path), copy, content, bytearray(content), {"bytes": content, "path": "x"}, {"path": str(path)}]
    assert len({cache.key(recording) for recording in given}) == 1
    assert cache.key(corpus.paths[1]) != cache.key(path)
    waveform = np.array([0.1, -0.2, 0.3], dtype=np.float32)
    assert cache.key(waveform) == cache.key(torch.tensor(waveform)) == cache.key(waveform.tolist())
    assert cache.key(waveform) != cache.key(-waveform)


def test_another_encoder_precision_or_extractor_has_another_folder(
    cache, tiny_bases, tiny_model, tiny_processor, tmp_path
) -> None:
    root = cache.folder.parent
    bases = (save_audio_base(tmp_path / "other", seed=9), tiny_bases[1]), tiny_bases
    other, half = (
        AudioLlmForConditionalGeneration.from_audio_text_pretrained(*each, dtype=dtype)
        for each, dtype in zip(bases, (torch.float32, torch.bfloat16))
    )
    extractor = AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases)
    extractor.feature_extractor.dither = 0.1
    given = (other, tiny_processor), (half, tiny_processor), (tiny_model, extractor)
    assert len({cache.folder, *(FeatureCache(*each, root).folder for each in given)}) == 4
    # What trains, or comes after the encoder, is none of its business.
    other_slots = AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases, stack_factor=2)
    other_slots.save_pretrained(tmp_path / "saved")  # which writes an auto_map into the extractor's configuration
    with torch.no_grad():
        tiny_model.model.multi_modal_projector.linear_2.weight.zero_()
    assert FeatureCache(tiny_model, other_slots, root).folder == cache.folder


def test_what_is_loaded_is_what_was_computed(cache, corpus) -> None:
    long = 0.1 * np.random.default_rng(0).standard_normal(31 * 16_000).astype(np.float32)
    given = [*corpus.paths, corpus.paths[0], long]
    keys = cache.add(given, progress=False)
    assert len(set(keys)) == len(corpus.paths) + 1 and keys[-2] == keys[0]
    for recording, key in zip(given, keys):
        frames, lengths = cache.load(key)
        expected_frames, expected_lengths = cache.compute(recording)
        assert torch.equal(frames, expected_frames) and torch.equal(lengths, expected_lengths)
        assert len(frames) == int(lengths.sum()) and torch.isfinite(frames).all()
    assert lengths.tolist() == [1500, 50] == cache.lengths(keys[-1])
    torch.testing.assert_close(frames[1500:], cache.compute(long[30 * 16_000 :])[0])


def test_several_processes_store_what_one_does(cache, tiny_model, tiny_processor, tmp_path) -> None:
    shared = FeatureCache(tiny_model, tiny_processor, tmp_path / "shared", processes=2)
    noise = np.random.default_rng(0).standard_normal((24, 3000)).astype(np.float32) * 0.1
    state = torch.get_rng_state()
    keys = shared.add(noise, progress=False)
    assert torch.equal(torch.get_rng_state(), state), "training draws the same, whatever was in the cache"
    for key, waveform in zip(keys, noise):
        for found, expected in zip(shared.load(key), cache.compute(waveform)):
            torch.testing.assert_close(found, expected)  # threads may round otherwise
    made: list[int] = []
    makers = {f"{n:032d}": lambda n=n: made.append(n) or noise[n] for n in range(24)}
    shared.fill(makers, progress=False)
    assert all(map(shared.has, makers)) and not made, "others made them"
    for _ in range(2):
        cache.fill({"a" * 32: makers["0" * 32]}, progress=False)
    assert made == [0]
    torch.testing.assert_close(cache.load("a" * 32)[0], shared.load(keys[0])[0])
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        shared.fill({f"{n:02d}": str(tmp_path / "none.wav") for n in range(24)}, progress=False)


def test_a_damaged_file_is_computed_again(cache, corpus) -> None:
    (key,) = cache.add(corpus.paths[:1], progress=False)
    expected = cache.load(key)[0].clone()  # off the file, which is damaged in place
    path = cache.path(key)
    content = path.read_bytes()
    lacking = save({"frames": expected})
    for damage in (content[:-9], b"", b"\xff" * len(content), lacking, None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        assert not cache.has(key)
        with pytest.raises(KeyError, match=key):
            cache.load(key)
        assert cache.add(corpus.paths[:1], progress=False) == [key]
        assert cache.has(key) and torch.equal(cache.load(key)[0], expected)


@pytest.mark.parametrize(
    ("given", "trainable", "stage", "device", "cached"),
    [
        ({}, "adapter", "instruct", "cpu", True),
        ({}, "adapter", "instruct", "cuda", False),
        ({"feature_cache": "x"}, "adapter", "instruct", "cuda", True),
        ({"augment": True}, "adapter", "distill", "cuda", True),
        ({"speed": [0.9, 1.1]}, "adapter", "instruct", "cuda", True),
        ({}, "projector", "align", "cuda", True),
        ({"feature_cache": "off"}, "adapter", "instruct", "cpu", False),
        ({}, "adapter+audio", "instruct", "cpu", False),
    ],
)
def test_features_are_cached_where_it_pays(given, trainable, stage, device, cached) -> None:
    assert caches_features(DataArguments(**given), trainable, stage, device) is cached


def _add_over_and_over(cache: FeatureCache, paths: list[str]) -> None:
    torch.set_num_threads(1)
    cache.add(paths, progress=False)
    while True:
        for path in paths:
            cache._store(cache.key(path), torch.ones(20_000, 32), torch.tensor([20_000]))


def test_processes_that_share_a_folder_and_are_killed_leave_no_bad_file(cache, corpus) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_over_and_over, args=(cache, corpus.paths)) for _ in range(2)]
    for writer in writers:
        writer.start()
    deadline = time.time() + 30
    while len(list(cache.folder.rglob("*.safetensors"))) < len(corpus.paths) and time.time() < deadline:
        time.sleep(0.01)
    for writer in writers:
        writer.kill()
        writer.join(10)
        assert writer.exitcode == -signal.SIGKILL
    files = list(cache.folder.rglob("*.safetensors"))
    assert len(files) == len(corpus.paths)
    for file in files:
        frames, lengths = cache.load(file.stem)
        assert lengths.tolist() == [len(frames)]

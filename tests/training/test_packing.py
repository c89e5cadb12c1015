"""`--packing`: the run of the padded batches, in one row."""

import pytest
from audiollm import AudioLlmForConditionalGeneration
from runs import logged, run
from torch.testing import assert_close


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

"""`--packing`: the run of the padded batches, in one row."""

import pytest
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training.train import main
from runs import logged
from safetensors.torch import load_file
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
    steps = "--max_steps 4 --logging_steps 1 --lora_dropout 0 --learning_rate 0.01 --warmup_steps 0"
    options = [*options, *extra.split(), *steps.split()]
    folders = tmp_path / "padded", tmp_path / "packed"
    main([*options, "--output_dir", str(folders[0])])
    assert {rows for rows, _ in shapes} == {4}
    shapes.clear()
    main([*options, "--output_dir", str(folders[1]), "--packing"])
    assert set(shapes) == {(1, True)}
    tolerance = 2e-2 if extra == "--bf16" else 1e-4
    assert logged(folders[1]) == pytest.approx(logged(folders[0]), rel=tolerance)
    if extra != "--bf16":
        found, expected = (load_file(folder / "model.safetensors") for folder in folders[::-1])
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-2, atol=1e-3, msg=name)

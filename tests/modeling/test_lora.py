"""The LoRA layer: the fused operation and autograd's own way agree; threads, host syncs, dropout, PEFT's adapters."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, lora
from audiollm.lora import FrozenLinearWithLora, MaskedLoraLinear, can_fuse
from batches import assert_same_step, collate, labelled, loss_and_gradients, make_row, mixed_rows
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

ROWS, IN_FEATURES, OUT_FEATURES, RANK = 6, 5, 7, 2
SCALING = 1.5


def operands(dtype: torch.dtype) -> list[torch.Tensor]:
    """Input, the base's weight and bias, LoRA's A and B, and the mask of a few rows."""
    generator, x, out = torch.Generator().manual_seed(0), (ROWS, IN_FEATURES), OUT_FEATURES
    shapes = (x, (out, IN_FEATURES), (out,), (RANK, IN_FEATURES), (out, RANK))
    mask = torch.tensor([[1.0], [0], [1], [1], [0], [1]], dtype=dtype)
    return [*(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes), mask]


@pytest.mark.parametrize("is_whole", [False, True], ids=["mask-and-bias", "neither"])
def test_gradients_are_those_of_the_formula(is_whole: bool) -> None:
    x, weight, bias, down, up, mask = operands(torch.float64)
    bias, mask = (None, None) if is_whole else (bias, mask)
    leaves = [each.requires_grad_() for each in (x, down, up)]

    def fused(x, down, up):
        return FrozenLinearWithLora.apply(x, weight, bias, mask, down, up, SCALING)

    seen = x if mask is None else x * mask
    expected = nn.functional.linear(x, weight, bias) + SCALING * seen @ down.T @ up.T
    torch.testing.assert_close(fused(*leaves), expected)
    assert torch.autograd.gradcheck(fused, leaves)
    x, weight, _, down, up, _ = operands(torch.bfloat16)
    factors = [each.float().requires_grad_() for each in (down, up)]
    result = FrozenLinearWithLora.apply(x, weight, None, None, *factors, SCALING)
    result.sum().backward()
    assert result.dtype == torch.bfloat16 and {each.grad.dtype for each in factors} == {torch.float32}  # as they were


def test_fused_and_plain_layers_agree(tiny_model, supervised) -> None:
    """A hook on a base layer must be called, so that the layer is not fused: the same gradients either way."""
    tiny_model.train()
    fused = loss_and_gradients(tiny_model, supervised)
    calls = []
    for module in tiny_model.modules():
        if isinstance(module, MaskedLoraLinear):
            assert can_fuse(module.base_layer, torch.zeros(1))
            module.base_layer.register_forward_hook(lambda *_: calls.append(1))
    assert_same_step(fused, loss_and_gradients(tiny_model, supervised))
    assert calls


def test_what_is_not_plain_is_not_fused() -> None:
    layer, x = nn.Linear(4, 4).requires_grad_(False), torch.zeros(2, 4)
    assert can_fuse(layer, x) and not can_fuse(layer, x.bfloat16())
    for trained in (layer.weight, layer.bias):
        trained.requires_grad_(True)
        assert not can_fuse(layer, x)
        trained.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(layer, x)  # autocast would compute in bfloat16
        assert can_fuse(layer.bfloat16(), x.bfloat16())
    kind = type("Quantized", (nn.Linear,), {})
    assert not can_fuse(kind(4, 4).requires_grad_(False), x)


def test_dropout_acts_in_training_only(tiny_model) -> None:
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config), "right")
    with torch.no_grad():
        expected = tiny_model(**batch).logits
        for module in tiny_model.modules():
            if isinstance(module, MaskedLoraLinear):
                module.lora_dropout["speech"] = nn.Dropout(0.3).eval()
        assert torch.equal(tiny_model(**batch).logits, expected)
        trained = tiny_model.train()(**batch).logits
        assert not torch.allclose(trained, expected, atol=1e-3)
        assert not torch.equal(trained, tiny_model(**batch).logits)


# ---- threads and host syncs ------------------------------------------------------------------------------------------

CALLS = {"forward": 40, "generate": 12}
MOST_WAITS = 7
OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("how", CALLS)
def test_threads_have_masks_of_their_own(tiny_model, how: str) -> None:
    """Two threads call one model, one with audio and one with text alone."""
    config = tiny_model.config
    rows = make_row(config, 4, (40,), 3, seed=1), make_row(config, 9, seed=2)
    batches, start = [collate(config, [row]) for row in rows], threading.Barrier(2)

    @torch.no_grad()
    def call(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return tiny_model(**batch).logits if how == "forward" else tiny_model.generate(**batch, **OPTIONS)

    def run(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        start.wait()
        return [call(batch) for _ in range(CALLS[how])]

    expected, interval = [call(batch) for batch in batches], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(run, batches))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(one, right) for ours, right in zip(found, expected) for one in ours)


class HostSyncs(TorchDispatchMode):
    """Counts the operations for whose result the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_decoding_waits_no_more_often_than_the_base(tiny_model, tiny_bases) -> None:
    """Of a mixed batch, whose audio is encoded and counted once; per token there is nothing more."""
    base = AutoModelForCausalLM.from_pretrained(tiny_bases[1])
    mixed = collate(tiny_model.config, mixed_rows(tiny_model.config))
    text = {"input_ids": mixed["input_ids"].clamp(max=100), "attention_mask": mixed["attention_mask"]}
    waits = []
    for model, batch in ((tiny_model, mixed), (tiny_model, text), (base, text)):
        counts = []
        for tokens in (4, 12):
            with HostSyncs() as syncs:
                model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            counts.append(len(syncs.found))
        waits.append(counts[1] - counts[0])
    assert len(set(waits)) == 1, waits


def test_training_steps_wait_a_few_times(tiny_model) -> None:
    """For the slots' number, the supervised positions, the real frames and the masks, two of them transformers'."""
    batch = labelled(tiny_model.config, mixed_rows(tiny_model.config))
    tiny_model.train()
    with HostSyncs() as syncs:
        tiny_model(**batch).loss.backward()
    assert len(syncs.found) <= MOST_WAITS, syncs.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_rows_that_are_masked_out_have_the_bits_of_the_base(tiny_model, monkeypatch, dtype, grad: bool) -> None:
    layer = next(module for module in tiny_model.modules() if isinstance(module, MaskedLoraLinear))
    base = layer.base_layer.to(dtype)
    x = torch.randn(3, 7, base.in_features).to(dtype)
    mask = torch.tensor([1.0, 0, 1])[:, None, None].expand(3, 7, 1).to(dtype)
    with torch.set_grad_enabled(grad):
        monkeypatch.setattr(lora._CALL, "masks", {"speech": mask})
        found, expected = layer(x), base(x)
        monkeypatch.setattr(lora._CALL, "masks", {"speech": None})
        everywhere = layer(x)
    assert torch.equal(found[1], expected[1])
    for row in (0, 2):
        assert not torch.equal(found[row], expected[row])
        torch.testing.assert_close(found[row], everywhere[row])


def test_answers_follow_weights_that_change(tiny_model, monkeypatch) -> None:
    """A base in bfloat16 has A and B in its precision, made once: anew after a change in place, and after training."""
    layer = next(module for module in tiny_model.modules() if isinstance(module, MaskedLoraLinear)).eval()
    name, x = next(iter(layer.lora_A)), torch.randn(3, layer.in_features).bfloat16()
    layer.base_layer.bfloat16()
    up = layer.lora_B[name].weight
    monkeypatch.setattr(lora._CALL, "masks", {name: None})

    def trained() -> None:  # by an optimizer that writes past autograd
        layer.train()(x)
        up.data.mul_(-2)
        layer.eval()

    with torch.no_grad():
        for change in (lambda: up.mul_(3), trained, lambda: layer.lora_A[name].weight.neg_()):
            before = layer(x)
            kept = layer._kept
            assert torch.equal(layer(x), before) and layer._kept is kept
            change()
            expected = layer._updated(layer.base_layer(x), x, name, None)
            assert torch.equal(layer(x), expected) and not torch.equal(expected, before)


def test_a_language_model_by_itself_is_refused(tiny_model) -> None:
    with pytest.raises(RuntimeError, match="LlamaModel"):
        tiny_model.get_decoder()(input_ids=torch.tensor([[7, 8]]))


# ---- PEFT on top -----------------------------------------------------------------------------------------------------

TARGETS = r".*language_model.*\.(q_proj|down_proj)"


@pytest.fixture
def batches(shared_tiny_model) -> list[dict[str, torch.Tensor]]:
    """One with audio, and one of text."""
    config = shared_tiny_model.config
    return [collate(config, [make_row(config, 4, (150,), 6, seed=1)]), collate(config, [make_row(config, 9, seed=2)])]


def test_adapters_of_peft_act_train_and_are_switched_off(tiny_model, batches) -> None:
    """On all rows; AudioLLM's own adapter stays as it is, also where PEFT's are disabled."""
    with torch.no_grad():
        expected = [tiny_model(**batch).logits for batch in batches]
    own = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    tiny_model.requires_grad_(False)
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=TARGETS))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".default." in name for name in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    labels = batches[0]["input_ids"].masked_fill(batches[0]["input_ids"] > 127, -100)
    for _ in range(2):  # B is zero in the first step, so that A has a gradient in the second
        model.train()(**batches[0], labels=labels).loss.backward()
        optimizer.step()
    assert all(bool(parameter.grad.any()) for parameter in trained.values())
    model.eval()
    with torch.no_grad():
        for batch, logits in zip(batches, expected):
            assert not torch.allclose(model(**batch).logits, logits, atol=1e-3)
            with model.disable_adapter():
                assert torch.equal(model(**batch).logits, logits)
    kept = tiny_model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in own.items() if name in kept)


@torch.no_grad()
def test_adapters_of_peft_are_saved_loaded_merged_and_taken_off(tiny_model, batches, tmp_path) -> None:
    plain, batch = copy.deepcopy(tiny_model), batches[0]
    expected, options = plain(**batch).logits, {"max_new_tokens": 4}
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)).eval()
    adapted, answer = [model(**each).logits for each in batches], model.generate(**batch, **options)
    assert not torch.allclose(adapted[0], expected, atol=1e-3)
    with pytest.raises(ValueError, match="'default'"):
        tiny_model.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    assert all(torch.equal(loaded(**each).logits, logits) for each, logits in zip(batches, adapted))
    assert torch.equal(loaded.generate(**batch, **options), answer)
    assert torch.equal(loaded.unload()(**batch).logits, expected)

    merged = model.merge_and_unload()
    assert isinstance(merged, AudioLlmForConditionalGeneration)
    merged.save_pretrained(tmp_path / "merged")
    assert merged.config.weight_format == "full"  # an adapter checkpoint would lose what was merged
    again = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "merged")
    for each, logits in zip(batches, adapted):
        torch.testing.assert_close(merged(**each).logits, logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(again(**each).logits, merged(**each).logits)
    with pytest.raises(ValueError, match="weights='adapter'"):
        merged.save_pretrained(tmp_path / "adapter", weights="adapter")


def test_a_model_that_lost_its_layers_is_not_saved(tiny_model, tmp_path) -> None:
    model = get_peft_model(tiny_model, IA3Config(target_modules=["q_proj"], feedforward_modules=[])).unload()
    with pytest.raises(ValueError, match="12 are left"):
        model.save_pretrained(tmp_path)


def test_what_peft_cannot_do_here_is_refused(tiny_model) -> None:
    plain = LoraConfig(target_modules=TARGETS)
    for config, name, words in (
        (LoraConfig(target_modules=TARGETS, use_dora=True), "default", "plain LoRA"),
        (plain, "speech", "'speech'"),
    ):
        with pytest.raises(ValueError, match=words):
            get_peft_model(copy.deepcopy(tiny_model), config, adapter_name=name)
    model = get_peft_model(copy.deepcopy(tiny_model), plain)
    with pytest.raises(ValueError, match="merge_adapters"):
        model.merge_adapter(adapter_names=["speech"])
    with pytest.raises(NotImplementedError, match="get_peft_model"):
        tiny_model.add_adapter(plain)
    with pytest.raises(NotImplementedError, match="PeftModel"):
        tiny_model.load_adapter("folder")

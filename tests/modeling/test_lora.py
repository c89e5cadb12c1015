"""The LoRA layer: the fused operation and autograd's own way agree; threads, host syncs, dropout, PEFT's adapters."""

import copy
import sys
import threading

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


def operands(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (ROWS, IN_FEATURES),
        "weight": (OUT_FEATURES, IN_FEATURES),
        "bias": (OUT_FEATURES,),
        "down": (RANK, IN_FEATURES),
        "up": (OUT_FEATURES, RANK),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(name in ("x", "down", "up"))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("with_mask", [False, True], ids=["all-rows", "some-rows"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
def test_gradients_are_those_of_the_formula(with_mask: bool, with_bias: bool) -> None:
    given = operands()
    mask = torch.tensor([[1.0], [0], [1], [1], [0], [1]], dtype=torch.float64) if with_mask else None
    bias = given["bias"] if with_bias else None

    def fused(x, down, up):
        return FrozenLinearWithLora.apply(x, given["weight"], bias, mask, down, up, SCALING)

    seen = given["x"] if mask is None else given["x"] * mask
    expected = (
        nn.functional.linear(given["x"], given["weight"], bias) + SCALING * seen @ given["down"].T @ given["up"].T
    )
    torch.testing.assert_close(fused(given["x"], given["down"], given["up"]), expected)
    assert torch.autograd.gradcheck(fused, (given["x"], given["down"], given["up"]))


def test_trained_factors_keep_their_precision() -> None:
    given = {name: value.detach() for name, value in operands(torch.bfloat16).items()}
    down, up = (given[name].float().requires_grad_() for name in ("down", "up"))
    result = FrozenLinearWithLora.apply(given["x"], given["weight"], None, None, down, up, SCALING)
    result.sum().backward()
    assert result.dtype == torch.bfloat16
    assert down.grad.dtype == up.grad.dtype == torch.float32


def test_fused_and_plain_layers_agree(tiny_model) -> None:
    """A hook on a base layer must be called, so that the layer is not fused: the same gradients either way."""
    tiny_model.train()
    batch = labelled(tiny_model.config, mixed_rows(tiny_model.config))
    fused = loss_and_gradients(tiny_model, batch)
    calls = []
    for module in tiny_model.modules():
        if isinstance(module, MaskedLoraLinear):
            assert can_fuse(module.base_layer, torch.zeros(1))
            module.base_layer.register_forward_hook(lambda *_: calls.append(1))
    assert_same_step(fused, loss_and_gradients(tiny_model, batch))
    assert calls


def test_what_is_not_plain_is_not_fused() -> None:
    layer, x = nn.Linear(4, 4), torch.zeros(2, 4)
    assert not can_fuse(layer, x)  # it trains
    layer.requires_grad_(False)
    assert can_fuse(layer, x) and not can_fuse(layer, x.bfloat16())
    for trained in (layer.weight, layer.bias):
        trained.requires_grad_(True)
        assert not can_fuse(layer, x)
        trained.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(layer, x)  # autocast would compute in bfloat16
        assert can_fuse(layer.bfloat16(), x.bfloat16())

    class Quantized(nn.Linear):
        pass

    assert not can_fuse(Quantized(4, 4).requires_grad_(False), x)


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


@pytest.mark.parametrize("how", ["forward", "generate"])
def test_threads_have_masks_of_their_own(tiny_model, how: str) -> None:
    """Two threads call one model, one with audio and one with text alone."""
    config = tiny_model.config
    batches = [
        collate(config, [make_row(config, 4, (40,), 3, seed=1)]),
        collate(config, [make_row(config, 9, seed=2)]),
    ]

    def call(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            if how == "forward":
                return tiny_model(**batch).logits
            return tiny_model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)

    expected = [call(batch) for batch in batches]
    wrong, start = [], threading.Barrier(2)

    def run(index: int) -> None:
        start.wait()
        wrong.extend(index for _ in range(CALLS[how]) if not torch.equal(call(batches[index]), expected[index]))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


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
    config = tiny_model.config
    base = AutoModelForCausalLM.from_pretrained(tiny_bases[1])
    mixed = collate(config, mixed_rows(config))
    text = {"input_ids": mixed["input_ids"].clamp(max=100), "attention_mask": mixed["attention_mask"]}
    waits = {}
    for name, model, batch in (("mixed", tiny_model, mixed), ("text", tiny_model, text), ("base", base, text)):
        counts = []
        for tokens in (4, 12):
            with HostSyncs() as syncs:
                model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            counts.append(len(syncs.found))
        waits[name] = counts[1] - counts[0]
    assert waits["mixed"] == waits["text"] == waits["base"]


def test_training_steps_wait_a_few_times(tiny_model) -> None:
    """For the slots' number, the supervised positions, the real frames and the masks, two of them transformers'."""
    batch = labelled(tiny_model.config, mixed_rows(tiny_model.config))
    tiny_model.train()
    with HostSyncs() as syncs:
        tiny_model(**batch).loss.backward()
    assert len(syncs.found) <= MOST_WAITS, syncs.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_rows_that_are_masked_out_have_the_bits_of_the_base(tiny_model, dtype: torch.dtype, grad: bool) -> None:
    layer = next(module for module in tiny_model.modules() if isinstance(module, MaskedLoraLinear))
    base = layer.base_layer.to(dtype)
    x = torch.randn(3, 7, base.in_features).to(dtype)
    mask = torch.tensor([1.0, 0, 1])[:, None, None].expand(3, 7, 1).to(dtype)
    with torch.set_grad_enabled(grad):
        found, expected = run_layer(layer, x, {"speech": mask}), base(x)
        everywhere = run_layer(layer, x, {"speech": None})
    assert torch.equal(found[1], expected[1])
    for row in (0, 2):
        assert not torch.equal(found[row], expected[row])
        torch.testing.assert_close(found[row], everywhere[row])


def run_layer(layer: MaskedLoraLinear, x: torch.Tensor, masks: dict) -> torch.Tensor:
    lora._CALL.masks = masks
    try:
        return layer(x)
    finally:
        lora._CALL.masks = None


def test_a_language_model_by_itself_is_refused(tiny_model) -> None:
    with pytest.raises(RuntimeError, match="LlamaModel"):
        tiny_model.get_decoder()(input_ids=torch.tensor([[7, 8]]))


# ---- PEFT on top -----------------------------------------------------------------------------------------------------

TARGETS = r".*language_model.*\.(q_proj|down_proj)"


@pytest.fixture
def batches(tiny_model) -> dict[str, dict[str, torch.Tensor]]:
    config = tiny_model.config
    return {
        "audio": collate(config, [make_row(config, 4, (150,), 6, seed=1)]),
        "text": collate(config, [make_row(config, 9, seed=2)]),
    }


def test_adapters_of_peft_act_train_and_are_switched_off(tiny_model, batches) -> None:
    """On all rows; AudioLLM's own adapter stays as it is, also where PEFT's are disabled."""
    tiny_model.eval()
    with torch.no_grad():
        expected = {kind: tiny_model(**batch).logits for kind, batch in batches.items()}
    own = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    tiny_model.requires_grad_(False)
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=TARGETS))
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".default." not in name} == set()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    labels = batches["audio"]["input_ids"].masked_fill(batches["audio"]["input_ids"] > 127, -100)
    for _ in range(2):  # B is zero in the first step, so that A has a gradient in the second
        model.train()(**batches["audio"], labels=labels).loss.backward()
        optimizer.step()
    assert all(
        bool(p.grad.any()) for name, p in model.named_parameters() if "language_model" in name and p.requires_grad
    )
    model.eval()
    with torch.no_grad():
        for kind, batch in batches.items():
            assert not torch.allclose(model(**batch).logits, expected[kind], atol=1e-3)
            with model.disable_adapter():
                assert torch.equal(model(**batch).logits, expected[kind])
    kept = tiny_model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in own.items() if name in kept)


@torch.no_grad()
def test_adapters_of_peft_are_saved_loaded_and_merged(tiny_model, batches, tmp_path) -> None:
    tiny_model.eval()
    plain = copy.deepcopy(tiny_model)
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)).eval()
    expected = {kind: model(**batch).logits for kind, batch in batches.items()}
    answer = model.generate(**batches["audio"], max_new_tokens=4, do_sample=False)
    with pytest.raises(ValueError, match="'default'"):
        tiny_model.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    for kind, batch in batches.items():
        assert torch.equal(loaded(**batch).logits, expected[kind])
    assert torch.equal(loaded.generate(**batches["audio"], max_new_tokens=4, do_sample=False), answer)

    merged = model.merge_and_unload()
    assert isinstance(merged, AudioLlmForConditionalGeneration)
    merged.save_pretrained(tmp_path / "merged")
    assert merged.config.weight_format == "full"  # an adapter checkpoint would lose what was merged
    again = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "merged")
    for kind, batch in batches.items():
        torch.testing.assert_close(merged(**batch).logits, expected[kind], atol=1e-4, rtol=1e-4)
        assert torch.equal(again(**batch).logits, merged(**batch).logits)
    with pytest.raises(ValueError, match="weights='adapter'"):
        merged.save_pretrained(tmp_path / "adapter", weights="adapter")


@torch.no_grad()
def test_adapters_of_peft_are_taken_off_again(tiny_model, batches) -> None:
    expected = tiny_model(**batches["audio"]).logits
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert not torch.allclose(model(**batches["audio"]).logits, expected, atol=1e-3)
    assert torch.equal(model.unload()(**batches["audio"]).logits, expected)


def test_a_model_that_lost_its_layers_is_not_saved(tiny_model, tmp_path) -> None:
    model = get_peft_model(tiny_model, IA3Config(target_modules=["q_proj"], feedforward_modules=[])).unload()
    with pytest.raises(ValueError, match="12 are left"):
        model.save_pretrained(tmp_path)


def test_what_peft_cannot_do_here_is_refused(tiny_model) -> None:
    with pytest.raises(ValueError, match="plain LoRA"):
        get_peft_model(copy.deepcopy(tiny_model), LoraConfig(target_modules=TARGETS, use_dora=True))
    with pytest.raises(ValueError, match="'speech'"):
        get_peft_model(copy.deepcopy(tiny_model), LoraConfig(target_modules=TARGETS), adapter_name="speech")
    with pytest.raises(ValueError, match="merge_adapters"):
        model = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(target_modules=TARGETS))
        model.merge_adapter(adapter_names=["speech"])
    with pytest.raises(NotImplementedError, match="get_peft_model"):
        tiny_model.add_adapter(LoraConfig(target_modules=TARGETS))
    with pytest.raises(NotImplementedError, match="PeftModel"):
        tiny_model.load_adapter("folder")

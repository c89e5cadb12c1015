"""Tiny random bases with the real classes' behaviour, for tests of invariants that do not depend on what weights mean.

Weights are drawn wider than a fresh model's, so that logits differ between tokens by far more than rounding does.
"""

import math
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

#: Wider than the tokenizer's 103 tokens, as real embedding matrices often are.
TEXT_VOCAB_SIZE = 128
HIDDEN_SIZE = 32
NUM_MEL_BINS = 80
WEIGHT_STD = 0.2
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Fields that every tiny decoder language model shares.
TEXT_FIELDS = {
    "vocab_size": TEXT_VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": WEIGHT_STD,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 4,
}


def whisper_config(**fields) -> WhisperConfig:
    """A Whisper of two encoder layers, with the real ones' 3000-frame window."""
    defaults = {
        "vocab_size": 64,
        "num_mel_bins": NUM_MEL_BINS,
        "d_model": HIDDEN_SIZE,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "max_target_positions": 32,
        "init_std": WEIGHT_STD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "decoder_start_token_id": 1,
        "begin_suppress_tokens": None,
    }
    return WhisperConfig(**{**defaults, **fields})


def llama_config(**fields) -> LlamaConfig:
    """A Llama of two layers with grouped-query attention and a tied head, as the small Llamas have."""
    return LlamaConfig(**{**TEXT_FIELDS, "tie_word_embeddings": True, **fields})


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character, and the special tokens of a chat model."""
    characters = [*SPECIAL_TOKENS, *sorted(set(string.printable) - set("\x0b\x0c\r"))]
    vocabulary = {token: index for index, token in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_audio_base(folder: Path, seed: int = 0, **fields) -> str:
    """Saves a random Whisper with its feature extractor; returns the folder."""
    torch.manual_seed(seed)
    WhisperForConditionalGeneration(whisper_config(**fields)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=NUM_MEL_BINS).save_pretrained(folder)
    return str(folder)


def save_talking_whisper(folder: Path, seed: int = 0, languages: Mapping[str, int] | None = None) -> str:
    """Saves a random Whisper that writes letters, if need be of several languages, each a token; returns the folder."""
    character_tokenizer().save_pretrained(folder)
    save_audio_base(folder, seed)
    if languages:
        GenerationConfig(
            is_multilingual=True,
            lang_to_id={f"<|{code}|>": token for code, token in languages.items()},
            task_to_id={"transcribe": 50, "translate": 51},
            no_timestamps_token_id=63,
            decoder_start_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        ).save_pretrained(folder)
    return str(folder)


def save_text_base(folder: Path, config: LlamaConfig | None = None, seed: int = 1, dtype=torch.float32) -> str:
    """Saves a random causal language model with its tokenizer; returns the folder."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config or llama_config()).to(dtype).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


def randomise_trainables(model: Any, seed: int = 2, std: float = WEIGHT_STD) -> Any:
    """Gives projector, boundary vectors and both LoRA factors values as after a long training, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in set(model.trainable_names()):
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model


def hearing_model(bases: tuple[str, str], processor: AudioLlmProcessor) -> AudioLlmForConditionalGeneration:
    """A tiny model with the readout of pieces, which hears letters."""
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *bases, lora_rank=4, projector_readout="pieces"
    )
    randomise_trainables(model)
    readout = model.model.multi_modal_projector.readout
    with torch.no_grad():
        readout.lexicon.fill_(False)
        readout.lexicon[processor.tokenizer(" abcdefghijklmnopqrstuvwxyz")["input_ids"]] = True
        readout.log_scale.fill_(math.log(6.0))
    return model.eval()


def enable_checkpointing(model, settings: dict) -> None:
    """Turns activation checkpointing on, under the name that the installed transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)

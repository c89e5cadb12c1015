"""
Estimate the GPU memory of training an adapter, from the shapes of its two bases.

    python benchmarks/memory.py      # prints the tables of docs/performance.md

Frozen bases are in bfloat16, what trains in float32 with AdamW, attention is the fused kernel and LoRA has no dropout.
Nothing is run: parameters are counted, and a formula counts the tensors that a layer keeps for the backward pass.
"""

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from training_peers import LORA_RANK, TARGETS
from transformers import LlamaConfig, WhisperConfig

GB = 1e9
BF16, FP32 = 2, 4
#: A trained value: float32 weight, gradient and AdamW's two moments.
TRAINED_BYTES = 4 * FP32
FRAMES_PER_S, PROMPT_TOKENS, ANSWER_TOKENS_PER_S = 50, 47, 3.5
#: CUDA's context and the libraries' scratch memory, and the share of a device that the allocator loses.
RESERVED_GB, FRAGMENTATION = 1.5, 0.05
DEVICES_GB = (24, 48, 80, 141)
#: Hidden size, MLP size, layers, heads, and whether the head is tied to the embeddings.
LLAMAS = {
    "Llama-3.2-1B": (2048, 8192, 16, 32, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, True),
    "Llama-3.1-8B": (4096, 14336, 32, 32, False),
}


def text_config(name: str) -> LlamaConfig:
    """Return the configuration of a Llama by its name."""
    hidden, mlp, layers, heads, tied = LLAMAS[name]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128_256,
        max_position_embeddings=131_072,
        tie_word_embeddings=tied,
    )


def audio_config() -> WhisperConfig:
    """Return the configuration of whisper-large-v3-turbo's encoder, with as small a decoder as there can be."""
    return WhisperConfig(
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        num_mel_bins=128,
        decoder_layers=1,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
    )


def model_config(audio: WhisperConfig, text: LlamaConfig) -> AudioLlmConfig:
    """Return the configuration of an AudioLLM of these bases, with LoRA on all linear modules."""
    return AudioLlmConfig(audio_config=audio, text_config=text, lora_rank=LORA_RANK, lora_target_modules=TARGETS)


def parameters(config: AudioLlmConfig) -> tuple[int, int, int]:
    """Return how many parameters the encoder and the language model have, and how many train."""
    with torch.device("meta"):
        model = AudioLlmForConditionalGeneration(config)
    counts = {"audio": 0, "text": 0, "trained": 0}
    for name, each in model.named_parameters():
        counts["trained" if each.requires_grad else "audio" if "audio_tower" in name else "text"] += each.numel()
    return counts["audio"], counts["text"], counts["trained"]


def row_gb(config: AudioLlmConfig, seconds: float, checkpointing: bool) -> float:
    """Return the memory of a batch's row: what layers keep, the projector's tensors, and the logits of the answer."""
    text, stacked = config.text_config, config.stack_factor * config.audio_config.d_model
    audio, answer = seconds * FRAMES_PER_S / config.stack_factor, seconds * ANSWER_TOKENS_PER_S
    # Two norms; queries, repeated keys and values, and output; the four tensors of the MLP.
    norms = 2 * (FP32 + BF16 + BF16) * text.hidden_size
    layer = norms + BF16 * 4 * text.num_attention_heads * text.head_dim + BF16 * 4 * text.intermediate_size
    per_layer = BF16 * text.hidden_size if checkpointing else layer
    kept = text.num_hidden_layers * per_layer + (layer if checkpointing else 0)
    projector = (FP32 + BF16) * stacked + BF16 * 2 * config.projector_hidden_size + BF16 * text.hidden_size
    logits = answer * text.vocab_size * (FP32 + BF16)
    return ((PROMPT_TOKENS + audio + answer) * kept + audio * projector + logits) / GB


def main() -> None:
    """Print both tables in Markdown."""
    devices = " | ".join(f"{device} GB" for device in DEVICES_GB)
    rows = []
    print("| language model | parameters | trained | adapter, MB | weights and optimizer, GB |\n|---|---|---|---|---|")
    for name in LLAMAS:
        config = model_config(audio_config(), text_config(name))
        audio, text, trained = parameters(config)
        fixed = (BF16 * (text + audio) + TRAINED_BYTES * trained) / GB
        print(f"| {name} | {text / 1e9:.2f} G | {trained / 1e6:.0f} M | {trained * FP32 / 1e6:.0f} | {fixed:.1f} |")
        for seconds in (12, 30):
            for checkpointing in (False, True):
                row = row_gb(config, seconds, checkpointing)
                free = (device * (1 - FRAGMENTATION) - RESERVED_GB - fixed for device in DEVICES_GB)
                fitting = " | ".join(str(max(0, int(each / row))) for each in free)
                rows.append(f"| {name} | {seconds} s | {'yes' if checkpointing else 'no'} | {row:.2f} | {fitting} |")
    print(f"\n| language model | audio | checkpointing | GB a row | {devices} |\n|{'---|' * (4 + len(DEVICES_GB))}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

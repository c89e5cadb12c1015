"""
Estimates the GPU memory of training an adapter, from the shapes of its two bases.

    python benchmarks/memory.py      # prints the tables of docs/performance.md

Frozen bases are in bfloat16, what trains in float32 with AdamW, attention is the fused kernel and LoRA has no dropout.
Nothing is run: a formula counts the tensors that a layer keeps for the backward pass.
"""

from dataclasses import dataclass

GB = 1e9
BF16, FP32 = 2, 4
#: A trained value: float32 weight, gradient and AdamW's two moments.
TRAINED_BYTES = 4 * FP32
MLP_WIDTH_FACTOR, STACK_FACTOR, LORA_RANK = 4, 4, 16
FRAMES_PER_S, PROMPT_TOKENS, ANSWER_TOKENS_PER_S = 50, 47, 3.5
#: CUDA's context and the libraries' scratch memory, and the share of a device that the allocator loses.
RESERVED_GB, FRAGMENTATION = 1.5, 0.05
DEVICES_GB = (24, 48, 80, 141)


@dataclass(frozen=True)
class Text:
    """A language model of Llama's layout."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's linear modules, each of which has LoRA."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden)]
        return [*attention, (self.hidden, self.mlp), (self.hidden, self.mlp), (self.mlp, self.hidden)]

    @property
    def parameters(self) -> int:
        """Of embeddings, layers and head."""
        layers = self.layers * (sum(inputs * outputs for inputs, outputs in self.linears) + 2 * self.hidden)
        return layers + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def lora(self) -> int:
        """Parameters of LoRA on all linear modules."""
        return self.layers * LORA_RANK * sum(inputs + outputs for inputs, outputs in self.linears)

    @property
    def kept_per_token(self) -> int:
        """Bytes that one layer keeps for the backward pass: norms, attention (keys and values repeated), MLP."""
        width = self.heads * self.head_dim
        norms = 2 * (FP32 + BF16 + BF16) * self.hidden
        return norms + BF16 * 4 * width + BF16 * 4 * self.mlp


TEXTS = (
    Text("Llama-3.2-1B", 2048, 16, 32, 8, 64, 8192, 128256, True),
    Text("Llama-3.2-3B", 3072, 28, 24, 8, 128, 8192, 128256, True),
    Text("Llama-3.1-8B", 4096, 32, 32, 8, 128, 14336, 128256, False),
)
#: The encoder of whisper-large-v3-turbo.
ENCODER_WIDTH, ENCODER_PARAMETERS = 1280, 636_968_960


def projector(text: Text) -> int:
    """Parameters of the default projector: stacked frames, SwiGLU of four times the language model's width, two norms."""
    stacked, inner = STACK_FACTOR * ENCODER_WIDTH, MLP_WIDTH_FACTOR * text.hidden
    return stacked * inner + inner // 2 * text.hidden + stacked + text.hidden


def fixed_gb(text: Text) -> float:
    """Weights and optimizer states."""
    return (BF16 * (text.parameters + ENCODER_PARAMETERS) + TRAINED_BYTES * (text.lora + projector(text))) / GB


def row_gb(text: Text, seconds: float, checkpointing: bool) -> float:
    """One row of a batch: what layers keep, the projector's tensors, and logits of the answer in float32 and bfloat16."""
    audio, answer = seconds * FRAMES_PER_S / STACK_FACTOR, seconds * ANSWER_TOKENS_PER_S
    tokens = PROMPT_TOKENS + audio + answer
    layer_inputs = text.layers * BF16 * text.hidden + text.kept_per_token
    layers = tokens * (layer_inputs if checkpointing else text.layers * text.kept_per_token)
    stacked, inner = STACK_FACTOR * ENCODER_WIDTH, MLP_WIDTH_FACTOR * text.hidden
    projected = audio * ((FP32 + BF16) * stacked + BF16 * 2 * inner + BF16 * text.hidden)
    return (layers + projected + answer * text.vocabulary * (FP32 + BF16)) / GB


def main() -> None:
    """Prints both tables in Markdown."""
    print("| language model | parameters | trained | adapter, MB | weights and optimizer, GB |\n|---|---|---|---|---|")
    for text in TEXTS:
        trained = text.lora + projector(text)
        numbers = f"{text.parameters / 1e9:.2f} G | {trained / 1e6:.0f} M | {trained * FP32 / 1e6:.0f}"
        print(f"| {text.name} | {numbers} | {fixed_gb(text):.1f} |")
    devices = " | ".join(f"{device} GB" for device in DEVICES_GB)
    print(f"\n| language model | audio | checkpointing | GB a row | {devices} |\n|{'---|' * (4 + len(DEVICES_GB))}")
    for text in TEXTS:
        for seconds in (12, 30):
            for checkpointing in (False, True):
                row = row_gb(text, seconds, checkpointing)
                free = (device * (1 - FRAGMENTATION) - RESERVED_GB - fixed_gb(text) for device in DEVICES_GB)
                rows = " | ".join(str(max(0, int(each / row))) for each in free)
                print(f"| {text.name} | {seconds} s | {'yes' if checkpointing else 'no'} | {row:.2f} | {rows} |")


if __name__ == "__main__":
    main()

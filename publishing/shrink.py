"""
`audiollm shrink`: write an adapter in fewer bytes, with LoRA of lower rank and weights in 16 or 8 bits.

    audiollm shrink --model runs/mine --output_dir runs/small --lora_rank 4 --projector_8bit

Each LoRA update is replaced by the nearest one of that rank (its largest singular values; Eckart and Young 1936), without
training. The share of the updates that is kept is printed; `audiollm evaluate` measures the effect on answers.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from audiollm import AudioLlmConfig
from audiollm.command_line.files import appearing_whole, naming_the_disk
from audiollm.command_line.option_parser import option, parser_of
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_NAME

from .push import purpose_of

LORA_A, LORA_B = ".lora_A.", ".lora_B."
ADAPTER = "adapter"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: The projector's largest matrix, and the gain of the norm before it, which takes up the matrix's scale.
PROJECTOR = "model.multi_modal_projector."
PROJECTOR_MATRIX, PROJECTOR_GAIN = f"{PROJECTOR}linear_1.weight", f"{PROJECTOR}norm_pre.weight"
#: Ends of the names of other matrices that follow a norm, and of its gain.
MATRIX_AND_GAIN = ((".linear_in.weight", ".norm_in.weight"), (".gate.weight", ".norm.weight"))
EIGHT_BITS = torch.float8_e4m3fn
MIB = 1 << 20


@dataclass
class ShrinkArguments:
    """Options of `audiollm shrink`."""

    GROUPS: ClassVar = {"folders": ("model", "output_dir"), "size": ("lora_rank", "dtype", "projector_8bit")}

    model: str = field(metadata={"help": "Folder of a checkpoint that holds an adapter."})
    output_dir: str = field(metadata={"help": "Folder for the smaller one; new or empty."})
    lora_rank: int | None = option(None, "Rank that LoRA is cut to; without it, or below it, ranks stay.")
    dtype: str = option("bfloat16", "Precision of the stored weights.", choices=list(DTYPES))
    projector_8bit: bool = option(False, "Store the projector's matrices that follow a norm in 8 bits (float8).")


class ShrinkError(ValueError):
    """A checkpoint that cannot be shrunk as asked. The message says why."""


def low_rank(down: torch.Tensor, up: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """
    Return the factors of the nearest update of a lower rank, from 1 to `r`, and the kept share of its squared norm.

    The factors are LoRA's A, `down` `(r, in_features)`, and B, `up` `(out_features, r)`. An update of zero is kept whole.
    """
    # The singular values of B A are those of the small r x r product of the triangular parts.
    up_basis, up_part = torch.linalg.qr(up.float())
    down_basis, down_part = torch.linalg.qr(down.float().T)
    left, values, right = torch.linalg.svd(up_part @ down_part.T)
    energy = values.square()
    kept = float(energy[:rank].sum() / energy.sum()) if energy.sum() > 0 else 1.0
    root = values[:rank].sqrt()
    return root[:, None] * (right[:rank] @ down_basis.T), (up_basis @ left[:, :rank]) * root, kept


def in_eight_bits(weights: dict[str, torch.Tensor]) -> None:
    """
    Convert the projector's matrices that follow a norm to float8 (E4M3), in place; ShrinkError if the first follows none.

    float8 holds no number below 2**-9. A matrix is therefore multiplied by the largest power of two that keeps it in
    range, and the gain of the norm before it is divided by the same: their product changes by rounding alone.
    """
    if PROJECTOR_GAIN not in weights:
        raise ShrinkError(
            "--projector_8bit needs a projector with a norm before its first matrix (projector_pre_norm)."
        )
    for name, gain in eight_bit_matrices(weights).items():
        matrix = weights[name].float()
        scale = torch.exp2(torch.floor(torch.log2(torch.finfo(EIGHT_BITS).max / matrix.abs().amax())))
        weights[name] = (matrix * scale).to(EIGHT_BITS)
        weights[gain] = weights[gain].float() / scale


def eight_bit_matrices(names: Iterable[str]) -> dict[str, str]:
    """Return the weights of a checkpoint that can be stored in 8 bits, with the names of the gains before them."""
    found = {PROJECTOR_MATRIX: PROJECTOR_GAIN}
    for name in names:
        for matrix, gain in MATRIX_AND_GAIN:
            if name.startswith(PROJECTOR) and name.endswith(matrix):
                found[name] = name.removesuffix(matrix) + gain
    return found


def shrink(
    folder: Path,
    output: Path,
    rank: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    projector_8bit: bool = False,
) -> float:
    """
    Write a smaller copy of a checkpoint; return the kept share of the updates' squared norm, on average over layers.

    Args:
        folder: a checkpoint of an adapter (`weight_format`), in one file.
        output: a new or empty folder. It gets the files that belong on the Hub, the code included, and none of training.
        rank: new rank of LoRA; None leaves it.
        dtype: of the stored weights. Single numbers and masks stay as they are.
        projector_8bit: see [`in_eight_bits`].

    Raises:
        ShrinkError: the folder is no such checkpoint, the rank is below 1, or `output` holds something.
    """
    if rank is not None and rank < 1:
        raise ShrinkError(f"--lora_rank is {rank}; expected 1 or more.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ShrinkError(f"--output_dir {output} is not empty; expected a new folder.")
    for name in ("config.json", SAFE_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ShrinkError(f"--model {folder} has no {name}; expected the folder of an adapter's checkpoint.")
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (given := stored.get("weight_format")) != ADAPTER:
        raise ShrinkError(f"--model {folder} holds weights of the format {given!r}; expected {ADAPTER!r}.")
    config = AudioLlmConfig.from_pretrained(folder)
    weights, kept = load_file(folder / SAFE_WEIGHTS_NAME), []
    for name in [name for name in weights if LORA_A in name]:
        if rank is not None and len(weights[name]) > rank:
            partner = name.replace(LORA_A, LORA_B)
            weights[name], weights[partner], share = low_rank(weights[name], weights[partner], rank)
            kept.append(share)
    if projector_8bit:
        in_eight_bits(weights)
    for name, fields in config.lora_adapters.items():
        settings = config.adapter_settings(name)
        if rank is not None and settings["rank"] > rank:  # alpha is such that updates keep their scale
            fields.update(rank=rank, alpha=settings["alpha"] * rank / settings["rank"])
    stored["lora_adapters"] = config.lora_adapters
    for part in ("audio_config", "text_config"):
        stored.get(part, {}).pop("_name_or_path", None)  # a base's path on somebody's machine
    with appearing_whole(output) as partial:
        for path in sorted(folder.iterdir()):
            if path.is_file() and (path.suffix == ".py" or purpose_of(path.name)):
                shutil.copyfile(path, partial / path.name)
        (partial / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, weight in weights.items():
            if weight.numel() > 1 and weight.is_floating_point() and weight.dtype != EIGHT_BITS:
                weights[name] = weight.to(dtype)
            weights[name] = weights[name].contiguous()
        save_file(weights, partial / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    return sum(kept) / len(kept) if kept else 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm shrink`."""
    parser = parser_of(ShrinkArguments, "shrink", "--model FOLDER --output_dir FOLDER [options]", __doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    folder, output = Path(options.model).expanduser(), Path(options.output_dir).expanduser()
    try:
        with naming_the_disk(output, "make room and give the command again"):
            kept = shrink(folder, output, options.lora_rank, DTYPES[options.dtype], options.projector_8bit)
    except (ShrinkError, OSError) as error:
        sys.exit(f"audiollm shrink: {error}")
    before, after = ((place / SAFE_WEIGHTS_NAME).stat().st_size / MIB for place in (folder, output))
    print(f"{output}: {after:.1f} MiB instead of {before:.1f}; {kept:.1%} of LoRA's squared norm is kept.")

"""
What of a checkpoint's folder belongs on the Hub: what a list of names allows, and nothing else.

Optimizer states, pickles, logs, credentials and whatever else lies there stay where they are, and are named with the reason.
Text that is to be uploaded is searched for secrets first.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from .card import weight_files
from .header import CardError
from .record import RECORD_FILE

#: Files of a checkpoint by name, besides its weights and code, and what each is for.
ALLOWED = {
    "config.json": "model configuration",
    "generation_config.json": "settings of generation",
    "model.safetensors.index.json": "where each weight lies",
    "README.md": "model card",
    "LICENSE*": "licence",
    "NOTICE*": "licence",
    RECORD_FILE: "training record",
    "processor_config.json": "processor",
    "preprocessor_config.json": "processor",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "tokenizer.model": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "added_tokens.json": "tokenizer",
    "vocab.json": "tokenizer",
    "merges.txt": "tokenizer",
    "chat_template.jinja": "chat template",
    "chat_template.json": "chat template",
    "additional_chat_templates/*.jinja": "chat template",
}
#: Why files that often lie beside a checkpoint stay; the first pattern that fits says it.
LEFT_OUT = {
    ".git/*": "a git repository's own",
    ".env*": "may hold credentials",
    "*token": "may hold credentials",
    "*.key": "may hold credentials",
    "*.pem": "may hold credentials",
    "checkpoint-*/*": "a step of training, to resume it",
    "optimizer*": "optimizer state",
    "scheduler*": "state of the learning rate",
    "rng_state*": "random state",
    "training_args.bin": "a pickle of training options, local paths and tokens among them",
    "*.bin": "a pickle",
    "*.pt": "a pickle",
    "*.pth": "a pickle",
    "*.pkl": "a pickle",
    "trainer_state.json": "log of training",
    "stage.json": "state of training",
    "runs/*": "log of training",
    "wandb/*": "log of training",
    "*.log": "log",
    "events.out.tfevents*": "log of training",
    "*.safetensors": "weights that config.json does not ask for",
    "*.py": "code that the checkpoint does not import",
    ".cache/*": "cache",
    "__pycache__/*": "cache",
    "*.pyc": "cache",
}
NOT_OF_A_CHECKPOINT = "not part of a checkpoint"
OUTSIDE = "a link to outside of the folder"
#: Folders whose contents are named once, not file by file.
SUMMARISED = re.compile(r"(checkpoint-\d+|\.git|\.cache|__pycache__|wandb|runs)/")
#: What credentials look like, and what to call them.
SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an OpenAI key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS key": re.compile(r"\bAKIA[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    "a Google key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password or key": re.compile(
        r"(?:api_?key|secret|password|access_?token|hub_?token|auth_?token)[\"']?\s*[:=]\s*[\"'][A-Za-z0-9_/+=.-]{16,}[\"']",
        re.IGNORECASE,
    ),
}
TEXT_SUFFIXES = (".json", ".md", ".txt", ".py", ".jinja", ".yaml", ".yml")
#: Files without which nobody can load a checkpoint with `trust_remote_code`, and who writes them.
REQUIRED = {"processor_config.json": "processor.save_pretrained", "tokenizer.json": "processor.save_pretrained"}


@dataclass(frozen=True)
class Entry:
    """A file that goes up: its path in the repository, where it lies, and what it is for."""

    name: str
    path: Path
    why: str

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Manifest:
    """What goes up, and what stays: names (a folder's once) with the reason."""

    entries: list[Entry]
    left_out: list[tuple[str, str]]


def make_manifest(folder: str | os.PathLike) -> Manifest:
    """
    Sorts the files of a checkpoint's folder into those that go up and those that stay.

    Raises:
        CardError: weights, code or processor are not there, or lie outside of the folder.
    """
    folder = Path(folder)
    allowed = {**dict.fromkeys(code_files(folder), "code"), **{path.name: "weights" for path in weight_files(folder)}}
    entries, left_out = [], {}
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        why = allowed.get(name) or next((why for pattern, why in ALLOWED.items() if _fits(name, pattern)), None)
        if why is not None and _leads_outside(path, folder):
            left_out[name] = OUTSIDE
        elif why is not None:
            entries.append(Entry(name, path, why))
        else:
            summary = SUMMARISED.search(name)
            reason = next((why for pattern, why in LEFT_OUT.items() if _fits(name, pattern)), NOT_OF_A_CHECKPOINT)
            left_out[name[: summary.end()] if summary else name] = OUTSIDE if path.is_symlink() else reason
    present = {entry.name for entry in entries}
    for name in allowed:
        if name not in present:
            raise CardError(f"{folder / name} belongs to the checkpoint, but {left_out.get(name, 'is not there')}.")
    for name, writer in REQUIRED.items():
        if name not in present:
            raise CardError(
                f"{folder} has no {name}, which {writer}(folder) writes; others could not use the checkpoint."
            )
    return Manifest(entries, sorted(left_out.items()))


def code_files(folder: Path) -> list[str]:
    """
    Names of the code that a checkpoint's configurations ask for, and of what that imports.

    Raises:
        CardError: it is not there.
    """
    modules: set[str] = set()
    for name in ("config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            references = list((found.get("auto_map") or {}).values())
            references += [each.get("impl") for each in (found.get("custom_pipelines") or {}).values()]
            modules.update(str(reference).partition(".")[0] for reference in references if reference)
    files: set[str] = set()
    for module in modules:
        path = folder / f"{module}.py"
        if not path.is_file():
            raise CardError(f"{folder} has no {path.name}, which its configuration names; save the model again.")
        try:
            imported = [Path(file).name for file in get_relative_import_files(path)]
        except FileNotFoundError as error:
            raise CardError(f"{folder} lacks code that {path.name} imports: {error}. Save the model again.") from error
        files.update([path.name, *imported])
    return sorted(files)


def find_secrets(entries: list[Entry]) -> list[str]:
    """What looks like a credential in text that is to go up: where, and what; not the credential itself."""
    found = []
    for entry in entries:
        if not entry.name.endswith(TEXT_SUFFIXES):
            continue
        text = entry.path.read_text(encoding="utf-8", errors="replace")
        for kind, pattern in SECRETS.items():
            found += [
                f"{entry.name}, line {text.count(chr(10), 0, hit.start()) + 1}: {kind}"
                for hit in pattern.finditer(text)
            ]
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Files and links below a folder; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in [*files, *links])


def _fits(name: str, pattern: str) -> bool:
    """Whether a path, or its last part, is of a pattern; one with a folder fits it at any depth."""
    if "/" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")
    return fnmatchcase(name if pattern in ALLOWED else Path(name).name, pattern)


def _leads_outside(path: Path, folder: Path) -> bool:
    """Whether a file really lies elsewhere; the blobs behind a snapshot in the Hub's own cache do not count."""
    real, home = path.resolve(), folder.resolve()
    in_cache = home.parent.name == "snapshots" and real.parent == home.parents[1] / "blobs"
    return not (real.is_relative_to(home) or in_cache)

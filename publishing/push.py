"""
`audiollm push`: upload a checkpoint to the Hub: its weights, code, processor and card, and nothing else of its folder.

    audiollm push --model runs/mine --repo you/my-audiollm --dry_run
    audiollm push --model runs/mine --repo you/my-audiollm --private

The files that go up and those that stay are listed first, and you are asked. It is one commit. After an interruption, the
same command sends only what had not arrived. The token is that of `hf auth login`, or in HF_TOKEN.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from audiollm.option_parser import parser_of
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.dynamic_module_utils import get_relative_import_files

from .card import CARD_FILE, ROLES, make_card, read_card, read_config, sections, weight_files
from .header import CardError, find_base
from .record import RECORD_FILE

UNITS = ("B", "kB", "MB", "GB", "TB")
UNIT_STEP = 1000
#: A path of this machine in a configuration: at least two folders deep.
LOCAL_PATH = re.compile(r'"((?:/[^/"\s]+){2,}|[A-Za-z]:\\\\[^"]+)"')
YES = ("y", "yes")
DEFAULT_BRANCH = "main"
#: Weights in a repository's root. Those of an earlier upload would be loaded beside or instead of new ones.
ROOT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")

#: Files of a checkpoint by name, besides its weights and code, with their purpose.
ALLOWED = {
    "config.json": "model configuration",
    "generation_config.json": "settings of generation",
    "model.safetensors.index.json": "index of the weights",
    CARD_FILE: "model card",
    "LICENSE*": "licence",
    "NOTICE*": "licence",
    RECORD_FILE: "training record",
    **dict.fromkeys(("processor_config.json", "preprocessor_config.json"), "processor"),
    **dict.fromkeys(
        ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"), "tokenizer"
    ),
    **dict.fromkeys(("added_tokens.json", "vocab.json", "merges.txt"), "tokenizer"),
    **dict.fromkeys(("chat_template.jinja", "chat_template.json"), "chat template"),
    "additional_chat_templates/*.jinja": "chat template",
}
#: Why files that often lie beside a checkpoint stay; the first pattern that matches counts.
LEFT_OUT = {
    ".git/*": "a git repository's own",
    **dict.fromkeys((".env*", "*token", "*.key", "*.pem"), "may hold credentials"),
    "checkpoint-*/*": "a step of training, to resume it",
    "optimizer*": "optimizer state",
    "scheduler*": "state of the learning rate",
    "rng_state*": "random state",
    "training_args.bin": "a pickle of training options, local paths and tokens among them",
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.pkl"), "a pickle"),
    "stage.json": "state of training",
    **dict.fromkeys(("trainer_state.json", "runs/*", "wandb/*", "events.out.tfevents*"), "log of training"),
    "*.log": "log",
    "*.safetensors": "weights that config.json does not name",
    "*.py": "code that the checkpoint does not import",
    **dict.fromkeys((".cache/*", "__pycache__/*", "*.pyc"), "cache"),
}
NOT_OF_A_CHECKPOINT = "not part of a checkpoint"
OUTSIDE = "a link to outside of the folder"
#: Folders that are listed as one entry.
SUMMARISED = re.compile(r"(checkpoint-\d+|\.git|\.cache|__pycache__|wandb|runs)/")
#: Credentials by name, with the patterns that find them.
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
#: Files that loading with `trust_remote_code` needs, both written by `processor.save_pretrained`.
REQUIRED = ("processor_config.json", "tokenizer.json")


@dataclass
class PushArguments:
    """Options of `audiollm push`."""

    GROUPS: ClassVar = {
        "checkpoint and repository": ("model", "repo"),
        "before anything is sent": ("dry_run", "yes"),
        "repository": ("private", "revision", "tag", "commit_message"),
    }

    model: str = field(metadata={"help": "Folder of an AudioLLM checkpoint."})
    repo: str = field(metadata={"help": "Repository on the Hub, such as you/my-audiollm; made if it is not there."})
    private: bool = field(default=False, metadata={"help": "Make a new repository a private one."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to; made if it is not there."})
    tag: str | None = field(default=None, metadata={"help": "Tag to put on the commit, such as v1."})
    commit_message: str = field(default="Upload AudioLLM checkpoint", metadata={"help": "Message of the commit."})
    dry_run: bool = field(default=False, metadata={"help": "List what would be uploaded, and stop."})
    yes: bool = field(default=False, metadata={"help": "Do not ask."})


@dataclass(frozen=True)
class Entry:
    """A file to upload: its path in the repository, its place on this machine, and its purpose."""

    name: str
    path: Path
    why: str

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.path.stat().st_size


@dataclass
class Plan:
    """
    Contents of a push.

    Attributes:
        entries: files to upload.
        left_out: files that stay, with the reason; a folder is listed once.
        stale: weights to remove from the repository.
        remarks: sentences to read before agreeing.
    """

    entries: list[Entry]
    left_out: list[tuple[str, str]]
    stale: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


# ---- files of a checkpoint -----------------------------------------------------------------------------------------


def make_manifest(folder: str | os.PathLike) -> Plan:
    """
    Sort the files of a checkpoint's folder into those to upload and those that stay.

    Raises:
        CardError: weights, code or processor are missing, or lie outside of the folder.
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
    for name in REQUIRED:
        if name not in present:
            raise CardError(
                f"{folder} has no {name}, without which nobody can load it: processor.save_pretrained(folder)."
            )
    return Plan(entries, sorted(left_out.items()))


def code_files(folder: Path) -> list[str]:
    """
    Return the names of the code files that a checkpoint's configurations name, and of those that they import.

    Raises:
        CardError: one is missing.
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


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files and links below a folder; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in [*files, *links])


def _fits(name: str, pattern: str) -> bool:
    """Return whether a path, or its last part, matches a pattern; one with a folder matches at any depth."""
    if "/" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")
    return fnmatchcase(name if pattern in ALLOWED else Path(name).name, pattern)


def _leads_outside(path: Path, folder: Path) -> bool:
    """Return whether a file lies elsewhere; blobs behind a snapshot in the Hub's own cache do not count."""
    real, home = path.resolve(), folder.resolve()
    in_cache = home.parent.name == "snapshots" and real.parent == home.parents[1] / "blobs"
    return not (real.is_relative_to(home) or in_cache)


def find_secrets(entries: Sequence[Entry]) -> list[str]:
    """Return file, line and kind of everything that looks like a credential, without the credential."""
    found = []
    for entry in entries:
        if not entry.name.endswith(TEXT_SUFFIXES):
            continue
        text = entry.path.read_text(encoding="utf-8", errors="replace")
        for kind, pattern in SECRETS.items():
            for hit in pattern.finditer(text):
                found.append(f"{entry.name}, line {text.count(chr(10), 0, hit.start()) + 1}: {kind}")
    return found


def refuse_secrets(entries: Sequence[Entry]) -> None:
    """
    Raises:
        CardError: a file to upload holds something like a credential.
    """
    found = find_secrets(entries)
    if found:
        lines = "\n  ".join(found)
        raise CardError(f"Nothing was uploaded: this looks like credentials:\n  {lines}\nTake it out and revoke it.")


# ---- plan ----------------------------------------------------------------------------------------------------------


def make_plan(options: PushArguments, staging: Path) -> Plan:
    """
    Return everything that a push will do; nothing is sent.

    Args:
        staging: an empty folder for files made for the push: the card as the Hub shows it.

    Raises:
        CardError: the checkpoint is not whole, its card cannot be read, or there is a credential in it.
    """
    folder = Path(options.model)
    config = read_config(folder)
    plan = make_manifest(folder)
    plan.entries = [entry for entry in plan.entries if entry.name != CARD_FILE]
    plan.entries.append(_card_entry(options, folder, staging, plan.remarks))
    refuse_secrets(plan.entries)
    for role, shown in ROLES.items():
        model_id = getattr(config, f"{role}_model_id")
        if config.weight_format == "adapter" and find_base(model_id, None, None, online=False).hub_id is None:
            plan.remarks.append(
                f"The {shown} is a folder of this machine ({model_id}): others must pass {role}_model_id= to from_pretrained."
            )
    for entry in plan.entries:
        if entry.name.endswith("config.json"):
            paths = sorted(set(LOCAL_PATH.findall(entry.path.read_text(encoding="utf-8"))))
            plan.remarks += [f"{entry.name} names {path}, a path of this machine." for path in paths]
    plan.entries.sort(key=lambda entry: (entry.name.count("/"), entry.name))
    return plan


def _card_entry(options: PushArguments, folder: Path, staging: Path, remarks: list[str]) -> Entry:
    earlier = read_card(folder / CARD_FILE)
    if earlier is not None and earlier.text.strip() and not sections(earlier.text):
        return Entry(CARD_FILE, folder / CARD_FILE, "model card, as you wrote it")
    card = make_card(folder, repo=options.repo, online=True)
    remarks += card.remarks
    path = staging / CARD_FILE
    path.write_text(card.text, encoding="utf-8")
    return Entry(CARD_FILE, path, "model card")


def stale_weights(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """Return the weights of an earlier upload, in a repository's root, that this one does not replace."""
    return [name for name in there if name not in names and _is_root_weight(name)]


def _is_root_weight(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in ROOT_WEIGHTS)


def files_there(api: HfApi, repo_id: str, revision: str | None = None) -> list[str]:
    """Return the paths in a repository on the Hub; none where there is no such repository or branch yet."""
    try:
        return api.list_repo_files(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return []


# ---- upload --------------------------------------------------------------------------------------------------------


def push(options: PushArguments, plan: Plan, staging: Path, api: HfApi | None = None) -> CommitInfo:
    """
    Upload what was planned, in one commit.

    Args:
        staging: the folder that `make_plan` was given; links to the checkpoint's files are put into it.

    Raises:
        HTTPError, RuntimeError: the Hub refuses, or cannot be reached. What had arrived is not sent again by the next push.
    """
    api = api or HfApi()
    repo_id = api.create_repo(options.repo, private=options.private or None, exist_ok=True).repo_id
    if options.revision not in (None, DEFAULT_BRANCH):
        api.create_branch(repo_id, branch=str(options.revision), exist_ok=True)
    for entry in plan.entries:
        place = staging / entry.name
        if place != entry.path:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(entry.path.absolute())
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=staging,
        allow_patterns=[entry.name for entry in plan.entries],
        delete_patterns=plan.stale or None,
        commit_message=options.commit_message,
        revision=options.revision,
    )
    if options.tag:
        api.create_tag(repo_id, tag=options.tag, revision=commit.oid)
    return commit


def upload_checkpoint(
    api: HfApi, folder: str | Path, repo_id: str, message: str, **options: Any
) -> CommitInfo | Future[CommitInfo]:
    """
    Upload the files of a folder that belong to its checkpoint; the repository exists.

    Args:
        api: with the token to use. Uploads of one `api` in the background (`run_as_future`) come one after the other.
        options: further ones of `HfApi.upload_folder`.

    Raises:
        CardError: the checkpoint is not whole, or holds something like a credential.
    """
    entries = make_manifest(folder).entries
    refuse_secrets(entries)
    revision = options.get("revision")
    if revision not in (None, DEFAULT_BRANCH):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    names = [entry.name for entry in entries]
    return api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=names, commit_message=message, **options
    )


# ---- command -------------------------------------------------------------------------------------------------------


def describe(plan: Plan) -> str:
    """Return the plan as a table."""
    width = max(len(entry.name) for entry in plan.entries)
    lines = ["Goes up:"]
    lines += [f"  {entry.name:{width}}  {shown_size(entry.size):>8}  {entry.why}" for entry in plan.entries]
    lines.append(f"  {len(plan.entries)} files, {shown_size(sum(entry.size for entry in plan.entries))}")
    if plan.left_out:
        width = max(len(name) for name, _ in plan.left_out)
        lines += ["Stays here:", *(f"  {name:{width}}  {why}" for name, why in plan.left_out)]
    if plan.stale:
        lines.append("Is taken out of the repository:")
        lines += [f"  {name}  weights of an earlier upload" for name in plan.stale]
    return "\n".join([*lines, *(f"Note: {remark}" for remark in plan.remarks)])


def shown_size(num_bytes: float) -> str:
    """Return a size in powers of a thousand."""
    for unit in UNITS[:-1]:
        if num_bytes < UNIT_STEP:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= UNIT_STEP
    return f"{num_bytes:.3g} {UNITS[-1]}"


def check_options(options: PushArguments) -> None:
    """
    Raises:
        CardError: --model is no folder.
    """
    if not os.path.isdir(options.model):
        raise CardError(f"--model {options.model} is not a folder; what lies on the Hub need not be pushed.")


def agreed(options: PushArguments) -> bool:
    """
    Ask at the terminal.

    Raises:
        CardError: nobody is there to answer.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise CardError("Nobody can be asked here. Read the list above, then give --yes; --dry_run only lists.")
    return input(f"Upload to {options.repo}? [y/N] ").strip().lower() in YES


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm push`."""
    parser = parser_of(PushArguments, "push", "--model FOLDER --repo ORG/NAME [options]", __doc__)
    (options,) = parser.parse_args_into_dataclasses(sys.argv[1:] if arguments is None else list(arguments))
    try:
        check_options(options)
        with tempfile.TemporaryDirectory(prefix="audiollm-push-") as folder:
            staging = Path(folder)
            plan = make_plan(options, staging)
            api = HfApi()
            try:
                there = files_there(api, options.repo, options.revision)
                plan.stale = stale_weights([entry.name for entry in plan.entries], there)
            except (HTTPError, OSError) as error:
                if not options.dry_run:
                    raise
                first_line = str(error).strip().partition("\n")[0] or type(error).__name__
                plan.remarks.append(f"The Hub could not be asked what lies in {options.repo}: {first_line}")
            print(describe(plan), flush=True)
            if options.dry_run:
                print("Nothing was uploaded.")
                return
            if not agreed(options):
                sys.exit("audiollm push: nothing was uploaded.")
            commit = push(options, plan, staging, api)
    except (HFValidationError, CardError, LocalTokenNotFoundError) as error:
        sys.exit(f"audiollm push: {error}")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # of huggingface_hub's uploads, too
        sys.exit(
            f"audiollm push: {error}\nThe upload is not complete. The same command goes on: what has arrived is not sent again."
        )
    print(commit.commit_url)


if __name__ == "__main__":
    main()

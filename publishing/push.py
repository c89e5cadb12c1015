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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from audiollm.command_line.option_parser import option, parser_of
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm
from transformers.dynamic_module_utils import get_relative_import_files

from .card import CARD_FILE, ROLES, find_base, make_card, read_card, read_config, sections, weight_files
from .record import RECORD_FILE, CardError

DEFAULT_BRANCH = "main"
#: Weights in a repository's root. Those of an earlier upload would be loaded beside or instead of new ones.
ROOT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
#: Files of a checkpoint by purpose, besides its weights and code.
ALLOWED = {
    "model configuration": ("config.json", "generation_config.json"),
    "index of the weights": ("model.safetensors.index.json",),
    "model card": (CARD_FILE,),
    "licence": ("LICENSE*", "NOTICE*"),
    "training record": (RECORD_FILE,),
    "processor": ("processor_config.json", "preprocessor_config.json"),
    "tokenizer": (
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt"),
    ),
    "chat template": ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
}
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
    private: bool = option(False, "Make a new repository a private one.")
    revision: str | None = option(None, "Branch to push to; made if it is not there.")
    tag: str | None = option(None, "Tag to put on the commit, such as v1.")
    commit_message: str = option("Upload AudioLLM checkpoint", "Message of the commit.")
    dry_run: bool = option(False, "List what would be uploaded, and stop.")
    yes: bool = option(False, "Do not ask.")


@dataclass
class Plan:
    """Contents of a push."""

    files: dict[str, Path | bytes]  # contents to upload by their path in the repository
    left_out: list[str]  # files that stay; a folder is listed once
    stale: list[str] = field(default_factory=list)  # weights to remove from the repository
    remarks: list[str] = field(default_factory=list)  # sentences to read before agreeing


def purpose_of(name: str) -> str | None:
    """Return the purpose of a file that belongs to every checkpoint; None of weights, code and anything else."""
    for why, patterns in ALLOWED.items():
        if any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns):
            return why
    return None


def make_manifest(folder: str | os.PathLike) -> Plan:
    """Sort a folder's files into those to upload and those that stay; CardError if it is not a whole checkpoint."""
    folder = Path(folder)
    named = {*code_files(folder), *(path.name for path in weight_files(folder))}
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files: dict[str, Path | bytes] = {name: folder / name for name in names if name in named or purpose_of(name)}
    others = (name.partition("/") for name in names if name not in files)
    left_out = list(dict.fromkeys(first + below for first, below, _ in others))
    for name in REQUIRED:
        if name not in files:
            raise CardError(f"{folder} has no {name}, which loading needs; call processor.save_pretrained(folder).")
    return Plan(files, left_out)


def code_files(folder: Path) -> list[str]:
    """Return the code files that a checkpoint's configurations name, with their imports; CardError if one is missing."""
    references: list[str] = []
    for path in filter(Path.is_file, (folder / "config.json", folder / "processor_config.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        references += (found.get("auto_map") or {}).values()
        references += [each["impl"] for each in (found.get("custom_pipelines") or {}).values()]
    files: set[str] = set()
    for module in {reference.partition(".")[0] for reference in references}:
        path = folder / f"{module}.py"
        try:
            files.update([path.name, *(Path(file).name for file in get_relative_import_files(path))])
        except FileNotFoundError as error:
            told = f"{folder} has no {Path(error.filename).name}, which its configuration or code names"
            raise CardError(f"{told}; save the model again.") from error
    return sorted(files)


def refuse_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Raise CardError if a file to upload holds something like a credential; file, line and kind are named, not that."""
    found = []
    for name, source in files.items():
        if not name.endswith(TEXT_SUFFIXES):
            continue
        text = (source if isinstance(source, bytes) else source.read_bytes()).decode("utf-8", errors="replace")
        for kind, pattern in SECRETS.items():
            for hit in pattern.finditer(text):
                found.append(f"{name}, line {text.count(chr(10), 0, hit.start()) + 1}: {kind}")
    if found:
        lines = "\n  ".join(found)
        raise CardError(f"Nothing was uploaded: this looks like credentials:\n  {lines}\nTake it out and revoke it.")


def make_plan(options: PushArguments) -> Plan:
    """Return everything that a push will do; CardError if the checkpoint is not whole or has a credential in it."""
    folder = Path(options.model)
    if not folder.is_dir():
        raise CardError(f"--model {folder} is not a folder; what lies on the Hub need not be pushed.")
    config = read_config(folder)
    plan = make_manifest(folder)
    earlier = read_card(folder / CARD_FILE)
    if earlier is None or not earlier.text.strip() or sections(earlier.text):
        card = make_card(folder, repo=options.repo, online=True)
        plan.remarks += card.remarks
        plan.files[CARD_FILE] = card.text.encode()
    refuse_secrets(plan.files)
    for role, shown in ROLES.items():
        model_id = getattr(config, f"{role}_model_id")
        if config.weight_format == "adapter" and find_base(model_id, online=False).hub_id is None:
            told = f"The {shown} is a folder of this machine ({model_id})"
            plan.remarks.append(f"{told}: others must pass {role}_model_id= to from_pretrained.")
    return plan


def upload_checkpoint(
    api: HfApi,
    folder: str | Path,
    repo_id: str,
    message: str,
    revision: str | None = None,
    run_as_future: bool = False,
    plan: Plan | None = None,
) -> CommitInfo | Future[CommitInfo]:
    """
    Upload the files of a folder that belong to its checkpoint, or those of a plan, in one commit; the repository exists.

    After an interruption, the next upload sends only what did not arrive. CardError is raised if the checkpoint is not
    whole, or holds something like a credential.
    """
    if plan is None:
        plan = make_manifest(folder)
        refuse_secrets(plan.files)
    if revision not in (None, DEFAULT_BRANCH):
        api.create_branch(repo_id, branch=str(revision), exist_ok=True)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, source) for name, source in plan.files.items()),
        *(CommitOperationDelete(name) for name in plan.stale),
    ]
    known: dict[str, Any] = {"commit_message": message, "revision": revision, "run_as_future": run_as_future}
    return api.create_commit(repo_id, operations, **known)


def describe(plan: Plan) -> str:
    """Return the plan as a table."""
    sizes = {name: len(it) if isinstance(it, bytes) else it.stat().st_size for name, it in plan.files.items()}
    width = max(map(len, sizes))
    lines = ["Goes up:"]
    for name in sorted(sizes, key=lambda name: (name.count("/"), name)):
        why = purpose_of(name) or ("code" if name.endswith(".py") else "weights")
        lines.append(f"  {name:{width}}  {tqdm.format_sizeof(sizes[name], 'B'):>8}  {why}")
    lines.append(f"  {len(sizes)} files, {tqdm.format_sizeof(sum(sizes.values()), 'B')}")
    if plan.left_out:
        lines += ["Stays here:", *(f"  {name}" for name in plan.left_out)]
    if plan.stale:
        lines.append("Is taken out of the repository:")
        lines += [f"  {name}  weights of an earlier upload" for name in plan.stale]
    return "\n".join([*lines, *(f"Note: {remark}" for remark in plan.remarks)])


def push(options: PushArguments) -> None:
    """List the files that go up, ask, and upload them; CardError if the checkpoint cannot be pushed."""
    plan, api = make_plan(options), HfApi()
    try:
        there = [name for name in api.list_repo_files(options.repo, revision=options.revision) if "/" not in name]
        is_weight = {name for name in there for pattern in ROOT_WEIGHTS if fnmatchcase(name, pattern)}
        plan.stale = sorted(is_weight.difference(plan.files))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        pass
    except (HTTPError, OSError) as error:
        if not options.dry_run:
            raise
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        plan.remarks.append(f"The Hub could not be asked what lies in {options.repo}: {first_line}")
    print(describe(plan), flush=True)
    if options.dry_run:
        print("Nothing was uploaded.")
        return
    if not options.yes:
        if not sys.stdin.isatty():
            raise CardError("Nobody can be asked here. Read the list above, then give --yes; --dry_run only lists.")
        if input(f"Upload to {options.repo}? [y/N] ").strip().lower() not in ("y", "yes"):
            sys.exit("audiollm push: nothing was uploaded.")
    repo_id = api.create_repo(options.repo, private=options.private or None, exist_ok=True).repo_id
    commit = upload_checkpoint(api, options.model, repo_id, options.commit_message, options.revision, plan=plan)
    assert isinstance(commit, CommitInfo)
    if options.tag:
        api.create_tag(repo_id, tag=options.tag, revision=commit.oid)
    print(commit.commit_url)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm push`."""
    parser = parser_of(PushArguments, "push", "--model FOLDER --repo ORG/NAME [options]", __doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    try:
        push(options)
    except (HFValidationError, CardError, LocalTokenNotFoundError) as error:
        sys.exit(f"audiollm push: {error}")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # of huggingface_hub's uploads, too
        sys.exit(
            f"audiollm push: {error}\nThe upload is not complete. The same command goes on, with what has not arrived."
        )

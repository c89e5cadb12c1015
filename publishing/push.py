"""
`audiollm push`: a checkpoint to the Hub: what was trained, its code, processor and card, and nothing else of its folder.

    audiollm push --model runs/mine --repo you/my-audiollm --dry_run
    audiollm push --model runs/mine --repo you/my-audiollm --private --with_peft

What goes up and what stays is shown first, and confirmed. It is one commit; a push that was interrupted is repeated by the
same command and sends only what had not arrived. The token is that of `hf auth login`, or in HF_TOKEN.
"""

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.option_parser import parser_of
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from .card import CARD_FILE, ROLES, make_card, read_card, read_config
from .header import CardError, find_base, header_problems
from .manifest import Entry, Manifest, make_manifest
from .peft_copy import write_peft_copy
from .sections import sections
from .upload import commit_files, files_there, refuse_secrets, stale_weights

PEFT_FOLDER, MERGED_FOLDER = "peft", "merged"
UNITS = ("B", "kB", "MB", "GB", "TB")
UNIT_STEP = 1000
#: A path of this machine in a configuration: two folders deep at least.
LOCAL_PATH = re.compile(r'"((?:/[^/"\s]+){2,}|[A-Za-z]:\\\\[^"]+)"')
YES = ("y", "yes")


@dataclass
class PushArguments:
    """What to upload, where to, and how."""

    model: str = field(metadata={"help": "Folder of an AudioLLM checkpoint."})
    repo: str = field(metadata={"help": "Repository on the Hub, such as you/my-audiollm; made if it is not there."})
    private: bool = field(default=False, metadata={"help": "Make the repository a private one, if it is made now."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to; made if it is not there."})
    tag: str | None = field(default=None, metadata={"help": "Tag to put on the commit, such as v1."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of pushing to the branch."})
    commit_message: str = field(default="Upload AudioLLM checkpoint", metadata={"help": "Message of the commit."})
    with_peft: bool = field(
        default=False,
        metadata={
            "help": "Add LoRA in PEFT's format, in the folder peft: for the plain language model, which does not hear."
        },
    )
    with_merged: bool = field(
        default=False,
        metadata={"help": "Add all weights with LoRA folded in, in the folder merged, loadable by itself."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Show what would be uploaded, and stop."})
    yes: bool = field(default=False, metadata={"help": "Do not ask."})


@dataclass
class Plan:
    """
    What a push does.

    Attributes:
        entries: files that go up.
        left_out: what stays, and why.
        stale: weights in the repository that are taken out.
        remarks: what one should know before agreeing.
    """

    entries: list[Entry]
    left_out: list[tuple[str, str]]
    stale: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def make_plan(options: PushArguments, staging: Path) -> Plan:
    """
    Everything that a push needs to know, with nothing sent yet.

    Args:
        staging: an empty folder for what is made for the push: the card as it reads on the Hub, copies in other formats.

    Raises:
        CardError: the checkpoint is not whole, its card would be refused, or there is a credential in it.
    """
    folder = Path(options.model)
    config = read_config(folder)
    manifest: Manifest = make_manifest(folder)
    plan = Plan(list(manifest.entries), manifest.left_out)
    plan.entries = [entry for entry in plan.entries if entry.name != CARD_FILE]
    plan.entries.append(_card_entry(options, folder, staging, plan.remarks))
    if options.with_peft or options.with_merged:
        plan.entries += _other_formats(options, folder, staging)
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
        problems = header_problems(earlier.data)
        if problems:
            raise CardError(f"The Hub would not take {folder / CARD_FILE}: {'; '.join(problems)}.")
        return Entry(CARD_FILE, folder / CARD_FILE, "model card, as you wrote it")
    card = make_card(folder, repo=options.repo, online=True)
    remarks += card.remarks
    path = staging / CARD_FILE
    path.write_text(card.text, encoding="utf-8")
    return Entry(CARD_FILE, path, "model card")


def _other_formats(options: PushArguments, folder: Path, staging: Path) -> list[Entry]:
    model = AudioLlmForConditionalGeneration.from_pretrained(folder, dtype="auto")
    entries = []
    if options.with_peft:
        for path in write_peft_copy(model, staging / PEFT_FOLDER):
            name = path.relative_to(staging).as_posix()
            entries.append(Entry(name, path, "LoRA in PEFT's format, without projector"))
    if options.with_merged:
        merged = staging / MERGED_FOLDER
        model.save_pretrained(merged, weights="merged")
        AudioLlmProcessor.from_pretrained(folder).save_pretrained(merged)
        entries += [
            Entry(f"{MERGED_FOLDER}/{entry.name}", entry.path, f"{entry.why}, LoRA folded in")
            for entry in make_manifest(merged).entries
        ]
    return entries


def push(options: PushArguments, plan: Plan, api: HfApi | None = None) -> CommitInfo:
    """
    Does what was planned, in one commit.

    Raises:
        HTTPError, RuntimeError: the Hub refuses, or cannot be reached; what had arrived until then is not sent again by the next push.
    """
    api = api or HfApi()
    repo_id = api.create_repo(options.repo, private=options.private or None, exist_ok=True).repo_id
    commit: Any = commit_files(
        api,
        repo_id,
        plan.entries,
        options.commit_message,
        options.revision,
        options.create_pr,
        plan.stale,
    )
    if options.tag:
        api.create_tag(repo_id, tag=options.tag, revision=commit.oid)
    return commit


def describe(plan: Plan) -> str:
    """The plan as a table, to be read before agreeing."""
    width = max(len(entry.name) for entry in plan.entries)
    lines = ["Goes up:"]
    lines += [f"  {entry.name:{width}}  {shown_size(entry.size):>8}  {entry.why}" for entry in plan.entries]
    lines.append(f"  {len(plan.entries)} files, {shown_size(sum(entry.size for entry in plan.entries))}")
    if plan.left_out:
        width = max(len(name) for name, _ in plan.left_out)
        lines += ["Stays here:", *(f"  {name:{width}}  {why}" for name, why in plan.left_out)]
    if plan.stale:
        lines += [
            "Is taken out of the repository:",
            *(f"  {name}  weights of an earlier upload" for name in plan.stale),
        ]
    return "\n".join([*lines, *(f"Note: {remark}" for remark in plan.remarks)])


def shown_size(num_bytes: float) -> str:
    """A size as people read it, in powers of a thousand."""
    for unit in UNITS[:-1]:
        if num_bytes < UNIT_STEP:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= UNIT_STEP
    return f"{num_bytes:.3g} {UNITS[-1]}"


def check_options(options: PushArguments) -> None:
    """
    Raises:
        CardError: options contradict each other.
    """
    if options.create_pr and options.tag:
        raise CardError("--tag contradicts --create_pr: tag the commit when the pull request has been merged.")
    if options.create_pr and options.revision:
        raise CardError("--revision contradicts --create_pr: a pull request is opened against the default branch.")
    if not os.path.isdir(options.model):
        raise CardError(f"--model {options.model} is not a folder; what lies on the Hub need not be pushed.")


def agreed(options: PushArguments) -> bool:
    """
    Asks at the terminal.

    Raises:
        CardError: nobody is there to answer.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise CardError(
            "Nobody can be asked here; look at the list above and give --yes, or --dry_run to see it only."
        )
    return input(f"Upload to {options.repo}? [y/N] ").strip().lower() in YES


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm push`."""
    (options,) = parser_of(
        PushArguments, "push", "--model FOLDER --repo ORG/NAME [options]", __doc__
    ).parse_args_into_dataclasses(sys.argv[1:] if arguments is None else list(arguments))
    try:
        check_options(options)
        with tempfile.TemporaryDirectory(prefix="audiollm-push-") as staging:
            plan = make_plan(options, Path(staging))
            api = HfApi()
            names = [entry.name for entry in plan.entries]
            try:
                plan.stale = stale_weights(names, files_there(api, options.repo, options.revision))
            except (HTTPError, OSError) as error:
                if not options.dry_run:
                    raise
                plan.remarks.append(f"The Hub could not be asked what lies in {options.repo}: {_first_line(error)}")
            print(describe(plan), flush=True)
            if options.dry_run:
                print("Nothing was uploaded.")
                return
            if not agreed(options):
                sys.exit("audiollm push: nothing was uploaded.")
            commit = push(options, plan, api)
    except (HFValidationError, CardError, LocalTokenNotFoundError) as error:
        sys.exit(f"audiollm push: {error}")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # of huggingface_hub's uploads, too
        sys.exit(
            f"audiollm push: {error}\nThe upload is not complete. The same command goes on: what has arrived is not sent again."
        )
    print(commit.pr_url or commit.commit_url)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    main()

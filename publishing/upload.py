"""Uploads of a checkpoint's own files, in one commit: an interrupted one is repeated by the same call, and resumes.

What had arrived is not sent again: huggingface_hub asks the Hub for the content of every large file (LFS and Xet) first.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from .header import CardError
from .manifest import Entry, find_secrets, make_manifest

DEFAULT_BRANCH = "main"
#: Weights in a repository's root; those of an earlier upload would be loaded in the place of others' names.
ROOT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ROOT_SHARD = "model-"
WEIGHTS_SUFFIX = ".safetensors"


def refuse_secrets(entries: Sequence[Entry]) -> None:
    """
    Raises:
        CardError: something that is to go up looks like a credential.
    """
    found = find_secrets(list(entries))
    if found:
        lines = "\n  ".join(found)
        raise CardError(f"Nothing was uploaded: this looks like credentials:\n  {lines}\nTake it out and revoke it.")


def stale_weights(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """Weights of an earlier upload, by the names in the repository's root, that this one does not replace."""
    old = [name for name in there if name in ROOT_WEIGHTS or _is_shard(name)]
    return [name for name in old if name not in names]


def _is_shard(name: str) -> bool:
    return "/" not in name and name.startswith(ROOT_SHARD) and name.endswith(WEIGHTS_SUFFIX)


def files_there(api: HfApi, repo_id: str, revision: str | None = None) -> list[str]:
    """Paths in a repository on the Hub; none where there is no such repository or branch yet."""
    try:
        return api.list_repo_files(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return []


def commit_files(
    api: HfApi,
    repo_id: str,
    entries: Sequence[Entry],
    message: str,
    revision: str | None = None,
    create_pr: bool = False,
    delete: Sequence[str] = (),
    **options: Any,
) -> CommitInfo | Future:
    """
    One commit of `entries`, and of nothing else.

    Args:
        api: with the token to use.
        repo_id: it exists.
        revision: the branch; made where it is not there, unless for a pull request.
        create_pr: as a pull request.
        delete: paths to take out.
        options: further ones of `HfApi.create_commit`.
    """
    if revision not in (None, DEFAULT_BRANCH) and not create_pr:
        api.create_branch(repo_id, branch=str(revision), exist_ok=True)
    operations: list[Any] = [CommitOperationAdd(entry.name, entry.path) for entry in entries]
    operations += [CommitOperationDelete(name) for name in delete]
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr, **options
    )


def upload_checkpoint(
    api: HfApi, folder: str | Path, repo_id: str, message: str, **options: Any
) -> CommitInfo | Future:
    """
    Uploads what of a folder belongs to its checkpoint; the repository exists.

    Args:
        api: with the token to use; uploads in the background (`run_as_future`) of one `api` come one after the other.
        folder, repo_id, message: what, where to, and the commit's message.
        options: as of [`commit_files`].

    Raises:
        CardError: the checkpoint is not whole, or holds something like a credential.
    """
    entries = make_manifest(folder).entries
    refuse_secrets(entries)
    return commit_files(api, repo_id, entries, message, **options)

"""Places of datasets, whole or streamed: on the Hub, in a folder, in a file. What would run code is refused."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from audiollm.command_line.files import is_inside
from datasets.info import DatasetInfosDict
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from .catalogue import Corpus
from .clips import STATE_FOLDER, CorpusError

#: Files that `save_to_disk` leaves in a folder: of several splits, and of one.
SAVED_FILES = ("dataset_dict.json", "state.json")
#: In TSV files quotation marks are part of the text; in tables only what is empty is missing: "NA" and "null" are words.
_NO_MISSING_WORDS = {"keep_default_na": False, "na_values": [""]}
QUOTE_NONE = 3
#: Builder of `datasets` and its options, by a file's suffix.
FILE_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", _NO_MISSING_WORDS),
    ".tsv": ("csv", {"sep": "\t", "quoting": QUOTE_NONE, **_NO_MISSING_WORDS}),
}
#: Reads a folder of recordings; without torchcodec it can only be streamed.
FOLDER_BUILDER = "audiofolder"
#: Builders that read nothing but tables and recordings.
SAFE_BUILDERS = ("parquet", "arrow", "json", "csv", FOLDER_BUILDER)
HUB_URL = "hf://datasets/{hub}@{revision}/"
READ_ERRORS = (
    *(OSError, KeyError, ValueError, TypeError, RuntimeError, NotImplementedError),
    *(datasets.exceptions.DatasetsError, HfHubHTTPError, HFValidationError),
)


@dataclass(frozen=True)
class Place:
    """Place that a dataset is read from."""

    name: str  # in messages
    kind: str  # hub, disk (of `save_to_disk`), folder or file
    path: str  # Hub id, or absolute path
    config: str | None = None
    revision: str | None = None  # commit on the Hub where it could be asked for, else as given
    corpus: Corpus | None = None  # may say which files are read and where recordings lie
    tables: Mapping[str, str] = field(default_factory=dict)  # by split, the files that are read of a folder

    @property
    def roots(self) -> list[str]:
        """Return the folders that recordings given as paths must lie in; relative paths start from the first."""
        folders = [self.path if os.path.isdir(self.path) else os.path.dirname(self.path)]
        if self.kind == "hub":  # downloads of `datasets`, unpacked
            folders = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
        return [os.path.realpath(folder) for folder in folders]

    def fingerprint(self) -> str | None:
        """
        Return a digest of the names, sizes and times of local files; None on the Hub, where a commit says it all.

        Folders below that a corpus was prepared in are no part of the dataset.
        """
        if self.kind == "hub":
            return None
        digest = hashlib.sha256()
        below = self.tables.values() if self.tables or not os.path.isdir(self.path) else _files_below(self.path)
        for path in sorted(below) or [self.path]:
            status = os.stat(path) if os.path.exists(path) else os.lstat(path)
            line = f"{os.path.relpath(path, self.path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def _files_below(path: str) -> Iterator[str]:
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not os.path.isdir(os.path.join(folder, name, STATE_FOLDER))]
        yield from (os.path.join(folder, file) for file in files)


def find_place(
    dataset: str, config: str | None, revision: str | None, corpus: Corpus | None, source_path: str | None
) -> Place:
    """Return where a dataset is read from; raise CorpusError if it is nowhere, or of no known kind."""
    if corpus is not None and source_path is None:
        if corpus.withdrawn:
            raise CorpusError(
                f"{corpus.title}: {corpus.withdrawn} Give the folder with your copy as --source_path. {corpus.note or ''}"
            )
        hub, revision = str(corpus.hub), revision or corpus.revision
        return Place(corpus.name, "hub", hub, corpus.config, _commit(hub, revision), corpus)
    name = dataset if corpus is None else corpus.name
    config = config if corpus is None else corpus.config
    path = os.path.abspath(source_path or dataset)
    if os.path.isdir(path):
        saved = any(os.path.isfile(os.path.join(path, file)) for file in SAVED_FILES)
        return Place(name, "disk" if saved else "folder", path, config, None, corpus)
    if os.path.exists(path):
        if Path(path).suffix.lower() not in FILE_BUILDERS:
            raise CorpusError(f"{path}: expected a folder, or a file that ends in one of {', '.join(FILE_BUILDERS)}.")
        return Place(name, "file", path, config, None, corpus)
    if dataset.count("/") != 1 or dataset.startswith((".", "/", "~")) or dataset.endswith("/"):
        kinds = "no file or folder here, no corpus of the table, and no id of the Hub, which has the form org/name"
        raise CorpusError(f"Dataset {dataset!r} is {kinds}.")
    return Place(dataset, "hub", dataset, config, _commit(dataset, revision), None)


def _commit(hub: str, revision: str | None) -> str | None:
    """Return the commit of a branch of a Hub dataset; the branch as given where none answers."""
    try:
        return huggingface_hub.HfApi().dataset_info(hub, revision=revision).sha or revision
    except (OSError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, ValueError):
        return revision  # loading says what is wrong, or finds it in the cache


def open_split(place: Place, split: str, streaming: bool) -> tuple[Any, str]:
    """Return one split, audio undecoded, and the folder that relative paths start from; raise CorpusError without one."""
    try:
        dataset, folder = load_split(place, split, streaming)
    except READ_ERRORS as error:
        raise unreadable(place, split, error) from error
    dataset = dataset.with_format(None)
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Audio):
            dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    return dataset, folder


def load_split(place: Place, split: str, streaming: bool) -> tuple[Any, str]:
    """Return one split as `datasets` has it, and the folder that relative paths start from; errors are its own."""
    corpus = place.corpus
    if place.kind == "disk":
        saved = datasets.load_from_disk(place.path)
        if isinstance(saved, Mapping):
            if split not in saved:
                raise ValueError(f"there is no split {split!r}, only {', '.join(saved)}")
            saved = saved[split]
        return (saved.to_iterable_dataset() if streaming else saved), place.path
    if place.kind == "file":
        path = place.tables.get(split, place.path)
        return _open_files(split, [path], streaming), os.path.dirname(path)
    patterns = [one.format(config=place.config, split=split) for one in (corpus.files if corpus else ())]
    if place.kind == "hub":
        if not patterns:
            return _load(place.path, place.config, split, place.revision, streaming), place.roots[0]
        base = HUB_URL.format(hub=place.path, revision=(place.revision or "main").replace("/", "%2F"))
        return _open_files(split, [base + patterns[0]], streaming), place.roots[0]
    for pattern in patterns:
        found = sorted(map(str, Path(place.path).glob(pattern)))
        if found:
            inner = (corpus.audio_folder if corpus else "").format(config=place.config, split=split)
            return _open_files(split, found, streaming), os.path.join(os.path.dirname(found[0]), inner)
    if patterns and not any(Path(place.path).rglob("*.parquet")):
        raise FileNotFoundError(f"no file there matches {' or '.join(patterns)}")
    config = place.config
    if corpus is not None and datasets.get_dataset_config_names(place.path) == ["default"]:
        config = None  # a copy whose configs have no names is taken for the one that is wanted
    return _load(place.path, config, split, None, streaming), place.path


def _open_files(split: str, paths: list[str], streaming: bool, **more: Any) -> Any:
    builder, options = FILE_BUILDERS[Path(paths[0]).suffix.lower()]
    options = {"split": split, "streaming": streaming, **options, **more}
    return datasets.load_dataset(builder, data_files={split: paths}, **options)


def _load(path: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    """Return what `load_dataset` finds in a folder or on the Hub, if it is a table or recordings."""
    builder = datasets.load_dataset_builder(path, config, revision=revision)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in SAFE_BUILDERS:
        raise ValueError(f"it is read by the builder {kind!r}; expected one of {', '.join(SAFE_BUILDERS)}")
    files = builder.config.data_files
    if kind == "parquet" and files and os.path.isdir(path):
        if split not in files:
            raise ValueError(f"there is no split {split!r}, only {', '.join(files)}")
        # Named to `datasets`, whose cache knows a folder with a card by its name and card alone.
        declared = DatasetInfosDict.from_directory(path).get(builder.config.name)
        return _open_files(split, list(files[split]), streaming, features=declared and declared.features)
    if kind != FOLDER_BUILDER:
        return datasets.load_dataset(path, config, split=split, revision=revision, streaming=streaming)
    if hasattr(builder.config, "decode_num_threads"):
        builder.config.decode_num_threads = None  # newer `datasets` decode what they stream
    # `datasets` makes an Audio of a path with torchcodec only: here it stays a path.
    return builder.as_streaming_dataset(split=split).cast_column("audio", datasets.Value("string"))


def recording_of(value: Any, place: Place, folder: str) -> tuple[Any, str | None]:
    """
    Return a recording as `load_waveform` takes it, or why there is none.

    The value of a column is a dict of `datasets`, encoded bytes, or a path. Relative paths start from `folder`; none may
    lead out of the place's `roots`, nor to any other address.
    """
    path = value
    if isinstance(value, Mapping):
        path = value.get("path")
        if value.get("bytes") is not None:
            return {"bytes": value["bytes"], "path": os.path.basename(path) if path else None}, None
        if value.get("array") is not None:
            return {"array": value["array"], "sampling_rate": value.get("sampling_rate"), "path": None}, None
    elif isinstance(value, bytes):
        return {"bytes": value, "path": None}, None
    if not path:
        return None, "has no audio"
    if not isinstance(path, str) or "\0" in path:
        return None, f"its audio is {path!r}, which is no path"
    if "://" in path:
        if place.kind == "hub" and re.match(f"hf://datasets/{re.escape(place.path)}[@/]", path):
            return path, None
        return None, f"audio {path!r} is an address elsewhere, which is not followed"
    located = os.path.realpath(os.path.join(folder, path))
    if not any(is_inside(located, root) for root in place.roots):
        return None, f"audio path {path!r} leads out of {place.roots[0]}"
    return located, None


def unreadable(place: Place, split: str, error: BaseException, where: str = "") -> CorpusError:
    """Return the error for a split that cannot be read, with what to do about it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    message = f"{place.name}: split {split!r} cannot be read{where}: {reason.rstrip('.')}."
    if "scripts are no longer supported" in reason:
        message += " The Hub may have it as Parquet: add --revision refs/convert/parquet."
    elif "gated" in reason.lower() or (place.corpus and place.corpus.gated and place.kind == "hub"):
        terms = f"https://huggingface.co/datasets/{place.path}"
        message += f" Accept its terms at {terms}, then log in with `hf auth login`."
    return CorpusError(message)

"""One evaluation from its options: tasks are read, systems chosen, questions answered, answers judged and scored."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from audiollm.base_models import how_to_get
from audiollm.checkpoints import fingerprint
from audiollm.configuration import AudioLlmConfig
from audiollm.ctc_rescoring import check_ctc_weight
from audiollm.publishing.record import package_facts
from filelock import FileLock, Timeout
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from .arguments import EvaluateArguments
from .outputs import SystemOutputs
from .run_record import (
    SETTINGS,
    OtherSettingsError,
    changed_versions,
    check_same,
    installed_versions,
    place,
    read_run,
    write_run,
)
from .running import Job, answer_job, index, is_complete
from .system_building import TRANSCRIPTION, SystemBuilder, check_control, choose_systems, is_multilingual
from .systems import CASCADE, WHISPER
from .tasks import Task, read_local_set, tasks_named

LOCK_FILE = ".lock"


@dataclass
class Run:
    """
    What is run and where.

    Attributes:
        options: as they were given.
        folder: for outputs and scores.
        state: this process among the others.
        jobs: tasks with their systems.
        whisper, whisper_revision: whose decoder answers; None where none is known.
    """

    options: EvaluateArguments
    folder: Path
    state: PartialState
    jobs: list[Job]
    whisper: str | None
    whisper_revision: str | None


def chosen_tasks(options: EvaluateArguments) -> list[Task]:
    """
    The tasks that are asked for, or the user's own data as one.

    Raises:
        ValueError, OSError: there is no such task, or the data are not there or malformed.
    """
    if not options.tasks:
        return [read_local_set(options.data_path[0], options.audio_dir, options.language, options.normaliser)]
    return tasks_named(options.tasks)


def prepare(options: EvaluateArguments, folder: Path, state: PartialState) -> Run:
    """
    Everything that can be refused before a model is loaded.

    Raises:
        ValueError, OSError: data, checkpoint, Whisper or folder cannot be used as asked.
    """
    tasks = chosen_tasks(options)
    copies = options.copies([task.name for task in tasks]) if options.tasks else {}
    jobs = [index(task, copies.get(task.name), options.limit, options.max_new_tokens) for task in tasks]
    for job in jobs:
        check_control(job, options.systems)
    config = checkpoint_config(options)
    check_ctc_weight(config, options.ctc_weight)
    if options.ctc_weight and all(task.kind != TRANSCRIPTION for task in tasks):
        raise ValueError(f"--ctc_weight is for transcripts, but no task is of the kind {TRANSCRIPTION}; leave it out.")
    known = own_whisper(config)
    whisper = options.whisper or known
    revision = config.audio_model_revision if whisper is not None and whisper == known else None
    hears = {WHISPER, CASCADE} & set(options.systems) or not options.systems
    multilingual = bool(whisper and hears) and is_multilingual(str(whisper), revision)
    without = (WHISPER,) if options.no_decoder else ()
    jobs = [choose_systems(job, options.systems, without, whisper, multilingual) for job in jobs]
    run = Run(options, folder, state, jobs, whisper, revision)
    check_same(folder, run_settings(run), task_settings(run))
    if state.is_main_process:
        for job in jobs:
            for name, reason in job.left_out:
                print(f"{job.task.name}: {name} is left out: {reason}.")
    return run


def own_whisper(config: Any) -> str | None:
    """The Whisper that a checkpoint was made of; None where it is not known, or where the encoder is another."""
    audio_config = getattr(config, "audio_config", None)
    return config.audio_model_id if getattr(audio_config, "model_type", None) == WHISPER else None


def checkpoint_config(options: EvaluateArguments) -> Any:
    """
    The configuration of the checkpoint.

    Raises:
        ValueError: there is no checkpoint, or it is of another kind of model.
    """
    try:
        config = AutoConfig.from_pretrained(options.model, trust_remote_code=False, **_revision(options))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {options.model} cannot be read as a checkpoint: {error}{how_to_get(options.model)}"
        ) from error
    if config.model_type != AudioLlmConfig.model_type:
        raise ValueError(
            f"--model {options.model} is a model of the type {config.model_type!r}; expected {AudioLlmConfig.model_type!r}."
        )
    return config


def run_settings(run: Run) -> dict[str, Any]:
    """What must be alike in all that a folder holds."""
    options = run.options
    device = options.device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "model": place(options.model),
        "revision": options.revision,
        "dtype": options.dtype,
        "device": device.partition(":")[0],
        "batch_size": options.batch_size,
        "whisper": place(run.whisper),
        "ctc_weight": options.ctc_weight,
    }


def task_settings(run: Run) -> dict[str, dict[str, Any]]:
    """The same of each task, by its name."""
    own = None if run.options.tasks else run.options.data_path[0]
    return {
        job.task.name: {
            "data": place(job.data or own),
            "audio_dir": place(run.options.audio_dir),
            "limit": job.limit,
            "max_new_tokens": job.max_new_tokens,
            "language": job.task.language,
        }
        for job in run.jobs
    }


def answer_all(run: Run) -> None:
    """
    Every answer that is not on disk yet, of this process' share; then, in one process, one file of each system's.

    Raises:
        OtherSettingsError: the folder holds another model's outputs.
        ValueError, OSError: the model cannot be loaded.
    """
    missing = {
        job.task.name: [name for name in job.systems if not is_complete(run.folder, job, name)] for job in run.jobs
    }
    if any(missing.values()):
        _answer(run, missing)
    run.state.wait_for_everyone()
    if run.state.is_main_process:
        for job in run.jobs:
            for name in job.systems:
                SystemOutputs(run.folder, job.task.name, name).merge(job.ids)


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """
    Keeps other runs out of the folder for a while.

    Raises:
        OtherSettingsError: another one is in it.
    """
    if not run.state.is_main_process:
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OtherSettingsError(f"Another run is writing to {run.folder}; wait for it to end.") from None
    try:
        yield
    finally:
        lock.release()


def _answer(run: Run, missing: Mapping[str, Sequence[str]]) -> None:
    options = run.options
    device = {"": run.state.device} if torch.cuda.is_available() else None
    known: dict[str, Any] = {"trust_remote_code": False, **_revision(options)}
    try:
        processor = AutoProcessor.from_pretrained(options.model, **known)
        model: Any = AutoModelForMultimodalLM.from_pretrained(
            options.model, dtype=options.dtype, device_map=options.device_map or device, **known
        ).eval()
    except (OSError, ValueError) as error:
        advice = "" if "hf download" in str(error) else how_to_get(options.model)
        raise ValueError(f"--model {options.model} cannot be loaded: {error}{advice}") from error
    weights = fingerprint({name: value for name, value in model.state_dict().items() if value.is_floating_point()})
    check_same(run.folder, {"weights": weights}, {})
    run.state.wait_for_everyone()  # none writes before all have looked
    if run.state.is_main_process:
        write_run(run.folder, record_of(run, model, weights))
    builder = SystemBuilder(
        model,
        processor,
        run.whisper,
        run.whisper_revision,
        run.folder,
        options.batch_size,
        options.ctc_weight,
    )
    for job in run.jobs:
        systems = {name: builder.build(job, name) for name in missing[job.task.name]}
        if systems:
            progress = run.state.is_main_process
            answer_job(run.folder, job, systems, processor, options.batch_size, run.state, progress)


def record_of(run: Run, model: Any, weights: str) -> dict[str, Any]:
    """What `run.json` holds; of a run that goes on, with what it was begun with."""
    before = read_run(run.folder)
    if before:
        for change in changed_versions(before):
            print(f"Note: {change}, since this run was begun.", file=sys.stderr)
    settings = task_settings(run)
    tasks = {job.task.name: _task_record(job, settings[job.task.name]) for job in run.jobs}
    return {
        "model": str(run.options.model),
        "revision": run.options.revision,
        "dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "device": str(model.device),
        "bases": {role: getattr(model.config, f"{role}_model_id") for role in ("audio", "text")},
        "versions": before.get("versions") or installed_versions(),
        "commit": before.get("commit") or package_facts()["commit"],
        "arguments": _as_json(asdict(run.options)),
        "started": before.get("started") or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        SETTINGS: {**run_settings(run), "weights": weights},
        "tasks": {**before.get("tasks", {}), **tasks},
    }


def _task_record(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    task = job.task
    return {
        "kind": task.kind,
        "metrics": list(task.metrics),
        "language": task.language,
        "normaliser": task.normaliser,
        "group": task.group,
        "source": _as_json(dict(task.source)),
        "items": len(job.ids),
        "left_out": dict(job.left_out),
        SETTINGS: dict(settings),
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _revision(options: EvaluateArguments) -> dict[str, Any]:
    return {} if options.revision is None else {"revision": options.revision}


__all__ = ["Run", "answer_all", "chosen_tasks", "locked", "prepare", "record_of", "run_settings", "task_settings"]

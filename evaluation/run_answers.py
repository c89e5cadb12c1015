"""What a folder of `audiollm evaluate` holds, as answers to score: outputs, verdicts, and what each task is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .measures import Answer, Convention
from .outputs import ERROR, LENGTH, OUTPUTS, REPEATED
from .run_record import RUN_FILE
from .word_error import aligner_for, check_convention

JUDGEMENTS = "judgements"
#: Of `extra`, of recordings that come in chunks.
SESSION, CHUNK = "session", "chunk_index"
INCOMPLETE_SESSIONS = "incomplete_sessions"
#: Of leaderboards, whose tasks are scored by their own normaliser and aligner: the normaliser, by group.
GROUP_NORMALISERS = {"open_asr": "leaderboard"}


class RunFolderError(ValueError):
    """A folder is no run of `audiollm evaluate`, or a file in it is damaged; the message says where."""


@dataclass(frozen=True)
class Run:
    """
    A folder of outputs.

    Attributes:
        folder: where it is.
        record: what `run.json` holds.
        outputs: the file of each system, by task.
    """

    folder: Path
    record: Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Path]]

    def task(self, name: str) -> Mapping[str, Any]:
        """What `run.json` says of a task."""
        return self.record["tasks"][name]


def open_run(folder: str | Path) -> Run:
    """
    A folder of outputs.

    Raises:
        RunFolderError: it is none, or holds outputs of a task that `run.json` does not name.
    """
    folder = Path(folder)
    path = folder / RUN_FILE
    if not path.is_file():
        raise RunFolderError(f"{folder} has no {RUN_FILE}; expected the --output_dir of `audiollm evaluate`.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is no JSON: {error}.") from error
    if not isinstance(record, dict) or not isinstance(record.get("tasks"), dict):
        raise RunFolderError(f"{path} names no tasks; expected what `audiollm evaluate` writes.")
    outputs: dict[str, dict[str, Path]] = {}
    for name in record["tasks"]:
        files = sorted((folder / OUTPUTS / name).glob("*.jsonl"))
        outputs[name] = {file.stem: file for file in files if not file.name.endswith(".partial.jsonl")}
    held = {each.name for each in (folder / OUTPUTS).glob("*") if each.is_dir()}
    unknown = sorted(held - outputs.keys())
    if unknown:
        raise RunFolderError(f"{folder / OUTPUTS} holds {', '.join(unknown)}, which {RUN_FILE} does not name.")
    if not any(outputs.values()):
        raise RunFolderError(
            f"{folder} has no finished outputs; run `audiollm evaluate --output_dir {folder}` to its end first."
        )
    return Run(folder, record, outputs)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """
    Rows of a JSON Lines file.

    Raises:
        RunFolderError: a line is no JSON object.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RunFolderError(
                    f"{path}, line {number} is no JSON: {error}. Run `audiollm evaluate` again to finish."
                ) from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise RunFolderError(f"{path}, line {number} has no id; expected a row of `audiollm evaluate`.")
            yield row


def read_answers(run: Run, task: str, system: str) -> list[Answer]:
    """
    What a system answered, with its verdicts; one that failed has said nothing.

    Raises:
        RunFolderError: a line is damaged, or two have the same id.
    """
    verdicts: dict[str, list[Mapping[str, Any]]] = {}
    judged = run.folder / JUDGEMENTS / task / f"{system}.jsonl"
    if judged.is_file():
        for row in read_lines(judged):
            verdicts.setdefault(row["id"], []).append(row)
    answers: dict[str, Answer] = {}
    for row in read_lines(run.outputs[task][system]):
        if row["id"] in answers:
            raise RunFolderError(f"{run.outputs[task][system]} has two rows with the id {row['id']!r}.")
        answers[row["id"]] = Answer(
            id=row["id"],
            text=row.get("output") or "",
            references=[str(text or "") for text in row.get("references") or []],
            extra=row.get("extra") or {},
            duration_s=float(row.get("duration_s") or 0.0),
            seconds=float(row.get("seconds") or 0.0),
            finish=str(row.get("finish")),
            error=row.get("error"),
            verdicts=verdicts.get(row["id"], ()),
        )
    return list(answers.values())


def convention_of(task: Mapping[str, Any], normaliser: str | None = None, aligner: str | None = None) -> Convention:
    """
    By what a task's answers are compared: as `run.json` says, or as is asked for.

    A leaderboard's tasks are compared as it compares them; an aligner that is not named is the one of the normaliser.

    Raises:
        ValueError: there is no such normaliser or aligner.
    """
    own = GROUP_NORMALISERS.get(task.get("group") or "", task.get("normaliser") or "english")
    chosen = normaliser or own
    check_convention(chosen, aligner or aligner_for(chosen))
    source = task.get("source")
    source = source if isinstance(source, Mapping) else {}
    return Convention(
        normaliser=chosen,
        aligner=aligner or aligner_for(chosen),
        language=task.get("language"),
        bleu_tokenizer=source.get("bleu_tokenizer"),
        parsing=source.get("parsing") or Convention.parsing,
    )


def joined_sessions(answers: Sequence[Answer]) -> tuple[list[Answer], dict[str, int]]:
    """
    Answers to chunks of a recording as one answer to the recording, in the chunks' order; others as they are.

    As the Open ASR Leaderboard does: the reference is the whole recording's, lengths and times are summed. A recording of
    which a chunk in between is missing does not count.

    Returns:
        The answers, and how many recordings were left out.
    """
    sessions: dict[str, list[Answer]] = {}
    joined: list[Answer] = []
    for answer in answers:
        if answer.extra.get(SESSION) is None:
            joined.append(answer)
        else:
            sessions.setdefault(str(answer.extra[SESSION]), []).append(answer)
    incomplete = 0
    for session, chunks in sessions.items():
        chunks.sort(key=lambda chunk: chunk.extra[CHUNK])
        if [chunk.extra[CHUNK] for chunk in chunks] != list(range(len(chunks))):
            incomplete += 1
            continue
        finishes = {chunk.finish for chunk in chunks}
        joined.append(
            replace(
                chunks[0],
                id=session,
                text=" ".join(chunk.text.strip() for chunk in chunks if chunk.text.strip()),
                duration_s=sum(chunk.duration_s for chunk in chunks),
                seconds=sum(chunk.seconds for chunk in chunks),
                finish=next((bad for bad in (ERROR, LENGTH, REPEATED) if bad in finishes), chunks[0].finish),
                error=next((chunk.error for chunk in chunks if chunk.error), None),
            )
        )
    return joined, {INCOMPLETE_SESSIONS: incomplete} if incomplete else {}


__all__ = [
    "Run",
    "RunFolderError",
    "convention_of",
    "joined_sessions",
    "open_run",
    "read_answers",
    "read_lines",
]

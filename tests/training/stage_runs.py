"""Rows and options of a short run of every stage, over the small corpus and a tiny pair of bases."""

from pathlib import Path

from small_corpus import example_rows, write_rows

#: Stages that the language model takes part in.
LANGUAGE_MODEL_STAGES = ("instruct", "distill", "prefer")


def stage_data(stage: str, names: list[str], folder: Path) -> str:
    """Writes the rows that a stage reads, one per recording; returns the file."""
    rows = [row for row in example_rows(names) if isinstance(row.get("audio_paths"), str)]
    if stage == "distill":
        rows = [{**row, "transcripts": row["response"]} for row in rows]
    elif stage == "prefer":
        rows = [
            {"text": row["text"], "audio_paths": row["audio_paths"], "chosen": row["response"], "rejected": "no"}
            for row in rows
        ]
    folder.mkdir(parents=True, exist_ok=True)
    return write_rows(folder / f"{stage}.json", rows)


def stage_options(stage: str, corpus, bases: tuple[str, str], features: Path, folder: Path, *extra: str) -> list[str]:
    """The command's options for a stage into `folder / stage`: ten rows, four a step, so that an epoch is three steps."""
    audio, text = bases
    return [
        f"--config={stage}",
        f"--data_path={stage_data(stage, corpus.names, folder)}",
        f"--audio_dir={corpus.audio_dir}",
        f"--whisper_path={audio}",
        f"--llama_path={text}",
        f"--output_dir={folder / stage}",
        f"--feature_cache={features}",
        "--batch_size=4",
        "--max_steps=3",
        "--logging_steps=1",
        "--disable_tqdm=True",
        *extra,
    ]

"""
`audiollm evaluate`: word error on held-out speech, beside the wrong-audio control and Whisper's own decoder.

    audiollm evaluate --model runs/mine --data_path test.json --audio_dir recordings --output report.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.rows import Conversation
from audiollm.corpora.sources import read_sources
from audiollm.processing.audio_io import AudioError
from transformers import AutoModelForMultimodalLM, AutoProcessor

from .listening import MAX_NEW_TOKENS, ListeningReport, evaluate_listening

DTYPES = ("auto", "float32", "bfloat16", "float16")


def read_test_set(data_path: str, audio_dir: str | None = None, limit: int | None = None) -> list[Conversation]:
    """
    Questions about one recording each, whose answers are its transcripts.

    Args:
        data_path: in any form that `audiollm train --data_path` takes.
        audio_dir: see [`read_sources`].
        limit: at most this many, the first ones.

    Raises:
        ExamplesError: rows are malformed, or are not one question about one recording; all are listed.
        FileNotFoundError, ValueError: as [`read_sources`].
    """
    (examples,) = read_sources(data_path, audio_dir)
    chosen = [examples[index] for index in range(min(len(examples), limit or len(examples)))]
    problems = list(examples.problems)
    for example in chosen:
        if len(example.recordings) != 1:
            problems.append((example.where, f"has {len(example.recordings)} recordings; a transcript has exactly one"))
        elif [message["role"] for message in example.messages] != ["user", "assistant"]:
            problems.append((example.where, "is not one question with one answer, the transcript"))
    if problems:
        raise ExamplesError(data_path, problems)
    return chosen


def write_report(path: Path, examples: Sequence[Conversation], report: ListeningReport) -> None:
    """Scores, and every clip's reference beside what was heard, as JSON."""
    decoder: Sequence[str | None] = report.decoder_hypotheses or [None] * len(examples)
    heard = zip(examples, report.hypotheses, report.control_hypotheses, decoder)
    clips = [
        {
            "audio": name_of(example),
            "prompt": example.messages[0]["content"],
            "reference": example.messages[1]["content"],
            "hypothesis": hypothesis,
            "wrong_audio_hypothesis": control,
            "whisper_hypothesis": own,
        }
        for example, hypothesis, control, own in heard
    ]
    path.write_text(json.dumps({**report.to_dict(), "clips": clips}, indent=1, ensure_ascii=False), encoding="utf-8")


def name_of(example: Conversation) -> str:
    """What a report calls a recording: its path, or that within a table, or the row."""
    recording = example.recordings[0]
    return recording if isinstance(recording, str) else recording.get("path") or example.where


def print_scores(report: ListeningReport) -> None:
    """One line for each figure."""
    scores = {"model": report.adapter, "model, wrong recordings": report.control, "Whisper's decoder": report.decoder}
    for name, score in scores.items():
        if score is not None:
            print(f"word error {score.word_error:.3f}  {name}  ({score.clips} clips, {score.reference_words} words)")
    if report.adapter.skipped:
        print(f"{report.adapter.skipped} clips were left out: their reference has no word.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm evaluate` and `python -m audiollm.evaluation.evaluate`."""
    parser = argparse.ArgumentParser(prog="audiollm evaluate", description="Word error on held-out speech.")
    parser.add_argument("--model", required=True, help="AudioLLM checkpoint: a folder or a Hub id")
    parser.add_argument(
        "--data_path",
        required=True,
        help="JSON, *.jsonl, *.parquet, a folder of Parquet files or saved dataset, or hub:org/name?split=test, of {text, audio_paths or audio, response: the transcript}",
    )
    parser.add_argument("--audio_dir", help="folder that audio_paths are relative to; that of the JSON by default")
    parser.add_argument("--output", type=Path, help="where to write scores and transcripts as JSON")
    parser.add_argument("--limit", type=int, help="at most this many clips, the first ones")
    parser.add_argument("--batch_size", type=int, default=16, help="clips at a time; default: %(default)s")
    parser.add_argument(
        "--max_new_tokens", type=int, default=MAX_NEW_TOKENS, help="bound on a transcript; default: %(default)s"
    )
    parser.add_argument("--no_decoder", action="store_true", help="leave Whisper's own decoder out")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="precision of the bases; default: %(default)s")
    parser.add_argument("--device_map", help="where to put the model, such as auto or cuda")
    options = parser.parse_args(arguments)
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.parent}")
    try:
        examples = read_test_set(options.data_path, options.audio_dir, options.limit)
        if len(examples) < 2:
            parser.error(f"{options.data_path} gives {len(examples)} clips; the wrong-audio control needs two or more")
        processor = AutoProcessor.from_pretrained(options.model)
        model = AutoModelForMultimodalLM.from_pretrained(
            options.model, dtype=options.dtype, device_map=options.device_map
        )
        report = evaluate_listening(
            model,
            processor,
            [example.messages[1]["content"] for example in examples],
            [example.recordings[0] for example in examples],
            prompt=[example.messages[0]["content"] for example in examples],
            with_decoder=not options.no_decoder,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )
    except (ExamplesError, AudioError, FileNotFoundError, ValueError) as error:
        sys.exit(f"audiollm evaluate: {error}")
    print_scores(report)
    if options.output is not None:
        write_report(options.output, examples, report)


if __name__ == "__main__":
    main()

"""
Word error on speech that no bundled corpus holds: other speakers, other text (`corpora/unseen_speech`).

Ten clips of two sources, each source and both together, for an adapter and, with --untrained, for the same model as it was
before training: composed afresh of the same bases with the same configuration. Beside them the control, the same model
given the wrong recording of the same source, and the same Whisper's own decoder.

    python benchmarks/unseen_speech.py --model runs/demo/adapter --untrained
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.corpora.unseen import SOURCES, load_unseen_speech
from audiollm.evaluation.listening import evaluate_listening
from audiollm.evaluation.word_error import WordErrorScore, score_word_error
from demo import MAX_PIECE_SECONDS, QUESTION, SEED

RESULTS = Path(__file__).parent / "results" / "unseen_speech.json"
BOTH = "both"
#: What one model or decoder made of every clip, by the name that its column has in the report; in the table's order.
LABELS = {
    "untrained": "before training",
    "untrained_wrong_audio": "  given the wrong recordings",
    "adapter": "after training",
    "adapter_wrong_audio": "  given the wrong recordings",
    "whisper_own_decoder": "Whisper's own decoder",
}
#: Configuration that does not say how to compose a model, but what was composed.
NOT_CHOSEN = ("self", "kwargs", "audio_config", "text_config", "base_fingerprint", "weight_format")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_BY_ITSELF = re.compile(r"(?<![\w.,])\d(?![\w]|[.,]\d)")


def digits_as_words(text: str) -> str:
    """
    A text whose digits, where they stand by themselves, are written out.

    The English normaliser makes one number of "five five" and two of "5 5". What is said is the same, so that neither
    way of writing it should count as an error; both sides are brought to the first.
    """
    return DIGIT_BY_ITSELF.sub(lambda digit: DIGITS[int(digit[0])], text)


def score(references: list[str], hypotheses: list[str]) -> WordErrorScore:
    """Word error by the English normaliser, digits written out first; see [`digits_as_words`]."""
    return score_word_error([*map(digits_as_words, references)], [*map(digits_as_words, hypotheses)])


def compose_untrained(config: AudioLlmConfig) -> AudioLlmForConditionalGeneration:
    """
    The model of a configuration as it was before training: its bases, and projector and LoRA fresh.

    Raises:
        ValueError: the configuration does not say which bases.
    """
    if not (config.audio_model_id and config.text_model_id):
        raise ValueError(
            f"The checkpoint names as its bases {config.audio_model_id!r} and {config.text_model_id!r}; a model from "
            "before its training can only be composed of two that are named. Leave --untrained out."
        )
    names = [name for name in inspect.signature(AudioLlmConfig).parameters if name not in NOT_CHOSEN]
    chosen = {name: getattr(config, name) for name in names}
    transformers.set_seed(SEED)
    return AudioLlmForConditionalGeneration.from_audio_text_pretrained(**chosen, dtype=torch.float32)


def listen(
    model: AudioLlmForConditionalGeneration,
    processor: AudioLlmProcessor,
    clips: dict[str, datasets.Dataset],
    name: str,
    with_decoder: bool,
    progress: bool = True,
) -> dict[str, list[str]]:
    """
    Return what is heard in every clip, by the names of `LABELS`.

    Args:
        model, processor: who listens.
        clips: by source; the wrong recording is one of the same source, so that the control may guess by the kind of
            text as well as the model may.
        name: `"untrained"` or `"adapter"`.
        with_decoder: also let Whisper's own decoder listen, where the model knows its base.
        progress: shows bars with rate and time left.
    """
    heard: dict[str, list[str]] = {}
    for rows in clips.values():
        report = evaluate_listening(
            model,
            processor,
            list(rows["text"]),
            list(rows["audio"]),
            QUESTION,
            with_decoder=with_decoder,
            max_piece_seconds=MAX_PIECE_SECONDS,
            progress=progress,
        )
        columns = {name: report.hypotheses, f"{name}_wrong_audio": report.control_hypotheses}
        if report.decoder_hypotheses is not None:
            columns["whisper_own_decoder"] = report.decoder_hypotheses
        for column, texts in columns.items():
            heard.setdefault(column, []).extend(texts)
    return heard


def scores(clips: dict[str, datasets.Dataset], heard: dict[str, list[str]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Word error of each of `heard`, on each source and on both together."""
    references = [(source, text) for source, rows in clips.items() for text in rows["text"]]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for chosen in (*clips, BOTH):
        table[chosen] = {}
        for name, texts in heard.items():
            pairs = [(text, said) for (source, text), said in zip(references, texts) if chosen in (source, BOTH)]
            table[chosen][name] = score(*map(list, zip(*pairs))).to_dict()
    return table


def run(model_path: str, untrained: bool = False, progress: bool = True) -> dict[str, Any]:
    """
    Listens and scores; returns what the report says.

    Args:
        model_path: adapter, a folder or a Hub id.
        untrained: also score the model as it was before training.
        progress: shows bars.

    Raises:
        ValueError: `untrained`, and the checkpoint does not say which bases it was composed of.
    """
    clips = {source: load_unseen_speech(source) for source in SOURCES}
    processor = AudioLlmProcessor.from_pretrained(model_path)
    heard: dict[str, list[str]] = {}
    if untrained:
        fresh = compose_untrained(AudioLlmConfig.from_pretrained(model_path))
        heard |= listen(fresh, processor, clips, "untrained", with_decoder=False, progress=progress)
        del fresh  # two models at once would only take memory
    model = AudioLlmForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32)
    heard |= listen(model, processor, clips, "adapter", with_decoder=True, progress=progress)
    known = [(row["id"], row["text"]) for rows in clips.values() for row in rows]
    columns = ("id", "reference", *heard)
    return {
        "model": model_path,
        "question": QUESTION,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "scores": scores(clips, heard),
        "clips": [dict(zip(columns, (*clip, *texts))) for clip, *texts in zip(known, *heard.values())],
    }


def print_report(report: dict[str, Any]) -> None:
    """The table of word errors, and what each made of every clip."""
    columns = (*SOURCES, BOTH)
    print(f"\n{'word error':32}" + "".join(f"{source:>10}" for source in columns))
    for name, label in LABELS.items():
        if name in report["scores"][BOTH]:
            figures = (report["scores"][source][name]["word_error"] for source in columns)
            print(f"{label:32}" + "".join(f"{figure:10.3f}" for figure in figures))
    for count, label in (("reference_words", "words"), ("clips", "clips")):
        print(f"{label:32}" + "".join(f"{report['scores'][source]['adapter'][count]:10d}" for source in columns))
    for clip in report["clips"]:
        print(f"\n{clip['id']}\n  {'what is said':24}{clip['reference']}")
        for name, label in LABELS.items():
            if name in clip and not name.endswith("wrong_audio"):
                print(f"  {label:24}{' '.join(clip[name].split())}")


def main(arguments: list[str] | None = None) -> None:
    """Scores an adapter, prints and writes what was heard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="AudioLLM checkpoint: a folder or a Hub id")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file to write; default: %(default)s")
    parser.add_argument("--untrained", action="store_true", help="also score the model as it was before training")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.parent}")
    try:
        report = run(options.model, options.untrained)
    except ValueError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print_report(report)


if __name__ == "__main__":
    main()

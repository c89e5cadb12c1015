"""Mixtures, bad examples, budgets and streams in training: what is drawn, what is refused, and that a stream resumes."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.sources import StreamedRows, parse_source, read_sources
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.batching import BatchBudget
from audiollm.training.dataset import AudioLlmCollator
from audiollm.training.encoding import ExampleEncoder, build_mixture
from audiollm.training.streaming import StreamedExamples
from audiollm.training.train import check_arguments, parse_arguments, train
from audiollm.training.trainer import AudioLlmTrainer
from small_corpus import example_rows, write_rows
from transformers import TrainerCallback


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def write_lines(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: Path, prefix: str, count: int) -> str:
    return write_lines(path, [{"text": f"{prefix}{index}", "response": "yes"} for index in range(count)])


def prompts(processor, rows) -> list[str]:
    return [processor.tokenizer.decode(row["input_ids"]).split("user\n")[1].split("<")[0] for row in rows]


# ---------------------------------------------------------------------------------------------------------- mixtures


def test_without_weights_every_example_comes_once(tmp_path, tiny_processor) -> None:
    sources = read_sources([texts(tmp_path / "a.jsonl", "a", 5), texts(tmp_path / "b.jsonl", "b", 2)])
    dataset = build_mixture(sources, ExampleEncoder(tiny_processor), progress=False)
    assert sorted(prompts(tiny_processor, dataset)) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


def test_weights_are_shares_of_the_rows_of_an_epoch(tmp_path, tiny_processor) -> None:
    sources = read_sources([texts(tmp_path / "a.jsonl", "a", 40), texts(tmp_path / "b.jsonl", "b", 40)])

    def drawn(weights, seed=0) -> list[str]:
        encoder = ExampleEncoder(tiny_processor)
        return prompts(tiny_processor, build_mixture(sources, encoder, weights, seed, progress=False))

    mixed = drawn([3.0, 1.0])
    assert set(mixed) == {f"{name}{index}" for name in "ab" for index in range(40)}  # nothing is left out
    assert sum(name.startswith("a") for name in mixed) / len(mixed) == pytest.approx(0.75, abs=0.08)
    assert mixed == drawn([3.0, 1.0]) == drawn([0.75, 0.25])
    assert mixed != drawn([3.0, 1.0], seed=1)


def test_data_weights_reach_the_run(options, tmp_path) -> None:
    paths = [texts(tmp_path / f"{name}.jsonl", name, 6) for name in "ab"]
    options = [*options, "--data_path", *paths, "--max_steps", "1"]
    assert len(train(*parse_arguments(options)).train_dataset) == 12
    again = [*options, "--data_weights", "9", "1", "--output_dir", str(tmp_path / "weighted")]
    assert len(train(*parse_arguments(again)).train_dataset) > 20


# ------------------------------------------------------------------------------------------------------- bad examples


@pytest.fixture
def bad_data(tmp_path, corpus) -> str:
    """One row of each kind of badness among two good ones."""
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more")
    return write_rows(
        tmp_path / "bad.json",
        [
            {"text": "<audio>", "audio_paths": corpus.paths[0], "response": "good"},
            {"text": "<audio>", "audio_paths": "broken.wav", "response": "x"},
            {"text": "no response"},
            {"text": "a", "response": "an <audio>"},
            {"text": "<audio>", "audio_paths": "gone.wav", "response": "x"},
            {"text": "good too", "response": "yes"},
        ],
    )


def without(options: list[str], name: str) -> list[str]:
    at = options.index(name)
    return options[:at] + options[at + 2 :]


def test_bad_examples_are_all_listed_and_nothing_is_trained(options, bad_data, tmp_path) -> None:
    options = [*without(options, "--audio_dir"), "--data_path", bad_data]
    with pytest.raises(ExamplesError) as caught:
        train(*parse_arguments(options))
    assert {where for where, _ in caught.value.problems} == {"row 2", "row 4"}
    rows = [row for row in json.loads(Path(bad_data).read_text()) if row.get("response") and "gone" not in str(row)]
    with pytest.raises(ExamplesError) as caught:
        train(*parse_arguments([*options, "--data_path", write_rows(tmp_path / "audio.json", rows)]))
    assert [where for where, _ in caught.value.problems] == ["row 1", "row 2"]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_skip_counts_and_lists_what_is_left_out(options, bad_data, capsys) -> None:
    options = [*without(options, "--audio_dir"), "--data_path", bad_data, "--on_bad_example", "skip"]
    assert len(train(*parse_arguments(options)).train_dataset) == 2
    printed = capsys.readouterr().out
    assert "4 bad examples are left out" in printed
    for where in ("row 1: ", "row 2: ", "row 3: ", "row 4: "):
        assert where in printed


def test_with_nothing_left_a_run_is_refused(tmp_path, tiny_processor) -> None:
    sources = read_sources(write_rows(tmp_path / "data.json", [{"text": "x"}]))
    with pytest.raises(ExamplesError, match="no example that can be used"):
        build_mixture(sources, ExampleEncoder(tiny_processor), skip_bad=True, progress=False)


# -------------------------------------------------------------------------------------------------- recordings in tables


@pytest.mark.parametrize("cached", [True, False])
def test_recordings_within_tables_give_the_batch_of_files(
    corpus, cache, tiny_model, tiny_processor, tmp_path, cached: bool
) -> None:
    rows = [{"text": f"<audio> {index}", "response": "yes"} for index in range(3)]
    files = [{**row, "audio_paths": path} for row, path in zip(rows, corpus.paths)]
    inside = [{**row, "audio": {"bytes": Path(path).read_bytes()}} for row, path in zip(rows, corpus.paths)]
    datasets.Dataset.from_list(inside).to_parquet(tmp_path / "data.parquet")
    store = cache if cached else None
    batches = []
    for path in (write_rows(tmp_path / "data.json", files), str(tmp_path / "data.parquet")):
        dataset = build_mixture(read_sources(path), ExampleEncoder(tiny_processor, store), progress=False)
        batches.append(AudioLlmCollator(tiny_processor, store)(list(dataset)))
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert torch.isfinite(tiny_model(**batches[1]).loss)


# ------------------------------------------------------------------------------------------------------------- budgets


class Seen(TrainerCallback):
    """Keeps the losses and learning rates of a run."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append(logs)


def trainer_of(model, processor, dataset, collator, folder, **arguments) -> AudioLlmTrainer:
    training = AudioLlmTrainingArguments(output_dir=str(folder), **arguments)
    return AudioLlmTrainer(
        model=model,
        args=training,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=processor,
        budget=training.batch_budget(),
    )


def run(model, processor, dataset, collator, folder, **arguments) -> AudioLlmTrainer:
    quiet = {"logging_steps": 1, "disable_tqdm": True, "save_strategy": "no"}
    trainer = trainer_of(model, processor, dataset, collator, folder, **quiet, **arguments)
    trainer.train()
    return trainer


def trained(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def restore(model, state: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(state, strict=False)


@pytest.fixture
def pieces(corpus, cache, tiny_model, tiny_processor):
    for name, parameter in tiny_model.named_parameters():
        parameter.requires_grad_(name in set(tiny_model.trainable_names()))
    sources = read_sources(corpus.data_path, corpus.audio_dir)
    dataset = build_mixture(sources, ExampleEncoder(tiny_processor, cache), progress=False)
    return tiny_model, tiny_processor, dataset, AudioLlmCollator(tiny_processor, cache)


def test_accumulated_budgeted_cached_or_not_the_loss_is_that_of_one_large_batch(pieces, corpus, tmp_path) -> None:
    model, processor, dataset, collator = pieces
    before = trained(model)
    uncached = build_mixture(
        read_sources(corpus.data_path, corpus.audio_dir), ExampleEncoder(processor), progress=False
    )
    longest = max(dataset["length"][:])
    kinds = {
        "one batch": (dataset, collator, {"batch_size": 12}),
        "four of three": (dataset, collator, {"batch_size": 3, "gradient_accumulation_steps": 4}),
        "random": (
            dataset,
            collator,
            {"batch_size": 3, "gradient_accumulation_steps": 4, "train_sampling_strategy": "random"},
        ),
        "budget": (dataset, collator, {"max_tokens_per_batch": 3 * longest, "gradient_accumulation_steps": 12}),
        "seconds": (dataset, collator, {"max_audio_seconds_per_batch": 2.5, "gradient_accumulation_steps": 12}),
        "no cache": (uncached, AudioLlmCollator(processor), {"batch_size": 12}),
    }
    figures = {}
    for name, (rows, collate, arguments) in kinds.items():
        restore(model, before)
        trainer = run(model, processor, rows, collate, tmp_path / name, num_epochs=1, **arguments)
        assert trainer.state.global_step == 1
        (log,) = [log for log in trainer.state.log_history if "loss" in log]
        figures[name] = log["loss"], log["grad_norm"]
    for name, found in figures.items():
        assert found == pytest.approx(figures["one batch"], rel=2e-4), (name, figures)


def test_steps_and_schedule_are_those_of_the_budgeted_batches(pieces, tmp_path) -> None:
    model, processor, dataset, collator = pieces
    trainer = run(
        model,
        processor,
        dataset,
        collator,
        tmp_path,
        num_epochs=2,
        max_tokens_per_batch=2 * max(dataset["length"][:]),
        lr_scheduler_type="linear",
        warmup_steps=0,
    )
    per_epoch = len(trainer.get_train_dataloader())
    assert per_epoch >= 4 and trainer.state.max_steps == trainer.state.global_step == 2 * per_epoch
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates[-1] == pytest.approx(rates[0] / (2 * per_epoch))
    assert trainer.state.epoch == 2


def test_every_example_comes_once_an_epoch_with_and_without_a_budget(pieces, tmp_path) -> None:
    model, processor, dataset, collator = pieces
    expected = Counter(map(tuple, dataset["input_ids"]))
    for arguments in ({"batch_size": 5}, {"max_tokens_per_batch": 300}):
        trainer = trainer_of(model, processor, dataset, collator, tmp_path, **arguments)
        seen: Counter = Counter()
        for batch in trainer.get_train_dataloader():
            if "max_tokens_per_batch" in arguments:
                assert batch["input_ids"].numel() <= 300
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool()):
                seen[tuple(ids[mask].tolist())] += 1
        assert seen == expected


def test_a_row_beyond_the_budget_is_refused_by_index_at_the_start(options, corpus, tmp_path) -> None:
    options = without(options, "--batch_size")
    with pytest.raises(ExamplesError, match=r"row 10: takes \d+ tokens, more than --max_tokens_per_batch 45"):
        train(*parse_arguments([*options, "--max_tokens_per_batch", "45"]))
    with pytest.raises(
        ExamplesError, match=r"row 9: has 0.9\d s of audio, more than --max_audio_seconds_per_batch 0.5"
    ):
        train(*parse_arguments([*options, "--max_audio_seconds_per_batch", "0.5"]))


def test_budgets_of_the_command_bound_its_batches_and_resume_exactly(options, tmp_path) -> None:
    options = [*without(without(options, "--batch_size"), "--max_steps"), "--num_epochs", "2", "--save_steps", "1"]
    options += ["--max_tokens_per_batch", "200", "--save_total_limit", "99", "--lora_dropout", "0.1"]
    whole = train(*parse_arguments([*options, "--output_dir", str(tmp_path / "a")]))
    assert whole.state.global_step == 2 * len(whole.get_train_dataloader())
    for step in (1, whole.state.global_step // 2, whole.state.global_step // 2 + 1):
        folder = tmp_path / f"from{step}"
        folder.mkdir()
        (tmp_path / "a" / f"checkpoint-{step}").rename(folder / f"checkpoint-{step}")
        train(*parse_arguments([*options, "--output_dir", str(folder)]))
        assert digest(folder) == digest(tmp_path / "a")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------- streaming


@pytest.fixture
def lines(tmp_path, corpus) -> str:
    rows = example_rows(corpus.paths)
    rows.insert(3, {"text": "no response"})
    rows.insert(6, {"text": "<audio>", "audio_paths": "gone.wav", "response": "x"})
    return write_lines(tmp_path / "lines.jsonl", rows)


def streamed(options: list[str], path: str, steps: int, *more: str) -> list[str]:
    options = without(options, "--audio_dir")
    return [*options, "--data_path", path, "--streaming", "--max_steps", str(steps), *more]


def test_a_stream_resumes_where_it_was_to_the_last_bit(options, lines, tmp_path, capsys) -> None:
    # 12 good rows, 4 a step, two steps' worth accumulated: the second pass begins within step 2.
    more = "--on_bad_example skip --shuffle_rows 5 --gradient_accumulation_steps 2 --save_steps 1 "
    more += "--save_total_limit 99 --learning_rate 0.005"
    options = streamed(options, lines, 5, *more.split())
    whole = train(*parse_arguments([*options, "--output_dir", str(tmp_path / "a")]))
    assert "the 2. bad example so far" in capsys.readouterr().out
    for step in (1, 2, 3):
        folder = tmp_path / f"from{step}"
        folder.mkdir()
        (tmp_path / "a" / f"checkpoint-{step}").rename(folder / f"checkpoint-{step}")
        resumed = train(*parse_arguments([*options, "--output_dir", str(folder)]))
        assert digest(folder) == digest(tmp_path / "a")
        losses = [[log["loss"] for log in one.state.log_history if "loss" in log] for one in (whole, resumed)]
        assert losses[0] == losses[1]


def test_shuffle_rows_changes_the_order_of_a_stream(options, lines, tmp_path) -> None:
    def losses(*more: str) -> list[float]:
        own = streamed(options, lines, 3, "--on_bad_example", "skip", "--logging_steps", "1", *more)
        trainer = train(*parse_arguments([*own, "--output_dir", str(tmp_path / "-".join(("run", *more)))]))
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    in_order = losses("--shuffle_rows", "0")
    assert losses("--shuffle_rows", "8") != in_order
    assert losses("--shuffle_rows", "1") == in_order  # drawn from one row


def test_what_was_learned_is_passed_over_unread(lines, corpus, cache, tiny_processor) -> None:
    def stream(**options) -> StreamedExamples:
        rows = [StreamedRows(parse_source(lines), shuffle_rows=4)]
        return StreamedExamples(rows, ExampleEncoder(tiny_processor, cache), seed=3, skip_bad=True, **options)

    first = stream()
    expected = [row for _, row in zip(range(20), first)]
    second = stream()
    second.passed_over, second.bad = 9, set(first.bad)
    encoded = []
    encode, second.encoder.encode = second.encoder.encode, lambda example: encoded.append(1) or encode(example)
    found = [row for _, row in zip(range(20), second)]
    assert found[:9] == [None] * 9 and found[9:] == expected[9:] and len(encoded) == 11


def test_processes_share_a_stream_without_overlap(tmp_path, tiny_processor) -> None:
    path = texts(tmp_path / "a.jsonl", "a", 12)
    found = []
    for process in range(3):
        stream = StreamedExamples(
            [StreamedRows(parse_source(path))], ExampleEncoder(tiny_processor), process_index=process, num_processes=3
        )
        found.append(prompts(tiny_processor, [row for row, _ in zip(stream, range(4))]))
    assert sorted(name for names in found for name in names) == sorted(f"a{index}" for index in range(12))


def test_streams_are_mixed_by_weight_or_in_turns(tmp_path, tiny_processor) -> None:
    paths = [texts(tmp_path / "a.jsonl", "a", 3), texts(tmp_path / "b.jsonl", "b", 1)]

    def first(count: int, weights=None, seed=0) -> list[str]:
        rows = [StreamedRows(parse_source(path)) for path in paths]
        stream = StreamedExamples(rows, ExampleEncoder(tiny_processor), weights, seed)
        return prompts(tiny_processor, [row for row, _ in zip(stream, range(count))])

    assert first(8) == ["a0", "b0", "a1", "a2"] * 2
    drawn = first(400, [1.0, 3.0])
    assert sum(name == "b0" for name in drawn) / 400 == pytest.approx(0.75, abs=0.06)
    assert drawn == first(400, [1.0, 3.0]) != first(400, [1.0, 3.0], seed=1)


def test_a_bad_row_of_a_stream_is_reported_when_it_is_met(options, lines, capsys) -> None:
    with pytest.raises(ExamplesError, match=r"(?s)lines.jsonl: 1 problem.*line (4|7)"):
        train(*parse_arguments(streamed(options, lines, 4)))
    assert "bad ones cannot be found ahead" in capsys.readouterr().out


def test_a_stream_without_a_good_row_ends(tmp_path, tiny_processor) -> None:
    for rows, reason in (([{"text": "x"}], "no example that can be used"), ([], "holds no examples")):
        path = write_lines(tmp_path / "data.jsonl", rows)
        stream = StreamedExamples([StreamedRows(parse_source(path))], ExampleEncoder(tiny_processor), skip_bad=True)
        with pytest.raises(ExamplesError, match=reason):
            next(iter(stream))


def test_tables_stream_too(options, corpus, tmp_path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000, format="WAV")
    rows = [{"text": "<audio>", "audio": {"bytes": buffer.getvalue(), "path": None}, "response": "yes"}] * 5
    datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio()).to_parquet(tmp_path / "data.parquet")
    trainer = train(*parse_arguments(streamed(options, str(tmp_path / "data.parquet"), 2)))
    assert trainer.state.global_step == 2


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options_given", "reason"),
    [
        ("--data_weights 1 2", "expected a positive number for each"),
        ("--data_weights 0", "expected a positive number for each"),
        ("--streaming", "--max_steps"),
        ("--streaming --max_steps 1 --dataloader_num_workers 1", "--dataloader_num_workers with --streaming"),
        ("--streaming --max_steps 1 --max_tokens_per_batch 9", "a batch budget with --streaming"),
        ("--max_tokens_per_batch 0", "--max_tokens_per_batch is 0"),
        ("--max_audio_seconds_per_batch -1", "--max_audio_seconds_per_batch is -1"),
        ("--stage prefer --max_tokens_per_batch 9", "--stage prefer cannot have a batch budget"),
    ],
)
def test_contradictions_are_refused(options_given: str, reason: str, tmp_path) -> None:
    with pytest.raises(ValueError) as caught:
        parsed = parse_arguments(["--data_path", "x.json", "--output_dir", str(tmp_path), *options_given.split()])
        check_arguments(*parsed[:3], parsed[3].stage)
    assert reason in str(caught.value)


def test_an_unknown_way_with_bad_examples_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--data_path", "x.json", "--on_bad_example", "ignore"])
    assert "--on_bad_example" in capsys.readouterr().err


def test_the_budget_of_the_command_is_that_of_its_batches() -> None:
    arguments = parse_arguments(
        ["--data_path", "x", "--max_tokens_per_batch", "9", "--max_audio_seconds_per_batch", "2"]
    )
    assert arguments[2].batch_budget() == BatchBudget(9, 2.0)
    assert parse_arguments(["--data_path", "x"])[2].batch_budget() is None

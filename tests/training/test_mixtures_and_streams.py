"""Mixtures, bad examples, budgets and streams in training: what is drawn, what is refused, and that a stream resumes."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.sources import StreamedRows, parse_source, read_sources
from audiollm.training.collator import AudioLlmCollator
from audiollm.training.command_line import parse_arguments
from audiollm.training.instruct import open_training_data
from audiollm.training.rows import ExampleEncoder, StreamedExamples, build_mixture
from runs import differing, digest, logged, refused, resumed, run, without
from small_corpus import example_rows, write_rows

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def write_lines(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: Path, prefix: str, count: int) -> str:
    return write_lines(path, [{"text": f"{prefix}{index}", "response": "yes"} for index in range(count)])


def prompts(processor, rows) -> list[str]:
    return [processor.tokenizer.decode(row["input_ids"]).split("user\n")[1].split("<")[0] for row in rows]


def first(count: int, rows) -> list:
    return [row for _, row in zip(range(count), rows)]


def test_weights_are_shares_of_the_rows_of_an_epoch(tmp_path, tiny_processor) -> None:
    paths = [texts(tmp_path / f"{name}.jsonl", name, 40) for name in "ab"]
    sources = read_sources(paths)

    def drawn(weights, seed=0) -> list[str]:
        encoder = ExampleEncoder(tiny_processor)
        return prompts(tiny_processor, build_mixture(sources, encoder, weights, seed, progress=False))

    everything = sorted(f"{name}{index}" for name in "ab" for index in range(40))
    assert sorted(drawn(None)) == everything
    mixed = drawn([3.0, 1.0])
    assert sorted(set(mixed)) == everything  # nothing is left out
    assert sum(name.startswith("a") for name in mixed) / len(mixed) == pytest.approx(0.75, abs=0.08)
    assert mixed == drawn([3.0, 1.0]) == drawn([0.75, 0.25])
    assert mixed != drawn([3.0, 1.0], seed=1)
    given = parse_arguments(["--data_path", *paths, "--data_weights", "9", "1"])[1]
    assert open_training_data(given).weights == [9, 1]
    nothing = read_sources(write_rows(tmp_path / "data.json", [{"text": "x"}]))
    with pytest.raises(ExamplesError, match="no example that can be used"):
        build_mixture(nothing, ExampleEncoder(tiny_processor), skip_bad=True, progress=False)


@pytest.fixture
def bad_data(tmp_path, corpus) -> str:
    """One row of each kind of badness among two good ones."""
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more")
    return write_rows(
        tmp_path / "bad.json",
        [
            {"text": "<audio>", "audio_paths": corpus.paths[0], "response": "good"},
            {"text": "<audio>", "audio_paths": "broken.wav", "response": "x"},
            {"text": "no response", "extra": 1},
            {"text": "a", "response": "an <audio>"},
            {"text": "<audio>", "audio_paths": "gone.wav", "response": "x"},
            {"text": "good too", "response": "yes"},
        ],
    )


def test_bad_examples_are_all_listed_or_left_out_aloud(options, bad_data, tmp_path, capsys) -> None:
    options = without(options, "audio_dir")
    good = ["--data_path", write_rows(tmp_path / "good.json", [{"text": "good", "response": "yes"}])]
    for given in (["--data_path", bad_data], [*good, "--eval_data_path", bad_data, "--eval_strategy", "epoch"]):
        message = refused([*options, *given], capsys)
        assert all(part in message for part in ("bad.json", "'extra'", "gone.wav", "row 2: ", "row 4: "))
    rows = [row for row in json.loads(Path(bad_data).read_text()) if row.get("response") and "gone" not in str(row)]
    with pytest.raises(ExamplesError) as caught:
        run([*options, "--data_path", write_rows(tmp_path / "audio.json", rows)])
    assert [where for where, _ in caught.value.problems] == ["row 1", "row 2"]
    assert len(run([*options, "--data_path", bad_data, "--on_bad_example", "skip"]).train_dataset) == 2
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("4 bad examples are left out", "row 1: ", "row 2: ", "row 3: ", "row 4: "))


def test_recordings_within_tables_give_the_batch_of_files(corpus, cache, tiny_model, tiny_processor, tmp_path) -> None:
    rows = [{"text": f"<audio> {index}", "response": "yes"} for index in range(3)]
    files = [{**row, "audio_paths": path} for row, path in zip(rows, corpus.paths)]
    inside = [{**row, "audio": {"bytes": Path(path).read_bytes()}} for row, path in zip(rows, corpus.paths)]
    datasets.Dataset.from_list(inside).to_parquet(tmp_path / "data.parquet")
    paths = write_rows(tmp_path / "data.json", files), str(tmp_path / "data.parquet")
    for store in (cache, None):
        batches = []
        for path in paths:
            dataset = build_mixture(read_sources(path), ExampleEncoder(tiny_processor, store), progress=False)
            batches.append(AudioLlmCollator(tiny_processor, store)(list(dataset)))
        assert batches[0].keys() == batches[1].keys() and not differing(*batches)
        assert torch.isfinite(tiny_model(**batches[1]).loss)
    streamed = first(6, stream_of(tiny_processor, paths[1], cache=cache))
    assert {row["audio"][0] for row in streamed} == {cache.key(path) for path in corpus.paths[:3]}


def test_accumulated_budgeted_cached_or_not_the_loss_is_that_of_one_large_batch(options, dataset) -> None:
    options = without(options, "batch_size", "max_steps")
    kinds = (
        "--batch_size 12",
        "--batch_size 3 --gradient_accumulation_steps 4 --train_sampling_strategy random",
        f"--max_tokens_per_batch {3 * max(dataset['length'][:])} --gradient_accumulation_steps 12",
        "--batch_size 12 --feature_cache off",
    )
    figures = {}
    for kind in kinds:
        trainer = run([*options, *kind.split(), "--num_epochs", "1", "--logging_steps", "1", "--save_strategy", "no"])
        figures[kind] = (*logged(trainer), *logged(trainer, "grad_norm"))
    for found in figures.values():
        assert found == pytest.approx(figures["--batch_size 12"], rel=2e-4), figures


def test_budgets_of_the_command_bound_its_batches_schedule_and_resume_exactly(options, tmp_path) -> None:
    options = [*without(options, "batch_size", "max_steps"), "--num_epochs", "2", "--save_steps", "1"]
    with pytest.raises(ExamplesError, match=r"row 10: takes \d+ tokens, more than --max_tokens_per_batch 45"):
        run([*options, "--max_tokens_per_batch", "45"])
    more = "--max_tokens_per_batch 200 --save_total_limit 99 --lora_dropout 0.1 --lr_scheduler_type linear "
    options += f"{more} --warmup_steps 0 --logging_steps 1".split()
    whole = run(options)
    per_epoch = len(whole.get_train_dataloader())
    assert whole.state.max_steps == whole.state.global_step == 2 * per_epoch and whole.state.epoch == 2
    rates = logged(whole, "learning_rate")
    assert rates[-1] == pytest.approx(rates[0] / (2 * per_epoch))
    for step in (1, per_epoch + 1):
        resumed(options, tmp_path / "run", step, tmp_path / str(step))
        assert digest(tmp_path / str(step)) == digest(tmp_path / "run")


@pytest.fixture
def lines(tmp_path, corpus) -> str:
    rows = example_rows(corpus.paths)
    rows.insert(3, {"text": "no response"})
    rows.insert(6, {"text": "<audio>", "audio_paths": "gone.wav", "response": "x"})
    return write_lines(tmp_path / "lines.jsonl", rows)


def stream_of(processor, *paths: str, cache=None, shuffle_rows: int = 1000, **options) -> StreamedExamples:
    rows = [StreamedRows(parse_source(path), shuffle_rows=shuffle_rows) for path in paths]
    return StreamedExamples(rows, ExampleEncoder(processor, cache), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_where_it_was_to_the_last_bit(options, lines, tmp_path, capfd, workers: int) -> None:
    # 12 good rows, 4 a step, two steps' worth accumulated: the second pass begins within step 2.
    more = "--streaming --on_bad_example skip --shuffle_rows 5 --gradient_accumulation_steps 2 --save_steps 1 "
    more += "--save_total_limit 99 --learning_rate 0.005 --max_steps 4"
    options = [*without(options, "audio_dir"), "--data_path", lines, *more.split()]
    trainer = run([*options, "--dataloader_num_workers", str(workers)])
    assert "bad example so far" in capfd.readouterr().out and trainer.train_dataset.bad
    options += ["--dataloader_num_workers", str(workers)]
    for step in (1, 2):
        resumed(options, tmp_path / "run", step, tmp_path / str(step))
        assert digest(tmp_path / str(step)) == digest(tmp_path / "run")


def test_shuffle_rows_changes_the_order_of_a_stream_and_processes_share_it(tmp_path, tiny_processor) -> None:
    path = texts(tmp_path / "a.jsonl", "a", 12)

    def order(shuffle_rows: int, process: int = 0, processes: int = 1) -> list[str]:
        shared = {"process_index": process, "num_processes": processes}
        stream = stream_of(tiny_processor, path, shuffle_rows=shuffle_rows, **shared)
        return prompts(tiny_processor, first(12 // processes, stream))

    in_order = [f"a{index}" for index in range(12)]
    assert order(0) == order(1) == in_order  # drawn from one row
    assert order(8) != in_order and sorted(order(8)) == sorted(in_order)
    assert sorted(name for process in range(3) for name in order(8, process, 3)) == sorted(in_order)
    given = parse_arguments(["--data_path", path, "--streaming", "--max_steps", "1", "--shuffle_rows", "8"])[1]
    assert open_training_data(given).sources[0].shuffle_rows == 8
    stream = stream_of(tiny_processor, path, shuffle_rows=8)
    whole, stream.passed_over = first(12, stream), 9
    assert first(12, stream) == [None] * 9 + whole[9:]  # what was learned is not encoded again


def test_streams_are_mixed_by_weight_or_in_turns(tmp_path, tiny_processor) -> None:
    paths = [texts(tmp_path / "a.jsonl", "a", 3), texts(tmp_path / "b.jsonl", "b", 1)]

    def begin(count: int, weights=None, seed=0) -> list[str]:
        stream = stream_of(tiny_processor, *paths, shuffle_rows=0, weights=weights, seed=seed)
        return prompts(tiny_processor, first(count, stream))

    assert begin(8) == ["a0", "b0", "a1", "a2"] * 2
    drawn, again, other = (begin(400, [1.0, 3.0], seed) for seed in (0, 0, 1))
    assert sum(name == "b0" for name in drawn) / 400 == pytest.approx(0.75, abs=0.06)
    assert drawn == again != other


def test_bad_rows_of_a_stream_are_reported_when_they_are_met(options, lines, tmp_path, tiny_processor, capsys) -> None:
    given = [*without(options, "audio_dir"), "--data_path", lines, "--streaming", "--max_steps", "4"]
    for workers in ("0", "2"):
        with pytest.raises(ExamplesError, match=r"(?s)lines.jsonl: 1 problem.*line (4|7)"):
            run([*given, "--dataloader_num_workers", workers])
    assert "bad ones cannot be found ahead" in capsys.readouterr().out
    for rows, reason in (([{"text": "x"}], "no example that can be used"), ([], "holds no examples")):
        path = write_lines(tmp_path / "data.jsonl", rows)
        with pytest.raises(ExamplesError, match=reason):
            next(iter(stream_of(tiny_processor, path, skip_bad=True)))

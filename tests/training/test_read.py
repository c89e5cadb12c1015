"""Stage read: LoRA learns from text alone, with recordings beside it or none, and goes on exactly where it was killed."""

import json
from pathlib import Path

import datasets
import pytest
import runs
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.spoken_pieces import spoken_form
from audiollm.training import read
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.batching import BatchBudget
from audiollm.training.collator import AudioLlmCollator
from audiollm.training.posteriors import BANK_FILE, PosteriorBank
from audiollm.training.train import main
from posterior_banks import SENTENCES, make_bank, save_aligned
from small_corpus import write_rows


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, tiny_bases) -> Path:
    return save_aligned(tmp_path_factory.mktemp("aligned"), tiny_bases)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n".join(SENTENCES * 4) + "\n")
    return file


@pytest.fixture
def run(aligned, texts, shared_features, tmp_path):
    """The command's options for a short run into `tmp_path / "run"`."""

    def options(*extra: str, model: Path = aligned, text: Path = texts) -> list[str]:
        own = (
            f"--stage read --model_path {model} --text_path {text} --output_dir {tmp_path / 'run'} "
            f"--feature_cache {shared_features} --max_steps 4 --logging_steps 1 --disable_tqdm True"
        ).split()
        return [*own, *extra]

    return options


def test_it_learns_to_read_without_any_recording(run, tiny_bases, tmp_path, capsys) -> None:
    """A readout of letters is given the words of the texts."""
    aligned = save_aligned(tmp_path / "spelling", tiny_bases, projector_letters="abcdefghijklmnopqrstuvwxyz'")
    main(run("--max_steps", "30", "--learning_rate", "0.02", "--max_tokens_per_batch", "1500", model=aligned))
    assert "bit for bit: largest difference 0." in capsys.readouterr().out
    losses = runs.logged(tmp_path / "run")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    before, after = (AudioLlmForConditionalGeneration.from_pretrained(path) for path in (aligned, tmp_path / "run"))
    changed = runs.differing(before, after)
    assert changed and all(".lora_" in name for name in changed)
    words = {word for sentence in SENTENCES for word in spoken_form(sentence).split()}
    assert set(after.model.multi_modal_projector.letters.known_words()) == words
    first, second = (PosteriorBank.load(path / BANK_FILE) for path in (aligned, tmp_path / "run"))
    assert first.counts.tolist() == second.counts.tolist()


@pytest.mark.slow
def test_what_is_learned_is_to_read_the_audio(real_bases, tmp_path) -> None:
    """Of a real language model, the loss falls, and a text behind another's audio costs far more."""
    sentences = [sentence for sentence in SENTENCES if len(sentence) < 25]
    aligned = save_aligned(tmp_path / "aligned", real_bases, texts=sentences)
    (tmp_path / "texts.txt").write_text("\n".join(sentences * 8))
    options = (
        f"--stage read --model_path {aligned} --text_path {tmp_path / 'texts.txt'} --output_dir {tmp_path / 'run'}"
    )
    settings = "--max_steps 8 --max_tokens_per_batch 400 --learning_rate 2e-3 --logging_steps 1 --disable_tqdm True"
    trainer = runs.run(f"{options} {settings} --feature_cache off".split())
    losses = runs.logged(trainer)
    assert losses[-1] < 0.5 * losses[0]
    model, collator = trainer.model.eval(), trainer.data_collator
    rows = trainer.train_dataset
    costs = []
    trainer.options.hearing_errors = 0
    for heard in (0, 1):
        with torch.no_grad():
            batch = trainer.vary(collator([{**rows[heard], "text": rows[0]["text"]}]))
            costs.append(float(model(**batch).loss))
    assert costs[0] < 0.5 * costs[1]


def test_recordings_come_beside_texts_and_train_the_projector_if_asked(run, corpus, aligned, tmp_path) -> None:
    options = f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --real_share 0.5 --augment".split()
    trainer = runs.run(run(*options, "--trainable", "adapter", "--max_tokens_per_batch", "90000"))
    assert len(trainer.train_dataset) == 2 * len(SENTENCES) * 4
    before, after = (AudioLlmForConditionalGeneration.from_pretrained(path) for path in (aligned, tmp_path / "run"))
    changed = runs.differing(before, after)
    assert any("linear_1" in name for name in changed) and any(".lora_B." in name for name in changed)
    batch = next(iter(trainer.get_train_dataloader()))
    varied = trainer.vary(batch)
    slots = int((varied["input_ids"] == trainer.processing_class.audio_token_id).sum())
    windows = sum(-(-length // 4) for length in varied["encoded_audio_lengths"].tolist())
    assert slots == len(varied["audio_embeds"]) + windows and windows > 0 and "text_sizes" not in varied


def test_errors_go_up_over_the_run_and_held_out_recordings_are_evaluated(run, corpus) -> None:
    evaluation = f"--eval_data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --eval_strategy steps".split()
    bounds = ["--eval_steps", "4", "--eval_max_new_tokens", "3", "--batch_size", "5"]
    trainer = runs.run(run("--hearing_errors", "2", *evaluation, *bounds))
    assert runs.logged(trainer, "eval_loss") and runs.logged(trainer, "eval_word_error")
    for trainer.state.global_step, errors in enumerate([0, 2 / 3, 4 / 3, 2]):
        assert trainer.errors == pytest.approx(errors)
    assert sorted(map(len, trainer.train_batch_sampler().batches(0))) == [4, 5, 5, 5, 5]


def test_cut_off_it_goes_on_exactly(run, corpus, tmp_path) -> None:
    """With recordings beside the texts, augmented, and workers that make batches ahead."""
    options = f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --augment --real_share 0.4".split()
    options += ["--max_steps", "8", "--save_steps", "3", "--save_total_limit", "9", "--learning_rate", "0.005"]
    options += ["--max_tokens_per_batch", "1200"]
    options = run(*options, "--dataloader_num_workers", "1")
    runs.run(options)
    runs.resumed(options, tmp_path / "run", 3, tmp_path / "resumed")
    assert runs.digest(tmp_path / "resumed") == runs.digest(tmp_path / "run")


def test_the_bank_is_collected_from_recordings_or_given(run, tiny_bases, corpus, tmp_path, capsys) -> None:
    bare = save_aligned(tmp_path / "bare", tiny_bases, with_bank=False)
    assert BANK_FILE in runs.refused(run(model=bare), capsys, early=False)
    # Noise is not heard as what its rows say.
    data = f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir}".split()
    assert "posteriors" in runs.refused(run(*data, model=bare), capsys, early=False)
    processor = AudioLlmProcessor.from_pretrained(bare)
    make_bank(processor.tokenizer)[0].save(tmp_path / "elsewhere" / BANK_FILE)
    for given in (tmp_path / "elsewhere", tmp_path / "elsewhere" / BANK_FILE):
        main(run("--posterior_bank", str(given), model=bare))


@pytest.fixture
def bank(tiny_processor) -> PosteriorBank:
    return make_bank(tiny_processor.tokenizer)[0]


def test_rows_are_those_of_a_transcript_of_a_recording(bank, aligned, tiny_processor, tmp_path) -> None:
    texts = [read.Text(sentence, sentence, f"line {n}") for n, sentence in enumerate(SENTENCES * len(read.PROMPTS))]
    rows, problems = read.build_text_rows(texts, bank, tiny_processor, BatchBudget(), progress=False)
    assert not problems and set(rows["prompt"]) == set(read.PROMPTS)
    trainer = read.ReadTrainer(
        AudioLlmForConditionalGeneration.from_pretrained(aligned),
        AudioLlmTrainingArguments(str(tmp_path), max_steps=1),
        read.ReadCollator(tiny_processor, AudioLlmCollator(tiny_processor)),
        processing_class=tiny_processor,
        bank=bank,
        options=read.ReadArguments(text_path=["x"]),
    )
    batch = trainer.vary(trainer.data_collator(list(rows)))
    slots = (batch["input_ids"] == tiny_processor.audio_token_id).sum(dim=1)
    assert slots.sum() == len(batch["audio_embeds"]) > len(texts)
    for row, text, ids, labels in zip(rows, texts, batch["input_ids"], batch["labels"]):
        assert max(row["prompt"].split("<audio>"), key=len).strip() in tiny_processor.decode(ids)
        assert tiny_processor.decode(labels[labels != -100]) == f"{text.written}<|im_end|>"
    # Lengths are known ahead, but for how many audio tokens are drawn.
    drawn = batch["attention_mask"].sum(dim=1) - slots
    expected = [row["length"] - round(bank.expected_slots(row["classes"], row["begins"])) for row in rows]
    assert all(0 <= length - own <= max(map(len, read.PROMPTS)) for length, own in zip(expected, drawn.tolist()))


def test_texts_that_cannot_be_simulated_are_left_out_and_named(bank, tiny_processor, real_processor) -> None:
    assert make_bank(real_processor.tokenizer)[1].unspeakable("well \u4f60\u597d") == ["\u4f60\u597d"]
    texts = ["Good.", "It costs 1250 euros.", "Stop </s> here.", "Far " * 100]
    texts = [read.Text(text, text, f"line {n}") for n, text in enumerate(texts)]
    rows, problems = read.build_text_rows(texts, bank, tiny_processor, BatchBudget(max_tokens=500), progress=False)
    assert rows["text"][:] == ["Good."]
    assert [where for where, _ in problems] == ["line 1", "line 2", "line 3"]
    for (_, reason), part in zip(problems, ["1250", "</s>", "max_tokens_per_batch"]):
        assert part in reason
    said = [read.Text("It costs $1,250.", "it costs twelve hundred fifty dollars", "row 0")]
    assert read.build_text_rows(said, bank, tiny_processor, BatchBudget(), progress=False)[1] == []


def test_as_many_recordings_as_their_share() -> None:
    assert read.num_recordings(60, 0.25) == 20
    chosen, again, other = (read.choose_recordings(20, 8, seed) for seed in (1, 1, 2))
    assert len(chosen) == 20 and {chosen.count(index) for index in range(8)} == {2, 3}
    assert chosen == again != other and read.choose_recordings(0, 8, seed=1) == []


def test_texts_are_read_of_every_form(tmp_path) -> None:
    rows = [{"text": " One  two. "}, {"text": "It is 10.", "spoken": "it is ten", "more": 1}]
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffOne two.\r\n\r\n---\nIt is 10.\n".encode())
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_rows(tmp_path / "a.json", rows)
    datasets.Dataset.from_list([{"spoken": None, **row} for row in rows]).to_parquet(tmp_path / "a.parquet")
    found = [(text.written, text.where) for text in read.read_texts(str(plain))[0]]
    assert found == [("One two.", "line 1"), ("It is 10.", "line 4")]
    for name in ("a.jsonl", "a.json", "a.parquet"):
        texts, problems = read.read_texts(str(tmp_path / name))
        assert [(text.written, text.spoken) for text in texts] == [("One two.",) * 2, ("It is 10.", "it is ten")]
        assert not problems


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("empty.txt", b"", "holds no text"),
        ("binary.txt", bytes(range(256)), "cannot be read"),
        ("zeros.txt", b"abc\0def\n", "line 1: is not text"),
        ("table.parquet", b"PAR1 not a table", "cannot be read"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": 1}\n', "line 2"),
        ("rows.json", b'{"text": "a"}', "list"),
        ("long.txt", b"a " * 500_000, "line 1: has 999,999 characters"),
        ("audio.txt", b"Say <audio>.\n", "<audio>"),
        ("missing.txt", None, "missing.txt"),
    ],
)
def test_files_that_hold_no_texts_are_refused(run, tmp_path, capsys, name: str, content, part: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    message = runs.refused(run(text=file), capsys, early=False)
    assert part in message and name in message and len(message) < 1000


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ("--real_share 1", "--real_share is 1"),
        ("--hearing_errors -1", "--hearing_errors is -1"),
        ("--posterior_bank a --posterior_data_path b", "contradicts"),
        ("--trainable all", "--stage read cannot have --trainable all"),
        ("--posterior_bank nowhere", "nowhere"),
        ("--speed 0.9 1.1 --data_path x", "--stage read cannot have --speed"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, capsys, extra: str, part: str) -> None:
    assert part in runs.refused(run(*extra.split()), capsys, early=False)
    assert "--text_path" in runs.refused(["--stage", "read", "--model_path", "x"], capsys, early=False)


@pytest.mark.parametrize(
    ("shape", "bank", "part"),
    [
        ({"projector_readout": "direct"}, False, "'direct'"),
        ({"lora_rank": 0}, False, "lora_rank 0"),
        ({"aligned": False}, False, "aligned"),
        ({"stack_factor": 2}, True, "stack factor"),
    ],
    ids=["no readout", "no LoRA", "never aligned", "another's bank"],
)
def test_checkpoints_that_cannot_learn_to_read_are_refused(
    run, aligned, tiny_bases, tmp_path, capsys, shape, bank, part
) -> None:
    model = save_aligned(tmp_path / "model", tiny_bases, with_bank=False, **shape)
    assert part in runs.refused(
        run(*(["--posterior_bank", str(aligned)] if bank else []), model=model), capsys, early=False
    )

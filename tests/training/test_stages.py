"""Stages as a user runs them: what trains, what is saved, what becomes of answers to text, and how a run ends."""

import json
import os
import signal
from pathlib import Path

import datasets
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.checkpoints import is_adapter_key
from audiollm.training.arguments import NEVER_TRAINED, TRAINABLE, part_of
from audiollm.training.checkpointing import StoppedBySignalError, last_complete_checkpoint
from audiollm.training.run_record import PROBES, describe_drift, drift, text_logits
from audiollm.training.train import main
from runs import (
    STAGES,
    differing,
    digest,
    logged,
    refused,
    run,
    stage_options,
    stage_rows,
    started,
    until_checkpoint,
    without,
)
from safetensors.torch import load_file
from small_corpus import example_rows, write_rows
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments


def base_logits(text_base: str, tokenizer) -> list[torch.Tensor]:
    """The base's own logits of the probes, from its own class."""
    base = AutoModelForCausalLM.from_pretrained(text_base).eval()
    ids = [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in PROBES]
    with torch.no_grad():
        return [base(input_ids=row).logits[0] for row in ids]


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, tiny_bases, corpus, shared_features) -> Path:
    """The folder that `--config align` wrote, which the other stages go on from."""
    folder = tmp_path_factory.mktemp("aligned")
    main(stage_options("align", corpus, tiny_bases, shared_features, folder, "--lora_rank=4", "--lora_dropout=0.2"))
    return folder / "align"


class SendSigterm(TrainerCallback):
    """Sends this process the signal in the middle of the second step."""

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, **kwargs) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_goes_on_exactly_after_sigterm_and_answers_text_as_the_base(
    name: str, stage, aligned, tiny_bases, tmp_path, capsys
) -> None:
    """Each recipe as it is shipped; all but align from the aligned checkpoint."""
    given = [*stage(name, "--max_steps=5", "--save_strategy=epoch", "--learning_rate=0.01")]
    if name == "align":
        given += ["--lora_rank=4"]
    else:
        given = [*without(given, "whisper_path", "llama_path"), f"--model_path={aligned}"]
    before, whole, folder = signal.getsignal(signal.SIGTERM), tmp_path / "whole", tmp_path / name
    run([*given, f"--output_dir={whole}"])
    assert "Text-only logits are those of the base, bit for bit: largest difference 0." in capsys.readouterr().out
    with pytest.raises(StoppedBySignalError, match="stopped by SIGTERM after step 2 of 5") as caught:
        run(given, callbacks=[SendSigterm()])
    assert signal.getsignal(signal.SIGTERM) is before
    assert caught.value.checkpoint == last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    assert not (folder / "model.safetensors").exists()
    run(given)
    assert digest(folder) == digest(whole)

    losses = logged(folder / "checkpoint-5")
    assert len(losses) == 5 and all(abs(loss) < float("inf") for loss in losses)
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AudioLlmForConditionalGeneration, AudioLlmProcessor))
    after, base = text_logits(model, tokenizer.tokenizer), base_logits(tiny_bases[1], tokenizer.tokenizer)
    assert all(torch.equal(first, second) for first, second in zip(after, base, strict=True))
    changed = differing(load_file(aligned / "model.safetensors"), dict(model.named_parameters()))
    assert any(".lora_B." in n for n in changed) == (name != "align")
    assert any("multi_modal_projector" in n for n in changed) == (name != "prefer")


def test_drift_is_zero_only_for_the_same_bits() -> None:
    same = [torch.tensor([[0.0, 1.0]])]
    for other, expected in (([0.0, 1.0], 0), ([0.0, 1.5], 0.5), ([float("nan"), 1.0], float("nan"))):
        assert drift(same, [torch.tensor([other])]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_what_trains_changes_is_saved_and_nothing_else(trainable: str, stage, tiny_bases, tmp_path, capsys) -> None:
    extra = ["--feature_cache=off", f"--trainable={trainable}", "--lora_rank=4", "--learning_rate=0.01"]
    trainer = run([*without(stage("instruct"), "feature_cache"), *extra, "--warmup_steps=0"])
    printed, model, folder = capsys.readouterr().out, trainer.model, tmp_path / "instruct"
    assert "There is no feature cache: every batch is encoded anew." in printed
    weights = dict(model.named_parameters())
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {n for n in weights if part_of(n) in TRAINABLE[trainable] and NEVER_TRAINED not in n}
    assert {n for n, p in weights.items() if id(p) in optimised} == expected
    fresh = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    bases = {n: p for n, p in fresh.named_parameters() if not is_adapter_key(n)}
    assert differing(bases, weights) == expected & bases.keys()
    assert all(weights[n].dtype == torch.float32 for n in expected)
    assert model.train().model.audio_tower.training == ("audio" in TRAINABLE[trainable])

    whole = not all(map(is_adapter_key, expected))
    for path in (folder, folder / "checkpoint-3"):
        assert all(map(is_adapter_key, load_file(path / "model.safetensors"))) != whole
        assert json.loads((path / "config.json").read_text())["weight_format"] == ("full" if whole else "adapter")
    again = AudioLlmForConditionalGeneration.from_pretrained(folder)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[5]])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, type(model).forward(model.eval(), **batch).logits)
    if "llm" in TRAINABLE[trainable]:
        tokenizer = trainer.processing_class.tokenizer
        moved = drift(base_logits(tiny_bases[1], tokenizer), text_logits(again, tokenizer))
        assert moved > 0 and describe_drift(moved) in printed


def test_whole_checkpoints_are_gone_on_from(stage, tmp_path, capsys) -> None:
    """With the base changed, answers to text are compared with those that the stage began with."""
    given = ["--feature_cache=off", "--trainable=all", "--learning_rate=0.01"]
    model = run([*without(stage("instruct"), "feature_cache"), *given]).model
    assert not model.config.lora_adapters  # a language model that trains gets none by itself
    named = [*stage("instruct", f"--model_path={tmp_path / 'instruct'}"), f"--output_dir={tmp_path / 'b'}"]
    message = refused(named, capsys)
    assert "--llama_path and --whisper_path cannot go with --model_path" in message
    more = without(stage("instruct"), "whisper_path", "llama_path", "output_dir")
    run([*more, f"--model_path={tmp_path / 'instruct'}", f"--output_dir={tmp_path / 'more'}"])
    assert "are those of the model that the stage began with, bit for bit" in capsys.readouterr().out
    # A checkpoint of trained bases never becomes an adapter on the untrained ones.
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("instruct", "more"))
    assert first.keys() == second.keys()
    changed = differing(first, second)
    assert changed and all(is_adapter_key(name) for name in changed)


def test_align_leaves_out_what_it_cannot_use_aloud(stage, corpus, tmp_path, capsys) -> None:
    rows = [*example_rows(corpus.names), {"text": "<audio>", "audio_paths": corpus.names[0], "response": "..."}]
    (tmp_path / "noise.wav").write_bytes(b"no recording")
    broken = [{**rows[0], "audio_paths": str(tmp_path / "noise.wav")}] * 2
    data = write_rows(tmp_path / "rows.json", [*rows, *broken])
    message = refused([*stage("align"), f"--data_path={data}"], capsys, early=False)
    assert "row 13" in message and "row 14" in message
    message = refused([*stage("align"), f"--data_path={write_rows(tmp_path / 'none.json', rows[-2:])}"], capsys)
    assert "No row can be aligned" in message
    run([*stage("align"), f"--data_path={data}", "--on_bad_example=skip"])
    printed = capsys.readouterr().out
    assert "leaves out 3 of 13 rows: 1 whose response has no words, 1 with several recordings, 1 without" in printed
    assert "2 bad examples are left out" in printed


def test_align_learns_the_same_of_every_form_of_data_and_as_its_options_say(stage, corpus, tmp_path) -> None:
    rows = stage_rows("align", corpus.names)
    chats = []
    for row in rows:
        said = zip(("user", "assistant"), (row["text"], row["response"]))
        messages = [{"role": role, "content": content} for role, content in said]
        chats.append({"messages": messages, "audio_paths": row["audio_paths"]})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    inside = [{"bytes": (corpus.audio_dir / row["audio_paths"]).read_bytes(), "path": None} for row in rows]
    table = [{"text": row["text"], "response": row["response"], "audio": audio} for row, audio in zip(rows, inside)]
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "table.parquet")
    chats, table = (str(tmp_path / name) for name in ("chats.jsonl", "table.parquet"))
    plain = ("--augment=False",)
    runs = (
        ([chats], plain),
        ([table], plain),
        ([chats, table], plain),
        ([chats], ("--augment=True",)),
        ([chats], (*plain, "--transcript_normaliser=english")),
    )
    digests, pieces = [], []
    for number, (paths, extra) in enumerate(runs):
        given = without(stage("align", "--max_steps=2", "--save_strategy=no"), "data_path")
        vocabulary = run([*given, *extra, f"--output_dir={tmp_path / str(number)}", "--data_path", *paths]).vocabulary
        digests.append(digest(tmp_path / str(number)))
        pieces.append({vocabulary.tokenizer.decode([token_id]) for token_id in vocabulary.token_ids})
    assert digests[0] == digests[1] and len(set(digests)) == 4
    assert "w" in pieces[0] and "1" not in pieces[0]
    assert "1" in pieces[4] and "w" not in pieces[4]  # "one two" is "1 2"


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("align", "--trainable=all", "--stage align cannot have --trainable all"),
        ("align", "--feature_cache=off", "--stage align cannot have --feature_cache off"),
        ("align", "--eval_data_path=x --eval_strategy=epoch", "--stage align cannot have --eval_data_path"),
        ("align", "--push_to_hub", "--stage align cannot have --push_to_hub"),
        ("align", "--packing", "--stage align cannot have --packing"),
        ("instruct", "--resume_from_checkpoint=/nowhere", "--resume_from_checkpoint /nowhere is not a folder"),
        ("distill", "--trainable=adapter+llm", "--stage distill cannot have --trainable adapter+llm"),
        ("distill", "--distill_weight=1.1", "--distill_weight is 1.1"),
        ("prefer", "--trainable=projector", "--stage prefer cannot have --trainable projector"),
        ("prefer", "--augment", "--stage prefer cannot have --augment"),
    ],
)
def test_what_a_stage_cannot_do_is_refused_before_any_work(stage, capsys, name, extra: str, message: str) -> None:
    assert message in refused([*stage(name), *extra.split()], capsys)


def test_a_folder_with_checkpoints_of_another_stage_is_refused(stage, tmp_path, capsys) -> None:
    run(stage("align", "--max_steps=1"))
    for extra, told in (([], "--stage instruct, --trainable adapter"), (["--trainable=lora"], "--trainable lora")):
        message = refused([*stage("instruct"), f"--output_dir={tmp_path / 'align'}", *extra], capsys, early=False)
        assert "holds checkpoints of --stage align" in message and told in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_that_a_signal_ends_says_so_and_leaves_a_checkpoint(
    number: signal.Signals, stage, tmp_path
) -> None:
    log = tmp_path / "log"
    process = started(stage("instruct", "--max_steps=4000", "--save_steps=5"), log)
    until_checkpoint(process, tmp_path / "instruct", log)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    newest, printed = last_complete_checkpoint(tmp_path / "instruct"), log.read_text()
    step = newest.rpartition("-")[2]
    assert f"audiollm train: stopped by {number.name} after step {step} of 4000; {newest} holds it" in printed
    assert "Traceback" not in printed


def test_resume_from_checkpoint_goes_on_from_the_one_that_is_named(stage, tmp_path) -> None:
    given, first = stage("align", "--save_steps=1", "--save_total_limit=2"), tmp_path / "align"
    run(given)
    assert {path.name for path in first.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    run([*given, f"--output_dir={tmp_path / 'b'}", f"--resume_from_checkpoint={first / 'checkpoint-2'}"])
    assert [path.name for path in (tmp_path / "b").glob("checkpoint-*")] == ["checkpoint-3"]
    assert digest(tmp_path / "b") == digest(first)

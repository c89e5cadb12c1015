"""Stages as a user runs them: what trains, what is saved, what becomes of answers to text, and how a run ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.checkpoints import is_adapter_key
from audiollm.training.arguments import NEVER_TRAINED, TRAINABLE, part_of, set_trainable
from audiollm.training.checkpointing import StoppedBySignalError, last_complete_checkpoint
from audiollm.training.run_record import PROBES, describe_drift, drift, text_logits
from audiollm.training.train import main, parse_arguments, run_stage
from safetensors.torch import load_file
from small_corpus import example_rows, write_rows
from stage_runs import stage_options
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

STAGES = ("align", "instruct", "distill", "prefer")
PATIENCE_S = 90


@pytest.fixture
def options(corpus, tiny_bases, shared_features, tmp_path):
    """Makes the options of a stage into `tmp_path / stage`."""

    def make(stage: str, *extra: str) -> list[str]:
        return stage_options(stage, corpus, tiny_bases, shared_features, tmp_path, *extra)

    return make


def run(options: list[str], **callbacks):
    return run_stage(*parse_arguments(options), **callbacks)


def without(options: list[str], *names: str) -> list[str]:
    return [option for option in options if not option.startswith(tuple(f"--{name}=" for name in names))]


def refused(options: list[str], capsys) -> str:
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert isinstance(caught.value.code, str), capsys.readouterr().err
    return caught.value.code


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def base_logits(text_base: str, tokenizer) -> list[torch.Tensor]:
    """The base's own logits of the probes, from its own class."""
    base = AutoModelForCausalLM.from_pretrained(text_base).eval()
    ids = [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in PROBES]
    with torch.no_grad():
        return [base(input_ids=row).logits[0] for row in ids]


# ------------------------------------------------------------------------------------------------------ answers to text


@pytest.mark.parametrize("stage", STAGES)
def test_after_every_stage_text_is_answered_as_by_the_base(stage: str, options, tiny_bases, tmp_path, capsys) -> None:
    run(options(stage, "--learning_rate=0.05"))
    assert "Text-only logits are those of the base, bit for bit: largest difference 0." in capsys.readouterr().out
    model = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / stage)
    tokenizer = AudioLlmProcessor.from_pretrained(tmp_path / stage).tokenizer
    after, base = text_logits(model, tokenizer), base_logits(tiny_bases[1], tokenizer)
    assert all(torch.equal(first, second) for first, second in zip(after, base, strict=True))


@pytest.mark.parametrize("extra", [(), ("--bf16",)])
def test_the_drift_of_a_language_model_that_trains_is_measured_and_printed(
    extra, options, tiny_bases, tmp_path, capsys
) -> None:
    run([*without(options("instruct"), "feature_cache"), "--trainable=all", "--learning_rate=0.005", *extra])
    printed = capsys.readouterr().out
    assert "There is no feature cache: every batch is encoded anew." in printed
    line = next(line for line in printed.splitlines() if line.startswith("Text-only logits have drifted"))
    model = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "instruct")
    tokenizer = AudioLlmProcessor.from_pretrained(tmp_path / "instruct").tokenizer
    expected = drift(base_logits(tiny_bases[1], tokenizer), text_logits(model, tokenizer))
    assert expected > 0 and line == describe_drift(expected)


def test_drift_is_zero_only_for_the_same_bits() -> None:
    same, other = [torch.tensor([[0.0, 1.0]])], [torch.tensor([[0.0, 1.5]])]
    assert drift(same, [same[0].clone()]) == 0.0
    assert drift(same, other) == 0.5
    assert drift(same, [torch.tensor([[float("nan"), 1.0]])]) != 0


# ----------------------------------------------------------------------------------------------------------- what trains


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_what_trains_changes_and_nothing_else(trainable: str, options, tiny_bases, tmp_path) -> None:
    extra = ["--feature_cache=off", f"--trainable={trainable}", "--lora_rank=4", "--learning_rate=0.01"]
    trainer = run([*without(options("instruct"), "feature_cache"), *extra, "--warmup_steps=0"])
    torch.manual_seed(trainer.args.seed)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimised = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {n for n in names.values() if part_of(n) in TRAINABLE[trainable] and NEVER_TRAINED not in n}
    assert optimised == expected
    fresh = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    bases = {n: p for n, p in fresh.named_parameters() if not is_adapter_key(n)}
    changed = {n for n, p in bases.items() if not torch.equal(p, trainer.model.get_parameter(n))}
    assert changed == expected & bases.keys()
    assert all(parameter.dtype == torch.float32 for n, parameter in trainer.model.named_parameters() if n in expected)


@pytest.mark.parametrize("trainable", ["adapter", "adapter+audio", "adapter+llm"])
def test_checkpoints_are_whole_where_a_base_trained(trainable: str, options, tmp_path, capsys) -> None:
    given = ["--feature_cache=off", f"--trainable={trainable}", "--learning_rate=0.01"]
    trainer = run([*without(options("instruct"), "feature_cache"), *given])
    model, folder = trainer.model, tmp_path / "instruct"
    whole = trainable != "adapter"
    for path in (folder, folder / "checkpoint-3"):
        saved = load_file(path / "model.safetensors")
        assert any(not is_adapter_key(name) for name in saved) == whole
        assert json.loads((path / "config.json").read_text())["weight_format"] == ("full" if whole else "adapter")
    assert bool(model.config.lora_adapters) == (trainable != "adapter+llm")
    again = AudioLlmForConditionalGeneration.from_pretrained(folder)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[5]])
    with torch.no_grad():
        expected = type(model).forward(model.eval(), **batch).logits
        assert torch.equal(again(**batch).logits, expected)
    # A checkpoint of trained bases never becomes an adapter on the untrained ones.
    again.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert any(not is_adapter_key(name) for name in saved) == whole
    if whole:
        message = refused(
            [*options("instruct", "--output_dir=" + str(tmp_path / "b")), f"--model_path={folder}"], capsys
        )
        assert "--llama_path and --whisper_path cannot go with --model_path" in message


def test_whole_checkpoints_are_gone_on_from(options, tmp_path, capsys) -> None:
    """With the base changed, answers to text are compared with those that the stage began with."""
    given = ["--feature_cache=off", "--trainable=all", "--learning_rate=0.01"]
    run([*without(options("instruct"), "feature_cache"), *given])
    more = without(options("instruct"), "whisper_path", "llama_path", "output_dir")
    run([*more, f"--model_path={tmp_path / 'instruct'}", f"--output_dir={tmp_path / 'more'}"])
    assert "are those of the model that the stage began with, bit for bit" in capsys.readouterr().out
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("instruct", "more"))
    assert first.keys() == second.keys()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(is_adapter_key(name) for name in changed)


def test_the_audio_tower_trains_in_training_mode(tiny_model) -> None:
    set_trainable(tiny_model.train(), "adapter+audio")
    assert tiny_model.model.audio_tower.training and tiny_model.config.audio_model_id is None
    assert tiny_model.config.text_model_id is not None


# ------------------------------------------------------------------------------------------------------------ align


def test_align_leaves_out_what_it_cannot_use_aloud(options, corpus, tmp_path, capsys) -> None:
    rows = [*example_rows(corpus.names), {"text": "<audio>", "audio_paths": corpus.names[0], "response": "..."}]
    data = write_rows(tmp_path / "rows.json", rows)
    alignment = run([*options("align"), f"--data_path={data}"])
    printed = capsys.readouterr().out
    assert (
        "The warm start leaves out 3 of 13 rows: 1 whose response has no words, 1 with several recordings, 1 without "
        "audio." in printed
    )
    assert len(alignment.losses) == 3
    message = refused([*options("align"), f"--data_path={write_rows(tmp_path / 'none.json', rows[-2:])}"], capsys)
    assert "No row can be aligned" in message


def test_align_reads_every_form_of_data_and_several(options, corpus, tmp_path, capsys) -> None:
    rows = [row for row in example_rows(corpus.names) if isinstance(row.get("audio_paths"), str)]
    chats = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["response"]}],
         "audio_paths": row["audio_paths"]} for row in rows
    ]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    table = [
        {"text": row["text"], "response": row["response"],
         "audio": {"bytes": (corpus.audio_dir / row["audio_paths"]).read_bytes(), "path": row["audio_paths"]}}
        for row in rows
    ]  # fmt: skip
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "table.parquet")
    write_rows(tmp_path / "rows.json", rows)
    digests = set()
    for name in ("rows.json", "chats.jsonl", "table.parquet"):
        run([*options("align"), f"--data_path={tmp_path / name}", f"--output_dir={tmp_path / name}-run"])
        digests.add(digest(tmp_path / f"{name}-run"))
    assert len(digests) == 1
    assert "leaves out" not in capsys.readouterr().out
    both = ["--data_path", str(tmp_path / "rows.json"), str(tmp_path / "table.parquet")]
    run([*options("align"), *both, f"--output_dir={tmp_path / 'both'}"])
    assert digest(tmp_path / "both") not in digests


def test_align_lists_all_bad_examples_or_leaves_them_out(options, corpus, tmp_path, capsys) -> None:
    (tmp_path / "noise.wav").write_bytes(b"no recording")
    rows = [row for row in example_rows(corpus.names) if isinstance(row.get("audio_paths"), str)]
    rows = [{**row, "audio_paths": str(corpus.audio_dir / row["audio_paths"])} for row in rows]
    broken = [{**rows[0], "audio_paths": str(tmp_path / "noise.wav")}] * 2
    data = write_rows(tmp_path / "rows.json", [*rows, *broken])
    given = [*without(options("align"), "audio_dir"), f"--data_path={data}"]
    message = refused(given, capsys)
    assert all(f"row {len(rows) + index}" in message for index in range(2))
    run([*given, "--on_bad_example=skip"])
    assert "2 bad examples are left out" in capsys.readouterr().out


def test_align_trains_the_projector_alone_and_augments_when_asked(options, tiny_bases, tmp_path) -> None:
    run(options("align", "--augment=False"))
    run([*options("align", "--augment=True"), f"--output_dir={tmp_path / 'varied'}"])
    plain, varied = (load_file(tmp_path / name / "model.safetensors") for name in ("align", "varied"))
    differing = {name for name in plain if not torch.equal(plain[name], varied[name])}
    assert differing and all("multi_modal_projector" in name for name in differing)


def test_the_normaliser_of_transcripts_is_the_one_asked_for(options, tmp_path) -> None:
    pieces = {}
    for normaliser in ("english", "basic"):
        given = options("align", f"--transcript_normaliser={normaliser}", "--max_steps=1")
        vocabulary = run([*given, f"--output_dir={tmp_path / normaliser}"]).vocabulary
        pieces[normaliser] = {vocabulary.tokenizer.decode([token_id]) for token_id in vocabulary.token_ids}
    assert "1" in pieces["english"] and "w" not in pieces["english"]  # "one two" is "1 2"
    assert "w" in pieces["basic"] and "1" not in pieces["basic"]


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("stage", "extra", "message"),
    [
        ("align", "--trainable=all", "--stage align cannot have --trainable all"),
        ("align", "--feature_cache=off", "--stage align cannot have --feature_cache off"),
        ("align", "--eval_data_path=x --eval_strategy=epoch", "--stage align cannot have --eval_data_path"),
        ("align", "--push_to_hub", "--stage align cannot have --push_to_hub"),
        ("instruct", "--resume_from_checkpoint=/nowhere", "--resume_from_checkpoint /nowhere is not a folder"),
        (
            "align",
            "--transcript_normaliser=x",
            "--transcript_normaliser is 'x'; expected one of english, basic, characters, none",
        ),
        ("distill", "--trainable=adapter+llm", "--stage distill cannot have --trainable adapter+llm"),
        ("distill", "--temperature=0", "--temperature is 0.0"),
        ("prefer", "--trainable=projector", "--stage prefer cannot have --trainable projector"),
        ("prefer", "--augment", "--stage prefer cannot have --augment"),
        ("prefer", "--beta=0", "--beta is 0.0"),
    ],
)
def test_what_a_stage_cannot_do_is_refused_before_any_work(options, capsys, stage, extra: str, message: str) -> None:
    assert message in refused([*options(stage), *extra.split()], capsys)
    assert "trainable params" not in capsys.readouterr().out


def test_a_folder_with_checkpoints_of_another_stage_is_refused(options, tmp_path, capsys) -> None:
    run(options("align"))
    message = refused([*options("instruct"), f"--output_dir={tmp_path / 'align'}"], capsys)
    assert "holds checkpoints of --stage align" in message and "Give it another folder" in message
    run(options("instruct"))
    message = refused([*options("instruct"), "--trainable=projector"], capsys)
    assert "this run is --stage instruct, --trainable projector" in message


# ----------------------------------------------------------------------------------------------------------- SIGTERM


class SendSigterm(TrainerCallback):
    """Sends this process the signal in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_leaves_a_checkpoint_from_which_every_stage_goes_on_exactly(stage: str, options, tmp_path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    given = [*options(stage, "--lora_rank=4"), "--max_steps=5", "--save_strategy=epoch", "--learning_rate=0.01"]
    run([*given, f"--output_dir={tmp_path / 'whole'}"])
    with pytest.raises(StoppedBySignalError, match="stopped by SIGTERM after step 2 of 5") as caught:
        run(given, callbacks=[SendSigterm(2)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert (
        caught.value.checkpoint == last_complete_checkpoint(tmp_path / stage) == str(tmp_path / stage / "checkpoint-2")
    )
    assert not (tmp_path / stage / "model.safetensors").exists()
    run(given)
    assert digest(tmp_path / stage) == digest(tmp_path / "whole")


def terminated(launcher: list[str], options: list[str], output_dir: Path) -> tuple[int, str]:
    """Starts the command, sends SIGTERM once there is a checkpoint; returns the exit code and what it said."""
    process = subprocess.Popen(
        [*launcher, "-m", "audiollm.training.train", *options, "--save_steps=5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + PATIENCE_S
    while last_complete_checkpoint(output_dir) is None and time.time() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


def test_the_command_that_sigterm_ends_says_so_and_exits_with_143(options, tmp_path) -> None:
    code, errors = terminated([sys.executable], [*options("instruct"), "--max_steps=4000"], tmp_path / "instruct")
    assert code == 143
    newest = last_complete_checkpoint(tmp_path / "instruct")
    assert (
        f"audiollm train: stopped by SIGTERM after step {newest.rpartition('-')[2]} of 4000; {newest} holds it"
        in errors
    )
    assert "Traceback" not in errors


@pytest.mark.slow
def test_several_processes_stop_at_the_same_step(options, tmp_path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [*options("instruct", "--use_cpu=True"), "--max_steps=4000", "--batch_size=2"]
    code, errors = terminated(torchrun, given, tmp_path / "instruct")
    newest = last_complete_checkpoint(tmp_path / "instruct")
    assert code != 0 and errors.count(f"stopped by SIGTERM after step {newest.rpartition('-')[2]} of 4000") == 2
    assert len(list(Path(newest).glob("rng_state_*.pth"))) == 2


def test_resume_from_checkpoint_goes_on_from_the_one_that_is_named(options, tmp_path, capsys) -> None:
    given = options("align", "--save_steps=1", "--save_total_limit=9")
    run(given)
    expected = digest(tmp_path / "align")
    run([*given, f"--output_dir={tmp_path / 'b'}", f"--resume_from_checkpoint={tmp_path / 'align' / 'checkpoint-2'}"])
    state = json.loads((tmp_path / "b" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and not (tmp_path / "b" / "checkpoint-1").exists()
    assert digest(tmp_path / "b") == expected


def test_align_rotates_its_checkpoints(options, tmp_path) -> None:
    run(options("align", "--save_steps=1", "--save_total_limit=1"))
    assert [path.name for path in (tmp_path / "align").glob("checkpoint-*")] == ["checkpoint-3"]

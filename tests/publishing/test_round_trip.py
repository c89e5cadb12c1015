"""From training to somebody else's machine: train, push, evaluate, write the card, load without the package, same score."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.publishing.card import sections, write_card
from audiollm.publishing.push import main as push
from audiollm.training.train import parse_arguments, train
from clients import WITHOUT_AUDIOLLM, play
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from small_corpus import write_recordings, write_rows
from transformers.utils.hub import hf_api

REPO = "loopback-user/tiny"
PROMPT = "Say: <audio>"
NUM_CLIPS = 4
MAX_NEW_TOKENS = 12
#: Script of a stranger, who has transformers and peft: no AudioLLM can be imported.
STRANGER = (
    WITHOUT_AUDIOLLM
    + f"""
import json
from transformers import AutoModel, AutoProcessor

where = {{"pretrained_model_name_or_path": "{REPO}", "trust_remote_code": True, "revision": "v1"}}
model, processor = AutoModel.from_pretrained(**where), AutoProcessor.from_pretrained(**where)
said = []
for path in sys.argv[1:]:
    conversation = [{{"role": "user", "content": [{{"type": "text", "text": "Say: "}}, {{"type": "audio", "path": path}}]}}]
    inputs = processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True)
    output = model.generate(**inputs, max_new_tokens={MAX_NEW_TOKENS}, do_sample=False)
    answer = output[:, inputs["input_ids"].shape[1]:]
    said += processor.batch_decode(answer, skip_special_tokens=True)
assert not [name for name in sys.modules if name.split(".")[0] == "audiollm"]
assert type(model).__module__.startswith("transformers_modules.")
print(json.dumps(said))
"""
)


class Trained(NamedTuple):
    """A run with `--push_to_hub`, and what it pushed at its end."""

    checkpoint: Path
    recordings: list[str]
    hub: LoopbackHub
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def trained(tiny_bases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("pushing")
    names = write_recordings(folder / "recordings")
    rows = [{"text": PROMPT, "audio_paths": name, "response": "one two three"} for name in names]
    data = write_rows(folder / "data.json", rows)
    audio, text = tiny_bases
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        # transformers keeps one client, which whatever ran before in this process may have made.
        patch.setattr(hf_api(), "endpoint", hub.endpoint)
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        options = (
            f"--data_path {data} --audio_dir {folder / 'recordings'} --whisper_path {audio} --llama_path {text} "
            f"--output_dir {folder / 'run'} --feature_cache {folder / 'features'} --batch_size 4 --max_steps 3 "
            "--learning_rate 1e-2 --logging_steps 1 --save_steps 2 --disable_tqdm True "
            f"--push_to_hub --hub_model_id={REPO} --hub_token={hub.token}"
        )
        train(*parse_arguments(options.split()))
        recordings = [str(folder / "recordings" / name) for name in names[:NUM_CLIPS]]
        yield Trained(folder / "run", recordings, hub, hub.files(REPO))


def test_a_run_pushes_its_checkpoint_and_nothing_else(trained: Trained) -> None:
    checkpoint, _, hub, files = trained
    assert (checkpoint / "training_args.bin").is_file()
    assert {"config.json", "model.safetensors", "README.md", "training_record.json", "projector.py"} <= files.keys()
    assert not [
        name for name in files if name.endswith(".bin") or name.startswith(("checkpoint-", "stage", "trainer"))
    ]
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    record, card = files["training_record.json"].decode(), files["README.md"].decode()
    (run,) = json.loads(record)["runs"]
    assert (run["stage"], run["steps"], run["rows"], run["resumed_from"]) == ("instruct", 3, 10, None)
    assert run["final_loss"] > 0 and run["hyperparameters"]["learning_rate"] == 1e-2
    assert run["data"][0]["path"] == "data.json" and len(run["data"][0]["sha256"]) == 64
    for secret in (hub.token, str(checkpoint.parent)):
        assert secret not in card and secret not in record
    found = sections(card)
    assert "### 1. Instruct" in found["training"] and "learning_rate 0.01" in found["training"]
    assert f'model="{REPO}"' in found["use"]


def test_the_score_is_the_same_on_a_strangers_machine(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    checkpoint, recordings, hub, _ = trained
    model = AudioLlmForConditionalGeneration.from_pretrained(checkpoint)
    processor = AudioLlmProcessor.from_pretrained(checkpoint)
    ours = answer(model, processor, [ask(PROMPT, each) for each in recordings], max_new_tokens=MAX_NEW_TOKENS)
    references = ["one two three"] * NUM_CLIPS
    score = score_word_error(references, ours)
    systems = {"model": {"metrics": {"word_error": {"value": score.word_error, "unit": "fraction"}}}}
    scores = {"run": {}, "tasks": {"local": {"kind": "asr", "systems": systems}}}
    write_card(checkpoint, scores=scores, given={"license": "mit"}, repo=REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    push([f"--model={checkpoint}", f"--repo={REPO}", "--tag=v1", "--yes"])
    theirs = json.loads(play(STRANGER, *recordings, cwd=tmp_path, **hub.environment(tmp_path / "home")))
    assert [said.strip() for said in theirs] == ours
    assert score_word_error(references, theirs).word_error == score.word_error
    card = ModelCard(hub.files(REPO, "v1")["README.md"].decode())
    assert card.data.eval_results[0].metric_value == score.word_error and card.data.license == "mit"

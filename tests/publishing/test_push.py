"""Files that go to the Hub and files that never do, through the real client, against a Hub on the loopback interface."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from audiollm.publishing.push import main
from checkpoint_folders import change_json
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file

REPO = "loopback-user/tiny"
#: Files that a run and its user leave beside a checkpoint.
STRAYS = (
    *("training_args.bin", "optimizer.pt", "trainer_state.json", "stage.json", ".env", "token", "notes.txt"),
    *("scratch.py", "other.safetensors", "checkpoint-3/model.safetensors", ".git/config", "__pycache__/x.pyc"),
)
EXAMPLES = {
    "a Hugging Face token": "hf_" + "a1B2" * 9,
    "an OpenAI key": "sk-" + "a1B2" * 8,
    "an AWS key": "AKIA" + "A1B2" * 4,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a Google key": "AIza" + "a1B2c" * 7,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a password or key": '"api_key": "' + "0123456789abcdef" + '"',
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Iterator[LoopbackHub]:
    """The Hub that the client in this process talks to, logged in."""
    with LoopbackHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def pushed(checkpoint: Path, *options: str) -> None:
    main([f"--model={checkpoint}", f"--repo={REPO}", "--yes", *options])


def test_nothing_but_the_checkpoint_goes_up(checkpoint: Path, hub: LoopbackHub, capsys) -> None:
    own = {path.name for path in checkpoint.iterdir()}
    for name in STRAYS:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"x")
    pushed(checkpoint)
    files = hub.files(REPO)
    assert not (checkpoint / "README.md").exists() and f'model="{REPO}"' in files["README.md"].decode()
    assert files.keys() == {*own, "README.md", ".gitattributes"}
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    shown = capsys.readouterr().out
    stays = shown[shown.index("Stays here:") :]
    for name in STRAYS:
        first, below, _ = name.partition("/")
        assert f"  {first}{below}\n" in stays, name
    assert shown.strip().endswith(f"/{REPO}/commit/{hub.repositories['model', REPO].branches['main'].sha}")


def test_secrets_stop_the_push(checkpoint: Path, hub: LoopbackHub) -> None:
    """All of them are named, with their lines, and none is shown."""
    (checkpoint / "LICENSE.txt").write_text("MIT\n\n" + "\n".join(EXAMPLES.values()) + "\n")
    with pytest.raises(SystemExit) as stopped:
        pushed(checkpoint)
    for line, (kind, secret) in enumerate(EXAMPLES.items(), start=3):
        assert f"LICENSE.txt, line {line}: {kind}" in str(stopped.value) and secret not in str(stopped.value)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "has no model.safetensors"),
        ("projector.py", "has no projector.py"),
        ("tokenizer.json", "processor.save_pretrained"),
    ],
)
def test_half_a_checkpoint_is_refused(name: str, message: str, checkpoint: Path, hub: LoopbackHub) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(SystemExit, match=message):
        pushed(checkpoint)
    assert not hub.repositories


def test_a_dry_run_and_no_answer_send_nothing(checkpoint: Path, hub: LoopbackHub, capsys, monkeypatch) -> None:
    place = [f"--model={checkpoint}", f"--repo={REPO}"]
    main([*place, "--dry-run"])
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "Nothing was uploaded." in shown
    with pytest.raises(SystemExit, match="--yes"):
        main(place)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    with pytest.raises(SystemExit, match="nothing was uploaded"):
        main(place)
    assert not hub.repositories and {request.method for request in hub.requests} <= {"GET", "HEAD"}
    monkeypatch.setattr("builtins.input", lambda _: "Y")
    main(place)
    assert hub.repositories


def test_private_revision_tag_and_message(checkpoint: Path, hub: LoopbackHub, capsys) -> None:
    """And a card of one's own goes up as it is; weights of an earlier upload are taken out."""
    mine = b"---\nlicense: mit\n---\n# Mine\n"
    (checkpoint / "README.md").write_bytes(mine)
    pushed(checkpoint, "--private", "--tag=v1", "--commit_message=First light")
    repository = hub.repositories["model", REPO]
    assert repository.private and repository.tags["v1"].sha == repository.branches["main"].sha
    stays = {"other.safetensors", "peft/model.safetensors"}
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", *stays):
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=REPO)
    change_json(checkpoint / "generation_config.json", max_new_tokens=7)
    pushed(checkpoint, "--revision=longer")
    files = hub.files(REPO, "longer")
    assert files["README.md"] == mine and b"max_new_tokens" in files["generation_config.json"]
    assert b"max_new_tokens" not in hub.files(REPO)["generation_config.json"]
    assert "First light" in hub.messages and "Upload AudioLLM checkpoint" in hub.messages
    pushed(checkpoint)
    assert "Is taken out of the repository" in capsys.readouterr().out
    assert {name for name in hub.files(REPO) if "safetensors" in name} == {"model.safetensors", *stays}


def test_impossible_places_and_cards_are_refused(checkpoint: Path, hub: LoopbackHub) -> None:
    for option, message in (("--model=nowhere", "nowhere is not a folder"), ("--repo=other/tiny", "no right")):
        with pytest.raises(SystemExit, match=message):
            pushed(checkpoint, option)
    assert not hub.repositories
    (checkpoint / "README.md").write_text("---\nlicense: My Licence\n---\n# Mine\n")
    with pytest.raises(SystemExit, match="My Licence"):
        pushed(checkpoint)


@pytest.mark.slow  # the client tries for some seconds before it gives up
def test_an_interrupted_push_sends_only_the_rest(checkpoint: Path, hub: LoopbackHub) -> None:
    """Three files of weights; the connection ends behind the first, and the same command goes on."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    places = {name: f"model-0000{number % 3 + 1}-of-00003.safetensors" for number, name in enumerate(weights)}
    for file in set(places.values()):
        save_file({name: weights[name] for name, place in places.items() if place == file}, checkpoint / file)
    index = {"metadata": {}, "weight_map": places}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))

    def sent() -> list[str]:
        return [request.path for request in hub.requests if request.method == "PUT" and request.status == 200]

    hub.uploads_until_cut = 1
    with pytest.raises(SystemExit, match="The same command goes on"):
        pushed(checkpoint)
    assert len(sent()) == 1 and hub.files(REPO).keys() == {".gitattributes"}
    hub.uploads_until_cut = None
    pushed(checkpoint)
    assert len(sent()) == len(set(sent())) == 3 and set(places.values()) < hub.files(REPO).keys()

"""What goes to the Hub and what never does, through the real client, against a Hub on the loopback interface."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.publishing.header import CardError
from audiollm.publishing.push import (
    SECRETS,
    PushArguments,
    find_secrets,
    main,
    make_manifest,
    make_plan,
    stale_weights,
    write_peft_copy,
)
from checkpoint_folders import change_json
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from peft import PeftModel
from tiny_models import randomise_trainables
from transformers import AutoModelForCausalLM

REPO = "loopback-user/tiny"
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
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def pushed(checkpoint: Path, *options: str) -> None:
    main([f"--model={checkpoint}", f"--repo={REPO}", "--yes", *options])


# ---- what belongs to a checkpoint ----------------------------------------------------------------------------------


def test_nothing_but_the_checkpoint_goes_up(
    checkpoint: Path, strays, hub: LoopbackHub, tmp_path: Path, capsys
) -> None:
    own = {path.name for path in checkpoint.glob("*") if path.is_file()} - strays.keys()
    (checkpoint / "LICENSE").symlink_to("/etc/hostname")
    (checkpoint / "elsewhere").symlink_to(tmp_path)
    pushed(checkpoint)
    files = hub.files(REPO)
    assert files.keys() == {*own, "README.md", ".gitattributes"}
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    shown = capsys.readouterr().out
    stays = shown[shown.index("Stays here:") :]
    for name in strays:
        summary = re.match(r"(checkpoint-3|runs|\.git|\.cache|__pycache__)/", name)
        assert f"  {summary[0] if summary else name} " in stays, name
    assert re.search(r"LICENSE +a link to outside of the folder", stays)
    assert re.search(r"elsewhere +a link to outside of the folder", stays)
    assert re.search(r"optimizer.pt +optimizer state", stays) and re.search(r"notes.txt +not part of", stays)
    assert shown.strip().endswith(f"/{REPO}/commit/{hub.repositories['model', REPO].branches['main'].sha}")


def test_the_card_names_the_repository_and_the_folder_stays_as_it_is(checkpoint: Path, hub: LoopbackHub) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    pushed(checkpoint)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert f'from_pretrained("{REPO}")' in hub.files(REPO)["README.md"].decode()


def test_a_card_of_ones_own_goes_up_as_it_is(checkpoint: Path, hub: LoopbackHub) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    pushed(checkpoint)
    assert hub.files(REPO)["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"
    (checkpoint / "README.md").write_text("---\nlicense: My Licence\n---\n# Mine\n")
    with pytest.raises(SystemExit, match="license 'My Licence'"):
        pushed(checkpoint)


def test_examples_cover_every_kind_of_secret() -> None:
    assert EXAMPLES.keys() == SECRETS.keys()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_secrets_stop_the_push(kind: str, checkpoint: Path, hub: LoopbackHub) -> None:
    (checkpoint / "LICENSE.txt").write_text(f"MIT\n\n{EXAMPLES[kind]}\n")
    with pytest.raises(SystemExit, match=f"LICENSE.txt, line 3: {kind}") as stopped:
        pushed(checkpoint)
    assert EXAMPLES[kind] not in str(stopped.value)
    assert not hub.repositories


def test_what_the_folders_own_files_hold_is_no_secret(saved: Path) -> None:
    assert find_secrets(make_manifest(saved).entries) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "is no checkpoint"),
        ("model.safetensors", "has no model.safetensors"),
        ("projector.py", "projector"),
        ("processing_audiollm.py", "has no processing_audiollm.py"),
        ("processor_config.json", "processor.save_pretrained"),
        ("tokenizer.json", "processor.save_pretrained"),
    ],
)
def test_half_a_checkpoint_is_refused(name: str, message: str, checkpoint: Path, hub: LoopbackHub) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(SystemExit, match=message):
        pushed(checkpoint)
    assert not hub.repositories


def test_a_snapshot_of_the_hubs_cache_can_be_pushed(checkpoint: Path, tmp_path: Path) -> None:
    """Its files are links to blobs beside it, as `snapshot_download` lays them out."""
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    names = {entry.name for entry in make_manifest(checkpoint).entries}
    for number, name in enumerate(sorted(names)):
        (checkpoint / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    (snapshot / "LICENSE").symlink_to("/etc/hostname")
    manifest = make_manifest(snapshot)
    assert {entry.name for entry in manifest.entries} == names
    assert manifest.left_out == [("LICENSE", "a link to outside of the folder")]


# ---- options -------------------------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing(checkpoint: Path, strays, hub: LoopbackHub, capsys) -> None:
    main([f"--model={checkpoint}", f"--repo={REPO}", "--dry-run"])
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "Nothing was uploaded." in shown
    assert not hub.repositories and {request.method for request in hub.requests} <= {"GET", "HEAD"}


def test_without_an_answer_nothing_is_sent(checkpoint: Path, hub: LoopbackHub, monkeypatch) -> None:
    with pytest.raises(SystemExit, match="--yes"):
        main([f"--model={checkpoint}", f"--repo={REPO}"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("", "n", "no"):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        with pytest.raises(SystemExit, match="nothing was uploaded"):
            main([f"--model={checkpoint}", f"--repo={REPO}"])
    assert not hub.repositories
    monkeypatch.setattr("builtins.input", lambda _: "Y")
    main([f"--model={checkpoint}", f"--repo={REPO}"])
    assert hub.repositories


def test_private_revision_tag_and_message(checkpoint: Path, hub: LoopbackHub) -> None:
    pushed(checkpoint, "--private", "--tag=v1", "--commit_message=First light")
    repository = hub.repositories["model", REPO]
    assert repository.private and repository.tags["v1"].sha == repository.branches["main"].sha
    change_json(checkpoint / "generation_config.json", max_new_tokens=7)
    pushed(checkpoint, "--revision=longer")
    assert b"max_new_tokens" in hub.files(REPO, "longer")["generation_config.json"]
    assert b"max_new_tokens" not in hub.files(REPO)["generation_config.json"]
    assert "First light" in hub.messages and "Upload AudioLLM checkpoint" in hub.messages


def test_pull_requests_leave_the_branch_alone(checkpoint: Path, hub: LoopbackHub, capsys) -> None:
    pushed(checkpoint)
    head = hub.repositories["model", REPO].branches["main"].sha
    change_json(checkpoint / "generation_config.json", max_new_tokens=7)
    pushed(checkpoint, "--create_pr")
    assert hub.repositories["model", REPO].branches["main"].sha == head
    assert b"max_new_tokens" in hub.files(REPO, "refs/pr/1")["generation_config.json"]
    assert capsys.readouterr().out.strip().endswith("/discussions/1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--create_pr", "--tag=v1"], "--tag contradicts --create_pr"),
        (["--create_pr", "--revision=x"], "--revision contradicts --create_pr"),
        (["--model=nowhere"], "nowhere is not a folder"),
        (["--repo=a/b/c"], "Repo id must be"),
        (["--with_peft"], "has no LoRA"),
    ],
)
def test_impossible_options_are_refused(options: list[str], message: str, checkpoint: Path, hub: LoopbackHub) -> None:
    if options == ["--with_peft"]:
        model = AudioLlmForConditionalGeneration.from_pretrained(checkpoint.parents[1] / "plain")
        model.save_pretrained(checkpoint, weights="merged")
    with pytest.raises(SystemExit, match=message):
        pushed(checkpoint, *options)
    assert not hub.repositories


@pytest.fixture(autouse=True)
def plain(saved: Path, tmp_path: Path) -> Path:
    """The checkpoint with its bases where they are, to be loaded."""
    (tmp_path / "plain").symlink_to(saved)
    return saved


def test_others_repositories_are_not_written(checkpoint: Path, hub: LoopbackHub) -> None:
    hub.add_user("other")
    with pytest.raises(SystemExit, match="no right"):
        main([f"--model={checkpoint}", "--repo=other/tiny", "--yes"])


def test_weights_of_an_earlier_upload_are_taken_out(checkpoint: Path, hub: LoopbackHub, capsys) -> None:
    api = HfApi()
    api.create_repo(REPO)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "other.safetensors"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=REPO)
    pushed(checkpoint)
    assert "Is taken out of the repository" in capsys.readouterr().out
    assert {name for name in hub.files(REPO) if "safetensors" in name} == {"model.safetensors", "other.safetensors"}
    assert stale_weights(["model-1.safetensors"], ["model.safetensors", "peft/model.safetensors"]) == [
        "model.safetensors"
    ]


def test_bases_in_folders_are_remarked(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    plan = make_plan(PushArguments(str(plain), REPO), tmp_path / "staging")
    assert sum("is a folder of this machine" in remark for remark in plan.remarks) == 2
    config = json.loads((plain / "config.json").read_text())
    assert not config["text_config"].get("_name_or_path") and not config["audio_config"].get("_name_or_path")


# ---- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the client tries for some seconds before it gives up
def test_an_interrupted_push_sends_only_the_rest(plain: Path, hub: LoopbackHub) -> None:
    """Three large files; the connection ends behind the first, and the same command goes on."""

    def sent() -> list[str]:
        return [request.path for request in hub.requests if request.method == "PUT" and request.status == 200]

    hub.cut_uploads(after=1)
    with pytest.raises(SystemExit, match="The same command goes on"):
        pushed(plain, "--with_peft", "--with_merged")
    assert len(sent()) == 1 and hub.files(REPO).keys() == {".gitattributes"}
    hub.mend_uploads()
    pushed(plain, "--with_peft", "--with_merged")
    assert len(sent()) == len(set(sent())) == 3
    assert {"model.safetensors", "peft/adapter_model.safetensors", "merged/model.safetensors"} < hub.files(REPO).keys()


# ---- other formats -------------------------------------------------------------------------------------------------


def test_peft_loads_the_copy_onto_the_plain_base(plain: Path, tiny_bases, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    make_plan(PushArguments(str(plain), REPO, with_peft=True), tmp_path / "staging")
    folder = tmp_path / "staging" / "peft"
    base = AutoModelForCausalLM.from_pretrained(tiny_bases[1])
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, folder).eval()(ids).logits
        merged = AudioLlmForConditionalGeneration.from_pretrained(plain).merge_adapters()
        expected = merged(input_ids=ids).logits
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert "does not hear" in (folder / "README.md").read_text()


def test_several_adapters_have_a_folder_each(tiny_bases, tmp_path: Path) -> None:
    adapters = {"speech": {}, "sound": {"rank": 2, "target_modules": ["q_proj"]}}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=4, lora_adapters=adapters
    )
    randomise_trainables(model)
    write_peft_copy(model, tmp_path)
    for name, rank in {"speech": 4, "sound": 2}.items():
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["r"] == rank
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_bases[1]), tmp_path / name)
        assert torch.equal(
            loaded.state_dict()["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"],
            model.state_dict()[f"model.language_model.layers.0.self_attn.q_proj.lora_A.{name}.weight"],
        )
    assert not (tmp_path / "adapter_config.json").exists()


def test_the_merged_copy_is_a_checkpoint_of_its_own(plain: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    pushed(plain, "--with_merged")
    for name, content in hub.files(REPO).items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    merged = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "got" / "merged")
    AudioLlmProcessor.from_pretrained(tmp_path / "got" / "merged")
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        expected = AudioLlmForConditionalGeneration.from_pretrained(plain).merge_adapters()(input_ids=ids).logits
        assert torch.equal(merged(input_ids=ids).logits, expected)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="is no checkpoint"):
        make_plan(PushArguments(str(tmp_path), REPO), tmp_path)

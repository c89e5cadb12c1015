"""Spaces, quotes, brackets, other scripts and newlines in every path that a command is given: none of them means anything."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from audiollm.inference.loading import load_model, load_processor
from audiollm.inference.serving.service import ServingSettings
from command_calls import Place, call, make_place
from loopback_hub import LoopbackHub
from servers import audio, client_of, in_thread, text, user

FOLDER = "mes données/été – 录音 (1)/[a] b'c\" *?&;$HOME %41 #1"
NAMES = ('été 录音\'s (1) "q" [x]*.wav', "-dash --model $(id).wav", "new\nline #1 %20.wav", "nested 📁/a b.wav")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("p") / FOLDER, names=NAMES)


def test_training_goes_on_from_itself(place: Place) -> None:
    line = place.line("train")
    assert call(line) == 0
    run = place.outputs / "run"
    assert (run / "model.safetensors").is_file() and (run / "checkpoint-2" / "trainer_state.json").is_file()
    assert len(list((place.outputs / "features").rglob("*.safetensors"))) == len(NAMES)
    assert call([*line, "--max_steps", "3"]) == 0 and (run / "checkpoint-3").is_dir()
    assert call(["generate", "--model", str(run), "--audio", str(place.recordings / NAMES[0]), "--prompt", "?"]) == 0


def test_transcripts_lie_where_their_recordings_did(place: Place) -> None:
    assert call(place.line("transcribe")) == 0
    written = place.outputs / "transcripts"
    for name in NAMES:
        stem = name.removesuffix(".wav")
        assert json.loads((written / f"{stem}.json").read_text())["audio"] == str(place.recordings / name)
        assert {path.suffix for path in (written / stem).parent.iterdir() if path.stem == Path(stem).name} >= {".srt"}


def test_each_recording_by_its_own_path_though_it_looks_like_a_pattern_or_an_option(place: Place, monkeypatch) -> None:
    monkeypatch.chdir(place.recordings)
    line = ["transcribe", "--model", str(place.model), "--output_dir", str(place.outputs / "single"), "--"]
    assert call([*line, *NAMES]) == 0
    assert sum(path.suffix == ".txt" for path in (place.outputs / "single").rglob("*")) == len(NAMES)


def test_rows_are_evaluated_and_a_folder_is_prepared_and_validated(place: Place, monkeypatch) -> None:
    assert call(place.line("evaluate")) == 0
    rows = (place.outputs / "scores/outputs/local/model.jsonl").read_text().splitlines()
    assert {Path(json.loads(row)["audio"][0]).name for row in rows} == {Path(name).name for name in NAMES}
    assert all(json.loads(row)["finish"] != "error" for row in rows)
    assert "<html" in (place.outputs / "scores/report.html").read_text()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place.outputs / "datasets"))
    examples = place.outputs / "prepared" / "instruction_examples.json"
    for line in (place.line("prepare"), ["validate", str(examples), "--workers", "1"], place.line("validate")):
        assert call(line) == 0
    assert len(json.loads(examples.read_text())) == len(NAMES)
    assert json.loads((place.outputs / "report.json").read_text())["files"]


@pytest.mark.parametrize("command", ["summarize", "shrink", "export", "card"])
def test_what_else_writes_files(place: Place, command: str) -> None:
    assert call(place.line(command)) == 0


def test_a_checkpoint_is_pushed(place: Place, tmp_path, monkeypatch) -> None:
    with LoopbackHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert call(["push", "--model", str(place.model), "--repo", "loopback-user/tiny", "--yes"]) == 0
        assert "model.safetensors" in hub.files("loopback-user/tiny")


def test_a_server_answers_from_there_about_such_files(place: Place) -> None:
    model, processor = load_model(str(place.model), "float32", "cpu"), load_processor(str(place.model))
    name = place.model.parent.name
    recording = (place.recordings / NAMES[0]).read_bytes()
    with in_thread(model, processor, ServingSettings(name, max_new_tokens=2)) as (url, _):
        client = client_of(url)
        client.chat.completions.create(model=name, messages=[user(text("What?"), audio(recording))])
        for given in NAMES:
            client.audio.transcriptions.create(model=name, file=(given, recording))

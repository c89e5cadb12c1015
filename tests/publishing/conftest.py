"""A tiny trained checkpoint as a run leaves it, with all that lies beside one, and scores of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from audiollm.publishing.record import add_run
from checkpoint_folders import RUN, change_json


@pytest.fixture(scope="session")
def saved(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with its record; read only."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("saved") / "tiny"))
    add_run(folder, RUN)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """One's own copy, whose recorded bases have ids of the Hub."""
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(saved, folder)
    change_json(folder / "config.json", audio_model_id="org/whisper-x", text_model_id="org/llama-x")
    return folder


@pytest.fixture
def scores() -> dict[str, Any]:
    """As an evaluation writes them."""

    def system(value: float, low: float, high: float, **counts: int) -> dict[str, Any]:
        metric = {"value": value, "low": low, "high": high, "unit": "fraction"}
        speed = {"value": 9.0, "low": 8.0, "high": 10.0, "unit": "ratio"}
        return {"metrics": {"word_error": metric, "rtfx": speed}, "counts": {"items": 70, "scored": 69, **counts}}

    source = {"title": "Studio prompts", "licence": "CC-BY-SA-3.0", "hub": "org/prompts"}
    source |= {"config": "clean", "split": "test"}
    arguments = {
        **{"judge_model": None, "judge_url": "https://api.openai.com/v1", "tasks": ["prompts"], "limit": 70},
        **{"data": "/home/me/prompts", "hub_token": "hf_x", "seed": 3},
    }
    run = {
        **{"versions": {"audiollm": "0.1.0", "torch": "2.13.0"}, "commit": "f00d", "device": "cpu"},
        **{"dtype": "bfloat16", "arguments": arguments},
        "tasks": {"prompts": {"kind": "asr", "metrics": ["word_error"], "source": source}},
    }
    systems = {"model": system(0.21, 0.17, 0.26, length_limited=2), "whisper": system(0.058, 0.03, 0.09)}
    average = {"word_error": {"value": 0.21, "low": 0.17, "high": 0.26, "unit": "fraction", "tasks": ["prompts"]}}
    return {
        "run": run,
        "tasks": {"prompts": {"kind": "asr", "systems": systems}},
        "scoring": {"samples": 1000, "seed": 7},
        "averages": {"studio": {"model": average}},
    }


@pytest.fixture
def scores_file(scores, tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(scores))
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real Hub is not asked, and large files go the way that the loopback one knows."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)

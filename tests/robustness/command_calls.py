"""Every command that works on files, called in this process on a tiny checkpoint, wherever that lies."""

import importlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.cli import COMMANDS
from small_corpus import write_recordings
from tiny_models import randomise_trainables, save_audio_base, save_text_base

#: Of the recordings; that of the first may be anything.
NAMES = ("0.wav", "1.wav", "2.wav")


@dataclass(frozen=True)
class Place:
    """
    Folders and files that commands are given.

    Attributes:
        root: folder of everything else; outputs go into it too, unless `outputs` is another.
        outputs: folder that commands write to.
        recordings: folder of the recordings, each with its transcript beside it.
        names: of the recordings.
        data: examples about them.
        model: a checkpoint, whose bases are `audio` and `text` beside it.
    """

    root: Path
    outputs: Path
    recordings: Path
    names: tuple[str, ...]
    data: Path
    model: Path

    def line(self, command: str) -> list[str]:
        """A command with its options, each a word; what begins with `@` is a path below `outputs`."""
        words = COMMAND_LINES[command].split()
        known = {
            "{model}": self.model,
            "{data}": self.data,
            "{recordings}": self.recordings,
            "{recording}": self.recordings / self.names[0],
            "{audio}": self.root / "audio",
            "{text}": self.root / "text",
        }
        return [str(self.outputs / word[1:]) if word.startswith("@") else str(known.get(word, word)) for word in words]


#: Commands by name, with options that make them short; see [`Place.line`].
COMMAND_LINES = {
    "train": "train --llama_path {text} --whisper_path {audio} --data_path {data} --audio_dir {recordings} --output_dir "
    "@run --feature_cache @features --max_steps 2 --save_steps 1 --batch_size 2 --disable_tqdm True",
    "align": "train --config align --llama_path {text} --whisper_path {audio} --data_path {data} --audio_dir {recordings} "
    "--output_dir @aligned --feature_cache @features --max_steps 2 --batch_size 2 --disable_tqdm True",
    "generate": "generate --model {model} --audio {recording} --prompt Hello --max_new_tokens 2",
    "transcribe": "transcribe {recordings} --model {model} --output_dir @transcripts --output_format all --max_new_tokens "
    "2 --voice_activity off",
    "summarize": "summarize {recording} --model {model} --prompt What? --output_dir @summaries --max_new_tokens 2",
    "evaluate": "evaluate --model {model} --systems model wrong_audio --data_path {data} --audio_dir {recordings} "
    "--output_dir @scores",
    "prepare": "prepare folder {recordings} --output @prepared --workers 1",
    "validate": "validate {data} --audio_dir {recordings} --workers 1 --report @report.json",
    "shrink": "shrink --model {model} --output_dir @shrunk --lora_rank 1",
    "export": "export --model {model} --output @exported --language_model",
    "card": "card --model {model}",
    "prompts": "prompts --output_dir @prompts --split test",
    "chat": "chat --model {model} --max_new_tokens 1",
    "serve": "serve --model {model} --port 0",
    "demo-web": "demo-web --model {model} --port 0",
    "push": "push --model {model} --repo someone/model --dry_run",
    "train on": "train --model_path {model} --data_path {data} --audio_dir {recordings} --output_dir @run --max_steps 1",
    "prepare responses": "prepare folder {recordings} --output @prepared --respond_with {text}",
    "prepare heard": "prepare folder {recordings} --output @prepared --max_wer 50 --whisper_path {audio}",
}


def make_place(root: Path, outputs: Path | None = None, names: Sequence[str] = NAMES) -> Place:
    """Bases, a checkpoint and recordings with transcripts below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    bases = save_audio_base(root / "audio"), save_text_base(root / "text")
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=4)
    randomise_trainables(model).save_pretrained(root / "model")
    AudioLlmProcessor.from_audio_text_pretrained(*bases).save_pretrained(root / "model")
    recordings = root / "recordings"
    for plain, name in zip(write_recordings(recordings, len(names)), names, strict=True):
        (recordings / name).parent.mkdir(parents=True, exist_ok=True)
        if plain != name:
            shutil.move(recordings / plain, recordings / name)
        (recordings / name).with_suffix(".txt").write_text("one two", encoding="utf-8")
    rows = [{"text": "Say: <audio>", "audio_paths": name, "response": f"one {name[:1]}"} for name in names]
    data = root / "data.json"
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return Place(root, outputs or root / "outputs", recordings, tuple(names), data, root / "model")


def copied(place: Place, root: Path) -> Place:
    """One's own copy of a place, whose checkpoint knows the bases beside it."""
    shutil.copytree(place.root, root)
    config = root / "model" / "config.json"
    bases = {f"{role}_model_id": str(root / role) for role in ("audio", "text")}
    config.write_text(json.dumps({**json.loads(config.read_text()), **bases}))
    return Place(root, root / "outputs", root / "recordings", place.names, root / "data.json", root / "model")


def call(words: Sequence[str]) -> int | str:
    """Runs a command as the console script does; its exit status, or the message that it ends with."""
    try:
        importlib.import_module(COMMANDS[words[0]][0]).main(list(words[1:]))
    except SystemExit as ended:
        return 0 if ended.code is None else ended.code
    return 0

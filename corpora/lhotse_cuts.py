"""
`audiollm prepare lhotse`: cuts of Lhotse, and with them every corpus and format that Lhotse reads.

    pip install 'audiollm[lhotse]'
    lhotse prepare aishell download manifests        # or: lhotse kaldi import data 16000 manifests
    lhotse cut simple -r recordings.jsonl.gz -s supervisions.jsonl.gz cuts.jsonl.gz
    audiollm prepare lhotse cuts.jsonl.gz

Only audio files are read. A cut whose recording is a command, a URL or an archive is reported, and never run or fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from audiollm.command_line.files import is_inside, sha256_of
from audiollm.command_line.option_parser import option
from audiollm.processing.audio import AudioError

from .clips import DEFAULT_SPLIT, BadClip, Clip, ClipSource, CorpusError, FieldValue

SUPERVISION_FIELDS = ("speaker", "language", "gender")


@dataclass
class LhotseArguments:
    """A manifest of cuts."""

    cuts: str = field(metadata={"help": "Manifest of cuts: cuts.jsonl, cuts.jsonl.gz."})
    audio_dir: str | None = option(
        None, "Folder that relative paths start from and that none may leave. Default: the manifest's own."
    )
    split: str = option(DEFAULT_SPLIT, "Split of all clips.")


@dataclass(frozen=True)
class CutAudio:
    """The audio of a cut as Lhotse makes it: mixed tracks, transforms, one channel. It can be pickled."""

    cut: dict[str, Any]

    def load(self) -> tuple[np.ndarray, int]:
        """Return the waveform, float32 of shape `(samples,)`, and its rate in Hz."""
        from lhotse.serialization import deserialize_item

        cut = deserialize_item(self.cut)
        try:
            audio = cut.load_audio(mono_downmix=True) if cut.num_channels != 1 else cut.load_audio()
        except Exception as error:  # whatever Lhotse's backends raise
            raise AudioError(f"{cut.id}: Lhotse cannot load it: {' '.join(str(error).split())}") from error
        return np.asarray(audio, dtype=np.float32).reshape(-1, audio.shape[-1]).mean(axis=0), int(cut.sampling_rate)


class LhotseSource(ClipSource):
    """The cuts of a manifest as clips, in its order; they are not counted before they are read."""

    folder: Path

    def __init__(self, arguments: LhotseArguments):
        try:
            from lhotse import CutSet
        except ImportError as error:
            raise CorpusError("Lhotse is not installed: pip install 'audiollm[lhotse]'.") from error
        path = Path(arguments.cuts)
        if not path.is_file():
            raise CorpusError(f"Cuts {arguments.cuts!r}: there is no such file.")
        self.arguments, self.name = arguments, str(path)
        self.folder = Path(arguments.audio_dir or path.parent).absolute()
        try:
            self._cuts = CutSet.from_jsonl_lazy(path)
            next(iter(self._cuts))
        except Exception as error:  # whatever Lhotse raises of another file
            raise CorpusError(
                f"{path} is no manifest of cuts: {' '.join(str(error).split()) or 'it is empty'}."
            ) from error
        self.identity: dict[str, Any] = {
            "source": "lhotse",
            "cuts": sha256_of(path),
            "audio_dir": str(self.folder),
            "split": arguments.split,
        }

    def every(self) -> Iterator[Clip | BadClip]:
        """Yield all cuts as clips."""
        return map(self._clip, self._cuts)

    def _clip(self, cut: Any) -> Clip | BadClip:
        problem = self._problem(cut)
        if problem is not None:
            return BadClip(cut.id, problem, self.arguments.split)
        said = sorted(cut.supervisions, key=lambda each: each.start)
        text = " ".join(words for each in said if (words := (each.text or "").strip()))
        fields: dict[str, FieldValue] = {}
        for holder in (cut, *said):
            custom = getattr(holder, "custom", None) or {}
            fields |= {name: value for name, value in custom.items() if isinstance(value, (str, int, float, bool))}
        for name in SUPERVISION_FIELDS:
            found = {value for each in said if (value := getattr(each, name)) is not None}
            fields |= {name: found.pop()} if len(found) == 1 else {}
        if not text:
            return BadClip(cut.id, "has no transcript", self.arguments.split)
        located = cut.with_recording_path_prefix(self.folder)  # an absolute path stays what it is
        return Clip(cut.id, CutAudio(located.to_dict()), text, self.arguments.split, fields)

    def _problem(self, cut: Any) -> str | None:
        """Return why a cut's audio is not read."""
        cuts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
        recordings = [each.recording for each in cuts if getattr(each, "has_recording", False)]
        sources = [source for recording in recordings for source in recording.sources]
        if not sources:
            return "has no recording; features alone are not read"
        for source in sources:
            if source.type != "file":
                return f"its recording comes from a {source.type}, which is never run, fetched or unpacked; write it to a file"
            path = (self.folder / source.source).resolve()
            if self.arguments.audio_dir and not is_inside(path, self.folder.resolve()):
                return f"{source.source!r} leads out of --audio_dir"
            if not path.is_file():
                return f"{source.source!r} does not exist: looked at {path}"
        return None


open_source = LhotseSource

"""A folder with every fault there is: exactly what was planted is found, at its row, and nothing in clean data."""

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm.corpora.audio_facts import measure
from audiollm.corpora.prompts import load_studio_prompts, write_prompt_examples
from audiollm.corpora.sources import parse_source
from audiollm.corpora.validation import FAULTS, DataFile, Limits, Validation, level_dbfs
from audiollm.processing.audio import AudioError, load_waveform

RATE_HZ = 16_000
TRANSCRIBE = "Transcribe the audio: <audio>"
Row = dict[str, Any]


def row_of(name: str, response: str, text: str = TRANSCRIBE) -> Row:
    return {"text": text, "audio_paths": name, "response": response}


class Bench:
    """A folder in which faults are planted, with real speech at hand that no two callers share."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.audio = folder / "audio"
        self.audio.mkdir(parents=True)
        self.held_out: list[Row] = []  # of the split that nothing may leak into
        self._prompts = iter(row for row in load_studio_prompts("test") if 1.0 < row["duration_s"] < 4.0)

    def speech(self) -> tuple[np.ndarray, str]:
        """A waveform at 16 kHz and what is said in it."""
        row = next(self._prompts)
        return soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0], row["text"]

    def write(self, name: str, waveform: np.ndarray, rate: int = RATE_HZ, subtype: str = "PCM_16") -> str:
        soundfile.write(self.audio / name, waveform, rate, subtype=subtype)
        return name

    def good(self, name: str) -> Row:
        """A row with nothing wrong with it."""
        waveform, text = self.speech()
        return row_of(self.write(name, waveform), text)


def spoiled(
    name: str, change: Callable[[np.ndarray], np.ndarray], say: Callable[[str], str] = str, **options: Any
) -> Callable[[Bench], list[Row]]:
    """Plants a recording that is changed before it is written, with what is said in it, or something else."""

    def plant(bench: Bench) -> list[Row]:
        waveform, text = bench.speech()
        return [row_of(bench.write(name, change(waveform), **options), say(text))]

    return plant


def damaged(name: str, damage: Callable[[Path], Any]) -> Callable[[Bench], list[Row]]:
    """Plants a good recording whose file is damaged afterwards."""

    def plant(bench: Bench) -> list[Row]:
        row = bench.good(name)
        damage(bench.audio / name)
        return [row]

    return plant


def duplicate_audio(bench: Bench) -> list[Row]:
    waveform, text = bench.speech()
    names = [bench.write(name, waveform) for name in ("one.wav", "other_name.flac")]
    return [row_of(names[0], text), row_of(names[1], "A woman.", "Who speaks? <audio>")]


def audio_leak(bench: Bench) -> list[Row]:
    bench.held_out.append(row_of("leak.wav", "A woman.", "Who speaks? <audio>"))
    return [bench.good("leak.wav")]


def transcript_leak(bench: Bench) -> list[Row]:
    row = bench.good("leak_text.wav")
    bench.held_out.append(bench.good("other_voice.wav") | {"response": row["response"].upper() + "!"})
    return [row]


#: By fault: what plants it and returns the rows to add, of which the last has it.
PLANTERS: dict[str, Callable[[Bench], list[Row]]] = {
    "malformed_row": lambda bench: [bench.good("malformed.wav") | {"speaker": "Allison"}],
    "audio_count": lambda bench: [bench.good("count.wav") | {"text": "<audio> or <audio>?"}],
    "empty_text": lambda bench: [bench.good("empty_text.wav") | {"response": "  "}],
    "missing_file": lambda bench: [row_of("not_there.wav", "hello")],
    "not_a_file": damaged("folder.wav", lambda path: [path.unlink(), path.mkdir()]),
    "outside_audio_dir": lambda bench: [bench.good("../outside.wav")],
    "undecodable": damaged("noise.flac", lambda path: path.write_bytes(np.random.default_rng(0).bytes(5_000))),
    "cut_off": damaged("cut.wav", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "not_finite": spoiled("nan.wav", lambda waveform: np.append(waveform, np.float32("nan")), subtype="FLOAT"),
    "too_short": spoiled("short.wav", lambda waveform: waveform[4_000:5_000], lambda text: "a"),
    "too_long": spoiled("long.flac", lambda waveform: np.tile(waveform, 31), lambda text: 60 * f"{text} "),
    "silent": spoiled("silent.wav", lambda waveform: waveform * 1e-3),
    "clipped": spoiled("clipped.wav", lambda waveform: np.clip(waveform * 3, -1, 1)),
    "impossible_transcript": spoiled("impossible.wav", lambda waveform: waveform, lambda text: 20 * f"{text} "),
    "sparse_transcript": spoiled("sparse.wav", lambda waveform: np.tile(waveform, 8), lambda text: "Yes."),
    "response_is_prompt": lambda bench: [
        bench.good("repeats.wav") | {"text": "<audio> What is this?", "response": "What is this?"}
    ],
    "conflicting_responses": lambda bench: [
        row := bench.good("conflict.wav"),
        row | {"text": "What is said in this recording? <audio>", "response": "Something else."},
    ],
    "duplicate_row": lambda bench: [bench.good("twice.wav")] * 2,
    "duplicate_audio": duplicate_audio,
    "audio_leak": audio_leak,
    "transcript_leak": transcript_leak,
}
#: These are not of a row alone.
PLANTED_ELSEWHERE = {"unreadable_data", "not_compared"}
PLANTED_LIMITS = Limits(max_seconds=30.0)


def found_in(
    files: list[DataFile], audio_dir: Path | None = None, **options: Any
) -> list[tuple[int, int | None, str]]:
    """(file, row, fault) of everything that is found."""
    validation = Validation(files, None if audio_dir is None else str(audio_dir), **options)
    validation.run()
    return [(each.file, each.row, each.fault) for each in validation.findings()]


def data_file(path: Path, split: str = "data", judged: bool = True) -> DataFile:
    return DataFile(parse_source(str(path)), split, judged)


def test_all_planted_faults_are_found_at_their_rows_and_no_others(tmp_path: Path) -> None:
    assert set(PLANTERS) | PLANTED_ELSEWHERE == set(FAULTS)
    bench = Bench(tmp_path)
    rows, planted = [bench.good("first.wav")], []
    for fault, plant in PLANTERS.items():
        rows += plant(bench)
        planted.append((0, len(rows) - 1, fault))
        rows.append({"text": "What is a projector?", "response": f"Ask about {fault}."})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "held_out.json").write_text(json.dumps(bench.held_out))
    files = [data_file(tmp_path / "data.json"), data_file(tmp_path / "held_out.json", "held_out", judged=False)]
    assert found_in(files, bench.audio, limits=PLANTED_LIMITS) == planted


def test_a_file_that_is_no_json_and_a_line_that_is_none(tmp_path: Path) -> None:
    row = json.dumps({"text": "What is two and two?", "response": "Four."})
    (tmp_path / "broken.json").write_text("[" + row)
    (tmp_path / "broken.jsonl").write_text(f"{row}\n\n{row[:-3]}\n{row.replace('Four', 'It is 4')}\n")
    (tmp_path / "latin.jsonl").write_bytes(f"{row}\n".encode() + '{"text": "Où?"}'.encode("latin-1"))
    (tmp_path / "digits.jsonl").write_text('{"text": ' + 5_000 * "1" + "}\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    names = ("broken.json", "broken.jsonl", "latin.jsonl", "digits.jsonl", "empty.jsonl")
    found = found_in([data_file(tmp_path / name) for name in names])
    assert found == [(file, row, "unreadable_data") for file, row in enumerate((None, 1, None, 0, None))]


def test_nothing_is_found_in_the_studio_prompts(tmp_path: Path) -> None:
    splits = ("train", "validation", "test")
    files = [data_file(write_prompt_examples(tmp_path, split, limit=20), split) for split in splits]
    assert found_in(files, tmp_path) == []


def test_facts_are_of_the_samples_and_the_digest_of_the_sound_not_of_the_file(tmp_path: Path) -> None:
    waveform = np.zeros((8_000, 2), np.float32)
    waveform[:, 0] = 0.4 + 0.2 * np.sin(np.arange(8_000) / 10)
    waveform[:80, 1] = 1.0
    soundfile.write(tmp_path / "a.wav", waveform, 22_050, subtype="FLOAT")
    facts, mono = measure(str(tmp_path / "a.wav"), 10.0), waveform.mean(axis=1)
    assert (facts.fault, facts.seconds, facts.clipped_share) == ("", 8_000 / 22_050, 80 / 16_000)
    assert (facts.offset, facts.rms) == pytest.approx((mono.mean(), np.sqrt((mono**2).mean())))
    assert level_dbfs(facts) == pytest.approx(20 * np.log10(mono.std()), abs=0.01)
    speech = Bench(tmp_path).speech()[0]
    for name, sound, rate in (("a.wav", speech, RATE_HZ), ("a.flac", speech, RATE_HZ), ("b.wav", np.roll(speech, 1), RATE_HZ), ("c.wav", speech, 8_000)):  # fmt: skip
        soundfile.write(tmp_path / name, sound, rate, subtype="PCM_16")
    digests = [measure(str(tmp_path / name), 10.0).digest for name in ("a.wav", "a.flac", "b.wav", "c.wav")]
    assert digests[0] == digests[1] and len(set(digests)) == 3
    assert measure({"bytes": (tmp_path / "a.flac").read_bytes()}, 10.0).digest == digests[0]


def with_bytes(data: bytes, *places: tuple[slice, bytes]) -> bytes:
    for place, value in places:
        data = data[: place.start] + value + data[place.stop :]
    return data


#: Ten hours, in a WAV's two sizes, and in the low 32 of the 36 bits that a FLAC has for its length in samples.
TEN_HOURS_S = 36_000
WAV_SIZE = struct.pack("<I", TEN_HOURS_S * RATE_HZ * 2)
WAV_SIZES = ((slice(4, 8), WAV_SIZE), (slice(40, 44), WAV_SIZE))
FLAC_LENGTH = (slice(22, 26), struct.pack(">I", TEN_HOURS_S * RATE_HZ))
#: Format of the file that is spoiled, how, and what it is then. libsndfile does not tell a FLAC that is cut off from one
#: that is corrupt.
HOSTILE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "zero bytes": ("wav", lambda data: b"", "undecodable"),
    "a header alone": ("wav", lambda data: data[:44], "cut_off"),
    "a wav that claims ten hours": ("wav", lambda data: with_bytes(data, *WAV_SIZES), "cut_off"),
    "a flac that claims ten hours": ("flac", lambda data: with_bytes(data, FLAC_LENGTH), "cut_off"),
    "half a flac": ("flac", lambda data: data[: len(data) // 2], "undecodable"),
    "most of an ogg": ("ogg", lambda data: data[: len(data) * 9 // 10], "cut_off"),
}


def test_hostile_files_are_named_and_read_no_further_than_needed(tmp_path: Path) -> None:
    waveform = Bench(tmp_path).speech()[0]
    for what, (ending, change, fault) in HOSTILE.items():
        name = f"{what} 録音 ‏قول \U0001f399.{ending}"
        soundfile.write(tmp_path / f"a.{ending}", waveform, RATE_HZ, subtype="OPUS" if ending == "ogg" else "PCM_16")
        (tmp_path / name).write_bytes(change((tmp_path / f"a.{ending}").read_bytes()))
        facts = measure(str(tmp_path / name), 600.0)
        assert facts.fault == fault and facts.reason and facts.seconds < len(waveform) / RATE_HZ + 0.1, what
        if fault != "cut_off":  # training reads what is there
            with pytest.raises(AudioError):
                load_waveform(tmp_path / name)
    (tmp_path / "long.wav").write_bytes(with_bytes((tmp_path / "a.wav").read_bytes(), *WAV_SIZES))
    os.truncate(tmp_path / "long.wav", 44 + TEN_HOURS_S * RATE_HZ * 2)
    facts = measure(str(tmp_path / "long.wav"), 60.0)
    assert (facts.fault, round(facts.seconds), facts.digest) == ("", TEN_HOURS_S, "")


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    os.symlink("/dev/zero", tmp_path / "zero.wav")
    (tmp_path / "data.json").write_text(json.dumps([row_of(name, "a") for name in ("pipe.wav", "zero.wav")]))
    for audio_dir in (tmp_path, None):
        found = found_in([data_file(tmp_path / "data.json")], audio_dir)
        assert found == [(0, 0, "not_a_file"), (0, 1, "not_a_file")]


def test_a_container_that_libsndfile_does_not_read(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    waveform = Bench(tmp_path).speech()[0]
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for start in range(0, len(waveform) - 1_024, 1_024):
            frame = av.AudioFrame.from_ndarray(waveform[None, start : start + 1_024], format="fltp", layout="mono")
            frame.sample_rate = RATE_HZ
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    facts, heard = measure(str(tmp_path / "a.m4a"), 600.0), load_waveform(tmp_path / "a.m4a")
    assert (facts.fault, facts.seconds) == ("", len(heard) / RATE_HZ)
    assert facts.rms == pytest.approx(float(np.sqrt((heard**2).mean())), rel=1e-4)
    (tmp_path / "half.m4a").write_bytes((tmp_path / "a.m4a").read_bytes()[:4_000])
    assert measure(str(tmp_path / "half.m4a"), 600.0).fault in ("undecodable", "cut_off")


def test_an_mp3_measured_by_blocks_is_what_it_is_read_whole() -> None:
    """Levels of a recording of several blocks, whose samples a decoder spoils that is sought in."""
    speech = np.concatenate([load_waveform(audio) for audio in load_studio_prompts("train")[:25]["audio"]])
    buffer = io.BytesIO()
    soundfile.write(buffer, speech, 16_000, format="MP3")
    whole = load_waveform(buffer.getvalue())
    facts = measure({"bytes": buffer.getvalue(), "path": "speech.mp3"}, 600.0)
    assert facts.rms == pytest.approx(float(np.sqrt(np.mean(np.square(whole, dtype=np.float64)))), rel=1e-6)

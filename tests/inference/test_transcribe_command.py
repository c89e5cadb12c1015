"""`audiollm transcribe`: every option, many and awkward inputs, and runs that are broken off and go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.files import AUDIO_SUFFIXES
from audiollm.inference.answering import answer, ask
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.loading import load_generation_config
from audiollm.inference.options import find_recordings
from audiollm.inference.transcribe import main
from audiollm.inference.transcribing import UNSURE, Certainty, Transcriber, TranscribingSettings
from long_recordings import RATE, in_a_row, noises, prompts, silence

FEW = {"max_new_tokens": 6}
MEMORY_GROWTH_BYTES = 40 << 20


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of recordings: two prompts, and one of several with pauses, in a folder below."""
    folder = tmp_path_factory.mktemp("sounds é")
    clips = prompts(5)
    soundfile.write(folder / "b one.wav", clips[0], RATE)
    soundfile.write(folder / "a-two.flac", clips[1], RATE)
    (folder / "below").mkdir()
    row = in_a_row(clips, [3.0, 0.4, 0.4, 4.0, 0.4, 3.0])
    soundfile.write(folder / "below" / "row.mp3", np.stack([row, row], axis=1), RATE)
    return folder


@pytest.fixture
def transcribe(run, checkpoint):
    """Return what runs the command, which has to end with the status `code`, and gives what it has printed."""
    few = ["--max_new_tokens", "6", "--no_progress", "--model", checkpoint]
    return lambda *words, code=0: run(main, *few, *words, code=code)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_transcripts_are_printed_in_the_given_order(transcribe, sounds, tiny_model, tiny_processor, tmp_path) -> None:
    files = [str(sounds / "b one.wav"), str(sounds / "a-two.flac")]
    again = [f"{sounds}/./b one.wav", (sounds / "a-two.flac").as_uri()]
    printed = transcribe(*files, *again, "--window_seconds", 30)
    questions = [ask("<audio>\nTranscribe the speech.", file) for file in files]
    expected = answer(tiny_model, tiny_processor, questions, **FEW)
    assert printed.out.splitlines() == [f"{file}: {' '.join(text.split())}" for file, text in zip(files, expected)]
    assert "stopped at the bound on new tokens: 0.0-" in printed.err
    assert "s of audio [" not in printed.err
    printed = transcribe(files[0], "--window_seconds", 30, "--progress")
    assert printed.out == f"{' '.join(expected[0].split())}\n"
    assert "s of audio" in printed.err and "x real time" in printed.err
    soundfile.write(tmp_path / "still.wav", silence(2), RATE)
    printed = transcribe(tmp_path / "still.wav")
    assert printed.out == "\n" and f"{tmp_path / 'still.wav'}: no speech was found." in printed.err


def test_equal_names_are_told_apart_or_refused(transcribe, tmp_path) -> None:
    for name in ("x.wav", "x.flac", "below/x.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, silence(1), RATE)
    transcribe(tmp_path / "x.wav", tmp_path / "x.flac", "--output_dir", tmp_path / "o")
    assert sorted(contents(tmp_path / "o")) == ["x.flac.txt", "x.wav.txt"]
    assert (
        "would both be written to"
        in transcribe(tmp_path / "x.wav", tmp_path / "below/x.wav", "--output_dir", tmp_path / "p", code=2).err
    )


def test_bad_files_are_named_at_the_end_and_the_others_are_done(transcribe, sounds, tmp_path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder").mkdir()
    names = ("empty.wav", "text.wav", "pipe.wav", "missing.wav", "*.ogg", "folder")
    printed = transcribe(*(tmp_path / name for name in names), sounds / "b one.wav", code=1)
    assert len(printed.out.splitlines()) == 1
    assert "6 could not be transcribed" in printed.err and all(name in printed.err for name in names)
    transcribe(tmp_path / "missing.wav", "--model", tmp_path / "no model", code=1)


def test_every_option_does_something(transcribe, tmp_path) -> None:
    soundfile.write(tmp_path / "a.wav", in_a_row(prompts(2), [0.1, 0.5, 0.1]), RATE)
    soundfile.write(tmp_path / "noise.wav", noises(2.0, -30)["white"], RATE)

    def transcripts(*options: str) -> list[dict[str, Any]]:
        output = ["--output_dir", tmp_path / "o", "--output_format", "json", "--overwrite"]
        transcribe(tmp_path / "a.wav", tmp_path / "noise.wav", *output, *options)
        return [json.loads((tmp_path / f"o/{name}.json").read_text()) for name in ("a", "noise")]

    plain = transcripts()
    assert transcripts("--device", "cpu") == plain
    for options, difference in (
        (["--prompt", "What?"], "text"),
        (["--max_new_tokens", "9"], "text"),
        (["--window_seconds", "1"], "windows"),
        (["--voice_activity", "off"], "skipped"),
        (["--voice_threshold_db", "0"], "skipped"),
        (["--min_logprob", "-0.001"], "text"),
        (["--dtype", "bfloat16"], "made_with"),
        (["--batch_size", "1"], "made_with"),
    ):
        assert [each[difference] for each in transcripts(*options)] != [each[difference] for each in plain], options


def test_what_is_wrong_with_options_is_said(transcribe, sounds, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for options, message in (
        ("--output_format srt", "give --output_dir"),
        ("--output_dir o --output_format doc", "invalid choice: 'doc'"),
        ("--prompt <audio><audio>", "expected one, or none"),
        ("--batch_size 0", "--batch_size is 0"),
        ("--window_seconds nan", "--window_seconds is nan; expected 1 to 30"),
        ("--voice_activity off --voice_threshold_db 3", "leave one out"),
        ("--voice_threshold_db -1", "expected 0 or more"),
        ("--min_logprob 1", "--min_logprob is 1; expected less than 0"),
        ("--device moon", "--device moon"),
    ):
        assert message in transcribe(sounds, *options.split(), code=2).err


def test_batched_is_single(tiny_model, tiny_processor, sounds) -> None:
    recordings = [*prompts(20)[::4], str(sounds / "below/row.mp3")]
    hearing = AudioLlm(tiny_model, tiny_processor)
    single, batched = (
        [[one.text for one in result.passages] for result in hearing.transcribe(recordings, batch_size=size, **FEW)]
        for size in (1, 5)
    )
    assert single == batched and len({text for each in single for text in each}) > 5


def test_certainty_is_the_mean_of_the_tokens_log_probabilities(tiny_model, tiny_processor, clips) -> None:
    inputs = tiny_processor.apply_chat_template(
        [ask("What?", clip) for clip in clips[:2]], tokenize=True, add_generation_prompt=True, padding_side="left"
    )
    certainty = Certainty()
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "logits_processor": [certainty]}
    output = tiny_model.eval().generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    scores = tiny_model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    for row, tokens in ((0, 1), (1, 9)):
        assert certainty.mean_logprob(row, tokens) == pytest.approx(float(scores[row, :tokens].mean()), abs=1e-5)


def test_windows_without_a_voice_or_that_the_model_is_not_sure_of_are_left_out(
    tiny_model, tiny_processor, monkeypatch
) -> None:
    means: list[float] = []
    mean_logprob = Certainty.mean_logprob
    monkeypatch.setattr(Certainty, "mean_logprob", lambda *given: means.append(mean_logprob(*given)) or means[-1])
    hearing = AudioLlm(tiny_model, tiny_processor)
    assert all(one.text for one in hearing.transcribe(prompts(4), min_logprob=-1e6, **FEW))
    least = float(np.mean(means))
    kept = hearing.transcribe(prompts(4), min_logprob=least, **FEW)
    left_out = [one for one in kept if not one.text]
    assert [one.skipped[0].reason for one in left_out] == [UNSURE] * sum(one < least for one in means[:4])
    assert 0 < len(left_out) < 4
    for result in hearing.transcribe([*noises(3.0, -25).values(), silence(3)]):
        assert not result.passages and result.text == ""
        assert result.skipped[0].start_s == 0 and result.skipped[-1].end_s == result.seconds == 3.0


# ------------------------------------------------------------------------------------- what the checkpoint brings along


@pytest.fixture
def with_settings(checkpoint, tmp_path):
    """Copies of the checkpoint that hold settings of transcription."""

    def made(**settings: Any) -> Path:
        folder = shutil.copytree(checkpoint, tmp_path / "with-settings", dirs_exist_ok=True)
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "audiollm_transcribe": settings}))
        return folder

    return made


def test_the_window_is_the_checkpoints(checkpoint, with_settings, tmp_path) -> None:
    soundfile.write(tmp_path / "row.wav", in_a_row(prompts(3), [0.4] * 4), RATE)
    # The last setting is of a former version.
    brought = with_settings(window_seconds=3, prompt="Write:", max_new_tokens=4, carry_context=True)
    written = {}
    for name, folder, options in (
        ("brought", brought, []),
        ("given", checkpoint, ["--window_seconds", "3", "--prompt", "Write:", "--max_new_tokens", "4"]),
        ("fallback", checkpoint, ["--max_new_tokens", "4"]),
        ("overridden", brought, ["--window_seconds", "5", "--prompt", TranscribingSettings.prompt]),
    ):
        output = ["--output_dir", str(tmp_path / name), "--output_format", "json", "--no_progress"]
        main([str(tmp_path / "row.wav"), *output, "--model", str(folder), *options])
        written[name] = json.loads((tmp_path / name / "row.json").read_text())
        del written[name]["made_with"]["model"]  # its folder
    assert written["brought"] == written["given"] and written["overridden"] == written["fallback"]
    assert [written[name]["made_with"]["window_seconds"] for name in ("brought", "fallback")] == [3, 5]
    model = AudioLlmForConditionalGeneration.from_pretrained(brought)
    assert Transcriber(model, AudioLlmProcessor.from_pretrained(brought)).settings.window_seconds == 3
    for weights in ("adapter", "merged"):
        model.save_pretrained(tmp_path / weights, weights=weights)
        assert load_generation_config(str(tmp_path / weights)).audiollm_transcribe["window_seconds"] == 3
        loaded = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / weights)
        assert loaded.generation_config.audiollm_transcribe["window_seconds"] == 3


def test_wrong_settings_of_a_checkpoint_are_named(transcribe, with_settings, sounds) -> None:
    for settings, said in (
        ({"window_seconds": True}, "window_seconds cannot be True"),
        ({"window": 3}, "has 'window'; expected some of"),
        ({"window_seconds": 31}, "window_seconds is 31"),
    ):
        assert said in transcribe(sounds, "--model", with_settings(**settings), code=2).err


def test_a_folders_recordings_are_those_that_prepare_takes(tmp_path) -> None:
    for suffix in AUDIO_SUFFIXES:
        (tmp_path / f"clip{suffix.upper()}").write_bytes(b"sound")
    (tmp_path / "notes.txt").write_bytes(b"words")
    found = {Path(one.location).suffix.lower() for one in find_recordings([str(tmp_path)])[0]}
    assert found == set(AUDIO_SUFFIXES) and {".sph", ".g722", ".mka", ".aifc"} <= found


# -------------------------------------------------------------------------------------------------- killed, and memory


def test_a_broken_run_goes_on_and_ends_with_the_same_bytes(transcribe, sounds, tmp_path, monkeypatch) -> None:
    arguments = [sounds, "--output_format", "all", "--batch_size", "2", "--window_seconds", "3", "--output_dir"]
    transcribe(*arguments, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    stems = ("a-two", "b one", "below/row")
    assert sorted(whole) == [f"{stem}.{ending}" for stem in stems for ending in ("json", "srt", "txt", "vtt")]
    row = json.loads(whole["below/row.json"])
    assert row["windows"] and all(window["text"] and window["is_cut_off"] for window in row["windows"])
    assert {"silence"} <= {reason for each in row["skipped"] for reason in each["reason"].split("; ")}
    edges = sorted([(each["start_s"], each["end_s"]) for each in row["windows"] + row["skipped"]])
    assert edges[0][0] == 0 and edges[-1][1] == pytest.approx(row["seconds"], abs=0.01)
    assert all(one[1] == after[0] for one, after in pairwise(edges))

    original, calls = Transcriber._hear, []

    def heard_then_broken(self, waveforms):
        calls.append(len(waveforms))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, waveforms)

    monkeypatch.setattr(Transcriber, "_hear", heard_then_broken)
    transcribe(*arguments, tmp_path / "broken", code=130)
    broken = contents(tmp_path / "broken")
    assert [name for name in broken if name.endswith(".partial.jsonl")] and "below/row.txt" not in broken
    transcribe(*arguments, tmp_path / "broken")
    assert contents(tmp_path / "broken") == whole
    assert len(calls) - 3 < (len(row["windows"]) + 2) / 2
    transcribe(*arguments, tmp_path / "whole", code=2)
    transcribe(*arguments, tmp_path / "whole", "--overwrite")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(checkpoint, tmp_path) -> None:
    soundfile.write(tmp_path / "long.wav", np.tile(in_a_row(prompts(8), [0.4] * 9), 12), RATE)
    arguments = [str(tmp_path / "long.wav"), "--output_format", "all", "--batch_size", "1", "--max_new_tokens", "60"]
    arguments += ["--model", str(checkpoint), "--no_progress", "--output_dir"]
    command = [sys.executable, "-m", "audiollm.inference.transcribe", *arguments, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    partial = tmp_path / "killed/long.partial.jsonl"
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") > 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and list((tmp_path / "killed").iterdir()) == [partial]
    for name in ("killed", "whole"):
        main([*arguments, str(tmp_path / name)])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and len(contents(tmp_path / "whole")) == 4


#: Of the process' own memory: `ru_maxrss` would be that of the one which started it, where that is more.
PEAK_MEMORY = """
import sys
import time
from pathlib import Path
from audiollm.inference.transcribe import main
main(sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("peak", int(peak.split()[1]) << 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_length(checkpoint, tmp_path) -> None:
    ten_seconds = np.resize(in_a_row(prompts(4), [0.4] * 5), 10 * RATE)
    peaks = []
    for minutes in (12, 72):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(6 * minutes):
                file.write(ten_seconds)
        options = ["--max_new_tokens", "1", "--no_progress", "--batch_size", "32"]
        command = [sys.executable, "-c", PEAK_MEMORY, str(path), "--model", str(checkpoint), *options]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(shown.stdout.rsplit("peak ", 1)[1]))
    assert peaks[1] - peaks[0] < MEMORY_GROWTH_BYTES, peaks

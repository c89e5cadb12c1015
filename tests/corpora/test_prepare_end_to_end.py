"""`audiollm prepare` from end to end: LibriSpeech over a bad connection, the round trip by `datasets` and a Hub, harm."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import prepared_python
import pytest
import soundfile
from audiollm.corpora.examples import read_examples
from audiollm.corpora.prompts import load_studio_prompts
from librispeech_archives import SPLITS, librispeech_archives, published
from loopback_hub import LoopbackHub
from loopback_site import Site
from prepare_process import contents

TABLE = {split: vars(row) for split, row in published(librispeech_archives()).items()}
#: Most that more clips may add to a process' memory, once the smaller corpus fills a row group of 1000 as well.
MEMORY_GROWTH_MIB = 16
FEW_CLIPS, MANY_CLIPS = 2000, 5000


def librispeech(site: Site, folder: Path, *more: Any) -> list[Any]:
    """The command, into `folder`."""
    where = ["--mirrors", f"{site.url}/resources", "--archives", folder / "archives", "--output", folder / "out"]
    return ["librispeech", *where, "--workers", "1", *(more or ("--splits", ",".join(SPLITS)))]


# -------------------------------------------------------------------------------------------------------- LibriSpeech


def test_an_archive_that_no_mirror_has_is_named(launcher, site, tmp_path) -> None:
    site.files.clear()
    refused = launcher.run(*librispeech(site, tmp_path, "--splits", "dev-clean"), table=TABLE)
    assert refused.code == 1 and f"{site.url}/resources/12/dev-clean.tar.gz failed" in refused.stderr
    assert "404" in refused.stderr and "Traceback" not in refused.stderr


def test_punctuation_of_librispeech_comes_from_what_is_heard(launcher, site, tmp_path, real_bases) -> None:
    launcher.succeed(*librispeech(site, tmp_path, "--splits", "train-clean-5", "--copy_punctuation"), table=TABLE)
    examples = read_examples(tmp_path / "out" / "instruction_examples.json", tmp_path / "out")
    spoken = load_studio_prompts("test").select(range(9, 15))["text"]
    written = [example.response for example in examples]
    assert [words(text) for text in written] == [words(text) for text in spoken]
    punctuated = [text for text in written if text[0].isupper() and text[-1] in ".?!"]
    assert len(punctuated) >= len(written) - 1, written


def words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter in " '" else " " for letter in text.upper()).split()


# --------------------------------------------------------------------------------------------------------- round trip

ROUND_TRIP = """
import sys, datasets
from audiollm.training.train import parse_arguments, train

prepared, audio, text, runs = sys.argv[1:]
name = "loopback-user/prepared"

def rows(table):
    return [{**row, "audio": row["audio"]["bytes"]} for row in table]

table = datasets.load_dataset(prepared, split="train")
assert isinstance(table.features["audio"], datasets.Audio) and table.features["audio"].sampling_rate == 16_000
known = rows(table.decode(False) if hasattr(table, "decode") else table.cast_column("audio", datasets.Audio(decode=False)))
assert len(known) == 8
streamed = datasets.load_dataset(prepared, split="train", streaming=True).decode(False)
assert rows(streamed) == known
table.push_to_hub(name)
back = datasets.load_dataset(name, split="train").cast_column("audio", datasets.Audio(decode=False))
assert rows(back) == known
assert rows(datasets.load_dataset(name, split="train", streaming=True).decode(False)) == known
for number, data in enumerate((["hub:" + name], [prepared, "--streaming"], ["hub:" + name, "--streaming"], [prepared])):
    options = (
        f"--whisper_path {audio} --llama_path {text} --output_dir {runs}/{number} --batch_size 2 --max_steps 2 "
        "--dataloader_pin_memory False --disable_tqdm True --report_to none"
    )
    trainer = train(*parse_arguments(["--data_path", *data, *options.split()]))
    assert trainer.state.global_step == 2
    print("TRAINED", number)
"""


def test_round_trip_by_datasets_and_a_hub(launcher, tmp_path, tiny_bases) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number, row in enumerate(load_studio_prompts("test").select(range(8))):
        (folder / f"{number}.ogg").write_bytes(row["audio"]["bytes"])
        (folder / f"{number}.txt").write_text(row["text"])
    launcher.succeed("folder", folder, "--output", tmp_path / "out", "--workers", "1")
    with LoopbackHub(tmp_path / "hub") as hub:
        arguments = (tmp_path / "out" / "parquet", *tiny_bases, tmp_path / "runs")
        variables = hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        done = prepared_python.run(ROUND_TRIP, *arguments, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("TRAINED") == 4
    weights = [(tmp_path / "runs" / name / "model.safetensors").read_bytes() for name in "0123"]
    assert weights[0] == weights[3] and weights[1] == weights[2], "where the rows come from changes nothing"


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux counts it")
def test_memory_does_not_grow_with_the_corpus(launcher, tmp_path) -> None:
    generator = np.random.default_rng(0)
    peaks = []
    for count in (FEW_CLIPS, MANY_CLIPS):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            noise = generator.integers(-3000, 3000, 2400).astype(np.int16)
            soundfile.write(folder / f"{number}.wav", noise, 16_000)
            (folder / f"{number}.txt").write_text(f"Noise {number}.")
        done = launcher.succeed("folder", folder, "--output", tmp_path / f"{count}.out", "--workers", "1")
        peaks.append(done.peak_bytes / (1 << 20))
        assert f"{count} examples" in done.stdout
    assert peaks[1] - peaks[0] < MEMORY_GROWTH_MIB, peaks


# --------------------------------------------------------------------------------------------------------------- harm


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number, row in enumerate(load_studio_prompts("test").select(range(3))):
        (folder / f"{number:03}.ogg").write_bytes(row["audio"]["bytes"])
        (folder / f"{number:03}.txt").write_text(row["text"])
    return folder


def test_lists_in_the_output_that_lie_remove_nothing_outside(launcher, recordings, tmp_path) -> None:
    output, kept = tmp_path / "out", tmp_path / "kept.txt"
    kept.write_text("kept")
    command = ["folder", recordings, "--output", output, "--workers", "1"]
    launcher.succeed(*command)
    whole = contents(output)
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["files"] += ["../kept.txt", str(kept)]
    (output / "manifest.json").write_text(json.dumps(manifest))
    launcher.succeed(*command)
    assert contents(output) == whole and kept.read_text() == "kept"
    journal = output / ".prepare" / "clips.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    for lie in ("../kept.txt", str(kept)):
        rows[1] |= {"audio": lie, "bytes": kept.stat().st_size}
        journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
        launcher.succeed(*command)
        assert contents(output) == whole, "it was made anew from there on"
        journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
        launcher.succeed(*command, "--restart")
        assert contents(output) == whole and kept.read_text() == "kept"

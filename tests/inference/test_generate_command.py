"""`audiollm generate`: an answer about a real recording, and errors that name what is wrong."""

from pathlib import Path

import pytest
from audiollm.answering import answer, ask
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.generate import main


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Two real recordings as Ogg Opus files."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for row in load_studio_prompts("test").sort("duration_s").select(range(2)):
        paths.append(str(folder / row["audio"]["path"]))
        Path(paths[-1]).write_bytes(row["audio"]["bytes"])
    return paths


def test_it_prints_the_models_answer(checkpoint, clips, tiny_model, tiny_processor, capsys) -> None:
    question = ["--prompt", "Is <audio> like <audio>?", "--max_new_tokens", "12"]
    main(["--model", str(checkpoint), "--audio", *clips, *question])
    printed = capsys.readouterr().out
    expected = answer(tiny_model, tiny_processor, [ask(question[1], *clips)], max_new_tokens=12)[0]
    assert printed == f"{expected}\n" and expected
    main(["--model", str(checkpoint), "--audio", clips[0], "--max_new_tokens", "3"])
    expected = answer(tiny_model, tiny_processor, [ask("<audio>\nTranscribe the speech.", clips[0])], max_new_tokens=3)
    assert capsys.readouterr().out == f"{expected[0]}\n"


def test_a_question_without_recordings_is_answered_too(checkpoint, tiny_model, tiny_processor, capsys) -> None:
    main(["--model", str(checkpoint), "--prompt", "Hello?", "--max_new_tokens", "4"])
    expected = answer(tiny_model, tiny_processor, [ask("Hello?")], max_new_tokens=4)[0]
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--audio", "/no/such.wav"], "/no/such.wav"),
        (["--audio", "BAD"], "bad.wav"),
        (["--audio", "CLIP", "CLIP"], "give --prompt, with one <audio> per file"),
        ([], "give --prompt, with one <audio> per file"),
        (["--audio", "CLIP", "--prompt", "<audio> <audio>"], "has 2 <audio> for 1 recordings"),
        (["--audio", "CLIP", "--dtype", "float3"], "invalid choice: 'float3'"),
    ],
)
def test_what_is_wrong_is_named_before_the_model_is_loaded(
    extra, message, tiny_processor, clips, tmp_path, capsys
) -> None:
    tiny_processor.save_pretrained(tmp_path / "processor_alone")
    (tmp_path / "bad.wav").write_bytes(b"this is not sound")
    places = {"CLIP": clips[0], "BAD": str(tmp_path / "bad.wav")}
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(tmp_path / "processor_alone"), *[places.get(word, word) for word in extra]])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err

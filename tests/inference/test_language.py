"""The language of the speech: said in the question, known to the encoder, and told where it changes nothing."""

import logging
from pathlib import Path

import pytest
import soundfile
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.transcribe import main
from audiollm.inference.transcribing import MULTILINGUAL_VOCABULARY
from long_recordings import RATE, prompts
from tiny_models import hearing_model

FEW = {"max_new_tokens": 6}
ASKED = "<audio>\nTranscribe the speech. The language is {}."


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("language") / "a.wav"
    soundfile.write(path, prompts(1)[0], RATE, subtype="FLOAT")
    return str(path)


@pytest.fixture
def loaded(tiny_model, tiny_processor) -> AudioLlm:
    return AudioLlm(tiny_model, tiny_processor)


@pytest.mark.parametrize(("language", "name"), [("de-AT", "German"), ("hindi", "Hindi"), ("en", "English")])
def test_a_multilingual_encoders_question_says_it(language: str, name: str, loaded, recording, monkeypatch) -> None:
    monkeypatch.setattr(loaded.model.config.audio_config, "vocab_size", MULTILINGUAL_VOCABULARY)
    found = loaded.transcribe(recording, language=language, **FEW).text
    assert found == loaded.transcribe(recording, prompt=ASKED.format(name), **FEW).text
    assert found != loaded.transcribe(recording, **FEW).text


def test_the_command_says_it_too(loaded, checkpoint, recording, capsys) -> None:
    main([recording, "--model", str(checkpoint), "--max_new_tokens", "6", "--no_progress", "--language", "en"])
    assert capsys.readouterr().out.strip() == loaded.transcribe(recording, prompt=ASKED.format("English"), **FEW).text


@pytest.mark.parametrize(("language", "named"), [("tlh", "'tlh'"), ("de", "knows English alone")])
def test_what_the_encoder_does_not_know_is_refused(
    language: str, named: str, loaded, checkpoint: Path, recording, capsys
) -> None:
    with pytest.raises(ValueError, match=named):
        loaded.transcribe(recording, language=language)
    with pytest.raises(SystemExit) as caught:
        main([recording, "--model", str(checkpoint), "--language", language])
    assert caught.value.code == 2 and named in capsys.readouterr().err


def test_where_ctc_alone_is_asked_the_user_is_told(tiny_bases, tiny_processor, recording, caplog) -> None:
    model = hearing_model(tiny_bases, tiny_processor)
    model.generation_config.audiollm_transcribe = {"written_candidate": False}
    with caplog.at_level(logging.WARNING):
        AudioLlm(model, tiny_processor).transcribe(recording, **FEW)
        assert "change nothing" not in caplog.text
        AudioLlm(model, tiny_processor).transcribe(recording, language="en", **FEW)
    assert "change nothing" in caplog.text

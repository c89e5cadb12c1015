"""Certainty of a window's words, and windows that are left out for it, by name."""

import json

import pytest
import soundfile
from audiollm.inference.answering import ask
from audiollm.inference.transcribe import main
from audiollm.inference.transcribing import UNSURE, Certainty, Transcriber, TranscribingSettings
from long_recordings import RATE, prompts


def test_it_is_the_mean_of_the_tokens_log_probabilities(tiny_model, tiny_processor) -> None:
    clips = prompts(2)
    inputs = tiny_processor.apply_chat_template(
        [ask("What?", clip) for clip in clips], tokenize=True, add_generation_prompt=True, padding_side="left"
    )
    certainty = Certainty()
    output = tiny_model.eval().generate(
        **inputs,
        max_new_tokens=9,
        min_new_tokens=9,
        do_sample=False,
        logits_processor=[certainty],
        output_scores=True,
        return_dict_in_generate=True,
    )
    scores = tiny_model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    for row in range(2):
        for tokens in (1, 4, 9):
            assert certainty.mean_logprob(row, tokens) == pytest.approx(float(scores[row, :tokens].mean()), abs=1e-5)


def test_windows_that_the_model_is_not_sure_of_are_named(tiny_model, tiny_processor, tmp_path, capsys) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    files = [str(tmp_path / f"{index}.wav") for index in range(4)]
    for file, clip in zip(files, prompts(4)):
        soundfile.write(file, clip, RATE)
    sure = {}
    for bound in (-1e-6, -1e6, *(-0.05 * step for step in range(1, 60))):
        settings = TranscribingSettings(max_new_tokens=6, min_logprob=bound)
        results = list(Transcriber(tiny_model, tiny_processor, settings, progress=False).transcribe(files))
        sure[bound] = [bool(result.text) for result in results]
        if 0 < sum(sure[bound]) < 4:
            break
    assert sure[-1e-6] == [False] * 4 and sure[-1e6] == [True] * 4
    out = ["--output_dir", str(tmp_path / "o"), "--output_format", "json", "txt", "--no_progress"]
    main([*files, "--model", str(tmp_path / "model"), "--max_new_tokens", "6", "--min_logprob", str(bound), *out])
    for index, heard in enumerate(sure[bound]):
        kept = json.loads((tmp_path / "o" / f"{index}.json").read_text())
        assert [one["reason"] for one in kept["skipped"]] == ([] if heard else [UNSURE])
        assert bool((tmp_path / "o" / f"{index}.txt").read_text()) is heard is bool(kept["text"])
    with pytest.raises(SystemExit):
        main([files[0], "--model", str(tmp_path / "model"), "--min_logprob", "1"])
    assert "--min_logprob is 1; expected less than 0" in capsys.readouterr().err

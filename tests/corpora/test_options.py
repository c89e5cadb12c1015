"""Options of `audiollm prepare` that contradict each other, or make no sense, are refused by name."""

from typing import Any

import pytest
from audiollm.corpora.folder import FolderArguments
from audiollm.corpora.huggingface import HuggingFaceArguments
from audiollm.corpora.librispeech import LibriSpeechArguments
from audiollm.corpora.respond import SelfInstructArguments
from audiollm.corpora.synthesize import SynthesizeArguments
from audiollm.corpora.word_error import WordErrorArguments

REFUSED: dict[type, list[tuple[dict[str, Any], str]]] = {
    FolderArguments: [
        ({"transcript_suffix": ".txt", "manifest": "m"}, "--transcript_suffix"),
        ({"columns": ["text"]}, "--columns"),
        ({"split": ""}, "--split"),
    ],
    HuggingFaceArguments: [
        ({"limit": 0}, "--limit is 0"),
        ({"splits": ["train[:10]"]}, "--limit"),
        ({"splits": ["a,a"]}, "twice"),
        ({"config": "../x"}, "--config"),
        ({"source_path": "."}, "--source_path is for ready corpora"),
        ({"dataset": ".", "revision": "main"}, "--revision is for datasets of the Hub"),
        ({"dataset": "fleurs:de_de", "source_path": "nowhere"}, "does not exist"),
    ],
    LibriSpeechArguments: [
        ({"splits": ["dev-clean,dev-dirty"]}, r"--splits has 'dev-dirty'; expected some of dev-clean, dev-other"),
        ({"source_path": "x", "mirrors": ["http://a"]}, r"--mirrors is for downloads"),
        ({"mirrors": ["file:///etc"]}, r"--mirrors has 'file:///etc'; expected URLs"),
    ],
    SynthesizeArguments: [
        ({"voices_per_text": 0}, "--voices_per_text is 0"),
        ({"tts_timeout": 0.0}, "--tts_timeout is 0"),
        ({"pitch": [1.2, 0.9]}, "--pitch is 1.2 0.9"),
        ({"speed": [1.0, 1.1, 1.2]}, "--speed is 1 1.1 1.2"),
        ({"split": " "}, "--split is empty"),
    ],
    SelfInstructArguments: [
        ({"respond_with": None, "respond_batch_size": 1}, "--respond_batch_size needs --respond_with"),
        ({"respond_max_new_tokens": 0}, "--respond_max_new_tokens is 0"),
        ({"respond_batch_size": 0}, "--respond_batch_size is 0"),
    ],
    WordErrorArguments: [({"max_wer": wer}, r"--max_wer is .*percent") for wer in (-1, float("nan"), float("inf"))],
}
#: What each needs besides.
REQUIRED = {
    FolderArguments: {"folder": "x"},
    HuggingFaceArguments: {"dataset": "org/name"},
    SynthesizeArguments: {"texts": "texts.txt"},
    SelfInstructArguments: {"respond_with": "a model"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_options_that_contradict_or_make_no_sense_are_refused(kind: type) -> None:
    for options, reason in REFUSED[kind]:
        with pytest.raises(ValueError, match=reason):
            kind(**{**REQUIRED.get(kind, {}), **options})

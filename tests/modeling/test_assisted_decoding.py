"""
Drafts by an assistant model: what comes out is what greedy decoding says, with audio, whatever the assistant drafts.

(Those cut from the prompt are in test_batching.py.)
"""

import pytest
from audiollm import AudioLlmForConditionalGeneration
from batches import make_row
from test_batching import new_tokens
from tiny_models import randomise_trainables


@pytest.mark.parametrize("seed", [2, 5])
@pytest.mark.parametrize("windows", [(60,), ()], ids=["audio", "text"])
def test_an_assistant(tiny_model, tiny_bases, seed: int, windows: tuple[int, ...]) -> None:
    """The model itself (seed 2) drafts what it would say; another one, what it would not."""
    assistant = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    randomise_trainables(assistant, seed).eval()
    # Random models are sure of nothing; by default an assistant stops drafting where it is not.
    assistant.generation_config.assistant_confidence_threshold = 0.0
    row = make_row(tiny_model.config, 3, windows, 2, seed=9)
    options = {"max_new_tokens": 24, "min_new_tokens": 24}
    expected = new_tokens(tiny_model, [row], **options)
    runs = []
    hook = tiny_model.get_decoder().register_forward_pre_hook(lambda *_: runs.append(1))
    assert new_tokens(tiny_model, [row], **options, assistant_model=assistant) == expected
    hook.remove()
    if seed == 2:
        assert len(runs) < 24  # drafts were taken: the assistant heard the audio too

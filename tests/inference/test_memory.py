"""Memory that runs out: what counts as that, a conversation that goes on after it, and a transcription that is kept."""

import pytest
import torch
from audiollm.inference.session import AnswerMemoryError, Session
from audiollm.memory import is_out_of_memory

TOO_MANY_BYTES = 1 << 60


def too_much(*_) -> None:
    torch.empty(TOO_MANY_BYTES, dtype=torch.uint8)


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


def test_a_conversation_goes_on(tiny_model, tiny_processor) -> None:
    session = Session(tiny_model, tiny_processor, max_new_tokens=6)
    session.ask("One?")
    hook = tiny_model.get_decoder().layers[1].register_forward_pre_hook(too_much)
    with pytest.raises(
        AnswerMemoryError, match=r"ran out after 0 tokens of the answer to a conversation of \d+ tokens"
    ):
        session.ask("Two?")
    hook.remove()
    assert len(session.messages) == 2
    fresh = Session(tiny_model, tiny_processor, max_new_tokens=6)
    fresh.ask("One?")
    assert session.ask("Two?") == fresh.ask("Two?")

"""Conversations with a kept cache: the answers of one read anew, with nothing run twice; and how they go on after trouble."""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.command_line.machine import is_out_of_memory
from audiollm.inference.answering import answer
from audiollm.inference.session import AnswerMemoryError, ContextLengthError, Recording, Session
from audiollm.inference.streaming import AnswerStream
from audiollm.processing import AudioError
from long_recordings import noise
from small_corpus import write_recordings
from tiny_models import CHAT_TEMPLATE, TEXT_FIELDS, llama_config, randomise_trainables, save_text_base
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig

NEW_TOKENS = 10
#: Shows the last message in another way than earlier ones, so that every turn changes what stands before it.
UNSTABLE_TEMPLATE = CHAT_TEMPLATE.replace(
    "message['content'] +", "message['content'] + (' (new)' if loop.last and message['role'] == 'user' else '') +"
)
#: Each a conversation: the text of each turn and which recordings it has.
CONVERSATIONS: dict[str, list[tuple[str | None, list[int]]]] = {
    "text": [("Hello?", []), ("And again?", []), ("Why?", [])],
    "text, then audio": [("Hello?", []), ("What is said?", [1]), ("Why?", [])],
    "several at once": [("Is <audio> like <audio>?", [0, 1]), ("Which is longer?", []), ("And this?", [2])],
    "speech alone, the same twice": [(None, [3]), (None, [3]), ("What did I say?", [])],
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recordings")
    return [str(folder / name) for name in write_recordings(folder, 5)]


@pytest.fixture
def session(tiny_model, tiny_processor) -> Session:
    return Session(tiny_model, tiny_processor, max_new_tokens=NEW_TOKENS)


@pytest.fixture
def session_of(tiny_bases, tiny_processor, tmp_path):
    """Return a session of a model with another language model, or other LoRA."""

    def made(config=None, lora_rank: int = 4, **options: Any) -> Session:
        text = tiny_bases[1] if config is None else save_text_base(tmp_path / "text", config)
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], text, lora_rank=lora_rank)
        return Session(randomise_trainables(model), tiny_processor, **{"max_new_tokens": NEW_TOKENS, **options})

    return made


@contextmanager
def counted(model) -> Iterator[dict[str, int]]:
    """Counts windows that run through the encoder, and positions that run through the language model."""
    counts = {"windows": 0, "positions": 0}

    def count(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if args:  # the encoder's
            counts["windows"] += len(args[0])
        else:
            counts["positions"] += kwargs["inputs_embeds"].shape[1]

    parts = (model.model.audio_tower, model.model.language_model)
    hooks = [part.register_forward_pre_hook(count, with_kwargs=True) for part in parts]
    yield counts
    for hook in hooks:
        hook.remove()


def values(session: Session) -> list[torch.Tensor]:
    """Return the values of each layer in the cache of a session."""
    return [layer.values for layer in session._cache.layers]


def assert_as_read_anew(session: Session) -> None:
    """The last answer and the cache are those of a new session with the same messages; so is an answer without one."""
    asked, said = session.messages[:-1], session.messages[-1]
    bound = session.options["max_new_tokens"]
    fresh = Session(session.model, session.processor, messages=asked, max_new_tokens=bound)
    assert {"role": "assistant", "content": fresh.ask()} == said
    for ours, theirs in zip(values(session), values(fresh), strict=True):
        torch.testing.assert_close(ours[:, :, -theirs.shape[2] :], theirs, atol=1e-3, rtol=1e-3)
    assert answer(session.model, session.processor, [asked], max_new_tokens=bound) == [said["content"]]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_answer_is_that_of_the_conversation_read_anew(name: str, session, recordings) -> None:
    for turn, (text, chosen) in enumerate(CONVERSATIONS[name]):
        session.ask(text, *[recordings[index] for index in chosen])
        assert_as_read_anew(session)
        joins = chosen and not any(earlier for _, earlier in CONVERSATIONS[name][:turn])
        assert (session.report.reused_tokens > 0) == (turn > 0 and not joins)
    assert len(session.messages) == 2 * len(CONVERSATIONS[name])


def test_a_follow_up_neither_encodes_nor_prefills_the_recording(session, recordings) -> None:
    with counted(session.model) as counts:
        session.ask("What is said?", recordings[4])
        first = counts["positions"]
        assert first == session.report.prompt_tokens + session.report.new_tokens - 1
        session.ask("And who says it?")
        assert counts["windows"] == 1
        report = session.report
        assert counts["positions"] - first == report.prompt_tokens - report.reused_tokens + report.new_tokens - 1
        # Left to run are the new turn, and the answer before it as far as the template writes it in other tokens.
        most = len("<>user\nAnd who says it?<>\n<>assistant\n") + 2 * NEW_TOKENS
        assert report.prompt_tokens - report.reused_tokens < most


@pytest.mark.quick
def test_what_sounds_the_same_is_encoded_once_and_the_same_length_is_told_apart(session, recordings) -> None:
    """Tokens of recordings of the same length have the same ids: only what they sound like differs."""
    with counted(session.model) as counts:
        session.ask("<audio><audio>", recordings[0], recordings[0])
        session.ask("Again", session.processor.load_audio(recordings[0]))
        assert counts["windows"] == 1
        for long in (noise(31), noise(31, seed=1)):
            session._messages = []
            session.ask("What?", long)
            session.ask("Why?")
            assert_as_read_anew(session)
        assert counts["windows"] == 1 + 2 * (2 + 4)  # each is read anew, twice


@pytest.mark.quick
def test_a_conversation_without_audio_is_the_bases_to_the_last_bit(session, tiny_bases, recordings) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_bases[1]).eval()
    # Weights of a mapped file may begin anywhere in memory, and products of one row then round in another order.
    for weight in [*base.parameters(), *session.model.parameters()]:
        weight.data = weight.data.clone()
    cache = DynamicCache(config=base.config)
    session.ask("What is said?", recordings[0])
    session.reset()
    for text in ("Hello?", "And again?"):
        said = session.ask(text)
        ids = session.processor.apply_chat_template(session.messages[:-1], tokenize=True, add_generation_prompt=True)
        surplus = cache.get_seq_length() - session.report.reused_tokens
        if surplus:
            cache.crop(-surplus)
        output = base.generate(**ids, past_key_values=cache, do_sample=False, max_new_tokens=NEW_TOKENS)
        new = output[:, ids["input_ids"].shape[1] :]
        assert said == session.processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        for ours, theirs in zip(session._cache.layers, cache.layers):
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_another_adapter_reads_the_conversation_again(session, session_of, recordings) -> None:
    name = next(iter(session.model.config.lora_adapters))
    for adapter, is_reused in ((None, False), (name, False), (name, True), (None, False)):
        session.ask("Hello?", **({} if adapter is None else {"adapter_names": [adapter]}))
        assert (session.report.reused_tokens > 0) == is_reused
    assert_as_read_anew(session)
    session = session_of(lora_rank=0)
    session.ask("Hello?")
    session.ask("What is said?", recordings[0])
    assert session.report.reused_tokens > 0, "without LoRA a recording joins what was read"
    assert_as_read_anew(session)


def test_a_template_that_rewrites_earlier_turns_is_read_again_from_there(session, recordings, monkeypatch) -> None:
    monkeypatch.setattr(session.processor, "chat_template", UNSTABLE_TEMPLATE)
    prompts = []
    for turn in (("What is said? <audio> Well?", recordings[0]), ("Who says it?",)):
        session.ask(*turn)
        ids = session.processor.apply_chat_template(session.messages[:-1], tokenize=True, add_generation_prompt=True)
        prompts.append(ids["input_ids"][0].tolist())
    differs = next(n for n, (one, other) in enumerate(zip(*prompts)) if one != other)
    assert session.report.reused_tokens == differs < len(prompts[0])
    assert_as_read_anew(session)


def test_a_sliding_window_that_has_let_go_is_read_again(session_of, recordings) -> None:
    session = session_of(MistralConfig(**TEXT_FIELDS, sliding_window=16))
    for turn in (("What is said?", recordings[0]), ("Why?",), ("Who?",)):
        session.ask(*turn)
        assert_as_read_anew(session)


def test_what_is_too_long_is_refused_with_both_lengths(session_of) -> None:
    session = session_of(llama_config(max_position_embeddings=64), max_new_tokens=500)
    with pytest.raises(ContextLengthError, match=r"is \d{3} tokens long, but the language model can hold 64"):
        session.ask("x" * 100)
    assert session.messages == []
    recording = Recording.load(noise(5.0), session.processor)
    with pytest.raises(ContextLengthError):
        session.ask("Who?", recording)
    refused = weakref.ref(recording)
    del recording
    gc.collect()
    assert refused() is None  # its sound is let go
    session.ask("Hi", suppress_tokens=[4])
    assert session.report.finish_reason == "length"
    assert session.report.prompt_tokens + session.report.new_tokens == 64


@pytest.mark.parametrize("num_recordings", [0, 1])
def test_an_interrupted_answer_ends_with_the_token_in_the_making(session, recordings, num_recordings: int) -> None:
    whole = Session(session.model, session.processor, max_new_tokens=NEW_TOKENS, suppress_tokens=[4])
    chosen = recordings[:num_recordings]
    expected = whole.ask("Hello?", *chosen)
    stop, passes = threading.Event(), iter((False, False, True))
    hook = session.model.model.language_model.register_forward_pre_hook(
        lambda *_: stop.set() if next(passes, None) else None
    )
    said = session.stream("Hello?", *chosen, stop=stop, suppress_tokens=[4]).read()
    hook.remove()
    assert session.report.new_tokens == 3 and session.report.finish_reason == "interrupted"
    assert session.messages[-1] == {"role": "assistant", "content": said} and expected.startswith(said)
    with session.stream("Go on.", max_new_tokens=300, suppress_tokens=[4]) as stream:  # left early
        for call in (session.ask, session.reset):
            with pytest.raises(RuntimeError, match="still being written"):
                call()
        next(stream)
    assert session.report.finish_reason == "interrupted" and session.report.new_tokens < 300
    session.ask("Go on.")
    assert session.report.reused_tokens > 0
    assert_as_read_anew(session)


def too_much(*_: Any) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def test_after_trouble_the_turn_is_taken_back_and_the_session_goes_on(session, recordings) -> None:
    session.ask("What is said?", recordings[0])
    before, stop = session.messages, threading.Event()
    stop.set()
    assert session.ask("Why?", recordings[1], stop=stop) == ""
    assert session.report.finish_reason == "interrupted"
    for turn, options, kind, message in (
        (("Why?",), {"do_sample": True, "temperature": -1.0}, ValueError, "temperature"),
        (("Why?", "/no/such/file.wav"), {}, FileNotFoundError, "/no/such/file"),
        (("Why?", b"no audio"), {}, AudioError, "not audio"),
        ((), {}, ValueError, "nothing to answer"),
        (("",), {}, ValueError, "nothing to answer"),
        (("<audio>",), {}, ValueError, "has 1 <audio> for 0 recordings"),
    ):
        with pytest.raises(kind, match=message):
            session.ask(*turn, **options)
    hook = session.model.get_decoder().layers[1].register_forward_pre_hook(too_much)
    with pytest.raises(AnswerMemoryError, match=r"after 0 tokens of the answer to a conversation of \d+ tokens"):
        session.ask("Why?")
    hook.remove()
    assert session.messages == before
    session.ask("Why?", recordings[1])
    assert_as_read_anew(session)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


def test_messages_are_as_they_were_given(tiny_model, tiny_processor, recordings) -> None:
    session = Session(tiny_model, tiny_processor, system="Be brief.", max_new_tokens=NEW_TOKENS)
    pieces = list(session.stream("What is said?", recordings[0]))
    assert len(pieces) > 1 and "".join(pieces) == session.messages[-1]["content"]
    session.ask(None, recordings[1])
    assert_as_read_anew(session)
    parts = [{"type": "audio", "audio": recordings[0]}, {"type": "text", "text": "\nWhat is said?"}]
    expected = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "user", "content": [{"type": "audio", "audio": recordings[1]}]},
    ]
    assert [message for message in session.messages if message["role"] != "assistant"] == expected
    assert Session(tiny_model, tiny_processor, messages=session.messages).messages == session.messages
    session.reset()
    assert session.messages == expected[:1]
    session.ask("Hello?")
    assert session.report.reused_tokens == 0
    with pytest.raises(ValueError, match="not both"):
        Session(tiny_model, tiny_processor, system="Be brief.", messages=expected)


def test_options_of_the_session_and_of_one_answer(tiny_model, tiny_processor) -> None:
    session = Session(tiny_model, tiny_processor, max_new_tokens=3, suppress_tokens=[4])
    for options, length in (({}, 3), ({"max_new_tokens": 5}, 5)):
        session.ask("Hello?", **options)
        assert session.report.new_tokens == length and session.report.finish_reason == "length"
    torch.manual_seed(0)
    sampled = {Session(tiny_model, tiny_processor, do_sample=True, max_new_tokens=8).ask("Hi") for _ in range(4)}
    assert len(sampled) > 1
    with pytest.raises(ValueError, match="num_beams"):
        Session(tiny_model, tiny_processor, num_beams=2)
    with pytest.raises(ValueError, match="use_cache"):
        session.ask("Hello?", use_cache=False)


@pytest.mark.quick
def test_two_sessions_with_one_model_do_not_disturb_each_other(tiny_model, tiny_processor, recordings) -> None:
    """One with audio and one without, at the same time: each through its own weights."""

    def stream(*turn: str) -> AnswerStream:
        return Session(tiny_model, tiny_processor, max_new_tokens=40, suppress_tokens=[4]).stream(*turn)

    turns = [("What is said?", recordings[0]), ("What is said?",)]
    expected = [stream(*turn).read() for turn in turns]
    for _ in range(3):
        both = [stream(*turn) for turn in turns]
        assert [one.read() for one in both] == expected

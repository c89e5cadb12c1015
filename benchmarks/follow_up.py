"""
Time to first token: a first question about a recording, and a follow-up question in the same conversation.

The follow-up finds the recording's keys and values in the session's cache, so that it neither encodes nor prefills the
audio again. Beside it, the same follow-up answered by a session that has to read the whole conversation anew, and
whether both begin their answer alike; and what the language model alone needs for the follow-up's new tokens, which no
follow-up can be faster than.

    python benchmarks/follow_up.py --model runs/demo/adapter
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from audiollm.inference.loading import load
from audiollm.inference.session import Session
from joined_speech import joined_speech
from transformers import DynamicCache

RESULTS = Path(__file__).parent / "results" / "follow_up.json"
LENGTHS_S = (4.0, 30.0, 600.0)
#: From here on a first question takes a minute, and varies little; these are repeated less often.
LONG_S, LONG_REPEATS = 120.0, 1
QUESTION, FOLLOW_UP = "What is said?", "Is it a question?"
REPEATS = 5
#: Of the first answer, which the follow-up's conversation has in it.
MAX_NEW_TOKENS = 16


def time_to_first_token(session: Session, *turn: Any) -> tuple[float, str]:
    """
    Seconds until the first token of an answer has been chosen, and that token's text.

    By a bound of one token: pieces of text may come a token later.
    """
    start = time.perf_counter()
    session.ask(*turn, max_new_tokens=1)
    return time.perf_counter() - start, session.messages[-1]["content"]


@torch.no_grad()
def language_model_alone(model, cached_tokens: int, new_tokens: int) -> float:
    """Seconds that the language model, with its adapter, needs for so many tokens after so many in its cache."""
    config = model.config.get_text_config(decoder=True)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = torch.zeros(1, config.num_key_value_heads, cached_tokens, head_size, dtype=model.dtype, device=model.device)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(keys, keys, layer)
    ids = torch.zeros(1, new_tokens, dtype=torch.long, device=model.device)
    adapter = next(iter(model.config.lora_adapters), None)
    start = time.perf_counter()
    model(input_ids=ids, cache=cache, use_cache=True, adapter_names=[adapter], logits_to_keep=1)
    return time.perf_counter() - start


def measure(model, processor, seconds: float, repeats: int) -> dict[str, Any]:
    """Median seconds to the first token of first questions, follow-ups, and follow-ups read anew, in turn."""
    recording = joined_speech(seconds, processor)
    firsts, follow_ups, anew, alone, same = [], [], [], [], []
    for _ in range(repeats):
        session = Session(model, processor)
        firsts.append(time_to_first_token(session, QUESTION, recording)[0])
        session = Session(model, processor, max_new_tokens=MAX_NEW_TOKENS)
        session.ask(QUESTION, recording)
        messages = [*session.messages, {"role": "user", "content": FOLLOW_UP}]
        seconds_taken, token = time_to_first_token(session, FOLLOW_UP)
        follow_ups.append(seconds_taken)
        report = session.report
        assert report is not None
        alone.append(language_model_alone(model, report.reused_tokens, report.prompt_tokens - report.reused_tokens))
        prompt_tokens, reused_tokens = report.prompt_tokens, report.reused_tokens
        fresh = Session(model, processor, messages=messages)
        seconds_taken, again = time_to_first_token(fresh)
        anew.append(seconds_taken)
        same.append(token == again)
    first, follow_up, read_anew, bound = map(statistics.median, (firsts, follow_ups, anew, alone))
    return {
        "recording_s": seconds,
        "prompt_tokens_of_follow_up": prompt_tokens,
        "reused_tokens": reused_tokens,
        "first_question_s": round(first, 4),
        "follow_up_s": round(follow_up, 4),
        "follow_up_read_anew_s": round(read_anew, 4),
        "language_model_alone_s": round(bound, 4),
        "first_over_follow_up": round(first / follow_up, 2),
        "first_over_language_model_alone": round(first / bound, 2),
        "same_first_token": all(same),
        "all_first_s": [round(one, 4) for one in firsts],
        "all_follow_up_s": [round(one, 4) for one in follow_ups],
    }


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="AudioLLM checkpoint; that of make demo when not given")
    parser.add_argument("--dtype", default="float32", help="precision of the bases; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of which the median; default: %(default)s")
    parser.add_argument(
        "--long_repeats",
        type=int,
        default=LONG_REPEATS,
        help=f"of recordings from {LONG_S:g} s on; default: %(default)s",
    )
    parser.add_argument("--lengths", nargs="+", type=float, default=list(LENGTHS_S), help="recordings, in seconds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args()
    if min(options.repeats, options.long_repeats) < 1 or min(options.lengths) <= 0:
        parser.error("--repeats and --long_repeats must be 1 or more, and --lengths above 0.")
    model, processor = load(options.model, options.dtype)
    Session(model, processor).ask("Hello?", max_new_tokens=2)  # what only the first call costs
    rows = []
    for seconds in options.lengths:
        repeats = options.repeats if seconds < LONG_S else options.long_repeats
        rows.append(measure(model, processor, seconds, repeats))
        print(json.dumps(rows[-1]))
    report = {
        "what": "seconds to the first token, medians",
        "bases": [model.config.audio_model_id, model.config.text_model_id],
        "dtype": options.dtype,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "questions": [QUESTION, FOLLOW_UP],
        "recordings": rows,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

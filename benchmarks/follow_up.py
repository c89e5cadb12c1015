"""
Time to first token: a first question about a recording, and a follow-up question in the same conversation.

The follow-up finds the recording's keys and values in the session's cache, so that it neither encodes nor prefills the
audio again. Beside it, the same follow-up answered by a session that has to read the whole conversation anew, and
whether both begin their answer alike.

    python benchmarks/follow_up.py --model runs/demo/adapter
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.loading import load
from audiollm.inference.session import Session

RESULTS = Path(__file__).parent / "results" / "follow_up.json"
LENGTHS_S = (4.0, 30.0)
QUESTION, FOLLOW_UP = "What is said?", "Is it a question?"
REPEATS = 5
#: Of the first answer, which the follow-up's conversation has in it.
MAX_NEW_TOKENS = 16


def speech(seconds: float, processor) -> np.ndarray:
    """Studio prompts one after the other, cut to length: `(samples,)`."""
    samples = int(seconds * processor.sampling_rate)
    pieces: list[np.ndarray] = []
    for row in load_studio_prompts("test"):
        pieces.append(processor.load_audio(row["audio"]))
        if sum(map(len, pieces)) >= samples:
            break
    return np.concatenate(pieces)[:samples]


def time_to_first_token(session: Session, *turn: Any) -> tuple[float, str]:
    """
    Seconds until the first token of an answer has been chosen, and that token's text.

    By a bound of one token: pieces of text may come a token later.
    """
    start = time.perf_counter()
    session.ask(*turn, max_new_tokens=1)
    return time.perf_counter() - start, session.messages[-1]["content"]


def measure(model, processor, seconds: float, repeats: int) -> dict[str, Any]:
    """Median seconds to the first token of first questions, follow-ups, and follow-ups read anew."""
    recording = speech(seconds, processor)
    firsts, follow_ups, anew, same = [], [], [], []
    for _ in range(repeats):
        session = Session(model, processor)
        firsts.append(time_to_first_token(session, QUESTION, recording)[0])
        session = Session(model, processor, max_new_tokens=MAX_NEW_TOKENS)
        session.ask(QUESTION, recording)
        messages = [*session.messages, {"role": "user", "content": FOLLOW_UP}]
        seconds_taken, token = time_to_first_token(session, FOLLOW_UP)
        follow_ups.append(seconds_taken)
        report = session.report
        fresh = Session(model, processor, messages=messages)
        seconds_taken, again = time_to_first_token(fresh)
        anew.append(seconds_taken)
        same.append(token == again)
    assert report is not None
    first, follow_up, read_anew = map(statistics.median, (firsts, follow_ups, anew))
    return {
        "recording_s": seconds,
        "prompt_tokens_of_follow_up": report.prompt_tokens,
        "reused_tokens": report.reused_tokens,
        "first_question_s": round(first, 4),
        "follow_up_s": round(follow_up, 4),
        "follow_up_read_anew_s": round(read_anew, 4),
        "first_over_follow_up": round(first / follow_up, 2),
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
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args()
    model, processor = load(options.model, options.dtype)
    Session(model, processor).ask("Hello?", max_new_tokens=2)  # what only the first call costs
    rows = []
    for seconds in LENGTHS_S:
        rows.append(measure(model, processor, seconds, options.repeats))
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

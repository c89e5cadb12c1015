"""
Time to first token: a first question about a recording, and a follow-up question in the same conversation.

The follow-up finds the recording's keys and values in the session's cache, so that it neither encodes nor prefills the
audio again. Beside it, the same follow-up answered by a session that has to read the whole conversation again, and
whether both begin their answer alike.

    python benchmarks/follow_up.py --model runs/mine
"""

import json
import statistics
import time
from typing import Any

from audiollm.inference.loading import load
from audiollm.inference.session import Session
from common import joined_speech, parser_of, write_result

LENGTHS_S = (4.0, 30.0, 600.0)
#: From here on a first question takes a minute, and varies little; these are repeated less often.
LONG_S = 120.0
QUESTION, FOLLOW_UP = "What is said?", "Is it a question?"
#: Of the first answer, which the follow-up's conversation has in it.
MAX_NEW_TOKENS = 16


def time_to_first_token(session: Session, *turn: Any) -> tuple[float, str]:
    """Return seconds to the first token of an answer, which is bound to one since texts may come a token later; its text."""
    start = time.perf_counter()
    session.ask(*turn, max_new_tokens=1)
    return time.perf_counter() - start, session.messages[-1]["content"]


def measure(model, processor, seconds: float, repeats: int) -> dict[str, Any]:
    """Return median seconds to the first token of first questions, follow-ups, and follow-ups read again, in turn."""
    recording = joined_speech(seconds, processor)
    firsts, follow_ups, again, same = [], [], [], []
    for _ in range(repeats):
        firsts.append(time_to_first_token(Session(model, processor), QUESTION, recording)[0])
        session = Session(model, processor, max_new_tokens=MAX_NEW_TOKENS)
        session.ask(QUESTION, recording)
        messages = [*session.messages, {"role": "user", "content": FOLLOW_UP}]
        seconds_taken, token = time_to_first_token(session, FOLLOW_UP)
        follow_ups.append(seconds_taken)
        seconds_taken, other = time_to_first_token(Session(model, processor, messages=messages))
        again.append(seconds_taken)
        same.append(token == other)
    report = session.report
    assert report is not None
    return {
        "recording_s": seconds,
        "prompt_tokens_of_follow_up": report.prompt_tokens,
        "reused_tokens": report.reused_tokens,
        "first_question_s": statistics.median(firsts),
        "follow_up_s": statistics.median(follow_ups),
        "follow_up_read_anew_s": statistics.median(again),
        "same_first_token": all(same),
        "all_first_s": firsts,
        "all_follow_up_s": follow_ups,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("follow_up", __doc__)
    parser.add_argument("--dtype", default="float32", help="precision of the bases; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median; default: %(default)s")
    parser.add_argument("--long_repeats", type=int, default=1, help=f"of recordings from {LONG_S:g} s on")
    parser.add_argument("--lengths", nargs="+", type=float, default=list(LENGTHS_S), help="recordings, in seconds")
    options = parser.parse_args()
    model, processor = load(options.model, options.dtype)
    Session(model, processor).ask("Hello?", max_new_tokens=2)  # the first call costs more
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
        "repeats": options.repeats,
        "questions": [QUESTION, FOLLOW_UP],
        "recordings": rows,
    }
    write_result(options.output, report)


if __name__ == "__main__":
    main()

"""
Make rows for `audiollm train --stage distill` of recordings with transcripts: questions that the base answers on reading them.

    python shipped_adapter/recipe/questions.py data/amazon_queen/train.json data/amazon_queen/questions.json --rows 2000

The input is an examples file whose responses are the transcripts, as amazon_queen.py and `audiollm prepare` write them. The
stage lets the base write the responses. A recording that asks something is answered; of others something is asked.
"""

import argparse
import json
import random
from pathlib import Path

from audiollm.corpora.examples import Example, read_examples

#: For recordings that ask something.
OF_QUESTIONS = ("<audio>", "<audio>", "Answer this question: <audio>", "<audio>\nAnswer in one sentence.")
#: For any recording.
OF_ALL = (
    "<audio>",
    "<audio>\nReply to this.",
    "Say this in other words: <audio>",
    "<audio>\nWhat is this about? Answer in a few words.",
    "<audio>\nHow does the speaker feel?",
    "Who could have said this? <audio>",
    "<audio>\nIs this a question, an order or a statement?",
    "Continue this with one more sentence: <audio>",
)
#: Shorter ones give the base little to answer.
MIN_WORDS = 4


def make_rows(examples: list[Example], most: int, seed: int) -> list[dict[str, str]]:
    """
    Return rows `{"text", "audio_paths", "transcripts"}` of some recordings, in the order of their file.

    Args:
        examples: each of one recording, with its transcript as the response.
        most: number of rows; 0 for one of each recording.
        seed: of the recordings and prompts that are drawn.
    """
    generator = random.Random(seed)
    fitting = {
        example.audio_paths[0]: example.response
        for example in examples
        if len(example.audio_paths) == 1 and len(example.response.split()) >= MIN_WORDS
    }
    chosen = set(generator.sample(sorted(fitting), min(most or len(fitting), len(fitting))))
    rows = []
    for path, said in fitting.items():
        if path in chosen:
            prompts = OF_QUESTIONS if said.endswith("?") else OF_ALL
            rows.append({"text": generator.choice(prompts), "audio_paths": path, "transcripts": said})
    return rows


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=Path, help="examples file whose responses are transcripts")
    parser.add_argument("output", type=Path, help="JSON for --stage distill")
    parser.add_argument("--rows", type=int, default=0, help="how many; 0 for all recordings of four words or more")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    rows = make_rows(read_examples(options.examples), options.rows, options.seed)
    if not rows:
        parser.error(f"{options.examples} has no recording with a transcript of {MIN_WORDS} words or more.")
    options.output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows in {options.output}")


if __name__ == "__main__":
    main()

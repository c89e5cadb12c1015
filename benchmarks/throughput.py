"""
Measure a server's transcriptions a minute: one client that asks one after the other, beside several at once.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --minutes 0.2 --clients 4 --model runs/mine

Every answer is compared with the one that its clip got alone: none may be lost or belong to another clip. Texts of a batch
may differ in a word where two are as likely; they are counted as well.
"""

import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import audiollm
import numpy as np
import openai
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.serving.service import ServingSettings
from audiollm.inference.transcribing import TranscribingSettings, stored_settings
from common import parser_of, write_result
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import client_of, in_thread, wav

CLIP_SECONDS = (1.0, 5.0)
NUM_CLIPS = 48
NAME = "served"
#: Above it, an answer is another clip's.
MAX_WORD_DISTANCE = 0.5


def transcribe(client: openai.OpenAI, file: bytes) -> str:
    """Return the text of one upload."""
    return client.audio.transcriptions.create(model=NAME, file=("a.wav", file)).text


def measure(url: str, files: list[bytes], alone: list[str], num_clients: int, seconds: float) -> dict[str, Any]:
    """Have clients ask until the time is over, one clip after the other; return counts and seconds."""
    waited: list[float] = []
    distances: list[float] = []
    errors: list[openai.OpenAIError] = []
    turns = itertools.count()
    began = time.monotonic()

    def run(_: int) -> None:
        client = client_of(url)
        while (asked := time.monotonic()) < began + seconds:
            chosen = next(turns) % len(files)
            try:
                text = transcribe(client, files[chosen])
            except openai.OpenAIError as error:
                errors.append(error)
                continue
            waited.append(time.monotonic() - asked)
            distances.append(score_word_error([alone[chosen]], [text]).word_error)

    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(run, range(num_clients)))
    took = time.monotonic() - began
    return {
        "clients": num_clients,
        "asked": next(turns),
        "answered": len(waited),
        "errors": len(errors),
        "seconds": round(took, 1),
        "answers_per_minute": round(60 * len(waited) / took, 1),
        "median_wait_s": round(float(np.median(waited)), 2),
        "longest_wait_s": round(max(waited), 2),
        "other_words": sum(distance > 0 for distance in distances),
        "mixed": sum(distance > MAX_WORD_DISTANCE for distance in distances),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("throughput", __doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="at once; default: %(default)s")
    options = parser.parse_args()
    loaded = audiollm.load(options.model)
    model, processor = loaded.model, loaded.processor
    waveforms = (processor.load_audio(row["audio"]) for row in load_studio_prompts("validation"))
    shortest, longest = (processor.sampling_rate * seconds for seconds in CLIP_SECONDS)
    fitting = (waveform for waveform in waveforms if shortest <= len(waveform) <= longest)
    files = [wav(waveform) for waveform in itertools.islice(fitting, NUM_CLIPS)]
    transcribing = TranscribingSettings(**stored_settings(model.generation_config))
    with in_thread(model, processor, ServingSettings(NAME, transcribing=transcribing)) as (url, _):
        alone = [transcribe(client_of(url), file) for file in tqdm(files, desc="each clip alone")]
        runs = [measure(url, files, alone, count, 60 * options.minutes) for count in (1, options.clients)]
    result = {
        "minutes": options.minutes,
        "clips": len(files),
        "runs": runs,
        "times_one_at_a_time": round(runs[1]["answers_per_minute"] / runs[0]["answers_per_minute"], 2),
    }
    print(result)
    write_result(options.output, result)


if __name__ == "__main__":
    main()

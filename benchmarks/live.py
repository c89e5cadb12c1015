"""
Measure live transcripts: delay of final words, real-time factor, word error beside the offline one, and memory.

Clips are joined to a stream with pauses between them. The delay of a word is from its end to the moment at which it is final,
the time that the look takes included, as if the stream came at the pace of speech on this machine.

    python shipped_adapter/recipe/amazon_queen.py flight-of-the-amazon-queen_1.0.0-9_all.deb --output_dir data/amazon_queen
    python benchmarks/live.py data/amazon_queen/new_roles.json
    python benchmarks/live.py data/amazon_queen/new_roles.json --minutes 30     # memory over half an hour
"""

import argparse
import json
import random
import time
from pathlib import Path

import audiollm
import numpy as np
import psutil
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.live import STEP_SECONDS, LiveTranscriber
from audiollm.inference.transcripts import Word
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "live.json"
SEED = 5
PAUSES_SECONDS = (0.4, 1.5)
BLOCK_SECONDS = 0.08
MB = 1e6


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="rows of audio_paths and response, as the recipe writes them")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the stream; default: %(default)s")
    parser.add_argument("--step_seconds", type=float, default=STEP_SECONDS, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    rows = json.loads(options.data.read_text(encoding="utf-8"))
    rng = random.Random(SEED)
    rng.shuffle(rows)
    model = audiollm.load()
    rate, noise = model.processor.sampling_rate, np.random.default_rng(SEED)
    sounds, texts, samples = [], [], 0
    for row in (row for _ in range(100) for row in rows):
        if samples >= options.minutes * 60 * rate:
            break
        pause = 3e-4 * noise.standard_normal(int(rng.uniform(*PAUSES_SECONDS) * rate)).astype(np.float32)
        sounds += [model.processor.load_audio(str(options.data.parent / row["audio_paths"])), pause]
        samples += len(sounds[-2]) + len(pause)
        texts.append(row["response"])
    stream = np.concatenate(sounds)
    live = LiveTranscriber(model.model, model.processor, step_seconds=options.step_seconds)
    words: list[Word] = []
    delays, looks, memory = [], [], []
    size, process, now = int(BLOCK_SECONDS * rate), psutil.Process(), 0.0
    with tqdm(total=round(len(stream) / rate), unit="s") as bar:
        for start in range(0, len(stream), size):
            began = time.monotonic()
            updates = list(live.feed(stream[start : start + size]))
            seconds = time.monotonic() - began
            # A look begins when its sound is there and the look before it has ended.
            now = max(now, (start + size) / rate) + seconds
            for update in updates:
                looks.append(seconds)
                words += update.final
                delays += [now - word.end_s for word in update.final]
                memory.append(process.memory_info().rss / MB)
            bar.update((start + size) // rate - start // rate)
    words += live.finish().final
    joined = [" ".join(texts)]
    offline = model.transcribe(stream, progress=True)
    result = {
        "seconds": round(len(stream) / rate, 1),
        "words": len(words),
        "step_seconds": options.step_seconds,
        "delay_median_s": round(float(np.median(delays)), 2),
        "delay_95_percent_s": round(float(np.percentile(delays, 95)), 2),
        "real_time_factor": round(sum(looks) / (len(stream) / rate), 3),
        "word_error_live": round(score_word_error(joined, [" ".join(word.text for word in words)]).word_error, 4),
        "word_error_offline": round(score_word_error(joined, [offline.text]).word_error, 4),
        "memory_mb_after_first_minute": round(max(memory[: max(1, round(60 / options.step_seconds))])),
        "memory_mb_at_the_end": round(memory[-1]),
    }
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

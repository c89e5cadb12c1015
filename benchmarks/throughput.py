"""
Measure a server's transcriptions a minute: one client that asks one after the other, beside several at once.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --minutes 0.2 --clients 4 --model runs/mine

Every answer is compared with the one that its clip got alone: none may be lost or belong to another clip. Texts of a batch
may differ in a word where two are as likely; they are counted as well.
"""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import audiollm
import httpx
import numpy as np
import soundfile
import uvicorn
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.serve import bind
from audiollm.inference.serving.app import create_app
from audiollm.inference.serving.service import ServingSettings
from audiollm.inference.transcribing import TranscribingSettings, stored_settings
from common import parser_of, write_result
from tqdm import tqdm

CLIP_SECONDS = (1.0, 5.0)
NUM_CLIPS = 48
NAME, TIMEOUT_S = "served", 600.0
#: Above it, an answer is another clip's.
MAX_WORD_DISTANCE = 0.5


def clips(processor: Any) -> list[bytes]:
    """Return files of studio prompts, one window each."""
    files = []
    for row in load_studio_prompts("validation"):
        waveform = processor.load_audio(row["audio"])
        if CLIP_SECONDS[0] <= len(waveform) / processor.sampling_rate <= CLIP_SECONDS[1]:
            file = io.BytesIO()
            soundfile.write(file, waveform, processor.sampling_rate, format="WAV")
            files.append(file.getvalue())
    return files[:NUM_CLIPS]


def transcribe(client: httpx.Client, file: bytes) -> str:
    """Return the text of one upload."""
    response = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", file)}, data={"model": NAME})
    response.raise_for_status()
    return response.json()["text"]


def measure(url: str, files: list[bytes], num_clients: int, seconds: float) -> dict[str, Any]:
    """Have clients ask until the time is over, one clip after the other; return counts, seconds and answers."""
    answers: list[tuple[int, str, float]] = []
    asked, errors, lock = 0, 0, threading.Lock()
    end = time.monotonic() + seconds

    def run(_: int) -> None:
        nonlocal asked, errors
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            while time.monotonic() < end:
                with lock:
                    chosen, asked = asked % len(files), asked + 1
                began = time.monotonic()
                try:
                    answers.append((chosen, transcribe(client, files[chosen]), time.monotonic() - began))
                except httpx.HTTPError:
                    errors += 1

    began = time.monotonic()
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(run, range(num_clients)))
    took = time.monotonic() - began
    waited = [each for *_, each in answers]
    return {
        "clients": num_clients,
        "asked": asked,
        "answered": len(answers),
        "errors": errors,
        "seconds": round(took, 1),
        "answers_per_minute": round(60 * len(answers) / took, 1),
        "median_wait_s": round(float(np.median(waited)), 2),
        "longest_wait_s": round(max(waited), 2),
        "answers": answers,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("throughput", __doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="at once; default: %(default)s")
    options = parser.parse_args()
    model = audiollm.load(options.model)
    files = clips(model.processor)
    transcribing = TranscribingSettings(**stored_settings(model.model.generation_config))
    app = create_app(model.model, model.processor, ServingSettings(NAME, transcribing=transcribing))
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            alone = [transcribe(client, file) for file in tqdm(files, desc="each clip alone")]
        runs = [measure(url, files, count, 60 * options.minutes) for count in (1, options.clients)]
    finally:
        server.should_exit = True
        thread.join()
    for run in runs:
        distances = [score_word_error([alone[chosen]], [text]).word_error for chosen, text, _ in run.pop("answers")]
        run["other_words"] = sum(distance > 0 for distance in distances)
        run["mixed"] = sum(distance > MAX_WORD_DISTANCE for distance in distances)
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

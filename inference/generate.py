"""`audiollm generate`: ask a question about one or several recordings."""

import argparse
from collections.abc import Sequence

from audiollm.answering import answer, ask
from transformers import AutoModelForMultimodalLM, AutoProcessor

DEFAULT_PROMPT = "<audio>\nTranscribe the speech."
DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm generate` and `python -m audiollm.inference.generate`."""
    parser = argparse.ArgumentParser(prog="audiollm generate", description="Ask a question about recordings.")
    parser.add_argument("--model", required=True, help="AudioLLM checkpoint: a folder or a Hub id")
    parser.add_argument("--audio", nargs="+", default=[], help="audio files or URLs, one per <audio> in the prompt")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, help="the question; default: %(default)r")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="bound on the answer; default: %(default)s")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="precision of the bases; default: %(default)s")
    parser.add_argument("--device_map", default=None, help="where to put the model, such as auto or cuda")
    options = parser.parse_args(arguments)
    if options.prompt == DEFAULT_PROMPT and len(options.audio) != 1:
        parser.error("give --prompt, with one <audio> per file, unless there is exactly one --audio file")
    processor = AutoProcessor.from_pretrained(options.model)
    try:  # before the model, which takes longer to load
        conversation = ask(options.prompt, *map(processor.load_audio, options.audio))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    model = AutoModelForMultimodalLM.from_pretrained(options.model, dtype=options.dtype, device_map=options.device_map)
    print(answer(model, processor, [conversation], max_new_tokens=options.max_new_tokens)[0])


if __name__ == "__main__":
    main()

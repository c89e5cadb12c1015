"""The adapter that comes with the package: Whisper base and SmolLM2-135M-Instruct, short English sentences; see README.md."""

from pathlib import Path

#: A checkpoint's folder. It lacks the copy of the code, which is this package.
FOLDER = Path(__file__).parent

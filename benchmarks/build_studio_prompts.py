"""Builds `studio_prompts/prompts.parquet`, the speech corpus that ships inside the package. A maintainer's tool.

The recordings are Asterisk's core sounds in English, studio prompts spoken by Allison Smith, as Debian packages them
(CC-BY-SA 3.0, see `studio_prompts/LICENSE.md`). On a Debian or Ubuntu machine with ffmpeg:

    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722
    python benchmarks/build_studio_prompts.py --debs .

The package asterisk-core-sounds-en-g722 has the audio (16 kHz G.722), asterisk-core-sounds-en the transcripts. The
result is the same bytes each time for the same packages and ffmpeg.
"""

import argparse
import gzip
import hashlib
import io
import re
import subprocess
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

AUDIO_PACKAGE = "asterisk-core-sounds-en-g722"
TRANSCRIPT_PACKAGE = "asterisk-core-sounds-en"
AUDIO_FOLDER = "usr/share/asterisk/sounds/en_US_f_Allison"
TRANSCRIPT_FILE = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"

SPEAKER = "Allison Smith"
SAMPLING_RATE_HZ = 16_000
OPUS_BITS_PER_SECOND = 24_000

# Per mille of the hash space of the normalised text. Equal texts hash alike, so no text is in two splits.
TEST_PER_MILLE = 120
VALIDATION_PER_MILLE = 80

# A whole transcript in brackets describes a sound ("[ascending tones]", "<beep>", "(1 second of silence)"): dropped.
NOT_SPEECH = re.compile(r"^(\[.*\]|<.*>|\(.*\))$")
# After the words, a bracket holds a glyph ("dash [-]") or an editor's note ("IAX (note: ...)"): the note goes.
REMARK = re.compile(r"\s*(\[.*?\]|\(.*?\))\s*$")

# A dangling ellipsis marks a fragment ("Press ..."); nothing is said there, and Whisper's normaliser would score it.
ELLIPSIS = re.compile(r"^\.\.\.\s*|\s*\.\.\.$")

# Where the source's transcript is not what is said: symbols that are read out, misspellings, words left out.
CORRECTIONS = {
    "conf-adminmenu-menu8": "Press 1 to list users currently in the conference, 2 to kick all non-administrator users, "
    "3 to mute or unmute all non-administrator users, 4 to record this conference, or 8 to exit this menu and return "
    "to the conference.",
    "demo-enterkeywords": "Please enter one or more keywords separated by star and then press the pound key.",
    "dictate/both_help": "press star to toggle pause, press pound to enter a new dictation filename",
    "dictate/enter_filename": "Enter a numeric dictation filename followed by pound or just pound to exit",
    "digits/h-40": "fortieth",
    "letters/exclaimation-point": "exclamation point",
    "pbx-invalid": "I am sorry, but that's not a valid extension. Please try again.",
    "pbx-invalidpark": "I am sorry, but there is no call parked on that extension. Please try again.",
    "phonetic/x_p": "x-ray",
    "queue-periodic-announce": "All of our representatives are currently busy. Please stay on the line and your call "
    "will be answered by the next available representative.",
    "unidentified-no-callback": "Unidentified or withheld and therefore cannot be called back.",
    "vm-savefolder": "Which folder should I save this message to?",
}

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "audio": datasets.Audio(sampling_rate=SAMPLING_RATE_HZ, decode=False),
        "text": datasets.Value("string"),
        "duration_s": datasets.Value("float32"),
        "split": datasets.Value("string"),
        "speaker": datasets.Value("string"),
    }
)


def read_transcripts(text: str) -> dict[str, str]:
    """Prompt id to what is said, from Asterisk's `id: transcript` list; non-speech prompts are left out."""
    transcripts = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith(";"):
            continue
        prompt, _, said = line.partition(":")
        said = " ".join(said.split())
        if NOT_SPEECH.match(said):
            continue
        transcripts[prompt.strip()] = CORRECTIONS.get(prompt.strip(), ELLIPSIS.sub("", REMARK.sub("", said)))
    return transcripts


def assign_split(text: str) -> str:
    """train, validation or test, by a hash of the text's letters and digits alone."""
    normalised = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    place = int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:8], "big") % 1000
    if place < TEST_PER_MILLE:
        return "test"
    return "validation" if place < TEST_PER_MILLE + VALIDATION_PER_MILLE else "train"


def encode_opus(g722: Path) -> bytes:
    """One G.722 file as mono 16 kHz Ogg Opus; bit-exact flags keep random stream ids and version tags out."""
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(g722), "-ac", "1", "-ar", str(SAMPLING_RATE_HZ)]
    command += ["-c:a", "libopus", "-b:a", str(OPUS_BITS_PER_SECOND), "-application", "audio"]
    command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-f", "ogg", "-"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def build(root: Path) -> pa.Table:
    """The corpus, sorted by id, from the two packages unpacked in `root`.

    A transcript without a recording is passed over (the source lists one, an old name of another prompt).
    """
    transcripts = read_transcripts(gzip.decompress((root / TRANSCRIPT_FILE).read_bytes()).decode("utf-8"))
    rows = []
    for prompt, text in sorted(transcripts.items()):
        g722 = root / AUDIO_FOLDER / f"{prompt}.g722"
        if not g722.exists():
            print(f"{prompt}: no recording, left out")
            continue
        audio = encode_opus(g722)
        info = soundfile.info(io.BytesIO(audio))
        rows.append(
            {
                "id": prompt,
                "audio": {"bytes": audio, "path": prompt.replace("/", "_") + ".ogg"},
                "text": text,
                "duration_s": info.frames / info.samplerate,
                "split": assign_split(text),
                "speaker": SPEAKER,
            }
        )
    # Through Arrow: `datasets` encodes an Audio column only where torchcodec can be imported.
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)


def unpack(debs: Path, root: Path) -> None:
    """Unpacks the two Debian packages found in `debs` into `root`.

    Raises:
        FileNotFoundError: not exactly one file of each package is there.
    """
    for package in (AUDIO_PACKAGE, TRANSCRIPT_PACKAGE):
        found = sorted(debs.glob(f"{package}_*.deb"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"Expected one {package}_*.deb in {debs}, found {len(found)}. Run `apt-get download {package}` there."
            )
        subprocess.run(["dpkg-deb", "-x", str(found[0]), str(root)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the studio prompts corpus from Debian's Asterisk sounds.")
    parser.add_argument("--debs", type=Path, required=True, help="folder with the two downloaded .deb files")
    parser.add_argument("--output", type=Path, default=Path("corpora/studio_prompts/prompts.parquet"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        unpack(arguments.debs, Path(scratch))
        corpus = build(Path(scratch))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(corpus, arguments.output, compression="zstd")
    print(f"{arguments.output}: {len(corpus)} prompts, {arguments.output.stat().st_size / 1e6:.2f} MB")
    for split in ("train", "validation", "test"):
        durations = [
            row["duration_s"] for row in corpus.select(["duration_s", "split"]).to_pylist() if row["split"] == split
        ]
        print(f"  {split}: {len(durations)} prompts, {sum(durations) / 60:.1f} min")


if __name__ == "__main__":
    main()

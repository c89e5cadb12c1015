"""The options that vary recordings before the encoder hears them."""

from dataclasses import dataclass, field
from typing import Any

from .waveform_augment import (
    DEFAULT_REVERB_S,
    GAIN_LIMITS_DB,
    NOISE_LIMITS_DB,
    REVERB_LIMITS_S,
    SPEED_LIMITS,
    TELEPHONE_BAND_HZ,
    WaveformAugmentation,
    check_range,
    check_share,
    recordings_below,
)

#: Variants of each recording where waveforms are varied, besides the recording itself.
DEFAULT_VARIANTS = 3
#: Each of these varies waveforms: ranges with their limits, and shares of variants.
RANGES = {"speed": SPEED_LIMITS, "noise_snr_db": NOISE_LIMITS_DB, "gain_db": GAIN_LIMITS_DB}
SHARES = ("room_share", "telephone_share", "codec_share")
VARYING = tuple(f"--{name}" for name in (*RANGES, *SHARES))


@dataclass(kw_only=True)
class WaveformArguments:
    """Variants of recordings that the feature cache holds; training takes another in each epoch."""

    speed: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest factor that variants are played faster by, such as 0.9 1.1, from "
            f"{SPEED_LIMITS[0]} to {SPEED_LIMITS[1]}."
        },
    )
    room_share: float | None = field(
        default=None,
        metadata={"help": "Share of variants, from 0 to 1, that sound as in a room: made up, or from --room_dir."},
    )
    reverb_s: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest reverberation time in seconds of made-up rooms, from "
            f"{REVERB_LIMITS_S[0]} to {REVERB_LIMITS_S[1]}; {DEFAULT_REVERB_S[0]} {DEFAULT_REVERB_S[1]} when not given."
        },
    )
    room_dir: str | None = field(
        default=None, metadata={"help": "Folder of impulse responses to take rooms from, for --room_share."}
    )
    noise_snr_db: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest ratio of speech to added noise in dB, such as 5 30, from "
            f"{NOISE_LIMITS_DB[0]:g} to {NOISE_LIMITS_DB[1]:g}. The noise is white or pink, or from --noise_dir."
        },
    )
    noise_dir: str | None = field(
        default=None, metadata={"help": "Folder of recordings to take noise from, for --noise_snr_db."}
    )
    telephone_share: float | None = field(
        default=None,
        metadata={
            "help": f"Share of variants, from 0 to 1, that go through a telephone: {TELEPHONE_BAND_HZ[0]:g} to "
            f"{TELEPHONE_BAND_HZ[1]:g} Hz, and A-law, mu-law or GSM."
        },
    )
    codec_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of variants, from 0 to 1, that go through MP3, Opus or Vorbis of few bits, or lose their highs."
        },
    )
    gain_db: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest gain in dB, such as -6 6, from "
            f"{GAIN_LIMITS_DB[0]:g} to {GAIN_LIMITS_DB[1]:g}."
        },
    )
    waveform_variants: int | None = field(
        default=None,
        metadata={
            "help": f"How many variants of each recording the options above make, besides itself: {DEFAULT_VARIANTS} "
            "when not given. The encoder runs once for each, and the cache grows by as many times."
        },
    )

    def varied(self) -> list[str]:
        """The options given that vary waveforms."""
        return [option for option in VARYING if getattr(self, option.removeprefix("--")) not in (None, 0)]

    def check_waveforms(self) -> None:
        """
        Raises:
            ValueError: a range is none, or options would do nothing.
            FileNotFoundError: there is no noise or room where it should be.
        """
        for name, limits in (*RANGES.items(), ("reverb_s", REVERB_LIMITS_S)):
            check_range(f"--{name}", getattr(self, name), limits)
        for name in SHARES:
            check_share(f"--{name}", getattr(self, name) or 0)
        if self.noise_dir is not None and self.noise_snr_db is None:
            raise ValueError("--noise_dir needs --noise_snr_db, how loud noise is to be.")
        for name in ("reverb_s", "room_dir"):
            if getattr(self, name) is not None and not self.room_share:
                raise ValueError(f"--{name} needs --room_share, how often rooms are to be heard.")
        if self.reverb_s is not None and self.room_dir is not None:
            raise ValueError("--reverb_s is of made-up rooms; it contradicts --room_dir.")
        if self.waveform_variants is not None and not self.varied():
            raise ValueError(f"--waveform_variants needs one of {', '.join(VARYING)}.")
        if self.waveform_variants is not None and self.waveform_variants < 1:
            raise ValueError(f"--waveform_variants is {self.waveform_variants}; expected 1 or more.")
        for name in ("noise_dir", "room_dir"):
            if getattr(self, name) is not None:
                recordings_below(getattr(self, name), f"--{name}")

    def waveform_augmentation(self) -> WaveformAugmentation | None:
        """What the options ask for, if they do."""
        if not self.varied():
            return None

        def span(given: list[float] | None) -> tuple[float, float] | None:
            return None if given is None else (given[0], given[1])

        drawn: dict[str, Any] = {name: span(getattr(self, name)) for name in RANGES}
        drawn.update({name: getattr(self, name) or 0.0 for name in SHARES})
        return WaveformAugmentation(
            **drawn,
            reverb_s=span(self.reverb_s) or DEFAULT_REVERB_S,
            noise_files=recordings_below(self.noise_dir, "--noise_dir") if self.noise_dir is not None else (),
            room_files=recordings_below(self.room_dir, "--room_dir") if self.room_dir is not None else (),
        )

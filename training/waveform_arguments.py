"""The options that vary recordings before the encoder hears them."""

from dataclasses import dataclass, field

from .waveform_augment import (
    GAIN_LIMITS_DB,
    NOISE_LIMITS_DB,
    SPEED_LIMITS,
    WaveformAugmentation,
    check_range,
    noise_recordings,
)

#: Variants of each recording where waveforms are varied, besides the recording itself.
DEFAULT_VARIANTS = 3
#: Each of these varies waveforms.
WAVEFORM_LIMITS = {"speed": SPEED_LIMITS, "noise_snr_db": NOISE_LIMITS_DB, "gain_db": GAIN_LIMITS_DB}


@dataclass(kw_only=True)
class WaveformArguments:
    """Speed, noise and gain, in variants that the feature cache holds; training takes another in each epoch."""

    speed: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest factor that variants are played faster by, such as 0.9 1.1, from "
            f"{SPEED_LIMITS[0]} to {SPEED_LIMITS[1]}."
        },
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
            "help": "How many variants of each recording --speed, --noise_snr_db and --gain_db make, besides itself: "
            f"{DEFAULT_VARIANTS} when not given. The encoder runs once for each, and the cache grows by as many times."
        },
    )

    def varied(self) -> list[str]:
        """The options given that vary waveforms."""
        return [f"--{name}" for name in WAVEFORM_LIMITS if getattr(self, name) is not None]

    def check_waveforms(self) -> None:
        """
        Raises:
            ValueError: a range is none, or options would do nothing.
            FileNotFoundError: there is no noise where it should be.
        """
        for name, limits in WAVEFORM_LIMITS.items():
            check_range(f"--{name}", getattr(self, name), limits)
        if self.noise_dir is not None and self.noise_snr_db is None:
            raise ValueError("--noise_dir needs --noise_snr_db, how loud noise is to be.")
        if self.waveform_variants is not None and not self.varied():
            raise ValueError(f"--waveform_variants needs one of {', '.join(f'--{name}' for name in WAVEFORM_LIMITS)}.")
        if self.waveform_variants is not None and self.waveform_variants < 1:
            raise ValueError(f"--waveform_variants is {self.waveform_variants}; expected 1 or more.")
        if self.noise_dir is not None:
            noise_recordings(self.noise_dir)

    def waveform_augmentation(self) -> WaveformAugmentation | None:
        """What the options ask for, if they do."""
        if not self.varied():
            return None
        ranges = {name: getattr(self, name) for name in WAVEFORM_LIMITS}
        noise = noise_recordings(self.noise_dir) if self.noise_dir is not None else ()
        return WaveformAugmentation(
            **{name: (given[0], given[1]) if given is not None else None for name, given in ranges.items()},
            noise_files=noise,
        )

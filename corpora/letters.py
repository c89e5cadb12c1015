"""Which letters a voice can read."""

import unicodedata

from audiollm.processing import AudioError

#: Typographic marks as engines that know only ASCII read them.
ASCII_MARKS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "…": "...", "ß": "ss"})
#: Kinds of characters that are heard: letters, digits, currency and mathematical signs, by Unicode's categories.
HEARD_CATEGORIES = ("L", "N", "Sc", "Sm")


def foreign_letter(text: str, script: str) -> str | None:
    """The first letter of a text that is of another script; `script` is a prefix of letters' names in Unicode."""
    letters = (one for one in unicodedata.normalize("NFC", text) if unicodedata.category(one)[0] == "L")
    return next((one for one in letters if not unicodedata.name(one, "").startswith(script)), None)


def as_ascii(text: str, engine: str) -> str:
    """
    A text without accents and typographic marks; emoji and other silent signs are left out.

    Raises:
        AudioError: something that would be heard has no form in ASCII.
    """
    folded = unicodedata.normalize("NFKD", text.translate(ASCII_MARKS))
    heard = [one for one in folded if not one.isascii() and unicodedata.category(one).startswith(HEARD_CATEGORIES)]
    if heard:
        raise AudioError(f"{engine} reads ASCII only, and the text has {heard[0]!r}")
    return "".join(one for one in folded if one.isascii())


__all__ = ["as_ascii", "foreign_letter"]

"""
Marked sections of a card: what the tools write can be renewed, and what people write stays.

A section stands between two comments. The first has a digest of the section's text, so that one that somebody has since
edited is known, and left alone.
"""

import hashlib
import re
from dataclasses import dataclass, field

SECTION = re.compile(r"<!-- audiollm:begin (\w+)(?: (\w+))? -->\n?(.*?)\n?<!-- audiollm:end \1 -->", re.DOTALL)
DIGEST_DIGITS = 12
BLANK_LINES = re.compile(r"\n{3,}")


@dataclass
class Renewed:
    """
    A card after its sections were renewed.

    Attributes:
        text: all of it.
        edited: names of sections that were left as somebody had edited them.
        removed: names of sections that somebody had taken out, and that stay out.
    """

    text: str
    edited: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def digest(body: str) -> str:
    """Of a section's text, whatever white space is around it."""
    return hashlib.sha256(body.strip().encode()).hexdigest()[:DIGEST_DIGITS]


def seal(text: str) -> str:
    """Writes each section's digest into its opening comment."""

    def sealed(found: re.Match[str]) -> str:
        name, _, body = found.groups()
        body = BLANK_LINES.sub("\n\n", body).strip()
        return f"<!-- audiollm:begin {name} {digest(body)} -->\n{body}\n<!-- audiollm:end {name} -->"

    return SECTION.sub(sealed, text)


def sections(text: str) -> dict[str, str]:
    """The text of each section by its name."""
    return {name: body.strip() for name, _, body in SECTION.findall(text)}


def renew(old: str, new: str, keep: frozenset[str] = frozenset()) -> Renewed:
    """
    Puts the sections of a new card into an old one; everything else of it stays.

    Args:
        old: a card's text, with sections or without.
        new: a sealed card.
        keep: names of sections to leave as they are.
    """
    fresh = {found[1]: found[0] for found in SECTION.finditer(new)}
    renewed = Renewed(old)

    def chosen(found: re.Match[str]) -> str:
        name, sealed_as, body = found.groups()
        if sealed_as != digest(body):
            renewed.edited.append(name)
            return found[0]
        return found[0] if name in keep or name not in fresh else fresh[name]

    renewed.text = SECTION.sub(chosen, old)
    renewed.removed = [name for name in fresh if name not in sections(old)]
    return renewed


def append(old: str, new: str) -> str:
    """A card that somebody wrote, with all sections of a new one behind it."""
    blocks = [found[0] for found in SECTION.finditer(new)]
    return "\n\n".join([old.rstrip(), *blocks]) + "\n"

"""Text that ends where a stop string begins, given out as soon as it cannot be part of one."""

from collections.abc import Sequence


class StopStrings:
    """
    Holds back what may be the beginning of a stop string.

    Args:
        strings: none of them empty; the text ends before the first that comes.
    """

    def __init__(self, strings: Sequence[str]):
        self.strings = strings
        self.is_hit = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """Takes more text, and returns what is certain not to belong to a stop string; nothing after a hit."""
        if self.is_hit:
            return ""
        self._held += piece
        found = [at for at in map(self._held.find, self.strings) if at >= 0]
        if found:
            self.is_hit = True
            text, self._held = self._held[: min(found)], ""
            return text
        kept = max((_overlap(self._held, string) for string in self.strings), default=0)
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """What was held back when the text has ended."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that `string` begins with."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if string.startswith(text[-length:])), 0)


__all__ = ["StopStrings"]

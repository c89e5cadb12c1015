"""Contents of a report's page: its tables, its text and its links."""

import re
from html import unescape

#: Elements without an end.
VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})


def plain(fragment: str) -> str:
    """The text of markup, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", fragment)).split())


class Page:
    """
    A page, in which every element is closed, and no id is there twice.

    Attributes:
        text, rows: by the section's heading, its text, and the rows of its tables as texts. all_text: of the page.
        tags: names of all elements. attributes: values by name.
    """

    def __init__(self, html: str):
        body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
        parts = re.split(r"<h2>(.*?)</h2>", body)
        sections = dict(zip(map(plain, ["", *parts[1::2]]), parts[::2], strict=True))
        self.text, self.all_text = {name: plain(part) for name, part in sections.items()}, plain(body)
        self.rows = {
            name: [
                [plain(cell) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row, re.DOTALL)]
                for row in re.findall(r"<tr\b.*?</tr>", part, re.DOTALL)
            ]
            for name, part in sections.items()
        }
        self.tags = set(re.findall(r"<([a-z0-9]+)", body))
        for tag in self.tags - VOID:
            assert len(re.findall(rf"<{tag}[\s>]", body)) == body.count(f"</{tag}>"), tag
        self.attributes: dict[str, list[str]] = {}
        for name, value in re.findall(r'\s([a-z-]+)="([^"]*)"', " ".join(re.findall(r"<[a-z][^>]*>", body))):
            self.attributes.setdefault(name, []).append(unescape(value))
        assert len(self.attributes["id"]) == len(set(self.attributes["id"])), "an id is there twice"

    def cells(self, section: str, first: str, column: str) -> list[str]:
        """Returns cells of a column in rows that begin with a text, of every table that has the column."""
        found, head = [], []
        for cells in self.rows[section]:
            if cells and cells[0] in ("System", "Task"):
                head = cells
            elif cells and cells[0].startswith(first) and column in head and len(cells) == len(head):
                found.append(cells[head.index(column)])
        return found

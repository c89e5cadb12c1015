"""Contents of a report's page: its tables, its text and its links, by Python's own parser."""

from html.parser import HTMLParser

#: Elements without an end.
VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})


class Page(HTMLParser):
    """
    A page, checked as it is read: every element is closed in its turn, and no id is there twice.

    Attributes:
        text, rows: by the section's heading, its text, and the rows of its tables as texts.
        tags: names of all elements. attributes: values by name.
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.text, self.rows = {"": ""}, {"": []}
        self.tags: set[str] = set()
        self.attributes: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._section = ""
        self._heading: str | None = None
        self._cell: str | None = None
        self.feed(html)
        self.close()
        assert not self._open, self._open
        ids = self.attributes["id"]
        assert len(ids) == len(set(ids)), "an id is there twice"

    @property
    def all_text(self) -> str:
        return " ".join(self.text.values())

    def cells(self, section: str, first: str, column: str) -> list[str]:
        """Returns cells of a column in rows that begin with a text, of every table that has the column."""
        found, head = [], []
        for cells in self.rows[section]:
            if cells and cells[0] in ("System", "Task"):
                head = cells
            elif cells and cells[0].startswith(first) and column in head and len(cells) == len(head):
                found.append(cells[head.index(column)])
        return found

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self._heading = ""
        elif tag == "tr":
            self.rows[self._section].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"
        if tag == "h2":
            self._section, self._heading = self._heading or "", None
            assert self._section not in self.text
            self.text[self._section], self.rows[self._section] = "", []
        elif tag in ("td", "th") and self._cell is not None:
            self.rows[self._section][-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data) -> None:
        if self._open and self._open[-1] == "style":
            return
        if self._heading is not None:
            self._heading += data
        if self._cell is not None:
            self._cell += f" {data}"
        self.text[self._section] += data

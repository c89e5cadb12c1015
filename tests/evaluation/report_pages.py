"""Contents of a report's page: its tables, its text and its links, by Python's own parser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

#: Elements without an end.
VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})


@dataclass
class Section:
    """One section: its heading, rows of its tables as texts, and all of its text."""

    rows: list[list[str]] = field(default_factory=list)
    text: str = ""


class Page(HTMLParser):
    """
    A page, checked as it is read: every element is closed in its turn, and no id is there twice.

    Attributes:
        sections: by their heading.
        tags: names of all elements. ids, sources, links, handlers: values of those attributes.
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.sections: dict[str, Section] = {"": Section()}
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self._open: list[str] = []
        self._heading: str | None = None
        self._section = ""
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert not self._open, self._open
        assert len(self.ids) == len(set(self.ids)), "an id is there twice"

    @property
    def text(self) -> str:
        return " ".join(section.text for section in self.sections.values())

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "srcset", "data", "poster", "action"):
                self.sources.append(value)
            elif name in ("href", "xlink:href"):
                self.links.append(value)
            elif name.startswith("on"):
                self.handlers.append(name)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self._heading = ""
        elif tag == "tr":
            self.sections[self._section].rows.append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"
        if tag == "h2":
            self._section, self._heading = self._heading or "", None
            assert self._section not in self.sections
            self.sections[self._section] = Section()
        elif tag in ("td", "th") and self._cell is not None:
            self.sections[self._section].rows[-1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data) -> None:
        if self._open and self._open[-1] == "style":
            return
        if self._heading is not None:
            self._heading += data
        if self._cell is not None:
            self._cell.append(data)
        self.sections[self._section].text += data

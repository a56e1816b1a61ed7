"""A parser of pages, which checks that elements are closed in order."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Elements, checked to be closed in order, and the tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.source = text
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def cells(self) -> set[str]:
        """The tables' cells, blanks between words as one."""
        return {" ".join(text.split()) for row in self.rows for text in row}

    def assert_self_contained(self) -> None:
        """Nothing outside the page is asked for, and no attribute is a script."""
        for tag, name, value in self.attributes:
            assert name not in ("src", "srcset", "action", "xlink:href") and not name.startswith("on"), (tag, name)
            assert name != "href" or value == "data:,"
        assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp", self.source)

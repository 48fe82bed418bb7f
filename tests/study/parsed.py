"""A page, parsed."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page in order, with the text inside each; fails if an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[dict[str, object]] = []
        self.elements: list[dict[str, object]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element: dict[str, object] = {"tag": tag, "text": "", "path": [e["tag"] for e in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "text": "", "path": [e["tag"] for e in self.open], **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, object]]:
        return [
            e
            for e in self.elements
            if e["tag"] == tag and all(e.get(name) == value for name, value in attributes.items())
        ]

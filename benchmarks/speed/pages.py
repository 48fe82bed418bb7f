"""Pages of the documents with a part that a benchmark writes, between two marks."""

from __future__ import annotations


def filled(page: str, text: str, marks: tuple[str, str]) -> str:
    """The page with this text between the marks, each of which stands once.

    >>> filled("a <b> old </b> c", " new ", ("<b>", "</b>"))
    'a <b> new </b> c'
    """
    before, rest = page.split(marks[0])
    _, after = rest.split(marks[1])
    return before + marks[0] + text + marks[1] + after

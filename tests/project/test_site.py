"""The two trees of documents match: the same files, headings, code, tables and links, page by page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ ]*$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def pages(lang: str) -> list[str]:
    return sorted(path.relative_to(DOCS / lang).as_posix() for path in (DOCS / lang).rglob("*.md"))


def read(lang: str, page: str) -> str:
    return (DOCS / lang / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def levels(text: str) -> list[int]:
    return [len(marks) for marks, _ in HEADING.findall(without_code(text))]


def code(text: str) -> list[tuple[str, str]]:
    return [(language, block) for _, language, block in FENCE.findall(text)]


def tables(text: str) -> list[tuple[int, ...]]:
    """The number of cells in each row of each table."""
    found, rows = [], []
    for line in [*without_code(text).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(len(re.findall(r"(?<!\\)\|", line.strip())) - 1)
        elif rows:
            found.append(tuple(rows))
            rows = []
    return found


def links(text: str) -> set[str]:
    """The pages and files that a text leads to; anchors and letters in pictures are in the language of the page."""
    return {
        target.partition("#")[0].replace(".zh.svg", ".svg")
        for target in LINK.findall(without_code(text))
        if "://" not in target
    }


def comments(text: str) -> list[str]:
    """Comments mark generated parts, such as the summary of a study in the gallery."""
    return COMMENT.findall(without_code(text))


COMPARED: dict[str, Callable[[str], Any]] = {
    "levels of headings": levels,
    "blocks of code": code,
    "tables": tables,
    "relative links": links,
    "comments": comments,
}


def differences(english: str, chinese: str) -> list[str]:
    return [what for what, found in COMPARED.items() if found(english) != found(chinese)]


PAGE = """# Title

Text with [a link](other.md#a) and `code`.

```python
print(1)  # a comment
```

<!-- study: one -->

| a | b |
|---|---|
| 1 | `x \\| y` |
"""


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("# Title", "## 标题", "levels of headings"),
        ("# a comment", "# 注释", "blocks of code"),
        ("| 1 |", "| 1 | 2 |", "tables"),
        ("other.md", "another.md", "relative links"),
        ("study: one", "study: two", "comments"),
    ],
)
def test_a_difference_is_found(old: str, new: str, what: str):
    assert differences(PAGE, PAGE.replace("Title", "标题").replace("#a)", "#甲)").replace("Text", "文字")) == []
    assert differences(PAGE, PAGE.replace(old, new)) == [what]


def test_both_trees_have_the_same_pages():
    assert pages("en") == pages("zh")


@pytest.mark.parametrize("page", pages("zh"))
def test_both_pages_have_the_same_parts(page: str):
    assert differences(read("en", page), read("zh", page)) == []


def test_the_index_of_a_folder_links_all_its_pages():
    """The site takes the order of its pages from there."""
    missing = {}
    for lang in ("en", "zh"):
        for index in (page for page in pages(lang) if page.endswith("/index.md")):
            folder = index.removesuffix("index.md")
            own = {page.removeprefix(folder) for page in pages(lang) if page.startswith(folder) and page != index}
            if own - links(read(lang, index)):
                missing[f"{lang}/{index}"] = sorted(own - links(read(lang, index)))
    assert not missing

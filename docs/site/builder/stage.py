"""Copies the pages of both trees to where Sphinx reads them, and adds those that are made from code and data.

The committed pages are plain Markdown that a code host shows as well. What only the site needs is added to the copies:
the sidebar, whose order and names are those of the links in the index of a folder, and the pages of the repository
that the documents link to.
"""

from __future__ import annotations

import posixpath
import re
from html import escape
from pathlib import Path

from builder import api, methods, studies
from builder.words import LANGUAGES, SECTIONS, navigation

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
CODE_OR_LINK = re.compile(
    r"(?P<code>^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!?)\[(?P<label>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<link>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
"""Code, in which nothing is a link, or a link; the label of a link may have code in it."""
PROJECT = "project"
"""Pages of the repository that are no documents of a tree, such as decisions, are staged below this folder."""


def stage(root: Path, target: Path, lang: str) -> None:
    """Write the sources of the site in one language into `target/LANG`, and what is copied to `target/extra/LANG`.

    Files that are as they should be are left alone, so that Sphinx reads again only what has changed.
    """
    found = studies.found(root / "docs" / "en" / "gallery")
    _write(target / lang, Tree(root, lang, found).files())
    extra = studies.extra(list(found.values()), lang)
    _write(target / "extra" / lang, {f"gallery/{name}": text for name, text in extra.items()})


class Tree:
    """The sources of the site in one language, as texts by their paths."""

    def __init__(self, root: Path, lang: str, found: dict[str, studies.Study]) -> None:
        self.root, self.lang, self.studies = root, lang, found
        self.docs, self.own = root / "docs", f"docs/{lang}/"
        self.made: dict[str, str | bytes] = {}

    def files(self) -> dict[str, str | bytes]:
        """All sources."""
        for path in sorted((self.docs / self.lang).rglob("*.md")):
            name = path.relative_to(self.docs / self.lang).as_posix()
            self.made[name] = self._links(path.read_text(encoding="utf-8"), f"docs/{self.lang}/{name}", name)
        for name, text in methods.pages(self.studies.get(studies.EMBEDDED), self.lang).items():
            self.made[f"methods/{name}.md"] = text
        for name, text in api.pages(self.lang).items():
            self.made[f"api/{name}.rst"] = text
        self._add_summaries()
        self._add_order()
        return self.made

    def _add_summaries(self) -> None:
        for name, text in self.made.items():
            if name == "methods/index.md":
                self.made[name] = methods.linked(str(text), self.lang)
            elif name.startswith("gallery/"):
                self.made[name] = studies.with_summaries(str(text), self.studies, self.lang)

    def _add_order(self) -> None:
        """A hidden table of contents on the start page and on the index of each folder."""
        sections = [f"{navigation(name, self.lang)} <{name}>" for name in SECTIONS if self._exists(name)]
        self.made["index.md"] = f"{self.made['index.md']}\n{_toctree(sections)}"
        for name in [name for name in self.made if name.endswith("/index.md") and not name.startswith(PROJECT)]:
            folder = name.removesuffix("index.md")
            pages = [page.removeprefix(folder).removesuffix(".md") for page in self.made if page.startswith(folder)]
            order: dict[str, str] = {}
            for _, label, link in LINK.findall(str(self.made[name])):
                page = link.partition("#")[0].removesuffix(".md")
                if page in pages and page != "index":
                    order.setdefault(page, label.replace("`", ""))
            if order:
                entries = [f"{label} <{page}>" for page, label in order.items()]
                self.made[name] = f"{self.made[name]}\n{_toctree(entries)}"

    def _exists(self, name: str) -> bool:
        return any(f"{name}{suffix}" in self.made for suffix in (".md", ".rst"))

    def _links(self, text: str, source: str, page: str) -> str:
        """The text of a page with its links out of the tree turned into links of the site.

        Args:
            text: Markdown.
            source: the path of its file in the repository.
            page: where it is staged.
        """

        def replaced(match: re.Match[str]) -> str:
            if match["code"]:
                return match[0]
            image, label, link = match["image"], match["label"], match["link"]
            path, mark, anchor = link.partition("#")
            if not path or "://" in path or path.startswith("mailto:"):
                return match[0]
            goal = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
            if goal.startswith(self.own) and source.startswith(self.own):
                # Sphinx names the page and the line if there is no such page.
                return match[0]
            if image and (drawn := _inline(self.root / goal, label)):
                return drawn
            if not (self.root / goal).exists():
                raise ValueError(f"{source} links to {link}, which does not exist")
            staged = self._staged(goal, bool(image))
            if staged is None:
                # The site has no copy of it: the name is all that a reader gets.
                return label
            if goal.startswith("docs/") and not goal.startswith(self.own):
                mark = anchor = ""  # anchors are in the language of a page
            return f"{image}[{label}]({posixpath.relpath(staged, posixpath.dirname(page) or '.')}{mark}{anchor})"

        return CODE_OR_LINK.sub(replaced, text)

    def _staged(self, goal: str, image: bool) -> str | None:
        """Where a file of the repository is in the site's sources; it is staged if it is not yet there."""
        for lang in LANGUAGES:
            if goal.startswith(f"docs/{lang}/"):
                # The pages of the repository link to English pages; the site stays in its language.
                return goal.removeprefix(f"docs/{lang}/")
        path = self.root / goal
        if image or path.suffix in (".svg", ".png"):
            staged = f"figures/{path.name}"
            self.made[staged] = path.read_bytes()
            return staged
        if path.suffix != ".md" or goal.startswith("README"):
            return None
        staged = f"{PROJECT}/{goal}"
        if staged not in self.made:
            self.made[staged] = ""  # before its links are followed, which may come back
            text = self._links(path.read_text(encoding="utf-8"), goal, staged)
            self.made[staged] = f"---\norphan: true\n---\n\n{text}"
        return staged


def _inline(path: Path, label: str) -> str:
    """A picture of regions as a part of the page, whose colours it then takes; "" for any other picture."""
    if path.suffix != ".svg" or 'class="normkit-region"' not in (text := path.read_text(encoding="utf-8")):
        return ""
    text = re.sub(r"<style>.*?</style>|<title>.*?</title>| (?:width|height|xmlns)=\"[^\"]*\"(?=[^>]*role=)", "", text)
    text = re.sub(r'aria-label="[^"]*"', lambda _: f'aria-label="{escape(label)}"', text, count=1)
    return f'<div class="nk-regions" tabindex="0">{text.strip()}</div>'


def _toctree(entries: list[str]) -> str:
    lines = "\n".join(entries)
    return f"\n```{{toctree}}\n:hidden:\n\n{lines}\n```\n"


def _write(folder: Path, files: dict[str, str | bytes]) -> None:
    """Make a folder contain these files and no others."""
    for name, content in files.items():
        path, data = folder / name, content.encode("utf-8") if isinstance(content, str) else content
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()


__all__ = ["CODE_OR_LINK", "LINK", "Tree", "stage"]

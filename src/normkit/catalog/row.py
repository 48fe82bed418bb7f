"""What a row of the catalog is made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from normkit.errors import ArgumentError

LANGUAGES = ("en", "zh")


class Text(str):
    """An English text that knows its Chinese; used as a plain string it is the English one.

    >>> region = Text("region", "统计域")
    >>> region.upper(), region.to("zh")
    ('REGION', '统计域')
    """

    __slots__ = ("zh",)
    zh: str

    def __new__(cls, en: str, zh: str) -> Text:
        text = super().__new__(cls, en)
        text.zh = zh
        return text

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # copy and pickle need both languages
        return str(self), self.zh

    def to(self, lang: str) -> str:
        """The text in one language, ``"en"`` or ``"zh"``; any other is an `ArgumentError`."""
        if lang not in LANGUAGES:
            raise ArgumentError(f"texts exist in {' and '.join(LANGUAGES)}, got {lang!r}: use one of these")
        return self.zh if lang == "zh" else str(self)


@dataclass(frozen=True)
class Claim:
    """A sentence that people repeat about a method, and the measurement that can decide it."""

    id: str
    text: Text
    how: Text


@dataclass(frozen=True)
class Paper:
    """Where a method comes from; `arxiv` is None if it is not there."""

    title: str
    authors: str
    year: int
    arxiv: str | None

    def __str__(self) -> str:
        return f"{self.authors} {self.year}, {self.title}" + (f", arXiv:{self.arxiv}" if self.arxiv else "")


@dataclass(frozen=True)
class Method:
    """One normalization.

    Attributes:
        name: of the function, the tests and the docs page: ``"group_norm"``.
        title: as a heading.
        aliases: other names it goes by.
        layers: class names in `normkit`; empty if it is put on another layer.
        patterns: the regions it is used with, the one for images first; empty if it has none.
        statistics: what has a mean and variance of its own.
        state: what the layer keeps.
        formula: with the names of the parameters.
        principle: how it works, in one sentence.
        where, strengths, weaknesses: where it is used, and what is said for and against it.
        claims: ids in `CLAIMS`.
        paper: its source.
    """

    name: str
    title: Text
    aliases: tuple[str, ...]
    layers: tuple[str, ...]
    patterns: tuple[str, ...]
    statistics: Text
    state: Text
    formula: str
    principle: Text
    where: Text
    strengths: tuple[Text, ...]
    weaknesses: tuple[Text, ...]
    claims: tuple[str, ...]
    paper: Paper

    @property
    def pattern(self) -> str | None:
        """The region on images; None for a method without a region."""
        return self.patterns[0] if self.patterns else None

    def to_dict(self, lang: str = "en") -> dict[str, Any]:
        """All attributes as plain data, in one language."""
        return {field.name: _plain(getattr(self, field.name), lang) for field in fields(self)}


def _plain(value: Any, lang: str) -> Any:
    if isinstance(value, Text):
        return value.to(lang)
    if isinstance(value, tuple):
        return [_plain(item, lang) for item in value]
    if isinstance(value, Paper):
        return {"cite": str(value), **vars(value)}
    return value

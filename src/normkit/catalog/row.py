"""The classes that a row of the catalog consists of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from normkit.errors import ArgumentError

LANGUAGES = ("en", "zh")


class Text(str):
    """An English text with its Chinese translation; as a plain string it is the English text.

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


class Statement(Text):
    """A strength or weakness, with the id of the claim that tests it.

    >>> statement = Statement("faster convergence", "收敛更快", "BN-1")
    >>> statement, statement.to("zh"), statement.claim
    ('faster convergence', '收敛更快', 'BN-1')
    """

    __slots__ = ("claim", "experiments")
    claim: str
    experiments: str

    def __new__(cls, en: str, zh: str, claim: str = "", experiments: str = "") -> Statement:
        """`claim` is an id in `CLAIMS`; `experiments` is how the names of its experiments start."""
        statement = super().__new__(cls, en, zh)
        assert isinstance(statement, Statement)
        statement.claim, statement.experiments = claim, experiments
        return statement

    def __getnewargs__(self) -> tuple[str, str, str, str]:  # type: ignore[override]
        return str(self), self.zh, self.claim, self.experiments


@dataclass(frozen=True)
class Paper:
    """The paper of a method; `arxiv` is None if it is not on arXiv."""

    title: str
    authors: str
    year: int
    arxiv: str | None

    def __str__(self) -> str:
        return f"{self.authors} {self.year}, {self.title}" + (f", arXiv:{self.arxiv}" if self.arxiv else "")


@dataclass(frozen=True)
class Claim:
    """A common claim about a method, the measurement that tests it, and the papers it is from, if known."""

    id: str
    text: Text
    how: Text
    papers: tuple[Paper, ...] = ()


@dataclass(frozen=True)
class Mark:
    """How figures show a method: the shape of its points, and its colour on a light and on a dark background."""

    shape: str
    light: str
    dark: str


@dataclass(frozen=True)
class Method:
    """One normalization.

    Attributes:
        name: of the function, the tests and the docs page: ``"group_norm"``.
        title: as a heading.
        aliases: other names of it.
        layers: class names in `normkit`; empty if it is applied to another layer.
        patterns: the regions it is used with, the one for images first; empty if it has none.
        statistics: the parts of the input that have a separate mean and variance.
        state: what the layer stores.
        formula: the formula, with the names of the parameters.
        principle: how it works, in one sentence.
        where, strengths, weaknesses: where it is used, and its claimed strengths and weaknesses.
        paper: its source.
        acts_on: what is normalized; ``"values"`` for a function of each value by itself.
        center: whether the mean is subtracted.
        activates: whether its formula is an activation as well.
        eps: the default of its layers; None for the machine epsilon, 0 if nothing is added to the variance.
        keeps_statistics: whether its layers can keep running statistics.
        target: the region of the norm that `convert` and `insert` make, on inputs with the channels in dimension 1;
            None if they make none.
        replaces_norms: whether `convert` and `insert` make a layer of its own, which no region describes.
        mark: how figures of a study show it; None if no study trains it.
        compared: whether `compare` trains it if no methods are named.
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
    strengths: tuple[Statement, ...]
    weaknesses: tuple[Statement, ...]
    paper: Paper
    acts_on: Literal["activations", "weights", "values"] = "activations"
    center: bool = True
    activates: bool = False
    eps: float | None = 1e-5
    keeps_statistics: bool = False
    target: str | None = None
    replaces_norms: bool = False
    mark: Mark | None = None
    compared: bool = False

    @property
    def pattern(self) -> str | None:
        """The region on images; None for a method without a region."""
        return self.patterns[0] if self.patterns else None

    @property
    def claims(self) -> tuple[str, ...]:
        """The ids in `CLAIMS` of its strengths and weaknesses, each once."""
        return tuple(dict.fromkeys(each.claim for each in (*self.strengths, *self.weaknesses) if each.claim))

    @property
    def of_weights(self) -> bool:
        """Whether it normalizes weights; it is then applied to a layer and is not a layer itself."""
        return self.acts_on == "weights"

    @property
    def over_positions(self) -> bool:
        """Whether a region includes all positions of its channels: ``[...]``."""
        return any("[...]" in pattern for pattern in self.patterns)

    @property
    def over_samples(self) -> bool:
        """Whether a region holds all samples: ``[b]``."""
        return any("[b" in pattern for pattern in self.patterns)

    @property
    def per_channel(self) -> bool:
        """Whether a region holds a single channel: not ``[c]``."""
        return bool(self.patterns) and not any("[c" in pattern for pattern in self.patterns)

    @property
    def grouped(self) -> bool:
        """Whether a number of groups cuts the channels: ``(g [c])``."""
        return any("(g " in pattern for pattern in self.patterns)

    @property
    def insertable(self) -> bool:
        """Whether `insert` can add it to a layer."""
        return self.of_weights or self.replaces_norms or self.target is not None

    def to_dict(self, lang: str = "en") -> dict[str, Any]:
        """All attributes as plain data, in one language."""
        return {name: _plain(getattr(self, name), lang) for name in (*(each.name for each in fields(self)), "claims")}


def _plain(value: Any, lang: str) -> Any:
    if isinstance(value, Text):
        return value.to(lang)
    if isinstance(value, tuple):
        return [_plain(item, lang) for item in value]
    if isinstance(value, Paper):
        return {"cite": str(value), **vars(value)}
    if isinstance(value, Mark):
        return vars(value)
    return value

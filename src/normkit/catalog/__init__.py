"""One row for each method: names, region, state, use, claims, paper. Text only, no torch.

Strengths and weaknesses are claims of papers and of practice; normkit has not measured them. `CLAIMS` are those that
a measurement can test. Every text is English with a Chinese translation (`Text`).

>>> find("GN").pattern, find("GroupNorm").title, find("GN").title.to("zh")
('b (g [c]) [...]', 'Group norm', '组归一化')
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from normkit.catalog import claims
from normkit.catalog.methods import METHODS
from normkit.catalog.row import LANGUAGES, Claim, Mark, Method, Paper, Statement, Text
from normkit.errors import ArgumentError, nearest

__all__ = [
    "CLAIMS",
    "EVIDENCE",
    "LANGUAGES",
    "METHODS",
    "Claim",
    "Mark",
    "Method",
    "Paper",
    "Statement",
    "Text",
    "find",
]

CLAIMS: Mapping[str, Text] = MappingProxyType({claim.id: claim.text for claim in claims.ALL})
"""The claims that a measurement can test, by id; those of ``"P-"`` and ``"QK-"`` are about places, the others about a
method."""

EVIDENCE: Mapping[str, Text] = MappingProxyType({claim.id: claim.how for claim in claims.ALL})
"""For each claim, the measurement that tests it."""


def find(name: str) -> Method:
    """Find a method by its name, an alias, a class name or its title in either language.

    Case, spaces, hyphens and underscores are ignored.

    Args:
        name: for instance ``"group_norm"``, ``"GN"``, ``"GroupNorm"`` or ``"组归一化"``.

    Returns:
        The row of the catalog.

    Raises:
        ArgumentError: an unknown name; the message suggests the nearest known one.

    >>> find("batch normalization").name
    'batch_norm'
    >>> find("group_nrom")
    Traceback (most recent call last):
    normkit.errors.ArgumentError: no normalization is called 'group_nrom': did you mean 'group_norm'?
    """
    found = _BY_NAME.get(_key(name))
    if found is None:
        remedy = nearest(name, [method.name if name.isascii() else method.title.zh for method in METHODS])
        raise ArgumentError(f"no normalization is called {name!r}: {remedy}")
    return found


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_BY_NAME = {
    _key(name): method
    for method in METHODS
    for name in (method.name, method.title, method.title.zh, *method.aliases, *method.layers)
}

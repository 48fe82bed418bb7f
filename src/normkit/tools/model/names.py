"""How a caller names modules and parameters of a model: by patterns of the shell, or by a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from normkit.errors import ArgumentError, nearest

K = TypeVar("K")
M = TypeVar("M", bound=nn.Module)

Where = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Names or patterns of names (``layer1.*``), or a function of name and module that returns True; None for all."""


def fits(names: Iterable[str], pattern: str) -> bool:
    """Whether one of the names fits a pattern of the shell.

    >>> fits(["layer1.0.bn1"], "layer1.*.bn?")
    True
    """
    return any(fnmatchcase(name, pattern) for name in names)


def picked(
    patterns: str | Iterable[str], names: Mapping[K, Iterable[str]], unknown: Callable[[str], str] | str
) -> set[K]:
    """All that have a name which fits one of the patterns.

    Args:
        patterns: one or several.
        names: all the names of each candidate.
        unknown: the error for a pattern that fits none, or the rule that it breaks.

    Raises:
        ArgumentError: a pattern fits none.

    Example:
        >>> picked("bn*", {1: ["bn1"], 2: ["bn2", "last"], 3: ["fc"]}, "where must name norms")
        {1, 2}
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fits(known, pattern) for known in names.values()):
            if callable(unknown):
                raise ArgumentError(unknown(pattern))
            every = [name for known in names.values() for name in known]
            raise ArgumentError(
                f"{unknown}, got {pattern!r}, which fits none of its {len(names)}: {nearest(pattern, every)}"
            )
    return {key for key, known in names.items() if any(fits(known, pattern) for pattern in wanted)}


def chosen(model: nn.Module, norms: Mapping[str, M], where: Where) -> dict[str, M]:
    """Those of the norms that `where` picks; a shared one is found under each of its names.

    Raises:
        ArgumentError: a pattern that fits none of them.
    """
    if where is None:
        return dict(norms)
    if callable(where):
        return {name: norm for name, norm in norms.items() if where(name, norm)}
    names: dict[nn.Module, list[str]] = {norm: [] for norm in norms.values()}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in names:
            names[module].append(name)
    wanted = picked(where, names, "where must name norms of the model")
    return {name: norm for name, norm in norms.items() if norm in wanted}

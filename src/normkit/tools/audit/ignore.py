"""Which findings the user has suppressed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from normkit.errors import ArgumentError, DtypeError, nearest
from normkit.tools.audit.rules import RULES
from normkit.tools.model.names import fits

Ignore = Collection[str] | Mapping[str, Collection[str]]


def checked(codes: Any, where: str) -> set[str]:
    """A set of codes, all of which exist; a single code may be given as a string."""
    given = {codes} if isinstance(codes, str) else codes
    if not isinstance(given, Collection):
        raise DtypeError(f"{where} must be codes of rules, got {codes!r}: write {{'NK101'}}")
    for code in given:
        if code not in RULES:
            raise ArgumentError(f"{where} must name rules, got {code!r}: {nearest(str(code), RULES)}")
    return set(given)


def suppressor(model: nn.Module, ignore: Ignore | str) -> Callable[[str, str], bool]:
    """From a code and the name of a module to whether the finding is suppressed.

    Args:
        model: its modules may have an attribute ``normkit_ignore``, which holds for what is inside them, too.
        ignore: codes, or a mapping from patterns of names, such as ``"layer1.*"``, to codes.

    Raises:
        ArgumentError: a code that does not exist.
        DtypeError: something that is no collection of codes.
    """
    mapping = ignore if isinstance(ignore, Mapping) else {"*": ignore}
    patterns = {pattern: checked(codes, "ignore") for pattern, codes in mapping.items()}
    marked = {
        name: checked(module.normkit_ignore, f"normkit_ignore of {name or type(module).__name__}")
        for name, module in model.named_modules()
        if hasattr(module, "normkit_ignore")
    }

    def suppressed(code: str, module: str) -> bool:
        if any(code in codes and fits([module], pattern) for pattern, codes in patterns.items()):
            return True
        return any(
            code in codes and (not name or module == name or module.startswith(f"{name}."))
            for name, codes in marked.items()
        )

    return suppressed

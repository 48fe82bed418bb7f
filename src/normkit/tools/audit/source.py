"""Where in the user's files a module of a model is made."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

Location = tuple[str, int]
"""A file, relative to the current folder if it is inside it, and a line."""


def location_in(model: nn.Module, name: str) -> Location | None:
    """The line of the user's code that makes a module: where a class assigns it, or where its own class begins.

    Args:
        model: the model.
        name: dotted name of the module; empty for the model itself.

    Returns:
        The location, or None if none of the classes concerned is in a file below the current folder.
    """
    keys = name.split(".") if name else []
    # The nearest holder first: its line is more specific than that of a holder which makes a whole block.
    for depth in reversed(range(len(keys))):
        holder = model.get_submodule(".".join(keys[:depth]))
        for cls in type(holder).__mro__:
            (file, first), lines = _source(cls, Path.cwd())
            for line, text in enumerate(lines, first):
                if re.search(rf"\bself\.{re.escape(keys[depth])}\s*(:[^=]*)?=(?!=)", text):
                    return file, line
    own: Any = type(model.get_submodule(name))
    location, lines = _source(own, Path.cwd())
    return location if lines else None


def location_of(made: Callable[..., Any]) -> Location | None:
    """Where a function or class is defined, wherever its file is."""
    file = _file(made)
    try:
        return (_relative(file), inspect.getsourcelines(made)[1]) if file else None
    except OSError:
        return None


@functools.cache
def _source(cls: Any, folder: Path) -> tuple[Location, tuple[str, ...]]:
    """Location and lines of a class whose file is below the folder and no installed package's; else no lines."""
    file = Path(_file(cls) or "/")
    try:
        if file.is_relative_to(folder) and "site-packages" not in file.parts:
            lines, first = inspect.getsourcelines(cls)
            return (_relative(str(file)), first), tuple(lines)
    except OSError:
        pass
    return ("", 0), ()


def _file(made: Any) -> str | None:
    try:
        file = inspect.getsourcefile(made)
    except TypeError:
        return None
    return str(Path(file).resolve()) if file else None


def _relative(file: str) -> str:
    return str(Path(file).relative_to(Path.cwd())) if Path(file).is_relative_to(Path.cwd()) else file

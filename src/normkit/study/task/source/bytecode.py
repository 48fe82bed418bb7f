"""What a code object computes, and which names outside of it it reads.

The bytecode that is in memory is what runs: it exists in notebooks and for code made by `exec`, and does not change
with comments, line numbers or an edit of the file after the import.
"""

from __future__ import annotations

import dis
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
"""Instructions that read a global name."""


@dataclass(frozen=True)
class Import:
    """An import inside a function: module, number of leading dots, and the names that are taken from the module."""

    module: str
    level: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Reads:
    """A digest of the instructions and constants, with those of nested functions, and what they refer to.

    Attributes:
        digest: equal for equal code, in any file and in any process with the same version of Python.
        names: global names that are read.
        attributes: all names in the code: attributes, globals and keywords.
        imports: imports that are executed.
    """

    digest: str
    names: tuple[str, ...]
    attributes: frozenset[str]
    imports: tuple[Import, ...]


@lru_cache(maxsize=4096)
def reads(code: CodeType) -> Reads:
    """The facts about a code object.

    >>> def area(radius):
    ...     from math import pi
    ...     return SCALE * pi * radius**2
    >>> reads(area.__code__).names, reads(area.__code__).imports
    (('SCALE',), (Import(module='math', level=0, names=('pi',)),))
    """
    inner = [reads(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = _own_names(code)
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2]
    facts = (
        *(code.co_code, code.co_exceptiontable, code.co_flags, code.co_names, code.co_freevars, code.co_cellvars),
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, parameters),
        [_constant(constant) for constant in code.co_consts],
    )
    return Reads(
        hashlib.sha256(repr(facts).encode()).hexdigest(),
        tuple(sorted({*own, *(name for each in inner for name in each.names)})),
        frozenset(code.co_names).union(*(each.attributes for each in inner)),
        tuple(_imports(code)) + tuple(found for each in inner for found in each.imports),
    )


def _own_names(code: CodeType) -> set[str]:
    return {step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL}


def _imports(code: CodeType) -> list[Import]:
    steps = list(dis.get_instructions(code))
    found = []
    for at, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            # Level and names are loaded just before.
            level, names = (before.argval for before in steps[at - 2 : at])
            found.append(Import(step.argval, level or 0, tuple(names or ())))
    return found


def _constant(value: Any) -> str:
    """A constant as text; the elements of a set are sorted, because their order differs between processes."""
    if isinstance(value, CodeType):
        return reads(value).digest
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return f"{type(value).__name__} {value!r}"

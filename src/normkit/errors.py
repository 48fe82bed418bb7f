"""The few kinds of error that normkit raises; each message gives the rule, the value received and the remedy.

>>> from normkit.errors import PatternError, ShapeError
>>> issubclass(PatternError, ValueError) and issubclass(ShapeError, ValueError)
True
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any


class NormkitError(Exception):
    """The base class of all errors that normkit raises."""


class PatternError(NormkitError, ValueError):
    """A region pattern that cannot be parsed; a caret marks the position.

    >>> print(PatternError.at("b [c", 2, "'[' is never closed", "add ']'"))
    '[' is never closed
        b [c
          ^
    add ']'
    """

    @classmethod
    def at(cls, pattern: str, position: int, rule: str, remedy: str) -> PatternError:
        """The error for one character of a pattern."""
        return cls(f"{rule}\n    {pattern}\n    {' ' * position}^\n{remedy}")


class ShapeError(NormkitError, ValueError):
    """A tensor whose sizes do not fit the region, the parameters or the statistics."""


class ArgumentError(NormkitError, ValueError):
    """An argument with a value that is not allowed, such as a negative eps or an unknown name."""


class DtypeError(NormkitError, TypeError):
    """A dtype or type for which normalization is not defined."""


class StateError(NormkitError, RuntimeError):
    """An operation that the present state of an object does not allow."""


def whole_number(what: str, value: Any) -> int:
    """A count as a Python int; numpy's integers are accepted too.

    >>> whole_number("num_groups", 8.0)
    Traceback (most recent call last):
        ...
    normkit.errors.ArgumentError: num_groups must be a whole number of at least 1, got 8.0: use int(...) on a count
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ArgumentError(f"{what} must be a whole number of at least 1, got {value!r}: use int(...) on a count")


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, else all of them.

    >>> nearest("group_nrom", ["batch_norm", "group_norm"])
    "did you mean 'group_norm'?"
    >>> nearest("xyz", ["batch_norm", "group_norm"])
    'known: batch_norm, group_norm'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of a number that is nearest to the one wanted.

    >>> nearest_divisor(96, 30)
    32
    """
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted), default=1)

"""The few kinds of error normkit raises; each message gives the rule, the value received and the remedy.

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
    """Everything normkit raises on purpose."""


class PatternError(NormkitError, ValueError):
    """A region pattern that cannot be read; a caret stands under the place.

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
    """A value no tensor is needed to reject: a negative eps, a group count that does not divide."""


class DtypeError(NormkitError, TypeError):
    """A dtype or type that normalization is not defined for."""


class StateError(NormkitError, RuntimeError):
    """An operation the object's present state does not allow."""


def whole_number(what: str, value: Any) -> int:
    """A count as a Python int, numpy's integers included.

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

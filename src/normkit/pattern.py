"""A region written as text. Elements share one mean and variance along the axes in brackets.

``"b (g [c]) [...]"`` is group norm: the first dimension is kept; the second has ``g`` groups of ``c`` channels, and the
channels are reduced; all further dimensions are reduced. This module knows text only. `Region.levels` adds the sizes
of a tensor, and `normkit.plan` its memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from normkit.errors import ArgumentError, PatternError, ShapeError, whole_number

ELLIPSIS = "..."
_TOKEN = re.compile(r"\.\.\.|[A-Za-z_]\w*(?:=\w*)?|[()\[\]]|\S")


@dataclass(frozen=True)
class Axis:
    """One name of a pattern, reduced if it is in brackets; `size` is None unless the text or `bind` gives it."""

    name: str
    reduced: bool
    size: int | None = None


@dataclass(frozen=True)
class Level:
    """An axis on a tensor of known shape: dimension `dim` of it, or a part of that dimension."""

    name: str
    dim: int
    size: int
    reduced: bool
    feature: bool


@dataclass(frozen=True)
class Region:
    """A parsed pattern: one tuple of axes for each dimension; ``...`` means any number of dimensions.

    Weight and bias vary over the *features*: every dimension that holds an axis whose name starts with ``c``.

    >>> parse("b (g [c]) [...]").bind(g=2)
    Region('b (g=2 [c]) [...]')
    """

    dims: tuple[tuple[Axis, ...], ...]
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words: list[str] = []
        for dim in self.dims:
            inside = " ".join(_bracketed(axis) for axis in dim)
            words.append(f"({inside})" if len(dim) > 1 else inside)
        object.__setattr__(self, "text", " ".join(words).replace("] [", " "))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Region({str(self)!r})"

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes in the order of the text."""
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def has_features(self) -> bool:
        """Whether the pattern has a channel axis, without which there is no weight."""
        return any(_is_feature(dim) for dim in self.dims)

    def bind(self, **sizes: int) -> Region:
        """The same region with the sizes of some axes fixed.

        Raises:
            ArgumentError: the pattern has no such axis, or the size is below 1.
        """
        sizes = {name: whole_number(f"the size of axis {name!r}", size) for name, size in sizes.items()}
        for name, size in sizes.items():
            if name not in {axis.name for axis in self.axes if axis.name != ELLIPSIS}:
                raise ArgumentError(
                    f"a size can be given only to an axis of the pattern; {str(self)!r} "
                    f"has no axis {name!r}: name it there, as in 'b ({name} [c]) [...]'"
                )
            if size < 1:
                raise ArgumentError(f"axis {name!r} needs a size of at least 1, got {size}")
        dims = tuple(tuple(replace(axis, size=sizes.get(axis.name, axis.size)) for axis in dim) for dim in self.dims)
        return Region(dims)

    def levels(self, shape: Sequence[int], varying: Sequence[bool] | None = None) -> tuple[Level, ...]:
        """The axes of a tensor of this shape, outermost first, with all sizes.

        `varying` tells for each dimension whether it counts as a feature; None leaves that to the names of its axes.
        """
        dims = self._dims_of(shape)
        out: list[Level] = []
        for index, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            feature = _is_feature(dim) if varying is None else varying[index]
            for axis, part in zip(dim, self._sizes(dim, size, shape), strict=True):
                out.append(Level(axis.name, index, part, axis.reduced, feature))
        return tuple(out)

    def _dims_of(self, shape: Sequence[int]) -> list[tuple[Axis, ...]]:
        """The axes of each dimension of `shape`, those of the ellipsis as often as needed."""
        named = [dim for dim in self.dims if dim[0].name != ELLIPSIS]
        extra = len(shape) - len(named)
        if extra < 0 or (extra > 0 and len(named) == len(self.dims)):
            more = "at least " if len(named) < len(self.dims) else ""
            raise ShapeError(
                f"pattern {str(self)!r} needs {more}{len(named)} dimensions, "
                f"got {len(shape)} with shape {tuple(shape)}: reshape the input or change the pattern"
            )
        out: list[tuple[Axis, ...]] = []
        for dim in self.dims:
            out.extend([dim] * extra if dim[0].name == ELLIPSIS else [dim])
        return out

    def _sizes(self, dim: tuple[Axis, ...], size: int, shape: Sequence[int]) -> list[int]:
        """The sizes of the axes of one dimension; one of them may be unknown."""
        known = math.prod([axis.size for axis in dim if axis.size is not None])
        free = [axis for axis in dim if axis.size is None]
        if len(free) > 1:
            raise ArgumentError(
                f"pattern {str(self)!r} splits one dimension into {len(dim)} axes, "
                f"so all but one need a size; {' and '.join(a.name for a in free)} have none: "
                f"write '{free[0].name}=8', or give num_groups for an axis g"
            )
        if (size % known if free else size != known) or known == 0:
            given = " * ".join(f"{axis.name}={axis.size}" for axis in dim if axis.size is not None)
            rule = "be divisible by" if free else "equal"
            raise ShapeError(
                f"the dimension ({' '.join(a.name for a in dim)}) of pattern {str(self)!r} must {rule} {given}, "
                f"got {size} in shape {tuple(shape)}: change that size or the number of channels"
            )
        return [axis.size if axis.size is not None else size // known for axis in dim]


def _is_feature(dim: tuple[Axis, ...]) -> bool:
    return any(axis.name.startswith("c") for axis in dim)


def _bracketed(axis: Axis) -> str:
    text = axis.name if axis.size is None else f"{axis.name}={axis.size}"
    return f"[{text}]" if axis.reduced else text


# A plain dictionary, because torch.compile warns about the caches of functools.
_PARSED: dict[str, Region] = {}


def parse(pattern: str) -> Region:
    """Read a pattern; the error for a wrong one has a caret under the place.

    Args:
        pattern: names, ``...`` (at most once), ``(a b)`` for one dimension made of several axes,
            ``[ ]`` around axes that are reduced, ``name=8`` for an axis of known size.

    Returns:
        The region.

    Raises:
        PatternError: the pattern is wrong; the text has the rule, the place and the remedy.

    >>> [axis.name for axis in parse("b [c ...]").axes if axis.reduced]
    ['c', '...']
    """
    region = _PARSED.get(pattern) if isinstance(pattern, str) else None
    if region is None:
        region = _Reader(pattern).read()
        _PARSED[pattern] = region
    return region


def bound(pattern: str | Region, sizes: Mapping[str, int]) -> Region:
    """`parse`, then `Region.bind`."""
    region = pattern if isinstance(pattern, Region) else parse(pattern)
    return region.bind(**sizes) if sizes else region


def all_but(dim: int | None) -> str:
    """The region of all dimensions but one, which holds the channels; of all dimensions for None.

    >>> all_but(1)
    '[i0] c [...]'
    """
    if not dim:
        return "[...]" if dim is None else "c [...]"
    return f"[{' '.join([f'i{axis}' for axis in range(dim)])}] c [...]"


class _Reader:
    """Reads one pattern from left to right, and remembers the position of each open bracket."""

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise PatternError(f"a pattern is text, got {type(pattern).__name__}: write for instance 'b c [...]'")
        self.pattern = pattern
        self.dims: list[tuple[Axis, ...]] = []
        self.group: list[Axis] | None = None
        self.seen: set[str] = set()
        self.open: list[tuple[str, int]] = []

    def fail(self, position: int, rule: str, remedy: str) -> PatternError:
        return PatternError.at(self.pattern, position, rule, remedy)

    def read(self) -> Region:
        for match in _TOKEN.finditer(self.pattern):
            word, at = match.group(), match.start()
            if word in "([":
                self.enter(word, at)
            elif word in ")]":
                self.leave(word, at)
            else:
                self.axis(word, at)
        if self.open:
            mark, at = self.open[-1]
            raise self.fail(at, f"'{mark}' is never closed", f"add '{_CLOSER[mark]}' after its last axis")
        if not self.dims:
            raise self.fail(0, "a pattern names at least one axis", "write for instance 'b c [...]'")
        if not any(axis.reduced for dim in self.dims for axis in dim):
            raise self.fail(
                0,
                "no axis is in brackets, so no elements share a mean",
                "put the axes that are reduced in brackets: 'b c [...]'",
            )
        return Region(tuple(self.dims))

    def enter(self, mark: str, at: int) -> None:
        if any(mark == other for other, _ in self.open):
            raise self.fail(at, f"'{mark}' cannot be inside another '{mark}'", f"remove this '{mark}'")
        self.open.append((mark, at))
        if mark == "(":
            self.group = []

    def leave(self, mark: str, at: int) -> None:
        if not self.open:
            raise self.fail(at, f"'{mark}' closes nothing", f"remove it, or open it with '{_OPENER[mark]}'")
        opened, opened_at = self.open.pop()
        if opened != _OPENER[mark]:
            raise self.fail(
                at,
                f"'{mark}' cannot close the '{opened}' at character {opened_at + 1}",
                f"close that first: '{_CLOSER[opened]}'",
            )
        if self.pattern[opened_at + 1 : at].strip() == "":
            raise self.fail(opened_at, f"'{opened}{mark}' is empty", "put an axis in it, or remove it")
        if mark == ")":
            assert self.group is not None
            self.dims.append(tuple(self.group))
            self.group = None

    def axis(self, word: str, at: int) -> None:
        name, _, size = word.partition("=")
        reduced = any(mark == "[" for mark, _ in self.open)
        if name == ELLIPSIS:
            if self.group is not None:
                raise self.fail(at, "'...' means whole dimensions, so it cannot be inside '( )'", "name the axis")
        elif not name.isidentifier():
            raise self.fail(
                at, f"{word!r} is not an axis", "an axis is a name such as b, c or h, perhaps with a size: g=8"
            )
        if name in self.seen:
            raise self.fail(at, f"axis {name!r} is named twice", "give the second one another name")
        self.seen.add(name)
        if "=" in word and (not size.isdecimal() or int(size) < 1):
            raise self.fail(
                at,
                f"the size of axis {name!r} must be a whole number of at least 1, got {size!r}",
                f"write for instance {name}=8",
            )
        axis = Axis(name, reduced, int(size) if size else None)
        if self.group is not None:
            self.group.append(axis)
        else:
            self.dims.append((axis,))


_CLOSER = {"(": ")", "[": "]"}
_OPENER = {")": "(", "]": "["}

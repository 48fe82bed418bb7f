"""Finds the residual blocks of a record, ``y = x + f(x)``, where their norms are, and the stacks that they form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from normkit.tools.model.graph.call_graph import MOVES
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.replace_placement.record import Event, Pass, Record, Site

Placement = Literal["pre", "post", "peri", "sandwich"]
Found = Literal["pre", "post", "peri", "sandwich", "output", "none"]
"""Those that a model may have; "output" is that of OLMo 2, x + n(f(x))."""

SCALES = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "truediv", "__truediv__"}
DROPS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
LINEAR = {"linear", "addmm", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"}


@dataclass(eq=False)
class Residual:
    """One sum ``x + f(x)`` and the norms around it.

    Attributes:
        sum: the addition.
        skip, branch: the numbers of the values x and f(x).
        operand: which of the two operands of the sum is the branch.
        entries: what reads x in the branch, in the order of calls.
        inner: the events of the branch.
        input_norm: the norm that alone reads x in the branch.
        output_norm: the norm that gives f(x), up to dropout and scales.
        sum_norm: the norm that alone reads the sum.
        before: the residual whose sum is x, or whose normalized sum.
        last: whether no other residual follows.
    """

    sum: Event
    skip: int
    branch: int
    operand: int
    entries: list[Event]
    inner: list[Event]
    input_norm: Event | None = None
    output_norm: Event | None = None
    sum_norm: Event | None = None
    before: Residual | None = None
    last: bool = True

    @property
    def share(self) -> float:
        """rms(f(x)) / rms(x)."""
        skip = self.sum.sizes[1 - self.operand]
        return self.sum.sizes[self.operand] / skip if skip else 0.0

    @property
    def after_sum(self) -> Event | None:
        """The norm of the sum, if that is the norm of this block and not the final one of its stack."""
        own = self.input_norm is None and self.output_norm is None
        return self.sum_norm if own or not self.last else None

    @property
    def norms(self) -> list[Event]:
        """Its norms, the one that other placements move first."""
        return [norm for norm in (self.input_norm, self.after_sum, self.output_norm) if norm is not None]


@dataclass(eq=False)
class Stack:
    """Residual blocks that follow each other.

    Attributes:
        residuals: in order.
        stem: the norm of the input of the first block.
        final: the norm at the end that is not part of the last block.
    """

    residuals: list[Residual] = field(default_factory=list)
    stem: Event | None = None
    final: Event | None = None

    @property
    def last(self) -> Residual:
        """The residual at the end."""
        return self.residuals[-1]

    def placement(self, residual: Residual) -> Found:
        """Where the norms of one of its blocks are.

        Raises:
            RefusedError: they are in another combination of places.
        """
        held = (residual.input_norm, residual.output_norm, residual.after_sum)
        match tuple(norm is not None for norm in held):
            case (True, False, False):
                return "pre"
            case (False, False, True):
                return "post"
            case (True, True, False):
                return "sandwich" if self.stem is None else "peri"
            case (False, True, False):
                return "output"
            case (False, False, False):
                return "none"
        raise RefusedError("it has a norm of its sum, and others")

    @property
    def size(self) -> float:
        """The root mean square of what the stack gives."""
        norm = self.final or self.last.after_sum
        return self.last.sum.sizes[2] if norm is None else norm.sizes[0]


def stacks(record: Record) -> list[Stack]:
    """All stacks of residual blocks, in the order of their first sums.

    A sum counts if one operand, the branch, is computed from the other one, and if it has a layer, or a norm is in
    it or after it: an approximation of GELU adds to x what it computes from x, too. A sum around other residual blocks
    does not count.
    """
    found: list[Residual] = []
    sums: set[Event] = set()
    for event in record.events:
        residual = _residual(record, event) if event.sizes and len(event.values) == 2 else None
        if residual is not None and not sums.intersection(residual.inner):
            found.append(residual)
            sums.add(event)
    by_sum = {residual.sum: residual for residual in found}
    made: dict[Residual, Stack] = {}
    for residual in found:
        _find_norms(record, residual)
    for residual in found:
        source, through = _source(record, residual.skip)
        residual.before = by_sum.get(source) if source is not None else None
        if residual.before is None:
            made[residual] = Stack([residual], through)
        else:
            stack = made[residual.before]
            residual.before.last = False
            stack.residuals.append(residual)
            made[residual] = stack
    for stack in (found_stacks := list(dict.fromkeys(made.values()))):
        own = stack.last.after_sum
        stack.final = stack.last.sum_norm if own is None else _only_norm(record, own.outputs[0])
    return found_stacks


def _residual(record: Record, event: Event) -> Residual | None:
    for operand in (0, 1):
        branch, skip = event.values[operand], event.values[1 - operand]
        inner = _between(record, skip, branch)
        normalized = _only_norm(record, event.outputs[0]) is not None
        if inner and (normalized or any(each.name == "norm" or _is_layer(each) for each in inner)):
            entries = [each for each in record.readers[skip] if each in inner]
            return Residual(event, skip, branch, operand, entries, sorted(inner, key=lambda each: each.index))
    return None


def _is_layer(event: Event) -> bool:
    """Whether it multiplies by a matrix; a weight that a parametrization computes is no parameter."""
    return event.name in LINEAR or (event.module is None and any(p.dim() > 1 for p in event.parameters))


def _between(record: Record, start: int, end: int) -> set[Event]:
    """The events by which the second value is computed from the first one; none if it is not."""
    first = record.makers[start].index if start in record.makers else -1
    back: dict[int, Event] = {}
    waiting = [end]
    while waiting:
        event = record.makers.get(waiting.pop())
        if event is not None and event.index > first and event.index not in back:
            back[event.index] = event
            waiting += event.values
    reached, inner = {start}, set()
    for index in sorted(back):
        if reached.intersection(back[index].values):
            inner.add(back[index])
            reached.update(back[index].outputs)
    return inner if end in reached else set()


def _find_norms(record: Record, residual: Residual) -> None:
    only = residual.entries[0] if len(residual.entries) == 1 else None
    residual.input_norm = only if only is not None and only.name == "norm" else None
    maker = record.makers.get(residual.branch)
    while maker is not None and is_scale(maker):
        maker = record.makers.get(maker.values[0])
    if maker is not None and maker.name == "norm" and maker in residual.inner and maker is not residual.input_norm:
        residual.output_norm = maker
    residual.sum_norm = _only_norm(record, residual.sum.outputs[0])


def _only_norm(record: Record, value: int) -> Event | None:
    """The norm that alone reads a value."""
    readers = record.readers.get(value, [])
    alone = len(readers) == 1 and readers[0].name == "norm" and value not in record.returned
    return readers[0] if alone else None


def is_scale(event: Event) -> bool:
    """Whether it multiplies one tensor by a number or a parameter, or drops elements."""
    return event.name in SCALES | DROPS and len(event.values) == 1


def _source(record: Record, value: int) -> tuple[Event | None, Event | None]:
    """What made a value, before dropout, moves and norms; and the norm that is nearest to the value."""
    norm = None
    event = record.makers.get(value)
    while event is not None and len(event.values) == 1 and (event.name == "norm" or event.name in MOVES | DROPS):
        norm = event if norm is None and event.name == "norm" else norm
        event = record.makers.get(event.values[0])
    return event, norm


def last_linear(record: Record, residual: Residual) -> Event | None:
    """The layer after which only moves, scales and dropout follow in the branch, so that the branch is linear in it."""
    event = record.makers.get(residual.branch)
    while event is not None and len(event.values) == 1 and (is_scale(event) or event.name in MOVES | {"__getitem__"}):
        event = record.makers.get(event.values[0])
    return event if event is not None and event.name in LINEAR and event in residual.inner else None


def end_of_branch(record: Record, residual: Residual) -> Event | Pass:
    """The first of the scales and dropouts at the end of the branch that stand in the method of the sum, else the sum.

    A norm of the branch's output has to be before these: after it, a scale would have no effect, and dropout of
    whole branches would be scaled up again.
    """
    end: Event | Pass = residual.sum
    frame = residual.sum.sites[-1].frame
    value = residual.branch
    while True:
        maker = record.makers.get(value)
        inside = place_in(maker, frame) if maker is not None else None
        for each in record.passes:
            place = place_in(each, frame)
            if each.value == value and place is not None and (inside is None or place.place != inside.place):
                end = each
                break
        if maker is None or not is_scale(maker) or inside is None:
            return end
        before = record.makers.get(maker.values[0])
        place = place_in(before, frame) if before is not None else None
        if place is not None and place.place == inside.place:
            return end
        end, value = maker, maker.values[0]


def place_in(event: Event | Pass, frame: int) -> Site | None:
    """Where an execution of a method was, when the event happened; None if it was not running."""
    return next((site for site in event.sites if site.frame == frame), None)


def check(record: Record, residual: Residual, known: Mapping[nn.Module, NormInfo]) -> None:
    """Refuse a block whose placement is not that of one norm.

    Raises:
        RefusedError: with the reason.
    """
    inside = [each for each in residual.inner if each.name == "norm" and each not in residual.norms]
    names = {event.norm: type(event.norm).__name__ for event in inside}
    if not residual.norms:
        if sum(each.name == "norm" for each in residual.entries) > 1:
            raise RefusedError("it has parallel branches, each with a norm of its input")
        if names:
            raise RefusedError(
                f"its norm ({', '.join(dict.fromkeys(names.values()))}) is inside the branch, after another layer"
            )
        raise RefusedError("it has no norm")
    channels = [module for module in names if known[module].axis == "first"]
    if channels:
        raise RefusedError(
            f"its branch has further norms over channels ({names[channels[0]]}) between its layers, as in a ResNet: "
            "the placement is not that of one norm"
        )
    if residual.input_norm is not None:
        _check_readers(record, residual.input_norm.outputs[0], residual.inner, "its norm")
    if residual.before is not None:
        _check_readers(record, residual.skip, [*residual.entries, residual.sum], "its input")
    if residual.last:
        end = residual.sum if residual.after_sum is None else residual.after_sum
        if any(event.sizes and len(event.values) == 2 for event in record.readers.get(end.outputs[0], [])):
            raise RefusedError("its sum is added to something that is not computed from it alone")
    for norm in residual.norms:
        info = known[norm.norm]
        if info.kind is None and info.base is None:
            raise RefusedError(f"its norm is not understood: {info.reason}")
        if len(norm.values) != 1 or len(norm.outputs) != 1:
            raise RefusedError(f"its {type(norm.module).__name__} has more than one input or output")


def _check_readers(record: Record, value: int, allowed: Collection[Event], what: str) -> None:
    others = [event for event in record.readers.get(value, []) if event not in allowed]
    if others:
        raise RefusedError(f"{what} is read outside of the branch too, by {others[0].name}()")

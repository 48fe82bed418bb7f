"""Exchanges the norms of a model: for normkit's own of the same method, or for another method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError, StateError, whole_number
from normkit.layers import DynamicErf, DynamicTanh
from normkit.parametrize.checks import check_batches
from normkit.tools.convert.build import AFFINE, REGIONS, equivalent, groups_for, leaves_groups_open, other
from normkit.tools.convert.calibrate import fit
from normkit.tools.convert.fade import Fade, FadeSchedule, Schedule, schedule_of
from normkit.tools.convert.identity import IDENTITY, Gain, without_norm
from normkit.tools.convert.report import Change, ConvertReport, as_text
from normkit.tools.convert.scalars import fit_scalars
from normkit.tools.convert.target import OWN, ConversionTarget, To
from normkit.tools.convert.torch_encoder import encoder_layers, turn_off, turned_off
from normkit.tools.model.call import shapes as shapes_in
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import Refusal, RefusedError, refuse_strictly
from normkit.tools.model.statistics import keeps_statistics
from normkit.tools.model.tree import Place, copy_of, has_hooks, module_places, norms, replace
from normkit.tools.model.wrapped import refuse_wrapped

M = TypeVar("M", bound=nn.Module)


def convert(
    model: M,
    to: To = None,
    *,
    calibrate: Iterable[Any] | None = None,
    schedule: Schedule | None = None,
    example: Any = None,
    num_groups: int | None = None,
    inplace: bool = False,
    strict: bool = False,
) -> tuple[M, ConvertReport]:
    """Exchange the norms of a model.

    Without `to`, every norm of torch, timm, transformers or anyone else that computes what a layer of normkit
    computes is replaced by that layer: same keys in ``state_dict``, same outputs and gradients to rounding.
    With `to`, norms become another method. They keep weight, bias, hooks and mode, and the activation and dropout that
    are part of a norm. Shared norms stay shared. A norm whose conversion would give wrong results stays as it is, and
    the report has the reason.

    Args:
        model: any module.
        to: None for normkit's own layers; or a method, its alias or class, or a pattern, for all norms; or a
            mapping {key: method}, the first key that fits counts, where a key is a class, a method, or a name in the
            model with the wildcards of the shell, and the method None leaves a norm as it is; or a function
            ``(name, module) -> method, None or a module``. The method ``"affine"`` makes of running statistics,
            weight and bias one scale and shift for each channel: what the norm does in evaluation. ``"identity"``
            removes the norm.
        calibrate: batches of the model's input, each a tensor, a tuple of positional or a mapping of keyword
            arguments; of a loader's ``(x, y)`` the first. The new weights and biases are then those with which each
            new layer comes nearest, in least squares, to the outputs of the old one in evaluation; running statistics
            are those of the batches. Of dynamic tanh and erf the slope and the shift are fitted too, and
            ``"identity"`` becomes one constant gain, which keeps the root mean square; both need the batches twice,
            and keep them in memory.
        schedule: None to exchange at once. Otherwise each norm becomes a `normkit.tools.convert.Fade`, which mixes it
            with its replacement, and `normkit.advance` moves it: linearly over a number of steps, as ``("linear", n)``
            or ``("cosine", n)``, or by a function of the step that returns the share of the replacement.
        example: one such batch, which shows the shapes inside the model.
        num_groups: for group norm; where it does not divide the channels, the nearest that does is taken. By
            default the nearest to 32 that leaves two channels or more in a group.
        inplace: whether to change the model itself and not a copy.
        strict: whether to raise where a norm would be refused.

    Returns:
        The changed model and the report: every change and every refusal; ``report.revert(model)`` undoes it.
        Parameters stay the same objects, so that an optimizer stays valid, other than those that `calibrate` or
        ``"affine"`` sets.

    Raises:
        ArgumentError: an unknown method, a name that no norm has, no batches to calibrate with.
        StateError: with `strict`, a norm that cannot be converted; a scripted model; one that is sharded, or, with
            `to`, wrapped for several processes.
        In every case the model is as it was before.

    Example:
        >>> import torch, normkit
        >>> model = nn.Sequential(nn.Conv2d(3, 72, 3), nn.BatchNorm2d(72), nn.ReLU())
        >>> converted, report = normkit.convert(model, to="group_norm", num_groups=32)
        >>> print(report)
        1: torch BatchNorm2d -> GroupNorm(36, 72, eps=1e-05, affine=True, bias=True), 32 groups asked, 36 divide 72
        >>> report.revert(converted)[1]
        BatchNorm2d(72, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    if num_groups is not None and whole_number("num_groups", num_groups) < 1:
        raise ArgumentError(f"num_groups must be at least 1, got {num_groups}: use 32, or leave it out")
    if calibrate is not None and to is None:
        raise ArgumentError("calibrate fits the weights of another method, and to= names none: give to=")
    if schedule is not None and to is None:
        raise ArgumentError("schedule fades norms into another method, and to= names none: give to=")
    fading = None if schedule is None else schedule_of(schedule)
    if calibrate is not None:
        check_batches("calibrate", calibrate)
    found = list(norms(model))
    refuse_wrapped(model, "convert" if to is None else "convert(to=)", same_tensors=to is None)
    target = ConversionTarget.of(to, [place for place, _ in found])
    if not inplace:
        model, found = _copied(model, found)
    batches = None if calibrate is None else iter(calibrate)
    if batches is not None:
        try:
            first = next(batches)
        except StopIteration:
            raise ArgumentError("calibrate needs at least one batch, got none: give some, as with [x]") from None
        batches = chain([first], batches)
        example = first if example is None else example
    modules = [place.module for place, _ in found]
    with turned_off(model):
        shapes = {} if example is None else shapes_in(model, modules, example)
    plan = _Plan(target, num_groups, shapes, add_affine=calibrate is not None, fading=fading)
    for place, info in found:
        plan.decide(place, info)
    refuse_strictly(strict, plan.refusals, "no refusal, and there are {}", "leave these out")
    if batches is not None:
        with turned_off(model):
            plan.calibrate(model, batches)
    plan.fade()
    turn_off(model, plan.encoder_layers)
    model = replace(model, plan.new)  # type: ignore[assignment]  # the root itself may be a norm
    return model, ConvertReport(tuple(plan.changes.values()), tuple(plan.refusals), tuple(plan.kept))


def _copied(model: M, found: list[tuple[Place, NormInfo]]) -> tuple[M, list[tuple[Place, NormInfo]]]:
    """A deep copy, and its norms with their descriptions."""
    model = copy_of(model)
    info = {place.name: info for place, info in found}
    return model, [(place, info[place.name]) for place in module_places(model) if place.name in info]


class _Plan:
    """Decides what each norm becomes; the model is not changed."""

    def __init__(
        self,
        target: ConversionTarget,
        groups: int | None,
        shapes: Mapping[nn.Module, list[torch.Size]],
        *,
        add_affine: bool,
        fading: Callable[[int], float] | None,
    ) -> None:
        self.target = target
        self.groups = groups
        self.shapes = shapes
        self.add_affine = add_affine
        self.fading = fading
        self.new: dict[nn.Module, nn.Module] = {}
        self.same: set[nn.Module] = set()
        self.info: dict[nn.Module, NormInfo] = {}
        self.changes: dict[nn.Module, Change] = {}
        self.refusals: list[Refusal] = []
        self.kept: list[str] = []
        self.encoder_layers: list[nn.Module] = []

    def decide(self, place: Place, info: NormInfo) -> None:
        """Make the new layer of one norm, or note why there is none."""
        seen = {len(shape) - 2 for shape in self.shapes.get(place.module, [])}
        if info.rank is None and info.axis == "first" and len(seen) == 1:
            info = dataclasses.replace(info, rank=seen.pop())
        method = self.target.method(place, info)
        same = method == OWN or (method == info.kind and (self.groups is None or info.groups is None))
        if method is None or method is place.module or (same and info.origin == "normkit"):
            self.kept.append(place.name)
            return
        old = as_text(place.module, info)
        note = ""
        try:
            if isinstance(method, nn.Module):
                new = method
            elif same:
                new = equivalent(place.module, info)
                _check_keys(place.module, new)
                note = _rounding_note(info, new)
            else:
                new = self._other(place.module, info, method)
                self.encoder_layers += encoder_layers(place)
                note = self._note(info, method, new)
            if self.fading is not None and not same:
                _refuse_hooks(place.module)
        except RefusedError as reason:
            self.refusals.append(Refusal(place.name, old, str(reason)))
            return
        self.new[place.module] = new
        self.info[place.module] = info
        self.same |= {place.module} if same else set()
        self.changes[place.module] = Change(
            name=place.name,
            names=place.names,
            old=old,
            new=as_text(new),
            method=(same and (info.kind or info.base)) or (method if isinstance(method, str) else type(new).__name__),
            note=note,
            original=place.module,
            made=type(new).__name__,
            folded=method == AFFINE,
            given=_values(new) if method == AFFINE else {},
        )

    def _other(self, module: nn.Module, info: NormInfo, method: str) -> nn.Module:
        """The layer of another method, or what is left without one."""
        if method == IDENTITY:
            return without_norm(module, info, with_gain=self.add_affine)
        shapes = self.shapes.get(module, [])
        return other(module, info, method, groups=self.groups, shapes=shapes, add_affine=self.add_affine)

    def _note(self, info: NormInfo, method: str, new: nn.Module) -> str:
        groups_are_open = method in REGIONS and leaves_groups_open(REGIONS[method])
        if groups_are_open and self.groups is not None and info.channels % self.groups:
            used = groups_for(info.channels, self.groups)
            return f"{self.groups} groups asked, {used} divide {info.channels}"
        if keeps_statistics(new) and not self.add_affine:
            return "running statistics start at 0 and 1: recalibrate, or pass calibrate="
        return ""

    def calibrate(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Fit the new layers that have numbers to fit; a method that is exact already is left alone."""
        changed = {
            old: (self.info[old], new)
            for old, new in self.new.items()
            if not self.changes[old].folded
            and self.changes[old].method != self.info[old].kind
            and type(new).__module__.startswith("normkit.")
        }
        pairs = {
            old: (info, new)
            for old, (info, new) in changed.items()
            if (weight := new._parameters.get("weight")) is not None and weight.numel() == info.channels
        }
        scalars = {old: pair for old, pair in changed.items() if isinstance(pair[1], DynamicTanh | DynamicErf | Gain)}
        try:
            if scalars:
                batches = list(batches)
                for old, found in fit_scalars(model, scalars, batches).items():
                    self.changes[old] = self.changes[old].with_note(found.text, found.residual)
            fitted = fit(model, pairs, batches)
        except RefusedError as reason:
            raise StateError(f"calibrate cannot take a norm apart from its activation: {reason}") from None
        for old, (_, new) in pairs.items():
            if old in fitted:
                self.changes[old] = self.changes[old].fitted(new, fitted[old])
            else:
                self.changes[old] = self.changes[old].with_note("no batch reached it, so that nothing was fitted")

    def fade(self) -> None:
        """With a schedule: both the old layer and the new one, in one module; of the same method the new one alone."""
        if self.fading is None:
            return
        how = self.fading if isinstance(self.fading, FadeSchedule) else "by a function of the step"
        for old, new in self.new.items():
            if old not in self.same:
                self.new[old] = Fade(old, new, self.fading)
                self.changes[old] = self.changes[old].with_note(f"fades in, {how}")


def _rounding_note(info: NormInfo, new: nn.Module) -> str:
    """Whether outputs in half precision differ, of a layer that computes the same in higher precision."""
    same = not info.rounds_its_own_way and info.rounds_twice == (getattr(new, "cast", "after") == "before")
    return "" if same else "in half precision the old norm rounds elsewhere, so that outputs differ by rounding"


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that a module has itself."""
    return {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}


def _check_keys(old: nn.Module, new: nn.Module) -> None:
    """The same keys and shapes, so that state dicts load both ways."""
    states = [{key: tuple(value.shape) for key, value in module.state_dict().items()} for module in (old, new)]
    if states[0] != states[1]:
        raise RefusedError(
            f"its state has other keys than normkit's layer: {sorted(states[0].items() ^ states[1].items())}"
        )


def _refuse_hooks(module: nn.Module) -> None:
    if has_hooks(module):
        raise RefusedError("it has hooks, which would not see the mixed output: remove them before the fade")

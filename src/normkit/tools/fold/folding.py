"""Decides which norm is folded into which layer, folds it, and can undo that."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from normkit.errors import ArgumentError
from normkit.tools.fold import fold_math
from normkit.tools.fold.check import coarsest, compared, distance, doubled, drawn, same_draws
from normkit.tools.fold.norms import foldable
from normkit.tools.fold.report import Fold, FoldReport
from normkit.tools.model.activated import module_of
from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.dataflow import Dataflow, record
from normkit.tools.model.graph.symbolic import SymbolicGraph
from normkit.tools.model.refusal import Refusal, RefusedError
from normkit.tools.model.statistics import scale_and_shift
from normkit.tools.model.tree import LAYERS, Layer, module_places, replace

EXACT = 1e-9
"""How far a folded pair may be from the original in float64, of the output's size: a wrong fold is off by far more,
rounding by 1e-16 times the ratio of mean to standard deviation."""


class Folding:
    """A model that is being folded, with all that is needed to undo it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.training = {module for module in model.modules() if module.training}
        self.names = {place.module: place.name for place in module_places(model)}
        self.found = foldable(model)
        self.folds: dict[nn.Module, Fold] = {}
        self.successors: dict[nn.Module, nn.Module] = {}
        self.attributes: dict[nn.Module, dict[str, Any]] = {}
        self.weights: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []

    def fold(self, example: Any, tolerance: float | None) -> FoldReport:
        """Fold all norms that can be folded, and undo it if the outputs of the model change."""
        reasons: dict[nn.Module, str] = {}
        flow, graph = self.traced(example)
        before = self.outputs(flow)
        allowed = tolerance if tolerance is not None else coarsest(self.model, before) ** 0.5
        try:
            graph = self.rounds(flow, graph, example, reasons)
            error = self.largest_change(example, before) if self.folds else 0.0
            text = f"outputs changed by {error:.2g} of their size, and {allowed:.2g} is allowed"
        except RefusedError as refusal:
            error, text = float("inf"), str(refusal)
        if not error <= allowed:
            reasons |= dict.fromkeys(self.folds, f"folding was undone: {text}")
            self.undo()
        folds = tuple(self.folds[norm] for norm in self.found if norm in self.folds)
        refusals = tuple(
            Refusal(place.name, type(norm).__name__, reasons[norm])
            for norm, (place, _) in self.found.items()
            if norm not in self.folds
        )
        return FoldReport(folds, refusals, graph is not None, error, allowed)

    def traced(self, example: Any) -> tuple[Dataflow, SymbolicGraph | None]:
        layers = {module for module in self.model.modules() if isinstance(module, LAYERS)}
        watched = layers | (self.found.keys() - self.folds.keys())
        with same_draws(self.model):
            flow = record(self.model, watched, example)
        return flow, SymbolicGraph.of(self.model, watched, example)

    def rounds(
        self, flow: Dataflow, graph: SymbolicGraph | None, example: Any, reasons: dict[nn.Module, str]
    ) -> SymbolicGraph | None:
        """Repeat until nothing folds, because after a fold the next norm follows another layer."""
        while True:
            done = len(self.folds)
            for norm in [norm for norm in self.found if norm not in self.folds]:
                try:
                    self.fold_one(norm, flow, graph)
                except RefusedError as refusal:
                    reasons[norm] = str(refusal)
            if len(self.folds) == done:
                return graph
            with self.runs_on():
                flow, graph = self.traced(example)

    @contextlib.contextmanager
    def runs_on(self) -> Iterator[None]:
        """Refuse the fold if the model raises now; it ran before."""
        try:
            yield
        except Exception as error:
            raise RefusedError(f"the folded model raises {type(error).__name__}: {error}") from error

    def outputs(self, flow: Dataflow) -> list[Tensor]:
        """The outputs for the example, to be compared with those of the folded model."""
        before = [tensor.clone() for tensor in compared(flow.output)]
        if not before:
            raise ArgumentError(
                "fold compares the model's outputs before and after, got none of floating point from "
                f"{type(self.model).__name__}: wrap the model so that it returns them"
            )
        if not any(bool(tensor.isfinite().any()) for tensor in before):
            raise ArgumentError(
                "fold compares the model's outputs before and after, got only nan, inf or empty ones from "
                f"{type(self.model).__name__}: give an example with finite values"
            )
        return before

    def largest_change(self, example: Any, before: list[Tensor]) -> float:
        """Largest change of an output, of that output's largest value; infinite if nan or inf differ."""
        with self.runs_on(), same_draws(self.model), torch.no_grad():
            after = compared(call_on_example(self.model, example))
        return max(distance(new, old) for new, old in zip(after, before, strict=True))

    def fold_one(self, norm: nn.Module, flow: Dataflow, graph: SymbolicGraph | None) -> None:
        """Fold into the layer before the norm, or else into the one after it."""
        _, info = self.found[norm]
        if not info.kind:
            raise RefusedError(info.reason)
        if not info.running:
            raise RefusedError("it has no running statistics and normalizes by its input")
        if norm in self.training and isinstance(norm, _NormBase):
            raise RefusedError("it is in training mode and normalizes by the batch: call model.eval() first")
        if not flow.calls[norm]:
            raise RefusedError("the example does not reach it")
        if reason := _hooked(norm):
            raise RefusedError(f"it {reason}")
        asked = flow.asked[norm] or ({"parameters"} if graph is not None and norm in graph.reads else set())
        if asked:
            raise RefusedError(f"forward also reads its {min(asked)}, which would be missing")
        scale, shift = scale_and_shift(norm, info.eps or 0.0)
        try:
            layer = self.layer_before(norm, scale, flow, graph)
            weight, bias = fold_math.after(layer, scale, shift)
            self.check([layer, norm], layer, weight, bias, _left(norm), flow)
            side = "before"
        except RefusedError as first:
            try:
                layer = self.layer_after(norm, shift, flow, graph)
                weight, bias = fold_math.before(layer, scale, shift)
                self.check([norm, layer], layer, weight, bias, nn.Identity(), flow)
                side = "after"
            except RefusedError as second:
                raise RefusedError(f"{first}; {second}") from None
        self.commit(norm, layer, weight, bias, side)

    def layer_before(self, norm: nn.Module, scale: Tensor, flow: Dataflow, graph: SymbolicGraph | None) -> Layer:
        """The layer whose whole output goes to the norm alone."""
        sources = {call.source.module if call.source else None for call in flow.calls[norm]}
        layer = next(iter(sources))
        if layer is None or len(sources) > 1:
            raise RefusedError("its input does not come straight from one convolution or linear layer")
        name = repr(self.names[layer])
        if not isinstance(layer, LAYERS):
            raise RefusedError(f"its input comes from {name}, a {type(layer).__name__}")
        others = [taker for call in flow.calls[layer] for taker in call.consumers if taker is not norm]
        if others:
            raise RefusedError(f"the output of {name} also goes to {self.called(others[0])}")
        self.check_usable(layer, flow, graph)
        if fold_math.channels_out(layer) != scale.numel() or (
            isinstance(layer, nn.Linear) and any(call.input.dim() != 2 for call in flow.calls[norm])
        ):
            raise RefusedError(f"it normalizes another dimension than {name} makes")
        if graph is not None and not graph.joins(layer, norm):
            raise RefusedError(f"the model's graph has another path from {name}, or to the norm")
        return layer

    def layer_after(self, norm: nn.Module, shift: Tensor, flow: Dataflow, graph: SymbolicGraph | None) -> Layer:
        """The layer that alone takes the norm's output, and takes nothing else."""
        takers = {taker for call in flow.calls[norm] for taker in call.consumers}
        layer = next(iter(takers), None)
        if len(takers) != 1 or not isinstance(layer, LAYERS):
            raise RefusedError("its output does not go straight to one such layer")
        name = repr(self.names[layer])
        if not isinstance(_left(norm), nn.Identity):
            raise RefusedError(f"its activation is applied before {name}")
        if any(call.source is None or call.source.module is not norm for call in flow.calls[layer]):
            raise RefusedError(f"{name} also has other inputs")
        self.check_usable(layer, flow, graph)
        if fold_math.channels_in(layer) != shift.numel() or (
            isinstance(layer, nn.Linear) and any(call.input.dim() != 2 for call in flow.calls[layer])
        ):
            raise RefusedError(f"it normalizes another dimension than {name} sums over")
        if (why := fold_math.shift_is_lost(layer)) and bool(shift.any()):
            raise RefusedError(f"it cannot be folded into {name}, which follows it: {why}")
        if graph is not None and not graph.joins(norm, layer):
            raise RefusedError(f"the model's graph has another path to {name}, or from the norm")
        return layer

    def called(self, taker: nn.Module | str) -> str:
        return taker if isinstance(taker, str) else repr(self.names[taker])

    def check_usable(self, layer: Layer, flow: Dataflow, graph: SymbolicGraph | None) -> None:
        """The layer's weight is its own, plain, and used by nothing but its forward."""
        name = repr(self.names[layer])
        if parametrize.is_parametrized(layer) or layer._parameters.get("weight") is None:
            raise RefusedError(f"the weight of {name} is computed from others: remove its parametrization first")
        for key, parameter in layer.named_parameters(recurse=False):
            if what := fold_math.unusual(parameter):
                raise RefusedError(f"the {key} of {name} is {what}")
        if reason := _hooked(layer):
            raise RefusedError(f"{name} {reason}")
        if flow.reads[layer]:
            raise RefusedError(f"the weight of {name} is also read by {min(flow.reads[layer])}")
        if graph is not None and graph.reads_values(layer):
            raise RefusedError(f"the model's graph also reads the weight of {name}")

    @torch.no_grad()
    def check(
        self, pair: list[nn.Module], layer: Layer, weight: Tensor, bias: Tensor, left: nn.Module, flow: Dataflow
    ) -> None:
        """In float64, where rounding errors are tiny, the output of the folded layer must be that of the pair."""
        name, dtype = repr(self.names[layer]), layer.weight.dtype
        if not all(bool(tensor.to(dtype).isfinite().all()) for tensor in (weight, bias)):
            raise RefusedError(f"the folded weight of {name} would not be finite in {dtype}")
        try:
            exact = [copy.deepcopy(module).double() for module in pair]
            for module, original in zip(exact, pair, strict=True):
                # The mode of a norm of a frozen class must make no difference.
                module.training = original in self.training and original in self.found
            new = copy.deepcopy(layer).double()
            fold_math.set_parameters(new, weight, bias)
            then = copy.deepcopy(left).double()
            given = [doubled(call.args) for call in flow.calls[pair[0]]]
            for args, kwargs in (*given, drawn(given[0])):
                expected = exact[1](exact[0](*args, **kwargs))
                if not expected.numel() or not bool(expected.isfinite().all()):
                    raise RefusedError("on the example it gives nan, inf or no values, which cannot be compared")
                error = distance(then(new(*args, **kwargs)), expected)
                if not error <= EXACT:
                    raise RefusedError(
                        f"{name} or the norm computes more than its parameters say: folded, off by "
                        f"{error:.1g} of its output's size"
                    )
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise RefusedError(f"the pair with {name} cannot be checked in float64: {error}") from error

    def commit(self, norm: nn.Module, layer: Layer, weight: Tensor, bias: Tensor, side: str) -> None:
        place, _ = self.found[norm]
        left = _left(norm)
        self.weights.append((layer, dict(layer._parameters)))
        fold_math.set_parameters(layer, weight, bias)
        self.attributes[norm] = dict(vars(norm))
        replace(self.model, {norm: left})
        self.successors[norm] = left
        text = type(norm).__name__
        self.folds[norm] = Fold(place.name, place.names, text, self.names[layer], side, type(left).__name__)

    def undo(self) -> None:
        """Everything as it was: parameters are the same objects again."""
        replace(self.model, {left: norm for norm, left in self.successors.items()})
        for norm, attributes in self.attributes.items():
            vars(norm).clear()
            vars(norm).update(attributes)
        for layer, parameters in reversed(self.weights):
            layer._parameters.clear()
            layer._parameters.update(parameters)
        self.folds, self.successors, self.attributes, self.weights = {}, {}, {}, []


def _left(norm: nn.Module) -> nn.Module:
    """The module that is left of a norm: its dropout and activation, or `Identity`."""
    own = getattr(norm, "activation", None)
    steps = [module_of(own) if isinstance(own, str) else None, *(norm._modules.get(key) for key in ("drop", "act"))]
    kept = [step for step in steps if step is not None and not isinstance(step, nn.Identity)]
    if not kept:
        return nn.Identity()
    # A shallow copy, because it takes over the hooks of the norm; a step that has hooks is wrapped instead.
    return copy.copy(kept[0]) if len(kept) == 1 and not _hooked(kept[0]) else nn.Sequential(*kept)


def _hooked(module: nn.Module) -> str:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(vars(module)[name] for name in hooks):
        return "has hooks, which would see other values"
    return "has a forward of its own" if "forward" in vars(module) else ""

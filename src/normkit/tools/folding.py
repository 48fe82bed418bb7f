"""Which norm goes into which layer, the exchange itself, and the way back."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from normkit.errors import ArgumentError
from normkit.tools import absorb
from normkit.tools.absorb import LAYERS, Layer
from normkit.tools.activated import module_of
from normkit.tools.flow import Flow, Graph, record, run, tensors_in
from normkit.tools.fold_report import Fold, FoldRefusal, FoldReport
from normkit.tools.walk import Facts, Place, norms, replace, walk

EXACT = 1e-9
"""How far a folded pair may be from the original in float64, of the output's size: a wrong fold is off by far more,
rounding by 1e-16 times the ratio of mean to standard deviation."""


class _RefusedError(Exception):
    """Why a norm stays."""


class Folding:
    """A model that is being folded, and the way back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.training = {module for module in model.modules() if module.training}
        self.names = {place.module: place.name for place in walk(model)}
        self.found: dict[nn.Module, tuple[Place, Facts]] = {}
        for place, facts in norms(model):
            if not facts.kind and _looks_like_batch_norm(place.module):
                facts = dataclasses.replace(facts, kind="batch_norm", running=True, eps=place.module.eps)  # type: ignore[arg-type]
            unclear = not facts.kind and isinstance(place.module, _NormBase)
            if unclear or facts.kind in ("batch_norm", "instance_norm"):
                self.found[place.module] = (place, facts)
        self.folds: dict[nn.Module, Fold] = {}
        self.successors: dict[nn.Module, nn.Module] = {}
        self.attributes: dict[nn.Module, dict[str, Any]] = {}
        self.weights: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []

    def fold(self, example: Any, tolerance: float | None) -> FoldReport:
        """Round after round, because a norm behind a folded one has another layer before it."""
        reasons: dict[nn.Module, str] = {}
        before: list[Tensor] | None = None
        graph: Graph | None = None
        while True:
            layers = {module for module in self.model.modules() if isinstance(module, LAYERS)}
            watched = layers | (self.found.keys() - self.folds.keys())
            with _same_draws(self.model):
                flow = record(self.model, watched, example)
            if before is None:
                before = [tensor.clone() for tensor in tensors_in(flow.output) if tensor.is_floating_point()]
                if not before:
                    raise ArgumentError(
                        "fold compares the model's outputs before and after, got none of floating point from "
                        f"{type(self.model).__name__}: wrap the model so that it returns them"
                    )
            graph = Graph.of(self.model, watched, example)
            done = len(self.folds)
            for norm in [norm for norm in self.found if norm not in self.folds]:
                try:
                    self.fold_one(norm, flow, graph)
                except _RefusedError as refusal:
                    reasons[norm] = str(refusal)
            if len(self.folds) == done:
                break
        allowed = tolerance if tolerance is not None else _coarsest(self.model, before) ** 0.5
        error = self.moved_by(example, before) if self.folds else 0.0
        if not error <= allowed:
            text = f"folding was undone: outputs moved by {error:.2g} of their size, and {allowed:.2g} is allowed"
            reasons |= dict.fromkeys(self.folds, text)
            self.undo()
        folds = tuple(self.folds[norm] for norm in self.found if norm in self.folds)
        refusals = tuple(
            FoldRefusal(place.name, type(norm).__name__, reasons[norm])
            for norm, (place, _) in self.found.items()
            if norm not in self.folds
        )
        return FoldReport(folds, refusals, graph is not None, error, allowed)

    def moved_by(self, example: Any, before: list[Tensor]) -> float:
        """Largest change of an output, of that output's largest value; infinite where nan or inf moved."""
        with _same_draws(self.model), torch.no_grad():
            after = [tensor for tensor in tensors_in(run(self.model, example)) if tensor.is_floating_point()]
        return max(_distance(new, old) for new, old in zip(after, before, strict=True))

    def fold_one(self, norm: nn.Module, flow: Flow, graph: Graph | None) -> None:
        """Fold into the layer before the norm, or else into the one after it."""
        _, facts = self.found[norm]
        if not facts.kind:
            raise _RefusedError(facts.reason)
        if not facts.running:
            raise _RefusedError("it has no running statistics and normalizes by its input")
        if norm in self.training and isinstance(norm, _NormBase):
            raise _RefusedError("it is in training mode and normalizes by the batch: call model.eval() first")
        if not flow.calls[norm]:
            raise _RefusedError("the example does not reach it")
        if reason := _hooked(norm):
            raise _RefusedError(f"it {reason}")
        scale, shift = absorb.scale_and_shift(norm, facts.eps or 0.0)
        try:
            layer = self.layer_before(norm, scale, flow, graph)
            weight, bias = absorb.after(layer, scale, shift)
            self.check([layer, norm], layer, weight, bias, _left(norm), flow)
            side = "before"
        except _RefusedError as first:
            try:
                layer = self.layer_after(norm, shift, flow, graph)
                weight, bias = absorb.before(layer, scale, shift)
                self.check([norm, layer], layer, weight, bias, nn.Identity(), flow)
                side = "after"
            except _RefusedError as second:
                raise _RefusedError(f"{first}; {second}") from None
        self.commit(norm, layer, weight, bias, side)

    def layer_before(self, norm: nn.Module, scale: Tensor, flow: Flow, graph: Graph | None) -> Layer:
        """The layer whose whole output goes to the norm alone."""
        sources = {call.source.module if call.source else None for call in flow.calls[norm]}
        layer = next(iter(sources))
        if layer is None or len(sources) > 1:
            raise _RefusedError("its input does not come straight from one convolution or linear layer")
        name = repr(self.names[layer])
        if not isinstance(layer, LAYERS):
            raise _RefusedError(f"its input comes from {name}, a {type(layer).__name__}")
        others = [taker for call in flow.calls[layer] for taker in call.consumers if taker is not norm]
        if others:
            raise _RefusedError(f"the output of {name} also goes to {self.called(others[0])}")
        self.check_usable(layer, flow)
        if absorb.channels_out(layer) != scale.numel() or (
            isinstance(layer, nn.Linear) and any(call.input.dim() != 2 for call in flow.calls[norm])
        ):
            raise _RefusedError(f"it normalizes another dimension than {name} makes")
        if graph is not None and not graph.joins(layer, norm):
            raise _RefusedError(f"the model's graph has another way from {name}, or to the norm")
        return layer

    def layer_after(self, norm: nn.Module, shift: Tensor, flow: Flow, graph: Graph | None) -> Layer:
        """The layer that alone takes the norm's output, and takes nothing else."""
        takers = {taker for call in flow.calls[norm] for taker in call.consumers}
        layer = next(iter(takers), None)
        if len(takers) != 1 or not isinstance(layer, LAYERS):
            raise _RefusedError("its output does not go straight to one such layer")
        name = repr(self.names[layer])
        if not isinstance(_left(norm), nn.Identity):
            raise _RefusedError(f"its activation stands before {name}")
        if any(call.source is None or call.source.module is not norm for call in flow.calls[layer]):
            raise _RefusedError(f"{name} also has other inputs")
        self.check_usable(layer, flow)
        if absorb.channels_in(layer) != shift.numel() or (
            isinstance(layer, nn.Linear) and any(call.input.dim() != 2 for call in flow.calls[layer])
        ):
            raise _RefusedError(f"it normalizes another dimension than {name} sums over")
        if (why := absorb.shift_is_lost(layer)) and bool(shift.any()):
            raise _RefusedError(f"it cannot go into {name} behind it: {why}")
        if graph is not None and not graph.joins(norm, layer):
            raise _RefusedError(f"the model's graph has another way to {name}, or from the norm")
        return layer

    def called(self, taker: nn.Module | str) -> str:
        return taker if isinstance(taker, str) else repr(self.names[taker])

    def check_usable(self, layer: Layer, flow: Flow) -> None:
        """The layer's weight is its own, plain, and used by nothing but its forward."""
        name = repr(self.names[layer])
        if parametrize.is_parametrized(layer) or layer._parameters.get("weight") is None:
            raise _RefusedError(f"the weight of {name} is computed from others: remove its parametrization first")
        if not layer.weight.is_floating_point():
            raise _RefusedError(f"the weight of {name} is {layer.weight.dtype}")
        if reason := _hooked(layer):
            raise _RefusedError(f"{name} {reason}")
        if flow.reads[layer]:
            raise _RefusedError(f"the weight of {name} is also read by {min(flow.reads[layer])}")

    @torch.no_grad()
    def check(
        self, pair: list[nn.Module], layer: Layer, weight: Tensor, bias: Tensor, left: nn.Module, flow: Flow
    ) -> None:
        """In float64, where rounding is out of the question, the folded layer gives what the pair gives."""
        try:
            exact = [copy.deepcopy(module).double() for module in pair]
            for module, original in zip(exact, pair, strict=True):
                # A norm that was made frozen must prove that its mode means nothing.
                module.training = original in self.training and original in self.found
            new = copy.deepcopy(layer).double()
            _set(new, weight, bias)
            then = copy.deepcopy(left).double()
            for call in flow.calls[pair[0]]:
                args, kwargs = _doubled(call.args)
                error = _distance(then(new(*args, **kwargs)), exact[1](exact[0](*args, **kwargs)))
                if not error <= EXACT:
                    raise _RefusedError(
                        f"{self.names[layer]!r} or the norm computes more than its parameters say: folded, off by "
                        f"{error:.1g} of its output's size"
                    )
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise _RefusedError(f"the pair with {self.names[layer]!r} cannot be checked in float64: {error}") from error

    def commit(self, norm: nn.Module, layer: Layer, weight: Tensor, bias: Tensor, side: str) -> None:
        place, _ = self.found[norm]
        left = _left(norm)
        self.weights.append((layer, dict(layer._parameters)))
        _set(layer, weight, bias)
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


def _looks_like_batch_norm(module: nn.Module) -> bool:
    """A frozen batch norm of another library, which keeps all it has as buffers; the check of the pair is its proof."""
    needed = {"weight", "bias", "running_mean", "running_var"}
    return not isinstance(module, _NormBase) and needed <= vars(module)["_buffers"].keys() and hasattr(module, "eps")


def _left(norm: nn.Module) -> nn.Module:
    """What a norm does behind its arithmetic: the dropout and activation it brings along, or nothing."""
    own = getattr(norm, "activation", None)
    steps = [module_of(own) if isinstance(own, str) else None, *(norm._modules.get(key) for key in ("drop", "act"))]
    kept = [step for step in steps if step is not None and not isinstance(step, nn.Identity)]
    if not kept:
        return nn.Identity()
    # A copy of the shell, because it takes over what the norm carried; its own hooks need it left alone inside another.
    return copy.copy(kept[0]) if len(kept) == 1 and not _hooked(kept[0]) else nn.Sequential(*kept)


def _set(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    """New parameters, so that others who hold the old ones keep their values."""
    old = layer.weight
    if layer.bias is not None or bool(bias.any()):
        layer._parameters["bias"] = nn.Parameter(bias.to(old), old.requires_grad)
    layer._parameters["weight"] = nn.Parameter(weight.to(old).contiguous(memory_format=_format(old)), old.requires_grad)


def _format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format


def _hooked(module: nn.Module) -> str:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(vars(module)[name] for name in hooks):
        return "has hooks, which would see other values"
    return "has a forward of its own" if "forward" in vars(module) else ""


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(map(_doubled, value))
    return {key: _doubled(item) for key, item in value.items()} if isinstance(value, dict) else value


def _distance(new: Tensor, old: Tensor) -> float:
    """Largest difference, of the largest finite value; infinite where nan and inf are not the same."""
    finite = old.isfinite()
    if new.shape != old.shape or not torch.equal(finite, new.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    new, old = new[finite].double(), old[finite].double()
    return float((new - old).abs().max() / old.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def _coarsest(model: nn.Module, outputs: list[Tensor]) -> float:
    """The resolution of the coarsest dtype that takes part."""
    dtypes = {tensor.dtype for tensor in [*model.parameters(), *outputs] if tensor.is_floating_point()}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


@contextlib.contextmanager
def _same_draws(model: nn.Module) -> Iterator[None]:
    """A model that draws in evaluation too draws the same numbers in every run."""
    devices = {tensor.get_device() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(0)
        yield

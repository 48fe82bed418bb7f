"""Decides which norm is folded into which layer, folds it, and can undo that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.tools.fold import fold_math
from normkit.tools.fold.check import coarsest, compared, distance, outputs_before, same_draws
from normkit.tools.fold.evidence import Change, Evidence
from normkit.tools.fold.norms import AffineMap, features, foldable, keeps_its_statistics
from normkit.tools.fold.readers import into_readers
from normkit.tools.fold.report import Fold, FoldReport
from normkit.tools.fold.ties import Ties, joined, tie_again, untie
from normkit.tools.fold.writer import into_writer
from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.dataflow import Dataflow, record
from normkit.tools.model.graph.symbolic import SymbolicGraph
from normkit.tools.model.info import NormInfo
from normkit.tools.model.names import Where, chosen
from normkit.tools.model.refusal import Refusal, RefusedError
from normkit.tools.model.tree import hooked, module_places, replace

EXACT = 1e-9
"""How far a folded pair may be from the original in float64, of the output's size: a wrong fold is off by far more,
rounding by 1e-16 times the ratio of mean to standard deviation."""


class Folding:
    """A model that is being folded, with all that is needed to undo it."""

    def __init__(self, model: nn.Module, where: Where = None, *, untie: bool = False) -> None:
        self.model, self.untie = model, untie
        self.training = frozenset(module for module in model.modules() if module.training)
        self.names = {place.module: place.name for place in module_places(model)}
        every = foldable(model)
        wanted = chosen(model, {place.name: norm for norm, (place, _) in every.items()}, where).values()
        self.found = {norm: found for norm, found in every.items() if norm in wanted}
        self.ties = Ties(model)
        self.folds: dict[nn.Module, Fold] = {}
        self.successors: dict[nn.Module, nn.Module] = {}
        self.attributes: dict[nn.Module, dict[str, Any]] = {}
        self.weights: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []
        self.untied: list[tuple[Any, dict[str, str], bool]] = []

    def fold(self, example: Any, tolerance: float | None) -> FoldReport:
        """Fold all norms that can be folded, and undo it if the outputs of the model change."""
        reasons: dict[nn.Module, str] = {}
        flow, graph = self.traced(example)
        before = self.outputs(flow)
        error, text = float("inf"), ""
        try:
            graph = self.rounds(flow, graph, example, reasons)
            error = self.largest_change(example, before) if self.folds else 0.0
        except RefusedError as refusal:
            text = str(refusal)
        allowed = self.resolution(before) ** 0.5 if tolerance is None else tolerance
        if not error <= allowed:
            text = text or f"outputs changed by {error:.2g} of their size, and {allowed:.2g} is allowed"
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
        layers = {module for module in self.model.modules() if fold_math.is_layer(module)}
        here = {norm: info for norm, (_, info) in self.found.items() if norm not in self.folds}
        # The bare norms too, because a norm that is read by one is.
        watched = layers | here.keys() | {left for left in self.successors.values() if left in self.names}
        known = {norm: features(norm, info) for norm, info in here.items() if info.kind or info.base}
        through = {norm for norm in known if keeps_its_statistics(here[norm])}
        with same_draws(self.model):
            flow = record(self.model, watched, example, known, through)
        return flow, SymbolicGraph.of(self.model, watched, example)

    def resolution(self, outputs: list[Tensor]) -> float:
        """That of the coarsest dtype that takes part; many norms of other libraries compute in float32 at best."""
        infos = [self.found[norm][1] for norm, fold in self.folds.items() if fold.taken]
        foreign = any(info.origin not in ("torch", "normkit") for info in infos)
        return max(coarsest(self.model, outputs), torch.finfo(torch.float32).eps if foreign else 0.0)

    def rounds(
        self, flow: Dataflow, graph: SymbolicGraph | None, example: Any, reasons: dict[nn.Module, str]
    ) -> SymbolicGraph | None:
        """Repeat until nothing folds, because after a fold the next norm follows another layer."""
        while True:
            done = len(self.folds)
            evidence = Evidence(self.names, flow, graph, self.ties, self.untie, self.training, EXACT)
            for norm in [norm for norm in self.found if norm not in self.folds]:
                try:
                    self.fold_one(norm, evidence)
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
        return outputs_before("fold", self.model, flow.output)

    def largest_change(self, example: Any, before: list[Tensor]) -> float:
        """Largest change of an output, of that output's largest value; infinite if nan or inf differ."""
        with self.runs_on(), same_draws(self.model), torch.no_grad():
            after = compared(call_on_example(self.model, example))
        return max(distance(new, old) for new, old in zip(after, before, strict=True))

    def fold_one(self, norm: nn.Module, evidence: Evidence) -> None:
        """Fold into the layer before the norm, or else into those after it."""
        _, info = self.found[norm]
        self.check(norm, info, evidence)
        affine = AffineMap.of(norm, info)
        if affine.taken:
            self.commit(affine, "after", into_readers(evidence, affine), evidence)
            return
        try:
            self.commit(affine, "before", (into_writer(evidence, affine),), evidence)
        except RefusedError as first:
            try:
                self.commit(affine, "after", into_readers(evidence, affine), evidence)
            except RefusedError as second:
                raise RefusedError(f"{first}; {second}") from None

    def check(self, norm: nn.Module, info: NormInfo, evidence: Evidence) -> None:
        """It is a norm that can be folded, and runs as nothing else."""
        bare = keeps_its_statistics(info)
        if not (info.kind or bare):
            raise RefusedError(info.reason)
        if not (info.running or bare):
            raise RefusedError(
                "it has no running statistics and normalizes by its input"
                if info.may_keep_statistics
                else f"fold does not know what is left of {info.kind} without its weight and bias"
            )
        if norm in self.training and (bare or isinstance(norm, _NormBase)):
            by_batch = "" if bare else " and normalizes by the batch"
            raise RefusedError(f"it is in training mode{by_batch}: call model.eval() first")
        if not evidence.flow.calls[norm]:
            raise RefusedError("the example does not reach it")
        if reason := hooked(norm):
            raise RefusedError(f"it {reason}")
        graph = evidence.graph
        asked = evidence.flow.asked[norm] or ({"parameters"} if graph is not None and norm in graph.reads else set())
        if asked:
            then = "so that it may compute the norm itself" if bare else "which would be missing"
            raise RefusedError(f"forward also reads its {min(asked)}, {then}")

    def commit(self, affine: AffineMap, side: str, changes: tuple[Change, ...], evidence: Evidence) -> None:
        """Change the layers, replace the norm, and note what undoes it."""
        norm, left = affine.norm, affine.left
        place, _ = self.found[norm]
        layers = tuple(self.names[change.layer] for change in changes)
        new_keys: list[str] = []
        untied: dict[str, int] = {}
        for change in changes:
            layer, before = change.layer, dict(change.layer._parameters)
            for key in evidence.shared(layer):
                parameter = layer._parameters[key]
                assert parameter is not None
                untied[joined(self.names[layer], key)] = parameter.numel() * parameter.element_size()
            self.weights.append((layer, before))
            fold_math.set_parameters(layer, change.weight, change.bias)
            if before["bias"] is None and layer.bias is not None:
                new_keys.append(joined(self.names[layer], "bias"))
        self.untied += untie(self.ties.listed({*untied}))
        self.attributes[norm] = dict(vars(norm))
        replace(self.model, {norm: left})
        self.successors[norm] = left
        if affine.taken:
            self.names[left] = place.name
        self.folds[norm] = Fold(
            place.name,
            place.names,
            type(norm).__name__,
            ", ".join(layers),
            side,
            type(left).__name__,
            layers,
            tuple(new_keys),
            tuple(untied),
            sum(untied.values()),
            affine.taken,
        )

    def undo(self) -> None:
        """Everything as it was: parameters are the same objects again."""
        replace(self.model, {left: norm for norm, left in self.successors.items()})
        for norm, attributes in self.attributes.items():
            vars(norm).clear()
            vars(norm).update(attributes)
        for layer, parameters in reversed(self.weights):
            layer._parameters.clear()
            layer._parameters.update(parameters)
        tie_again(self.untied)
        self.folds, self.successors, self.attributes, self.weights, self.untied = {}, {}, {}, [], []
